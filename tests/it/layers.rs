//! Features of several depths, as a user meets them.

use std::fs;

use serde_json::Value;

use crate::support::{Scratch, assets, finish, first_rows, quick};

fn manifest(scratch: &Scratch, store: &str) -> Value {
    serde_json::from_slice(&fs::read(scratch.path(store).join("store.json")).unwrap()).unwrap()
}

#[test]
fn depths_have_stores_of_their_own_that_say_what_they_hold() {
    let scratch = Scratch::new();
    let data = scratch.folders("photos", &["cat", "dog"], 6);
    let listed = scratch.json(&["models", "inspect", "quickstart"]);
    let taps = listed["taps"].as_array().unwrap();
    let width = |taps: &[&Value]| taps.iter().map(|tap| tap["channels"].as_u64().unwrap()).sum::<u64>();
    let cut = listed["features"].as_u64().unwrap();
    let all = width(&taps.iter().collect::<Vec<_>>()) + cut;
    let said = scratch.ok(&[&["run"][..], &quick(&data, &["--layers", "multi-all"])].concat());
    let headline = format!("multi-all · {} tensors · {all} values", taps.len() + 1);
    assert_eq!(said.stderr.matches(&headline).count(), 2, "stage 1 and stage 2 say it: {}", said.stderr);
    let stored = manifest(&scratch, "features/photos-32-multi-all");
    assert_eq!(stored["dimension"], all);
    let segments = stored["segments"].as_array().unwrap();
    assert_eq!(segments.len(), taps.len() + 1);
    assert_eq!(segments.last().unwrap()["tensor"], listed["cut"]["tensor"]);
    assert_eq!(segments.last().unwrap()["offset"], all - cut);
    assert!(scratch.path("runs/photos-32-multi-all/metrics.json").is_file());
    // The same again is up to date; pooled is another store, and its last values are those of all.
    let again = scratch.json(&[&["extract"][..], &quick(&data, &["--layers", "multi-all"])].concat());
    assert_eq!(again["up_to_date"], true);
    scratch.ok(&[&["extract"][..], &quick(&data, &[])].concat());
    assert_eq!(manifest(&scratch, "features/photos-32")["segments"].as_array().unwrap().len(), 1);
    let multi = width(&taps.iter().filter(|tap| tap["multi"] == true).collect::<Vec<_>>());
    scratch.ok(&[&["extract"][..], &quick(&data, &["--layers", "multi"])].concat());
    assert_eq!(manifest(&scratch, "features/photos-32-multi")["dimension"], multi + cut);
}

#[test]
fn layers_may_stand_in_a_pipeline_file_and_a_run_repeats_them() {
    let scratch = Scratch::new();
    let data = scratch.folders("photos", &["cat", "dog"], 6);
    let layers = "[\"conv10.relu6\", \"conv1[56].*\"]";
    let text = format!(
        "[data]\nsource = \"{data}\"\n[backbone]\nmodel = \"quickstart\"\ninput_size = 32\nlayers = {layers}\n[output]\nfeatures = \"f\"\nrun = \"r\"\n"
    );
    fs::write(scratch.path("p.toml"), text).unwrap();
    let said = scratch.ok(&["run", "p.toml"]);
    assert!(said.stderr.contains("layers by name · "), "{}", said.stderr);
    let names: Vec<String> = manifest(&scratch, "f")["segments"]
        .as_array()
        .unwrap()
        .iter()
        .map(|segment| segment["tensor"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names.first().map(String::as_str), Some("conv10.relu6"), "{names:?}");
    assert!(names.contains(&"conv16.relu6".to_owned()) && names.last().map(String::as_str) == Some("pool"), "{names:?}");
    assert_eq!(scratch.json(&["extract", "r/pipeline.toml"])["up_to_date"], true);
    let said = scratch.fails(1, &["extract", "p.toml", "--layers", "multi-all"]);
    assert!(said.contains("layers: ") && said.contains("only asked for: conv") && said.contains(" more"), "{said}");
    assert!(said.lines().all(|line| line.len() < 300), "{said}");
}

#[test]
fn layers_that_cannot_be_read_are_refused_before_anything_is_written() {
    let scratch = Scratch::new();
    let data = scratch.folders("photos", &["cat", "dog"], 3);
    let refused = |layers: &str| scratch.fails(1, &[&["extract"][..], &quick(&data, &["--layers", layers])].concat());
    for (layers, needles) in [
        ("conv10.relu", vec!["no tensor fits", "did you mean", "conv10.relu6"]),
        ("mutli-all", vec!["did you mean", "multi-all"]),
        ("block_*", vec!["block_*", "no tensor fits", "models inspect"]),
    ] {
        let said = refused(layers);
        for needle in needles {
            assert!(said.contains(needle), "no `{needle}` in: {said}");
        }
    }
    assert!(!scratch.path("features").exists());
    let said = scratch.fails(2, &[&["extract"][..], &quick(&data, &["--layers", "a,,b"])].concat());
    assert!(said.contains("no tensor is named"), "{said}");
    scratch.ok(&["models", "cut", "quickstart", "--layers", "multi-all", "-o", "deep.onnx"]);
    let listed = scratch.json(&["models", "inspect", "quickstart"]);
    let deep = scratch.json(&["models", "inspect", "deep.onnx"]);
    assert!(deep["features"].as_u64() > listed["features"].as_u64());
    // What was cut before is a backbone like any other.
    scratch.ok(&["models", "cut", "quickstart", "-o", "cut.onnx"]);
    for (model, features) in [("deep.onnx", "g"), ("cut.onnx", "h")] {
        let args = [
            "extract",
            "--data",
            &data,
            "--model",
            model,
            "--input-size",
            "32",
            "--pixels",
            "tensorflow",
            "--features",
            features,
        ];
        assert_eq!(scratch.json(&args)["rows"], 6, "{model}");
    }
    std::fs::write(scratch.path("notes.txt"), "mine").unwrap();
    assert!(scratch.fails(1, &["models", "cut", "quickstart", "-o", "notes.txt"]).contains("no ONNX model"));
}

#[test]
fn all_35_activations_of_the_real_network_end_in_what_pooled_gives() {
    let Some(assets) = assets() else { return };
    let scratch = Scratch::new();
    let name = "train-00000-of-00001.parquet";
    first_rows(&assets.join("cifar10/plain_text").join(name), 100, &scratch.path("slice").join(name));
    for layers in ["pooled", "multi", "multi-all"] {
        let args = ["extract", "--data", "slice", "--model", "mobilenet_v2_1.0_224", "--input-size", "96", "--layers", layers];
        let ran = finish(scratch.command(&args).env("TLPIPE_ASSETS", &assets));
        assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    }
    let stored = manifest(&scratch, "features/slice-96-multi-all");
    assert_eq!((&stored["dimension"], stored["segments"].as_array().unwrap().len()), (&Value::from(15_552), 35));
    let rows = |store: &str| {
        let store = tlpipe::store::Store::open(&scratch.path(store)).unwrap();
        store.load(&["train"]).unwrap().embeddings
    };
    let pooled = rows("features/slice-96");
    for store in ["features/slice-96-multi", "features/slice-96-multi-all"] {
        let deep = rows(store);
        assert_eq!(deep.slice(ndarray::s![.., deep.ncols() - 1280..]), pooled, "{store}");
    }
    let few = rows("features/slice-96-multi").ncols();
    assert!((4096..=8192).contains(&few), "{few}");
}

#[test]
fn features_serve_whatever_stands_for_their_tensors() {
    let scratch = Scratch::new();
    let data = scratch.folders("photos", &["cat", "dog"], 8);
    let run = |layers: &str| {
        let flags = ["--layers", layers, "--features", "f", "--run", "r"];
        scratch.ok(&[&["run"][..], &quick(&data, &flags)].concat()).stdout
    };
    run("conv16.relu6");
    assert!(run("conv16.relu*").contains("up to date"));
}

#[test]
fn a_head_says_which_depths_it_uses_and_what_each_is_worth_alone() {
    let scratch = Scratch::new();
    let data = scratch.folders("photos", &["cat", "dog"], 20);
    scratch.ok(&[&["run"][..], &quick(&data, &["--layers", "multi-all", "--views", "identity,hflip"])].concat());
    let run = ["fit-head", "runs/photos-32-multi-all"];
    let head = ["--set", "head.budget=7", "--set", "head.refit=true", "--set", "head.transform=sqrt", "--depths"];
    let found = scratch.json(&[&run[..], &head].concat());
    let segments = manifest(&scratch, "features/photos-32-multi-all")["segments"].as_array().unwrap().clone();
    let depths = found["depths"].as_array().unwrap();
    assert_eq!(depths.len(), segments.len());
    let used = depths.iter().map(|depth| depth["used"].as_u64().unwrap()).sum::<u64>();
    assert_eq!(used, 7);
    for (depth, segment) in depths.iter().zip(&segments) {
        assert_eq!((&depth["tensor"], &depth["width"]), (&segment["tensor"], &segment["width"]));
        assert!((0.0..=1.0).contains(&depth["validation_accuracy"].as_f64().unwrap()), "{depth}");
    }
    let table = fs::read_to_string(scratch.path("runs/photos-32-multi-all/depths.csv")).unwrap();
    assert_eq!(table.lines().count(), segments.len() + 1);
    // A head of few features has no statistics to be brought up to date from, and one of another kind no budget.
    let said = scratch.fails(2, &[&run[..], &["--update"]].concat());
    assert!(said.contains("statistics.safetensors is missing"), "{said}");
    let said = scratch.fails(2, &[&run[..], &["--solver", "adam"]].concat());
    assert!(said.contains("budget") && said.contains("ridge"), "{said}");
    // Another fit does not leave the table of this one behind.
    scratch.ok(&[&run[..], &["--set", "head.budget=9"]].concat());
    assert!(!scratch.path("runs/photos-32-multi-all/depths.csv").exists());
}
