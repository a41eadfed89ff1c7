//! What a report is made from.

use std::collections::HashMap;

use ndarray::Array2;
use serde::Serialize;

use super::facts::Timing;
use crate::run::RunDir;

/// Rows of one split of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SplitRows {
    /// Name of the split as in the source.
    pub split: String,
    /// Rows with features.
    pub rows: usize,
}

/// The network that made the features.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackboneFacts {
    /// Registry name, or file name.
    pub name: String,
    /// SHA-256 of the ONNX file, hexadecimal.
    pub sha256: String,
    /// The tensor it was cut at.
    pub cut: String,
    /// Side of the square input, pixels.
    pub input_size: u32,
    /// What was done to the pixels, for a reader: "squash · RGB · x / 127.5 - 1".
    pub preprocessing: String,
}

/// Seconds of a part of the extraction, summed over its threads.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageTime {
    /// `read`, `decode`, `resize`, `normalize`, `infer`, `write`, `wait`.
    pub stage: String,
    /// Seconds.
    pub seconds: f64,
}

/// How the features were made.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExtractionFacts {
    /// Wall time, seconds.
    pub seconds: f64,
    /// Images a second.
    pub images_per_second: f64,
    /// Images that went through the network then.
    pub images: usize,
    /// The execution provider that ran the network.
    pub provider: String,
    /// Version of ONNX Runtime.
    pub runtime: String,
    /// Threads it was given.
    pub threads: usize,
    /// Where the time of the threads went.
    pub stages: Vec<StageTime>,
}

/// An image that could not be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct QuarantinedImage {
    /// Its id.
    pub id: String,
    /// Its split.
    pub split: String,
    /// Why.
    pub error: String,
}

/// What the report says about the feature store and where it came from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StoreFacts {
    /// Name of the data: "cifar10", or the last part of the source's path.
    pub data: String,
    /// Where the data was read from.
    pub source: String,
    /// The source's fingerprint.
    pub fingerprint: String,
    /// Folder of the store.
    pub path: String,
    /// Key of the store.
    pub key: String,
    /// Digest of its content.
    #[serde(skip)]
    pub digest: String,
    /// Rows of each split.
    pub splits: Vec<SplitRows>,
    /// Images that could not be used; `quarantine.parquet` names them.
    pub quarantined: usize,
    /// The first of them, at most 200.
    pub quarantine: Vec<QuarantinedImage>,
    /// Width of a feature row.
    pub features: usize,
    /// Tensors that a feature row is read from.
    pub tensors: usize,
    /// What of each image was seen; `identity` alone is the image as it is.
    pub views: Vec<String>,
    /// The network.
    pub backbone: BackboneFacts,
    /// The extraction; none where no figures were kept.
    pub extraction: Option<ExtractionFacts>,
}

/// Split and row ids to encoded images by row id, or why there are none.
pub type FindImages<'a> = dyn Fn(&str, &[String]) -> Result<HashMap<String, Vec<u8>>, String> + 'a;

/// Encoded image and longest side in pixels to a small encoded image, or why not.
pub type MakeThumbnail<'a> = dyn Fn(&[u8], u32) -> Result<Vec<u8>, String> + Sync + 'a;

/// Split and row ids to features `[ids, D]`, or why not.
pub type FindFeatures<'a> = dyn Fn(&str, &[String]) -> Result<Array2<f32>, String> + 'a;

/// What a report is made from.
pub struct Inputs<'a> {
    /// The run to report on.
    pub run: &'a RunDir,
    /// The store it was fitted on.
    pub store: StoreFacts,
    /// Finds images of one split of the source; what cannot be found is left out.
    pub images: &'a FindImages<'a>,
    /// Makes a small PNG or JPEG.
    pub thumbnail: &'a MakeThumbnail<'a>,
    /// Reads features of one split of the store for the map; none where no map is wanted.
    pub features: Option<&'a FindFeatures<'a>>,
    /// Bytes that pictures may bring the page to.
    pub page_bytes: usize,
    /// Seed of what is drawn at random: the sample that the map shows.
    pub seed: u64,
    /// Stages in the order in which they ran.
    pub timings: Vec<Timing>,
    /// Commands that make this run again.
    pub commands: Vec<String>,
}
