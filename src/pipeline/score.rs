//! Scores and predictions of a fitted head, split by split, and the run that is written of them.

use ndarray::{Array2, Axis};

use super::fit::Rows;
use super::{Pipeline, PipelineError};
use crate::evaluate;
use crate::head::{Checkpoints, Head, HeadError, Origin, Ridge, RidgePoint, Statistics};
use crate::run::{EpochRecord, Metrics, Predictions, RunDir, SplitScore, TrainedRows};
use crate::store::{Manifest, Place, Row, SplitFeatures, Store};

/// What has been scored so far.
pub(super) struct Scores<'a> {
    classes: &'a [String],
    pub(super) predictions: Predictions,
    /// Best for the loss on the hold-out, once that has been scored.
    pub(super) temperature: Option<f64>,
}

impl<'a> Scores<'a> {
    pub(super) fn of(classes: &'a [String]) -> Self {
        Self { classes, predictions: Predictions::default(), temperature: None }
    }

    /// Scores the logits `[rows, K]` of some rows and keeps them as predictions; the hold-out goes before the test split, so that
    /// its temperature is known there. None where no row has a label.
    pub(super) fn add(
        &mut self,
        name: &str,
        features: &SplitFeatures,
        rows: &[usize],
        mut logits: Array2<f32>,
    ) -> Result<Option<SplitScore>, PipelineError> {
        let labels: Vec<Option<i32>> = rows.iter().map(|&row| features.labels[row]).collect();
        let mut score = evaluate::score(logits.view(), &labels, self.classes)?;
        if name == "validation" {
            self.temperature = evaluate::temperature(logits.view(), &labels)?;
        }
        if let (Some(score), Some(temperature)) = (&mut score, self.temperature.filter(|_| name != "train")) {
            score.scaled = evaluate::at_temperature(logits.view(), &labels, temperature)?;
        }
        let predictions = &mut self.predictions;
        predictions.ids.extend(rows.iter().map(|&row| features.ids[row].clone()));
        predictions.splits.extend(rows.iter().map(|_| name.to_owned()));
        predictions.labels.extend(labels);
        for mut row in logits.rows_mut() {
            if let Some(row) = row.as_slice_mut() {
                predictions.predicted.push(i32::try_from(evaluate::argmax(row)).unwrap_or(i32::MAX));
                evaluate::softmax(row);
                predictions.probabilities.extend_from_slice(row);
            }
        }
        Ok(score)
    }
}

/// Logits of some rows, in blocks, so that the features are never held twice.
pub(super) fn logits(head: &Head, features: &SplitFeatures, rows: &[usize]) -> Result<Array2<f32>, HeadError> {
    const BLOCK: usize = 4096;
    let mut logits = Array2::zeros((rows.len(), head.classes().len()));
    for (rows, mut place) in rows.chunks(BLOCK).zip(logits.axis_chunks_iter_mut(Axis(0), BLOCK)) {
        place.assign(&head.logits(features.embeddings.select(Axis(0), rows).view())?);
    }
    Ok(logits)
}

/// What a ridge fit leaves beside the head.
pub(super) struct Kept<'r> {
    pub(super) statistics: &'r Statistics,
    pub(super) rows: TrainedRows,
    pub(super) origin: Origin,
    pub(super) path: &'r [RidgePoint],
    /// Answers to the training rows by fits without them.
    pub(super) left_out: Option<Predictions>,
}

impl<'r> Kept<'r> {
    pub(super) fn of(ridge: &'r Ridge, l2: f64, store: &Store, rows: &Rows, train: &[usize]) -> Result<Self, PipelineError> {
        let Manifest { classes, key, .. } = store.manifest();
        let described = store.describe(&rows.splits)?;
        let trained = trained_rows(&described, train);
        let mut scores = Scores::of(classes);
        scores.add("train", &rows.fitting, train, ridge.left_out.clone())?;
        let origin = Origin { classes: classes.clone(), store_key: key.clone(), l2, logit_scale: ridge.logit_scale };
        let left_out = Some(scores.predictions);
        Ok(Self { statistics: &ridge.statistics, rows: trained, origin, path: &ridge.path, left_out })
    }
}

/// Names the rows that were trained on.
pub(super) fn trained_rows(described: &[(Place, Row)], train: &[usize]) -> TrainedRows {
    let rows = || train.iter().map(|&row| &described[row].1);
    TrainedRows {
        ids: rows().map(|row| row.id.clone()).collect(),
        content_hashes: rows().map(|row| row.content_hash.clone()).collect(),
        labels: rows().map(|row| row.label.unwrap_or(-1)).collect(),
    }
}

/// A fitted head and all that is told of it.
pub(super) struct Outcome<'a> {
    pub(super) head: &'a Head,
    pub(super) history: &'a [EpochRecord],
    pub(super) predictions: &'a Predictions,
    pub(super) metrics: &'a Metrics,
    pub(super) kept: Option<Kept<'a>>,
}

impl Outcome<'_> {
    /// Writes the run; `metrics.json` goes first and comes back last, so that a run that has one is whole. What an earlier fit left
    /// and this one does not goes too.
    pub(super) fn write(&self, run: &RunDir, pipeline: &Pipeline) -> Result<(), PipelineError> {
        const OF_SWEEP: &str = "sweep.csv";
        const OF_PATH: &str = "l2_path.csv";
        const LEFT_OUT: &str = "left_out.parquet";
        for name in ["metrics.json", OF_SWEEP, OF_PATH, LEFT_OUT, Statistics::FILE, TrainedRows::FILE] {
            run.remove(name)?;
        }
        let classes = self.metrics.classes.len();
        self.head.save(&run.file("head.safetensors"))?;
        run.write("pipeline.toml", pipeline.resolved()?.as_bytes())?;
        run.write_history(self.history)?;
        run.write_predictions("predictions.parquet", self.predictions, classes)?;
        if let Some(sweep) = &self.metrics.sweep {
            run.write_table(OF_SWEEP, &sweep.table())?;
        }
        if let Some(Kept { statistics, rows, origin, path, left_out }) = &self.kept {
            run.write(Statistics::FILE, &statistics.to_bytes(origin)?)?;
            run.write(TrainedRows::FILE, &rows.to_bytes()?)?;
            if !path.is_empty() {
                run.write_table(OF_PATH, path)?;
            }
            if let Some(left_out) = left_out {
                run.write_predictions(LEFT_OUT, left_out, classes)?;
            }
        }
        run.write_metrics(self.metrics)?;
        Ok(run.remove(Checkpoints::FILE)?)
    }
}
