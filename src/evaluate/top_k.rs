use ndarray::ArrayView2;

use super::{EvaluateError, labelled};

/// Share of the labelled rows whose label is among the `k` highest scores (logits or probabilities, `[N, K]`). None where no
/// row has a label.
///
/// # Errors
/// When scores and labels differ in number, or a label is no class.
pub fn top_k_accuracy(scores: ArrayView2<'_, f32>, labels: &[Option<i32>], k: usize) -> Result<Option<f64>, EvaluateError> {
    let rows = labelled(scores, labels)?;
    let is_hit = |&&(row, label): &&(usize, usize)| {
        let own = scores[(row, label)];
        // Of equal scores the first class ranks first, so that k = 1 is the accuracy.
        let is_ahead = |&(class, &score): &(usize, &f32)| score > own || (score == own && class < label);
        scores.row(row).iter().enumerate().filter(is_ahead).count() < k
    };
    let hits = rows.iter().filter(is_hit).count();
    Ok((!rows.is_empty()).then(|| hits as f64 / rows.len() as f64))
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn ranks_are_counted_and_ties_go_to_the_first_class() {
        let scores = array![[0.5_f32, 0.3, 0.2], [0.2, 0.2, 0.6], [0.4, 0.4, 0.2], [0.1, 0.2, 0.7]];
        // Ranks of the labels: 1, 3, 2, unlabelled.
        let labels = [Some(0), Some(1), Some(1), None];
        let found = |k| top_k_accuracy(scores.view(), &labels, k).unwrap().unwrap();
        assert_eq!([found(0), found(1), found(2), found(3), found(9)], [0.0, 1.0 / 3.0, 2.0 / 3.0, 1.0, 1.0]);
        assert_eq!(top_k_accuracy(scores.view(), &[None; 4], 1), Ok(None));
    }
}
