//! The rows of a stream: encoded images and what is known of them.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray as _, Int32Array, LargeBinaryArray, StringArray};
use arrow::compute::{CastOptions, cast, cast_with_options};
use arrow::datatypes::{DataType, Int32Type, Schema};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;

use super::EmbedError;
use crate::dataset::{Encoded, Record, TRAIN, split_name};
use crate::store::exchange::Named;

/// Bytes of one encoded image; a stream holds whole batches of them in memory.
const MOST_IMAGE: usize = 64 << 20;

/// Where the columns that are needed stand among those of a batch.
#[derive(Debug)]
pub(super) struct Columns {
    /// In the stream's schema.
    needed: Vec<usize>,
}

const ID: &str = "id";
const IMAGE: &str = "bytes";
const LABEL: &str = "label";
const CLASS: &str = "class";
const SPLIT: &str = "split";

impl Columns {
    /// Finds the columns and checks their types.
    ///
    /// # Errors
    /// When one is missing or is something else.
    pub(super) fn find(schema: &Schema) -> Result<Self, EmbedError> {
        let mut needed = Vec::new();
        for (name, is_needed, kind, fits) in [
            (ID, true, "text", is_text as fn(&DataType) -> bool),
            (IMAGE, true, "binary", is_binary),
            (LABEL, false, "integers or text", |kind| is_text(kind) || value(kind).is_integer() || *kind == DataType::Null),
            (CLASS, false, "text", |kind| is_text(kind) || *kind == DataType::Null),
            (SPLIT, false, "text", |kind| is_text(kind) || *kind == DataType::Null),
        ] {
            let found = schema.fields().iter().enumerate().filter(|(_, field)| field.name() == name).collect::<Vec<_>>();
            let all = || {
                let described = schema.fields().iter().map(|field| format!("{} ({})", field.name(), field.data_type()));
                described.collect::<Vec<_>>().join(", ")
            };
            let wanted =
                "`id` (text) and `bytes` (binary: the encoded image) are needed, `label`, `class` and `split` may be there";
            match found[..] {
                [] if is_needed => {
                    return Err(EmbedError::Input(format!("no column `{name}` in the stream, which has {}; {wanted}", all())));
                }
                [] => {}
                [(at, field)] if fits(field.data_type()) => needed.push(at),
                [(_, field)] => {
                    let reason = format!("column `{name}` is {}, not {kind}; {wanted}", field.data_type());
                    return Err(EmbedError::Input(reason));
                }
                _ => return Err(EmbedError::Input(format!("more than one column `{name}` in the stream"))),
            }
        }
        Ok(Self { needed })
    }

    pub(super) fn needed(&self) -> &[usize] {
        &self.needed
    }

    /// The rows of a batch that was read with these columns alone.
    pub(super) fn of(&self, batch: &RecordBatch) -> Result<Incoming, EmbedError> {
        let rows = batch.num_rows();
        let as_type = |array: &ArrayRef, kind: &DataType| {
            cast(array, kind).map_err(|error| EmbedError::Input(format!("a column cannot be read: {error}")))
        };
        let text = |name: &str| -> Result<StringArray, EmbedError> {
            match batch.column_by_name(name) {
                Some(column) => Ok(as_type(column, &DataType::Utf8)?.as_string().clone()),
                None => Ok(StringArray::new_null(rows)),
            }
        };
        let (label, mut classes) = (batch.column_by_name(LABEL), text(CLASS)?);
        let labels = match label {
            Some(column) if value(column.data_type()).is_integer() => {
                let strict = CastOptions { safe: false, ..CastOptions::default() };
                let cast = cast_with_options(column, &DataType::Int32, &strict);
                let labels = cast.map_err(|error| EmbedError::Input(format!("a label is no class index: {error}")))?;
                // As in every source, -1 is none.
                labels.as_primitive::<Int32Type>().iter().map(|label| label.filter(|label| *label != -1)).collect()
            }
            Some(column) if is_text(column.data_type()) => {
                if batch.column_by_name(CLASS).is_none() {
                    classes = text(LABEL)?;
                }
                Int32Array::new_null(rows)
            }
            _ => Int32Array::new_null(rows),
        };
        let splits = text(SPLIT)?.iter().map(|split| Some(split.map_or_else(|| TRAIN.to_owned(), split_name))).collect();
        let images = match batch.column_by_name(IMAGE) {
            Some(column) => as_type(column, &DataType::LargeBinary)?.as_binary::<i64>().clone(),
            None => LargeBinaryArray::new_null(rows),
        };
        Ok(Incoming { named: Named { ids: text(ID)?, splits, labels, classes }, images })
    }
}

/// What a dictionary is of.
fn value(kind: &DataType) -> &DataType {
    if let DataType::Dictionary(_, value) = kind { value } else { kind }
}

fn is_text(kind: &DataType) -> bool {
    matches!(value(kind), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

fn is_binary(kind: &DataType) -> bool {
    matches!(kind, DataType::Binary | DataType::LargeBinary | DataType::BinaryView)
}

/// The rows of a batch.
#[derive(Debug)]
pub(super) struct Incoming {
    /// What goes back as it came.
    pub(super) named: Named,
    images: LargeBinaryArray,
}

impl Incoming {
    pub(super) fn rows(&self) -> usize {
        self.images.len()
    }

    /// Some rows as records of a source.
    pub(super) fn records(&self, rows: Range<usize>) -> Vec<Record> {
        let record = |row: usize| Record {
            id: self.named.ids.value(row).to_owned(),
            split: Arc::from(self.named.splits.value(row)),
            label: None,
            image: self.image(row),
        };
        rows.map(record).collect()
    }

    fn image(&self, row: usize) -> Encoded {
        if self.named.ids.is_null(row) {
            return Encoded::Unusable("the row has no id (null)".to_owned());
        }
        if self.images.is_null(row) {
            return Encoded::Unusable("the row has no image (null)".to_owned());
        }
        let place = |offset: i64| usize::try_from(offset).unwrap_or_default();
        let offsets = self.images.value_offsets();
        let (start, end) = (place(offsets[row]), place(offsets[row + 1]));
        if end - start > MOST_IMAGE {
            return Encoded::Unusable(format!(
                "an image of {} bytes: above the limit of 64 MiB for one in a stream; tlpipe extract takes it from a file",
                end - start
            ));
        }
        // Without a copy: the batch stays in memory as long as one of its images is needed.
        Encoded::Bytes(Bytes::from_owner(self.images.values().slice_with_length(start, end - start)))
    }
}
