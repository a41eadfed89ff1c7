use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use polars::prelude::*;

use super::*;
use crate::assets::Search;
use crate::pipeline::fixture::pipeline;
use crate::store::fixture;

/// What an audit says, and what it told on the way.
fn told(pipeline: &Pipeline, plan: AuditPlan) -> (Result<Audited, PipelineError>, Vec<String>) {
    let told = Mutex::new(Vec::new());
    let observe = |event: Event<'_>| {
        if let Event::Warned(text) | Event::Noted(text) = event {
            told.lock().unwrap().push(text);
        }
    };
    let (stop, stoppable) = (AtomicBool::new(false), AtomicBool::new(false));
    let context =
        Context { search: Search::from_env(true), library: None, observe: &observe, stop: &stop, stoppable: &stoppable };
    let found = audit(pipeline, &context, plan);
    (found, told.into_inner().unwrap())
}

fn plan() -> AuditPlan {
    AuditPlan { near: None, data_curve: false }
}

fn run(dir: &Path, plan: AuditPlan) -> Audited {
    told(&pipeline(dir, "run", &[]), plan).0.unwrap()
}

fn counts(summary: &Summary) -> BTreeMap<String, usize> {
    summary.findings.iter().map(|kind| (kind.kind.clone(), kind.count)).collect()
}

fn skipped(summary: &Summary, kind: &str) -> Option<String> {
    summary.findings.iter().find(|found| found.kind == kind).and_then(|found| found.skipped.clone())
}

/// A column of texts of `audit.parquet`.
fn column(audited: &Audited, name: &str) -> Vec<Option<String>> {
    let path = PlRefPath::try_from_path(&audited.findings).unwrap();
    let frame = LazyFrame::scan_parquet(path, ScanArgsParquet::default()).unwrap().collect().unwrap();
    frame.column(name).unwrap().str().unwrap().iter().map(|text| text.map(str::to_owned)).collect()
}

#[test]
fn planted_copies_and_numbers_that_are_none_are_named_without_a_head() {
    let dir = tempfile::tempdir().unwrap();
    let copy_of = |row: usize| match row {
        700 => Some(30),
        1600 => Some(31),
        _ => None,
    };
    fixture::write(&dir.path().join("features"), &[("train", 1500), ("test", 300)], 64, 4, |row, values| {
        if let Some(from) = copy_of(row) {
            *values = fixture::features(from, fixture::class(from, 4), 64);
            values[0] += 0.01;
        }
        if row == 5 {
            values[3] = f32::NAN;
        }
    });
    let audited = run(dir.path(), plan());
    let counts = counts(&audited.summary);
    assert_eq!((counts["leak"], counts["near_duplicate"], counts["not_finite"], counts["duplicate"]), (1, 1, 1, 0));
    let rows: Vec<_> =
        column(&audited, "kind").into_iter().zip(column(&audited, "id")).zip(column(&audited, "other_id")).collect();
    let id = |row: usize| Some(format!("images/{row:07}.png"));
    let kind = |name: &str| Some(name.to_owned());
    assert!(rows.contains(&((kind("leak"), id(1600)), id(31))), "{rows:?}");
    assert!(rows.contains(&((kind("near_duplicate"), id(700)), id(30))));
    assert!(rows.contains(&((kind("not_finite"), id(5)), None)));
    assert_eq!(rows.len(), counts.iter().filter(|(kind, _)| !kind.contains("class")).map(|(_, count)| count).sum::<usize>());
    // 1 x 1 pixels.
    assert_eq!((counts["small_image"], audited.summary.images), (1800, 1800));
    assert_eq!(audited.summary.splits.iter().map(|split| split.images).collect::<Vec<_>>(), [1500, 300]);
    let read = RunDir::new(dir.path().join("run")).audit().unwrap().unwrap();
    // Not the figures to the last digit: those are read from text.
    let kinds = |summary: &Summary| summary.findings.iter().map(|kind| (kind.kind.clone(), kind.count)).collect::<Vec<_>>();
    assert_eq!(kinds(&read), kinds(&audited.summary));
    assert_eq!((&read.classes, &read.store_digest), (&audited.summary.classes, &audited.summary.store_digest));
    assert!(audited.summary.labels.as_ref().unwrap().agreement > 0.3);
}

#[test]
fn one_class_one_image_and_a_thousand_classes_are_no_trouble() {
    for (splits, classes, why) in [
        (&[("train", 60)][..], 1, Some("every labelled image is of class c0")),
        (&[("train", 1)], 1, Some("every labelled image is of class c0")),
        (&[("train", 3), ("test", 1)], 2, None),
        (&[("train", 3000)], 1000, None),
    ] {
        let dir = tempfile::tempdir().unwrap();
        fixture::write(&dir.path().join("features"), splits, 16, classes, |_, _| {});
        let audited = run(dir.path(), plan());
        let found = skipped(&audited.summary, "label_error");
        assert!(why.is_none_or(|why| found.as_deref() == Some(why)), "{splits:?}: {found:?}");
        assert_eq!(skipped(&audited.summary, "leak").is_some(), splits.len() == 1);
        assert_eq!(audited.summary.classes.len(), classes);
    }
}

#[test]
fn constant_features_and_views_are_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let mut parts = fixture::parts();
    parts.views.push("hflip".into());
    fixture::write_as(parts, &dir.path().join("features"), &[("train", 200)], 12, 3, |_, values| {
        values.iter_mut().take(4).for_each(|value| *value = 0.0);
    });
    // The other view differs from the first by noise: the mean is not constant.
    assert_eq!(counts(&run(dir.path(), plan()).summary)["dead_feature"], 0);
    let dir = tempfile::tempdir().unwrap();
    fixture::write(&dir.path().join("features"), &[("train", 200)], 12, 3, |_, values| {
        values.iter_mut().take(8).for_each(|value| *value = 0.0);
        values[9] = 2.0;
    });
    let summary = run(dir.path(), plan()).summary;
    assert_eq!((counts(&summary)["dead_feature"], counts(&summary)["constant_feature"]), (8, 1));
    let dead = summary.findings.iter().find(|kind| kind.kind == "dead_feature").unwrap();
    assert!(dead.suggestion.as_ref().unwrap().contains("--input-size"), "{dead:?}");
}

#[test]
fn the_data_curve_is_measured_on_test_or_on_rows_held_out() {
    for (splits, split) in [(&[("train", 1200), ("test", 200)][..], "test"), (&[("train", 1200)], "hold-out")] {
        let dir = tempfile::tempdir().unwrap();
        fixture::write(&dir.path().join("features"), splits, 20, 3, |_, _| {});
        let audited = run(dir.path(), AuditPlan { data_curve: true, ..plan() });
        let curve = audited.summary.data_curve.unwrap();
        assert_eq!((curve.split.as_str(), curve.points.len()), (split, 8));
        assert!(curve.points[0].error > curve.points[7].error, "{:?}", curve.points);
        assert_eq!(curve.points[7].draws.len(), 1);
        let table = std::fs::read_to_string(dir.path().join("run/data_curve.csv")).unwrap();
        assert!(table.starts_with("images,draw,error,l2,seconds\n") && table.lines().count() == 1 + 7 * 3 + 1);
        // Another audit without one takes it away.
        run(dir.path(), plan());
        assert!(!dir.path().join("run/data_curve.csv").exists());
    }
}

#[test]
fn an_audit_is_kept_where_no_data_curve_can_be_made() {
    let dir = tempfile::tempdir().unwrap();
    // An image of each class and nothing to score them on.
    fixture::write(&dir.path().join("features"), &[("train", 2)], 8, 2, |_, _| {});
    let (found, said) = told(&pipeline(dir.path(), "run", &[]), AuditPlan { data_curve: true, ..plan() });
    assert!(found.unwrap_err().to_string().contains("nothing to score on"));
    assert!(said.iter().any(|said| said.contains("kept in")), "{said:?}");
    let run = RunDir::new(dir.path().join("run"));
    assert!(run.audit().unwrap().is_some_and(|summary| summary.data_curve.is_none()));
    assert!(run.file(AUDIT_FINDINGS).exists());
}

#[test]
fn what_does_not_fit_in_memory_is_refused_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    fixture::write(&dir.path().join("features"), &[("train", 3000)], 200, 3, |_, _| {});
    let (found, _) = told(&pipeline(dir.path(), "run", &["head.memory=1"]), plan());
    let said = found.unwrap_err().to_string();
    assert!(said.contains("an audit needs the features in memory: 3 MiB") && said.contains("raise head.memory"), "{said}");
}

#[test]
fn a_damaged_summary_is_named_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let run = RunDir::new(dir.path());
    assert!(run.audit().unwrap().is_none());
    for text in ["{", "{\"schema\": 99}", "{\"schema\": 1}"] {
        std::fs::write(dir.path().join("audit.json"), text).unwrap();
        let said = run.audit().unwrap_err().to_string();
        assert!(said.contains("audit.json") && said.contains("audit again"), "{said}");
    }
}
