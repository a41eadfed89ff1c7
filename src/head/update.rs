//! Gradient of a batch and Adam's step that follows from it, sixteen classes at a time.

use rayon::prelude::*;

use super::simd::{Kernel, Lanes, Simd, Vector};

/// Keras' defaults.
pub(super) const BETA_1: f64 = 0.9;
pub(super) const BETA_2: f64 = 0.999;
const EPSILON: f32 = 1e-7;

/// Features that one task updates.
pub(super) const TASK_FEATURES: usize = 256;

/// First and second moments of weights.
#[derive(Clone, Debug)]
pub(super) struct Moments {
    pub(super) first: Vec<Lanes>,
    pub(super) second: Vec<Lanes>,
}

/// What a step does beside following the gradient.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Learning rate with Adam's correction for the young moments.
    pub(super) rate: f32,
    /// Share by which each weight shrinks.
    pub(super) decay: f32,
    /// Strength of L2.
    pub(super) l2: f32,
}

/// A step of Adam from the gradient of one batch, which is never stored: a few features' gradient is summed in registers over
/// the rows, and weights and moments are updated on the spot.
#[derive(Clone, Copy)]
pub(super) struct Update<'a> {
    pub(super) simd: Simd,
    pub(super) pace: Pace,
    pub(super) rows: &'a [&'a [f32]],
    /// Rows of the next batch, to be brought into the cache meanwhile; what they hold does not matter here.
    pub(super) ahead: &'a [&'a [f32]],
}

/// Errors and weights, first and second moments of one panel.
type Panel<'a> = ((&'a [Lanes], &'a mut [Lanes]), (&'a mut [Lanes], &'a mut [Lanes]));

impl Update<'_> {
    /// Updates all panels of `width` features; `errors` is `[panel][row]`.
    pub(super) fn panels(&self, errors: &[Lanes], width: usize, weights: &mut [Lanes], moments: &mut Moments, parallel: bool) {
        let panel = |((errors, weights), (first, second)): Panel<'_>| {
            if parallel {
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
        if parallel {
            let weights = errors.par_chunks_exact(errors_of).zip(weights.par_chunks_exact_mut(width));
            weights.zip(first.par_chunks_exact_mut(width).zip(second.par_chunks_exact_mut(width))).for_each(panel);
        } else {
            let weights = errors.chunks_exact(errors_of).zip(weights.chunks_exact_mut(width));
            weights.zip(first.chunks_exact_mut(width).zip(second.chunks_exact_mut(width))).for_each(panel);
        }
    }

    fn features(&self, start: usize, errors: &[Lanes], weights: &mut [Lanes], first: &mut [Lanes], second: &mut [Lanes]) {
        self.simd.run(UpdateFeatures {
            pace: self.pace,
            rows: self.rows,
            ahead: self.ahead,
            start,
            errors,
            weights,
            first,
            second,
        });
    }
}

/// Updates the weights of one panel for the features from `start` on.
struct UpdateFeatures<'a> {
    pace: Pace,
    rows: &'a [&'a [f32]],
    ahead: &'a [&'a [f32]],
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
                self.ahead.iter().for_each(|row| V::prefetch(&row[start]));
                let gradients = gradients::<V, FEATURES>(self.rows, start, self.errors, [V::splat(0.0); FEATURES]);
                step::<V, _>(self.pace, gradients, weights, first, second);
            }
            let rest = weights_rest.as_chunks_mut::<1>().0.iter_mut();
            let rest = rest.zip(first_rest.as_chunks_mut::<1>().0).zip(second_rest.as_chunks_mut::<1>().0);
            for (feature, ((weights, first), second)) in rest.enumerate() {
                let start = self.start + whole + feature;
                let gradients = gradients::<V, 1>(self.rows, start, self.errors, [V::splat(0.0)]);
                step::<V, _>(self.pace, gradients, weights, first, second);
            }
        }
    }
}

/// Adds the gradient of one panel over some rows to `sums`, one for each feature.
pub(super) struct Accumulate<'a> {
    pub(super) rows: &'a [&'a [f32]],
    pub(super) errors: &'a [Lanes],
    pub(super) sums: &'a mut [Lanes],
}

impl Kernel for Accumulate<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector, const ROWS: usize, const FEATURES: usize>(self) {
        let (groups, rest) = self.sums.as_chunks_mut::<FEATURES>();
        let whole = groups.len() * FEATURES;
        // SAFETY: the caller of `run` vouches for the instruction set of `V`.
        unsafe {
            for (group, sums) in groups.iter_mut().enumerate() {
                let so_far = std::array::from_fn(|feature| V::load(&sums[feature]));
                let found = gradients::<V, FEATURES>(self.rows, group * FEATURES, self.errors, so_far);
                found.into_iter().zip(sums).for_each(|(found, sum)| found.store(sum));
            }
            for (feature, sum) in rest.iter_mut().enumerate() {
                gradients::<V, 1>(self.rows, whole + feature, self.errors, [V::load(sum)])[0].store(sum);
            }
        }
    }
}

/// Adam's step from gradients in parts, which are added in their order.
pub(super) struct Finish<'a> {
    pub(super) pace: Pace,
    /// Each has the length of `weights`.
    pub(super) parts: &'a [&'a [Lanes]],
    pub(super) weights: &'a mut [Lanes],
    pub(super) first: &'a mut [Lanes],
    pub(super) second: &'a mut [Lanes],
}

impl Kernel for Finish<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector, const ROWS: usize, const FEATURES: usize>(self) {
        let weights = self.weights.as_chunks_mut::<1>().0.iter_mut();
        let each = weights.zip(self.first.as_chunks_mut::<1>().0).zip(self.second.as_chunks_mut::<1>().0);
        // SAFETY: the caller of `run` vouches for the instruction set of `V`.
        unsafe {
            for (place, ((weights, first), second)) in each.enumerate() {
                let mut sum = V::splat(0.0);
                for part in self.parts {
                    sum = sum.add(V::load(&part[place]));
                }
                step::<V, _>(self.pace, [sum], weights, first, second);
            }
        }
    }
}

/// Gradients of a few features, from `sums` on.
///
/// # Safety
/// The processor has the instruction set of `V`.
#[inline(always)]
unsafe fn gradients<V: Vector, const FEATURES: usize>(
    rows: &[&[f32]],
    start: usize,
    errors: &[Lanes],
    mut sums: [V; FEATURES],
) -> [V; FEATURES] {
    // SAFETY: by the contract of this function.
    unsafe {
        for (row, error) in rows.iter().zip(errors) {
            let error = V::load(error);
            for (sum, &value) in sums.iter_mut().zip(&row[start..start + FEATURES]) {
                *sum = V::splat(value).mul_add(error, *sum);
            }
        }
    }
    sums
}

/// Adam (Kingma & Ba, 2015) with decoupled weight decay (AdamW; Loshchilov & Hutter, 2019).
///
/// # Safety
/// The processor has the instruction set of `V`.
#[inline(always)]
unsafe fn step<V: Vector, const FEATURES: usize>(
    pace: Pace,
    gradients: [V; FEATURES],
    weights: &mut [Lanes; FEATURES],
    first: &mut [Lanes; FEATURES],
    second: &mut [Lanes; FEATURES],
) {
    // SAFETY: by the contract of this function.
    unsafe {
        let (rate, epsilon) = (V::splat(pace.rate), V::splat(EPSILON));
        let (l2, decay) = (V::splat(pace.l2), V::splat(-pace.decay));
        let (blend_1, blend_2) = (V::splat((1.0 - BETA_1) as f32), V::splat((1.0 - BETA_2) as f32));
        for (((gradient, weights), first), second) in gradients.into_iter().zip(weights).zip(first).zip(second) {
            let weight = V::load(weights);
            let gradient = weight.mul_add(l2, gradient);
            let old = V::load(first);
            let mean = gradient.sub(old).mul_add(blend_1, old);
            mean.store(first);
            let old = V::load(second);
            let square = gradient.mul(gradient).sub(old).mul_add(blend_2, old);
            square.store(second);
            let kept = weight.mul_add(decay, weight);
            kept.sub(mean.mul(rate).div(square.sqrt().add(epsilon))).store(weights);
        }
    }
}
