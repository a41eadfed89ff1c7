//! Scores and predictions of a fitted head, block by block: memory holds a few figures a row, one block of probabilities, and
//! those that the ROC curves and the temperature are found from, as far as they fit 256 MiB each.

use ndarray::Array2;

use super::PipelineError;
use super::fit::{Division, Rows};
use super::streamed::Features;
use crate::evaluate::{self, Scorer};
use crate::head::{Head, PackedHead};
use crate::run::{Predictions, PredictionsWriter, SplitScore};

/// Rows of a block, and logits in it, at most.
const BLOCK_ROWS: usize = 4096;
const BLOCK_VALUES: usize = 1 << 23;

/// Logits that the temperature is found from: all of the hold-out's, or those of evenly spaced rows.
const TEMPERATURE_VALUES: usize = 1 << 26;

/// Scores of a head.
pub(super) struct Scores {
    pub(super) train: Option<SplitScore>,
    pub(super) validation: Option<SplitScore>,
    pub(super) test: Option<SplitScore>,
    /// Best on the hold-out.
    pub(super) temperature: Option<f64>,
}

/// Scores all rows and writes their predictions.
pub(super) fn score<F: Features>(
    head: &Head,
    rows: &Rows<F>,
    division: &Division,
    out: &mut PredictionsWriter,
) -> Result<Scores, PipelineError> {
    let packed = head.pack();
    let temperature = temperature(head, &packed, &rows.fitting, &division.holdout)?;
    let mut one = |features: &F, rows: &[usize], name: &str, temperature: Option<f64>| -> Result<_, PipelineError> {
        let mut scorer = Scorer::new(head.classes(), rows.len(), temperature);
        each_block(head, &packed, features, rows, |rows, mut logits| {
            let labels: Vec<Option<i32>> = rows.iter().map(|&row| features.labels()[row]).collect();
            scorer.add(logits.view(), &labels)?;
            let mut predicted = Vec::with_capacity(rows.len());
            for mut row in logits.rows_mut() {
                if let Some(row) = row.as_slice_mut() {
                    predicted.push(i32::try_from(evaluate::argmax(row)).unwrap_or(i32::MAX));
                    evaluate::softmax(row);
                }
            }
            let ids = rows.iter().map(|&row| features.ids()[row].clone()).collect();
            let splits = vec![name.to_owned(); rows.len()];
            let probabilities = logits.into_raw_vec_and_offset().0;
            Ok(out.add(Predictions { ids, splits, labels, predicted, probabilities })?)
        })?;
        Ok(scorer.finish())
    };
    let train = one(&rows.fitting, &division.train, "train", None)?;
    let validation = one(&rows.fitting, &division.holdout, "validation", temperature)?;
    let test = match &rows.test {
        Some(test) => one(test, &(0..test.ids().len()).collect::<Vec<_>>(), "test", temperature)?,
        None => None,
    };
    Ok(Scores { train, validation, test, temperature })
}

fn temperature<F: Features>(
    head: &Head,
    packed: &PackedHead<'_>,
    features: &F,
    holdout: &[usize],
) -> Result<Option<f64>, PipelineError> {
    let classes = head.classes().len();
    let every = (holdout.len() * classes).div_ceil(TEMPERATURE_VALUES).max(1);
    let rows: Vec<usize> = holdout.iter().copied().step_by(every).collect();
    let labels: Vec<Option<i32>> = rows.iter().map(|&row| features.labels()[row]).collect();
    let mut logits = Vec::with_capacity(rows.len() * classes);
    each_block(head, packed, features, &rows, |_, block| {
        logits.extend(block);
        Ok(())
    })?;
    let logits = ndarray::ArrayView2::from_shape((rows.len(), classes), &logits);
    Ok(match logits {
        Ok(logits) => evaluate::temperature(logits, &labels)?,
        Err(_) => None,
    })
}

/// Hands out the logits of some rows in blocks.
fn each_block<F: Features>(
    head: &Head,
    packed: &PackedHead<'_>,
    features: &F,
    rows: &[usize],
    mut act: impl FnMut(&[usize], Array2<f32>) -> Result<(), PipelineError>,
) -> Result<(), PipelineError> {
    let size = (BLOCK_VALUES / head.classes().len().max(1)).clamp(1, BLOCK_ROWS);
    for rows in rows.chunks(size) {
        act(rows, packed.logits(features.select(rows)?.view())?)?;
    }
    Ok(())
}
