//! Loss and accuracy of a layer while it is being fitted.

use std::time::Instant;

use rayon::prelude::*;

use super::HeadError;
use super::dense::{BLOCK_ROWS, Dense};
use super::fit::Weights;
use super::part::{Part, Parts};
use crate::evaluate::{argmax, log_sum_exp};
use crate::run::EpochRecord;

/// Loss and accuracy of a layer over some rows.
pub(super) fn score(layer: &Dense, parts: &dyn Parts, rows: &[usize]) -> Result<Tally, HeadError> {
    let mut all = Tally::default();
    parts.each_part(rows, None, BLOCK_ROWS, &mut |part| {
        all.score(layer, &part);
        Ok(())
    })?;
    Ok(all)
}

/// The one record of a solver that has no epochs: the fitted layer's scores.
pub(super) fn closed_record(weights: &Weights, parts: &dyn Parts, start: Instant) -> Result<EpochRecord, HeadError> {
    let layer = weights.pack();
    let listed = parts.listed();
    let seen = score(&layer, parts, listed.train)?;
    let held = if listed.holdout.is_empty() { None } else { Some(score(&layer, parts, listed.holdout)?) };
    Ok(EpochRecord {
        epoch: 1,
        loss: seen.mean_loss(),
        accuracy: seen.accuracy(),
        val_loss: held.as_ref().map(Tally::mean_loss),
        val_accuracy: held.as_ref().map(Tally::accuracy),
        seconds: start.elapsed().as_secs_f64(),
        learning_rate: None,
    })
}

/// Summed loss and right answers.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    rows: usize,
    pub(super) loss: f64,
    /// What is minimized; counted where a gradient is taken.
    pub(super) objective: f64,
    right: usize,
}

impl Tally {
    /// Adds loss and accuracy of a layer over rows, in parallel, summed in their order. Parts of whole blocks give the same bits
    /// as all in one.
    pub(super) fn score(&mut self, layer: &Dense, part: &Part<'_>) {
        let classes = layer.classes();
        let blocks = part.order.par_chunks(BLOCK_ROWS).map(|rows| {
            let mut logits = vec![0.0; rows.len() * classes];
            layer.logits_into(&part.features, rows, &mut logits);
            let mut block = Tally::default();
            for (logits, &row) in logits.chunks_exact(classes).zip(rows) {
                let label = part.labels[row];
                block.count(log_sum_exp(logits) - f64::from(logits[label]), argmax(logits) == label);
            }
            block
        });
        blocks.collect::<Vec<_>>().iter().for_each(|block| self.add(block));
    }

    pub(super) fn count(&mut self, loss: f64, right: bool) {
        self.rows += 1;
        self.loss += loss;
        self.right += usize::from(right);
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.rows += other.rows;
        self.loss += other.loss;
        self.objective += other.objective;
        self.right += other.right;
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn mean_loss(&self) -> f64 {
        self.loss / self.rows as f64
    }

    pub(super) fn mean_objective(&self) -> f64 {
        self.objective / self.rows as f64
    }

    pub(super) fn accuracy(&self) -> f64 {
        self.right as f64 / self.rows as f64
    }
}
