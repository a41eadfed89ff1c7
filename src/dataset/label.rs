//! Labels as sources write them, and the class list that they make together.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use super::split::{Split, TRAIN, rank};
use super::{DatasetError, some_of};

/// Integers above this are ids or dates, not class indices.
const MOST_CLASSES: i64 = 100_000;

/// A label as a row has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Label<'a> {
    /// No label: null, empty, or -1.
    None,
    /// An index.
    Index(i64),
    /// A class name.
    Name(&'a str),
}

/// How often a label was seen, and where first.
#[derive(Clone, Copy, Debug)]
struct Seen {
    count: usize,
    first_row: u64,
}

/// Counts the labels of one split of one file.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    rows: usize,
    indices: BTreeMap<i64, Seen>,
    names: BTreeMap<String, Seen>,
}

impl Tally {
    pub(super) fn add(&mut self, label: Label<'_>, row: u64) {
        self.rows += 1;
        let seen = match label {
            Label::None | Label::Index(-1) => return,
            Label::Index(index) => self.indices.entry(index).or_insert(Seen { count: 0, first_row: row }),
            Label::Name(name) if self.names.contains_key(name) => match self.names.get_mut(name) {
                Some(seen) => seen,
                None => return,
            },
            Label::Name(name) => self.names.entry(name.to_owned()).or_insert(Seen { count: 0, first_row: row }),
        };
        seen.count += 1;
    }

    /// Counts rows that have no label.
    pub(super) fn add_unlabelled(&mut self, rows: usize) {
        self.rows += rows;
    }
}

/// The labels of one split of one file.
pub(super) struct Counted<'a> {
    pub(super) path: &'a Path,
    pub(super) split: &'a str,
    pub(super) tally: &'a Tally,
}

/// Class names, and the index of each.
#[derive(Clone, Debug, Default)]
pub(super) struct ClassList {
    pub(super) names: Vec<String>,
    indices: HashMap<String, i32>,
}

impl ClassList {
    fn new(names: Vec<String>) -> Self {
        let indices = names.iter().cloned().zip(0..).collect();
        Self { names, indices }
    }

    /// The index of a label; none where it has none. Labels were checked when the list was made.
    pub(super) fn index(&self, label: Label<'_>) -> Option<i32> {
        match label {
            Label::None => None,
            Label::Index(index) => i32::try_from(index).ok().filter(|index| *index >= 0),
            Label::Name(name) => self.indices.get(name).copied(),
        }
    }
}

/// Makes the class list of a source: the `declared` names if it has them, otherwise the sorted names found, or "0", "1", … for integers.
///
/// # Errors
/// When a label is outside the list, or labels are integers here and names there.
pub(super) fn class_list(parts: &[Counted<'_>], declared: Option<Vec<String>>) -> Result<ClassList, DatasetError> {
    let integers = parts.iter().find(|part| !part.tally.indices.is_empty());
    let named = parts.iter().find(|part| !part.tally.names.is_empty());
    if let (Some(integers), Some(named)) = (integers, named) {
        let reason = format!("labels are names here and integers in {}", integers.path.display());
        return Err(DatasetError::LabelColumn { path: named.path.to_owned(), reason });
    }
    let list = match declared {
        Some(names) => ClassList::new(names),
        None if integers.is_some() => {
            let largest =
                parts.iter().filter_map(|part| part.tally.indices.last_key_value().map(|(&index, _)| index)).max().unwrap_or(0);
            ClassList::new((0..=largest.clamp(0, MOST_CLASSES)).map(|index| index.to_string()).collect())
        }
        None => {
            let names: BTreeSet<&String> = parts.iter().flat_map(|part| part.tally.names.keys()).collect();
            ClassList::new(names.into_iter().cloned().collect())
        }
    };
    for part in parts {
        let outside = |label: String, row: u64| DatasetError::Label {
            path: part.path.to_owned(),
            row,
            label,
            last: list.names.len().saturating_sub(1),
        };
        let ends = [part.tally.indices.first_key_value(), part.tally.indices.last_key_value()];
        for (&index, seen) in ends.into_iter().flatten() {
            if index >= MOST_CLASSES {
                let reason =
                    format!("row {}: {index} is too large for a class index; classes are counted from 0", seen.first_row);
                return Err(DatasetError::LabelColumn { path: part.path.to_owned(), reason });
            }
            if !usize::try_from(index).is_ok_and(|index| index < list.names.len()) {
                return Err(outside(index.to_string(), seen.first_row));
            }
        }
        if let Some((name, seen)) = part.tally.names.iter().find(|(name, _)| !list.indices.contains_key(*name)) {
            return Err(outside(format!("{name:?}"), seen.first_row));
        }
    }
    Ok(list)
}

/// Adds the parts up: one entry a split that has rows, train first.
pub(super) fn splits(parts: &[Counted<'_>], classes: &ClassList) -> Vec<Split> {
    let mut splits: Vec<Split> = Vec::new();
    for part in parts.iter().filter(|part| part.tally.rows > 0) {
        let at = splits.iter().position(|split| *split.name == *part.split).unwrap_or_else(|| {
            splits.push(Split { name: Arc::from(part.split), rows: 0, per_class: vec![0; classes.names.len()] });
            splits.len() - 1
        });
        let indices = part.tally.indices.iter().map(|(&index, seen)| (Label::Index(index), seen));
        let names = part.tally.names.iter().map(|(name, seen)| (Label::Name(name), seen));
        splits[at].rows += part.tally.rows;
        for (label, seen) in indices.chain(names) {
            if let Some(index) = classes.index(label).and_then(|index| usize::try_from(index).ok()) {
                splits[at].per_class[index] += seen.count;
            }
        }
    }
    splits.sort_by(|a, b| rank(&a.name).cmp(&rank(&b.name)));
    splits
}

/// What a user should know about the labels before anything is trained on them.
pub(super) fn warnings(classes: &[String], splits: &[Split]) -> Vec<String> {
    let mut warnings = Vec::new();
    for split in splits {
        let labelled: usize = split.per_class.iter().sum();
        if labelled < split.rows {
            warnings.push(format!("{} of {} images of {} have no label", split.rows - labelled, split.rows, split.name));
        }
    }
    let Some(train) = splits.iter().find(|split| *split.name == *TRAIN) else { return warnings };
    let with = |count: usize| {
        let names = classes.iter().zip(&train.per_class).filter(|(_, found)| **found == count);
        names.map(|(name, _)| name.as_str()).collect::<Vec<_>>()
    };
    let single = with(1);
    if !single.is_empty() {
        warnings.push(format!("one image only in train: {}", some_of("class", &single)));
    }
    let missing = with(0);
    if !missing.is_empty() && missing.len() < classes.len() {
        warnings.push(format!("no image in train: {}", some_of("class", &missing)));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(labels: &[Label<'_>]) -> Tally {
        let mut tally = Tally::default();
        labels.iter().zip(0..).for_each(|(label, row)| tally.add(*label, row));
        tally
    }

    fn part<'a>(split: &'a str, tally: &'a Tally) -> Counted<'a> {
        Counted { path: Path::new("a.parquet"), split, tally }
    }

    #[test]
    fn names_are_sorted_over_all_files_and_integers_count_from_zero() {
        let (train, test) = (tally(&[Label::Name("dog"), Label::Name("cat")]), tally(&[Label::Name("ant"), Label::None]));
        let parts = [part("test", &test), part("train", &train)];
        let classes = class_list(&parts, None).unwrap();
        assert_eq!(classes.names, ["ant", "cat", "dog"]);
        assert_eq!(classes.index(Label::Name("dog")), Some(2));
        let splits = splits(&parts, &classes);
        assert_eq!((&*splits[0].name, &splits[0].per_class[..]), ("train", &[0, 1, 1][..]));
        assert_eq!((&*splits[1].name, splits[1].rows, &splits[1].per_class[..]), ("test", 2, &[1, 0, 0][..]));

        let integers = tally(&[Label::Index(2), Label::Index(-1)]);
        let classes = class_list(&[part("train", &integers)], None).unwrap();
        assert_eq!(classes.names, ["0", "1", "2"]);
        assert_eq!([classes.index(Label::Index(-1)), classes.index(Label::Index(1))], [None, Some(1)]);
    }

    #[test]
    fn a_label_outside_the_list_names_its_row() {
        let declared = || Some(vec!["cat".to_owned(), "dog".to_owned()]);
        let labels = tally(&[Label::Index(0), Label::Index(1), Label::Index(2)]);
        let text = class_list(&[part("train", &labels)], declared()).unwrap_err().to_string();
        assert!(
            text.contains("a.parquet, row 2: label 2 is outside the class list (0 to 1)") && text.contains("--label-column"),
            "{text}"
        );
        let negative = tally(&[Label::Index(0), Label::Index(-7)]);
        assert!(class_list(&[part("train", &negative)], None).unwrap_err().to_string().contains("row 1: label -7"));
        let name = tally(&[Label::Name("cow")]);
        assert!(class_list(&[part("train", &name)], declared()).unwrap_err().to_string().contains("cow"));
    }

    #[test]
    fn ids_and_mixed_labels_are_refused() {
        let ids = tally(&[Label::Index(20_260_101)]);
        assert!(class_list(&[part("train", &ids)], None).unwrap_err().to_string().contains("too large"));
        let (names, integers) = (tally(&[Label::Name("cat")]), tally(&[Label::Index(0)]));
        assert!(
            class_list(&[part("train", &names), part("test", &integers)], None).unwrap_err().to_string().contains("names here")
        );
    }

    #[test]
    fn thin_classes_are_said() {
        let train = tally(&[Label::Name("cat"), Label::Name("dog"), Label::Name("dog"), Label::None]);
        let test = tally(&[Label::Name("owl")]);
        let parts = [part("train", &train), part("test", &test)];
        let classes = class_list(&parts, None).unwrap();
        let said = warnings(&classes.names, &splits(&parts, &classes)).join("\n");
        assert!(said.contains("1 of 4 images of train have no label"), "{said}");
        assert!(said.contains("one image only in train: class cat"), "{said}");
        assert!(said.contains("no image in train: class owl"), "{said}");
    }
}
