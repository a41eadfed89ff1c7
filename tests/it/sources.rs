//! Every kind of source, through the program.

use std::fs;

use flate2::Compression;
use flate2::write::GzEncoder;
use tlpipe::store::Store;

use crate::support::{Scratch, parquet, picture, png, quick};

fn extract(scratch: &Scratch, data: &str, more: &[&str]) -> Store {
    let _ = fs::remove_dir_all(scratch.path("f"));
    scratch.ok(&[&["extract"][..], &quick(data, &["--features", "f"]), more].concat());
    Store::open(&scratch.path("f")).unwrap()
}

#[test]
fn class_folders_with_and_without_splits() {
    let scratch = Scratch::new();
    scratch.folders("flat", &["cat", "dog"], 4);
    let store = extract(&scratch, "flat", &[]);
    assert_eq!(store.manifest().splits(), ["train"]);
    assert_eq!(store.manifest().classes, ["cat", "dog"]);
    for split in ["train", "val", "test"] {
        scratch.folders(&format!("split/{split}"), &["cat", "dog"], 3);
    }
    let store = extract(&scratch, "split", &[]);
    let mut splits = store.manifest().splits();
    splits.sort();
    assert_eq!(splits, ["test", "train", "validation"]);
    let rows = store.load(&["test"]).unwrap();
    assert_eq!(rows.ids[0], "test/cat/000.png");
    assert_eq!(rows.labels, [0, 0, 0, 1, 1, 1].map(Some));
    // The source's own validation images are the hold-out.
    let metrics = scratch.json(&["fit-head", "--features", "f", "--run", "r"]);
    assert_eq!(metrics["split"]["kind"], "source");
    assert_eq!(metrics["validation"]["rows"], 6);
    assert_eq!(metrics["train"]["rows"], 6);
}

#[test]
fn parquet_as_a_file_a_folder_and_a_pattern() {
    let scratch = Scratch::new();
    let images: Vec<_> = (0..6).map(|number| Some(png(&picture(number % 2, number)))).collect();
    let labels = [0, 1, 0, 1, 0, 1];
    parquet(&scratch.path("set/train-00000-of-00001.parquet"), &images, &labels);
    parquet(&scratch.path("set/test-00000-of-00001.parquet"), &images[..2], &labels[..2]);
    assert_eq!(extract(&scratch, "set/train-00000-of-00001.parquet", &[]).manifest().rows("train"), 6);
    for data in ["set", "set/*.parquet"] {
        let store = extract(&scratch, data, &[]);
        assert_eq!((store.manifest().rows("train"), store.manifest().rows("test")), (6, 2), "{data}");
        assert_eq!(store.load(&["train"]).unwrap().labels[1], Some(1));
    }
}

#[test]
fn a_table_of_paths_with_labels_and_splits() {
    let scratch = Scratch::new();
    scratch.folders("photos", &["cat", "dog"], 3);
    let mut table = String::from("file,animal,split\n");
    for class in ["cat", "dog"] {
        for (number, split) in [(0, "train"), (1, "train"), (2, "test")] {
            table.push_str(&format!("photos/{class}/{number:03}.png,{class},{split}\n"));
        }
    }
    fs::write(scratch.path("animals.csv"), table).unwrap();
    let store = extract(&scratch, "animals.csv", &["--label-column", "animal"]);
    assert_eq!((store.manifest().rows("train"), store.manifest().rows("test")), (4, 2));
    assert_eq!(store.manifest().classes, ["cat", "dog"]);
    assert_eq!(store.load(&["test"]).unwrap().labels, [Some(0), Some(1)]);
}

#[test]
fn cifar_binary_as_an_archive() {
    let scratch = Scratch::new();
    let batch = |first: u8| -> Vec<u8> {
        (0..20_u8)
            .flat_map(|row| std::iter::once(row % 10).chain((0..3072).map(move |at| (at % 251) as u8 ^ row ^ first)))
            .collect()
    };
    let file = fs::File::create(scratch.path("cifar-10-binary.tar.gz")).unwrap();
    let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::fast()));
    let mut add = |name: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, format!("cifar-10-batches-bin/{name}"), content).unwrap();
    };
    for number in 1..=5 {
        add(&format!("data_batch_{number}.bin"), &batch(number));
    }
    add("test_batch.bin", &batch(9));
    add("batches.meta.txt", b"airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n");
    archive.into_inner().unwrap().finish().unwrap();
    let store = extract(&scratch, "cifar-10-binary.tar.gz", &[]);
    assert_eq!((store.manifest().rows("train"), store.manifest().rows("test")), (100, 20));
    assert_eq!(store.manifest().classes[9], "truck");
    assert_eq!(store.load(&["test"]).unwrap().labels[3], Some(3));
}
