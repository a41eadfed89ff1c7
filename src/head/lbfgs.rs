//! Multinomial logistic regression with L2: the one optimum of `mean cross-entropy + l2 / 2 * sum(kernel²)`.
//!
//! The features of a backbone are far from independent, and plain L-BFGS takes hundreds of passes over them. The Hessian of
//! the loss is bounded by the covariance of the features times a small matrix of the classes (Böhning, 1992); so a Cholesky
//! factor of `weight * covariance + l2`, estimated on some of the rows, preconditions it.
//!
//! Passes are in f32, blocks of rows while they are in the cache; losses and the parts of the gradient are added in f64, and
//! the steps are taken in f64.

use std::time::Instant;

use faer::Mat;
use ndarray::{Array2, ArrayView2};

use super::features::Features;
use super::fit::{OnEpoch, Problem, Solved, Weights};
use super::minimize::{End, Limits, Objective, minimize};
use super::statistics::Statistics;
use super::step::{Share, Target, Task, gather, shares};
use super::tally::{Tally, score};
use super::tiles::{Factor, Tiles};
use super::{HeadError, HeadValidParams};
use crate::run::EpochRecord;

/// Rows for each feature from which the covariance is estimated, and rows at least.
const ROWS_PER_FEATURE: usize = 4;
const LEAST_ROWS: usize = 4096;

/// Features above which the factor would cost more than it saves; the diagonal serves then.
const MOST_FEATURES: usize = 8192;

/// Logit of a class without a training row, whose bias has its optimum at minus infinity. The logits of the others sum to
/// about zero in every row, so this is a probability below 1e-13.
pub(super) const UNSEEN: f64 = -30.0;

/// Fits one head.
pub(super) fn solve(params: &HeadValidParams, problem: &Problem<'_>, on_epoch: OnEpoch<'_>) -> Result<Solved, HeadError> {
    path(params, problem, &[params.l2()], on_epoch)?.pop().ok_or(HeadError::Unusable)
}

/// Fits one head for each strength of L2, each from where the last one ended: begin with the strongest. Fewer come back where
/// `on_epoch` breaks.
pub(super) fn path(
    params: &HeadValidParams,
    problem: &Problem<'_>,
    l2s: &[f64],
    on_epoch: OnEpoch<'_>,
) -> Result<Vec<Solved>, HeadError> {
    let train: Vec<usize> = (0..problem.train.len()).collect();
    let copy = problem.features.prepared(problem.train);
    let labels: Vec<usize> = problem.train.iter().map(|&row| problem.labels[row]).collect();
    // Rows that are used as they are stay where they are.
    let (x, labels, train) = match &copy {
        Some(copy) => (copy.view(), labels.as_slice(), train.as_slice()),
        None => (problem.features.shorter().matrix(), problem.labels, problem.train),
    };
    let (features, classes) = (x.ncols(), problem.classes);
    let shares = problem.shares();
    let curvature = Curvature::estimate(x, labels, train, &shares);
    let target = Target::new(0.0, vec![1.0; classes]);
    let mut point = vec![0.0; features * classes];
    // The bias that is best for a zero kernel, of those the one whose mean is 0: the loss does not see the mean.
    let seen = || shares.iter().filter(|&&share| share > 0.0);
    let mean = seen().map(|share| share.ln()).sum::<f64>() / seen().count() as f64;
    point.extend(shares.iter().map(|&share| if share > 0.0 { share.ln() - mean } else { UNSEEN }));
    let mut solved = Vec::with_capacity(l2s.len());
    for &l2 in l2s {
        let start = Instant::now();
        let mut objective = Loss {
            task: Task { features: Features::new(x, None), labels, target: &target, learning_rate: 0.0, weight_decay: 0.0, l2 },
            train,
            classes,
            unseen: shares.iter().map(|&share| share == 0.0).collect(),
            preconditioner: curvature.preconditioner(l2),
            parts: Vec::new(),
            found: Tally::default(),
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
        let weights = weights(&point, features, classes);
        let warnings = match minimum.end {
            End::NotFinite => {
                return Err(HeadError::Lbfgs {
                    reason: "the loss is not finite; the features are too large for f32: set head.standardize = true".into(),
                });
            }
            _ if l2 == 0.0 && objective.found.accuracy() >= 1.0 => vec![
                "every training row is right and nothing holds the weights: they have no best value, and where lbfgs ended says little of \
                 new images; set head.l2 above 0"
                    .to_owned(),
            ],
            End::Iterations | End::Noise if minimum.slope > 10.0 * limits.tolerance || minimum.excess > 0.01 => vec![format!(
                "lbfgs ended after {} iterations with a gradient of {:.1e} (head.tolerance = {:.0e}); {}",
                minimum.iterations,
                minimum.slope,
                limits.tolerance,
                if minimum.end == End::Iterations { "raise head.max_iterations or head.l2" } else { "raise head.l2" }
            )],
            _ => Vec::new(),
        };
        if history.is_empty() {
            history.push(objective.record(1, start));
        }
        if let (Some(last), false) = (history.last_mut(), problem.holdout.is_empty()) {
            let held = score(&weights.pack(), problem, problem.holdout);
            last.val_loss = Some(held.mean_loss());
            last.val_accuracy = Some(held.accuracy());
        }
        solved.push(Solved { warnings, ..Solved::new(weights, history, l2) });
        if stopped {
            break;
        }
    }
    Ok(solved)
}

/// Largest entry of the objective's gradient at given weights.
pub(super) fn slope(problem: &Problem<'_>, weights: &Weights, l2: f64) -> f64 {
    let target = Target::new(0.0, vec![1.0; problem.classes]);
    let features = problem.features.shorter();
    let task = Task { features, labels: problem.labels, target: &target, learning_rate: 0.0, weight_decay: 0.0, l2 };
    let layer = weights.pack();
    let mut parts = Vec::new();
    gather(&mut parts, &layer, &task, problem.train, shares(problem.train.len(), layer.kernel.len()));
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
struct Loss<'t, 'a> {
    task: Task<'t, 'a>,
    train: &'t [usize],
    classes: usize,
    /// Classes without rows: their bias stays where it is.
    unseen: Vec<bool>,
    preconditioner: Preconditioner<'t>,
    parts: Vec<Share>,
    /// Of the last evaluation.
    found: Tally,
}

impl Loss<'_, '_> {
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

impl Objective for Loss<'_, '_> {
    fn evaluate(&mut self, point: &[f64], gradient: &mut [f64]) -> f64 {
        let features = self.task.features.width();
        let layer = weights(point, features, self.classes).pack();
        let count = shares(self.train.len(), layer.kernel.len());
        self.found = gather(&mut self.parts, &layer, &self.task, self.train, count);
        gradient.fill(0.0);
        let kernel = &point[..features * self.classes];
        let (kernel_gradient, bias_gradient) = gradient.split_at_mut(kernel.len());
        for part in &self.parts {
            part.add_to(&layer, kernel_gradient, bias_gradient);
        }
        kernel_gradient.iter_mut().zip(kernel).for_each(|(gradient, weight)| *gradient += self.task.l2 * weight);
        bias_gradient.iter_mut().zip(&self.unseen).filter(|(_, unseen)| **unseen).for_each(|(gradient, _)| *gradient = 0.0);
        self.found.mean_loss() + self.task.l2 / 2.0 * super::minimize::dot(kernel, kernel)
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
    /// Mean curvature of the loss along a direction of the logits, where every row has the class shares for an answer.
    weight: f64,
}

impl Curvature {
    fn estimate(x: ArrayView2<'_, f32>, labels: &[usize], train: &[usize], shares: &[f64]) -> Self {
        let features = x.ncols();
        let wanted = (ROWS_PER_FEATURE * features).max(LEAST_ROWS);
        let rows: Vec<usize> = train.iter().copied().step_by(train.len().div_ceil(wanted)).collect();
        let weight = (1.0 - shares.iter().map(|share| share * share).sum::<f64>()) / (shares.len().max(2) - 1) as f64;
        let statistics = Statistics::of(x, labels, &rows, shares.len());
        let offset = statistics.offset();
        let mean = offset.iter().zip(&statistics.pivot).map(|(offset, &pivot)| offset + f64::from(pivot)).collect();
        Self { covariance: statistics.covariance(&vec![1.0; features], 0.0), mean, weight }
    }

    fn preconditioner(&self, l2: f64) -> Preconditioner<'_> {
        let features = self.mean.len();
        let diagonal = |feature: usize| self.weight * self.covariance.at(feature, feature) + l2;
        // With a diagonal of ones the factor does not depend on the scale of the features.
        let scale: Vec<f64> =
            (0..features).map(diagonal).map(|value| if value > f64::MIN_POSITIVE { 1.0 / value.sqrt() } else { 1.0 }).collect();
        let entry = |row: usize, column: usize| {
            let value = scale[row] * scale[column] * self.weight * self.covariance.at(row.max(column), row.min(column));
            // A little more than rounding, so that features that repeat each other leave it positive.
            if row == column { value + l2 * scale[row].powi(2) + 1e-9 } else { value }
        };
        let factor = (features <= MOST_FEATURES).then(|| Tiles::from_fn(features, entry)).and_then(Tiles::factor);
        Preconditioner { curvature: self, scale, factor }
    }
}

struct Preconditioner<'c> {
    curvature: &'c Curvature,
    scale: Vec<f64>,
    factor: Option<Factor<f64>>,
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
                let right = Mat::from_fn(mean.len(), classes, |row, class| self.scale[row] * kernel[row * classes + class]);
                let right = factor.solve(&right);
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
