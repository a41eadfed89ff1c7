//! Images to be looked at one after the other, whatever they are labelled, in the order in which their places are named.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::place::Place;
use super::remote;
use super::{Dataset, DatasetError, Encoded, Record, SourceOptions};

/// Name of their only split.
const SPLIT: &str = "images";

/// Images of several places.
#[derive(Debug)]
pub struct Inputs {
    parts: Vec<Part>,
    options: SourceOptions,
    cache: Option<PathBuf>,
}

#[derive(Debug)]
enum Part {
    /// An image.
    Record(Record),
    /// A folder, a pattern, a file that holds many images.
    Source(Dataset),
    /// Looked at when its turn comes: what is wrong with one of many addresses is that one's.
    Address(PathBuf),
}

impl Inputs {
    /// None yet.
    pub fn new(options: &SourceOptions, cache: Option<&Path>) -> Self {
        Self { parts: Vec::new(), options: options.clone(), cache: cache.map(Path::to_owned) }
    }

    /// Adds a place: a file, a folder, a pattern, a Parquet file, a WebDataset shard, a table of paths, an address. A file that is
    /// not there is an image that cannot be used.
    ///
    /// # Errors
    /// When a folder or a pattern has no images, or a source of many is damaged or unclear.
    pub fn add(&mut self, place: &Path) -> Result<(), DatasetError> {
        let local = remote::local_path(place)?;
        let path = local.as_deref().unwrap_or(place);
        let pattern = path.to_string_lossy().contains(['*', '?', '[']);
        let part = if remote::is_address(path) {
            Part::Address(path.to_owned())
        } else if path.is_dir() || holds_many(path) || (pattern && !path.exists()) {
            Part::Source(Dataset::open_unlabelled(path, &self.options, self.cache.as_deref())?)
        } else {
            let image = Encoded::At(Place::File(path.to_owned()));
            Part::Record(Record { id: path.display().to_string(), split: SPLIT.into(), label: None, image })
        };
        self.parts.push(part);
        Ok(())
    }

    /// Adds a place that cannot be used, as an image that cannot: the others can.
    pub fn set_aside(&mut self, place: &Path, reason: String) {
        self.parts.push(Part::Record(unusable(place, reason)));
    }

    /// Adds an image that is at hand.
    pub fn push(&mut self, id: &str, encoded: Vec<u8>) {
        let image = Encoded::Bytes(encoded.into());
        self.parts.push(Part::Record(Record { id: id.to_owned(), split: SPLIT.into(), label: None, image }));
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Number of images, where it is known.
    pub fn total(&self) -> Option<usize> {
        let images = |part: &Part| match part {
            Part::Record(_) => Some(1),
            Part::Source(dataset) => Some(dataset.splits().iter().map(|split| split.rows).sum()),
            Part::Address(_) => None,
        };
        self.parts.iter().map(images).sum()
    }

    /// What a user should know: files left out.
    pub fn warnings(&self) -> impl Iterator<Item = &str> {
        let sources = self.parts.iter().filter_map(|part| if let Part::Source(dataset) = part { Some(dataset) } else { None });
        sources.flat_map(Dataset::warnings).map(String::as_str)
    }

    /// The images, in order. An id is the image's path or address, or `file#row`. What is damaged of a source of many ends that
    /// source, by an image that cannot be used; the others go on.
    pub fn records(self) -> impl Iterator<Item = Record> + Send {
        let Self { parts, options, cache } = self;
        parts.into_iter().flat_map(move |part| -> Box<dyn Iterator<Item = Record> + Send> {
            match part {
                Part::Record(record) => Box::new(std::iter::once(record)),
                Part::Source(dataset) => Box::new(of(dataset)),
                Part::Address(address) => match Dataset::open_unlabelled(&address, &options, cache.as_deref()) {
                    Ok(dataset) => Box::new(of(dataset)),
                    Err(error) => Box::new(std::iter::once(unusable(&remote::without_query(&address), error.to_string()))),
                },
            }
        })
    }
}

/// Instead of the images of a place, why there are none.
fn unusable(place: &Path, reason: String) -> Record {
    Record { id: place.display().to_string(), split: SPLIT.into(), label: None, image: Encoded::Unusable(reason) }
}

/// The name is that of a file with many images.
fn holds_many(path: &Path) -> bool {
    let extension = path.extension().map(|text| text.to_string_lossy().to_lowercase()).unwrap_or_default();
    ["parquet", "tar", "tgz", "gz", "csv", "tsv", "bin"].contains(&extension.as_str())
}

fn of(dataset: Dataset) -> impl Iterator<Item = Record> + Send {
    let splits: Vec<Arc<str>> = dataset.splits().iter().map(|split| Arc::clone(&split.name)).collect();
    splits.into_iter().flat_map(move |split| {
        let records: Box<dyn Iterator<Item = Result<Record, DatasetError>> + Send> = match dataset.records(&split) {
            Ok(records) => Box::new(records),
            Err(error) => Box::new(std::iter::once(Err(error))),
        };
        let origin = dataset.origin.clone();
        records.map(move |record| match record {
            Ok(mut record) => {
                if let Encoded::At(place) = &record.image {
                    record.id = place.shown().display().to_string();
                }
                record
            }
            Err(error) => unusable(&origin, error.to_string()),
        })
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::fixture::{numbered, parquet, tree};
    use super::*;

    fn ids(places: &[&str], folder: &Path) -> Vec<String> {
        let mut inputs = Inputs::new(&SourceOptions::default(), None);
        for place in places {
            inputs.add(&folder.join(place)).unwrap();
        }
        let total = inputs.total();
        let found: Vec<String> = inputs.records().map(|record| record.id).collect();
        assert_eq!(total, Some(found.len()));
        let prefix = format!("{}/", folder.display());
        found.into_iter().map(|id| id.trim_start_matches(&prefix).to_owned()).collect()
    }

    #[test]
    fn the_order_is_that_of_the_places_and_folders_mean_nothing() {
        let folder = tree(&["photos/train/cat/2.jpg", "photos/test/dog/1.png", "photos/3.jpg", "photos/note.txt", "b.jpg", "a"]);
        parquet(&folder.path().join("table.parquet"), vec![("image", numbered(2))], None);
        let places = ["b.jpg", "table.parquet", "photos", "gone.jpg", "a", "photos/t*/*/*"];
        assert_eq!(
            ids(&places, folder.path()),
            [
                "b.jpg",
                "table.parquet#0",
                "table.parquet#1",
                "photos/3.jpg",
                "photos/test/dog/1.png",
                "photos/train/cat/2.jpg",
                "gone.jpg",
                "a",
                "photos/test/dog/1.png",
                "photos/train/cat/2.jpg",
            ]
        );
    }

    #[test]
    fn what_has_no_images_is_refused() {
        let folder = tree(&["photos/note.txt"]);
        let refused =
            |place: &str| Inputs::new(&SourceOptions::default(), None).add(&folder.path().join(place)).unwrap_err().to_string();
        assert!(refused("photos").contains("no images here (1 .txt)"));
        assert!(refused("photos/*.jpg").contains("no such file or folder"));
        fs::create_dir(folder.path().join("empty")).unwrap();
        assert!(refused("empty").contains("no images here"));
    }

    #[test]
    fn what_is_damaged_is_an_image_that_cannot_be_used_and_the_others_follow() {
        let folder = tree(&["a.jpg", "b.jpg"]);
        let table = folder.path().join("table.parquet");
        parquet(&table, vec![("image", numbered(300))], None);
        let mut inputs = Inputs::new(&SourceOptions::default(), None);
        inputs.set_aside(Path::new("gone"), "gone: no images here".to_owned());
        inputs.add(&table).unwrap();
        inputs.add(&folder.path().join("b.jpg")).unwrap();
        // Its footer was read; its pages are damaged now.
        let mut bytes = fs::read(&table).unwrap();
        let half = bytes.len() / 2;
        bytes[4..half].fill(0xA5);
        fs::write(&table, bytes).unwrap();
        let records: Vec<Record> = inputs.records().collect();
        let reasons: Vec<_> = records.iter().filter_map(|record| record.image.read().unwrap().err()).collect();
        assert_eq!(records.first().unwrap().id, "gone");
        assert!(reasons.len() == 2 && reasons[1].contains("table.parquet"), "{reasons:?}");
        assert!(records.last().unwrap().id.ends_with("b.jpg"));
    }

    #[test]
    fn an_image_from_elsewhere_is_one_of_them() {
        let mut inputs = Inputs::new(&SourceOptions::default(), None);
        inputs.push("-", b"abc".to_vec());
        let records: Vec<Record> = inputs.records().collect();
        assert_eq!((records[0].id.as_str(), records[0].image.read().unwrap().unwrap()), ("-", "abc".into()));
    }
}
