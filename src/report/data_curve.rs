//! What more images would give: accuracy by the number of training images, as `tlpipe audit` measured and extrapolated it.

use minijinja::context;
use minijinja::value::Value;
use serde::Deserialize;
use serde_json::Value as Json;

use super::ReportError;
use super::plots::{FIRST, Line, SECOND, Scale, lines};

/// Steps of the fitted line.
const STEPS: usize = 40;

/// `data_curve` of `audit.json`, as far as it is drawn.
#[derive(Deserialize)]
struct Curve {
    points: Vec<Point>,
    law: Option<Law>,
    doubling: Option<Doubling>,
}

#[derive(Deserialize)]
struct Point {
    images: f64,
    error: f64,
}

/// `error = a + b * images ^ -c`.
#[derive(Deserialize)]
struct Law {
    a: f64,
    b: f64,
    c: f64,
}

#[derive(Deserialize)]
struct Doubling {
    images: usize,
    error: f64,
    gain: f64,
    gain_interval: [f64; 2],
}

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
                gain => doubling.gain,
                gain_interval => doubling.gain_interval.to_vec(),
            }
        });
        context! { fitted => self.fitted, plot => Value::from_safe_string(self.plot.clone()), doubling => doubling }
    }
}

/// Draws the curve; none where it is of another form, or has no points.
pub(super) fn draw(curve: &Json) -> Result<Option<Drawn>, ReportError> {
    let Ok(Curve { mut points, law, doubling }) = Curve::deserialize(curve) else { return Ok(None) };
    points.retain(|point| point.images >= 1.0);
    points.sort_by(|a, b| a.images.total_cmp(&b.images));
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return Ok(None) };
    let (low, high) = (first.images.log10(), (2.0 * last.images).log10());
    let fitted = |law: &Law| {
        let at = |step: usize| {
            let images = low + (high - low) * step as f64 / STEPS as f64;
            (images, 1.0 - law.a - law.b * 10_f64.powf(-law.c * images))
        };
        (0..=STEPS).map(at).collect::<Vec<_>>()
    };
    let measured = points.iter().map(|point| (point.images.log10(), 1.0 - point.error)).collect();
    let fitted = law.as_ref().map(fitted).unwrap_or_default();
    let found = !fitted.is_empty();
    let drawn = [Line { points: fitted, colour: SECOND, marked: false }, Line { points: measured, colour: FIRST, marked: true }];
    let plot = lines("Accuracy by number of training images", &drawn, Scale::Power, Scale::Percent)?;
    Ok(plot.map(|plot| Drawn { fitted: found, plot, doubling }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_law_is_drawn_to_twice_the_images() {
        let points = json!([{"images": 1000, "error": 0.4, "draws": [0.4]}, {"images": 4000, "error": 0.3, "draws": [0.3]}]);
        let doubling =
            json!({"images": 8000, "error": 0.26, "error_interval": [0.2, 0.3], "gain": 0.04, "gain_interval": [0.03, 0.05]});
        let curve =
            json!({"split": "test", "rows": 9, "points": points, "law": {"a": 0.1, "b": 8.0, "c": 0.5}, "doubling": doubling});
        let drawn = draw(&curve).unwrap().unwrap();
        assert!(drawn.fitted && drawn.plot.contains("var(--holdout)") && drawn.plot.contains("var(--training)"));
        assert_eq!(drawn.value().get_attr("doubling").unwrap().get_attr("images").unwrap().to_string(), "8000");
        let bare = draw(&json!({"points": points, "law": null, "doubling": null})).unwrap().unwrap();
        assert!(!bare.fitted && bare.doubling.is_none());
        assert!(draw(&json!({"points": []})).unwrap().is_none() && draw(&json!("later")).unwrap().is_none());
    }
}
