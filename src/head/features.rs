//! Rows of the feature matrix as the solvers read them: in place where that is possible, standardized into a buffer otherwise.

use ndarray::{Array2, ArrayView2, Axis};
use rayon::prelude::*;

use super::dropout::Dropout;
use super::simd::{Kernel, Simd, Vector};
use super::standardize::Standardization;

/// A feature matrix `[N, D]` and what is done to each row before it is used.
#[derive(Clone, Copy)]
pub(super) struct Features<'a> {
    x: ArrayView2<'a, f32>,
    /// What each row is known by; none where that is its index.
    names: Option<&'a [usize]>,
    standardization: Option<&'a Standardization>,
    dropout: Option<Dropout>,
    simd: Simd,
}

impl<'a> Features<'a> {
    pub(super) fn new<'x: 'a>(x: ArrayView2<'x, f32>, standardization: Option<&'a Standardization>) -> Self {
        Self { x: x.reborrow(), names: None, standardization, dropout: None, simd: Simd::best() }
    }

    /// The same rows, taken out of a larger matrix, in which these were their indices.
    pub(super) fn named(self, names: &'a [usize]) -> Self {
        Self { names: Some(names), ..self }
    }

    /// The same for a shorter time, which the compiler does not see by itself.
    pub(super) fn shorter<'b>(self) -> Features<'b>
    where
        'a: 'b,
    {
        let Self { x, names, standardization, dropout, simd } = self;
        Features { x: x.reborrow(), names, standardization, dropout, simd }
    }

    /// The rows before anything is done to them.
    pub(super) fn matrix(&self) -> ArrayView2<'a, f32> {
        self.x
    }

    /// The same rows with features dropped.
    pub(super) fn dropping(self, dropout: Option<Dropout>) -> Self {
        Self { dropout, ..self }
    }

    /// The listed rows one after the other as they are used, where that is not as they lie in the matrix.
    pub(super) fn prepared(&self, rows: &[usize]) -> Option<Array2<f32>> {
        self.standardization?;
        let mut copy = Array2::zeros((rows.len(), self.width()));
        copy.axis_iter_mut(Axis(0)).into_par_iter().zip(rows).for_each(|(mut to, &row)| {
            if let Some(to) = to.as_slice_mut() {
                self.copy_row(row, to);
            }
        });
        Some(copy)
    }

    /// Values of a row.
    pub(super) fn width(&self) -> usize {
        self.x.ncols()
    }

    /// The rows with these indices. Nothing is copied where the matrix is row-major and rows are used as they are.
    pub(super) fn rows<'b>(&self, indices: &[usize], buffer: &'b mut Vec<f32>) -> Vec<&'b [f32]>
    where
        'a: 'b,
    {
        if self.standardization.is_none()
            && self.dropout.is_none()
            && let Some(rows) = self.raw(indices)
        {
            return rows;
        }
        let width = self.width();
        buffer.resize(indices.len() * width, 0.0);
        for (&index, out) in indices.iter().zip(buffer.chunks_exact_mut(width)) {
            self.copy_row(index, out);
        }
        buffer.chunks_exact(width).collect()
    }

    /// The rows as they lie in the matrix, if it is row-major.
    pub(super) fn raw(&self, indices: &[usize]) -> Option<Vec<&'a [f32]>> {
        let in_place = self.x.ncols() <= 1 || self.x.strides()[1] == 1;
        in_place.then(|| indices.iter().filter_map(|&index| self.x.index_axis_move(Axis(0), index).to_slice()).collect())
    }

    /// Copies one row; standardized, and with features dropped, if that is asked for.
    pub(super) fn copy_row(&self, index: usize, out: &mut [f32]) {
        let row = self.x.row(index);
        match row.as_slice() {
            Some(row) => out.copy_from_slice(row),
            None => out.iter_mut().zip(row).for_each(|(out, &value)| *out = value),
        }
        if self.standardization.is_some() || self.dropout.is_some() {
            self.simd.run(Prepare { features: self, index, row: out });
        }
    }
}

/// Standardizes a row and drops features of it.
struct Prepare<'f, 'a> {
    features: &'f Features<'a>,
    index: usize,
    row: &'f mut [f32],
}

impl Kernel for Prepare<'_, '_> {
    /// Plain loops, which are compiled with the instruction set of `V`.
    #[inline(always)]
    unsafe fn run<V: Vector, const ROWS: usize, const FEATURES: usize>(self) {
        if let Some(standardization) = self.features.standardization {
            standardization.apply(self.row);
        }
        if let Some(dropout) = self.features.dropout {
            dropout.apply(self.features.names.map_or(self.index, |names| names[self.index]), self.row);
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn rows_are_the_same_in_any_layout() {
        let x = array![[1.0_f32, 2.0], [3.0, 4.0], [5.0, 6.0]];
        let transposed = x.t().as_standard_layout().into_owned();
        let (mut one, mut two) = (Vec::new(), Vec::new());
        let in_place = Features::new(x.view(), None).rows(&[2, 0], &mut one);
        let copied = Features::new(transposed.t(), None).rows(&[2, 0], &mut two);
        assert_eq!(in_place, [[5.0, 6.0], [1.0, 2.0]]);
        assert_eq!(in_place, copied);
        assert!(one.is_empty(), "a row-major matrix is read in place");
    }

    #[test]
    fn rows_are_standardized() {
        let x = array![[1.0_f32, 20.0], [3.0, 40.0]];
        let standardization = Standardization { mean: vec![2.0, 10.0], std: vec![0.5, 10.0] };
        let mut buffer = Vec::new();
        let rows = Features::new(x.view(), Some(&standardization)).rows(&[1], &mut buffer);
        assert_eq!(rows, [[2.0, 3.0]]);
    }
}
