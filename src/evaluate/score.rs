use ndarray::ArrayView2;
use rayon::prelude::*;

use super::{EvaluateError, argmax, labelled, log_sum_exp, wilson_interval};
use crate::run::SplitScore;

/// Rows that one task scores.
const BLOCK_ROWS: usize = 1024;

/// Rows, mean cross-entropy, accuracy and its interval, from logits `[N, K]`. None where no row has a label. Summed in f64, in
/// the order of the rows, whatever the number of threads.
///
/// # Errors
/// When logits and labels differ in number, a label is no class, or a logit of a labelled row is not finite.
pub fn score(logits: ArrayView2<'_, f32>, labels: &[Option<i32>]) -> Result<Option<SplitScore>, EvaluateError> {
    let rows = labelled(logits, labels)?;
    let block = |rows: &[(usize, usize)]| -> Result<(f64, usize), EvaluateError> {
        let mut values = vec![0.0; logits.ncols()];
        let (mut loss, mut right) = (0.0, 0);
        for &(row, label) in rows {
            values.iter_mut().zip(logits.row(row)).for_each(|(value, &logit)| *value = logit);
            if !values.iter().all(|value| value.is_finite()) {
                return Err(EvaluateError::NotFinite { row });
            }
            loss += log_sum_exp(&values) - f64::from(values[label]);
            right += usize::from(argmax(&values) == label);
        }
        Ok((loss, right))
    };
    let blocks: Vec<_> = rows.par_chunks(BLOCK_ROWS).map(block).collect();
    let (mut loss, mut right) = (0.0, 0);
    for block in blocks {
        let (block_loss, block_right) = block?;
        loss += block_loss;
        right += block_right;
    }
    let count = rows.len();
    Ok((count > 0).then(|| SplitScore {
        rows: count,
        loss: loss / count as f64,
        accuracy: right as f64 / count as f64,
        accuracy_interval: wilson_interval(right, count),
    }))
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, array};

    use super::*;

    #[test]
    fn loss_and_accuracy_of_a_small_case() {
        let logits = array![[2.0_f32, 0.0, -1.0], [0.0, 1.0, 0.0], [500.0, -500.0, 0.0], [9.0, 9.0, 9.0]];
        let found = score(logits.view(), &[Some(0), Some(2), Some(1), None]).unwrap().unwrap();
        // ln(1 + e^-2 + e^-3), ln(2 + e), and 1000 for the confident mistake.
        let losses = [0.169_846_019_554_628_6, 1.551_444_713_932_051, 1000.0];
        assert_eq!(found.rows, 3);
        assert!((found.loss - losses.iter().sum::<f64>() / 3.0).abs() < 1e-12, "{}", found.loss);
        assert!((found.accuracy - 1.0 / 3.0).abs() < 1e-15);
        assert_eq!(found.accuracy_interval, wilson_interval(1, 3));
        assert_eq!(score(logits.view(), &[None; 4]).unwrap(), None);
    }

    #[test]
    fn bad_input_is_named() {
        let logits = array![[1.0_f32, 0.0], [f32::NAN, 0.0]];
        assert_eq!(score(logits.view(), &[Some(0)]), Err(EvaluateError::Rows { scores: 2, labels: 1 }));
        assert_eq!(score(logits.view(), &[Some(2), None]), Err(EvaluateError::Class { row: 0, found: 2, classes: 2 }));
        assert_eq!(score(logits.view(), &[Some(-1), None]), Err(EvaluateError::Class { row: 0, found: -1, classes: 2 }));
        assert_eq!(score(logits.view(), &[Some(0), Some(0)]), Err(EvaluateError::NotFinite { row: 1 }));
        assert!(score(logits.view(), &[Some(0), None]).is_ok(), "an unlabelled row is not scored");
    }

    #[test]
    fn threads_do_not_change_the_bits() {
        let logits = Array2::from_shape_fn((5000, 7), |(row, class)| ((row * 37 + class * 101) % 89) as f32 / 9.0);
        let labels: Vec<_> = (0..5000).map(|row| Some(row % 7)).collect();
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| score(logits.view(), &labels)).unwrap().unwrap().loss.to_bits()
        };
        assert_eq!(with(1), with(3));
    }
}
