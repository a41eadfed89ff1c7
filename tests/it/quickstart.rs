//! The embedded default, whole: drawn images, built-in backbone, head, report.

use std::fs;

use crate::support::Scratch;

const PIPELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/pipelines/quickstart.toml");

#[test]
fn quickstart_learns_reports_and_is_up_to_date_afterwards() {
    let scratch = Scratch::new();
    let first = scratch.json(&["run", PIPELINE]);
    let accuracy = first["fit_head"]["test"]["accuracy"].as_f64().unwrap();
    assert!(accuracy > 0.7, "test accuracy {accuracy}");
    let html = fs::read_to_string(scratch.path("runs/quickstart/report.html")).unwrap();
    assert!(html.contains("<svg") && html.matches("data:image/").count() >= 10);
    for needle in ["src=\"http", "href=\"http", "@import", "url(http"] {
        assert!(!html.contains(needle), "the report asks for something: {needle}");
    }

    let second = scratch.ok(&["run", PIPELINE]);
    assert!(second.stdout.contains("Everything is up to date"), "{}", second.stdout);

    // A damaged run is not up to date.
    for name in ["head.safetensors", "predictions.parquet", "history.csv", "pipeline.toml", "report.html"] {
        fs::write(scratch.path("runs/quickstart").join(name), "{").unwrap();
        assert_eq!(scratch.json(&["run", PIPELINE])["up_to_date"], false, "{name}");
    }

    // Another head: the features stay as they are.
    let third = scratch.json(&["run", PIPELINE, "--set", "head.epochs=2"]);
    assert_eq!(third["extract"]["up_to_date"], true);
    assert_eq!(third["fit_head"]["epochs"], 2);
    assert_eq!(third["up_to_date"], false);
}

#[test]
fn the_same_seed_gives_the_same_head_whatever_the_threads() {
    let scratch = Scratch::new();
    let data = scratch.folders("photos", &["cat", "dog", "fox"], 12);
    let extract = ["extract", "--data", &data, "--model", "quickstart", "--input-size", "32", "--features", "f"];
    scratch.ok(&extract);
    let fit = |run: &str, seed: &str, threads: &str| {
        let mut command = scratch.command(&["fit-head", "--features", "f", "--run", run, "--seed", seed]);
        command.env("RAYON_NUM_THREADS", threads).assert().success();
        fs::read(scratch.path(run).join("head.safetensors")).unwrap()
    };
    let first = fit("a", "7", "1");
    assert!(first == fit("b", "7", "2"), "same seed, another head");
    assert!(first != fit("c", "8", "2"), "another seed, the same head");
}

#[test]
fn fit_head_needs_neither_images_nor_backbone() {
    let scratch = Scratch::new();
    let data = scratch.folders("photos", &["cat", "dog"], 10);
    scratch.ok(&["extract", "--data", &data, "--model", "quickstart", "--input-size", "32", "--features", "f"]);
    fs::remove_dir_all(&data).unwrap();
    let metrics = scratch.json(&["fit-head", "--features", "f", "--run", "r", "--offline", "--onnxruntime", "/nowhere"]);
    assert_eq!(metrics["split"]["kind"], "stratified");
    assert_eq!(metrics["test"], serde_json::Value::Null);
    for name in ["head.safetensors", "history.csv", "metrics.json", "predictions.parquet", "pipeline.toml"] {
        assert!(scratch.path("r").join(name).is_file(), "{name}");
    }
    // The report does without the images too, and says so.
    let report = scratch.ok(&["report", "--features", "f", "--run", "r"]);
    assert!(report.stdout.contains("report.html"), "{}", report.stdout);
}
