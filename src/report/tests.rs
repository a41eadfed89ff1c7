use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::evaluate::{ConfusionCell, TopK};
use crate::run::{EpochRecord, METRICS_SCHEMA, Metrics, Predictions, RunDir, SplitRecord, SplitScore, UpdateRecord};

/// A row: split, label, answer, probability of the answer. The other classes share the rest alike.
type Row = (&'static str, Option<i32>, usize, f32);

struct Fixture {
    folder: TempDir,
    run: RunDir,
}

fn write_predictions(run: &RunDir, predictions: &Predictions, classes: usize) {
    let mut writer = run.predictions("predictions.parquet", classes).unwrap();
    writer.add(predictions.clone()).unwrap();
    writer.keep().unwrap();
}

fn fixture(classes: &[&str], rows: &[Row]) -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::new(folder.path().join("run"));
    let classes: Vec<String> = classes.iter().map(|&name| name.to_owned()).collect();
    let width = classes.len();
    let mut predictions = Predictions::default();
    for (index, &(split, label, answer, confidence)) in rows.iter().enumerate() {
        predictions.ids.push(format!("data.parquet#{index}"));
        predictions.splits.push(split.to_owned());
        predictions.labels.push(label);
        predictions.predicted.push(i32::try_from(answer).unwrap());
        let other = (1.0 - confidence) / (width.max(2) - 1) as f32;
        predictions.probabilities.extend((0..width).map(|class| if class == answer { confidence } else { other }));
    }
    write_predictions(&run, &predictions, width);
    let score = |split: &str| score(&predictions, split, &classes);
    let scores = [score("train"), score("validation"), score("test")];
    let holdout = rows.iter().filter(|row| row.0 == "validation").count();
    let [train, validation, test] = scores;
    let metrics = Metrics {
        schema: METRICS_SCHEMA,
        store_key: "key".into(),
        fit_key: "fit".into(),
        solver: "adam".into(),
        epochs: 2,
        best_epoch: None,
        converged: None,
        fit_seconds: 0.5,
        load_seconds: 0.25,
        features: 1280,
        classes,
        split: SplitRecord { kind: "tail".into(), fraction: 0.2, train: rows.len() - holdout, holdout },
        train,
        validation,
        test,
        temperature: None,
        l2: 0.0,
        sweep: None,
        update: None,
        baselines: Vec::new(),
        head: json!({"epochs": 2, "learning_rate": 1e-3, "l2": null}),
    };
    run.write_history(&[epoch(1, 1.5), epoch(2, 0.75)]).unwrap();
    run.write_metrics(&metrics).unwrap();
    Fixture { folder, run }
}

/// What a fit would record of the predictions of a split.
fn score(predictions: &Predictions, split: &str, classes: &[String]) -> Option<SplitScore> {
    let rows: Vec<usize> = (0..predictions.ids.len()).filter(|&row| predictions.splits[row] == split).collect();
    let labels: Vec<_> = rows.iter().map(|&row| predictions.labels[row]).collect();
    let logit = |(row, class): (usize, usize)| predictions.probabilities[rows[row] * classes.len() + class].max(1e-30).ln();
    let logits = ndarray::Array2::from_shape_fn((rows.len(), classes.len()), logit);
    crate::evaluate::score(logits.view(), &labels, classes).ok().flatten()
}

fn epoch(epoch: usize, loss: f64) -> EpochRecord {
    EpochRecord {
        epoch,
        loss,
        accuracy: 0.5,
        val_loss: Some(loss + 0.5),
        val_accuracy: Some(0.25),
        seconds: 0.1,
        learning_rate: Some(1e-3),
    }
}

fn store() -> StoreFacts {
    StoreFacts {
        data: "cifar10".into(),
        source: "data/cifar10".into(),
        fingerprint: "f00d".into(),
        path: "features/cifar10-96".into(),
        key: "key".into(),
        digest: "digest".into(),
        splits: vec![SplitRows { split: "train".into(), rows: 50_000 }],
        quarantined: 0,
        quarantine: Vec::new(),
        features: 1280,
        tensors: 1,
        views: vec!["identity".into()],
        backbone: BackboneFacts {
            name: "mobilenet_v2".into(),
            sha256: "beef".into(),
            cut: "pool".into(),
            input_size: 96,
            preprocessing: "squash".into(),
        },
        extraction: None,
    }
}

/// A PNG of one colour.
fn png(side: u32) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_pixel(side, side, image::Rgb([200, 30, 30])).write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// Features that follow from the ids.
fn features(_: &str, ids: &[String]) -> Result<ndarray::Array2<f32>, String> {
    let number = |id: &String| id.rsplit('#').next().and_then(|number| number.parse().ok()).unwrap_or(0.0_f32);
    Ok(ndarray::Array2::from_shape_fn((ids.len(), 6), |(row, column)| (number(&ids[row]) * (column + 1) as f32).sin()))
}

impl Fixture {
    /// What a report is made from, with a picture for every id.
    fn inputs<'a>(&'a self, images: &'a FindImages<'a>, thumbnail: &'a MakeThumbnail<'a>) -> Inputs<'a> {
        Inputs {
            run: &self.run,
            store: store(),
            images,
            thumbnail,
            features: Some(&features),
            page_bytes: PAGE_BYTES,
            seed: 0,
            timings: vec![Timing { stage: "extract".into(), seconds: 43.0, images: Some(60_000) }],
            commands: vec!["tlpipe report pipelines/cifar10.toml".to_owned()],
        }
    }

    /// Writes the report with a picture for every id; the page and what was written.
    fn report(&self) -> (String, Written) {
        self.report_with(&|_, ids| Ok(ids.iter().map(|id| (id.clone(), png(32))).collect()), &|bytes, _| Ok(bytes.to_vec()))
    }

    fn report_with(&self, images: &FindImages, thumbnail: &MakeThumbnail) -> (String, Written) {
        let written = write(&self.inputs(images, thumbnail)).unwrap();
        (fs::read_to_string(&written.html).unwrap(), written)
    }

    fn error(&self, store: StoreFacts) -> String {
        let inputs = self.inputs(&|_, _| Ok(HashMap::new()), &|bytes, _| Ok(bytes.to_vec()));
        write(&Inputs { store, ..inputs }).unwrap_err().to_string()
    }
}

/// Five test rows of three classes, two of them wrong, one without a label.
const PETS: [Row; 8] = [
    ("train", Some(0), 0, 0.9),
    ("validation", Some(1), 1, 0.8),
    ("test", Some(0), 0, 0.9),
    ("test", Some(0), 2, 0.7),
    ("test", Some(1), 1, 0.6),
    ("test", Some(1), 2, 0.8),
    ("test", None, 2, 0.8),
    ("test", Some(0), 0, 0.5),
];

#[test]
fn facts_are_those_of_the_predictions() {
    let (_, written) = fixture(&["cat", "dog", "owl"], &PETS).report();
    let facts = written.facts;
    let (headline, score) = facts.headline().unwrap();
    assert_eq!((headline.split.as_str(), score.rows, score.accuracy), ("test", 5, 0.6));
    assert_eq!(headline.unlabelled, 1);
    assert_eq!(headline.top, [TopK { k: 1, accuracy: 0.6 }]);
    assert!((headline.mean_confidence.unwrap() - 0.7).abs() < 1e-6, "mean of 0.9, 0.7, 0.6, 0.8, 0.5");

    let look = facts.examined.unwrap();
    let cell = |label, predicted, count| ConfusionCell { label, predicted, count };
    assert_eq!(look.confusion, [cell(0, 0, 2), cell(0, 2, 1), cell(1, 1, 1), cell(1, 2, 1)]);
    assert_eq!(look.confused_pairs, [cell(0, 2, 1), cell(1, 2, 1)]);
    assert_eq!((look.rows, look.mistakes, look.majority), (5, 2, 0.6));
    let figures = look.classes.iter().map(|class| &class.score);
    let figures: Vec<_> = figures.map(|class| (class.rows, class.precision, class.recall, class.f1)).collect();
    let expected = [
        (3, Some(1.0), Some(2.0 / 3.0), Some(4.0 / 5.0)),
        (2, Some(1.0), Some(0.5), Some(2.0 / 3.0)),
        (0, Some(0.0), None, Some(0.0)),
    ];
    assert_eq!(figures, expected);
    assert!((look.macro_f1 - (0.8 + 2.0 / 3.0) / 2.0).abs() < 1e-12, "over the classes that have rows");
    let worst: Vec<_> = look.worst_mistakes.iter().map(|mistake| (mistake.id.as_str(), mistake.label)).collect();
    assert_eq!(worst, [("data.parquet#5", 1), ("data.parquet#3", 0)]);
    assert!((look.worst_mistakes[0].label_probability - 0.1).abs() < 1e-6);
}

#[test]
fn a_label_within_the_first_five_counts_in_top_5() {
    // Of the classes that share the rest alike the lower index comes first: with class 0 for an answer, class 6 is last.
    let rows = [("test", Some(0), 0, 0.4), ("test", Some(4), 0, 0.4), ("test", Some(5), 0, 0.4), ("test", Some(6), 0, 0.4)];
    let facts = fixture(&["a", "b", "c", "d", "e", "f", "g"], &rows).report().1.facts;
    assert_eq!(facts.splits[0].top, [TopK { k: 1, accuracy: 0.25 }, TopK { k: 5, accuracy: 0.5 }]);
}

#[test]
fn every_score_is_that_of_the_metrics() {
    // A matrix that counting the rows would not give: the report does not count again.
    let fixture = fixture(&["cat", "dog", "owl"], &PETS);
    let mut metrics = fixture.run.metrics().unwrap();
    let test = metrics.test.as_mut().unwrap();
    test.confusion = Some(vec![vec![0, 7, 0], vec![0, 0, 0], vec![0, 0, 0]]);
    test.confused = vec![ConfusionCell { label: 0, predicted: 1, count: 7 }];
    test.per_class[1].f1 = Some(0.125);
    test.averages.macro_f1 = 0.25;
    fixture.run.write_metrics(&metrics).unwrap();
    let look = fixture.report().1.facts.examined.unwrap();
    assert_eq!((&look.confusion, look.macro_f1, look.classes[1].score.f1), (&look.confused_pairs, 0.25, Some(0.125)));
}

#[test]
fn json_holds_the_facts_under_a_version() {
    let fixture = fixture(&["cat", "dog", "owl"], &PETS);
    let (_, written) = fixture.report();
    let json: serde_json::Value = serde_json::from_slice(&fs::read(&written.json).unwrap()).unwrap();
    assert_eq!(json["schema"], REPORT_SCHEMA);
    assert_eq!(json["metrics"]["test"]["accuracy"], 0.6);
    assert_eq!(json["examined"]["classes"][2]["recall"], serde_json::Value::Null);
    assert_eq!(json["history"][1]["loss"], 0.75);
    let created = json["created"].as_str().unwrap();
    assert!(created.len() == 20 && created.ends_with('Z') && created.as_bytes()[10] == b'T', "{created}");
}

#[test]
fn the_page_stands_alone() {
    let rows: Vec<Row> = (0..30).map(|index| ("test", Some(index % 2), 0, 0.6 + 0.01 * index as f32)).collect();
    let (page, _) = fixture(&["cat", "dog", "owl"], &rows).report();
    assert_eq!(page.matches("src=\"data:image/png;base64,").count(), 15 + 15, "one for each mistake, and half of the answers");
    assert_eq!(page.matches("<svg ").count(), 5, "loss, accuracy, reliability, histogram, map");
    for forbidden in ["<script src", "<link", "@import", "url(", "src=\"http", "fetch(", "undefined"] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
    assert!(page.contains("<span class=\"value\">50.0<small>"), "the headline");
    assert!(page.contains("tlpipe report pipelines&#x2f;cifar10.toml"));
    assert!(page.contains("tlpipe audit pipelines&#x2f;cifar10.toml"), "what looks into the data");
}

#[test]
fn class_names_and_ids_are_text_and_keep_their_direction() {
    let names = ["<script>alert('x')</script>", "\"><img src=x onerror=y>", "קלמנטינה", "🦉 & co"];
    let (page, _) = fixture(&names, &[("test", Some(0), 1, 0.9), ("test", Some(2), 3, 0.9), ("test", Some(3), 3, 0.9)]).report();
    assert!(!page.contains("<script>alert") && !page.contains("</script>alert") && !page.contains("<img src=x"));
    assert_eq!(page.matches("<script").count(), 2, "the data and the script");
    let data = page.split_once("id=\"data\">").unwrap().1.split_once("</script>").unwrap().0;
    let data: serde_json::Value = serde_json::from_str(data).unwrap();
    assert_eq!(data["classes"], json!(names));
    assert!(page.contains("<bdi>&lt;script&gt;alert(&#x27;x&#x27;)&lt;&#x2f;script&gt;</bdi>"));
    assert!(page.contains("<bdi>קלמנטינה</bdi>") && page.contains("<bdi>🦉 &amp; co</bdi>"));
}

#[test]
fn without_a_test_split_the_hold_out_is_the_headline_and_its_images_come_from_train() {
    let asked = RefCell::new(Vec::new());
    let fixture = fixture(&["cat", "dog"], &[("train", Some(0), 0, 0.9), ("validation", Some(1), 0, 0.8)]);
    let images = |split: &str, ids: &[String]| {
        asked.borrow_mut().push((split.to_owned(), ids.to_vec()));
        Ok(HashMap::new())
    };
    let (page, written) = fixture.report_with(&images, &|bytes, _| Ok(bytes.to_vec()));
    assert!(page.contains("Hold-out accuracy</span>"));
    assert_eq!(written.facts.headline().unwrap().0.split, "validation");
    assert_eq!(asked.into_inner(), [("train".to_owned(), vec!["data.parquet#1".to_owned()])]);
}

#[test]
fn with_neither_test_nor_hold_out_the_page_warns() {
    let (page, written) = fixture(&["cat", "dog"], &[("train", Some(0), 0, 0.9), ("train", Some(1), 1, 0.8)]).report();
    assert_eq!(written.facts.headline().unwrap().0.split, "train");
    assert!(page.contains("This is no estimate for new images"));
    assert!(page.contains("every one of 2 images is answered right"));
}

#[test]
fn an_unlabelled_test_split_is_noted_and_not_scored() {
    let (page, written) = fixture(&["cat", "dog"], &[("validation", Some(0), 0, 0.9), ("test", None, 1, 0.8)]).report();
    let test = written.facts.splits.iter().find(|split| split.split == "test").unwrap();
    assert_eq!((test.unlabelled, &test.score), (1, &None));
    assert_eq!(written.facts.examined.as_ref().unwrap().split, "validation");
    assert!(page.contains("1 row has no label") && page.contains("+ 1 unlabelled"));
}

#[test]
fn a_run_that_predicted_nothing_with_a_label_has_a_page() {
    for rows in [&[("test", None, 1, 0.8)][..], &[]] {
        let (page, written) = fixture(&["cat", "dog"], rows).report();
        assert!(written.facts.examined.is_none());
        assert!(page.contains("Nothing was scored") && !page.contains("id=\"confusion\""));
    }
}

#[test]
fn one_class() {
    let (page, written) = fixture(&["cat"], &[("test", Some(0), 0, 1.0)]).report();
    assert!(page.contains("There is one class only"));
    assert_eq!(written.facts.headline().unwrap().0.top, [TopK { k: 1, accuracy: 1.0 }]);
}

#[test]
fn a_hundred_classes_are_a_heat_map_too_and_a_thousand_those_confused_most() {
    for (classes, plots, most) in [(20, 5, 20), (100, 6, 16), (1000, 5, 16)] {
        let names: Vec<String> = (0..classes).map(|index| format!("class {index}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let rows: Vec<Row> =
            (0..3 * classes).map(|index| ("test", i32::try_from(index % classes).ok(), index * 7 % (classes - 1), 0.5)).collect();
        let (page, written) = fixture(&names, &rows).report();
        assert_eq!(page.matches("<svg ").count(), plots, "{classes} classes");
        let matrix = page.split_once("<table class=\"matrix\">").unwrap().1.split_once("</table>").unwrap().0;
        let rows_of_matrix = matrix.matches("<tr><th").count();
        assert!((most / 2..=most).contains(&rows_of_matrix), "{rows_of_matrix} rows of {classes} classes");
        assert!(page.contains("Most confused pairs"));
        let look = written.facts.examined.unwrap();
        assert_eq!(look.classes.len(), classes);
        assert!(look.confusion.len() <= 10_000 && look.examples.iter().all(|cell| !cell.answers.is_empty()));
        assert!(page.len() < 4 << 20, "{} bytes with {classes} classes", page.len());
        let shown = page.matches("<th scope=\"row\"><bdi>class 7</bdi></th>").count();
        assert!(shown >= 1, "each class has a row");
    }
}

#[test]
fn a_head_of_one_step_has_no_curves() {
    let fixture = fixture(&["cat", "dog", "owl"], &PETS);
    fs::remove_file(fixture.run.file("history.csv")).unwrap();
    let (page, written) = fixture.report();
    assert!(written.facts.history.is_empty());
    assert!(!page.contains("id=\"curves\"") && page.contains("id=\"confusion\""));
    fixture.run.write_history(&[]).unwrap();
    assert!(!fixture.report().0.contains("id=\"curves\""));

    fixture.run.write_history(&[epoch(1, 0.5)]).unwrap();
    let mut metrics = fixture.run.metrics().unwrap();
    (metrics.solver, metrics.l2) = ("ridge".into(), 1e-2);
    metrics.head = json!({"solver": "ridge", "l2": null, "refit": true, "budget": 512});
    fixture.run.write_metrics(&metrics).unwrap();
    let path =
        "l2,leave_one_out_error,leave_one_out_accuracy,holdout_error,holdout_accuracy\n0.001,0.5,,0.4,0.7\n0.01,0.4,,0.3,0.8\n";
    fixture.run.write("l2_path.csv", path.as_bytes()).unwrap();
    let (page, written) = fixture.report();
    assert!(page.contains("closed form") && !page.contains("Loss by epoch") && page.contains("</b> by strength of L2"));
    let fit = written.facts.fit;
    assert_eq!((fit.trained_on, fit.held_out, fit.refitted, fit.budget), (8, 1, true, Some(512)));
    assert!(fit.closed_form && fit.l2_chosen);
    assert!(page.contains("then it was fitted again on all 8") && page.contains("512 of them used"));
    // What was held out, not the fifth that was asked for.
    assert!(page.contains("the last 12.5\u{a0}% of the training split"), "{page}");
    // An update keeps what is held out apart.
    (metrics.update, metrics.head) = (Some(UpdateRecord::default()), json!({"solver": "ridge", "l2": null}));
    fixture.run.write_metrics(&metrics).unwrap();
    let (page, written) = fixture.report();
    assert_eq!((written.facts.fit.trained_on, written.facts.fit.held_out_share), (7, 0.125));
    assert!(page.contains("of the images that it is fitted on 0 came"), "{page}");
}

#[test]
fn a_history_that_diverged_is_drawn_as_far_as_it_goes() {
    let fixture = fixture(&["cat", "dog", "owl"], &PETS);
    fixture.run.write_history(&[epoch(1, 2.0), epoch(2, f64::NAN), epoch(3, f64::INFINITY)]).unwrap();
    let (page, written) = fixture.report();
    let (shown, _) = page.split_once("<script>").unwrap();
    assert!(shown.contains("id=\"curves\"") && !shown.contains("NaN"));
    let json: serde_json::Value = serde_json::from_slice(&fs::read(&written.json).unwrap()).unwrap();
    assert!(json["history"][1]["loss"].is_null());
}

#[test]
fn missing_and_broken_images_leave_a_placeholder_and_a_note() {
    let fixture = fixture(&["cat", "dog", "owl"], &PETS);
    let images = |_: &str, _: &[String]| Ok(HashMap::from([("data.parquet#5".to_owned(), b"not an image".to_vec())]));
    let (page, written) = fixture.report_with(&images, &|_, _| Err("truncated".into()));
    assert_eq!(page.matches("src=\"data:image/").count(), 0);
    assert!(page.contains("no picture</div>") && page.contains("image not readable</div>"));
    assert!(page.contains("4 of 5 images were not found in the source"));
    assert_eq!(written.facts.notes.len(), 3, "unlabelled, not found, not readable: {:?}", written.facts.notes);
    let (page, written) = fixture.report_with(&|_, _| Err("the run names no source".into()), &|bytes, _| Ok(bytes.to_vec()));
    assert!(page.contains("the run names no source") && !page.contains("not found in the source"));
    assert_eq!(written.facts.notes.len(), 2);
}

#[test]
fn pictures_stay_within_the_page_size() {
    let rows = [("test", Some(0), 1, 0.9); 40];
    let mut large = png(8);
    large.resize(600_000, 0);
    let fixture = fixture(&["cat", "dog"], &rows);
    let images = |_: &str, ids: &[String]| Ok(ids.iter().map(|id| (id.clone(), Vec::new())).collect());
    let thumbnail = |_: &[u8], _: u32| Ok(large.clone());
    let (page, written) = fixture.report_with(&images, &thumbnail);
    assert!(page.len() <= PAGE_BYTES, "{} bytes", page.len());
    let embedded = page.matches("src=\"data:image/").count();
    assert!((10..40).contains(&embedded), "{embedded} pictures");
    assert!(page.contains("left out: page full") && written.facts.notes[0].contains("to keep the page under 10 MiB"));
    let none = write(&Inputs { page_bytes: 0, ..fixture.inputs(&images, &thumbnail) }).unwrap();
    assert!(!fs::read_to_string(none.html).unwrap().contains("src=\"data:image/") && none.facts.notes.is_empty());
}

#[test]
fn what_stands_out_is_what_is_furthest_from_expected() {
    let classes = ["cat", "dog", "owl", "ant"];
    let mut rows: Vec<Row> = (0..200).map(|index| ("test", i32::try_from(index % 4).ok(), index % 4, 0.9)).collect();
    // A fifth of the cats are taken for dogs.
    rows.iter_mut().filter(|row| row.1 == Some(0)).take(10).for_each(|row| row.2 = 1);
    let facts = fixture(&classes, &rows).report().1.facts;
    assert_eq!(facts.standouts[0].kind, "confused");
    assert!(facts.standouts[0].text.contains("20.0\u{a0}%") && facts.standouts[0].text.contains("\u{2068}cat\u{2069}"));
    // The same from a head that is sure of all.
    rows.iter_mut().for_each(|row| row.3 = 0.999);
    rows.iter_mut().step_by(2).for_each(|row| row.2 = 3);
    let facts = fixture(&classes, &rows).report().1.facts;
    let kinds: Vec<_> = facts.standouts.iter().map(|standout| standout.kind).collect();
    assert!(kinds.contains(&"calibration") && kinds.contains(&"missing"), "{:?}", facts.standouts);
    let facts = fixture(&classes, &[("test", Some(0), 0, 0.9), ("test", Some(1), 0, 0.9)]).report().1.facts;
    assert_eq!(facts.standouts[0].kind, "no_better");
}

#[test]
fn what_stands_beside_the_head_is_shown_and_what_is_damaged_noted() {
    let fixture = fixture(&["cat", "dog", "owl"], &PETS);
    fixture.run.write("shots.csv", b"shots,repeat,rows,accuracy\n5,1,15,0.5\n5,2,15,0.7\n1,1,3,0.4\n").unwrap();
    fixture.run.write("depths.csv", b"tensor,width,used,validation_accuracy,test_accuracy,seconds\npool,6,4,0.5,,0.1\n").unwrap();
    let leaks = json!({
        "kind": "leak", "of": "image", "count": 3, "strongest": null, "suggestion": "remove <them>", "skipped": null
    });
    let summary = json!({
        "schema": 1, "store_key": "key", "store_digest": "digest", "tlpipe": "0.1.0", "images": 5, "input_size": 96, "splits": [],
        "findings": [leaks], "exact_leaks": 3, "labels": null, "classes": [], "balance": null, "data_curve": null,
        "features": {"width": 1280, "dead": [], "constant": [], "rare": []},
        "thresholds": {"near": 0.5, "scale_neighbour": 10, "outlier": null, "small": 0.5, "few": 20, "imbalance": 10.0},
        "seconds": {"load": 0.0, "neighbours": 0.0, "labels": 0.0, "rest": 0.0, "data_curve": 0.0, "all": 0.0}
    });
    let audited = |key: &str, value: serde_json::Value| {
        let mut summary = summary.clone();
        summary[key] = value;
        fixture.run.write("audit.json", summary.to_string().as_bytes()).unwrap();
    };
    audited("schema", json!(1));
    let (page, written) = fixture.report();
    let facts = written.facts;
    assert_eq!(facts.shots.iter().map(|shots| (shots.shots, shots.repeats)).collect::<Vec<_>>(), [(1, 1), (5, 2)]);
    assert_eq!(facts.depths[0].test_accuracy, None);
    assert_eq!(facts.audit.unwrap().count("leak"), 3);
    assert!(page.contains("remove &lt;them&gt;") && page.contains("Leaks between train and test"));
    assert!(facts.standouts.iter().any(|standout| standout.kind == "leaks"), "{:?}", facts.standouts);
    audited("data_curve", json!("later"));
    assert!(fixture.report().1.facts.audit.is_none());
    audited("store_digest", json!("older"));
    let facts = fixture.report().1.facts;
    assert!(facts.audit.is_none() && facts.notes.iter().any(|note| note.contains("changed since")), "{:?}", facts.notes);
    fixture.run.write("audit.json", b"{").unwrap();
    fixture.run.write("shots.csv", b"shots\nmany\n").unwrap();
    fixture.run.write("history.csv", b"epoch,loss\n1,low\n").unwrap();
    let facts = fixture.report().1.facts;
    assert!(facts.audit.is_none() && facts.shots.is_empty() && facts.history.is_empty());
    assert_eq!(facts.notes.iter().filter(|note| note.contains("make it again with tlpipe")).count(), 3);
}

#[test]
fn features_made_anew_are_refused() {
    let message = fixture(&["cat", "dog", "owl"], &PETS).error(StoreFacts { key: "other".into(), ..store() });
    assert!(message.contains("fitted on features with key key") && message.contains("now has key other"), "{message}");
    assert!(message.contains("tlpipe fit-head"));
}

#[test]
fn files_of_different_fits_are_refused() {
    let run = fixture(&["cat", "dog", "owl"], &PETS);
    let other = fixture(&["cat", "dog", "owl"], &PETS[..4]);
    fs::copy(other.run.file("predictions.parquet"), run.run.file("predictions.parquet")).unwrap();
    let message = run.error(store());
    assert!(message.contains("3 of 5 right of split test") && message.contains("1 of 2 right"), "{message}");
}

#[test]
fn damaged_predictions_are_refused_with_the_reason() {
    let run = fixture(&["cat", "dog", "owl"], &PETS);
    let path = run.run.file("predictions.parquet");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert!(run.error(store()).contains("predictions.parquet"));

    let other = fixture(&["cat", "dog"], &[("test", Some(0), 0, 0.9)]);
    fs::copy(other.run.file("predictions.parquet"), &path).unwrap();
    let message = run.error(store());
    assert!(message.contains("column probabilities is") && message.contains("fit-head"), "{message}");

    fs::remove_file(&path).unwrap();
    assert!(run.error(store()).contains("the file is missing"));
}

#[test]
fn a_label_outside_the_class_list_is_refused_by_row() {
    let message = fixture(&["cat", "dog", "owl"], &[("test", Some(0), 0, 0.9), ("test", Some(3), 0, 0.9)]).error(store());
    assert!(message.contains("row data.parquet#1: label is 3, but there are 3 classes"), "{message}");
}

#[test]
fn a_folder_without_a_run_is_refused() {
    let empty = fixture(&["cat"], &[]);
    let inputs = empty.inputs(&|_, _| Ok(HashMap::new()), &|bytes, _| Ok(bytes.to_vec()));
    let run = &RunDir::new(empty.folder.path().join("nothing"));
    assert!(matches!(write(&Inputs { run, ..inputs }), Err(ReportError::Run(RunError::Missing(_)))));
}
