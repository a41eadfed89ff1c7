use ndarray::ArrayView2;
use rayon::prelude::*;

/// Area under the ROC curve of each class against the rest, averaged over the classes; exact, by ranks, ties by half
/// (Mann and Whitney 1947). `probabilities` `[K, N]`, none below 0. None where a class has no row or every row.
pub(super) fn roc_auc(probabilities: ArrayView2<'_, f32>, labels: &[usize]) -> Option<f64> {
    let areas: Option<Vec<f64>> =
        (0..probabilities.nrows()).into_par_iter().map(|class| area(probabilities.row(class).iter(), labels, class)).collect();
    let areas = areas?;
    (!areas.is_empty()).then(|| areas.iter().sum::<f64>() / areas.len() as f64)
}

fn area<'a>(scores: impl Iterator<Item = &'a f32>, labels: &[usize], class: usize) -> Option<f64> {
    // Bits of numbers that are not negative sort as the numbers do; the lowest bit says whether the row is of the class.
    let key = |(score, &label): (&f32, &usize)| u64::from(score.to_bits()) << 1 | u64::from(label == class);
    let mut keys: Vec<u64> = scores.zip(labels).map(key).collect();
    keys.sort_unstable();
    let (mut below, mut positives, mut wins) = (0_usize, 0_usize, 0.0);
    for tied in keys.chunk_by(|a, b| a >> 1 == b >> 1) {
        let own = tied.iter().filter(|&key| key & 1 == 1).count();
        let others = tied.len() - own;
        wins += own as f64 * (below as f64 + others as f64 / 2.0);
        positives += own;
        below += others;
    }
    (positives > 0 && below > 0).then(|| wins / (positives as f64 * below as f64))
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn pairs_are_counted_and_ties_are_half() {
        // Class 0: 0.8 and 0.4 against 0.4 and 0.1: three pairs won, one tied, of four.
        let probabilities = array![[0.8_f32, 0.4, 0.4, 0.1], [0.2, 0.6, 0.6, 0.9]];
        assert_eq!(roc_auc(probabilities.view(), &[0, 0, 1, 1]), Some(3.5 / 4.0));
        assert_eq!(roc_auc(probabilities.view(), &[1, 1, 0, 0]), Some(0.5 / 4.0));
        assert_eq!(roc_auc(probabilities.view(), &[0, 0, 0, 0]), None);
    }
}
