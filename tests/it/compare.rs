//! `tlpipe compare`.

use std::fs;

use crate::support::{Scratch, quick};

#[test]
fn runs_are_put_beside_each_other_and_bad_ones_named() {
    let scratch = Scratch::new();
    let data = scratch.folders("photos", &["cat", "dog", "owl"], 12);
    scratch.ok(&[&["run"][..], &quick(&data, &["--run", "a", "--features", "f"])].concat());
    scratch.ok(&["fit-head", "a", "--run", "b", "--solver", "linfa"]);
    scratch.ok(&["fit-head", "a", "--run", "c", "--split", "random", "--seed", "3"]);
    let found = scratch.json(&["compare", "a", "b", "a"]);
    assert_eq!(found["runs"].as_array().unwrap().len(), 3);
    assert_eq!(found["runs"][1]["solver"], "linfa");
    let itself = &found["pairs"][1];
    assert_eq!((itself["only_first"].as_u64(), itself["only_second"].as_u64()), (Some(0), Some(0)));
    assert_eq!((itself["p"].as_f64(), itself["real"].as_bool()), (Some(1.0), Some(false)));
    // Rows and right answers are those of the metrics.
    let metrics = |run: &str| -> serde_json::Value {
        serde_json::from_str(&fs::read_to_string(scratch.path(run).join("metrics.json")).unwrap()).unwrap()
    };
    let accuracy = |run: &str| metrics(run)["validation"]["accuracy"].as_f64().unwrap();
    let difference = found["pairs"][0]["difference"].as_f64().unwrap();
    assert!((difference - (accuracy("b") - accuracy("a"))).abs() < 1e-12, "{found}");
    assert_eq!(metrics("c")["split"]["kind"], "random");
    let other = scratch.ok(&["compare", "a", "c"]);
    assert!(
        other.stderr.contains("share") && other.stdout.contains("linfa") != other.stdout.contains("adam"),
        "{}",
        other.stderr
    );
    assert!(scratch.ok(&["compare", "--help"]).stdout.contains("Examples:"));
    // Warnings stay where progress is not wanted.
    assert!(scratch.ok(&["compare", "a", "c", "-q"]).stderr.contains("warning: "));
    assert!(scratch.ok(&["--help"]).stdout.contains("only results, warnings and errors"));
    let others = scratch.folders("others", &["fox", "hen"], 12);
    scratch.ok(&[&["run"][..], &quick(&others, &["--run", "e", "--features", "g"])].concat());
    let said = scratch.fails(1, &["compare", "a", "e"]);
    assert!(said.contains("share no image") && said.contains("the same head.split"), "{said}");
    assert_eq!(scratch.json(&["compare", "a", "e", "b"])["pairs"].as_array().unwrap().len(), 1);

    scratch.fails(2, &["compare", "a"]);
    assert!(scratch.fails(1, &["compare", "a", "nowhere"]).contains("no run here"));
    fs::write(scratch.path("b/predictions.parquet"), "PAR1 no more").unwrap();
    assert!(scratch.fails(1, &["compare", "a", "b"]).contains("predictions.parquet"));
    // The same images under other names: the class that an id has differs.
    let text = fs::read_to_string(scratch.path("a/metrics.json")).unwrap();
    fs::create_dir(scratch.path("d")).unwrap();
    fs::copy(scratch.path("a/predictions.parquet"), scratch.path("d/predictions.parquet")).unwrap();
    let text = text.replace("\"cat\"", "\"tiger\"");
    fs::write(scratch.path("d/metrics.json"), &text).unwrap();
    let ran = scratch.ok(&["compare", "a", "d", "--json"]);
    let found: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    let rows = metrics("a")["validation"]["rows"].as_u64().unwrap();
    let pair = &found["pairs"][0];
    assert_eq!((pair["rows"].as_u64(), pair["relabelled"].as_u64()), (Some(rows * 2 / 3), Some(rows / 3)), "{found}");
    let page = scratch.ok(&["report", "--compare", "a", "d", "--output", "relabelled.html"]);
    assert!(page.stderr.contains("left out"), "{}", page.stderr);
    assert!(fs::read_to_string(scratch.path("relabelled.html")).unwrap().contains("relabelled left out"));
    assert!(ran.stderr.contains("tiger") && ran.stderr.contains(".png"), "{}", ran.stderr);
    // Two of three classes: these are not the same labels.
    fs::write(scratch.path("d/metrics.json"), text.replace("\"dog\"", "\"wolf\"")).unwrap();
    let said = scratch.fails(1, &["compare", "a", "d"]);
    assert!(
        said.contains("tiger") && said.contains(".png") && said.contains(&format!("of the {rows} hold-out images")),
        "{said}"
    );
    // That does not keep the others from being compared.
    assert_eq!(scratch.json(&["compare", "a", "d", "c"])["pairs"].as_array().unwrap().len(), 1);
}

#[test]
fn hold_outs_by_group_and_of_the_source() {
    let scratch = Scratch::new();
    let data = scratch.folders("photos", &["cat", "dog"], 12);
    scratch.ok(&[&["extract"][..], &quick(&data, &["--features", "f"])].concat());
    let fit = |more: &[&str]| scratch.json(&[&["fit-head", "--features", "f", "--run", "r"], more].concat());
    // Ids are cat/000.png and so on: groups of ten by the first two digits.
    let found = fit(&["--split", "grouped", "--group", "1."]);
    assert_eq!(found["split"]["kind"], "grouped");
    assert_eq!(fit(&["--split", "hash"])["split"]["kind"], "hash");
    let said = scratch.fails(2, &["fit-head", "--features", "f", "--run", "r", "--split", "source"]);
    assert!(said.contains("validation"), "{said}");
    let said = scratch.fails(2, &["fit-head", "--features", "f", "--run", "r", "--group", "_"]);
    assert!(said.contains("grouped"), "{said}");
}

#[test]
fn baselines_and_few_shots_are_beside_the_head() {
    let scratch = Scratch::new();
    let data = scratch.folders("photos", &["cat", "dog", "owl"], 12);
    scratch.ok(&[&["extract"][..], &quick(&data, &["--features", "f"])].concat());
    let flags = ["fit-head", "--features", "f", "--run", "r", "--baselines", "--shots", "2,100", "--repeats", "3"];
    let ran = scratch.ok(&flags);
    assert!(ran.stdout.contains("nearest neighbours") && ran.stdout.contains("images a class"), "{}", ran.stdout);
    assert!(ran.stderr.contains("fewer than 100"), "{}", ran.stderr);
    let found = scratch.json(&flags);
    let names: Vec<_> = found["baselines"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["majority", "nearest_mean", "nearest_neighbours"]);
    let shots = found["shots"].as_array().unwrap();
    assert_eq!((shots.len(), shots[0]["repeats"].as_array().unwrap().len()), (2, 3));
    let table = fs::read_to_string(scratch.path("r/shots.csv")).unwrap();
    assert_eq!(table.lines().next(), Some("shots,repeat,rows,accuracy"));
    assert_eq!(table.lines().skip(1).map(|line| line.split(',').nth(2).unwrap()).collect::<Vec<_>>()[..3], ["6", "6", "6"]);
    let recorded: serde_json::Value = serde_json::from_str(&fs::read_to_string(scratch.path("r/metrics.json")).unwrap()).unwrap();
    assert_eq!(recorded["baselines"], found["baselines"]);
    scratch.fails(2, &["fit-head", "--features", "f", "--run", "r", "--shots", "0"]);
}
