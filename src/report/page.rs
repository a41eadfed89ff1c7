//! The page: facts, plots and thumbnails put into the template.

use std::collections::{BTreeSet, HashMap};
use std::io::Cursor;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{AutoEscape, Environment, UndefinedBehavior, context};
use serde::Serialize;

use super::facts::{ClassFigures, Examined, Facts};
use super::plots::{Scale, curves, heat_map};
use super::{Inputs, ReportError};
use crate::run::EpochRecord;

/// Size of the page that thumbnails may not push it over, bytes.
const PAGE_BYTES: usize = 10 << 20;

/// Longest side of a thumbnail, pixels.
const THUMBNAIL_SIDE: u32 = 128;

/// Longest side up to which an image is tiny, pixels.
const TINY: u32 = 64;

/// Classes up to which the confusion matrix is a table of counts.
const TABLE_CLASSES: usize = 20;

/// Classes up to which it is drawn as a heat map; above, the pairs tell more.
const HEAT_MAP_CLASSES: usize = 100;

/// Classes up to which every one is shown at once; above, the weakest.
const SHOWN_CLASSES: usize = 30;

/// Epochs that are written out at most.
const SHOWN_EPOCHS: usize = 100;

/// The small picture of a mistake: embedded, or a word on why not.
#[derive(Serialize)]
enum Picture {
    /// `tiny` images are shown with hard pixels, since they are enlarged a lot.
    #[serde(rename = "data")]
    Data { uri: String, tiny: bool },
    #[serde(rename = "missing")]
    Missing(&'static str),
}

/// Renders the page. Adds to the notes of the facts what could not be shown.
pub(super) fn render(facts: &mut Facts, inputs: &Inputs) -> Result<String, ReportError> {
    let environment = environment()?;
    let template = environment.get_template("report.html")?;
    let history = &facts.history;
    let drawn = |training: fn(&EpochRecord) -> f64, hold_out: fn(&EpochRecord) -> Option<f64>, label, scale| {
        let epoch = |record: &EpochRecord| record.epoch as f64;
        let training: Vec<_> = history.iter().map(|record| (epoch(record), training(record))).collect();
        let hold_out: Vec<_> = history.iter().filter_map(|record| Some((epoch(record), hold_out(record)?))).collect();
        Ok::<_, ReportError>(curves(label, &training, &hold_out, scale)?.map(Value::from_safe_string))
    };
    let loss = drawn(|record| record.loss, |record| record.val_loss, "Loss by epoch", Scale::Plain)?;
    let accuracy = drawn(|record| record.accuracy, |record| record.val_accuracy, "Accuracy by epoch", Scale::Percent)?;
    let step = history.len().div_ceil(SHOWN_EPOCHS).max(1);
    let mut epochs: Vec<&EpochRecord> = history.iter().rev().step_by(step).collect();
    epochs.reverse();
    let headline = facts.headline().map(|(split, _)| Value::from(Serde(split)));
    let top_columns: BTreeSet<_> = facts.splits.iter().flat_map(|split| &split.top).map(|top| top.k).filter(|&k| k > 1).collect();
    let close = facts.examined.as_ref().map(Close::of).transpose()?;
    let context = |pictures: &[Picture], facts: &Facts| {
        context! {
            facts => Serde(facts),
            headline => headline.clone(),
            loss => loss.clone(),
            accuracy => accuracy.clone(),
            top_columns => &top_columns,
            epochs => Serde(&epochs),
            close => Serde(&close),
            heat_map => close.as_ref().and_then(|close| close.heat_map.clone()).map(Value::from_safe_string),
            pictures => Serde(pictures),
        }
    };
    let bare = template.render(context(&[], facts))?.len();
    let (pictures, notes) = pictures(facts.examined.as_ref(), facts, inputs, PAGE_BYTES.saturating_sub(bare));
    let mut noted = facts.clone();
    noted.notes.extend(notes);
    let page = template.render(context(&pictures, &noted))?;
    *facts = noted;
    Ok(page)
}

/// What the template needs of the close look beyond the facts themselves.
#[derive(Serialize)]
struct Close<'a> {
    /// Counts by label, then answer; empty where there are too many classes for a table.
    matrix: Vec<Vec<usize>>,
    #[serde(skip)]
    heat_map: Option<String>,
    /// Classes that are shown at once, the weakest first.
    weakest: Vec<&'a ClassFigures>,
    /// The others, in the same order.
    others: Vec<&'a ClassFigures>,
    /// The class that is recognised best; none where all are recognised alike.
    strongest: Option<&'a ClassFigures>,
}

impl<'a> Close<'a> {
    fn of(examined: &'a Examined) -> Result<Self, ReportError> {
        let classes = examined.classes.len();
        let mut matrix = Vec::new();
        let mut heat = None;
        if classes <= TABLE_CLASSES {
            matrix = vec![vec![0; classes]; classes];
            for cell in &examined.confusion {
                matrix[cell.label][cell.predicted] = cell.count;
            }
        } else if classes <= HEAT_MAP_CLASSES {
            heat = Some(heat_map("Confusion matrix as a heat map", classes, &examined.confusion)?);
        }
        let mut weakest: Vec<&ClassFigures> = examined.classes.iter().collect();
        // Classes without a figure last.
        let f1 = |class: &ClassFigures| class.score.f1;
        weakest.sort_by(|a, b| f1(a).unwrap_or(2.0).total_cmp(&f1(b).unwrap_or(2.0)).then(a.index.cmp(&b.index)));
        let (first, last) = (weakest.first().copied(), weakest.iter().rfind(|class| f1(class).is_some()).copied());
        let strongest = last.filter(|last| first.is_some_and(|first| f1(first) < f1(last)));
        let others = weakest.split_off(if classes > SHOWN_CLASSES { SHOWN_CLASSES } else { classes });
        Ok(Self { matrix, heat_map: heat, weakest, others, strongest })
    }
}

/// Thumbnails of the worst mistakes in their order, `room` bytes of them at most, and notes on what is missing.
fn pictures(examined: Option<&Examined>, facts: &Facts, inputs: &Inputs, room: usize) -> (Vec<Picture>, Vec<String>) {
    let Some(examined) = examined else { return (Vec::new(), Vec::new()) };
    // The hold-out is a part of the source's train split, unless the source has a validation split of its own.
    let held_out = examined.split == "validation" && facts.metrics.split.kind != "source";
    let split = if held_out { "train" } else { examined.split.as_str() };
    let ids: Vec<String> = examined.worst_mistakes.iter().map(|mistake| mistake.id.clone()).collect();
    let images = if ids.is_empty() { HashMap::new() } else { (inputs.images)(split, &ids) };
    let (mut left, mut lost, mut unreadable, mut omitted) = (room, 0, 0, 0);
    let pictures = ids.iter().map(|id| {
        let Some(image) = images.get(id) else {
            lost += 1;
            return Picture::Missing("image not found");
        };
        let Ok(small) = (inputs.thumbnail)(image, THUMBNAIL_SIDE) else {
            unreadable += 1;
            return Picture::Missing("image not readable");
        };
        let Some((kind, tiny)) = inspect(&small) else {
            unreadable += 1;
            return Picture::Missing("image not readable");
        };
        let uri = format!("data:{kind};base64,{}", STANDARD.encode(small));
        if uri.len() > left {
            omitted += 1;
            return Picture::Missing("left out: page full");
        }
        left -= uri.len();
        Picture::Data { uri, tiny }
    });
    let pictures = pictures.collect();
    let of = ids.len();
    let mut notes = Vec::new();
    if lost > 0 {
        notes.push(format!(
            "{lost} of {of} images of mistakes were not found in the source ({}): were they moved or deleted since the features were extracted?",
            facts.store.source
        ));
    }
    if unreadable > 0 {
        notes.push(format!("{unreadable} of {of} images of mistakes cannot be read any more: were they changed since the features were extracted?"));
    }
    if omitted > 0 {
        notes
            .push(format!("{omitted} of {of} images of mistakes were left out to keep the page under {} MiB.", PAGE_BYTES >> 20));
    }
    (pictures, notes)
}

/// MIME type of an encoded image, and whether it has few pixels.
fn inspect(encoded: &[u8]) -> Option<(&'static str, bool)> {
    let reader = image::ImageReader::new(Cursor::new(encoded)).with_guessed_format().ok()?;
    let kind = reader.format()?.to_mime_type();
    let (width, height) = reader.into_dimensions().ok()?;
    Some((kind, width.max(height) <= TINY))
}

fn environment() -> Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.add_filter("percent", percent);
    environment.add_filter("interval", interval);
    environment.add_filter("figure", figure);
    environment.add_filter("count", count);
    environment.add_filter("duration", duration);
    environment.add_template("report.html", include_str!("report.html"))?;
    Ok(environment)
}

/// What stands for a value that does not exist.
const NONE: &str = "–";

/// A share as a percentage with one digit: `77.4 %`.
fn percent(share: Option<f64>) -> String {
    match share {
        Some(share) if share.is_finite() => format!("{:.1}\u{a0}%", share * 100.0),
        _ => NONE.into(),
    }
}

/// Both ends of an interval of shares: `76.6 to 78.2 %`.
fn interval(ends: Vec<f64>) -> String {
    match ends[..] {
        [low, high] if low.is_finite() && high.is_finite() => {
            format!("{:.1}\u{a0}to\u{a0}{:.1}\u{a0}%", low * 100.0, high * 100.0)
        }
        _ => NONE.into(),
    }
}

/// A figure with three digits after the point.
fn figure(value: Option<f64>) -> String {
    match value {
        Some(value) if value.is_finite() => format!("{value:.3}"),
        _ => NONE.into(),
    }
}

/// A whole number in groups of three digits: `50,000`.
fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Seconds for a reader: `0.05 s`, `36.2 s`, `12 min 05 s`, `2 h 10 min`.
fn duration(seconds: Option<f64>) -> String {
    match seconds {
        Some(seconds) if seconds.is_finite() && seconds >= 0.0 => {
            let whole = seconds.round() as u64;
            match seconds {
                _ if seconds < 10.0 => format!("{seconds:.2}\u{a0}s"),
                _ if seconds < 99.95 => format!("{seconds:.1}\u{a0}s"),
                _ if whole < 3600 => format!("{}\u{a0}min {:02}\u{a0}s", whole / 60, whole % 60),
                _ => format!("{}\u{a0}h {:02}\u{a0}min", whole / 3600, whole % 3600 / 60),
            }
        }
        _ => NONE.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_a_reader() {
        assert_eq!(percent(Some(0.7744)), "77.4\u{a0}%");
        assert_eq!(percent(Some(f64::NAN)), "–");
        assert_eq!(interval(vec![0.7656, 0.7821]), "76.6\u{a0}to\u{a0}78.2\u{a0}%");
        assert_eq!(figure(None), "–");
        assert_eq!([count(0), count(999), count(1000), count(1_234_567)], ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(duration(Some(0.046)), "0.05\u{a0}s");
        assert_eq!(duration(Some(725.2)), "12\u{a0}min 05\u{a0}s");
        assert_eq!(duration(Some(7800.0)), "2\u{a0}h 10\u{a0}min");
    }
}
