//! The run that is written of a fitted head.

use super::fit::Rows;
use super::scoring::Scoring;
use super::streamed::Features;
use super::{Pipeline, PipelineError};
use crate::head::{Checkpoints, Head, HeadParams, Origin, Ridge, RidgePoint, Statistics};
use crate::report;
use crate::run::{EpochRecord, FEATURES, Metrics, PredictionsWriter, QUARANTINE, RunDir, SWEEP_JOURNAL, TrainedRows};
use crate::store::{Manifest, Place, Row, Store, quarantine};

/// Predictions of every split.
pub(super) const PREDICTIONS: &str = "predictions.parquet";
/// Heads on few images.
pub(super) const SHOTS: &str = "shots.csv";
/// Heads on one depth each.
pub(super) const DEPTHS: &str = "depths.csv";
/// Candidates of a sweep.
const SWEEP: &str = "sweep.csv";
/// Every strength of L2 that ridge tried.
const L2_PATH: &str = "l2_path.csv";
/// Answers of ridge to training rows by fits without them.
const LEFT_OUT: &str = "left_out.parquet";

/// What a ridge fit leaves beside the head.
pub(super) struct Kept<'r> {
    /// None where they are not to be kept.
    pub(super) statistics: Option<&'r Statistics>,
    pub(super) rows: TrainedRows,
    pub(super) origin: Origin,
    pub(super) path: &'r [RidgePoint],
    /// Answers to the training rows by fits without them.
    pub(super) left_out: Option<PredictionsWriter>,
}

impl<'r> Kept<'r> {
    /// `fitted` are the rows that the fit was on, `trained` with those that it was then fitted again with.
    pub(super) fn of<F: Features>(
        ridge: &'r Ridge,
        l2: f64,
        params: &HeadParams,
        store: &Store,
        run: &RunDir,
        rows: &Rows<F>,
        (fitted, trained): (&[usize], &[usize]),
    ) -> Result<Self, PipelineError> {
        let Manifest { classes, key, .. } = store.manifest();
        let described = store.describe(&rows.splits)?;
        let trained = trained_rows(&described, trained);
        let left_out = ridge.left_out.as_ref().map(|left_out| -> Result<_, PipelineError> {
            let mut scoring = Scoring::begin(run, LEFT_OUT, classes)?;
            scoring.logits(left_out.clone(), "train", &rows.fitting, fitted)?;
            Ok(scoring.predictions)
        });
        let origin = Origin { classes: classes.clone(), store_key: key.clone(), l2, logit_scale: ridge.logit_scale };
        let left_out = left_out.transpose()?;
        let statistics = params.keep_statistics(ridge.statistics.features()).then_some(&ridge.statistics);
        Ok(Self { statistics, rows: trained, origin, path: &ridge.path, left_out })
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
    pub(super) predictions: PredictionsWriter,
    pub(super) metrics: &'a Metrics,
    pub(super) kept: Option<Kept<'a>>,
    /// The features, where they will be gone: what is known of them stays.
    pub(super) passing: Option<&'a Store>,
}

impl Outcome<'_> {
    /// Writes the run; `metrics.json` goes first and comes back last, so that a run that has one is whole. What an earlier fit left
    /// and this one does not goes too.
    pub(super) fn write(self, run: &RunDir, pipeline: &Pipeline) -> Result<(), PipelineError> {
        for name in [
            "metrics.json",
            report::HTML,
            report::JSON,
            SHOTS,
            DEPTHS,
            SWEEP,
            L2_PATH,
            LEFT_OUT,
            Statistics::FILE,
            TrainedRows::FILE,
            FEATURES,
            QUARANTINE,
        ] {
            run.remove(name)?;
        }
        self.head.save(&run.file("head.safetensors"))?;
        run.write("pipeline.toml", pipeline.resolved()?.as_bytes())?;
        run.write_history(self.history)?;
        self.predictions.keep()?;
        if let Some(sweep) = &self.metrics.sweep {
            run.write_table(SWEEP, &sweep.table())?;
        }
        if let Some(Kept { statistics, rows, origin, path, left_out }) = self.kept {
            if let Some(statistics) = statistics {
                run.write(Statistics::FILE, &statistics.to_bytes(&origin)?)?;
                run.write(TrainedRows::FILE, &rows.to_bytes()?)?;
            }
            if !path.is_empty() {
                run.write_table(L2_PATH, path)?;
            }
            if let Some(left_out) = left_out {
                left_out.keep()?;
            }
        }
        if let Some(store) = self.passing {
            store.manifest().write_as(run.path(), FEATURES)?;
            if store.manifest().quarantined > 0 {
                quarantine::write(&run.file(QUARANTINE), &store.quarantine()?)?;
            }
        }
        run.write_metrics(self.metrics)?;
        run.remove(SWEEP_JOURNAL)?;
        Ok(run.remove(Checkpoints::FILE)?)
    }
}
