//! Features against reference values that were made with Python: Pillow and ONNX Runtime.

use std::fs;

use arrow::array::{AsArray as _, RecordBatch};
use arrow::datatypes::Float32Type;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tlpipe::store::Store;

use crate::support::{Scratch, assets, first_rows, golden};

fn embeddings(batch: &RecordBatch, column: &str) -> Vec<Vec<f32>> {
    let lists = batch.column_by_name(column).unwrap().as_fixed_size_list();
    (0..batch.num_rows()).map(|row| lists.value(row).as_primitive::<Float32Type>().values().to_vec()).collect()
}

#[test]
fn cifar10_features_agree_with_the_reference() {
    let (Some(assets), Some(reference)) = (assets(), golden("cifar10_test_features.parquet")) else { return };
    let scratch = Scratch::new();
    let source = assets.join("cifar10/plain_text/test-00000-of-00001.parquet");
    first_rows(&source, 64, &scratch.path("slice/test-00000-of-00001.parquet"));
    let file = fs::File::open(reference).unwrap();
    let reference = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap().next().unwrap().unwrap();
    for side in ["32", "96", "224"] {
        let features = scratch.path(side).display().to_string();
        let args =
            ["extract", "--data", "slice", "--model", "mobilenet_v2_1.0_224", "--input-size", side, "--features", &features];
        scratch.command(&args).env("TLPIPE_ASSETS", &assets).assert().success();
        let found = Store::open(&scratch.path(side)).unwrap().load(&["test"]).unwrap();
        let expected = embeddings(&reference, &format!("embedding_{side}"));
        for (row, (found, expected)) in found.embeddings.rows().into_iter().zip(&expected).enumerate() {
            let pairs = || found.iter().zip(expected).map(|(&a, &b)| (f64::from(a), f64::from(b)));
            let most = pairs().map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
            let cosine = pairs().map(|(a, b)| a * b).sum::<f64>()
                / (norm(&mut pairs().map(|(a, _)| a)) * norm(&mut pairs().map(|(_, b)| b)));
            if side == "32" {
                // Some rows are all zeros at this size: they have no direction to compare.
                assert!(most <= 1e-5, "row {row} at 32 px differs by {most}");
                continue;
            }
            assert!(cosine >= 0.9999, "row {row} at {side} px: cosine {cosine}");
        }
    }
}
