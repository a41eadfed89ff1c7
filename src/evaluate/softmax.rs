/// Turns logits into probabilities in place and returns `ln(sum(exp(logit)))`; stable for logits of any size.
pub fn softmax(logits: &mut [f32]) -> f64 {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0_f64;
    for value in logits.iter_mut() {
        *value = (*value - highest).exp();
        sum += f64::from(*value);
    }
    let scale = (1.0 / sum) as f32;
    logits.iter_mut().for_each(|value| *value *= scale);
    f64::from(highest) + sum.ln()
}

/// `ln(sum(exp(logit)))` in f64; minus the logit of the label it is the cross-entropy of a row.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let highest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    highest + logits.iter().map(|&logit| (f64::from(logit) - highest).exp()).sum::<f64>().ln()
}

/// Index of the highest score; the first of equals, 0 where there is none.
pub fn argmax(scores: &[f32]) -> usize {
    let better = |best: usize, (index, &score): (usize, &f32)| if score > scores[best] { index } else { best };
    scores.iter().enumerate().fold(0, better)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softmax_is_right_and_stable() {
        // exp(1, 2, 3) / sum.
        let mut row = [1.0, 2.0, 3.0];
        let log_sum = softmax(&mut row);
        for (got, want) in row.iter().zip([0.090_030_57, 0.244_728_47, 0.665_240_96]) {
            assert!((got - want).abs() < 1e-7, "{row:?}");
        }
        assert!((log_sum - 3.407_605_964_444_38).abs() < 1e-6);
        for shift in [-1e4, 1e4] {
            let mut row = [shift, shift];
            assert!((softmax(&mut row) - f64::from(shift) - 2.0_f64.ln()).abs() < 1e-9);
            assert_eq!(row, [0.5, 0.5]);
            assert_eq!(log_sum_exp(&[shift, shift]), f64::from(shift) + 2.0_f64.ln());
        }
        let mut row = [1e38, -1e38];
        assert_eq!((softmax(&mut row), row), (f64::from(1e38_f32), [1.0, 0.0]));
    }

    #[test]
    fn the_first_of_equals_is_highest() {
        assert_eq!(argmax(&[0.1, 0.7, 0.7, 0.2]), 1);
        assert_eq!(argmax(&[-3.0, -1.0]), 1);
        assert_eq!(argmax(&[]), 0);
    }
}
