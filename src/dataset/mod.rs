//! Sources of labelled images, of every usual form, as one stream of records.
//!
//! | source | told by |
//! |---|---|
//! | Parquet with the images inside (Hugging Face's layout) | a binary column, or a struct with a field `bytes` |
//! | a table of image paths, CSV or Parquet | a column of paths |
//! | class folders, with `train/`, `val/`, `test/` above them or not | image files |
//! | WebDataset shards | `.tar` and `.tar.gz` files with images inside |
//! | CIFAR-10 and CIFAR-100 binary | `data_batch_1.bin`, `train.bin`, or their `.tar.gz` |
//!
//! Parquet, class folders and WebDataset shards may lie in an object store or on a web server (`s3://`, `gs://`, `az://`, `https://`).
//!
//! [`Dataset::open`] looks at names, footers and labels, so that what is wrong with a source is said before any work is done.
//! [`Dataset::records`] then streams the encoded images of a split in the source's order. An image that cannot be had is a record too
//! ([`Encoded::Unusable`], or a file that [`Encoded::read`] refuses): it is set aside, not an error.

mod cifar;
mod columns;
mod error;
mod files;
#[cfg(test)]
mod fixture;
mod folders;
mod gzip;
mod inputs;
mod label;
mod listing;
mod parquet;
mod place;
mod record;
mod remote;
mod split;
pub mod synth;
mod table;
mod webdataset;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use error::DatasetError;
pub(crate) use files::is_image_name;
pub use inputs::Inputs;
pub use place::Place;
pub use record::{Encoded, Record};
pub use remote::Object;
pub use split::Split;
pub(crate) use split::{TRAIN, of_value as split_name};

use files::{Found, SourceFile};
use place::Stamp;

/// Columns that are chosen by hand; what is `None` is found by its usual names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SourceOptions {
    /// Column of image bytes, or of image paths.
    pub image_column: Option<String>,
    /// Column of labels: text, or integers from 0 (-1 for none). CIFAR-100 has `fine` and `coarse`.
    pub label_column: Option<String>,
    /// Column that says which split a row belongs to.
    pub split_column: Option<String>,
}

/// A source of images that was found good.
#[derive(Debug)]
pub struct Dataset {
    origin: PathBuf,
    options: SourceOptions,
    opened: Opened,
}

/// What opening a source of any kind gives.
#[derive(Debug)]
struct Opened {
    kind: &'static str,
    classes: Vec<String>,
    /// Those with rows.
    splits: Vec<Split>,
    warnings: Vec<String>,
    sorted_by_class: bool,
    source: Box<dyn Source>,
}

/// One kind of source.
trait Source: fmt::Debug + Send + Sync {
    /// The images of one of its splits, in order.
    fn records(&self, split: &Split) -> Records;

    /// Every file whose change changes the images or the labels.
    fn files(&self) -> Vec<Place>;

    /// About so many of them, evenly spread in their order; where what lies between would have to be fetched first, the first ones.
    fn sample(&self, split: &Split, images: usize) -> Records {
        let records = self.records(split);
        if self.files().iter().any(|place| matches!(place, Place::Object(_))) {
            return Records::new(records.take(images));
        }
        let stride = split.stride(images);
        Records::new(
            records.enumerate().filter(move |(at, record)| at % stride == 0 || record.is_err()).map(|(_, record)| record),
        )
    }

    /// The encoded images of some ids.
    fn images(&self, split: &Split, ids: &HashSet<String>) -> Result<HashMap<String, Bytes>, DatasetError> {
        let mut images = HashMap::with_capacity(ids.len());
        for record in self.records(split) {
            let record = record?;
            if ids.contains(&record.id)
                && let Ok(bytes) = record.image.read()?
            {
                images.insert(record.id, bytes);
                if images.len() == ids.len() {
                    break;
                }
            }
        }
        Ok(images)
    }
}

impl Dataset {
    /// Opens a source: a file, a folder, a pattern such as `photos/*/*.jpg`, an address such as `s3://bucket/photos`, or several of
    /// these.
    ///
    /// # Errors
    /// When there are no images, or the source as a whole is damaged or unclear; never for one bad image.
    pub fn open(paths: &[PathBuf], options: &SourceOptions) -> Result<Self, DatasetError> {
        Self::open_cached(paths, options, None)
    }

    /// The same with a folder in which to remember what is costly to find out: where the images of a shard in an object store lie.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_cached(paths: &[PathBuf], options: &SourceOptions, cache: Option<&Path>) -> Result<Self, DatasetError> {
        Self::open_as(paths, options, cache, Folders::Classes)
    }

    /// A source whose images alone are wanted: the folders they lie in say nothing of them, and their order is that of their paths.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_unlabelled(path: &Path, options: &SourceOptions, cache: Option<&Path>) -> Result<Self, DatasetError> {
        Self::open_as(&[path.to_owned()], options, cache, Folders::Nothing)
    }

    fn open_as(paths: &[PathBuf], options: &SourceOptions, cache: Option<&Path>, mean: Folders) -> Result<Self, DatasetError> {
        let origin = paths.first().cloned().unwrap_or_default();
        let found = files::find(paths)?;
        let mut opened = open(&origin, &found, options, cache, mean)?;
        opened.warnings.splice(0..0, found.warnings);
        Ok(Self { origin, options: options.clone(), opened })
    }

    /// The kind of source, for people: "class folders", "Parquet", "table", "CIFAR-10 binary".
    pub fn name(&self) -> &str {
        self.opened.kind
    }

    /// Class names; the index is the label.
    pub fn classes(&self) -> &[String] {
        &self.opened.classes
    }

    /// Splits that have images: train, validation, test, then others by name.
    pub fn splits(&self) -> &[Split] {
        &self.opened.splits
    }

    /// Rows may be in the order of their classes, so that the last rows are no fair hold-out (folders, tables).
    pub fn sorted_by_class(&self) -> bool {
        self.opened.sorted_by_class
    }

    /// What a user should know: classes with one image, rows without a label, files left out.
    pub fn warnings(&self) -> &[String] {
        &self.opened.warnings
    }

    /// BLAKE3 over path, size and time of change of every file (in an object store its tag, too), and the options: equal means that
    /// nothing has changed. No file is read.
    pub fn fingerprint(&self) -> String {
        let stamps: Vec<Stamp> = self.opened.source.files().par_iter().map(Place::stamp).collect();
        let mut hasher = blake3::Hasher::new();
        for text in [
            Some(self.name()),
            self.options.image_column.as_deref(),
            self.options.label_column.as_deref(),
            self.options.split_column.as_deref(),
        ] {
            let text = text.unwrap_or("\0");
            hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
        }
        for Stamp { shown, bytes, nanoseconds, tag } in stamps {
            let path = shown.as_os_str().as_encoded_bytes();
            hasher.update(&(path.len() as u64).to_le_bytes()).update(path);
            hasher.update(&bytes.to_le_bytes()).update(&nanoseconds.to_le_bytes());
            if let Some(tag) = tag {
                hasher.update(&(tag.len() as u64).to_le_bytes()).update(tag.as_bytes());
            }
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Streams the images of a split in the source's order; few are in memory at once.
    ///
    /// # Errors
    /// When there is no such split.
    pub fn records(&self, split: &str) -> Result<Records, DatasetError> {
        Ok(self.opened.source.records(self.split(split)?))
    }

    /// Streams at most so many images of a split, evenly spread in the source's order; the first ones where images can only be fetched
    /// one after the other, as from shards in an object store.
    ///
    /// # Errors
    /// When there is no such split.
    pub fn sample(&self, split: &str, images: usize) -> Result<Records, DatasetError> {
        Ok(self.opened.source.sample(self.split(split)?, images))
    }

    /// The encoded images of some ids of a split; ids that are not there, or cannot be read, are left out.
    ///
    /// # Errors
    /// When there is no such split, or the source is damaged.
    pub fn images(&self, split: &str, ids: &HashSet<String>) -> Result<HashMap<String, Bytes>, DatasetError> {
        self.opened.source.images(self.split(split)?, ids)
    }

    fn split(&self, name: &str) -> Result<&Split, DatasetError> {
        self.opened.splits.iter().find(|split| *split.name == *name).ok_or_else(|| DatasetError::UnknownSplit {
            path: self.origin.clone(),
            split: name.to_owned(),
            found: self.opened.splits.iter().map(|split| &*split.name).collect::<Vec<_>>().join(", "),
        })
    }
}

/// What the folders mean that images lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Folders {
    /// Splits and classes.
    Classes,
    /// Nothing.
    Nothing,
}

/// Tells the kind of source by its files.
fn open(
    origin: &Path,
    found: &Found,
    options: &SourceOptions,
    cache: Option<&Path>,
    mean: Folders,
) -> Result<Opened, DatasetError> {
    let of = |wanted: fn(&SourceFile) -> bool| found.files.iter().filter(|file| wanted(file)).cloned().collect::<Vec<_>>();
    let (images, parquet, csv) = (of(SourceFile::is_image), of(|file| file.extension() == "parquet"), of(table::is_csv));
    let left_out = |mut opened: Opened, used: &[SourceFile]| {
        let used: HashSet<&Path> = used.iter().map(|file| file.relative.as_path()).collect();
        let others: Vec<&SourceFile> = found.files.iter().filter(|file| !used.contains(file.relative.as_path())).collect();
        if !others.is_empty() {
            let kinds = Found::by_extension(others.iter().copied());
            opened.warnings.insert(0, format!("{} left out: {kinds}", counted(others.len(), "file")));
        }
        opened
    };
    if found.files.iter().any(cifar::is_member) {
        return cifar::open(origin, &found.files, options);
    }
    if let Some(first) = parquet.first()
        && parquet::has_images(&first.place)?
    {
        return parquet::open(origin, &parquet, options).map(|opened| left_out(opened, &parquet));
    }
    let shards = of(webdataset::is_shard);
    if let Some(first) = shards.first()
        && webdataset::has_images(first)?
    {
        return webdataset::open(origin, &shards, options, cache).map(|opened| left_out(opened, &shards));
    }
    if mean == Folders::Nothing && !images.is_empty() {
        return folders::plain(origin, images.clone()).map(|opened| left_out(opened, &images));
    }
    if folders::has_classes(&images) || (!images.is_empty() && csv.is_empty() && parquet.is_empty()) {
        let mut opened = folders::open(origin, found, images.clone()).map(|opened| left_out(opened, &images))?;
        if options != &SourceOptions::default() {
            opened.warnings.push("class folders have no columns: what was said about columns is ignored".to_owned());
        }
        return Ok(opened);
    }
    if !csv.is_empty() {
        return table::open(origin, &csv, options);
    }
    if !parquet.is_empty() {
        return table::open(origin, &parquet, options);
    }
    let archives = of(SourceFile::is_packed_tar);
    if !archives.is_empty() {
        return cifar::open(origin, &archives, options);
    }
    if let ([only], Folders::Nothing) = (found.files.as_slice(), mean)
        && matches!(only.place, Place::Object(_))
    {
        // An address may end in anything: its bytes say whether it is an image.
        return folders::plain(origin, vec![only.clone()]);
    }
    if let [only] = found.files.as_slice()
        && only.place.shown() == origin
    {
        let reason = "not a source of images; give a folder of images, a Parquet file, a WebDataset .tar or .tar.gz, a CSV table (.csv, .tsv) or a CIFAR .tar.gz";
        return Err(DatasetError::Unsupported { path: origin.to_owned(), reason: reason.to_owned() });
    }
    Err(DatasetError::NoImages { path: origin.to_owned(), found: Found::by_extension(found.files.iter()) })
}

/// The images of a split; ends after the first error.
pub struct Records {
    inner: Option<Box<dyn Iterator<Item = Result<Record, DatasetError>> + Send>>,
}

impl Records {
    fn new(inner: impl Iterator<Item = Result<Record, DatasetError>> + Send + 'static) -> Self {
        Self { inner: Some(Box::new(inner)) }
    }

    /// One stream after the other, each opened when its turn comes.
    fn chain(streams: impl Iterator<Item = Result<Self, DatasetError>> + Send + 'static) -> Self {
        Self::new(streams.flat_map(|stream| stream.unwrap_or_else(|error| Self::new(std::iter::once(Err(error))))))
    }
}

impl Iterator for Records {
    type Item = Result<Record, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.inner.as_mut()?.next();
        if !matches!(next, Some(Ok(_))) {
            self.inner = None;
        }
        next
    }
}

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Records").finish_non_exhaustive()
    }
}

/// `class cat`, or `classes cat, dog and 3 more`: names for a message, however many there are.
fn some_of(noun: &str, names: &[&str]) -> String {
    const SHOWN: usize = 5;
    let shown = names.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
    match names.len() {
        0 | 1 => format!("{noun} {shown}"),
        more if more > SHOWN => format!("{} {shown} and {} more", plural(noun), more - SHOWN),
        _ => format!("{} {shown}", plural(noun)),
    }
}

/// `1 file`, `3 files`.
fn counted(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {}", plural(noun)) }
}

fn plural(noun: &str) -> String {
    if noun.ends_with('s') { format!("{noun}es") } else { format!("{noun}s") }
}

#[cfg(test)]
mod tests {
    use super::fixture::{numbered, open, parquet, tree, write};
    use super::*;

    #[test]
    fn the_fingerprint_follows_files_and_options() {
        let folder = tree(&["cat/1.jpg", "dog/1.jpg"]);
        let fingerprint = || open(folder.path()).unwrap().fingerprint();
        let first = fingerprint();
        assert_eq!(first, fingerprint());
        write(&folder.path().join("dog/1.jpg"), b"another size");
        let second = fingerprint();
        assert_ne!(first, second, "a file changed");
        write(&folder.path().join("dog/2.jpg"), b"x");
        assert_ne!(second, fingerprint(), "a file was added");
        let options = SourceOptions { label_column: Some("x".to_owned()), ..SourceOptions::default() };
        assert_ne!(Dataset::open(&[folder.path().to_owned()], &options).unwrap().fingerprint(), fingerprint());
    }

    #[test]
    fn images_by_id_from_folders() {
        let folder = tree(&["cat/1.jpg", "cat/2.jpg", "dog/1.jpg"]);
        let dataset = open(folder.path()).unwrap();
        let images = dataset.images("train", &["cat/2.jpg".to_owned(), "gone.jpg".to_owned()].into()).unwrap();
        assert_eq!(images.into_iter().collect::<Vec<_>>(), [("cat/2.jpg".to_owned(), Bytes::from_static(b"cat/2.jpg"))]);
    }

    #[test]
    fn a_sample_is_spread_over_its_split() {
        let folder = tree(&[
            "train/cat/1.jpg",
            "train/cat/2.jpg",
            "train/dog/1.jpg",
            "train/dog/2.jpg",
            "train/dog/3.jpg",
            "test/cat/9.jpg",
        ]);
        let ids = |dataset: &Dataset, split: &str, images| -> Vec<String> {
            dataset.sample(split, images).unwrap().map(|record| record.unwrap().id).collect()
        };
        let dataset = open(folder.path()).unwrap();
        assert_eq!(ids(&dataset, "train", 3), ["train/cat/1.jpg", "train/dog/1.jpg", "train/dog/3.jpg"]);
        assert_eq!(ids(&dataset, "train", 1), ["train/cat/1.jpg"]);
        assert_eq!(ids(&dataset, "train", 9).len(), 5);
        assert_eq!(ids(&dataset, "test", 3), ["test/cat/9.jpg"]);
        parquet(&folder.path().join("other/train.parquet"), vec![("image", numbered(5))], None);
        let dataset = open(folder.path().join("other")).unwrap();
        assert_eq!(ids(&dataset, "train", 2), ["train.parquet#0", "train.parquet#3"]);
    }

    #[test]
    fn parquet_with_images_wins_over_pictures_beside_it() {
        let folder = tree(&["docs/example.png", "README.md"]);
        parquet(&folder.path().join("train.parquet"), vec![("image", numbered(3))], None);
        let dataset = open(folder.path()).unwrap();
        assert_eq!(dataset.name(), "Parquet");
        assert!(dataset.warnings()[0].contains("2 files left out: 1 .md, 1 .png"), "{:?}", dataset.warnings());
    }

    #[test]
    fn a_stream_ends_after_its_first_error() {
        let error = || Err(DatasetError::NotFound("x".into()));
        let mut records = Records::new([error(), error()].into_iter());
        assert!(records.next().is_some_and(|record| record.is_err()));
        assert!(records.next().is_none());
    }

    #[test]
    fn names_in_messages_stay_few() {
        assert_eq!(some_of("class", &["a"]), "class a");
        assert_eq!(some_of("file", &["a", "b"]), "files a, b");
        assert_eq!(some_of("class", &["a", "b", "c", "d", "e", "f", "g"]), "classes a, b, c, d, e and 2 more");
    }

    #[test]
    fn options_refuse_unknown_keys() {
        assert!(serde_json::from_str::<SourceOptions>(r#"{"label_column": "y"}"#).is_ok());
        assert!(serde_json::from_str::<SourceOptions>(r#"{"lable_column": "y"}"#).is_err());
    }
}
