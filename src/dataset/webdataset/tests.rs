use std::fs;

use super::super::Dataset;
use super::super::fixture::{labelled, open, records, refused, splits, tar, tree, write};
use super::*;

fn shard(members: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("shard.tar"), &tar(members));
    folder
}

#[test]
fn members_of_one_key_are_one_sample() {
    let folder = tempfile::tempdir().unwrap();
    let train = tar(&[
        ("./dogs/b.x.JPG", b"image b"),
        ("./dogs/b.cls", b"dog\n"),
        ("a.cls", b"cat"),
        ("a.png", b"image a"),
        ("a.txt", b"a caption"),
        ("._a.jpg", b"left by another system"),
        ("README", b"no extension"),
    ]);
    write(&folder.path().join("set-train-0000.tar"), &train);
    write(&folder.path().join("set-val-0000.tar"), &tar(&[("c.jpg", b"c"), ("c.json", br#"{"Label": "dog", "size": 3}"#)]));
    write(&folder.path().join("preview/c.jpg"), b"c");
    let dataset = open(folder.path()).unwrap();
    assert_eq!((dataset.name(), dataset.classes()), ("WebDataset", &["cat".to_owned(), "dog".to_owned()][..]));
    assert_eq!(splits(&dataset), [("train", 2), ("validation", 1)]);
    let expected = [("set-train-0000.tar#dogs/b", Some(1)), ("set-train-0000.tar#a", Some(0))];
    assert_eq!(labelled(&dataset, "train"), expected.map(|(id, label)| (id.to_owned(), label)));
    assert_eq!(labelled(&dataset, "validation"), [("set-val-0000.tar#c".to_owned(), Some(1))]);
    let images: Vec<_> = records(&dataset, "train").iter().map(|record| record.image.read().unwrap().unwrap()).collect();
    assert_eq!(images, ["image b", "image a"]);
    let asked = ["set-train-0000.tar#a".to_owned(), "set-train-0000.tar#gone".to_owned()].into();
    let images = dataset.images("train", &asked).unwrap();
    assert_eq!(images.into_iter().collect::<Vec<_>>(), [("set-train-0000.tar#a".to_owned(), "image a".into())]);
    assert!(dataset.warnings()[0].contains("1 file left out: 1 .jpg"), "{:?}", dataset.warnings());
}

#[test]
fn integers_count_from_zero_and_members_may_lie_apart() {
    let folder = shard(&[("b.jpg", b"b"), ("a.jpg", b"a"), ("c.jpg", b"c"), ("a.cls", b"2"), ("b.cls", b"0"), ("c.cls", b"-1")]);
    let dataset = open(folder.path()).unwrap();
    assert_eq!(dataset.classes(), ["0", "1", "2"]);
    let expected = [("shard.tar#b", Some(0)), ("shard.tar#a", Some(2)), ("shard.tar#c", None)];
    assert_eq!(labelled(&dataset, "train"), expected.map(|(id, label)| (id.to_owned(), label)));
}

#[test]
fn what_a_sample_lacks_is_counted() {
    let folder = shard(&[
        ("a.jpg", b"a"),
        ("a.mask.png", b"mask"),
        ("a.cls", b"cat"),
        ("b.cls", b"dog"),
        ("c.jpg", b"c"),
        ("d.jpg", b"d"),
        ("d.json", b"{"),
        ("e.jpg", b"e"),
        ("e.json", br#"{"label": ["x", "y"]}"#),
    ]);
    let dataset = open(folder.path()).unwrap();
    assert_eq!((splits(&dataset), dataset.classes()), (vec![("train", 4)], &["cat".to_owned()][..]));
    let said = dataset.warnings().join("\n");
    assert!(said.contains("1 sample without an image, skipped (the first is shard.tar#b)"), "{said}");
    assert!(said.contains("1 image beside the first one of a sample") && said.contains("shard.tar#a, .mask.png"), "{said}");
    assert!(said.contains("2 labels cannot be read") && said.contains("shard.tar#d"), "{said}");
    assert!(said.contains("3 of 4 images of train have no label"), "{said}");
    let options = SourceOptions { image_column: Some("mask.png".to_owned()), ..SourceOptions::default() };
    let dataset = Dataset::open(&[folder.path().to_owned()], &options).unwrap();
    assert_eq!(records(&dataset, "train")[0].image.read().unwrap().unwrap(), "mask");
}

#[test]
fn the_label_column_is_a_field_or_the_class_member() {
    let folder = shard(&[
        ("a.jpg", b"a"),
        ("a.cls", b"7"),
        ("a.json", br#"{"breed": "collie", "age": 3}"#),
        ("b.jpg", b"b"),
        ("b.json", b"{}"),
    ]);
    let with = |column: &str| {
        let options = SourceOptions { label_column: Some(column.to_owned()), ..SourceOptions::default() };
        Dataset::open(&[folder.path().join("shard.tar")], &options)
    };
    assert_eq!(with("breed").unwrap().classes(), ["collie"]);
    assert_eq!(with("age").unwrap().classes().len(), 4);
    assert_eq!(with("cls").unwrap().classes().len(), 8);
    let text = with("species").unwrap_err().to_string();
    assert!(text.contains("species") && text.contains("age, breed") && text.contains("--label-column"), "{text}");
    let folder = shard(&[("a.jpg", b"a"), ("a.json", br#"{"kind": "x"}"#)]);
    let dataset = open(folder.path()).unwrap();
    assert!(dataset.warnings()[0].contains("no label field among kind; choose one"), "{:?}", dataset.warnings());
}

#[test]
fn long_names_are_read_whole() {
    let long = format!("{}/x", "folder".repeat(40));
    let folder = shard(&[(&format!("{long}.jpg"), b"x"), (&format!("{long}.cls"), b"owl")]);
    assert_eq!(labelled(&open(folder.path()).unwrap(), "train"), [(format!("shard.tar#{long}"), Some(0))]);
}

#[test]
fn damaged_shards_name_file_reason_and_remedy() {
    let whole = tar(&[("a.jpg", &[7; 3000]), ("a.cls", b"1"), ("b.jpg", &[8; 3000]), ("b.cls", b"0")]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shard.tar");
    for length in [100, 700, 3000, 5000, 6000] {
        fs::write(&path, &whole[..length]).unwrap();
        let text = refused(&path);
        assert!(text.contains("shard.tar") && text.contains("get the file again"), "{length}: {text}");
    }
    fs::write(&path, b"").unwrap();
    assert!(refused(&path).contains("not a source of images"), "{}", refused(&path));
    let mut damaged = whole.clone();
    damaged[4608] ^= 0xFF;
    fs::write(&path, damaged).unwrap();
    assert!(refused(&path).contains("not a whole tar archive"), "{}", refused(&path));
    // Cut between opening and reading.
    fs::write(&path, &whole).unwrap();
    let dataset = open(&path).unwrap();
    fs::write(&path, &whole[..2000]).unwrap();
    let error = dataset.records("train").unwrap().collect::<Result<Vec<_>, _>>().unwrap_err();
    assert!(matches!(error, DatasetError::Changed(_)) && error.to_string().contains("shard.tar"), "{error}");
}

#[test]
fn an_archive_without_images_beside_class_folders_is_left_out() {
    let folder = tree(&["cat/1.jpg", "dog/1.jpg"]);
    write(&folder.path().join("notes.tar"), &tar(&[("notes.txt", b"x")]));
    let dataset = open(folder.path()).unwrap();
    assert_eq!(dataset.name(), "class folders");
    assert!(dataset.warnings()[0].contains("1 file left out: 1 .tar"), "{:?}", dataset.warnings());
    assert!(refused(folder.path().join("notes.tar")).contains("not a source of images"));
}

#[test]
fn the_fingerprint_follows_the_shards() {
    let folder = shard(&[("a.jpg", b"a"), ("a.cls", b"1")]);
    let first = open(folder.path()).unwrap().fingerprint();
    assert_eq!(first, open(folder.path()).unwrap().fingerprint());
    write(&folder.path().join("shard.tar"), &tar(&[("a.jpg", b"a"), ("a.cls", b"1"), ("b.jpg", b"b")]));
    assert_ne!(first, open(folder.path()).unwrap().fingerprint());
}

fn packed(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, content).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn packed_shards_are_read_as_those_that_are_not() {
    let noise = |seed: usize| (0..100_000).map(|at: usize| (at * at / (seed + 3)) as u8).collect::<Vec<_>>();
    let (a, b, c) = (noise(1), noise(2), noise(3));
    let plain = tar(&[("b.jpg", &b), ("a.jpg", &a), ("a.cls", b"cat"), ("c.json", br#"{"label": "dog"}"#), ("c.jpg", &c)]);
    // Two gzip members one after the other are one content, too.
    let (first, second) = plain.split_at(150_000);
    for content in [packed(&plain), [packed(first), packed(second)].concat()] {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("set-test-0.tar.gz"), &content);
        write(&folder.path().join("set-train-0.TGZ"), &packed(&tar(&[("d.png", b"d")])));
        let dataset = open(folder.path()).unwrap();
        assert_eq!((dataset.name(), splits(&dataset)), ("WebDataset", vec![("train", 1), ("test", 3)]));
        let images: Vec<_> = records(&dataset, "test").into_iter().map(|record| record.image.read().unwrap().unwrap()).collect();
        assert!(images == [&b[..], &a, &c]);
        let id = |key: &str| format!("set-test-0.tar.gz#{key}");
        let expected = [("b", None), ("a", Some(0)), ("c", Some(1))].map(|(key, label)| (id(key), label));
        assert_eq!(labelled(&dataset, "test"), expected);
        let found = dataset.images("test", &[id("c"), id("b")].into()).unwrap();
        assert!(found.len() == 2 && found[&id("c")] == c && found[&id("b")] == b);
    }
}

#[test]
fn damaged_packed_shards_name_file_reason_and_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shard.tar.gz");
    let whole = packed(&tar(&[("a.jpg", &[7; 3000]), ("a.cls", b"1"), ("b.jpg", &[8; 3000]), ("b.cls", b"0")]));
    let mut garbled = whole.clone();
    garbled[whole.len() / 2] ^= 0xFF;
    for (what, content) in [("cut", &whole[..whole.len() / 2]), ("garbled", &garbled), ("no gzip", b"ustar, but not packed")] {
        fs::write(&path, content).unwrap();
        let text = refused(&path);
        assert!(text.contains("shard.tar.gz") && text.contains("get the file again"), "{what}: {text}");
    }
}
