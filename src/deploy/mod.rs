//! Preprocessing, backbone and head in one file, `classifier.onnx`, that runs wherever ONNX Runtime does.
//!
//! ```text
//! image      uint8 [N, H, W, 3], red first, of any size (or the backbone's own float32 input)
//!   └▶ resize ─▶ range, layout ─▶ views ─▶ backbone, cut ─▶ features ─▶ dense ─▶ softmax
//! probabilities  float32 [N, K]
//! class_index    int64 [N]
//! ```

mod card;
mod classifier;
mod error;
mod foreign;
mod integers;
mod merge;
mod metadata;
mod parity;
pub mod predict;
mod preprocess;
pub mod serve;
#[cfg(test)]
mod tests;

pub use card::{Beside, CARD, Card, LABELS, label_lines};
pub use classifier::{Classifier, Hints, Loader, Opening};
pub use error::DeployError;
pub use integers::in_integers;
pub use merge::{MergeOptions, Parts, merge, used};
pub use metadata::{
    CLASS_INDEX, Columns, IMAGE, InputKind, InputRecord, Metadata, MetricsRecord, PROBABILITIES, Provenance, SplitSummary,
    StoreKey,
};
pub use parity::{Bound, Comparison, Deployed, KeptAnswer, Parity, Said, Sample, Stage, short_hash, stage};
