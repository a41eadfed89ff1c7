//! One fit whose features are not kept: the training rows are summed up while their images are run, and only those held out and those
//! of the test split are stored, until the run is written.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ndarray::{Array2, ArrayView2, Axis};
use tempfile::TempDir;

use super::extract::{Extracted, Goal, Stage as Images, StageOutcome};
use super::fit::{Division, Fit, Labelled, Rows, Stage, divide, fit_key};
use super::streamed::{Features, Plan as Fitting};
use super::{Context, Interrupted, Pipeline, PipelineError};
use crate::dataset::{Dataset, Record};
use crate::extract::{Ended, ExtractError, Plan, extract_beside};
use crate::head::{
    self, Change, Checkpoints, Examples, Fitted, HeadError, HeadParams, HoldOut, OnEpoch, ParamGuard as _, Solver, Statistics,
};
use crate::run::{QUARANTINE, RunDir, RunError};
use crate::store::{Row, SplitFeatures, StoreError, as_read, quarantine};

/// Values that are gathered before they are summed up.
const BLOCK_VALUES: usize = 32 << 20;

/// How the folder of the features begins that are there for the time being.
const SCRATCH: &str = ".features-";

/// Whether features are there for the time being.
pub(super) fn is_passing(features: &Path) -> bool {
    features.file_name().is_some_and(|name| name.to_string_lossy().starts_with(SCRATCH))
}

/// What one fit leaves.
pub struct Uncached {
    /// The pipeline, with the folder of the features that are there for the time being.
    pub pipeline: Pipeline,
    /// Stage 1.
    pub extracted: Extracted,
    /// Stage 2.
    pub fit: Fit,
    /// Goes with this, and the features in it.
    _features: TempDir,
}

/// Runs both stages, by least squares. The head is the one that cached features give, if every image can be used; where one cannot, the
/// rows held out may be others.
///
/// # Errors
/// As [`super::extract`] and [`super::fit_head`], and when the solver needs the rows.
pub fn fit_uncached(pipeline: &Pipeline, context: &Context<'_>) -> Result<Uncached, PipelineError> {
    let params = pipeline.settings.head.clone();
    let checked = params.clone().check()?;
    let lacking = match (params.solver, checked.augments()) {
        (Solver::Ridge, false) => None,
        (Solver::Ridge, true) => Some(("with the views averaged", "head.views = \"average\"")),
        _ => Some(("and nothing for another solver", "head.solver = \"ridge\"")),
    };
    if let Some((what, remedy)) = lacking {
        let reason =
            format!("one pass over the images gives the sums that ridge needs, {what}; set {remedy}, or leave --no-cache out");
        return Err(PipelineError::Settings { origin: "--no-cache".into(), reason });
    }
    if params.keep_statistics == Some(true) {
        let reason =
            "with --no-cache there are no features that a head could be brought up to date with: leave one of the two out";
        return Err(PipelineError::Settings { origin: "head.keep_statistics".into(), reason: reason.into() });
    }
    let run = RunDir::new(&pipeline.run);
    run.prepare()?;
    let _lock = run.lock()?;
    // What a run that was killed has left.
    for entry in std::fs::read_dir(&pipeline.run).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(SCRATCH) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    let scratch = tempfile::Builder::new()
        .prefix(SCRATCH)
        .tempdir_in(&pipeline.run)
        .map_err(|source| RunError::Folder { path: pipeline.run.clone(), source })?;
    // Whoever runs the recorded pipeline again is to do the same.
    let mut pipeline = pipeline.clone();
    pipeline.settings.output.cache = Some(false);
    let pipeline = &pipeline;
    let on_scratch = Pipeline { features: scratch.path().to_owned(), ..pipeline.clone() };
    let images = Images::open(&on_scratch, context, Goal::Head)?;
    let (held, warnings) = held_out(&images.dataset, &params)?;
    let nothing_held = || HeadError::Parameter {
        name: "validation_split",
        found: params.validation_split.to_string(),
        expected: "a share above 0: with --no-cache the images held out choose the strength of L2",
    };
    if held.split == "train" && held.ids.is_empty() {
        return Err(nothing_held().into());
    }
    let (runtime, plan) = images.start(&on_scratch, context, "extract")?;
    let plan = Plan { quarantine: run.file(QUARANTINE), ..plan };

    let mut sums = Sums::new(images.backbone.width(), images.dataset.classes().len());
    let (width, dtype, transform) = (images.backbone.width(), plan.dtype, params.transform);
    let mut take = |split: &str, row: &Row, views: &[f32]| {
        if split != "train" || held.ids.contains(&row.id) {
            return false;
        }
        // Without a label it says nothing, and is not scored either.
        if let Some(class) = row.label.and_then(|label| usize::try_from(label).ok()) {
            sums.add(class, &as_read(views, width, dtype, transform));
        }
        true
    };
    let ended = context.stoppable(|| extract_beside(&plan, &runtime, context.observe, context.stop, &mut take));
    if let Err(ExtractError::NothingUsable { .. }) = &ended {
        // There will be no run that has it.
        quarantine::write(&plan.quarantine, &on_scratch.open_store()?.quarantine()?)?;
    }
    let manifest = match ended? {
        Ended::Finished(manifest) => *manifest,
        Ended::Interrupted { done, total } => {
            let text = format!("stopped after {done} of {total} images; with --no-cache nothing is kept");
            return Err(Interrupted(text).into());
        }
    };
    let (statistics, summed) = sums.finish()?;
    let Some(statistics) = statistics else {
        return Err(HeadError::NothingToTrain { labelled: 0, fraction: params.validation_split }.into());
    };

    let store = on_scratch.open_store()?;
    let has = |name: &str| manifest.splits().iter().any(|split| split == name);
    let load = |split: &'static str| -> Result<SplitFeatures, StoreError> { store.load(&[split]) };
    if !has(held.split) {
        return Err(nothing_held().into());
    }
    let fitting = Summed { rows: load(held.split)?, statistics: Mutex::new(Some(statistics)), summed };
    let test = if has("test") { Some(Summed::of(load("test")?)) } else { None };
    let holdout = (0..fitting.rows.ids.len()).filter(|&row| fitting.rows.labels[row].is_some()).collect();
    let rows = Rows::held_out(fitting, test, vec![held.split], store.views().len());
    let division = Division { train: Vec::new(), holdout, kind: held.kind, warnings };
    let settings = serde_json::to_value(&params).unwrap_or_default();
    let fit_key = format!("uncached-{}", fit_key(&store, &settings));
    let params = HeadParams { keep_statistics: Some(false), ..params }.check()?;
    let stage = Stage { pipeline, context, store: &store, run: &run, params: &params, settings, fit_key, passing: true };
    let metrics = stage.fit(&rows, &division, Duration::ZERO, &mut |_| ControlFlow::Continue(()))?;
    let features = on_scratch.features.clone();
    Ok(Uncached {
        extracted: Extracted { outcome: StageOutcome::Ran, manifest, features },
        fit: Fit { outcome: StageOutcome::Ran, metrics, loaded: None },
        pipeline: on_scratch,
        _features: scratch,
    })
}

/// The rows held out, as far as their features are stored.
struct Held {
    /// Of the split `train`.
    ids: HashSet<String>,
    /// The split that they are stored in.
    split: &'static str,
    /// How they are chosen.
    kind: String,
}

/// Chooses the rows held out before any image is run; also gives what a user should know of them.
fn held_out(dataset: &Dataset, params: &HeadParams) -> Result<(Held, Vec<String>), PipelineError> {
    let own = dataset.splits().iter().any(|split| split.name.as_ref() == "validation");
    if own && params.split.is_none_or(|kind| kind == HoldOut::Source) {
        return Ok((Held { ids: HashSet::new(), split: "validation", kind: HoldOut::Source.to_string() }, Vec::new()));
    }
    let (mut ids, mut labels) = (Vec::new(), Vec::new());
    for record in dataset.records("train")? {
        let Record { id, label, .. } = record?;
        ids.push(id);
        labels.push(label);
    }
    let source = Labelled { classes: dataset.classes(), sorted_by_class: dataset.sorted_by_class() };
    let Division { holdout, kind, warnings, .. } = divide(source, params, &ids, &labels, ids.len()..ids.len())?;
    let held = holdout.into_iter().map(|row| std::mem::take(&mut ids[row])).collect();
    Ok((Held { ids: held, split: "train", kind }, warnings))
}

/// Sums over rows that come one by one.
struct Sums {
    width: usize,
    classes: usize,
    values: Vec<f32>,
    labels: Vec<usize>,
    statistics: Option<Statistics>,
    rows: usize,
    failed: Option<HeadError>,
}

impl Sums {
    fn new(width: usize, classes: usize) -> Self {
        Self { width, classes, values: Vec::new(), labels: Vec::new(), statistics: None, rows: 0, failed: None }
    }

    fn add(&mut self, class: usize, row: &[f32]) {
        self.values.extend_from_slice(row);
        self.labels.push(class);
        if self.values.len() >= BLOCK_VALUES {
            self.sum();
        }
    }

    fn sum(&mut self) {
        let shape = (self.labels.len(), self.width);
        let summed = match (ArrayView2::from_shape(shape, &self.values), &mut self.statistics) {
            (Err(_), _) => Err(HeadError::Size { what: "features of a row", found: self.values.len(), expected: self.width }),
            (Ok(x), Some(statistics)) => statistics.update(Change::Add, x, &self.labels),
            (Ok(x), none) => Statistics::new(x, &self.labels, self.classes).map(|statistics| *none = Some(statistics)),
        };
        self.rows += self.labels.len();
        self.failed = self.failed.take().or(summed.err());
        self.values.clear();
        self.labels.clear();
    }

    /// The statistics, none of no rows, and how many rows they are of.
    fn finish(mut self) -> Result<(Option<Statistics>, usize), HeadError> {
        if !self.labels.is_empty() {
            self.sum();
        }
        self.failed.map_or(Ok((self.statistics, self.rows)), Err)
    }
}

/// Rows to be scored, beside the statistics of those to be fitted on.
struct Summed {
    rows: SplitFeatures,
    /// Until they are used.
    statistics: Mutex<Option<Statistics>>,
    summed: usize,
}

impl Summed {
    fn of(rows: SplitFeatures) -> Self {
        Self { rows, statistics: Mutex::new(None), summed: 0 }
    }
}

impl Features for Summed {
    fn ids(&self) -> &[String] {
        &self.rows.ids
    }

    fn labels(&self) -> &[Option<i32>] {
        &self.rows.labels
    }

    fn select(&self, rows: &[usize]) -> Result<Array2<f32>, StoreError> {
        Ok(self.rows.embeddings.select(Axis(0), rows))
    }

    fn summed(&self) -> usize {
        self.summed
    }

    fn fit(&self, plan: &Fitting<'_>, _: &mut Checkpoints<'_>, on_epoch: OnEpoch<'_>) -> Result<Fitted, HeadError> {
        let Fitting { params, train, holdout, refit, classes } = *plan;
        let statistics = self.statistics.lock().unwrap_or_else(PoisonError::into_inner).take().ok_or(HeadError::Ridge)?;
        let (x, labels) = (self.rows.embeddings.view(), self.rows.labels.as_slice());
        head::fit_summed(params, statistics, &Examples { x, labels, train, holdout, refit, classes }, on_epoch)
    }
}
