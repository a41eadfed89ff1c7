//! Least squares from sufficient statistics: the kernel of any strength of L2, and the error of rows left out.

use std::borrow::Cow;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par, Side};
use ndarray::{Array2, Axis};
use rayon::prelude::*;

use super::RidgePoint;
use super::krylov::Krylov;
use crate::evaluate::argmax;
use crate::head::dense::BLOCK_ROWS;
use crate::head::fit::Weights;
use crate::head::part::{Part, Parts};
use crate::head::statistics::{Statistics, WIDE};
use crate::head::tiles::{Factor, Tiles};
use crate::head::{HeadError, Standardization};

/// The least L2: the features of a backbone repeat each other, and a little more than rounding keeps the factor positive.
const LEAST_L2: f64 = 1e-9;

/// The least L2 that a factor in f32 is made with: its rounding is about that share of the largest eigenvalue.
const LEAST_L2_F32: f64 = 1e-3;

/// Residual of the equations, as a share of their right side, at which an answer of wide features is taken.
const TOLERANCE: f64 = 1e-9;

/// Rounds after which it is taken as it is, if it is that near; then the kernel in f32 would hardly change.
const MOST_ROUNDS: usize = 200;
const ACCEPTABLE: f64 = 1e-5;

/// Mean leverage above which an answer without a row cannot be told from rounding, and of one that is estimated from noise.
const MOST_LEVERAGE: f64 = 0.99;
const MOST_ESTIMATED: f64 = 0.7;

/// The last digit of sums over rows in f64: their rounding adds up.
const SUMMED_DIGIT: f64 = 1e-12;

/// Residual of the equations, as a share of their right side, above which an answer in f32 is that of another strength.
const MOST_LEFT: f64 = 1e-2;

/// Random vectors that estimate a trace (Hutchinson, 1990), and more where it decides.
const PROBES: usize = 8;
const MORE_PROBES: usize = 32;

/// Answers and leverages of the training rows along a path.
pub(in crate::head) struct LeftOut {
    pub(super) path: Vec<RidgePoint>,
    /// `[train, path]`.
    leverages: Vec<f32>,
}

/// Least squares on standardized features.
pub(in crate::head) struct LeastSquares<'s> {
    statistics: Cow<'s, Statistics>,
    standardization: Standardization,
    cross: Mat<f64>,
    /// Where the features are some of more.
    among: Option<Among<'s>>,
}

/// More features, of which the kernel has those that are kept; its other rows are zero.
struct Among<'s> {
    kept: &'s [usize],
    standardization: Standardization,
}

impl<'s> LeastSquares<'s> {
    /// On all features, or on those that are kept.
    pub(super) fn new(statistics: &'s Statistics, kept: Option<&'s [usize]>) -> Self {
        let among = kept.map(|kept| Among { kept, standardization: statistics.standardization() });
        let statistics = kept.map_or(Cow::Borrowed(statistics), |kept| Cow::Owned(statistics.select(kept)));
        let standardization = statistics.standardization();
        let cross = statistics.cross(&standardization.std);
        Self { statistics, standardization, cross, among }
    }

    /// Of all features.
    pub(super) fn standardization(&self) -> &Standardization {
        self.among.as_ref().map_or(&self.standardization, |among| &among.standardization)
    }

    /// Whether the features are too many for a leave-one-out error of every row; and the choice of some is made for an error of
    /// the rows held out.
    pub(super) fn estimates(&self) -> bool {
        self.statistics.features() > WIDE || self.among.is_some()
    }

    /// Kernel and bias for one strength, as least squares gives them: answers near 1 for the label, near 0 for the others.
    pub(super) fn weights(&self, l2: f64) -> Result<Weights, HeadError> {
        let l2 = l2.max(LEAST_L2);
        let kernel = if self.statistics.features() > WIDE {
            let (_, factor) = self.factor_in_f32(l2)?;
            self.refined(&factor, l2)?
        } else {
            let matrix: Tiles<f64> = self.statistics.covariance(&self.standardization.std, l2);
            matrix.factor().ok_or(HeadError::Ridge)?.solve(&self.cross)
        };
        Ok(self.finish(&kernel))
    }

    /// A factor of the covariance with this L2, or a larger one with which there is one.
    fn factor_in_f32(&self, l2: f64) -> Result<(f64, Factor<f32>), HeadError> {
        let mut base = l2.max(LEAST_L2_F32);
        for _ in 0..6 {
            let matrix: Tiles<f32> = self.statistics.covariance(&self.standardization.std, base);
            if let Some(factor) = matrix.factor() {
                return Ok((base, factor));
            }
            base *= 10.0;
        }
        Err(HeadError::Ridge)
    }

    /// Solves in f64 by conjugate gradients, each column on its own, preconditioned by a factor in f32: a few rounds where it is
    /// of the same L2.
    fn refined(&self, factor: &Factor<f32>, l2: f64) -> Result<Mat<f64>, HeadError> {
        let right = &self.cross;
        let (features, columns) = (right.nrows(), right.ncols());
        let precondition = |residual: &Mat<f64>| {
            let solved = factor.solve(&Mat::from_fn(features, columns, |row, column| residual[(row, column)] as f32));
            Mat::from_fn(features, columns, |row, column| f64::from(solved[(row, column)]))
        };
        let sizes: Vec<f64> = (0..columns).map(|column| dot(right, right, column).sqrt()).collect();
        let mut kernel = Mat::<f64>::zeros(features, columns);
        let mut residual = right.clone();
        let mut direction = precondition(&residual);
        let mut energy: Vec<f64> = (0..columns).map(|column| dot(&residual, &direction, column)).collect();
        let error = |residual: &Mat<f64>| {
            let of = |column: usize| dot(residual, residual, column).sqrt() / sizes[column].max(f64::MIN_POSITIVE);
            (0..columns).map(of).fold(0.0, f64::max)
        };
        for _ in 0..MOST_ROUNDS {
            if error(&residual) <= TOLERANCE {
                return Ok(kernel);
            }
            let mut product = self.statistics.covariance_times(&self.standardization.std, &direction);
            product += faer::Scale(l2) * &direction;
            for (column, energy) in energy.iter().enumerate() {
                let curvature = dot(&direction, &product, column);
                let step = if curvature > 0.0 { energy / curvature } else { 0.0 };
                add(&mut kernel, step, &direction, column);
                add(&mut residual, -step, &product, column);
            }
            let solved = precondition(&residual);
            for (column, energy) in energy.iter_mut().enumerate() {
                let next = dot(&residual, &solved, column);
                let keep = if *energy > 0.0 { next / *energy } else { 0.0 };
                *energy = next;
                let (to, from) = (direction.col_mut(column), solved.col(column));
                to.iter_mut().zip(from.iter()).for_each(|(to, from)| *to = from + keep * *to);
            }
        }
        if error(&residual) <= ACCEPTABLE { Ok(kernel) } else { Err(HeadError::Ridge) }
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
        let bias = bias.collect();
        let Some(Among { kept, standardization }) = &self.among else { return Weights { bias, kernel } };
        let mut whole = Array2::zeros((standardization.mean.len(), classes));
        for (row, &feature) in kernel.rows().into_iter().zip(*kept) {
            whole.row_mut(feature).assign(&row);
        }
        Weights { bias, kernel: whole }
    }

    /// What the objective gains when a feature is left out, the others adapting, and is lost for good: exactly
    /// `|w|² / 2 (C + l2)⁻¹` on the diagonal (Hassibi & Stork, 1993).
    pub(super) fn cost_of_deletion(&self, l2: f64) -> Result<Vec<f64>, HeadError> {
        let (_, factor) = self.factor_in_f32(l2)?;
        let kernel = factor.solve(&self.cross_in_f32());
        let cost = |(row, inverse): (usize, f32)| {
            let weights = (0..kernel.ncols()).map(|class| f64::from(kernel[(row, class)]).powi(2)).sum::<f64>();
            weights / (2.0 * f64::from(inverse).max(f64::MIN_POSITIVE))
        };
        Ok(factor.inverse_diagonal().into_iter().enumerate().map(cost).collect())
    }

    fn cross_in_f32(&self) -> Mat<f32> {
        Mat::from_fn(self.cross.nrows(), self.cross.ncols(), |row, class| self.cross[(row, class)] as f32)
    }

    /// Kernels and biases for each strength from one Krylov space, good to about 1e-4.
    pub(super) fn path(&self, l2s: &[f64]) -> Result<Vec<Weights>, HeadError> {
        Ok(self.kernels(l2s, PROBES)?.0.iter().map(|kernel| self.finish(kernel)).collect())
    }

    /// The same kernels, and the mean leverage of a row in each fit.
    fn kernels(&self, l2s: &[f64], probes: usize) -> Result<(Vec<Mat<f64>>, Vec<f64>), HeadError> {
        let features = self.statistics.features();
        let middle = (l2s.iter().map(|l2| l2.max(LEAST_L2).ln()).sum::<f64>() / l2s.len() as f64).exp();
        let (base, factor) = self.factor_in_f32(middle)?;
        let shifts: Vec<f64> = l2s.iter().map(|l2| l2.max(LEAST_L2) - base).collect();
        let krylov = Krylov { factor: &factor, shifts: &shifts };
        let kernels = krylov.solve(&self.cross_in_f32());
        // tr(C (C + l2)⁻¹) = D - l2 tr((C + l2)⁻¹)
        let inverse = krylov.trace(features, probes);
        let rows = self.statistics.count().max(1) as f64;
        let leverage = |(&l2, inverse): (&f64, f64)| (features as f64 - l2.max(LEAST_L2) * inverse + 1.0) / rows;
        Ok((kernels, l2s.iter().zip(inverse).map(leverage).collect()))
    }

    /// The error of each strength: of rows left out by the mean leverage, and of the rows held out.
    pub(super) fn estimate(&self, parts: &dyn Parts, l2s: &[f64]) -> Result<Vec<RidgePoint>, HeadError> {
        let listed = parts.listed();
        let (kernels, leverages) = self.kernels(l2s, if listed.holdout.is_empty() { MORE_PROBES } else { PROBES })?;
        let layers: Vec<_> = kernels.iter().map(|kernel| self.finish(kernel).pack()).collect();
        let mut sums = vec![(0.0_f64, 0_usize); l2s.len()];
        parts.each_part(listed.holdout, None, BLOCK_ROWS, &mut |Part { features, labels, order }| {
            let blocks = order.par_chunks(BLOCK_ROWS).map(|rows| {
                let mut answers = vec![0.0; rows.len() * listed.classes];
                let score = |layer: &crate::head::dense::Dense| {
                    layer.logits_into(&features, rows, &mut answers);
                    answers.chunks_exact(listed.classes).zip(rows).fold((0.0, 0), |(error, right), (answers, &row)| {
                        (error + squared_error(answers, labels[row]), right + usize::from(argmax(answers) == labels[row]))
                    })
                };
                layers.iter().map(score).collect::<Vec<_>>()
            });
            for block in blocks.collect::<Vec<_>>() {
                sums.iter_mut().zip(block).for_each(|(sum, (error, right))| *sum = (sum.0 + error, sum.1 + right));
            }
            Ok(())
        })?;
        let held = listed.holdout.len() as f64;
        let share = |value: f64| (held > 0.0).then_some(value / held);
        let (kernels, leverages): (Vec<_>, Vec<_>) = kernels
            .into_iter()
            .zip(leverages)
            .map(|(kernel, leverage)| ((leverage <= MOST_ESTIMATED).then_some(kernel), leverage))
            .unzip();
        let points = l2s.iter().zip(self.training_errors(l2s, &kernels)).zip(leverages).zip(sums);
        Ok(points
            .map(|(((&l2, trained), leverage), (error, right))| RidgePoint {
                l2,
                leave_one_out_error: trained.map(|trained| trained / (1.0 - leverage).powi(2)),
                leave_one_out_accuracy: None,
                holdout_error: share(error),
                holdout_accuracy: share(right as f64),
            })
            .collect())
    }

    /// Mean squared error over the training rows of each kernel `[D, K]` that is given, from the sums: for each class
    /// `p (1 - p) - 2 w'b + w'Cw`. That holds of any kernel; with the equations `Cw + l2 w = b` put in for `Cw` it would be off by
    /// `w'r`, `r` what a kernel leaves of them, and with little L2 that is more than the error itself and of either sign. None where
    /// the error is below the rounding of `w'Cw` (the last digit of the sums times `|w|²` and the trace of `C`, one a feature), and
    /// where `r` says that arithmetic in f32 did not get to the kernel of this strength.
    fn training_errors(&self, l2s: &[f64], kernels: &[Option<Mat<f64>>]) -> Vec<Option<f64>> {
        let (features, classes) = (self.statistics.features(), self.statistics.classes());
        let digit = if features > WIDE { f64::from(f32::EPSILON) } else { SUMMED_DIGIT };
        let count = self.statistics.count().max(1) as f64;
        // One pass over the sums for all of them.
        let given: Vec<(&Mat<f64>, f64)> =
            kernels.iter().zip(l2s).filter_map(|(kernel, &l2)| Some((kernel.as_ref()?, l2.max(LEAST_L2)))).collect();
        let side_by_side =
            Mat::from_fn(features, given.len() * classes, |row, column| given[column / classes].0[(row, column % classes)]);
        let products = self.statistics.covariance_times(&self.standardization.std, &side_by_side);
        let mut errors = given.iter().enumerate().map(|(place, &(kernel, l2))| {
            let of = |(class, &rows): (usize, &u64)| {
                let share = rows as f64 / count;
                let product = products.col(place * classes + class);
                let mut sums = [share * (1.0 - share), 0.0, 0.0, 0.0];
                for ((weight, cross), product) in kernel.col(class).iter().zip(self.cross.col(class).iter()).zip(product.iter()) {
                    let residual = cross - product - l2 * weight;
                    let terms = [weight * (product - 2.0 * cross), weight * weight, residual * residual, cross * cross];
                    sums.iter_mut().zip(terms).for_each(|(sum, term)| *sum += term);
                }
                sums
            };
            let classes = self.statistics.rows.iter().enumerate().map(of);
            let [error, weights, residual, right] =
                classes.fold([0.0; 4], |sums, of| std::array::from_fn(|at| sums[at] + of[at]));
            let rounding = weights * features as f64 * digit;
            (error > rounding && residual <= MOST_LEFT.powi(2) * right).then_some(error)
        });
        kernels.iter().map(|kernel| kernel.as_ref().and_then(|_| errors.next().flatten())).collect()
    }

    /// Turns the answers `[train, K]` of the fit to the rows it was fitted on into those of fits without each row, by the mean
    /// leverage.
    pub(super) fn leave_out_by_mean(
        &self,
        l2: f64,
        parts: &dyn Parts,
        mut answers: Array2<f32>,
    ) -> Result<Array2<f32>, HeadError> {
        let leverage = self.kernels(&[l2], MORE_PROBES)?.1[0].min(MOST_ESTIMATED) as f32;
        let listed = parts.listed();
        for (mut answers, &row) in answers.rows_mut().into_iter().zip(listed.train) {
            answers
                .iter_mut()
                .enumerate()
                .for_each(|(class, answer)| *answer = without(*answer, class == listed.labels[row], leverage));
        }
        Ok(answers)
    }

    /// The error of every row were it left out, for each strength; in f32, which is enough for an error.
    pub(super) fn leave_one_out(&self, parts: &dyn Parts, l2s: &[f64]) -> Result<LeftOut, HeadError> {
        let (features, classes) = (self.statistics.features(), self.statistics.classes());
        let tiles: Tiles<f64> = self.statistics.covariance(&self.standardization.std, 0.0);
        let covariance = Mat::from_fn(features, features, |row, column| tiles.at(row.max(column), row.min(column)));
        let decomposed = covariance.self_adjoint_eigen(Side::Lower).map_err(|_| HeadError::Ridge)?;
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
        let train = parts.listed().train;
        let rows = train.len() as f64;
        let inverses = Mat::<f32>::from_fn(features, l2s.len(), |row, step| (inverse(values[row], l2s[step]) / rows) as f32);

        let mut leverages = vec![0.0_f32; train.len() * l2s.len()];
        let mut rest = leverages.as_mut_slice();
        let mut sums = vec![(0.0_f64, 0_usize); l2s.len()];
        parts.each_part(train, None, BLOCK_ROWS, &mut |Part { features: source, labels, order }| {
            let (place, after) = std::mem::take(&mut rest).split_at_mut(order.len() * l2s.len());
            rest = after;
            let blocks = place.par_chunks_mut(BLOCK_ROWS * l2s.len()).zip(order.par_chunks(BLOCK_ROWS));
            let found = blocks.map(|(leverages, rows)| {
                let mut buffer = vec![0.0_f32; rows.len() * features];
                rows.iter().zip(buffer.chunks_exact_mut(features)).for_each(|(&row, to)| source.copy_row(row, to));
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
                        }
                        sum.0 += squared_error(&left_out, labels[row]);
                        sum.1 += usize::from(argmax(&left_out) == labels[row]);
                    }
                }
                sums
            });
            for block in found.collect::<Vec<_>>() {
                sums.iter_mut().zip(block).for_each(|(sum, (error, right))| *sum = (sum.0 + error, sum.1 + right));
            }
            Ok(())
        })?;
        let mean =
            |step: usize| leverages.iter().skip(step).step_by(l2s.len()).map(|&leverage| f64::from(leverage)).sum::<f64>() / rows;
        let path =
            l2s.iter().zip(sums).enumerate().map(|(step, (&l2, (error, right)))| (l2, mean(step) <= MOST_LEVERAGE, error, right));
        let path = path.map(|(l2, is_real, error, right)| RidgePoint {
            l2,
            leave_one_out_error: is_real.then_some(error / rows),
            leave_one_out_accuracy: is_real.then_some(right as f64 / rows),
            holdout_error: None,
            holdout_accuracy: None,
        });
        Ok(LeftOut { path: path.collect(), leverages })
    }
}

impl LeftOut {
    /// Turns the answers `[train, K]` of the fit to the rows it was fitted on into those of fits without each row.
    pub(super) fn leave_out(&self, step: usize, parts: &dyn Parts, mut answers: Array2<f32>) -> Result<Array2<f32>, HeadError> {
        let listed = parts.listed();
        let leverages = self.leverages.chunks_exact(self.path.len());
        for ((mut answers, &row), leverages) in answers.axis_iter_mut(Axis(0)).zip(listed.train).zip(leverages) {
            for (class, answer) in answers.iter_mut().enumerate() {
                *answer = without(*answer, class == listed.labels[row], leverages[step]);
            }
        }
        Ok(answers)
    }
}

/// The answer to a row by a fit without it.
fn without(answer: f32, is_label: bool, leverage: f32) -> f32 {
    let target = f32::from(u8::from(is_label));
    // A leverage of 1 is that of a row which alone decides: without it nothing is known of it.
    target - (target - answer) / (1.0 - leverage).max(1e-6)
}

/// Squared error of answers to a row, summed over the classes.
fn squared_error(answers: &[f32], label: usize) -> f64 {
    let error = |(class, &answer): (usize, &f32)| f64::from(answer - f32::from(u8::from(class == label))).powi(2);
    answers.iter().enumerate().map(error).sum()
}

fn product(left: MatRef<'_, f32>, right: MatRef<'_, f32>) -> Mat<f32> {
    let mut product = Mat::zeros(left.nrows(), right.ncols());
    matmul(&mut product, Accum::Replace, left, right, 1.0, Par::Seq);
    product
}

/// Scalar product of two columns.
fn dot(left: &Mat<f64>, right: &Mat<f64>, column: usize) -> f64 {
    left.col(column).iter().zip(right.col(column).iter()).map(|(a, b)| a * b).sum()
}

/// Adds a multiple of a column.
fn add(to: &mut Mat<f64>, factor: f64, from: &Mat<f64>, column: usize) {
    to.col_mut(column).iter_mut().zip(from.col(column).iter()).for_each(|(to, from)| *to += factor * from);
}
