//! Reading a finished store.

use std::fs::File;
use std::path::{Path, PathBuf};

use ndarray::Array2;
use rayon::prelude::*;

use super::layout::{Layout, Reading, Transform};
use super::{Manifest, Quarantined, Row, ShardRecord, StoreError, pages, quarantine, shard, slices};

/// A finished feature store.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
    manifest: Manifest,
    /// Where it keeps its quarantine: the folder itself, or each of its slices.
    folders: Vec<PathBuf>,
    missing: Vec<usize>,
    slices: usize,
    transform: Transform,
}

/// Rows of one or more splits, in the order of the source.
#[derive(Clone, Debug)]
pub struct SplitFeatures {
    /// Row ids.
    pub ids: Vec<String>,
    /// Label index; none for an unlabelled row.
    pub labels: Vec<Option<i32>>,
    /// `[rows, D]`; of several views their mean, unless one was asked for.
    pub embeddings: Array2<f32>,
}

/// Where a row of a store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    shard: usize,
    row: usize,
}

impl Store {
    /// Opens a store for reading, made in one piece or in slices.
    ///
    /// # Errors
    /// When there is none, when its extraction has not finished, or when a shard is missing or has another length.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let store = match Manifest::read(dir) {
            Err(StoreError::Missing(_)) => match slices::read(dir)? {
                Some(union) => Self {
                    dir: dir.into(),
                    manifest: union.manifest,
                    folders: union.folders.iter().map(|folder| dir.join(folder)).collect(),
                    missing: union.missing,
                    slices: union.of,
                    transform: Transform::None,
                },
                None => return Err(StoreError::Missing(dir.into())),
            },
            manifest => Self {
                dir: dir.into(),
                manifest: manifest?,
                folders: vec![dir.into()],
                missing: Vec::new(),
                slices: 0,
                transform: Transform::None,
            },
        };
        let manifest = &store.manifest;
        if !manifest.complete {
            return Err(StoreError::Incomplete(dir.into()));
        }
        for shard in &manifest.shards {
            let path = dir.join(&shard.file);
            match std::fs::metadata(&path) {
                Ok(found) if found.len() == shard.bytes => {}
                Ok(found) => {
                    return Err(StoreError::damaged(&path, format!("{} bytes, {} recorded", found.len(), shard.bytes)));
                }
                Err(error) => return Err(StoreError::damaged(&path, error)),
            }
        }
        Ok(store)
    }

    /// Transforms every value that is read from now on.
    #[must_use]
    pub fn with_transform(self, transform: Transform) -> Self {
        Self { transform, ..self }
    }

    /// What is done to every value that is read.
    pub fn transform(&self) -> Transform {
        self.transform
    }

    pub(super) fn layout(&self) -> Layout {
        Layout { transform: self.transform, ..Layout::of(&self.manifest) }
    }

    /// Numbers of the slices that are not there or not finished, and how many slices there should be.
    pub fn missing_slices(&self) -> (&[usize], usize) {
        (&self.missing, self.slices)
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What it holds.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// What of each image was seen: `identity` and what else there is, in the order of the columns.
    pub fn views(&self) -> &[String] {
        &self.manifest.key_parts.views
    }

    /// Loads splits into memory, one after the other: `rows x D x 4` bytes, read by all of rayon's threads. Of an image that was
    /// seen in several views it is their mean, on which a linear head gives the mean of its logits.
    ///
    /// # Errors
    /// When a split is not there, or a shard is damaged.
    pub fn load(&self, splits: &[&str]) -> Result<SplitFeatures, StoreError> {
        self.gather(splits, &[Reading::Mean])
    }

    /// Loads one view of the images, by its number in [`Self::views`], as [`Self::load`] does.
    ///
    /// # Errors
    /// As [`Self::load`], and when there is no such view.
    pub fn load_view(&self, splits: &[&str], view: usize) -> Result<SplitFeatures, StoreError> {
        self.gather(splits, &[self.view(view)?])
    }

    /// Loads what [`Self::load`] does, and after it each view by itself: with N images, row `(1 + view) * N + image` is that view
    /// of that image.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_with_views(&self, splits: &[&str]) -> Result<SplitFeatures, StoreError> {
        let views = (0..self.views().len()).map(Reading::View);
        self.gather(splits, &std::iter::once(Reading::Mean).chain(views).collect::<Vec<_>>())
    }

    fn view(&self, view: usize) -> Result<Reading, StoreError> {
        let present = self.views();
        if view < present.len() {
            return Ok(Reading::View(view));
        }
        Err(StoreError::NoView { dir: self.dir.clone(), view, present: present.to_vec() })
    }

    /// Every reading of all rows, one after the other.
    fn gather(&self, splits: &[&str], readings: &[Reading]) -> Result<SplitFeatures, StoreError> {
        let shards = self.shards(splits)?;
        let layout = self.layout();
        let dimension = layout.dimension;
        let rows: usize = shards.iter().map(|shard| shard.rows).sum();
        let mut values = vec![0.0_f32; readings.len() * rows * dimension];
        let mut places: Vec<Vec<&mut [f32]>> = shards.iter().map(|_| Vec::with_capacity(readings.len())).collect();
        let mut rest = values.as_mut_slice();
        for _ in readings {
            for (shard, places) in shards.iter().zip(&mut places) {
                let (place, after) = rest.split_at_mut(shard.rows * dimension);
                places.push(place);
                rest = after;
            }
        }
        let described = shards
            .par_iter()
            .zip(places)
            .map(|(record, places)| {
                let content = shard::read(&self.dir, record)?;
                for (&reading, place) in readings.iter().zip(places) {
                    pages::embeddings(&self.dir.join(&record.file), record, &content, &layout, reading, place)?;
                }
                shard::rows(&self.dir, record, content)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mut ids = Vec::with_capacity(readings.len() * rows);
        let mut labels = Vec::with_capacity(readings.len() * rows);
        for row in described.into_iter().flatten() {
            ids.push(row.id);
            labels.push(row.label);
        }
        for row in 0..ids.len() * (readings.len() - 1) {
            ids.push(ids[row].clone());
            labels.push(labels[row]);
        }
        let embeddings = Array2::from_shape_vec((ids.len(), dimension), values);
        let embeddings = embeddings.map_err(|error| StoreError::damaged(&self.dir, error))?;
        Ok(SplitFeatures { ids, labels, embeddings })
    }

    /// Rows of some splits, in the order of the source, without their embeddings: read from the columns alone.
    ///
    /// # Errors
    /// When a shard cannot be read.
    pub fn describe(&self, splits: &[&str]) -> Result<Vec<(Place, Row)>, StoreError> {
        let shards = self.manifest.shards.iter().enumerate();
        let of = |name: &str| shards.clone().filter(|(_, shard)| shard.split == name).map(|(at, _)| at).collect::<Vec<_>>();
        self.describe_shards(&splits.iter().flat_map(|split| of(split)).collect::<Vec<_>>())
    }

    /// Rows of images that went or changed, as far as their features are kept; the folder may have been deleted.
    ///
    /// # Errors
    /// When a shard cannot be read.
    pub fn describe_removed(&self) -> Result<Vec<(Place, Row)>, StoreError> {
        let live = self.manifest.shards.len();
        let is_there = |shard: &usize| self.dir.join(&self.record(*shard).file).is_file();
        self.describe_shards(&(live..live + self.manifest.removed.len()).filter(is_there).collect::<Vec<_>>())
    }

    fn describe_shards(&self, shards: &[usize]) -> Result<Vec<(Place, Row)>, StoreError> {
        let described = shards.par_iter().map(|&shard| {
            let record = self.record(shard);
            let path = self.dir.join(&record.file);
            let rows = shard::rows(&self.dir, record, File::open(&path).map_err(StoreError::io(&path))?)?;
            Ok(rows.into_iter().enumerate().map(|(row, described)| (Place { shard, row }, described)).collect::<Vec<_>>())
        });
        Ok(described.collect::<Result<Vec<_>, StoreError>>()?.concat())
    }

    /// Embeddings `[places, D]` of some rows, of several views their mean; the shards that hold them are read, and no others.
    ///
    /// # Errors
    /// When a shard cannot be read or is damaged.
    pub fn embeddings(&self, places: &[Place]) -> Result<Array2<f32>, StoreError> {
        self.read(places, Reading::Mean)
    }

    /// Embeddings `[places, D]` of one view of some rows, by its number in [`Self::views`].
    ///
    /// # Errors
    /// As [`Self::embeddings`], and when there is no such view.
    pub fn embeddings_of_view(&self, places: &[Place], view: usize) -> Result<Array2<f32>, StoreError> {
        self.read(places, self.view(view)?)
    }

    fn read(&self, places: &[Place], reading: Reading) -> Result<Array2<f32>, StoreError> {
        let layout = self.layout();
        let dimension = layout.dimension;
        let mut shards: Vec<usize> = places.iter().map(|place| place.shard).collect();
        shards.sort_unstable();
        shards.dedup();
        let mut found = Array2::zeros((places.len(), dimension));
        for shard in shards {
            let record = self.record(shard);
            let mut values = vec![0.0; record.rows * dimension];
            let content = shard::read(&self.dir, record)?;
            pages::embeddings(&self.dir.join(&record.file), record, &content, &layout, reading, &mut values)?;
            for (mut out, place) in found.rows_mut().into_iter().zip(places).filter(|(_, place)| place.shard == shard) {
                out.iter_mut().zip(&values[place.row * dimension..][..dimension]).for_each(|(out, value)| *out = *value);
            }
        }
        Ok(found)
    }

    /// A shard by its number: those of the content first, then those of the rows that went.
    fn record(&self, shard: usize) -> &ShardRecord {
        let live = &self.manifest.shards;
        live.get(shard).unwrap_or_else(|| &self.manifest.removed[shard - live.len()])
    }

    /// The shards of some splits, one split after the other.
    pub(super) fn shards(&self, splits: &[&str]) -> Result<Vec<&ShardRecord>, StoreError> {
        let mut shards: Vec<&ShardRecord> = Vec::new();
        for split in splits {
            let before = shards.len();
            shards.extend(self.manifest.shards.iter().filter(|shard| shard.split == *split));
            if shards.len() == before {
                let present = self.manifest.splits();
                return Err(StoreError::NoSplit { dir: self.dir.clone(), split: (*split).into(), present });
            }
        }
        Ok(shards)
    }

    /// The images that could not be used.
    ///
    /// # Errors
    /// When the file is missing or damaged.
    pub fn quarantine(&self) -> Result<Vec<Quarantined>, StoreError> {
        let parts = self.folders.iter().map(|folder| quarantine::read(&folder.join("quarantine.parquet")));
        Ok(parts.collect::<Result<Vec<_>, _>>()?.concat())
    }
}
