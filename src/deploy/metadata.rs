//! What a `classifier.onnx` says about itself: entries of the model's `metadata_props`, each a JSON value.
//!
//! | key | value |
//! |---|---|
//! | `tlpipe.classes` | array of class names; the index is the class |
//! | `tlpipe.preprocessing` | object: `side`, `resize`, `pixels`, `views`: what is done to an image, in the graph or before it |
//! | `tlpipe.input` | object: `kind` (`uint8`, `tensor`) and the shape of the input `image` |
//! | `tlpipe.store_key` | object: `key` of the features that the head was fitted on, and its parts |
//! | `tlpipe.metrics` | object: what the head scored |
//! | `tlpipe.provenance` | object: backbone, source, versions, how the file was made |
//! | `tlpipe.parity` | object: how it compared with the cached path, and some of the answers there; none where it was not compared |

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{DeployError, Parity};
use crate::image::ImageSpec;
use crate::onnx::Model;
use crate::run::{Metrics, SplitScore};
use crate::store::KeyParts;

/// Name of a classifier's image input.
pub const IMAGE: &str = "image";
/// Name of its output float32 `[N, K]`: the probability of each class.
pub const PROBABILITIES: &str = "probabilities";
/// Name of its output int64 `[N]`: the class with the highest logit.
pub const CLASS_INDEX: &str = "class_index";

const CLASSES_KEY: &str = "tlpipe.classes";
const PREPROCESSING_KEY: &str = "tlpipe.preprocessing";
const INPUT_KEY: &str = "tlpipe.input";
const STORE_KEY: &str = "tlpipe.store_key";
const METRICS_KEY: &str = "tlpipe.metrics";
const PROVENANCE_KEY: &str = "tlpipe.provenance";
const PARITY_KEY: &str = "tlpipe.parity";

/// What a classifier takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InputKind {
    /// uint8 `[N, H, W, 3]`, red first, images of any one size: resized and normalized in the graph.
    #[default]
    Uint8,
    /// float32 at the size, in the layout and the range that the backbone wants ([`ImageSpec::shape`]): resized and normalized
    /// before.
    Tensor,
}

/// The input `image`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputRecord {
    /// What it takes.
    pub kind: InputKind,
    /// Its axes: `N`, `H`, `W` are open, numbers are fixed.
    pub shape: Vec<String>,
}

/// The feature store that the head was fitted on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreKey {
    /// BLAKE3 of the parts.
    pub key: String,
    /// Everything that a feature's value depends on, besides the image.
    #[serde(flatten)]
    pub parts: KeyParts,
}

/// Scores of one split, without the tables of `metrics.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SplitSummary {
    /// Labelled images.
    pub rows: usize,
    /// Mean cross-entropy, natural logarithm.
    pub loss: f64,
    /// Share of images whose most probable class is the label, 0 to 1.
    pub accuracy: f64,
    /// Wilson 95 % interval of `accuracy`.
    pub accuracy_interval: [f64; 2],
    /// Mean F1 of the classes.
    pub macro_f1: f64,
    /// Expected calibration error.
    pub ece: f64,
}

impl From<&SplitScore> for SplitSummary {
    fn from(score: &SplitScore) -> Self {
        Self {
            rows: score.rows,
            loss: score.loss,
            accuracy: score.accuracy,
            accuracy_interval: score.accuracy_interval,
            macro_f1: score.averages.macro_f1,
            ece: score.calibration.ece,
        }
    }
}

/// What the head scored when it was fitted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricsRecord {
    /// Hash of everything that the fit depended on.
    pub fit_key: String,
    /// `adam`, `lbfgs`, `ridge`, `linfa`.
    pub solver: String,
    /// The temperature that is best on the hold-out: logits are to be divided by it.
    pub temperature: Option<f64>,
    /// Whether the graph divides by it; otherwise the probabilities are those of the run's `predictions.parquet`.
    pub calibrated: bool,
    /// The hold-out.
    pub validation: Option<SplitSummary>,
    /// The test split.
    pub test: Option<SplitSummary>,
}

impl MetricsRecord {
    /// The part of a run's metrics that goes along with the model.
    pub fn new(metrics: &Metrics, calibrated: bool) -> Self {
        Self {
            fit_key: metrics.fit_key.clone(),
            solver: metrics.solver.clone(),
            temperature: metrics.temperature,
            calibrated,
            validation: metrics.validation.as_ref().map(SplitSummary::from),
            test: metrics.test.as_ref().map(SplitSummary::from),
        }
    }
}

/// Columns of a table source, where they were chosen by hand.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Columns {
    /// Of the images or their paths.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Of the labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Of the splits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
}

/// Where the model came from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// Version of tlpipe that wrote it.
    pub tlpipe: String,
    /// Name of the backbone.
    pub backbone: String,
    /// SHA-256 of its ONNX file.
    pub backbone_sha256: String,
    /// Its licence; none where the registry does not know the file.
    pub licence: Option<String>,
    /// What is read of it, in ascending depth.
    pub tensors: Vec<String>,
    /// How views of an image are put together; none where there is one view.
    pub views: Option<String>,
    /// What is done to features before the head, `none` or `sqrt`.
    pub transform: String,
    /// The images that the head was fitted on and scored with, as the user named them; none where they were not known.
    pub source: Option<String>,
    /// Their columns.
    #[serde(default)]
    pub columns: Columns,
    /// `fp32`, or `fp16` where weights are stored so.
    pub precision: String,
}

/// Everything that a `classifier.onnx` says about itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Metadata {
    /// Class names; the index is the class.
    pub classes: Vec<String>,
    /// What is done to an image.
    pub preprocessing: ImageSpec,
    /// What it takes.
    pub input: InputRecord,
    /// The features that the head was fitted on.
    pub store_key: StoreKey,
    /// What the head scored.
    pub metrics: MetricsRecord,
    /// Where it came from.
    pub provenance: Provenance,
    /// How it compared with the cached path; none where it was not compared.
    pub parity: Option<Parity>,
}

impl Metadata {
    /// Reads the entries of a model; none where it has no entry of tlpipe's classifiers at all, so that it is another's.
    ///
    /// # Errors
    /// When an entry is missing among others, or is not what it should be.
    pub fn read(model: &Model) -> Result<Option<Self>, DeployError> {
        let keys = [CLASSES_KEY, PREPROCESSING_KEY, INPUT_KEY, STORE_KEY, METRICS_KEY, PROVENANCE_KEY];
        if keys.iter().all(|key| model.metadata(key).is_none()) {
            return Ok(None);
        }
        let metadata = Self {
            classes: entry(model, CLASSES_KEY)?,
            preprocessing: entry(model, PREPROCESSING_KEY)?,
            input: entry(model, INPUT_KEY)?,
            store_key: entry(model, STORE_KEY)?,
            metrics: entry(model, METRICS_KEY)?,
            provenance: entry(model, PROVENANCE_KEY)?,
            parity: model.metadata(PARITY_KEY).map(|_| entry(model, PARITY_KEY)).transpose()?,
        };
        if metadata.classes.is_empty() {
            return Err(damaged(model, CLASSES_KEY, "no class is named"));
        }
        if metadata.preprocessing.side == 0 {
            return Err(damaged(model, PREPROCESSING_KEY, "images of 0 pixels"));
        }
        Ok(Some(metadata))
    }

    /// The entries, as [`Model::with_metadata`] takes them.
    ///
    /// # Errors
    /// When a value cannot be written as JSON.
    pub fn entries(&self) -> Result<Vec<(String, String)>, DeployError> {
        let mut entries = vec![
            written(CLASSES_KEY, &self.classes)?,
            written(PREPROCESSING_KEY, &self.preprocessing)?,
            written(INPUT_KEY, &self.input)?,
            written(STORE_KEY, &self.store_key)?,
            written(METRICS_KEY, &self.metrics)?,
            written(PROVENANCE_KEY, &self.provenance)?,
        ];
        if let Some(parity) = &self.parity {
            entries.push(written(PARITY_KEY, parity)?);
        }
        Ok(entries)
    }
}

fn entry<T: DeserializeOwned>(model: &Model, key: &'static str) -> Result<T, DeployError> {
    let text = model.metadata(key).ok_or_else(|| damaged(model, key, "it is missing"))?;
    serde_json::from_str(text).map_err(|error| damaged(model, key, error))
}

fn damaged(model: &Model, key: &'static str, reason: impl std::fmt::Display) -> DeployError {
    DeployError::Metadata { origin: model.origin().to_owned(), key, reason: reason.to_string() }
}

fn written(key: &'static str, value: &impl Serialize) -> Result<(String, String), DeployError> {
    let text = serde_json::to_string(value);
    let text = text.map_err(|error| DeployError::Metadata { origin: "export".to_owned(), key, reason: error.to_string() })?;
    Ok((key.to_owned(), text))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::image::{PixelFormat, Resize, Views};
    use crate::onnx::networks;

    pub(crate) fn metadata() -> Metadata {
        let score =
            SplitSummary { rows: 10, loss: 0.5, accuracy: 0.9, accuracy_interval: [0.6, 0.98], macro_f1: 0.88, ece: 0.03 };
        let parts = serde_json::json!({
            "backbone": "b", "cut": ["pool"], "input_size": 96, "resize": "squash", "preprocessing": "rgb", "precision": "fp32",
            "provider": "cpu", "schema": 1
        });
        let parts: KeyParts = serde_json::from_value(parts).unwrap();
        Metadata {
            classes: vec!["a, \"b\"".into(), "犬\nline".into()],
            preprocessing: ImageSpec { side: 96, resize: Resize::Crop, pixels: PixelFormat::TENSORFLOW, views: Views::default() },
            input: InputRecord { kind: InputKind::Uint8, shape: ["N", "H", "W", "3"].map(str::to_owned).to_vec() },
            store_key: StoreKey { key: parts.key(), parts },
            metrics: MetricsRecord {
                fit_key: "f".into(),
                solver: "adam".into(),
                temperature: Some(1.25),
                calibrated: false,
                validation: None,
                test: Some(score),
            },
            provenance: Provenance {
                tlpipe: "0.1.0".into(),
                backbone: "mobilenet_v2_1.0_224".into(),
                backbone_sha256: "00".into(),
                licence: Some("Apache-2.0".into()),
                tensors: vec!["pool".into()],
                views: None,
                transform: "none".into(),
                source: Some("cifar10".into()),
                columns: Columns::default(),
                precision: "fp32".into(),
            },
            parity: None,
        }
    }

    #[test]
    fn entries_come_back_through_a_file() {
        let metadata = metadata();
        let plain = networks::resnet(13);
        assert_eq!(Metadata::read(&plain).unwrap(), None);
        let model = plain.with_metadata(metadata.entries().unwrap());
        let model = Model::from_bytes(&model.to_bytes(), "c.onnx").unwrap();
        assert_eq!(Metadata::read(&model).unwrap().as_ref(), Some(&metadata));
        // Written again they stand there once.
        let again = model.clone().with_metadata(metadata.entries().unwrap());
        assert_eq!(again.proto().metadata_props.len(), model.proto().metadata_props.len());
        let classes: serde_json::Value = serde_json::from_str(model.metadata("tlpipe.classes").unwrap()).unwrap();
        assert!(classes.is_array());
        for key in ["preprocessing", "store_key", "metrics"] {
            let value: serde_json::Value = serde_json::from_str(model.metadata(&format!("tlpipe.{key}")).unwrap()).unwrap();
            assert!(value.is_object(), "{key}");
        }
    }

    #[test]
    fn what_is_missing_or_damaged_is_named() {
        type Entries = Vec<(String, String)>;
        let read = |change: &dyn Fn(&mut Entries)| {
            let mut entries = metadata().entries().unwrap();
            change(&mut entries);
            Metadata::read(&networks::resnet(13).with_metadata(entries)).unwrap_err().to_string()
        };
        let missing = read(&|entries| entries.retain(|(key, _)| key != "tlpipe.input"));
        assert!(
            missing.contains("tlpipe.input") && missing.contains("missing") && missing.contains("tlpipe export"),
            "{missing}"
        );
        let set = |key: &'static str, value: &'static str| {
            read(&move |entries| entries.iter_mut().filter(|(name, _)| name == key).for_each(|(_, text)| *text = value.into()))
        };
        assert!(set("tlpipe.classes", "[]").contains("no class"));
        assert!(set("tlpipe.classes", "{").contains("tlpipe.classes"));
        assert!(set("tlpipe.metrics", "[1]").contains("tlpipe.metrics"));
    }
}
