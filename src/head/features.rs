//! Rows of the feature matrix as the solvers read them: standardized, with features dropped, packed for the vector kernels.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, Axis};
use rayon::prelude::*;

use super::dropout::Dropout;
use super::simd::{Kernel, LANES, Lanes, Simd, Vector};
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

    /// Copies one row; standardized, and with features dropped, if that is asked for.
    pub(super) fn copy_row(&self, index: usize, out: &mut [f32]) {
        let row = self.x.row(index);
        match row.as_slice() {
            Some(row) => out.copy_from_slice(row),
            None => out.iter_mut().zip(row).for_each(|(out, &value)| *out = value),
        }
        self.prepare(index, 0, out);
    }

    /// Standardizes values of a row, the first of which is that of feature `start`, and drops some.
    fn prepare(&self, index: usize, start: usize, row: &mut [f32]) {
        if self.standardization.is_some() || self.dropout.is_some() {
            self.simd.run(Prepare { features: self, index, start, row });
        }
    }
}

/// Rows that lie one after the other, lanes over features, the last vector filled up with zeros.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    values: &'a [Lanes],
    /// Vectors from row to row.
    stride: usize,
    pub(super) count: usize,
}

impl<'a> Rows<'a> {
    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> &'a [Lanes] {
        &self.values[row * self.stride..(row + 1) * self.stride]
    }

    /// Some of them.
    pub(super) fn part(&self, rows: Range<usize>) -> Self {
        Self { values: &self.values[rows.start * self.stride..], count: rows.len(), ..*self }
    }
}

/// Room for rows.
///
/// A copy costs less than it saves: shuffled rows come from anywhere in memory, and read from end to end, the next ones asked for
/// meanwhile, they come more than twice as fast as the kernels would read them.
#[derive(Default)]
pub(super) struct Packed {
    values: Vec<Lanes>,
    stride: usize,
}

/// Rows that are asked for while one is copied.
const AHEAD: usize = 4;

impl Packed {
    /// Packs some columns, from a whole vector on, of the rows with these indices. `next` are rows that will be wanted after them.
    pub(super) fn rows(&mut self, of: &Features<'_>, columns: &Range<usize>, indices: &[usize], next: &[usize]) -> Rows<'_> {
        // An odd number of vectors, so that rows do not compete for a few sets of the cache.
        let stride = columns.len().div_ceil(LANES) | 1;
        if self.stride != stride {
            *self = Self { values: Vec::new(), stride };
        }
        self.values.resize(indices.len() * stride, Lanes::ZERO);
        let ahead = indices.iter().chain(next).skip(AHEAD).map(Some).chain(std::iter::repeat(None));
        for ((&index, ahead), to) in indices.iter().zip(ahead).zip(self.values.chunks_exact_mut(stride)) {
            let (row, width) = (of.x.index_axis_move(Axis(0), index), columns.len());
            match row.to_slice() {
                Some(row) => {
                    let ahead = ahead.and_then(|&index| of.x.index_axis_move(Axis(0), index).to_slice());
                    let from = &row[columns.clone()];
                    of.simd.run(Pack { ahead: ahead.map_or(from, |ahead| &ahead[columns.clone()]), from, to });
                }
                None => {
                    let row = row.iter().skip(columns.start);
                    Lanes::flat_mut(to)[..width].iter_mut().zip(row).for_each(|(to, &value)| *to = value);
                }
            }
            of.prepare(index, columns.start, &mut Lanes::flat_mut(to)[..width]);
        }
        Rows { values: &self.values, stride, count: indices.len() }
    }
}

/// Copies a row, and has another one of its length brought into the cache.
struct Pack<'a> {
    from: &'a [f32],
    ahead: &'a [f32],
    to: &'a mut [Lanes],
}

impl Kernel for Pack<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector, const ROWS: usize, const VECTORS: usize>(self) {
        let (from, rest) = self.from.as_chunks();
        // SAFETY: the caller of `run` vouches for the instruction set of `V`.
        unsafe {
            for ((from, ahead), to) in from.iter().zip(self.ahead.as_chunks::<LANES>().0).zip(self.to.iter_mut()) {
                V::prefetch(&ahead[0]);
                V::load(from).store(to);
            }
            if !rest.is_empty() {
                V::load_part(rest).store(&mut self.to[from.len()]);
            }
        }
    }
}

/// Standardizes values of a row and drops features of it.
struct Prepare<'f, 'a> {
    features: &'f Features<'a>,
    index: usize,
    start: usize,
    row: &'f mut [f32],
}

impl Kernel for Prepare<'_, '_> {
    /// Plain loops, which are compiled with the instruction set of `V`.
    #[inline(always)]
    unsafe fn run<V: Vector, const ROWS: usize, const VECTORS: usize>(self) {
        if let Some(standardization) = self.features.standardization {
            standardization.apply(self.start, self.row);
        }
        if let Some(dropout) = self.features.dropout {
            let name = self.features.names.map_or(self.index, |names| names[self.index]);
            dropout.apply(name, self.start, self.row);
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    fn rows(features: &Features<'_>, columns: Range<usize>, indices: &[usize]) -> Vec<Vec<f32>> {
        let mut packed = Packed::default();
        let rows = packed.rows(features, &columns, indices, &[0, 1]);
        let row = |row| rows.row(row).iter().flat_map(|lanes| lanes.0).collect::<Vec<_>>();
        let (kept, rest): (Vec<_>, Vec<_>) =
            (0..indices.len()).map(row).map(|row| (row[..columns.len()].to_vec(), row[columns.len()..].to_vec())).unzip();
        assert!(rest.iter().flatten().all(|&value| value == 0.0), "what fills up a vector is zero");
        kept
    }

    #[test]
    fn rows_are_the_same_in_any_layout() {
        let x = Array2::from_shape_fn((3, 37), |(row, column)| (row * 100 + column) as f32);
        let transposed = x.t().as_standard_layout().into_owned();
        let expected =
            |columns: Range<usize>| [2, 0].map(|row| columns.clone().map(|column| x[[row, column]]).collect::<Vec<f32>>());
        for columns in [0..37, 0..16, 16..37, 32..37] {
            assert_eq!(rows(&Features::new(x.view(), None), columns.clone(), &[2, 0]), expected(columns.clone()));
            assert_eq!(rows(&Features::new(transposed.t(), None), columns.clone(), &[2, 0]), expected(columns));
        }
    }

    #[test]
    fn rows_are_standardized() {
        let x = array![[1.0_f32, 20.0], [3.0, 40.0]];
        let standardization = Standardization { mean: vec![2.0, 10.0], std: vec![0.5, 10.0] };
        assert_eq!(rows(&Features::new(x.view(), Some(&standardization)), 0..2, &[1]), [[2.0, 3.0]]);
    }

    #[test]
    fn parts_of_rows_are_prepared_like_whole_ones() {
        let x = Array2::from_shape_fn((4, 50), |(row, column)| (row * 7 + column) as f32);
        let standardization = Standardization::estimate(x.view(), &[0, 1, 2, 3]);
        let features = Features::new(x.view(), Some(&standardization)).dropping(Some(Dropout::new(0.4, 1, 2)));
        let whole = rows(&features, 0..50, &[3, 1]);
        for (whole, part) in whole.iter().zip(rows(&features, 16..50, &[3, 1])) {
            assert_eq!(whole[16..], part);
        }
        let mut row = vec![0.0; 50];
        features.copy_row(3, &mut row);
        assert_eq!(whole[0], row);
    }
}
