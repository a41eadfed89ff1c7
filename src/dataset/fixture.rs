//! Small sources for the tests of this room.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::parquet::arrow::ArrowWriter;
use ::parquet::file::properties::WriterProperties;
use arrow::array::{ArrayRef, BinaryArray, StringArray, StructArray};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::record_batch::RecordBatch;
use tempfile::TempDir;

use super::{Dataset, DatasetError, Record, SourceOptions};

/// A folder with these files, each holding its own name.
pub(super) fn tree(files: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in files {
        write(&folder.path().join(file), file.as_bytes());
    }
    folder
}

pub(super) fn write(path: &Path, content: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// A tar archive of these members.
pub(super) fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, *content).unwrap();
    }
    archive.into_inner().unwrap()
}

pub(super) fn open(path: impl Into<PathBuf>) -> Result<Dataset, DatasetError> {
    Dataset::open(&[path.into()], &SourceOptions::default())
}

/// The message that opening it ends with.
pub(super) fn refused(path: impl Into<PathBuf>) -> String {
    open(path).expect_err("must be refused").to_string()
}

pub(super) fn records(dataset: &Dataset, split: &str) -> Vec<Record> {
    dataset.records(split).unwrap().collect::<Result<_, _>>().unwrap()
}

/// Ids and labels of a split.
pub(super) fn labelled(dataset: &Dataset, split: &str) -> Vec<(String, Option<i32>)> {
    records(dataset, split).into_iter().map(|record| (record.id, record.label)).collect()
}

/// Names and rows of the splits.
pub(super) fn splits(dataset: &Dataset) -> Vec<(&str, usize)> {
    dataset.splits().iter().map(|split| (&*split.name, split.rows)).collect()
}

/// Hugging Face's image column: `bytes` of each row, or a path, or neither.
pub(super) fn images(rows: &[(Option<&[u8]>, Option<&str>)]) -> ArrayRef {
    let bytes: ArrayRef = Arc::new(rows.iter().map(|row| row.0).collect::<BinaryArray>());
    let paths: ArrayRef = Arc::new(rows.iter().map(|row| row.1).collect::<StringArray>());
    Arc::new(StructArray::from(vec![
        (Arc::new(Field::new("bytes", DataType::Binary, true)), bytes),
        (Arc::new(Field::new("path", DataType::Utf8, true)), paths),
    ]))
}

/// `count` images whose bytes are their row number as text.
pub(super) fn numbered(count: usize) -> ArrayRef {
    let bytes: Vec<String> = (0..count).map(|row| row.to_string()).collect();
    images(&bytes.iter().map(|bytes| (Some(bytes.as_bytes()), None)).collect::<Vec<_>>())
}

/// Writes a Parquet file of row groups of 100; `features` is what stands in `info.features` of the metadata.
pub(super) fn parquet(path: &Path, columns: Vec<(&str, ArrayRef)>, features: Option<&str>) {
    let fields: Vec<Field> = columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), true)).collect();
    let metadata = features.map(|features| format!(r#"{{"info": {{"features": {features}}}}}"#));
    let metadata: HashMap<String, String> = metadata.map(|text| ("huggingface".to_owned(), text)).into_iter().collect();
    let schema = Arc::new(Schema::new(fields).with_metadata(metadata));
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns.into_iter().map(|(_, array)| array).collect()).unwrap();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(100)).build();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), schema, Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}
