//! Every candidate on every fold.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use ndarray::Array2;
use rayon::prelude::*;

use super::super::fit::{Rows, fit_key};
use super::super::scoring::logits;
use super::super::{Context, PipelineError};
use super::choice::rank;
use super::grid::{Candidate, groups};
use super::journal::{Answers, Journal};
use crate::evaluate;
use crate::events::Event;
use crate::head::{self, Fitted, HeadError, HeadParams, ParamGuard as _, Solver, Split};
use crate::run::Trial;
use crate::store::Store;

/// What candidates are fitted and scored on.
pub(super) struct Trials<'a> {
    pub(super) candidates: &'a [Candidate],
    pub(super) store: &'a Store,
    pub(super) rows: &'a Rows,
    pub(super) folds: &'a [Split],
    pub(super) context: &'a Context<'a>,
    pub(super) journal: &'a Journal<'a>,
    /// Name of the task whose progress is told: fits on a fold.
    pub(super) task: &'static str,
}

/// The candidate that is ahead.
pub(super) struct Best {
    pub(super) candidate: usize,
    /// Its answers to the rows that were held out, fold by fold, `[held, K]`.
    pub(super) logits: Array2<f32>,
    /// The epochs that early stopping chose, one a fold.
    pub(super) best_epochs: Vec<usize>,
}

/// What came out.
#[derive(Default)]
pub(super) struct Tried {
    /// Candidates that are done or failed, by their number.
    pub(super) trials: Vec<(usize, Trial)>,
    /// None where all failed, or none is done.
    pub(super) best: Option<Best>,
    /// Why the first one that failed did.
    failure: Option<(usize, HeadError)>,
}

impl Tried {
    /// Why nothing could be fitted.
    pub(super) fn failure(self) -> HeadError {
        self.failure.map_or(HeadError::Unusable, |(_, error)| error)
    }
}

impl Trials<'_> {
    /// Rows that are held out, fold by fold.
    pub(super) fn held(&self) -> Vec<usize> {
        self.folds.iter().flat_map(|fold| fold.holdout.iter().copied()).collect()
    }

    /// Candidates of which every fit is kept.
    pub(super) fn taken_over(&self) -> usize {
        let is_kept = |candidate: &Candidate| {
            let key = self.key(candidate);
            self.folds.iter().enumerate().all(|(number, fold)| self.journal.has(&key, number, self.shape(fold)))
        };
        self.candidates.iter().filter(|candidate| is_kept(candidate)).count()
    }

    /// Fits and scores all of them; the rest is left once the user stops it.
    pub(super) fn run(&self) -> Result<Tried, PipelineError> {
        let groups = groups(self.candidates);
        let (done, tried) = (AtomicU64::new(0), Mutex::new(Tried::default()));
        let tell = |fits: usize| {
            let done = done.fetch_add(fits as u64, Ordering::Relaxed) + fits as u64;
            (self.context.observe)(Event::Advanced { task: self.task, done });
        };
        let run = |group: &Vec<usize>| self.group(group, &tried, &tell);
        // Heads that take their rows in small batches leave all but one thread idle: so many of them at once.
        let (side_by_side, alone): (Vec<_>, Vec<_>) =
            groups.iter().partition(|group| self.candidates[group[0]].params.solver == Solver::Adam);
        side_by_side.par_iter().try_for_each(|group| run(group))?;
        alone.into_iter().try_for_each(run)?;
        Ok(tried.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Everything that a candidate's fits depend on.
    fn key(&self, candidate: &Candidate) -> String {
        let settings = serde_json::to_value(&candidate.params).unwrap_or_default();
        format!("{}-{}", fit_key(self.store, &settings), self.folds.len())
    }

    /// Rows and classes of a fold's answers.
    fn shape(&self, fold: &Split) -> (usize, usize) {
        (fold.holdout.len(), self.store.manifest().classes.len())
    }

    /// One group on every fold.
    fn group(&self, group: &[usize], tried: &Mutex<Tried>, tell: &dyn Fn(usize)) -> Result<(), PipelineError> {
        let keys: Vec<String> = group.iter().map(|&index| self.key(&self.candidates[index])).collect();
        let mut answers: Vec<Vec<Answers>> = group.iter().map(|_| Vec::new()).collect();
        for (number, fold) in self.folds.iter().enumerate() {
            let mut missing = Vec::new();
            for (place, key) in keys.iter().enumerate() {
                match self.journal.get(key, number, self.shape(fold)) {
                    Some(kept) => answers[place].push(kept),
                    None => missing.push(place),
                }
            }
            tell(group.len() - missing.len());
            if missing.is_empty() {
                continue;
            }
            if self.context.flow().is_break() {
                return Ok(());
            }
            let mut fitted = missing.iter();
            let mut on_head = |found: Answers| {
                if let Some(&place) = fitted.next() {
                    self.journal.add(&keys[place], number, &found);
                    answers[place].push(found);
                    tell(1);
                }
            };
            let indices: Vec<usize> = missing.iter().map(|&place| group[place]).collect();
            match self.fit(&indices, fold, &mut on_head)? {
                Ok(()) if self.context.flow().is_break() => return Ok(()),
                Ok(()) => {}
                Err(error) => {
                    self.failed(group, &answers, error, tried);
                    return Ok(());
                }
            }
        }
        group.iter().zip(answers).try_for_each(|(&index, answers)| self.score(index, answers, tried))
    }

    /// Fits some candidates on one fold and hands out their answers as they are done. The inner error is a candidate's own.
    fn fit(
        &self,
        indices: &[usize],
        fold: &Split,
        on_answers: &mut dyn FnMut(Answers),
    ) -> Result<Result<(), HeadError>, PipelineError> {
        // A head that was fitted again on the rows held out could not be judged by them.
        let first = HeadParams { refit: None, ..self.candidates[indices[0]].params.clone() };
        let params = match first.check() {
            Ok(params) => params,
            Err(error) => return Ok(Err(error)),
        };
        let train = self.rows.unfold(&params, &fold.train);
        let examples = self.rows.examples(&train, &fold.holdout, &self.store.manifest().classes);
        let mut go_on = |_: &_| -> ControlFlow<()> { self.context.flow() };
        let (mut since, mut answered) = (Instant::now(), Ok(()));
        let mut on_head = |fitted: Fitted| {
            let seconds = since.elapsed().as_secs_f64();
            match logits(&fitted.head, &self.rows.fitting, &fold.holdout) {
                Ok(logits) => on_answers(Answers { logits, seconds, best_epoch: fitted.best_epoch }),
                Err(error) => answered = Err(error),
            }
            since = Instant::now();
        };
        let found = if let [_] = indices {
            let mut fit = || head::fit(&params, &examples, &mut go_on);
            let found = if params.solver.can_be_stopped() { fit() } else { self.context.ending_at_once(fit) };
            // Stopped, it is not what was asked for.
            found.map(|fitted| {
                if self.context.flow().is_continue() {
                    on_head(fitted);
                }
            })
        } else {
            let l2s: Vec<f64> = indices.iter().filter_map(|&index| self.candidates[index].params.l2).collect();
            head::fit_path(&params, &examples, &l2s, &mut go_on, &mut on_head)
        };
        answered?;
        match found {
            // Bad data fails every candidate, a bad setting its own.
            Err(error @ (HeadError::NotFinite { .. } | HeadError::OneClass { .. } | HeadError::Label { .. })) => {
                Err(self.rows.name(error))
            }
            found => Ok(found),
        }
    }

    fn failed(&self, group: &[usize], answers: &[Vec<Answers>], error: HeadError, tried: &Mutex<Tried>) {
        let mut tried = tried.lock().unwrap_or_else(PoisonError::into_inner);
        for (&index, answers) in group.iter().zip(answers) {
            let trial = Trial {
                settings: self.candidates[index].varied.clone(),
                accuracy: None,
                accuracy_interval: None,
                loss: None,
                seconds: answers.iter().map(|answers| answers.seconds).sum(),
                error: Some(error.to_string()),
            };
            tried.trials.push((index, trial));
        }
        if tried.failure.as_ref().is_none_or(|(first, _)| group[0] < *first) {
            tried.failure = Some((group[0], error));
        }
    }

    /// Scores what a candidate answers to all rows held out.
    fn score(&self, index: usize, answers: Vec<Answers>, tried: &Mutex<Tried>) -> Result<(), PipelineError> {
        let classes = &self.store.manifest().classes;
        let labels: Vec<Option<i32>> = self.held().into_iter().map(|row| self.rows.fitting.labels[row]).collect();
        let mut logits = Array2::zeros((labels.len(), classes.len()));
        let mut first = 0;
        for answers in &answers {
            let rows = answers.logits.nrows();
            logits.slice_mut(ndarray::s![first..first + rows, ..]).assign(&answers.logits);
            first += rows;
        }
        let score = evaluate::score(logits.view(), &labels, classes)?;
        let trial = Trial {
            settings: self.candidates[index].varied.clone(),
            accuracy: score.as_ref().map(|score| score.accuracy),
            accuracy_interval: score.as_ref().map(|score| score.bootstrap.accuracy),
            loss: score.as_ref().map(|score| score.loss),
            seconds: answers.iter().map(|answers| answers.seconds).sum(),
            error: None,
        };
        let mut tried = tried.lock().unwrap_or_else(PoisonError::into_inner);
        let ahead = tried.best.as_ref().and_then(|best| tried.trials.iter().find(|(index, _)| *index == best.candidate));
        if ahead.is_none_or(|(other, ahead)| rank(&trial, ahead).then(index.cmp(other)).is_lt()) {
            let best_epochs = answers.iter().filter_map(|answers| answers.best_epoch).collect();
            tried.best = Some(Best { candidate: index, logits, best_epochs });
        }
        tried.trials.push((index, trial));
        Ok(())
    }
}
