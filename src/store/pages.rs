//! The embeddings of a shard, page by page.
//!
//! Embeddings are written plain and uncompressed, so a page ends in its values as they are in memory: they are copied as they
//! are, without the lists that Parquet makes of them, and can be read from the file without the rest of it.
//!
//! ```text
//! length, repetition levels: 0 where a row begins, else 1 │ length, definition levels: all 1 │ values, little-endian
//! ```
//!
//! The levels of full lists are known beforehand, as runs: to find them value by value took longer than all else that writing does.

use std::num::TryFromIntError;
use std::path::Path;

use bytes::Bytes;
use parquet::basic::{Compression, Encoding, LogicalType, Type};
use parquet::column::page::{CompressedPage, Page, PageWriter as _};
use parquet::column::writer::ColumnCloseResult;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, OffsetIndexBuilder};
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::file::writer::{SerializedPageWriter, TrackedWrite};
use parquet::schema::types::{ColumnDescPtr, ColumnDescriptor};

use super::layout::{Dtype, Layout, Reading};
use super::{ShardRecord, StoreError};

/// One view of some rows, each of which has D values of each view, as a column of a row group: one page, and what the file has to say
/// of it.
///
/// # Errors
/// When the page is longer than a file can say.
pub(super) fn chunk(
    column: &ColumnDescPtr,
    layout: &Layout,
    rows: &[Vec<f32>],
    view: usize,
) -> Result<(Bytes, ColumnCloseResult), ParquetError> {
    let values = rows.len() * layout.dimension;
    let mut page = Vec::with_capacity(values * layout.dtype.size() + 16 * rows.len() + 16);
    levels(&mut page, |runs| {
        for _ in rows {
            run(runs, 0, 1);
            run(runs, 1, layout.dimension - 1);
        }
    });
    levels(&mut page, |runs| run(runs, 1, values));
    for row in rows {
        layout.dtype.append(&row[view * layout.dimension..][..layout.dimension], &mut page);
    }

    let page = Page::DataPage {
        num_values: within(values)?,
        buf: page.into(),
        encoding: Encoding::PLAIN,
        def_level_encoding: Encoding::RLE,
        rep_level_encoding: Encoding::RLE,
        statistics: None,
    };
    let length = page.buffer().len();
    let mut to = TrackedWrite::new(Vec::with_capacity(length + 64));
    let written = SerializedPageWriter::new(&mut to).write_page(CompressedPage::new(page, length))?;
    let metadata = ColumnChunkMetaData::builder(column.clone())
        .set_compression(Compression::UNCOMPRESSED)
        .set_encodings(vec![Encoding::PLAIN, Encoding::RLE])
        .set_num_values(within(values)?)
        .set_total_compressed_size(within(written.compressed_size)?)
        .set_total_uncompressed_size(within(written.uncompressed_size)?)
        .set_data_page_offset(0)
        .build()?;
    let mut offsets = OffsetIndexBuilder::new();
    offsets.append_row_count(within(rows.len())?);
    offsets.append_offset_and_size(0, within(written.compressed_size)?);
    let close = ColumnCloseResult {
        bytes_written: written.bytes_written,
        rows_written: rows.len() as u64,
        metadata,
        bloom_filter: None,
        column_index: None,
        offset_index: Some(offsets.build()),
    };
    Ok((to.into_inner()?.into(), close))
}

/// A number of a type that Parquet gives it.
fn within<T: TryFrom<usize, Error = TryFromIntError>>(number: usize) -> Result<T, ParquetError> {
    T::try_from(number).map_err(|error| ParquetError::External(error.into()))
}

/// Levels, with their length before them.
fn levels(page: &mut Vec<u8>, runs: impl FnOnce(&mut Vec<u8>)) {
    let start = page.len();
    page.extend([0; 4]);
    runs(page);
    let length = (page.len() - start - 4) as u32;
    page[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

/// A run of one level in Parquet's hybrid encoding, if it has a length: that as a varint whose last bit says that it is a run, then
/// the level.
fn run(to: &mut Vec<u8>, level: u8, length: usize) {
    let mut rest = length << 1;
    if rest == 0 {
        return;
    }
    while rest >= 0x80 {
        to.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    to.extend([rest as u8, level]);
}

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

#[cfg(test)]
mod tests {
    use std::fs::File;

    use arrow::array::{Array as _, AsArray as _};
    use arrow::compute::cast;
    use arrow::datatypes::{DataType, Float32Type};
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    use super::*;
    use crate::store::{Store, fixture};

    #[test]
    fn levels_are_runs() {
        let mut page = Vec::new();
        levels(&mut page, |runs| {
            run(runs, 0, 1);
            run(runs, 1, 200);
            run(runs, 1, 0);
        });
        assert_eq!(page, [5, 0, 0, 0, 0b10, 0, 0x90, 0b11, 1]);
    }

    /// Another reader, which makes lists of the levels, finds the rows that were written.
    #[test]
    fn pages_are_those_of_full_lists() {
        for (width, rows, dtype) in
            [(1, 5, Dtype::Float32), (2, 700, Dtype::Float16), (1280, 900, Dtype::Float32), (20_000, 70, Dtype::Float16)]
        {
            let dir = tempfile::tempdir().unwrap();
            let mut parts = fixture::parts();
            parts.dtype = dtype;
            parts.views.push("hflip".into());
            fixture::write_as(parts, dir.path(), &[("train", rows)], width, 3, |_, _| {});
            let store = Store::open(dir.path()).unwrap();
            let path = dir.path().join(&store.manifest().shards[0].file);
            let reader = || ParquetRecordBatchReaderBuilder::try_new(File::open(&path).unwrap()).unwrap();
            let groups = reader().metadata().num_row_groups();
            assert_eq!(groups > 1, width > 700, "{groups} row groups");
            for (view, name) in ["embedding", "embedding_hflip"].into_iter().enumerate() {
                let own = store.load_view(&["train"], view).unwrap().embeddings;
                let (mut row, mut found) = (0, 0);
                for batch in reader().with_batch_size(33).build().unwrap() {
                    let batch = batch.unwrap();
                    let lists = batch.column_by_name(name).unwrap().as_fixed_size_list();
                    assert_eq!((lists.value_length() as usize, lists.null_count()), (width, 0));
                    let values = cast(lists.values(), &DataType::Float32).unwrap();
                    let values = values.as_primitive::<Float32Type>().values().to_vec();
                    let expected = own.slice(ndarray::s![row..row + batch.num_rows(), ..]);
                    assert_eq!(values, expected.iter().copied().collect::<Vec<_>>(), "{width} {dtype:?} {name} from {row}");
                    row += batch.num_rows();
                    found += values.len();
                }
                assert_eq!((row, found), (rows, rows * width));
            }
        }
    }
}
