//! What more images would give: accuracy by the number of training images, as `tlpipe audit` measured and extrapolated it.

use minijinja::context;
use minijinja::value::Value;

use super::ReportError;
use super::plots::{FIRST, Line, SECOND, Scale, lines};
use crate::audit::{Curve, Doubling, PowerLaw};

/// Steps of the fitted line.
const STEPS: usize = 40;

/// A curve that was drawn.
pub(super) struct Drawn {
    fitted: bool,
    plot: String,
    doubling: Option<Doubling>,
}

impl Drawn {
    /// For the template.
    pub(super) fn value(&self) -> Value {
        let doubling = self.doubling.as_ref().map(|doubling| {
            context! {
                images => doubling.images,
                accuracy => 1.0 - doubling.error,
                helps => doubling.helps(),
                gain => doubling.gain,
                gain_interval => doubling.gain_interval.to_vec(),
            }
        });
        context! { fitted => self.fitted, plot => Value::from_safe_string(self.plot.clone()), doubling => doubling }
    }
}

/// Draws the curve; none where it has no points.
pub(super) fn draw(curve: &Curve) -> Result<Option<Drawn>, ReportError> {
    let Curve { points, law, doubling, .. } = curve;
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return Ok(None) };
    let (low, high) = ((first.images as f64).log10(), (2.0 * last.images as f64).log10());
    let fitted = |law: &PowerLaw| {
        let at = |step: usize| {
            let images = low + (high - low) * step as f64 / STEPS as f64;
            (images, 1.0 - law.at(10_f64.powf(images)))
        };
        (0..=STEPS).map(at).collect::<Vec<_>>()
    };
    let measured = points.iter().map(|point| ((point.images as f64).log10(), 1.0 - point.error)).collect();
    let fitted = law.as_ref().map(fitted).unwrap_or_default();
    let found = !fitted.is_empty();
    let drawn = [Line { points: fitted, colour: SECOND, marked: false }, Line { points: measured, colour: FIRST, marked: true }];
    let plot = lines("Accuracy by number of training images", &drawn, Scale::Power, Scale::Percent)?;
    Ok(plot.map(|plot| Drawn { fitted: found, plot, doubling: *doubling }))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_law_is_drawn_to_twice_the_images() {
        let points = json!([{"images": 1000, "error": 0.4, "draws": [0.4]}, {"images": 4000, "error": 0.3, "draws": [0.3]}]);
        let doubling =
            json!({"images": 8000, "error": 0.26, "error_interval": [0.2, 0.3], "gain": 0.04, "gain_interval": [0.03, 0.05]});
        let curve = |points: &Value, law: Value, doubling: Value| -> Curve {
            let curve = json!({"split": "test", "rows": 9, "points": points, "law": law, "doubling": doubling});
            serde_json::from_value(curve).unwrap()
        };
        let drawn = draw(&curve(&points, json!({"a": 0.1, "b": 8.0, "c": 0.5}), doubling)).unwrap().unwrap();
        assert!(drawn.fitted && drawn.plot.contains("var(--holdout)") && drawn.plot.contains("var(--training)"));
        assert_eq!(drawn.value().get_attr("doubling").unwrap().get_attr("images").unwrap().to_string(), "8000");
        let bare = draw(&curve(&points, Value::Null, Value::Null)).unwrap().unwrap();
        assert!(!bare.fitted && bare.doubling.is_none());
        assert!(draw(&curve(&json!([]), Value::Null, Value::Null)).unwrap().is_none());
    }
}
