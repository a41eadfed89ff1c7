//! tlpipe: transfer learning on frozen image features.
#![warn(missing_docs)]

pub mod events;
pub mod onnx;
mod persist;
pub mod run;
pub mod store;
