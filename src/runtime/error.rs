//! What can go wrong around ONNX Runtime.

use std::fmt::Write as _;
use std::path::PathBuf;

use super::{Build, Compute, Device, Precision, Provider};

/// ONNX Runtime could not be found, started or run.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The library that was asked for does not do.
    #[error("--onnxruntime {path}: {reason}; name {wanted}, or leave the option out")]
    Unusable {
        /// What was asked for.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// What does.
        wanted: String,
    },
    /// No library on this machine does, and none could be installed.
    #[error("no usable {} on this machine, {reason}{}\n  to get it: {remedy}", build.title(), lines(tried))]
    NotFound {
        /// What was looked for.
        build: Build,
        /// Why none was installed.
        reason: String,
        /// One line a place: what was there.
        tried: Vec<String>,
        /// What to do.
        remedy: String,
    },
    /// No build was asked for.
    #[error("no build of ONNX Runtime serves; use --device cpu")]
    NoBuild,
    /// A file could not be written.
    #[error("{path}: {source}; make it writable, or set XDG_CACHE_HOME to a folder that is")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A process holds one ONNX Runtime for good.
    #[error("{loaded} is loaded already and cannot be exchanged for {asked}; start another process for it")]
    AlreadyStarted {
        /// The library of this process.
        loaded: PathBuf,
        /// The other one.
        asked: PathBuf,
    },
    /// The library loads and does not start.
    #[error("{path}: ONNX Runtime does not start: {reason}; try another with --onnxruntime")]
    Start {
        /// The library.
        path: PathBuf,
        /// What it says.
        reason: String,
    },
    /// The device that was asked for does not work.
    #[error("device {device}: CUDA cannot be used: {reason}; correct that, or use --device cpu")]
    Device {
        /// What was asked for.
        device: Device,
        /// Why not.
        reason: String,
    },
    /// OpenVINO does not work as it was asked for.
    #[error("provider openvino in {precision}: {reason}; correct that, or {}", match precision {
        Precision::Fp32 => "leave --provider out",
        Precision::Bf16 => "use --precision fp32",
    })]
    OpenVino {
        /// What was asked for.
        precision: Precision,
        /// Why not.
        reason: String,
    },
    /// The network is not one that can be run here.
    #[error("the network cannot be run: {0}")]
    Model(String),
    /// A batch does not fit, or the run failed.
    #[error("a batch of shape {shape:?} failed: {reason}")]
    Run {
        /// Shape of the batch.
        shape: [usize; 4],
        /// Why.
        reason: String,
    },
}

impl RuntimeError {
    /// What was asked for does not work, for this reason.
    pub(super) fn unavailable(compute: Compute, reason: String) -> Self {
        match compute.provider() {
            Provider::Default => Self::Device { device: compute.device(), reason },
            Provider::OpenVino => Self::OpenVino { precision: compute.precision(), reason },
        }
    }

    /// The same, after these places were looked at.
    pub(super) fn after(self, mut places: Vec<String>) -> Self {
        match self {
            Self::NotFound { build, reason, tried, remedy } => {
                places.extend(tried);
                Self::NotFound { build, reason, tried: places, remedy }
            }
            other => other,
        }
    }
}

fn lines(items: &[String]) -> String {
    items.iter().fold(String::new(), |mut text, item| {
        // Writing to a String cannot fail.
        let _ = write!(text, "\n  {item}");
        text
    })
}
