//! `tlpipe fit-head --update`.

use std::fs;

use safetensors::SafeTensors;

use crate::support::{Scratch, picture, quick};

/// Kernel and bias of a run's head.
fn head(scratch: &Scratch, run: &str) -> Vec<f32> {
    let bytes = fs::read(scratch.path(run).join("head.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let of = |name: &str| -> Vec<f32> {
        let tensor = tensors.tensor(name).unwrap();
        tensor.data().as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
    };
    [of("kernel"), of("bias"), of("mean"), of("std")].concat()
}

#[test]
fn an_updated_head_is_the_one_that_a_fit_gives() {
    let scratch = Scratch::new();
    let data = scratch.folders("photos", &["cat", "dog", "owl"], 12);
    let extract = || scratch.ok(&[&["extract"][..], &quick(&data, &["--features", "f"])].concat());
    extract();
    // Whether an image is held out follows from its id alone.
    let fit = ["--features", "f", "--solver", "ridge", "--l2", "0.1", "--split", "hash"];
    let run = |name: &str, more: &[&str]| scratch.json(&[&["fit-head", "--run", name], &fit[..], more].concat());
    run("r", &[]);
    let files = ["statistics.safetensors", "statistics.parquet", "l2_path.csv", "left_out.parquet"];
    files.iter().for_each(|name| assert!(scratch.path("r").join(name).is_file(), "{name}"));
    run("refit", &["--set", "head.refit=true"]);
    files.iter().for_each(|name| assert!(scratch.path("refit").join(name).is_file(), "{name}"));
    let same = run("r", &["--update"]);
    assert_eq!(same["update"], serde_json::json!({"added": 0, "removed": 0, "relabelled": 0}));

    let photos = scratch.path("photos");
    for number in 0..4 {
        picture(1, 40 + number).save(photos.join(format!("dog/new{number}.png"))).unwrap();
        fs::remove_file(photos.join(format!("cat/00{number}.png"))).unwrap();
        fs::rename(photos.join(format!("owl/00{number}.png")), photos.join(format!("dog/owl{number}.png"))).unwrap();
    }
    picture(0, 77).save(photos.join("cat/005.png")).unwrap();
    extract();
    let updated = run("r", &["--update"]);
    let fitted = run("anew", &[]);
    let record = |key: &str| updated["update"][key].as_u64().unwrap();
    assert!(record("added") > 0 && record("removed") > 0, "{}", updated["update"]);
    assert_eq!(updated["split"], fitted["split"]);
    let (updated_head, fitted_head) = (head(&scratch, "r"), head(&scratch, "anew"));
    assert_eq!(updated_head.len(), fitted_head.len());
    for (one, other) in updated_head.iter().zip(&fitted_head) {
        assert!((one - other).abs() <= 1e-6 * other.abs().max(1.0), "{one} {other}");
    }
    assert!((updated["validation"]["loss"].as_f64().unwrap() - fitted["validation"]["loss"].as_f64().unwrap()).abs() < 1e-6);
    assert!(updated["train"].is_null());
    scratch.ok(&["report", "r"]);

    // Features that are gone for good: fitted anew, and said.
    fs::remove_file(photos.join("owl/010.png")).unwrap();
    fs::remove_file(photos.join("owl/011.png")).unwrap();
    fs::remove_file(photos.join("dog/010.png")).unwrap();
    fs::remove_file(photos.join("dog/011.png")).unwrap();
    scratch.ok(&[&["extract"][..], &quick(&data, &["--features", "f", "--rebuild"])].concat());
    let ran = scratch.ok(&[&["fit-head", "--run", "r"], &fit[..], &["--update"]].concat());
    assert!(ran.stderr.contains("taken anew"), "{}", ran.stderr);
    run("anew", &[]);
    for (one, other) in head(&scratch, "r").iter().zip(head(&scratch, "anew")) {
        assert!((one - other).abs() <= 1e-6 * other.abs().max(1.0), "{one} {other}");
    }
}

#[test]
fn without_a_hold_out_and_after_a_sweep_the_scale_is_found_again() {
    let scratch = Scratch::new();
    let data = scratch.folders("photos", &["cat", "dog", "owl"], 12);
    let extract = || scratch.ok(&[&["extract"][..], &quick(&data, &["--features", "f"])].concat());
    extract();
    let fit = ["--features", "f", "--solver", "ridge", "--validation-split", "0", "--l2", "0.1"];
    let run = |name: &str, more: &[&str]| scratch.json(&[&["fit-head", "--run", name], &fit[..], more].concat());
    run("r", &[]);
    run("s", &["--sweep", "--folds", "3"]);
    let photos = scratch.path("photos");
    for number in 0..3 {
        picture(2, 40 + number).save(photos.join(format!("owl/new{number}.png"))).unwrap();
        fs::rename(photos.join(format!("owl/00{number}.png")), photos.join(format!("cat/owl{number}.png"))).unwrap();
    }
    extract();
    run("anew", &[]);
    run("r", &["--update"]);
    scratch.ok(&["fit-head", "s", "--update"]);
    for updated in ["r", "s"] {
        for (one, other) in head(&scratch, updated).iter().zip(head(&scratch, "anew")) {
            assert!((one - other).abs() <= 1e-5 * other.abs().max(1.0), "{updated}: {one} {other}");
        }
    }
    // What was updated or swept is up to date.
    let before = head(&scratch, "r");
    scratch.ok(&[&["run"][..], &quick(&data, &["--run", "r"]), &fit[..]].concat());
    assert_eq!(head(&scratch, "r"), before);
    let metrics = fs::read_to_string(scratch.path("r/metrics.json")).unwrap();
    assert!(metrics.contains("\"added\""), "the update's record stands");
}

#[test]
fn what_cannot_be_updated_is_said() {
    let scratch = Scratch::new();
    let data = scratch.folders("photos", &["cat", "dog"], 8);
    scratch.ok(&[&["extract"][..], &quick(&data, &["--features", "f"])].concat());
    let fit = ["fit-head", "--features", "f", "--run", "r"];
    assert!(scratch.fails(1, &[&fit[..], &["--update"]].concat()).contains("fit a head first"));
    scratch.ok(&fit);
    assert!(scratch.fails(2, &[&fit[..], &["--update"]].concat()).contains("--solver ridge"));
    scratch.ok(&[&fit[..], &["--solver", "ridge"]].concat());
    let said = scratch.fails(2, &[&fit[..], &["--update", "--solver", "ridge", "--l2", "3"]].concat());
    assert!(said.contains("settings of the run"), "{said}");
    assert!(said.contains("head.l2") && said.contains("fit-head r --update"), "{said}");
    let whole = fs::read(scratch.path("r/statistics.parquet")).unwrap();
    scratch.ok(&["fit-head", "--features", "f", "--run", "q", "--solver", "ridge", "--validation-split", "0.5"]);
    fs::copy(scratch.path("q/statistics.parquet"), scratch.path("r/statistics.parquet")).unwrap();
    let said = scratch.fails(2, &[&fit[..], &["--update", "--solver", "ridge"]].concat());
    assert!(said.contains("not of the same rows"), "{said}");
    fs::write(scratch.path("r/statistics.parquet"), whole).unwrap();
    fs::write(scratch.path("r/statistics.safetensors"), "no").unwrap();
    let said = scratch.fails(1, &[&fit[..], &["--update", "--solver", "ridge"]].concat());
    assert!(said.contains("statistics.safetensors") && said.contains("fit the head again"), "{said}");
}
