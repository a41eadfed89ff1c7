//! What goes wrong while stage 1 runs: the disk is full, the target is read-only, the source changes under it. What was done
//! is kept, and the same command goes on.

#![cfg(unix)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tlpipe::store::Store;

use crate::support::{Ran, Scratch, assets, finish, first_rows, parquet, picture, pipe, png, quick, signal};

fn extract<'a>(data: &'a str, features: &'a str) -> Vec<&'a str> {
    [&["extract"][..], &quick(data, &["--features", features])].concat()
}

/// Rows, those run now and those reused, of an extraction that goes on.
fn figures(scratch: &Scratch, args: &[&str]) -> (u64, u64, u64) {
    let json = scratch.json(args);
    (json["rows"].as_u64().unwrap(), json["new"].as_u64().unwrap(), json["reused"].as_u64().unwrap())
}

/// Split, rows and hash of every shard.
fn shards(scratch: &Scratch, features: &str) -> Vec<(String, usize, String)> {
    let store = Store::open(&scratch.path(features)).unwrap();
    store.manifest().shards.iter().map(|shard| (shard.split.clone(), shard.rows, shard.blake3.clone())).collect()
}

fn assert_no_temporary_files(folder: &Path) {
    for entry in walkdir::WalkDir::new(folder) {
        let path = entry.unwrap().into_path();
        assert!(!path.file_name().unwrap().to_string_lossy().starts_with(".tmp-"), "{} was left behind", path.display());
    }
}

/// An extraction, slow enough to do something to it, that is stopped in the middle of its second split.
fn stopped_in_second_split(scratch: &Scratch, data: &str) -> Child {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin("tlpipe"));
    command.current_dir(scratch.path("")).args(["extract", "--data", data, "--model", "quickstart", "--features", "f"]);
    command.args(["--input-size", "224", "--batch", "1", "--threads", "1"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // The shard of the first split is written when the second one begins.
    while !scratch.path("f/train/part-00000.parquet").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended before the first shard was written");
        std::thread::sleep(Duration::from_millis(2));
    }
    signal(&child, "-STOP");
    child
}

fn go_on(child: Child) -> Ran {
    signal(&child, "-CONT");
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { status: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// The same at 224 px, to its end.
fn at_224<'a>(data: &'a str, features: &'a str) -> Vec<&'a str> {
    vec!["extract", "--data", data, "--model", "quickstart", "--input-size", "224", "--features", features]
}

/// A source of three splits as Parquet, the second one long.
fn three_splits(scratch: &Scratch) {
    for (split, rows) in [("train", 6), ("validation", 400), ("test", 8)] {
        write_split(scratch, split, rows, 0);
    }
}

fn write_split(scratch: &Scratch, split: &str, rows: usize, first: usize) {
    let images: Vec<_> = (first..first + rows).map(|number| Some(png(&picture(number % 2, number)))).collect();
    let labels: Vec<i64> = (0..rows).map(|row| i64::from(row % 2 == 1)).collect();
    parquet(&scratch.path(&format!("set/{split}.parquet")), &images, &labels);
}

/// What does not fit is said, and leaves nothing half written.
fn assert_goes_on_after_a_full_disk(scratch: &Scratch, limited: Vec<&str>, whole: Vec<&str>, blocks: usize, first: u64) {
    // Files above the limit cannot be written: the closest to a full disk that every system has.
    let script = format!("trap '' XFSZ; ulimit -f {blocks} || exit 99; exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command.current_dir(scratch.path("")).arg("-c").arg(script).arg(assert_cmd::cargo::cargo_bin("tlpipe")).args(&limited);
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    for needle in ["f/test/part-00000.parquet", "cannot be written", "ulimit -f", "go on with the same command"] {
        assert!(said.contains(needle), "no {needle:?} in: {said}");
    }
    assert_no_temporary_files(&scratch.path("f"));
    let said = scratch.fails(1, &["fit-head", "--features", "f", "--run", "r"]);
    assert!(said.contains("has not finished"), "{said}");
    let (rows, new, reused) = figures(scratch, &limited);
    assert!(rows == new + reused && reused >= first, "{rows} rows, {new} new, {reused} reused");
    scratch.ok(&whole);
    assert_eq!(shards(scratch, "f"), shards(scratch, "whole"));
}

#[test]
fn a_full_disk_stops_the_run_and_costs_nothing_that_was_recorded() {
    let scratch = Scratch::new();
    scratch.folders("photos/train", &["cat", "dog"], 8);
    scratch.folders("photos/test", &["cat", "dog"], 1000);
    // Whatever is provisioned once is there before the limit is.
    scratch.ok(&extract("photos", "whole"));
    let size = |file: &str| fs::metadata(scratch.path(file)).unwrap().len();
    // A block is 512 or 1,024 bytes.
    let blocks = usize::try_from(size("whole/train/part-00000.parquet").max(size("whole/store.json")) / 512 + 8).unwrap();
    assert!(size("whole/test/part-00000.parquet") > blocks as u64 * 1024, "the second split is too small for this test");
    assert_goes_on_after_a_full_disk(&scratch, extract("photos", "f"), extract("photos", "whole"), blocks, 16);
}

#[test]
fn a_full_disk_costs_the_real_model_nothing_either() {
    let Some(assets) = assets() else { return };
    let scratch = Scratch::new();
    for (split, rows) in [("train", 20), ("test", 300)] {
        let file = format!("{split}-00000-of-00001.parquet");
        first_rows(&assets.join("cifar10/plain_text").join(&file), rows, &scratch.path("set").join(&file));
    }
    let model = assets.join("models/mobilenet_v2_1.0_224.onnx").display().to_string();
    let extract =
        |features| vec!["extract", "--data", "set", "--model", &model, "--input-size", "32", "--features", features, "--offline"];
    assert_goes_on_after_a_full_disk(&scratch, extract("f"), extract("whole"), 512, 20);
}

#[test]
fn a_folder_that_cannot_be_written_is_said_and_what_is_there_stands() {
    let scratch = Scratch::new();
    let data = scratch.folders("photos", &["cat", "dog"], 4);
    fs::write(scratch.path("file"), b"mine").unwrap();
    let said = scratch.fails(1, &extract(&data, "file/f"));
    assert!(said.contains("file/f") && said.contains("name another folder with --features"), "{said}");
    assert_eq!(fs::read(scratch.path("file")).unwrap(), b"mine");

    scratch.ok(&extract(&data, "f"));
    let mode = |path: &str, mode| fs::set_permissions(scratch.path(path), fs::Permissions::from_mode(mode)).unwrap();
    mode("f", 0o555);
    if fs::write(scratch.path("f/probe"), b"").is_ok() {
        println!("skipped: this user (root?) may write to read-only folders");
        return;
    }
    // Nothing to do needs no right to write.
    assert_eq!(scratch.json(&extract(&data, "f"))["up_to_date"], true);
    picture(1, 50).save(scratch.path("photos/cat/new.png")).unwrap();
    let said = scratch.fails(1, &extract(&data, "f"));
    assert!(said.contains("error: f") && said.contains("ermission denied") && said.contains("writable"), "{said}");
    assert_eq!(Store::open(&scratch.path("f")).unwrap().manifest().rows("train"), 8);
    mode("f", 0o755);
    mode("", 0o555);
    let said = scratch.fails(1, &extract(&data, "g/deep"));
    assert!(said.contains("g/deep") && said.contains("name another folder with --features"), "{said}");
    mode("", 0o755);
    assert_eq!(figures(&scratch, &extract(&data, "f")), (9, 1, 8));
}

#[test]
fn files_changed_and_removed_during_the_run_are_taken_as_found() {
    let scratch = Scratch::new();
    scratch.folders("photos/train", &["cat", "dog"], 3);
    scratch.folders("photos/test", &["cat", "dog"], 200);
    let test = scratch.path("photos/test/dog");
    let child = stopped_in_second_split(&scratch, "photos");
    fs::remove_file(test.join("199.png")).unwrap();
    fs::write(test.join("198.png"), b"no image any more").unwrap();
    fs::remove_file(test.join("197.png")).unwrap();
    let piped = pipe(&test.join("197.png"));
    picture(0, 7).save(test.join("196.png")).unwrap();
    let ran = go_on(child);
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    for needle in ["photos: the source changed while it was read", "3 of 406 images cannot be used", "quarantine.parquet"] {
        assert!(ran.stderr.contains(needle), "no {needle:?} in (too quick a machine?): {}", ran.stderr);
    }
    let reasons = || -> BTreeMap<String, String> {
        let quarantine = Store::open(&scratch.path("f")).unwrap().quarantine().unwrap();
        quarantine.into_iter().map(|image| (image.id, image.error)).collect()
    };
    let found = reasons();
    let reason = |number: u32| &found[&format!("test/dog/{number}.png")];
    assert!(reason(199).contains("No such file"), "{}", reason(199));
    assert!(!reason(198).is_empty());
    assert!(reason(197).contains(if piped { "not a regular file" } else { "No such file" }), "{}", reason(197));

    // What was there when it was read has been kept; only the rest is looked at again.
    assert_eq!(figures(&scratch, &at_224("photos", "f")), (403, 0, 403));
    assert!(!reasons().contains_key("test/dog/199.png"));
    picture(1, 198).save(test.join("198.png")).unwrap();
    assert_eq!(figures(&scratch, &at_224("photos", "f")), (404, 1, 403));
    scratch.ok(&at_224("photos", "whole"));
    assert_eq!(shards(&scratch, "f"), shards(&scratch, "whole"));
}

#[test]
fn a_parquet_file_removed_during_the_run_is_named_and_the_rest_kept() {
    let scratch = Scratch::new();
    three_splits(&scratch);
    let test = scratch.path("set/test.parquet");
    let away = scratch.path("away.parquet");
    let child = stopped_in_second_split(&scratch, "set");
    fs::rename(&test, &away).unwrap();
    let ran = go_on(child);
    assert_eq!(ran.status, Some(1), "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stderr.contains("set/test.parquet") && ran.stderr.contains("run the same command again"), "{}", ran.stderr);
    fs::rename(&away, &test).unwrap();
    assert_eq!(figures(&scratch, &at_224("set", "f")), (414, 8, 406));
}

#[test]
fn a_parquet_file_replaced_during_the_run_is_never_read_by_its_old_footer() {
    let scratch = Scratch::new();
    three_splits(&scratch);
    let child = stopped_in_second_split(&scratch, "set");
    write_split(&scratch, "test", 11, 70);
    let ran = go_on(child);
    assert_eq!(ran.status, Some(1), "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stderr.contains("set/test.parquet: it was changed or removed"), "{}", ran.stderr);
    assert_eq!(figures(&scratch, &at_224("set", "f")), (417, 11, 406));
    scratch.ok(&at_224("set", "whole"));
    assert_eq!(shards(&scratch, "f"), shards(&scratch, "whole"));
}

#[test]
fn pipes_devices_and_loops_among_the_images_do_not_hang_the_run() {
    let scratch = Scratch::new();
    let data = scratch.folders("photos", &["cat", "dog"], 5);
    if !pipe(&scratch.path("photos/cat/endless.jpg")) || !pipe(&scratch.path("photos/dog/notes.txt")) {
        return;
    }
    symlink("/dev/zero", scratch.path("photos/cat/zero.png")).unwrap();
    symlink("nowhere.png", scratch.path("photos/dog/dangling.png")).unwrap();
    symlink(scratch.path("photos"), scratch.path("photos/dog/again")).unwrap();
    let ran = finish(scratch.command(&extract(&data, "f")).timeout(Duration::from_secs(120)));
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    for needle in ["3 of 13 images cannot be used", "notes.txt: not a regular file", "again: a symbolic link to a folder that"] {
        assert!(ran.stderr.contains(needle), "no {needle:?} in: {}", ran.stderr);
    }
    let quarantine = Store::open(&scratch.path("f")).unwrap().quarantine().unwrap();
    let said: BTreeMap<_, _> = quarantine.iter().map(|image| (image.id.as_str(), image.error.as_str())).collect();
    for (id, reason) in [
        ("cat/endless.jpg", "endless.jpg: not a regular file"),
        ("cat/zero.png", "zero.png: not a regular file"),
        ("dog/dangling.png", "dangling.png: No such file"),
    ] {
        assert!(said[id].contains(reason), "{id}: {}", said[id]);
    }
    assert_eq!(scratch.json(&extract(&data, "f"))["up_to_date"], true);
}
