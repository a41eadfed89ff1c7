//! What a head is measured by: classifiers that need no fitting, and heads on few images.

use std::sync::atomic::Ordering;
use std::time::Instant;

use ndarray::{Array2, Axis};
use serde::Serialize;

use super::fit::{Fit, Loaded, Wanted, labelled};
use super::outcome::SHOTS;
use super::streamed::in_memory;
use super::{Context, Interrupted, Pipeline, PipelineError};
use crate::evaluate::{argmax, mean_interval, wilson_interval};
use crate::events::{Event, Unit};
use crate::head::{self, HeadError, NearestMean, ParamGuard as _, Queries};
use crate::run::{BaselineScore, BaselineSplit, RunDir};
use crate::store::SplitFeatures;

/// Heads on `shots` images of each class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shots {
    /// Images of a class.
    pub shots: usize,
    /// Mean accuracy over the repeats.
    pub accuracy: f64,
    /// Its 95 % interval by Student's t; none for one repeat.
    pub interval: Option<[f64; 2]>,
    /// Accuracy of each repeat.
    pub repeats: Vec<f64>,
    /// `test`, or `validation` (the hold-out).
    pub split: String,
}

/// One row of `shots.csv`.
#[derive(Serialize)]
struct Repeat {
    shots: usize,
    repeat: usize,
    rows: usize,
    accuracy: f64,
}

impl Fit {
    /// What the head was fitted on; read, where the fit did not leave it.
    pub(super) fn take_loaded(&mut self, pipeline: &Pipeline, what: &str) -> Result<Loaded, PipelineError> {
        if let Some(loaded) = self.loaded.take() {
            return Ok(loaded);
        }
        let params = &pipeline.settings.head;
        let store = pipeline.open_store()?;
        let wanted = Wanted::of(params);
        in_memory(&store, params, wanted, what, "")?;
        Loaded::new(store, params, wanted)
    }
}

/// Scores the baselines on the rows of the fitted head and records them in its `metrics.json`.
///
/// # Errors
/// When the features or the run cannot be used, or the user stopped it; the head is kept.
pub fn baselines(pipeline: &Pipeline, context: &Context<'_>, fit: &mut Fit) -> Result<(), PipelineError> {
    let loaded = fit.take_loaded(pipeline, "--baselines")?;
    fit.metrics.baselines = baseline_scores(pipeline, context, &loaded)?;
    fit.loaded = Some(loaded);
    Ok(RunDir::new(&pipeline.run).write_metrics(&fit.metrics)?)
}

/// The three baselines; each is made once for all splits that it is scored on.
fn baseline_scores(pipeline: &Pipeline, context: &Context<'_>, loaded: &Loaded) -> Result<Vec<BaselineScore>, PipelineError> {
    const TASK: &str = "nearest neighbours";
    let Loaded { store, rows, division } = loaded;
    let examples = rows.examples(&division.train, &division.holdout, &store.manifest().classes);
    let named = |error: HeadError| rows.name(error);
    let tested = rows.test.as_ref().map(|test| (test, labelled(&test.labels, 0..test.ids.len())));
    let mut targets: Vec<(&SplitFeatures, &[usize])> = vec![(&rows.fitting, &division.holdout)];
    targets.extend(tested.as_ref().map(|(test, rows)| (*test, &rows[..])));
    let queries: Vec<Queries<'_>> = targets.iter().map(|(features, rows)| (features.embeddings.view(), *rows)).collect();
    let voters = pipeline.settings.head.clone().check()?.neighbours();

    let mut found = Vec::new();
    for name in ["majority", "nearest_mean", "nearest_neighbours"] {
        let started = Instant::now();
        let answers: Vec<Vec<usize>> = match name {
            "majority" => {
                let class = head::majority(&examples).map_err(named)?;
                queries.iter().map(|(_, rows)| vec![class; rows.len()]).collect()
            }
            "nearest_mean" => {
                let means = NearestMean::of(&examples).map_err(named)?;
                queries.iter().map(|query| means.answers(*query)).collect::<Result<_, _>>()?
            }
            _ => {
                let total = Some(division.train.len() as u64);
                (context.observe)(Event::Started { task: TASK, total, unit: Unit::Images });
                let mut advance = |done: usize| {
                    (context.observe)(Event::Advanced { task: TASK, done: done as u64 });
                    context.flow()
                };
                let answers = context.stoppable(|| voters.answers(&examples, &queries, &mut advance));
                (context.observe)(Event::Finished { task: TASK });
                let stopped = || Interrupted(format!("stopped; {} is as it was", pipeline.run.display()));
                answers.map_err(named)?.ok_or_else(stopped)?
            }
        };
        let mut scores = targets.iter().zip(answers).map(|(&(features, rows), answers)| {
            let right = rows.iter().zip(answers).filter(|&(&row, answer)| is(features.labels[row], answer)).count();
            (!rows.is_empty()).then(|| BaselineSplit {
                rows: rows.len(),
                accuracy: right as f64 / rows.len() as f64,
                accuracy_interval: wilson_interval(right, rows.len()),
            })
        });
        let (validation, test) = (scores.next().flatten(), scores.next().flatten());
        let voted = (name == "nearest_neighbours").then_some(voters);
        found.push(BaselineScore {
            name: name.to_owned(),
            k: voted.map(|voters| voters.k),
            temperature: voted.map(|voters| voters.temperature),
            seconds: started.elapsed().as_secs_f64(),
            validation,
            test,
        });
    }
    Ok(found)
}

/// Fits the head on few training images of each class, `repeats` times each, and writes `shots.csv` to the run.
///
/// # Errors
/// When the features or the run cannot be used, nothing is held out, a fit fails, or the user stopped it.
pub fn few_shots(
    pipeline: &Pipeline,
    context: &Context<'_>,
    fit: &mut Fit,
    numbers: &[usize],
    repeats: usize,
) -> Result<Vec<Shots>, PipelineError> {
    let loaded = fit.take_loaded(pipeline, "--shots")?;
    let (found, table) = shot_scores(pipeline, context, &loaded, numbers, repeats)?;
    fit.loaded = Some(loaded);
    RunDir::new(&pipeline.run).write_table(SHOTS, &table)?;
    Ok(found)
}

fn shot_scores(
    pipeline: &Pipeline,
    context: &Context<'_>,
    loaded: &Loaded,
    numbers: &[usize],
    repeats: usize,
) -> Result<(Vec<Shots>, Vec<Repeat>), PipelineError> {
    let params = &pipeline.settings.head;
    let Loaded { store, rows, division } = loaded;
    let classes = &store.manifest().classes;
    let fitting = &rows.fitting;
    let test = rows
        .test
        .as_ref()
        .map(|test| ("test", test, labelled(&test.labels, 0..test.ids.len())))
        .filter(|(_, _, rows)| !rows.is_empty());
    let (split, features, scored) = test.unwrap_or_else(|| ("validation", fitting, division.holdout.clone()));
    if scored.is_empty() {
        let reason = "nothing to score on: no row is held out, and there is no labelled test split; set head.validation_split";
        return Err(PipelineError::Settings { origin: "--shots".into(), reason: reason.into() });
    }
    let x = features.embeddings.select(Axis(0), &scored);
    let (mut found, mut table) = (Vec::new(), Vec::new());
    for &shots in numbers {
        let mut accuracies = Vec::new();
        for repeat in 0..repeats {
            let seed = params.seed.wrapping_add(repeat as u64);
            let few = head::few(shots, seed, &division.train, &fitting.ids, &fitting.labels, classes.len());
            let (train, short) = few.map_err(|error| rows.name(error))?;
            if let (0, [first, ..]) = (repeat, short.as_slice()) {
                let text =
                    format!("{} classes have fewer than {shots} training images, such as {}", short.len(), classes[*first]);
                (context.observe)(Event::Warned(format!("{text}: what there is of them is used")));
            }
            let unfolded = rows.unfold(params, &train);
            let examples = rows.examples(&unfolded, &[], classes);
            // No row is held out here that early stopping could watch.
            let checked = head::HeadParams { seed, patience: None, min_delta: None, ..params.clone() }.check()?;
            let mut go_on = |_: &_| context.flow();
            let fitted = context.stopping(params.solver, || head::fit(&checked, &examples, &mut go_on));
            let fitted = fitted.map_err(|error| rows.name(error))?;
            if context.stop.load(Ordering::Relaxed) {
                return Err(Interrupted("stopped; the head on all images is kept, shots.csv is not written".into()).into());
            }
            let accuracy = accuracy(&fitted.head.logits(x.view())?, &features.labels, &scored);
            table.push(Repeat { shots, repeat: repeat + 1, rows: train.len(), accuracy });
            accuracies.push(accuracy);
        }
        let (accuracy, interval) = mean_interval(&accuracies);
        let interval = interval.map(|[low, high]| [low.max(0.0), high.min(1.0)]);
        found.push(Shots { shots, accuracy, interval, repeats: accuracies, split: split.to_owned() });
    }
    Ok((found, table))
}

/// Share of the scored rows that logits, one row each, get right.
pub(super) fn accuracy(logits: &Array2<f32>, labels: &[Option<i32>], scored: &[usize]) -> f64 {
    let answers = logits.outer_iter().map(|row| row.to_slice().map_or(0, argmax));
    scored.iter().zip(answers).filter(|&(&row, answer)| is(labels[row], answer)).count() as f64 / scored.len() as f64
}

fn is(label: Option<i32>, class: usize) -> bool {
    label.is_some_and(|label| usize::try_from(label) == Ok(class))
}
