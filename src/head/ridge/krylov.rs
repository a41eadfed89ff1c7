//! Many strengths of L2 from one Cholesky factor: a shift-and-invert Krylov method.
//!
//! With `A = (C + base)⁻¹`, the answer for another strength is `x = A u` with `(1 + shift A) u = b`, `shift = l2 - base`. The
//! Krylov space of `A` and `b` (Lanczos, 1950) does not depend on the shift, so one space serves every strength; the condition
//! number of `1 + shift A` is at most `l2 / base` or its inverse, and the space stays small. Vectors are in f32, each right side
//! has a space of its own.

use faer::Mat;
use rayon::prelude::*;

use crate::head::tiles::Factor;

/// Residual of an answer, as a share of its right side.
const TOLERANCE: f64 = 1e-4;

/// Vectors of a space at most.
const MOST_STEPS: usize = 150;

/// Right sides that are worked on at once.
const COLUMNS: usize = 32;

/// Answers for a set of shifts.
pub(super) struct Krylov<'f> {
    /// Of `C + base`.
    pub(super) factor: &'f Factor<f32>,
    /// Each above `-base`.
    pub(super) shifts: &'f [f64],
}

/// The space of one right side.
#[derive(Default)]
struct Space {
    norm: f64,
    /// Diagonal of `V'AV`, and what stands beside it.
    diagonal: Vec<f64>,
    beside: Vec<f64>,
    /// `V`, one vector more than the diagonal is long.
    vectors: Vec<Vec<f32>>,
}

impl Krylov<'_> {
    /// `(C + base + shift)⁻¹ right`, `[D, B]`, for each shift.
    pub(super) fn solve(&self, right: &Mat<f32>) -> Vec<Mat<f64>> {
        let mut solutions = vec![Mat::zeros(right.nrows(), right.ncols()); self.shifts.len()];
        for first in (0..right.ncols()).step_by(COLUMNS) {
            let columns = first..(first + COLUMNS).min(right.ncols());
            let spaces = self.spaces(columns.clone().map(|column| right.col(column).iter().copied().collect()).collect());
            let found: Vec<Vec<Vec<f64>>> =
                spaces.par_iter().map(|space| self.shifts.iter().map(|&shift| space.solution(shift)).collect()).collect();
            for (column, found) in columns.zip(found) {
                for (solution, values) in solutions.iter_mut().zip(found) {
                    solution.col_mut(column).iter_mut().zip(values).for_each(|(to, value)| *to = value);
                }
            }
        }
        solutions
    }

    /// Estimates the trace of `(C + base + shift)⁻¹` for each shift by random vectors of signs.
    pub(super) fn trace(&self, side: usize, probes: usize) -> Vec<f64> {
        let sign = |probe: usize, row: usize| {
            // The finalizer of SplitMix64: signs that depend on nothing else.
            let mut bits = ((probe * side + row) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            if (bits ^ (bits >> 31)) & 1 == 0 { 1.0 } else { -1.0 }
        };
        let spaces = self.spaces((0..probes).map(|probe| (0..side).map(|row| sign(probe, row)).collect()).collect());
        let mean = |shift: f64| spaces.iter().map(|space| space.norm * space.along_right(shift)).sum::<f64>() / probes as f64;
        self.shifts.iter().map(|&shift| mean(shift)).collect()
    }

    /// Grows the spaces of some right sides until every answer is near.
    fn spaces(&self, rights: Vec<Vec<f32>>) -> Vec<Space> {
        let mut spaces: Vec<Space> = rights.into_iter().map(Space::of).collect();
        let side = spaces.first().map_or(0, |space| space.vectors[0].len());
        for _ in 0..MOST_STEPS.min(side) {
            let last = |row: usize, column: usize| spaces[column].vectors.last().map_or(0.0, |vector| vector[row]);
            let next = self.factor.solve(&Mat::from_fn(side, spaces.len(), last));
            let next: Vec<Vec<f32>> = (0..spaces.len()).map(|column| next.col(column).iter().copied().collect()).collect();
            spaces.par_iter_mut().zip(next).for_each(|(space, next)| space.grow(next));
            if spaces.par_iter().all(|space| self.shifts.iter().all(|&shift| space.residual(shift) <= TOLERANCE)) {
                break;
            }
        }
        spaces
    }
}

impl Space {
    fn of(mut right: Vec<f32>) -> Self {
        let norm = dot(&right, &right).sqrt();
        let scale = if norm > 0.0 { (1.0 / norm) as f32 } else { 0.0 };
        right.iter_mut().for_each(|value| *value *= scale);
        Self { norm, vectors: vec![right], ..Self::default() }
    }

    /// Adds what `A` makes of the last vector.
    fn grow(&mut self, mut next: Vec<f32>) {
        let Some(last) = self.vectors.last() else { return };
        let along = dot(&next, last);
        next.iter_mut().zip(last).for_each(|(next, last)| *next -= along as f32 * last);
        if let [.., before, _] = self.vectors.as_slice() {
            let beside = self.beside.last().copied().unwrap_or_default() as f32;
            next.iter_mut().zip(before).for_each(|(next, before)| *next -= beside * before);
        }
        let size = dot(&next, &next).sqrt();
        // Nothing is left: the space is whole.
        let scale = if size > 1e-7 * along.abs() { (1.0 / size) as f32 } else { 0.0 };
        next.iter_mut().for_each(|value| *value *= scale);
        self.diagonal.push(along);
        self.beside.push(if scale > 0.0 { size } else { 0.0 });
        self.vectors.push(next);
    }

    /// `(1 + shift T)⁻¹ |b| e₁`, by elimination: the matrix is tridiagonal and positive definite.
    fn coordinates(&self, shift: f64) -> Vec<f64> {
        let count = self.diagonal.len();
        let (mut pivots, mut values) = (vec![1.0; count], vec![0.0; count]);
        for row in 0..count {
            pivots[row] = 1.0 + shift * self.diagonal[row];
            values[row] = if row == 0 { self.norm } else { 0.0 };
            if row > 0 {
                let factor = shift * self.beside[row - 1] / pivots[row - 1];
                pivots[row] -= factor * shift * self.beside[row - 1];
                values[row] -= factor * values[row - 1];
            }
        }
        for row in (0..count).rev() {
            let after = if row + 1 < count { shift * self.beside[row] * values[row + 1] } else { 0.0 };
            values[row] = (values[row] - after) / pivots[row];
        }
        values
    }

    /// Size of what is left of the equations, as a share of their right side.
    fn residual(&self, shift: f64) -> f64 {
        let last = self.coordinates(shift).last().copied().unwrap_or(self.norm);
        let beside = self.beside.last().copied().unwrap_or(1.0);
        if self.norm > 0.0 { (shift * beside * last / self.norm).abs() } else { 0.0 }
    }

    /// `A u` in the basis: `T y`, and what reaches the vector after the last.
    fn applied(&self, shift: f64) -> Vec<f64> {
        let y = self.coordinates(shift);
        let mut found = vec![0.0; y.len() + 1];
        for (row, &value) in y.iter().enumerate() {
            found[row] += self.diagonal[row] * value;
            found[row + 1] += self.beside[row] * value;
            if row > 0 {
                found[row - 1] += self.beside[row - 1] * value;
            }
        }
        found
    }

    /// The answer's part along its right side.
    fn along_right(&self, shift: f64) -> f64 {
        self.applied(shift).first().copied().unwrap_or_default()
    }

    fn solution(&self, shift: f64) -> Vec<f64> {
        let mut solution = vec![0.0; self.vectors.first().map_or(0, Vec::len)];
        for (factor, vector) in self.applied(shift).into_iter().zip(&self.vectors) {
            solution.iter_mut().zip(vector).for_each(|(to, &value)| *to += factor * f64::from(value));
        }
        solution
    }
}

fn dot(left: &[f32], right: &[f32]) -> f64 {
    left.iter().zip(right).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head::tiles::Tiles;

    #[test]
    fn one_factor_answers_for_every_shift() {
        let side = 300;
        let root = Mat::from_fn(side, 200, |row, column| (((row * 31 + column * column * 17) % 101) as f64 - 50.0) / 400.0);
        let matrix = &root * root.transpose();
        let with = |l2: f64| Tiles::from_fn(side, |row, column| matrix[(row, column)] + if row == column { l2 } else { 0.0 });
        let single: Tiles<f32> = Tiles::from_fn(side, |row, column| with(0.1).at(row.max(column), row.min(column)) as f32);
        let factor = single.factor().unwrap();
        let l2s = [1e-3, 1e-2, 0.1, 1.0, 10.0];
        let shifts: Vec<f64> = l2s.iter().map(|l2| l2 - 0.1).collect();
        let krylov = Krylov { factor: &factor, shifts: &shifts };
        let right = Mat::from_fn(side, 40, |row, column| ((row * 7 + column * 3) % 13) as f32 - 6.0);
        let exact = Mat::from_fn(side, 40, |row, column| f64::from(right[(row, column)]));
        let (found, traces) = (krylov.solve(&right), krylov.trace(side, 64));
        for ((l2, found), trace) in l2s.into_iter().zip(found).zip(traces) {
            let residual = with(l2).multiply(found.as_ref()) - &exact;
            assert!(residual.norm_l2() < 2e-3 * exact.norm_l2(), "{l2}: {}", residual.norm_l2() / exact.norm_l2());
            let inverse = with(l2).factor().unwrap().solve(&Mat::identity(side, side));
            let expected: f64 = (0..side).map(|row| inverse[(row, row)]).sum();
            assert!((trace / expected - 1.0).abs() < 0.05, "{l2}: {trace} {expected}");
        }
    }
}
