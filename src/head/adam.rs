//! Softmax regression by Adam on minibatches, to the letter of Keras 3.
//!
//! Epoch by epoch: an order of the rows, a step a batch (`step.rs`), the hold-out scored. Beside the loop stand the schedule
//! of the learning rate, early stopping and checkpoints; none of them knows of another.

use std::time::Instant;

use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

use super::answer::Target;
use super::checkpoint::{Checkpoints, State};
use super::dense::{BLOCK_ROWS, Dense};
use super::dropout::Dropout;
use super::early::EarlyStopping;
use super::fit::{OnEpoch, Solved, Weights};
use super::gather::Task;
use super::part::{Listed, Parts};
use super::schedule::Rates;
use super::step::Adam;
use super::tally::Tally;
use super::{HeadError, HeadValidParams};
use crate::run::EpochRecord;

/// An epoch whose mean loss is this many times the first batch's has diverged.
const DIVERGED: f64 = 100.0;

/// A training loss so many times that of a guess is worth a warning.
const WORTHLESS: f64 = 3.0;

/// Trains from the given weights, or from where a checkpoint left off.
pub(super) fn solve(
    params: &HeadValidParams,
    problem: &dyn Parts,
    initial: &Weights,
    mut checkpoints: Option<&mut Checkpoints<'_>>,
    on_epoch: OnEpoch<'_>,
) -> Result<Solved, HeadError> {
    let listed = problem.listed();
    let mut early = params.patience.map(|patience| EarlyStopping::new(patience, params.min_delta.unwrap_or(0.0)));
    if let (Some(patience), true) = (params.patience, listed.holdout.is_empty()) {
        let expected = "rows held out, whose loss it watches; set head.validation_split above 0, or take head.patience out";
        return Err(HeadError::Parameter { name: "patience", found: patience.to_string(), expected });
    }
    let resumed = checkpoints.as_mut().and_then(|checkpoints| checkpoints.resume(initial.kernel.dim(), params.epochs));
    let resumed_after = resumed.as_ref().map_or(0, |state| state.history.len());
    let State { weights, first, second, steps, first_loss, mut history, best } = resumed.unwrap_or_else(|| State::start(initial));
    let mut training = Training {
        params,
        problem,
        target: Target::new(params.label_smoothing.unwrap_or(0.0), params.class_weights().of(&listed)?),
        rates: Rates::plan(params, listed.train.len()),
        layer: weights.pack(),
        adam: Adam::new(steps, first.pack(), second.pack()),
        first_loss,
    };
    if let Some(early) = &mut early {
        early.best = best;
    }
    for epoch in resumed_after + 1..=params.epochs {
        if early.as_ref().is_some_and(|early| early.is_over(epoch - 1)) {
            break;
        }
        let record = training.epoch(epoch)?;
        if let (Some(early), Some(val_loss)) = (&mut early, record.val_loss) {
            early.see(epoch, val_loss, &training.layer);
        }
        let flow = on_epoch(&record);
        history.push(record);
        if let Some(checkpoints) = &mut checkpoints {
            let state = || training.state(&history, early.as_ref());
            if flow.is_break() {
                checkpoints.keep(&state())?;
            } else {
                checkpoints.keep_if_due(state);
            }
        }
        if flow.is_break() {
            break;
        }
    }
    let best = early.and_then(|early| early.best);
    let best_epoch = best.as_ref().map(|best| best.epoch);
    let weights = best.map_or_else(|| Weights::unpack(&training.layer), |best| best.weights);
    let chance = (training.layer.classes() as f64).ln();
    let warnings = history.last().filter(|last| last.loss > WORTHLESS * chance).map(|last| {
        format!(
            "the training loss ended at {:.3}, far above that of a guess ({chance:.3}): the features are too large for this learning rate; \
             set head.standardize = true, or lower head.learning_rate",
            last.loss
        )
    });
    let warnings = warnings.into_iter().collect();
    Ok(Solved { best_epoch, resumed_after, warnings, ..Solved::new(weights, history, params.l2()) })
}

/// What changes from step to step, and what it follows.
struct Training<'p> {
    params: &'p HeadValidParams,
    problem: &'p dyn Parts,
    target: Target,
    rates: Rates,
    layer: Dense,
    adam: Adam,
    /// Mean loss of the first batch.
    first_loss: Option<f64>,
}

impl Training<'_> {
    /// Trains on every row once and scores the hold-out.
    fn epoch(&mut self, epoch: usize) -> Result<EpochRecord, HeadError> {
        let start = Instant::now();
        let (params, problem) = (self.params, self.problem);
        let diverged = |loss| HeadError::Diverged { epoch, loss, learning_rate: params.learning_rate };
        let Listed { train, holdout, .. } = problem.listed();
        let shuffle = params.shuffle.then(|| {
            // A stream of its own for each epoch, so that an epoch's order does not depend on how training got there.
            let mut rng = ChaCha8Rng::seed_from_u64(params.seed);
            rng.set_stream(epoch as u64);
            rng
        });
        let dropout = params.dropout.filter(|&share| share > 0.0).map(|share| Dropout::new(share, params.seed, epoch));
        let mut seen = Tally::default();
        problem.each_part(train, shuffle, params.batch_size, &mut |part| {
            let task = Task {
                features: part.features.dropping(dropout),
                labels: part.labels,
                target: &self.target,
                weight_decay: params.weight_decay.unwrap_or(0.0),
                l2: params.l2(),
            };
            let rate = |step| self.rates.at(step);
            let passed = self.adam.pass(&mut self.layer, &task, part.order, params.batch_size, &rate, seen.clone());
            seen = passed.seen;
            if let Some(loss) = passed.not_finite {
                return Err(diverged(loss));
            }
            if !part.order.is_empty() {
                self.first_loss.get_or_insert(passed.first_loss);
            }
            Ok(())
        })?;
        let learning_rate = self.rates.at(self.adam.steps.saturating_sub(1));
        if seen.mean_loss() > DIVERGED * self.first_loss.unwrap_or(0.0).max(1.0) {
            return Err(diverged(seen.mean_loss()));
        }
        let mut held = None;
        if !holdout.is_empty() {
            let held = held.insert(Tally::default());
            problem.each_part(holdout, None, BLOCK_ROWS, &mut |part| {
                held.score(&self.layer, &part);
                Ok(())
            })?;
        }
        Ok(EpochRecord {
            epoch,
            loss: seen.mean_loss(),
            accuracy: seen.accuracy(),
            val_loss: held.as_ref().map(Tally::mean_loss),
            val_accuracy: held.as_ref().map(Tally::accuracy),
            seconds: start.elapsed().as_secs_f64(),
            learning_rate: Some(learning_rate),
        })
    }

    /// Everything that the next epoch depends on.
    fn state(&self, history: &[EpochRecord], early: Option<&EarlyStopping>) -> State {
        let like = |kernel: &[_], bias: &[_]| Weights::unpack(&self.layer.like(kernel, bias));
        State {
            weights: Weights::unpack(&self.layer),
            first: like(&self.adam.kernel.first, &self.adam.bias.first),
            second: like(&self.adam.kernel.second, &self.adam.bias.second),
            steps: self.adam.steps,
            first_loss: self.first_loss,
            history: history.to_vec(),
            best: early.and_then(|early| early.best.clone()),
        }
    }
}

#[cfg(test)]
mod tests;
