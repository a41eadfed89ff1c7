//! `tlpipe fit-head --sweep` and the solvers that it chooses among.

use std::fs;

use crate::support::{Scratch, quick};

fn features(scratch: &Scratch) {
    let data = scratch.folders("photos", &["cat", "dog", "owl"], 12);
    scratch.ok(&[&["extract"][..], &quick(&data, &["--features", "f"])].concat());
}

#[test]
fn the_best_of_a_grid_is_fitted_again_on_all_rows() {
    let scratch = Scratch::new();
    features(&scratch);
    let fit = ["fit-head", "--features", "f", "--run", "r"];
    let sweep = [&fit[..], &["--sweep", "--grid", "solver=lbfgs,ridge", "--grid", "l2=1e-3,1e-2,1e-1"]].concat();
    let found = scratch.json(&sweep);
    let trials = found["sweep"]["trials"].as_array().unwrap();
    assert_eq!((trials.len(), found["sweep"]["candidates"].as_u64()), (6, Some(6)));
    let accuracy = |trial: &serde_json::Value| trial["accuracy"].as_f64().unwrap();
    assert!(trials.windows(2).all(|pair| accuracy(&pair[0]) >= accuracy(&pair[1])), "best first");
    // The winner's score on the hold-out is that before the last fit, which has all rows.
    assert_eq!(found["validation"]["accuracy"], trials[0]["accuracy"]);
    assert_eq!(found["validation"]["loss"], trials[0]["loss"]);
    assert_eq!(found["split"]["train"].as_u64(), Some(36));
    assert_eq!((&found["solver"], &found["l2"]), (&trials[0]["settings"]["solver"], &trials[0]["settings"]["l2"]));
    let table = fs::read_to_string(scratch.path("r/sweep.csv")).unwrap();
    assert_eq!(table.lines().next(), Some("l2,solver,accuracy,accuracy_low,accuracy_high,loss,seconds,error"));
    assert_eq!(table.lines().count(), 7);
    // The recorded pipeline is the winner's, and its report can be made.
    let recorded = fs::read_to_string(scratch.path("r/pipeline.toml")).unwrap();
    assert!(recorded.contains(&format!("solver = {}", trials[0]["settings"]["solver"])), "{recorded}");
    scratch.ok(&["report", "r"]);
    let said = scratch.ok(&sweep);
    assert!(said.stdout.contains("solver") && said.stderr.contains("highest hold-out accuracy"), "{}", said.stderr);
}

#[test]
fn folds_hold_every_row_out_and_draws_are_drawn() {
    let scratch = Scratch::new();
    features(&scratch);
    let fit = ["fit-head", "--features", "f", "--run", "r", "--solver", "lbfgs", "--sweep"];
    let found = scratch.json(&[&fit[..], &["--folds", "4", "--draws", "5", "--grid", "head.l2=1e-4..1"]].concat());
    assert_eq!((found["validation"]["rows"].as_u64(), found["split"]["holdout"].as_u64()), (Some(36), Some(36)));
    assert_eq!(found["split"]["kind"], "4 folds");
    let l2s: Vec<f64> =
        found["sweep"]["trials"].as_array().unwrap().iter().map(|trial| trial["settings"]["l2"].as_f64().unwrap()).collect();
    assert!(l2s.len() == 5 && l2s.iter().all(|l2| (1e-4..=1.0).contains(l2)), "{l2s:?}");
}

#[test]
fn a_key_that_a_flag_sets_keeps_its_value() {
    let scratch = Scratch::new();
    features(&scratch);
    for (flag, value) in [("--l2", "0.5"), ("--set", "head.l2=0.5")] {
        let found = scratch.json(&["fit-head", "--features", "f", "--run", "r", "--epochs", "1", "--sweep", flag, value]);
        let trials = found["sweep"]["trials"].as_array().unwrap();
        assert_eq!(trials.len(), 4, "four learning rates");
        assert!(trials.iter().all(|trial| trial["settings"]["l2"] == 0.5) && found["l2"] == 0.5, "{found}");
    }
}

#[test]
fn what_cannot_be_swept_is_said() {
    let scratch = Scratch::new();
    features(&scratch);
    let fit = ["fit-head", "--features", "f", "--run", "r"];
    let fails = |more: &[&str]| scratch.fails(2, &[&fit[..], more].concat());
    assert!(fails(&["--grid", "l2=1"]).contains("--sweep"));
    assert!(fails(&["--sweep", "--grid", "l2"]).contains("KEY=VALUE"));
    assert!(fails(&["--sweep", "--grid", "l3=1"]).contains("l3"));
    assert!(fails(&["--sweep", "--grid", "l2=1e-3..1"]).contains("--draws"));
    assert!(fails(&["--sweep", "--grid", "split=tail,random"]).contains("held out"));
    assert!(fails(&["--sweep", "--grid", "l2=-1,1"]).contains("l2"));
    assert!(fails(&["--sweep", "--grid", "l2=1", "--grid", "l2=2"]).contains("twice"));
    assert!(fails(&["--sweep", "--validation-split", "0"]).contains("--folds"));
    assert!(fails(&["--sweep", "--folds", "1000"]).contains("folds"));
    let both = fails(&["--sweep", "--l2", "1", "--grid", "l2=1,2"]);
    assert!(both.contains("--l2") && both.contains("one of the two"), "{both}");
    // Sorted by class, the tail holds one class, and no row of it trains.
    let sorted = fails(&["--sweep", "--split", "tail", "--validation-split", "0.3333"]);
    assert!(sorted.contains("of a class that is trained on") && sorted.contains("stratified"), "{sorted}");
    // A candidate that diverges is told and loses; when all do, it is an error.
    let found = scratch.json(&[&fit[..], &["--sweep", "--grid", "learning_rate=1e-3,1e30"]].concat());
    let trials = found["sweep"]["trials"].as_array().unwrap();
    assert!(trials[1]["error"].as_str().unwrap().contains("too large"), "{found}");
    let said = scratch.fails(1, &[&fit[..], &["--sweep", "--grid", "learning_rate=1e30"]].concat());
    assert!(said.contains("too large"), "{said}");
}
