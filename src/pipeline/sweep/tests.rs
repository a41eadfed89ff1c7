use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use super::*;
use crate::assets::Search;
use crate::pipeline::fixture::pipeline;
use crate::store::fixture;

/// Sweeps, and stops once so many heads are fitted; the error is as text. Also what was told.
fn run(dir: &Path, name: &str, set: &[&str], plan: &Plan, stop_after: u64) -> (Result<Metrics, String>, String) {
    let (stop, told) = (AtomicBool::new(false), Mutex::new(String::new()));
    let observe = |event: Event<'_>| match event {
        Event::Advanced { task: TASK, done } if done >= stop_after => stop.store(true, Ordering::Relaxed),
        Event::Noted(text) | Event::Warned(text) => *told.lock().unwrap() += &format!("{text}\n"),
        _ => {}
    };
    let context = Context {
        search: Search::from_env(true),
        library: None,
        observe: &observe,
        stop: &stop,
        stoppable: &AtomicBool::new(false),
    };
    let found = sweep(&pipeline(dir, name, set), &context, plan);
    (found.map(|fit| fit.metrics).map_err(|error| error.to_string()), told.into_inner().unwrap())
}

fn plan(axes: &[&str], folds: Option<usize>) -> Plan {
    Plan { axes: axes.iter().map(|axis| Axis::parse(axis).unwrap()).collect(), folds, ..Plan::default() }
}

/// All but the times.
fn scores(metrics: &Metrics) -> Vec<(String, Option<f64>)> {
    let trials = &metrics.sweep.as_ref().unwrap().trials;
    trials.iter().map(|trial| (trial.shown(), trial.accuracy)).collect()
}

#[test]
fn a_stopped_sweep_goes_on_and_takes_over_what_it_had() {
    let dir = tempfile::tempdir().unwrap();
    fixture::write(&dir.path().join("features"), &[("train", 900), ("test", 100)], 16, 4, |_, _| {});
    // A path, whose heads are done one after the other; heads that are fitted each alone; folds.
    let cases = [
        (&["head.solver=lbfgs"][..], plan(&["l2=1e-3,1e-2,1e-1,1"], None), 2, "2 of 4"),
        (&["head.epochs=2"], plan(&["learning_rate=1e-3,1e-2", "solver=adam,ridge"], None), 2, ""),
        (&["head.solver=ridge"], plan(&["l2=1e-2,1e-1", "standardize=true"], Some(3)), 2, "0 of 2"),
    ];
    for (number, (set, plan, after, done)) in cases.into_iter().enumerate() {
        let [whole, stopped] = ["whole", "stopped"].map(|name| format!("{name}{number}"));
        let expected = run(dir.path(), &whole, set, &plan, u64::MAX).0.unwrap();
        let (error, _) = run(dir.path(), &stopped, set, &plan, after);
        let (error, journal) = (error.unwrap_err(), dir.path().join(&stopped).join(SWEEP_JOURNAL));
        assert!(error.starts_with("stopped: ") && error.contains(done) && error.contains("goes on from there"), "{error}");
        assert!(journal.is_file(), "{error}");
        let (found, told) = run(dir.path(), &stopped, set, &plan, u64::MAX);
        let found = found.unwrap();
        if done == "2 of 4" {
            assert!(told.contains("2 of 4 candidates taken over"), "{told}");
        }
        assert_eq!(scores(&found), scores(&expected));
        let best = &found.sweep.as_ref().unwrap().trials[0];
        assert_eq!(found.validation.as_ref().map(|score| score.accuracy), best.accuracy);
        assert!(!journal.exists(), "a sweep that is done leaves nothing");
    }
}

#[test]
fn what_was_fitted_otherwise_is_not_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    fixture::write(&dir.path().join("features"), &[("train", 300)], 8, 3, |_, _| {});
    let axes = plan(&["l2=1e-3,1e-2,1e-1"], None);
    let solver = "head.solver=lbfgs";
    assert!(run(dir.path(), "run", &[solver], &axes, 2).0.is_err());
    // Another hold-out, other settings; then the same with more values.
    for set in [&[solver, "head.split=stratified"][..], &[solver, "head.standardize=false"]] {
        let (stopped, told) = run(dir.path(), "run", set, &axes, 1);
        assert!(stopped.is_err() && !told.contains("taken over"), "{told}");
    }
    let (_, told) = run(dir.path(), "run", &[solver], &plan(&["l2=1e-3,1e-2,1e-1,10"], None), u64::MAX);
    assert!(told.contains("2 of 4 candidates taken over"), "{told}");
}

#[test]
fn rows_that_judge_a_candidate_are_not_trained_on() {
    let dir = tempfile::tempdir().unwrap();
    fixture::write(&dir.path().join("features"), &[("train", 300)], 40, 3, |_, _| {});
    let of = |run_name: &str, set: &[&str]| run(dir.path(), run_name, set, &plan(&["l2=1e-3"], None), u64::MAX).0.unwrap();
    let (plain, refit) = (of("plain", &["head.solver=ridge"]), of("refit", &["head.solver=ridge", "head.refit=true"]));
    assert_eq!(scores(&plain), scores(&refit));
}

#[test]
fn a_flag_fixes_its_key() {
    let base = HeadParams { l2: Some(0.25), ..HeadParams::default() };
    let fixed = |keys: &[&str]| Plan { fixed: keys.iter().map(|&key| key.to_owned()).collect(), ..Plan::default() };
    assert_eq!(Plan::default().candidates(&base).unwrap().len(), 16);
    let candidates = fixed(&["l2", "epochs"]).candidates(&base).unwrap();
    assert_eq!(candidates.len(), 4, "four learning rates");
    assert!(candidates.iter().all(|candidate| candidate.params.l2 == Some(0.25) && candidate.varied["l2"] == 0.25));
    assert_eq!(fixed(&["l2", "learning_rate"]).candidates(&base).unwrap().len(), 1);
    let both = Plan { axes: vec![Axis::parse("l2=1,2").unwrap()], ..fixed(&["l2"]) };
    let error = both.candidates(&base).err().unwrap().to_string();
    assert!(error.contains("--l2") && error.contains("one of the two"), "{error}");
    let knn = Plan { axes: vec![Axis::parse("knn_k=5,20").unwrap()], ..Plan::default() };
    assert!(knn.candidates(&base).err().unwrap().to_string().contains("--baselines"));
}
