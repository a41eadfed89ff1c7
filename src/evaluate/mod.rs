//! Scores of a classifier: what its logits or probabilities `[N, K]` are worth against the labels.
//!
//! Labels are indices into the class list; rows without a label are passed over. Logarithms are natural, shares go from 0
//! to 1. Of equal scores the class that comes first wins, everywhere.

mod bootstrap;
mod calibration;
mod confusion;
mod error;
mod interval;
mod mcnemar;
mod roc;
mod score;
mod softmax;

pub use bootstrap::Bootstrap;
pub use calibration::{Bin, Calibration, Scaled, temperature};
pub use confusion::{Averages, ClassScore, ConfusionCell};
pub use error::EvaluateError;
pub use interval::{mean_interval, wilson_interval};
pub use mcnemar::McNemar;
pub use score::{Scorer, TopK, score};
pub use softmax::{argmax, log_sum_exp, softmax};

use ndarray::ArrayView2;

/// Checks scores against labels and lists the labelled rows with their labels.
fn labelled(scores: ArrayView2<'_, f32>, labels: &[Option<i32>]) -> Result<Vec<(usize, usize)>, EvaluateError> {
    if scores.nrows() != labels.len() {
        return Err(EvaluateError::Rows { scores: scores.nrows(), labels: labels.len() });
    }
    let rows = labels.iter().enumerate().filter_map(|(row, label)| label.map(|label| (row, label)));
    rows.map(|(row, label)| error::class_index(row, label, scores.ncols()).map(|class| (row, class))).collect()
}
