//! Many images through a classifier: the same flow as extraction, with answers at its end instead of a store.

mod earlier;
mod formats;
mod parquet;
mod watch;

use std::cmp::Ordering;
use std::sync::atomic::{AtomicBool, Ordering as Memory};

pub use earlier::is_replaceable;
pub(super) use formats::Row;
pub use formats::{Csv, Format, Json, JsonLines, Rows, Summary, UnknownFormat};
pub use parquet::Parquet;
pub use watch::Watch;

use super::DeployError;
use super::classifier::{Classifier, Loader, NOT_FINITE};
use crate::dataset::Record;
use crate::events::{Event, Observer, Unit};
use crate::extract::flow::{Steps, flow};
use crate::image::MAX_PIXELS;

/// What is wanted of each image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Asked {
    /// Classes, the most probable first; at least 1.
    pub top: usize,
    /// Probability below which no class is named; 0 names one always.
    pub threshold: f32,
}

/// What became of an image.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// Its path or address, or `file#row`.
    pub id: String,
    /// Its classes, or why there are none.
    pub answer: Result<Answer, String>,
}

/// Classes of an image.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The most probable classes, best first; never empty.
    pub top: Vec<Ranked>,
    /// Whether the best is as probable as was asked for.
    pub sure: bool,
}

/// A class and its probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ranked {
    /// Index of the class.
    pub index: usize,
    /// From 0 to 1.
    pub probability: f32,
}

impl Answer {
    /// The classes that are asked for of a row of probabilities; of equal ones the first.
    ///
    /// # Errors
    /// When one of them is no number.
    pub fn of(row: &[f32], asked: Asked) -> Result<Self, String> {
        if row.is_empty() || row.iter().any(|value| !value.is_finite()) {
            return Err(NOT_FINITE.to_owned());
        }
        let descending = |a: &Ranked, b: &Ranked| match b.probability.total_cmp(&a.probability) {
            Ordering::Equal => a.index.cmp(&b.index),
            other => other,
        };
        let mut ranked: Vec<Ranked> = row.iter().enumerate().map(|(index, &probability)| Ranked { index, probability }).collect();
        let top = asked.top.clamp(1, row.len());
        if top < ranked.len() {
            ranked.select_nth_unstable_by(top - 1, descending);
            ranked.truncate(top);
        }
        ranked.sort_unstable_by(descending);
        let sure = ranked[0].probability >= asked.threshold;
        Ok(Self { top: ranked, sure })
    }
}

/// How many images there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All of them.
    pub images: usize,
    /// Those that could not be used.
    pub failed: usize,
}

/// Where images come from: records to the function it is handed, in batches of at most the number it is given, until that says no.
pub trait Feed: Send {
    /// Feeds all of them.
    ///
    /// # Errors
    /// When the source fails.
    fn feed(self, batch: usize, send: &mut dyn FnMut(Vec<Record>) -> bool) -> Result<(), DeployError>;
}

/// Images that are there.
pub struct Listed<'s, I> {
    /// The images.
    pub records: I,
    /// Ends it early.
    pub stop: &'s AtomicBool,
}

impl<I: Iterator<Item = Record> + Send> Feed for Listed<'_, I> {
    fn feed(self, batch: usize, send: &mut dyn FnMut(Vec<Record>) -> bool) -> Result<(), DeployError> {
        let mut records = Vec::with_capacity(batch);
        for record in self.records {
            if self.stop.load(Memory::Relaxed) {
                return Ok(());
            }
            records.push(record);
            if records.len() == batch && !send(std::mem::replace(&mut records, Vec::with_capacity(batch))) {
                return Ok(());
            }
        }
        if !records.is_empty() {
            send(records);
        }
        Ok(())
    }
}

/// Classifies images; answers go to `take` in the order of the images. Where the number of images is known, progress is shown.
///
/// # Errors
/// When the source or the network fails, or `take` does; an image that cannot be used is an answer.
pub fn predict(
    classifier: &Classifier,
    asked: Asked,
    threads: usize,
    feed: impl Feed,
    progress: Option<(u64, Observer<'_>)>,
    take: &mut dyn FnMut(&Prediction) -> Result<(), DeployError>,
) -> Result<Counts, DeployError> {
    const TASK: &str = "predict";
    let mut counts = Counts::default();
    if let Some((total, observe)) = progress {
        observe(Event::Started { task: TASK, total: Some(total), unit: Unit::Images });
    }
    let passed = flow(
        threads.max(1),
        Steps {
            feed: |send: &mut dyn FnMut(Vec<Record>) -> bool| feed.feed(classifier.batch(), send),
            begin: |number| (number, classifier.loader(MAX_PIXELS)),
            carry: |(number, loader): &mut (usize, Loader), records| batch(classifier, asked, *number, loader, records),
            collect: |predictions: Vec<Prediction>| {
                for prediction in &predictions {
                    counts.images += 1;
                    counts.failed += usize::from(prediction.answer.is_err());
                    take(prediction)?;
                }
                if let Some((_, observe)) = progress {
                    observe(Event::Advanced { task: TASK, done: counts.images as u64 });
                }
                Ok(())
            },
        },
    );
    if let Some((_, observe)) = progress {
        observe(Event::Finished { task: TASK });
    }
    passed.map(|_| counts)
}

/// Carries one batch through every step.
fn batch(
    classifier: &Classifier,
    asked: Asked,
    worker: usize,
    loader: &mut Loader,
    records: Vec<Record>,
) -> Result<Vec<Prediction>, DeployError> {
    let mut loaded = Vec::with_capacity(records.len());
    for Record { id, image, .. } in records {
        let added = image.read()?.and_then(|bytes| loader.add(&bytes));
        // The row says already which image it is about.
        let added = added.map_err(|reason| reason.strip_prefix(&format!("{id}: ")).unwrap_or(&reason).to_owned());
        loaded.push((id, added));
    }
    let probabilities = classifier.probabilities(worker, loader)?;
    let mut rows = probabilities.chunks_exact(classifier.classes().len().max(1));
    let answered = |(id, added): (String, Result<(), String>)| {
        let answer = added.and_then(|()| Answer::of(rows.next().unwrap_or_default(), asked));
        Prediction { id, answer }
    };
    Ok(loaded.into_iter().map(answered).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_come_first_and_of_equals_the_first() {
        let indices = |row: &[f32], top, threshold| {
            let answer = Answer::of(row, Asked { top, threshold }).unwrap();
            (answer.top.iter().map(|ranked| ranked.index).collect::<Vec<_>>(), answer.sure)
        };
        let row = [0.1, 0.3, 0.3, 0.25, 0.05];
        assert_eq!(indices(&row, 1, 0.0), (vec![1], true));
        assert_eq!(indices(&row, 3, 0.3), (vec![1, 2, 3], true));
        assert_eq!(indices(&row, 9, 0.31), (vec![1, 2, 3, 0, 4], false));
        assert!(Answer::of(&[0.1, f32::NAN], Asked { top: 1, threshold: 0.0 }).unwrap_err().contains("NaN"));
    }
}
