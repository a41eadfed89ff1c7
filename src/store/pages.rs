//! The embeddings of a shard, page by page.
//!
//! Embeddings are written plain and uncompressed, so a page ends in its values as they are in memory: they are copied as they
//! are, without the lists that Parquet makes of them, and can be read from the file without the rest of it.

use std::path::Path;

use bytes::Bytes;
use parquet::basic::{Encoding, Type};
use parquet::column::page::Page;
use parquet::file::reader::{FileReader as _, SerializedFileReader};

use super::{ShardRecord, StoreError};

/// Bytes of a value.
pub(super) const VALUE: usize = size_of::<f32>();

/// The values of a shard's embeddings, little-endian, in the pages' order.
///
/// # Errors
/// When the shard has no embeddings of `dimension` values, another number of rows than was recorded, or a null.
pub(super) fn values(path: &Path, record: &ShardRecord, content: &Bytes, dimension: usize) -> Result<Vec<Bytes>, StoreError> {
    let damaged = |reason: String| StoreError::damaged(path, reason);
    let file = SerializedFileReader::new(content.clone()).map_err(|error| StoreError::damaged(path, error))?;
    let schema = file.metadata().file_metadata().schema_descr_ptr();
    let column = schema.columns().iter().position(|column| column.path().string() == "embedding.list.item");
    let column = column.ok_or_else(|| damaged("no column `embedding` of fixed-size lists".into()))?;
    if schema.column(column).physical_type() != Type::FLOAT {
        return Err(damaged("embeddings that are not float32".into()));
    }
    let (mut found, mut count) = (Vec::new(), 0);
    for group in 0..file.num_row_groups() {
        let group = file.get_row_group(group).map_err(|error| StoreError::damaged(path, error))?;
        let mut pages = group.get_column_page_reader(column).map_err(|error| StoreError::damaged(path, error))?;
        while let Some(page) = pages.get_next_page().map_err(|error| StoreError::damaged(path, error))? {
            let page = plain(page).ok_or_else(|| damaged("embeddings that are not plain values without a gap".into()))?;
            count += page.len() / VALUE;
            found.push(page);
        }
    }
    if count != record.rows * dimension {
        let found = count as f64 / dimension.max(1) as f64;
        return Err(damaged(format!("{found} rows of {dimension} values, {} recorded", record.rows)));
    }
    Ok(found)
}

/// The values of a page; none where it holds anything else than plain values of full lists.
fn plain(page: Page) -> Option<Bytes> {
    let Page::DataPage { buf, num_values, encoding: Encoding::PLAIN, .. } = page else { return None };
    let length = |start: usize| Some(u32::from_le_bytes(*buf.get(start..)?.first_chunk()?) as usize);
    // Repetition levels, then definition levels, each with its length before it. A null or an empty list would be a value less.
    let definitions = 4 + length(0)?;
    let start = definitions + 4 + length(definitions)?;
    (start + num_values as usize * VALUE == buf.len()).then(|| buf.slice(start..))
}

/// Copies a shard's embeddings into `out`, row-major `[rows, D]`.
///
/// # Errors
/// As [`values`].
pub(super) fn embeddings(
    path: &Path,
    record: &ShardRecord,
    content: &Bytes,
    dimension: usize,
    out: &mut [f32],
) -> Result<(), StoreError> {
    let mut rest = out;
    for page in values(path, record, content, dimension)? {
        let values = page.as_chunks::<VALUE>().0;
        let Some((place, after)) = rest.split_at_mut_checked(values.len()) else {
            return Err(StoreError::damaged(path, format!("more than the {} recorded rows", record.rows)));
        };
        place.iter_mut().zip(values).for_each(|(place, &value)| *place = f32::from_le_bytes(value));
        rest = after;
    }
    Ok(())
}
