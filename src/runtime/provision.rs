//! Installs the pinned ONNX Runtime wheel into the cache by pip. The platform tags are given, so that every Python
//! fetches the same wheel and one hash pins it; only the library is kept.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

/// The pinned release.
pub(super) const VERSION: &str = "1.32.0";

/// A wheel of the pinned release, and the library in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pin {
    os: &'static str,
    arch: &'static str,
    platform: &'static str,
    wheel_sha256: &'static str,
    /// File name of the library, in `onnxruntime/capi` of the wheel.
    pub(super) library: &'static str,
    /// Size of the library.
    pub(super) bytes: u64,
}

const PINS: [Pin; 4] = [
    Pin {
        os: "linux",
        arch: "x86_64",
        platform: "manylinux_2_28_x86_64",
        wheel_sha256: "5a34fc4dfeb5a7b4a74c95dcba1e773d722abda720b474edf1b0c419dc6d163d",
        library: "libonnxruntime.so.1.32.0",
        bytes: 34_824_680,
    },
    Pin {
        os: "linux",
        arch: "aarch64",
        platform: "manylinux_2_28_aarch64",
        wheel_sha256: "2303372a85299b6757b0e11e1cbf13e410ddf7e10c37f4b37e99d1c90e7daf7c",
        library: "libonnxruntime.so.1.32.0",
        bytes: 27_165_936,
    },
    Pin {
        os: "macos",
        arch: "aarch64",
        platform: "macosx_14_0_arm64",
        wheel_sha256: "366b9e53d07812cc5c92822cecf7563b76a8a0f32ba3bb8dd232a206ac3bcb6c",
        library: "libonnxruntime.1.32.0.dylib",
        bytes: 35_272_344,
    },
    Pin {
        os: "windows",
        arch: "x86_64",
        platform: "win_amd64",
        wheel_sha256: "d7e0c45cc5f456ad7805e6dd256a7662736cda9c2fd17becae194eb3c2f6df72",
        library: "onnxruntime.dll",
        bytes: 22_668_640,
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
    pub(super) fn of_this_machine() -> Option<Self> {
        PINS.into_iter().find(|pin| pin.os == env::consts::OS && pin.arch == env::consts::ARCH)
    }

    /// Where the library lives.
    pub(super) fn folder(&self, cache: &Path) -> PathBuf {
        cache.join("onnxruntime").join(VERSION)
    }

    /// What a user can type to the same effect.
    pub(super) fn command(&self, cache: &Path) -> String {
        let folder = self.folder(cache);
        format!("python3 -m pip install --no-deps --only-binary=:all: --target '{}' onnxruntime=={VERSION}", folder.display())
    }
}

/// Puts the pinned library into the cache, whole or not at all, and gives its path. Two processes at once do the work
/// twice and end with the same file; a killed one leaves a folder that a later one removes.
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
    fs::create_dir_all(&folder).map_err(io(&folder))?;
    remove_abandoned(&folder);
    // Inside the target folder, so that the rename stays on one file system.
    let staging = tempfile::Builder::new().prefix(STAGING).tempdir_in(&folder).map_err(io(&folder))?;
    let requirements = staging.path().join("requirements.txt");
    let pinned = format!("onnxruntime=={VERSION} --hash=sha256:{}\n", pin.wheel_sha256);
    fs::write(&requirements, pinned).map_err(io(&requirements))?;
    let wheel = staging.path().join("wheel");
    let mut attempts = Vec::new();
    for python in pythons {
        match pip(python, pin, &requirements, &wheel) {
            Ok(()) => break,
            Err(reason) => attempts.push(format!("{python} -m pip: {reason}")),
        }
    }
    if attempts.len() == pythons.len() {
        return Err(Failure::Pip(attempts));
    }
    let installed = wheel.join("onnxruntime").join("capi").join(pin.library);
    let library = fs::OpenOptions::new().read(true).write(true).open(&installed).map_err(io(&installed))?;
    library.sync_all().map_err(io(&installed))?;
    drop(library);
    let target = folder.join(pin.library);
    fs::rename(&installed, &target).map_err(io(&target))?;
    Ok(target)
}

fn pip(python: &str, pin: &Pin, requirements: &Path, target: &Path) -> Result<(), String> {
    let output = Command::new(python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"])
        .args(["--retries", "1", "--timeout", "15"])
        .args(["--no-deps", "--only-binary=:all:", "--no-compile", "--require-hashes"])
        .args(["--platform", pin.platform, "--python-version", "3.11", "--implementation", "cp", "--abi", "cp311"])
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
            assert_eq!(path, cache.path().join("onnxruntime/1.32.0/libonnxruntime.so.1.32.0"));
        }
        assert_eq!(fs::read_dir(pin().folder(cache.path())).unwrap().count(), 1);
    }

    #[test]
    fn what_pip_says_is_passed_on() {
        let (tools, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let python = python(tools.path(), "echo 'ERROR: THESE PACKAGES DO NOT MATCH THE HASHES' >&2; echo hint >&2; exit 1");
        let Err(Failure::Pip(attempts)) = install_with(&["absent-python", &python], &pin(), cache.path()) else { panic!() };
        assert_eq!(attempts[0], "absent-python -m pip: no such program");
        assert!(attempts[1].ends_with("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES"), "{attempts:?}");
        assert_eq!(fs::read_dir(pin().folder(cache.path())).unwrap().count(), 0);
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
