//! `store.json`: what the store holds.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{KeyParts, STORE_SCHEMA, StoreError};
use crate::persist::persist;

/// The manifest of a store.
pub(super) const MANIFEST: &str = "store.json";
/// The manifest of features that are being made anew while those of `store.json` still stand.
pub(super) const REBUILD: &str = "store.rebuild.json";

/// Where the images came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRecord {
    /// As the user named it.
    pub name: String,
    /// "class folders", "Parquet", …
    pub kind: String,
    /// Changes when a file of the source does.
    pub fingerprint: String,
    /// Whether the rows may stand in order of class, so that the last ones are no fair hold-out.
    pub sorted_by_class: bool,
}

/// The values of a row that one tensor of the network gives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// The tensor, averaged over its positions.
    pub tensor: String,
    /// The first of its values in the row.
    pub offset: usize,
    /// How many there are.
    pub width: usize,
}

/// One Parquet file of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardRecord {
    /// `train`, `test`, …
    pub split: String,
    /// Relative to the store.
    pub file: String,
    /// Rows in it.
    pub rows: usize,
    /// Length of the file.
    pub bytes: u64,
    /// BLAKE3 of the file.
    pub blake3: String,
}

/// What was done for one split in the last extraction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SplitFigures {
    /// Its name.
    pub split: String,
    /// Rows of the store.
    pub rows: usize,
    /// Wall time, seconds.
    pub seconds: f64,
}

/// Distance of features in another precision from those of fp32, on a sample of the source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drift {
    /// Images of the sample.
    pub images: usize,
    /// Mean cosine between an image's features in both.
    pub cosine_mean: f64,
    /// The least of them.
    pub cosine_min: f64,
    /// Length of all differences over length of all features in fp32.
    pub relative_l2: f64,
}

/// Where the time of an extraction went: seconds, summed over its threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StageSeconds {
    /// Getting the encoded images and hashing them.
    pub read: f64,
    /// Encoded images to pixels.
    pub decode: f64,
    /// Pixels to the size of the network's input.
    pub resize: f64,
    /// Pixels to the numbers that the network expects.
    pub normalize: f64,
    /// The network.
    pub infer: f64,
    /// Encoding, writing and hashing shards.
    pub write: f64,
    /// Workers waiting for images.
    pub wait: f64,
}

impl std::ops::AddAssign for StageSeconds {
    fn add_assign(&mut self, other: Self) {
        self.read += other.read;
        self.decode += other.decode;
        self.resize += other.resize;
        self.normalize += other.normalize;
        self.infer += other.infer;
        self.write += other.write;
        self.wait += other.wait;
    }
}

/// Figures of the last extraction that changed the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Extraction {
    /// Rows in the store.
    pub rows: usize,
    /// Rows that went through the backbone: of images that are new, or changed.
    pub new: usize,
    /// Those of `new` that the store had with another content.
    #[serde(default)]
    pub changed: usize,
    /// Rows taken over from what was there.
    pub reused: usize,
    /// Rows that the store had and whose image is gone or cannot be used any more.
    #[serde(default)]
    pub removed: usize,
    /// Images that could not be used.
    pub quarantined: usize,
    /// Wall time, seconds.
    pub seconds: f64,
    /// Of these, until the first image: opening the store, and the network on each thread.
    #[serde(default)]
    pub startup_seconds: f64,
    /// Where the time went.
    #[serde(default)]
    pub stages: StageSeconds,
    /// `new / seconds`.
    pub images_per_second: f64,
    /// What ONNX Runtime ran on.
    pub provider: String,
    /// Number of the network's nodes on each of ONNX Runtime's providers.
    #[serde(default)]
    pub nodes: BTreeMap<String, usize>,
    /// How far the features are from those of fp32, on a sample; none where they are fp32's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drift: Option<Drift>,
    /// Version of ONNX Runtime.
    pub runtime: String,
    /// Threads.
    pub threads: usize,
    /// Images a batch.
    pub batch: usize,
    /// Name of the backbone.
    pub model: String,
    /// Where its file was.
    pub model_file: String,
    /// SHA-256 of its file.
    pub model_sha256: String,
    /// Why the cut is where it is.
    pub cut_reason: String,
    /// What was asked to be read: `pooled`, `multi`, `multi-all`, or the names of tensors.
    #[serde(default = "pooled")]
    pub layers: String,
    /// The splits in order.
    pub splits: Vec<SplitFigures>,
    /// Version of tlpipe.
    pub tlpipe: String,
}

/// Segments for people: `multi-all · 35 tensors · 15552 values`; none where there is one.
pub fn depths(layers: &str, segments: &[Segment]) -> Option<String> {
    let word = if ["multi", "multi-all"].contains(&layers) { layers } else { "layers by name" };
    let values: usize = segments.iter().map(|segment| segment.width).sum();
    (segments.len() > 1).then(|| format!("{word} · {} tensors · {values} values", segments.len()))
}

fn pooled() -> String {
    "pooled".to_owned()
}

/// The manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`STORE_SCHEMA`].
    pub schema: u32,
    /// Hash of `key_parts`.
    pub key: String,
    /// What the features depend on.
    pub key_parts: KeyParts,
    /// Width D of an embedding.
    pub dimension: usize,
    /// The tensors that make a row, side by side, in ascending depth; a store of an earlier tlpipe records none and has one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub segments: Vec<Segment>,
    /// Class names; the index is the label.
    pub classes: Vec<String>,
    /// Where the images came from.
    pub source: SourceRecord,
    /// Whether every image of the source has been looked at.
    pub complete: bool,
    /// The shards, in the order of the source.
    pub shards: Vec<ShardRecord>,
    /// Shards of an earlier state whose rows an unfinished update may still take over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retired: Vec<ShardRecord>,
    /// Features of images that went or changed since a head may have been fitted on them; no part of the content.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<ShardRecord>,
    /// Images in `quarantine.parquet`.
    pub quarantined: usize,
    /// Figures of the last extraction that changed the store.
    pub extraction: Option<Extraction>,
}

impl Manifest {
    /// Reads the manifest of a store.
    ///
    /// # Errors
    /// When there is none, or it is damaged or of another version.
    pub fn read(dir: &Path) -> Result<Self, StoreError> {
        Self::read_as(dir, MANIFEST)
    }

    /// The same of a file of another name.
    pub(crate) fn read_as(dir: &Path, name: &str) -> Result<Self, StoreError> {
        const REMEDY: &str = "make the features anew: tlpipe extract --rebuild with the same pipeline or flags";
        let path = dir.join(name);
        let damaged = |reason: String| StoreError::Damaged { path: path.clone(), reason, remedy: REMEDY };
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(StoreError::Missing(dir.into())),
            Err(error) => return Err(StoreError::io(&path)(error)),
        };
        let value: serde_json::Value = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        match value.get("schema").and_then(serde_json::Value::as_u64) {
            Some(schema) if schema == u64::from(STORE_SCHEMA) => {}
            Some(schema) => return Err(damaged(format!("store schema {schema}, this tlpipe knows schema {STORE_SCHEMA}"))),
            None => return Err(damaged("no schema version in it".into())),
        }
        let mut manifest: Self = serde_json::from_value(value).map_err(|error| damaged(error.to_string()))?;
        if manifest.key != manifest.key_parts.key() {
            return Err(damaged("the key does not fit its parts".into()));
        }
        if manifest.segments.is_empty() {
            let tensor = manifest.key_parts.cut.join(", ");
            manifest.segments.push(Segment { tensor, offset: 0, width: manifest.dimension });
        }
        let end = manifest.segments.iter().try_fold(0, |end: usize, segment| {
            let follows = segment.offset == end && segment.width > 0;
            if follows { end.checked_add(segment.width) } else { None }
        });
        if end != Some(manifest.dimension) {
            return Err(damaged(format!("its segments do not make up the {} values of a row", manifest.dimension)));
        }
        let views = &manifest.key_parts.views;
        if views.is_empty() || views.iter().enumerate().any(|(at, view)| views[..at].contains(view)) {
            return Err(damaged("its views are not a list of different ones".into()));
        }
        Ok(manifest)
    }

    /// Writes the manifest whole or not at all.
    pub(crate) fn write_as(&self, dir: &Path, name: &str) -> Result<(), StoreError> {
        let path = dir.join(name);
        let text = serde_json::to_vec_pretty(self).map_err(|error| StoreError::damaged(&path, error))?;
        persist(&path, |file| file.write_all(&text)).map_err(StoreError::write(&path))
    }

    /// What makes a row, for people; none where it is the tensor before the classifier alone.
    pub fn depths(&self) -> Option<String> {
        depths(self.extraction.as_ref().map_or("", |figures| figures.layers.as_str()), &self.segments)
    }

    /// Rows of a split.
    pub fn rows(&self, split: &str) -> usize {
        self.shards.iter().filter(|shard| shard.split == split).map(|shard| shard.rows).sum()
    }

    /// Names of the splits, in the order of the source.
    pub fn splits(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for shard in &self.shards {
            if !names.contains(&shard.split) {
                names.push(shard.split.clone());
            }
        }
        names
    }

    /// Length of all shards, bytes.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.bytes).sum()
    }

    /// Hash of the content: the key, the classes and every shard. Equal means that a head fitted on it is still right.
    pub fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.key.as_bytes());
        for class in &self.classes {
            hasher.update(&(class.len() as u64).to_le_bytes());
            hasher.update(class.as_bytes());
        }
        for shard in &self.shards {
            hasher.update(shard.split.as_bytes());
            hasher.update(shard.blake3.as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Whether each recorded shard is there with its recorded length: the cheap check of every start.
    pub fn shards_present(&self, dir: &Path) -> bool {
        self.shards.iter().all(|shard| fs::metadata(dir.join(&shard.file)).is_ok_and(|found| found.len() == shard.bytes))
    }
}
