//! `cargo bench`: what the inner parts cost beside the plain way of doing the same, both measured in the same rounds.
//!
//! A ratio below 1 is quicker than the reference. Needs neither network, model nor data.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement: it prints, and a failure ends it")]

use std::hint::black_box;
use std::io::Cursor;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use image::imageops::{FilterType, resize};
use image::{DynamicImage, ImageFormat};
use ndarray::{Array2, Axis, s};
use rayon::prelude::*;
use serde_json::json;
use tlpipe::dataset::synth::{self, SynthParams};
use tlpipe::head::{Examples, HeadParams, ParamGuard as _, Weights, fit};
use tlpipe::image::{PixelFormat, PixelTable, Resize, Resizer, decode};
use tlpipe::store::{Embedding, Extraction, KeyParts, Row, SourceRecord, Store, StoreWriter, Target};

const ROUNDS: usize = 7;
const ROWS: usize = 20_000;
const WIDTH: usize = 1280;
const CLASSES: usize = 10;

fn main() {
    println!("{:46} {:>12} {:>12} {:>7}", "", "tlpipe", "reference", "ratio");
    pictures();
    let scratch = tempfile::tempdir().unwrap();
    let features = store(scratch.path());
    adam(&features);
}

/// Times both once to warm up, then alternately; prints the medians of the seconds and of the rounds' ratios.
fn compare(what: &str, mut ours: impl FnMut(), mut reference: impl FnMut()) {
    let seconds = |work: &mut dyn FnMut()| {
        let start = Instant::now();
        work();
        start.elapsed().as_secs_f64()
    };
    seconds(&mut ours);
    seconds(&mut reference);
    let rounds: Vec<(f64, f64)> = (0..ROUNDS).map(|_| (seconds(&mut ours), seconds(&mut reference))).collect();
    let median = |value: fn(&(f64, f64)) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values[ROUNDS / 2] * 1e3
    };
    let ratio = median(|round| round.0 / round.1) / 1e3;
    println!("{what:46} {:9.2} ms {:9.2} ms {ratio:7.2}", median(|round| round.0), median(|round| round.1));
}

/// Encoded picture to tensor, on one thread: beside decoding and resizing with `image` alone.
fn pictures() {
    for (format, from, to, repeat) in [(ImageFormat::Jpeg, 500, 224, 20), (ImageFormat::Png, 32, 96, 500)] {
        let (_, picture) = synth::image(&SynthParams { side: from, ..SynthParams::default() }, synth::Split::Train, 6);
        let mut encoded = Cursor::new(Vec::new());
        picture.write_to(&mut encoded, format).unwrap();
        let (encoded, side) = (encoded.into_inner(), to as usize);
        let mut tensor = vec![0.0_f32; side * side * 3];
        let (mut resizer, table) = (Resizer::new(), PixelTable::new(&PixelFormat::TENSORFLOW));
        let ours = || {
            for _ in 0..repeat {
                let small = resizer.resize(decode(&encoded).unwrap(), to, Resize::Squash).unwrap();
                table.write(&small, &mut tensor).unwrap();
                black_box(&tensor);
            }
        };
        let mut plain = vec![0.0_f32; side * side * 3];
        let reference = || {
            for _ in 0..repeat {
                let image: DynamicImage = image::load_from_memory(&encoded).unwrap();
                let small = resize(&image.to_rgb8(), to, to, FilterType::Triangle);
                for (value, byte) in plain.iter_mut().zip(small.as_raw()) {
                    *value = f32::from(*byte) / 127.5 - 1.0;
                }
                black_box(&plain);
            }
        };
        compare(&format!("{repeat} {format:?} of {from} px to {to} px, `image` alone"), ours, reference);
    }
}

/// A store's rows into one matrix, checked: beside reading its files into memory on as many threads.
fn store(dir: &Path) -> (Array2<f32>, Vec<Option<i32>>) {
    let key_parts = json!({"backbone": "b", "cut": ["c"], "input_size": 1, "resize": "squash", "preprocessing": "p",
        "precision": "fp32", "provider": "cpu", "schema": tlpipe::store::STORE_SCHEMA});
    let target = Target {
        dir: dir.into(),
        key_parts: serde_json::from_value::<KeyParts>(key_parts).unwrap(),
        classes: (0..CLASSES).map(|class| class.to_string()).collect(),
        dimension: WIDTH,
        segments: Vec::new(),
        source: SourceRecord { name: "s".into(), kind: "k".into(), fingerprint: "f".into(), sorted_by_class: false },
    };
    let mut writer = StoreWriter::open(target, false).unwrap();
    // Noise with something to learn in it; its own generator, so that it takes no time worth mentioning.
    let mut state = 1_u32;
    for row in 0..ROWS {
        let class = row % CLASSES;
        let mut draw = |at: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 + if at % CLASSES == class { 0.1 } else { 0.0 }
        };
        let values = (0..WIDTH).map(&mut draw).collect();
        let content_hash = blake3::hash(&row.to_le_bytes()).to_hex().to_string();
        let row =
            Row { id: format!("train.parquet#{row}"), label: i32::try_from(class).ok(), content_hash, width: 32, height: 32 };
        writer.push("train", row, Embedding::New(values)).unwrap();
    }
    let figures = json!({"rows": ROWS, "new": ROWS, "changed": 0, "reused": 0, "removed": 0, "quarantined": 0, "seconds": 1.0,
        "images_per_second": 1.0, "provider": "cpu", "runtime": "1", "threads": 1, "batch": 1, "model": "m", "model_file": "m",
        "model_sha256": "s", "cut_reason": "r", "splits": [], "tlpipe": "0"});
    let manifest = writer.finish(serde_json::from_value::<Extraction>(figures).unwrap()).unwrap();
    let files: Vec<_> = manifest.shards.iter().map(|shard| dir.join(&shard.file)).collect();
    let open = || Store::open(dir).unwrap().load(&["train"]).unwrap();
    let read = || {
        let files: Vec<Vec<u8>> = files.par_iter().map(|file| std::fs::read(file).unwrap()).collect();
        black_box(files);
    };
    compare(&format!("store of {ROWS} x {WIDTH} loaded, fs::read"), || drop(black_box(open())), read);
    let rows = open();
    (rows.embeddings, rows.labels)
}

/// An epoch of the head: beside the two matrix products of every step, by `ndarray`.
fn adam((x, labels): &(Array2<f32>, Vec<Option<i32>>)) {
    let classes: Vec<String> = (0..CLASSES).map(|class| class.to_string()).collect();
    let train: Vec<usize> = (0..ROWS).collect();
    let examples = Examples { x: x.view(), labels, train: &train, holdout: &[], refit: &[], classes: &classes };
    for batch_size in [32, 256] {
        let params = HeadParams { epochs: 1, batch_size, ..HeadParams::default() }.check().unwrap();
        let ours = || drop(black_box(fit(&params, &examples, &mut |_| ControlFlow::Continue(())).unwrap()));
        let kernel = Weights::glorot_uniform(WIDTH, CLASSES, 0).kernel;
        let reference = || {
            for start in (0..ROWS).step_by(batch_size) {
                let batch = x.slice(s![start..(start + batch_size).min(ROWS), ..]);
                let logits = batch.dot(&kernel);
                black_box(batch.t().dot(&logits).sum_axis(Axis(0)));
            }
        };
        compare(&format!("Adam epoch, {batch_size} rows a step, ndarray's GEMM"), ours, reference);
    }
}
