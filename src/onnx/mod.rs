//! Pure graph work on ONNX models, without a runtime: read, find the cut, cut, describe.
//!
//! ```text
//! file ──Model::read──▶ Model ──input──▶ Input      what the model takes
//!                         ├─────find_cut──▶ Cut     where the features are, and why
//!                         ├─────hints──▶ Hints      what the graph says about preprocessing
//!                         ├─────cut(&Cut)──▶ Model  image in, one output `embedding` [N, D] float32
//!                         ├─────taps(&Cut)──▶ [Tap] feature maps before the cut
//!                         └─────segments(&Cut, &Layers)──▶ [Segment] ──cut_segments──▶ Model  several depths in one row
//!                                                                                       └──attach──▶ Model  nodes of our own around it
//! ```
//!
//! No shape is taken on trust: most exports carry none for their inner tensors, and those they carry hold for one size only.
//! The shapes are worked out by this room at two image sizes and two batch sizes, which tells the batch, the position and the
//! channel axes of a tensor apart, and proves (or refutes) that a fixed batch or a fixed image size may be opened.
//!
//! ```no_run
//! use tlpipe::onnx::{Model, cut, find_cut};
//!
//! let model = Model::read("mobilenetv2-12.onnx".as_ref())?;
//! let place = find_cut(&model, None)?;
//! println!("{}: {}", place.tensor, place.reason);
//! std::fs::write("backbone.onnx", cut(&model, &place)?.to_bytes())?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod attach;
mod cut;
mod error;
mod external;
mod fed;
mod find;
#[cfg(test)]
mod fixture;
mod graph;
mod half;
mod hints;
mod input;
mod inspect;
mod layers;
mod model;
#[cfg(test)]
pub(crate) mod networks;
mod open;
mod quantize;
mod raise;
mod rules;
mod shapes;
mod taps;
mod tensor;
#[cfg(test)]
mod tests;
mod writer;

/// The ONNX schema as Rust types.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
#[rustfmt::skip]
pub mod proto;

pub use attach::{Around, Axis, PortSpec, attach};
pub use cut::{EMBEDDING, cut, cut_segments};
pub use error::OnnxError;
pub use find::{Cut, CutReason, Pooling, find_cut};
pub use half::with_half_weights;
pub use hints::{ChannelOrder, Hints, Preprocessing, hints};
pub use input::{Input, InputType, Layout, input};
pub use inspect::{Inspection, inspect};
pub use layers::{Layers, Segment, segments};
pub use model::Model;
pub use quantize::{Range, calibrated, quantize};
pub use raise::raise;
pub use taps::{Tap, taps};
pub use writer::{Element, Setting, Writer};
