use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::assets::Search;
use crate::pipeline::fixture::pipeline;
use crate::pipeline::{baselines, few_shots};
use crate::store::fixture;

fn context<'a>(stop: &'a AtomicBool, stoppable: &'a AtomicBool) -> Context<'a> {
    Context { search: Search::from_env(true), library: None, observe: &crate::events::ignore, stop, stoppable }
}

fn fit(dir: &Path, set: &[&str]) -> Result<Fit, String> {
    let (stop, stoppable) = (AtomicBool::new(false), AtomicBool::new(false));
    let found =
        fit_head(&pipeline(dir, "run", set), &context(&stop, &stoppable), true, &mut |_| std::ops::ControlFlow::Continue(()));
    found.map_err(|error| error.to_string())
}

#[test]
fn what_comes_after_a_fit_does_not_read_the_features_again() {
    let dir = tempfile::tempdir().unwrap();
    fixture::write(&dir.path().join("features"), &[("train", 300), ("test", 60)], 8, 3, |_, _| {});
    let mut found = fit(dir.path(), &["head.epochs=2", "head.knn_k=7"]).unwrap();
    fs::remove_dir_all(dir.path().join("features")).unwrap();
    let (stop, stoppable) = (AtomicBool::new(false), AtomicBool::new(false));
    let (context, pipeline) = (context(&stop, &stoppable), pipeline(dir.path(), "run", &["head.epochs=2", "head.knn_k=7"]));
    baselines(&pipeline, &context, &mut found).unwrap();
    let neighbours = &found.metrics.baselines[2];
    assert_eq!((neighbours.name.as_str(), neighbours.k, neighbours.temperature), ("nearest_neighbours", Some(7), Some(0.07)));
    assert_eq!((neighbours.validation.as_ref().unwrap().rows, neighbours.test.as_ref().unwrap().rows), (60, 60));
    assert_eq!(few_shots(&pipeline, &context, &mut found, &[3], 2).unwrap()[0].repeats.len(), 2);
    let error = baselines(&pipeline, &context, &mut found.without_features()).unwrap_err().to_string();
    assert!(error.contains("no feature store here"), "{error}");
}

#[test]
fn a_label_that_is_no_class_is_named_by_its_image() {
    let dir = tempfile::tempdir().unwrap();
    let features = dir.path().join("features");
    fixture::write(&features, &[("train", 300), ("test", 60)], 8, 3, |_, _| {});
    let manifest = features.join("store.json");
    let mut json: serde_json::Value = serde_json::from_str(&fs::read_to_string(&manifest).unwrap()).unwrap();
    json["classes"].as_array_mut().unwrap().pop();
    fs::write(&manifest, json.to_string()).unwrap();
    let first = (0..).find(|&row| fixture::class(row, 3) == 2).unwrap();
    let error = fit(dir.path(), &["head.epochs=1"]).err().unwrap();
    let expected = format!("images/{first:07}.png: label 2 is not one of the 2 classes");
    assert!(error.starts_with(&expected) && error.contains("tlpipe extract --rebuild"), "{error}");
}

#[test]
fn features_without_a_train_split_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    fixture::write(&dir.path().join("features"), &[("test", 60)], 8, 3, |_, _| {});
    let error = fit(dir.path(), &[]).err().unwrap();
    assert!(error.contains("no split `train`") && error.contains("it has test") && error.contains("--features"), "{error}");
}

#[test]
fn a_solver_that_cannot_be_asked_to_stop_is_ended_at_once() {
    let (stop, stoppable) = (AtomicBool::new(false), AtomicBool::new(false));
    let context = context(&stop, &stoppable);
    for (solver, asked) in [(Solver::Adam, true), (Solver::Lbfgs, true), (Solver::Ridge, false), (Solver::Linfa, false)] {
        assert_eq!(context.stopping(solver, || stoppable.load(Ordering::Relaxed)), asked, "{solver}");
    }
    context.stoppable(|| {
        assert!(!context.ending_at_once(|| stoppable.load(Ordering::Relaxed)));
        assert!(stoppable.load(Ordering::Relaxed), "as it was");
    });
}
