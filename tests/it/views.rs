//! Images that are seen more than once: in the store, in the fit, in what is said.

use std::fs;

use tlpipe::store::Store;

#[cfg(unix)]
use crate::support::signal;
use crate::support::{Scratch, parquet, picture, png, quick};

const BOTH: [&str; 2] = ["--views", "identity,hflip"];

fn extract(scratch: &Scratch, data: &str, features: &str, more: &[&str]) -> serde_json::Value {
    scratch.json(&[&["extract"][..], &quick(data, &[&["--features", features], more].concat())].concat())
}

#[test]
fn a_mirrored_file_has_the_features_of_the_mirrored_view() {
    let scratch = Scratch::new();
    for (folder, mirrored) in [("plain", false), ("mirrored", true)] {
        for class in 0..2 {
            fs::create_dir_all(scratch.path(folder).join(["cat", "dog"][class])).unwrap();
            for number in 0..9 {
                // Of the network's own size, so that nothing is resized.
                let mut image = image::imageops::crop_imm(&picture(class, number), 0, 0, 30, 30).to_image();
                image = image::imageops::resize(&image, 32, 32, image::imageops::FilterType::Nearest);
                if mirrored {
                    image = image::imageops::flip_horizontal(&image);
                }
                let path = scratch.path(folder).join(["cat", "dog"][class]).join(format!("{number}.png"));
                image.save(path).unwrap();
            }
        }
    }
    let said = scratch.ok(&[&["extract"][..], &quick("plain", &[&["--features", "f"], &BOTH[..]].concat())].concat());
    assert!(said.stderr.contains("2 views (identity, hflip)"), "{}", said.stderr);
    assert!(said.stdout.contains("18 rows x") && said.stdout.contains("x 2 views"), "{}", said.stdout);
    extract(&scratch, "plain", "one", &[]);
    extract(&scratch, "mirrored", "other", &[]);
    let load = |name: &str| Store::open(&scratch.path(name)).unwrap();
    let (both, one, other) = (load("f"), load("one"), load("other"));
    assert_eq!((both.views().len(), one.views().len()), (2, 1));
    let own = both.load_view(&["train"], 0).unwrap().embeddings;
    let hflip = both.load_view(&["train"], 1).unwrap().embeddings;
    assert_eq!(own, one.load(&["train"]).unwrap().embeddings, "a second view changes nothing of the first");
    assert_eq!(hflip, other.load(&["train"]).unwrap().embeddings);
    assert_eq!(both.load(&["train"]).unwrap().embeddings, (&own + &hflip) * 0.5);
}

#[test]
fn an_image_stays_one_row_through_updates_fit_and_predictions() {
    let scratch = Scratch::new();
    let data = scratch.folders("photos", &["cat", "dog"], 20);
    let more = [&BOTH[..], &["--dtype", "float16"]].concat();
    fs::write(scratch.path("photos/cat/bad.png"), b"no image").unwrap();
    let first = extract(&scratch, &data, "f", &more);
    let figures = |json: &serde_json::Value| ["rows", "new", "reused", "quarantined"].map(|name| json[name].as_u64().unwrap());
    assert_eq!(figures(&first), [40, 40, 0, 1]);
    assert_eq!((&first["dtype"], &first["views"][1]), (&"float16".into(), &"hflip".into()));
    assert_eq!(extract(&scratch, &data, "f", &more)["up_to_date"], true);
    picture(1, 77).save(scratch.path("photos/cat/bad.png")).unwrap();
    assert_eq!(figures(&extract(&scratch, &data, "f", &more)), [41, 1, 40, 0]);
    let updated = Store::open(&scratch.path("f")).unwrap().load_with_views(&["train"]).unwrap();
    assert_eq!(figures(&extract(&scratch, &data, "f", &[&more[..], &["--rebuild"]].concat())), [41, 41, 0, 0]);
    assert_eq!(Store::open(&scratch.path("f")).unwrap().load_with_views(&["train"]).unwrap().embeddings, updated.embeddings);

    let error = scratch.fails(1, &[&["extract"][..], &quick(&data, &["--features", "f", "--dtype", "float16"])].concat());
    assert!(error.contains("views: identity, hflip in the store, identity asked for"), "{error}");
    let error = scratch.fails(1, &[&["extract"][..], &quick(&data, &["--features", "f", "--views", "identity,hflip"])].concat());
    assert!(error.contains("dtype: float16 in the store, float32 asked for"), "{error}");

    // What is asked for aloud and is not in the store is refused; features alone make a head without a word about them.
    for (set, made) in [("backbone.views=[\"identity\",\"center\"]", "identity,hflip"), ("backbone.layers=\"multi\"", "pooled")] {
        let said = scratch.fails(2, &["fit-head", "--features", "f", "--run", "other", "--set", set]);
        assert!(said.contains(&format!("made with {made};")) && said.contains("tlpipe extract"), "{said}");
    }
    for (run, how) in [("mean", "average"), ("rows", "augment")] {
        let set = format!("head.views={how}");
        let metrics = scratch.json(&["fit-head", "--features", "f", "--run", run, "--set", &set]);
        let split = &metrics["split"];
        assert_eq!(split["train"].as_u64().unwrap() + split["holdout"].as_u64().unwrap(), 41, "{how}");
        assert_eq!(metrics["train"]["rows"], split["train"], "{how}");
    }
    scratch.json(&["fit-head", "--features", "f", "--run", "ridge", "--solver", "ridge"]);
    let swept = ["--sweep", "--grid", "views=average,augment", "--grid", "l2=1e-3,1e-1", "--solver", "lbfgs"];
    let metrics = scratch.json(&[&["fit-head", "--features", "f", "--run", "swept"][..], &swept].concat());
    assert_eq!(metrics["sweep"]["candidates"], 4);
    scratch.ok(&["fit-head", "--features", "f", "--run", "shots", "--set", "head.views=augment", "--shots", "2", "--baselines"]);
}

#[test]
fn what_is_no_list_of_views_is_refused() {
    let scratch = Scratch::new();
    let data = scratch.folders("photos", &["cat", "dog"], 3);
    for (flag, value, expected) in [
        ("--views", "hflip", "identity comes first"),
        ("--views", "identity,hflip,hflip", "hflip stands there twice"),
        ("--views", "identity,vflip", "\"vflip\" is no view; use one of identity, hflip, center"),
        ("--dtype", "float8", "float16"),
    ] {
        let error = scratch.fails(2, &[&["extract"][..], &quick(&data, &["--features", "f", flag, value])].concat());
        assert!(error.contains(expected), "{error}");
    }
    extract(&scratch, &data, "f", &[]);
    let error = scratch.fails(2, &["fit-head", "--features", "f", "--run", "r", "--set", "head.views=augment"]);
    assert!(error.contains("head.views") && error.contains("--views identity,hflip"), "{error}");
}

#[cfg(unix)]
#[test]
fn a_killed_run_loses_no_view() {
    let scratch = Scratch::new();
    let images: Vec<_> = (0..3000).map(|number| Some(png(&picture(number % 2, number)))).collect();
    parquet(&scratch.path("many/train-00000-of-00001.parquet"), &images, &(0..3000).map(|row| row % 2).collect::<Vec<_>>());
    let more = ["--views", "identity,hflip,center-hflip", "--dtype", "float16"];
    let args = [&["extract", "--threads", "1"][..], &quick("many", &["--features", "f"]), &more].concat();
    for moment in [30, 300, 500, 700] {
        let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin("tlpipe"));
        command.current_dir(scratch.path("")).args(&args);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut child = command.spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(moment));
        signal(&child, "-KILL");
        child.wait().unwrap();
    }
    let json = extract(&scratch, "many", "f", &more);
    assert_eq!(json["rows"], 3000);
    extract(&scratch, "many", "whole", &more);
    let load = |name: &str| Store::open(&scratch.path(name)).unwrap().load_with_views(&["train"]).unwrap();
    let (killed, whole) = (load("f"), load("whole"));
    assert_eq!(killed.ids, whole.ids);
    assert!(killed.embeddings == whole.embeddings, "other bits");
}
