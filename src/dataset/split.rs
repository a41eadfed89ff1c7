//! Which split a file, a folder or a row belongs to, by its name.

use std::path::{Component, Path};
use std::sync::Arc;

/// One split of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// `train`, `validation`, `test`, or the source's own name for it.
    pub name: Arc<str>,
    /// Images in it.
    pub rows: usize,
    /// Images of each class, in the order of the class list; the rest of `rows` has no label.
    pub per_class: Vec<usize>,
}

impl Split {
    /// Every how manieth image makes a sample of at most `images`.
    pub(super) fn stride(&self, images: usize) -> usize {
        self.rows.div_ceil(images.max(1)).max(1)
    }
}

/// The split of a source that names none.
pub(crate) const TRAIN: &str = "train";

/// `train`, `validation` or `test` if that is what the name means in any of its usual spellings.
pub(super) fn known(name: &str) -> Option<&'static str> {
    match name.trim().to_lowercase().as_str() {
        "train" | "training" => Some(TRAIN),
        "val" | "valid" | "validation" | "dev" => Some("validation"),
        "test" | "testing" => Some("test"),
        _ => None,
    }
}

/// A name from a `split` column: the known spellings become one, others keep their own.
pub(crate) fn of_value(value: &str) -> String {
    known(value).map_or_else(|| value.trim().to_lowercase(), str::to_owned)
}

/// The split that a file's path names: `train-00000-of-00001.parquet`, `cifar10_test.csv`, `validation/0000.parquet`.
pub(super) fn of_path(relative: &Path) -> Option<String> {
    let stem = relative.file_stem()?.to_string_lossy();
    if let Some(split) = stem.split(|c: char| !c.is_alphanumeric()).find_map(known) {
        return Some(split.to_owned());
    }
    // Hugging Face shards carry the split's name, whatever it is.
    let mut parts = stem.rsplitn(4, '-');
    if let (Some(total), Some("of"), Some(shard), Some(name)) = (parts.next(), parts.next(), parts.next(), parts.next())
        && [total, shard].iter().all(|part| part.len() == 5 && part.bytes().all(|byte| byte.is_ascii_digit()))
    {
        return Some(name.to_lowercase());
    }
    let folders = relative.parent()?.components().rev();
    folders
        .filter_map(|part| if let Component::Normal(name) = part { name.to_str() } else { None })
        .find_map(known)
        .map(str::to_owned)
}

/// Sorts names as a person expects them: train, validation, test, then the others.
pub(super) fn rank(name: &str) -> (usize, &str) {
    let place = ["train", "validation", "test"].iter().position(|known| *known == name);
    (place.unwrap_or(3), name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_folders_name_their_split() {
        let of = |path: &str| of_path(Path::new(path));
        assert_eq!(of("train-00000-of-00001.parquet").as_deref(), Some("train"));
        assert_eq!(of("data/test-00000-of-00001.parquet").as_deref(), Some("test"));
        assert_eq!(of("cifar10_VAL.csv").as_deref(), Some("validation"));
        assert_eq!(of("plain_text/validation/0000.parquet").as_deref(), Some("validation"));
        assert_eq!(of("unsupervised-00003-of-00010.parquet").as_deref(), Some("unsupervised"));
        assert_eq!(of("latest.parquet"), None, "a name within a word is none");
        assert_eq!(of("images.parquet"), None);
    }

    #[test]
    fn values_meet_in_one_spelling() {
        assert_eq!(
            ["Train", " VALID ", "dev", "Testing", "Extra"].map(of_value),
            ["train", "validation", "validation", "test", "extra"]
        );
        let mut names = ["zoo", "test", "validation", "train", "extra"];
        names.sort_by_key(|name| rank(name));
        assert_eq!(names, ["train", "validation", "test", "extra", "zoo"]);
    }
}
