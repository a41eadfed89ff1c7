//! A symmetric matrix as the square tiles of its lower triangle, and its Cholesky factor.
//!
//! Half the memory of the whole matrix, and work for every thread: each tile is worked on by one task in one order, so that the
//! bits do not depend on the number of threads.

use faer::linalg::matmul::matmul;
use faer::linalg::triangular_solve::{solve_lower_triangular_in_place, solve_upper_triangular_in_place};
use faer::traits::RealField;
use faer::{Accum, Mat, MatRef, Par, Side};
use rayon::prelude::*;

/// Side of a tile.
pub(super) const TILE: usize = 256;

/// A number that products are computed in.
pub(super) trait Real: RealField + Copy + Send + Sync {
    /// Rounded from f64.
    fn of(value: f64) -> Self;

    /// As f64.
    fn wide(self) -> f64;

    /// Adds `sign * left * right'` to a tile of f64.
    fn accumulate(tile: &mut Mat<f64>, left: MatRef<'_, Self>, right: MatRef<'_, Self>, sign: f64);
}

impl Real for f64 {
    fn of(value: f64) -> Self {
        value
    }

    fn wide(self) -> f64 {
        self
    }

    fn accumulate(tile: &mut Mat<f64>, left: MatRef<'_, Self>, right: MatRef<'_, Self>, sign: f64) {
        matmul(tile, Accum::Add, left, right.transpose(), sign, Par::Seq);
    }
}

impl Real for f32 {
    fn of(value: f64) -> Self {
        value as f32
    }

    fn wide(self) -> f64 {
        f64::from(self)
    }

    fn accumulate(tile: &mut Mat<f64>, left: MatRef<'_, Self>, right: MatRef<'_, Self>, sign: f64) {
        let mut product = Mat::<f32>::zeros(tile.nrows(), tile.ncols());
        matmul(&mut product, Accum::Replace, left, right.transpose(), 1.0, Par::Seq);
        for (to, from) in tile.col_iter_mut().zip(product.col_iter()) {
            to.iter_mut().zip(from.iter()).for_each(|(to, &from)| *to += sign * f64::from(from));
        }
    }
}

/// A symmetric matrix `[side, side]`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tiles<T> {
    side: usize,
    /// Tile (i, j) of i >= j stands at i (i + 1) / 2 + j; those on the diagonal are whole.
    tiles: Vec<Mat<T>>,
}

/// The tiles of the lower triangle, row by row.
fn places(side: usize) -> Vec<(usize, usize)> {
    (0..side.div_ceil(TILE)).flat_map(|i| (0..=i).map(move |j| (i, j))).collect()
}

fn index(i: usize, j: usize) -> usize {
    i * (i + 1) / 2 + j
}

impl<T: Real> Tiles<T> {
    pub(super) fn zeros(side: usize) -> Self {
        Self::from_fn(side, |_, _| T::of(0.0))
    }

    /// Of its values: row and column, in every tile that is kept, so also above the diagonal of a tile on it.
    pub(super) fn from_fn(side: usize, value: impl Fn(usize, usize) -> T + Sync) -> Self {
        let length = |first: usize| TILE.min(side - first);
        let tiles = places(side).into_par_iter().map(|(i, j)| {
            let (i, j) = (i * TILE, j * TILE);
            Mat::from_fn(length(i), length(j), |row, column| value(i + row, j + column))
        });
        let tiles = tiles.collect();
        Self { side, tiles }
    }

    /// A value on or below the diagonal.
    pub(super) fn at(&self, row: usize, column: usize) -> T {
        self.tiles[index(row / TILE, column / TILE)][(row % TILE, column % TILE)]
    }

    /// The factor `L` of `L L'`; none where the matrix is not positive definite.
    pub(super) fn factor(mut self) -> Option<Factor<T>> {
        let count = self.side.div_ceil(TILE);
        for k in 0..count {
            let mut column: Vec<Mat<T>> =
                (k..count).map(|i| std::mem::replace(&mut self.tiles[index(i, k)], Mat::new())).collect();
            let tiles = &self.tiles;
            column.par_iter_mut().enumerate().for_each(|(below, tile)| {
                for j in 0..k {
                    let (left, right) = (&tiles[index(k + below, j)], &tiles[index(k, j)]);
                    matmul(&mut *tile, Accum::Add, left, right.transpose(), T::of(-1.0), Par::Seq);
                }
            });
            let (corner, below) = column.split_first_mut()?;
            let factored = corner.llt(Side::Lower).ok()?.L().to_owned();
            below.par_iter_mut().for_each(|tile| {
                solve_lower_triangular_in_place(factored.as_ref(), tile.transpose_mut(), Par::Seq);
            });
            *corner = factored;
            (k..count).zip(column).for_each(|(i, tile)| self.tiles[index(i, k)] = tile);
        }
        Some(Factor(self))
    }
}

impl Tiles<f64> {
    /// Adds `sign * block * block'`, of a block `[side, N]` of columns.
    pub(super) fn add<P: Real>(&mut self, block: MatRef<'_, P>, sign: f64) {
        self.tiles.par_iter_mut().zip(places(self.side)).for_each(|(tile, (i, j))| {
            let (left, right) = (block.subrows(i * TILE, tile.nrows()), block.subrows(j * TILE, tile.ncols()));
            P::accumulate(tile, left, right, sign);
        });
    }

    /// The product with `[side, B]`.
    pub(super) fn multiply(&self, right: MatRef<'_, f64>) -> Mat<f64> {
        let count = self.side.div_ceil(TILE);
        let mut product = Mat::zeros(self.side, right.ncols());
        let blocks = (0..count).into_par_iter().map(|i| {
            let rows = self.tiles[index(i, 0)].nrows();
            let mut block = Mat::zeros(rows, right.ncols());
            for j in 0..count {
                let (tile, of) =
                    (&self.tiles[index(i.max(j), i.min(j))], right.subrows(j * TILE, TILE.min(self.side - j * TILE)));
                if j <= i {
                    matmul(&mut block, Accum::Add, tile, of, 1.0, Par::Seq);
                } else {
                    matmul(&mut block, Accum::Add, tile.transpose(), of, 1.0, Par::Seq);
                }
            }
            block
        });
        for (i, block) in blocks.collect::<Vec<_>>().into_iter().enumerate() {
            product.subrows_mut(i * TILE, block.nrows()).copy_from(block);
        }
        product
    }

    /// Every value of the lower triangle, row by row.
    pub(super) fn lower(&self) -> impl Iterator<Item = f64> + '_ {
        (0..self.side).flat_map(move |row| (0..=row).map(move |column| self.at(row, column)))
    }
}

/// A lower triangular matrix.
pub(super) struct Factor<T>(Tiles<T>);

impl<T: Real> Factor<T> {
    /// Solves `L L' X = B` for `B` of `[side, B]`.
    pub(super) fn solve(&self, right: &Mat<T>) -> Mat<T> {
        let Tiles { side, tiles } = &self.0;
        let count = side.div_ceil(TILE);
        let mut blocks: Vec<Mat<T>> = (0..count).map(|i| right.subrows(i * TILE, TILE.min(side - i * TILE)).to_owned()).collect();
        for k in 0..count {
            let (solved, below) = blocks.split_at_mut(k + 1);
            let solved = &mut solved[k];
            solve_lower_triangular_in_place(tiles[index(k, k)].as_ref(), solved.as_mut(), Par::Seq);
            below.par_iter_mut().enumerate().for_each(|(i, block)| {
                matmul(block, Accum::Add, &tiles[index(k + 1 + i, k)], &*solved, T::of(-1.0), Par::Seq);
            });
        }
        for k in (0..count).rev() {
            let (above, solved) = blocks.split_at_mut(k);
            let solved = &mut solved[0];
            solve_upper_triangular_in_place(tiles[index(k, k)].transpose(), solved.as_mut(), Par::Seq);
            above.par_iter_mut().enumerate().for_each(|(i, block)| {
                matmul(block, Accum::Add, tiles[index(k, i)].transpose(), &*solved, T::of(-1.0), Par::Seq);
            });
        }
        let mut solution = Mat::zeros(*side, right.ncols());
        for (i, block) in blocks.into_iter().enumerate() {
            solution.subrows_mut(i * TILE, block.nrows()).copy_from(block);
        }
        solution
    }
}

impl Factor<f32> {
    /// The diagonal of `(L L')⁻¹`: the squares of the columns of `L⁻¹`, summed.
    pub(super) fn inverse_diagonal(&self) -> Vec<f32> {
        let Tiles { side, tiles } = &self.0;
        let count = side.div_ceil(TILE);
        // A column of tiles of the inverse begins at the diagonal.
        let columns = (0..count).into_par_iter().map(|k| {
            let width = tiles[index(k, k)].ncols();
            let mut sums = vec![0.0_f32; width];
            let mut blocks: Vec<Mat<f32>> = Vec::with_capacity(count - k);
            for i in k..count {
                let mut block = if i == k { Mat::identity(width, width) } else { Mat::zeros(tiles[index(i, i)].nrows(), width) };
                for (j, solved) in (k..i).zip(&blocks) {
                    matmul(&mut block, Accum::Add, &tiles[index(i, j)], solved, -1.0, Par::Seq);
                }
                solve_lower_triangular_in_place(tiles[index(i, i)].as_ref(), block.as_mut(), Par::Seq);
                for (sum, column) in sums.iter_mut().zip(block.col_iter()) {
                    *sum += column.iter().map(|value| value * value).sum::<f32>();
                }
                blocks.push(block);
            }
            sums
        });
        columns.collect::<Vec<_>>().concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Positive definite, of three tiles a side.
    fn matrix() -> (Mat<f64>, Tiles<f64>) {
        let side = 2 * TILE + 70;
        let root = Mat::from_fn(side, 700, |row, column| (((row * 31 + column * column * 17) % 101) as f64 - 50.0) / 50.0);
        let mut whole = &root * root.transpose();
        whole.diagonal_mut().column_vector_mut().iter_mut().for_each(|value| *value += 1.0);
        let tiles = Tiles::from_fn(side, |row, column| whole[(row, column)]);
        (whole, tiles)
    }

    #[test]
    fn products_and_solutions_are_those_of_the_whole_matrix() {
        let (whole, tiles) = matrix();
        let right = Mat::from_fn(whole.nrows(), 3, |row, column| ((row * 7 + column) % 13) as f64);
        let product = tiles.multiply(right.as_ref());
        let expected = &whole * &right;
        assert!((&product - &expected).norm_max() < 1e-9 * expected.norm_max());
        let solution = tiles.clone().factor().unwrap().solve(&product);
        assert!((&solution - &right).norm_max() < 1e-7, "{}", (&solution - &right).norm_max());
        let single = Tiles::from_fn(tiles.side, |row, column| whole[(row, column)] as f32).factor().unwrap();
        let solution = single.solve(&Mat::from_fn(whole.nrows(), 3, |row, column| product[(row, column)] as f32));
        let inverse = tiles.clone().factor().unwrap().solve(&Mat::identity(whole.nrows(), whole.nrows()));
        for (row, found) in single.inverse_diagonal().into_iter().enumerate() {
            assert!((f64::from(found) / inverse[(row, row)] - 1.0).abs() < 0.05, "{row}: {found} {}", inverse[(row, row)]);
        }
        let error = Mat::from_fn(whole.nrows(), 3, |row, column| f64::from(solution[(row, column)]) - right[(row, column)]);
        assert!(error.norm_max() < 0.1, "{}", error.norm_max());
    }

    #[test]
    fn a_matrix_that_is_not_positive_definite_has_no_factor() {
        let (whole, _) = matrix();
        let tiles = Tiles::from_fn(whole.nrows(), |row, column| whole[(row, column)] - if row == column { 1e4 } else { 0.0 });
        assert!(tiles.factor().is_none());
    }

    #[test]
    fn products_of_rows_are_added_and_taken_away_in_either_precision() {
        let block = Mat::from_fn(300, 40, |row, column| ((row * 5 + column * 3) % 11) as f32 / 8.0);
        let exact = Mat::from_fn(300, 40, |row, column| f64::from(block[(row, column)]));
        let mut tiles = Tiles::zeros(300);
        tiles.add(exact.as_ref(), 1.0);
        let expected = &exact * exact.transpose();
        for row in 0..300 {
            (0..=row).for_each(|column| assert!((tiles.at(row, column) - expected[(row, column)]).abs() < 1e-9));
        }
        tiles.add(block.as_ref(), -1.0);
        assert!(tiles.lower().all(|value| value.abs() < 1e-4));
    }
}
