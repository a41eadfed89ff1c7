//! The embeddings of a shard, page by page.
//!
//! Embeddings are written plain and uncompressed, so a page ends in its values as they are in memory: they are copied as they
//! are, without the lists that Parquet makes of them, and can be read from the file without the rest of it.

use std::path::Path;

use bytes::Bytes;
use parquet::basic::{Encoding, LogicalType, Type};
use parquet::column::page::Page;
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::schema::types::ColumnDescriptor;

use super::layout::{Dtype, Layout, Reading};
use super::{ShardRecord, StoreError};

/// The values of a shard's embeddings of one view, little-endian, in the pages' order.
///
/// # Errors
/// When the shard has no such embeddings, another number of rows than was recorded, or a null.
pub(super) fn values(
    path: &Path,
    record: &ShardRecord,
    content: &Bytes,
    layout: &Layout,
    view: usize,
) -> Result<Vec<Bytes>, StoreError> {
    let damaged = |reason: String| StoreError::damaged(path, reason);
    let name = layout.columns.get(view).map_or("", String::as_str);
    let file = SerializedFileReader::new(content.clone()).map_err(|error| StoreError::damaged(path, error))?;
    let schema = file.metadata().file_metadata().schema_descr_ptr();
    let wanted = format!("{name}.list.item");
    let column = schema.columns().iter().position(|column| column.path().string() == wanted);
    let column = column.ok_or_else(|| damaged(format!("no column `{name}` of fixed-size lists")))?;
    if !is_of(&schema.column(column), layout.dtype) {
        return Err(damaged(format!("`{name}` is not of {}", layout.dtype.name())));
    }
    let (mut found, mut count) = (Vec::new(), 0);
    for group in 0..file.num_row_groups() {
        let group = file.get_row_group(group).map_err(|error| StoreError::damaged(path, error))?;
        let mut pages = group.get_column_page_reader(column).map_err(|error| StoreError::damaged(path, error))?;
        while let Some(page) = pages.get_next_page().map_err(|error| StoreError::damaged(path, error))? {
            let page = plain(page, layout.dtype.size());
            let page = page.ok_or_else(|| damaged(format!("`{name}` does not hold plain values without a gap")))?;
            count += page.len() / layout.dtype.size();
            found.push(page);
        }
    }
    if count != record.rows * layout.dimension {
        let found = count as f64 / layout.dimension.max(1) as f64;
        return Err(damaged(format!("{found} rows of {} values, {} recorded", layout.dimension, record.rows)));
    }
    Ok(found)
}

fn is_of(column: &ColumnDescriptor, dtype: Dtype) -> bool {
    match dtype {
        Dtype::Float32 => column.physical_type() == Type::FLOAT,
        Dtype::Float16 => {
            column.physical_type() == Type::FIXED_LEN_BYTE_ARRAY
                && column.type_length() == 2
                && column.logical_type_ref() == Some(&LogicalType::Float16)
        }
    }
}

/// The values of a page, each of so many bytes; none where it holds anything else than plain values of full lists.
fn plain(page: Page, size: usize) -> Option<Bytes> {
    let Page::DataPage { buf, num_values, encoding: Encoding::PLAIN, .. } = page else { return None };
    let length = |start: usize| Some(u32::from_le_bytes(*buf.get(start..)?.first_chunk()?) as usize);
    // Repetition levels, then definition levels, each with its length before it. A null or an empty list would be a value less.
    let definitions = 4 + length(0)?;
    let start = definitions + 4 + length(definitions)?;
    (start + num_values as usize * size == buf.len()).then(|| buf.slice(start..))
}

/// Copies a shard's embeddings into `out`, row-major `[rows, D]`.
///
/// # Errors
/// As [`values`].
pub(super) fn embeddings(
    path: &Path,
    record: &ShardRecord,
    content: &Bytes,
    layout: &Layout,
    reading: Reading,
    out: &mut [f32],
) -> Result<(), StoreError> {
    reading.gather(layout.views(), out, |view, put, out| {
        let mut rest = out;
        for page in values(path, record, content, layout, view)? {
            let Some((place, after)) = rest.split_at_mut_checked(page.len() / layout.dtype.size()) else {
                return Err(StoreError::damaged(path, format!("more than the {} recorded rows", record.rows)));
            };
            put.run(layout.dtype, layout.transform, &page, place);
            rest = after;
        }
        Ok(())
    })
}
