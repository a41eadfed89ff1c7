//! Early stopping: when the hold-out no longer gains, the fit ends, and the best epoch's weights are the head.

use super::dense::Dense;
use super::fit::Weights;

/// The epoch with the lowest `val_loss` so far.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Best {
    /// 1 is the first.
    pub(super) epoch: usize,
    pub(super) val_loss: f64,
    pub(super) weights: Weights,
}

/// Watches `val_loss`.
pub(super) struct EarlyStopping {
    patience: usize,
    min_delta: f64,
    pub(super) best: Option<Best>,
}

impl EarlyStopping {
    pub(super) fn new(patience: usize, min_delta: f64) -> Self {
        Self { patience, min_delta, best: None }
    }

    /// Notes an epoch: an improvement is a loss lower than the best by more than `min_delta`.
    pub(super) fn see(&mut self, epoch: usize, val_loss: f64, layer: &Dense) {
        if self.best.as_ref().is_none_or(|best| val_loss < best.val_loss - self.min_delta) {
            self.best = Some(Best { epoch, val_loss, weights: Weights::unpack(layer) });
        }
    }

    /// Whether there has been no improvement for too long, after that many epochs.
    pub(super) fn is_over(&self, epochs: usize) -> bool {
        self.best.as_ref().is_some_and(|best| epochs.saturating_sub(best.epoch) >= self.patience)
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array1, Array2};

    use super::*;

    /// The epoch after which it ends, and the best one; epoch n has n in every weight.
    fn watch(patience: usize, min_delta: f64, losses: &[f64]) -> (usize, usize, f32) {
        let mut early = EarlyStopping::new(patience, min_delta);
        for (epoch, &loss) in (1..).zip(losses) {
            let kernel = Array2::from_elem((2, 3), epoch as f32);
            early.see(epoch, loss, &Dense::pack(kernel.view(), Array1::zeros(3).view()));
            if early.is_over(epoch) {
                let best = early.best.unwrap();
                return (epoch, best.epoch, best.weights.kernel[(1, 2)]);
            }
        }
        (0, 0, 0.0)
    }

    #[test]
    fn it_ends_after_so_many_epochs_without_improvement_and_keeps_the_best() {
        assert_eq!(watch(2, 0.0, &[1.0, 0.5, 0.7, 0.5, 0.1]), (4, 2, 2.0), "an equal loss is no improvement");
        assert_eq!(watch(1, 0.0, &[1.0, 0.9, 0.8]), (0, 0, 0.0), "it never ends while it improves");
        assert_eq!(watch(2, 0.2, &[1.0, 0.9, 0.85, 0.2]), (3, 1, 1.0), "less than min_delta is none either");
        assert_eq!(watch(1, 0.0, &[1.0, f64::NAN]), (2, 1, 1.0));
    }
}
