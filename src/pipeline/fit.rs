//! Stage 2 of a pipeline: it opens the feature store and the run directory, nothing else.

use std::borrow::Cow;
use std::ops::Range;
use std::time::{Duration, Instant};

use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::extract::StageOutcome;
use super::outcome::{Kept, Outcome, PREDICTIONS};
use super::scoring::{Scoring, all};
use super::streamed::{Features, Plan, is_streamed};
use super::{Context, Interrupted, Pipeline, PipelineError};
use crate::events::Event;
use crate::head::{
    self, Checkpoints, Examples, Head, HeadError, HeadParams, HeadValidParams, HoldOut, OnEpoch, ParamGuard as _, Solver,
};
use crate::run::{EpochRecord, METRICS_SCHEMA, Metrics, RunDir, SplitRecord};
use crate::store::{SplitFeatures, Store, StoreError, StreamedFeatures};

/// What stage 2 leaves.
pub struct Fit {
    /// Whether it ran.
    pub outcome: StageOutcome,
    /// Content of `metrics.json`.
    pub metrics: Metrics,
    /// For what comes after the fit; none where the features were not in memory.
    pub(super) loaded: Option<Loaded>,
}

impl Fit {
    /// Lets go of the features.
    #[must_use]
    pub fn without_features(self) -> Self {
        Self { loaded: None, ..self }
    }
}

/// Features in memory, and which of their rows are for what.
pub(super) struct Loaded {
    pub(super) store: Store,
    pub(super) rows: Rows,
    pub(super) division: Division,
}

impl Loaded {
    /// Reads the features and divides them.
    pub(super) fn new(store: Store, params: &HeadParams, wanted: Wanted) -> Result<Self, PipelineError> {
        let rows = Rows::load(&store, params.split, wanted)?;
        let division = rows.divide(&store, params)?;
        Ok(Self { store, rows, division })
    }
}

/// Fits the head on the cached features and scores it. Unless `always`, a run that fits the store and the settings is kept.
///
/// # Errors
/// When the features, the settings of the head or the run directory cannot be used, or the user stopped it.
pub fn fit_head(pipeline: &Pipeline, context: &Context<'_>, always: bool, on_epoch: OnEpoch<'_>) -> Result<Fit, PipelineError> {
    let params = &pipeline.settings.head;
    let checked = params.clone().check()?;
    let store = pipeline.open_store()?;
    let run = RunDir::new(&pipeline.run);
    let settings = serde_json::to_value(params).unwrap_or_default();
    let fit_key = fit_key(&store, &settings);
    if !always
        && let Ok(metrics) = run.metrics()
        && metrics.fit_key.trim_start_matches("sweep-").trim_start_matches("update-") == fit_key
        && is_whole(&run, pipeline, metrics.sweep.is_some() || metrics.update.is_some())
    {
        return Ok(Fit { outcome: StageOutcome::UpToDate, metrics, loaded: None });
    }
    run.prepare()?;
    let _lock = run.lock()?;
    warn_of_missing(&store, pipeline, context);
    let stage = Stage { pipeline, context, store: &store, run: &run, params: &checked, settings, fit_key, passing: false };
    let started = Instant::now();
    let wanted = Wanted::of(params);
    let (metrics, loaded) = if is_streamed(&store, params, wanted)? {
        let rows = Rows::stream(&store, params.split, wanted)?;
        let division = rows.divide(&store, params)?;
        (stage.fit(&rows, &division, started.elapsed(), on_epoch)?, None)
    } else {
        let rows = Rows::load(&store, params.split, wanted)?;
        let division = rows.divide(&store, params)?;
        let metrics = stage.fit(&rows, &division, started.elapsed(), on_epoch)?;
        (metrics, Some(Loaded { store, rows, division }))
    };
    Ok(Fit { outcome: StageOutcome::Ran, metrics, loaded })
}

/// What a fit works with, but its rows.
pub(super) struct Stage<'a> {
    pub(super) pipeline: &'a Pipeline,
    pub(super) context: &'a Context<'a>,
    pub(super) store: &'a Store,
    pub(super) run: &'a RunDir,
    pub(super) params: &'a HeadValidParams,
    pub(super) settings: serde_json::Value,
    pub(super) fit_key: String,
    /// Whether the features are there for the time being.
    pub(super) passing: bool,
}

impl Stage<'_> {
    /// Fits, scores, and writes the run.
    pub(super) fn fit<F: Features>(
        self,
        rows: &Rows<F>,
        division: &Division,
        loaded: Duration,
        on_epoch: OnEpoch<'_>,
    ) -> Result<Metrics, PipelineError> {
        let Self { pipeline, context, store, run, params, settings, fit_key, passing } = self;
        let manifest = store.manifest();
        for warning in &division.warnings {
            (context.observe)(Event::Warned(warning.clone()));
        }
        let classes = &manifest.classes;
        (context.observe)(Event::Noted(format!(
            "fit-head  softmax {} → {}{} · {} · {} train{}, {} hold-out ({})",
            manifest.dimension,
            classes.len(),
            manifest.depths().map(|depths| format!(" · {depths}")).unwrap_or_default(),
            params.solver,
            division.train.len() + rows.fitting.summed(),
            rows.said(params),
            division.holdout.len(),
            division.kind
        )));
        let mut stopped = false;
        let mut watch = |record: &EpochRecord| {
            let flow = on_epoch(record);
            // The others tell when they are done; then there is nothing to stop.
            stopped = flow.is_break() && params.solver.can_be_stopped();
            flow
        };
        let checkpoint = run.file(Checkpoints::FILE);
        let mut checkpoints = Checkpoints::new(&checkpoint, &fit_key, context.observe);
        let started = Instant::now();
        let trained = rows.unfold(params, &division.train);
        let refit = rows.unfold(params, &division.holdout);
        let plan = Plan { params, train: &trained, holdout: &division.holdout, refit: &refit, classes };
        let fitted = context.stopping(params.solver, || rows.fitting.fit(&plan, &mut checkpoints, &mut watch));
        let fit_seconds = started.elapsed().as_secs_f64();
        let fitted = fitted.map_err(|error| rows.name(error))?;
        let epochs = fitted.history.len();
        if stopped && params.solver == Solver::Adam {
            let (of, path) = (params.epochs, checkpoint.display());
            return Err(Interrupted(format!(
                "stopped after epoch {epochs} of {of}; the same command goes on from there ({path})"
            ))
            .into());
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
        fitted.warnings.iter().for_each(|warning| (context.observe)(Event::Warned(warning.clone())));
        let head = fitted.head.with_store(&manifest.key_parts, store.transform());

        let mut scoring = Scoring::begin(run, PREDICTIONS, classes)?;
        let train = scoring.head(&head, "train", &rows.fitting, &division.train)?;
        // A head that was fitted again on all rows is not judged by those that it was chosen by.
        let before = fitted.ridge.as_ref().and_then(|ridge| ridge.before_refit.as_ref());
        let validation = scoring.head(before.unwrap_or(&head), "validation", &rows.fitting, &division.holdout)?;
        let test = rows.test.as_ref().map(|test| scoring.head(&head, "test", test, &all(test))).transpose()?.flatten();
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
            converged: fitted.converged,
            fit_seconds,
            load_seconds: loaded.as_secs_f64(),
            features: manifest.dimension,
            classes: classes.clone(),
            split: SplitRecord {
                kind: division.kind.clone(),
                fraction: params.validation_split,
                train: division.train.len() + rows.fitting.summed(),
                holdout: division.holdout.len(),
            },
            train,
            validation,
            test,
            temperature: scoring.temperature,
            l2: fitted.l2,
            sweep: None,
            update: None,
            baselines: Vec::new(),
            head: settings,
        };
        let mut trained = division.train.clone();
        if before.is_some() {
            trained.extend(&division.holdout);
            trained.sort_unstable();
        }
        let ridge = fitted.ridge.as_ref();
        let on = (&division.train[..], &trained[..]);
        let kept = ridge.map(|ridge| Kept::of(ridge, fitted.l2, params, store, run, rows, on)).transpose()?;
        let (predictions, passing) = (scoring.predictions, passing.then_some(store));
        Outcome { head: &head, history: &fitted.history, predictions, metrics: &metrics, kept, passing }.write(run, pipeline)?;
        Ok(metrics)
    }
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

/// Whether every file of the run can still be read; a run that was damaged is made anew. What a sweep chose or an update
/// made is `kept`: it stands whichever pipeline asks.
fn is_whole(run: &RunDir, pipeline: &Pipeline, kept: bool) -> bool {
    let predictions = std::fs::File::open(run.file("predictions.parquet"))
        .is_ok_and(|file| ParquetRecordBatchReaderBuilder::try_new(file).is_ok());
    let settings = std::fs::read_to_string(run.file("pipeline.toml")).ok();
    predictions
        && settings.is_some_and(|text| kept || pipeline.resolved().is_ok_and(|resolved| resolved == text))
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

/// What of images that were seen in several views is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The mean over them: a row an image.
    Means,
    /// After the rows of the images, a row for each view of each, to train on.
    Views,
}

impl Wanted {
    pub(super) fn of(params: &HeadParams) -> Self {
        if params.augments() { Self::Views } else { Self::Means }
    }

    /// Rows for each image.
    pub(super) fn rows(self, store: &Store) -> usize {
        match self {
            Self::Means => 1,
            Self::Views => 1 + store.views().len(),
        }
    }
}

/// The rows: those to fit on with those held out, and those to score at the end.
pub(super) struct Rows<F = SplitFeatures> {
    /// A row an image; after these, with [`Wanted::Views`], those of each view.
    pub(super) fitting: F,
    /// Rows of `fitting` that are of images.
    images: usize,
    /// Views of an image in the store.
    views: usize,
    wanted: Wanted,
    /// Splits that `fitting` is of.
    pub(super) splits: Vec<&'static str>,
    /// Rows of `fitting` that the source itself sets aside for validation.
    validation: Range<usize>,
    pub(super) test: Option<F>,
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

/// What a division depends on beside the rows.
#[derive(Clone, Copy)]
pub(super) struct Labelled<'a> {
    pub(super) classes: &'a [String],
    pub(super) sorted_by_class: bool,
}

impl<'a> Labelled<'a> {
    pub(super) fn of(store: &'a Store) -> Self {
        let manifest = store.manifest();
        Self { classes: &manifest.classes, sorted_by_class: manifest.source.sorted_by_class }
    }
}

/// Divides rows into those that train and those that are held out; `validation` are those that the source itself sets aside.
pub(super) fn divide(
    source: Labelled<'_>,
    params: &HeadParams,
    ids: &[String],
    labels: &[Option<i32>],
    validation: Range<usize>,
) -> Result<Division, PipelineError> {
    let Labelled { classes, sorted_by_class } = source;
    let train = labelled(labels, 0..validation.start);
    let unlabelled = validation.start - train.len();
    let mut division = if validation.is_empty() {
        let default = if sorted_by_class { HoldOut::Stratified } else { HoldOut::Tail };
        let kind = params.split.unwrap_or(default);
        let split = head::hold_out(&params.rule(kind), ids, labels, classes).map_err(|error| named(error, ids))?;
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
    /// Loads what the fit needs into memory.
    pub(super) fn load(store: &Store, asked: Option<HoldOut>, wanted: Wanted) -> Result<Self, PipelineError> {
        Self::gather(store, asked, wanted, |splits, wanted| match wanted {
            Wanted::Means => store.load(splits),
            Wanted::Views => store.load_with_views(splits),
        })
    }

    /// What a head is fitted on, of these rows of `fitting`.
    pub(super) fn examples<'a>(&'a self, train: &'a [usize], holdout: &'a [usize], classes: &'a [String]) -> Examples<'a> {
        Examples { x: self.fitting.embeddings.view(), labels: &self.fitting.labels, train, holdout, refit: holdout, classes }
    }
}

impl Rows<StreamedFeatures> {
    /// Reads what the fit needs once, and leaves the features on disk.
    fn stream(store: &Store, asked: Option<HoldOut>, wanted: Wanted) -> Result<Self, PipelineError> {
        Self::gather(store, asked, wanted, |splits, wanted| match wanted {
            Wanted::Means => store.stream(splits),
            Wanted::Views => store.stream(splits).map(StreamedFeatures::with_views),
        })
    }
}

impl<F: Features> Rows<F> {
    /// Rows held out, all of them, and those to score at the end.
    pub(super) fn held_out(held: F, test: Option<F>, splits: Vec<&'static str>, views: usize) -> Self {
        let images = held.ids().len();
        Self { fitting: held, images, views, wanted: Wanted::Means, splits, validation: 0..images, test }
    }

    /// Reads what the fit needs. A source that has a validation split of its own is held to it, unless a hold-out is asked for.
    fn gather(
        store: &Store,
        asked: Option<HoldOut>,
        wanted: Wanted,
        read: impl Fn(&[&str], Wanted) -> Result<F, StoreError>,
    ) -> Result<Self, PipelineError> {
        let views = store.views().len();
        if wanted == Wanted::Views && views == 1 {
            let reason =
                "each image was seen once, as it is; make features of more views with tlpipe extract --views identity,hflip";
            return Err(PipelineError::Settings { origin: "head.views = \"augment\"".into(), reason: reason.into() });
        }
        let splits = fitting_splits(store, asked);
        let fitting = read(&splits, wanted)?;
        let images = fitting.ids().len() / wanted.rows(store);
        let first = if splits.len() > 1 { store.manifest().rows("train") } else { images };
        let test = if has(store, "test") { Some(read(&["test"], Wanted::Means)?) } else { None };
        Ok(Self { fitting, images, views, wanted, splits, validation: first..images, test })
    }

    pub(super) fn divide(&self, store: &Store, params: &HeadParams) -> Result<Division, PipelineError> {
        let (ids, labels) = (&self.fitting.ids()[..self.images], &self.fitting.labels()[..self.images]);
        divide(Labelled::of(store), params, ids, labels, self.validation.clone())
    }

    /// Rows to train on: those of the images, or of each of their views.
    pub(super) fn unfold<'a>(&self, params: &HeadParams, train: &'a [usize]) -> Cow<'a, [usize]> {
        if self.wanted == Wanted::Means || !params.augments() {
            return train.into();
        }
        (1..=self.views).flat_map(|view| train.iter().map(move |row| view * self.images + row)).collect()
    }

    /// What the fit makes of several views.
    fn said(&self, params: &HeadParams) -> String {
        match self.views {
            1 => String::new(),
            views if params.augments() => format!(" x {views} views"),
            views => format!(" (mean of {views} views)"),
        }
    }

    /// Puts the image's id into an error that knows its row alone.
    pub(super) fn name(&self, error: HeadError) -> PipelineError {
        named(error, self.fitting.ids())
    }
}

/// Puts the image's id into an error that knows its row alone.
pub(super) fn named(error: HeadError, ids: &[String]) -> PipelineError {
    let id = |row: usize| ids.get(row).cloned().unwrap_or_default();
    match error {
        HeadError::NotFinite { row, .. } => PipelineError::BadFeatures { id: id(row) },
        HeadError::Label { row, label: Some(label), classes } => PipelineError::BadLabel { id: id(row), label, classes },
        other => other.into(),
    }
}

/// Those of the rows that have a label.
pub(super) fn labelled(labels: &[Option<i32>], rows: Range<usize>) -> Vec<usize> {
    rows.filter(|&row| labels[row].is_some()).collect()
}

#[cfg(test)]
mod tests;
