//! Pure graph work on ONNX models, without a runtime: read, find the cut, cut, describe.

/// The ONNX schema as Rust types.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
#[rustfmt::skip]
pub mod proto;
