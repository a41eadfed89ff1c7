//! The adapters on real engines: two executors of Spark, two nodes of Ray, one of which is killed in the middle.
//!
//! They need a Python with what `integrations/*/requirements.txt` names: that of `TLPIPE_ENGINES`, or the one that
//! `tests/engines/install` makes in the cache. `TLPIPE_ENGINE_IMAGES=10000` runs all of CIFAR-10's test images, not 600.

#![cfg(target_os = "linux")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray as _, Int64Array, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::support::{Scratch, assets, finish, first_rows, row_bits};

const CIFAR: &str = "test-00000-of-00001.parquet";

/// A Python that has a module; if there is none, a line says so.
fn python(module: &str) -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let made = cache.map(|cache| cache.join("tlpipe-engines/bin/python"));
    let python = std::env::var_os("TLPIPE_ENGINES").map(PathBuf::from).or(made)?;
    let found = Command::new(&python).args(["-c", &format!("import {module}, pyarrow")]).output();
    if found.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    println!("skipped: {} has no {module} (tests/engines/install makes one that has)", python.display());
    None
}

/// The first images of CIFAR-10's test part: as a source, and as an engine reads them.
fn images(scratch: &Scratch, assets: &Path) -> usize {
    let count = std::env::var("TLPIPE_ENGINE_IMAGES").map_or(600, |count| count.parse().unwrap());
    let source = scratch.path("source").join(CIFAR);
    first_rows(&assets.join("cifar10/plain_text").join(CIFAR), count, &source);
    let reader = ParquetRecordBatchReaderBuilder::try_new(fs::File::open(source).unwrap()).unwrap();
    let batch = reader.with_batch_size(count).build().unwrap().next().unwrap().unwrap();
    let image = batch.column_by_name("img").unwrap().as_struct().column_by_name("bytes").unwrap();
    let rows = RecordBatch::try_from_iter([
        ("id", Arc::new(StringArray::from_iter_values((0..count).map(|row| format!("{CIFAR}#{row}")))) as ArrayRef),
        ("bytes", Arc::clone(image)),
        ("label", Arc::clone(batch.column_by_name("label").unwrap())),
        ("split", Arc::new(StringArray::from(vec!["test"; count]))),
        ("place", Arc::new(Int64Array::from_iter_values(0..count as i64))),
    ])
    .unwrap();
    let mut writer =
        ArrowWriter::try_new(fs::File::create(scratch.path("images.parquet")).unwrap(), rows.schema(), None).unwrap();
    writer.write(&rows).unwrap();
    writer.close().unwrap();
    count
}

/// Runs a job that kills something, adopts what it wrote, and compares that with what one process makes of the same images.
fn a_killed_job_leaves_the_store_of_one_process(python: &Path, script: &str, parts: impl Fn(usize) -> String, kill: &str) {
    let Some(assets) = assets() else { return };
    let scratch = Scratch::new();
    let count = images(&scratch, &assets);
    let at = |name: &str| scratch.path(name).display().to_string();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/engines").join(script);
    let output = Command::new(python)
        .arg(script)
        .arg(assert_cmd::cargo::cargo_bin("tlpipe"))
        .args([&at("images.parquet"), &at("out"), "96", &parts(count), kill])
        .env("TLPIPE_ASSETS", &assets)
        .env_remove("TLPIPE_LOG")
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    println!("{}", String::from_utf8_lossy(&output.stdout));
    let run = |args: &[&str]| {
        let ran = finish(scratch.command(args).env("TLPIPE_ASSETS", &assets));
        assert_eq!(ran.status, Some(0), "{}", ran.stderr);
        ran.stdout
    };
    run(&["extract", "--data", "source", "--model", "mobilenet_v2", "--input-size", "96", "--features", "one"]);
    run(&["store", "adopt", "out", "--expect-rows", &count.to_string()]);
    let (adopted, one) = (row_bits(&scratch.path("out")), row_bits(&scratch.path("one")));
    assert_eq!(adopted.len(), count);
    assert!(adopted == one, "rows differ in label, content_hash or embedding");
    let again =
        run(&["extract", "--data", "source", "--model", "mobilenet_v2", "--input-size", "96", "--features", "out", "--json"]);
    let again: serde_json::Value = serde_json::from_str(&again).unwrap();
    assert_eq!((again["new"].as_u64(), again["reused"].as_u64()), (Some(0), Some(count as u64)), "{again}");
}

#[test]
fn spark_loses_an_executor_and_no_row() {
    let Some(python) = python("pyspark") else { return };
    if !Command::new("java").arg("-version").output().is_ok_and(|output| output.status.success()) {
        println!("skipped: no java here, which Spark needs");
        return;
    }
    a_killed_job_leaves_the_store_of_one_process(&python, "spark_job.py", |_| "6".into(), "executor");
}

#[test]
fn ray_loses_a_node_and_no_row() {
    let Some(python) = python("ray.data") else { return };
    a_killed_job_leaves_the_store_of_one_process(&python, "ray_job.py", |count| count.to_string(), "node");
}
