//! The real job on a slice of CIFAR-10 with the real backbone.

use std::fs;

use crate::support::{Scratch, assets, finish, first_rows};

const PIPELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/pipelines/cifar10.toml");

#[test]
fn a_slice_of_cifar10_goes_through_every_stage() {
    let Some(assets) = assets() else { return };
    let scratch = Scratch::new();
    for (split, rows) in [("train", 2000), ("test", 500)] {
        let name = format!("{split}-00000-of-00001.parquet");
        first_rows(&assets.join("cifar10/plain_text").join(&name), rows, &scratch.path("slice").join(&name));
    }
    let run = |more: &[&str]| {
        let args = [&["run", PIPELINE, "--data", "slice", "--json"], more].concat();
        let ran = finish(scratch.command(&args).env("TLPIPE_ASSETS", &assets));
        assert_eq!(ran.status, Some(0), "{}{}", ran.stdout, ran.stderr);
        serde_json::from_str::<serde_json::Value>(&ran.stdout).unwrap()
    };
    let first = run(&[]);
    assert_eq!(first["extract"]["rows"], 2500);
    assert_eq!(first["fit_head"]["split"]["kind"], "tail");
    assert_eq!(first["fit_head"]["split"]["holdout"], 400);
    assert_eq!(first["fit_head"]["classes"][9], "truck");
    let accuracy = first["fit_head"]["test"]["accuracy"].as_f64().unwrap();
    assert!((0.6..0.8).contains(&accuracy), "test accuracy {accuracy}");
    assert!(fs::metadata(scratch.path("runs/cifar10-96/report.html")).unwrap().len() < 10 << 20);
    assert_eq!(run(&[])["up_to_date"], true);
    // Another input size is another store; the same folder is refused and the differing part is named.
    let args = ["extract", PIPELINE, "--data", "slice", "--input-size", "64"];
    let refused = finish(scratch.command(&args).env("TLPIPE_ASSETS", &assets));
    assert_eq!(refused.status, Some(1));
    assert!(refused.stderr.contains("input_size: 96 in the store, 64 asked for"), "{}", refused.stderr);
}

#[test]
fn without_assets_and_network_the_real_job_says_what_is_missing_and_how_to_get_it() {
    let scratch = Scratch::new();
    let mut command = scratch.command(&["run", PIPELINE, "--offline"]);
    let ran = finish(command.env("XDG_CACHE_HOME", scratch.path("cache")));
    assert_eq!(ran.status, Some(1));
    for needle in ["cifar10", "TLPIPE_ASSETS", "tlpipe data fetch cifar10", "--offline"] {
        assert!(ran.stderr.contains(needle), "no `{needle}` in: {}", ran.stderr);
    }
}
