//! Answers that a run scored, for a classifier's to be held against.

use std::collections::HashMap;

use bytes::Bytes;

use super::{Context, PipelineError};
use crate::dataset::Dataset;
use crate::deploy::{Comparison, Deployed, Metadata, Sample};
use crate::events::{Event, Unit};
use crate::run::{Predictions, RunDir};

/// Images that are read, answered and compared at a time.
const CHUNK: usize = 512;

/// Answers of the cached path: those that a run scored.
pub(super) struct Scored {
    /// The split as the run calls it.
    pub(super) split: String,
    /// Probabilities by id.
    rows: HashMap<String, Vec<f32>>,
}

impl Scored {
    /// At most so many of the answers that a run scored, evenly spaced; of the test split where it has one.
    pub(super) fn load(run: &RunDir, metadata: &Metadata, most: usize) -> Result<Self, PipelineError> {
        let path = run.file("predictions.parquet");
        let classes = metadata.classes.len();
        // The hold-out last: it may have been scored by the head as it was before the last fit.
        for split in ["test", "train", "validation"] {
            let found = Predictions::load(&path, split, classes)?;
            let count = found.ids.len();
            if count == 0 {
                continue;
            }
            let wanted = count.min(most);
            let picked = (0..wanted).map(|number| number * count / wanted);
            let temperature = metadata.metrics.temperature.filter(|_| metadata.metrics.calibrated);
            let answer = |row: usize| {
                let probabilities = &found.probabilities[row * classes..][..classes];
                temperature.map_or_else(|| probabilities.to_vec(), |temperature| cooled(probabilities, temperature))
            };
            let rows = picked.map(|row| (found.ids[row].clone(), answer(row))).collect();
            return Ok(Self { split: split.to_owned(), rows });
        }
        let reason = "it has no row of test, train or validation".to_owned();
        Err(crate::run::RunError::Damaged { path, reason }.into())
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Splits of a source that these images may be of: the hold-out may be a part of its train split.
    pub(super) fn places(&self) -> [&str; 2] {
        match self.split.as_str() {
            "validation" => ["validation", "train"],
            split => [split, "validation"],
        }
    }

    /// The answer to an image.
    pub(super) fn answer(&self, id: &str) -> Option<&[f32]> {
        self.rows.get(id).map(Vec::as_slice)
    }

    /// Compares a model's answers to those images that are in a source.
    pub(super) fn compare(
        &self,
        dataset: &Dataset,
        deployed: &Deployed,
        context: &Context<'_>,
        comparison: &mut Comparison,
    ) -> Result<(), PipelineError> {
        const TASK: &str = "compare";
        (context.observe)(Event::Started { task: TASK, total: Some(self.rows.len() as u64), unit: Unit::Images });
        let mut done = 0;
        let mut waiting: Vec<(&[f32], String, Bytes)> = Vec::with_capacity(CHUNK);
        let mut flush = |waiting: &mut Vec<(&[f32], String, Bytes)>| -> Result<(), PipelineError> {
            let images: Vec<Bytes> = waiting.iter().map(|(_, _, bytes)| bytes.clone()).collect();
            for ((expected, id, bytes), said) in waiting.drain(..).zip(deployed.answer(&images)?) {
                done += 1;
                // One that cannot be used was not scored; then this is another image of that id.
                if let Ok(said) = said {
                    comparison.add(&Sample { id, bytes, expected: expected.to_vec() }, &said);
                }
            }
            (context.observe)(Event::Advanced { task: TASK, done });
            Ok(())
        };
        let mut left = self.rows.len();
        for split in self.places().into_iter().filter(|name| dataset.splits().iter().any(|split| &*split.name == *name)) {
            for record in dataset.records(split)? {
                if left == 0 {
                    break;
                }
                let record = record?;
                let Some(expected) = self.rows.get(&record.id) else { continue };
                left -= 1;
                if let Ok(bytes) = record.image.read()? {
                    waiting.push((expected, record.id, bytes));
                }
                if waiting.len() == CHUNK {
                    flush(&mut waiting)?;
                }
            }
        }
        flush(&mut waiting)?;
        (context.observe)(Event::Finished { task: TASK });
        Ok(())
    }
}

/// Probabilities as they are once the logits are divided by a temperature.
fn cooled(probabilities: &[f32], temperature: f64) -> Vec<f32> {
    let powers: Vec<f64> = probabilities.iter().map(|&value| f64::from(value).powf(1.0 / temperature)).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| (power / sum) as f32).collect()
}
