//! What an engine left in a folder: its files, their key, whether it was through.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use arrow::array::{Array as _, AsArray as _, StringArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use walkdir::WalkDir;

use super::AdoptError;
use crate::store::StoreError;
use crate::store::exchange::{KEY, KEY_COLUMN, PROTO, PROTO_VERSION, PROVENANCE, PROVENANCE_COLUMN, Provenance};

/// What Spark leaves when a job is through.
pub(super) const SUCCESS: &str = "_SUCCESS";
/// Where Spark keeps what is not finished.
const TEMPORARY: &str = "_temporary";
/// What Spark notes in each file.
const SPARK: &str = "org.apache.spark.version";

/// A file of rows.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) path: PathBuf,
    /// As its footer says.
    pub(super) rows: usize,
    /// That of its folder, as in `split=test`, where the rows name none.
    pub(super) split: Option<String>,
}

/// The files of a folder that is to be adopted.
#[derive(Clone, Debug)]
pub struct Found {
    pub(super) dir: PathBuf,
    pub(super) parts: Vec<Part>,
    /// The engine says that it was through.
    pub(super) is_through: bool,
    key: String,
    provenance: Option<Provenance>,
}

impl Found {
    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The key that all files agree in.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// How the features were made, where the rows say.
    pub fn provenance(&self) -> Option<&Provenance> {
        self.provenance.as_ref()
    }
}

/// What a file says of its rows.
struct Said {
    key: String,
    provenance: Option<Provenance>,
}

/// Looks at the files of a folder, at their ends and their first rows.
///
/// # Errors
/// When there are none, one is cut off, they disagree in their key, or the job that wrote them is not through.
pub fn look(dir: &Path) -> Result<Found, AdoptError> {
    let mut parts = Vec::new();
    let mut is_spark = false;
    let mut first: Option<(PathBuf, Said)> = None;
    for path in files(dir)? {
        let file = File::open(&path).map_err(StoreError::io(&path))?;
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| cut_off(&path, error))?;
        let metadata = builder.metadata().file_metadata();
        let pairs = metadata.key_value_metadata().into_iter().flatten();
        let pairs: HashMap<&str, &str> = pairs.filter_map(|pair| Some((pair.key.as_str(), pair.value.as_deref()?))).collect();
        is_spark |= pairs.contains_key(SPARK);
        if let Some(version) = pairs.get(PROTO).filter(|version| **version != PROTO_VERSION) {
            let reason =
                format!("its {PROTO} is {version}, this tlpipe knows {PROTO_VERSION}; adopt it with the tlpipe that made it");
            return Err(AdoptError::file(&path, reason));
        }
        let rows = usize::try_from(metadata.num_rows()).unwrap_or_default();
        let of_folder = path.strip_prefix(dir).ok().and_then(split_of_folder);
        let said = match pairs.get(KEY) {
            Some(key) => Some(Said { key: (*key).to_owned(), provenance: parsed(&path, pairs.get(PROVENANCE).copied())? }),
            None if rows > 0 => Some(of_columns(&path, builder)?),
            // An empty task leaves a file without rows; it says nothing.
            None => None,
        };
        parts.push(Part { path: path.clone(), rows, split: of_folder });
        match (&mut first, said) {
            (None, said) => first = said.map(|said| (path, said)),
            (Some((other, before)), Some(said)) if before.key != said.key => {
                let both = before.provenance.as_ref().zip(said.provenance.as_ref());
                let differences = both.into_iter().flat_map(|(one, other)| one.key_parts.unlike(&other.key_parts));
                let differences = differences.map(|(name, one, other)| format!("{name}: {one} and {other}")).collect();
                return Err(AdoptError::Keys { first: other.clone(), second: path, differences });
            }
            (Some((_, before)), Some(said)) => before.provenance = before.provenance.take().or(said.provenance),
            (Some(_), None) => {}
        }
    }
    let unfinished = |reason| Err(AdoptError::Unfinished { dir: dir.to_owned(), reason });
    let is_through = dir.join(SUCCESS).is_file();
    if dir.join(TEMPORARY).exists() {
        return unfinished("a folder _temporary is here: a job is writing, or died");
    }
    let Some((path, said)) = first else { return Err(AdoptError::Nothing(dir.to_owned())) };
    if is_spark && !is_through {
        return unfinished("Spark's _SUCCESS is missing");
    }
    if let Some(provenance) = said.provenance.as_ref().filter(|provenance| provenance.key_parts.key() != said.key) {
        let reason = format!("its key is {}, and its provenance makes {}", said.key, provenance.key_parts.key());
        return Err(AdoptError::file(&path, format!("{reason}; carry {PROVENANCE} on as tlpipe embed gave it")));
    }
    Ok(Found { dir: dir.to_owned(), parts, is_through, key: said.key, provenance: said.provenance })
}

/// The Parquet files of a folder and those below it, by name; hidden ones and those that an engine puts aside are not.
fn files(dir: &Path) -> Result<Vec<PathBuf>, AdoptError> {
    if !dir.is_dir() {
        return Err(AdoptError::file(dir, "no such folder; name the folder that the engine wrote to"));
    }
    let taken = |name: &std::ffi::OsStr| !name.to_string_lossy().starts_with(['_', '.']);
    let mut files = Vec::new();
    for entry in WalkDir::new(dir).into_iter().filter_entry(|entry| entry.depth() == 0 || taken(entry.file_name())) {
        let entry = entry.map_err(|error| StoreError::io(dir)(error.into()))?;
        if entry.file_type().is_file() && entry.path().extension().is_some_and(|extension| extension == "parquet") {
            files.push(entry.into_path());
        }
    }
    files.sort();
    Ok(files)
}

pub(super) fn cut_off(path: &Path, error: impl std::fmt::Display) -> AdoptError {
    AdoptError::file(path, format!("it is cut off or no Parquet ({error}); remove it and have the engine write its rows again"))
}

/// `split=test/part-0.parquet` -> `test`.
fn split_of_folder(relative: &Path) -> Option<String> {
    let folders = relative.parent()?.components().rev();
    let mut named = folders.filter_map(|folder| folder.as_os_str().to_str()?.strip_prefix("split=").map(str::to_owned));
    named.next()
}

fn parsed(path: &Path, text: Option<&str>) -> Result<Option<Provenance>, AdoptError> {
    let parsed = text.map(serde_json::from_str).transpose();
    parsed.map_err(|error| AdoptError::file(path, format!("its {PROVENANCE} cannot be read ({error}); it is of another tlpipe")))
}

/// What the columns say that stand in for metadata: by the first rows that say something.
fn of_columns(path: &Path, builder: ParquetRecordBatchReaderBuilder<File>) -> Result<Said, AdoptError> {
    let columns = [KEY_COLUMN, PROVENANCE_COLUMN];
    let schema = builder.parquet_schema();
    let wanted = schema.root_schema().get_fields().iter().filter(|field| columns.contains(&field.name())).count();
    let mask = ProjectionMask::columns(schema, columns);
    let reader = builder.with_projection(mask).build().map_err(|error| cut_off(path, error))?;
    let mut found: [Option<String>; 2] = [None, None];
    for batch in reader {
        let batch = batch.map_err(|error| cut_off(path, error))?;
        for (found, name) in found.iter_mut().zip(columns) {
            if found.is_none() {
                let column = texts(path, &batch, name)?;
                *found = column.and_then(|column| column.iter().flatten().next().map(str::to_owned));
            }
        }
        if found.iter().flatten().count() == wanted {
            break;
        }
    }
    let [key, provenance] = found;
    let key = key.ok_or_else(|| {
        let reason = format!(
            "no key: neither {KEY} in the file's metadata nor a column {KEY_COLUMN}; carry on the one that tlpipe embed gives in the schema of \
             its answer"
        );
        AdoptError::file(path, reason)
    })?;
    Ok(Said { key, provenance: parsed(path, provenance.as_deref())? })
}

/// A text column; none where there is none.
pub(super) fn texts(path: &Path, batch: &RecordBatch, name: &str) -> Result<Option<StringArray>, AdoptError> {
    let Some(column) = batch.column_by_name(name) else { return Ok(None) };
    let is_text = matches!(column.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null)
        || matches!(column.data_type(), DataType::Dictionary(_, value) if **value == DataType::Utf8);
    if !is_text {
        return Err(AdoptError::file(path, format!("column `{name}` is {}, not text", column.data_type())));
    }
    let text = cast(column, &DataType::Utf8).map_err(|error| AdoptError::file(path, error))?;
    debug_assert_eq!(text.len(), batch.num_rows());
    Ok(Some(text.as_string().clone()))
}
