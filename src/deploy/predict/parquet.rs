//! Predictions as a Parquet file.

use std::io::{self, Write};
use std::sync::Arc;

use ::parquet::arrow::ArrowWriter;
use arrow::array::{ArrayRef, Float32Builder, Int32Builder, ListBuilder, RecordBatch, StringBuilder, StructBuilder};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};

use super::formats::{Rows, Summary, UNSURE};
use super::{Answer, Prediction};

/// Columns `file`, `class`, `class_index`, `probability`, `top` (a list of `class`, `class_index`, `probability`), `error`.
pub struct Parquet<'c, W: Write + Send> {
    /// None once it is finished.
    writer: Option<ArrowWriter<W>>,
    schema: SchemaRef,
    classes: &'c [String],
    columns: Columns,
    rows: usize,
}

/// Rows that are not written yet.
struct Columns {
    file: StringBuilder,
    class: StringBuilder,
    class_index: Int32Builder,
    probability: Float32Builder,
    top: ListBuilder<StructBuilder>,
    error: StringBuilder,
}

fn ranked() -> Fields {
    let field = |name: &str, kind| Field::new(name, kind, false);
    vec![field("class", DataType::Utf8), field("class_index", DataType::Int32), field("probability", DataType::Float32)].into()
}

impl Columns {
    fn new() -> Self {
        let item = Arc::new(Field::new("item", DataType::Struct(ranked()), false));
        Self {
            file: StringBuilder::new(),
            class: StringBuilder::new(),
            class_index: Int32Builder::new(),
            probability: Float32Builder::new(),
            top: ListBuilder::new(StructBuilder::from_fields(ranked(), 0)).with_field(item),
            error: StringBuilder::new(),
        }
    }

    fn schema() -> SchemaRef {
        let item = Arc::new(Field::new("item", DataType::Struct(ranked()), false));
        Arc::new(Schema::new(vec![
            Field::new("file", DataType::Utf8, false),
            Field::new("class", DataType::Utf8, true),
            Field::new("class_index", DataType::Int32, true),
            Field::new("probability", DataType::Float32, true),
            Field::new("top", DataType::List(item), false),
            Field::new("error", DataType::Utf8, true),
        ]))
    }

    fn finish(&mut self) -> Vec<ArrayRef> {
        vec![
            Arc::new(self.file.finish()),
            Arc::new(self.class.finish()),
            Arc::new(self.class_index.finish()),
            Arc::new(self.probability.finish()),
            Arc::new(self.top.finish()),
            Arc::new(self.error.finish()),
        ]
    }
}

impl<'c, W: Write + Send> Parquet<'c, W> {
    /// Begins.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new(to: W, classes: &'c [String]) -> io::Result<Self> {
        let schema = Columns::schema();
        let writer = ArrowWriter::try_new(to, Arc::clone(&schema), None).map_err(io::Error::other)?;
        Ok(Self { writer: Some(writer), schema, classes, columns: Columns::new(), rows: 0 })
    }

    fn write(&mut self) -> io::Result<()> {
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), self.columns.finish()).map_err(io::Error::other)?;
        self.rows = 0;
        self.writer.as_mut().map_or(Ok(()), |writer| writer.write(&batch)).map_err(io::Error::other)
    }
}

impl<W: Write + Send> Rows for Parquet<'_, W> {
    fn add(&mut self, prediction: &Prediction) -> io::Result<()> {
        const ROWS: usize = 4096;
        let columns = &mut self.columns;
        let name = |index: usize| self.classes.get(index).map_or("", String::as_str);
        let number = |index: usize| i32::try_from(index).map_err(io::Error::other);
        columns.file.append_value(&prediction.id);
        match &prediction.answer {
            Ok(Answer { top, sure }) => {
                let best = top.first();
                columns.class.append_option(best.map(|best| if *sure { name(best.index) } else { UNSURE }));
                columns.class_index.append_option(best.filter(|_| *sure).map(|best| number(best.index)).transpose()?);
                columns.probability.append_option(best.map(|best| best.probability));
                for ranked in top {
                    let item = columns.top.values();
                    if let Some(class) = item.field_builder::<StringBuilder>(0) {
                        class.append_value(name(ranked.index));
                    }
                    if let Some(index) = item.field_builder::<Int32Builder>(1) {
                        index.append_value(number(ranked.index)?);
                    }
                    if let Some(probability) = item.field_builder::<Float32Builder>(2) {
                        probability.append_value(ranked.probability);
                    }
                    item.append(true);
                }
                columns.error.append_null();
            }
            Err(reason) => {
                columns.class.append_null();
                columns.class_index.append_null();
                columns.probability.append_null();
                columns.error.append_value(reason);
            }
        }
        columns.top.append(true);
        self.rows += 1;
        if self.rows == ROWS { self.write() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        // A row group is written whole.
        Ok(())
    }

    fn finish(&mut self, _: Summary<'_>) -> io::Result<()> {
        self.write()?;
        // The footer makes it a Parquet file.
        let Some(writer) = self.writer.take() else { return Ok(()) };
        writer.into_inner().map_err(io::Error::other)?.flush()
    }
}

#[cfg(test)]
mod tests {
    use ::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
    use arrow::array::{Array as _, Int32Array, ListArray, StringArray};
    use bytes::Bytes;

    use super::super::Counts;
    use super::super::formats::tests::{classes, predictions};
    use super::*;

    #[test]
    fn rows_come_back() {
        let (classes, mut file) = (classes(), Vec::new());
        let mut rows = Parquet::new(&mut file, &classes).unwrap();
        for prediction in predictions() {
            rows.add(&prediction).unwrap();
        }
        rows.finish(Summary { model: "m", counts: Counts::default(), seconds: 1.0, stopped: false }).unwrap();
        drop(rows);
        let mut batches = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(file)).unwrap().build().unwrap();
        let batch = batches.next().unwrap().unwrap();
        let texts = |name: &str| {
            let column = batch.column_by_name(name).unwrap().as_any().downcast_ref::<StringArray>().unwrap().clone();
            column.iter().map(|text| text.map(str::to_owned)).collect::<Vec<_>>()
        };
        assert_eq!(texts("class"), [Some("cat, \"tabby\"".to_owned()), Some("unsure".to_owned()), None]);
        assert_eq!(texts("error"), [None, None, Some("truncated PNG: \"end\"".to_owned())]);
        let index = batch.column_by_name("class_index").unwrap().as_any().downcast_ref::<Int32Array>().unwrap();
        assert_eq!(index.iter().collect::<Vec<_>>(), [Some(0), None, None]);
        let top = batch.column_by_name("top").unwrap().as_any().downcast_ref::<ListArray>().unwrap();
        assert_eq!((0..3).map(|row| top.value(row).len()).collect::<Vec<_>>(), [2, 2, 0]);
    }
}
