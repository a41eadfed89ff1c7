use super::HeadError;
use super::holdout::{by_class, hash};

/// `shots` of the listed rows of each class, by a hash of seed and id, in the order of the rows; and the classes that have fewer,
/// all of whose rows are taken.
///
/// # Errors
/// When ids and labels differ in number, or a label is not one of `classes` classes.
pub fn few(
    shots: usize,
    seed: u64,
    rows: &[usize],
    ids: &[String],
    labels: &[Option<i32>],
    classes: usize,
) -> Result<(Vec<usize>, Vec<usize>), HeadError> {
    let mut listed = vec![None; labels.len()];
    for &row in rows {
        *listed.get_mut(row).ok_or(HeadError::NoSuchRow { row, rows: labels.len() })? = labels[row];
    }
    let (mut taken, mut short) = (Vec::new(), Vec::new());
    for (class, mut rows) in by_class(ids, &listed, classes)?.into_iter().enumerate() {
        if rows.len() < shots {
            short.push(class);
        }
        rows.sort_by_cached_key(|&row| (hash(seed, &ids[row]), row));
        taken.extend(rows.into_iter().take(shots));
    }
    taken.sort_unstable();
    Ok((taken, short))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_class_gives_as_many_and_a_small_one_all() {
        let ids: Vec<String> = (0..50).map(|row| format!("{row}.png")).collect();
        let labels: Vec<Option<i32>> = (0..50).map(|row| Some(if row < 3 { 2 } else { row % 2 })).collect();
        let rows: Vec<usize> = (0..40).collect();
        let (taken, short) = few(5, 1, &rows, &ids, &labels, 3).unwrap();
        let of = |class| taken.iter().filter(|&&row| labels[row] == Some(class)).count();
        assert_eq!(([of(0), of(1), of(2)], short), ([5, 5, 3], vec![2]));
        assert!(taken.is_sorted() && taken.iter().all(|&row| row < 40), "only of the listed rows");
        assert_eq!(few(5, 1, &rows, &ids, &labels, 3).unwrap().0, taken);
        assert_ne!(few(5, 2, &rows, &ids, &labels, 3).unwrap().0, taken);
        // Fewer shots are some of the same rows.
        assert!(few(2, 1, &rows, &ids, &labels, 3).unwrap().0.iter().all(|row| taken.contains(row)));
    }
}
