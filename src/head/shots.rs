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
    let (mut taken, mut short) = (Vec::new(), Vec::new());
    for (class, mut rows) in listed_by_class(rows, ids, labels, classes)?.into_iter().enumerate() {
        if rows.len() < shots {
            short.push(class);
        }
        rows.sort_by_cached_key(|&row| (hash(seed, &ids[row]), row));
        taken.extend(rows.into_iter().take(shots));
    }
    taken.sort_unstable();
    Ok((taken, short))
}

/// The listed rows in an order whose every beginning has the classes in their shares, as near as may be, by a hash of seed and id.
///
/// # Errors
/// As [`few`].
pub fn stratified_order(
    seed: u64,
    rows: &[usize],
    ids: &[String],
    labels: &[Option<i32>],
    classes: usize,
) -> Result<Vec<usize>, HeadError> {
    let mut places = Vec::with_capacity(rows.len());
    for mut rows in listed_by_class(rows, ids, labels, classes)? {
        rows.sort_by_cached_key(|&row| (hash(seed, &ids[row]), row));
        let count = rows.len() as f64;
        places.extend(rows.into_iter().enumerate().map(|(place, row)| ((place as f64 + 0.5) / count, row)));
    }
    places.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    Ok(places.into_iter().map(|(_, row)| row).collect())
}

fn listed_by_class(rows: &[usize], ids: &[String], labels: &[Option<i32>], classes: usize) -> Result<Vec<Vec<usize>>, HeadError> {
    let mut listed = vec![None; labels.len()];
    for &row in rows {
        *listed.get_mut(row).ok_or(HeadError::NoSuchRow { row, rows: labels.len() })? = labels[row];
    }
    by_class(ids, &listed, classes)
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

    #[test]
    fn every_beginning_of_the_order_has_the_classes_in_their_shares() {
        let ids: Vec<String> = (0..600).map(|row| format!("{row}.png")).collect();
        let labels: Vec<Option<i32>> = (0..600).map(|row| Some(if row < 100 { 0 } else { 1 + row % 2 })).collect();
        let rows: Vec<usize> = (0..600).collect();
        let order = stratified_order(3, &rows, &ids, &labels, 3).unwrap();
        for count in [60, 150, 600] {
            let zeros = order[..count].iter().filter(|&&row| labels[row] == Some(0)).count();
            assert!(zeros.abs_diff(count / 6) <= 1, "{zeros} of {count}");
        }
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, rows);
        assert_ne!(stratified_order(4, &rows, &ids, &labels, 3).unwrap(), order);
    }
}
