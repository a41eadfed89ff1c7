//! `--help` of every command is the committed text; with `TLPIPE_BLESS=1` it becomes that.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::support::{Scratch, committed, finish};

/// The words that call every command.
fn commands(command: &clap::Command, path: &[String], all: &mut Vec<Vec<String>>) {
    all.push(path.to_vec());
    for subcommand in command.get_subcommands().filter(|subcommand| subcommand.get_name() != "help") {
        commands(subcommand, &[path, &[subcommand.get_name().to_owned()]].concat(), all);
    }
}

#[test]
fn help_is_the_committed_text() {
    let scratch = Scratch::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/help");
    let mut all = Vec::new();
    commands(&tlpipe::cli::command(), &[], &mut all);
    assert!(all.len() > 20, "{all:?}");
    let mut known = BTreeSet::new();
    for path in all {
        let args: Vec<&str> = path.iter().map(String::as_str).chain(["--help"]).collect();
        let ran = finish(scratch.command(&args).env("COLUMNS", "100"));
        assert_eq!(ran.status, Some(0), "{args:?}: {}", ran.stderr);
        let name = format!("{}.txt", [&["tlpipe".to_owned()], path.as_slice()].concat().join("-"));
        committed(&folder.join(&name), &ran.stdout);
        known.insert(name);
    }
    for entry in fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(known.contains(&name), "{name} is of no command any more: remove it");
    }
}
