//! What the counts of the classes show.

use serde::{Deserialize, Serialize};

use super::images::Images;

/// Images of a class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassRows {
    /// Its name.
    pub class: String,
    /// Images of each split, in the order of the splits.
    pub images: Vec<usize>,
    /// Whether it has fewer images to train on than a head can learn from.
    pub few: bool,
    /// Splits with labels in which it has no image.
    pub missing_in: Vec<String>,
}

/// How even the classes are among the images to train on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Balance {
    /// Images of the largest class.
    pub largest: usize,
    /// Images of the smallest class that has any.
    pub smallest: usize,
    /// `largest / smallest`.
    pub ratio: f64,
    /// Entropy of the shares over that of equal ones: 1 is even; none of one class.
    pub evenness: Option<f64>,
    /// Whether the ratio is above the threshold.
    pub imbalanced: bool,
}

/// Counts the classes. A class is one with few images below `few` of the first split; the classes are out of balance where the
/// largest has `ratio` times as many as the smallest. No balance where nothing is labelled there.
pub fn balance(images: &Images<'_>, few: usize, ratio: f64) -> (Vec<ClassRows>, Option<Balance>) {
    let mut counts = vec![vec![0_usize; images.splits.len()]; images.classes.len()];
    for image in images.rows {
        if let Some(count) = image.label.and_then(|label| counts.get_mut(label)) {
            count[image.split] += 1;
        }
    }
    let labelled: Vec<usize> = (0..images.splits.len()).map(|split| counts.iter().map(|count| count[split]).sum()).collect();
    let trained: Vec<usize> = counts.iter().filter_map(|count| count.first().copied()).filter(|&count| count > 0).collect();
    let classes = images.classes.iter().zip(counts).map(|(class, count)| ClassRows {
        class: class.clone(),
        few: labelled.first().is_some_and(|&all| all > 0) && count[0] < few,
        missing_in: (0..count.len())
            .filter(|&split| labelled[split] > 0 && count[split] == 0)
            .map(|split| images.splits[split].clone())
            .collect(),
        images: count,
    });
    let balance = trained.iter().max().zip(trained.iter().min()).map(|(&largest, &smallest)| {
        let all = trained.iter().sum::<usize>() as f64;
        let entropy: f64 = trained.iter().map(|&count| count as f64 / all).map(|share| -share * share.ln()).sum();
        let found = largest as f64 / smallest as f64;
        Balance {
            largest,
            smallest,
            ratio: found,
            evenness: (trained.len() > 1).then(|| entropy / (trained.len() as f64).ln()),
            imbalanced: found >= ratio,
        }
    });
    (classes.collect(), balance)
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;
    use crate::audit::images::tests::image;

    #[test]
    fn classes_are_counted_by_split() {
        let (splits, classes) = (["train", "test"].map(str::to_owned), ["a", "b", "c"].map(str::to_owned));
        let rows: Vec<_> = (0..40).map(|row| image(row, usize::from(row >= 30), Some(usize::from(row % 10 == 0)))).collect();
        let x = Array2::zeros((40, 1));
        let images = Images { rows: &rows, x: x.view(), splits: &splits, classes: &classes };
        let (found, balance) = super::balance(&images, 5, 8.0);
        assert_eq!(found.iter().map(|class| class.images.clone()).collect::<Vec<_>>(), [[27, 9], [3, 1], [0, 0]]);
        assert_eq!(found.iter().map(|class| class.few).collect::<Vec<_>>(), [false, true, true]);
        assert_eq!(found[2].missing_in, ["train", "test"]);
        let balance = balance.unwrap();
        assert_eq!((balance.largest, balance.smallest, balance.imbalanced), (27, 3, true));
        assert!((balance.evenness.unwrap() - 0.468_996).abs() < 1e-5, "{balance:?}");
        let unlabelled: Vec<_> = (0..4).map(|row| image(row, 0, None)).collect();
        let images = Images { rows: &unlabelled, ..images };
        let (found, none) = super::balance(&images, 5, 8.0);
        assert!(none.is_none() && found.iter().all(|class| !class.few && class.missing_in.is_empty()));
    }
}
