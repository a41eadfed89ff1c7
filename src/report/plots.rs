//! Curves and heat maps as inline SVG, drawn by plotters.
//!
//! plotters knows only fixed colours, the page has a light and a dark theme: each role below is drawn in a colour of its own that is
//! then replaced by the page's CSS variable for that role. Text takes the page's font.

use plotters::prelude::*;

use super::ReportError;
use crate::evaluate::ConfusionCell;

/// plotters puts everything on whole pixels: drawn this many times larger, lines stay smooth.
const SCALE: u32 = 4;

/// Font size, in pixels of the page at 1:1. plotters divides by 1.24 what it is given.
const FONT: f64 = 13.0 * 1.24;

/// Points of a curve that are drawn at most.
const POINTS: usize = 500;

/// Points up to which each gets a marker.
const MARKERS: usize = 40;

const INK: RGBColor = RGBColor(1, 2, 3);
const GRID: RGBColor = RGBColor(1, 2, 4);
/// Training, or right answers.
const FIRST: RGBColor = RGBColor(1, 2, 5);
/// Hold-out, or wrong answers.
const SECOND: RGBColor = RGBColor(1, 2, 6);

/// Colour as plotters writes it, and the page's variable for it.
const ROLES: [(&str, &str); 4] = [
    ("\"#010203\"", "\"var(--muted)\""),
    ("\"#010204\"", "\"var(--line)\""),
    ("\"#010205\"", "\"var(--training)\""),
    ("\"#010206\"", "\"var(--holdout)\""),
];

/// How the values of a curve are written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Scale {
    /// As they are.
    Plain,
    /// Shares, as percentages.
    Percent,
}

/// Training and hold-out values over epochs. Values that are not finite are left out; none where nothing is left.
pub(super) fn curves(
    label: &str,
    training: &[(f64, f64)],
    hold_out: &[(f64, f64)],
    scale: Scale,
) -> Result<Option<String>, ReportError> {
    let (training, hold_out) = (thinned(training), thinned(hold_out));
    let values = || training.iter().chain(&hold_out);
    let Some((low, high)) = bounds(values().map(|point| point.1)) else { return Ok(None) };
    let Some((first, last)) = bounds(values().map(|point| point.0)) else { return Ok(None) };
    let pad = if high > low { (high - low) * 0.06 } else { high.abs().max(1.0) * 0.05 };
    let epochs = if last > first { first..last } else { first - 1.0..last + 1.0 };
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (440 * SCALE, 260 * SCALE)).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin_top(10 * SCALE)
            .margin_right(12 * SCALE)
            .x_label_area_size(24 * SCALE)
            .y_label_area_size(46 * SCALE)
            .build_cartesian_2d(epochs, low - pad..high + pad)
            .map_err(|error| failed(&error))?;
        let whole = |value: &f64| if (value - value.round()).abs() < 1e-6 { format!("{value:.0}") } else { String::new() };
        let written = |value: &f64| match scale {
            Scale::Plain => format!("{}", (value * 1000.0).round() / 1000.0),
            Scale::Percent => format!("{} %", (value * 1000.0).round() / 10.0),
        };
        chart
            .configure_mesh()
            .disable_x_mesh()
            .bold_line_style(GRID.stroke_width(SCALE))
            .light_line_style(TRANSPARENT)
            .axis_style(GRID.stroke_width(SCALE))
            .label_style(("sans-serif", FONT * f64::from(SCALE)).into_font().color(&INK))
            .x_labels(8)
            .y_labels(5)
            .x_label_formatter(&whole)
            .y_label_formatter(&written)
            .draw()
            .map_err(|error| failed(&error))?;
        for (points, colour) in [(&training, FIRST), (&hold_out, SECOND)] {
            let line = LineSeries::new(points.iter().copied(), colour.stroke_width(2 * SCALE));
            chart.draw_series(line).map_err(|error| failed(&error))?;
            if points.len() == 1 || (colour == SECOND && points.len() <= MARKERS) {
                let markers = points.iter().map(|&point| Circle::new(point, 3 * SCALE, colour.filled()));
                chart.draw_series(markers).map_err(|error| failed(&error))?;
            }
        }
        root.present().map_err(|error| failed(&error))?;
    }
    Ok(Some(themed(&svg, label)))
}

/// A confusion matrix as shades: rows are labels, columns answers, each row normalized by its sum.
pub(super) fn heat_map(label: &str, classes: usize, cells: &[ConfusionCell]) -> Result<String, ReportError> {
    let mut sums = vec![0_usize; classes];
    for cell in cells {
        sums[cell.label] += cell.count;
    }
    let side = classes as f64;
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (520 * SCALE, 500 * SCALE)).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin(14 * SCALE)
            .x_label_area_size(22 * SCALE)
            .y_label_area_size(34 * SCALE)
            .build_cartesian_2d(0.0..side, side..0.0)
            .map_err(|error| failed(&error))?;
        chart
            .configure_mesh()
            .disable_mesh()
            .axis_style(GRID.stroke_width(SCALE))
            .label_style(("sans-serif", FONT * f64::from(SCALE)).into_font().color(&INK))
            .x_labels(10)
            .y_labels(10)
            .x_label_formatter(&|value| format!("{value:.0}"))
            .y_label_formatter(&|value| format!("{value:.0}"))
            .draw()
            .map_err(|error| failed(&error))?;
        let squares = cells.iter().map(|cell| {
            let (column, row) = (cell.predicted as f64, cell.label as f64);
            let share = cell.count as f64 / sums[cell.label] as f64;
            let colour = if cell.label == cell.predicted { FIRST } else { SECOND };
            // The root keeps small shares visible beside the diagonal.
            Rectangle::new([(column, row), (column + 1.0, row + 1.0)], colour.mix(share.sqrt()).filled())
        });
        chart.draw_series(squares).map_err(|error| failed(&error))?;
        root.present().map_err(|error| failed(&error))?;
    }
    Ok(themed(&svg, label))
}

/// Finite points, at most [`POINTS`] of them, evenly spaced, the last among them.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let step = points.len().div_ceil(POINTS).max(1);
    let mut kept: Vec<_> = points.iter().rev().step_by(step).copied().filter(|point| point.1.is_finite()).collect();
    kept.reverse();
    kept
}

fn bounds(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |bounds, value| {
        let (low, high) = bounds.unwrap_or((value, value));
        Some((low.min(value), high.max(value)))
    })
}

/// Gives a drawing the page's colours and font, a name for screen readers, and the width of its container.
fn themed(svg: &str, label: &str) -> String {
    let root = format!("<svg role=\"img\" aria-label=\"{label}\" ");
    let mut svg = svg.replacen("<svg ", &root, 1).replace(" font-family=\"sans-serif\"", "");
    for (colour, variable) in ROLES {
        svg = svg.replace(colour, variable);
    }
    svg
}

fn failed(error: &dyn std::fmt::Display) -> ReportError {
    ReportError::Plot { plot: "a plot of report.html", reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_follow_the_theme_and_skip_what_is_not_finite() {
        let training = [(1.0, 2.0), (2.0, f64::NAN), (3.0, 1.0)];
        let svg = curves("Loss", &training, &[(1.0, 2.5), (3.0, f64::INFINITY)], Scale::Plain).unwrap().unwrap();
        assert!(svg.starts_with("<svg role=\"img\" aria-label=\"Loss\""));
        assert!(svg.contains("var(--training)") && svg.contains("var(--holdout)") && svg.contains("var(--muted)"));
        assert!(!svg.contains("#0102"), "a colour of no theme is left");
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn nothing_finite_is_no_plot() {
        assert!(curves("Loss", &[(1.0, f64::NAN)], &[], Scale::Plain).unwrap().is_none());
        assert!(curves("Loss", &[], &[], Scale::Plain).unwrap().is_none());
    }

    #[test]
    fn one_epoch_is_a_point() {
        let svg = curves("Accuracy", &[(1.0, 0.5)], &[], Scale::Percent).unwrap().unwrap();
        assert_eq!(svg.matches("<circle").count(), 1);
    }

    #[test]
    fn a_long_history_is_thinned_and_ends_at_the_last_epoch() {
        let points: Vec<_> = (1..=10_000).map(|epoch| (f64::from(epoch), 1.0 / f64::from(epoch))).collect();
        let kept = thinned(&points);
        assert!(kept.len() <= POINTS);
        assert_eq!(kept.last(), points.last());
    }

    #[test]
    fn heat_map_draws_each_cell_once_shaded_by_its_share_of_the_row() {
        let cells = [
            ConfusionCell { label: 0, predicted: 0, count: 3 },
            ConfusionCell { label: 0, predicted: 1, count: 1 },
            ConfusionCell { label: 1, predicted: 1, count: 9 },
        ];
        let svg = heat_map("Confusion", 2, &cells).unwrap();
        let opacity = |part: &str| svg.lines().filter(|line| line.contains("<rect") && line.contains(part)).count();
        assert_eq!(opacity("var(--training)"), 2);
        assert_eq!(opacity("var(--holdout)"), 1);
        assert_eq!(opacity("opacity=\"0.5\""), 1, "a quarter of the row is half as dark");
    }
}
