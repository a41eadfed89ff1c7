//! What least squares needs to know of the rows: counts, sums and the Gram matrix.
//!
//! ```text
//! rows [K]      rows of each class
//! sums [K, D]   of x - pivot over the rows of each class; X'Y of one-hot targets, and all the sums there are
//! gram [D, D]   of (x - pivot)(x - pivot)' over all rows: the lower triangle, in square tiles
//! ```
//!
//! Sums are in f64. So are the products of up to [`WIDE`] features, where a product of two f32 is exact and only the sums round:
//! over N rows an entry is off by at most `N * 2^-53` of the sum of its terms' magnitudes, 1e-10 for a million rows. Products of
//! more features are in f32, at twice the speed: those of some thousand rows are summed there before they are added in f64, and
//! an entry is off by about 1e-6 of the deviations it is of. The pivot, the mean of the first rows that were seen, keeps the
//! magnitudes near the variance, so that a mean that is large beside the deviation does not eat the digits.
//!
//! Statistics are additive: rows come in any number of passes, can be taken out again, and two sets can be merged. Each tile is
//! summed by one task in the order of the rows, so the bits do not depend on the number of threads.

mod file;

pub use file::Origin;

use faer::{Mat, MatRef};
use ndarray::{Array2, ArrayView2, Axis};
use rayon::prelude::*;

use super::tiles::{Real, TILE, Tiles};
use super::{HeadError, Standardization};

/// Features above which products are in f32.
pub(super) const WIDE: usize = 2048;

/// Bytes of the rows that are taken at once.
const BLOCK_BYTES: usize = 128 << 20;

/// Rows whose mean is the pivot.
const PIVOT_ROWS: usize = 1024;

/// Whether rows come or go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// They come.
    Add,
    /// They go.
    Remove,
}

/// Sufficient statistics of one-vs-rest least squares over some rows.
#[derive(Clone, Debug)]
pub struct Statistics {
    pub(super) pivot: Vec<f32>,
    pub(super) rows: Vec<u64>,
    pub(super) sums: Array2<f64>,
    pub(super) gram: Tiles<f64>,
}

impl Statistics {
    /// Of no rows.
    pub(super) fn none(pivot: Vec<f32>, classes: usize) -> Self {
        let features = pivot.len();
        Self { pivot, rows: vec![0; classes], sums: Array2::zeros((classes, features)), gram: Tiles::zeros(features) }
    }

    /// Of the listed rows of a matrix; `labels` has one entry for each row of the matrix.
    pub(super) fn of(x: ArrayView2<'_, f32>, labels: &[usize], rows: &[usize], classes: usize) -> Self {
        let pivot = Standardization::estimate(x, &rows[..rows.len().min(PIVOT_ROWS)]).mean;
        let mut statistics = Self::none(pivot, classes);
        statistics.change(Change::Add, x, labels, rows);
        statistics
    }

    /// Refuses rows of one class, or none.
    pub(super) fn check_classes(&self, classes: &[String]) -> Result<(), HeadError> {
        if self.rows.iter().filter(|&&rows| rows > 0).count() > 1 {
            return Ok(());
        }
        let class = self.rows.iter().position(|&rows| rows > 0).and_then(|class| classes.get(class));
        let class = class.map_or_else(|| "none".to_owned(), Clone::clone);
        Err(HeadError::OneClass { class, rows: usize::try_from(self.count()).unwrap_or(usize::MAX) })
    }

    /// Adds rows `[N, D]` with their class indices `[N]`, or takes them out.
    ///
    /// # Errors
    /// When a size is another one, or a feature is not finite.
    pub fn update(&mut self, change: Change, x: ArrayView2<'_, f32>, labels: &[usize]) -> Result<(), HeadError> {
        if x.ncols() != self.features() {
            return Err(HeadError::Size { what: "features of a row", found: x.ncols(), expected: self.features() });
        }
        if labels.len() != x.nrows() {
            return Err(HeadError::Size { what: "labels", found: labels.len(), expected: x.nrows() });
        }
        if let Some((row, &label)) = labels.iter().enumerate().find(|(_, label)| **label >= self.classes()) {
            return Err(HeadError::Label { row, label: i32::try_from(label).ok(), classes: self.classes() });
        }
        if let Some(((row, feature), &value)) = x.indexed_iter().find(|(_, value)| !value.is_finite()) {
            return Err(HeadError::NotFinite { row, feature, value });
        }
        self.change(change, x, labels, &(0..x.nrows()).collect::<Vec<_>>());
        Ok(())
    }

    /// Adds rows or takes them out.
    pub(super) fn change(&mut self, change: Change, x: ArrayView2<'_, f32>, labels: &[usize], rows: &[usize]) {
        let sign = if change == Change::Add { 1.0 } else { -1.0 };
        if self.features() > WIDE {
            self.multiply::<f32>(sign, x, labels, rows);
        } else {
            self.multiply::<f64>(sign, x, labels, rows);
        }
        for &row in rows {
            let count = &mut self.rows[labels[row]];
            *count = if change == Change::Add { *count + 1 } else { count.saturating_sub(1) };
        }
    }

    fn multiply<P: Real>(&mut self, sign: f64, x: ArrayView2<'_, f32>, labels: &[usize], rows: &[usize]) {
        let features = self.features();
        let most = (BLOCK_BYTES / size_of::<P>() / features.max(1)).clamp(64, 4096);
        let mut block = vec![P::of(0.0); most.min(rows.len()) * features];
        for rows in rows.chunks(most) {
            let values = &mut block[..rows.len() * features];
            values.par_chunks_exact_mut(features).zip(rows).for_each(|(out, &row)| {
                let row = x.row(row);
                for ((out, &value), &pivot) in out.iter_mut().zip(row).zip(&self.pivot) {
                    *out = P::of(f64::from(value) - f64::from(pivot));
                }
            });
            let values = &*values;
            self.sums.axis_chunks_iter_mut(Axis(1), TILE).into_par_iter().enumerate().for_each(|(part, mut sums)| {
                let place = part * TILE..part * TILE + sums.ncols();
                for (row, values) in rows.iter().zip(values.chunks_exact(features)) {
                    let sums = sums.row_mut(labels[*row]).into_iter();
                    sums.zip(&values[place.clone()]).for_each(|(sum, &value)| *sum += sign * value.wide());
                }
            });
            // Row-major rows are the columns of a column-major matrix.
            self.gram.add(MatRef::from_column_major_slice(values, features, rows.len()), sign);
        }
    }

    /// Of rows `[N, D]` with their class indices `[N]`.
    ///
    /// # Errors
    /// When a size is another one, or a feature is not finite.
    pub fn new(x: ArrayView2<'_, f32>, labels: &[usize], classes: usize) -> Result<Self, HeadError> {
        let first: Vec<usize> = (0..x.nrows().min(PIVOT_ROWS)).collect();
        let mut statistics = Self::none(Standardization::estimate(x, &first).mean, classes);
        statistics.update(Change::Add, x, labels)?;
        Ok(statistics)
    }

    /// Of some of the features, in this order.
    pub(super) fn select(&self, features: &[usize]) -> Self {
        let gram = Tiles::from_fn(features.len(), |i, j| {
            let (i, j) = (features[i], features[j]);
            self.gram.at(i.max(j), i.min(j))
        });
        let pivot = features.iter().map(|&feature| self.pivot[feature]).collect();
        Self { pivot, rows: self.rows.clone(), sums: self.sums.select(Axis(1), features), gram }
    }

    /// Rows of each class `[K]`.
    pub fn rows(&self) -> &[u64] {
        &self.rows
    }

    /// Brings the classes into another order; a class that was not there before has no rows.
    ///
    /// # Errors
    /// The first class that has rows and is not among the new ones.
    pub fn reorder(&mut self, old: &[String], new: &[String]) -> Result<(), String> {
        if let Some((name, _)) = old.iter().zip(&self.rows).find(|(name, rows)| **rows > 0 && !new.contains(name)) {
            return Err(name.clone());
        }
        let place = |name: &String| old.iter().position(|old| old == name);
        let mut sums = Array2::zeros((new.len(), self.features()));
        for (class, name) in new.iter().enumerate() {
            if let Some(old) = place(name) {
                sums.row_mut(class).assign(&self.sums.row(old));
            }
        }
        self.rows = new.iter().map(|name| place(name).map_or(0, |old| self.rows[old])).collect();
        self.sums = sums;
        Ok(())
    }

    /// Width D of a row.
    pub fn features(&self) -> usize {
        self.pivot.len()
    }

    /// Classes K.
    pub fn classes(&self) -> usize {
        self.rows.len()
    }

    /// Rows in all.
    pub fn count(&self) -> u64 {
        self.rows.iter().sum()
    }

    /// Mean of each feature, from the pivot.
    pub(super) fn offset(&self) -> Vec<f64> {
        let rows = self.count().max(1) as f64;
        self.sums.sum_axis(Axis(0)).iter().map(|sum| sum / rows).collect()
    }

    /// Mean and standard deviation of each feature, as [`Standardization`] has them of the same rows.
    pub fn standardization(&self) -> Standardization {
        let rows = self.count().max(1) as f64;
        let offset = self.offset();
        let mean = offset.iter().zip(&self.pivot).map(|(offset, &pivot)| (offset + f64::from(pivot)) as f32).collect();
        let rounding = if self.features() > WIDE { 1e-5 } else { 1e-12 };
        let deviation = |feature: usize| {
            let square = self.gram.at(feature, feature) / rows;
            let variance = square - offset[feature].powi(2);
            // What is left of a constant feature is rounding.
            let is_real = variance > rounding * square;
            let std = variance.max(0.0).sqrt() as f32;
            if is_real && std.is_normal() { std } else { 1.0 }
        };
        Standardization { mean, std: (0..self.features()).map(deviation).collect() }
    }

    /// Covariance `[D, D]` (divisor N) of the features, each divided by its scale, with `l2` added to its diagonal.
    pub(super) fn covariance<T: Real>(&self, scale: &[f32], l2: f64) -> Tiles<T> {
        let rows = self.count().max(1) as f64;
        let offset = self.offset();
        Tiles::from_fn(self.features(), |i, j| {
            let product = self.gram.at(i.max(j), i.min(j)) / rows - offset[i] * offset[j];
            let covariance = product / (f64::from(scale[i]) * f64::from(scale[j]));
            T::of(covariance + if i == j { l2 } else { 0.0 })
        })
    }

    /// The covariance's product with `[D, B]`.
    pub(super) fn covariance_times(&self, scale: &[f32], right: &Mat<f64>) -> Mat<f64> {
        let rows = self.count().max(1) as f64;
        let offset = self.offset();
        let scaled = Mat::from_fn(right.nrows(), right.ncols(), |row, column| right[(row, column)] / f64::from(scale[row]));
        let shift: Vec<f64> = (scaled.col_iter()).map(|column| column.iter().zip(&offset).map(|(a, b)| a * b).sum()).collect();
        let mut product = self.gram.multiply(scaled.as_ref());
        for (column, shift) in product.col_iter_mut().zip(shift) {
            for ((value, offset), &scale) in column.iter_mut().zip(&offset).zip(scale) {
                *value = (*value / rows - offset * shift) / f64::from(scale);
            }
        }
        product
    }

    /// Covariance `[D, K]` (divisor N) of the features, each divided by its scale, with the one-hot targets.
    pub(super) fn cross(&self, scale: &[f32]) -> Mat<f64> {
        let rows = self.count().max(1) as f64;
        let offset = self.offset();
        Mat::from_fn(self.features(), self.classes(), |feature, class| {
            let sum = self.sums[(class, feature)] - self.rows[class] as f64 * offset[feature];
            sum / rows / f64::from(scale[feature])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feature 0 counts, 1 is constant, 2 deviates by 0.5 around a million, the rest is anything; more than a tile.
    fn matrix(rows: usize, features: usize) -> Array2<f32> {
        Array2::from_shape_fn((rows, features), |(row, feature)| match feature {
            0 => row as f32,
            1 => 7.25,
            2 => 1e6 + (row % 2) as f32,
            _ => ((row * 31 + feature * 17) % 101) as f32 / 13.0 - 3.0,
        })
    }

    fn labels(rows: usize) -> Vec<usize> {
        (0..rows).map(|row| row * row % 3).collect()
    }

    #[test]
    fn the_covariance_is_that_of_two_passes_in_f64() {
        let (x, labels) = (matrix(3000, 300), labels(3000));
        let rows: Vec<usize> = (0..3000).filter(|row| row % 7 > 0).collect();
        let found = Statistics::of(x.view(), &labels, &rows, 3);
        assert_eq!(found.count(), rows.len() as u64);
        let scale = vec![1.0; 300];
        let (covariance, cross) = (found.covariance::<f64>(&scale, 0.0), found.cross(&scale));
        let n = rows.len() as f64;
        let exact = x.select(Axis(0), &rows).mapv(f64::from);
        let mean = exact.mean_axis(Axis(0)).unwrap();
        let centered = &exact - &mean;
        let expected = centered.t().dot(&centered) / n;
        for i in 0..300 {
            for j in 0..=i {
                let size = (expected[(i, i)] * expected[(j, j)]).sqrt().max(1.0);
                assert!((covariance.at(i, j) - expected[(i, j)]).abs() < 1e-11 * size, "{i} {j}");
            }
            for class in 0..3 {
                let of_class = rows.iter().zip(centered.column(i)).filter(|(row, _)| labels[**row] == class);
                let expected: f64 = of_class.map(|(_, value)| value).sum::<f64>() / n;
                assert!((cross[(i, class)] - expected).abs() < 1e-10 * expected.abs().max(1.0), "{i} {class}");
            }
        }
        let (found, expected) = (found.standardization(), Standardization::estimate(x.view(), &rows));
        assert_eq!(found.mean, expected.mean);
        for (found, expected) in found.std.iter().zip(expected.std) {
            assert!((found / expected - 1.0).abs() < 1e-6, "{found} {expected}");
        }
    }

    #[test]
    fn rows_come_and_go_and_threads_change_nothing() {
        let (x, labels) = (matrix(700, 260), labels(700));
        let all: Vec<usize> = (0..700).collect();
        let of = |threads, rows: &[usize]| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| Statistics::of(x.view(), &labels, rows, 3))
        };
        let whole = of(1, &all);
        for threads in [2, 5] {
            let again = of(threads, &all);
            assert_eq!((&again.sums, &again.rows), (&whole.sums, &whole.rows));
            assert!(again.gram == whole.gram);
        }
        // The first 500 rows, then the others come, then the first 500 go: what is left is that of the last 200.
        let mut changed = of(2, &all[..500]);
        changed.change(Change::Add, x.view(), &labels, &all[500..]);
        changed.change(Change::Remove, x.view(), &labels, &all[..500]);
        let expected = of(1, &all[500..]);
        assert_eq!(changed.rows, expected.rows);
        let scale = vec![1.0; 260];
        let (found, expected) = (changed.covariance::<f64>(&scale, 0.0), expected.covariance::<f64>(&scale, 0.0));
        for i in 0..260 {
            for j in 0..=i {
                let size = (expected.at(i, i) * expected.at(j, j)).sqrt().max(1.0);
                assert!((found.at(i, j) - expected.at(i, j)).abs() < 1e-9 * size, "{i} {j}");
            }
        }
    }

    #[test]
    fn wide_features_lose_no_more_than_f32_has() {
        let (x, labels) = (matrix(2500, WIDE + 300), labels(2500));
        let rows: Vec<usize> = (0..2500).collect();
        let found = Statistics::of(x.view(), &labels, &rows, 3);
        let mut exact = Statistics::none(found.pivot.clone(), 3);
        exact.multiply::<f64>(1.0, x.view(), &labels, &rows);
        for i in (0..WIDE + 300).step_by(7) {
            for j in (0..=i).step_by(5) {
                let size = (exact.gram.at(i, i) * exact.gram.at(j, j)).sqrt();
                assert!(
                    (found.gram.at(i, j) - exact.gram.at(i, j)).abs() <= 3e-6 * size,
                    "{i} {j}: {} {}",
                    found.gram.at(i, j),
                    exact.gram.at(i, j)
                );
            }
        }
        let (found, expected) = (found.standardization(), Standardization::estimate(x.view(), &rows));
        for (feature, (found, expected)) in found.std.iter().zip(expected.std).enumerate() {
            assert!((found / expected - 1.0).abs() < 1e-5, "{feature}: {found} {expected}");
        }
        let right = Mat::from_fn(WIDE + 300, 2, |row, column| ((row + column) % 5) as f64 - 2.0);
        let scale: Vec<f32> = (0..WIDE + 300).map(|feature| 1.0 + (feature % 3) as f32).collect();
        let (product, covariance) = (exact.covariance_times(&scale, &right), exact.covariance::<f64>(&scale, 0.0));
        let expected = covariance.multiply(right.as_ref());
        // Nothing is counted in, so that the mean is that of one row.
        assert!((&product - &expected).norm_max() < 1e-9 * expected.norm_max());
    }
}
