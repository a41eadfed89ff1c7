//! Other providers and precisions: refused with a reason where they are not there, checked and recorded where they are.

use std::fs;
use std::path::PathBuf;

use assert_cmd::Command;

use crate::support::{Ran, Scratch, finish, quick};

/// `tlpipe ARGS` with nothing in reach but what the system loader finds.
fn bare(scratch: &Scratch, args: &[&str]) -> Ran {
    let mut command = scratch.command(args);
    for variable in ["ORT_DYLIB_PATH", "VIRTUAL_ENV", "CONDA_PREFIX"] {
        command.env_remove(variable);
    }
    finish(command.env("XDG_CACHE_HOME", scratch.path("cache")))
}

#[test]
fn openvino_that_is_not_there_is_an_error_with_the_command_to_type() {
    let scratch = Scratch::new();
    let data = scratch.folders("photos", &["cat", "dog"], 3);
    let offline = ["--provider", "openvino", "--offline", "--features", "f"];
    let ran = bare(&scratch, &[&["extract"], &quick(&data, &offline)[..]].concat());
    assert_eq!(ran.status, Some(1), "{}", ran.stderr);
    for needle in ["no usable ONNX Runtime with OpenVINO", "tlpipe doctor --install openvino", "--onnxruntime"] {
        assert!(ran.stderr.contains(needle), "no `{needle}` in: {}", ran.stderr);
    }
    assert!(!scratch.path("f").exists());
    // And that command says what it would do by pip.
    let ran = bare(&scratch, &["doctor", "--install", "openvino", "--offline"]);
    assert_eq!(ran.status, Some(1), "{}", ran.stderr);
    let needle = if cfg!(all(target_os = "linux", target_arch = "x86_64")) { "onnxruntime-openvino==" } else { "none is pinned" };
    assert!(ran.stderr.contains(needle), "{}", ran.stderr);
}

#[test]
fn what_is_not_real_is_refused_before_anything_is_read() {
    let scratch = Scratch::new();
    for (flags, needle) in [
        (&["--precision", "int8"][..], "int8 is refused"),
        (&["--precision", "fp16", "--device", "cuda"], "fp16 is not real"),
        (&["--precision", "bf16"], "add --provider openvino"),
        (&["--provider", "openvino", "--device", "cuda:1"], "not on cuda:1"),
        (&["--provider", "tensorrt"], "default or openvino"),
        (&["--set", "runtime.precision=fp8"], "fp32"),
    ] {
        let said = scratch.fails(2, &[&["extract", "--data", "nowhere", "--model", "quickstart"], flags].concat());
        assert!(said.contains(needle), "{flags:?}: {said}");
    }
    scratch.fails(2, &["doctor", "--install", "tensorrt"]);
}

#[test]
fn cuda_without_a_card_is_an_error_and_auto_is_not() {
    let scratch = Scratch::new();
    let data = scratch.folders("photos", &["cat", "dog"], 3);
    let args = |device| [&["extract"], &quick(&data, &["--features", "f", "--device", device])[..]].concat();
    let doctor = scratch.json(&["doctor"]);
    if doctor["cuda"].is_null() {
        println!("skipped: there is an NVIDIA card");
        return;
    }
    let said = scratch.fails(1, &args("cuda"));
    assert!(said.contains("device cuda: CUDA cannot be used: ") && said.contains("use --device cpu"), "{said}");
    let ran = scratch.ok(&args("auto"));
    assert!(ran.stderr.contains("on the processor: CUDA cannot be used: "), "{}", ran.stderr);
    let store = fs::read_to_string(scratch.path("f/store.json")).unwrap();
    let store: serde_json::Value = serde_json::from_str(&store).unwrap();
    assert_eq!((store["key_parts"]["provider"].as_str(), store["extraction"]["provider"].as_str()), (Some("cpu"), Some("CPU")));
}

/// A library with OpenVINO, and whether the processor computes in bf16.
fn openvino(scratch: &Scratch) -> Option<(PathBuf, bool)> {
    let doctor = scratch.json(&["doctor"]);
    let cached = doctor["builds"].as_array()?.iter().find(|build| build["build"] == "openvino")?;
    let named = std::env::var_os("TLPIPE_TEST_OPENVINO").map(PathBuf::from);
    let found = named.or_else(|| cached["installed"].as_str().map(PathBuf::from));
    if found.is_none() {
        println!(
            "skipped: no OpenVINO build in the cache (tlpipe doctor --install openvino), and TLPIPE_TEST_OPENVINO names none"
        );
    }
    Some((found?, doctor["bf16"].as_bool()?))
}

#[test]
fn openvino_runs_is_checked_and_recorded() {
    let scratch = Scratch::new();
    let Some((library, bf16)) = openvino(&scratch) else { return };
    let data = scratch.folders("photos", &["cat", "dog"], 12);
    let library = library.display().to_string();
    let extract = |features, precision| -> Command {
        let flags = ["--onnxruntime", &library, "--provider", "openvino", "--precision", precision, "--features", features];
        scratch.command(&[&["extract"], &quick(&data, &flags)[..], &["--json"]].concat())
    };
    let exact = finish(&mut extract("exact", "fp32"));
    assert_eq!(exact.status, Some(0), "{}", exact.stderr);
    let exact: serde_json::Value = serde_json::from_str(&exact.stdout).unwrap();
    assert_eq!((exact["provider"].as_str(), exact["precision"].as_str()), (Some("OpenVINO"), Some("fp32")));
    assert!(exact["drift"].is_null(), "{exact}");
    let half = finish(&mut extract("half", "bf16"));
    if !bf16 {
        assert_eq!(half.status, Some(1));
        assert!(half.stderr.contains("no bfloat16 instructions") && half.stderr.contains("--precision fp32"), "{}", half.stderr);
        return;
    }
    assert_eq!(half.status, Some(0), "{}", half.stderr);
    let half: serde_json::Value = serde_json::from_str(&half.stdout).unwrap();
    assert_eq!(half["drift"]["images"], 24);
    assert!(half["drift"]["cosine_min"].as_f64().unwrap() > 0.99, "{half}");
    assert!(half["drift"]["relative_l2"].as_f64().unwrap() > 1e-4, "{half}");
    assert_ne!(half["key"], exact["key"]);
    let store = fs::read_to_string(scratch.path("half/store.json")).unwrap();
    let store: serde_json::Value = serde_json::from_str(&store).unwrap();
    assert_eq!(store["key_parts"]["provider"], "openvino");
    assert!(store["extraction"]["nodes"]["OpenVINO"].as_u64().unwrap() > 0, "{store}");
    // Another precision is another store.
    let refused = finish(&mut extract("half", "fp32"));
    assert_eq!(refused.status, Some(1));
    assert!(refused.stderr.contains("precision: bf16 in the store, fp32 asked for"), "{}", refused.stderr);
}
