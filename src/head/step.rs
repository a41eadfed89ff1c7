//! Adam's steps on the batches of a part of the rows.
//!
//! ```text
//! small batch     a team of threads, each with weights of its own (some features of some classes):
//!                 its features' part of the logits ─▶ meet ─▶ errors of its rows ─▶ meet ─▶ gradient and update at once
//! large batch     shares of consecutive rows, one task each: block by block, while a block is in the cache,
//!                 logits ─▶ errors ─▶ gradient of the share; then the shares' gradients are added in order ─▶ update
//! ```
//!
//! What is added in which order follows from the sizes alone: the bits do not depend on the number of threads.

use std::ops::Range;

use rayon::prelude::*;

use super::answer::Differentiate;
use super::dense::{Dense, PACKED_ROWS, blocks};
use super::features::Packed;
use super::gather::{Share, Task, add_errors, gather, lanes, shares, zero};
use super::panel::{Accumulate, BLOCK, Errors, Forward, PANEL, Update};
use super::simd::{LANES, Lanes};
use super::tally::Tally;
use super::team::{Board, Meeting, Member};
use super::update::{Finish, Moments, Pace};

/// Rows of a batch from which on it is worth a task for each share.
const LARGE_BATCH: usize = 1024;

/// Vectors of a row that one thread takes for itself at least: fewer, and adding up lanes and parts would cost too much.
const SLICE_VECTORS: usize = 32;
const MOST_SLICES: usize = 16;

/// Panels that one thread takes at a time: they share the features that were read.
const GROUP_PANELS: usize = 8;

/// Vectors with which updates of a large head are finished, in one task.
const TASK_VECTORS: usize = 256;

/// Moments of each weight, and room to work.
pub(super) struct Adam {
    pub(super) steps: u64,
    pub(super) kernel: Moments,
    pub(super) bias: Moments,
    shares: Vec<Share>,
}

/// What became of the rows of an epoch's batches.
#[derive(Clone, Debug, Default)]
pub(super) struct Passed {
    pub(super) seen: Tally,
    /// Mean loss of the first batch.
    pub(super) first_loss: f64,
    /// Mean loss of the batch that ended it, since it is not finite.
    pub(super) not_finite: Option<f64>,
}

impl Passed {
    /// Counts the next batch; whether to go on.
    fn see(&mut self, found: &Tally) -> bool {
        if self.seen.rows() == 0 {
            self.first_loss = found.mean_loss();
        }
        self.seen.add(found);
        if !found.loss.is_finite() {
            self.not_finite = Some(found.mean_loss());
        }
        self.not_finite.is_none()
    }
}

impl Adam {
    /// After so many steps.
    pub(super) fn new(steps: u64, first: Dense, second: Dense) -> Self {
        Self {
            steps,
            kernel: Moments { first: first.kernel, second: second.kernel },
            bias: Moments { first: first.bias, second: second.bias },
            shares: Vec::new(),
        }
    }

    /// A step for each batch of the rows in `order`, at the learning rate of its number (the first of all is 0), counted beside what was
    /// `seen` before; ends with one whose loss is not finite.
    pub(super) fn pass(
        &mut self,
        layer: &mut Dense,
        task: &Task<'_, '_>,
        order: &[usize],
        batch_size: usize,
        rate: &(dyn Fn(u64) -> f64 + Sync),
        seen: Tally,
    ) -> Passed {
        let pace = |step| Pace::of(step + 1, rate(step), task.weight_decay, task.l2);
        let mut passed = Passed { seen, ..Passed::default() };
        // Each batch goes the way of its own size, so that rows that come in parts give the same bits.
        let (large, small) = order.split_at(if batch_size < LARGE_BATCH { 0 } else { large_rows(order.len(), batch_size) });
        for batch in large.chunks(batch_size) {
            let found = self.step_by_shares(layer, task, batch, pace(self.steps));
            self.steps += 1;
            if !passed.see(&found) {
                return passed;
            }
        }
        if small.is_empty() { passed } else { self.steps_by_team(layer, task, small, batch_size, &pace, passed) }
    }

    fn steps_by_team(
        &mut self,
        layer: &mut Dense,
        task: &Task<'_, '_>,
        order: &[usize],
        batch_size: usize,
        pace: &(dyn Fn(u64) -> Pace + Sync),
        passed: Passed,
    ) -> Passed {
        let Plan { slices, mut units } = self.plan(layer);
        let (count, members) = (units.len(), rayon::current_num_threads().min(units.len()));
        let mut owned: Vec<&mut [Unit]> = Vec::with_capacity(members);
        let mut rest = &mut units[..];
        for member in 0..members {
            let (own, others) = std::mem::take(&mut rest).split_at_mut((member + 1) * count / members - member * count / members);
            owned.push(own);
            rest = others;
        }
        let most = batch_size.min(PACKED_ROWS).div_ceil(BLOCK);
        let shared = Shared {
            task,
            order,
            batch_size,
            start: self.steps,
            pace,
            classes: layer.classes(),
            slices,
            blocks: most,
            logits: Board::new(&Lanes::ZERO, slices * most * layer.classes()),
            errors: Board::new(&Lanes::ZERO, most * layer.classes()),
            found: Board::new(&Tally::default(), most),
            passed: Board::new(&passed, 1),
        };
        Meeting::new(members).hold(owned, |member, own| shared.work(layer, member, own));
        // SAFETY: the team is done.
        let passed = unsafe { shared.passed.read(0..1)[0].clone() };
        self.steps += order.len().div_ceil(batch_size) as u64;
        self.collect(layer, &units);
        passed
    }

    fn step_by_shares(&mut self, layer: &mut Dense, task: &Task<'_, '_>, batch: &[usize], pace: Pace) -> Tally {
        let count = shares(batch.len(), layer.kernel.len());
        let found = gather(&mut self.shares, layer, task, batch, count, 1.0 / batch.len() as f32);
        let simd = layer.simd;
        let kernels: Vec<&[Lanes]> = self.shares.iter().map(|part| &part.kernel[..]).collect();
        let weights = layer.kernel.par_chunks_mut(TASK_VECTORS);
        let moments = self.kernel.first.par_chunks_mut(TASK_VECTORS).zip(self.kernel.second.par_chunks_mut(TASK_VECTORS));
        weights.zip(moments).enumerate().for_each(|(chunk, (weights, (first, second)))| {
            let start = chunk * TASK_VECTORS;
            let parts: Vec<&[Lanes]> = kernels.iter().map(|part| &part[start..start + weights.len()]).collect();
            simd.run(Finish { pace, parts: &parts, weights, first, second });
        });
        let parts: Vec<&[Lanes]> = self.shares.iter().map(|part| &part.bias[..]).collect();
        let Moments { first, second } = &mut self.bias;
        simd.run(Finish { pace: pace.bias(), parts: &parts, weights: &mut layer.bias, first, second });
        found
    }

    /// Divides weights and moments among units, slice by slice, each a copy in memory of its own: where two threads' weights are
    /// neighbours, what the processor reads ahead for one takes from the other (measured: half the speed).
    fn plan(&self, layer: &Dense) -> Plan {
        let (vectors, classes) = (layer.vectors(), layer.classes());
        let panels = classes.div_ceil(PANEL);
        let groups = panels.div_ceil(GROUP_PANELS);
        let slices = (vectors / SLICE_VECTORS).clamp(1, MOST_SLICES);
        let slices = if slices.is_power_of_two() { slices } else { slices.next_power_of_two() / 2 };
        let mut units = Vec::with_capacity(slices * groups);
        for slice in 0..slices {
            let vectors = slice * vectors / slices..(slice + 1) * vectors / slices;
            for group in 0..groups {
                let panels = group * panels / groups..(group + 1) * panels / groups;
                let of = |from: &[Lanes]| {
                    let mut own = Vec::with_capacity(panels.len() * PANEL * vectors.len() + APART);
                    layer.pieces(panels.clone(), vectors.clone()).for_each(|piece| own.extend_from_slice(&from[piece]));
                    own
                };
                let classes = panels.start * PANEL..(panels.end * PANEL).min(classes);
                // The bias belongs to the first slice.
                let bias = if slice == 0 { classes.clone() } else { 0..0 };
                let bias_of = |from: &[Lanes]| lanes(bias.clone().map(|class| from[class / LANES].0[class % LANES]));
                units.push(Unit {
                    slice,
                    weights: of(&layer.kernel),
                    moments: Moments { first: of(&self.kernel.first), second: of(&self.kernel.second) },
                    sums: Vec::new(),
                    bias: bias_of(&layer.bias),
                    bias_moments: Moments { first: bias_of(&self.bias.first), second: bias_of(&self.bias.second) },
                    bias_sums: vec![0.0; bias.len()],
                    panels,
                    vectors: vectors.clone(),
                    classes,
                });
            }
        }
        Plan { slices, units }
    }

    /// Copies what the units have learned back.
    fn collect(&mut self, layer: &mut Dense, units: &[Unit]) {
        for unit in units {
            let mut place = 0;
            for piece in layer.pieces(unit.panels.clone(), unit.vectors.clone()) {
                let own = place..place + piece.len();
                place = own.end;
                layer.kernel[piece.clone()].copy_from_slice(&unit.weights[own.clone()]);
                self.kernel.first[piece.clone()].copy_from_slice(&unit.moments.first[own.clone()]);
                self.kernel.second[piece].copy_from_slice(&unit.moments.second[own]);
            }
            let back = |from: &[Lanes], to: &mut [Lanes]| {
                for (at, class) in unit.classes.clone().enumerate().take(unit.bias_sums.len()) {
                    to[class / LANES].0[class % LANES] = from[at / LANES].0[at % LANES];
                }
            };
            back(&unit.bias, &mut layer.bias);
            back(&unit.bias_moments.first, &mut self.bias.first);
            back(&unit.bias_moments.second, &mut self.bias.second);
        }
    }
}

/// Vectors of unused memory after each unit's weights.
const APART: usize = 64;

struct Plan {
    /// Into how many slices the features are divided.
    slices: usize,
    units: Vec<Unit>,
}

/// The weights of some features for some classes, which one thread has to itself.
struct Unit {
    slice: usize,
    panels: Range<usize>,
    vectors: Range<usize>,
    classes: Range<usize>,
    /// `[panel][vector][class]`, as in a layer.
    weights: Vec<Lanes>,
    moments: Moments,
    /// Gradient of the rows so far, where a batch has more than are packed at a time.
    sums: Vec<Lanes>,
    /// Lanes over its classes; empty but in the first slice.
    bias: Vec<Lanes>,
    bias_moments: Moments,
    bias_sums: Vec<f32>,
}

/// Consecutive rows of one batch that are packed at a time.
#[derive(Clone, Copy)]
struct Chunk<'o> {
    rows: &'o [usize],
    /// Rows of the batch, and its number.
    batch: usize,
    number: u64,
    begins: bool,
    ends: bool,
}

/// What the threads of a team share.
struct Shared<'s, 'a> {
    task: &'s Task<'s, 'a>,
    order: &'s [usize],
    batch_size: usize,
    start: u64,
    pace: &'s (dyn Fn(u64) -> Pace + Sync),
    classes: usize,
    slices: usize,
    /// Blocks of a chunk at most.
    blocks: usize,
    /// `[slice][block][class]`: the logits in parts.
    logits: Board<Lanes>,
    /// `[block][class]`.
    errors: Board<Lanes>,
    /// Of each block.
    found: Board<Tally>,
    passed: Board<Passed>,
}

impl Shared<'_, '_> {
    fn chunks(&self) -> impl Iterator<Item = Chunk<'_>> {
        (self.start..).zip(self.order.chunks(self.batch_size)).flat_map(|(number, batch)| {
            let count = batch.len().div_ceil(PACKED_ROWS);
            batch.chunks(PACKED_ROWS).enumerate().map(move |(at, rows)| Chunk {
                rows,
                batch: batch.len(),
                number,
                begins: at == 0,
                ends: at + 1 == count,
            })
        })
    }

    /// One thread's part of every step.
    fn work(&self, layer: &Dense, member: &mut Member<'_>, own: &mut [Unit]) {
        let (Some(from), Some(to)) = (own.first().map(|unit| unit.vectors.start), own.last().map(|unit| unit.vectors.end)) else {
            return;
        };
        // With several groups of classes a thread may begin amid a slice: it needs the whole of what it touches.
        let (from, to) = own.iter().fold((from, to), |(from, to), unit| (from.min(unit.vectors.start), to.max(unit.vectors.end)));
        let columns = from * LANES..layer.features().min(to * LANES);
        let (simd, classes, task) = (layer.simd, self.classes, self.task);
        let mut packed = Packed::default();
        // SAFETY: nobody writes it before all have met.
        let mut passed = unsafe { self.passed.read(0..1)[0].clone() };
        let mut batch_found = Tally::default();
        let mut chunks = self.chunks().peekable();
        while let Some(chunk) = chunks.next() {
            let next = chunks.peek().map_or(&[][..], |next| next.rows);
            let rows = packed.rows(&task.features, &columns, chunk.rows, next);
            for (block, rows) in blocks(&rows).enumerate() {
                for unit in &*own {
                    let start = (unit.slice * self.blocks + block) * classes;
                    let (weights, bias) = (&unit.weights[..], &unit.bias[..]);
                    let vectors = unit.vectors.start - from..unit.vectors.end - from;
                    // SAFETY: the classes of a unit in its slice are its own until all meet.
                    let logits = unsafe { self.logits.write(start + unit.classes.start..start + unit.classes.end) };
                    simd.run(Forward { rows, vectors, weights, bias, logits });
                }
            }
            member.meet();
            let share = 1.0 / chunk.batch as f32;
            for (block, rows) in chunk.rows.chunks(BLOCK).enumerate().skip(member.number).step_by(member.of()) {
                self.differentiate(layer, block, rows, share);
            }
            member.meet();
            let count = chunk.rows.len().div_ceil(BLOCK);
            // SAFETY: nobody writes either before all have met again.
            let (errors, found) = unsafe { (self.errors.read(0..count * classes), self.found.read(0..count)) };
            found.iter().for_each(|found| batch_found.add(found));
            for unit in &mut *own {
                let start = unit.vectors.start - from;
                unit.learn(layer, Errors { rows, start, errors, classes, class: unit.classes.start }, &chunk, self.pace);
            }
            if chunk.ends && !passed.see(&std::mem::take(&mut batch_found)) {
                break;
            }
        }
        if member.number == 0 {
            // SAFETY: only the first thread writes it, and nobody reads it before the team is done.
            unsafe { self.passed.write(0..1)[0] = passed };
        }
    }

    /// Errors of one block, whose logits are all there.
    fn differentiate(&self, layer: &Dense, block: usize, rows: &[usize], share: f32) {
        let mut labels = [0; BLOCK];
        labels.iter_mut().zip(rows).for_each(|(label, &row)| *label = self.task.labels[row]);
        let mut parts = [&[][..]; MOST_SLICES];
        for (slice, part) in parts[..self.slices].iter_mut().enumerate() {
            let start = (slice * self.blocks + block) * self.classes;
            // SAFETY: all have met since they were written, and will before they are again.
            *part = unsafe { self.logits.read(start..start + self.classes) };
        }
        // SAFETY: each block is differentiated by one thread, and read by others after all have met.
        let errors = unsafe { self.errors.write(block * self.classes..(block + 1) * self.classes) };
        // SAFETY: as above.
        let found = unsafe { &mut self.found.write(block..block + 1)[0] };
        let labels = &labels[..rows.len()];
        let parts = &parts[..self.slices];
        layer.simd.run(Differentiate { target: self.task.target, labels, share, parts, errors, found });
    }
}

impl Unit {
    /// Adds the gradient of a chunk; with the last one of a batch, takes the step.
    fn learn(&mut self, layer: &Dense, of: Errors<'_>, chunk: &Chunk<'_>, pace: &dyn Fn(u64) -> Pace) {
        let (simd, vectors) = (layer.simd, self.vectors.len());
        if chunk.begins {
            self.bias_sums.fill(0.0);
            if !chunk.ends {
                zero(&mut self.sums, self.weights.len());
            }
        }
        add_errors(of.errors, of.classes, of.class, &mut self.bias_sums);
        if !chunk.ends {
            return simd.run(Accumulate { of, vectors, sums: &mut self.sums });
        }
        let pace = pace(chunk.number);
        let sums = if chunk.begins { &[][..] } else { &self.sums };
        let Moments { first, second } = &mut self.moments;
        simd.run(Update { of, vectors, pace, sums, weights: &mut self.weights, first, second });
        if !self.bias.is_empty() {
            let sums = lanes(self.bias_sums.iter().copied());
            let Moments { first, second } = &mut self.bias_moments;
            simd.run(Finish { pace: pace.bias(), parts: &[&sums], weights: &mut self.bias, first, second });
        }
    }
}

/// Rows of batches that go by shares: all but a short last one.
fn large_rows(rows: usize, batch_size: usize) -> usize {
    let over = rows % batch_size;
    if over < LARGE_BATCH { rows - over } else { rows }
}
