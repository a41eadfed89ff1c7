//! Which labelled rows train the head and which are held out.

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::group::held_groups;
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

/// How rows are divided.
#[derive(Clone, Copy, Debug)]
pub struct Rule<'a> {
    /// Which rows are held out.
    pub kind: HoldOut,
    /// Share of the labelled rows, 0 (none) to below 1.
    pub fraction: f64,
    /// Seed of `Random` and `Grouped`.
    pub seed: u64,
    /// What `Grouped` takes as a group: `folder`, or the text before which the group's name stands in an id.
    pub group: &'a str,
}

/// Divides the labelled rows. A class that one side lacks is a warning; unlabelled rows are on neither side.
///
/// - `Tail`: Keras' `validation_split`. Of n rows, `floor(n * (1 - fraction))` train and the rest, the last, are held out.
/// - `Stratified`: the same share of each class, chosen by a hash of the row's id, so that the order of the rows does not
///   matter; a class of two rows or more is on both sides, a class of one trains.
/// - `Random`: as many rows as `Tail`, drawn from the seed.
/// - `Hash`: each row whose id hashes below the share, whatever other rows there are: a row stays on its side when others
///   come or go (the rule of TensorFlow's `retrain.py`, with BLAKE3 for SHA-1).
/// - `Grouped`: whole groups of rows, see [`Rule::group`], as near to the share as they come.
///
/// ```
/// use tlpipe::head::{HoldOut, Rule, hold_out};
///
/// let ids: Vec<String> = (0..5).map(|row| format!("{row}.png")).collect();
/// let labels = [Some(0), Some(1), None, Some(0), Some(1)];
/// let rule = Rule { kind: HoldOut::Tail, fraction: 0.25, seed: 0, group: "folder" };
/// let split = hold_out(&rule, &ids, &labels, &["cat".into(), "dog".into()])?;
/// assert_eq!((split.train, split.holdout), (vec![0, 1, 3], vec![4]));
/// # Ok::<(), tlpipe::head::HeadError>(())
/// ```
///
/// # Errors
/// When `fraction` is not in 0 to below 1, a label is not in the class list, no row is left to train on, all rows are one
/// group, or the kind is `Source`, which is not for rows to decide.
pub fn hold_out(rule: &Rule<'_>, ids: &[String], labels: &[Option<i32>], classes: &[String]) -> Result<Split, HeadError> {
    let Rule { kind, fraction, seed, group } = *rule;
    if !(0.0..1.0).contains(&fraction) {
        let expected = "a share from 0 (no hold-out) to below 1, such as 0.2";
        return Err(HeadError::Parameter { name: "validation_split", found: fraction.to_string(), expected });
    }
    let of_class = by_class(ids, labels, classes.len())?;
    let mut labelled: Vec<usize> = (0..labels.len()).filter(|&row| labels[row].is_some()).collect();
    let train = train_rows(labelled.len(), fraction);
    let held: Vec<usize> = match kind {
        HoldOut::Source => {
            let expected =
                "another one: these features have no split named validation; leave head.split out, or set \"stratified\"";
            return Err(HeadError::Parameter { name: "split", found: kind.to_string(), expected });
        }
        _ if fraction == 0.0 => Vec::new(),
        HoldOut::Tail => labelled[train..].to_vec(),
        HoldOut::Stratified => {
            let held = |mut rows: Vec<usize>| {
                rows.sort_by_cached_key(|&row| (*blake3::hash(ids[row].as_bytes()).as_bytes(), row));
                let train = train_rows(rows.len(), fraction).clamp(1, rows.len() - 1);
                rows.split_off(train)
            };
            of_class.into_iter().filter(|rows| rows.len() > 1).flat_map(held).collect()
        }
        HoldOut::Random => {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let mut rows = labelled.clone();
            rows.sort_by_cached_key(|&row| (rng.next_u64(), row));
            rows.split_off(train)
        }
        HoldOut::Hash => labelled.iter().copied().filter(|&row| place(&ids[row]) < fraction).collect(),
        HoldOut::Grouped if labelled.is_empty() => Vec::new(),
        HoldOut::Grouped => held_groups(group, seed, labelled.len() - train, &labelled, ids)?,
    };
    let mut is_held = vec![false; labels.len()];
    held.into_iter().for_each(|row| is_held[row] = true);
    let count = labelled.len();
    let holdout = labelled.extract_if(.., |row| is_held[*row]).collect::<Vec<_>>();
    let train = labelled;
    if train.is_empty() {
        return Err(HeadError::NothingToTrain { labelled: count, fraction });
    }
    let remedy = if kind == HoldOut::Tail { "; is the source sorted by class? set head.split = \"stratified\"" } else { "" };
    let warnings = lacking(&train, &holdout, labels, classes).into_iter().map(|warning| warning + remedy).collect();
    Ok(Split { train, holdout, warnings })
}

/// Hash of a name under a seed.
pub(super) fn hash(seed: u64, name: &str) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).update(name.as_bytes());
    *hasher.finalize().as_bytes()
}

/// Labelled rows of each class.
///
/// # Errors
/// When ids and labels differ in number, or a label is not one of `classes` classes.
pub(super) fn by_class(ids: &[String], labels: &[Option<i32>], classes: usize) -> Result<Vec<Vec<usize>>, HeadError> {
    if ids.len() != labels.len() {
        return Err(HeadError::Size { what: "ids", found: ids.len(), expected: labels.len() });
    }
    let mut of_class: Vec<Vec<usize>> = vec![Vec::new(); classes];
    for (row, &label) in labels.iter().enumerate() {
        let Some(label) = label else { continue };
        let class = usize::try_from(label).ok().and_then(|class| of_class.get_mut(class));
        class.ok_or(HeadError::Label { row, label: Some(label), classes })?.push(row);
    }
    Ok(of_class)
}

/// Where an id stands between 0 and 1.
fn place(id: &str) -> f64 {
    let hash = blake3::hash(id.as_bytes());
    let first = hash.as_bytes().first_chunk().copied().unwrap_or_default();
    u64::from_le_bytes(first) as f64 / 2.0_f64.powi(64)
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

    fn rule(kind: HoldOut, fraction: f64) -> Rule<'static> {
        Rule { kind, fraction, seed: 0, group: "_" }
    }

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|class| format!("class {class}")).collect()
    }

    #[test]
    fn tail_is_the_rule_of_keras() {
        for (rows, fraction, train) in [(50_000, 0.2, 40_000), (1010, 0.2, 808), (10, 0.25, 7), (3, 0.1, 2), (5, 0.0, 5)] {
            let labels: Vec<_> = (0..rows).map(|row| Some(row % 2)).collect();
            let split = hold_out(&rule(HoldOut::Tail, fraction), &ids(labels.len()), &labels, &names(2)).unwrap();
            assert_eq!(split.train, (0..train).collect::<Vec<_>>());
            assert_eq!(split.holdout, (train..labels.len()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_sorted_source_is_warned_about_under_tail_and_not_under_stratified() {
        let labels: Vec<_> = (0..100).map(|row| Some(row / 10)).collect();
        let tail = hold_out(&rule(HoldOut::Tail, 0.2), &ids(100), &labels, &names(10)).unwrap();
        assert_eq!(tail.warnings.len(), 2);
        assert!(tail.warnings[0].starts_with("no training row of classes \"class 8\", \"class 9\""), "{}", tail.warnings[0]);
        assert!(tail.warnings[1].contains("stratified"), "{}", tail.warnings[1]);
        let stratified = hold_out(&rule(HoldOut::Stratified, 0.2), &ids(100), &labels, &names(10)).unwrap();
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
            let split = hold_out(&rule(HoldOut::Stratified, 0.3), ids, labels, &names(2)).unwrap();
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
        let split = hold_out(&rule(HoldOut::Stratified, 0.5), &ids(8), &labels, &names(3)).unwrap();
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
            hold_out(&rule(HoldOut::Tail, fraction), &ids(labels.len()), labels, &names(2)).unwrap_err().to_string()
        };
        assert!(refused(0.9, &labels).contains("lower head.validation_split"));
        assert!(refused(0.2, &[]).contains("no row is left"));
        assert!(refused(1.0, &labels).contains("validation_split = 1"));
        assert!(refused(0.2, &[Some(0), Some(2)]).starts_with("row 1: label 2"));
        assert!(refused(0.2, &[Some(-1), Some(0)]).starts_with("row 0: label -1"));
        let error = hold_out(&rule(HoldOut::Tail, 0.2), &ids(3), &labels, &names(2)).unwrap_err();
        assert!(matches!(error, HeadError::Size { found: 3, expected: 2, .. }));
    }

    #[test]
    fn random_follows_the_seed_alone() {
        let labels: Vec<_> = (0..1000).map(|row| Some(row % 2)).collect();
        let held = |seed| {
            let rule = Rule { seed, ..rule(HoldOut::Random, 0.2) };
            hold_out(&rule, &ids(1000), &labels, &names(2)).unwrap().holdout
        };
        assert_eq!(held(1).len(), 200);
        assert!(held(1).is_sorted() && held(1) == held(1) && held(1) != held(2));
        assert!(held(1).iter().filter(|&&row| row >= 500).count().abs_diff(100) < 40, "spread over the rows");
    }

    #[test]
    fn hashed_rows_stay_on_their_side_when_others_come_and_go() {
        let all = ids(2000);
        let held = |ids: &[String]| {
            let labels = vec![Some(0); ids.len()];
            let split = hold_out(&rule(HoldOut::Hash, 0.2), ids, &labels, &names(1)).unwrap();
            split.holdout.iter().map(|&row| ids[row].clone()).collect::<Vec<_>>()
        };
        let (whole, half) = (held(&all), held(&all[..1000]));
        assert!(whole.len().abs_diff(400) < 80, "{}", whole.len());
        assert_eq!(whole[..half.len()], half);
        assert!(whole[half.len()..].iter().all(|id| !all[..1000].contains(id)));
    }

    #[test]
    fn a_group_is_on_one_side() {
        let ids: Vec<String> = (0..100).map(|row| format!("p{}_{row}.png", row % 20)).collect();
        let labels: Vec<_> = (0..100).map(|row| Some(row % 2)).collect();
        let split = hold_out(&rule(HoldOut::Grouped, 0.2), &ids, &labels, &names(2)).unwrap();
        assert_eq!((split.train.len(), split.holdout.len()), (80, 20));
        let of = |rows: &[usize]| rows.iter().map(|row| row % 20).collect::<std::collections::BTreeSet<_>>();
        assert!(of(&split.train).is_disjoint(&of(&split.holdout)));
        let one = hold_out(&Rule { group: "folder", ..rule(HoldOut::Grouped, 0.2) }, &ids, &labels, &names(2));
        assert!(matches!(one, Err(HeadError::OneGroup { rows: 100, .. })));
        // Two large groups: one of them, though it is more than was asked for.
        let ids: Vec<String> = (0..10).map(|row| format!("{}_{row}", row / 6)).collect();
        let split = hold_out(&rule(HoldOut::Grouped, 0.1), &ids, &labels[..10], &names(2)).unwrap();
        assert_eq!(split.holdout, [6, 7, 8, 9]);
    }

    #[test]
    fn a_share_of_0_holds_out_nothing_and_source_is_not_for_rows() {
        let labels = [Some(0), Some(1), Some(0), Some(1)];
        for kind in [HoldOut::Tail, HoldOut::Stratified, HoldOut::Random, HoldOut::Hash, HoldOut::Grouped] {
            let split = hold_out(&rule(kind, 0.0), &ids(4), &labels, &names(2)).unwrap();
            assert_eq!((split.train.len(), split.holdout.len()), (4, 0), "{kind}");
            assert!(matches!(hold_out(&rule(kind, 0.2), &[], &[], &names(2)), Err(HeadError::NothingToTrain { .. })), "{kind}");
        }
        let said = hold_out(&rule(HoldOut::Source, 0.2), &ids(4), &labels, &names(2)).unwrap_err().to_string();
        assert!(said.contains("head.split = source") && said.contains("validation"), "{said}");
    }
}
