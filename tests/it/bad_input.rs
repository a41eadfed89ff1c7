//! What is wrong with a user's files is said with the file, the reason and the remedy, and costs nothing that was done.

use std::collections::BTreeSet;
use std::fs;

use tlpipe::store::Store;

use crate::support::{Scratch, parquet, picture, png, quick};

fn extract(data: &str) -> Vec<&str> {
    [&["extract"][..], &quick(data, &["--features", "f"])].concat()
}

#[test]
fn bad_images_are_quarantined_and_the_others_used() {
    let scratch = Scratch::new();
    let data = scratch.folders("photos", &["cat", "dog"], 5);
    let good = png(&picture(0, 1));
    let put = |name: &str, content: &[u8]| fs::write(scratch.path("photos/cat").join(name), content).unwrap();
    put("bad_truncated.png", &good[..good.len() / 2]);
    put("bad_empty.png", b"");
    put("bad_text.jpg", b"not an image\n");
    let mut huge = b"\x89PNG\r\n\x1a\n".to_vec();
    for (name, content) in [(b"IHDR", &b"\0\0\x4e\x20\0\0\x4e\x20\x08\x02\0\0\0"[..]), (b"IDAT", b"\x78\x9c"), (b"IEND", b"")] {
        let body = [&name[..], content].concat();
        let mut crc = flate2::Crc::new();
        crc.update(&body);
        huge.extend((content.len() as u32).to_be_bytes());
        huge.extend(body);
        huge.extend(crc.sum().to_be_bytes());
    }
    put("bad_huge.png", &huge);
    let ran = scratch.ok(&extract(&data));
    assert!(ran.stdout.contains("4 quarantined"), "{}", ran.stdout);
    assert!(ran.stderr.contains("4 of 14 images cannot be used"), "{}", ran.stderr);
    let store = Store::open(&scratch.path("f")).unwrap();
    assert_eq!(store.manifest().rows("train"), 10);
    let quarantine = store.quarantine().unwrap();
    let ids: BTreeSet<&str> = quarantine.iter().map(|image| image.id.as_str()).collect();
    assert_eq!(ids, BTreeSet::from(["cat/bad_truncated.png", "cat/bad_empty.png", "cat/bad_text.jpg", "cat/bad_huge.png"]));
    let reason = |id: &str| quarantine.iter().find(|image| image.id == id).unwrap().error.clone();
    assert!(reason("cat/bad_empty.png").contains("empty"), "{}", reason("cat/bad_empty.png"));
    assert!(reason("cat/bad_huge.png").contains("20000 x 20000"), "{}", reason("cat/bad_huge.png"));
    assert!(quarantine.iter().all(|image| !image.error.is_empty()));
}

#[test]
fn a_source_without_one_usable_image_is_an_error() {
    let scratch = Scratch::new();
    fs::create_dir_all(scratch.path("photos/cat")).unwrap();
    fs::write(scratch.path("photos/cat/a.jpg"), b"no").unwrap();
    let said = scratch.fails(1, &extract("photos"));
    assert!(said.contains("quarantine.parquet"), "{said}");
    // And stays one, which binds the folder to nothing.
    scratch.fails(1, &extract("photos"));
    let said = scratch.fails(1, &[&extract("photos")[..], &["--resize", "crop"]].concat());
    assert!(said.contains("quarantine.parquet"), "{said}");
}

#[test]
fn sources_that_are_none_are_named() {
    let scratch = Scratch::new();
    let said = scratch.fails(1, &extract("no/such/place"));
    assert!(said.contains("no/such/place"), "{said}");
    fs::create_dir_all(scratch.path("empty")).unwrap();
    let said = scratch.fails(1, &extract("empty"));
    assert!(said.contains("empty") && said.contains("no images"), "{said}");
    fs::write(scratch.path("cut.parquet"), b"PAR1half").unwrap();
    let said = scratch.fails(1, &extract("cut.parquet"));
    assert!(said.contains("cut.parquet"), "{said}");
}

#[test]
fn null_images_and_unlabelled_rows_do_not_stop_the_rest() {
    let scratch = Scratch::new();
    let mut images: Vec<_> = (0..12).map(|number| Some(png(&picture(number % 2, number)))).collect();
    images[3] = None;
    let mut labels: Vec<i64> = (0..12).map(|number| number % 2).collect();
    labels[4] = -1;
    parquet(&scratch.path("set/train-0.parquet"), &images, &labels);
    scratch.ok(&extract("set"));
    let ran = scratch.ok(&["fit-head", "--features", "f", "--run", "r"]);
    assert!(ran.stderr.contains("1 images of train have no label"), "{}", ran.stderr);
}

#[test]
fn models_that_cannot_be_used_say_why() {
    let scratch = Scratch::new();
    let data = scratch.folders("photos", &["cat", "dog"], 2);
    fs::write(scratch.path("garbage.onnx"), b"this is no model").unwrap();
    let said = scratch.fails(1, &["extract", "--data", &data, "--model", "garbage.onnx", "--features", "f"]);
    assert!(said.contains("garbage.onnx"), "{said}");
    let said = scratch.fails(1, &["extract", "--data", &data, "--model", "mobilenet_v9", "--features", "f", "--offline"]);
    assert!(said.contains("mobilenet_v9") && said.contains("mobilenet"), "{said}");
    let said = scratch.fails(1, &["extract", "--data", &data, "--model", "quickstart", "--cut", "nothing", "--features", "f"]);
    assert!(said.contains("nothing"), "{said}");
}

#[test]
fn stores_and_runs_that_do_not_fit_are_refused() {
    let scratch = Scratch::new();
    let said = scratch.fails(1, &["fit-head", "--features", "nowhere", "--run", "r"]);
    assert!(said.contains("nowhere") && said.contains("tlpipe extract"), "{said}");
    let said = scratch.fails(1, &["report", "--features", "nowhere", "--run", "none"]);
    assert!(said.contains("tlpipe fit-head"), "{said}");
    let data = scratch.folders("photos", &["cat", "dog"], 4);
    scratch.ok(&extract(&data));
    let said = scratch.fails(1, &[&extract(&data)[..], &["--resize", "crop"]].concat());
    assert!(said.contains("resize: squash in the store, crop asked for") && said.contains("--rebuild"), "{said}");
    // A folder of one's own is not taken for a store.
    fs::create_dir_all(scratch.path("mine/letters")).unwrap();
    fs::write(scratch.path("mine/letters/dear.txt"), b"you").unwrap();
    let said = scratch.fails(1, &["extract", "--data", &data, "--model", "quickstart", "--features", "mine"]);
    assert!(said.contains("holds no feature store"), "{said}");
    // What cannot be written is said before anything is done.
    fs::write(scratch.path("file"), b"x").unwrap();
    let ran = scratch.run(&[&["run"][..], &quick(&data, &["--features", "g", "--run", "file"])].concat());
    assert!(ran.status == Some(1) && ran.stderr.contains("name another folder with --run"), "{}", ran.stderr);
    assert!(!scratch.path("g").exists());
    fs::create_dir(scratch.path("own")).unwrap();
    fs::write(scratch.path("own/metrics.json"), b"mine").unwrap();
    let said = scratch.fails(1, &[&["run"][..], &quick(&data, &["--features", "g", "--run", "own"])].concat());
    assert!(said.contains("not a run's") && fs::read(scratch.path("own/metrics.json")).unwrap() == b"mine", "{said}");
    let said = scratch.fails(2, &[&["run"][..], &quick(&data, &["--features", "g", "--run", "g/run"])].concat());
    assert!(said.contains("lies inside the feature store"), "{said}");
    scratch.ok(&[&["run"][..], &quick(&data, &["--features", "out/f", "--run", "out"])].concat());
    let said = scratch.fails(1, &[&["run"][..], &quick(&data, &["--features", "file/f", "--run", "h"])].concat());
    assert!(said.contains("--features"), "{said}");
}

#[test]
fn images_that_no_head_can_be_fitted_on_are_refused_before_the_extraction() {
    let scratch = Scratch::new();
    let run = |data: &str| scratch.fails(1, &[&["run"][..], &quick(data, &["--features", "f", "--run", "r"])].concat());
    let one = scratch.folders("one", &["cat"], 3);
    assert!(run(&one).contains("all labelled images of train are of class \"cat\""), "{}", run(&one));
    fs::create_dir_all(scratch.path("flat")).unwrap();
    let flat = scratch.folders("flat", &["."], 3);
    assert!(run(&flat).contains("none of the 3 images of train has a label"), "{}", run(&flat));
    scratch.folders("split/test", &["cat", "dog"], 3);
    let said = run(&scratch.path("split").display().to_string());
    assert!(said.contains("there is no split `train` (splits found: test)"), "{said}");
    assert!(!scratch.path("f").exists());
}

#[test]
fn a_run_without_unseen_images_says_so() {
    let scratch = Scratch::new();
    let data = scratch.folders("photos", &["cat", "dog"], 4);
    let ran = scratch.ok(&[&["run"][..], &quick(&data, &["--features", "f", "--run", "r", "--validation-split", "0"])].concat());
    assert!(ran.stderr.contains("nothing is scored on images that the head has not seen"), "{}", ran.stderr);
}

#[test]
fn a_head_that_cannot_be_fitted_says_why() {
    let scratch = Scratch::new();
    let data = scratch.folders("one", &["cat"], 6);
    scratch.ok(&extract(&data));
    let said = scratch.fails(1, &["fit-head", "--features", "f", "--run", "r"]);
    assert!(said.contains("class"), "{said}");
    for (setting, needle) in [("head.validation_split=1.5", "validation_split"), ("head.batch_size=0", "batch_size")] {
        let said = scratch.fails(2, &["fit-head", "--features", "f", "--run", "r", "--set", setting]);
        assert!(said.contains(needle), "{said}");
    }
}
