//! Installs the pinned wheels into the cache by pip. The platform tags are given, so that every Python fetches the same
//! wheels and one hash pins each; only the libraries that a session loads are kept.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use super::Build;

/// A pinned release for one platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pin {
    build: Build,
    os: &'static str,
    arch: &'static str,
    /// What pip calls the platform; several, since each wheel has its own.
    platforms: &'static [&'static str],
    /// Name of the folder in the cache.
    name: &'static str,
    /// Beginnings of the names of the files that are kept.
    kept: &'static [&'static str],
    /// File name of the library, in `onnxruntime/capi` of the wheel.
    library: &'static str,
    /// Size of the library.
    bytes: u64,
}

const NAME_CPU: &str = "1.32.0";
const KEPT_CPU: &[&str] = &["libonnxruntime.", "onnxruntime.dll"];

const PINS: [Pin; 6] = [
    Pin {
        build: Build::Cpu,
        os: "linux",
        arch: "x86_64",
        platforms: &["manylinux_2_28_x86_64"],
        name: NAME_CPU,
        kept: KEPT_CPU,
        library: "libonnxruntime.so.1.32.0",
        bytes: 34_824_680,
    },
    Pin {
        build: Build::Cpu,
        os: "linux",
        arch: "aarch64",
        platforms: &["manylinux_2_28_aarch64"],
        name: NAME_CPU,
        kept: KEPT_CPU,
        library: "libonnxruntime.so.1.32.0",
        bytes: 27_165_936,
    },
    Pin {
        build: Build::Cpu,
        os: "macos",
        arch: "aarch64",
        platforms: &["macosx_14_0_arm64"],
        name: NAME_CPU,
        kept: KEPT_CPU,
        library: "libonnxruntime.1.32.0.dylib",
        bytes: 35_272_344,
    },
    Pin {
        build: Build::Cpu,
        os: "windows",
        arch: "x86_64",
        platforms: &["win_amd64"],
        name: NAME_CPU,
        kept: KEPT_CPU,
        library: "onnxruntime.dll",
        bytes: 22_668_640,
    },
    Pin {
        build: Build::OpenVino,
        os: "linux",
        arch: "x86_64",
        platforms: &["manylinux_2_28_x86_64"],
        name: "openvino-1.24.1",
        // The names that the libraries know each other by; the wheel holds each two or three times.
        kept: &[
            "libonnxruntime.so.",
            "libonnxruntime_providers_shared.so",
            "libonnxruntime_providers_openvino.so",
            "libopenvino.so.2541",
            "libopenvino_intel_cpu_plugin.so",
            "libopenvino_onnx_frontend.so.2541",
            "libtbb.so.12",
            "libtbbmalloc.so",
        ],
        library: "libonnxruntime.so.1.24.1",
        bytes: 31_260_360,
    },
    Pin {
        build: Build::Cuda,
        os: "linux",
        arch: "x86_64",
        platforms: &["manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux2014_x86_64"],
        name: "cuda-1.31.1",
        kept: &[
            "libonnxruntime.so.",
            "libonnxruntime_providers_shared.so",
            "libonnxruntime_providers_cuda.so",
            // CUDA and cuDNN.
            "libcu",
            "libnv",
        ],
        library: "libonnxruntime.so.1.31.1",
        bytes: 29_421_832,
    },
];

/// Why nothing was installed.
pub(super) enum Failure {
    /// One line a Python that was tried.
    Pip(Vec<String>),
    Io {
        path: PathBuf,
        source: io::Error,
    },
}

impl Pin {
    /// The pinned release of a build for this machine, if there is one.
    pub(super) fn of_this_machine(build: Build) -> Option<Self> {
        PINS.into_iter().find(|pin| pin.build == build && pin.os == env::consts::OS && pin.arch == env::consts::ARCH)
    }

    /// Where its libraries live.
    pub(super) fn folder(&self, cache: &Path) -> PathBuf {
        cache.join("onnxruntime").join(self.name)
    }

    /// The library in the cache. Only one of the pinned size counts in our own folder: a truncated one would crash the
    /// process that loads it.
    pub(super) fn installed(&self, cache: &Path) -> Option<PathBuf> {
        let folder = self.folder(cache);
        let places = [folder.join("onnxruntime").join("capi").join(self.library), folder.join(self.library)];
        places.into_iter().find(|path| path.metadata().is_ok_and(|metadata| metadata.len() == self.bytes))
    }

    /// What a user can type to the same effect.
    pub(super) fn command(&self, cache: &Path) -> String {
        let folder = self.folder(cache);
        let packages: Vec<&str> = self.packages().collect();
        format!("python3 -m pip install --no-deps --only-binary=:all: --target '{}' {}", folder.display(), packages.join(" "))
    }

    /// `name==version` of each package, ONNX Runtime's first.
    pub(super) fn packages(&self) -> impl Iterator<Item = &'static str> {
        let lines = self.build.requirements().lines().filter(|line| !line.starts_with('#'));
        lines.filter_map(|line| line.split_whitespace().next())
    }
}

/// Puts the pinned libraries into the cache, whole or not at all, and gives the path of ONNX Runtime's. Two processes at once
/// do the work twice and end with the same files; a killed one leaves a folder that a later one removes.
pub(super) fn install(pin: &Pin, cache: &Path) -> Result<PathBuf, Failure> {
    install_with(&pythons(), pin, cache)
}

fn pythons() -> Vec<&'static str> {
    if cfg!(windows) { vec!["python", "python3", "py"] } else { vec!["python3", "python"] }
}

const STAGING: &str = ".installing-";

fn install_with(pythons: &[&str], pin: &Pin, cache: &Path) -> Result<PathBuf, Failure> {
    let folder = pin.folder(cache);
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| Failure::Io { path, source }
    };
    // Beside the target, so that the rename stays on one file system.
    let parent = cache.join("onnxruntime");
    fs::create_dir_all(&parent).map_err(io(&parent))?;
    remove_abandoned(&parent);
    let staging = tempfile::Builder::new().prefix(STAGING).tempdir_in(&parent).map_err(io(&parent))?;
    let requirements = staging.path().join("requirements.txt");
    fs::write(&requirements, pin.build.requirements()).map_err(io(&requirements))?;
    let wheels = staging.path().join("wheels");
    let mut attempts = Vec::new();
    for python in pythons {
        match pip(python, pin, &requirements, &wheels) {
            Ok(()) => break,
            Err(reason) => attempts.push(format!("{python} -m pip: {reason}")),
        }
    }
    if attempts.len() == pythons.len() {
        return Err(Failure::Pip(attempts));
    }
    keep(pin, &wheels).map_err(io(&wheels))?;
    if let Err(source) = fs::rename(&wheels, &folder) {
        // What stands there is another process' work, or damaged.
        if pin.installed(cache).is_none() {
            fs::remove_dir_all(&folder).map_err(io(&folder))?;
            fs::rename(&wheels, &folder).map_err(|_| Failure::Io { path: folder.clone(), source })?;
        }
    }
    Ok(pin.installed(cache).unwrap_or_else(|| folder.join("onnxruntime").join("capi").join(pin.library)))
}

/// Drops what a session does not load, and writes the rest through to the disk.
fn keep(pin: &Pin, wheels: &Path) -> io::Result<()> {
    for entry in walkdir::WalkDir::new(wheels).contents_first(true) {
        let entry = entry?;
        if entry.file_type().is_dir() {
            // One that holds something stays.
            let _ = fs::remove_dir(entry.path());
            continue;
        }
        let name = entry.file_name().to_string_lossy();
        if pin.kept.iter().any(|start| name.starts_with(start)) {
            fs::OpenOptions::new().read(true).write(true).open(entry.path())?.sync_all()?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn pip(python: &str, pin: &Pin, requirements: &Path, target: &Path) -> Result<(), String> {
    let output = Command::new(python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"])
        .args(["--retries", "1", "--timeout", "15"])
        .args(["--no-deps", "--only-binary=:all:", "--no-compile", "--require-hashes"])
        .args(pin.platforms.iter().flat_map(|platform| ["--platform", platform]))
        .args(["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311"])
        .arg("--target")
        .arg(target)
        .arg("--requirement")
        .arg(requirements)
        // A user's settings for packages of his own must not forbid or move this one.
        .env("PIP_USER", "0")
        .env("PIP_REQUIRE_VIRTUALENV", "0")
        .output()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => "no such program".to_owned(),
            _ => error.to_string(),
        })?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let reason = lines.clone().rfind(|line| line.starts_with("ERROR")).or_else(|| lines.next_back());
    Err(reason.map_or_else(|| output.status.to_string(), str::to_owned))
}

/// What killed processes left. A living one is done within minutes.
fn remove_abandoned(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.filter_map(Result::ok) {
        let modified = entry.metadata().and_then(|metadata| metadata.modified()).ok();
        let age = modified.and_then(|time| SystemTime::now().duration_since(time).ok());
        let abandoned = age.is_some_and(|age| age > Duration::from_secs(3600));
        if abandoned && entry.file_name().to_string_lossy().starts_with(STAGING) {
            // Only room is lost where it cannot be removed.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A program that takes pip's arguments and does `script`; `$target` is where to install.
    fn python(folder: &Path, script: &str) -> String {
        let path = folder.join("python");
        let text = format!("#!/bin/sh\nwhile [ $# -gt 0 ]; do [ \"$1\" = --target ] && target=$2; shift; done\n{script}\n");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn pin() -> Pin {
        PINS[0]
    }

    #[test]
    fn only_the_library_is_kept() {
        let (tools, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let script = format!(
            "mkdir -p $target/onnxruntime/capi; echo lib > $target/onnxruntime/capi/{}; echo x > $target/y",
            pin().library
        );
        let python = python(tools.path(), &script);
        for _ in 0..2 {
            let path =
                install_with(&["absent-python", &python], &pin(), cache.path()).unwrap_or_else(|_| panic!("not installed"));
            assert_eq!(path, cache.path().join("onnxruntime/1.32.0/onnxruntime/capi/libonnxruntime.so.1.32.0"));
        }
        let files = walkdir::WalkDir::new(cache.path()).into_iter().filter(|entry| entry.as_ref().unwrap().file_type().is_file());
        assert_eq!(files.count(), 1);
    }

    /// Every wheel is pinned by a hash, and the pins name the release that the requirements name.
    #[test]
    fn pins_and_requirements_agree() {
        for pin in PINS {
            let (_, version) = pin.packages().next().unwrap().split_once("==").unwrap();
            assert!(pin.name.ends_with(version) && (pin.os == "windows" || pin.library.contains(version)), "{pin:?}");
            let lines = pin.build.requirements().lines().filter(|line| !line.starts_with('#'));
            assert!(lines.into_iter().all(|line| line.contains("--hash=sha256:")), "{pin:?}");
            assert!(pin.kept.iter().any(|start| pin.library.starts_with(start)), "{pin:?}");
        }
    }

    #[test]
    fn a_damaged_library_is_none_and_is_replaced() {
        let (tools, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let old = pin().folder(cache.path()).join("onnxruntime/capi");
        fs::create_dir_all(&old).unwrap();
        fs::write(old.join(pin().library), "half").unwrap();
        assert_eq!(pin().installed(cache.path()), None);
        let script = format!("mkdir -p $target/onnxruntime/capi; echo whole > $target/onnxruntime/capi/{}", pin().library);
        let python = python(tools.path(), &script);
        let path = install_with(&[&python], &pin(), cache.path()).unwrap_or_else(|_| panic!("not installed"));
        assert_eq!(fs::read_to_string(path).unwrap(), "whole\n");
    }

    #[test]
    fn what_pip_says_is_passed_on() {
        let (tools, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let python = python(tools.path(), "echo 'ERROR: THESE PACKAGES DO NOT MATCH THE HASHES' >&2; echo hint >&2; exit 1");
        let Err(Failure::Pip(attempts)) = install_with(&["absent-python", &python], &pin(), cache.path()) else { panic!() };
        assert_eq!(attempts[0], "absent-python -m pip: no such program");
        assert!(attempts[1].ends_with("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES"), "{attempts:?}");
        assert_eq!(fs::read_dir(cache.path().join("onnxruntime")).unwrap().count(), 0);
    }

    #[test]
    fn leftovers_of_a_killed_install_go_and_a_running_one_stays() {
        let folder = tempfile::tempdir().unwrap();
        for name in [".installing-old", ".installing-new"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let old = fs::File::open(folder.path().join(".installing-old")).unwrap();
        old.set_modified(SystemTime::now() - Duration::from_secs(7200)).unwrap();
        remove_abandoned(folder.path());
        assert!(!folder.path().join(".installing-old").exists() && folder.path().join(".installing-new").exists());
    }
}
