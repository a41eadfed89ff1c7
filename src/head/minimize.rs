//! Limited-memory BFGS (Liu & Nocedal, 1989) with a preconditioner and a line search that knows how far rounding goes.

use std::collections::VecDeque;
use std::ops::ControlFlow;

/// Pairs of steps and gradient differences that are remembered.
const MEMORY: usize = 20;

/// Share of the promised decrease that a step must bring (Armijo).
const DECREASE: f64 = 1e-4;

/// Relative error of the objective: sums of f32 terms. Differences below it say nothing, and the slope decides instead
/// (the approximate Wolfe condition; Hager & Zhang, 2005).
const NOISE: f64 = 3e-7;

/// Evaluations in one line search.
const TRIALS: usize = 25;

/// A function to minimize.
pub(super) trait Objective {
    /// Value at a point; writes the gradient.
    fn evaluate(&mut self, point: &[f64], gradient: &mut [f64]) -> f64;
    /// Turns a gradient into a step: about the inverse of the Hessian, positive definite.
    fn precondition(&self, gradient: &mut [f64]);
}

/// When to stop.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Largest entry of the gradient at which the minimum is found, and a third of the share of the objective by which its value
    /// may lie above the least one.
    pub(super) tolerance: f64,
    /// The objective less this times half the squared norm of the point is convex: a gradient `g` bounds the value to within
    /// `g² / (2 convexity)` of the least one. 0 where nothing is known.
    pub(super) convexity: f64,
    pub(super) iterations: u64,
}

/// Where it ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Minimum {
    pub(super) iterations: u64,
    /// Largest entry of the gradient.
    pub(super) slope: f64,
    /// Share of the objective by which its value may lie above the least one; 0 where no bound is known.
    pub(super) excess: f64,
    pub(super) end: End,
}

/// Why it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The gradient is within the tolerance.
    Converged,
    /// No step brings a decrease that rounding does not hide.
    Noise,
    /// The iterations were used up.
    Iterations,
    /// The caller stopped it.
    Stopped,
    /// The objective or its gradient is not finite.
    NotFinite,
}

/// A step and what it did to the gradient.
struct Pair {
    step: Vec<f64>,
    change: Vec<f64>,
    /// 1 / (step · change).
    inverse: f64,
}

/// Minimizes from `point` on, which becomes the best point found. `on_iteration` sees the objective after each iteration.
pub(super) fn minimize<O: Objective>(
    objective: &mut O,
    point: &mut Vec<f64>,
    limits: Limits,
    mut on_iteration: impl FnMut(u64, &mut O) -> ControlFlow<()>,
) -> Minimum {
    let mut gradient = vec![0.0; point.len()];
    let mut value = objective.evaluate(point, &mut gradient);
    let mut pairs: VecDeque<Pair> = VecDeque::with_capacity(MEMORY);
    let (mut trial, mut trial_gradient) = (point.clone(), gradient.clone());
    let mut iterations = 0;
    let end = loop {
        if !(value.is_finite() && gradient.iter().all(|entry| entry.is_finite())) {
            break End::NotFinite;
        }
        if largest(&gradient) <= limits.tolerance && limits.excess(value, &gradient) <= 3.0 * limits.tolerance {
            break End::Converged;
        }
        if iterations == limits.iterations {
            break End::Iterations;
        }
        let direction = direction(objective, &pairs, &gradient);
        let slope = dot(&gradient, &direction);
        // A direction that does not go down is that of rounding.
        if slope.is_nan() || slope >= 0.0 {
            break End::Noise;
        }
        let found = search(value, slope, |length| {
            for ((trial, point), direction) in trial.iter_mut().zip(&*point).zip(&direction) {
                *trial = point + length * direction;
            }
            let value = objective.evaluate(&trial, &mut trial_gradient);
            (value, dot(&trial_gradient, &direction))
        });
        let Some(found) = found else { break End::Noise };
        value = found;
        iterations += 1;
        let step: Vec<f64> = trial.iter().zip(&*point).map(|(new, old)| new - old).collect();
        let change: Vec<f64> = trial_gradient.iter().zip(&gradient).map(|(new, old)| new - old).collect();
        std::mem::swap(point, &mut trial);
        std::mem::swap(&mut gradient, &mut trial_gradient);
        let curvature = dot(&step, &change);
        // The objective is convex; where rounding says otherwise the pair says nothing.
        if curvature > f64::EPSILON * dot(&change, &change) {
            if pairs.len() == MEMORY {
                pairs.pop_front();
            }
            pairs.push_back(Pair { step, change, inverse: 1.0 / curvature });
        }
        if on_iteration(iterations, objective).is_break() {
            break End::Stopped;
        }
    };
    Minimum { iterations, slope: largest(&gradient), excess: limits.excess(value, &gradient), end }
}

impl Limits {
    fn excess(&self, value: f64, gradient: &[f64]) -> f64 {
        if self.convexity > 0.0 {
            dot(gradient, gradient) / (2.0 * self.convexity) / value.abs().max(f64::MIN_POSITIVE)
        } else {
            0.0
        }
    }
}

/// The two loops: minus the approximate inverse Hessian times the gradient.
fn direction(objective: &impl Objective, pairs: &VecDeque<Pair>, gradient: &[f64]) -> Vec<f64> {
    let mut q = gradient.to_vec();
    let mut along = Vec::with_capacity(pairs.len());
    for pair in pairs.iter().rev() {
        let a = pair.inverse * dot(&pair.step, &q);
        add(&mut q, -a, &pair.change);
        along.push(a);
    }
    objective.precondition(&mut q);
    if let Some(last) = pairs.back() {
        let mut scaled = last.change.clone();
        objective.precondition(&mut scaled);
        let scale = 1.0 / (last.inverse * dot(&last.change, &scaled));
        q.iter_mut().for_each(|value| *value *= scale);
    }
    for (pair, a) in pairs.iter().zip(along.into_iter().rev()) {
        let b = pair.inverse * dot(&pair.change, &q);
        add(&mut q, a - b, &pair.step);
    }
    q.iter_mut().for_each(|value| *value = -*value);
    q
}

/// A step length along a direction of descent: the whole step where it will do, else between the bounds that were found.
/// `at` gives value and slope at a length; the last call is at the length that was accepted.
fn search(value: f64, slope: f64, mut at: impl FnMut(f64) -> (f64, f64)) -> Option<f64> {
    let slack = NOISE * value.abs();
    let (mut low, mut high) = (0.0_f64, f64::INFINITY);
    let mut length = 1.0;
    for _ in 0..TRIALS {
        let (found, found_slope) = at(length);
        let enough = found <= value + DECREASE * length * slope
            || (found <= value + slack && found_slope <= (2.0 * DECREASE - 1.0) * slope);
        if !found.is_finite() || !enough {
            high = length;
            // The parabola through what is known, kept within the bracket.
            let parabola = -slope * length * length / (2.0 * (found - value - slope * length));
            let (least, most) = (low + 0.1 * (high - low), low + 0.5 * (high - low));
            length = if parabola.is_finite() { parabola.clamp(least, most) } else { least };
        } else if found_slope < 0.9 * slope && high.is_infinite() {
            // Still going down nearly as steeply: the step is far too short.
            low = length;
            length *= 4.0;
        } else {
            return Some(found);
        }
    }
    None
}

pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    // Four sums, so that the additions need not wait for each other.
    let (a, a_rest) = a.as_chunks::<8>();
    let (b, b_rest) = b.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f64>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f64>()
}

fn add(to: &mut [f64], factor: f64, what: &[f64]) {
    to.iter_mut().zip(what).for_each(|(to, what)| *to += factor * what);
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |most, value| most.max(value.abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rosenbrock's valley along each pair of coordinates; not convex.
    struct Valley;

    impl Objective for Valley {
        fn evaluate(&mut self, point: &[f64], gradient: &mut [f64]) -> f64 {
            let mut value = 0.0;
            for (x, g) in point.chunks_exact(2).zip(gradient.chunks_exact_mut(2)) {
                let (a, b) = (1.0 - x[0], x[1] - x[0] * x[0]);
                value += a * a + 100.0 * b * b;
                g[0] = -2.0 * a - 400.0 * x[0] * b;
                g[1] = 200.0 * b;
            }
            value
        }

        fn precondition(&self, _gradient: &mut [f64]) {}
    }

    /// A bowl of the given curvatures around 1, 2, 3, …, with a preconditioner that knows them.
    struct Bowl(Vec<f64>);

    impl Objective for Bowl {
        fn evaluate(&mut self, point: &[f64], gradient: &mut [f64]) -> f64 {
            let mut value = 0.0;
            for (index, ((x, g), curvature)) in point.iter().zip(gradient).zip(&self.0).enumerate() {
                let away = x - (index + 1) as f64;
                value += curvature * away * away / 2.0;
                *g = curvature * away;
            }
            value
        }

        fn precondition(&self, gradient: &mut [f64]) {
            gradient.iter_mut().zip(&self.0).for_each(|(value, curvature)| *value /= curvature);
        }
    }

    const GO_ON: ControlFlow<()> = ControlFlow::Continue(());

    #[test]
    fn a_valley_that_is_not_convex_is_followed_to_its_end() {
        let mut point = vec![-1.2, 1.0, 3.0, -4.0];
        let found = minimize(&mut Valley, &mut point, Limits { tolerance: 1e-6, convexity: 0.0, iterations: 500 }, |_, _| GO_ON);
        assert_eq!(found.end, End::Converged);
        point.iter().for_each(|x| assert!((x - 1.0).abs() < 1e-5, "{point:?}"));
    }

    #[test]
    fn a_preconditioner_that_knows_the_curvature_needs_one_step() {
        let mut point = vec![0.0; 4];
        let mut bowl = Bowl(vec![1e-6, 1.0, 1e3, 1e9]);
        let found = minimize(&mut bowl, &mut point, Limits { tolerance: 1e-9, convexity: 0.0, iterations: 50 }, |_, _| GO_ON);
        assert!(found.end == End::Converged && found.iterations <= 2, "{found:?}");
        point.iter().enumerate().for_each(|(index, x)| assert!((x - (index + 1) as f64).abs() < 1e-6, "{point:?}"));
    }

    #[test]
    fn it_ends_where_it_is_told_to() {
        let run = |limits, stop_after| {
            let mut point = vec![-1.2, 1.0];
            minimize(
                &mut Valley,
                &mut point,
                limits,
                |iteration, _| {
                    if iteration == stop_after { ControlFlow::Break(()) } else { GO_ON }
                },
            )
        };
        let limits = Limits { tolerance: 1e-6, convexity: 0.0, iterations: 3 };
        assert_eq!((run(limits, 0).end, run(limits, 0).iterations), (End::Iterations, 3));
        assert_eq!((run(limits, 2).end, run(limits, 2).iterations), (End::Stopped, 2));
        assert_eq!(
            run(Limits { tolerance: 0.0, convexity: 0.0, iterations: 10_000 }, 0).slope.max(1e-6),
            1e-6,
            "at worst it ends at rounding"
        );
        let mut nowhere = vec![f64::NAN, 0.0];
        assert_eq!(minimize(&mut Valley, &mut nowhere, limits, |_, _| GO_ON).end, End::NotFinite);
    }
}
