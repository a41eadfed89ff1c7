//! A table of image paths, CSV or Parquet, with a column of labels and perhaps one of splits.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use ::parquet::arrow::ProjectionMask;
use ::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use arrow::array::Array;

use super::columns::{Columns, Labels, PATH_NAMES, is_text, text};
use super::files::{SourceFile, slashed};
use super::label::Label;
use super::listing::{self, Entry, Value};
use super::place::Place;
use super::split::{self, TRAIN};
use super::{DatasetError, Opened, SourceOptions, some_of};

/// Rows that are looked at to tell a wrong folder from a missing file.
const PROBE: usize = 50;

/// The file is a table by its name.
pub(super) fn is_csv(file: &SourceFile) -> bool {
    matches!(file.extension().as_str(), "csv" | "tsv")
}

/// One row, as the file has it.
struct Row {
    path: String,
    label: Option<Value>,
    split: Option<String>,
}

/// The rows of one table.
struct Table {
    rows: Vec<Row>,
    /// Columns, where none of them is a label column.
    unlabelled: Option<Vec<String>>,
}

/// Opens tables; relative paths are relative to the folder of their table.
///
/// # Errors
/// When a table is damaged, has no column of paths, or none of its images exists.
pub(super) fn open(origin: &Path, tables: &[SourceFile], options: &SourceOptions) -> Result<Opened, DatasetError> {
    let (mut entries, mut notes) = (Vec::new(), Vec::new());
    for file in tables {
        let path = file.place.local("a table of image paths")?;
        let table = if is_csv(file) { read_csv(path, options)? } else { read_parquet(path, options)? };
        if let Some(columns) = table.unlabelled {
            let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
            notes.push(format!(
                "{}: no label column among {}; choose one with --label-column",
                slashed(&file.relative),
                columns.join(", ")
            ));
        }
        let by_path = split::of_path(&file.relative).unwrap_or_else(|| TRAIN.to_owned());
        let folder = path.parent().unwrap_or(Path::new(""));
        let below = file.relative.parent().unwrap_or(Path::new(""));
        for (row, at) in table.rows.into_iter().zip(0..) {
            let (id, path) = if row.path.is_empty() {
                (format!("{}#{at}", slashed(&file.relative)), None)
            } else if Path::new(&row.path).is_absolute() {
                (row.path.clone(), Some(PathBuf::from(&row.path)))
            } else {
                (slashed(&below.join(&row.path)), Some(folder.join(&row.path)))
            };
            let split = row.split.map_or_else(|| by_path.clone(), |value| split::of_value(&value));
            entries.push(Entry { id, place: path.map(Place::File), split, label: row.label, row: at });
        }
    }
    if entries.is_empty() {
        let names: Vec<String> = tables.iter().map(|file| file.place.shown().display().to_string()).collect();
        let found = format!("{} without rows", some_of("table", &names.iter().map(String::as_str).collect::<Vec<_>>()));
        return Err(DatasetError::NoImages { path: origin.to_owned(), found });
    }
    let mut probed = entries.iter().take(PROBE).filter_map(|entry| Some(entry.place.as_ref()?.shown())).peekable();
    if let Some(first) = probed.peek().cloned()
        && !probed.any(|path| path.exists())
    {
        let reason = format!(
            "none of the first images exists (looked for {}); relative paths are relative to the table's folder: move the table, or correct its paths, or choose their column with --image-column",
            first.display()
        );
        return Err(DatasetError::Unsupported { path: tables[0].place.shown(), reason });
    }
    let mut opened = listing::open("table", origin, tables.iter().map(|file| file.place.clone()).collect(), entries)?;
    opened.warnings.splice(0..0, notes);
    Ok(opened)
}

fn read_csv(path: &Path, options: &SourceOptions) -> Result<Table, DatasetError> {
    let content = fs::read(path).map_err(DatasetError::io(path))?;
    // Excel begins a UTF-8 file with a byte order mark, and separates by semicolons in half of Europe.
    let content = content.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&content);
    let header = content.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let count = |separator: u8| header.iter().filter(|&&byte| byte == separator).count();
    let separator = *[b',', b';', b'\t'].iter().rev().max_by_key(|separator| count(**separator)).unwrap_or(&b',');
    let damaged = |error: csv::Error| unreadable(path, &error);
    let mut reader = csv::ReaderBuilder::new().delimiter(separator).trim(csv::Trim::All).from_reader(content);
    let header: Vec<String> = reader.headers().map_err(damaged)?.iter().map(str::to_owned).collect();
    let columns = Columns { path, found: header.iter().map(|name| (name.clone(), String::new())).collect() };
    let usual = header.iter().any(|name| PATH_NAMES.iter().any(|usual| name.eq_ignore_ascii_case(usual)));
    // One of several columns without a usual name may be anything.
    let candidates = if usual || header.len() == 1 || options.image_column.is_some() { header.as_slice() } else { &[] };
    let image = usual_path(&columns, candidates, options)?;
    let label = columns.label(options.label_column.as_deref(), None)?;
    let split = columns.split(options.split_column.as_deref())?;
    let place = |name: &Option<String>| name.as_ref().and_then(|name| header.iter().position(|column| column == name));
    let (image, label_at, split) = (place(&Some(image)), place(&label), place(&split));

    let mut rows = Vec::new();
    for record in reader.into_records() {
        let record = record.map_err(damaged)?;
        let field = |at: Option<usize>| at.and_then(|at| record.get(at)).filter(|field| !field.is_empty()).map(str::to_owned);
        rows.push(Row { path: field(image).unwrap_or_default(), label: field(label_at).map(Value::Name), split: field(split) });
    }
    integers(&mut rows);
    Ok(Table { rows, unlabelled: label.is_none().then_some(header) })
}

/// What is wrong with a CSV file, by its line.
fn unreadable(path: &Path, error: &csv::Error) -> DatasetError {
    let line = error.position().map_or(0, csv::Position::line);
    let reason = match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!(
                "number of fields in line {line}: {len}, in the header: {expected_len}; correct the line (a separator within a field needs quotes)"
            )
        }
        csv::ErrorKind::Utf8 { .. } => format!("line {line} is not UTF-8; save the table as UTF-8"),
        _ => return DatasetError::damaged(path, error),
    };
    DatasetError::Unsupported { path: path.to_owned(), reason }
}

/// A CSV has no types: labels are class indices if all of them are small whole numbers written plainly.
fn integers(rows: &mut [Row]) {
    let index = |row: &Row| match &row.label {
        Some(Value::Name(text)) => {
            text.parse::<i64>().ok().filter(|index| (-1..100_000).contains(index) && index.to_string() == *text).map(Some)
        }
        _ => Some(None),
    };
    if let Some(indices) = rows.iter().map(index).collect::<Option<Vec<_>>>() {
        for (row, index) in rows.iter_mut().zip(indices) {
            row.label = index.map(Value::Index);
        }
    }
}

/// The column of paths: candidates without a usual name are not guessed at unless there is only one column.
fn usual_path(columns: &Columns<'_>, candidates: &[String], options: &SourceOptions) -> Result<String, DatasetError> {
    columns.image(options.image_column.as_deref(), candidates, PATH_NAMES, "image paths or image bytes")
}

fn read_parquet(path: &Path, options: &SourceOptions) -> Result<Table, DatasetError> {
    let file = File::open(path).map_err(DatasetError::io(path))?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| DatasetError::damaged(path, error))?;
    let schema = builder.schema();
    let columns = Columns::of_schema(path, schema);
    let fields = schema.fields().iter().filter(|field| is_text(field.data_type()));
    let candidates: Vec<String> = fields.map(|field| field.name().clone()).collect();
    let image = match &options.image_column {
        None if !candidates.iter().any(|name| PATH_NAMES.iter().any(|usual| name.eq_ignore_ascii_case(usual))) => {
            // A text column of another name may be anything.
            columns.image(None, &[], PATH_NAMES, "image paths or image bytes")?
        }
        _ => usual_path(&columns, &candidates, options)?,
    };
    let label = columns.label(options.label_column.as_deref(), None)?;
    let split = columns.split(options.split_column.as_deref())?;
    let names: Vec<String> = columns.found.iter().map(|(name, _)| name.clone()).collect();
    let wanted = |name: &String| *name == image || Some(name) == label.as_ref() || Some(name) == split.as_ref();
    let roots = names.iter().enumerate().filter(|(_, name)| wanted(name)).map(|(at, _)| at);
    let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
    let reader = builder.with_projection(mask).build().map_err(|error| DatasetError::damaged(path, error))?;

    let mut rows = Vec::new();
    for batch in reader {
        let batch = batch.map_err(|error| DatasetError::damaged(path, error))?;
        let column = |name: &str| batch.column_by_name(name);
        let strings = |name: &str| column(name).map(text).transpose().map_err(|error| DatasetError::damaged(path, error));
        let (paths, splits) = (strings(&image)?, split.as_deref().map(strings).transpose()?.flatten());
        let labels = label.as_deref().and_then(column).map(Labels::of).transpose();
        let labels = labels.map_err(|reason| DatasetError::LabelColumn { path: path.to_owned(), reason })?;
        for at in 0..batch.num_rows() {
            let value = |array: &Option<arrow::array::StringArray>| {
                array.as_ref().filter(|array| array.is_valid(at)).map(|array| array.value(at).trim().to_owned())
            };
            let label = match labels.as_ref().map_or(Label::None, |labels| labels.get(at)) {
                Label::None => None,
                Label::Index(index) => Some(Value::Index(index)),
                Label::Name(name) => Some(Value::Name(name.to_owned())),
            };
            rows.push(Row {
                path: value(&paths).unwrap_or_default(),
                label,
                split: value(&splits).filter(|split| !split.is_empty()),
            });
        }
    }
    Ok(Table { rows, unlabelled: label.is_none().then_some(names) })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int32Array, StringArray};

    use super::super::fixture::{labelled, open, parquet, records, refused, splits, tree, write};
    use super::super::{Dataset, SourceOptions};

    fn with_table(images: &[&str], name: &str, table: &str) -> tempfile::TempDir {
        let folder = tree(images);
        write(&folder.path().join(name), table.as_bytes());
        folder
    }

    #[test]
    fn a_csv_of_paths_labels_and_splits() {
        let table = "id,file_name,label,Split\n1,img/a.jpg,dog,train\n2,\"img/b, c.jpg\",cat,valid\n3,img/d.jpg,,test\n4,./img/gone.jpg,dog,train\n";
        let folder = with_table(&["img/a.jpg", "img/b, c.jpg", "img/d.jpg"], "labels.csv", table);
        let dataset = open(folder.path().join("labels.csv")).unwrap();
        assert_eq!((dataset.name(), dataset.classes()), ("table", &["cat".to_owned(), "dog".to_owned()][..]));
        assert_eq!(splits(&dataset), [("train", 2), ("validation", 1), ("test", 1)]);
        assert_eq!(labelled(&dataset, "validation"), [("img/b, c.jpg".to_owned(), Some(0))]);
        assert_eq!(labelled(&dataset, "test"), [("img/d.jpg".to_owned(), None)]);
        let train = records(&dataset, "train");
        assert_eq!(train[0].image.read().unwrap().unwrap(), "img/a.jpg", "paths are relative to the table's folder");
        assert_eq!(train[1].id, "img/gone.jpg");
        assert!(train[1].image.read().unwrap().unwrap_err().contains("No such file"), "one missing file is one unusable image");
    }

    #[test]
    fn excel_writes_marks_and_semicolons() {
        let folder = with_table(&["a.jpg", "b.jpg"], "t.csv", "\u{feff}Path;Class\r\na.jpg;0\r\nb.jpg;2\r\n");
        let dataset = open(folder.path().join("t.csv")).unwrap();
        assert_eq!(labelled(&dataset, "train"), [("a.jpg".to_owned(), Some(0)), ("b.jpg".to_owned(), Some(2))]);
        assert_eq!(dataset.classes(), ["0", "1", "2"]);
        let folder = with_table(&["a.jpg"], "t.tsv", "image\tlabel\na.jpg\t007\n");
        assert_eq!(open(folder.path().join("t.tsv")).unwrap().classes(), ["007"], "a code is no index");
    }

    #[test]
    fn tables_name_splits_and_a_folder_of_images_may_hold_its_table() {
        let folder = with_table(&["a.jpg", "b.jpg"], "train.csv", "path,label\na.jpg,x\n");
        write(&folder.path().join("test.csv"), b"path,label\nb.jpg,x\n");
        let dataset = open(folder.path()).unwrap();
        assert_eq!((dataset.name(), splits(&dataset)), ("table", vec![("train", 1), ("test", 1)]));
    }

    #[test]
    fn a_parquet_table() {
        let folder = tree(&["a.jpg", "b.jpg"]);
        let paths: arrow::array::ArrayRef = Arc::new(StringArray::from(vec![Some("a.jpg"), Some("b.jpg"), None]));
        let labels = Arc::new(Int32Array::from(vec![Some(1), Some(0), None]));
        parquet(&folder.path().join("t.parquet"), vec![("path", paths.clone()), ("label", labels.clone())], None);
        let dataset = open(folder.path().join("t.parquet")).unwrap();
        let expected = [("a.jpg", Some(1)), ("b.jpg", Some(0)), ("t.parquet#2", None)];
        assert_eq!(labelled(&dataset, "train"), expected.map(|(id, label)| (id.to_owned(), label)));
        assert!(records(&dataset, "train")[2].image.read().unwrap().unwrap_err().contains("names no file"));

        parquet(&folder.path().join("t.parquet"), vec![("where", paths), ("label", labels)], None);
        let text = refused(folder.path().join("t.parquet"));
        assert!(text.contains("where (text)") && text.contains("--image-column"), "{text}");
        let options = SourceOptions { image_column: Some("where".to_owned()), ..SourceOptions::default() };
        assert!(Dataset::open(&[folder.path().join("t.parquet")], &options).is_ok());
    }

    #[test]
    fn duplicate_ids_in_a_split_are_refused() {
        let folder = with_table(&["a.jpg", "b.jpg"], "t.csv", "path,label,split\na.jpg,x,train\nb.jpg,x,train\na.jpg,y,train\n");
        let text = refused(folder.path().join("t.csv"));
        assert!(text.contains("\"a.jpg\" is in split \"train\" twice"), "{text}");
        let folder = with_table(&["a.jpg"], "t.csv", "path,label,split\na.jpg,x,train\na.jpg,x,test\n");
        assert_eq!(
            splits(&open(folder.path().join("t.csv")).unwrap()).len(),
            2,
            "the same id in two splits is the audit's to judge"
        );
    }

    #[test]
    fn wrong_tables_say_what_to_do() {
        let of = |table: &str| {
            let folder = with_table(&["a.jpg"], "t.csv", table);
            refused(folder.path().join("t.csv"))
        };
        let text = of("id,kind\n1,x\n");
        assert!(text.contains("columns found: id, kind") && text.contains("--image-column"), "{text}");
        let text = of("path,label\nelsewhere/a.jpg,x\n");
        assert!(text.contains("elsewhere/a.jpg") && text.contains("relative to the table's folder"), "{text}");
        assert!(of("path,label\n").contains("without rows"));
        assert!(of("").contains("--image-column"));
        let text = of("path,label\na.jpg,x\na.jpg\n");
        assert!(text.contains("t.csv") && text.contains("fields in line 3: 1, in the header: 2"), "{text}");
    }

    #[test]
    fn a_table_without_labels_is_said() {
        let folder = with_table(&["a.jpg"], "t.csv", "path,kind\na.jpg,x\n");
        let dataset = open(folder.path().join("t.csv")).unwrap();
        assert!(dataset.warnings()[0].contains("no label column among path, kind; choose one with --label-column"));
        let options = SourceOptions { label_column: Some("kind".to_owned()), ..SourceOptions::default() };
        assert_eq!(Dataset::open(&[folder.path().join("t.csv")], &options).unwrap().classes(), ["x"]);
    }
}
