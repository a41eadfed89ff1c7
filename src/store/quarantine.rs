//! `quarantine.parquet`: the images that could not be used.

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray as _, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::StoreError;
use crate::persist::persist;

/// One image that could not be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantined {
    /// Its id.
    pub id: String,
    /// Its split.
    pub split: String,
    /// Why.
    pub error: String,
    /// BLAKE3 of its bytes; none where they could not be read.
    pub content_hash: Option<String>,
}

const COLUMNS: [&str; 4] = ["id", "split", "error", "content_hash"];

/// Writes the table.
pub(crate) fn write(path: &Path, rows: &[Quarantined]) -> Result<(), StoreError> {
    let schema = Arc::new(Schema::new(
        COLUMNS.iter().map(|name| Field::new(*name, DataType::Utf8, *name == "content_hash")).collect::<Vec<_>>(),
    ));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.id))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.split))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.error))),
        Arc::new(StringArray::from_iter(rows.iter().map(|row| row.content_hash.as_deref()))),
    ];
    let damaged = |error: &dyn std::fmt::Display| StoreError::damaged(path, error);
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns).map_err(|error| damaged(&error))?;
    let mut writer = ArrowWriter::try_new(Vec::new(), schema, None).map_err(|error| damaged(&error))?;
    writer.write(&batch).map_err(|error| damaged(&error))?;
    let bytes = writer.into_inner().map_err(|error| damaged(&error))?;
    persist(path, |file| file.write_all(&bytes)).map_err(StoreError::write(path))
}

/// Reads the table.
pub(crate) fn read(path: &Path) -> Result<Vec<Quarantined>, StoreError> {
    let damaged = |error: &dyn std::fmt::Display| StoreError::damaged(path, error);
    let file = std::fs::File::open(path).map_err(StoreError::io(path))?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).and_then(|builder| builder.build()).map_err(|e| damaged(&e))?;
    let mut rows = Vec::new();
    for batch in reader {
        let batch = batch.map_err(|error| damaged(&error))?;
        let mut columns = Vec::with_capacity(COLUMNS.len());
        for name in COLUMNS {
            let column = batch.column_by_name(name).and_then(|column| column.as_string_opt::<i32>());
            columns.push(column.ok_or_else(|| damaged(&format!("no text column `{name}`")))?);
        }
        for row in 0..batch.num_rows() {
            rows.push(Quarantined {
                id: columns[0].value(row).into(),
                split: columns[1].value(row).into(),
                error: columns[2].value(row).into(),
                content_hash: (!columns[3].is_null(row)).then(|| columns[3].value(row).into()),
            });
        }
    }
    Ok(rows)
}
