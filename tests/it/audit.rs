//! `tlpipe audit`.

use std::fs;

use arrow::array::AsArray as _;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::support::{Scratch, assets, finish, first_rows, quick};

/// Rows of `audit.parquet`: kind, id, other id.
fn findings(scratch: &Scratch, run: &str) -> Vec<(String, String, Option<String>)> {
    let file = fs::File::open(scratch.path(run).join("audit.parquet")).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let names: Vec<String> = reader.schema().fields().iter().map(|field| field.name().clone()).collect();
    assert_eq!(names, ["kind", "rank", "score", "id", "split", "other_id", "other_split", "suggestion"]);
    let mut rows = Vec::new();
    for batch in reader.build().unwrap() {
        let batch = batch.unwrap();
        let texts = |name: &str| batch[name].as_string::<i32>().iter().map(|text| text.map(str::to_owned)).collect::<Vec<_>>();
        let (kinds, ids) = (texts("kind"), texts("id"));
        rows.extend(
            kinds.into_iter().zip(ids).zip(texts("other_id")).map(|((kind, id), other)| (kind.unwrap(), id.unwrap(), other)),
        );
    }
    rows
}

fn count(summary: &serde_json::Value, kind: &str) -> u64 {
    let found = summary["findings"].as_array().unwrap().iter().find(|found| found["kind"] == kind).unwrap();
    found["count"].as_u64().unwrap()
}

#[test]
fn copies_between_splits_are_found_before_any_fit() {
    let scratch = Scratch::new();
    for (split, each) in [("photos/train", 14), ("photos/test", 6)] {
        scratch.folders(split, &["cat", "dog", "owl"], each);
    }
    // The pictures of test are those of train: six a class. And one twice in train, under two classes.
    let train = scratch.path("photos/train");
    fs::copy(train.join("cat/009.png"), train.join("dog/copy.png")).unwrap();
    let data = scratch.path("photos").display().to_string();
    scratch.ok(&[&["extract"][..], &quick(&data, &["--features", "f"])].concat());
    let audit = ["audit", "--features", "f", "--run", "r"];
    let summary = scratch.json(&audit);
    assert_eq!((summary["schema"].as_u64(), summary["images"].as_u64()), (Some(1), Some(61)));
    assert_eq!(summary["exact_leaks"].as_u64(), Some(18));
    assert_eq!((count(&summary, "leak"), count(&summary, "duplicate")), (18, 1));
    assert!(count(&summary, "label_conflict") >= 1 && count(&summary, "few_images") == 3);
    let rows = findings(&scratch, "r");
    let has = |kind: &str, id: &str, other: &str| {
        rows.iter().any(|row| row.0 == kind && row.1.ends_with(id) && row.2.as_deref().is_some_and(|row| row.ends_with(other)))
    };
    assert!(has("leak", "cat/003.png", "cat/003.png") && has("duplicate", "dog/copy.png", "cat/009.png"), "{rows:?}");
    let recorded: serde_json::Value = serde_json::from_str(&fs::read_to_string(scratch.path("r/audit.json")).unwrap()).unwrap();
    assert_eq!(recorded["findings"], summary["findings"]);
    let ran = scratch.ok(&audit);
    assert!(
        ran.stdout.contains("leak") && ran.stdout.contains("none of") && ran.stderr.contains("neighbours"),
        "{}{}",
        ran.stdout,
        ran.stderr
    );
    // A head comes after it, and the findings stay; a fitted run can be audited too.
    scratch.ok(&["fit-head", "--features", "f", "--run", "r"]);
    assert!(scratch.path("r/audit.parquet").is_file());
    scratch.ok(&["audit", "r", "-q"]);
    scratch.ok(&["audit", "--run", "r", "--near", "0"]);
    assert!(scratch.ok(&["audit", "--help"]).stdout.contains("Examples:"));
}

#[test]
fn what_cannot_be_audited_is_said() {
    let scratch = Scratch::new();
    let data = scratch.folders("photos", &["cat"], 8);
    assert!(scratch.fails(1, &["audit", "--features", "f", "--run", "r"]).contains("no feature store here"));
    scratch.ok(&[&["extract"][..], &quick(&data, &["--features", "f"])].concat());
    let ran = scratch.ok(&["audit", "--features", "f", "--run", "r"]);
    assert!(ran.stdout.contains("label error: every labelled image is of class cat"), "{}", ran.stdout);
    assert!(ran.stdout.contains("leak: there is one split"), "{}", ran.stdout);
    scratch.fails(2, &["audit", "--features", "f", "--run", "r", "--near", "2"]);
    fs::create_dir(scratch.path("own")).unwrap();
    fs::write(scratch.path("own/thesis.txt"), "mine").unwrap();
    assert!(scratch.fails(1, &["audit", "--features", "f", "--run", "own"]).contains("not a run's"));
}

#[test]
fn a_slice_of_cifar10_is_audited() {
    let Some(assets) = assets() else { return };
    let scratch = Scratch::new();
    for (split, rows) in [("train", 2000), ("test", 300)] {
        let name = format!("{split}-00000-of-00001.parquet");
        first_rows(&assets.join("cifar10/plain_text").join(&name), rows, &scratch.path("slice").join(&name));
    }
    let flags = ["--data", "slice", "--model", "mobilenet_v2", "--input-size", "96", "--features", "f"];
    let run = |args: &[&str]| {
        let ran = finish(scratch.command(&[args, &flags[..], &["--json"]].concat()).env("TLPIPE_ASSETS", &assets));
        assert_eq!(ran.status, Some(0), "{}{}", ran.stdout, ran.stderr);
        serde_json::from_str::<serde_json::Value>(&ran.stdout).unwrap()
    };
    run(&["extract"]);
    let summary = run(&["audit", "--run", "r", "--data-curve"]);
    assert!(summary["labels"]["agreement"].as_f64().unwrap() > 0.7, "{}", summary["labels"]);
    assert_eq!((count(&summary, "small_image"), count(&summary, "not_finite")), (2300, 0));
    let curve = summary["data_curve"]["points"].as_array().unwrap();
    let error = |place: usize| curve[place]["error"].as_f64().unwrap();
    assert!(error(0) > error(7) && error(7) < 0.35, "{curve:?}");
    assert!(summary["data_curve"]["doubling"]["gain"].as_f64().unwrap() > 0.0);
}
