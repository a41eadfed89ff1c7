//! Stage 1 again and again: what is new is run, what is there is kept, whatever happened in between.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use tlpipe::store::Store;

#[cfg(unix)]
use crate::support::signal;
use crate::support::{Scratch, picture, quick};

fn extracted(scratch: &Scratch, data: &str, more: &[&str]) -> serde_json::Value {
    scratch.json(&[&["extract"][..], &quick(data, &["--features", "f"]), more].concat())
}

fn figures(scratch: &Scratch, data: &str, more: &[&str]) -> (u64, u64, u64) {
    let json = extracted(scratch, data, more);
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
    let json = extracted(&scratch, &data, &[]);
    let figures_of = ["rows", "new", "changed", "removed", "reused"].map(|name| json[name].as_u64().unwrap());
    assert_eq!(figures_of, [20, 2, 1, 1, 18]);
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

/// A folder `many` of 9,000 images in one Parquet file.
#[cfg(unix)]
fn with_many() -> Scratch {
    use crate::support::{parquet, png};
    let scratch = Scratch::new();
    let images: Vec<_> = (0..9000).map(|number| Some(png(&picture(number % 2, number)))).collect();
    let labels: Vec<i64> = (0..9000).map(|number| number % 2).collect();
    parquet(&scratch.path("many/train-00000-of-00001.parquet"), &images, &labels);
    scratch
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
    let scratch = with_many();

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
    // Some at the very start, the others anywhere; a few come too late on a quick machine.
    for kill in 0..20_u64 {
        let moment = kill * 7919 % 401;
        let mut child = command.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(moment));
        signal(&child, "-KILL");
        child.wait().unwrap();
    }
    let (rows, new, reused) = figures(&scratch, "many", &[]);
    assert_eq!(rows, 9000);
    assert_eq!(new + reused, 9000);
    assert!(reused >= 1024, "{reused} reused");
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

#[test]
fn slices_made_by_jobs_of_their_own_are_one_store() {
    let scratch = Scratch::new();
    let data = scratch.folders("photos", &["cat", "dog"], 20);
    fs::write(scratch.path("photos/cat/bad.png"), b"no").unwrap();
    let into = |features: &str, more: &[&str]| {
        scratch.json(&[&["extract"][..], &quick(&data, &["--features", features]), more].concat())
    };
    let whole = into("whole", &[])["rows"].as_u64().unwrap();
    let slice = |number: usize| into("sliced", &["--shard", &format!("{number}/3")])["rows"].as_u64().unwrap();
    let rows = slice(1) + slice(3);
    let fit = ["fit-head", "--features", "sliced", "--run", "r"];
    let said = scratch.ok(&fit).stderr;
    assert!(said.contains("1 of 3 slices") && said.contains("--shard 2/3"), "{said}");
    assert_eq!(rows + slice(2), whole);
    // A slice is up to date like any store.
    assert_eq!(into("sliced", &["--shard", "2/3"])["up_to_date"], true);
    let said = scratch.ok(&fit).stderr;
    assert!(!said.contains("slices"), "{said}");
    let (whole, sliced) = (Store::open(&scratch.path("whole")).unwrap(), Store::open(&scratch.path("sliced")).unwrap());
    assert_eq!(sliced.quarantine().unwrap(), whole.quarantine().unwrap());
    let rows = |store: &Store| {
        let rows = store.load(&["train"]).unwrap();
        let bits = rows.embeddings.rows().into_iter().map(|row| row.iter().map(|value| value.to_bits()).collect::<Vec<_>>());
        let mut rows: Vec<_> = rows.ids.iter().cloned().zip(rows.labels.iter().copied()).zip(bits).collect();
        rows.sort();
        rows
    };
    assert!(rows(&whole) == rows(&sliced));
    let said = scratch.fails(1, &[&["extract"][..], &quick(&data, &["--features", "whole", "--shard", "1/3"])].concat());
    assert!(said.contains("made in one piece"), "{said}");
    let refused = |more: &[&str]| scratch.fails(1, &[&["extract"][..], &quick(&data, &["--features", "sliced"]), more].concat());
    assert!(refused(&[]).contains("made in slices") && refused(&["--shard", "1/4"]).contains("slices of 3 are here"));
    fs::create_dir(scratch.path("sliced/slice-00001-of-00004")).unwrap();
    let said = scratch.fails(1, &fit);
    assert!(said.contains("slices of 3 and slices of 4"), "{said}");
}

#[cfg(unix)]
#[test]
fn a_rebuild_that_is_stopped_leaves_the_features_that_stand() {
    let scratch = with_many();
    figures(&scratch, "many", &[]);
    let before = fs::read(scratch.path("f/store.json")).unwrap();
    let rebuild = ["--rebuild", "--resize", "crop"];
    let mut command = start(&scratch);
    let child = command.args(rebuild).spawn().unwrap();
    let draft = scratch.path("f/store.rebuild.json");
    let recorded = || fs::read_to_string(&draft).is_ok_and(|text| text.contains("part-0000"));
    while !recorded() {
        std::thread::sleep(Duration::from_millis(5));
    }
    signal(&child, "-KILL");
    child.wait_with_output().unwrap();
    assert!(draft.exists(), "the machine is too quick for this test: make the source larger");
    assert_eq!(fs::read(scratch.path("f/store.json")).unwrap(), before);
    scratch.ok(&["fit-head", "--features", "f", "--run", "r"]);
    let (rows, _, reused) = figures(&scratch, "many", &rebuild);
    assert!(rows == 9000 && reused >= 1024, "{rows} rows, {reused} reused");
    assert!(!draft.exists());
    let parts = fs::read_dir(scratch.path("f/train")).unwrap().count();
    assert_eq!(parts, Store::open(&scratch.path("f")).unwrap().manifest().shards.len());
}

#[test]
fn damage_behind_our_back_is_found_and_mended() {
    let scratch = Scratch::new();
    let data = scratch.folders("photos", &["cat", "dog"], 8);
    figures(&scratch, &data, &[]);
    let part = scratch.path("f/train/part-00000.parquet");
    let good = fs::read(&part).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle..middle + 16].fill(b'X');
    fs::write(&part, &bad).unwrap();
    let fit = ["fit-head", "--features", "f", "--run", "r"];
    let said = scratch.fails(1, &fit);
    assert!(said.contains("part-00000.parquet") && said.contains("delete this file"), "{said}");
    fs::remove_file(&part).unwrap();
    assert_eq!(figures(&scratch, &data, &[]), (16, 16, 0));
    scratch.ok(&fit);
    // Without its manifest a store is nothing, but still a store's folder.
    fs::remove_file(scratch.path("f/store.json")).unwrap();
    assert!(scratch.fails(1, &fit).contains("store.json is missing"));
    assert_eq!(figures(&scratch, &data, &[]), (16, 16, 0));
    scratch.ok(&fit);
}

#[cfg(unix)]
#[test]
fn an_interrupted_fit_goes_on_and_ends_as_one_that_was_not() {
    use std::io::{BufRead as _, BufReader};
    let scratch = Scratch::new();
    let data = scratch.folders("photos", &["cat", "dog"], 12);
    scratch.ok(&[&["extract"][..], &quick(&data, &["--features", "f"])].concat());
    // More epochs than lines fit into the pipe: it cannot be through before the signal.
    let fit = |run: &'static str| {
        let keys = ["--dropout", "0.2", "--schedule", "cosine", "--patience", "20000"];
        [&["fit-head", "--features", "f", "--run", run, "--epochs", "20000"][..], &keys].concat()
    };
    let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin("tlpipe"));
    command.current_dir(scratch.path("")).args(fit("r")).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    while !lines.next().unwrap().unwrap().contains("epoch     3/20000") {}
    signal(&child, "-INT");
    let said: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{said:?}");
    assert!(said.last().unwrap().contains("the same command goes on from there"), "{said:?}");
    assert!(scratch.path("r/checkpoint.safetensors").exists() && !scratch.path("r/metrics.json").exists());

    let said = scratch.ok(&fit("r")).stderr;
    assert!(said.contains("goes on after epoch"), "{said}");
    assert!(!scratch.path("r/checkpoint.safetensors").exists());
    scratch.ok(&fit("whole"));
    let head = |run: &str| fs::read(scratch.path(run).join("head.safetensors")).unwrap();
    assert_eq!(head("r"), head("whole"));
    let history = fs::read_to_string(scratch.path("r/history.csv")).unwrap();
    assert!(history.starts_with("epoch,loss,accuracy,val_loss,val_accuracy,seconds,learning_rate\n"), "{history:.100}");
    assert_eq!(history.lines().count(), 20_001);
}
