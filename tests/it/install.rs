//! Installed by pip, as far as it shows without pip: a program in an environment's `bin` finds the library of the package.
//! `packaging/prove-install.sh` proves the rest.

#![cfg(unix)]

use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use serde_json::Value;

use crate::support::{Scratch, finish};

fn place(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    // A link by name would be followed; one on another file system cannot be hard.
    if fs::hard_link(from, to).is_err() {
        fs::copy(from, to).unwrap();
    }
}

/// `PROGRAM ARGS` where nothing else could be found: no cache, no active environment, no Python.
fn bare(scratch: &Scratch, program: &Path, args: &[&str]) -> (Option<i32>, Value, String) {
    let mut command = Command::new(program);
    command.args(args).arg("--json").current_dir(scratch.path("")).env_clear().env("HOME", scratch.path("home"));
    let ran = finish(&mut command);
    (ran.status, serde_json::from_str(&ran.stdout).unwrap(), ran.stderr)
}

#[test]
fn an_environment_has_program_and_library_and_needs_nothing_else() {
    let scratch = Scratch::new();
    // Whatever runs the other tests.
    scratch.ok(&["run", "--data", "synth", "--model", "quickstart", "--epochs", "1", "--quiet"]);
    let library = scratch.json(&["doctor"])["onnxruntime"]["path"].as_str().map(PathBuf::from).unwrap();
    if !library.is_absolute() {
        println!("skipped: the system loader finds {}, and this test does not know where", library.display());
        return;
    }
    let environment = fs::canonicalize(scratch.path("")).unwrap().join("env");
    let program = environment.join("bin/tlpipe");
    place(Path::new(env!("CARGO_BIN_EXE_tlpipe")), &program);
    let run = ["run", "--data", "synth", "--model", "quickstart", "--features", "f", "--run", "r", "--offline"];
    for capi in ["lib/python3.12/site-packages/onnxruntime/capi", "onnxruntime/capi"] {
        let package = environment.join(capi).join(library.file_name().unwrap());
        place(&library, &package);
        let (_, doctor, _) = bare(&scratch, &program, &["doctor", "--offline"]);
        assert_eq!(doctor["onnxruntime"]["path"].as_str().map(Path::new), Some(package.as_path()), "{doctor}");
        assert_eq!(doctor["onnxruntime"]["how"], "the executable's Python environment");
        let (status, said, stderr) = bare(&scratch, &program, &run);
        assert_eq!((status, &said["fit_head"]["epochs"]), (Some(0), &10.into()), "{said}{stderr}");
        fs::remove_file(&package).unwrap();
        fs::remove_dir_all(scratch.path("f")).unwrap();
    }
}
