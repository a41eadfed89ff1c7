//! Stage 1 again and again: what is new is run, what is there is kept, whatever happened in between.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use tlpipe::store::Store;

use crate::support::{Scratch, picture, quick};

fn figures(scratch: &Scratch, data: &str, more: &[&str]) -> (u64, u64, u64) {
    let json = scratch.json(&[&["extract"][..], &quick(data, &["--features", "f"]), more].concat());
    (json["rows"].as_u64().unwrap(), json["new"].as_u64().unwrap(), json["reused"].as_u64().unwrap())
}

#[test]
fn only_new_and_changed_images_are_run() {
    let scratch = Scratch::new();
    let data = scratch.folders("photos", &["cat", "dog"], 10);
    assert_eq!(figures(&scratch, &data, &[]), (20, 20, 0));
    assert_eq!(figures(&scratch, &data, &[]), (20, 0, 20));
    picture(1, 77).save(scratch.path("photos/cat/new.png")).unwrap();
    picture(0, 99).save(scratch.path("photos/dog/003.png")).unwrap();
    fs::remove_file(scratch.path("photos/cat/005.png")).unwrap();
    assert_eq!(figures(&scratch, &data, &[]), (20, 2, 18));
    let updated = Store::open(&scratch.path("f")).unwrap().load(&["train"]).unwrap();
    assert_eq!(figures(&scratch, &data, &["--rebuild"]), (20, 20, 0));
    let rebuilt = Store::open(&scratch.path("f")).unwrap().load(&["train"]).unwrap();
    assert_eq!(updated.ids, rebuilt.ids);
    assert_eq!(updated.embeddings, rebuilt.embeddings);
}

#[test]
fn a_new_class_moves_labels_and_keeps_features() {
    let scratch = Scratch::new();
    let data = scratch.folders("photos", &["cat", "dog"], 5);
    figures(&scratch, &data, &[]);
    scratch.folders("photos", &["ant"], 5);
    assert_eq!(figures(&scratch, &data, &[]), (15, 5, 10));
    let store = Store::open(&scratch.path("f")).unwrap();
    assert_eq!(store.manifest().classes, ["ant", "cat", "dog"]);
    let rows = store.load(&["train"]).unwrap();
    let dog = rows.ids.iter().position(|id| id == "dog/000.png").unwrap();
    assert_eq!(rows.labels[dog], Some(2));
}

#[test]
fn batch_and_threads_change_no_bit() {
    let scratch = Scratch::new();
    let data = scratch.folders("photos", &["cat", "dog", "fox"], 11);
    let features = |name: &str, batch: &str, threads: &str| {
        let more = ["--features", name, "--batch", batch, "--threads", threads];
        scratch.ok(&[&["extract"][..], &quick(&data, &more)].concat());
        Store::open(&scratch.path(name)).unwrap().load(&["train"]).unwrap()
    };
    let one = features("a", "1", "1");
    for (name, batch, threads) in [("b", "16", "2"), ("c", "5", "3")] {
        let other = features(name, batch, threads);
        assert_eq!(one.ids, other.ids);
        assert!(one.embeddings == other.embeddings, "batch {batch}, {threads} threads give other bits");
    }
}

#[cfg(unix)]
fn signal(child: &std::process::Child, name: &str) {
    let killed = std::process::Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
}

/// An extraction of many images by one thread.
#[cfg(unix)]
fn start(scratch: &Scratch) -> std::process::Command {
    let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin("tlpipe"));
    command.current_dir(scratch.path("")).args(["extract", "--threads", "1"]).args(quick("many", &["--features", "f"]));
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

#[cfg(unix)]
#[test]
fn a_killed_run_and_an_interrupted_run_lose_nothing() {
    use crate::support::{parquet, png};
    let scratch = Scratch::new();
    let images: Vec<_> = (0..9000).map(|number| Some(png(&picture(number % 2, number)))).collect();
    let labels: Vec<i64> = (0..9000).map(|number| number % 2).collect();
    parquet(&scratch.path("many/train-00000-of-00001.parquet"), &images, &labels);

    let mut command = start(&scratch);
    let child = command.spawn().unwrap();
    let recorded = scratch.path("f/train/part-00000.parquet");
    while !recorded.exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
    signal(&child, "-INT");
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    // On a very quick machine the second half may be through before the signal arrives.
    if !output.status.success() {
        assert_eq!(output.status.code(), Some(130), "{said}");
        assert!(said.contains("go on with the same command"), "{said}");
    }
    for moment in [50, 150, 300] {
        let mut child = command.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(moment));
        signal(&child, "-KILL");
        child.wait().unwrap();
    }
    let (rows, new, reused) = figures(&scratch, "many", &[]);
    assert_eq!(rows, 9000);
    assert_eq!(new + reused, 9000);
    assert!(reused >= 4096, "{reused} reused");
    let resumed = Store::open(&scratch.path("f")).unwrap();
    scratch.ok(&[&["extract"][..], &quick("many", &["--features", "whole"])].concat());
    let whole = Store::open(&scratch.path("whole")).unwrap();
    assert_eq!(resumed.manifest().shards.len(), whole.manifest().shards.len());
    for (a, b) in resumed.manifest().shards.iter().zip(&whole.manifest().shards) {
        assert_eq!((a.rows, &a.blake3), (b.rows, &b.blake3));
    }
}

#[test]
fn two_at_once_on_one_store_are_kept_apart() {
    let scratch = Scratch::new();
    let data = scratch.folders("photos", &["cat", "dog"], 3);
    fs::create_dir_all(scratch.path("f")).unwrap();
    let held = fs::File::create(scratch.path("f/.lock")).unwrap();
    held.lock().unwrap();
    let said = scratch.fails(1, &[&["extract"][..], &quick(&data, &["--features", "f"])].concat());
    assert!(said.contains("another tlpipe is writing"), "{said}");
    drop(held);
    assert_eq!(figures(&scratch, &data, &[]), (6, 6, 0));
}
