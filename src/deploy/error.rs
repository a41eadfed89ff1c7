//! What can stand between a fitted head and a classifier in one file.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::Parity;
use crate::assets::AssetError;
use crate::dataset::DatasetError;
use crate::extract::flow::Lost;
use crate::onnx::OnnxError;

/// What can go wrong with a classifier in one file.
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    /// An entry of the metadata is missing or damaged.
    #[error("{origin}: its metadata {key:?} cannot be used: {reason}; write the file anew with tlpipe export")]
    Metadata {
        /// The model.
        origin: String,
        /// The entry.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// What was asked for cannot be made of these parts.
    #[error("{origin}: {reason}")]
    Refused {
        /// The backbone.
        origin: String,
        /// Why not, and what to do.
        reason: String,
    },
    /// A version of the standard operators that the variant cannot be written in.
    #[error("--opset {asked}: {reason}")]
    Opset {
        /// What was asked for.
        asked: i64,
        /// Why not, and what to do.
        reason: String,
    },
    /// The model does not answer as a classifier does.
    #[error("the model's answer cannot be used: {0}; write the file anew with tlpipe export")]
    Answer(String),
    /// The model does not give the answers of the cached path.
    #[error(
        "{path}: not written: the model does not give the answers that the run scored: on {} images of {} probabilities differ by up \
         to {:.1e} (allowed {:.0e}), and the first class agrees for {:.2} % (at least {:.2} %); the stage that differs: {stage}",
        parity.images, parity.split, parity.max_difference, parity.bound.difference, 100.0 * parity.agreement,
        100.0 * parity.bound.agreement
    )]
    Parity {
        /// The file.
        path: PathBuf,
        /// What was compared.
        parity: Box<Parity>,
        /// Where it leaves the cached path.
        stage: String,
    },
    /// The model does not answer as it did when it was exported.
    #[error(
        "{model}: it does not answer as it did when it was exported: on {} images of {} probabilities differ by up to {:.1e} (allowed {:.0e}), \
         and the first class agrees for {:.2} % (at least {:.2} %); the file or ONNX Runtime has changed: export it anew",
        parity.images, parity.split, parity.max_difference, parity.bound.difference, 100.0 * parity.agreement,
        100.0 * parity.bound.agreement
    )]
    Differs {
        /// The model.
        model: String,
        /// What was compared.
        parity: Box<Parity>,
    },
    /// ONNX Runtime failed.
    #[error(transparent)]
    Runtime(#[from] crate::runtime::RuntimeError),
    /// The card cannot be written.
    #[error("the model card cannot be written: {0}")]
    Card(#[from] minijinja::Error),
    /// A file is in the way that is not ours.
    #[error("{0}: this file was not written by tlpipe, and would be replaced; move it, or name another folder with -o")]
    InTheWay(PathBuf),
    /// The head cannot be used.
    #[error(transparent)]
    Head(#[from] crate::head::HeadError),
    /// A graph cannot be read or put together.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    /// A file cannot be written.
    #[error("{path}: cannot be written ({source}); name another place with -o")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The model cannot be had.
    #[error(transparent)]
    Asset(#[from] AssetError),
    /// The images cannot be read.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// The model is no classifier that can be used.
    #[error("{model}: not a classifier that can be used here: {reason}")]
    Unfit {
        /// The ONNX file.
        model: PathBuf,
        /// Why.
        reason: String,
    },
    /// No image could be classified.
    #[error("none of the {images} images could be classified; of the first: {reason}")]
    NoneUsable {
        /// How many there are.
        images: usize,
        /// Why not.
        reason: String,
    },
    /// A user's word against what the model says of itself.
    #[error(
        "{0}: this classifier says itself what its classes and its preprocessing are; leave out --labels, --input-size, --resize and \
         --pixels"
    )]
    Known(PathBuf),
    /// The file of class names cannot be used.
    #[error("{path}: {reason}; give a text file with the name of a class in each line")]
    Labels {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// There is no place to be served at.
    #[error("{address}: {}", bind_reason(.address, .source))]
    Bind {
        /// What was asked for.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The operating system gives no threads.
    #[error("the system gives no threads or connections: {0}; stop other programs, or raise its limits")]
    System(std::io::Error),
    /// A worker thread ended without an answer.
    #[error("a worker thread stopped unexpectedly")]
    Worker,
}

impl DeployError {
    /// Whether the user asked for something that cannot be, rather than something having failed.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Known(_) | Self::Opset { .. })
    }
}

impl From<Lost> for DeployError {
    fn from(Lost: Lost) -> Self {
        Self::Worker
    }
}

fn bind_reason(address: &SocketAddr, error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::AddrInUse => {
            format!(
                "port {} is in use; stop what listens there, or choose another with --port (0: any that is free)",
                address.port()
            )
        }
        ErrorKind::PermissionDenied => format!("{error}; ports below 1024 are the system's: choose another with --port"),
        ErrorKind::AddrNotAvailable => format!("{error}; --host must be an address of this machine"),
        _ => format!("{error}; choose another with --host and --port"),
    }
}
