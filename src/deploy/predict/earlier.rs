//! Whether a file is an earlier result, which a new one may take the place of.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use ::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::formats::COLUMNS;

/// Bytes that are looked at: a class name is not longer.
const LOOKED_AT: u64 = 64 << 10;

/// Whether nothing is lost where a file is replaced: it is empty, no regular file, not there, or begins as predictions do in one of the
/// formats. By its content, not its name: a table of images may be called as a result is.
///
/// # Errors
/// When the file cannot be read.
pub fn is_replaceable(path: &Path) -> io::Result<bool> {
    match path.metadata() {
        Ok(metadata) if metadata.is_file() && metadata.len() > 0 => {}
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => return Ok(true),
    }
    let mut start = Vec::new();
    File::open(path)?.take(LOOKED_AT).read_to_end(&mut start)?;
    if start.starts_with(b"PAR1") {
        let schema = File::open(path).map(ParquetRecordBatchReaderBuilder::try_new)?;
        return Ok(schema.is_ok_and(|builder| COLUMNS.iter().all(|name| builder.schema().column_with_name(name).is_some())));
    }
    let table = || {
        let line = start.split(|&byte| byte == b'\n').next().unwrap_or_default();
        String::from_utf8_lossy(line).split_whitespace().eq(["class", "prob.", "file"])
    };
    let begins =
        [COLUMNS[..4].join(",").as_str(), "{\"predictions\":[", "{\"file\":"].map(|begin| start.starts_with(begin.as_bytes()));
    Ok(begins.contains(&true) || table())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::formats::tests::{SUMMARY, classes, predictions};
    use super::super::{Csv, Json, JsonLines, Parquet, Rows};
    use super::*;

    #[test]
    fn results_of_every_format_are_known_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p");
        let classes = classes();
        let written = |mut rows: Box<dyn Rows + '_>| {
            predictions().iter().for_each(|prediction| rows.add(prediction).unwrap());
            rows.finish(SUMMARY).unwrap();
            drop(rows);
            is_replaceable(&path).unwrap()
        };
        let to = || File::create(&path).unwrap();
        assert!(written(Box::new(Csv::new(to(), &classes, 1, true).unwrap())));
        assert!(written(Box::new(Csv::new(to(), &classes, 3, true).unwrap())));
        assert!(written(Box::new(Json::new(to(), &classes))));
        assert!(written(Box::new(JsonLines::new(to(), &classes))));
        assert!(written(Box::new(Parquet::new(to(), &classes).unwrap())));
        fs::write(&path, "class     prob.  file\ncat 99.0 %  a.png\n").unwrap();
        assert!(is_replaceable(&path).unwrap());
        for other in [&b"\x89PNG\r\n"[..], b"file,label\na.png,cat\n", b"{\"a\": 1}", b"PAR1 PAR1", b"{\"file", b"\n"] {
            fs::write(&path, other).unwrap();
            assert!(!is_replaceable(&path).unwrap(), "{other:?}");
        }
        fs::write(&path, "").unwrap();
        assert!(is_replaceable(&path).unwrap() && is_replaceable(&folder.path().join("gone")).unwrap());
    }
}
