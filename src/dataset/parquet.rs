//! Parquet with the images inside, in the Hugging Face layout: a struct of `bytes` and `path`, or a plain binary column.
//!
//! Labels and splits are read once when the source is opened (a small part of the file); images are streamed, a few rows at a time.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::parquet::arrow::ProjectionMask;
use ::parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder, RowSelection,
};
use ::parquet::file::reader::Length as _;
use arrow::array::{Array, ArrayRef, LargeBinaryArray, StringArray, StructArray};
use arrow::buffer::NullBuffer;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Schema};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;

use super::columns::{Columns, Features, IMAGE_NAMES, Labels, SPLIT_FLAG, is_binary, text};
use super::files::{SourceFile, slashed};
use super::label::{ClassList, Counted, Label, Tally, class_list, splits, warnings};
use super::place::{self, Access, Place, Stamp};
use super::split::{self, Split, TRAIN};
use super::{DatasetError, Encoded, Opened, Record, Records, Source, SourceOptions};

/// Rows that are in memory at once: images may be megabytes each.
const BATCH: usize = 32;
/// Rows of labels that are in memory at once.
const LABEL_BATCH: usize = 8192;

/// Read ahead where each request costs a round trip: label columns are small and far from each other, images are neither.
const LABELS_AHEAD: u64 = 256 << 10;
const IMAGES_AHEAD: u64 = 8 << 20;

/// A column with more values than this says something else than the split.
const MOST_SPLITS: usize = 100;

/// One file, its footer, and which of its rows are whose.
#[derive(Clone, Debug)]
struct Shard {
    place: Place,
    /// As it was when its footer was read.
    stamp: Stamp,
    /// What ids begin with.
    name: String,
    metadata: ArrowReaderMetadata,
    image: String,
    label: Option<String>,
    /// Rows of each split, in order and without gaps.
    runs: Vec<(Arc<str>, Range<usize>)>,
}

/// What opening one file finds.
struct Scanned {
    shard: Shard,
    tallies: Vec<(Arc<str>, Tally)>,
    names: Option<Vec<String>>,
    unnamed_split: bool,
}

#[derive(Debug)]
struct Shards {
    shards: Vec<Shard>,
    classes: Arc<ClassList>,
}

/// The file has a column of image bytes.
///
/// # Errors
/// When the file is no Parquet file.
pub(super) fn has_images(place: &Place) -> Result<bool, DatasetError> {
    Ok(!image_columns(metadata(place, &place.access(LABELS_AHEAD)?)?.schema()).is_empty())
}

/// Opens Parquet files that hold images.
///
/// # Errors
/// When a file is damaged, has no image column, or its labels do not go with the others.
pub(super) fn open(origin: &Path, files: &[SourceFile], options: &SourceOptions) -> Result<Opened, DatasetError> {
    let scanned: Vec<Scanned> = place::each(files, |file| &file.place, |file| scan(file, options))?;
    let paths: Vec<PathBuf> = scanned.iter().map(|scanned| scanned.shard.place.shown()).collect();
    let mut declared: Option<(&Path, &Vec<String>)> = None;
    for (scanned, path) in scanned.iter().zip(&paths) {
        match (&scanned.names, declared) {
            (Some(names), Some((other, first))) if names != first => {
                let reason = format!("its class names differ from those of {}", other.display());
                return Err(DatasetError::LabelColumn { path: path.clone(), reason });
            }
            (Some(names), None) => declared = Some((path, names)),
            _ => {}
        }
    }
    let parts: Vec<Counted<'_>> = scanned
        .iter()
        .zip(&paths)
        .flat_map(|(scanned, path)| scanned.tallies.iter().map(move |(split, tally)| Counted { path, split, tally }))
        .collect();
    let classes = class_list(&parts, declared.map(|(_, names)| names.clone()))?;
    let splits = splits(&parts, &classes);
    if splits.is_empty() {
        return Err(DatasetError::NoImages { path: origin.to_owned(), found: "Parquet files without rows".to_owned() });
    }
    let mut notes = Vec::new();
    if scanned.iter().all(|scanned| scanned.shard.label.is_none()) {
        let columns = Columns::of_schema(origin, scanned[0].shard.metadata.schema());
        let names: Vec<&str> = columns.found.iter().map(|(name, _)| name.as_str()).collect();
        notes.push(format!("no label column among {}; choose one with --label-column", names.join(", ")));
    }
    let unnamed: Vec<&str> =
        scanned.iter().filter(|scanned| scanned.unnamed_split).map(|scanned| scanned.shard.name.as_str()).collect();
    if !unnamed.is_empty() && unnamed.len() < scanned.len() {
        notes.push(format!("no split is named by {}, so it counts as train", super::some_of("file", &unnamed)));
    }
    for empty in scanned.iter().filter(|scanned| scanned.shard.runs.is_empty()) {
        notes.push(format!("{} has no rows", empty.shard.name));
    }
    notes.extend(warnings(&classes.names, &splits));
    Ok(Opened {
        kind: "Parquet",
        classes: classes.names.clone(),
        splits,
        warnings: notes,
        sorted_by_class: false,
        source: Box::new(Shards {
            shards: scanned.into_iter().map(|scanned| scanned.shard).collect(),
            classes: Arc::new(classes),
        }),
    })
}

fn metadata(place: &Place, access: &Access) -> Result<ArrowReaderMetadata, DatasetError> {
    ArrowReaderMetadata::load(access, ArrowReaderOptions::new()).map_err(|error| {
        let reason = format_args!("not a whole Parquet file of {} bytes ({error})", access.len());
        access.blame(DatasetError::damaged(place.shown(), reason))
    })
}

/// Columns that hold image bytes.
fn image_columns(schema: &Schema) -> Vec<String> {
    let holds_bytes = |kind: &DataType| match kind {
        DataType::Struct(fields) => fields.iter().any(|field| field.name() == "bytes" && is_binary(field.data_type())),
        kind => is_binary(kind),
    };
    schema.fields().iter().filter(|field| holds_bytes(field.data_type())).map(|field| field.name().clone()).collect()
}

fn scan(file: &SourceFile, options: &SourceOptions) -> Result<Scanned, DatasetError> {
    let path = &file.place.shown();
    let stamp = file.place.stamp();
    let access = file.place.access(LABELS_AHEAD)?;
    let metadata = metadata(&file.place, &access)?;
    let schema = metadata.schema();
    let columns = Columns::of_schema(path, schema);
    let features = Features::of_schema(schema);
    let all = image_columns(schema);
    let declared: Vec<String> = features.images.iter().filter(|name| all.contains(name)).cloned().collect();
    let candidates = if declared.is_empty() || options.image_column.is_some() { &all } else { &declared };
    let image = columns.image(options.image_column.as_deref(), candidates, IMAGE_NAMES, "image bytes")?;
    let label = columns.label(options.label_column.as_deref(), features.first_label.as_deref())?;
    let split = columns.split(options.split_column.as_deref())?;
    let names = label.as_ref().and_then(|label| features.class_labels.get(label)).cloned();

    let by_path = split::of_path(&file.relative);
    let unnamed_split = by_path.is_none() && split.is_none();
    let whole: Arc<str> = Arc::from(by_path.as_deref().unwrap_or(TRAIN));
    let rows = usize::try_from(metadata.metadata().file_metadata().num_rows()).unwrap_or(0);
    let (place, name) = (file.place.clone(), slashed(&file.relative));
    let mut shard = Shard { place, stamp, name, metadata, image, label, runs: Vec::new() };
    let mut tallies: Vec<(Arc<str>, Tally)> = Vec::new();
    if shard.label.is_none() && split.is_none() {
        if rows > 0 {
            let mut tally = Tally::default();
            tally.add_unlabelled(rows);
            tallies.push((Arc::clone(&whole), tally));
            shard.runs.push((whole, 0..rows));
        }
        return Ok(Scanned { shard, tallies, names, unnamed_split });
    }
    let wanted: Vec<&str> = shard.label.iter().chain(&split).map(String::as_str).collect();
    let mut row = 0;
    for batch in shard.read(&access, &wanted, LABEL_BATCH, None)? {
        let batch =
            batch.map_err(|error| access.blame(DatasetError::damaged(path, format_args!("row {row} or later: {error}"))))?;
        let bad_labels = |reason| DatasetError::LabelColumn { path: path.clone(), reason };
        let labels = shard.label.as_deref().and_then(|name| batch.column_by_name(name)).map(Labels::of);
        let labels = labels.transpose().map_err(bad_labels)?;
        let values = split.as_deref().and_then(|name| batch.column_by_name(name)).map(text);
        let values: Option<StringArray> = values.transpose().map_err(|error| DatasetError::damaged(path, error))?;
        for at in 0..batch.num_rows() {
            let value = values.as_ref().filter(|values| values.is_valid(at)).map(|values| values.value(at));
            // The last run's name is right far more often than not.
            let name = match (value, shard.runs.last()) {
                (None, _) => Arc::clone(&whole),
                (Some(value), Some((name, _))) if **name == *value => Arc::clone(name),
                (Some(value), _) => Arc::from(split::of_value(value)),
            };
            let tally = match tallies.iter().position(|(split, _)| *split == name) {
                Some(at) => at,
                None if tallies.len() == MOST_SPLITS => {
                    let reason =
                        format!("more than {MOST_SPLITS} different splits in column {}", split.as_deref().unwrap_or("?"));
                    return Err(columns.error(reason, SPLIT_FLAG));
                }
                None => {
                    tallies.push((Arc::clone(&name), Tally::default()));
                    tallies.len() - 1
                }
            };
            tallies[tally].1.add(labels.as_ref().map_or(Label::None, |labels| labels.get(at)), row as u64);
            match shard.runs.last_mut() {
                Some((last, range)) if *last == name => range.end = row + 1,
                _ => shard.runs.push((name, row..row + 1)),
            }
            row += 1;
        }
    }
    Ok(Scanned { shard, tallies, names, unnamed_split })
}

impl Shard {
    fn read(
        &self,
        access: &Access,
        columns: &[&str],
        batch: usize,
        rows: Option<RowSelection>,
    ) -> Result<ParquetRecordBatchReader, DatasetError> {
        let roots =
            self.metadata.schema().fields().iter().enumerate().filter(|(_, field)| columns.contains(&field.name().as_str()));
        let mask = ProjectionMask::roots(self.metadata.parquet_schema(), roots.map(|(at, _)| at));
        let mut builder = ParquetRecordBatchReaderBuilder::new_with_metadata(access.clone(), self.metadata.clone())
            .with_projection(mask)
            .with_batch_size(batch);
        if let Some(rows) = rows {
            builder = builder.with_row_selection(rows);
        }
        builder.build().map_err(|error| access.blame(DatasetError::damaged(self.place.shown(), error)))
    }

    fn rows(&self) -> usize {
        self.runs.last().map_or(0, |(_, range)| range.end)
    }

    /// Streams the rows in `ranges`, which are in order.
    fn stream(self, ranges: Vec<Range<usize>>, split: Arc<str>, classes: Arc<ClassList>) -> Result<Records, DatasetError> {
        let wanted: Vec<&str> = std::iter::once(&self.image).chain(&self.label).map(String::as_str).collect();
        self.place.unchanged(&self.stamp)?;
        let selection = RowSelection::from_consecutive_ranges(ranges.iter().cloned(), self.rows());
        let access = self.place.access(IMAGES_AHEAD)?;
        let reader = self.read(&access, &wanted, BATCH, Some(selection))?;
        let mut rows = ranges.into_iter().flatten();
        let mut last = None;
        Ok(Records::new(reader.flat_map(move |batch| {
            let records = batch.map_err(|error| error.to_string()).and_then(|batch| {
                let rows: Vec<usize> = rows.by_ref().take(batch.num_rows()).collect();
                last = rows.last().copied().or(last);
                self.records(&batch, &rows, &split, &classes)
            });
            match records {
                Ok(records) => records.into_iter().map(Ok).collect::<Vec<_>>(),
                Err(error) => {
                    let after = last.map_or_else(|| "at its first rows".to_owned(), |row| format!("after row {row}"));
                    let damaged = DatasetError::damaged(self.place.shown(), format_args!("{after}: {error}"));
                    vec![Err(self.place.unchanged(&self.stamp).err().unwrap_or_else(|| access.blame(damaged)))]
                }
            }
        })))
    }

    fn records(&self, batch: &RecordBatch, rows: &[usize], split: &Arc<str>, classes: &ClassList) -> Result<Vec<Record>, String> {
        let column = |name: &str| batch.column_by_name(name).ok_or_else(|| format!("column {name} is missing"));
        let labels = self.label.as_deref().map(|name| column(name).and_then(Labels::of)).transpose()?;
        let images = Images::of(column(&self.image)?)?;
        let record = |(at, row): (usize, &usize)| Record {
            id: format!("{}#{row}", self.name),
            split: Arc::clone(split),
            label: labels.as_ref().and_then(|labels| classes.index(labels.get(at))),
            image: images.get(at, &self.place),
        };
        Ok(rows.iter().enumerate().map(record).collect())
    }
}

/// The image column of a batch.
struct Images {
    /// Validity of the struct itself: a null struct may have fields that are not null.
    nulls: Option<NullBuffer>,
    bytes: LargeBinaryArray,
    paths: Option<StringArray>,
}

impl Images {
    fn of(array: &ArrayRef) -> Result<Self, String> {
        let binary = |array: &ArrayRef| {
            let array = cast(array, &DataType::LargeBinary).map_err(|error| error.to_string())?;
            array.as_any().downcast_ref::<LargeBinaryArray>().cloned().ok_or_else(|| "the image column is not binary".to_owned())
        };
        match array.as_any().downcast_ref::<StructArray>() {
            None => Ok(Self { nulls: None, bytes: binary(array)?, paths: None }),
            Some(image) => {
                let bytes = image.column_by_name("bytes").ok_or("the image column has no field `bytes`")?;
                let paths = image.column_by_name("path").map(text).transpose()?;
                Ok(Self { nulls: image.nulls().cloned(), bytes: binary(bytes)?, paths })
            }
        }
    }

    /// An image without bytes may still be a file below the folder of the Parquet file, as Hugging Face has it.
    fn get(&self, at: usize, shard: &Place) -> Encoded {
        let null = || Encoded::Unusable("the row has no image (null)".to_owned());
        if self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(at)) {
            return null();
        }
        if self.bytes.is_valid(at) {
            return Encoded::Bytes(Bytes::copy_from_slice(self.bytes.value(at)));
        }
        match self.paths.as_ref().filter(|paths| paths.is_valid(at) && !paths.value(at).is_empty()) {
            Some(paths) => shard.below(paths.value(at)).map_or_else(Encoded::Unusable, Encoded::At),
            None => null(),
        }
    }
}

impl Source for Shards {
    fn records(&self, split: &Split) -> Records {
        let (name, classes) = (Arc::clone(&split.name), Arc::clone(&self.classes));
        let shards = self.shards.clone().into_iter();
        Records::chain(shards.filter_map(move |shard| {
            let ranges = shard.runs.iter().filter(|(split, _)| *split == name).map(|(_, range)| range.clone());
            let ranges: Vec<_> = ranges.collect();
            (!ranges.is_empty()).then(|| shard.stream(ranges, Arc::clone(&name), Arc::clone(&classes)))
        }))
    }

    fn images(&self, split: &Split, ids: &HashSet<String>) -> Result<HashMap<String, Bytes>, DatasetError> {
        let mut images = HashMap::with_capacity(ids.len());
        for shard in &self.shards {
            let row = |id: &String| id.strip_prefix(&shard.name)?.strip_prefix('#')?.parse::<usize>().ok();
            let mut rows: Vec<usize> = ids.iter().filter_map(row).filter(|row| *row < shard.rows()).collect();
            rows.sort_unstable();
            if rows.is_empty() {
                continue;
            }
            let ranges = rows.into_iter().map(|row| row..row + 1).collect();
            for record in shard.clone().stream(ranges, Arc::clone(&split.name), Arc::clone(&self.classes))? {
                let record = record?;
                if let Ok(bytes) = record.image.read()? {
                    images.insert(record.id, bytes);
                }
            }
        }
        Ok(images)
    }

    fn files(&self) -> Vec<Place> {
        self.shards.iter().map(|shard| shard.place.clone()).collect()
    }
}

#[cfg(test)]
mod tests;
