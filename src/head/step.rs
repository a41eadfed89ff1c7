//! One step of Adam on one batch.
//!
//! ```text
//! small batch     forward ─▶ errors ─▶ gradient and update at once (`update.rs`); many classes: each shared by threads
//! large batch     shares of consecutive rows, one task each: block by block, while a block is in the cache,
//!                 forward ─▶ errors ─▶ gradient of the share; then the shares' gradients are added in order ─▶ update
//! ```
//!
//! Rows (forward), features (update) and shares, whose number follows from the sizes alone, are independent of each other:
//! the bits do not depend on the number of threads.

use rayon::prelude::*;

use super::dense::{Dense, copy_row, write_row};
use super::features::Features;
use super::simd::{LANES, Lanes};
use super::tally::Tally;
use super::update::{Accumulate, BETA_1, BETA_2, Finish, Moments, Pace, TASK_FEATURES, Update};
use crate::evaluate::{argmax, softmax};

/// Rows of a share at least, for a kernel that a core's cache holds and for one that it does not: below, adding the shares up
/// would cost more than it saves.
const SHARE_ROWS: [usize; 2] = [128, 512];

/// Vectors of a kernel that counts as large.
const LARGE_KERNEL: usize = 1 << 15;

/// Shares at most, and vectors in all of their gradients: 64 MiB.
const MOST_SHARES: usize = 16;
const MOST_VECTORS: usize = 1 << 20;

/// Rows that are read once for forward and gradient: with 1,280 features, half a core's L2 cache.
const BLOCK_ROWS: usize = 64;

/// What the answer to a row should be, and how much the row counts.
pub(super) struct Target {
    /// Asked-for probability of the label above that of any class.
    on: f32,
    /// Asked-for probability of any class.
    off: f32,
    class_weights: Vec<f32>,
    /// Whether the loss that is minimized is the plain cross-entropy.
    is_plain: bool,
}

/// What became of a row.
struct Answer {
    /// Plain cross-entropy.
    loss: f64,
    /// What is minimized: the cross-entropy with the asked-for probabilities, times the weight of the row's class.
    objective: f64,
    /// Whether the highest logit is the label's.
    right: bool,
}

impl Target {
    /// With label smoothing (Szegedy et al., 2016): `1 - smoothing` for the label, and `smoothing` spread over all classes.
    pub(super) fn new(smoothing: f64, class_weights: Vec<f32>) -> Self {
        let off = (smoothing / class_weights.len() as f64) as f32;
        let is_plain = smoothing == 0.0 && class_weights.iter().all(|&weight| weight == 1.0);
        Self { on: (1.0 - smoothing) as f32, off, class_weights, is_plain }
    }

    /// Turns the logits of a row into the derivative of its objective, `share` of which counts.
    fn differentiate(&self, logits: &mut [f32], label: usize, share: f32) -> Answer {
        let right = argmax(logits) == label;
        let logit = f64::from(logits[label]);
        let sum = if self.is_plain { 0.0 } else { logits.iter().map(|&logit| f64::from(logit)).sum::<f64>() };
        let log_sum = softmax(logits);
        logits[label] -= self.on;
        let weight = self.class_weights[label];
        let share = weight * share;
        logits.iter_mut().for_each(|value| *value = (*value - self.off) * share);
        let loss = log_sum - logit;
        let objective = if self.is_plain {
            loss
        } else {
            f64::from(weight) * (log_sum - f64::from(self.on) * logit - f64::from(self.off) * sum)
        };
        Answer { loss, objective, right }
    }
}

impl Answer {
    fn count_in(&self, found: &mut Tally) {
        found.count(self.loss, self.right);
        found.objective += self.objective;
    }
}

/// What a step works on.
#[derive(Clone, Copy)]
pub(super) struct Task<'t, 'a> {
    pub(super) features: Features<'a>,
    /// Label of each row of the matrix.
    pub(super) labels: &'t [usize],
    pub(super) target: &'t Target,
    pub(super) learning_rate: f64,
    pub(super) weight_decay: f64,
    pub(super) l2: f64,
}

/// Moments of each weight, and room to work.
pub(super) struct Adam {
    pub(super) steps: u64,
    pub(super) kernel: Moments,
    pub(super) bias: Moments,
    logits: Vec<Lanes>,
    answers: Vec<f32>,
    buffer: Vec<f32>,
    shares: Vec<Share>,
}

impl Adam {
    /// After so many steps.
    pub(super) fn new(steps: u64, first: Dense, second: Dense) -> Self {
        Self {
            steps,
            kernel: Moments { first: first.kernel, second: second.kernel },
            bias: Moments { first: first.bias, second: second.bias },
            logits: Vec::new(),
            answers: Vec::new(),
            buffer: Vec::new(),
            shares: Vec::new(),
        }
    }

    /// One step on one batch; returns loss and accuracy before the step. `next` is the batch that comes after.
    pub(super) fn step(&mut self, layer: &mut Dense, task: &Task<'_, '_>, batch: &[usize], next: &[usize]) -> Tally {
        self.steps += 1;
        let steps = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let correction = (1.0 - BETA_2.powi(steps)).sqrt() / (1.0 - BETA_1.powi(steps));
        let rate = (task.learning_rate * correction) as f32;
        let kernel_pace = Pace { rate, decay: (task.learning_rate * task.weight_decay) as f32, l2: task.l2 as f32 };
        let paces = [kernel_pace, Pace { rate, decay: 0.0, l2: 0.0 }];
        match shares(batch.len(), layer.kernel.len()) {
            1 => self.step_at_once(layer, task, [batch, next], paces),
            count => self.step_by_shares(layer, task, batch, count, paces),
        }
    }

    fn step_at_once(&mut self, layer: &mut Dense, task: &Task<'_, '_>, batches: [&[usize]; 2], paces: [Pace; 2]) -> Tally {
        let [batch, next] = batches;
        let rows = task.features.rows(batch, &mut self.buffer);
        self.logits.resize(layer.panels() * batch.len(), Lanes::ZERO);
        layer.forward(&rows, &mut self.logits);

        let mut found = Tally::default();
        let share = 1.0 / batch.len() as f32;
        let parallel = layer.is_parallel(batch.len());
        let classes = layer.classes();
        if parallel {
            self.answers.resize(classes * batch.len(), 0.0);
            let rows = self.answers.par_chunks_exact_mut(classes).zip(batch).enumerate();
            let scores = rows.map(|(position, (row, &index))| {
                copy_row(&self.logits, batch.len(), position, row);
                task.target.differentiate(row, task.labels[index], share)
            });
            scores.collect::<Vec<_>>().iter().for_each(|answer| answer.count_in(&mut found));
            for (position, row) in self.answers.chunks_exact(classes).enumerate() {
                write_row(row, &mut self.logits, batch.len(), position);
            }
        } else {
            self.answers.resize(classes, 0.0);
            differentiate(task, batch, share, &mut self.answers, &mut self.logits, &mut found);
        }

        let [pace, bias_pace] = paces;
        let width = layer.features();
        // Shuffled rows come from anywhere in memory: asked for while this batch is computed, they need not be waited for.
        let ahead = if parallel { None } else { task.features.raw(next) }.unwrap_or_default();
        let update = Update { simd: layer.simd, pace, rows: &rows, ahead: &ahead };
        update.panels(&self.logits, width, &mut layer.kernel, &mut self.kernel, parallel);
        // The bias is the weight of a feature that is always 1.
        let ones = vec![&[1.0_f32][..]; batch.len()];
        let update = Update { pace: bias_pace, rows: &ones, ahead: &[], ..update };
        update.panels(&self.logits, 1, &mut layer.bias, &mut self.bias, false);
        found
    }

    fn step_by_shares(
        &mut self,
        layer: &mut Dense,
        task: &Task<'_, '_>,
        batch: &[usize],
        count: usize,
        paces: [Pace; 2],
    ) -> Tally {
        let found = gather(&mut self.shares, layer, task, batch, count, 1.0 / batch.len() as f32);
        let simd = layer.simd;
        let [pace, bias_pace] = paces;
        let kernels: Vec<&[Lanes]> = self.shares.iter().map(|part| &part.kernel[..]).collect();
        let weights = layer.kernel.par_chunks_mut(TASK_FEATURES);
        let moments = self.kernel.first.par_chunks_mut(TASK_FEATURES).zip(self.kernel.second.par_chunks_mut(TASK_FEATURES));
        weights.zip(moments).enumerate().for_each(|(chunk, (weights, (first, second)))| {
            let start = chunk * TASK_FEATURES;
            let parts: Vec<&[Lanes]> = kernels.iter().map(|part| &part[start..start + weights.len()]).collect();
            simd.run(Finish { pace, parts: &parts, weights, first, second });
        });
        let parts: Vec<&[Lanes]> = self.shares.iter().map(|part| &part.bias[..]).collect();
        let Moments { first, second } = &mut self.bias;
        simd.run(Finish { pace: bias_pace, parts: &parts, weights: &mut layer.bias, first, second });
        found
    }
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

/// Logits `[panel][row]` become the derivative of the batch's mean loss.
fn differentiate(task: &Task<'_, '_>, batch: &[usize], share: f32, row: &mut [f32], logits: &mut [Lanes], found: &mut Tally) {
    for (position, &index) in batch.iter().enumerate() {
        copy_row(logits, batch.len(), position, row);
        task.target.differentiate(row, task.labels[index], share).count_in(found);
        write_row(row, logits, batch.len(), position);
    }
}

/// One task's part of a large batch: its gradient, and room to work.
#[derive(Default)]
pub(super) struct Share {
    kernel: Vec<Lanes>,
    bias: Vec<Lanes>,
    found: Tally,
    logits: Vec<Lanes>,
    row: Vec<f32>,
    buffer: Vec<f32>,
}

impl Share {
    /// Adds its gradient to those of a kernel `[D, K]` and a bias `[K]`.
    pub(super) fn add_to(&self, layer: &Dense, kernel: &mut [f64], bias: &mut [f64]) {
        for (feature, row) in kernel.chunks_exact_mut(layer.classes()).enumerate() {
            add_row(&self.kernel, layer.features(), feature, row);
        }
        add_row(&self.bias, 1, 0, bias);
    }

    /// Sums the gradient over its rows.
    fn gather(&mut self, layer: &Dense, task: &Task<'_, '_>, batch: &[usize], share: f32) {
        zero(&mut self.kernel, layer.kernel.len());
        zero(&mut self.bias, layer.panels());
        self.found = Tally::default();
        self.row.resize(layer.classes(), 0.0);
        let ones = [&[1.0_f32][..]; BLOCK_ROWS];
        for block in batch.chunks(BLOCK_ROWS) {
            let rows = task.features.rows(block, &mut self.buffer);
            self.logits.resize(layer.panels() * block.len(), Lanes::ZERO);
            layer.forward_here(&rows, &mut self.logits);
            differentiate(task, block, share, &mut self.row, &mut self.logits, &mut self.found);
            let panels = self.logits.chunks_exact(block.len()).zip(self.kernel.chunks_exact_mut(layer.features()));
            for ((errors, sums), bias) in panels.zip(&mut self.bias) {
                layer.simd.run(Accumulate { rows: &rows, errors, sums });
                let (rows, sums) = (&ones[..block.len()], std::slice::from_mut(bias));
                layer.simd.run(Accumulate { rows, errors, sums });
            }
        }
    }
}

/// Adds one row of values `[panel][row]`.
fn add_row(lanes: &[Lanes], rows: usize, row: usize, to: &mut [f64]) {
    for (panel, to) in to.chunks_mut(LANES).enumerate() {
        to.iter_mut().zip(&lanes[panel * rows + row].0).for_each(|(to, &value)| *to += f64::from(value));
    }
}

fn zero(lanes: &mut Vec<Lanes>, length: usize) {
    lanes.clear();
    lanes.resize(length, Lanes::ZERO);
}
