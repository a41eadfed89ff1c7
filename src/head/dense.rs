//! A dense layer `logits = x · kernel + bias`, stored the way the vector kernels read it.
//!
//! ```text
//! kernel  [panel][vector][class], lanes over features: panels of five classes, the last one narrower;
//!         the last vector of each class filled up with zeros
//! bias    lanes over classes
//! logits  [block][class], lanes over the 16 rows of a block
//! ```
//!
//! Each logit is summed in one order, lane by lane, so its bits depend neither on how rows are grouped nor on the number of
//! threads.

use std::ops::Range;

use ndarray::{Array1, Array2, ArrayView1, ArrayView2};

use super::features::{Features, Packed, Rows};
use super::panel::{BLOCK, Forward, PANEL};
use super::simd::{LANES, Lanes, Simd};

/// Rows that one task scores.
pub(super) const BLOCK_ROWS: usize = 256;

/// Rows that are packed at a time: with 1,280 features, a third of a core's L2 cache.
pub(super) const PACKED_ROWS: usize = 64;

pub(super) struct Dense {
    features: usize,
    classes: usize,
    pub(super) kernel: Vec<Lanes>,
    pub(super) bias: Vec<Lanes>,
    pub(super) simd: Simd,
}

/// Where a weight lies among `[panel][vector][class]`, and in which lane.
fn place([features, classes]: [usize; 2], feature: usize, class: usize) -> (usize, usize) {
    let (panel, vectors) = (class / PANEL * PANEL, features.div_ceil(LANES));
    (panel * vectors + feature / LANES * PANEL.min(classes - panel) + class - panel, feature % LANES)
}

impl Dense {
    /// Packs a kernel `[D, K]` and a bias `[K]`.
    pub(super) fn pack(kernel: ArrayView2<'_, f32>, bias: ArrayView1<'_, f32>) -> Self {
        let (features, classes) = kernel.dim();
        let mut layer = Self {
            features,
            classes,
            kernel: vec![Lanes::ZERO; features.div_ceil(LANES) * classes],
            bias: vec![Lanes::ZERO; classes.div_ceil(LANES)],
            simd: Simd::best(),
        };
        for ((feature, class), &value) in kernel.indexed_iter() {
            let (at, lane) = place([features, classes], feature, class);
            layer.kernel[at].0[lane] = value;
        }
        for (class, &value) in bias.iter().enumerate() {
            layer.bias[class / LANES].0[class % LANES] = value;
        }
        layer
    }

    /// The kernel `[D, K]` and the bias `[K]`.
    pub(super) fn unpack(&self) -> (Array2<f32>, Array1<f32>) {
        let kernel = Array2::from_shape_fn((self.features, self.classes), |(feature, class)| {
            let (at, lane) = place([self.features, self.classes], feature, class);
            self.kernel[at].0[lane]
        });
        (kernel, Array1::from_shape_fn(self.classes, |class| self.bias[class / LANES].0[class % LANES]))
    }

    /// A layer of the same sizes with other weights.
    pub(super) fn like(&self, kernel: &[Lanes], bias: &[Lanes]) -> Self {
        Self { kernel: kernel.to_vec(), bias: bias.to_vec(), ..*self }
    }

    pub(super) fn classes(&self) -> usize {
        self.classes
    }

    /// Features of a row.
    pub(super) fn features(&self) -> usize {
        self.features
    }

    /// Vectors of a row.
    pub(super) fn vectors(&self) -> usize {
        self.features.div_ceil(LANES)
    }

    /// Logits `[block][class]` of whole rows, on this thread.
    pub(super) fn forward(&self, rows: &Rows<'_>, logits: &mut Vec<Lanes>) {
        logits.resize(rows.count.div_ceil(BLOCK) * self.classes, Lanes::ZERO);
        let (weights, bias) = (&self.kernel[..], &self.bias[..]);
        for (rows, logits) in blocks(rows).zip(logits.chunks_exact_mut(self.classes)) {
            self.simd.run(Forward { rows, vectors: 0..self.vectors(), weights, bias, logits });
        }
    }

    /// Row-major logits `[rows, K]` of the rows with these indices, on this thread.
    pub(super) fn logits_into(&self, features: &Features<'_>, indices: &[usize], out: &mut [f32]) {
        let (mut packed, mut logits) = (Packed::default(), Vec::new());
        let columns = 0..self.features;
        let mut later = indices.chunks(PACKED_ROWS).skip(1);
        for (indices, out) in indices.chunks(PACKED_ROWS).zip(out.chunks_mut(PACKED_ROWS * self.classes)) {
            let rows = packed.rows(features, &columns, indices, later.next().unwrap_or_default());
            self.forward(&rows, &mut logits);
            for (block, out) in logits.chunks_exact(self.classes).zip(out.chunks_mut(BLOCK * self.classes)) {
                for (lane, out) in out.chunks_exact_mut(self.classes).enumerate() {
                    out.iter_mut().zip(block).for_each(|(out, logit)| *out = logit.0[lane]);
                }
            }
        }
    }

    /// Adds a gradient that lies like the weights to those of a kernel `[D, K]` and a bias `[K]`.
    pub(super) fn add_gradient(&self, gradient: [&[Lanes]; 2], kernel: &mut [f64], bias: &mut [f64]) {
        for (feature, row) in kernel.chunks_exact_mut(self.classes).enumerate() {
            for (class, sum) in row.iter_mut().enumerate() {
                let (at, lane) = place([self.features, self.classes], feature, class);
                *sum += f64::from(gradient[0][at].0[lane]);
            }
        }
        bias.iter_mut().enumerate().for_each(|(class, sum)| *sum += f64::from(gradient[1][class / LANES].0[class % LANES]));
    }

    /// Where the weights of some vectors of some panels lie: a piece for each panel.
    pub(super) fn pieces(&self, panels: Range<usize>, vectors: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        let (classes, all) = (self.classes, self.vectors());
        panels.map(move |panel| {
            let (start, width) = (panel * PANEL * all, PANEL.min(classes - panel * PANEL));
            start + vectors.start * width..start + vectors.end * width
        })
    }
}

/// Blocks of at most 16 rows.
pub(super) fn blocks<'a>(rows: &Rows<'a>) -> impl Iterator<Item = Rows<'a>> + use<'a> {
    let rows = *rows;
    (0..rows.count).step_by(BLOCK).map(move |first| rows.part(first..rows.count.min(first + BLOCK)))
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
                // A row by itself has the same bits.
                let mut row = vec![0.0; classes];
                layer.logits_into(&features, &indices[rows - 1..], &mut row);
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
