//! `predictions.parquet`: one row an image that was scored, written block by block.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray as _, FixedSizeListArray, Float32Array, Int32Array, StringArray};
use arrow::datatypes::{DataType, Field, FieldRef, Float32Type, Int32Type, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::properties::WriterProperties;

use super::RunError;
use crate::persist::Draft;

/// Probabilities of a row group: as many are held in memory until they are written.
const GROUP_VALUES: usize = 1 << 23;

/// Predictions for some rows.
#[derive(Clone, Debug, Default)]
pub struct Predictions {
    /// Row ids.
    pub ids: Vec<String>,
    /// Split of each row: `train`, `validation` (the hold-out) or `test`.
    pub splits: Vec<String>,
    /// Label index; none for an unlabelled row.
    pub labels: Vec<Option<i32>>,
    /// Index of the class with the highest logit; the first of equals. Rounded to f32, two probabilities may be equal
    /// where their logits are not.
    pub predicted: Vec<i32>,
    /// Row-major `[rows, classes]`, each row sums to 1.
    pub probabilities: Vec<f32>,
}

impl Predictions {
    /// Reads the rows of a split of a run's predictions of `classes` classes, in their order.
    ///
    /// # Errors
    /// When the file cannot be read, or is not of so many classes.
    pub fn load(path: &Path, split: &str, classes: usize) -> Result<Self, RunError> {
        let damaged = |reason: String| RunError::Damaged { path: path.into(), reason };
        let broken = |error: &dyn std::fmt::Display| damaged(error.to_string());
        let file = File::open(path).map_err(|source| RunError::Io { path: path.into(), source })?;
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).and_then(ParquetRecordBatchReaderBuilder::build);
        let mut found = Self::default();
        for batch in reader.map_err(|error| broken(&error))? {
            let batch = batch.map_err(|error| broken(&error))?;
            let column = |name: &str| batch.column_by_name(name).ok_or_else(|| damaged(format!("column \"{name}\" is missing")));
            let other = |name: &str| damaged(format!("column \"{name}\" is of another type"));
            let text = |name: &str| column(name)?.as_string_opt::<i32>().cloned().ok_or_else(|| other(name));
            let number = |name: &str| column(name)?.as_primitive_opt::<Int32Type>().cloned().ok_or_else(|| other(name));
            let (ids, splits, labels, predicted) = (text("id")?, text("split")?, number("label")?, number("predicted")?);
            let lists = column("probabilities")?.as_fixed_size_list_opt().ok_or_else(|| other("probabilities"))?;
            let values = lists.values().as_primitive_opt::<Float32Type>().ok_or_else(|| other("probabilities"))?;
            if usize::try_from(lists.value_length()) != Ok(classes) {
                return Err(damaged(format!("{} probabilities a row, not {classes}", lists.value_length())));
            }
            for row in (0..batch.num_rows()).filter(|&row| splits.value(row) == split) {
                found.ids.push(ids.value(row).to_owned());
                found.splits.push(split.to_owned());
                found.labels.push((!labels.is_null(row)).then(|| labels.value(row)));
                found.predicted.push(predicted.value(row));
                found.probabilities.extend_from_slice(&values.values()[row * classes..][..classes]);
            }
        }
        Ok(found)
    }
}

/// Writes `predictions.parquet`: `id`, `split`, `label`, `predicted`, `probabilities` (fixed-size list, one a class). Until it
/// is kept, an earlier file stands.
pub struct PredictionsWriter {
    draft: Draft,
    path: PathBuf,
    writer: ArrowWriter<File>,
    schema: SchemaRef,
    item: FieldRef,
    width: i32,
}

impl PredictionsWriter {
    pub(super) fn create(path: PathBuf, classes: usize) -> Result<Self, RunError> {
        let begin = || -> io::Result<_> {
            let width = i32::try_from(classes).map_err(io::Error::other)?;
            let item = Arc::new(Field::new("item", DataType::Float32, false));
            let schema = Arc::new(Schema::new(vec![
                Field::new("id", DataType::Utf8, false),
                Field::new("split", DataType::Utf8, false),
                Field::new("label", DataType::Int32, true),
                Field::new("predicted", DataType::Int32, false),
                Field::new("probabilities", DataType::FixedSizeList(Arc::clone(&item), width), false),
            ]));
            let rows = (GROUP_VALUES / classes.max(1)).max(1);
            let properties = WriterProperties::builder().set_max_row_group_row_count(Some(rows)).build();
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            let mut draft = Draft::create(&path)?;
            let file = draft.file().try_clone()?;
            let writer = ArrowWriter::try_new(file, Arc::clone(&schema), Some(properties)).map_err(io::Error::other)?;
            Ok((draft, writer, schema, item, width))
        };
        match begin() {
            Ok((draft, writer, schema, item, width)) => Ok(Self { draft, path, writer, schema, item, width }),
            Err(source) => Err(RunError::Io { path, source }),
        }
    }

    /// Adds rows.
    ///
    /// # Errors
    /// When the columns differ in length, or the file cannot be written.
    pub fn add(&mut self, rows: Predictions) -> Result<(), RunError> {
        let Predictions { ids, splits, labels, predicted, probabilities } = rows;
        let values = Arc::new(Float32Array::from(probabilities));
        let add = || {
            let columns: Vec<ArrayRef> = vec![
                Arc::new(StringArray::from_iter_values(ids)),
                Arc::new(StringArray::from_iter_values(splits)),
                Arc::new(Int32Array::from(labels)),
                Arc::new(Int32Array::from(predicted)),
                Arc::new(FixedSizeListArray::try_new(Arc::clone(&self.item), self.width, values, None)?),
            ];
            self.writer.write(&RecordBatch::try_new(Arc::clone(&self.schema), columns)?)
        };
        add().map_err(|error| RunError::Io { path: self.path.clone(), source: io::Error::other(error) })
    }

    /// Ends the file and puts it into its place.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep(self) -> Result<(), RunError> {
        let Self { draft, path, writer, .. } = self;
        let ended = writer.close().map(drop).map_err(io::Error::other).and_then(|()| draft.keep());
        ended.map_err(|source| RunError::Io { path, source })
    }
}
