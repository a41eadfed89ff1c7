//! Curves, bars, heat maps and maps of points as inline SVG, drawn by plotters.
//!
//! plotters knows only fixed colours, the page has a light and a dark theme: each role below is drawn in a colour of its own that is
//! then replaced by the page's CSS variable for that role. Text takes the page's font.

use std::ops::Range;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::ReportError;
use crate::evaluate::{Bin, ConfusionCell};

/// plotters puts everything on whole pixels: drawn this many times larger, lines stay smooth.
const SCALE: u32 = 4;

/// Font size, in pixels of the page at 1:1. plotters divides by 1.24 what it is given.
const FONT: f64 = 13.0 * 1.24;

/// Room at the right for half of the last label, pixels of the page at 1:1.
const RIGHT: u32 = 26;

/// Points of a curve that are drawn at most.
const POINTS: usize = 500;

/// Points up to which each gets a marker.
const MARKERS: usize = 40;

/// Size of the map, pixels of the page at 1:1.
const MAP: (u32, u32) = (720, 470);

/// Colours that tell classes and runs apart: the page's `--c0` to `--c9`.
pub(super) const COLOURS: usize = 10;

const INK: RGBColor = RGBColor(1, 2, 3);
const GRID: RGBColor = RGBColor(1, 2, 4);
/// Training, or right answers.
pub(super) const FIRST: RGBColor = RGBColor(1, 2, 5);
/// Hold-out, or wrong answers.
pub(super) const SECOND: RGBColor = RGBColor(1, 2, 6);

/// Colour as plotters writes it, and the page's variable for it.
const ROLES: [(&str, &str); 4] = [
    ("\"#010203\"", "\"var(--muted)\""),
    ("\"#010204\"", "\"var(--line)\""),
    ("\"#010205\"", "\"var(--training)\""),
    ("\"#010206\"", "\"var(--holdout)\""),
];

/// The colour of a class or a run.
pub(super) fn colour(index: usize) -> RGBColor {
    RGBColor(2, 0, (index % COLOURS) as u8)
}

/// How values are written on an axis.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Scale {
    /// As they are.
    Plain,
    /// Whole numbers, and nothing between.
    Whole,
    /// Shares, as percentages.
    Percent,
    /// What is drawn is the logarithm to base 10 of what is meant.
    Power,
}

impl Scale {
    fn write(self, value: f64) -> String {
        match self {
            Self::Plain => format!("{}", (value * 1000.0).round() / 1000.0),
            Self::Whole if (value - value.round()).abs() < 1e-6 => format!("{value:.0}"),
            Self::Whole => String::new(),
            Self::Percent => format!("{} %", (value * 1000.0).round() / 10.0),
            Self::Power => {
                let value = 10_f64.powf(value);
                if (0.01..1e6).contains(&value) { format!("{}", significant(value)) } else { format!("{value:.0e}") }
            }
        }
    }
}

/// Two significant digits.
fn significant(value: f64) -> f64 {
    let unit = 10_f64.powf(value.abs().log10().floor() - 1.0);
    (value / unit).round() * unit
}

/// A line of a plot.
pub(super) struct Line {
    pub(super) points: Vec<(f64, f64)>,
    pub(super) colour: RGBColor,
    /// Whether each point has a marker, where there are few.
    pub(super) marked: bool,
}

/// Lines over one axis. Values that are not finite are left out; none where nothing is left.
pub(super) fn lines(label: &str, lines: &[Line], across: Scale, up: Scale) -> Result<Option<String>, ReportError> {
    let lines: Vec<Line> = lines.iter().map(|line| Line { points: thinned(&line.points), ..*line }).collect();
    let values = || lines.iter().flat_map(|line| &line.points);
    let Some((low, high)) = bounds(values().map(|point| point.1)) else { return Ok(None) };
    let Some((first, last)) = bounds(values().map(|point| point.0)) else { return Ok(None) };
    let pad = if high > low { (high - low) * 0.06 } else { high.abs().max(1.0) * 0.05 };
    let range = if last > first { first..last } else { first - 1.0..last + 1.0 };
    let drawn = svg((440, 260), |root| {
        let (across, up) = (|value: &f64| across.write(*value), |value: &f64| up.write(*value));
        let frame = Frame { labels: (8, 5), across: &across, up: &up };
        let mut chart = frame.around(root, range, low - pad..high + pad)?;
        for line in &lines {
            let drawn = LineSeries::new(line.points.iter().copied(), line.colour.stroke_width(2 * SCALE));
            chart.draw_series(drawn).map_err(|error| failed(&error))?;
            if line.points.len() == 1 || (line.marked && line.points.len() <= MARKERS) {
                // A point by itself is there to be seen.
                let radius = if line.points.len() == 1 { 5 } else { 3 };
                let markers = line.points.iter().map(|&point| Circle::new(point, radius * SCALE, line.colour.filled()));
                chart.draw_series(markers).map_err(|error| failed(&error))?;
            }
        }
        Ok(())
    })?;
    Ok(Some(themed(&drawn, label)))
}

/// Accuracy against confidence: a bar for each bin that has rows, and what is lacking to the diagonal or exceeds it.
pub(super) fn reliability(label: &str, bins: &[Bin]) -> Result<String, ReportError> {
    let drawn = svg((440, 330), |root| {
        let mut chart = unit_chart(root, 1.0)?;
        let found = || bins.iter().filter_map(|bin| Some((bin, bin.confidence?, bin.accuracy?)));
        let bars =
            found().map(|(bin, _, accuracy)| Rectangle::new([(bin.low, 0.0), (bin.high, accuracy)], FIRST.mix(0.45).filled()));
        chart.draw_series(bars).map_err(|error| failed(&error))?;
        let gaps = found().map(|(bin, confidence, accuracy)| {
            Rectangle::new([(bin.low, confidence.min(accuracy)), (bin.high, confidence.max(accuracy))], SECOND.mix(0.4).filled())
        });
        chart.draw_series(gaps).map_err(|error| failed(&error))?;
        let tops = found().map(|(bin, _, accuracy)| {
            PathElement::new([(bin.low, accuracy), (bin.high, accuracy)], FIRST.stroke_width(2 * SCALE))
        });
        chart.draw_series(tops).map_err(|error| failed(&error))?;
        let diagonal = LineSeries::new([(0.0, 0.0), (1.0, 1.0)], INK.stroke_width(SCALE));
        chart.draw_series(diagonal).map_err(|error| failed(&error))?;
        Ok(())
    })?;
    Ok(themed(&drawn, label))
}

/// Share of the rows in each bin of confidence.
pub(super) fn histogram(label: &str, bins: &[Bin]) -> Result<String, ReportError> {
    let rows: usize = bins.iter().map(|bin| bin.rows).sum();
    let share = |bin: &Bin| bin.rows as f64 / rows.max(1) as f64;
    let highest = bins.iter().map(share).fold(0.0, f64::max).max(1e-3);
    let drawn = svg((440, 330), |root| {
        let mut chart = unit_chart(root, highest * 1.05)?;
        let width = bins.first().map_or(0.0, |bin| bin.high - bin.low) * 0.06;
        let bars = bins.iter().filter(|bin| bin.rows > 0).flat_map(|bin| {
            let right = bin.accuracy.unwrap_or(0.0) * share(bin);
            let (low, high) = (bin.low + width, bin.high - width);
            [
                Rectangle::new([(low, 0.0), (high, right)], FIRST.mix(0.7).filled()),
                Rectangle::new([(low, right), (high, share(bin))], SECOND.mix(0.7).filled()),
            ]
        });
        chart.draw_series(bars).map_err(|error| failed(&error))?;
        Ok(())
    })?;
    Ok(themed(&drawn, label))
}

type Chart<'a, 'b> =
    ChartContext<'a, SVGBackend<'b>, Cartesian2d<plotters::coord::types::RangedCoordf64, plotters::coord::types::RangedCoordf64>>;

/// What stands around a chart.
struct Frame<'f> {
    /// Labels across and up, about.
    labels: (usize, usize),
    across: &'f dyn Fn(&f64) -> String,
    up: &'f dyn Fn(&f64) -> String,
}

impl Frame<'_> {
    /// A chart of these ranges with nothing in it yet.
    fn around<'a, 'b>(
        &self,
        root: &'a DrawingArea<SVGBackend<'b>, Shift>,
        across: Range<f64>,
        up: Range<f64>,
    ) -> Result<Chart<'a, 'b>, ReportError> {
        let mut chart = ChartBuilder::on(root)
            .margin_top(10 * SCALE)
            .margin_right(RIGHT * SCALE)
            .x_label_area_size(24 * SCALE)
            .y_label_area_size(46 * SCALE)
            .build_cartesian_2d(across, up)
            .map_err(|error| failed(&error))?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .bold_line_style(GRID.stroke_width(SCALE))
            .light_line_style(TRANSPARENT)
            .axis_style(GRID.stroke_width(SCALE))
            .label_style(text())
            .x_labels(self.labels.0)
            .y_labels(self.labels.1)
            .x_label_formatter(self.across)
            .y_label_formatter(self.up)
            .draw()
            .map_err(|error| failed(&error))?;
        Ok(chart)
    }
}

/// A chart of shares over shares from 0 to 1.
fn unit_chart<'a, 'b>(root: &'a DrawingArea<SVGBackend<'b>, Shift>, highest: f64) -> Result<Chart<'a, 'b>, ReportError> {
    let across = |value: &f64| Scale::Percent.write(*value);
    // Nought is below the other axis already.
    let up = |value: &f64| if *value == 0.0 { String::new() } else { Scale::Percent.write(*value) };
    Frame { labels: (6, 6), across: &across, up: &up }.around(root, 0.0..1.0, 0.0..highest)
}

/// A point of the map.
pub(super) struct Spot {
    /// Left to right and bottom to top, in any unit.
    pub(super) place: [f32; 2],
    pub(super) class: usize,
    pub(super) right: bool,
}

/// Points in the colours of their classes, wrong answers with a ring. Points come first, in their order, then the rings.
pub(super) fn scatter(label: &str, spots: &[Spot]) -> Result<String, ReportError> {
    let places = on_map(spots.iter().map(|spot| spot.place));
    let drawn = svg(MAP, |root| {
        for (spot, &place) in spots.iter().zip(&places) {
            // The ring needs room.
            let (radius, opacity) = if spot.right { (3, 0.6) } else { (3, 1.0) };
            let circle = Circle::new(place, radius * SCALE, colour(spot.class).mix(opacity).filled());
            root.draw(&circle).map_err(|error| failed(&error))?;
        }
        for (_, &place) in spots.iter().zip(&places).filter(|(spot, _)| !spot.right) {
            root.draw(&Circle::new(place, 4 * SCALE, INK.stroke_width(SCALE))).map_err(|error| failed(&error))?;
        }
        Ok(())
    })?;
    Ok(themed(&drawn, label))
}

/// Where points come to lie on the map, pixels of its drawing.
pub(super) fn on_map(places: impl Iterator<Item = [f32; 2]> + Clone) -> Vec<(i32, i32)> {
    const MARGIN: f64 = 10.0;
    let axis = |axis: usize| {
        let (low, high) = bounds(places.clone().map(|place| f64::from(place[axis]))).unwrap_or((0.0, 1.0));
        (low, (high - low).max(f64::MIN_POSITIVE))
    };
    let ((left, width), (bottom, height)) = (axis(0), axis(1));
    let spread = |value: f32, low: f64, range: f64, pixels: u32| {
        (MARGIN + (f64::from(value) - low) / range * (f64::from(pixels) - 2.0 * MARGIN)) * f64::from(SCALE)
    };
    let at = |place: [f32; 2]| {
        let (x, y) = (spread(place[0], left, width, MAP.0), spread(place[1], bottom, height, MAP.1));
        (x.round() as i32, (f64::from(MAP.1 * SCALE) - y).round() as i32)
    };
    places.clone().map(at).collect()
}

/// A confusion matrix as shades: rows are labels, columns answers, each row normalized by its sum.
pub(super) fn heat_map(label: &str, classes: usize, cells: &[ConfusionCell]) -> Result<String, ReportError> {
    let mut sums = vec![0_usize; classes];
    for cell in cells {
        sums[cell.label] += cell.count;
    }
    let side = classes as f64;
    let drawn = svg((520, 500), |root| {
        let mut chart = ChartBuilder::on(root)
            .margin(14 * SCALE)
            .x_label_area_size(22 * SCALE)
            .y_label_area_size(34 * SCALE)
            .build_cartesian_2d(0.0..side, side..0.0)
            .map_err(|error| failed(&error))?;
        chart
            .configure_mesh()
            .disable_mesh()
            .axis_style(GRID.stroke_width(SCALE))
            .label_style(text())
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
        Ok(())
    })?;
    Ok(themed(&drawn, label))
}

/// Draws at [`SCALE`] times the size, in pixels of the page at 1:1.
fn svg(
    (width, height): (u32, u32),
    draw: impl FnOnce(&DrawingArea<SVGBackend<'_>, Shift>) -> Result<(), ReportError>,
) -> Result<String, ReportError> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (width * SCALE, height * SCALE)).into_drawing_area();
        draw(&root)?;
        root.present().map_err(|error| failed(&error))?;
    }
    Ok(svg)
}

fn text() -> TextStyle<'static> {
    ("sans-serif", FONT * f64::from(SCALE)).into_font().color(&INK)
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
    for index in 0..COLOURS {
        svg = svg.replace(&format!("\"#0200{index:02X}\""), &format!("\"var(--c{index})\""));
    }
    svg
}

fn failed(error: &dyn std::fmt::Display) -> ReportError {
    ReportError::Plot { plot: "a plot of report.html", reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curves(label: &str, training: &[(f64, f64)], hold_out: &[(f64, f64)]) -> Option<String> {
        let line = |points: &[(f64, f64)], colour| Line { points: points.to_vec(), colour, marked: false };
        lines(label, &[line(training, FIRST), line(hold_out, SECOND)], Scale::Whole, Scale::Plain).unwrap()
    }

    #[test]
    fn curves_follow_the_theme_and_skip_what_is_not_finite() {
        let training = [(1.0, 2.0), (2.0, f64::NAN), (3.0, 1.0)];
        let svg = curves("Loss", &training, &[(1.0, 2.5), (3.0, f64::INFINITY)]).unwrap();
        assert!(svg.starts_with("<svg role=\"img\" aria-label=\"Loss\""));
        assert!(svg.contains("var(--training)") && svg.contains("var(--holdout)") && svg.contains("var(--muted)"));
        assert!(!svg.contains("#0102"), "a colour of no theme is left");
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn nothing_finite_is_no_plot() {
        assert!(curves("Loss", &[(1.0, f64::NAN)], &[]).is_none());
        assert!(curves("Loss", &[], &[]).is_none());
    }

    #[test]
    fn one_epoch_is_a_point() {
        let svg = curves("Accuracy", &[(1.0, 0.5)], &[]).unwrap();
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
    fn points_of_the_map_keep_their_order_and_rings_follow() {
        let spot = |x: f32, right| Spot { place: [x, -x], class: 11, right };
        let svg = scatter("Map", &[spot(0.0, true), spot(1.0, false), spot(2.0, true)]).unwrap();
        let centres: Vec<&str> = svg.lines().filter_map(|line| line.split_once("cx=\"")?.1.split('"').next()).collect();
        assert_eq!(centres, ["40", "1440", "2840", "1440"]);
        assert_eq!(svg.matches("var(--c1)").count(), 3, "class 11 has the colour of class 1");
    }

    #[test]
    fn axes_are_written_for_a_reader() {
        assert_eq!([0.5, 1.0].map(|value| Scale::Whole.write(value)), ["", "1"]);
        assert_eq!([-4.0, -1.0, 0.0, 4.0].map(|value| Scale::Power.write(value)), ["1e-4", "0.1", "1", "10000"]);
        assert_eq!(Scale::Percent.write(0.755), "75.5 %");
    }

    #[test]
    fn bars_are_drawn_for_bins_that_have_rows() {
        let bin = |low: f64, rows, right: Option<f64>| Bin {
            low,
            high: low + 0.5,
            rows,
            confidence: right.map(|_| low + 0.25),
            accuracy: right,
        };
        let bins = [bin(0.0, 0, None), bin(0.5, 4, Some(0.5))];
        let svg = reliability("Reliability", &bins).unwrap();
        assert_eq!(svg.lines().filter(|line| line.contains("<rect") && line.contains("opacity=\"0.4\"")).count(), 1, "one gap");
        assert!(!svg.contains("#0102"));
        assert_eq!(histogram("Confidence", &bins).unwrap().matches("opacity=\"0.7\"").count(), 2, "right and wrong");
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
