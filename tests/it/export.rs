//! One file to deploy, as a user meets it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tlpipe::onnx::Model;
use tlpipe::run::{Predictions, RunDir};

use crate::support::{Scratch, assets, finish, first_rows, quick};

/// A run on class folders by the built-in backbone; `more` are flags.
fn fitted(classes: &[&str], more: &[&str]) -> Scratch {
    let scratch = Scratch::new();
    let data = scratch.folders("photos", classes, 20);
    scratch.ok(&[&["run"][..], &quick(&data, &["--features", "f", "--run", "r"]), more].concat());
    scratch
}

fn near(value: &Value, most: f64) -> bool {
    value["max_difference"].as_f64().unwrap() <= most && value["agreement"] == 1.0
}

#[test]
fn a_run_becomes_one_file_that_answers_the_same() {
    let scratch = fitted(&["cat, tabby", "dog"], &[]);
    let made = scratch.json(&["export", "r", "--sample", "all"]);
    assert!(near(&made["parity"], 1e-4), "{made}");
    assert_eq!((&made["classes"], &made["opset"], &made["input"]["kind"]), (&2.into(), &13.into(), &"uint8".into()));
    let (model, folder) = (scratch.path("r/classifier.onnx"), scratch.path("r"));
    assert_eq!(fs::metadata(&model).unwrap().len(), made["bytes"].as_u64().unwrap());
    assert_eq!(fs::read_to_string(folder.join("labels.txt")).unwrap(), "cat, tabby\ndog\n");
    let card = fs::read_to_string(folder.join("MODEL_CARD.md")).unwrap();
    for needle in ["| cat, tabby |", "## Licence", "uint8 `[N, H, W, 3]`", "the first class is the same for 1.0000"] {
        assert!(card.contains(needle), "no `{needle}` in {card}");
    }
    // The images are where they were, and there are none but those to train on.
    let ran = scratch.ok(&["verify", "r/classifier.onnx", "--json"]);
    let said: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&said["images"], &said["labelled"]), (&40.into(), &40.into()));
    assert_eq!((&said["split"], &said["trained_on"]), (&"train".into(), &true.into()));
    assert!(ran.stderr.contains("trained on"), "{}", ran.stderr);
    assert!(scratch.ok(&["verify", "r/classifier.onnx"]).stdout.contains("40 images that it was trained on"));
    assert!(near(&said["parity"], 1e-4) && said["accuracy"].as_f64().unwrap() >= 0.5, "{said}");
    // Against the run itself, and on images of which it keeps no answer.
    let said = scratch.json(&["verify", "r/classifier.onnx", "--run", "r"]);
    assert_eq!(said["parity"]["images"].as_u64(), made["parity"]["images"].as_u64());
    let other = scratch.folders("others", &["dog", "fish"], 3);
    fs::rename(scratch.path("others/dog/002.png"), scratch.path("others/dog/no.png")).unwrap();
    fs::write(scratch.path("others/dog/no.png"), b"no image").unwrap();
    let said = scratch.json(&["verify", "r/classifier.onnx", &other]);
    assert_eq!((&said["images"], &said["unusable"], &said["labelled"]), (&5.into(), &1.into(), &2.into()), "{said}");
    assert_eq!(said["trained_on"], false);
    // Exported again, card and list are replaced; they are tlpipe's own.
    let text = scratch.ok(&["export", "r", "--calibrated", "--sample", "5"]).stdout;
    assert!(text.contains("logits divided by") && text.contains("5 images of train"), "{text}");
}

#[test]
fn every_variant_of_a_wide_head_holds() {
    let views = "identity,hflip,center,center-hflip";
    let flags = ["--layers", "multi-all", "--views", views, "--dtype", "float16", "--resize", "crop", "--set"];
    let scratch = fitted(&["cat", "dog", "fox"], &[&flags[..], &["head.budget=9", "--set", "head.transform=sqrt"]].concat());
    let made = scratch.json(&["export", "r", "-o", "a/classifier.onnx"]);
    assert!(near(&made["parity"], 1e-3), "{made}");
    assert!(made["tensors_left_out"].as_u64().unwrap() > 0, "{made}");
    let said = scratch.fails(1, &["export", "r", "--input", "tensor", "-o", "b/classifier.onnx"]);
    assert!(said.contains("center") && said.contains("--input uint8"), "{said}");
    assert!(!scratch.path("b/classifier.onnx").exists());
    // From the features alone everything is known, too.
    scratch.ok(&["fit-head", "--features", "f", "--run", "r2", "--set", "head.solver=ridge"]);
    let made = scratch.json(&["export", "r2", "-o", "c/classifier.onnx"]);
    assert!(near(&made["parity"], 1e-3) && made["tensors_left_out"] == 0, "{made}");
    let model = Model::read(&scratch.path("c/classifier.onnx")).unwrap();
    let preprocessing: Value = serde_json::from_str(model.metadata("tlpipe.preprocessing").unwrap()).unwrap();
    assert_eq!((&preprocessing["resize"], preprocessing["views"].as_array().unwrap().len()), (&"crop".into(), 4));
}

#[test]
fn tensors_half_weights_and_later_operators() {
    let scratch = fitted(&["cat", "dog"], &["--views", "identity,hflip", "--resize", "pad"]);
    let whole = scratch.json(&["export", "r", "-o", "a/classifier.onnx"]);
    for (flags, most, kind) in [
        (&["--input", "tensor"][..], 1e-4, "tensor"),
        (&["--opset", "18"], 1e-4, "uint8"),
        (&["--opset", "21", "--input", "tensor"], 1e-4, "tensor"),
        (&["--precision", "fp16"], 5e-2, "uint8"),
        (&["--quantize", "int8"], 0.75, "uint8"),
    ] {
        let made = scratch.json(&[&["export", "r", "-o", "b/classifier.onnx"], flags].concat());
        assert!(made["parity"]["max_difference"].as_f64().unwrap() <= most, "{flags:?}: {made}");
        assert_eq!(made["input"]["kind"], kind);
        if ["--precision", "--quantize"].contains(&flags[0]) {
            assert!(made["bytes"].as_u64().unwrap() * 10 < whole["bytes"].as_u64().unwrap() * 8, "{made} {whole}");
        }
        let said = scratch.json(&["verify", "b/classifier.onnx", "--split", "train"]);
        assert!(said["parity"]["images"].as_u64().unwrap() > 0, "{said}");
    }
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let scratch = fitted(&["cat", "dog"], &[]);
    let data = scratch.path("photos").display().to_string();
    let refused = |status: i32, args: &[&str], needles: &[&str]| {
        let said = scratch.fails(status, &[&["export"][..], args].concat());
        for needle in needles {
            assert!(said.contains(needle), "no `{needle}` in: {said}");
        }
    };
    refused(1, &["r", "--set", "backbone.resize=crop"], &["r/head.safetensors", "resize: squash in the store, crop asked for"]);
    refused(1, &["r", "--set", "backbone.input_size=40"], &["input_size: 32 in the store, 40 asked for", "fit the head again"]);
    refused(2, &["--run", "nothing"], &["nothing", "no run here"]);
    let metrics = fs::read(scratch.path("r/metrics.json")).unwrap();
    refused(1, &["r", "-o", "r/metrics.json"], &["metrics.json", "was not written by tlpipe", "-o"]);
    assert_eq!(fs::read(scratch.path("r/metrics.json")).unwrap(), metrics);
    refused(1, &["r", "-o", "photos"], &["photos", "a folder", "-o"]);
    refused(1, &["r", "-o", "/proc/none/c.onnx"], &["/proc/none/c.onnx", "cannot be written", "-o"]);
    refused(2, &["r", "--quantize", "int4"], &["int4", "int8"]);
    refused(2, &["r", "--quantize", "int8", "--precision", "fp16"], &["give one"]);
    refused(2, &["r", "--precision", "bf16"], &["bf16", "fp32 or fp16"]);
    refused(2, &["r", "--opset", "11"], &["--opset 11", "13 at least"]);
    refused(2, &["r", "--opset", "99"], &["--opset 99", "only versions"]);
    refused(1, &["r", "--data", "missing"], &["missing", "--unproven"]);
    let other = scratch.folders("others", &["cat"], 1);
    fs::rename(scratch.path("others/cat/000.png"), scratch.path("others/cat/new.png")).unwrap();
    refused(2, &["r", "--data", &other], &["none of the", "--data"]);
    // Other images under the same names.
    for name in ["cat", "dog"] {
        for number in 0..20 {
            let (from, to) =
                (format!("photos/{name}/{number:03}.png"), format!("swapped/{}", if name == "cat" { "dog" } else { "cat" }));
            fs::create_dir_all(scratch.path(&to)).unwrap();
            fs::copy(scratch.path(&from), scratch.path(&to).join(format!("{number:03}.png"))).unwrap();
        }
    }
    refused(1, &["r", "--data", "swapped", "-o", "n/c.onnx"], &["not written", "probabilities differ", "none of the graph's"]);
    assert!(!scratch.path("n/c.onnx").exists() && !scratch.path("n/MODEL_CARD.md").exists());
    let made = scratch.json(&["export", "r", "--unproven", "--data", "missing", "-o", "u/c.onnx"]);
    assert_eq!(made["parity"], Value::Null);
    // A card of one's own is not replaced.
    fs::create_dir_all(scratch.path("own")).unwrap();
    fs::write(scratch.path("own/MODEL_CARD.md"), "mine").unwrap();
    refused(1, &["r", "-o", "own/c.onnx"], &["own/MODEL_CARD.md", "not written by tlpipe"]);
    // Nor is that of another model in the same folder.
    scratch.ok(&["export", "r", "-o", "two/a.onnx", "--sample", "5"]);
    let card = fs::read_to_string(scratch.path("two/MODEL_CARD.md")).unwrap();
    let made = scratch.json(&["export", "r", "-o", "two/b.onnx", "--input", "tensor", "--sample", "5"]);
    assert_eq!((&made["card"], &made["labels"]), (&"two/b.MODEL_CARD.md".into(), &"two/b.labels.txt".into()));
    assert_eq!(fs::read_to_string(scratch.path("two/MODEL_CARD.md")).unwrap(), card);
    assert!(fs::read_to_string(scratch.path("two/b.MODEL_CARD.md")).unwrap().contains("`b.labels.txt`"));
    let again = scratch.json(&["export", "r", "-o", "two/a.onnx", "--sample", "5"]);
    assert_eq!(again["card"], "two/MODEL_CARD.md");
    // A head of another run.
    fs::copy(scratch.path("r/head.safetensors"), scratch.path("head")).unwrap();
    scratch.ok(&[&["run"][..], &quick(&data, &["--resize", "pad", "--features", "f2", "--run", "r2"])].concat());
    fs::copy(scratch.path("head"), scratch.path("r2/head.safetensors")).unwrap();
    refused(1, &["r2"], &["r2/head.safetensors", "other features"]);
}

#[test]
fn a_model_that_is_not_ours_or_was_changed_is_found_out() {
    let scratch = fitted(&["cat", "dog"], &[]);
    let refused = |args: &[&str], needles: &[&str]| {
        let said = scratch.fails(1, &[&["verify"][..], args].concat());
        for needle in needles {
            assert!(said.contains(needle), "no `{needle}` in: {said}");
        }
    };
    scratch.ok(&["models", "cut", "quickstart", "-o", "cut.onnx"]);
    let said = scratch.fails(2, &["verify", "cut.onnx", "photos"]);
    assert!(said.contains("none of its 2 classes (cat, dog)") && said.contains("--labels"), "{said}");
    // A map is no row of scores.
    let mut proto = Model::read(&scratch.path("cut.onnx")).unwrap().proto().clone();
    let graph = proto.graph.as_mut().unwrap();
    let pool = graph.node.iter().find(|node| node.op_type() == "GlobalAveragePool").unwrap();
    graph.output[0].name = Some(pool.input[0].clone());
    graph.output[0].r#type.as_mut().unwrap().value = None;
    fs::write(scratch.path("map.onnx"), prost::Message::encode_to_vec(&proto)).unwrap();
    refused(&["map.onnx", "photos"], &["map.onnx", "not a row of class scores an image"]);
    fs::write(scratch.path("text.onnx"), "no model").unwrap();
    refused(&["text.onnx", "photos"], &["text.onnx", "not an ONNX model"]);
    refused(&["none.onnx", "photos"], &["none.onnx"]);
    scratch.ok(&["export", "r"]);
    let model = Model::read(&scratch.path("r/classifier.onnx")).unwrap();
    let entry = |key: &str| model.metadata(key).unwrap().to_owned();
    let with = |key: &str, value: String| {
        fs::write(scratch.path("m.onnx"), model.clone().with_metadata(vec![(key.to_owned(), value)]).to_bytes()).unwrap();
    };
    with("tlpipe.preprocessing", entry("tlpipe.preprocessing").replace("32", "x"));
    refused(&["m.onnx"], &["m.onnx", "tlpipe.preprocessing", "export"]);
    with("tlpipe.input", entry("tlpipe.input").replace("uint8", "tensor"));
    refused(&["m.onnx"], &["tlpipe.input"]);
    with("tlpipe.classes", r#"["wolf","fox"]"#.to_owned());
    let said = scratch.fails(2, &["verify", "m.onnx"]);
    assert!(said.contains("cat, dog") && said.contains("wolf, fox"), "{said}");
    // Another weight in the head.
    let proto = model.proto().clone();
    let graph = proto.graph.as_ref().unwrap();
    let kernel = graph.initializer.iter().rev().find(|tensor| tensor.dims.len() == 2 && tensor.dims[1] == 2).unwrap();
    let raw = kernel.raw_data.as_ref().unwrap();
    let mut bytes = model.to_bytes();
    let at = bytes.windows(raw.len()).position(|window| window == &raw[..]).unwrap();
    bytes[at..at + raw.len()].chunks_exact_mut(4).for_each(|value| value[3] ^= 0x80);
    fs::write(scratch.path("m.onnx"), bytes).unwrap();
    refused(&["m.onnx", "--split", "train"], &["does not answer as it did", "export it anew"]);
}

#[test]
fn equality_with_a_run_is_proven_or_refused() {
    let scratch = fitted(&["cat", "dog"], &[]);
    scratch.ok(&["export", "r", "--unproven"]);
    let verify = |more: &[&'static str]| [&["verify", "r/classifier.onnx"], more].concat();
    // The run says what the model does not.
    let said = scratch.json(&verify(&["--run", "r"]));
    assert!(said["parity"]["images"].as_u64().unwrap() > 20 && near(&said["parity"], 1e-4), "{said}");
    let refused = |status: i32, more: &[&'static str], needles: &[&str]| {
        let said = scratch.fails(status, &verify(more));
        for needle in needles {
            assert!(said.contains(needle), "no `{needle}` in: {said}");
        }
    };
    // Another head on the same features, and the same settings on others.
    scratch.ok(&["fit-head", "--features", "f", "--run", "r2", "--set", "head.solver=ridge"]);
    refused(1, &["--run", "r2"], &["r2", "another fit on the same features", "tlpipe export r2"]);
    let data = scratch.path("photos").display().to_string();
    scratch.ok(&[&["run"][..], &quick(&data, &["--resize", "pad", "--features", "f3", "--run", "r3"])].concat());
    refused(1, &["--run", "r3"], &["r3", "resize pad in the run, squash in the model", "tlpipe export r3"]);
    refused(1, &["--run", "none"], &["none", "no run here"]);
    refused(2, &["--split", "test"], &["--split", "\"test\"", "splits found: train"]);
    // Images that the run never saw.
    scratch.folders("others", &["cat", "dog"], 2);
    for class in ["cat", "dog"] {
        let of = |name: &str| scratch.path("others").join(class).join(name);
        fs::rename(of("000.png"), of("new0.png")).unwrap();
        fs::rename(of("001.png"), of("new1.png")).unwrap();
    }
    refused(1, &["others", "--run", "r"], &["none of them is among the 4 of train in others"]);
}

#[test]
fn a_classifier_of_others_is_scored() {
    let scratch = fitted(&["cat", "dog"], &[]);
    scratch.ok(&["export", "r", "--input", "tensor"]);
    // Without what tlpipe knows it by.
    let mut bytes = fs::read(scratch.path("r/classifier.onnx")).unwrap();
    for at in 0..bytes.len() - 7 {
        if bytes[at..].starts_with(b"tlpipe.") {
            bytes[at] = b'x';
        }
    }
    fs::create_dir_all(scratch.path("else")).unwrap();
    fs::write(scratch.path("else/m.onnx"), bytes).unwrap();
    let own = scratch.json(&["verify", "r/classifier.onnx", "photos"]);
    let verify = |more: &[&str]| {
        let ran = scratch.ok(&[&["verify", "else/m.onnx", "photos", "--pixels", "tensorflow", "--json"], more].concat());
        (serde_json::from_str::<Value>(&ran.stdout).unwrap(), ran.stderr)
    };
    // It names no class, and has as many as there are folders.
    let (said, told) = verify(&[]);
    assert!(told.contains("in their order: cat, dog"), "{told}");
    assert_eq!((&said["images"], &said["parity"], &said["trained_on"]), (&40.into(), &Value::Null, &false.into()));
    assert_eq!(said["accuracy"], own["accuracy"]);
    fs::write(scratch.path("names.txt"), "dog\ncat\n").unwrap();
    let (said, _) = verify(&["--labels", "names.txt"]);
    let sum = said["accuracy"].as_f64().unwrap() + own["accuracy"].as_f64().unwrap();
    assert!((sum - 1.0).abs() < 1e-9, "{said} {own}");
    let said = scratch.fails(1, &["verify", "else/m.onnx", "photos", "--run", "r"]);
    assert!(said.contains("not exported by tlpipe") && said.contains("leave --run out"), "{said}");
    let said = scratch.fails(2, &["verify", "else/m.onnx"]);
    assert!(said.contains("name some"), "{said}");
    let said = scratch.fails(2, &["verify", "r/classifier.onnx", "photos", "--labels", "names.txt"]);
    assert!(said.contains("says itself"), "{said}");
}

#[test]
fn cifar10_by_mobilenet_answers_the_same_from_its_bytes() {
    let Some(assets) = assets() else { return };
    let scratch = Scratch::new();
    for (split, rows) in [("train", 400), ("test", 200)] {
        let name = format!("{split}-00000-of-00001.parquet");
        first_rows(&assets.join("cifar10/plain_text").join(&name), rows, &scratch.path("slice").join(&name));
    }
    let run = |args: &[&str]| {
        let ran = finish(scratch.command(args).env("TLPIPE_ASSETS", &assets));
        assert_eq!(ran.status, Some(0), "{}", ran.stderr);
        ran.stdout
    };
    run(&["run", "--data", "slice", "--model", "mobilenet_v2_1.0_224", "--input-size", "96", "--features", "f", "--run", "r"]);
    for flags in [&[][..], &["--input", "tensor"]] {
        let made = run(&[&["export", "r", "--sample", "all", "--json"], flags].concat());
        let made: Value = serde_json::from_str(&made).unwrap();
        assert_eq!((&made["parity"]["images"], &made["parity"]["split"]), (&200.into(), &"test".into()));
        assert!(near(&made["parity"], 1e-3) && made["bytes"].as_u64().unwrap() < 9_200_000, "{made}");
    }
}

/// A Python with onnxruntime and numpy: that of `TLPIPE_PYTHON`, or `python3`.
fn python() -> Option<PathBuf> {
    let python = std::env::var_os("TLPIPE_PYTHON").map_or_else(|| PathBuf::from("python3"), PathBuf::from);
    let found = Command::new(&python).args(["-c", "import onnxruntime, numpy"]).output();
    if found.is_ok_and(|found| found.status.success()) {
        return Some(python);
    }
    println!("skipped: {} has no onnxruntime and numpy; name one that has in TLPIPE_PYTHON", python.display());
    None
}

/// Reads a classifier and a raw image as any program would, and compares with what was scored.
const SCRIPT: &str = r#"
import json, sys, numpy, onnxruntime
asked = json.load(open("asked.json"))
session = onnxruntime.InferenceSession("r/classifier.onnx", providers=["CPUExecutionProvider"])
meta = session.get_modelmeta().custom_metadata_map
assert json.loads(meta["tlpipe.classes"]) == asked["classes"], meta["tlpipe.classes"]
assert all(isinstance(json.loads(meta["tlpipe." + key]), dict) for key in ("preprocessing", "store_key", "metrics"))
try:
    import onnx
    model = onnx.load("r/classifier.onnx")
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
except ModuleNotFoundError:
    pass
image = numpy.fromfile("images.raw", numpy.uint8).reshape(asked["shape"])
expected = numpy.array(asked["expected"], numpy.float32)
probabilities, index = session.run(["probabilities", "class_index"], {"image": image})
print(abs(probabilities - expected).max())
assert abs(probabilities - expected).max() < 1e-4 and (index == expected.argmax(1)).all() and index.dtype == numpy.int64
"#;

fn raw(path: &Path) -> Vec<u8> {
    image::open(path).unwrap().to_rgb8().into_raw()
}

#[test]
fn python_gets_the_same_answers() {
    let Some(python) = python() else { return };
    let scratch = fitted(&["cat", "dog"], &["--views", "identity,hflip,top-left", "--resize", "pad"]);
    scratch.ok(&["export", "r"]);
    let run = RunDir::new(scratch.path("r"));
    let found = Predictions::load(&run.file("predictions.parquet"), "train", 2).unwrap();
    let images: Vec<u8> = found.ids.iter().flat_map(|id| raw(&scratch.path("photos").join(id))).collect();
    fs::write(scratch.path("images.raw"), images).unwrap();
    let expected: Vec<&[f32]> = found.probabilities.chunks(2).collect();
    let asked = serde_json::json!({ "classes": ["cat", "dog"], "shape": [found.ids.len(), 30, 40, 3], "expected": expected });
    fs::write(scratch.path("asked.json"), asked.to_string()).unwrap();
    let ran = Command::new(python).args(["-c", SCRIPT]).current_dir(scratch.path("")).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
}
