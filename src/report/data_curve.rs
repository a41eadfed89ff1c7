//! What more images would give: accuracy by the number of training images, as `tlpipe audit` measured it.

use minijinja::context;
use minijinja::value::Value;
use serde_json::Value as Json;

use super::ReportError;
use super::plots::{FIRST, Line, SECOND, Scale, lines};

/// A curve that was drawn.
pub(super) struct Drawn {
    what: &'static str,
    text: Option<String>,
    fitted: bool,
    plot: String,
}

impl Drawn {
    /// For the template.
    pub(super) fn value(&self) -> Value {
        context! { what => self.what, text => &self.text, fitted => self.fitted, plot => Value::from_safe_string(self.plot.clone()) }
    }
}

/// Draws `data_curve` of `audit.json`; none where it holds no points.
pub(super) fn draw(curve: &Json) -> Result<Option<Drawn>, ReportError> {
    let points = |name: &str, figure: &str| -> Vec<(f64, f64)> {
        let points = curve.get(name).and_then(Json::as_array).into_iter().flatten();
        points.filter_map(|point| Some((point.get("rows")?.as_f64()?.log10(), point.get(figure)?.as_f64()?))).collect()
    };
    let measured = points("points", "accuracy");
    let fitted = points("fitted", "accuracy");
    let lines_of = [
        Line { points: fitted.clone(), colour: SECOND, marked: false },
        Line { points: measured.clone(), colour: FIRST, marked: true },
    ];
    let plot = if measured.is_empty() {
        None
    } else {
        lines("Accuracy by number of training images", &lines_of, Scale::Power, Scale::Percent)?
    };
    let text = ["suggestion", "text"].iter().find_map(|name| curve.get(*name)?.as_str()).map(str::to_owned);
    Ok(plot.map(|plot| Drawn { what: "Accuracy", text, fitted: !fitted.is_empty(), plot }))
}
