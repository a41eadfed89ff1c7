//! `tlpipe predict`: images to classes, in every format, from every place.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;

use crate::support::{Scratch, assets, finish, parquet, picture, png, signal};

/// Names that every format must carry as they are.
const CLASSES: [&str; 2] = ["cat, \"tabby\"", "two\nlines"];

/// A classifier of two classes, `m.onnx`, its images in `photos` and the run it came from in `r`.
pub fn exported(scratch: &Scratch) -> String {
    let photos = scratch.folders("photos", &CLASSES, 12);
    let pipeline = ["--data", &photos, "--model", "quickstart", "--input-size", "32", "--features", "f", "--run", "r"];
    scratch.ok(&[&["run"][..], &pipeline, &["--epochs", "40", "--quiet"]].concat());
    scratch.ok(&[&["export"][..], &["--run", "r", "-o", "m.onnx", "--quiet"]].concat());
    photos
}

fn rows(text: &str) -> Vec<Vec<String>> {
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    reader.records().map(|row| row.unwrap().iter().map(str::to_owned).collect()).collect()
}

#[test]
fn rows_come_in_the_order_of_the_images_and_say_what_was_scored() {
    let scratch = Scratch::new();
    let photos = exported(&scratch);
    fs::write(scratch.path("garbage.png"), "not an image").unwrap();
    let whole = png(&picture(0, 3));
    fs::write(scratch.path("half.png"), &whole[..whole.len() / 2]).unwrap();
    let second = format!("{photos}/two\nlines/003.png");
    let inputs = [second.as_str(), "garbage.png", "photos", "half.png", "gone.png", "photos/cat*/00[01].png"];
    let ran = scratch.run(&[&["predict", "m.onnx"], &inputs[..], &["--top-k", "2"]].concat());
    assert_eq!(ran.status, Some(1), "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stderr.contains("3 of 30 images could not be used"), "{}", ran.stderr);
    let rows = rows(&ran.stdout);
    let files: Vec<&str> = rows.iter().map(|row| row[0].as_str()).collect();
    assert_eq!(files[..3], [second.as_str(), "garbage.png", "photos/cat, \"tabby\"/000.png"]);
    assert_eq!(files[26..28], ["half.png", "gone.png"]);
    assert_eq!(files[28..], ["photos/cat, \"tabby\"/000.png", "photos/cat, \"tabby\"/001.png"]);
    for (row, reason) in [(1, "not an image"), (26, "truncated PNG"), (27, "No such file")] {
        assert!(rows[row][1].is_empty() && rows[row][8].starts_with(reason), "{:?}", rows[row]);
    }
    // What the run scored, of the same images in the same order.
    let mut scored = Vec::new();
    let file = fs::File::open(scratch.path("r/predictions.parquet")).unwrap();
    for batch in ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap() {
        let batch = batch.unwrap();
        for row in 0..batch.num_rows() {
            let text =
                |name: &str| arrow::util::display::array_value_to_string(batch.column_by_name(name).unwrap(), row).unwrap();
            let probabilities: Vec<f32> = serde_json::from_str(&text("probabilities")).unwrap();
            scored.push((text("id"), probabilities));
        }
    }
    assert_eq!(scored.len(), 24);
    for (id, expected) in scored {
        let row = rows.iter().find(|row| row[0].ends_with(&id)).unwrap();
        let index: usize = row[2].parse().unwrap();
        let probability: f32 = row[3].parse().unwrap();
        assert_eq!(row[1], CLASSES[index]);
        assert!((probability - expected[index]).abs() < 1e-4 && probability >= 0.5, "{row:?} {expected:?}");
    }
}

#[test]
fn formats_say_the_same() {
    let scratch = Scratch::new();
    exported(&scratch);
    let rows_of = |format: &str| {
        let ran = scratch.ok(&["predict", "m.onnx", "photos", "--format", format, "--threshold", "0.999999"]);
        ran.stdout
    };
    let csv = rows(&rows_of("csv"));
    assert!(csv.iter().any(|row| row[1] == "unsure" && row[2].is_empty()), "{csv:?}");
    let lines: Vec<Value> = rows_of("ndjson").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let all: Value = serde_json::from_str(&rows_of("json")).unwrap();
    assert_eq!(all["predictions"], Value::Array(lines.clone()));
    assert_eq!((&all["images"], &all["failed"], &all["model"]), (&24.into(), &0.into(), &"m".into()));
    let global = scratch.json(&["predict", "m.onnx", "photos", "--threshold", "0.999999"]);
    assert_eq!(global["predictions"], all["predictions"]);
    for (row, line) in csv.iter().zip(&lines) {
        assert_eq!((Some(row[0].as_str()), Some(row[1].as_str())), (line["file"].as_str(), line["class"].as_str()));
        assert_eq!(row[3].parse::<f64>().unwrap() as f32, line["probability"].as_f64().unwrap() as f32);
    }
    scratch.ok(&["predict", "m.onnx", "photos", "-o", "p.parquet", "--threshold", "0.999999"]);
    let file = fs::File::open(scratch.path("p.parquet")).unwrap();
    let batch = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap().next().unwrap().unwrap();
    let column = batch.column_by_name("class").unwrap();
    let found: Vec<String> = (0..24).map(|row| arrow::util::display::array_value_to_string(column, row).unwrap()).collect();
    assert_eq!(found, csv.iter().map(|row| row[1].clone()).collect::<Vec<_>>());
    let table = rows_of("table");
    assert_eq!(table.lines().count(), 25, "a name with a line break stays on its line: {table}");
}

#[test]
fn stdin_is_an_image_or_a_list_and_tables_and_parquet_are_read() {
    let scratch = Scratch::new();
    let photos = exported(&scratch);
    let first = format!("{photos}/{}/000.png", CLASSES[0]);
    let from = |input: &[u8], args: &[&str]| {
        let mut command = scratch.command(args);
        command.write_stdin(input);
        finish(&mut command)
    };
    let image = fs::read(&first).unwrap();
    let ran = from(&image, &["predict", "m.onnx", "-", "--format", "csv"]);
    assert_eq!((ran.status, &rows(&ran.stdout)[0][0]), (Some(0), &"-".to_owned()), "{}", ran.stderr);
    let direct = scratch.ok(&["predict", "m.onnx", &first, "--format", "csv"]).stdout;
    assert_eq!(rows(&direct)[0][1..], rows(&ran.stdout)[0][1..]);
    let list = format!("{first}\0photos/two\nlines/001.png\0");
    let ran = from(list.as_bytes(), &["predict", "m.onnx", "--files-from", "-", "--format", "csv"]);
    assert_eq!((ran.status, rows(&ran.stdout).len()), (Some(0), 2), "{}", ran.stderr);
    parquet(&scratch.path("t.parquet"), &[Some(image.clone()), None, Some(image)], &[0, 1, 0]);
    let ran = scratch.run(&["predict", "m.onnx", "t.parquet", "--format", "csv"]);
    let found = rows(&ran.stdout);
    assert_eq!((ran.status, found.len(), found[2][0].as_str()), (Some(1), 3, "t.parquet#2"));
    assert!(!found[1][4].is_empty() && found[0][1..] == found[2][1..]);
    let text = from(b"", &["predict", "m.onnx", "-", "--files-from", "-"]);
    assert!(text.status == Some(2) && text.stderr.contains("more than once"), "{}", text.stderr);
}

#[test]
fn what_cannot_be_is_said_before_anything_is_done() {
    let scratch = Scratch::new();
    exported(&scratch);
    fs::create_dir_all(scratch.path("empty")).unwrap();
    fs::write(scratch.path("empty/note.txt"), "x").unwrap();
    let says = |status: i32, args: &[&str], text: &str| {
        let said = scratch.fails(status, &[&["predict"], args].concat());
        assert!(said.contains(text), "{args:?}: {said}");
    };
    says(1, &["m.onnx", "empty"], "empty: no images here (1 .txt)");
    says(1, &["m.onnx", "photos/*.gif"], "photos/*.gif: no such file or folder");
    says(1, &["m.onnx", "photos", "-o", "gone/p.csv"], "gone/p.csv: cannot be written");
    says(2, &["m.onnx", "photos", "-o", "m.onnx"], "this file is read");
    says(1, &["m.onnx", "photos", "-o", "empty"], "empty: cannot be written");
    says(1, &["nothing.onnx", "photos"], "nothing.onnx");
    fs::write(scratch.path("text.onnx"), "just a text").unwrap();
    says(1, &["text.onnx", "photos"], "not an ONNX model");
    // An image, a table of images and a file of one's own are no earlier results.
    let image = format!("photos/{}/000.png", CLASSES[0]);
    let before = fs::read(scratch.path(&image)).unwrap();
    says(2, &["m.onnx", "photos", "-o", &image], "no earlier result");
    assert_eq!(fs::read(scratch.path(&image)).unwrap(), before);
    fs::write(scratch.path("own.csv"), "file,label\na.png,cat\n").unwrap();
    says(2, &["m.onnx", "photos", "-o", "own.csv"], "give --force");
    says(2, &["m.onnx", "--watch", "photos", "-o", "own.csv"], "give --force");
    scratch.ok(&["predict", "m.onnx", "photos", "-o", "own.csv", "--force"]);
    scratch.ok(&["predict", "m.onnx", "photos", "-o", "own.csv"]);
    says(2, &["m.onnx"], "no images named");
    says(2, &["m.onnx", "photos", "--labels", "l.txt"], "says itself");
    says(2, &["m.onnx", "photos", "--threshold", "1.5"], "from 0 to 1");
    says(2, &["m.onnx", "photos", "--format", "xml"], "ndjson");
    says(2, &["m.onnx", "--watch", "photos", "--format", "json"], "use csv or ndjson");
    says(2, &["m.onnx", "--watch", "gone"], "gone: no such folder");
    says(1, &["m.onnx", "https://host/a.png", "--offline"], "--offline");
    assert!(!scratch.path("p.csv").exists());
}

#[test]
fn a_model_of_another_kind_is_a_plain_classifier() {
    let scratch = Scratch::new();
    let photos = scratch.folders("photos", &["a"], 3);
    let ran = scratch.ok(&["predict", "quickstart", &photos, "--format", "ndjson"]);
    assert!(ran.stderr.contains("does not name its"), "{}", ran.stderr);
    let line: Value = serde_json::from_str(ran.stdout.lines().next().unwrap()).unwrap();
    let probability = line["probability"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&probability), "{line}");
    fs::write(scratch.path("l.txt"), "one\n").unwrap();
    let said = scratch.fails(1, &["predict", "quickstart", &photos, "--labels", "l.txt"]);
    assert!(said.contains("l.txt: 1 lines"), "{said}");
    let Some(assets) = assets() else { return };
    let model = assets.join("models/mobilenet_v2_1.0_224.onnx");
    let tiger = assets.join("photos/n02129604_tiger.JPEG");
    if model.is_file() && tiger.is_file() {
        let ran = scratch.ok(&["predict", model.to_str().unwrap(), tiger.to_str().unwrap(), "--format", "csv"]);
        assert_eq!(rows(&ran.stdout)[0][2], "293", "class 292 of ImageNet behind a background class");
    }
}

#[cfg(unix)]
#[test]
fn images_are_classified_as_they_come() {
    let scratch = Scratch::new();
    exported(&scratch);
    fs::create_dir(scratch.path("inbox")).unwrap();
    let put = |name: &str, content: &[u8]| fs::write(scratch.path("inbox").join(name), content).unwrap();
    let whole = png(&picture(0, 5));
    put("old.png", &whole);
    let mut command = Command::new(assert_cmd::cargo::cargo_bin("tlpipe"));
    command.current_dir(scratch.path("")).args(["predict", "m.onnx", "--watch", "inbox", "--format", "ndjson"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (said, lines) = mpsc::channel();
    for stream in
        [Box::new(child.stdout.take().unwrap()) as Box<dyn std::io::Read + Send>, Box::new(child.stderr.take().unwrap())]
    {
        let said = said.clone();
        std::thread::spawn(move || {
            BufReader::new(stream).lines().map_while(Result::ok).for_each(|line| said.send(line).unwrap())
        });
    }
    drop(said);
    let next = || lines.recv_timeout(Duration::from_secs(20)).unwrap();
    while !next().contains("watching inbox") {}
    put("half.png", &whole[..whole.len() / 2]);
    put("new.png", &whole);
    let line: Value = serde_json::from_str(&next()).unwrap();
    assert_eq!((&line["file"], &line["class"]), (&"inbox/new.png".into(), &CLASSES[0].into()));
    let mut file = fs::File::options().append(true).open(scratch.path("inbox/half.png")).unwrap();
    file.write_all(&whole[whole.len() / 2..]).unwrap();
    let line: Value = serde_json::from_str(&next()).unwrap();
    assert_eq!((&line["file"], line["error"].is_null()), (&"inbox/half.png".into(), true), "{line}");
    signal(&child, "-INT");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!lines.iter().any(|line| line.contains("old.png")));
}

#[test]
fn a_failure_leaves_the_old_file() {
    let scratch = Scratch::new();
    exported(&scratch);
    let old = "file,class,class_index,probability,error\n";
    fs::write(scratch.path("p.csv"), old).unwrap();
    fs::write(scratch.path("bad.parquet"), "PAR1").unwrap();
    scratch.fails(1, &["predict", "m.onnx", "bad.parquet", "-o", "p.csv"]);
    scratch.fails(1, &["predict", "nothing.onnx", "photos", "-o", "p.csv"]);
    assert_eq!(fs::read_to_string(scratch.path("p.csv")).unwrap(), old);
    let left = |entry: &Path| entry.file_name().unwrap().to_string_lossy().starts_with(".tmp-");
    assert!(!fs::read_dir(scratch.path("")).unwrap().any(|entry| left(&entry.unwrap().path())));
}

#[test]
fn one_input_that_cannot_be_used_does_not_stop_the_others() {
    let scratch = Scratch::new();
    exported(&scratch);
    fs::create_dir_all(scratch.path("empty")).unwrap();
    fs::write(scratch.path("bad.parquet"), "PAR1").unwrap();
    let ran = scratch.run(&["predict", "m.onnx", "empty", "bad.parquet", "photos", "none/*.png", "--offline", "http://h/a.png"]);
    assert_eq!(ran.status, Some(1), "{}", ran.stderr);
    let found = rows(&ran.stdout);
    assert_eq!(found.len(), 28, "{}", ran.stdout);
    for (row, name, reason) in [
        (0, "empty", "no images here"),
        (1, "bad.parquet", "not a whole Parquet file"),
        (26, "none/*.png", "no such file"),
        (27, "http://h/a.png", "--offline"),
    ] {
        assert!(found[row][0] == name && found[row][4].contains(reason), "{:?}", found[row]);
    }
    assert!(found[2..26].iter().all(|row| row[4].is_empty()));
    assert!(ran.stderr.contains("4 of 28 images could not be used"), "{}", ran.stderr);
}

#[cfg(unix)]
#[test]
fn what_is_stopped_is_one_object() {
    let scratch = Scratch::new();
    let photos = exported(&scratch);
    let image = format!("{photos}/{}/000.png", CLASSES[0]);
    fs::write(scratch.path("list"), format!("{image}\n").repeat(400_000)).unwrap();
    let mut command = Command::new(assert_cmd::cargo::cargo_bin("tlpipe"));
    command.current_dir(scratch.path("")).args(["predict", "m.onnx", "--files-from", "list", "--json"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut text = String::new();
    // It is under way.
    for _ in 0..3 {
        out.read_line(&mut text).unwrap();
    }
    signal(&child, "-INT");
    out.read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let said: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(said["stopped"], true);
    assert_eq!(said["images"].as_u64().unwrap(), said["predictions"].as_array().unwrap().len() as u64);
}
