//! One Parquet file of the store: its schema, how it is written, how it is read.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray as _, FixedSizeListArray, Float16Array, Float32Array, Int32Array, StringArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, FieldRef, Int32Type, Schema, SchemaRef};
use arrow::error::ArrowError;
use bytes::Bytes;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::arrow::arrow_writer::compute_leaves;
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::reader::ChunkReader;

use super::exchange::KEY;
use super::layout::{Dtype, Layout, narrowed};
use super::{ShardRecord, StoreError, pages};
use crate::persist::persist;

/// Everything about a row but its embedding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Unique within its split, and stable.
    pub id: String,
    /// Index in the class list; none where unlabelled.
    pub label: Option<i32>,
    /// BLAKE3 of the encoded image, hexadecimal.
    pub content_hash: String,
    /// Of the source image, pixels.
    pub width: i32,
    /// Of the source image, pixels.
    pub height: i32,
}

/// Rows that one shard holds: few enough to stay small in memory whatever the width, and to lose little where a process dies;
/// many enough to read quickly.
pub(super) fn rows_per_shard(layout: &Layout) -> usize {
    const MOST_ROWS: usize = 1024;
    const MOST_VALUES: usize = 8 << 20;
    (MOST_VALUES / layout.values().max(1)).clamp(256, MOST_ROWS)
}

/// One value of an embedding.
fn item(dtype: Dtype) -> FieldRef {
    Arc::new(Field::new("item", dtype.arrow(), false))
}

pub(super) fn schema(layout: &Layout, dimension: i32) -> SchemaRef {
    let list = DataType::FixedSizeList(item(layout.dtype), dimension);
    let mut fields = vec![
        Field::new("id", DataType::Utf8, false),
        Field::new("split", DataType::Utf8, false),
        Field::new("label", DataType::Int32, true),
        Field::new("class", DataType::Utf8, true),
        Field::new("content_hash", DataType::Utf8, false),
        Field::new("width", DataType::Int32, false),
        Field::new("height", DataType::Int32, false),
    ];
    fields.extend(layout.columns.iter().map(|column| Field::new(column, list.clone(), false)));
    Arc::new(Schema::new(fields))
}

/// Embeddings of one view, row-major `[rows, D]`, as a column; those that are not present are null.
pub(super) fn list(layout: &Layout, values: Vec<f32>, present: Option<NullBuffer>) -> Result<ArrayRef, ArrowError> {
    let width = i32::try_from(layout.dimension).map_err(|error| ArrowError::SchemaError(error.to_string()))?;
    let values: ArrayRef = match layout.dtype {
        Dtype::Float32 => Arc::new(Float32Array::from(values)),
        Dtype::Float16 => Arc::new(Float16Array::from(narrowed(&values))),
    };
    Ok(Arc::new(FixedSizeListArray::try_new(item(layout.dtype), width, values, present)?))
}

/// One shard before it is written.
pub(super) struct Draft {
    /// The store's folder.
    pub(super) dir: PathBuf,
    /// The store's key.
    pub(super) key: String,
    /// Class names; the index is the label.
    pub(super) classes: Vec<String>,
    pub(super) layout: Layout,
    pub(super) split: String,
    /// Relative to the store.
    pub(super) file: String,
    pub(super) rows: Vec<Row>,
    /// Of each row, D values of each view, view after view.
    pub(super) embeddings: Vec<Vec<f32>>,
}

/// Writes a shard whole or not at all.
pub(super) fn write(draft: Draft) -> Result<ShardRecord, StoreError> {
    let path = draft.dir.join(&draft.file);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(StoreError::write(folder))?;
    }
    let (split, file, rows) = (draft.split.clone(), draft.file.clone(), draft.rows.len());
    let (mut hasher, mut bytes) = (blake3::Hasher::new(), 0);
    persist(&path, |file| encode(draft, Hashing { file, hasher: &mut hasher, bytes: &mut bytes }))
        .map_err(StoreError::write(&path))?;
    Ok(ShardRecord { split, file, rows, bytes, blake3: hasher.finalize().to_hex().to_string() })
}

/// Bytes that are handed to the disk and hashed at once.
const BUFFER: usize = 256 << 10;

/// Hashes what is written while it is still near the core.
struct Hashing<'a> {
    file: &'a mut File,
    hasher: &'a mut blake3::Hasher,
    bytes: &'a mut u64,
}

impl Write for Hashing<'_> {
    fn write(&mut self, content: &[u8]) -> io::Result<usize> {
        let written = self.file.write(content)?;
        self.hasher.update(&content[..written]);
        *self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Rows of a row group: so many that what is encoded at a time fits a core's cache.
fn rows_per_group(dimension: usize) -> usize {
    const MOST_VALUES: usize = 1 << 19;
    (MOST_VALUES / dimension.max(1)).clamp(64, 4096)
}

fn encode(draft: Draft, to: Hashing<'_>) -> io::Result<()> {
    let Draft { key, classes, layout, split, rows, embeddings, .. } = draft;
    let width = i32::try_from(layout.dimension).map_err(io::Error::other)?;
    let schema = schema(&layout, width);
    let class = |row: &Row| row.label.and_then(|label| classes.get(usize::try_from(label).ok()?)).cloned();
    let described: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.id))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|_| &split))),
        Arc::new(Int32Array::from_iter(rows.iter().map(|row| row.label))),
        Arc::new(StringArray::from_iter(rows.iter().map(class))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.content_hash))),
        Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.width))),
        Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.height))),
    ];
    // Floats neither compress nor repeat: their plain pages are read at the speed of memory. The texts do both.
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_created_by(concat!("tlpipe ", env!("CARGO_PKG_VERSION")).into())
        .set_key_value_metadata(Some(vec![KeyValue::new(KEY.into(), key)]))
        .build();
    let to = BufWriter::with_capacity(BUFFER, to);
    let (mut writer, columns) = ArrowWriter::try_new(to, Arc::clone(&schema), Some(properties))
        .and_then(ArrowWriter::into_serialized_writer)
        .map_err(written)?;
    let descriptors = writer.schema_descr().columns()[described.len()..].to_vec();
    let rows_per_group = rows_per_group(layout.dimension);
    for (index, start) in (0..rows.len()).step_by(rows_per_group).enumerate() {
        let count = rows_per_group.min(rows.len() - start);
        let encoders = columns.create_column_writers(index).map_err(written)?;
        let mut group = writer.next_row_group().map_err(written)?;
        for ((array, field), mut encoder) in described.iter().zip(schema.fields()).zip(encoders) {
            for leaf in compute_leaves(field, &array.slice(start, count)).map_err(written)? {
                encoder.write(&leaf).map_err(written)?;
            }
            encoder.close().and_then(|chunk| chunk.append_to_row_group(&mut group)).map_err(written)?;
        }
        for (view, descriptor) in descriptors.iter().enumerate() {
            let rows = &embeddings[start..start + count];
            let (chunk, close) = pages::chunk(descriptor, &layout, rows, view).map_err(written)?;
            group.append_column(&chunk, close).map_err(written)?;
        }
        group.close().map_err(written)?;
    }
    writer.into_inner().map_err(written)?.flush()
}

/// The disk's own error where there is one.
fn written(error: ParquetError) -> io::Error {
    match error {
        ParquetError::External(cause) => match cause.downcast::<io::Error>() {
            Ok(cause) => *cause,
            Err(cause) => io::Error::other(cause),
        },
        other => io::Error::other(other),
    }
}

/// Reads a shard's file whole, and checks that it is what was recorded.
pub(super) fn read(dir: &Path, record: &ShardRecord) -> Result<Bytes, StoreError> {
    let path = dir.join(&record.file);
    let content = std::fs::read(&path).map_err(StoreError::io(&path))?;
    if blake3::hash(&content).to_hex().as_str() != record.blake3 {
        let reason = "its content is not what was recorded".to_owned();
        return Err(StoreError::Damaged { path, reason, remedy: super::REPLACE });
    }
    Ok(content.into())
}

fn reader(
    path: &Path,
    content: impl ChunkReader + 'static,
    columns: &[&str],
    batch: usize,
) -> Result<ParquetRecordBatchReader, StoreError> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(content).map_err(|error| StoreError::damaged(path, error))?;
    let mask = ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied());
    builder.with_projection(mask).with_batch_size(batch.max(1)).build().map_err(|error| StoreError::damaged(path, error))
}

/// The rows of a shard without their embeddings, from its file or from what was read of it.
pub(super) fn rows(dir: &Path, record: &ShardRecord, content: impl ChunkReader + 'static) -> Result<Vec<Row>, StoreError> {
    let path = dir.join(&record.file);
    let columns = ["id", "label", "content_hash", "width", "height"];
    let mut rows = Vec::with_capacity(record.rows);
    for batch in reader(&path, content, &columns, record.rows)? {
        let batch = batch.map_err(|error| StoreError::damaged(&path, error))?;
        let texts = |name: &str| {
            let column = batch.column_by_name(name).and_then(|column| column.as_string_opt::<i32>().cloned());
            column.ok_or_else(|| StoreError::damaged(&path, format!("no text column `{name}`")))
        };
        let numbers = |name: &str| {
            let column = batch.column_by_name(name).and_then(|column| column.as_primitive_opt::<Int32Type>().cloned());
            column.ok_or_else(|| StoreError::damaged(&path, format!("no int32 column `{name}`")))
        };
        let (ids, hashes) = (texts("id")?, texts("content_hash")?);
        let (labels, widths, heights) = (numbers("label")?, numbers("width")?, numbers("height")?);
        rows.extend((0..batch.num_rows()).map(|row| Row {
            id: ids.value(row).into(),
            label: labels.is_valid(row).then(|| labels.value(row)),
            content_hash: hashes.value(row).into(),
            width: widths.value(row),
            height: heights.value(row),
        }));
    }
    if rows.len() != record.rows {
        return Err(StoreError::damaged(&path, format!("{} rows, {} recorded", rows.len(), record.rows)));
    }
    Ok(rows)
}
