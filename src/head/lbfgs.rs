//! Multinomial logistic regression with L2: the one optimum of `mean cross-entropy + l2 / 2 * sum(kernel²)`,
//! on rows in memory or in parts that are read anew in every pass.
//!
//! The features of a backbone are far from independent, and plain L-BFGS takes hundreds of passes over them. The Hessian of
//! the loss is bounded by the covariance of the features times a small matrix of the classes (Böhning, 1992); so a Cholesky
//! factor of `weight * covariance + l2`, estimated on some of the rows, preconditions it.
//!
//! Class weights and smoothed labels leave the loss convex; both bounds hold with rows that are weighed like the loss.
//!
//! Passes are in f32, blocks of rows while they are in the cache; losses and the parts of the gradient are added in f64, and
//! the steps are taken in f64.

use std::time::Instant;

use faer::Mat;
use ndarray::Array2;

use super::answer::Target;
use super::features::Features;
use super::fit::{OnEpoch, Problem, Solved, Weights};
use super::gather::{Share, Task, gather, shares};
use super::minimize::{End, Limits, Minimum, Objective, minimize};
use super::part::{Listed, Parts};
use super::statistics::{Change, Statistics, WIDE};
use super::tally::{Tally, score};
use super::tiles::{Factor, Tiles};
use super::{HeadError, HeadValidParams};
use crate::run::EpochRecord;

/// Rows for each feature from which the covariance is estimated, and rows at least.
const ROWS_PER_FEATURE: usize = 4;
const LEAST_ROWS: usize = 4096;

/// Rows that are copied at a time for that.
const COPIED_ROWS: usize = 4096;

/// Logit of a class that no training row asks for, whose bias has its optimum at minus infinity. The logits of the others sum to
/// about zero in every row, so this is a probability below 1e-13.
pub(super) const UNSEEN: f64 = -30.0;

/// Told of each head as it is done.
pub(super) type OnHead<'a> = &'a mut dyn FnMut(Solved) -> Result<(), HeadError>;

/// Fits one head; where `on_epoch` breaks, it is as far as it came.
pub(super) fn solve(params: &HeadValidParams, problem: &Problem<'_>, on_epoch: OnEpoch<'_>) -> Result<Solved, HeadError> {
    let copy = Copy::of(problem);
    let train = copy.problem(problem);
    one(params, &Rows { train: &train, held: problem, features: problem.features.width() }, on_epoch)
}

/// Fits one head on rows that come in parts, anew in each evaluation of the objective.
pub(super) fn solve_parts(
    params: &HeadValidParams,
    parts: &dyn Parts,
    features: usize,
    on_epoch: OnEpoch<'_>,
) -> Result<Solved, HeadError> {
    one(params, &Rows { train: parts, held: parts, features }, on_epoch)
}

/// Fits one head for each strength of L2, each from where the last one ended: begin with the strongest. Where `on_epoch` breaks,
/// the one in hand and those after it are left out.
pub(super) fn path(
    params: &HeadValidParams,
    problem: &Problem<'_>,
    l2s: &[f64],
    on_epoch: OnEpoch<'_>,
    on_head: OnHead<'_>,
) -> Result<(), HeadError> {
    let copy = Copy::of(problem);
    let train = copy.problem(problem);
    let rows = Rows { train: &train, held: problem, features: problem.features.width() };
    each(params, &rows, l2s, on_epoch, on_head).map(drop)
}

fn one(params: &HeadValidParams, rows: &Rows<'_>, on_epoch: OnEpoch<'_>) -> Result<Solved, HeadError> {
    let mut found = None;
    let broken_off = each(params, rows, &[params.l2()], on_epoch, &mut |solved| {
        found = Some(solved);
        Ok(())
    })?;
    found.or(broken_off).ok_or(HeadError::Unusable)
}

/// Training rows as they are used, where they do not lie so: standardized once instead of in every pass.
struct Copy {
    x: Option<Array2<f32>>,
    labels: Vec<usize>,
    train: Vec<usize>,
}

impl Copy {
    fn of(problem: &Problem<'_>) -> Self {
        let labels = problem.train.iter().map(|&row| problem.labels[row]).collect();
        Self { x: problem.features.prepared(problem.train), labels, train: (0..problem.train.len()).collect() }
    }

    fn problem<'a>(&'a self, problem: &'a Problem<'_>) -> Problem<'a> {
        let classes = problem.classes;
        match &self.x {
            Some(x) => Problem {
                features: Features::new(x.view(), None),
                labels: &self.labels,
                train: &self.train,
                holdout: &[],
                refit: &[],
                classes,
            },
            None => Problem { features: problem.features.shorter(), ..*problem },
        }
    }
}

/// Rows to train on, and those that are held out.
struct Rows<'p> {
    train: &'p dyn Parts,
    held: &'p dyn Parts,
    features: usize,
}

/// Hands out the heads that are done; returns the one that was broken off.
fn each(
    params: &HeadValidParams,
    rows: &Rows<'_>,
    l2s: &[f64],
    on_epoch: OnEpoch<'_>,
    on_head: OnHead<'_>,
) -> Result<Option<Solved>, HeadError> {
    let listed = rows.train.listed();
    let (features, classes) = (rows.features, listed.classes);
    let asked = Asked::of(params, &listed)?;
    let curvature = Curvature::estimate(rows.train, features, &asked)?;
    let smoothing = params.label_smoothing.unwrap_or(0.0);
    let target = Target::new(smoothing, asked.weights.clone());
    let mut point = vec![0.0; features * classes];
    // The bias that is best for a zero kernel, of those the one whose mean is 0: the loss does not see the mean.
    let seen = || asked.shares.iter().filter(|&&share| share > 0.0);
    let mean = seen().map(|share| share.ln()).sum::<f64>() / seen().count() as f64;
    point.extend(asked.shares.iter().map(|&share| if share > 0.0 { share.ln() - mean } else { UNSEEN }));
    for &l2 in l2s {
        let start = Instant::now();
        let mut objective = Loss {
            rows: rows.train,
            target: &target,
            l2,
            features,
            classes,
            unseen: asked.shares.iter().map(|&share| share == 0.0).collect(),
            preconditioner: curvature.preconditioner(l2),
            parts: Vec::new(),
            found: Tally::default(),
            error: None,
        };
        let limits = Limits { tolerance: params.tolerance(), convexity: l2, iterations: params.max_iterations() };
        let mut history = Vec::new();
        let mut stopped = false;
        let minimum = minimize(&mut objective, &mut point, limits, |iteration, objective| {
            let record = objective.record(iteration, start);
            let flow = on_epoch(&record);
            stopped |= flow.is_break();
            history.push(record);
            flow
        });
        if let Some(error) = objective.error.take() {
            return Err(error);
        }
        if minimum.end == End::NotFinite {
            return Err(HeadError::Lbfgs {
                reason: "the loss is not finite; the features are too large for f32: set head.standardize = true".into(),
            });
        }
        let weights = weights(&point, features, classes);
        // With the labels smoothed, the weights of rows that are all right have a best value all the same.
        let endless = l2 == 0.0 && smoothing == 0.0 && objective.found.accuracy() >= 1.0;
        let (converged, warnings) = verdict(&minimum, &limits, endless);
        if history.is_empty() {
            history.push(objective.record(1, start));
        }
        let holdout = rows.held.listed().holdout;
        if let (Some(last), false) = (history.last_mut(), holdout.is_empty()) {
            let held = score(&weights.pack(), rows.held, holdout)?;
            last.val_loss = Some(held.mean_loss());
            last.val_accuracy = Some(held.accuracy());
        }
        let solved = Solved { warnings, converged: Some(converged), ..Solved::new(weights, history, l2) };
        if stopped {
            return Ok(Some(solved));
        }
        on_head(solved)?;
    }
    Ok(None)
}

/// Whether this is the optimum, and what a user should know where it is not.
fn verdict(minimum: &Minimum, limits: &Limits, endless: bool) -> (bool, Vec<String>) {
    let Minimum { iterations, slope, excess, end } = minimum;
    if endless {
        let text = format!(
            "lbfgs ended after {iterations} iterations, but not at an optimum: every training row is right, and without L2 the loss falls \
             as long as the weights grow; where they ended says little of new images. Set head.l2 above 0"
        );
        return (false, vec![text]);
    }
    let is_near = *slope <= 10.0 * limits.tolerance && *excess <= 0.01;
    match end {
        End::Iterations | End::Noise if !is_near => {
            let remedy = if *end == End::Iterations { "raise head.max_iterations or head.l2" } else { "raise head.l2" };
            let text = format!(
                "lbfgs ended after {iterations} iterations with a gradient of {slope:.1e} (head.tolerance = {:.0e}); {remedy}",
                limits.tolerance
            );
            (false, vec![text])
        }
        _ => (matches!(end, End::Converged | End::Noise), Vec::new()),
    }
}

/// What the rows ask for all in all.
struct Asked {
    /// What a row of each class counts.
    weights: Vec<f32>,
    /// Share of each class in the asked-for probabilities.
    shares: Vec<f64>,
    /// Mean weight of the rows.
    mean_weight: f64,
}

impl Asked {
    fn of(params: &HeadValidParams, listed: &Listed<'_>) -> Result<Self, HeadError> {
        let weights = params.class_weights().of(listed)?;
        let (smoothing, classes) = (params.label_smoothing.unwrap_or(0.0), listed.classes);
        let mut counts = vec![0_usize; classes];
        listed.train.iter().for_each(|&row| counts[listed.labels[row]] += 1);
        let weighed: Vec<f64> = counts.iter().zip(&weights).map(|(&count, &weight)| count as f64 * f64::from(weight)).collect();
        let total: f64 = weighed.iter().sum();
        if total <= 0.0 {
            let reason = "head.class_weights gives every class that has training rows a 0: nothing is left to learn from; give one of them \
                          a number above 0";
            return Err(HeadError::Lbfgs { reason: reason.into() });
        }
        let shares = weighed.iter().map(|weight| ((1.0 - smoothing) * weight + smoothing / classes as f64 * total) / total);
        let shares = shares.collect();
        Ok(Self { weights, shares, mean_weight: total / listed.train.len() as f64 })
    }

    /// As many rows as the covariance of so many features wants, in ascending order and evenly spaced by what they count: one that
    /// counts much may come more than once.
    fn sample(&self, listed: &Listed<'_>, features: usize) -> Vec<usize> {
        let (train, wanted) = (listed.train, (ROWS_PER_FEATURE * features).max(LEAST_ROWS));
        let every = train.len().div_ceil(wanted);
        if self.weights.iter().all(|weight| weight.to_bits() == self.weights[0].to_bits()) {
            return train.iter().copied().step_by(every).collect();
        }
        let step = self.mean_weight * every as f64;
        let (mut sample, mut passed, mut next) = (Vec::new(), 0.0, step / 2.0);
        for &row in train {
            passed += f64::from(self.weights[listed.labels[row]]);
            while next < passed {
                sample.push(row);
                next += step;
            }
        }
        sample
    }
}

/// Largest entry of the objective's gradient at given weights.
pub(super) fn slope(problem: &Problem<'_>, weights: &Weights, l2: f64) -> f64 {
    let target = Target::new(0.0, vec![1.0; problem.classes]);
    let features = problem.features.shorter();
    let task = Task { features, labels: problem.labels, target: &target, weight_decay: 0.0, l2 };
    let (layer, share) = (weights.pack(), 1.0 / problem.train.len() as f32);
    let mut parts = Vec::new();
    gather(&mut parts, &layer, &task, problem.train, shares(problem.train.len(), layer.kernel.len()), share);
    let mut kernel: Vec<f64> = weights.kernel.iter().map(|&weight| l2 * f64::from(weight)).collect();
    let mut bias = vec![0.0; problem.classes];
    parts.iter().for_each(|part| part.add_to(&layer, &mut kernel, &mut bias));
    kernel.into_iter().fold(0.0, |most, value| most.max(value.abs()))
}

fn weights(point: &[f64], features: usize, classes: usize) -> Weights {
    let kernel = Array2::from_shape_fn((features, classes), |(feature, class)| point[feature * classes + class] as f32);
    Weights { kernel, bias: point[features * classes..].iter().map(|&bias| bias as f32).collect() }
}

/// The objective over the training rows.
struct Loss<'t> {
    rows: &'t dyn Parts,
    target: &'t Target,
    l2: f64,
    features: usize,
    classes: usize,
    /// Classes that no row asks for: their bias stays where it is.
    unseen: Vec<bool>,
    preconditioner: Preconditioner<'t>,
    parts: Vec<Share>,
    /// Of the last evaluation.
    found: Tally,
    /// Why rows could not be read.
    error: Option<HeadError>,
}

impl Loss<'_> {
    /// An iteration as an epoch; the point that was accepted was evaluated last.
    fn record(&self, iteration: u64, start: Instant) -> EpochRecord {
        EpochRecord {
            epoch: usize::try_from(iteration).unwrap_or(usize::MAX),
            loss: self.found.mean_loss(),
            accuracy: self.found.accuracy(),
            val_loss: None,
            val_accuracy: None,
            seconds: start.elapsed().as_secs_f64(),
            learning_rate: None,
        }
    }
}

impl Objective for Loss<'_> {
    /// One pass over the rows, part by part; within a part the gradient is summed in shares in f32, beyond in f64.
    fn evaluate(&mut self, point: &[f64], gradient: &mut [f64]) -> f64 {
        if self.error.is_some() {
            return f64::NAN;
        }
        let layer = weights(point, self.features, self.classes).pack();
        let kernel = &point[..self.features * self.classes];
        gradient.fill(0.0);
        let (kernel_gradient, bias_gradient) = gradient.split_at_mut(kernel.len());
        let train = self.rows.listed().train;
        let (share, l2, target, parts) = (1.0 / train.len() as f32, self.l2, self.target, &mut self.parts);
        let mut found = Tally::default();
        let read = self.rows.each_part(train, None, 1, &mut |part| {
            if part.order.is_empty() {
                return Ok(());
            }
            let (features, labels) = (part.features.shorter(), part.labels);
            let task = Task { features, labels, target, weight_decay: 0.0, l2 };
            let count = shares(part.order.len(), layer.kernel.len());
            found.add(&gather(parts, &layer, &task, part.order, count, share));
            parts.iter().for_each(|part| part.add_to(&layer, kernel_gradient, bias_gradient));
            Ok(())
        });
        self.found = found;
        if let Err(error) = read {
            self.error = Some(error);
            return f64::NAN;
        }
        kernel_gradient.iter_mut().zip(kernel).for_each(|(gradient, weight)| *gradient += l2 * weight);
        bias_gradient.iter_mut().zip(&self.unseen).filter(|(_, unseen)| **unseen).for_each(|(gradient, _)| *gradient = 0.0);
        self.found.mean_objective() + l2 / 2.0 * super::minimize::dot(kernel, kernel)
    }

    fn precondition(&self, gradient: &mut [f64]) {
        self.preconditioner.apply(gradient, self.classes);
    }
}

/// What is known of the Hessian before the first step.
struct Curvature {
    /// Covariance of the features `[D, D]`.
    covariance: Tiles<f64>,
    mean: Vec<f64>,
    /// Mean curvature of the loss along a direction of the logits, where every row has the asked-for shares for an answer.
    weight: f64,
}

impl Curvature {
    /// From some rows, each as often as it counts: the Hessian is a sum over rows that are weighed like the loss.
    fn estimate(rows: &dyn Parts, features: usize, asked: &Asked) -> Result<Self, HeadError> {
        let listed = rows.listed();
        let shares = &asked.shares;
        let spread = (1.0 - shares.iter().map(|share| share * share).sum::<f64>()) / (shares.len().max(2) - 1) as f64;
        let mut statistics: Option<Statistics> = None;
        rows.each_part(&asked.sample(&listed, features), None, 1, &mut |part| {
            for order in part.order.chunks(COPIED_ROWS) {
                let copy = part.features.prepared(order);
                let copy = copy.unwrap_or_else(|| part.features.matrix().select(ndarray::Axis(0), order));
                let labels: Vec<usize> = order.iter().map(|&row| part.labels[row]).collect();
                match &mut statistics {
                    Some(statistics) => statistics.update(Change::Add, copy.view(), &labels)?,
                    none => *none = Some(Statistics::new(copy.view(), &labels, listed.classes)?),
                }
            }
            Ok(())
        })?;
        let statistics = statistics.ok_or(HeadError::Unusable)?;
        let offset = statistics.offset();
        let mean = offset.iter().zip(&statistics.pivot).map(|(offset, &pivot)| offset + f64::from(pivot)).collect();
        let covariance = statistics.covariance(&vec![1.0; features], 0.0);
        Ok(Self { covariance, mean, weight: asked.mean_weight * spread })
    }

    fn preconditioner(&self, l2: f64) -> Preconditioner<'_> {
        let features = self.mean.len();
        let diagonal = |feature: usize| self.weight * self.covariance.at(feature, feature) + l2;
        // With a diagonal of ones the factor does not depend on the scale of the features.
        let scale: Vec<f64> =
            (0..features).map(diagonal).map(|value| if value > f64::MIN_POSITIVE { 1.0 / value.sqrt() } else { 1.0 }).collect();
        // A little more than rounding, so that features that repeat each other leave it positive.
        let more = if features > WIDE { 1e-6 } else { 1e-9 };
        let entry = |row: usize, column: usize| {
            let value = scale[row] * scale[column] * self.weight * self.covariance.at(row.max(column), row.min(column));
            if row == column { value + l2 * scale[row].powi(2) + more } else { value }
        };
        let factor = if features > WIDE {
            Tiles::from_fn(features, |row, column| entry(row, column) as f32).factor().map(Factored::Single)
        } else {
            Tiles::from_fn(features, entry).factor().map(Factored::Double)
        };
        Preconditioner { curvature: self, scale, factor }
    }
}

struct Preconditioner<'c> {
    curvature: &'c Curvature,
    scale: Vec<f64>,
    /// None where rounding left the matrix not positive: the diagonal serves then.
    factor: Option<Factored>,
}

/// A factor, of wide features in f32: half the memory, twice the speed, and no less help.
enum Factored {
    Double(Factor<f64>),
    Single(Factor<f32>),
}

impl Factored {
    /// Solves for right sides `[D, K]`, given by their values.
    fn solve(&self, features: usize, classes: usize, value: impl Fn(usize, usize) -> f64) -> Mat<f64> {
        match self {
            Self::Double(factor) => factor.solve(&Mat::from_fn(features, classes, value)),
            Self::Single(factor) => {
                let solved = factor.solve(&Mat::from_fn(features, classes, |row, class| value(row, class) as f32));
                Mat::from_fn(features, classes, |row, class| f64::from(solved[(row, class)]))
            }
        }
    }
}

impl Preconditioner<'_> {
    /// Solves for kernel and bias together. The bias is not penalized, so it leaves the kernel the covariance about the mean.
    fn apply(&self, gradient: &mut [f64], classes: usize) {
        let Curvature { mean, weight, .. } = self.curvature;
        let (kernel, bias) = gradient.split_at_mut(mean.len() * classes);
        for (row, mean) in kernel.chunks_exact_mut(classes).zip(mean) {
            row.iter_mut().zip(&*bias).for_each(|(value, bias)| *value -= mean * bias);
        }
        match &self.factor {
            Some(factor) => {
                let right = factor.solve(mean.len(), classes, |row, class| self.scale[row] * kernel[row * classes + class]);
                for (row, values) in kernel.chunks_exact_mut(classes).enumerate() {
                    values.iter_mut().enumerate().for_each(|(class, value)| *value = self.scale[row] * right[(row, class)]);
                }
            }
            None => {
                for (row, scale) in kernel.chunks_exact_mut(classes).zip(&self.scale) {
                    row.iter_mut().for_each(|value| *value *= scale * scale);
                }
            }
        }
        bias.iter_mut().for_each(|value| *value /= weight);
        for (row, mean) in kernel.chunks_exact(classes).zip(mean) {
            bias.iter_mut().zip(row).for_each(|(bias, value)| *bias -= mean * value);
        }
    }
}

#[cfg(test)]
mod tests;
