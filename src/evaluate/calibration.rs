use ndarray::ArrayView2;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::score::{BLOCK_ROWS, Row};
use super::{EvaluateError, labelled};

/// Bins of the usual expected calibration error.
const BINS: usize = 15;

/// Temperatures that are looked at.
const TEMPERATURES: (f64, f64) = (0.01, 100.0);

/// Rows of similar confidence: the probability of their answer lies above `low` (or is 0) and at or below `high`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bin {
    /// Lower bound.
    pub low: f64,
    /// Upper bound.
    pub high: f64,
    /// Labelled rows in the bin.
    pub rows: usize,
    /// Their mean confidence; none where there is none.
    pub confidence: Option<f64>,
    /// Share of them that is right; none where there is none.
    pub accuracy: Option<f64>,
}

/// How far confidence and accuracy agree, in 15 bins of equal width (Guo and others, 2017).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Expected calibration error: the mean of |confidence - accuracy| over the bins, weighted by their rows.
    pub ece: f64,
    /// The bins.
    pub bins: Vec<Bin>,
}

impl Calibration {
    pub(super) fn of(rows: &[Row]) -> Self {
        let mut sums = [(0_usize, 0.0, 0_usize); BINS];
        for row in rows {
            let bin = &mut sums[((row.confidence * BINS as f64).ceil() as usize).clamp(1, BINS) - 1];
            bin.0 += 1;
            bin.1 += row.confidence;
            bin.2 += usize::from(row.predicted == row.label);
        }
        let gaps = sums.iter().map(|&(_, confidence, right)| (confidence - right as f64).abs());
        let bins = sums.iter().enumerate().map(|(bin, &(count, confidence, right))| Bin {
            low: bin as f64 / BINS as f64,
            high: (bin + 1) as f64 / BINS as f64,
            rows: count,
            confidence: (count > 0).then(|| confidence / count as f64),
            accuracy: (count > 0).then(|| right as f64 / count as f64),
        });
        Self { ece: gaps.sum::<f64>() / rows.len() as f64, bins: bins.collect() }
    }
}

/// Scores with every logit divided by the temperature; the answers stay what they are.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scaled {
    /// Mean cross-entropy.
    pub loss: f64,
    /// Expected calibration error.
    pub ece: f64,
}

/// The temperature that is best for the loss on these rows (Guo and others, 2017); by Newton's method on its inverse, in which
/// the loss is convex, kept within 0.01 to 100: 100, where next to nothing is left of an answer, is also that of answers worse than none.
/// None where there is no such temperature: no labelled row, every answer right, or answers that say nothing.
///
/// # Errors
/// As [`super::score`].
pub fn temperature(logits: ArrayView2<'_, f32>, labels: &[Option<i32>]) -> Result<Option<f64>, EvaluateError> {
    const STEPS: usize = 60;
    let rows = labelled(logits, labels)?;
    if rows.is_empty() {
        return Ok(None);
    }
    let slope = |inverse: f64| slope(logits, &rows, inverse);
    let (mut low, mut high) = (1.0 / TEMPERATURES.1, 1.0 / TEMPERATURES.0);
    // The slope grows with the inverse: a minimum inside has a fall on its left and a rise on its right.
    let at_low = slope(low).0;
    if at_low > 0.0 {
        return Ok(Some(TEMPERATURES.1));
    }
    if !(at_low < 0.0 && slope(high).0 > 0.0) {
        return Ok(None);
    }
    let mut inverse = 1.0;
    for _ in 0..STEPS {
        let (first, second) = slope(inverse);
        if first > 0.0 {
            high = inverse
        } else {
            low = inverse
        }
        let newton = inverse - first / second;
        let next = if newton > low && newton < high { newton } else { (low * high).sqrt() };
        let done = (next - inverse).abs() <= 1e-10 * inverse;
        inverse = next;
        if done {
            break;
        }
    }
    Ok(Some(1.0 / inverse))
}

/// First and second derivative of the summed loss by the inverse temperature, summed in the order of the rows.
fn slope(logits: ArrayView2<'_, f32>, rows: &[(usize, usize)], inverse: f64) -> (f64, f64) {
    let block = |rows: &[(usize, usize)]| {
        rows.iter().fold((0.0, 0.0), |(first, second), &(row, label)| {
            let row = logits.row(row);
            let own = f64::from(row[label]);
            let highest = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let (mut sum, mut mean, mut square) = (0.0, 0.0, 0.0);
            for &logit in row {
                let shifted = f64::from(logit) - highest;
                let weight = (shifted * inverse).exp();
                sum += weight;
                mean += weight * shifted;
                square += weight * shifted * shifted;
            }
            mean /= sum;
            (first + mean - (own - highest), second + square / sum - mean * mean)
        })
    };
    let blocks: Vec<_> = rows.par_chunks(BLOCK_ROWS).map(block).collect();
    blocks.into_iter().fold((0.0, 0.0), |sum, block| (sum.0 + block.0, sum.1 + block.1))
}
