//! The two products of a dense layer, on weights `[panel][vector][class]`: lanes over features, and panels of five classes.
//!
//! No class is padded, and the twenty sums of four rows or four vectors by five classes stay in registers, fed by nine loads for
//! twenty multiply-adds. What a panel reads lies in one piece.

use super::features::Rows;
use super::simd::{Kernel, LANES, Lanes, Vector};
use super::update::{Pace, step};

/// Classes of a panel; the last one has what is left.
pub(super) const PANEL: usize = 5;

/// Rows whose logits or errors share a vector for each class: `[block][class]`, lanes over rows.
pub(super) const BLOCK: usize = LANES;

/// Calls a function with the number of classes of a panel as a constant.
macro_rules! with_classes {
    ($classes:expr, $call:ident::<$vector:ty, C, $more:tt>($($argument:expr),*)) => {
        match $classes {
            1 => $call::<$vector, 1, { $more }>($($argument),*),
            2 => $call::<$vector, 2, { $more }>($($argument),*),
            3 => $call::<$vector, 3, { $more }>($($argument),*),
            4 => $call::<$vector, 4, { $more }>($($argument),*),
            _ => $call::<$vector, 5, { $more }>($($argument),*),
        }
    };
}

/// Logits of one block of rows: each the sum over the features, in an order that does not depend on the other rows.
pub(super) struct Forward<'a> {
    /// At most [`BLOCK`].
    pub(super) rows: Rows<'a>,
    /// Vectors of a row that count.
    pub(super) vectors: std::ops::Range<usize>,
    pub(super) weights: &'a [Lanes],
    /// Added, if not empty: lanes over classes.
    pub(super) bias: &'a [Lanes],
    /// `[class]`.
    pub(super) logits: &'a mut [Lanes],
}

impl Kernel for Forward<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector, const ROWS: usize, const VECTORS: usize>(self) {
        let vectors = self.vectors.len();
        for first in (0..self.rows.count).step_by(ROWS) {
            // The last group repeats the last row.
            let row = |at: usize| &self.rows.row((first + at).min(self.rows.count - 1))[self.vectors.clone()];
            let rows: [&[Lanes]; ROWS] = std::array::from_fn(row);
            let panels = self.weights.chunks(PANEL * vectors).zip(self.logits.chunks_mut(PANEL));
            for (panel, (weights, logits)) in panels.enumerate() {
                // SAFETY: the caller of `run` vouches for the instruction set of `V`.
                unsafe { with_classes!(logits.len(), logits_of::<V, C, ROWS>(rows, weights, first, logits)) };
                if !self.bias.is_empty() {
                    for (class, logits) in (panel * PANEL..).zip(logits) {
                        let bias = self.bias[class / LANES].0[class % LANES];
                        logits.0[first..first + ROWS].iter_mut().for_each(|logit| *logit += bias);
                    }
                }
            }
        }
    }
}

/// # Safety
/// The processor has the instruction set of `V`.
#[inline(always)]
unsafe fn logits_of<V: Vector, const C: usize, const ROWS: usize>(
    rows: [&[Lanes]; ROWS],
    weights: &[Lanes],
    lane: usize,
    logits: &mut [Lanes],
) {
    let weights = weights.as_chunks::<C>().0;
    // One bound for all rows, so that the loop needs no check of its own.
    let rows: [&[Lanes]; ROWS] = std::array::from_fn(|row| &rows[row][..weights.len()]);
    // SAFETY: by the contract of this function.
    unsafe {
        let mut sums = [[V::splat(0.0); ROWS]; C];
        for (vector, weights) in weights.iter().enumerate() {
            let x: [V; ROWS] = std::array::from_fn(|row| V::load(&rows[row][vector].0));
            for class in 0..C {
                let weight = V::load(&weights[class].0);
                for row in 0..ROWS {
                    sums[class][row] = x[row].mul_add(weight, sums[class][row]);
                }
            }
        }
        for (sums, logits) in sums.into_iter().zip(logits) {
            logits.0[lane..lane + ROWS].copy_from_slice(&V::sums(sums));
        }
    }
}

/// Rows and their errors, whose product is the gradient.
#[derive(Clone, Copy)]
pub(super) struct Errors<'a> {
    pub(super) rows: Rows<'a>,
    /// First vector of a row that counts.
    pub(super) start: usize,
    /// `[block][class]`, of all classes.
    pub(super) errors: &'a [Lanes],
    pub(super) classes: usize,
    /// First class that counts.
    pub(super) class: usize,
}

/// Adds the gradient over some rows to `sums`, as many vectors of a row and classes as they have room for.
pub(super) struct Accumulate<'a> {
    pub(super) of: Errors<'a>,
    pub(super) vectors: usize,
    pub(super) sums: &'a mut [Lanes],
}

/// A step of Adam from the gradient over some rows, which is not stored: it is summed in registers, and weights and moments are
/// updated on the spot.
pub(super) struct Update<'a> {
    pub(super) of: Errors<'a>,
    pub(super) vectors: usize,
    pub(super) pace: Pace,
    /// What earlier rows of the batch left, if not empty.
    pub(super) sums: &'a [Lanes],
    pub(super) weights: &'a mut [Lanes],
    pub(super) first: &'a mut [Lanes],
    pub(super) second: &'a mut [Lanes],
}

/// Calls a function for every tile of every panel: with the class it starts at, the vector, and its place among the weights.
macro_rules! each_tile {
    ($self:ident, $all:expr, $V:ty, $VECTORS:ident, $tile:ident) => {
        let (vectors, length) = ($self.vectors, $all);
        let mut vector = 0;
        while vector < vectors {
            let several = vector + $VECTORS <= vectors;
            for (panel, start) in (0..length).step_by(PANEL * vectors).enumerate() {
                let classes = ((length - start) / vectors).min(PANEL);
                let (class, place) = ($self.of.class + panel * PANEL, start + vector * classes);
                // SAFETY: the caller of `run` vouches for the instruction set of `V`.
                unsafe {
                    if several {
                        with_classes!(classes, $tile::<$V, C, $VECTORS>(&mut $self, class, vector, place));
                    } else {
                        with_classes!(classes, $tile::<$V, C, 1>(&mut $self, class, vector, place));
                    }
                }
            }
            vector += if several { $VECTORS } else { 1 };
        }
    };
}

impl Kernel for Accumulate<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector, const ROWS: usize, const VECTORS: usize>(mut self) {
        each_tile!(self, self.sums.len(), V, VECTORS, accumulate);
    }
}

impl Kernel for Update<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector, const ROWS: usize, const VECTORS: usize>(mut self) {
        each_tile!(self, self.weights.len(), V, VECTORS, update);
    }
}

/// # Safety
/// The processor has the instruction set of `V`.
#[inline(always)]
unsafe fn accumulate<V: Vector, const C: usize, const VECTORS: usize>(
    all: &mut Accumulate<'_>,
    class: usize,
    vector: usize,
    place: usize,
) {
    let Some(so_far) = tile_mut::<C, VECTORS>(all.sums, place) else { return };
    // SAFETY: by the contract of this function.
    unsafe {
        let sums = add_rows(&all.of, class, vector, load::<V, C, VECTORS>(so_far));
        for at in 0..VECTORS {
            for class in 0..C {
                sums[at][class].store(&mut so_far[at][class]);
            }
        }
    }
}

/// # Safety
/// The processor has the instruction set of `V`.
#[inline(always)]
unsafe fn update<V: Vector, const C: usize, const VECTORS: usize>(
    all: &mut Update<'_>,
    class: usize,
    vector: usize,
    place: usize,
) {
    let weights = tile_mut::<C, VECTORS>(all.weights, place);
    let moments = (tile_mut::<C, VECTORS>(all.first, place), tile_mut::<C, VECTORS>(all.second, place));
    let (Some(weights), (Some(first), Some(second))) = (weights, moments) else { return };
    // SAFETY: by the contract of this function.
    unsafe {
        let so_far = match tile::<C, VECTORS>(all.sums, place) {
            Some(so_far) => load(so_far),
            None => [[V::splat(0.0); C]; VECTORS],
        };
        let sums = add_rows(&all.of, class, vector, so_far);
        for at in 0..VECTORS {
            for class in 0..C {
                step(all.pace, sums[at][class], &mut weights[at][class], &mut first[at][class], &mut second[at][class]);
            }
        }
    }
}

#[inline(always)]
fn tile<const C: usize, const VECTORS: usize>(lanes: &[Lanes], place: usize) -> Option<&[[Lanes; C]; VECTORS]> {
    lanes.get(place..)?.as_chunks::<C>().0.first_chunk()
}

#[inline(always)]
fn tile_mut<const C: usize, const VECTORS: usize>(lanes: &mut [Lanes], place: usize) -> Option<&mut [[Lanes; C]; VECTORS]> {
    lanes.get_mut(place..)?.as_chunks_mut::<C>().0.first_chunk_mut()
}

/// # Safety
/// The processor has the instruction set of `V`.
#[inline(always)]
unsafe fn load<V: Vector, const C: usize, const VECTORS: usize>(tile: &[[Lanes; C]; VECTORS]) -> [[V; C]; VECTORS] {
    // SAFETY: by the contract of this function.
    unsafe {
        let mut out = [[V::splat(0.0); C]; VECTORS];
        for at in 0..VECTORS {
            for class in 0..C {
                out[at][class] = V::load(&tile[at][class].0);
            }
        }
        out
    }
}

/// # Safety
/// The processor has the instruction set of `V`.
#[inline(always)]
unsafe fn add_rows<V: Vector, const C: usize, const VECTORS: usize>(
    of: &Errors<'_>,
    class: usize,
    vector: usize,
    mut sums: [[V; C]; VECTORS],
) -> [[V; C]; VECTORS] {
    let from = of.start + vector;
    for (block, errors) in of.errors.chunks(of.classes).enumerate() {
        let Some(errors) = errors[class..].first_chunk::<C>() else { break };
        for lane in 0..BLOCK.min(of.rows.count - block * BLOCK) {
            let row = &of.rows.row(block * BLOCK + lane)[from..from + VECTORS];
            // SAFETY: by the contract of this function.
            unsafe {
                let x: [V; VECTORS] = std::array::from_fn(|at| V::load(&row[at].0));
                for class in 0..C {
                    let error = V::splat(errors[class].0[lane]);
                    for at in 0..VECTORS {
                        sums[at][class] = x[at].mul_add(error, sums[at][class]);
                    }
                }
            }
        }
    }
    sums
}
