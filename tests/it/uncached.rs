//! `tlpipe run --no-cache`.

use std::fs;

use safetensors::SafeTensors;
use serde_json::Value;

use crate::support::{Scratch, parquet, picture, png, quick, signal};

/// The estimate of each strength of L2 in a run, where there is one.
fn estimates(scratch: &Scratch, run: &str) -> Vec<f64> {
    let mut table = csv::Reader::from_path(scratch.path(run).join("l2_path.csv")).unwrap();
    let at = table.headers().unwrap().iter().position(|name| name == "leave_one_out_error").unwrap();
    table.records().filter_map(|row| row.unwrap()[at].parse().ok()).collect()
}

fn kernel(scratch: &Scratch, run: &str) -> Vec<f32> {
    let bytes = fs::read(scratch.path(run).join("head.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let bytes = tensors.tensor("kernel").unwrap().data();
    bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

#[test]
fn the_head_is_that_of_cached_features_and_none_are_left() {
    let scratch = Scratch::new();
    let data = scratch.folders("photos/train", &["cat", "dog", "owl"], 12);
    for class in ["cat", "dog", "owl"] {
        let folder = scratch.path("photos/test").join(class);
        fs::create_dir_all(&folder).unwrap();
        (0..4).for_each(|number| picture(class.len() % 3, 90 + number).save(folder.join(format!("{number}.png"))).unwrap());
    }
    let data = data.trim_end_matches("/train").to_owned();
    let ridge = ["--solver", "ridge", "--l2", "0.1"];
    let wide = ["--layers", "multi-all", "--views", "identity,hflip", "--dtype", "float16", "--set", "head.refit=true"];
    for (name, more) in [("plain", &[][..]), ("wide", &wide)] {
        let [cached, uncached] = ["cached", "uncached"].map(|how| format!("{name}-{how}"));
        let run = |run: &str, features: &str, last: &[&str]| {
            let folders = ["--run", run, "--features", features];
            scratch.json(&[&["run"][..], &quick(&data, &[&ridge[..], more, &folders, last].concat())].concat())
        };
        let expected = run(&cached, name, &[]);
        // As a run leaves it that was killed.
        fs::create_dir_all(scratch.path(&uncached).join(".features-old")).unwrap();
        let found = run(&uncached, "none", &["--no-cache"]);
        let (expected, found) = (&expected["fit_head"], &found["fit_head"]);
        for key in ["split", "features", "l2", "classes"] {
            assert_eq!(found[key], expected[key], "{name}: {key}");
        }
        for split in ["validation", "test"] {
            assert_eq!(found[split]["accuracy"], expected[split]["accuracy"], "{name}: {split}");
            assert_eq!(found[split]["rows"], expected[split]["rows"], "{name}: {split}");
        }
        assert!(found["train"].is_null());
        let (found, expected) = (kernel(&scratch, &uncached), kernel(&scratch, &cached));
        assert_eq!(found.len(), expected.len());
        for (one, other) in found.iter().zip(&expected) {
            assert!((one - other).abs() <= 1e-4 * other.abs().max(1.0), "{name}: {one} {other}");
        }
        assert!(!scratch.path("none").exists());
        let left = fs::read_dir(scratch.path(&uncached)).unwrap().flatten().filter(|entry| entry.path().is_dir());
        assert_eq!(left.count(), 0, "{name}");
        assert!(scratch.path(&uncached).join("report.html").is_file());
    }
}

#[test]
fn what_needs_the_rows_is_refused() {
    let scratch = Scratch::new();
    let data = scratch.folders("photos", &["cat", "dog"], 4);
    let run = |more: &[&str]| scratch.fails(2, &[&["run", "--no-cache", "--run", "r"][..], &quick(&data, more)].concat());
    assert!(run(&["--solver", "adam"]).contains("head.solver = \"ridge\""));
    assert!(
        run(&["--solver", "ridge", "--views", "identity,hflip", "--set", "head.views=augment"])
            .contains("set head.views = \"average\"")
    );
    assert!(run(&["--solver", "ridge", "--validation-split", "0"]).contains("validation_split"));
    assert!(run(&["--rebuild"]).contains("--no-cache"));
    assert!(run(&["--solver", "ridge", "--set", "head.keep_statistics=true"]).contains("head.keep_statistics"));
}

#[test]
fn a_run_is_repeated_from_its_folder_and_says_what_it_lacks() {
    let scratch = Scratch::new();
    let data = scratch.folders("photos", &["cat", "dog", "owl"], 20);
    fs::write(scratch.path("photos/owl/bad.png"), "no image").unwrap();
    let flags = ["--solver", "ridge", "--run", "r", "--features", "f", "--no-cache"];
    let ran = scratch.ok(&[&["run"][..], &quick(&data, &flags)].concat());
    assert!(ran.stderr.contains("r/quarantine.parquet says why") && !ran.stderr.contains(".features-"), "{}", ran.stderr);
    assert!(scratch.path("r/quarantine.parquet").is_file());
    let first = kernel(&scratch, "r");
    let found = estimates(&scratch, "r");
    assert!(found.iter().all(|&error| error > 0.0), "{found:?}");
    // The same again, without the flag.
    scratch.ok(&["run", "r"]);
    assert_eq!(kernel(&scratch, "r"), first);
    assert!(!scratch.path("f").exists() && scratch.path("r/quarantine.parquet").is_file());
    assert!(scratch.fails(2, &["run", "r", "--rebuild"]).contains("output.cache = false"));
    // A report needs no features, but for the map of them.
    fs::remove_file(scratch.path("r/report.html")).unwrap();
    scratch.ok(&["report", "r"]);
    let facts: Value = serde_json::from_slice(&fs::read(scratch.path("r/report.json")).unwrap()).unwrap();
    assert_eq!((&facts["store"]["path"], &facts["store"]["quarantine"][0]["id"]), (&"r".into(), &"owl/bad.png".into()));
    assert_eq!(facts["commands"], serde_json::json!(["tlpipe run r/pipeline.toml"]));
    assert!(facts["notes"].to_string().contains("keeps no features"), "{}", facts["notes"]);
    for command in ["audit", "fit-head"] {
        let said = scratch.fails(1, &[command, "r"]);
        assert!(said.contains("keeps none") && said.contains("tlpipe extract r/pipeline.toml"), "{said}");
    }
    // The head says what its features were made by.
    scratch.ok(&["export", "r"]);
    scratch.ok(&["extract", "r"]);
    scratch.ok(&["audit", "r"]);
    scratch.ok(&["fit-head", "r"]);
    assert!(!scratch.path("r/features.json").exists() && !scratch.path("r/quarantine.parquet").exists());
}

#[test]
fn where_nothing_can_be_used_the_reasons_stay() {
    let scratch = Scratch::new();
    for class in ["cat", "dog"] {
        fs::create_dir_all(scratch.path("photos").join(class)).unwrap();
        (0..4).for_each(|number| fs::write(scratch.path(&format!("photos/{class}/{number}.png")), "no image").unwrap());
    }
    let run =
        || scratch.fails(1, &[&["run", "--no-cache", "--solver", "ridge", "--run", "r"][..], &quick("photos", &[])].concat());
    assert!(run().contains("none of the 8 images could be used; r/quarantine.parquet says why"));
    assert!(scratch.path("r/quarantine.parquet").is_file());
    // What it left is no obstacle.
    assert!(run().contains("none of the 8 images"));
}

#[cfg(unix)]
#[test]
fn who_stops_it_is_told_once_what_is_kept() {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Command, Stdio};

    let scratch = Scratch::new();
    let image = png(&picture(0, 3));
    let labels: Vec<i64> = (0..9000).map(|number| number % 2).collect();
    parquet(&scratch.path("many/train-00000-of-00001.parquet"), &vec![Some(image); 9000], &labels);
    let mut command = Command::new(assert_cmd::cargo::cargo_bin("tlpipe"));
    let flags = ["run", "--no-cache", "--solver", "ridge", "--threads", "1", "--run", "r"];
    command.current_dir(scratch.path("")).args(flags).args(quick("many", &[])).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.starts_with("extract")));
    std::thread::sleep(std::time::Duration::from_millis(150));
    signal(&child, "-INT");
    let said: Vec<String> = lines.collect();
    let status = child.wait().unwrap().code();
    // A very quick machine is through before the signal arrives.
    if status != Some(0) {
        assert_eq!(status, Some(130), "{said:?}");
        assert_eq!(said.iter().filter(|line| line.contains("kept")).count(), 1, "{said:?}");
    }
    assert!(!scratch.path("r").read_dir().unwrap().any(|entry| entry.unwrap().path().is_dir()), "{said:?}");
}
