//! One-vs-rest least squares with L2 in closed form, on standardized features (Hoerl & Kennard, 1970).
//!
//! ```text
//! rows ──one pass──▶ statistics ──eigenvectors──▶ every strength of L2, and the error of every row were it left out
//!                         │                                   │ the strength with the smallest such error
//!                         └───────Cholesky factor◀────────────┘
//!                                      └──▶ kernel, bias ──logit scale──▶ head
//! ```
//!
//! Targets are 1 for the label and 0 for every other class; the mean of `|y - xW - b|² / 2` plus `l2 / 2 * sum(W²)` is least.
//! With `C` the covariance of the standardized features and `h` a row's leverage, the answer to a row by a fit without it is
//! `y - (y - ŷ) / (1 - h)`, which is exact (Allen's PRESS, 1974; mean and deviation are taken as given).

use std::time::Instant;

use faer::linalg::matmul::matmul;
use faer::linalg::solvers::Solve as _;
use faer::{Accum, Mat, MatMut, MatRef, Par, Side};
use ndarray::{Array2, ArrayView2, Axis};
use rayon::prelude::*;
use serde::Serialize;

use super::features::Features;
use super::fit::{OnEpoch, Problem, Solved, Weights};
use super::statistics::Statistics;
use super::tally::closed_record;
use super::{Head, HeadError, HeadValidParams, Standardization};
use crate::evaluate::{argmax, temperature};

/// The least L2: the features of a backbone repeat each other, and a little more than rounding keeps the factor positive.
const LEAST_L2: f64 = 1e-9;

/// Strengths that are tried where none is given: 1e-6 to 100, three a decade.
const PATH: (i32, i32) = (-18, 6);

/// Temperature of least-squares answers where none is best: every answer right, or none that says anything.
const SHARP: f64 = 0.05;

/// Rows that one task projects.
const BLOCK_ROWS: usize = 256;

/// One strength of L2 on the training rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RidgePoint {
    /// The strength.
    pub l2: f64,
    /// Mean over the rows of the squared error (sum over the classes) of the answer by a fit without the row.
    pub leave_one_out_error: f64,
    /// Share of the rows that such a fit gets right.
    pub leave_one_out_accuracy: f64,
}

/// What a ridge fit leaves beside the head.
#[derive(Clone, Debug)]
pub struct Ridge {
    /// Sufficient statistics of the training rows.
    pub statistics: Statistics,
    /// Every strength that was tried, weakest first.
    pub path: Vec<RidgePoint>,
    /// Logits `[train, K]` of each training row by a fit without it.
    pub left_out: Array2<f32>,
    /// What the least-squares answers are multiplied with to be logits.
    pub logit_scale: f64,
}

/// The strengths that are tried where none is given.
fn path_of_l2() -> Vec<f64> {
    (PATH.0..=PATH.1).map(|third| 10_f64.powf(f64::from(third) / 3.0)).collect()
}

/// Fits one head, with the strength of L2 that was asked for or, left open, the one whose error by leaving one out is least.
pub(super) fn solve(
    params: &HeadValidParams,
    problem: &Problem<'_>,
    statistics: &Option<Statistics>,
    on_epoch: OnEpoch<'_>,
) -> Result<Solved, HeadError> {
    let start = Instant::now();
    let statistics = statistics.as_ref().ok_or(HeadError::Ridge)?;
    let squares = LeastSquares::new(statistics);
    let l2s = params.l2.map_or_else(path_of_l2, |l2| vec![l2]);
    let left = squares.leave_one_out(problem.features.matrix(), problem.labels, problem.train, &l2s)?;
    let step = left.best();
    let weights = squares.weights(l2s[step])?;
    let mut left_out = answers(&weights, problem, problem.train);
    left.leave_out(step, problem.labels, problem.train, &mut left_out);
    let scale = logit_scale(&weights, problem, Some(&left_out))?;
    left_out.mapv_inplace(|answer| answer * scale as f32);
    let ridge = Ridge { statistics: statistics.clone(), path: left.path, left_out, logit_scale: scale };
    let solved = solved(weights, scale, problem, l2s[step], start);
    // There is nothing left to break off.
    let _ = solved.history.iter().try_for_each(on_epoch);
    Ok(Solved { ridge: Some(ridge), ..solved })
}

/// Rows by which a logit scale is found.
#[derive(Clone, Copy, Debug)]
pub enum ScaleBy<'a> {
    /// Those held out: features `[N, D]` and labels.
    HeldOut(ArrayView2<'a, f32>, &'a [Option<i32>]),
    /// Where none is: those the statistics are of, each by the fit without it: features `[N, D]` and classes.
    LeftOut(ArrayView2<'a, f32>, &'a [usize]),
}

/// The head that follows from statistics at one strength of L2, and its logit scale.
///
/// # Errors
/// When the statistics are of one class or none, or their equations cannot be solved.
pub fn ridge_head(statistics: &Statistics, classes: &[String], l2: f64, scale_by: ScaleBy<'_>) -> Result<(Head, f64), HeadError> {
    if statistics.rows.iter().filter(|&&rows| rows > 0).count() < 2 {
        let class =
            statistics.rows.iter().position(|&rows| rows > 0).map_or_else(|| "none".into(), |class| classes[class].clone());
        return Err(HeadError::OneClass { class, rows: usize::try_from(statistics.count()).unwrap_or(usize::MAX) });
    }
    let squares = LeastSquares::new(statistics);
    let weights = squares.weights(l2)?;
    let head = |weights| Head::new(weights, Some(squares.standardization.clone()), classes.to_vec());
    let own;
    let (answers, labels) = match scale_by {
        ScaleBy::HeldOut(x, labels) => (head(weights.clone())?.logits(x)?, labels),
        ScaleBy::LeftOut(x, classes) => {
            let train: Vec<usize> = (0..classes.len()).collect();
            let mut answers = head(weights.clone())?.logits(x)?;
            squares.leave_one_out(x, classes, &train, &[l2])?.leave_out(0, classes, &train, &mut answers);
            own = classes.iter().map(|&class| i32::try_from(class).ok()).collect::<Vec<_>>();
            (answers, own.as_slice())
        }
    };
    let scale = 1.0 / temperature(answers.view(), labels).map_err(|_| HeadError::Ridge)?.unwrap_or(SHARP);
    Ok((head(scaled(weights, scale))?, scale))
}

/// Fits one head for each strength of L2; fewer where `on_epoch` breaks.
pub(super) fn path(
    problem: &Problem<'_>,
    statistics: &Option<Statistics>,
    l2s: &[f64],
    on_epoch: OnEpoch<'_>,
) -> Result<Vec<Solved>, HeadError> {
    let squares = LeastSquares::new(statistics.as_ref().ok_or(HeadError::Ridge)?);
    let mut heads = Vec::with_capacity(l2s.len());
    for &l2 in l2s {
        let start = Instant::now();
        let weights = squares.weights(l2)?;
        let scale = logit_scale(&weights, problem, None)?;
        let head = solved(weights, scale, problem, l2, start);
        let stop = head.history.iter().any(|record| on_epoch(record).is_break());
        heads.push(head);
        if stop {
            break;
        }
    }
    Ok(heads)
}

fn scaled(mut weights: Weights, scale: f64) -> Weights {
    weights.kernel.mapv_inplace(|value| value * scale as f32);
    weights.bias.mapv_inplace(|value| value * scale as f32);
    weights
}

fn solved(weights: Weights, scale: f64, problem: &Problem<'_>, l2: f64, start: Instant) -> Solved {
    let weights = scaled(weights, scale);
    let record = closed_record(&weights, problem, start);
    Solved::new(weights, vec![record], l2)
}

/// What least-squares answers are to be multiplied with to be logits: the inverse of the temperature that is best for the
/// hold-out; where it has none, for the answers to training rows left out, or to training rows as they are.
fn logit_scale(weights: &Weights, problem: &Problem<'_>, left_out: Option<&Array2<f32>>) -> Result<f64, HeadError> {
    let best = |answers: &Array2<f32>, rows: &[usize]| {
        let labels: Vec<Option<i32>> = rows.iter().map(|&row| i32::try_from(problem.labels[row]).ok()).collect();
        temperature(answers.view(), &labels).map_err(|_| HeadError::Ridge)
    };
    let held = best(&answers(weights, problem, problem.holdout), problem.holdout)?;
    let found = match (held, left_out) {
        (Some(held), _) => Some(held),
        (None, Some(left_out)) => best(left_out, problem.train)?,
        (None, None) => best(&answers(weights, problem, problem.train), problem.train)?,
    };
    Ok(1.0 / found.unwrap_or(SHARP))
}

/// Answers `[rows, K]` of a layer.
fn answers(weights: &Weights, problem: &Problem<'_>, rows: &[usize]) -> Array2<f32> {
    let layer = weights.pack();
    let mut answers = Array2::zeros((rows.len(), problem.classes));
    answers.axis_chunks_iter_mut(Axis(0), BLOCK_ROWS).into_par_iter().zip(rows.par_chunks(BLOCK_ROWS)).for_each(
        |(mut answers, rows)| {
            if let Some(answers) = answers.as_slice_mut() {
                layer.logits_into(&problem.features, rows, answers);
            }
        },
    );
    answers
}

/// Answers and leverages of the training rows along a path.
pub(super) struct LeftOut {
    pub(super) path: Vec<RidgePoint>,
    /// `[train, path]`.
    leverages: Vec<f32>,
}

/// Least squares on standardized features.
pub(super) struct LeastSquares<'s> {
    statistics: &'s Statistics,
    pub(super) standardization: Standardization,
    covariance: Mat<f64>,
    cross: Mat<f64>,
}

impl<'s> LeastSquares<'s> {
    pub(super) fn new(statistics: &'s Statistics) -> Self {
        let standardization = statistics.standardization();
        let covariance = statistics.covariance(&standardization.std);
        let cross = statistics.cross(&standardization.std);
        Self { statistics, standardization, covariance, cross }
    }

    /// Kernel and bias for one strength, as least squares gives them: answers near 1 for the label, near 0 for the others.
    pub(super) fn weights(&self, l2: f64) -> Result<Weights, HeadError> {
        let mut matrix = self.covariance.clone();
        matrix.diagonal_mut().column_vector_mut().iter_mut().for_each(|value| *value += l2.max(LEAST_L2));
        let factor = matrix.llt(Side::Lower).map_err(|_| HeadError::Ridge)?;
        let mut kernel = self.cross.clone();
        factor.solve_in_place(&mut kernel);
        Ok(self.finish(&kernel))
    }

    /// The kernel in f32, and the bias that goes with it.
    fn finish(&self, kernel: &Mat<f64>) -> Weights {
        let (features, classes) = (kernel.nrows(), kernel.ncols());
        let count = self.statistics.count().max(1) as f64;
        let kernel = Array2::from_shape_fn((features, classes), |place| kernel[place] as f32);
        // The mean of the standardized features, which is 0 but for the rounding of the means to f32.
        let Standardization { mean, std } = &self.standardization;
        let exact =
            self.statistics.offset().into_iter().zip(&self.statistics.pivot).map(|(offset, &pivot)| offset + f64::from(pivot));
        let center: Vec<f64> =
            exact.zip(mean.iter().zip(std)).map(|(exact, (&mean, &std))| (exact - f64::from(mean)) / f64::from(std)).collect();
        let bias = self.statistics.rows.iter().zip(kernel.columns()).map(|(&rows, column)| {
            let shift: f64 = column.iter().zip(&center).map(|(&weight, center)| f64::from(weight) * center).sum();
            (rows as f64 / count - shift) as f32
        });
        Weights { bias: bias.collect(), kernel }
    }

    /// The error of every row were it left out, for each strength; in f32, which is enough for an error.
    pub(super) fn leave_one_out(
        &self,
        x: ArrayView2<'_, f32>,
        labels: &[usize],
        train: &[usize],
        l2s: &[f64],
    ) -> Result<LeftOut, HeadError> {
        let (features, classes) = (x.ncols(), self.statistics.classes());
        let decomposed = self.covariance.self_adjoint_eigen(Side::Lower).map_err(|_| HeadError::Ridge)?;
        let values: Vec<f64> = decomposed.S().column_vector().iter().map(|value| value.max(0.0)).collect();
        let projected = decomposed.U().transpose() * &self.cross;
        let vectors = Mat::from_fn(features, features, |row, column| decomposed.U()[(row, column)] as f32);
        let inverse = |value: f64, l2: f64| 1.0 / (value + l2.max(LEAST_L2));
        // One kernel after the other, `[D, path * K]`.
        let mut kernels = Mat::<f32>::zeros(features, l2s.len() * classes);
        let mut biases = vec![0.0_f32; l2s.len() * classes];
        for (step, &l2) in l2s.iter().enumerate() {
            let shrunk = Mat::from_fn(features, classes, |row, class| projected[(row, class)] * inverse(values[row], l2));
            let weights = self.finish(&(decomposed.U() * shrunk));
            for ((feature, class), &value) in weights.kernel.indexed_iter() {
                kernels[(feature, step * classes + class)] = value;
            }
            biases[step * classes..][..classes].iter_mut().zip(&weights.bias).for_each(|(to, &bias)| *to = bias);
        }
        let rows = train.len() as f64;
        let inverses = Mat::<f32>::from_fn(features, l2s.len(), |row, step| (inverse(values[row], l2s[step]) / rows) as f32);

        let source = Features::new(x, Some(&self.standardization));
        let mut leverages = vec![0.0_f32; train.len() * l2s.len()];
        let blocks = leverages.par_chunks_mut(BLOCK_ROWS * l2s.len()).zip(train.par_chunks(BLOCK_ROWS));
        let sums = blocks.map(|(leverages, rows)| {
            let mut buffer = Vec::new();
            source.rows(rows, &mut buffer);
            let block = MatRef::from_column_major_slice(&buffer, features, rows.len());
            let mut projections = product(vectors.transpose(), block);
            projections.col_iter_mut().for_each(|column| column.iter_mut().for_each(|value| *value *= *value));
            matmul(
                MatMut::from_column_major_slice_mut(leverages, l2s.len(), rows.len()),
                Accum::Replace,
                inverses.transpose(),
                &projections,
                1.0,
                Par::Seq,
            );
            let answers = product(kernels.transpose(), block);
            let mut sums = vec![(0.0_f64, 0_usize); l2s.len()];
            let mut left_out = vec![0.0_f32; classes];
            for (place, (&row, leverages)) in rows.iter().zip(leverages.chunks_exact_mut(l2s.len())).enumerate() {
                for (step, (leverage, sum)) in leverages.iter_mut().zip(&mut sums).enumerate() {
                    *leverage += 1.0 / train.len() as f32;
                    for (class, left_out) in left_out.iter_mut().enumerate() {
                        let column = step * classes + class;
                        *left_out = without(answers[(column, place)] + biases[column], class == labels[row], *leverage);
                        sum.0 += f64::from(*left_out - f32::from(u8::from(class == labels[row]))).powi(2);
                    }
                    sum.1 += usize::from(argmax(&left_out) == labels[row]);
                }
            }
            sums
        });
        let sums = sums.collect::<Vec<_>>().into_iter().reduce(|mut all, block| {
            all.iter_mut().zip(block).for_each(|(all, block)| *all = (all.0 + block.0, all.1 + block.1));
            all
        });
        let path = l2s.iter().zip(sums.unwrap_or_default()).map(|(&l2, (error, right))| RidgePoint {
            l2,
            leave_one_out_error: error / rows,
            leave_one_out_accuracy: right as f64 / rows,
        });
        Ok(LeftOut { path: path.collect(), leverages })
    }
}

impl LeftOut {
    /// The strength with the smallest error.
    pub(super) fn best(&self) -> usize {
        let least = self.path.iter().enumerate().min_by(|a, b| a.1.leave_one_out_error.total_cmp(&b.1.leave_one_out_error));
        least.map_or(0, |(step, _)| step)
    }

    /// Turns the answers `[train, K]` of the fit to the rows it was fitted on into those of fits without each row.
    pub(super) fn leave_out(&self, step: usize, labels: &[usize], train: &[usize], answers: &mut Array2<f32>) {
        let leverages = self.leverages.chunks_exact(self.path.len());
        for ((mut answers, &row), leverages) in answers.rows_mut().into_iter().zip(train).zip(leverages) {
            for (class, answer) in answers.iter_mut().enumerate() {
                *answer = without(*answer, class == labels[row], leverages[step]);
            }
        }
    }
}

/// The answer to a row by a fit without it.
fn without(answer: f32, is_label: bool, leverage: f32) -> f32 {
    let target = f32::from(u8::from(is_label));
    // A leverage of 1 is that of a row which alone decides: without it nothing is known of it.
    target - (target - answer) / (1.0 - leverage).max(1e-6)
}

fn product(left: MatRef<'_, f32>, right: MatRef<'_, f32>) -> Mat<f32> {
    let mut product = Mat::zeros(left.nrows(), right.ncols());
    matmul(&mut product, Accum::Replace, left, right, 1.0, Par::Seq);
    product
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head::fit::tests::{Small, assert_near, correlated};
    use crate::head::{HeadParams, Solver};

    fn fit(small: &Small, l2: Option<f64>) -> (crate::head::Head, Ridge) {
        let fitted = small.fit(HeadParams { solver: Solver::Ridge, l2, ..HeadParams::default() }).unwrap();
        (fitted.head, fitted.ridge.unwrap())
    }

    #[test]
    fn leaving_a_row_out_is_a_fit_without_it() {
        // The identity holds where mean and deviation are those of all rows; so the rows come standardized, and only the target's
        // mean moves with the row left out, which the closed form accounts for.
        let small = Small::new();
        let (head, ridge) = fit(&small, Some(0.1));
        let standardization = head.standardization().unwrap();
        let n = small.train.len();
        let z = Array2::from_shape_fn((n, 5), |(row, feature)| {
            f64::from((small.x[(small.train[row], feature)] - standardization.mean[feature]) / standardization.std[feature])
        });
        for out in 0..n {
            // Normal equations of the other rows with an intercept; the penalty keeps the weight it has beside n rows.
            let kept: Vec<usize> = (0..n).filter(|&row| row != out).collect();
            let row = |row: usize| -> Vec<f64> { (0..5).map(|feature| z[(row, feature)]).chain([1.0]).collect() };
            let mut matrix = Mat::<f64>::zeros(6, 6);
            let mut right = Mat::<f64>::zeros(6, 3);
            for &kept in &kept {
                let values = row(kept);
                for i in 0..6 {
                    (0..6).for_each(|j| matrix[(i, j)] += values[i] * values[j]);
                    right[(i, small.labels[small.train[kept]].unwrap() as usize)] += values[i];
                }
            }
            (0..5).for_each(|i| matrix[(i, i)] += 0.1 * n as f64);
            let solved = matrix.partial_piv_lu().solve(&right);
            let values = row(out);
            let expected: Vec<f64> =
                (0..3).map(|class| ridge.logit_scale * (0..6).map(|i| values[i] * solved[(i, class)]).sum::<f64>()).collect();
            assert_near(ridge.left_out.row(out), expected, 2e-5);
        }
    }

    #[test]
    fn the_strength_with_the_least_error_left_out_is_taken() {
        let small = Small::new();
        let (_, ridge) = fit(&small, None);
        assert_eq!(ridge.path.len(), path_of_l2().len());
        let best = ridge.path.iter().min_by(|a, b| a.leave_one_out_error.total_cmp(&b.leave_one_out_error)).unwrap();
        let params = HeadParams { solver: Solver::Ridge, l2: Some(best.l2), ..HeadParams::default() };
        let again = small.fit(params).unwrap();
        assert!((again.ridge.unwrap().path[0].leave_one_out_error - best.leave_one_out_error).abs() < 1e-6);
        let (head, _) = fit(&small, None);
        assert_near(again.head.kernel(), head.kernel().iter().map(|&weight| f64::from(weight)), 1e-6);
    }

    #[test]
    fn the_scale_makes_the_probabilities_honest() {
        // Without a hold-out the rows left out decide: no other temperature may give them a lower loss.
        let mut small = correlated();
        small.train.append(&mut small.holdout);
        let (_, ridge) = fit(&small, Some(0.1));
        let labels: Vec<_> = small.train.iter().map(|&row| small.labels[row]).collect();
        let loss = |temperature: f32| {
            let logits = ridge.left_out.mapv(|logit| logit / temperature);
            crate::evaluate::score(logits.view(), &labels, &small.classes).unwrap().unwrap().loss
        };
        assert!(loss(1.0) <= loss(1.05) && loss(1.0) <= loss(0.95), "{} {} {}", loss(0.95), loss(1.0), loss(1.05));
    }

    #[test]
    fn more_classes_and_features_than_rows_are_no_hindrance() {
        let small = Small {
            x: Array2::from_shape_fn((6, 40), |(row, feature)| ((row * 7 + feature * feature) % 13) as f32),
            labels: (0..6).map(Some).collect(),
            classes: (0..9).map(|class| class.to_string()).collect(),
            train: (0..6).collect(),
            holdout: Vec::new(),
        };
        let fitted = small.fit(HeadParams { solver: Solver::Ridge, l2: Some(1e-3), ..HeadParams::default() }).unwrap();
        assert!((fitted.history[0].accuracy - 1.0).abs() < 1e-12, "{:?}", fitted.history);
    }
}
