//! Choosing the settings of a head: many are tried on rows held out, and the best are fitted again on all of train.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use ndarray::Array2;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde_json::Value;

use super::extract::StageOutcome;
use super::fit::{Fit, Rows, Wanted, fit_key, warn_of_missing};
use super::outcome::{Kept, Outcome as Written, PREDICTIONS};
use super::scoring::{Scoring, all as every, logits};
use super::streamed::in_memory;
use super::{Context, Interrupted, Pipeline, PipelineError};
use crate::evaluate;
use crate::events::{Event, Unit};
use crate::head::{self, Fitted, HeadError, HeadParams, ParamGuard as _, Solver, Split};
use crate::run::{METRICS_SCHEMA, Metrics, RunDir, SplitRecord, SweepRecord, Trial};
use crate::store::Store;

/// Candidates above this are a slip of the finger.
const MOST_CANDIDATES: usize = 10_000;

/// One key of `[head]` and what is tried for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    key: String,
    choices: Choices,
}

#[derive(Clone, Debug, PartialEq)]
enum Choices {
    Each(Vec<Value>),
    /// Drawn so that each decade is as likely.
    Between(f64, f64),
}

impl Axis {
    /// Reads `KEY=VALUE,VALUE,…` or `KEY=LOW..HIGH`; `head.` before the key may be left out.
    ///
    /// # Errors
    /// When it has neither form.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (key, values) = text.split_once('=').ok_or("give KEY=VALUE,VALUE,… or KEY=LOW..HIGH, as in l2=1e-4,1e-3,1e-2")?;
        let key = key.trim();
        let key = key.strip_prefix("head.").unwrap_or(key).to_owned();
        if let Some((low, high)) = values.split_once("..") {
            let number = |text: &str| text.trim().parse::<f64>().ok().filter(|value| value.is_finite() && *value > 0.0);
            return match (number(low), number(high)) {
                (Some(low), Some(high)) if low < high => Ok(Self { key, choices: Choices::Between(low, high) }),
                _ => Err(format!("{values}: give two numbers above 0, the smaller first, as in {key}=1e-5..1")),
            };
        }
        let values = values.split(',').map(str::trim).filter(|value| !value.is_empty());
        let each: Vec<Value> =
            values.map(|value| serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.into()))).collect();
        if each.is_empty() { Err(format!("no value for {key}")) } else { Ok(Self { key, choices: Choices::Each(each) }) }
    }

    fn each(key: &str, values: impl IntoIterator<Item = f64>) -> Self {
        Self { key: key.into(), choices: Choices::Each(values.into_iter().map(Value::from).collect()) }
    }
}

/// What a sweep tries, and on which rows.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The grid; empty for the one that suits the solver.
    pub axes: Vec<Axis>,
    /// Random search: so many points of the grid's space instead of all of the grid.
    pub draws: Option<usize>,
    /// Stratified cross-validation with so many folds instead of the hold-out.
    pub folds: Option<usize>,
}

/// Settings that are tried.
struct Candidate {
    varied: BTreeMap<String, Value>,
    params: HeadParams,
}

impl Plan {
    /// The axes that suit a solver: L2 in thirds of decades; for Adam learning rate and L2.
    fn suited(solver: Solver) -> Vec<Axis> {
        let thirds = |from: i32, to: i32| (from..=to).map(|third| rounded(10_f64.powf(f64::from(third) / 3.0)));
        match solver {
            Solver::Adam => {
                vec![Axis::each("learning_rate", [1e-4, 3e-4, 1e-3, 3e-3]), Axis::each("l2", [0.0, 1e-3, 1e-2, 1e-1])]
            }
            Solver::Lbfgs | Solver::Linfa => vec![Axis::each("l2", thirds(-14, 5))],
            Solver::Ridge => vec![Axis::each("l2", thirds(-15, 4))],
        }
    }

    fn candidates(&self, base: &HeadParams) -> Result<Vec<Candidate>, PipelineError> {
        let axes = if self.axes.is_empty() { Self::suited(base.solver) } else { self.axes.clone() };
        let wrong = |reason: String| PipelineError::Settings { origin: "--grid".into(), reason };
        if let Some(axis) = axes.iter().enumerate().find(|(at, axis)| axes[..*at].iter().any(|other| other.key == axis.key)) {
            return Err(wrong(format!("{} is given twice; list all its values in one --grid", axis.1.key)));
        }
        let mut points: Vec<BTreeMap<String, Value>> = vec![BTreeMap::new()];
        if let Some(draws) = self.draws {
            let mut rng = ChaCha8Rng::seed_from_u64(base.seed);
            let mut draw = |axis: &Axis| match &axis.choices {
                Choices::Each(values) => values[rng.random_range(0..values.len())].clone(),
                Choices::Between(low, high) => Value::from(rounded(rng.random_range(low.ln()..high.ln()).exp())),
            };
            points = (0..draws).map(|_| axes.iter().map(|axis| (axis.key.clone(), draw(axis))).collect()).collect();
        } else {
            for axis in &axes {
                let Choices::Each(values) = &axis.choices else {
                    return Err(wrong(format!("{}: a range is for random search: add --draws N, or list values", axis.key)));
                };
                if points.len() * values.len() > MOST_CANDIDATES {
                    return Err(wrong(format!("more than {MOST_CANDIDATES} candidates; list fewer values, or add --draws N")));
                }
                let with = |point: &BTreeMap<String, Value>, value: &Value| {
                    let mut point = point.clone();
                    point.insert(axis.key.clone(), value.clone());
                    point
                };
                points = points.iter().flat_map(|point| values.iter().map(move |value| with(point, value))).collect();
            }
        }
        let mut candidates: Vec<Candidate> = Vec::new();
        let mut refused = None;
        for varied in points {
            let mut params = laid_over(base, &varied).map_err(&wrong)?;
            // What the solver does not look at does not make another candidate.
            if params.solver != Solver::Adam {
                params.learning_rate = base.learning_rate;
            }
            match params.check_ref() {
                Err(error) => refused = Some(error),
                Ok(_) if candidates.iter().any(|other| other.params == params) => {}
                Ok(_) => candidates.push(Candidate { varied, params }),
            }
        }
        // With several solvers in the grid, what one of them has no use for is left out for it.
        let several = axes.iter().any(|axis| axis.key == "solver");
        match refused {
            Some(error) if candidates.is_empty() || !several => Err(error.into()),
            _ => Ok(candidates),
        }
    }
}

/// Three digits, as a person would write it.
fn rounded(value: f64) -> f64 {
    format!("{value:.2e}").parse().unwrap_or(value)
}

fn laid_over(base: &HeadParams, varied: &BTreeMap<String, Value>) -> Result<HeadParams, String> {
    let mut table = serde_json::to_value(base).map_err(|error| error.to_string())?;
    for (key, value) in varied {
        let known = table.as_object().map(|table| table.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
        if !known.contains(key) {
            return Err(format!("no key head.{key}; there is {}", known.join(", ")));
        }
        if ["validation_split", "split", "group"].contains(&key.as_str()) {
            return Err(format!("head.{key} decides what is held out; it cannot be chosen by what is held out"));
        }
        table[key] = value.clone();
    }
    let shown = |error: serde_json::Error| format!("{}: {error}", varied.keys().cloned().collect::<Vec<_>>().join(", "));
    serde_json::from_value(table).map_err(shown)
}

/// What was held out of a candidate's fits, and its answers there.
struct Outcome {
    logits: Array2<f32>,
    seconds: f64,
    error: Option<HeadError>,
    /// Mean over the folds of the epoch that early stopping chose.
    best_epochs: Vec<usize>,
}

/// Tries every candidate on the hold-out or by cross-validation, fits the best again on all labelled rows of train, scores it on
/// the test split and writes the run, with `sweep.csv`.
///
/// # Errors
/// When the features, the settings or the run cannot be used, nothing is held out, every candidate fails, or the user stopped it.
pub fn sweep(pipeline: &Pipeline, context: &Context<'_>, plan: &Plan) -> Result<Fit, PipelineError> {
    const TASK: &str = "sweep";
    let base = &pipeline.settings.head;
    let candidates = plan.candidates(base)?;
    let store = Store::open(&pipeline.features)?;
    let run = RunDir::new(&pipeline.run);
    run.prepare()?;
    warn_of_missing(&store, pipeline, context);
    let augmented = candidates.iter().any(|candidate| candidate.params.augments());
    let wanted = if augmented { Wanted::Views } else { Wanted::Means };
    in_memory(&store, base, wanted, "--sweep", "")?;
    let started = Instant::now();
    let rows = Rows::load(&store, base.split, wanted)?;
    let load_seconds = started.elapsed().as_secs_f64();
    let division = rows.divide(&store, base)?;
    division.warnings.iter().for_each(|warning| (context.observe)(Event::Warned(warning.clone())));
    let classes = &store.manifest().classes;
    let mut all: Vec<usize> = division.train.iter().chain(&division.holdout).copied().collect();
    all.sort_unstable();
    let (folds, kind) = match plan.folds {
        Some(count) => {
            let mut labels = vec![None; rows.fitting.labels.len()];
            all.iter().for_each(|&row| labels[row] = rows.fitting.labels[row]);
            (head::kfold(&labels, &rows.fitting.ids, count, base.seed)?, format!("{count} folds"))
        }
        None if division.holdout.is_empty() => {
            let reason = "no row is held out to choose by; set head.validation_split above 0, or use --folds 5".into();
            return Err(PipelineError::Settings { origin: "--sweep".into(), reason });
        }
        None => {
            let (train, holdout) = (division.train.clone(), division.holdout.clone());
            (vec![Split { train, holdout, warnings: Vec::new() }], division.kind.clone())
        }
    };
    (context.observe)(Event::Noted(format!(
        "sweep     {} heads {} → {} · {} rows, chosen by {}",
        candidates.len(),
        store.manifest().dimension,
        classes.len(),
        all.len(),
        if plan.folds.is_some() { kind.clone() } else { format!("the hold-out ({kind}, {} rows)", division.holdout.len()) }
    )));
    let held: Vec<usize> = folds.iter().flat_map(|fold| fold.holdout.iter().copied()).collect();
    (context.observe)(Event::Started { task: TASK, total: Some((candidates.len() * folds.len()) as u64), unit: Unit::Heads });
    let outcomes = context.stoppable(|| {
        let done = AtomicU64::new(0);
        let tell = |heads: usize| {
            let done = done.fetch_add(heads as u64, Ordering::Relaxed) + heads as u64;
            (context.observe)(Event::Advanced { task: TASK, done });
        };
        try_all(&candidates, &rows, &folds, classes, context, &tell)
    });
    (context.observe)(Event::Finished { task: TASK });
    if context.stop.load(Ordering::Relaxed) {
        return Err(Interrupted(format!("stopped; {} is as it was", run.path().display())).into());
    }
    let mut outcomes = outcomes?;

    let labels: Vec<Option<i32>> = held.iter().map(|&row| rows.fitting.labels[row]).collect();
    let mut trials = Vec::with_capacity(candidates.len());
    for (index, (candidate, outcome)) in candidates.iter().zip(&outcomes).enumerate() {
        let score = match outcome.error {
            None => evaluate::score(outcome.logits.view(), &labels, classes)?,
            Some(_) => None,
        };
        trials.push((
            index,
            Trial {
                settings: candidate.varied.clone(),
                accuracy: score.as_ref().map(|score| score.accuracy),
                accuracy_interval: score.as_ref().map(|score| score.bootstrap.accuracy),
                loss: score.as_ref().map(|score| score.loss),
                seconds: outcome.seconds,
                error: outcome.error.as_ref().map(ToString::to_string),
            },
        ));
    }
    // The most accurate first; of equals the one with the lowest loss.
    let rank = |trial: &Trial| (-trial.accuracy.unwrap_or(-1.0), trial.loss.unwrap_or(f64::INFINITY));
    trials.sort_by(|(_, a), (_, b)| rank(a).0.total_cmp(&rank(b).0).then(rank(a).1.total_cmp(&rank(b).1)));
    let (winner, _) = trials[0];
    let trials: Vec<Trial> = trials.into_iter().map(|(_, trial)| trial).collect();
    let outcome = outcomes.swap_remove(winner);
    if let Some(error) = outcome.error {
        return Err(rows.name(error));
    }
    let reason = reason(&trials, plan.folds);
    (context.observe)(Event::Noted(format!("sweep     {reason}")));
    if let Some(text) = at_the_edge(&trials) {
        (context.observe)(Event::Warned(text));
    }

    // Early stopping has nothing to watch when no row is held out: it trains as long as was best.
    let mut params = HeadParams { patience: None, min_delta: None, ..candidates[winner].params.clone() };
    if let Some(epochs) = (outcome.best_epochs.iter().sum::<usize>()).checked_div(outcome.best_epochs.len()) {
        params.epochs = epochs.max(1);
    }
    let checked = params.clone().check()?;
    let started = Instant::now();
    let unfolded = rows.unfold(&params, &all);
    let fitted = context.stoppable(|| head::fit(&checked, &rows.examples(&unfolded, &[], classes), &mut |_| context.flow()));
    let fitted = fitted.map_err(|error| rows.name(error))?;
    if context.stop.load(Ordering::Relaxed) {
        return Err(Interrupted(format!("stopped; {} is as it was", run.path().display())).into());
    }
    let fit_seconds = started.elapsed().as_secs_f64();
    fitted.warnings.iter().for_each(|warning| (context.observe)(Event::Warned(warning.clone())));
    let head = fitted.head.with_store_key(&store.manifest().key);

    let mut scoring = Scoring::begin(&run, PREDICTIONS, classes)?;
    let train_rows = if plan.folds.is_some() { &[][..] } else { &division.train };
    let train = scoring.head(&head, "train", &rows.fitting, train_rows)?;
    let validation = scoring.logits(outcome.logits, "validation", &rows.fitting, &held)?;
    let test = rows.test.as_ref().map(|test| scoring.head(&head, "test", test, &every(test))).transpose()?.flatten();
    let settings = serde_json::to_value(&params).unwrap_or_default();
    let metrics = Metrics {
        schema: METRICS_SCHEMA,
        store_key: store.manifest().key.clone(),
        // Of the settings that the sweep began with: as long as they stand, so does what it chose.
        fit_key: format!("sweep-{}", fit_key(&store, &serde_json::to_value(base).unwrap_or_default())),
        solver: params.solver.to_string(),
        epochs: fitted.history.last().map_or(0, |record| record.epoch),
        best_epoch: None,
        fit_seconds,
        load_seconds,
        features: store.manifest().dimension,
        classes: classes.clone(),
        split: SplitRecord { kind, fraction: base.validation_split, train: all.len(), holdout: held.len() },
        train,
        validation,
        test,
        temperature: scoring.temperature,
        l2: fitted.l2,
        sweep: Some(SweepRecord { candidates: candidates.len(), folds: plan.folds, reason, trials }),
        update: None,
        baselines: Vec::new(),
        head: settings,
    };
    let mut resolved = pipeline.clone();
    resolved.settings.head = params;
    let kept = fitted.ridge.as_ref().map(|ridge| Kept::of(ridge, fitted.l2, &store, &run, &rows, &all)).transpose()?;
    let predictions = scoring.predictions;
    Written { head: &head, history: &fitted.history, predictions, metrics: &metrics, kept }.write(&run, &resolved)?;
    Ok(Fit { outcome: StageOutcome::Ran, metrics })
}

/// Fits every candidate on every fold.
fn try_all(
    candidates: &[Candidate],
    rows: &Rows,
    folds: &[Split],
    classes: &[String],
    context: &Context<'_>,
    tell: &(dyn Fn(usize) + Sync),
) -> Result<Vec<Outcome>, PipelineError> {
    let held: usize = folds.iter().map(|fold| fold.holdout.len()).sum();
    let mut outcomes: Vec<Outcome> = candidates
        .iter()
        .map(|_| Outcome { logits: Array2::zeros((held, classes.len())), seconds: 0.0, error: None, best_epochs: Vec::new() })
        .collect();
    let groups = groups(candidates);
    let mut first = 0;
    for fold in folds {
        let fit = |group: &Vec<usize>| {
            let started = Instant::now();
            // Stopped, the rest is skipped.
            let found = match context.flow() {
                ControlFlow::Continue(()) => fit_group(candidates, group, rows, fold, classes, context),
                ControlFlow::Break(()) => Ok(Vec::new()),
            };
            tell(group.len());
            (found, started.elapsed().as_secs_f64() / group.len() as f64)
        };
        // Heads that take their rows in small batches leave all but one thread idle: so many of them at once.
        let (side_by_side, alone): (Vec<_>, Vec<_>) =
            groups.iter().partition(|group| candidates[group[0]].params.solver == Solver::Adam);
        let found: Vec<_> = side_by_side.par_iter().map(|group| (*group, fit(group))).collect();
        let found = found.into_iter().chain(alone.into_iter().map(|group| (group, fit(group))));
        for (group, (found, seconds)) in found {
            match found {
                Ok(fitted) => {
                    for (&index, fitted) in group.iter().zip(fitted) {
                        let outcome = &mut outcomes[index];
                        outcome.seconds += seconds;
                        outcome.best_epochs.extend(fitted.best_epoch);
                        let answers = logits(&fitted.head, &rows.fitting, &fold.holdout)?;
                        outcome.logits.slice_mut(ndarray::s![first..first + fold.holdout.len(), ..]).assign(&answers);
                    }
                }
                // Bad data fails every candidate, a bad setting its own.
                Err(error @ (HeadError::NotFinite { .. } | HeadError::OneClass { .. } | HeadError::Label { .. })) => {
                    return Err(rows.name(error));
                }
                Err(error) => {
                    let mut error = Some(error);
                    for &index in group {
                        outcomes[index].seconds += seconds;
                        let text = error.take().unwrap_or(HeadError::Unusable);
                        outcomes[index].error.get_or_insert(text);
                    }
                }
            }
        }
        first += fold.holdout.len();
    }
    Ok(outcomes)
}

/// Candidates that differ by L2 alone share a path, strongest first; Adam's are fitted each alone.
fn groups(candidates: &[Candidate]) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let without = |index: usize| HeadParams { l2: None, ..candidates[index].params.clone() };
    for (index, candidate) in candidates.iter().enumerate() {
        let is_of_path = |params: &HeadParams| params.solver != Solver::Adam && params.l2.is_some();
        let same = groups.iter_mut().find(|group| {
            is_of_path(&candidate.params) && is_of_path(&candidates[group[0]].params) && without(group[0]) == without(index)
        });
        match same {
            Some(group) => group.push(index),
            None => groups.push(vec![index]),
        }
    }
    for group in &mut groups {
        group.sort_by(|&a, &b| candidates[b].params.l2.unwrap_or(0.0).total_cmp(&candidates[a].params.l2.unwrap_or(0.0)));
    }
    groups
}

fn fit_group(
    candidates: &[Candidate],
    group: &[usize],
    rows: &Rows,
    fold: &Split,
    classes: &[String],
    context: &Context<'_>,
) -> Result<Vec<Fitted>, HeadError> {
    let params = candidates[group[0]].params.clone().check()?;
    let train = rows.unfold(&params, &fold.train);
    let examples = rows.examples(&train, &fold.holdout, classes);
    let mut go_on = |_: &_| -> ControlFlow<()> { context.flow() };
    if let [_] = group {
        return Ok(vec![head::fit(&params, &examples, &mut go_on)?]);
    }
    let l2s: Vec<f64> = group.iter().filter_map(|&index| candidates[index].params.l2).collect();
    head::fit_path(&params, &examples, &l2s, &mut go_on)
}

/// Why the first one was taken.
fn reason(trials: &[Trial], folds: Option<usize>) -> String {
    let best = &trials[0];
    let (accuracy, [low, high]) = (best.accuracy.unwrap_or(0.0), best.accuracy_interval.unwrap_or_default());
    let near = trials[1..].iter().filter(|trial| trial.accuracy.is_some_and(|accuracy| accuracy >= low)).count();
    let rows = folds.map_or_else(|| "hold-out".to_owned(), |folds| format!("{folds}-fold"));
    let others = match near {
        0 => "no other is within that interval".to_owned(),
        _ => format!("{near} of {} others are within that interval", trials.len() - 1),
    };
    format!("{}: highest {rows} accuracy, {accuracy:.4} (95 %: {low:.3} to {high:.3}); {others}", best.shown())
}

/// A warning where the best value of a key is the smallest or largest that was tried.
fn at_the_edge(trials: &[Trial]) -> Option<String> {
    let strengths = ["l2", "learning_rate", "weight_decay", "label_smoothing", "dropout"];
    for (key, value) in trials[0].settings.iter().filter(|(key, _)| strengths.contains(&key.as_str())) {
        let value = value.as_f64()?;
        let mut values: Vec<f64> = trials.iter().filter_map(|trial| trial.settings.get(key)?.as_f64()).collect();
        values.sort_by(f64::total_cmp);
        values.dedup();
        let (Some(&least), Some(&most)) = (values.first(), values.last()) else { continue };
        let edge = if value >= most {
            "largest"
        } else if value <= least && value > 0.0 {
            "smallest"
        } else {
            continue;
        };
        if values.len() > 2 {
            return Some(format!("the best {key}, {value}, is the {edge} that was tried: look beyond it with --grid {key}=…"));
        }
    }
    None
}
