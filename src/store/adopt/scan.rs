//! Rows of Parquet files as an engine writes them: checked, one after the other.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use arrow::array::{Array as _, ArrayRef, AsArray as _, Float32Array, Int32Array, StringArray};
use arrow::buffer::NullBuffer;
use arrow::compute::{CastOptions, cast, cast_with_options};
use arrow::datatypes::{DataType, Float32Type, Int32Type};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::AdoptError;
use super::found::{Part, cut_off, texts};
use super::spill::{Content, Record};
use crate::store::exchange::{ERROR, KEY_COLUMN};
use crate::store::layout::{Dtype, Half, Layout};
use crate::store::{KeyParts, StoreError};

/// Labels from here on are ids or dates, not class indices.
const MOST_CLASSES: i32 = 100_000;

/// What classes the rows name, from all threads.
#[derive(Debug, Default)]
pub(super) struct Classes {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// By number.
    names: Vec<String>,
    numbers: HashMap<String, u32>,
    /// Labels and the number of the name that stands beside each.
    pairs: HashSet<(i32, Option<u32>)>,
}

impl Classes {
    fn number(&self, name: &str) -> Option<u32> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(number) = known.numbers.get(name) {
            return Some(*number);
        }
        let number = u32::try_from(known.names.len()).ok().filter(|number| i64::from(*number) < i64::from(MOST_CLASSES))?;
        known.names.push(name.to_owned());
        known.numbers.insert(name.to_owned(), number);
        Some(number)
    }

    fn beside(&self, pairs: &HashSet<(i32, Option<u32>)>) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).pairs.extend(pairs);
    }

    /// The class list, and the label of each name by its number. `given` is a list that the user names.
    ///
    /// # Errors
    /// When labels and names contradict each other or the list.
    pub(super) fn settle(self, given: Option<&[String]>) -> Result<(Vec<String>, Vec<i32>), AdoptError> {
        let Known { names, pairs, .. } = self.known.into_inner().unwrap_or_else(PoisonError::into_inner);
        let wrong = |text: String| Err(AdoptError::Classes(text));
        let mut of_label: BTreeMap<i32, &str> = BTreeMap::new();
        for (label, number) in &pairs {
            let Some(name) = number.and_then(|number| names.get(number as usize)) else {
                of_label.entry(*label).or_default();
                continue;
            };
            let known = of_label.entry(*label).or_insert(name);
            if known.is_empty() {
                *known = name;
            } else if known != name {
                return wrong(format!("label {label} is class {known:?} in one row and {name:?} in another; mend the source"));
            }
        }
        let list: Vec<String> = match given {
            Some(given) => given.to_vec(),
            None if of_label.is_empty() => {
                let mut sorted = names.clone();
                sorted.sort();
                sorted
            }
            None => {
                let last = of_label.last_key_value().map_or(0, |(label, _)| *label);
                let name = |label: i32| of_label.get(&label).filter(|name| !name.is_empty()).map(|name| (*name).to_owned());
                (0..=last).map(|label| name(label).unwrap_or_else(|| label.to_string())).collect()
            }
        };
        let places: HashMap<&str, i32> = list.iter().map(String::as_str).zip(0..).collect();
        if places.len() != list.len() {
            return wrong("the class list names one class twice".into());
        }
        for (label, name) in &of_label {
            match usize::try_from(*label).ok().and_then(|label| list.get(label)) {
                None => {
                    return wrong(format!(
                        "label {label} is none of the {} classes of the list; --classes FILE names them",
                        list.len()
                    ));
                }
                Some(listed) if !name.is_empty() && listed != name => {
                    return wrong(format!("label {label} is class {name:?} in the rows and {listed:?} in the list of --classes"));
                }
                Some(_) => {}
            }
        }
        let label = |name: &String| {
            places.get(name.as_str()).copied().ok_or_else(|| {
                AdoptError::Classes(format!(
                    "class {name:?} of the rows is not in the class list; --classes FILE names all of them"
                ))
            })
        };
        let labels = names.iter().map(label).collect::<Result<_, _>>()?;
        Ok((list, labels))
    }
}

/// Reads the rows of files of one key.
pub(super) struct Scanner<'a> {
    pub(super) layout: Layout,
    pub(super) key: &'a str,
    pub(super) classes: &'a Classes,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(parts: &KeyParts, dimension: usize, key: &'a str, classes: &'a Classes) -> Self {
        Self { layout: Layout::new(parts, dimension), key, classes }
    }

    /// Gives each row of a file to `take`.
    ///
    /// # Errors
    /// When the file is cut off or has other columns, or a row cannot be taken; or the error of `take`.
    pub(super) fn read(&self, part: &Part, take: &mut dyn FnMut(Record) -> Result<(), AdoptError>) -> Result<(), AdoptError> {
        const VALUES: usize = 4 << 20;
        let path = part.path.as_path();
        let file = File::open(path).map_err(StoreError::io(path))?;
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| cut_off(path, error))?;
        let mut names: Vec<&str> = vec!["id", "split", "label", "class", "content_hash", "width", "height", ERROR, KEY_COLUMN];
        names.extend(self.layout.columns.iter().map(String::as_str));
        let schema = builder.parquet_schema();
        let roots = schema.root_schema().get_fields().iter().enumerate();
        let roots: Vec<usize> = roots.filter(|(_, field)| names.contains(&field.name())).map(|(at, _)| at).collect();
        let mask = ProjectionMask::roots(schema, roots);
        let rows = (VALUES / self.layout.values().max(1)).clamp(16, 1024);
        let reader = builder.with_projection(mask).with_batch_size(rows).build().map_err(|error| cut_off(path, error))?;
        let (mut row, mut numbers, mut pairs) = (0, HashMap::new(), HashSet::new());
        for batch in reader {
            let batch = batch.map_err(|error| cut_off(path, error))?;
            let columns = Columns::of(path, &batch, &self.layout)?;
            for at in 0..batch.num_rows() {
                let record = self.record(&columns, at, part, &mut numbers).map_err(|reason| {
                    let id = columns.ids.is_valid(at).then(|| columns.ids.value(at).to_owned());
                    AdoptError::Row { path: path.to_owned(), row: row + at, id, reason }
                })?;
                if let Some(label) = record.label {
                    pairs.insert((label, record.class));
                }
                take(record)?;
            }
            row += batch.num_rows();
        }
        self.classes.beside(&pairs);
        if row == part.rows { Ok(()) } else { Err(cut_off(path, format!("{row} rows, {} in its footer", part.rows))) }
    }

    fn record(&self, columns: &Columns, at: usize, part: &Part, numbers: &mut HashMap<String, u32>) -> Result<Record, String> {
        let text = |column: &Option<StringArray>| {
            column.as_ref().filter(|column| column.is_valid(at)).map(|column| column.value(at).to_owned())
        };
        if let Some(keys) = &columns.keys
            && (keys.is_null(at) || keys.value(at) != self.key)
        {
            let found = if keys.is_null(at) { "none" } else { keys.value(at) };
            return Err(format!("its key is {found}, that of other rows {}; adopt rows of one key at a time", self.key));
        }
        let error = text(&columns.errors);
        let id = columns.ids.is_valid(at).then(|| columns.ids.value(at).to_owned());
        let id = match (id, &error) {
            (Some(id), _) => id,
            (None, Some(_)) => String::new(),
            (None, None) => return Err("no id (null); give each image an id of its own".to_owned()),
        };
        let split = text(&columns.splits).or_else(|| part.split.clone()).unwrap_or_else(|| "train".to_owned());
        if split.contains('\0') || id.contains('\0') {
            return Err("a zero byte in its id or split".to_owned());
        }
        let label = columns.labels.as_ref().filter(|labels| labels.is_valid(at)).map(|labels| labels.value(at));
        let label = label.filter(|label| *label != -1);
        if let Some(label) = label.filter(|label| !(0..MOST_CLASSES).contains(label)) {
            return Err(format!("label {label} is no class index; classes are counted from 0"));
        }
        let class = match text(&columns.class_names) {
            None => None,
            Some(name) => Some(match numbers.get(&name) {
                Some(number) => *number,
                None => {
                    let number =
                        self.classes.number(&name).ok_or("more than 100,000 class names; is `class` the right column?")?;
                    numbers.insert(name, number);
                    number
                }
            }),
        };
        let hash = columns.hashes.is_valid(at).then(|| blake3::Hash::from_hex(columns.hashes.value(at)));
        let hash = hash.transpose().map_err(|error| format!("its content_hash is no BLAKE3 ({error})"))?;
        let (mut width, mut height) = (0, 0);
        let content = match error {
            Some(error) => Content::Error(error),
            None => {
                if hash.is_none() {
                    return Err("no content_hash (null), and no error either; carry on all columns of tlpipe embed".to_owned());
                }
                (width, height) = (columns.widths.value(at), columns.heights.value(at));
                Content::Embedding(self.embedding(columns, at)?)
            }
        };
        Ok(Record { split, id, label, class, width, height, hash: hash.map(|hash| *hash.as_bytes()), content })
    }

    /// The values of all views of a row.
    fn embedding(&self, columns: &Columns, at: usize) -> Result<Vec<f32>, String> {
        let mut all = Vec::with_capacity(self.layout.values());
        for (name, lists) in self.layout.columns.iter().zip(&columns.embeddings) {
            let values = lists.row(at).ok_or_else(|| format!("no `{name}` (null), and no error either; the row is not whole"))?;
            let dimension = self.layout.dimension;
            if values.len() != dimension {
                return Err(format!("{} values in `{name}`, and features of this key have {dimension}", values.len()));
            }
            if !values.iter().all(|value| value.is_finite()) {
                return Err(format!("`{name}` holds a null, NaN or an infinite value"));
            }
            let is_half = |value: &f32| Half::from_f32(*value).to_f32() == *value;
            if self.layout.dtype == Dtype::Float16 && !values.iter().all(is_half) {
                return Err(format!("the key says float16, and `{name}` holds values that are none"));
            }
            all.extend_from_slice(values);
        }
        Ok(all)
    }
}

/// The columns of a batch.
struct Columns {
    ids: StringArray,
    splits: Option<StringArray>,
    labels: Option<Int32Array>,
    class_names: Option<StringArray>,
    hashes: StringArray,
    widths: Int32Array,
    heights: Int32Array,
    errors: Option<StringArray>,
    keys: Option<StringArray>,
    /// Of each view.
    embeddings: Vec<Lists>,
}

impl Columns {
    fn of(path: &Path, batch: &RecordBatch, layout: &Layout) -> Result<Self, AdoptError> {
        let missing = |name: &str| {
            let reason = format!("no column `{name}`; carry on all columns of tlpipe embed");
            AdoptError::file(path, reason)
        };
        let needed = |name: &str| texts(path, batch, name)?.ok_or_else(|| missing(name));
        let integers = |name: &str| -> Result<Option<Int32Array>, AdoptError> {
            let Some(column) = batch.column_by_name(name) else { return Ok(None) };
            let strict = CastOptions { safe: false, ..CastOptions::default() };
            let is_integer = column.data_type().is_integer() || *column.data_type() == DataType::Null;
            let cast = if is_integer { cast_with_options(column, &DataType::Int32, &strict).ok() } else { None };
            let reason = || AdoptError::file(path, format!("column `{name}` is {}, not int32", column.data_type()));
            Ok(Some(cast.ok_or_else(reason)?.as_primitive::<Int32Type>().clone()))
        };
        let embedding = |name: &String| {
            let column = batch.column_by_name(name).ok_or_else(|| missing(name))?;
            Lists::of(column, layout.dtype).map_err(|reason| AdoptError::file(path, format!("column `{name}` {reason}")))
        };
        Ok(Self {
            ids: needed("id")?,
            splits: texts(path, batch, "split")?,
            labels: integers("label")?,
            class_names: texts(path, batch, "class")?,
            hashes: needed("content_hash")?,
            widths: integers("width")?.ok_or_else(|| missing("width"))?,
            heights: integers("height")?.ok_or_else(|| missing("height"))?,
            errors: texts(path, batch, ERROR)?,
            keys: texts(path, batch, KEY_COLUMN)?,
            embeddings: layout.columns.iter().map(embedding).collect::<Result<_, _>>()?,
        })
    }
}

/// A column of lists of numbers; a null within a list is NaN.
struct Lists {
    nulls: Option<NullBuffer>,
    places: Places,
    values: Float32Array,
}

/// Where the values of a row stand.
enum Places {
    Fixed(usize),
    /// One more than there are rows.
    Offsets(Vec<usize>),
}

impl Lists {
    fn of(column: &ArrayRef, dtype: Dtype) -> Result<Self, String> {
        let place = |offset: i64| usize::try_from(offset).unwrap_or_default();
        let (places, values) = match column.data_type() {
            DataType::FixedSizeList(_, width) => {
                let list = column.as_fixed_size_list();
                (Places::Fixed(usize::try_from(*width).unwrap_or_default()), list.values())
            }
            DataType::List(_) => {
                let list = column.as_list::<i32>();
                (Places::Offsets(list.offsets().iter().map(|offset| place((*offset).into())).collect()), list.values())
            }
            DataType::LargeList(_) => {
                let list = column.as_list::<i64>();
                (Places::Offsets(list.offsets().iter().map(|offset| place(*offset)).collect()), list.values())
            }
            other => return Err(format!("is {other}, not lists of float32")),
        };
        match (values.data_type(), dtype) {
            (DataType::Float32, _) | (DataType::Float16, Dtype::Float16) => {}
            (other, _) => return Err(format!("is of {other}, and the key says {}", dtype.name())),
        }
        let values = cast(values, &DataType::Float32).map_err(|error| error.to_string())?;
        let values = values.as_primitive::<Float32Type>();
        let values = match values.null_count() {
            0 => values.clone(),
            _ => values.iter().map(|value| value.unwrap_or(f32::NAN)).collect::<Vec<_>>().into(),
        };
        Ok(Self { nulls: column.nulls().cloned(), places, values })
    }

    fn row(&self, at: usize) -> Option<&[f32]> {
        if self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(at)) {
            return None;
        }
        let (start, end) = match &self.places {
            Places::Fixed(width) => (at * width, (at + 1) * width),
            Places::Offsets(offsets) => (*offsets.get(at)?, *offsets.get(at + 1)?),
        };
        self.values.values().get(start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(pairs: &[(i32, Option<&str>)], names: &[&str], given: Option<&[&str]>) -> Result<(Vec<String>, Vec<i32>), String> {
        let classes = Classes::default();
        let number = |name: &&str| classes.number(name).unwrap();
        names.iter().for_each(|name| {
            number(name);
        });
        classes.beside(&pairs.iter().map(|(label, name)| (*label, name.as_ref().map(number))).collect());
        let given: Option<Vec<String>> = given.map(|given| given.iter().map(|name| (*name).to_owned()).collect());
        classes.settle(given.as_deref()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_class_list_is_what_labels_and_names_say_together() {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(settled(&[], &[], None).unwrap(), (list(&[]), vec![]));
        assert_eq!(settled(&[], &["dog", "cat"], None).unwrap(), (list(&["cat", "dog"]), vec![1, 0]));
        assert_eq!(settled(&[(2, None), (0, None)], &[], None).unwrap().0, list(&["0", "1", "2"]));
        let pairs = [(2, Some("cat")), (2, None), (0, None)];
        assert_eq!(settled(&pairs, &[], None).unwrap(), (list(&["0", "1", "cat"]), vec![2]));
        assert_eq!(settled(&pairs, &[], Some(&["a", "b", "cat"])).unwrap().0, list(&["a", "b", "cat"]));
        for (pairs, names, given, needle) in [
            (&[(1, Some("cat")), (1, Some("dog"))][..], &[][..], None, "label 1 is class"),
            (&[(3, None)], &[], Some(&["a"][..]), "label 3 is none of the 1 classes"),
            (&[(0, Some("cat"))], &[], Some(&["dog"]), "\"cat\" in the rows and \"dog\""),
            (&[], &["cat"], Some(&["dog"]), "not in the class list"),
            (&[], &[], Some(&["dog", "dog"]), "twice"),
        ] {
            let said = settled(pairs, names, given).unwrap_err();
            assert!(said.contains(needle), "{needle}: {said}");
        }
    }
}
