//! The command line itself.

use std::fs;

use crate::support::{Scratch, quick};

#[test]
fn wrong_usage_is_status_2_and_says_what_is_right() {
    let scratch = Scratch::new();
    scratch.fails(2, &["extrct"]);
    let said = scratch.fails(2, &["run"]);
    assert!(said.contains("tlpipe.toml") && said.contains("--data"), "{said}");
    scratch.fails(2, &["run", "--set", "nonsense"]);
    for (flag, value, needle) in [
        ("--solver", "foo", "adam"),
        ("--split", "bogus", "stratified"),
        ("--resize", "stretch", "squash"),
        ("--learning-rate", "-1", "head.learning_rate = -1"),
        ("--learning-rate", "1e-300", "above 0"),
        ("--epochs", "0", "at least 1"),
        ("--epochs", "-2", "a whole number from 0"),
        ("--input-size", "0", "1 to 4096"),
        ("--threads", "100000", "limit of 256"),
        ("--batch", "1000000", "limit of 4096"),
        ("--device", "tpu", "cuda"),
        ("--features", "photos", "the source of images"),
    ] {
        let said = scratch.fails(2, &["run", "--data", "photos", "--model", "quickstart", flag, value]);
        assert!(said.contains(needle), "{flag} {value}: {said}");
        assert!(!["usize", "u64", "variant", "-- -"].iter().any(|word| said.contains(word)), "{flag} {value}: {said}");
    }
    let said = scratch.fails(2, &["run", "--data", "photos", "--features", "here", "--run", "here"]);
    assert!(said.contains("both the run folder and the feature store"), "{said}");
    fs::write(scratch.path("latin.toml"), b"[data]\nsource = \"caf\xe9\"\n").unwrap();
    let said = scratch.fails(2, &["run", "latin.toml"]);
    assert!(said.contains("latin.toml") && said.contains("UTF-8"), "{said}");
}

#[test]
fn a_failure_is_an_object_too_where_json_is_asked_for() {
    let scratch = Scratch::new();
    let ran = scratch.run(&["--json", "run", "--data", "nowhere", "--model", "quickstart"]);
    let said: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((ran.status, said["status"].as_i64()), (Some(1), Some(1)));
    assert!(said["error"].as_str().unwrap().contains("nowhere"), "{said}");
    let ran = scratch.run(&["--json", "fit-head", "--epochs", "x"]);
    let said: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((ran.status, said["status"].as_i64()), (Some(2), Some(2)));
}

#[test]
fn a_misspelt_key_is_an_error_with_the_nearest_key() {
    let scratch = Scratch::new();
    fs::write(scratch.path("tlpipe.toml"), "[head]\nlerning_rate = 1\n").unwrap();
    let said = scratch.fails(2, &["run"]);
    assert!(said.contains("tlpipe.toml") && said.contains("lerning_rate") && said.contains("learning_rate"), "{said}");
    let said = scratch.fails(1, &["run", "missing.toml"]);
    assert!(said.contains("missing.toml"), "{said}");
}

#[test]
fn nothing_is_coloured_and_no_bar_is_drawn_when_piped() {
    let scratch = Scratch::new();
    let data = scratch.folders("photos", &["cat", "dog"], 3);
    let ran = scratch.ok(&["extract", "--data", &data, "--model", "quickstart", "--input-size", "32", "--features", "f"]);
    assert!(!ran.stderr.contains('\u{1b}') && !ran.stdout.contains('\u{1b}'), "{}{}", ran.stderr, ran.stdout);
    let quiet = scratch.ok(&["-q", "extract", "--data", &data, "--model", "quickstart", "--input-size", "32", "--features", "g"]);
    assert_eq!(quiet.stderr, "");
}

#[test]
fn another_directory_is_worked_in() {
    let scratch = Scratch::new();
    fs::create_dir_all(scratch.path("there")).unwrap();
    scratch.folders("there/photos", &["cat", "dog"], 3);
    scratch.ok(&["-C", "there", "extract", "--data", "photos", "--model", "quickstart", "--input-size", "32", "--features", "f"]);
    assert!(scratch.path("there/f/store.json").is_file());
}

#[test]
fn data_and_models_and_the_doctor_answer() {
    let scratch = Scratch::new();
    let sets = scratch.json(&["data", "list"]);
    assert!(sets["data"].as_array().unwrap().iter().any(|set| set["name"] == "cifar10"), "{sets}");
    let models = scratch.json(&["models", "list"]);
    assert!(models["models"].as_array().unwrap().iter().any(|model| model["name"] == "mobilenetv2-12"), "{models}");
    let model = scratch.json(&["models", "inspect", "quickstart"]);
    assert_eq!(model["input"]["layout"], "nchw");
    assert!(model["cut"]["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{model}");
    scratch.ok(&["models", "cut", "quickstart", "-o", "cut.onnx"]);
    let cut = scratch.json(&["models", "inspect", "cut.onnx"]);
    assert_eq!(cut["features"], model["features"]);
    let before = fs::read(scratch.path("cut.onnx")).unwrap();
    let said = scratch.fails(1, &["models", "cut", "cut.onnx", "-o", "./cut.onnx"]);
    assert!(said.contains("the model itself"), "{said}");
    assert_eq!(fs::read(scratch.path("cut.onnx")).unwrap(), before);
    scratch.ok(&["data", "synth", "--out", "drawn", "--train", "20", "--test", "10"]);
    let drawn = scratch.json(&["data", "inspect", "drawn"]);
    assert_eq!(drawn["splits"].as_array().unwrap().len(), 2);
    let doctor = scratch.json(&["doctor"]);
    assert!(doctor["onnxruntime"]["path"].is_string(), "{doctor}");
}

#[test]
fn what_is_said_to_be_typed_next_can_be_typed() {
    let scratch = Scratch::new();
    let data = scratch.folders("photos", &["cat", "dog"], 6);
    let ran = scratch.ok(&["run", "--data", &data, "--model", "quickstart", "--input-size", "32"]);
    let hint = |said: &str| said.rsplit_once("takes a second: tlpipe ").unwrap().1.trim().to_owned();
    scratch.ok(&hint(&ran.stdout).split_whitespace().collect::<Vec<_>>());
    fs::create_dir(scratch.path("my place")).unwrap();
    let flags = ["run", "--data", &data, "--model", "quickstart", "--input-size", "32", "--run", "it's a run"];
    let said = hint(&scratch.ok(&[&["-C", "my place"][..], &flags].concat()).stdout);
    assert_eq!(said, r"-C 'my place' fit-head 'it'\''s a run/pipeline.toml' --set head.learning_rate=3e-3");
    // What counts is printed, however quiet.
    let quiet = scratch.ok(&["-q", "run", "runs/photos-32", "--epochs", "3"]);
    assert!(quiet.stdout.contains("hold-out  accuracy") && quiet.stdout.contains("report.html"), "{}", quiet.stdout);
    // The folder of a run stands for its pipeline.
    scratch.ok(&["report", "--run", "runs/photos-32"]);
    scratch.ok(&["fit-head", "runs/photos-32", "--run", "runs/other"]);
}

#[test]
fn threads_and_device_stand_anywhere() {
    let scratch = Scratch::new();
    let data = scratch.folders("photos", &["cat", "dog"], 6);
    let flags = ["--data", &data, "--model", "quickstart", "--input-size", "32"];
    scratch.ok(&[&["--threads", "1", "--device", "cpu", "run"][..], &flags].concat());
    scratch.ok(&["fit-head", "runs/photos-32", "--threads", "1"]);
    let ran = scratch.ok(&[&["extract", "--threads", "200", "--rebuild"][..], &flags].concat());
    assert!(ran.stderr.contains("200 threads on"), "{}", ran.stderr);
}

#[test]
fn a_copied_run_is_worked_on_where_it_lies() {
    let scratch = Scratch::new();
    let data = scratch.folders("photos", &["cat", "dog"], 12);
    scratch.ok(&[&["run"][..], &quick(&data, &["--run", "a", "--features", "f"])].concat());
    fs::create_dir(scratch.path("copy")).unwrap();
    for file in ["head.safetensors", "metrics.json", "pipeline.toml", "history.csv", "predictions.parquet"] {
        fs::copy(scratch.path("a").join(file), scratch.path("copy").join(file)).unwrap();
    }
    let of = |run: &str| fs::read_to_string(scratch.path(run).join("metrics.json")).unwrap();
    let before = of("a");
    for named in ["copy", "copy/pipeline.toml"] {
        let ran = scratch.ok(&["fit-head", named, "--epochs", "3"]);
        assert!(ran.stderr.contains("copy/pipeline.toml was recorded for a: this works on copy"), "{}", ran.stderr);
        assert!(of("a") == before && of("copy") != before, "the first run is as it was");
        fs::copy(scratch.path("a/pipeline.toml"), scratch.path("copy/pipeline.toml")).unwrap();
    }
    scratch.ok(&["fit-head", "copy", "--epochs", "3", "--run", "other"]);
    assert!(scratch.path("other/metrics.json").is_file());
    assert!(!scratch.ok(&["fit-head", "a"]).stderr.contains("was recorded for"));

    let whole = fs::read_to_string(scratch.path("copy/pipeline.toml")).unwrap();
    fs::write(scratch.path("copy/pipeline.toml"), &whole[..whole.find("[output]").unwrap()]).unwrap();
    let said = scratch.fails(2, &["fit-head", "copy"]);
    assert!(said.contains("copy/pipeline.toml") && said.contains("cut short") && said.contains("--run"), "{said}");
    fs::write(scratch.path("copy/pipeline.toml"), &whole[..whole.find("photos").unwrap()]).unwrap();
    let said = scratch.fails(2, &["fit-head", "copy"]);
    assert!(said.contains("copy/pipeline.toml") && said.contains("fit the head again"), "{said}");
}
