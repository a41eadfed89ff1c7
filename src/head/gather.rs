//! Loss and gradient of many rows, in shares of consecutive rows: one task each, block by block, while a block is in the cache.
//!
//! Into how many shares follows from the sizes alone: the bits do not depend on the number of threads.

use rayon::prelude::*;

use super::answer::{Differentiate, Target};
use super::dense::{Dense, PACKED_ROWS};
use super::features::{Features, Packed};
use super::panel::{Accumulate, BLOCK, Errors};
use super::simd::{LANES, Lanes};
use super::tally::Tally;

/// Rows of a share at least, for a kernel that a core's cache holds and for one that it does not: below, adding the shares up
/// would cost more than it saves.
const SHARE_ROWS: [usize; 2] = [128, 512];

/// Vectors of a kernel that counts as large.
const LARGE_KERNEL: usize = 1 << 15;

/// Shares at most, and vectors in all of their gradients: 64 MiB.
const MOST_SHARES: usize = 16;
const MOST_VECTORS: usize = 1 << 20;

/// What a gradient is taken of.
#[derive(Clone, Copy)]
pub(super) struct Task<'t, 'a> {
    pub(super) features: Features<'a>,
    /// Label of each row of the matrix.
    pub(super) labels: &'t [usize],
    pub(super) target: &'t Target,
    pub(super) weight_decay: f64,
    pub(super) l2: f64,
}

/// Computes loss and gradient in `count` parts, side by side; `share` of each row's counts.
pub(super) fn gather(
    parts: &mut Vec<Share>,
    layer: &Dense,
    task: &Task<'_, '_>,
    batch: &[usize],
    count: usize,
    share: f32,
) -> Tally {
    let rows = batch.par_chunks(batch.len().div_ceil(count));
    parts.resize_with(rows.len(), Share::default);
    parts.par_iter_mut().zip(rows).with_max_len(1).for_each(|(part, rows)| part.gather(layer, task, rows, share));
    let mut found = Tally::default();
    parts.iter().for_each(|part| found.add(&part.found));
    found
}

/// Into how many shares a batch is divided; it follows from the sizes alone.
pub(super) fn shares(rows: usize, kernel: usize) -> usize {
    let least = SHARE_ROWS[usize::from(kernel > LARGE_KERNEL)];
    rows.div_ceil(least).min(MOST_SHARES).min(MOST_VECTORS / kernel).max(1)
}

/// One task's part of a large batch: its gradient, and room to work.
#[derive(Default)]
pub(super) struct Share {
    pub(super) kernel: Vec<Lanes>,
    pub(super) bias: Vec<Lanes>,
    found: Tally,
    logits: Vec<Lanes>,
    errors: Vec<Lanes>,
    packed: Packed,
}

impl Share {
    /// Adds its gradient to those of a kernel `[D, K]` and a bias `[K]`.
    pub(super) fn add_to(&self, layer: &Dense, kernel: &mut [f64], bias: &mut [f64]) {
        layer.add_gradient([&self.kernel, &self.bias], kernel, bias);
    }

    /// Sums the gradient over its rows.
    fn gather(&mut self, layer: &Dense, task: &Task<'_, '_>, batch: &[usize], share: f32) {
        zero(&mut self.kernel, layer.kernel.len());
        self.found = Tally::default();
        let (simd, classes, vectors) = (layer.simd, layer.classes(), layer.vectors());
        let mut bias = vec![0.0; classes];
        let mut later = batch.chunks(PACKED_ROWS).skip(1);
        for chunk in batch.chunks(PACKED_ROWS) {
            let columns = 0..layer.features();
            let rows = self.packed.rows(&task.features, &columns, chunk, later.next().unwrap_or_default());
            layer.forward(&rows, &mut self.logits);
            self.errors.resize(self.logits.len(), Lanes::ZERO);
            let blocks = self.logits.chunks_exact(classes).zip(self.errors.chunks_exact_mut(classes));
            for ((logits, errors), rows) in blocks.zip(chunk.chunks(BLOCK)) {
                let (mut labels, mut found) = ([0; BLOCK], Tally::default());
                labels.iter_mut().zip(rows).for_each(|(label, &row)| *label = task.labels[row]);
                let (labels, parts) = (&labels[..rows.len()], &[logits]);
                simd.run(Differentiate { target: task.target, labels, share, parts, errors, found: &mut found });
                self.found.add(&found);
            }
            let of = Errors { rows, start: 0, errors: &self.errors, classes, class: 0 };
            simd.run(Accumulate { of, vectors, sums: &mut self.kernel });
            add_errors(&self.errors, classes, 0, &mut bias);
        }
        self.bias = lanes(bias.into_iter());
    }
}

/// So many zeros.
pub(super) fn zero(lanes: &mut Vec<Lanes>, length: usize) {
    lanes.clear();
    lanes.resize(length, Lanes::ZERO);
}

/// Values as lanes, the last ones zero.
pub(super) fn lanes(values: impl Iterator<Item = f32>) -> Vec<Lanes> {
    let values: Vec<f32> = values.collect();
    let fill = |values: &[f32]| {
        let mut lanes = Lanes::ZERO;
        lanes.0[..values.len()].copy_from_slice(values);
        lanes
    };
    values.chunks(LANES).map(fill).collect()
}

/// Adds the errors `[block][class]` of some classes, which are the gradient of the bias.
pub(super) fn add_errors(errors: &[Lanes], classes: usize, class: usize, sums: &mut [f32]) {
    for errors in errors.chunks_exact(classes) {
        for (sum, Lanes(errors)) in sums.iter_mut().zip(&errors[class..]) {
            let fours =
                errors.as_chunks::<4>().0.iter().fold([0.0_f32; 4], |sums, four| std::array::from_fn(|at| sums[at] + four[at]));
            *sum += (fours[0] + fours[2]) + (fours[1] + fours[3]);
        }
    }
}
