//! Rows of a store on their way through a cluster engine: what `tlpipe embed` answers with and what [`super::adopt`] takes.
//!
//! The columns are the store's own, each nullable, and `error`. The schema's metadata says how the features were made: `tlpipe.key`, the
//! store's key; `tlpipe.provenance`, the parts of that key and what else a store records, as JSON; `tlpipe.proto`, the version of all
//! this. An engine that writes no metadata of others (Spark) carries the first two as columns, `tlpipe_key` and `tlpipe_provenance`.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, StringArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use serde::{Deserialize, Serialize};

use super::layout::{Dtype, Layout};
use super::{Extraction, KeyParts, Segment, StageSeconds, StoreError, shard};

/// Metadata: the store's key.
pub const KEY: &str = "tlpipe.key";
/// Metadata: [`Provenance`] as JSON.
pub const PROVENANCE: &str = "tlpipe.provenance";
/// Metadata: version of the exchange.
pub const PROTO: &str = "tlpipe.proto";
/// The version.
pub const PROTO_VERSION: &str = "1";
/// Column that holds the key in each row where an engine writes no metadata.
pub(super) const KEY_COLUMN: &str = "tlpipe_key";
/// Column that holds the provenance in some rows where an engine writes no metadata.
pub(super) const PROVENANCE_COLUMN: &str = "tlpipe_provenance";
/// Column of the reason why an image could not be used.
pub(super) const ERROR: &str = "error";

/// Where features come from: all that a store records of them besides the images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// What the features depend on.
    pub key_parts: KeyParts,
    /// Width D of an embedding.
    pub dimension: usize,
    /// The tensors that make it.
    pub segments: Vec<Segment>,
    /// What ONNX Runtime ran on.
    pub provider: String,
    /// Version of ONNX Runtime.
    pub runtime: String,
    /// Name of the backbone.
    pub model: String,
    /// Where its file was.
    pub model_file: String,
    /// SHA-256 of its file.
    pub model_sha256: String,
    /// Why the cut is where it is.
    pub cut_reason: String,
    /// What was asked to be read: `pooled`, `multi`, `multi-all`, or the names of tensors.
    pub layers: String,
    /// Version of tlpipe.
    pub tlpipe: String,
}

impl Provenance {
    /// The schema of the rows, with the metadata.
    ///
    /// # Errors
    /// When an embedding has more values than Arrow counts.
    pub fn schema(&self) -> Result<SchemaRef, ArrowError> {
        let layout = Layout::new(&self.key_parts, self.dimension);
        let width = i32::try_from(self.dimension).map_err(|error| ArrowError::SchemaError(error.to_string()))?;
        let columns = shard::schema(&layout, width);
        let nullable = columns.fields().iter().map(|field| field.as_ref().clone().with_nullable(true));
        let fields: Vec<Field> = nullable.chain([Field::new(ERROR, DataType::Utf8, true)]).collect();
        let provenance = serde_json::to_string(self).map_err(|error| ArrowError::ExternalError(error.into()))?;
        let metadata = [(KEY, self.key_parts.key()), (PROVENANCE, provenance), (PROTO, PROTO_VERSION.to_owned())];
        let metadata: HashMap<_, _> = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        Ok(Arc::new(Schema::new_with_metadata(fields, metadata)))
    }

    /// Figures of an extraction that an engine did: it alone knows how long it took.
    pub(super) fn extraction(&self, rows: usize, quarantined: usize) -> Extraction {
        let Self { provider, runtime, model, model_file, model_sha256, cut_reason, layers, tlpipe, .. } = self.clone();
        Extraction {
            rows,
            new: rows,
            changed: 0,
            reused: 0,
            removed: 0,
            quarantined,
            seconds: 0.0,
            startup_seconds: 0.0,
            stages: StageSeconds::default(),
            images_per_second: 0.0,
            provider,
            nodes: std::collections::BTreeMap::new(),
            drift: None,
            runtime,
            threads: 0,
            batch: 0,
            model,
            model_file,
            model_sha256,
            cut_reason,
            layers,
            splits: Vec::new(),
            tlpipe,
        }
    }
}

/// The columns of a batch that its images say nothing of.
#[derive(Clone, Debug)]
pub struct Named {
    /// Ids.
    pub ids: StringArray,
    /// Splits.
    pub splits: StringArray,
    /// Class indices.
    pub labels: Int32Array,
    /// Class names.
    pub classes: StringArray,
}

/// What became of one image.
#[derive(Clone, Debug)]
pub struct Answer {
    /// BLAKE3 of the encoded image; none where there is none.
    pub content_hash: Option<String>,
    /// Width and height of the image, pixels, and its features: D values of each view, view after view. Or why there are none.
    pub features: Result<(i32, i32, Vec<f32>), String>,
}

/// The answers to a batch as Arrow; `schema` is that of the provenance.
///
/// # Errors
/// When a feature is larger than the numbers of the store can be, or the parts do not make a batch.
pub fn record_batch(
    provenance: &Provenance,
    schema: &SchemaRef,
    named: &Named,
    answers: &[Answer],
) -> Result<RecordBatch, ExchangeError> {
    let layout = Layout::new(&provenance.key_parts, provenance.dimension);
    let size = |take: fn(&(i32, i32, Vec<f32>)) -> i32| -> ArrayRef {
        Arc::new(Int32Array::from_iter(answers.iter().map(|answer| answer.features.as_ref().ok().map(take))))
    };
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(named.ids.clone()),
        Arc::new(named.splits.clone()),
        Arc::new(named.labels.clone()),
        Arc::new(named.classes.clone()),
        Arc::new(StringArray::from_iter(answers.iter().map(|answer| answer.content_hash.as_deref()))),
        size(|features| features.0),
        size(|features| features.1),
    ];
    let present: NullBuffer = answers.iter().map(|answer| answer.features.is_ok()).collect();
    for view in 0..layout.views() {
        let mut values = Vec::with_capacity(answers.len() * layout.dimension);
        for (row, answer) in answers.iter().enumerate() {
            match &answer.features {
                Ok((_, _, features)) => {
                    let of_view = features.get(view * layout.dimension..).and_then(|rest| rest.get(..layout.dimension));
                    let of_view = of_view.unwrap_or_default();
                    if layout.dtype == Dtype::Float16
                        && let Some(&value) = of_view.iter().find(|value| value.abs() > Dtype::MOST)
                    {
                        let (split, id) = (named.splits.value(row).to_owned(), named.ids.value(row).to_owned());
                        return Err(StoreError::TooLarge { split, id, value }.into());
                    }
                    values.extend_from_slice(of_view);
                }
                Err(_) => values.resize(values.len() + layout.dimension, 0.0),
            }
        }
        columns.push(shard::list(&layout, values, Some(present.clone()))?);
    }
    columns.push(Arc::new(StringArray::from_iter(answers.iter().map(|answer| answer.features.as_ref().err()))));
    Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
}

/// Why answers do not become a batch.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// A value does not fit.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The parts do not fit.
    #[error(transparent)]
    Arrow(#[from] ArrowError),
}
