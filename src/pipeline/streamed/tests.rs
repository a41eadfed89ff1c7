use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use tempfile::TempDir;

use crate::assets::Search;
use crate::pipeline::fixture::pipeline;
use crate::pipeline::{Context, baselines, fit_head};
use crate::run::{Metrics, RunDir};
use crate::store::{KeyParts, fixture};

/// 9,000 rows of 64 features and 1,000 to test: 2.4 MiB.
fn store(change: impl Fn(usize, &mut Vec<f32>) + Sync) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fixture::write(&dir.path().join("features"), &[("train", 9000), ("test", 1000)], 64, 4, change);
    dir
}

/// 4,000 images of 64 features in two views, 500 to test: 1.1 MiB without the views.
fn store_of_views() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let key_parts = KeyParts { views: ["identity", "hflip"].map(str::to_owned).into(), ..fixture::parts() };
    fixture::write_as(key_parts, &dir.path().join("features"), &[("train", 4000), ("test", 500)], 64, 4, |_, _| {});
    dir
}

/// Fits, and stops after the epoch `last`.
fn fit(dir: &Path, run: &str, set: &[&str], last: usize) -> Result<Metrics, String> {
    let context = Context {
        search: Search::from_env(true),
        library: None,
        observe: &crate::events::ignore,
        stop: &AtomicBool::new(false),
        stoppable: &AtomicBool::new(false),
    };
    let mut watch = |record: &crate::run::EpochRecord| {
        if record.epoch == last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let pipeline = pipeline(dir, run, set);
    let mut fitted = fit_head(&pipeline, &context, false, &mut watch);
    if let Ok(fitted) = &mut fitted
        && pipeline.settings.head.memory == Some(1)
    {
        let refused = baselines(&pipeline, &context, fitted).unwrap_err().to_string();
        assert!(refused.contains("--baselines needs the features in memory"), "{refused}");
    }
    Ok(fitted.map_err(|error| error.to_string())?.metrics)
}

fn same(dir: &Path, one: &str, other: &str, file: &str) -> bool {
    let [one, other] = [one, other].map(|run| fs::read(RunDir::new(dir.join(run)).file(file)).unwrap());
    one == other
}

const SMALL: &str = "head.memory=1";

#[test]
fn features_above_the_limit_give_the_same_head_scores_and_predictions() {
    let dir = store(|_, _| {});
    for (number, extra) in
        [&["head.split=stratified", "head.standardize=true", "head.patience=2"][..], &["head.split=tail", "head.batch_size=500"]]
            .into_iter()
            .enumerate()
    {
        let [one, other] = ["memory", "disk"].map(|name| format!("{name}{number}"));
        let common = [&["head.shuffle=false", "head.epochs=3", "head.learning_rate=0.01"], extra].concat();
        let memory = fit(dir.path(), &one, &[&common[..], &["head.memory=100"]].concat(), 0).unwrap();
        let disk = fit(dir.path(), &other, &[&common[..], &[SMALL]].concat(), 0).unwrap();
        assert_eq!((&disk.train, &disk.validation, &disk.test), (&memory.train, &memory.validation, &memory.test));
        assert_eq!(disk.temperature, memory.temperature);
        assert!(disk.test.unwrap().accuracy > 0.4, "chance is 0.25");
        for file in ["head.safetensors", "predictions.parquet"] {
            assert!(same(dir.path(), &one, &other, file), "{file} differs");
        }
    }
}

#[test]
fn lbfgs_reads_them_in_every_iteration() {
    let dir = store(|_, _| {});
    let set = ["head.solver=lbfgs", "head.tolerance=1e-6"];
    let memory = fit(dir.path(), "memory", &[&set[..], &["head.memory=100"]].concat(), 0).unwrap();
    let disk = fit(dir.path(), "disk", &[&set[..], &[SMALL]].concat(), 0).unwrap();
    let [one, other] = [memory, disk].map(|metrics| metrics.test.unwrap());
    assert!((one.loss - other.loss).abs() < 1e-5, "{} in memory, {} on disk", one.loss, other.loss);
    assert!(one.accuracy > 0.4 && (one.accuracy - other.accuracy).abs() < 2e-3, "chance is 0.25");
}

#[test]
fn a_stopped_fit_goes_on() {
    let dir = store(|_, _| {});
    let set = ["head.epochs=4", SMALL];
    let whole = fit(dir.path(), "whole", &set, 0).unwrap();
    let stopped = fit(dir.path(), "stopped", &set, 2).unwrap_err();
    assert!(stopped.starts_with("stopped after epoch 2 of 4"), "{stopped}");
    let resumed = fit(dir.path(), "stopped", &set, 0).unwrap();
    assert_eq!((resumed.epochs, &resumed.test), (4, &whole.test));
    assert!(same(dir.path(), "whole", "stopped", "head.safetensors"));
}

#[test]
fn the_image_whose_features_are_no_numbers_is_named_by_both_ways() {
    let dir = store(|row, values| match row {
        5000 => values[63] = f32::NAN,
        7000 => values[0] = f32::INFINITY,
        _ => {}
    });
    for memory in [SMALL, "head.memory=100"] {
        let error = fit(dir.path(), "run", &["head.epochs=1", memory], 0).unwrap_err();
        assert!(error.contains("images/0005000.png"), "{error}");
    }
}

#[test]
fn what_needs_the_features_in_memory_says_how_much() {
    let dir = store(|_, _| {});
    let error = fit(dir.path(), "run", &["head.solver=linfa", SMALL], 0).unwrap_err();
    let needs = "solver linfa needs the features in memory: 3 MiB, above the limit of 1 MiB; raise head.memory";
    assert!(error.contains(needs) && error.contains("adam"), "{error}");
    assert!(!dir.path().join("run/metrics.json").exists());
    let error = fit(dir.path(), "run", &["head.batch_size=2048", SMALL], 0).unwrap_err();
    assert!(error.starts_with("head.memory = 1 MiB: expected room for two windows"), "{error}");
}

#[test]
fn views_are_rows_to_train_on_and_means_to_score() {
    let dir = store_of_views();
    let common = ["head.shuffle=false", "head.epochs=3", "head.learning_rate=0.01", "head.standardize=true"];
    let fit = |run: &str, set: &[&str]| fit(dir.path(), run, &[&common[..], set].concat(), 0).unwrap();
    let mean = fit("mean", &["head.memory=100"]);
    let memory = fit("memory", &["head.views=augment", "head.memory=100"]);
    let disk = fit("disk", &["head.views=augment", SMALL]);
    assert_eq!((&disk.train, &disk.validation, &disk.test), (&memory.train, &memory.validation, &memory.test));
    for file in ["head.safetensors", "predictions.parquet"] {
        assert!(same(dir.path(), "memory", "disk", file), "{file} differs");
    }
    assert!(!same(dir.path(), "memory", "mean", "head.safetensors"), "another head");
    for metrics in [mean, memory] {
        let split = &metrics.split;
        assert_eq!((split.train, split.holdout), (3200, 800), "images are counted, not views");
        let rows = [metrics.train, metrics.validation, metrics.test].map(|score| score.unwrap().rows);
        assert_eq!(rows, [3200, 800, 500]);
    }
}

#[test]
fn every_solver_in_memory_takes_views_and_a_store_of_one_view_has_none() {
    let dir = store_of_views();
    for solver in ["lbfgs", "linfa", "ridge"] {
        let solver_set = format!("head.solver={solver}");
        let metrics = fit(dir.path(), solver, &[&solver_set, "head.views=augment"], 0).unwrap();
        assert_eq!(metrics.test.unwrap().rows, 500, "{solver}");
    }
    let dir = store(|_, _| {});
    let error = fit(dir.path(), "run", &["head.views=augment"], 0).unwrap_err();
    assert!(error.contains("head.views") && error.contains("--views identity,hflip"), "{error}");
}
