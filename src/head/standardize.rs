//! Standardization: each feature shifted to mean 0 and scaled to standard deviation 1 over the training rows.

use ndarray::{ArrayView1, ArrayView2};
use rayon::prelude::*;

/// Rows whose moments one task takes.
pub(super) const BLOCK_ROWS: usize = 1024;

/// Mean and standard deviation of each feature, `[D]` each; a row is used as `(x - mean) / std`.
#[derive(Clone, Debug, PartialEq)]
pub struct Standardization {
    /// Mean over the training rows.
    pub mean: Vec<f32>,
    /// Standard deviation over the training rows (divisor N); 1 where a feature is constant.
    pub std: Vec<f32>,
}

impl Standardization {
    /// Takes the moments of the listed rows in f64. Block moments are merged in order, so the bits do not depend on the
    /// number of threads; two passes a block, so that a large mean does not swallow a small deviation.
    pub(super) fn estimate(x: ArrayView2<'_, f32>, rows: &[usize]) -> Self {
        Moments::none(x.ncols()).and(x, rows).standardization()
    }

    /// Standardizes in place values of a row, the first of which is that of feature `start`.
    #[inline(always)]
    pub(super) fn apply(&self, start: usize, row: &mut [f32]) {
        for ((value, mean), std) in row.iter_mut().zip(&self.mean[start..]).zip(&self.std[start..]) {
            *value = (*value - mean) / std;
        }
    }
}

/// Count, mean and sum of squared deviations.
pub(super) struct Moments {
    rows: f64,
    mean: Vec<f64>,
    squares: Vec<f64>,
}

impl Moments {
    pub(super) fn none(width: usize) -> Self {
        Self { rows: 0.0, mean: vec![0.0; width], squares: vec![0.0; width] }
    }

    /// Those of more rows; parts of whole blocks give the same bits as all in one.
    pub(super) fn and(self, x: ArrayView2<'_, f32>, rows: &[usize]) -> Self {
        let blocks: Vec<Self> = rows.par_chunks(BLOCK_ROWS).map(|rows| Self::of(x, rows)).collect();
        blocks.into_iter().fold(self, Self::merge)
    }

    pub(super) fn standardization(self) -> Standardization {
        let std = self.squares.iter().map(|squares| {
            let std = (squares / self.rows.max(1.0)).sqrt() as f32;
            if std.is_normal() { std } else { 1.0 }
        });
        Standardization { std: std.collect(), mean: self.mean.iter().map(|&mean| mean as f32).collect() }
    }

    fn of(x: ArrayView2<'_, f32>, rows: &[usize]) -> Self {
        let mut moments = Self::none(x.ncols());
        moments.rows = rows.len() as f64;
        let each = |act: &mut dyn FnMut(ArrayView1<'_, f32>)| rows.iter().for_each(|&row| act(x.row(row)));
        each(&mut |row| moments.mean.iter_mut().zip(row).for_each(|(mean, &value)| *mean += f64::from(value)));
        moments.mean.iter_mut().for_each(|mean| *mean /= moments.rows);
        each(&mut |row| {
            for ((squares, mean), &value) in moments.squares.iter_mut().zip(&moments.mean).zip(row) {
                *squares += (f64::from(value) - mean).powi(2);
            }
        });
        moments
    }

    /// Chan's rule for two disjoint sets.
    fn merge(mut self, other: Self) -> Self {
        let rows = self.rows + other.rows;
        for (((mean, squares), other_mean), other_squares) in
            self.mean.iter_mut().zip(&mut self.squares).zip(&other.mean).zip(&other.squares)
        {
            let difference = other_mean - *mean;
            *mean += difference * other.rows / rows;
            *squares += other_squares + difference.powi(2) * self.rows * other.rows / rows;
        }
        Self { rows, ..self }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, Axis};

    use super::*;

    #[test]
    fn moments_are_right_over_blocks_and_far_from_zero() {
        // Feature 0 counts, 1 is constant, 2 deviates by 0.5 around a million.
        let x = Array2::from_shape_fn((3001, 3), |(row, feature)| match feature {
            0 => row as f32,
            1 => 7.25,
            _ => 1e6 + (row % 2) as f32,
        });
        let rows: Vec<usize> = (0..3000).collect();
        let found = Standardization::estimate(x.view(), &rows);
        assert_eq!(found.mean, [1499.5, 7.25, 1_000_000.5]);
        // The deviation of 0..n is sqrt((n * n - 1) / 12).
        assert!((f64::from(found.std[0]) - (8_999_999.0_f64 / 12.0).sqrt()).abs() < 1e-4, "{}", found.std[0]);
        assert_eq!(found.std[1..], [1.0, 0.5]);
    }

    #[test]
    fn standardized_rows_have_mean_zero_and_deviation_one_at_any_scale() {
        for scale in [1e-12_f32, 1.0, 1e12] {
            let mut x = Array2::from_shape_fn((64, 5), |(row, feature)| scale * ((row * 7 + feature * 3) % 13) as f32);
            let rows: Vec<usize> = (0..64).collect();
            let standardization = Standardization::estimate(x.view(), &rows);
            x.axis_iter_mut(Axis(0)).for_each(|mut row| standardization.apply(0, row.as_slice_mut().unwrap()));
            for feature in x.axis_iter(Axis(1)) {
                assert!(feature.mean().unwrap().abs() < 1e-5, "scale {scale}");
                assert!((feature.std(0.0) - 1.0).abs() < 1e-5, "scale {scale}");
            }
        }
    }
}
