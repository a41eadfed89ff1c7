//! `audit.parquet`: a row a finding.

use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, Float64Array, Int32Array, StringArray};
use arrow::datatypes::{Field, Schema};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;

use super::finding::Finding;
use super::images::Images;

/// Findings, those of a kind one after the other and the strongest first, as a file: `kind`, `rank` (1 is the strongest of its kind),
/// `score`, `id`, `split`, `other_id`, `other_split`, `suggestion`.
///
/// # Errors
/// When they cannot be encoded.
pub fn to_parquet(images: &Images<'_>, findings: &[Finding]) -> Result<Vec<u8>, ParquetError> {
    let texts =
        |of: &dyn Fn(&Finding) -> String| -> ArrayRef { Arc::new(StringArray::from_iter_values(findings.iter().map(of))) };
    let others = |of: &dyn Fn(usize) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter(findings.iter().map(|finding| finding.other.map(of))))
    };
    let ranks = findings.chunk_by(|a, b| a.kind == b.kind).flat_map(|kind| (1..).take(kind.len()));
    let columns: [(&str, bool, ArrayRef); 8] = [
        ("kind", false, texts(&|finding| finding.kind.name().to_owned())),
        ("rank", false, Arc::new(Int32Array::from_iter_values(ranks))),
        ("score", false, Arc::new(Float64Array::from_iter_values(findings.iter().map(|finding| finding.score)))),
        ("id", false, texts(&|finding| images.rows[finding.row].id.clone())),
        ("split", false, texts(&|finding| images.split(finding.row).to_owned())),
        ("other_id", true, others(&|row| images.rows[row].id.clone())),
        ("other_split", true, others(&|row| images.split(row).to_owned())),
        ("suggestion", false, texts(&|finding| finding.suggestion.clone())),
    ];
    let field = |(name, nullable, column): &(&str, bool, ArrayRef)| Field::new(*name, column.data_type().clone(), *nullable);
    let schema = Arc::new(Schema::new(columns.iter().map(field).collect::<Vec<_>>()));
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns.into_iter().map(|(_, _, column)| column).collect())?;
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), schema, Some(properties))?;
    writer.write(&batch)?;
    writer.into_inner()
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray as _;
    use arrow::datatypes::{DataType, Int32Type};
    use ndarray::Array2;
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    use super::*;
    use crate::audit::finding::Kind;
    use crate::audit::images::tests::image;

    #[test]
    fn findings_are_read_back_ranked_by_kind() {
        let rows: Vec<_> = (0..3).map(|row| image(row, usize::from(row == 2), None)).collect();
        let splits = ["train", "test"].map(str::to_owned);
        let x = Array2::zeros((3, 1));
        let images = Images { rows: &rows, x: x.view(), splits: &splits, classes: &[] };
        let finding = |kind, row, other| Finding { kind, score: 0.5, row, other, suggestion: "look".into() };
        let found = [finding(Kind::Leak, 2, Some(0)), finding(Kind::Outlier, 1, None), finding(Kind::Outlier, 0, None)];
        for (findings, expected) in [(&found[..], vec![1, 1, 2]), (&[], vec![])] {
            let bytes = bytes::Bytes::from(to_parquet(&images, findings).unwrap());
            let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap();
            assert_eq!(reader.schema().field(0).data_type(), &DataType::Utf8);
            let mut ranks: Vec<i32> = Vec::new();
            for batch in reader.build().unwrap() {
                let batch = batch.unwrap();
                ranks.extend(batch["rank"].as_primitive::<Int32Type>().values());
                let others = batch["other_split"].as_string::<i32>();
                assert_eq!((others.value(0), others.is_null(1)), ("train", true));
                assert_eq!(batch["id"].as_string::<i32>().value(0), "2.png");
            }
            assert_eq!(ranks, expected);
        }
    }
}
