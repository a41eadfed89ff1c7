//! What a head is measured by: classifiers that need no fitting, and heads on few images.

use std::sync::atomic::Ordering;
use std::time::Instant;

use ndarray::Axis;
use serde::Serialize;

use super::fit::{Rows, Wanted, labelled};
use super::outcome::SHOTS;
use super::streamed::in_memory;
use super::{Context, Interrupted, Pipeline, PipelineError};
use crate::evaluate::{argmax, mean_interval, wilson_interval};
use crate::events::{Event, Unit};
use crate::head::{self, ParamGuard as _};
use crate::run::{BaselineScore, BaselineSplit, Metrics, RunDir};
use crate::store::Store;

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

/// Scores the baselines on the rows of the fitted head and records them in its `metrics.json`.
///
/// # Errors
/// When the features or the run cannot be used, or the user stopped it; the head is kept.
pub fn baselines(pipeline: &Pipeline, context: &Context<'_>, metrics: &mut Metrics) -> Result<(), PipelineError> {
    const TASK: &str = "nearest neighbours";
    let params = &pipeline.settings.head;
    let store = Store::open(&pipeline.features)?;
    in_memory(&store, params, Wanted::Means, "--baselines", "")?;
    let rows = Rows::load(&store, params.split, Wanted::Means)?;
    let division = rows.divide(&store, params)?;
    let classes = &store.manifest().classes;
    let examples = rows.examples(&division.train, &division.holdout, classes);
    let targets = [
        Some((&rows.fitting, division.holdout.clone())),
        rows.test.as_ref().map(|test| (test, labelled(&test.labels, 0..test.ids.len()))),
    ];
    let stopped = || Interrupted(format!("stopped; {} is as it was", pipeline.run.display()));
    let mut found = Vec::new();
    for name in ["majority", "nearest_mean", "nearest_neighbours"] {
        let started = Instant::now();
        let mut scores = Vec::new();
        for (features, rows) in targets.iter().flatten() {
            let x = features.embeddings.view();
            let answers = match name {
                "majority" => vec![head::majority(&examples)?; rows.len()],
                "nearest_mean" => head::nearest_mean(&examples, x, rows)?,
                _ => {
                    (context.observe)(Event::Started {
                        task: TASK,
                        total: Some(division.train.len() as u64),
                        unit: Unit::Images,
                    });
                    let mut advance = |done: usize| {
                        (context.observe)(Event::Advanced { task: TASK, done: done as u64 });
                        context.flow()
                    };
                    let answers = context.stoppable(|| head::nearest_neighbours(&examples, x, rows, &mut advance))?;
                    (context.observe)(Event::Finished { task: TASK });
                    answers.ok_or_else(stopped)?
                }
            };
            let right = rows.iter().zip(answers).filter(|&(&row, answer)| is(features.labels[row], answer)).count();
            scores.push((!rows.is_empty()).then(|| BaselineSplit {
                rows: rows.len(),
                accuracy: right as f64 / rows.len() as f64,
                accuracy_interval: wilson_interval(right, rows.len()),
            }));
        }
        let mut scores = scores.into_iter();
        let (validation, test) = (scores.next().flatten(), scores.next().flatten());
        found.push(BaselineScore { name: name.to_owned(), seconds: started.elapsed().as_secs_f64(), validation, test });
    }
    metrics.baselines = found;
    Ok(RunDir::new(&pipeline.run).write_metrics(metrics)?)
}

/// Fits the head on few training images of each class, `repeats` times each, and writes `shots.csv` to the run.
///
/// # Errors
/// When the features or the run cannot be used, nothing is held out, a fit fails, or the user stopped it.
pub fn few_shots(
    pipeline: &Pipeline,
    context: &Context<'_>,
    numbers: &[usize],
    repeats: usize,
) -> Result<Vec<Shots>, PipelineError> {
    let params = &pipeline.settings.head;
    let store = Store::open(&pipeline.features)?;
    let wanted = Wanted::of(params);
    in_memory(&store, params, wanted, "--shots", "")?;
    let rows = Rows::load(&store, params.split, wanted)?;
    let division = rows.divide(&store, params)?;
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
            let (train, short) = head::few(shots, seed, &division.train, &fitting.ids, &fitting.labels, classes.len())?;
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
            let fitted = context.stoppable(|| head::fit(&checked, &examples, &mut go_on)).map_err(|error| rows.name(error))?;
            if context.stop.load(Ordering::Relaxed) {
                return Err(Interrupted("stopped; the head on all images is kept, shots.csv is not written".into()).into());
            }
            let logits = fitted.head.logits(x.view())?;
            let answers = logits.outer_iter().map(|row| row.to_slice().map_or(0, argmax));
            let right = scored.iter().zip(answers).filter(|&(&row, answer)| is(features.labels[row], answer)).count();
            let accuracy = right as f64 / scored.len() as f64;
            table.push(Repeat { shots, repeat: repeat + 1, rows: train.len(), accuracy });
            accuracies.push(accuracy);
        }
        let (accuracy, interval) = mean_interval(&accuracies);
        found.push(Shots { shots, accuracy, interval, repeats: accuracies, split: split.to_owned() });
    }
    RunDir::new(&pipeline.run).write_table(SHOTS, &table)?;
    Ok(found)
}

fn is(label: Option<i32>, class: usize) -> bool {
    label.is_some_and(|label| usize::try_from(label) == Ok(class))
}
