//! `statistics.parquet`: the rows that sufficient statistics are of.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array as _, AsArray as _, Int32Array, StringArray};
use arrow::datatypes::{DataType, Field, Int32Type, Schema};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::RunError;

/// The rows that a head was fitted on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrainedRows {
    /// Row ids.
    pub ids: Vec<String>,
    /// BLAKE3 of each encoded image.
    pub content_hashes: Vec<String>,
    /// Class index of each row.
    pub labels: Vec<i32>,
}

impl TrainedRows {
    /// Name of the file in a run.
    pub const FILE: &'static str = "statistics.parquet";

    /// The file's content.
    ///
    /// # Errors
    /// When the columns differ in length.
    pub fn to_bytes(&self) -> Result<Vec<u8>, RunError> {
        let damaged = |reason: String| RunError::Damaged { path: Self::FILE.into(), reason };
        let schema = Arc::new(Schema::new(vec![
            Field::new("id", DataType::Utf8, false),
            Field::new("content_hash", DataType::Utf8, false),
            Field::new("label", DataType::Int32, false),
        ]));
        let batch = RecordBatch::try_new(
            Arc::clone(&schema),
            vec![
                Arc::new(StringArray::from_iter_values(&self.ids)),
                Arc::new(StringArray::from_iter_values(&self.content_hashes)),
                Arc::new(Int32Array::from(self.labels.clone())),
            ],
        );
        let batch = batch.map_err(|error| damaged(error.to_string()))?;
        let mut writer = ArrowWriter::try_new(Vec::new(), schema, None).map_err(|error| damaged(error.to_string()))?;
        writer.write(&batch).map_err(|error| damaged(error.to_string()))?;
        writer.into_inner().map_err(|error| damaged(error.to_string()))
    }

    /// Reads the file.
    ///
    /// # Errors
    /// When it cannot be read or is damaged.
    pub fn load(path: &Path) -> Result<Self, RunError> {
        let damaged = |reason: String| RunError::Damaged { path: path.into(), reason };
        let file = File::open(path).map_err(|source| RunError::Io { path: path.into(), source })?;
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).and_then(ParquetRecordBatchReaderBuilder::build);
        let mut rows = Self::default();
        for batch in reader.map_err(|error| damaged(error.to_string()))? {
            let batch = batch.map_err(|error| damaged(error.to_string()))?;
            let texts = |name: &str| batch.column_by_name(name).and_then(|column| column.as_string_opt::<i32>().cloned());
            let labels = batch.column_by_name("label").and_then(|column| column.as_primitive_opt::<Int32Type>().cloned());
            let (Some(ids), Some(hashes), Some(labels)) = (texts("id"), texts("content_hash"), labels) else {
                return Err(damaged("no columns id, content_hash and label".into()));
            };
            if ids.null_count() + hashes.null_count() + labels.null_count() > 0 {
                return Err(damaged("a value is missing".into()));
            }
            rows.ids.extend(ids.iter().flatten().map(str::to_owned));
            rows.content_hashes.extend(hashes.iter().flatten().map(str::to_owned));
            rows.labels.extend(labels.values());
        }
        Ok(rows)
    }
}
