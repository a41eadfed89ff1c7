//! One-vs-rest least squares with L2 in closed form, on standardized features (Hoerl & Kennard, 1970).
//!
//! ```text
//! rows ──one pass──▶ statistics ──eigenvectors──▶ every strength of L2, and the error of every row were it left out
//!                         │       or, of wide features, one factor and a Krylov space: the same, on average over the rows
//!                         │                                   │ the strength with the smallest error
//!                         └───────Cholesky factor◀────────────┘
//!                                      └──▶ kernel, bias ──logit scale──▶ head
//! ```
//!
//! Targets are 1 for the label and 0 for every other class; the mean of `|y - xW - b|² / 2` plus `l2 / 2 * sum(W²)` is least.
//! With `C` the covariance of the standardized features and `h` a row's leverage, the answer to a row by a fit without it is
//! `y - (y - ŷ) / (1 - h)`, which is exact (Allen's PRESS, 1974; mean and deviation are taken as given). Of features wider than
//! [`WIDE`] the mean leverage stands for that of each row: generalized cross-validation (Golub, Heath & Wahba, 1979).

mod deletion;
mod krylov;
mod squares;
#[cfg(test)]
mod tests;

use std::time::Instant;

use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use self::squares::LeastSquares;
use super::dense::BLOCK_ROWS;
use super::features::Features;
use super::fit::{Examples, OnEpoch, Problem, Solved, Weights, check};
use super::part::{Part, Parts};
use super::statistics::{Change, Statistics, WIDE};
use super::tally::closed_record;
use super::{Head, HeadError, HeadValidParams};
use crate::evaluate::temperature;

/// Strengths that are tried where none is given, three a decade: 1e-6 to 100, and 1e-4 to 100 of wide features.
const PATH: (i32, i32) = (-18, 6);
const WIDE_PATH: (i32, i32) = (-12, 6);

/// Temperature of least-squares answers where none is best: every answer right, or none that says anything.
const SHARP: f64 = 0.05;

/// One strength of L2 on the training rows; a row of `l2_path.csv`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RidgePoint {
    /// The strength.
    pub l2: f64,
    /// Mean over the rows of the squared error (sum over the classes) of the answer by a fit without the row; of wide features
    /// the estimate of generalized cross-validation. None where the fit all but repeats the labels, so that only rounding is left.
    pub leave_one_out_error: Option<f64>,
    /// Share of the rows that such a fit gets right; none of wide features.
    pub leave_one_out_accuracy: Option<f64>,
    /// Mean squared error over the rows held out; none where there are none or the error above decides.
    pub holdout_error: Option<f64>,
    /// Share of the rows held out that the fit gets right.
    pub holdout_accuracy: Option<f64>,
}

/// What a ridge fit leaves beside the head.
#[derive(Clone, Debug)]
pub struct Ridge {
    /// Sufficient statistics of the training rows; with `refit`, of those held out too.
    pub statistics: Statistics,
    /// Every strength that was tried, weakest first.
    pub path: Vec<RidgePoint>,
    /// Logits `[train, K]` of each training row by a fit without it; none of wide features.
    pub left_out: Option<Array2<f32>>,
    /// What the least-squares answers are multiplied with to be logits.
    pub logit_scale: f64,
    /// The features that the head uses, in ascending order; none where it uses all.
    pub kept: Option<Vec<usize>>,
    /// With `refit`, the head before the rows held out were added: the one to judge by them.
    pub before_refit: Option<Head>,
}

/// The strengths that are tried where none is given.
fn path_of_l2(features: usize) -> Vec<f64> {
    let (least, most) = if features > WIDE { WIDE_PATH } else { PATH };
    (least..=most).map(|third| 10_f64.powf(f64::from(third) / 3.0)).collect()
}

/// The strength that gets most of the rows held out right, of equals the one with the smaller error; where nothing is held out or
/// every row could be left out, the one with the smallest error so. Squared errors ask for more L2 than right answers do. Without a
/// path there is one strength, the first.
fn best(path: &[RidgePoint]) -> usize {
    let wrong = |point: &RidgePoint| 1.0 - point.holdout_accuracy.unwrap_or_default();
    let error = |point: &RidgePoint| point.holdout_error.or(point.leave_one_out_error).unwrap_or(f64::INFINITY);
    let points = path.iter().enumerate().rev();
    let best = points.min_by(|(_, a), (_, b)| wrong(a).total_cmp(&wrong(b)).then(error(a).total_cmp(&error(b))));
    best.map_or(0, |(step, _)| step)
}

/// Rows as least squares goes through them, and what is known of the training rows.
pub(super) struct Given<'p> {
    /// Rows standardized as `statistics` says.
    pub(super) parts: &'p dyn Parts,
    pub(super) statistics: Statistics,
    pub(super) classes: &'p [String],
}

/// Fits one head, with the strength of L2 that was asked for or, left open, the one whose error is least.
pub(super) fn solve(params: &HeadValidParams, given: Given<'_>, on_epoch: OnEpoch<'_>) -> Result<Solved, HeadError> {
    let start = Instant::now();
    let Given { parts, mut statistics, classes } = given;
    let l2s = params.l2.map_or_else(|| path_of_l2(statistics.features()), |l2| vec![l2]);
    let kept = kept(params, parts, &statistics, &l2s)?;
    let squares = LeastSquares::new(&statistics, kept.as_deref());
    // Views of an image stand in for each other: leaving one out says nothing. Rows that are gone cannot be left out.
    let train = parts.listed().train;
    let (path, left) = if squares.estimates() || params.augments() || train.is_empty() {
        (estimate(&squares, parts, &l2s)?, None)
    } else {
        let left = squares.leave_one_out(parts, &l2s)?;
        (left.path.clone(), Some(left))
    };
    let step = best(&path);
    let l2 = l2s[step];
    let mut weights = squares.weights(l2)?;
    let left_out = match left {
        Some(left) => Some(left.leave_out(step, parts, answers(&weights, parts, train)?)?),
        None => None,
    };
    let scale = match &left_out {
        None if parts.listed().holdout.is_empty() => {
            let answers = squares.leave_out_by_mean(l2, parts, answers(&weights, parts, train)?)?;
            logit_scale(&weights, parts, Some(&answers))?
        }
        left_out => logit_scale(&weights, parts, left_out.as_ref())?,
    };
    let left_out = left_out.map(|answers| answers.mapv_into(|answer| answer * scale as f32));
    weights.scale(scale);
    let mut standardization = squares.standardization().clone();
    // Of rows that are gone there is no loss.
    let history = if train.is_empty() { Vec::new() } else { vec![closed_record(&weights, parts, start)?] };
    let mut before_refit = None;
    if params.refit() && !parts.listed().refit.is_empty() {
        before_refit = Some(Head::new(weights, Some(standardization), classes.to_vec())?);
        parts.each_part(parts.listed().refit, None, BLOCK_ROWS, &mut |part| {
            statistics.change(Change::Add, part.features.matrix(), part.labels, part.order);
            Ok(())
        })?;
        let squares = LeastSquares::new(&statistics, kept.as_deref());
        weights = squares.weights(l2)?;
        weights.scale(scale);
        standardization = squares.standardization().clone();
    }
    // There is nothing left to break off.
    for record in &history {
        let _ = on_epoch(record);
    }
    let ridge = Ridge { statistics, path, left_out, logit_scale: scale, kept, before_refit };
    let solved = Solved::new(weights, history, l2);
    Ok(Solved { ridge: Some(ridge), standardization: Some(standardization), ..solved })
}

/// What least squares answers to each of some rows by a fit without it.
#[derive(Clone, Debug)]
pub struct LeftOut {
    /// Logits `[train, K]`, in the order of the rows to train on.
    pub logits: Array2<f32>,
    /// The strength of L2 that was chosen.
    pub l2: f64,
    /// What the least-squares answers are multiplied with to be logits.
    pub logit_scale: f64,
}

/// Answers to each training row by a fit without it, all from one factorization; L2 is chosen for the least error of these
/// answers, from one strength a decade, and the scale for their likelihood. Exact; of features wider than [`WIDE`] the mean
/// leverage stands for that of each row.
///
/// # Errors
/// As [`super::fit()`], for examples that are not usable, and when the equations cannot be solved.
pub fn ridge_left_out(examples: &Examples<'_>) -> Result<LeftOut, HeadError> {
    let labels = check(examples)?;
    let (x, train) = (examples.x, examples.train);
    let statistics = Statistics::of(x, &labels, train, examples.classes.len());
    let squares = LeastSquares::new(&statistics, None);
    let features = Features::new(x, Some(squares.standardization()));
    let rows = Problem { features, labels: &labels, train, holdout: &[], refit: &[], classes: examples.classes.len() };
    let l2s: Vec<f64> = path_of_l2(x.ncols()).into_iter().step_by(3).collect();
    let (path, left) = if squares.estimates() {
        (squares.estimate(&rows, &l2s)?, None)
    } else {
        let left = squares.leave_one_out(&rows, &l2s)?;
        (left.path.clone(), Some(left))
    };
    let step = best(&path);
    let weights = squares.weights(l2s[step])?;
    let answers = answers(&weights, &rows, train)?;
    let mut logits = match left {
        Some(left) => left.leave_out(step, &rows, answers)?,
        None => squares.leave_out_by_mean(l2s[step], &rows, answers)?,
    };
    let labels: Vec<Option<i32>> = train.iter().map(|&row| examples.labels[row]).collect();
    let scale = 1.0 / temperature(logits.view(), &labels).map_err(|_| HeadError::Ridge)?.unwrap_or(SHARP);
    logits.mapv_inplace(|answer| answer * scale as f32);
    Ok(LeftOut { logits, l2: l2s[step], logit_scale: scale })
}

/// The features that a budget leaves; none where it leaves all.
fn kept(
    params: &HeadValidParams,
    parts: &dyn Parts,
    statistics: &Statistics,
    l2s: &[f64],
) -> Result<Option<Vec<usize>>, HeadError> {
    let Some(budget) = params.budget.filter(|&budget| budget < statistics.features()) else { return Ok(None) };
    let path = estimate(&LeastSquares::new(statistics, None), parts, l2s)?;
    deletion::select(statistics, l2s[best(&path)], budget).map(Some)
}

/// The path, where there is a choice.
fn estimate(squares: &LeastSquares<'_>, parts: &dyn Parts, l2s: &[f64]) -> Result<Vec<RidgePoint>, HeadError> {
    if l2s.len() > 1 { squares.estimate(parts, l2s) } else { Ok(Vec::new()) }
}

/// Rows by which a logit scale is found.
#[derive(Clone, Copy, Debug)]
pub enum ScaleBy<'a> {
    /// Those held out: features `[N, D]` and labels.
    HeldOut(ArrayView2<'a, f32>, &'a [Option<i32>]),
    /// Where none is: those the statistics are of, each by the fit without it: features `[N, D]` and classes.
    LeftOut(ArrayView2<'a, f32>, &'a [usize]),
}

/// The head that follows from statistics at one strength of L2, and its logit scale.
///
/// # Errors
/// When the statistics are of one class or none, or their equations cannot be solved.
pub fn ridge_head(statistics: &Statistics, classes: &[String], l2: f64, scale_by: ScaleBy<'_>) -> Result<(Head, f64), HeadError> {
    statistics.check_classes(classes)?;
    let squares = LeastSquares::new(statistics, None);
    let mut weights = squares.weights(l2)?;
    let head = |weights| Head::new(weights, Some(squares.standardization().clone()), classes.to_vec());
    let own;
    let (answers, labels) = match scale_by {
        ScaleBy::HeldOut(x, labels) => (head(weights.clone())?.logits(x)?, labels),
        ScaleBy::LeftOut(x, classes) => {
            let train: Vec<usize> = (0..classes.len()).collect();
            let features = Features::new(x, Some(squares.standardization()));
            let rows =
                Problem { features, labels: classes, train: &train, holdout: &[], refit: &[], classes: statistics.classes() };
            let answers = answers(&weights, &rows, &train)?;
            let answers = if squares.estimates() {
                squares.leave_out_by_mean(l2, &rows, answers)?
            } else {
                squares.leave_one_out(&rows, &[l2])?.leave_out(0, &rows, answers)?
            };
            own = classes.iter().map(|&class| i32::try_from(class).ok()).collect::<Vec<_>>();
            (answers, own.as_slice())
        }
    };
    let scale = 1.0 / temperature(answers.view(), labels).map_err(|_| HeadError::Ridge)?.unwrap_or(SHARP);
    weights.scale(scale);
    Ok((head(weights)?, scale))
}

/// Fits one head for each strength of L2; fewer where `on_epoch` breaks.
pub(super) fn path(
    problem: &Problem<'_>,
    statistics: &Statistics,
    l2s: &[f64],
    on_epoch: OnEpoch<'_>,
) -> Result<Vec<Solved>, HeadError> {
    let squares = LeastSquares::new(statistics, None);
    let mut wide = if squares.estimates() { squares.path(l2s)?.into_iter() } else { Vec::new().into_iter() };
    let mut heads = Vec::with_capacity(l2s.len());
    for &l2 in l2s {
        let start = Instant::now();
        let mut weights = wide.next().map_or_else(|| squares.weights(l2), Ok)?;
        weights.scale(logit_scale(&weights, problem, None)?);
        let record = closed_record(&weights, problem, start)?;
        let stop = on_epoch(&record).is_break();
        heads.push(Solved::new(weights, vec![record], l2));
        if stop {
            break;
        }
    }
    Ok(heads)
}

/// What least-squares answers are to be multiplied with to be logits: the inverse of the temperature that is best for the
/// hold-out; where it has none, for the answers to training rows left out, or to training rows as they are.
fn logit_scale(weights: &Weights, parts: &dyn Parts, left_out: Option<&Array2<f32>>) -> Result<f64, HeadError> {
    let listed = parts.listed();
    let best = |answers: &Array2<f32>, rows: &[usize]| {
        let labels: Vec<Option<i32>> = rows.iter().map(|&row| i32::try_from(listed.labels[row]).ok()).collect();
        temperature(answers.view(), &labels).map_err(|_| HeadError::Ridge)
    };
    let held = best(&answers(weights, parts, listed.holdout)?, listed.holdout)?;
    let found = match (held, left_out) {
        (Some(held), _) => Some(held),
        (None, Some(left_out)) => best(left_out, listed.train)?,
        (None, None) => best(&answers(weights, parts, listed.train)?, listed.train)?,
    };
    Ok(1.0 / found.unwrap_or(SHARP))
}

/// Answers `[rows, K]` of a layer.
fn answers(weights: &Weights, parts: &dyn Parts, rows: &[usize]) -> Result<Array2<f32>, HeadError> {
    let layer = weights.pack();
    let classes = parts.listed().classes;
    let mut answers = Vec::with_capacity(rows.len() * classes);
    parts.each_part(rows, None, BLOCK_ROWS, &mut |Part { features, order, .. }| {
        let first = answers.len();
        answers.resize(first + order.len() * classes, 0.0);
        answers[first..].par_chunks_mut(BLOCK_ROWS * classes).zip(order.par_chunks(BLOCK_ROWS)).for_each(|(answers, rows)| {
            layer.logits_into(&features, rows, answers);
        });
        Ok(())
    })?;
    Array2::from_shape_vec((rows.len(), classes), answers).map_err(|_| HeadError::Ridge)
}
