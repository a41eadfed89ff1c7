//! Reading a finished store.

use std::path::{Path, PathBuf};

use ndarray::Array2;
use rayon::prelude::*;

use super::{Manifest, Quarantined, ShardRecord, StoreError, pages, quarantine, shard, slices};

/// A finished feature store.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
    manifest: Manifest,
    /// Where it keeps its quarantine: the folder itself, or each of its slices.
    folders: Vec<PathBuf>,
    missing: Vec<usize>,
    slices: usize,
}

/// Rows of one or more splits, in the order of the source.
#[derive(Clone, Debug)]
pub struct SplitFeatures {
    /// Row ids.
    pub ids: Vec<String>,
    /// Label index; none for an unlabelled row.
    pub labels: Vec<Option<i32>>,
    /// `[rows, D]`.
    pub embeddings: Array2<f32>,
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
                },
                None => return Err(StoreError::Missing(dir.into())),
            },
            manifest => Self { dir: dir.into(), manifest: manifest?, folders: vec![dir.into()], missing: Vec::new(), slices: 0 },
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

    /// Loads splits into memory, one after the other: `rows x D x 4` bytes, read by all of rayon's threads.
    ///
    /// # Errors
    /// When a split is not there, or a shard is damaged.
    pub fn load(&self, splits: &[&str]) -> Result<SplitFeatures, StoreError> {
        let shards = self.shards(splits)?;
        let dimension = self.manifest.dimension;
        let rows: usize = shards.iter().map(|shard| shard.rows).sum();
        let mut values = vec![0.0_f32; rows * dimension];
        let mut places = Vec::with_capacity(shards.len());
        let mut rest = values.as_mut_slice();
        for shard in &shards {
            let (place, after) = rest.split_at_mut(shard.rows * dimension);
            places.push(place);
            rest = after;
        }
        let described = shards
            .par_iter()
            .zip(places)
            .map(|(record, place)| {
                let content = shard::read(&self.dir, record)?;
                pages::embeddings(&self.dir.join(&record.file), record, &content, dimension, place)?;
                shard::rows(&self.dir, record, &content)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let mut ids = Vec::with_capacity(rows);
        let mut labels = Vec::with_capacity(rows);
        for row in described.into_iter().flatten() {
            ids.push(row.id);
            labels.push(row.label);
        }
        let embeddings = Array2::from_shape_vec((rows, dimension), values);
        let embeddings = embeddings.map_err(|error| StoreError::damaged(&self.dir, error))?;
        Ok(SplitFeatures { ids, labels, embeddings })
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
