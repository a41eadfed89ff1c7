//! Stage 1: images through the frozen backbone into the feature store.

mod backbone;
mod bench;
#[cfg(test)]
mod depths;
mod drift;
mod engine;
pub(crate) mod flow;
mod network;
pub(crate) mod prepare;
mod sample;
mod slice;
mod tally;
pub(crate) mod worker;

use std::path::PathBuf;

#[cfg(test)]
pub(crate) use backbone::stored;
pub use backbone::{Backbone, BackboneError, PixelScale};
pub(crate) use backbone::{cut_segments, expected_pixels, layout};
pub use bench::{Bench, Effort, bench};
pub use engine::{Ended, Plan, Taker, extract, extract_beside};
pub use network::Network;
pub(crate) use network::{Shape, say_where, sessions, suited_batch, try_out};
pub use slice::{NoSlice, Slice};

use crate::dataset::DatasetError;
use crate::runtime::{Precision, RuntimeError};
use crate::store::StoreError;

/// What can stop an extraction. An image that cannot be used does not: it is quarantined.
#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    /// The source cannot be read.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// The store cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// ONNX Runtime failed.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The backbone's answer is not what was declared.
    #[error("{model}: the cut gives {found} values an image, {expected} were expected; name another tensor with --cut")]
    Width {
        /// The ONNX file.
        model: PathBuf,
        /// Values an image that came.
        found: usize,
        /// Values an image that were declared.
        expected: usize,
    },
    /// The backbone does not take images of this size.
    #[error(
        "{model}: it fails on an image of {side} x {side} pixels: {source}\n{}",
        if *.native > *.side { format!("it was made for {native} px: give a larger --input-size") } else { "look at it with tlpipe models inspect".into() }
    )]
    Side {
        /// The ONNX file.
        model: PathBuf,
        /// Side of the image, pixels.
        side: u32,
        /// Side of the images it was made for, pixels.
        native: u32,
        /// What ONNX Runtime says.
        source: RuntimeError,
    },
    /// The backbone gave values that are no numbers.
    #[error(
        "{model}: the features of {split}/{id} hold NaN or infinite values; the backbone or its preprocessing is wrong \
         (tlpipe models inspect shows both)"
    )]
    NotFinite {
        /// The ONNX file.
        model: PathBuf,
        /// Split of the image.
        split: String,
        /// The image.
        id: String,
    },
    /// The precision that was asked for is not the one that was computed in.
    #[error(
        "{precision} was asked for, and the features equal those of fp32 (relative distance {distance:.1e}): the provider did \
         not compute in it; use --precision fp32"
    )]
    Precision {
        /// What was asked for.
        precision: Precision,
        /// Relative L2 distance of a sample to fp32.
        distance: f64,
    },
    /// There is no place for a measurement.
    #[error("the system's folder for temporary files: {0}; name another one in TMPDIR")]
    Scratch(std::io::Error),
    /// A worker thread ended without an answer.
    #[error("a worker thread stopped unexpectedly; what was recorded is kept, go on with the same command")]
    Worker,
    /// Not one image of the source could be used.
    #[error(
        "none of the {images} images could be used; {}",
        table.as_ref().map_or_else(|| "tlpipe extract says why for each".to_owned(), |table| format!("{} says why for each", table.display()))
    )]
    NothingUsable {
        /// How many there are.
        images: usize,
        /// The table of reasons.
        table: Option<PathBuf>,
    },
}

impl From<flow::Lost> for ExtractError {
    fn from(flow::Lost: flow::Lost) -> Self {
        Self::Worker
    }
}
