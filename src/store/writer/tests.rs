use super::super::fixture::extraction;
use super::super::{Store, key};
use super::*;

fn target(dir: &Path) -> Target {
    Target {
        dir: dir.into(),
        key_parts: key::tests::parts(),
        classes: vec!["cat".into(), "dog".into()],
        dimension: 3,
        segments: Vec::new(),
        source: SourceRecord { name: "s".into(), kind: "test".into(), fingerprint: "f".into(), sorted_by_class: false },
    }
}

fn hash(id: usize) -> blake3::Hash {
    blake3::hash(&id.to_le_bytes())
}

fn row(id: usize) -> Row {
    Row {
        id: format!("i{id}"),
        label: Some(i32::try_from(id % 2).unwrap()),
        content_hash: hash(id).to_hex().to_string(),
        width: 4,
        height: 5,
    }
}

#[allow(clippy::cast_precision_loss)]
fn values(id: usize) -> Vec<f32> {
    vec![id as f32, id as f32 + 0.5, -(id as f32)]
}

/// Writes the images `ids` to a store, reusing what it can; returns how many were new.
fn extract(dir: &Path, ids: &[usize]) -> usize {
    let mut writer = StoreWriter::open(target(dir), false).unwrap();
    let new = push_all(&mut writer, ids);
    writer.finish(extraction()).unwrap();
    new
}

fn push_all(writer: &mut StoreWriter, ids: &[usize]) -> usize {
    let index = writer.index();
    let mut new = 0;
    for &id in ids {
        let row = row(id);
        let embedding = match index.find("train", &row.id).filter(|(_, old)| old.is_of(&hash(id))) {
            Some((place, _)) => Embedding::Reused(place),
            None => {
                new += 1;
                Embedding::New(values(id))
            }
        };
        writer.push("train", row, embedding).unwrap();
    }
    new
}

fn assert_holds(dir: &Path, ids: &[usize]) {
    let loaded = Store::open(dir).unwrap().load(&["train"]).unwrap();
    assert_eq!(loaded.ids, ids.iter().map(|id| format!("i{id}")).collect::<Vec<_>>());
    let expected: Vec<f32> = ids.iter().flat_map(|&id| values(id)).collect();
    assert_eq!(loaded.embeddings.as_slice().unwrap(), expected);
    assert_eq!(loaded.labels, ids.iter().map(|&id| row(id).label).collect::<Vec<_>>());
}

fn part(number: usize) -> String {
    format!("part-{number:05}.parquet")
}

fn parts(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir.join("train")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_store_gives_back_what_was_put_in() {
    let dir = tempfile::tempdir().unwrap();
    let ids: Vec<usize> = (0..5000).collect();
    assert_eq!(extract(dir.path(), &ids), 5000);
    assert_holds(dir.path(), &ids);
    assert_eq!(parts(dir.path()), [0, 1, 2, 3, 4].map(part));
}

#[test]
fn an_update_runs_only_what_is_new() {
    let dir = tempfile::tempdir().unwrap();
    extract(dir.path(), &(0..9000).collect::<Vec<_>>());
    // One gone at the front of the fifth shard, one inserted, some at the end.
    let ids: Vec<usize> = (0..4096).chain(4097..6000).chain([20000]).chain(6000..9002).collect();
    assert_eq!(extract(dir.path(), &ids), 3);
    assert_holds(dir.path(), &ids);
    // The first shards are as they were, and so are those between the changes and the end; the old ones of the others are gone.
    assert_eq!(parts(dir.path()), [0, 1, 2, 3, 6, 7, 9, 10, 11].map(part));
}

#[test]
fn a_run_that_died_goes_on_where_it_was() {
    let whole = tempfile::tempdir().unwrap();
    let cut = tempfile::tempdir().unwrap();
    let ids: Vec<usize> = (0..9000).collect();
    extract(whole.path(), &ids);
    let mut writer = StoreWriter::open(target(cut.path()), false).unwrap();
    push_all(&mut writer, &ids[..5000]);
    writer.settle().unwrap();
    drop(writer); // no pause: the 904 rows in hand are lost, the full shards are not
    fs::write(cut.path().join("train/part-00004.parquet"), b"half").unwrap();
    assert!(matches!(Store::open(cut.path()), Err(StoreError::Incomplete(_))));
    assert_eq!(extract(cut.path(), &ids), 9000 - 4096);
    assert_holds(cut.path(), &ids);
    for part in parts(whole.path()) {
        let read = |dir: &Path| fs::read(dir.join("train").join(&part)).unwrap();
        assert!(read(whole.path()) == read(cut.path()), "{part} differs");
    }
}

#[test]
fn a_pause_keeps_every_row() {
    let dir = tempfile::tempdir().unwrap();
    let ids: Vec<usize> = (0..6000).collect();
    let mut writer = StoreWriter::open(target(dir.path()), false).unwrap();
    push_all(&mut writer, &ids[..5000]);
    writer.pause().unwrap();
    assert_eq!(extract(dir.path(), &ids), 1000);
    assert_holds(dir.path(), &ids);
}

#[test]
fn a_damaged_shard_is_made_anew_alone() {
    let dir = tempfile::tempdir().unwrap();
    let ids: Vec<usize> = (0..5000).collect();
    extract(dir.path(), &ids);
    let path = dir.path().join("train/part-00001.parquet");
    let mut bytes = fs::read(&path).unwrap();
    bytes[100] ^= 1;
    fs::write(&path, bytes).unwrap();
    let mut writer = StoreWriter::open(target(dir.path()), false).unwrap();
    assert_eq!(writer.damaged().len(), 1);
    assert_eq!(push_all(&mut writer, &ids), 1024);
    writer.finish(extraction()).unwrap();
    assert_holds(dir.path(), &ids);
}

#[test]
fn a_missing_or_short_shard_is_refused_by_readers() {
    let dir = tempfile::tempdir().unwrap();
    extract(dir.path(), &[1, 2, 3]);
    let path = dir.path().join("train/part-00000.parquet");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    let error = Store::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("part-00000.parquet") && error.contains("tlpipe extract"), "{error}");
    fs::remove_file(&path).unwrap();
    assert!(matches!(Store::open(dir.path()), Err(StoreError::Damaged { .. })));
}

#[test]
fn another_key_is_refused_with_the_part_named_and_rebuilt_on_demand() {
    let dir = tempfile::tempdir().unwrap();
    extract(dir.path(), &[1, 2]);
    let mut other = target(dir.path());
    other.key_parts.input_size = 160;
    let error = StoreWriter::open(other.clone(), false).unwrap_err().to_string();
    assert!(error.contains("input_size: 96 in the store, 160 asked for") && error.contains("--rebuild"), "{error}");
    assert_holds(dir.path(), &[1, 2]);
    let mut writer = StoreWriter::open(other, true).unwrap();
    assert_eq!(writer.index().images(), 0);
    assert_eq!(push_all(&mut writer, &[3]), 1);
    writer.finish(extraction()).unwrap();
    assert_holds(dir.path(), &[3]);
}

#[test]
fn features_of_images_that_went_are_kept_apart_and_never_outnumber_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    extract(dir.path(), &(0..10).collect::<Vec<_>>());
    extract(dir.path(), &[0, 1, 2, 4, 5, 6, 8, 9]);
    let store = Store::open(dir.path()).unwrap();
    let ids = |store: &Store| store.describe_removed().unwrap().into_iter().map(|(_, row)| row.id).collect::<Vec<_>>();
    assert_eq!(ids(&store), [row(3).id, row(7).id]);
    let places: Vec<_> = store.describe_removed().unwrap().into_iter().map(|(place, _)| place).collect();
    assert_eq!(store.embeddings(&places).unwrap().into_raw_vec_and_offset().0, [values(3), values(7)].concat());
    assert_holds(dir.path(), &[0, 1, 2, 4, 5, 6, 8, 9]);
    // An update that changes nothing keeps them; the oldest go where there would be more of them than rows.
    extract(dir.path(), &[0, 1, 2, 4, 5, 6, 8, 9]);
    assert_eq!(ids(&Store::open(dir.path()).unwrap()).len(), 2);
    extract(dir.path(), &[0, 1, 2, 4]);
    assert_eq!(ids(&Store::open(dir.path()).unwrap()), [row(5).id, row(6).id, row(8).id, row(9).id]);
    let removed = dir.path().join("removed");
    assert_eq!(fs::read_dir(&removed).unwrap().count(), 1, "what is not recorded is not there");
    // They can be deleted.
    fs::remove_dir_all(removed).unwrap();
    assert_eq!(ids(&Store::open(dir.path()).unwrap()).len(), 0);
    extract(dir.path(), &[0, 1, 2]);
    assert_eq!(ids(&Store::open(dir.path()).unwrap()), [row(4).id]);
}

#[test]
fn new_labels_reuse_the_features() {
    let dir = tempfile::tempdir().unwrap();
    extract(dir.path(), &[1, 2]);
    let mut renamed = target(dir.path());
    renamed.classes = vec!["dog".into(), "cat".into()];
    let mut writer = StoreWriter::open(renamed, false).unwrap();
    assert_eq!(push_all(&mut writer, &[1, 2]), 0);
    writer.finish(extraction()).unwrap();
    assert_eq!(Manifest::read(dir.path()).unwrap().classes, ["dog", "cat"]);
    assert_eq!(parts(dir.path()), ["part-00001.parquet"]);
}

#[test]
fn one_writer_at_a_time_and_a_dead_one_leaves_no_lock() {
    let dir = tempfile::tempdir().unwrap();
    let writer = StoreWriter::open(target(dir.path()), false).unwrap();
    assert!(matches!(StoreWriter::open(target(dir.path()), false), Err(StoreError::Locked(_))));
    drop(writer);
    assert!(dir.path().join(".lock").exists());
    StoreWriter::open(target(dir.path()), false).unwrap();
}

#[test]
fn a_folder_with_other_things_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("thesis.doc"), b"mine").unwrap();
    assert!(matches!(StoreWriter::open(target(dir.path()), true), Err(StoreError::Foreign(_))));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_damaged_manifest_says_how_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    extract(dir.path(), &[1]);
    for content in ["{", "{}", r#"{"schema": 99}"#, "[]", "\u{0}"] {
        fs::write(dir.path().join("store.json"), content).unwrap();
        let error = StoreWriter::open(target(dir.path()), false).unwrap_err().to_string();
        assert!(error.contains("store.json") && error.contains("--rebuild"), "{content}: {error}");
    }
    StoreWriter::open(target(dir.path()), true).unwrap();
}

#[test]
fn quarantined_images_keep_their_reasons() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = StoreWriter::open(target(dir.path()), false).unwrap();
    let image = Quarantined { id: "x".into(), split: "train".into(), error: "empty".into(), content_hash: None };
    writer.quarantine(image.clone());
    push_all(&mut writer, &[1]);
    let manifest = writer.finish(extraction()).unwrap();
    assert_eq!(manifest.quarantined, 1);
    assert_eq!(Store::open(dir.path()).unwrap().quarantine().unwrap(), [image]);
}
