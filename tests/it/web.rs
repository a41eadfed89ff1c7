//! A classifier outside tlpipe: `examples/web` on onnxruntime-web in Node.

#![cfg(unix)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::predict::exported;
use crate::support::{Scratch, picture};

/// Where `npm install` of the example put its packages: there, or in the folder that `TLPIPE_NODE_MODULES` names.
fn packages(example: &Path) -> Option<PathBuf> {
    let named = std::env::var_os("TLPIPE_NODE_MODULES").map(PathBuf::from);
    let found =
        [named, Some(example.join("node_modules"))].into_iter().flatten().find(|path| path.join("onnxruntime-web").is_dir());
    let node = Command::new("node").arg("--version").output().is_ok_and(|output| output.status.success());
    if found.is_none() || !node {
        println!(
            "skipped: no Node, or no onnxruntime-web: npm install in examples/web, or name its node_modules in TLPIPE_NODE_MODULES"
        );
        return None;
    }
    found
}

#[test]
fn onnxruntime_web_gives_the_same_answers() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/web");
    let Some(packages) = packages(&example) else { return };
    let scratch = Scratch::new();
    exported(&scratch);
    fs::copy(example.join("classify.mjs"), scratch.path("classify.mjs")).unwrap();
    std::os::unix::fs::symlink(packages, scratch.path("node_modules")).unwrap();
    let mut names = Vec::new();
    for number in 0..6 {
        // Of another size than the network's, and than each other.
        let image = picture(number % 2, number);
        let image = image::imageops::crop_imm(&image, 0, 0, 40 - 3 * u32::try_from(number).unwrap(), 30).to_image();
        image.save(scratch.path(&format!("{number}.png"))).unwrap();
        let head = format!("P6\n{} {}\n255\n", image.width(), image.height());
        fs::write(scratch.path(&format!("{number}.ppm")), [head.as_bytes(), image.as_raw()].concat()).unwrap();
        names.push(format!("{number}.ppm"));
    }
    // One name a line would be two here.
    fs::write(scratch.path("labels.txt"), "first\nsecond\n").unwrap();
    let mut command = Command::new("node");
    let output = command.current_dir(scratch.path("")).args(["classify.mjs", "m.onnx"]).args(&names).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found = String::from_utf8(output.stdout).unwrap();
    let found: Vec<Value> = found.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let own = scratch.json(&["predict", "m.onnx", "0.png", "1.png", "2.png", "3.png", "4.png", "5.png", "--top-k", "2"]);
    assert_eq!(found.len(), 6);
    for (theirs, ours) in found.iter().zip(own["predictions"].as_array().unwrap()) {
        assert_eq!(theirs["class_index"], ours["class_index"]);
        for class in ours["top"].as_array().unwrap() {
            let index = usize::try_from(class["class_index"].as_u64().unwrap()).unwrap();
            let difference = class["probability"].as_f64().unwrap() - theirs["probabilities"][index].as_f64().unwrap();
            assert!(difference.abs() < 1e-4, "{theirs} {ours}");
        }
    }
}
