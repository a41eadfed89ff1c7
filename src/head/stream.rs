//! A fit on features that are not in memory: they come in windows, the next read while the last is trained on.
//!
//! ```text
//! rows ─▶ pieces of 64 neighbours, in a new order each epoch
//!      ─▶ windows of some thousand pieces, read in parallel, their rows in a new order
//!      ─▶ batches; the rows that fill none go into the next window
//! ```
//!
//! Pieces are long enough to be read quickly and short enough that a window is a fair sample of features sorted by class.
//! Without `shuffle` the rows come in their order, and the head is to the bit that of a fit in memory.

use std::error::Error;
use std::sync::{Mutex, PoisonError};

use ndarray::ArrayView2;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::features::Features;
use super::fit::{Fitted, OnEpoch, Weights, check_lists, solved};
use super::part::{Listed, OnPart, Part, Parts};
use super::ridge::Given;
use super::standardize::{BLOCK_ROWS, Moments, Standardization};
use super::statistics::{Change, Statistics};
use super::{Checkpoints, HeadError, HeadValidParams, Solver, adam, lbfgs, ridge};

/// Neighbouring rows that stay together until a window is shuffled.
const PIECE: usize = 64;

/// Bytes of a window at most: a larger one is no better a sample, and nothing is trained until the first is read.
const MOST_WINDOW: usize = 256 << 20;

/// Features that are not in memory.
pub trait FeatureSource: Sync {
    /// Values D of a row.
    fn width(&self) -> usize;

    /// Copies rows, which are given in ascending order, into `out`, `[rows, D]`.
    ///
    /// # Errors
    /// When they cannot be read.
    fn read(&self, rows: &[usize], out: &mut [f32]) -> Result<(), Box<dyn Error + Send + Sync>>;
}

/// What a head is fitted on where the features are not in memory.
#[derive(Clone, Copy)]
pub struct Streamed<'a> {
    /// The features; finite in the listed rows.
    pub source: &'a dyn FeatureSource,
    /// Label of each row, an index into `classes`; rows that are not listed below may have none.
    pub labels: &'a [Option<i32>],
    /// Rows to train on, in ascending order.
    pub train: &'a [usize],
    /// Rows to validate on after each epoch, in ascending order; may be empty.
    pub holdout: &'a [usize],
    /// Rows that a refit adds to those to train on, in ascending order.
    pub refit: &'a [usize],
    /// Class names.
    pub classes: &'a [String],
    /// Bytes that features may take in memory: two windows, in which there must be room for a batch and a piece each.
    pub memory: usize,
}

/// Fits a head by `adam` as [`super::fit_resumable`] does, on features that are read anew in each epoch. With `shuffle` it sees
/// the rows in another order than a fit in memory; without it, the bits are the same. `lbfgs` reads them anew in each evaluation
/// of the objective, one or two an iteration, and finds the same optimum to rounding; `ridge` reads them a few times in all.
///
/// # Errors
/// As [`super::fit_resumable`], when features cannot be read, the memory is too small for the batches, or another solver is
/// asked for.
pub fn fit_streamed(
    params: &HeadValidParams,
    streamed: &Streamed<'_>,
    checkpoints: Option<&mut Checkpoints<'_>>,
    on_epoch: OnEpoch<'_>,
) -> Result<Fitted, HeadError> {
    if params.solver == Solver::Linfa {
        let expected =
            "adam, lbfgs or ridge for features that are not in memory; set head.solver to one of them, or raise head.memory";
        return Err(HeadError::Parameter { name: "solver", found: params.solver.to_string(), expected });
    }
    let Streamed { source, train, holdout, refit, classes, memory, .. } = *streamed;
    let labels = check_lists(streamed.labels, source.width(), [train, holdout, refit], classes)?;
    let listed = Listed { labels: &labels, train, holdout, refit, classes: classes.len() };
    let batch = if params.solver == Solver::Adam { params.batch_size.min(train.len()) } else { 1 };
    let window = Stream::room(source.width(), memory, batch)?;
    let mut stream = Stream { source, listed, window, standardization: None, windows: Mutex::default() };
    if params.solver == Solver::Ridge {
        let mut statistics: Option<Statistics> = None;
        stream.each_part(train, None, BLOCK_ROWS, &mut |part| {
            // A window that only holds rows that are over hands none out.
            if part.order.is_empty() {
                return Ok(());
            }
            let x = part.features.matrix();
            match &mut statistics {
                Some(statistics) => statistics.change(Change::Add, x, part.labels, part.order),
                none => *none = Some(Statistics::of(x, part.labels, part.order, classes.len())),
            }
            Ok(())
        })?;
        let statistics = statistics.ok_or(HeadError::Ridge)?;
        stream.standardization = Some(statistics.standardization());
        let found = ridge::solve(params, Given { parts: &stream, statistics, classes }, on_epoch)?;
        return solved(found, None, classes);
    }
    if params.standardize() {
        let mut moments = Some(Moments::none(source.width()));
        stream.each_part(train, None, BLOCK_ROWS, &mut |part| {
            moments = moments.take().map(|moments| moments.and(part.features.matrix(), part.order));
            Ok(())
        })?;
        stream.standardization = moments.map(Moments::standardization);
    }
    let found = if params.solver == Solver::Lbfgs {
        lbfgs::solve_parts(params, &stream, source.width(), on_epoch)?
    } else {
        let initial = Weights::glorot_uniform(source.width(), classes.len(), params.seed);
        adam::solve(params, &stream, &initial, checkpoints, on_epoch)?
    };
    solved(found, stream.standardization, classes)
}

/// Rows that come in windows.
struct Stream<'a> {
    source: &'a dyn FeatureSource,
    listed: Listed<'a>,
    /// Rows of a window.
    window: usize,
    standardization: Option<Standardization>,
    /// Kept from pass to pass, since new memory costs as much as filling it.
    windows: Mutex<[Window; 2]>,
}

/// Rows in memory.
#[derive(Default)]
struct Window {
    /// Row-major.
    values: Vec<f32>,
    rows: Vec<usize>,
    labels: Vec<usize>,
    /// The order in which they are taken.
    order: Vec<usize>,
}

impl Stream<'_> {
    /// Rows of a window: half of the memory, but no more than is useful.
    fn room(width: usize, memory: usize, batch: usize) -> Result<usize, HeadError> {
        let least = batch.max(BLOCK_ROWS) + PIECE;
        let row = (width * size_of::<f32>()).max(1);
        let room = memory / 2 / row;
        if room < least {
            let found = format!("{} MiB", memory >> 20);
            let expected =
                "room for two windows of 1,088 rows each, or of a batch of adam and 64 rows where that is more; raise it";
            return Err(HeadError::Parameter { name: "memory", found, expected });
        }
        Ok(room.min(MOST_WINDOW / row).max(least))
    }
}

impl Parts for Stream<'_> {
    fn listed(&self) -> Listed<'_> {
        self.listed
    }

    fn each_part(&self, rows: &[usize], mut shuffle: Option<ChaCha8Rng>, whole: usize, act: OnPart<'_>) -> Result<(), HeadError> {
        let mut pieces: Vec<&[usize]> = rows.chunks(PIECE).collect();
        if let Some(rng) = &mut shuffle {
            pieces.shuffle(rng);
        }
        // Room is left for the rows that are over from the window before.
        let over = whole.min(rows.len()).saturating_sub(1);
        let mut groups = pieces.chunks(((self.window - over.min(self.window - PIECE)) / PIECE).max(1));
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let [current, next] = &mut *windows;
        let mut group = groups.next();
        current.read(self, 0, group.unwrap_or_default())?;
        while group.is_some() {
            group = groups.next();
            current.order.clear();
            current.order.extend(0..current.rows.len());
            if let Some(rng) = &mut shuffle {
                current.order.shuffle(rng);
            }
            let over = if group.is_some() { current.rows.len() % whole } else { 0 };
            let (taken, left) = current.order.split_at(current.rows.len() - over);
            let mut read = Ok(());
            let acted = rayon::scope(|scope| {
                if let Some(pieces) = group {
                    let (next, read) = (&mut *next, &mut read);
                    scope.spawn(move |_| *read = next.read(self, over, pieces));
                }
                act(current.part(self, taken))
            });
            acted?;
            read?;
            if group.is_some() {
                next.take(current, left, self.source.width());
            }
            std::mem::swap(current, next);
        }
        Ok(())
    }
}

impl Window {
    fn part<'a>(&'a self, stream: &'a Stream<'_>, order: &'a [usize]) -> Part<'a> {
        let width = stream.source.width();
        // Never fails: the values are as many as the rows want.
        let x = ArrayView2::from_shape((self.rows.len(), width), &self.values[..self.rows.len() * width]);
        let x = x.unwrap_or_else(|_| ArrayView2::from(&[[0.0_f32; 0]; 0]));
        let features = Features::new(x, stream.standardization.as_ref()).named(&self.rows);
        Part { features, labels: &self.labels, order }
    }

    /// Reads pieces, with room for `over` rows before them.
    fn read(&mut self, stream: &Stream<'_>, over: usize, pieces: &[&[usize]]) -> Result<(), HeadError> {
        let width = stream.source.width();
        self.rows.clear();
        self.rows.resize(over, 0);
        pieces.iter().for_each(|piece| self.rows.extend_from_slice(piece));
        self.labels.clear();
        self.labels.extend(self.rows.iter().map(|&row| stream.listed.labels[row]));
        if self.values.is_empty() {
            // At once, and as zeros that the system gives: what is read is the first to touch them, on every thread.
            self.values = vec![0.0; stream.window * width];
        }
        let mut rest = &mut self.values[over * width..];
        let mut places = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let (place, after) = rest.split_at_mut(piece.len() * width);
            places.push((*piece, place));
            rest = after;
        }
        places.into_par_iter().try_for_each(|(piece, place)| stream.source.read(piece, place)).map_err(HeadError::Source)
    }

    /// Puts rows of another window into the room before those that were read.
    fn take(&mut self, from: &Self, rows: &[usize], width: usize) {
        for (place, &row) in rows.iter().enumerate() {
            self.rows[place] = from.rows[row];
            self.labels[place] = from.labels[row];
            self.values[place * width..][..width].copy_from_slice(&from.values[row * width..][..width]);
        }
    }
}

#[cfg(test)]
mod tests;
