//! Class folders: `root/cat/1.jpg`, or `root/train/cat/1.jpg` with `val/` and `test/` beside `train/`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::files::{Found, SourceFile, slashed};
use super::listing::{self, Entry, Value};
use super::split::{self, TRAIN};
use super::{DatasetError, Opened, counted, some_of};

/// How the folders are to be read.
struct Layout {
    /// Folders that everything lies in and that mean nothing.
    depth: usize,
    /// The first folder below them is a split.
    by_split: bool,
}

impl Layout {
    /// The folder of the class, counted from 0.
    fn class_depth(&self) -> usize {
        self.depth + usize::from(self.by_split)
    }
}

/// Some image lies in a folder that names its class.
pub(super) fn has_classes(images: &[SourceFile]) -> bool {
    let layout = layout(images);
    images.iter().any(|file| folder(&file.relative, layout.class_depth()).is_some())
}

/// Reads class folders from the images below `origin`.
///
/// # Errors
/// When two files cannot be told apart by their ids.
pub(super) fn open(origin: &Path, found: &Found, images: Vec<SourceFile>) -> Result<Opened, DatasetError> {
    let layout = layout(&images);
    let mut notes = Vec::new();
    if let Some(inner) = images.first().filter(|_| layout.depth > 0) {
        let inner: PathBuf = inner.relative.components().take(layout.depth).collect();
        notes.push(format!("the classes are taken from the folders inside {}", slashed(&inner)));
    }
    notes.extend(empty_folders(&layout, found, &images));
    let (mut entries, mut stray) = (Vec::with_capacity(images.len()), 0);
    for (file, row) in images.into_iter().zip(0..) {
        let split = if layout.by_split {
            match folder(&file.relative, layout.depth).and_then(|name| split::known(&name)) {
                Some(split) => split,
                None => {
                    stray += 1;
                    continue;
                }
            }
        } else {
            TRAIN
        };
        let label = folder(&file.relative, layout.class_depth()).map(Value::Name);
        entries.push(Entry { id: slashed(&file.relative), place: Some(file.place), split: split.to_owned(), label, row });
    }
    if stray > 0 {
        notes.push(format!("{} beside the folders of the splits, left out", counted(stray, "image")));
    }
    let mut opened = listing::open("class folders", origin, Vec::new(), entries)?;
    opened.warnings.splice(0..0, notes);
    Ok(opened)
}

/// Images of one split without labels, whatever folders they lie in.
///
/// # Errors
/// When two files cannot be told apart by their ids.
pub(super) fn plain(origin: &Path, images: Vec<SourceFile>) -> Result<Opened, DatasetError> {
    let entry = |(file, row): (SourceFile, u64)| Entry {
        id: slashed(&file.relative),
        place: Some(file.place),
        split: TRAIN.to_owned(),
        label: None,
        row,
    };
    let mut opened = listing::open("images", origin, Vec::new(), images.into_iter().zip(0..).map(entry).collect())?;
    // That there are no labels is no news.
    opened.warnings.clear();
    Ok(opened)
}

/// The name of the folder at this depth; none where the file itself stands there.
fn folder(relative: &Path, depth: usize) -> Option<String> {
    let mut parts = relative.parent()?.components().skip(depth);
    parts.next().map(|part| part.as_os_str().to_string_lossy().into_owned())
}

fn layout(images: &[SourceFile]) -> Layout {
    let mut depth = 0;
    loop {
        let tops: BTreeSet<_> = images.iter().map(|file| folder(&file.relative, depth)).collect();
        let splits: BTreeSet<_> = tops.iter().flatten().filter_map(|name| split::known(name)).collect();
        let named = tops.iter().flatten().count();
        // A class may be called "train" (the vehicle): folders are splits only where all are, or where train/ and another split hold
        // class folders.
        let all = named > 0 && tops.iter().flatten().all(|name| split::known(name).is_some());
        let nested = splits.len() > 1 && splits.contains(TRAIN) && {
            let in_train = |file: &&SourceFile| folder(&file.relative, depth).and_then(|name| split::known(&name)) == Some(TRAIN);
            images.iter().filter(in_train).all(|file| folder(&file.relative, depth + 1).is_some())
        };
        if all || nested {
            return Layout { depth, by_split: true };
        }
        // One folder around all class folders, as archives often have it.
        let wrapped = tops.len() == 1 && named == 1 && images.iter().all(|file| folder(&file.relative, depth + 1).is_some());
        if !wrapped {
            return Layout { depth, by_split: false };
        }
        depth += 1;
    }
}

/// Folders that should hold the images of a split or a class, and hold none.
fn empty_folders(layout: &Layout, found: &Found, images: &[SourceFile]) -> Vec<String> {
    let used: BTreeSet<&Path> = images.iter().flat_map(|file| file.relative.ancestors().skip(1)).collect();
    let empty_at = |depth: usize| {
        let at_depth =
            found.folders.iter().filter(|folder| folder.components().count() == depth + 1 && !used.contains(folder.as_path()));
        at_depth.map(|folder| slashed(folder)).collect::<BTreeSet<_>>()
    };
    let mut notes = Vec::new();
    if layout.by_split {
        let splits = empty_at(layout.depth);
        let splits: Vec<&str> = splits
            .iter()
            .map(String::as_str)
            .filter(|name| split::known(name.rsplit('/').next().unwrap_or(name)).is_some())
            .collect();
        if !splits.is_empty() {
            notes.push(format!("no images in {}, so this split is left out", some_of("folder", &splits)));
        }
    }
    let classes = empty_at(layout.class_depth());
    if !classes.is_empty() {
        let classes: Vec<&str> = classes.iter().map(String::as_str).collect();
        notes.push(format!("no images in {}, so it makes no class", some_of("folder", &classes)));
    }
    notes
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::fixture::{labelled, open, records, refused, splits, tree};

    #[test]
    fn folders_are_classes() {
        let folder = tree(&["dog/b.jpg", "cat/deep/er/a.PNG", "dog/a.webp", "dog/notes.txt"]);
        let dataset = open(folder.path()).unwrap();
        assert_eq!((dataset.name(), dataset.classes()), ("class folders", &["cat".to_owned(), "dog".to_owned()][..]));
        assert!(dataset.sorted_by_class());
        let expected = [("cat/deep/er/a.PNG", 0), ("dog/a.webp", 1), ("dog/b.jpg", 1)];
        assert_eq!(labelled(&dataset, "train"), expected.map(|(id, label)| (id.to_owned(), Some(label))));
        assert_eq!(records(&dataset, "train")[1].image.read().unwrap().unwrap(), "dog/a.webp");
        let said = dataset.warnings().join("\n");
        assert!(said.contains("1 file left out: 1 .txt") && said.contains("one image only in train: class cat"), "{said}");
    }

    #[test]
    fn folders_above_the_classes_are_splits() {
        let folder = tree(&["Train/cat/1.jpg", "Train/dog/1.jpg", "val/cat/1.jpg", "test/dog/1.jpg", "test/2.jpg"]);
        let dataset = open(folder.path()).unwrap();
        assert_eq!(splits(&dataset), [("train", 2), ("validation", 1), ("test", 2)]);
        assert_eq!(dataset.classes(), ["cat", "dog"]);
        assert_eq!(labelled(&dataset, "test"), [("test/2.jpg".to_owned(), None), ("test/dog/1.jpg".to_owned(), Some(1))]);
        assert!(dataset.warnings().iter().any(|text| text.contains("1 of 2 images of test have no label")));
    }

    #[test]
    fn a_class_may_be_called_train() {
        let folder = tree(&["train/1.jpg", "car/1.jpg", "ship/1.jpg"]);
        let dataset = open(folder.path()).unwrap();
        assert_eq!(dataset.classes(), ["car", "ship", "train"]);
        let folder = tree(&["train/car/1.jpg", "test/car/1.jpg", "extra/x.jpg"]);
        let dataset = open(folder.path()).unwrap();
        assert_eq!(splits(&dataset), [("train", 1), ("test", 1)]);
        assert!(dataset.warnings().iter().any(|text| text.contains("1 image beside the folders of the splits")));
    }

    #[test]
    fn one_folder_around_everything_means_nothing() {
        let folder = tree(&["flowers/rose/1.jpg", "flowers/tulip/1.jpg"]);
        let dataset = open(folder.path()).unwrap();
        assert_eq!(dataset.classes(), ["rose", "tulip"]);
        assert!(dataset.warnings().iter().any(|text| text.contains("inside flowers")), "{:?}", dataset.warnings());
    }

    #[test]
    fn images_without_folders_have_no_label() {
        let folder = tree(&["1.jpg", "2.jpg"]);
        let dataset = open(folder.path()).unwrap();
        assert!(dataset.classes().is_empty());
        assert_eq!(labelled(&dataset, "train"), [("1.jpg".to_owned(), None), ("2.jpg".to_owned(), None)]);
        assert_eq!(labelled(&open(folder.path().join("2.jpg")).unwrap(), "train"), [("2.jpg".to_owned(), None)]);
    }

    #[test]
    fn a_pattern_keeps_the_classes() {
        let folder = tree(&["cat/1.jpg", "cat/2.png", "dog/1.jpg"]);
        let dataset = open(folder.path().join("*/*.jpg")).unwrap();
        assert_eq!(labelled(&dataset, "train"), [("cat/1.jpg".to_owned(), Some(0)), ("dog/1.jpg".to_owned(), Some(1))]);
    }

    #[test]
    fn empty_folders_are_said() {
        let folder = tree(&["train/cat/1.jpg", "train/dog/1.jpg"]);
        fs::create_dir_all(folder.path().join("train/owl")).unwrap();
        fs::create_dir_all(folder.path().join("test")).unwrap();
        let dataset = open(folder.path()).unwrap();
        assert_eq!((splits(&dataset), dataset.classes().len()), (vec![("train", 2)], 2));
        let said = dataset.warnings().join("\n");
        assert!(said.contains("no images in folder test, so this split is left out"), "{said}");
        assert!(said.contains("no images in folder train/owl, so it makes no class"), "{said}");
        let error = dataset.records("test").unwrap_err().to_string();
        assert!(error.contains("no split \"test\"") && error.contains("splits found: train"), "{error}");
    }

    #[test]
    fn a_folder_without_images_is_an_error() {
        let text = refused(tree(&["a/readme.txt", "b/x.json", "b/y.json"]).path());
        assert!(text.contains("no images here (2 .json, 1 .txt)") && text.contains("class folders"), "{text}");
        assert!(refused(tree(&[]).path()).contains("no files"));
        let folder = tree(&["model.onnx"]);
        assert!(refused(folder.path().join("model.onnx")).contains("not a source of images"));
    }

    #[test]
    fn pipes_and_unreadable_files_are_records_with_a_reason() {
        let folder = tree(&["cat/1.jpg", "dog/1.jpg"]);
        let pipe = folder.path().join("cat/0.jpg");
        if !std::process::Command::new("mkfifo").arg(&pipe).status().is_ok_and(|status| status.success()) {
            println!("skipped: no mkfifo here");
            return;
        }
        let table = folder.path().join("labels.csv");
        assert!(std::process::Command::new("mkfifo").arg(&table).status().unwrap().success());
        let dataset = open(folder.path()).unwrap();
        assert!(dataset.warnings()[0].contains("labels.csv: not a regular file, skipped"), "{:?}", dataset.warnings());
        let images = records(&dataset, "train");
        assert_eq!((images.len(), images[0].id.as_str()), (3, "cat/0.jpg"));
        assert!(images[0].image.read().unwrap().unwrap_err().contains("not a regular file"));
        fs::remove_file(folder.path().join("dog/1.jpg")).unwrap();
        assert!(images[2].image.read().unwrap().unwrap_err().contains("No such file"));
    }
}
