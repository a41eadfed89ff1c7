//! Adam's step from a gradient.

use super::simd::{Kernel, Lanes, Vector};

/// Keras' defaults.
pub(super) const BETA_1: f64 = 0.9;
pub(super) const BETA_2: f64 = 0.999;
const EPSILON: f32 = 1e-7;

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

impl Pace {
    /// Of a step, the first being 1, for the kernel.
    pub(super) fn of(step: u64, learning_rate: f64, weight_decay: f64, l2: f64) -> Self {
        let steps = i32::try_from(step).unwrap_or(i32::MAX);
        let correction = (1.0 - BETA_2.powi(steps)).sqrt() / (1.0 - BETA_1.powi(steps));
        Self { rate: (learning_rate * correction) as f32, decay: (learning_rate * weight_decay) as f32, l2: l2 as f32 }
    }

    /// The same for the bias, which nothing shrinks.
    pub(super) fn bias(self) -> Self {
        Self { decay: 0.0, l2: 0.0, ..self }
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
    unsafe fn run<V: Vector, const ROWS: usize, const VECTORS: usize>(self) {
        let each = self.weights.iter_mut().zip(self.first.iter_mut().zip(self.second.iter_mut()));
        // SAFETY: the caller of `run` vouches for the instruction set of `V`.
        unsafe {
            for (place, (weights, (first, second))) in each.enumerate() {
                let mut sum = V::splat(0.0);
                for part in self.parts {
                    sum = sum.add(V::load(&part[place].0));
                }
                step(self.pace, sum, weights, first, second);
            }
        }
    }
}

/// Adam (Kingma & Ba, 2015) with decoupled weight decay (AdamW; Loshchilov & Hutter, 2019).
///
/// # Safety
/// The processor has the instruction set of `V`.
#[inline(always)]
pub(super) unsafe fn step<V: Vector>(pace: Pace, gradient: V, weights: &mut Lanes, first: &mut Lanes, second: &mut Lanes) {
    // SAFETY: by the contract of this function.
    unsafe {
        let weight = V::load(&weights.0);
        let gradient = weight.mul_add(V::splat(pace.l2), gradient);
        let old = V::load(&first.0);
        let mean = gradient.sub(old).mul_add(V::splat((1.0 - BETA_1) as f32), old);
        mean.store(first);
        let old = V::load(&second.0);
        let square = gradient.mul(gradient).sub(old).mul_add(V::splat((1.0 - BETA_2) as f32), old);
        square.store(second);
        let kept = weight.mul_add(V::splat(-pace.decay), weight);
        kept.sub(mean.mul(V::splat(pace.rate)).div(square.sqrt().add(V::splat(EPSILON)))).store(weights);
    }
}
