//! Stores of made-up features, for tests and for measurements.

use std::path::Path;

use rayon::prelude::*;

pub(crate) use super::key::tests::parts;
use super::{Dtype, Embedding, Extraction, KeyParts, Row, SourceRecord, StageSeconds, StoreWriter, Target};

/// Figures of no extraction.
pub(crate) fn extraction() -> Extraction {
    Extraction {
        rows: 0,
        new: 0,
        changed: 0,
        reused: 0,
        removed: 0,
        quarantined: 0,
        seconds: 1.0,
        startup_seconds: 0.0,
        stages: StageSeconds::default(),
        images_per_second: 0.0,
        provider: "cpu".into(),
        nodes: std::collections::BTreeMap::new(),
        drift: None,
        runtime: "1".into(),
        threads: 1,
        batch: 1,
        model: "m".into(),
        model_file: "m".into(),
        model_sha256: "s".into(),
        cut_reason: "r".into(),
        layers: "pooled".into(),
        splits: Vec::new(),
        tlpipe: "0".into(),
    }
}

/// Class names "c0", "c1", …
pub(crate) fn names(classes: usize) -> Vec<String> {
    (0..classes).map(|class| format!("c{class}")).collect()
}

/// Class of a row: any, but the same each time.
pub(crate) fn class(row: usize, classes: usize) -> usize {
    (noise(row, usize::MAX, 1) * classes as f32) as usize % classes
}

/// A row of features: mostly noise from 0 to 1, and a little of what its class has.
pub(crate) fn features(row: usize, class: usize, width: usize) -> Vec<f32> {
    (0..width).map(|feature| noise(row, feature, 2) + 0.3 * noise(class, feature, 3)).collect()
}

/// From 0 to 1, by SplitMix64's hash.
fn noise(row: usize, feature: usize, salt: u64) -> f32 {
    let mut hash = (row as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (feature as u64).rotate_left(32) ^ salt;
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((hash ^ (hash >> 31)) >> 40) as f32 / (1_u64 << 24) as f32
}

/// Writes a store of such rows, with splits of so many; `change` may change a row's features.
pub(crate) fn write(
    dir: &Path,
    splits: &[(&str, usize)],
    width: usize,
    classes: usize,
    change: impl Fn(usize, &mut Vec<f32>) + Sync,
) {
    write_as(parts(), dir, splits, width, classes, change);
}

/// Values D of a view of a row, which `first` are those of the first one.
pub(crate) fn of_view(first: &[f32], row: usize, view: usize) -> Vec<f32> {
    first.iter().enumerate().map(|(feature, value)| value + 0.3 * noise(row, feature, 3 + view as u64)).collect()
}

/// Writes a store with these parts of the key, as [`write`] does; the other views of a row are near the first one.
pub(crate) fn write_as(
    key_parts: KeyParts,
    dir: &Path,
    splits: &[(&str, usize)],
    width: usize,
    classes: usize,
    change: impl Fn(usize, &mut Vec<f32>) + Sync,
) {
    let source = SourceRecord { name: "s".into(), kind: "test".into(), fingerprint: "f".into(), sorted_by_class: false };
    let (views, segments) = (key_parts.views.len(), Vec::new());
    let target = Target { dir: dir.into(), key_parts, classes: names(classes), dimension: width, segments, source };
    let mut writer = StoreWriter::open(target, false).unwrap();
    let mut start = 0;
    for &(split, rows) in splits {
        let all: Vec<usize> = (start..start + rows).collect();
        for rows in all.chunks(4096) {
            let made: Vec<Vec<f32>> = rows
                .par_iter()
                .map(|&row| {
                    let mut values = features(row, class(row, classes), width);
                    change(row, &mut values);
                    let others: Vec<f32> = (1..views).flat_map(|view| of_view(&values, row, view)).collect();
                    values.extend(others);
                    values
                })
                .collect();
            for (&row, values) in rows.iter().zip(made) {
                let label = Some(i32::try_from(class(row, classes)).unwrap());
                let row =
                    Row { id: format!("images/{row:07}.png"), label, content_hash: format!("{row:064x}"), width: 1, height: 1 };
                writer.push(split, row, Embedding::New(values)).unwrap();
            }
        }
        start += rows;
    }
    writer.complete().unwrap();
    writer.finish(extraction()).unwrap();
}

/// Makes a store to measure with: `TLPIPE_SYNTHETIC="DIR WIDTH CLASSES TRAIN TEST [VIEWS [DTYPE]]" cargo test --release synthetic_store -- --ignored`.
#[test]
#[ignore = "writes a store of any size for a measurement"]
fn synthetic_store() {
    let text = std::env::var("TLPIPE_SYNTHETIC").unwrap();
    let words: Vec<&str> = text.split(' ').collect();
    let [width, classes, train, test] = [1, 2, 3, 4].map(|word| words[word].parse::<usize>().unwrap());
    let splits: Vec<_> = [("train", train), ("test", test)].into_iter().filter(|split| split.1 > 0).collect();
    let mut key_parts = parts();
    let views = words.get(5).map_or(1, |views| views.parse().unwrap());
    key_parts.views.extend((1..views).map(|view| format!("view-{view}")));
    key_parts.dtype = words.get(6).map_or(Dtype::Float32, |name| serde_json::from_value((*name).into()).unwrap());
    write_as(key_parts, Path::new(words[0]), &splits, width, classes, |_, _| {});
}
