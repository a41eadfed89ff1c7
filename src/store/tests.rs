//! Views and numbers of half the length, through writer and readers.

use std::path::Path;

use super::fixture::{self, extraction};
use super::key::tests::parts;
use super::layout::Half;
use super::*;

const NAMES: [&str; 3] = ["identity", "hflip", "top-left"];

fn with(views: usize, dtype: Dtype) -> KeyParts {
    KeyParts { views: NAMES[..views].iter().map(|name| (*name).to_owned()).collect(), dtype, ..parts() }
}

fn target(dir: &Path, key_parts: KeyParts) -> Target {
    let source = SourceRecord { name: "s".into(), kind: "test".into(), fingerprint: "f".into(), sorted_by_class: false };
    Target { dir: dir.into(), key_parts, classes: vec!["cat".into(), "dog".into()], dimension: 3, segments: Vec::new(), source }
}

fn hash(id: usize) -> blake3::Hash {
    blake3::hash(&id.to_le_bytes())
}

fn row(id: usize) -> Row {
    Row {
        id: format!("i{id}"),
        label: i32::try_from(id % 2).ok(),
        content_hash: hash(id).to_hex().to_string(),
        width: 1,
        height: 1,
    }
}

/// Values of all views; float16 holds them as they are.
fn values(id: usize, views: usize) -> Vec<f32> {
    (0..views).flat_map(|view| [0.0, 0.25, -8.0].map(|shift| (id % 500) as f32 + shift * (1 + view) as f32)).collect()
}

/// The mean over the views, as it is computed.
fn mean(id: usize, views: usize) -> Vec<f32> {
    let all = values(id, views);
    (0..3).map(|at| (0..views).map(|view| all[view * 3 + at]).sum::<f32>() * (1.0 / views as f32)).collect()
}

/// Pushes images, reusing what it can; returns how many were new.
fn push(writer: &mut StoreWriter, ids: &[usize], views: usize) -> usize {
    let (index, mut new) = (writer.index(), 0);
    for &id in ids {
        let embedding = match index.find("train", &row(id).id).filter(|(_, old)| old.is_of(&hash(id))) {
            Some((place, _)) => Embedding::Reused(place),
            None => {
                new += 1;
                Embedding::New(values(id, views))
            }
        };
        writer.push("train", row(id), embedding).unwrap();
    }
    new
}

fn assert_holds(dir: &Path, ids: &[usize], views: usize) {
    let store = Store::open(dir).unwrap();
    let loaded = store.load(&["train"]).unwrap();
    assert_eq!(loaded.ids, ids.iter().map(|&id| row(id).id).collect::<Vec<_>>());
    let means: Vec<f32> = ids.iter().flat_map(|&id| mean(id, views)).collect();
    assert!(loaded.embeddings.as_slice().unwrap() == means);
    let mut all = means;
    for view in 0..views {
        let expected: Vec<f32> = ids.iter().flat_map(|&id| values(id, views)[view * 3..][..3].to_vec()).collect();
        let loaded = store.load_view(&["train"], view).unwrap();
        assert!(loaded.embeddings.as_slice().unwrap() == expected, "view {view}");
        all.extend(expected);
    }
    let with_views = store.load_with_views(&["train"]).unwrap();
    assert!(with_views.embeddings.as_slice().unwrap() == all);
    assert_eq!(with_views.ids, vec![loaded.ids; 1 + views].concat());
    assert_eq!(with_views.labels, vec![loaded.labels; 1 + views].concat());
}

#[test]
fn an_update_that_was_stopped_keeps_every_view() {
    for dtype in [Dtype::Float32, Dtype::Float16] {
        let dir = tempfile::tempdir().unwrap();
        let ids: Vec<usize> = (0..4000).collect();
        let mut writer = StoreWriter::open(target(dir.path(), with(3, dtype)), false).unwrap();
        push(&mut writer, &ids[..2500], 3);
        writer.complete().unwrap();
        drop(writer); // as a process that is killed: nothing is finished
        let mut writer = StoreWriter::open(target(dir.path(), with(3, dtype)), false).unwrap();
        assert_eq!(push(&mut writer, &ids, 3), 1500);
        writer.finish(extraction()).unwrap();
        assert_holds(dir.path(), &ids, 3);
        let changed: Vec<usize> = (0..1000).chain(1003..2000).chain([9000]).chain(2000..4000).collect();
        let mut writer = StoreWriter::open(target(dir.path(), with(3, dtype)), false).unwrap();
        assert_eq!(push(&mut writer, &changed, 3), 1);
        writer.finish(extraction()).unwrap();
        assert_holds(dir.path(), &changed, 3);
        let store = Store::open(dir.path()).unwrap();
        let gone: Vec<Place> = store.describe_removed().unwrap().into_iter().map(|(place, _)| place).collect();
        let found = store.embeddings(&gone).unwrap().into_raw_vec_and_offset().0;
        assert_eq!(found, [1000, 1001, 1002].map(|id| mean(id, 3)).concat());
        let found = store.embeddings_of_view(&gone, 2).unwrap().into_raw_vec_and_offset().0;
        assert_eq!(found, [1000, 1001, 1002].map(|id| values(id, 3)[6..].to_vec()).concat());
        let error = store.load_view(&["train"], 3).unwrap_err().to_string();
        assert!(error.contains("no view 3") && error.contains("identity, hflip, top-left"), "{error}");
    }
}

#[test]
fn rows_on_disk_are_those_that_are_loaded() {
    for (views, dtype) in [(2, Dtype::Float32), (1, Dtype::Float16), (3, Dtype::Float16)] {
        let dir = tempfile::tempdir().unwrap();
        // Several shards and row groups, several pages each.
        let splits = [("train", 700), ("test", 100)];
        fixture::write_as(with(views, dtype), dir.path(), &splits, 20_000, 3, |row, values| {
            if row == 300 {
                values[7] = f32::NAN;
            }
        });
        let store = Store::open(dir.path()).unwrap();
        let streamed = store.stream(&["train", "test"]).unwrap();
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        let rows: Vec<usize> = [0, 1, 2, 255, 256, 300, 511, 512, 699, 700, 701, 799].into();
        let mut out = vec![0.0; rows.len() * 20_000];
        let same = |out: &[f32], rows: &[usize], loaded: &SplitFeatures| {
            for (row, found) in rows.iter().zip(out.chunks(20_000)) {
                assert!(
                    bits(found) == bits(loaded.embeddings.row(*row).as_slice().unwrap()),
                    "{views} views, {dtype:?}, row {row}"
                );
            }
        };
        streamed.read(&rows, &mut out).unwrap();
        same(&out, &rows, &store.load(&["train", "test"]).unwrap());
        for view in 0..views {
            streamed.read_view(&rows, view, &mut out).unwrap();
            same(&out, &rows, &store.load_view(&["train", "test"], view).unwrap());
        }
        assert!(matches!(streamed.read_view(&rows, views, &mut out), Err(StoreError::NoView { .. })));
        assert!(streamed.read_view(&[800], 0, &mut out).is_err());
        assert_eq!(streamed.not_finite, [300]);

        // Rows of images, then of each view, in one list.
        let (streamed, loaded) = (streamed.with_views(), store.load_with_views(&["train", "test"]).unwrap());
        assert_eq!((&streamed.ids, &streamed.labels), (&loaded.ids, &loaded.labels));
        assert_eq!(streamed.not_finite, (0..=views).map(|block| 300 + block * 800).collect::<Vec<_>>());
        let rows: Vec<usize> = (790..810).chain([1100]).chain(views * 800 - 2..views * 800 + 3).collect();
        let mut out = vec![0.0; rows.len() * 20_000];
        streamed.read(&rows, &mut out).unwrap();
        same(&out, &rows, &loaded);
        let error = streamed.read(&[(1 + views) * 800], &mut out).unwrap_err().to_string();
        assert!(error.contains("is not one of"), "{error}");
    }
}

#[test]
fn float16_rounds_to_the_nearest_and_refuses_what_is_too_large() {
    let dir = tempfile::tempdir().unwrap();
    let open = || StoreWriter::open(target(dir.path(), with(1, Dtype::Float16)), false).unwrap();
    let mut writer = open();
    let given = [0.1, 1e-7, -65_504.0];
    writer.push("train", row(1), Embedding::New(given.to_vec())).unwrap();
    let error = writer.push("train", row(2), Embedding::New(vec![0.0, -65_505.0, 1.0])).unwrap_err().to_string();
    assert!(error.contains("train/i2: a feature of -65505") && error.contains("--dtype float32"), "{error}");
    writer.finish(extraction()).unwrap();
    let found = Store::open(dir.path()).unwrap().load(&["train"]).unwrap().embeddings;
    assert_eq!(found.as_slice().unwrap(), given.map(|value| Half::from_f32(value).to_f32()));
    // Taken over, they are the same.
    let mut writer = open();
    assert_eq!(push(&mut writer, &[1], 1), 0);
    push(&mut writer, &[7], 1);
    writer.finish(extraction()).unwrap();
    let again = Store::open(dir.path()).unwrap().load(&["train"]).unwrap().embeddings;
    assert_eq!(again.row(0), found.row(0));
}

#[test]
fn another_type_or_other_views_are_refused_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = StoreWriter::open(target(dir.path(), with(2, Dtype::Float32)), false).unwrap();
    push(&mut writer, &[1, 2], 2);
    writer.finish(extraction()).unwrap();
    let error = StoreWriter::open(target(dir.path(), with(1, Dtype::Float16)), false).unwrap_err().to_string();
    assert!(error.contains("views: identity, hflip in the store, identity asked for"), "{error}");
    assert!(error.contains("dtype: float32 in the store, float16 asked for") && error.contains("--rebuild"), "{error}");
    // A manifest that was tampered with does not make numbers of others.
    let path = dir.path().join("store.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut manifest: Manifest = serde_json::from_str(&text).unwrap();
    manifest.key_parts.dtype = Dtype::Float16;
    manifest.key = manifest.key_parts.key();
    std::fs::write(&path, serde_json::to_string(&manifest).unwrap()).unwrap();
    let error = Store::open(dir.path()).unwrap().load(&["train"]).unwrap_err().to_string();
    assert!(error.contains("`embedding` is not of float16"), "{error}");
    manifest.key_parts = with(3, Dtype::Float32);
    manifest.key = manifest.key_parts.key();
    std::fs::write(&path, serde_json::to_string(&manifest).unwrap()).unwrap();
    let error = Store::open(dir.path()).unwrap().load(&["train"]).unwrap_err().to_string();
    assert!(error.contains("no column `embedding_top_left`"), "{error}");
    manifest.key_parts.views.clear();
    manifest.key = manifest.key_parts.key();
    std::fs::write(&path, serde_json::to_string(&manifest).unwrap()).unwrap();
    let error = Store::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("its views are not a list of different ones"), "{error}");
}
