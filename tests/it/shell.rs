//! At home in a shell: completions, manual pages, logs, colours, hyperlinks, a home folder that cannot be written.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::{Scratch, finish, quick};

const QUICKSTART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/pipelines/quickstart.toml");

#[test]
fn every_shell_has_completions() {
    let scratch = Scratch::new();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = scratch.ok(&["completions", shell]).stdout;
        for needle in ["fit-head", "learning-rate", "completions", "inspect"] {
            assert!(script.contains(needle), "{shell} knows nothing of {needle}");
        }
        fs::write(scratch.path(shell), &script).unwrap();
        // Where the shell is here, it reads the script.
        if ["bash", "zsh", "fish"].contains(&shell)
            && let Ok(read) = Command::new(shell).arg("-n").arg(scratch.path(shell)).output()
        {
            assert!(read.status.success(), "{shell}: {}", String::from_utf8_lossy(&read.stderr));
        }
    }
    let said = scratch.fails(2, &["completions", "tcsh"]);
    assert!(said.contains("bash") && said.contains("fish"), "{said}");
    // And completes by it.
    let words =
        "COMP_WORDS=(tlpipe fit-head --learning-r); COMP_CWORD=2; _tlpipe tlpipe --learning-r fit-head; echo \"${COMPREPLY[@]}\"";
    let script = format!(". {}; {words}", scratch.path("bash").display());
    if let Ok(completed) = Command::new("bash").args(["--norc", "-c", &script]).output() {
        assert_eq!(String::from_utf8_lossy(&completed.stdout).trim(), "--learning-rate", "{completed:?}");
    }
}

#[test]
fn every_command_has_a_manual_page() {
    let scratch = Scratch::new();
    let said = scratch.json(&["man", "deep/man1"]);
    let pages: Vec<&str> = said["pages"].as_array().unwrap().iter().map(|page| page.as_str().unwrap()).collect();
    for page in ["tlpipe.1", "tlpipe-init.1", "tlpipe-fit-head.1", "tlpipe-models-cut.1", "tlpipe-data-inspect.1"] {
        let text = fs::read_to_string(scratch.path("deep/man1").join(page)).unwrap_or_else(|error| panic!("{page}: {error}"));
        assert!(text.contains(".TH tlpipe") && text.contains("Examples:"), "{page}: {text}");
        assert!(pages.iter().any(|path| path.ends_with(page)), "{pages:?}");
    }
    fs::write(scratch.path("file"), "").unwrap();
    let said = scratch.fails(1, &["man", "file/man1"]);
    assert!(said.contains("file/man1") && said.contains("writable"), "{said}");
}

#[test]
fn what_is_logged_is_said_by_a_variable() {
    let scratch = Scratch::new();
    let data = scratch.folders("photos", &["cat", "dog"], 3);
    fs::write(scratch.path("photos/cat/bad.png"), "no").unwrap();
    let extract = |filter: &str, to: &str| {
        let args = [&["extract"][..], &quick(&data, &["--features", to])].concat();
        finish(scratch.command(&args).env("TLPIPE_LOG", filter))
    };
    assert!(extract("tlpipe=warn", "a").stderr.contains("tlpipe::quarantine: train/cat/bad.png"));
    let quiet = extract("tlpipe::quarantine=off,tlpipe=warn", "b");
    assert!(quiet.status == Some(0) && !quiet.stderr.contains("tlpipe::quarantine"), "{}", quiet.stderr);
    let wrong = extract("tlpipe=loud", "c");
    assert!(wrong.status == Some(0) && wrong.stderr.contains("warning: TLPIPE_LOG=tlpipe=loud"), "{}", wrong.stderr);
}

#[test]
fn colours_are_forced_and_forbidden_by_the_usual_variables() {
    let scratch = Scratch::new();
    let stderr = |set: &[(&str, &str)]| {
        let mut command = scratch.command(&["run", "nowhere.toml"]);
        for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE"] {
            command.env_remove(name);
        }
        finish(command.envs(set.iter().copied())).stderr
    };
    assert!(stderr(&[]).starts_with("error: "), "piped");
    assert!(stderr(&[("CLICOLOR_FORCE", "1")]).starts_with("\u{1b}[1;31merror:"));
    assert!(stderr(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]).starts_with("error: "));
}

/// What a command writes to a terminal; none where there is no `script` to make one.
fn on_a_terminal(scratch: &Scratch, args: &str, set: &[(&str, &str)]) -> Option<String> {
    let program = assert_cmd::cargo::cargo_bin("tlpipe");
    let mut command = Command::new("script");
    command.current_dir(scratch.path("")).args(["-qec", &format!("{} {args}", program.display()), "/dev/null"]);
    for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "TERM_PROGRAM", "VTE_VERSION", "FORCE_HYPERLINK", "COLORTERM", "CI"] {
        command.env_remove(name);
    }
    command.env("TERM", "xterm-256color").envs(set.iter().copied()).stdin(std::process::Stdio::null());
    let Ok(output) = command.output() else {
        println!("skipped: no `script` here to make a terminal");
        return None;
    };
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn the_report_is_a_link_where_the_terminal_has_links_and_never_when_piped() {
    let scratch = Scratch::new();
    let data = scratch.folders("photos", &["cat", "dog"], 6);
    scratch.ok(&[&["run"][..], &quick(&data, &["--features", "f", "--run", "my run"])].concat());
    const LINK: &str = "\u{1b}]8;;file://";
    let piped = finish(
        scratch.command(&["report", "--run", "my run", "--no-map"]).env("FORCE_HYPERLINK", "1").env("CLICOLOR_FORCE", "1"),
    );
    assert!(piped.stdout.contains("  report    my run/report.html\n") && !piped.stdout.contains('\u{1b}'), "{}", piped.stdout);
    let Some(linked) = on_a_terminal(&scratch, "report --run 'my run' --no-map", &[("VTE_VERSION", "7600")]) else { return };
    let at = linked.find(LINK).unwrap_or_else(|| panic!("no link: {linked:?}"));
    assert!(linked[at..].contains("/my%20run/report.html\u{1b}\\my run/report.html\u{1b}]8;;\u{1b}\\"), "{linked:?}");
    let plain = on_a_terminal(&scratch, "report --run 'my run' --no-map", &[("FORCE_HYPERLINK", "0")]).unwrap();
    assert!(plain.contains("my run/report.html") && !plain.contains(LINK), "{plain:?}");
    // And colours on a terminal, unless they are not wanted.
    assert!(on_a_terminal(&scratch, "run no.toml", &[]).unwrap().contains("\u{1b}[1;31merror:"));
    assert!(!on_a_terminal(&scratch, "run no.toml", &[("NO_COLOR", "1")]).unwrap().contains("\u{1b}[1;31m"));
    assert!(!on_a_terminal(&scratch, "run no.toml", &[("TERM", "dumb")]).unwrap().contains("\u{1b}[1;31m"));
}

/// A home folder that is a file, and one that nobody can write to, whoever he is.
#[test]
#[cfg(target_os = "linux")]
fn a_home_that_cannot_be_written_is_said_with_the_remedy_and_the_remedy_works() {
    let scratch = Scratch::new();
    let doctor = scratch.json(&["doctor"]);
    let library = doctor["onnxruntime"]["path"].as_str().unwrap_or_else(|| panic!("{doctor}")).to_owned();
    let data = scratch.folders("photos", &["cat", "dog"], 6);
    fs::write(scratch.path("file"), "").unwrap();
    let in_home = |home: &Path, args: &[&str]| {
        let mut command = scratch.command(args);
        command.env("HOME", home).env_remove("XDG_CACHE_HOME").env_remove("XDG_DATA_HOME");
        command
    };
    for home in [scratch.path("file"), "/proc".into()] {
        // The quickstart draws its images into the cache.
        let ran = finish(&mut in_home(&home, &["run", QUICKSTART]));
        let needle = format!("error: {}/.cache/tlpipe/data/", home.display());
        assert_eq!(ran.status, Some(1), "{}", ran.stderr);
        assert!(ran.stderr.contains(&needle) && ran.stderr.contains("XDG_CACHE_HOME"), "{}", ran.stderr);
        // So may ONNX Runtime, where it is not found elsewhere; then there is nothing that needs a cache.
        let run = [&["run"][..], &quick(&data, &["--features", "f", "--run", "r"])].concat();
        let ran = finish(in_home(&home, &run).env_remove("ORT_DYLIB_PATH"));
        assert!(ran.status == Some(0) || ran.stderr.contains("set XDG_CACHE_HOME to a folder that is"), "{}", ran.stderr);
        let ran = finish(in_home(&home, &run).env("ORT_DYLIB_PATH", &library));
        assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    }
    let remedied = in_home(Path::new("/proc"), &["run", QUICKSTART])
        .env("XDG_CACHE_HOME", scratch.path("cache"))
        .env("ORT_DYLIB_PATH", &library)
        .output()
        .unwrap();
    assert!(remedied.status.success(), "{}", String::from_utf8_lossy(&remedied.stderr));
    assert!(scratch.path("cache/tlpipe/data").is_dir());
}
