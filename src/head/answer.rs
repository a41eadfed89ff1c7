//! From logits to the derivative of the loss, sixteen rows at a time: lanes over rows.

use super::panel::BLOCK;
use super::simd::{Kernel, LANES, Lanes, ROUND, Vector};
use super::tally::Tally;

/// What the answer to a row should be, and how much the row counts.
pub(super) struct Target {
    /// Asked-for probability of the label above that of any class.
    on: f32,
    /// Asked-for probability of any class.
    off: f32,
    class_weights: Vec<f32>,
    /// Whether the loss that is minimized is the plain cross-entropy.
    is_plain: bool,
}

impl Target {
    /// With label smoothing (Szegedy et al., 2016): `1 - smoothing` for the label, and `smoothing` spread over all classes.
    pub(super) fn new(smoothing: f64, class_weights: Vec<f32>) -> Self {
        let off = (smoothing / class_weights.len() as f64) as f32;
        let is_plain = smoothing == 0.0 && class_weights.iter().all(|&weight| weight == 1.0);
        Self { on: (1.0 - smoothing) as f32, off, class_weights, is_plain }
    }
}

/// Turns the logits of a block of rows into the derivative of their objective, and counts what became of them.
pub(super) struct Differentiate<'a> {
    pub(super) target: &'a Target,
    /// Label of each row; at most [`BLOCK`].
    pub(super) labels: &'a [usize],
    /// What each row counts.
    pub(super) share: f32,
    /// Logits `[class]` in parts, which are added in their order.
    pub(super) parts: &'a [&'a [Lanes]],
    /// `[class]`; zero for rows that are not there.
    pub(super) errors: &'a mut [Lanes],
    pub(super) found: &'a mut Tally,
}

/// Classes whose exponentials are added in f32; these sums in f64.
const SUMMED: usize = 16;

impl Kernel for Differentiate<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector, const ROWS: usize, const VECTORS: usize>(self) {
        let Self { target, labels, share, parts, errors, found } = self;
        let (mut highest, mut best) = (Lanes::ZERO, Lanes::ZERO);
        // SAFETY: the caller of `run` vouches for the instruction set of `V`.
        unsafe { add_parts::<V>(parts, errors, &mut highest, &mut best) };
        let (mut at_label, mut logit_sums) = ([0.0_f32; BLOCK], [0.0_f64; BLOCK]);
        for (lane, &label) in labels.iter().enumerate() {
            at_label[lane] = errors[label].0[lane];
        }
        if !target.is_plain {
            errors.iter().for_each(|error| add(&mut logit_sums, error));
        }
        let mut sums = [0.0_f64; BLOCK];
        for errors in errors.chunks_mut(SUMMED) {
            // SAFETY: as above.
            add(&mut sums, &unsafe { exponentials::<V>(errors, &highest) });
        }
        let (mut scales, mut shares) = (Lanes::ZERO, Lanes::ZERO);
        for (lane, &label) in labels.iter().enumerate() {
            scales.0[lane] = (1.0 / sums[lane]) as f32;
            shares.0[lane] = target.class_weights[label] * share;
        }
        // SAFETY: as above.
        unsafe {
            let (scale, share, off) = (V::load(&scales.0), V::load(&shares.0), V::splat(-target.off));
            for error in errors.iter_mut() {
                V::load(&error.0).mul_add(scale, off).mul(share).store(error);
            }
        }
        *found = Tally::default();
        for (lane, &label) in labels.iter().enumerate() {
            errors[label].0[lane] -= target.on * shares.0[lane];
            let (logit, log_sum) = (f64::from(at_label[lane]), f64::from(highest.0[lane]) + sums[lane].ln());
            found.count(log_sum - logit, best.0[lane].to_bits() as usize == label);
            found.objective += if target.is_plain {
                log_sum - logit
            } else {
                let asked = f64::from(target.on) * logit + f64::from(target.off) * logit_sums[lane];
                f64::from(target.class_weights[label]) * (log_sum - asked)
            };
        }
    }
}

#[inline(always)]
fn add(sums: &mut [f64; LANES], lanes: &Lanes) {
    sums.iter_mut().zip(lanes.0).for_each(|(sum, value)| *sum += f64::from(value));
}

/// Adds the parts of the logits; finds the highest of each row and the first class that has it, whose number is in the bits.
///
/// # Safety
/// The processor has the instruction set of `V`.
#[inline(always)]
unsafe fn add_parts<V: Vector>(parts: &[&[Lanes]], logits: &mut [Lanes], highest: &mut Lanes, best: &mut Lanes) {
    let Some((first, others)) = parts.split_first() else { return };
    // SAFETY: by the contract of this function.
    unsafe {
        let (mut most, mut at) = (V::splat(f32::NEG_INFINITY), V::splat(0.0));
        for (class, (sum, first)) in logits.iter_mut().zip(*first).enumerate() {
            let mut logit = V::load(&first.0);
            for part in others {
                logit = logit.add(V::load(&part[class].0));
            }
            logit.store(sum);
            at = logit.pick(most, V::splat(f32::from_bits(class as u32)), at);
            most = logit.pick(most, logit, most);
        }
        most.store(highest);
        at.store(best);
    }
}

/// Turns logits into exponentials of what they are above the highest, and returns their sums.
///
/// # Safety
/// The processor has the instruction set of `V`.
#[inline(always)]
unsafe fn exponentials<V: Vector>(logits: &mut [Lanes], highest: &Lanes) -> Lanes {
    let mut sums = Lanes::ZERO;
    // SAFETY: by the contract of this function.
    unsafe {
        let (highest, mut sum) = (V::load(&highest.0), V::splat(0.0));
        for logit in logits {
            let power = exponential(V::load(&logit.0).sub(highest));
            power.store(logit);
            sum = sum.add(power);
        }
        sum.store(&mut sums);
    }
    sums
}

/// `e^x` for x up to 0, to a unit or two in the last place; e^-87, the least normal number, below. NaN stays NaN.
///
/// # Safety
/// The processor has the instruction set of `V`.
#[inline(always)]
unsafe fn exponential<V: Vector>(x: V) -> V {
    // SAFETY: by the contract of this function.
    unsafe {
        let least = V::splat(-87.0);
        let x = least.pick(x, least, x);
        let rounded = x.mul_add(V::splat(std::f32::consts::LOG2_E), V::splat(ROUND));
        let n = rounded.sub(V::splat(ROUND));
        // ln 2 in two parts, the first of few bits (Cody & Waite, 1980).
        let rest = n.mul_add(V::splat(-0.693_359_4), x);
        let rest = n.mul_add(V::splat(2.121_944_4e-4), rest);
        // The polynomial of the Cephes library (S. Moshier, 1992).
        let mut sum = V::splat(1.987_569_1e-4);
        for factor in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            sum = sum.mul_add(rest, V::splat(factor));
        }
        sum.mul_add(rest.mul(rest), rest.add(V::splat(1.0))).mul(rounded.power())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head::simd::Simd;

    fn differentiate(simd: Simd, target: &Target, logits: &[[f32; 16]], labels: &[usize]) -> (Vec<Lanes>, Tally) {
        let logits: Vec<Lanes> = logits.iter().map(|&logits| Lanes(logits)).collect();
        let (mut errors, mut found) = (vec![Lanes::ZERO; logits.len()], Tally::default());
        let (parts, errors_of) = ([&logits[..]], &mut errors);
        simd.run(Differentiate { target, labels, share: 0.5, parts: &parts, errors: errors_of, found: &mut found });
        (errors, found)
    }

    #[test]
    fn derivatives_are_those_of_the_smoothed_and_weighed_loss() {
        // 37 classes, so that sums are taken in parts; logits from -90 to 90.
        let logits: Vec<[f32; 16]> = (0..37)
            .map(|class| {
                std::array::from_fn(|row| ((class * 31 + row * 17) % 41) as f32 * 0.3 * row as f32 - 90.0 + class as f32)
            })
            .collect();
        let labels: Vec<usize> = (0..13).map(|row| row * 2).collect();
        let target = Target::new(0.1, (0..37).map(|class| 1.0 + class as f32 / 10.0).collect());
        for simd in Simd::available() {
            let (errors, found) = differentiate(simd, &target, &logits, &labels);
            let mut objective = 0.0;
            for (row, &label) in labels.iter().enumerate() {
                let logit = |class: usize| f64::from(logits[class][row]);
                let highest = (0..37).map(logit).fold(f64::MIN, f64::max);
                let sum: f64 = (0..37).map(|class| (logit(class) - highest).exp()).sum();
                let weight = 1.0 + label as f64 / 10.0;
                for (class, errors) in errors.iter().enumerate() {
                    let asked = 0.1 / 37.0 + if class == label { 0.9 } else { 0.0 };
                    let probability = (logit(class) - highest).exp() / sum;
                    let expected = (probability - asked) * weight * 0.5;
                    let error = f64::from(errors.0[row]);
                    assert!((error - expected).abs() < 4e-7, "{simd:?} row {row} class {class}: {error} for {expected}");
                    objective -= weight * asked * (probability.max(f64::MIN_POSITIVE).ln());
                }
            }
            assert!((found.objective / objective - 1.0).abs() < 1e-6, "{} for {objective}", found.objective);
            assert!(errors.iter().all(|error| error.0[13..] == [0.0; 3]), "rows that are not there");
        }
    }

    #[test]
    fn the_first_of_equals_is_right_and_what_is_not_finite_is_seen() {
        let target = Target::new(0.0, vec![1.0; 3]);
        let row = |values: [f32; 3]| values.map(|value| [value; 16]);
        for simd in Simd::available() {
            let right = |values, label| differentiate(simd, &target, &row(values), &[label]).1.accuracy();
            assert_eq!([right([1.0, 1.0, 0.0], 0), right([1.0, 1.0, 0.0], 1), right([-2.0, -1.0, -1.0], 1)], [1.0, 0.0, 1.0]);
            let loss = |values| differentiate(simd, &target, &row(values), &[0]).1.loss;
            assert!((loss([1.0, 2.0, 3.0]) - 2.407_605_964_444_38).abs() < 1e-6);
            assert!(loss([1e38, -1e38, 0.0]).abs() < 1e-30);
            for bad in [[f32::NAN, 0.0, 0.0], [0.0, f32::NAN, 0.0], [0.0, 0.0, f32::INFINITY], [f32::NEG_INFINITY, 0.0, 0.0]] {
                assert!(!loss(bad).is_finite(), "{simd:?} {bad:?}");
            }
        }
    }
}
