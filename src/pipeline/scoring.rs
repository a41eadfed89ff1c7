//! Scores and predictions of a fitted head, block by block: memory holds a few figures a row, one block of probabilities, and
//! those that the ROC curves and the temperature are found from, as far as they fit 256 MiB each.

use ndarray::{Array2, s};

use super::PipelineError;
use super::streamed::Features;
use crate::evaluate::{self, EvaluateError, Scorer};
use crate::head::{Head, HeadError, PackedHead};
use crate::run::{Predictions, PredictionsWriter, RunDir, SplitScore};

/// Rows of a block, and logits in it, at most.
const BLOCK_ROWS: usize = 4096;
const BLOCK_VALUES: usize = 1 << 23;

/// Logits that the temperature is found from: all of the hold-out's, or those of evenly spaced rows.
const TEMPERATURE_VALUES: usize = 1 << 26;

/// Scores one split after the other and writes the predictions.
pub(super) struct Scoring<'a> {
    classes: &'a [String],
    pub(super) predictions: PredictionsWriter,
    /// Best on the hold-out, once that has been scored; so it goes before the test split.
    pub(super) temperature: Option<f64>,
}

impl<'a> Scoring<'a> {
    /// Begins a file of predictions in a run.
    pub(super) fn begin(run: &RunDir, name: &str, classes: &'a [String]) -> Result<Self, PipelineError> {
        Ok(Self { classes, predictions: run.predictions(name, classes.len())?, temperature: None })
    }

    /// Scores a head on some rows; none where no row has a label.
    pub(super) fn head<F: Features>(
        &mut self,
        head: &Head,
        name: &str,
        features: &F,
        rows: &[usize],
    ) -> Result<Option<SplitScore>, PipelineError> {
        let packed = head.pack();
        if name == "validation" {
            self.temperature = temperature(head, features, rows)?;
        }
        let mut scorer = self.scorer(name, rows.len());
        each_block(head, &packed, features, rows, |rows, logits| self.block(&mut scorer, name, features, rows, logits))?;
        Ok(scorer.finish())
    }

    /// Scores known logits `[rows, K]` of some rows.
    pub(super) fn logits<F: Features>(
        &mut self,
        logits: Array2<f32>,
        name: &str,
        features: &F,
        rows: &[usize],
    ) -> Result<Option<SplitScore>, PipelineError> {
        if name == "validation" {
            let labels: Vec<Option<i32>> = rows.iter().map(|&row| features.labels()[row]).collect();
            self.temperature = evaluate::temperature(logits.view(), &labels)?;
        }
        let mut scorer = self.scorer(name, rows.len());
        self.block(&mut scorer, name, features, rows, logits)?;
        Ok(scorer.finish())
    }

    fn scorer(&self, name: &str, rows: usize) -> Scorer<'a> {
        Scorer::new(self.classes, rows, self.temperature.filter(|_| name != "train"))
    }

    fn block<F: Features>(
        &mut self,
        scorer: &mut Scorer<'_>,
        name: &str,
        features: &F,
        rows: &[usize],
        mut logits: Array2<f32>,
    ) -> Result<(), PipelineError> {
        let labels: Vec<Option<i32>> = rows.iter().map(|&row| features.labels()[row]).collect();
        scorer.add(logits.view(), &labels).map_err(|error| named(error, rows, features))?;
        let mut predicted = Vec::with_capacity(rows.len());
        for mut row in logits.rows_mut() {
            if let Some(row) = row.as_slice_mut() {
                predicted.push(i32::try_from(evaluate::argmax(row)).unwrap_or(i32::MAX));
                evaluate::softmax(row);
            }
        }
        let ids = rows.iter().map(|&row| features.ids()[row].clone()).collect();
        let splits = vec![name.to_owned(); rows.len()];
        let probabilities = logits.into_raw_vec_and_offset().0;
        Ok(self.predictions.add(Predictions { ids, splits, labels, predicted, probabilities })?)
    }
}

/// Puts the image's id into an error that knows its row alone.
fn named<F: Features>(error: EvaluateError, rows: &[usize], features: &F) -> PipelineError {
    match error {
        EvaluateError::Class { found, classes, .. } => {
            let bad = rows.iter().find(|&&row| features.labels()[row] == Some(found));
            let id = bad.map(|&row| features.ids()[row].clone()).unwrap_or_default();
            PipelineError::BadLabel { id, label: found, classes }
        }
        other => other.into(),
    }
}

/// Every row.
pub(super) fn all<F: Features>(features: &F) -> Vec<usize> {
    (0..features.ids().len()).collect()
}

/// Logits `[rows, K]` of some rows.
pub(super) fn logits<F: Features>(head: &Head, features: &F, rows: &[usize]) -> Result<Array2<f32>, PipelineError> {
    let mut logits = Array2::zeros((rows.len(), head.classes().len()));
    let mut first = 0;
    each_block(head, &head.pack(), features, rows, |rows, block| {
        logits.slice_mut(s![first..first + rows.len(), ..]).assign(&block);
        first += rows.len();
        Ok(())
    })?;
    Ok(logits)
}

fn temperature<F: Features>(head: &Head, features: &F, holdout: &[usize]) -> Result<Option<f64>, PipelineError> {
    let classes = head.classes().len();
    let every = (holdout.len() * classes).div_ceil(TEMPERATURE_VALUES).max(1);
    let rows: Vec<usize> = holdout.iter().copied().step_by(every).collect();
    let labels: Vec<Option<i32>> = rows.iter().map(|&row| features.labels()[row]).collect();
    Ok(evaluate::temperature(logits(head, features, &rows)?.view(), &labels)?)
}

/// Hands out the logits of some rows in blocks.
fn each_block<F: Features>(
    head: &Head,
    packed: &PackedHead<'_>,
    features: &F,
    rows: &[usize],
    mut act: impl FnMut(&[usize], Array2<f32>) -> Result<(), PipelineError>,
) -> Result<(), PipelineError> {
    let size = (BLOCK_VALUES / head.classes().len().max(1)).clamp(1, BLOCK_ROWS);
    for rows in rows.chunks(size) {
        let logits = packed.logits(features.select(rows)?.view()).map_err(|error| match error {
            HeadError::Answer { row } => PipelineError::BadFeatures { id: features.ids()[rows[row]].clone() },
            other => other.into(),
        })?;
        act(rows, logits)?;
    }
    Ok(())
}
