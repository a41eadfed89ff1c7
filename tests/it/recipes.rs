//! The pages of `docs/recipes`: every block is run as it stands there, and what it leaves is looked at.

#![cfg(unix)]

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::support::{Scratch, picture};

const PAGES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/recipes");

/// A fenced block: its language, the file it is for, its text.
struct Block {
    language: String,
    file: Option<String>,
    text: String,
}

fn blocks(page: &str) -> Vec<Block> {
    let text = fs::read_to_string(Path::new(PAGES).join(page)).unwrap();
    let mut blocks: Vec<Block> = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        match line.strip_prefix("```") {
            Some(_) if inside => inside = false,
            Some(info) => {
                let mut words = info.split_whitespace().map(str::to_owned);
                let (language, file) = (words.next().unwrap_or_default(), words.next());
                let known = ["", "sh", "python", "toml", "yaml", "ini"].contains(&language.as_str());
                assert!(known && (language != "toml" || file.is_some()), "{page}: nothing runs a block of `{info}`");
                blocks.push(Block { language, file, text: String::new() });
                inside = true;
            }
            None if inside => {
                let block = blocks.last_mut().unwrap();
                block.text.push_str(line);
                block.text.push('\n');
            }
            None => {}
        }
    }
    assert!(!inside, "{page}: a block without an end");
    blocks
}

/// A program that finds tlpipe as a reader does, in the scratch folder.
fn reader(scratch: &Scratch, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let tlpipe = Path::new(env!("CARGO_BIN_EXE_tlpipe"));
    let mut path = tlpipe.parent().unwrap().as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut command = Command::new(program);
    command.current_dir(scratch.path("")).env("PATH", path).env_remove("TLPIPE_ASSETS").env_remove("TLPIPE_LOG");
    command
}

/// Does what a page says, block by block; returns what each one that ran printed, stdout and stderr.
fn follow(page: &str, scratch: &Scratch, python: Option<&Path>) -> Vec<String> {
    let mut said = Vec::new();
    for Block { language, file, text } in blocks(page) {
        let mut command = match (language.as_str(), file) {
            (_, Some(file)) => {
                fs::write(scratch.path(&file), text).unwrap();
                continue;
            }
            ("sh", None) => {
                let mut bash = reader(scratch, "bash");
                bash.args(["-euo", "pipefail"]);
                bash
            }
            ("python", None) => reader(scratch, python.unwrap()),
            _ => continue,
        };
        let output = command.args(["-c", &text]).output().unwrap();
        let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        assert!(output.status.success(), "{page}:\n{text}\n{out}{err}");
        said.push(out + &err);
    }
    said
}

/// A Python with what the pages ask for, made once and kept in the user's cache; or nothing and a line that says why.
fn python() -> Option<&'static Path> {
    static MADE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match MADE.get_or_init(make_python) {
        Ok(path) => Some(path),
        Err(reason) => {
            println!("skipped: {reason}");
            None
        }
    }
}

fn make_python() -> Result<PathBuf, String> {
    let requirements = Path::new(PAGES).join("requirements.txt");
    let mut version = Command::new("python3");
    version.args(["-c", "import sys, venv; print(sys.version_info >= (3, 11), sys.version)"]);
    let version = ran(&mut version).map_err(|reason| format!("no python3 with venv ({reason})"))?;
    if !version.starts_with("True") {
        return Err(format!("the recipes need Python 3.11, python3 is {version}"));
    }
    let key = [fs::read(&requirements).unwrap(), version.into_bytes()].concat();
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let folder = cache.ok_or("no HOME to keep a Python in")?.join("tlpipe-tests");
    let kept = folder.join(format!("recipes-{}", &blake3::hash(&key).to_hex()[..12]));
    let python = kept.join("bin/python");
    if !python.is_file() {
        fs::create_dir_all(&folder).unwrap();
        // Another process may do the same; the first to finish puts its own in place.
        let staging = tempfile::tempdir_in(&folder).unwrap();
        let made = staging.path().join("python");
        ran(Command::new("python3").args(["-m", "venv"]).arg(&made))?;
        let mut pip = Command::new(made.join("bin/python"));
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1", "--timeout", "15", "-r"]);
        if let Err(reason) = ran(pip.arg(&requirements)) {
            // Pins that no longer resolve are a mistake of ours.
            let unreachable = ["from versions: none", "Retrying", "Connection", "timed out"];
            assert!(unreachable.iter().any(|sign| reason.contains(sign)), "{}: {reason}", requirements.display());
            return Err(format!(
                "pip reaches no registry for docs/recipes/requirements.txt: {}",
                reason.lines().last().unwrap_or_default()
            ));
        }
        if fs::rename(&made, &kept).is_err() {
            assert!(python.is_file(), "{} cannot be written", kept.display());
        }
    }
    Ok(python)
}

fn ran(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

#[test]
fn every_page_is_listed_and_run() {
    let index = fs::read_to_string(Path::new(PAGES).join("README.md")).unwrap();
    let names = fs::read_dir(PAGES).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(".md") && name != "README.md").collect();
    names.sort();
    assert_eq!(names, ["findings.md", "nightly.md", "store.md", "watcher.md"], "a page without a test here");
    assert!(names.iter().all(|name| index.contains(&format!("]({name})"))), "README.md does not list every page");
}

#[test]
fn the_store_opens_in_pandas_polars_duckdb_and_scikit_learn() {
    let Some(python) = python() else { return };
    let scratch = Scratch::new();
    let said = follow("store.md", &scratch, Some(python));
    let [_, pandas, polars, duckdb, clusters, _, classifier] = &said[..] else { panic!("{} blocks", said.len()) };
    assert!(pandas.contains("(3000, 256) float32") && pandas.contains("are alike"), "{pandas}");
    for class in ["checkerboard", "zigzag"] {
        assert!(polars.contains(class), "{polars}");
    }
    assert!(duckdb.contains("test-00000-of-00001.parquet#4") && duckdb.contains("cosine"), "{duckdb}");
    let agreement: f64 = clusters.lines().next().unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    assert!(agreement > 0.3, "{clusters}");
    let map = fs::read_to_string(scratch.path("map.csv")).unwrap();
    assert_eq!(map.lines().next(), Some("id,class,x,y"));
    let finite = |line: &str| line.rsplit(',').take(2).all(|number| number.parse().is_ok_and(f64::is_finite));
    assert_eq!(map.lines().skip(1).filter(|line| finite(line)).count(), 1000);
    let scores: Value = serde_json::from_str(classifier.lines().next().unwrap()).unwrap();
    for name in ["support vectors", "head"] {
        assert!(scores[name].as_f64().is_some_and(|accuracy| accuracy > 0.9), "{scores}");
    }
}

#[test]
fn findings_go_to_fiftyone_and_cleanlab() {
    let Some(python) = python() else { return };
    let scratch = Scratch::new();
    follow("README.md", &scratch, Some(python));
    // Ten discs under the label of zigzags.
    let (from, to) = (scratch.path("photos/train/disc"), scratch.path("photos/train/zigzag"));
    let mut names: Vec<_> = fs::read_dir(&from).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names.len(), 60);
    let wrong: HashSet<String> = names.into_iter().take(10).map(|name| format!("train/zigzag/{name}")).collect();
    for id in &wrong {
        let name = id.rsplit('/').next().unwrap();
        fs::rename(from.join(name), to.join(name)).unwrap();
    }
    follow("findings.md", &scratch, Some(python));

    let samples: Value = serde_json::from_slice(&fs::read(scratch.path("samples.json")).unwrap()).unwrap();
    let samples = samples["samples"].as_array().unwrap();
    assert_eq!(samples.len(), 800);
    let mut found = 0;
    for sample in samples {
        let path = sample["filepath"].as_str().unwrap();
        assert!(Path::new(path).is_file(), "{path}");
        assert_eq!(sample["ground_truth"]["_cls"], "Classification");
        assert!(sample["prediction"]["confidence"].as_f64().is_some_and(|share| share > 0.1 && share <= 1.0), "{sample}");
        let tagged = sample["tags"].as_array().unwrap().contains(&"label_error".into());
        found += usize::from(tagged && wrong.iter().any(|id| path.ends_with(id.as_str())));
    }
    assert!(found >= 8, "{found} of 10 wrong labels are tagged");

    let issues = fs::read_to_string(scratch.path("label_issues.csv")).unwrap();
    assert_eq!(issues.lines().next(), Some("id,label,looks_like,probability_of_label"));
    let first: Vec<&str> = issues.lines().skip(1).take(20).collect();
    let found = wrong.iter().filter(|id| first.iter().any(|line| line.starts_with(&format!("{id},zigzag,disc,"))));
    assert!(found.count() >= 8, "{issues}");
}

#[test]
fn a_nightly_head_is_deployed_unless_it_is_worse() {
    let scratch = Scratch::new();
    let classes = ["cat", "dog", "fox"];
    scratch.folders("photos/train", &classes, 12);
    scratch.folders("photos/test", &classes, 10);
    // The first night.
    follow("nightly.md", &scratch, None);
    let deployed = || fs::read(scratch.path("deploy/classifier.onnx")).unwrap();
    let current = || fs::read_link(scratch.path("runs/current")).unwrap();
    let (first, night) = (deployed(), current());
    let again = || {
        // Runs are named by the second.
        thread::sleep(Duration::from_millis(1100));
        let output = reader(&scratch, "sh").arg("nightly.sh").output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };

    // Images came.
    scratch.folders("photos/train", &classes, 20);
    let (status, said) = again();
    assert_eq!(status, Some(0), "{said}");
    let store: Value = serde_json::from_slice(&fs::read(scratch.path("features/photos/store.json")).unwrap()).unwrap();
    assert_eq!((&store["extraction"]["new"], &store["extraction"]["reused"]), (&24.into(), &66.into()));
    assert_ne!(current(), night);
    let (second, night) = (deployed(), current());
    assert!(second != first, "the classifier is still the first one");

    // Somebody mixed the folders up.
    fs::rename(scratch.path("photos/train/cat"), scratch.path("photos/train/x")).unwrap();
    fs::rename(scratch.path("photos/train/dog"), scratch.path("photos/train/cat")).unwrap();
    fs::rename(scratch.path("photos/train/x"), scratch.path("photos/train/dog")).unwrap();
    let (status, said) = again();
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("worse: ") && said.contains("is not deployed"), "{said}");
    assert!(deployed() == second && current() == night);
}

/// Answers one request after the other as a webhook does; hands on their bodies.
fn webhook() -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/api/webhook/tlpipe", listener.local_addr().unwrap());
    let (send, bodies) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let mut length = 0;
            loop {
                let mut line = String::new();
                stream.read_line(&mut line).unwrap();
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                if line.trim().is_empty() {
                    break;
                }
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).unwrap();
            stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
            if send.send(String::from_utf8(body).unwrap()).is_err() {
                return;
            }
        }
    });
    (address, bodies)
}

#[test]
fn snapshots_are_classified_and_sent_on() {
    if !Command::new("curl").arg("--version").output().is_ok_and(|output| output.status.success()) {
        println!("skipped: no curl here");
        return;
    }
    let scratch = Scratch::new();
    let photos = scratch.folders("photos", &["cat", "dog", "fox"], 12);
    let flags = ["--model", "quickstart", "--input-size", "32", "--solver", "lbfgs", "--features", "f", "--run", "r", "--quiet"];
    scratch.ok(&[&["run", "--data", &photos][..], &flags].concat());
    scratch.ok(&["export", "r", "--quiet", "-o", "classifier.onnx"]);
    fs::create_dir(scratch.path("clips")).unwrap();
    follow("watcher.md", &scratch, None);

    let (address, bodies) = webhook();
    let mut watch = reader(&scratch, "bash");
    watch.args(["watch.sh", "classifier.onnx", "clips", &address]).stderr(Stdio::piped()).process_group(0);
    let mut watch = watch.spawn().unwrap();
    let mut said = BufReader::new(watch.stderr.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap().contains("watching clips")));
    // No image: it has no class, and nothing is sent of it.
    fs::write(scratch.path("clips/broken.jpg"), "no image").unwrap();
    thread::sleep(Duration::from_millis(3000));
    picture(2, 1).save(scratch.path("clips/garden-1.jpg")).unwrap();
    let body = bodies.recv_timeout(Duration::from_secs(30));
    // The whole pipeline ends, as systemd ends it.
    let group = format!("-{}", watch.id());
    assert!(Command::new("kill").args(["-TERM", "--", &group]).status().unwrap().success());
    watch.wait().unwrap();
    let event: Value = serde_json::from_str(&body.unwrap()).unwrap();
    assert_eq!((&event["file"], &event["class"]), (&"clips/garden-1.jpg".into(), &"fox".into()), "{event}");

    // What the automation asks of the event is there.
    let yaml = blocks("watcher.md").into_iter().find(|block| block.language == "yaml").unwrap().text;
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let asked: HashSet<String> =
        yaml.split("trigger.json").skip(1).map(|rest| word(rest.trim_start_matches(['.', '[', '\'']))).collect();
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert!(asked.iter().all(|key| !event[key].is_null()), "{asked:?} of {event}");
}
