//! What is wrong with a data set, from its cached features alone.
//!
//! ```text
//! store ─▶ Images ─┬─ content hashes ──────────────▶ duplicates, leaks between splits
//!                  ├─ k nearest of each ─┬─────────▶ near duplicates, leaks, conflicting labels
//!                  │                     ├─────────▶ outliers
//!                  │                     └─ votes ─┐
//!                  ├─ ridge, each row left out ────┴▶ probable label errors
//!                  ├─ width, height ───────────────▶ images far smaller than the network's input
//!                  ├─ labels ──────────────────────▶ imbalance, classes with few images
//!                  └─ features ────────────────────▶ dead and constant features
//! ```
//!
//! What is found of images is a list of [`Finding`]s, what is found of classes and features stands in the [`Summary`]. The finders
//! compute and return; they read no file and know no terminal.

mod classes;
mod curve;
mod duplicates;
mod features;
mod finding;
mod images;
mod labels;
mod outliers;
mod summary;
mod table;

pub use classes::{Balance, ClassRows, balance};
pub use curve::{Curve, CurvePoint, Doubling, PowerLaw, fit_curve};
pub use duplicates::{Duplicates, SCALE_NEIGHBOUR, duplicates, near_line};
pub use features::{FeatureUse, feature_use};
pub use finding::{Finding, Kind};
pub use images::{Image, Images, not_finite, small};
pub use labels::{ClassPair, LabelErrors, VOTERS, label_errors};
pub use outliers::{Outliers, outliers};
pub use summary::{AUDIT_SCHEMA, Found, KindSummary, LabelSummary, Seconds, SplitRows, Strongest, Summary, Thresholds};
pub use table::to_parquet;
