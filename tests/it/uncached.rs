//! `tlpipe run --no-cache`.

use std::fs;

use safetensors::SafeTensors;

use crate::support::{Scratch, picture, quick};

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
    assert!(run(&["--solver", "ridge", "--views", "identity,hflip", "--set", "head.views=augment"]).contains("--no-cache"));
    assert!(run(&["--solver", "ridge", "--validation-split", "0"]).contains("validation_split"));
    assert!(run(&["--rebuild"]).contains("--no-cache"));
}
