//! A dense layer `logits = x · kernel + bias`, stored the way the vector kernels read it.
//!
//! ```text
//! kernel  [panel][feature] of 16 classes, the last panel filled up with zeros:
//!         one panel is read front to back, and D x 16 values of a small head stay in the L2 cache
//! logits  [panel][row] of 16 classes
//! ```
//!
//! Each logit is one chain of multiply-adds in feature order, so its bits depend neither on how rows are grouped nor on the
//! number of threads.

use ndarray::{Array1, Array2, ArrayView1, ArrayView2};
use rayon::prelude::*;

use super::features::Features;
use super::simd::{Kernel, LANES, Lanes, Simd, Vector};

/// Multiply-adds in one call from which on the threads' work outweighs waking them.
pub(super) const PARALLEL_WORK: usize = 1 << 22;

/// Rows that one task scores.
pub(super) const BLOCK_ROWS: usize = 256;

pub(super) struct Dense {
    features: usize,
    classes: usize,
    pub(super) kernel: Vec<Lanes>,
    pub(super) bias: Vec<Lanes>,
    pub(super) simd: Simd,
}

impl Dense {
    /// Packs a kernel `[D, K]` and a bias `[K]`.
    pub(super) fn pack(kernel: ArrayView2<'_, f32>, bias: ArrayView1<'_, f32>) -> Self {
        let (features, classes) = kernel.dim();
        let panels = classes.div_ceil(LANES);
        let mut layer = Self {
            features,
            classes,
            kernel: vec![Lanes::ZERO; panels * features],
            bias: vec![Lanes::ZERO; panels],
            simd: Simd::best(),
        };
        for ((feature, class), &value) in kernel.indexed_iter() {
            layer.kernel[class / LANES * features + feature].0[class % LANES] = value;
        }
        for (class, &value) in bias.iter().enumerate() {
            layer.bias[class / LANES].0[class % LANES] = value;
        }
        layer
    }

    /// The kernel `[D, K]` and the bias `[K]`.
    pub(super) fn unpack(&self) -> (Array2<f32>, Array1<f32>) {
        let kernel = Array2::from_shape_fn((self.features, self.classes), |(feature, class)| {
            self.kernel[class / LANES * self.features + feature].0[class % LANES]
        });
        let bias = Array1::from_shape_fn(self.classes, |class| self.bias[class / LANES].0[class % LANES]);
        (kernel, bias)
    }

    /// A layer of the same sizes with other weights, `[panel][feature]` and `[panel]`.
    pub(super) fn like(&self, kernel: &[Lanes], bias: &[Lanes]) -> Self {
        Self { kernel: kernel.to_vec(), bias: bias.to_vec(), ..*self }
    }

    /// Classes, without those that fill up the last panel.
    pub(super) fn classes(&self) -> usize {
        self.classes
    }

    /// Features of a row.
    pub(super) fn features(&self) -> usize {
        self.features
    }

    /// Panels of 16 classes.
    pub(super) fn panels(&self) -> usize {
        self.bias.len()
    }

    /// Whether `rows` rows are worth more than one thread.
    pub(super) fn is_parallel(&self, rows: usize) -> bool {
        rows * self.kernel.len() * LANES >= PARALLEL_WORK
    }

    /// Logits `[panel][row]` of some rows, on this thread, or on all where the work is worth it.
    pub(super) fn forward(&self, rows: &[&[f32]], logits: &mut [Lanes]) {
        if !self.is_parallel(rows.len()) {
            return self.forward_here(rows, logits);
        }
        const GROUP: usize = 8;
        let panels = logits.par_chunks_exact_mut(rows.len()).zip(self.kernel.par_chunks_exact(self.features)).zip(&self.bias);
        panels.for_each(|((logits, kernel), &bias)| {
            let groups = logits.par_chunks_mut(GROUP).zip(rows.par_chunks(GROUP));
            groups.for_each(|(logits, rows)| self.simd.run(Forward { rows, kernel, bias, logits }));
        });
    }

    /// The same, on this thread.
    pub(super) fn forward_here(&self, rows: &[&[f32]], logits: &mut [Lanes]) {
        let panels = logits.chunks_exact_mut(rows.len()).zip(self.kernel.chunks_exact(self.features)).zip(&self.bias);
        for ((logits, kernel), &bias) in panels {
            self.simd.run(Forward { rows, kernel, bias, logits });
        }
    }

    /// Row-major logits `[rows, K]` of the rows with these indices, on this thread.
    pub(super) fn logits_into(&self, features: &Features<'_>, indices: &[usize], out: &mut [f32]) {
        let mut buffer = Vec::new();
        let rows = features.rows(indices, &mut buffer);
        let mut logits = vec![Lanes::ZERO; self.panels() * rows.len()];
        self.forward_here(&rows, &mut logits);
        for (row, out) in out.chunks_exact_mut(self.classes).enumerate() {
            copy_row(&logits, rows.len(), row, out);
        }
    }
}

/// Copies one row out of logits `[panel][row]`; `out` holds its classes.
pub(super) fn copy_row(logits: &[Lanes], rows: usize, row: usize, out: &mut [f32]) {
    for (panel, out) in out.chunks_mut(LANES).enumerate() {
        out.copy_from_slice(&logits[panel * rows + row].0[..out.len()]);
    }
}

/// Writes one row into logits `[panel][row]`; lanes beyond its classes become zero.
pub(super) fn write_row(values: &[f32], logits: &mut [Lanes], rows: usize, row: usize) {
    for (panel, values) in values.chunks(LANES).enumerate() {
        let lanes = &mut logits[panel * rows + row];
        *lanes = Lanes::ZERO;
        lanes.0[..values.len()].copy_from_slice(values);
    }
}

/// Logits of one panel.
struct Forward<'a> {
    rows: &'a [&'a [f32]],
    kernel: &'a [Lanes],
    bias: Lanes,
    logits: &'a mut [Lanes],
}

impl Kernel for Forward<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector, const ROWS: usize, const FEATURES: usize>(self) {
        let (rows, rest) = self.rows.as_chunks::<ROWS>();
        let (logits, logits_rest) = self.logits.as_chunks_mut::<ROWS>();
        // SAFETY: the caller of `run` vouches for the instruction set of `V`.
        unsafe {
            for (rows, logits) in rows.iter().zip(logits) {
                forward_group::<V, ROWS>(rows, self.kernel, &self.bias, logits);
            }
            for (row, logits) in rest.iter().zip(logits_rest) {
                forward_group::<V, 1>(&[*row], self.kernel, &self.bias, std::array::from_mut(logits));
            }
        }
    }
}

/// # Safety
/// The processor has the instruction set of `V`.
#[inline(always)]
unsafe fn forward_group<V: Vector, const ROWS: usize>(
    rows: &[&[f32]; ROWS],
    kernel: &[Lanes],
    bias: &Lanes,
    logits: &mut [Lanes; ROWS],
) {
    // One bound for all rows, so that the loop needs no check of its own.
    let rows: [&[f32]; ROWS] = std::array::from_fn(|row| &rows[row][..kernel.len()]);
    // SAFETY: by the contract of this function.
    unsafe {
        let mut sums = [V::load(bias); ROWS];
        for (feature, weights) in kernel.iter().enumerate() {
            let weights = V::load(weights);
            for row in 0..ROWS {
                sums[row] = V::splat(rows[row][feature]).mul_add(weights, sums[row]);
            }
        }
        for (sum, logits) in sums.into_iter().zip(logits) {
            sum.store(logits);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(rows: usize, columns: usize, salt: usize) -> Array2<f32> {
        Array2::from_shape_fn((rows, columns), |(i, j)| ((i * 31 + j * 17 + salt) % 23) as f32 / 11.0 - 1.0)
    }

    #[test]
    fn every_instruction_set_gives_the_product_for_awkward_shapes() {
        for (rows, width, classes) in [(1, 1, 1), (7, 37, 3), (19, 130, 16), (33, 64, 17), (9, 5, 50)] {
            let (x, kernel) = (matrix(rows, width, 1), matrix(width, classes, 2));
            let bias = Array1::from_shape_fn(classes, |class| class as f32 / 7.0);
            let expected = x.mapv(f64::from).dot(&kernel.mapv(f64::from)) + &bias.mapv(f64::from);
            let features = Features::new(x.view(), None);
            let indices: Vec<usize> = (0..rows).collect();
            for simd in Simd::available() {
                let mut layer = Dense::pack(kernel.view(), bias.view());
                layer.simd = simd;
                let mut out = vec![f32::NAN; rows * classes];
                layer.logits_into(&features, &indices, &mut out);
                for (got, want) in out.iter().zip(&expected) {
                    assert!((f64::from(*got) - want).abs() < 1e-4, "{simd:?} {rows}x{width}x{classes}: {got} for {want}");
                }
                let mut panels = vec![Lanes::ZERO; layer.panels() * rows];
                let mut buffer = Vec::new();
                layer.forward(&features.rows(&indices, &mut buffer), &mut panels);
                let mut row = vec![0.0; classes];
                copy_row(&panels, rows, rows - 1, &mut row);
                assert_eq!(row, out[(rows - 1) * classes..]);
            }
        }
    }

    #[test]
    fn packing_keeps_every_weight() {
        let (kernel, bias) = (matrix(21, 35, 3), Array1::from_shape_fn(35, |class| class as f32));
        assert_eq!(Dense::pack(kernel.view(), bias.view()).unpack(), (kernel, bias));
    }
}
