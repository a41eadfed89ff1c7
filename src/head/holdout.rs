//! Which labelled rows train the head and which are held out.

use super::{HeadError, HoldOut};

/// Most class names that a warning lists.
const NAMED: usize = 8;

/// Rows of a feature matrix, divided; both lists are in the order of the rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// Rows to train on.
    pub train: Vec<usize>,
    /// Rows held out.
    pub holdout: Vec<usize>,
    /// What a user should know before training, such as classes that a side lacks.
    pub warnings: Vec<String>,
}

/// Divides the labelled rows. `Tail` is Keras' `validation_split`: of n rows, `floor(n * (1 - fraction))` train and the rest,
/// the last, are held out. `Stratified` holds out the same share of each class, chosen by a hash of the row's id, so that the
/// order of the rows does not matter; a class of two rows or more is on both sides, a class of one trains. Unlabelled rows are
/// on neither side. A class that one side lacks is a warning.
///
/// ```
/// use tlpipe::head::{HoldOut, hold_out};
///
/// let ids: Vec<String> = (0..5).map(|row| format!("{row}.png")).collect();
/// let labels = [Some(0), Some(1), None, Some(0), Some(1)];
/// let split = hold_out(HoldOut::Tail, 0.25, &ids, &labels, &["cat".into(), "dog".into()])?;
/// assert_eq!((split.train, split.holdout), (vec![0, 1, 3], vec![4]));
/// # Ok::<(), tlpipe::head::HeadError>(())
/// ```
///
/// # Errors
/// When `fraction` is not in 0 to below 1, a label is not in the class list, or no row is left to train on.
pub fn hold_out(
    kind: HoldOut,
    fraction: f64,
    ids: &[String],
    labels: &[Option<i32>],
    classes: &[String],
) -> Result<Split, HeadError> {
    if !(0.0..1.0).contains(&fraction) {
        let expected = "a share from 0 (no hold-out) to below 1, such as 0.2";
        return Err(HeadError::Parameter { name: "validation_split", found: fraction.to_string(), expected });
    }
    if ids.len() != labels.len() {
        return Err(HeadError::Size { what: "ids", found: ids.len(), expected: labels.len() });
    }
    let mut of_class: Vec<Vec<usize>> = vec![Vec::new(); classes.len()];
    let mut labelled = Vec::new();
    for (row, &label) in labels.iter().enumerate() {
        let Some(label) = label else { continue };
        let class = usize::try_from(label).ok().and_then(|class| of_class.get_mut(class));
        class.ok_or(HeadError::Label { row, label: Some(label), classes: classes.len() })?.push(row);
        labelled.push(row);
    }
    let mut is_held = vec![false; labels.len()];
    match kind {
        _ if fraction == 0.0 => {}
        HoldOut::Tail => labelled[train_rows(labelled.len(), fraction)..].iter().for_each(|&row| is_held[row] = true),
        HoldOut::Stratified => {
            for mut rows in of_class.iter().filter(|rows| rows.len() > 1).cloned() {
                rows.sort_by_cached_key(|&row| (*blake3::hash(ids[row].as_bytes()).as_bytes(), row));
                let train = train_rows(rows.len(), fraction).clamp(1, rows.len() - 1);
                rows[train..].iter().for_each(|&row| is_held[row] = true);
            }
        }
    }
    let (holdout, train): (Vec<usize>, Vec<usize>) = labelled.iter().partition(|&&row| is_held[row]);
    if train.is_empty() {
        return Err(HeadError::NothingToTrain { labelled: labelled.len(), fraction });
    }
    let remedy = if kind == HoldOut::Tail { "; is the source sorted by class? set head.split = \"stratified\"" } else { "" };
    let warnings = lacking(&train, &holdout, labels, classes).into_iter().map(|warning| warning + remedy).collect();
    Ok(Split { train, holdout, warnings })
}

/// What a user should know of classes that have no row to train on, or none held out.
pub fn lacking(train: &[usize], holdout: &[usize], labels: &[Option<i32>], classes: &[String]) -> Vec<String> {
    let missing = |rows: &[usize]| -> Vec<&str> {
        let mut present = vec![false; classes.len()];
        for class in rows.iter().filter_map(|&row| labels.get(row).copied().flatten()) {
            if let Some(present) = usize::try_from(class).ok().and_then(|class| present.get_mut(class)) {
                *present = true;
            }
        }
        classes.iter().zip(present).filter(|(_, present)| !present).map(|(name, _)| name.as_str()).collect()
    };
    let mut warnings = Vec::new();
    let untrained = missing(train);
    if !untrained.is_empty() {
        warnings.push(format!("no training row of {}: the head cannot learn {}", listed(&untrained), it(&untrained)));
    }
    let unheld = missing(holdout);
    if !holdout.is_empty() && !unheld.is_empty() {
        warnings.push(format!("no held-out row of {}: the hold-out says nothing about {}", listed(&unheld), it(&unheld)));
    }
    warnings
}

/// Keras' rule, in Keras' arithmetic.
fn train_rows(rows: usize, fraction: f64) -> usize {
    (rows as f64 * (1.0 - fraction)).floor() as usize
}

fn it(names: &[&str]) -> &'static str {
    if names.len() == 1 { "it" } else { "them" }
}

fn listed(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().take(NAMED).map(|name| format!("\"{name}\"")).collect();
    let more = names.len().saturating_sub(NAMED);
    let classes = if names.len() == 1 { "class" } else { "classes" };
    let and_more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{classes} {}{and_more}", quoted.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(count: usize) -> Vec<String> {
        (0..count).map(|row| format!("images/{row}.png")).collect()
    }

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|class| format!("class {class}")).collect()
    }

    #[test]
    fn tail_is_the_rule_of_keras() {
        for (rows, fraction, train) in [(50_000, 0.2, 40_000), (1010, 0.2, 808), (10, 0.25, 7), (3, 0.1, 2), (5, 0.0, 5)] {
            let labels: Vec<_> = (0..rows).map(|row| Some(row % 2)).collect();
            let split = hold_out(HoldOut::Tail, fraction, &ids(labels.len()), &labels, &names(2)).unwrap();
            assert_eq!(split.train, (0..train).collect::<Vec<_>>());
            assert_eq!(split.holdout, (train..labels.len()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_sorted_source_is_warned_about_under_tail_and_not_under_stratified() {
        let labels: Vec<_> = (0..100).map(|row| Some(row / 10)).collect();
        let tail = hold_out(HoldOut::Tail, 0.2, &ids(100), &labels, &names(10)).unwrap();
        assert_eq!(tail.warnings.len(), 2);
        assert!(tail.warnings[0].starts_with("no training row of classes \"class 8\", \"class 9\""), "{}", tail.warnings[0]);
        assert!(tail.warnings[1].contains("stratified"), "{}", tail.warnings[1]);
        let stratified = hold_out(HoldOut::Stratified, 0.2, &ids(100), &labels, &names(10)).unwrap();
        assert_eq!(stratified.warnings, [""; 0]);
        for class in 0..10 {
            assert_eq!(stratified.holdout.iter().filter(|&&row| row / 10 == class).count(), 2);
        }
    }

    #[test]
    fn stratified_depends_on_ids_and_not_on_their_order() {
        let ids = ids(40);
        let labels: Vec<_> = (0..40).map(|row| Some(row % 2)).collect();
        let held = |ids: &[String], labels: &[Option<i32>]| {
            let split = hold_out(HoldOut::Stratified, 0.3, ids, labels, &names(2)).unwrap();
            let mut held: Vec<String> = split.holdout.iter().map(|&row| ids[row].clone()).collect();
            held.sort();
            held
        };
        let (reversed_ids, reversed_labels): (Vec<_>, Vec<_>) =
            (ids.iter().rev().cloned().collect(), labels.iter().rev().copied().collect());
        assert_eq!(held(&ids, &labels), held(&reversed_ids, &reversed_labels));
        assert_eq!(held(&ids, &labels).len(), 12);
    }

    #[test]
    fn rare_classes_train_and_unlabelled_rows_stay_out() {
        let labels = [Some(0), Some(0), Some(0), Some(0), Some(1), Some(2), Some(2), None];
        let split = hold_out(HoldOut::Stratified, 0.5, &ids(8), &labels, &names(3)).unwrap();
        assert!(split.train.contains(&4), "a class of one image trains");
        assert_eq!((split.train.len(), split.holdout.len()), (4, 3));
        assert!(!split.train.contains(&7) && !split.holdout.contains(&7));
        assert_eq!(split.warnings.len(), 1);
        assert!(split.warnings[0].starts_with("no held-out row of class \"class 1\""), "{}", split.warnings[0]);
    }

    #[test]
    fn impossible_divisions_are_refused() {
        let labels = [Some(0), Some(1)];
        let refused = |fraction, labels: &[Option<i32>]| {
            hold_out(HoldOut::Tail, fraction, &ids(labels.len()), labels, &names(2)).unwrap_err().to_string()
        };
        assert!(refused(0.9, &labels).contains("lower head.validation_split"));
        assert!(refused(0.2, &[]).contains("no row is left"));
        assert!(refused(1.0, &labels).contains("validation_split = 1"));
        assert!(refused(0.2, &[Some(0), Some(2)]).starts_with("row 1: label Some(2)"));
        assert!(refused(0.2, &[Some(-1), Some(0)]).starts_with("row 0: label Some(-1)"));
        let error = hold_out(HoldOut::Tail, 0.2, &ids(3), &labels, &names(2)).unwrap_err();
        assert!(matches!(error, HeadError::Size { found: 3, expected: 2, .. }));
    }
}
