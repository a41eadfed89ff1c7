//! A fit from start to end: check the examples, standardize, draw the initial weights, run the solver.

use std::cell::Cell;
use std::ops::ControlFlow;

use linfa::dataset::AsSingleTargets;
use linfa::traits::Fit;
use linfa::{DatasetBase, ParamGuard as _};
use ndarray::{Array1, Array2, ArrayBase, ArrayView2, Axis, Data, Ix2};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::checkpoint::Checkpoints;
use super::dense::Dense;
use super::features::Features;
use super::ridge::Given;
use super::standardize::Standardization;
use super::statistics::Statistics;
use super::{Head, HeadError, HeadParams, HeadValidParams, HoldOut, Ridge, Solver, adam, hold_out, lbfgs, logistic, ridge};
use crate::run::EpochRecord;

/// Told of each epoch as it ends; `Break` ends the training there, and what was trained is kept.
pub type OnEpoch<'a> = &'a mut dyn FnMut(&EpochRecord) -> ControlFlow<()>;

/// What a head is fitted on: one matrix, and which of its rows train and which are held out. Nothing is copied.
#[derive(Clone, Copy, Debug)]
pub struct Examples<'a> {
    /// Features `[N, D]`.
    pub x: ArrayView2<'a, f32>,
    /// Label of each of the N rows, an index into `classes`; rows that are not listed below may have none.
    pub labels: &'a [Option<i32>],
    /// Rows to train on.
    pub train: &'a [usize],
    /// Rows to validate on after each epoch; may be empty.
    pub holdout: &'a [usize],
    /// Rows that a refit adds to those to train on: those held out or, where several views of an image are rows, each of theirs.
    pub refit: &'a [usize],
    /// Class names.
    pub classes: &'a [String],
}

/// Weights of a dense layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    /// `[D, K]`.
    pub kernel: Array2<f32>,
    /// `[K]`.
    pub bias: Array1<f32>,
}

impl Weights {
    /// Keras' initial weights of a dense layer: a Glorot-uniform kernel drawn from the seed, and a zero bias.
    pub fn glorot_uniform(features: usize, classes: usize, seed: u64) -> Self {
        let limit = (6.0 / (features + classes) as f64).sqrt();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // From the bits, so that a release of `rand` cannot change a head.
        let mut draw = || (2.0 * f64::from(rng.next_u32()) / f64::from(u32::MAX) - 1.0) * limit;
        Self { kernel: Array2::from_shape_simple_fn((features, classes), || draw() as f32), bias: Array1::zeros(classes) }
    }

    /// Multiplies every weight.
    pub(super) fn scale(&mut self, factor: f64) {
        self.kernel.mapv_inplace(|value| value * factor as f32);
        self.bias.mapv_inplace(|value| value * factor as f32);
    }

    pub(super) fn pack(&self) -> Dense {
        Dense::pack(self.kernel.view(), self.bias.view())
    }

    pub(super) fn unpack(layer: &Dense) -> Self {
        let (kernel, bias) = layer.unpack();
        Self { kernel, bias }
    }
}

/// What a fit gives.
#[derive(Clone, Debug)]
pub struct Fitted {
    /// The head.
    pub head: Head,
    /// One record an epoch; a solver without epochs leaves one record of the fitted head.
    pub history: Vec<EpochRecord>,
    /// With early stopping, the epoch whose weights the head has.
    pub best_epoch: Option<usize>,
    /// Epochs that an earlier fit had done, whose checkpoint this one went on from.
    pub resumed_after: usize,
    /// The strength of L2 that was used.
    pub l2: f64,
    /// Of `lbfgs` and `linfa`: whether the weights are as near to the optimum as was asked for. Never where there is none, since
    /// every training row is right and no L2 holds the weights.
    pub converged: Option<bool>,
    /// What a user should know before trusting the head.
    pub warnings: Vec<String>,
    /// What `ridge` leaves beside the head.
    pub ridge: Option<Ridge>,
}

/// What a solver gives.
pub(super) struct Solved {
    pub(super) weights: Weights,
    pub(super) history: Vec<EpochRecord>,
    pub(super) best_epoch: Option<usize>,
    pub(super) resumed_after: usize,
    pub(super) l2: f64,
    pub(super) converged: Option<bool>,
    pub(super) warnings: Vec<String>,
    pub(super) ridge: Option<Ridge>,
    /// Where it is another one than that of the rows that the solver was given.
    pub(super) standardization: Option<Standardization>,
}

impl Solved {
    pub(super) fn new(weights: Weights, history: Vec<EpochRecord>, l2: f64) -> Self {
        Self {
            weights,
            history,
            best_epoch: None,
            resumed_after: 0,
            l2,
            converged: None,
            warnings: Vec::new(),
            ridge: None,
            standardization: None,
        }
    }
}

/// What a solver sees: examples that have been checked.
pub(super) struct Problem<'a> {
    pub(super) features: Features<'a>,
    /// Label of each row of the matrix; anything for rows that are not listed.
    pub(super) labels: &'a [usize],
    pub(super) train: &'a [usize],
    pub(super) holdout: &'a [usize],
    pub(super) refit: &'a [usize],
    pub(super) classes: usize,
}

impl Problem<'_> {
    /// Share of each class among the training rows.
    pub(super) fn shares(&self) -> Vec<f64> {
        let mut counts = vec![0_usize; self.classes];
        self.train.iter().for_each(|&row| counts[self.labels[row]] += 1);
        counts.into_iter().map(|count| count as f64 / self.train.len() as f64).collect()
    }
}

/// Fits a head. The same settings and examples give the same bits on the same machine, on any number of threads.
///
/// Memory beyond the examples: `adam` a few times the kernel; `lbfgs` a copy of the training rows where features are standardized;
/// `linfa` one in f64; `ridge` some matrices of D x D in f64, of wide features one and a half in all.
///
/// # Errors
/// When the examples are not usable (a label that is no class, a feature that is not finite, one class only, nothing to train
/// on, …) or the solver fails (the loss diverges, …).
pub fn fit(params: &HeadValidParams, examples: &Examples<'_>, on_epoch: OnEpoch<'_>) -> Result<Fitted, HeadError> {
    let initial = Weights::glorot_uniform(examples.x.ncols(), examples.classes.len(), params.seed);
    fit_from(params, examples, &initial, on_epoch)
}

/// Fits a head as [`fit`] does, but keeps checkpoints (`adam`), and goes on from one where there is one: to the same bits as
/// without the interruption.
///
/// # Errors
/// As [`fit`], and when `on_epoch` breaks and the checkpoint cannot be written.
pub fn fit_resumable(
    params: &HeadValidParams,
    examples: &Examples<'_>,
    checkpoints: &mut Checkpoints<'_>,
    on_epoch: OnEpoch<'_>,
) -> Result<Fitted, HeadError> {
    let initial = Weights::glorot_uniform(examples.x.ncols(), examples.classes.len(), params.seed);
    run(params, examples, &initial, Some(checkpoints), on_epoch)
}

/// Fits a head by `ridge` on rows of which the statistics alone are left. `held` lists those held out, which choose the strength of L2
/// and the logit scale, and none to train on.
///
/// # Errors
/// As [`fit`], and where no row is held out or another solver is asked for.
pub fn fit_summed(
    params: &HeadValidParams,
    statistics: Statistics,
    held: &Examples<'_>,
    on_epoch: OnEpoch<'_>,
) -> Result<Fitted, HeadError> {
    let Examples { x, holdout, refit, classes, .. } = *held;
    let refused = |name, found: String, expected| Err(HeadError::Parameter { name, found, expected });
    if params.solver != Solver::Ridge || params.augments() {
        let expected = "ridge, and views that are averaged: nothing else can be fitted on sums of the rows";
        return refused("solver", params.solver.to_string(), expected);
    }
    if holdout.is_empty() {
        let expected = "a share above 0: without the rows, those held out choose the strength of L2";
        return refused("validation_split", params.validation_split.to_string(), expected);
    }
    if x.ncols() != statistics.features() {
        return Err(HeadError::Size { what: "features of a row", found: x.ncols(), expected: statistics.features() });
    }
    statistics.check_classes(classes)?;
    let labels = classes_of(held.labels, holdout.iter().chain(refit), classes.len())?;
    let standardization = statistics.standardization();
    let features = Features::new(x, Some(&standardization));
    let problem = Problem { features, labels: &labels, train: &[], holdout, refit, classes: classes.len() };
    let found = ridge::solve(params, Given { parts: &problem, statistics, classes }, on_epoch)?;
    solved(found, Some(standardization.clone()), classes)
}

/// Fits a head from given weights; a solver whose problem has one optimum goes its own way to it all the same.
///
/// # Errors
/// As [`fit`], and when the weights do not have the shape of the examples.
pub fn fit_from(
    params: &HeadValidParams,
    examples: &Examples<'_>,
    initial: &Weights,
    on_epoch: OnEpoch<'_>,
) -> Result<Fitted, HeadError> {
    run(params, examples, initial, None, on_epoch)
}

fn run(
    params: &HeadValidParams,
    examples: &Examples<'_>,
    initial: &Weights,
    checkpoints: Option<&mut Checkpoints<'_>>,
    on_epoch: OnEpoch<'_>,
) -> Result<Fitted, HeadError> {
    let (features, classes) = (examples.x.ncols(), examples.classes.len());
    let sizes = [
        ("rows of the initial kernel", initial.kernel.nrows(), features),
        ("columns of the initial kernel", initial.kernel.ncols(), classes),
        ("values of the initial bias", initial.bias.len(), classes),
    ];
    for (what, found, expected) in sizes {
        if found != expected {
            return Err(HeadError::Size { what, found, expected });
        }
    }
    let mut prepared = Prepared::new(params, examples)?;
    let statistics = prepared.statistics.take();
    let problem = prepared.problem();
    let solved = match params.solver {
        Solver::Adam => adam::solve(params, &problem, initial, checkpoints, on_epoch)?,
        Solver::Linfa => logistic::solve(params, &problem, on_epoch)?,
        Solver::Lbfgs => lbfgs::solve(params, &problem, on_epoch)?,
        Solver::Ridge => {
            let statistics = statistics.ok_or(HeadError::Ridge)?;
            ridge::solve(params, Given { parts: &problem, statistics, classes: examples.classes }, on_epoch)?
        }
    };
    prepared.finish(solved)
}

/// Fits one head for each strength of L2, whatever `params.l2` says, strongest first: what the fits have in common is done once,
/// and `lbfgs` starts each from the last one's head. Each is handed to `on_head` as soon as it is done; where `on_epoch` breaks,
/// the one in hand and those after it are not.
///
/// # Errors
/// As [`fit`].
pub fn fit_path(
    params: &HeadValidParams,
    examples: &Examples<'_>,
    l2s: &[f64],
    on_epoch: OnEpoch<'_>,
    on_head: &mut dyn FnMut(Fitted),
) -> Result<(), HeadError> {
    let mut l2s = l2s.to_vec();
    l2s.sort_by(|a, b| b.total_cmp(a));
    let stopped = Cell::new(false);
    let mut watch = |record: &EpochRecord| {
        let flow = on_epoch(record);
        stopped.set(flow.is_break());
        flow
    };
    match params.solver {
        Solver::Lbfgs => {
            let prepared = Prepared::new(params, examples)?;
            lbfgs::path(params, &prepared.problem(), &l2s, &mut watch, &mut |found| {
                on_head(prepared.finish(found)?);
                Ok(())
            })?;
        }
        Solver::Ridge if params.budget.is_none() => {
            let prepared = Prepared::new(params, examples)?;
            let statistics = prepared.statistics.as_ref().ok_or(HeadError::Ridge)?;
            let mut found = ridge::path(&prepared.problem(), statistics, &l2s, &mut watch)?;
            if stopped.get() {
                found.pop();
            }
            for found in found {
                on_head(prepared.finish(found)?);
            }
        }
        // What a budget leaves depends on the strength.
        Solver::Adam | Solver::Linfa | Solver::Ridge => {
            for &l2 in &l2s {
                let fitted = fit(&HeadParams { l2: Some(l2), ..(**params).clone() }.check()?, examples, &mut watch)?;
                if stopped.get() {
                    break;
                }
                on_head(fitted);
            }
        }
    }
    Ok(())
}

/// Checked examples and what is taken of them before any solver runs.
struct Prepared<'e, 'a> {
    examples: &'e Examples<'a>,
    labels: Vec<usize>,
    statistics: Option<Statistics>,
    standardization: Option<Standardization>,
}

impl<'e, 'a> Prepared<'e, 'a> {
    fn new(params: &HeadValidParams, examples: &'e Examples<'a>) -> Result<Self, HeadError> {
        let labels = check(examples)?;
        let (x, train) = (examples.x, examples.train);
        let statistics = (params.solver == Solver::Ridge).then(|| Statistics::of(x, &labels, train, examples.classes.len()));
        let standardization = match &statistics {
            Some(statistics) => Some(statistics.standardization()),
            None => params.standardize().then(|| Standardization::estimate(x, train)),
        };
        Ok(Self { examples, labels, statistics, standardization })
    }

    fn problem(&self) -> Problem<'_> {
        Problem {
            features: Features::new(self.examples.x, self.standardization.as_ref()),
            labels: &self.labels,
            train: self.examples.train,
            holdout: self.examples.holdout,
            refit: self.examples.refit,
            classes: self.examples.classes.len(),
        }
    }

    fn finish(&self, found: Solved) -> Result<Fitted, HeadError> {
        solved(found, self.standardization.clone(), self.examples.classes)
    }
}

/// Makes a head of what a solver gave.
pub(super) fn solved(found: Solved, standardization: Option<Standardization>, classes: &[String]) -> Result<Fitted, HeadError> {
    let Solved { weights, history, best_epoch, resumed_after, l2, converged, warnings, ridge, standardization: own } = found;
    let head = Head::new(weights, own.or(standardization), classes.to_vec())?;
    Ok(Fitted { head, history, best_epoch, resumed_after, l2, converged, warnings, ridge })
}

/// Checks everything that the solvers rely on and returns the label of each row.
pub(super) fn check(examples: &Examples<'_>) -> Result<Vec<usize>, HeadError> {
    let rows = examples.x.nrows();
    if examples.labels.len() != rows {
        return Err(HeadError::Size { what: "labels", found: examples.labels.len(), expected: rows });
    }
    let lists = [examples.train, examples.holdout, examples.refit];
    let labels = check_lists(examples.labels, examples.x.ncols(), lists, examples.classes)?;
    let listed: Vec<usize> = lists.concat();
    let bad = listed.par_iter().filter(|&&row| !is_finite(examples.x, row)).min();
    if let Some(&row) = bad {
        let values = examples.x.index_axis_move(Axis(0), row);
        if let Some((feature, &value)) = values.iter().enumerate().find(|(_, value)| !value.is_finite()) {
            return Err(HeadError::NotFinite { row, feature, value });
        }
    }
    Ok(labels)
}

/// Checks labels and the lists of rows to train on and held out, and returns the label of each row.
pub(super) fn check_lists(
    labels: &[Option<i32>],
    width: usize,
    [train, holdout, refit]: [&[usize]; 3],
    classes: &[String],
) -> Result<Vec<usize>, HeadError> {
    if train.is_empty() {
        let labelled = labels.iter().flatten().count();
        let fraction = if holdout.is_empty() { 0.0 } else { 1.0 };
        return Err(HeadError::NothingToTrain { labelled, fraction });
    }
    if width == 0 {
        return Err(HeadError::Size { what: "features of a row", found: 0, expected: 1 });
    }
    let found = classes_of(labels, train.iter().chain(holdout).chain(refit), classes.len())?;
    let first = found[train[0]];
    if train.iter().all(|&row| found[row] == first) {
        return Err(HeadError::OneClass { class: classes[first].clone(), rows: train.len() });
    }
    Ok(found)
}

/// Class of each row; anything for rows that are not listed.
fn classes_of<'r>(
    labels: &[Option<i32>],
    listed: impl Iterator<Item = &'r usize>,
    classes: usize,
) -> Result<Vec<usize>, HeadError> {
    let mut found = vec![usize::MAX; labels.len()];
    for &row in listed {
        let label = *labels.get(row).ok_or(HeadError::NoSuchRow { row, rows: labels.len() })?;
        let class = label.and_then(|label| usize::try_from(label).ok()).filter(|&class| class < classes);
        found[row] = class.ok_or(HeadError::Label { row, label, classes })?;
    }
    Ok(found)
}

fn is_finite(x: ArrayView2<'_, f32>, row: usize) -> bool {
    // Without a shortcut, so that it is vectorized: a bad row is rare.
    x.row(row).iter().fold(true, |finite, value| finite & value.is_finite())
}

impl<D, T> Fit<ArrayBase<D, Ix2>, T, HeadError> for HeadValidParams
where
    D: Data<Elem = f32>,
    T: AsSingleTargets<Elem = usize>,
{
    type Object = Head;

    /// Fits a head on labels 0, 1, …, which name the classes; rows are held out as `validation_split` and `split` (tail where
    /// it is left open) say.
    fn fit(&self, dataset: &DatasetBase<ArrayBase<D, Ix2>, T>) -> Result<Head, HeadError> {
        let targets = dataset.as_single_targets();
        // More classes than rows means that the labels are no indices.
        let rows = targets.len();
        let label = |(row, &label): (usize, &usize)| {
            let index = i32::try_from(label).ok().filter(|_| label < rows);
            index.map(Some).ok_or(HeadError::Label { row, label: i32::try_from(label).ok(), classes: rows })
        };
        let labels: Vec<Option<i32>> = targets.iter().enumerate().map(label).collect::<Result<_, _>>()?;
        let count = targets.iter().max().map_or(0, |&label| label + 1);
        let classes: Vec<String> = (0..count).map(|class| class.to_string()).collect();
        let ids: Vec<String> = (0..labels.len()).map(|row| row.to_string()).collect();
        let split = hold_out(&self.rule(self.split.unwrap_or(HoldOut::Tail)), &ids, &labels, &classes)?;
        let x = dataset.records().view();
        let examples = Examples {
            x,
            labels: &labels,
            train: &split.train,
            holdout: &split.holdout,
            refit: &split.holdout,
            classes: &classes,
        };
        Ok(fit(self, &examples, &mut |_| ControlFlow::Continue(()))?.head)
    }
}

#[cfg(test)]
pub(super) mod tests;
