use super::holdout::{by_class, hash};
use super::{HeadError, Split};

/// `k` divisions of the labelled rows, each row held out in one of them; every class is spread over them as evenly as its rows
/// allow, by a hash of seed and id, so that the order of the rows does not matter. Both lists are in the order of the rows.
///
/// # Errors
/// When `k` is below 2 or above the number of labelled rows, or ids and labels differ in number, or a label is below 0.
pub fn kfold(labels: &[Option<i32>], ids: &[String], k: usize, seed: u64) -> Result<Vec<Split>, HeadError> {
    let classes = labels.iter().flatten().max().map_or(0, |&label| usize::try_from(label).map_or(0, |label| label + 1));
    let of_class = by_class(ids, labels, classes)?;
    let labelled = of_class.iter().map(Vec::len).sum::<usize>();
    if !(2..=labelled).contains(&k) {
        let expected = "2 folds or more, and no more than there are labelled rows";
        return Err(HeadError::Parameter { name: "folds", found: k.to_string(), expected });
    }
    let mut fold_of = vec![None; labels.len()];
    let mut next = 0;
    for mut rows in of_class {
        rows.sort_by_cached_key(|&row| (hash(seed, &ids[row]), row));
        for row in rows {
            fold_of[row] = Some(next % k);
            // On through the classes, so that the first folds do not get the odd row of each.
            next += 1;
        }
    }
    let rows = |keep: &dyn Fn(usize) -> bool| -> Vec<usize> {
        fold_of.iter().enumerate().filter_map(|(row, fold)| fold.filter(|&fold| keep(fold)).map(|_| row)).collect()
    };
    let split = |fold| Split { train: rows(&|of| of != fold), holdout: rows(&|of| of == fold), warnings: Vec::new() };
    Ok((0..k).map(split).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_held_out_once_and_classes_are_even() {
        // 23 rows of class 0, 10 of class 1, 2 of class 2, and an unlabelled row.
        let labels: Vec<Option<i32>> = (0..36)
            .map(|row| {
                (row < 35).then_some(if row < 23 {
                    0
                } else if row < 33 {
                    1
                } else {
                    2
                })
            })
            .collect();
        let ids: Vec<String> = (0..36).map(|row| format!("{row}.png")).collect();
        let folds = kfold(&labels, &ids, 5, 7).unwrap();
        let mut held: Vec<usize> = folds.iter().flat_map(|fold| fold.holdout.clone()).collect();
        held.sort_unstable();
        assert_eq!(held, (0..35).collect::<Vec<_>>());
        for fold in &folds {
            assert_eq!((fold.train.len(), fold.holdout.len()), (28, 7));
            assert!(fold.train.iter().all(|row| !fold.holdout.contains(row)));
            let ones = fold.holdout.iter().filter(|&&row| labels[row] == Some(1)).count();
            let zeros = fold.holdout.iter().filter(|&&row| labels[row] == Some(0)).count();
            assert!(ones == 2 && (4..=5).contains(&zeros), "{zeros} {ones}");
        }
        assert_eq!(folds, kfold(&labels, &ids, 5, 7).unwrap());
        assert_ne!(folds, kfold(&labels, &ids, 5, 8).unwrap());
    }

    #[test]
    fn impossible_folds_are_refused() {
        let ids = vec!["a".to_owned(), "b".to_owned()];
        for k in [0, 1, 3] {
            let said = kfold(&[Some(0), Some(1)], &ids, k, 0).unwrap_err().to_string();
            assert!(said.contains("folds"), "{said}");
        }
        assert!(matches!(kfold(&[Some(0)], &ids, 2, 0), Err(HeadError::Size { .. })));
        assert!(matches!(kfold(&[Some(0), Some(-1)], &ids, 2, 0), Err(HeadError::Label { row: 1, .. })));
    }
}
