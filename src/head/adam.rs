//! Softmax regression by Adam on minibatches, to the letter of Keras 3.
//!
//! A step reads the batch twice: forward for the logits, then once more for the gradient, which is never stored: the
//! sixteen-class slices of the gradient of a few features are summed in registers over the batch, and weights and moments
//! updated on the spot. Rows (forward) and features (update) are independent of each other, so where a step is large enough
//! to be shared by threads, its bits stay the same.

use std::time::Instant;

use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::dense::{Dense, copy_row, write_row};
use super::fit::{OnEpoch, Problem, Weights};
use super::simd::{Kernel, Lanes, Simd, Vector};
use super::tally::{Tally, score};
use super::{HeadError, HeadValidParams};
use crate::evaluate::{argmax, softmax};
use crate::run::EpochRecord;

/// Keras' defaults.
const BETA_1: f64 = 0.9;
const BETA_2: f64 = 0.999;
const EPSILON: f32 = 1e-7;

/// An epoch whose mean loss is this many times the first batch's has diverged.
const DIVERGED: f64 = 100.0;

/// Features that one task updates.
const TASK_FEATURES: usize = 256;

/// Trains from the given weights.
pub(super) fn solve(
    params: &HeadValidParams,
    problem: &Problem<'_>,
    initial: &Weights,
    on_epoch: OnEpoch<'_>,
) -> Result<(Weights, Vec<EpochRecord>), HeadError> {
    let mut layer = Dense::pack(initial.kernel.view(), initial.bias.view());
    let mut adam = Adam::new(&layer, params.learning_rate);
    let mut history: Vec<EpochRecord> = Vec::new();
    let mut first_loss = None;
    for epoch in 1..=params.epochs {
        let start = Instant::now();
        let mut order = problem.train.to_vec();
        if params.shuffle {
            // A stream of its own for each epoch, so that an epoch's order does not depend on how training got there.
            let mut rng = ChaCha8Rng::seed_from_u64(params.seed);
            rng.set_stream(epoch as u64);
            order.shuffle(&mut rng);
        }
        let mut seen = Tally::default();
        for batch in order.chunks(params.batch_size) {
            let found = adam.step(&mut layer, problem, batch);
            seen.add(&found);
            if !found.loss.is_finite() {
                return Err(HeadError::Diverged { epoch, loss: found.mean_loss(), learning_rate: params.learning_rate });
            }
            first_loss.get_or_insert(found.mean_loss());
        }
        if seen.mean_loss() > DIVERGED * first_loss.unwrap_or(0.0).max(1.0) {
            return Err(HeadError::Diverged { epoch, loss: seen.mean_loss(), learning_rate: params.learning_rate });
        }
        let held = (!problem.holdout.is_empty()).then(|| score(&layer, problem, problem.holdout));
        let record = EpochRecord {
            epoch,
            loss: seen.mean_loss(),
            accuracy: seen.accuracy(),
            val_loss: held.as_ref().map(Tally::mean_loss),
            val_accuracy: held.as_ref().map(Tally::accuracy),
            seconds: start.elapsed().as_secs_f64(),
        };
        let go_on = on_epoch(&record);
        history.push(record);
        if go_on.is_break() {
            break;
        }
    }
    let (kernel, bias) = layer.unpack();
    Ok((Weights { kernel, bias }, history))
}

/// First and second moments of each weight.
struct Adam {
    learning_rate: f64,
    steps: i32,
    kernel: Moments,
    bias: Moments,
    logits: Vec<Lanes>,
    row: Vec<f32>,
    buffer: Vec<f32>,
}

struct Moments {
    first: Vec<Lanes>,
    second: Vec<Lanes>,
}

impl Moments {
    fn of(weights: &[Lanes]) -> Self {
        Self { first: vec![Lanes::ZERO; weights.len()], second: vec![Lanes::ZERO; weights.len()] }
    }
}

impl Adam {
    fn new(layer: &Dense, learning_rate: f64) -> Self {
        Self {
            learning_rate,
            steps: 0,
            kernel: Moments::of(&layer.kernel),
            bias: Moments::of(&layer.bias),
            logits: Vec::new(),
            row: Vec::new(),
            buffer: Vec::new(),
        }
    }

    /// One step on one batch; returns loss and accuracy before the step.
    fn step(&mut self, layer: &mut Dense, problem: &Problem<'_>, batch: &[usize]) -> Tally {
        let rows = problem.features.rows(batch, &mut self.buffer);
        self.logits.resize(layer.panels() * batch.len(), Lanes::ZERO);
        layer.forward(&rows, &mut self.logits);

        // Logits become the derivative of the batch's mean loss.
        let mut found = Tally::default();
        let share = 1.0 / batch.len() as f32;
        self.row.resize(problem.classes, 0.0);
        for (position, &index) in batch.iter().enumerate() {
            let label = problem.labels[index];
            copy_row(&self.logits, batch.len(), position, &mut self.row);
            let right = argmax(&self.row) == label;
            let logit = self.row[label];
            let log_sum = softmax(&mut self.row);
            found.count(log_sum - f64::from(logit), right);
            self.row[label] -= 1.0;
            self.row.iter_mut().for_each(|value| *value *= share);
            write_row(&self.row, &mut self.logits, batch.len(), position);
        }

        self.steps = self.steps.saturating_add(1);
        let correction = (1.0 - BETA_2.powi(self.steps)).sqrt() / (1.0 - BETA_1.powi(self.steps));
        let rate = (self.learning_rate * correction) as f32;
        let width = layer.features();
        let is_parallel = layer.is_parallel(batch.len());
        let update = Update { simd: layer.simd, rate, rows: &rows };
        update.panels(&self.logits, width, &mut layer.kernel, &mut self.kernel, is_parallel);
        // The bias is the weight of a feature that is always 1.
        let ones = vec![&[1.0_f32][..]; batch.len()];
        Update { rows: &ones, ..update }.panels(&self.logits, 1, &mut layer.bias, &mut self.bias, false);
        found
    }
}

/// Errors and weights, first and second moments of one panel.
type Panel<'a> = ((&'a [Lanes], &'a mut [Lanes]), (&'a mut [Lanes], &'a mut [Lanes]));

/// Gradient of a batch and the step that follows from it.
#[derive(Clone, Copy)]
struct Update<'a> {
    simd: Simd,
    rate: f32,
    rows: &'a [&'a [f32]],
}

impl Update<'_> {
    /// Updates all panels of `width` features; `errors` is `[panel][row]`.
    fn panels(&self, errors: &[Lanes], width: usize, weights: &mut [Lanes], moments: &mut Moments, is_parallel: bool) {
        let panel = |((errors, weights), (first, second)): Panel<'_>| {
            if is_parallel {
                let tasks = weights.par_chunks_mut(TASK_FEATURES);
                let tasks = tasks.zip(first.par_chunks_mut(TASK_FEATURES)).zip(second.par_chunks_mut(TASK_FEATURES));
                tasks.enumerate().for_each(|(task, ((weights, first), second))| {
                    self.features(task * TASK_FEATURES, errors, weights, first, second);
                });
            } else {
                self.features(0, errors, weights, first, second);
            }
        };
        let errors_of = self.rows.len();
        let Moments { first, second } = moments;
        if is_parallel {
            let weights = errors.par_chunks_exact(errors_of).zip(weights.par_chunks_exact_mut(width));
            weights.zip(first.par_chunks_exact_mut(width).zip(second.par_chunks_exact_mut(width))).for_each(panel);
        } else {
            let weights = errors.chunks_exact(errors_of).zip(weights.chunks_exact_mut(width));
            weights.zip(first.chunks_exact_mut(width).zip(second.chunks_exact_mut(width))).for_each(panel);
        }
    }

    fn features(&self, start: usize, errors: &[Lanes], weights: &mut [Lanes], first: &mut [Lanes], second: &mut [Lanes]) {
        self.simd.run(UpdateFeatures { rate: self.rate, rows: self.rows, start, errors, weights, first, second });
    }
}

/// Updates the weights of one panel for the features from `start` on.
struct UpdateFeatures<'a> {
    rate: f32,
    rows: &'a [&'a [f32]],
    start: usize,
    errors: &'a [Lanes],
    weights: &'a mut [Lanes],
    first: &'a mut [Lanes],
    second: &'a mut [Lanes],
}

impl Kernel for UpdateFeatures<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector, const ROWS: usize, const FEATURES: usize>(self) {
        let whole = self.weights.len() / FEATURES * FEATURES;
        let (weights, weights_rest) = self.weights.split_at_mut(whole);
        let (first, first_rest) = self.first.split_at_mut(whole);
        let (second, second_rest) = self.second.split_at_mut(whole);
        // SAFETY: the caller of `run` vouches for the instruction set of `V`.
        unsafe {
            let groups = weights.as_chunks_mut::<FEATURES>().0.iter_mut();
            let groups = groups.zip(first.as_chunks_mut::<FEATURES>().0).zip(second.as_chunks_mut::<FEATURES>().0);
            for (group, ((weights, first), second)) in groups.enumerate() {
                let start = self.start + group * FEATURES;
                update_group::<V, FEATURES>(self.rate, self.rows, start, self.errors, weights, first, second);
            }
            let rest = weights_rest.as_chunks_mut::<1>().0.iter_mut();
            let rest = rest.zip(first_rest.as_chunks_mut::<1>().0).zip(second_rest.as_chunks_mut::<1>().0);
            for (feature, ((weights, first), second)) in rest.enumerate() {
                let start = self.start + whole + feature;
                update_group::<V, 1>(self.rate, self.rows, start, self.errors, weights, first, second);
            }
        }
    }
}

/// # Safety
/// The processor has the instruction set of `V`.
#[inline(always)]
unsafe fn update_group<V: Vector, const FEATURES: usize>(
    rate: f32,
    rows: &[&[f32]],
    start: usize,
    errors: &[Lanes],
    weights: &mut [Lanes; FEATURES],
    first: &mut [Lanes; FEATURES],
    second: &mut [Lanes; FEATURES],
) {
    // SAFETY: by the contract of this function.
    unsafe {
        let mut gradients = [V::splat(0.0); FEATURES];
        for (row, error) in rows.iter().zip(errors) {
            let error = V::load(error);
            for (gradient, &value) in gradients.iter_mut().zip(&row[start..start + FEATURES]) {
                *gradient = V::splat(value).mul_add(error, *gradient);
            }
        }
        let (rate, epsilon) = (V::splat(rate), V::splat(EPSILON));
        let (blend_1, blend_2) = (V::splat((1.0 - BETA_1) as f32), V::splat((1.0 - BETA_2) as f32));
        for (((gradient, weights), first), second) in gradients.into_iter().zip(weights).zip(first).zip(second) {
            let old = V::load(first);
            let mean = gradient.sub(old).mul_add(blend_1, old);
            mean.store(first);
            let old = V::load(second);
            let square = gradient.mul(gradient).sub(old).mul_add(blend_2, old);
            square.store(second);
            V::load(weights).sub(mean.mul(rate).div(square.sqrt().add(epsilon))).store(weights);
        }
    }
}
