//! Stage 2 of a pipeline: it opens the feature store and the run directory, nothing else.

use std::ops::Range;
use std::time::Instant;

use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::extract::StageOutcome;
use super::score::{Kept, Outcome, Scores, logits};
use super::{Context, Interrupted, Pipeline, PipelineError};
use crate::events::Event;
use crate::head::{self, Checkpoints, Examples, Head, HeadError, HeadParams, HoldOut, OnEpoch, ParamGuard as _, Solver};
use crate::run::{EpochRecord, METRICS_SCHEMA, Metrics, RunDir, SplitRecord};
use crate::store::{SplitFeatures, Store};

/// What stage 2 leaves.
#[derive(Clone, Debug)]
pub struct Fit {
    /// Whether it ran.
    pub outcome: StageOutcome,
    /// Content of `metrics.json`.
    pub metrics: Metrics,
}

/// Fits the head on the cached features and scores it. Unless `always`, a run that fits the store and the settings is kept.
///
/// # Errors
/// When the features, the settings of the head or the run directory cannot be used, or the user stopped it.
pub fn fit_head(pipeline: &Pipeline, context: &Context<'_>, always: bool, on_epoch: OnEpoch<'_>) -> Result<Fit, PipelineError> {
    let params = &pipeline.settings.head;
    let checked = params.clone().check()?;
    let store = Store::open(&pipeline.features)?;
    let run = RunDir::new(&pipeline.run);
    let settings = serde_json::to_value(params).unwrap_or_default();
    let fit_key = fit_key(&store, &settings);
    if !always
        && let Ok(metrics) = run.metrics()
        && metrics.fit_key == fit_key
        && is_whole(&run, pipeline)
    {
        return Ok(Fit { outcome: StageOutcome::UpToDate, metrics });
    }
    run.prepare()?;
    warn_of_missing(&store, pipeline, context);
    let manifest = store.manifest();
    let started = Instant::now();
    let rows = Rows::load(&store, params.split)?;
    let load_seconds = started.elapsed().as_secs_f64();
    let division = rows.divide(&store, params)?;
    for warning in &division.warnings {
        (context.observe)(Event::Warned(warning.clone()));
    }
    let classes = &manifest.classes;
    (context.observe)(Event::Noted(format!(
        "fit-head  softmax {} → {} · {} · {} train, {} hold-out ({})",
        manifest.dimension,
        classes.len(),
        params.solver,
        division.train.len(),
        division.holdout.len(),
        division.kind
    )));
    let mut stopped = false;
    let mut watch = |record: &EpochRecord| {
        let flow = on_epoch(record);
        stopped = flow.is_break();
        flow
    };
    let checkpoint = run.file(Checkpoints::FILE);
    let mut checkpoints = Checkpoints::new(&checkpoint, &fit_key, context.observe);
    let started = Instant::now();
    let fitted = context.stoppable(|| {
        let examples = rows.examples(&division.train, &division.holdout, classes);
        head::fit_resumable(&checked, &examples, &mut checkpoints, &mut watch)
    });
    let fit_seconds = started.elapsed().as_secs_f64();
    let fitted = fitted.map_err(|error| rows.name(error))?;
    let epochs = fitted.history.len();
    if stopped && params.solver == Solver::Adam {
        let (of, path) = (params.epochs, checkpoint.display());
        return Err(
            Interrupted(format!("stopped after epoch {epochs} of {of}; the same command goes on from there ({path})")).into()
        );
    }
    if stopped {
        return Err(Interrupted(format!("stopped; {} is as it was", run.path().display())).into());
    }
    if let Some(best) = fitted.best_epoch {
        let end = if epochs < params.epochs { "stopped early, after" } else { "all epochs run:" };
        (context.observe)(Event::Noted(format!(
            "fit-head  {end} epoch {epochs} of {}; the head is that of epoch {best}",
            params.epochs
        )));
    }
    let fit_seconds = fit_seconds + fitted.history[..fitted.resumed_after].iter().map(|record| record.seconds).sum::<f64>();
    for warning in &fitted.warnings {
        (context.observe)(Event::Warned(warning.clone()));
    }
    let head = fitted.head.with_store_key(&manifest.key);

    let mut scores = Scores::of(classes);
    let mut score = |features: &SplitFeatures, rows: &[usize], name| {
        let logits = logits(&head, features, rows)?;
        scores.add(name, features, rows, logits)
    };
    let train = score(&rows.fitting, &division.train, "train")?;
    let validation = score(&rows.fitting, &division.holdout, "validation")?;
    let test = match &rows.test {
        Some(test) => score(test, &(0..test.ids.len()).collect::<Vec<_>>(), "test")?,
        None => None,
    };
    if validation.is_none() && test.is_none() {
        let remedy =
            if params.validation_split > 0.0 { "add images, two or more of a class" } else { "set head.validation_split" };
        (context.observe)(Event::Warned(format!(
            "nothing is scored on images that the head has not seen: no row is held out, and there is no labelled test split; \
             {remedy}, or add a test split"
        )));
    }
    let metrics = Metrics {
        schema: METRICS_SCHEMA,
        store_key: manifest.key.clone(),
        fit_key,
        solver: params.solver.to_string(),
        epochs: fitted.history.last().map_or(0, |record| record.epoch),
        best_epoch: fitted.best_epoch,
        fit_seconds,
        load_seconds,
        features: manifest.dimension,
        classes: classes.clone(),
        split: SplitRecord {
            kind: division.kind,
            fraction: params.validation_split,
            train: division.train.len(),
            holdout: division.holdout.len(),
        },
        train,
        validation,
        test,
        temperature: scores.temperature,
        l2: fitted.l2,
        sweep: None,
        update: None,
        baselines: Vec::new(),
        head: settings,
    };
    let kept = fitted.ridge.as_ref().map(|ridge| Kept::of(ridge, fitted.l2, &store, &rows, &division.train)).transpose()?;
    let predictions = &scores.predictions;
    Outcome { head: &head, history: &fitted.history, predictions, metrics: &metrics, kept }.write(&run, pipeline)?;
    Ok(Fit { outcome: StageOutcome::Ran, metrics })
}

/// Says what a store in slices lacks.
pub(super) fn warn_of_missing(store: &Store, pipeline: &Pipeline, context: &Context<'_>) {
    if let (missing @ [_, ..], of) = store.missing_slices() {
        let numbers = missing.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        (context.observe)(Event::Warned(format!(
            "{} of {of} slices of {} are missing or unfinished ({numbers}): their images are left out; make them with tlpipe extract \
             --shard {}/{of} and so on",
            missing.len(),
            pipeline.features.display(),
            missing[0]
        )));
    }
}

/// Whether every file of the run can still be read; a run that was damaged is made anew.
fn is_whole(run: &RunDir, pipeline: &Pipeline) -> bool {
    let predictions = std::fs::File::open(run.file("predictions.parquet"))
        .is_ok_and(|file| ParquetRecordBatchReaderBuilder::try_new(file).is_ok());
    let settings = std::fs::read_to_string(run.file("pipeline.toml")).ok();
    predictions
        && settings.is_some_and(|text| pipeline.resolved().is_ok_and(|resolved| resolved == text))
        && Head::load(&run.file("head.safetensors")).is_ok()
        && run.history().is_ok_and(|history| !history.is_empty())
}

/// Everything a later fit would have to change for its outcome to differ.
pub(super) fn fit_key(store: &Store, settings: &serde_json::Value) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in [&store.manifest().digest(), &settings.to_string(), env!("CARGO_PKG_VERSION"), &METRICS_SCHEMA.to_string()] {
        hasher.update(part.as_bytes());
        hasher.update(&[0]);
    }
    hasher.finalize().to_hex().to_string()
}

/// The rows in memory: those to fit on with those held out, and those to score at the end.
pub(super) struct Rows {
    pub(super) fitting: SplitFeatures,
    /// Splits that `fitting` is of.
    pub(super) splits: Vec<&'static str>,
    /// Rows of `fitting` that the source itself sets aside for validation.
    validation: Range<usize>,
    pub(super) test: Option<SplitFeatures>,
}

/// Which rows of `Rows::fitting` are for what.
pub(super) struct Division {
    pub(super) train: Vec<usize>,
    pub(super) holdout: Vec<usize>,
    pub(super) kind: String,
    pub(super) warnings: Vec<String>,
}

/// The splits whose rows train and are held out.
pub(super) fn fitting_splits(store: &Store, asked: Option<HoldOut>) -> Vec<&'static str> {
    let own = asked.is_none_or(|kind| kind == HoldOut::Source) && has(store, "validation");
    if own { vec!["train", "validation"] } else { vec!["train"] }
}

fn has(store: &Store, name: &str) -> bool {
    store.manifest().splits().iter().any(|split| split == name)
}

/// Divides rows into those that train and those that are held out; `validation` are those that the source itself sets aside.
pub(super) fn divide(
    store: &Store,
    params: &HeadParams,
    ids: &[String],
    labels: &[Option<i32>],
    validation: Range<usize>,
) -> Result<Division, PipelineError> {
    let classes = &store.manifest().classes;
    let train = labelled(labels, 0..validation.start);
    let unlabelled = validation.start - train.len();
    let mut division = if validation.is_empty() {
        let default = if store.manifest().source.sorted_by_class { HoldOut::Stratified } else { HoldOut::Tail };
        let kind = params.split.unwrap_or(default);
        let split = head::hold_out(&params.rule(kind), ids, labels, classes)?;
        Division { train: split.train, holdout: split.holdout, kind: kind.to_string(), warnings: split.warnings }
    } else {
        let holdout = labelled(labels, validation);
        let warnings = head::lacking(&train, &holdout, labels, classes);
        Division { train, holdout, kind: "source".into(), warnings }
    };
    if unlabelled > 0 {
        division.warnings.push(format!("{unlabelled} images of train have no label: they are left out of the fit"));
    }
    Ok(division)
}

impl Rows {
    /// Loads what the fit needs. A source that has a validation split of its own is held to it, unless a hold-out is asked for.
    pub(super) fn load(store: &Store, asked: Option<HoldOut>) -> Result<Self, PipelineError> {
        let splits = fitting_splits(store, asked);
        let fitting = store.load(&splits)?;
        let first = if splits.len() > 1 { store.manifest().rows("train") } else { fitting.ids.len() };
        let validation = first..fitting.ids.len();
        let test = if has(store, "test") { Some(store.load(&["test"])?) } else { None };
        Ok(Self { fitting, splits, validation, test })
    }

    pub(super) fn divide(&self, store: &Store, params: &HeadParams) -> Result<Division, PipelineError> {
        divide(store, params, &self.fitting.ids, &self.fitting.labels, self.validation.clone())
    }

    /// What a head is fitted on, of these rows of `fitting`.
    pub(super) fn examples<'a>(&'a self, train: &'a [usize], holdout: &'a [usize], classes: &'a [String]) -> Examples<'a> {
        Examples { x: self.fitting.embeddings.view(), labels: &self.fitting.labels, train, holdout, classes }
    }

    /// Puts the image's id into an error that knows its row alone.
    pub(super) fn name(&self, error: HeadError) -> PipelineError {
        match error {
            HeadError::NotFinite { row, .. } => {
                PipelineError::BadFeatures { id: self.fitting.ids.get(row).cloned().unwrap_or_default() }
            }
            other => other.into(),
        }
    }
}

/// Those of the rows that have a label.
pub(super) fn labelled(labels: &[Option<i32>], rows: Range<usize>) -> Vec<usize> {
    rows.filter(|&row| labels[row].is_some()).collect()
}
