//! tlpipe: transfer learning on frozen image features.
#![warn(missing_docs)]

pub mod events;
pub mod onnx;
pub mod run;
