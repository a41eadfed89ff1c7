//! Choosing the settings of a head: many are tried on rows held out, and the best are fitted again on all of train.
//!
//! ```text
//! grid ──▶ candidates ──trials──▶ answers to the rows held out ──choice──▶ winner ──▶ fit on all rows ──▶ the run
//!                          └──▶ journal (sweep.partial), which the next sweep goes on from
//! ```

mod choice;
mod grid;
mod journal;
mod trials;

use std::sync::atomic::Ordering;
use std::time::Instant;

use self::choice::{at_the_edge, rank, reason};
use self::grid::Candidate;
pub use self::grid::{Axis, Plan};
use self::journal::Journal;
use self::trials::{Best, Trials, Tried};
use super::extract::StageOutcome;
use super::fit::{Division, Fit, Loaded, Wanted, fit_key, warn_of_missing};
use super::outcome::{Kept, Outcome, PREDICTIONS};
use super::scoring::{Scoring, all as every};
use super::streamed::in_memory;
use super::{Context, Interrupted, Pipeline, PipelineError};
use crate::events::{Event, Unit};
use crate::head::{self, Fitted, HeadParams, ParamGuard as _, Split};
use crate::run::{METRICS_SCHEMA, Metrics, RunDir, SWEEP_JOURNAL, SplitRecord, SweepRecord, Trial};

/// Name of the task that is told of.
const TASK: &str = "sweep";

/// Tries every candidate on the hold-out or by cross-validation, fits the best again on all labelled rows of train, scores it on
/// the test split and writes the run, with `sweep.csv`. Candidates that a sweep has fitted which was stopped are taken over.
///
/// # Errors
/// When the features, the settings or the run cannot be used, nothing is held out that candidates can be told apart by, every
/// candidate fails, or the user stopped it.
pub fn sweep(pipeline: &Pipeline, context: &Context<'_>, plan: &Plan) -> Result<Fit, PipelineError> {
    let base = &pipeline.settings.head;
    let candidates = plan.candidates(base)?;
    let store = pipeline.open_store()?;
    let run = RunDir::new(&pipeline.run);
    run.prepare()?;
    let _lock = run.lock()?;
    warn_of_missing(&store, pipeline, context);
    let augmented = candidates.iter().any(|candidate| candidate.params.augments());
    let wanted = if augmented { Wanted::Views } else { Wanted::Means };
    in_memory(&store, base, wanted, "--sweep", "")?;
    let started = Instant::now();
    let loaded = Loaded::new(store, base, wanted)?;
    let load_seconds = started.elapsed().as_secs_f64();
    loaded.division.warnings.iter().for_each(|warning| (context.observe)(Event::Warned(warning.clone())));

    let sweep = Sweep { pipeline, context, plan, candidates, loaded: &loaded, run: &run, held: Held::new(&loaded, base, plan)? };
    let tried = sweep.try_all()?;
    let choice = sweep.choose(tried)?;
    let refit = sweep.refit(&choice)?;
    let metrics = sweep.write(choice, &refit, load_seconds)?;
    Ok(Fit { outcome: StageOutcome::Ran, metrics, loaded: Some(loaded) })
}

/// Rows that are held out, and those that train meanwhile.
struct Held {
    folds: Vec<Split>,
    /// `3 folds`, or the kind of the hold-out.
    kind: String,
    /// Every labelled row of train, in order.
    all: Vec<usize>,
}

impl Held {
    fn new(loaded: &Loaded, base: &HeadParams, plan: &Plan) -> Result<Self, PipelineError> {
        let Loaded { rows, division, store } = loaded;
        let Division { train, holdout, kind, .. } = division;
        let mut all: Vec<usize> = train.iter().chain(holdout).copied().collect();
        all.sort_unstable();
        let refused = |reason: String| Err(PipelineError::Settings { origin: "--sweep".into(), reason });
        let labels = &rows.fitting.labels;
        let (folds, kind) = match plan.folds {
            Some(count) => {
                let mut listed = vec![None; labels.len()];
                all.iter().for_each(|&row| listed[row] = labels[row]);
                let folds = head::kfold(&listed, &rows.fitting.ids, count, base.seed).map_err(|error| rows.name(error))?;
                (folds, format!("{count} folds"))
            }
            None if holdout.is_empty() => {
                return refused("no row is held out to choose by; set head.validation_split above 0, or use --folds 5".into());
            }
            None => (vec![Split { train: train.clone(), holdout: holdout.clone(), warnings: Vec::new() }], kind.clone()),
        };
        let mut trained = vec![false; store.manifest().classes.len()];
        let class = |row: usize| labels[row].and_then(|label| usize::try_from(label).ok());
        for fold in &folds {
            trained.fill(false);
            let classes = fold.train.iter().filter_map(|&row| class(row));
            classes.for_each(|class| trained.get_mut(class).into_iter().for_each(|trained| *trained = true));
            let is_known = |&row: &usize| class(row).and_then(|class| trained.get(class)).is_some_and(|&trained| trained);
            if !fold.holdout.iter().any(is_known) {
                return refused(format!(
                    "no row that is held out ({kind}) is of a class that is trained on: every candidate would be wrong on all of them; \
                     set head.split = \"stratified\", or use --folds 5"
                ));
            }
        }
        Ok(Self { folds, kind, all })
    }
}

/// What the steps of a sweep work with.
struct Sweep<'a> {
    pipeline: &'a Pipeline,
    context: &'a Context<'a>,
    plan: &'a Plan,
    candidates: Vec<Candidate>,
    loaded: &'a Loaded,
    run: &'a RunDir,
    held: Held,
}

/// The winner, and all the others.
struct Choice {
    best: Best,
    /// Best first.
    trials: Vec<Trial>,
    reason: String,
}

/// The winner's settings on all rows.
struct Refit {
    params: HeadParams,
    fitted: Fitted,
    seconds: f64,
}

impl Sweep<'_> {
    /// Fits and scores every candidate that is not taken over.
    fn try_all(&self) -> Result<Tried, PipelineError> {
        let Self { context, candidates, loaded, held, .. } = self;
        let manifest = loaded.store.manifest();
        (context.observe)(Event::Noted(format!(
            "sweep     {} heads {} → {} · {} rows, chosen by {}",
            candidates.len(),
            manifest.dimension,
            manifest.classes.len(),
            held.all.len(),
            if self.plan.folds.is_some() {
                held.kind.clone()
            } else {
                format!("the hold-out ({}, {} rows)", held.kind, loaded.division.holdout.len())
            }
        )));
        let journal = Journal::open(self.run.file(SWEEP_JOURNAL), context.observe);
        let trials = self.trials(&journal);
        let (taken_over, of) = (trials.taken_over(), candidates.len());
        if taken_over > 0 {
            (context.observe)(Event::Noted(format!(
                "sweep     {taken_over} of {of} candidates taken over ({})",
                journal.path().display()
            )));
        }
        let total = Some((of * held.folds.len()) as u64);
        (context.observe)(Event::Started { task: TASK, total, unit: Unit::Heads });
        let tried = context.stoppable(|| trials.run());
        (context.observe)(Event::Finished { task: TASK });
        if context.stop.load(Ordering::Relaxed) {
            let journal = Journal::open(self.run.file(SWEEP_JOURNAL), context.observe);
            let done = self.trials(&journal).taken_over();
            let path = journal.path().display();
            return Err(Interrupted(format!(
                "stopped: {done} of {of} candidates are done; the same command goes on from there ({path})"
            ))
            .into());
        }
        tried
    }

    fn trials<'t>(&'t self, journal: &'t Journal<'t>) -> Trials<'t> {
        let Loaded { store, rows, .. } = self.loaded;
        let (candidates, folds) = (&self.candidates, &self.held.folds);
        Trials { candidates, store, rows, folds, context: self.context, journal, task: TASK }
    }

    /// Puts the candidates in order and says why the first is taken.
    fn choose(&self, mut tried: Tried) -> Result<Choice, PipelineError> {
        tried.trials.sort_by(|(one, a), (other, b)| rank(a, b).then(one.cmp(other)));
        let trials: Vec<Trial> = std::mem::take(&mut tried.trials).into_iter().map(|(_, trial)| trial).collect();
        let Some(best) = tried.best.take() else { return Err(self.loaded.rows.name(tried.failure())) };
        let reason = reason(&trials, self.plan.folds);
        (self.context.observe)(Event::Noted(format!("sweep     {reason}")));
        if let Some(text) = at_the_edge(&trials) {
            (self.context.observe)(Event::Warned(text));
        }
        Ok(Choice { best, trials, reason })
    }

    /// Fits the winner on every labelled row.
    fn refit(&self, Choice { best, .. }: &Choice) -> Result<Refit, PipelineError> {
        let (context, rows) = (self.context, &self.loaded.rows);
        // Early stopping has nothing to watch when no row is held out: it trains as long as was best.
        let mut params = HeadParams { patience: None, min_delta: None, ..self.candidates[best.candidate].params.clone() };
        if let Some(epochs) = best.best_epochs.iter().sum::<usize>().checked_div(best.best_epochs.len()) {
            params.epochs = epochs.max(1);
        }
        // All rows are trained on in any case.
        params.refit = None;
        let checked = params.clone().check()?;
        let unfolded = rows.unfold(&params, &self.held.all);
        let examples = rows.examples(&unfolded, &[], &self.loaded.store.manifest().classes);
        let started = Instant::now();
        let fitted = context.stopping(params.solver, || head::fit(&checked, &examples, &mut |_| context.flow()));
        let fitted = fitted.map_err(|error| rows.name(error))?;
        let seconds = started.elapsed().as_secs_f64();
        if context.stop.load(Ordering::Relaxed) {
            let path = self.run.file(SWEEP_JOURNAL);
            let text = "stopped: every candidate is done, the last fit is not; the same command goes on from there";
            return Err(Interrupted(format!("{text} ({})", path.display())).into());
        }
        fitted.warnings.iter().for_each(|warning| (context.observe)(Event::Warned(warning.clone())));
        Ok(Refit { params, fitted, seconds })
    }

    /// Scores the winner and writes the run.
    fn write(&self, choice: Choice, refit: &Refit, load_seconds: f64) -> Result<Metrics, PipelineError> {
        let Self { pipeline, plan, loaded, run, held, .. } = self;
        let Refit { params, fitted, seconds } = refit;
        let Loaded { store, rows, division } = loaded;
        let (manifest, base) = (store.manifest(), &pipeline.settings.head);
        let head = fitted.head.clone().with_store(&manifest.key_parts, store.transform());
        let holdout: Vec<usize> = held.folds.iter().flat_map(|fold| fold.holdout.iter().copied()).collect();

        let mut scoring = Scoring::begin(run, PREDICTIONS, &manifest.classes)?;
        let train_rows = if plan.folds.is_some() { &[][..] } else { &division.train };
        let train = scoring.head(&head, "train", &rows.fitting, train_rows)?;
        let validation = scoring.logits(choice.best.logits, "validation", &rows.fitting, &holdout)?;
        let test = rows.test.as_ref().map(|test| scoring.head(&head, "test", test, &every(test))).transpose()?.flatten();
        let metrics = Metrics {
            schema: METRICS_SCHEMA,
            store_key: manifest.key.clone(),
            // Of the settings that the sweep began with: as long as they stand, so does what it chose.
            fit_key: format!("sweep-{}", fit_key(store, &serde_json::to_value(base).unwrap_or_default())),
            solver: params.solver.to_string(),
            epochs: fitted.history.last().map_or(0, |record| record.epoch),
            best_epoch: None,
            converged: fitted.converged,
            fit_seconds: *seconds,
            load_seconds,
            features: manifest.dimension,
            classes: manifest.classes.clone(),
            split: SplitRecord {
                kind: held.kind.clone(),
                fraction: base.validation_split,
                train: held.all.len(),
                holdout: holdout.len(),
            },
            train,
            validation,
            test,
            temperature: scoring.temperature,
            l2: fitted.l2,
            sweep: Some(SweepRecord {
                candidates: self.candidates.len(),
                folds: plan.folds,
                reason: choice.reason,
                trials: choice.trials,
            }),
            update: None,
            baselines: Vec::new(),
            head: serde_json::to_value(params).unwrap_or_default(),
        };
        let mut resolved = (*pipeline).clone();
        resolved.settings.head = params.clone();
        let ridge = fitted.ridge.as_ref();
        let on = (&held.all[..], &held.all[..]);
        let kept = ridge.map(|ridge| Kept::of(ridge, fitted.l2, params, store, run, rows, on)).transpose()?;
        let predictions = scoring.predictions;
        Outcome { head: &head, history: &fitted.history, predictions, metrics: &metrics, kept, passing: None }
            .write(run, &resolved)?;
        Ok(metrics)
    }
}

#[cfg(test)]
mod tests;
