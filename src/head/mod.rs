//! The head: a softmax layer fitted on cached features.
//!
//! ```text
//! features [N, D], labels ──hold_out──▶ rows to train on, rows held out
//!                          ──fit──▶ Head (kernel [D, K], bias [K]) + one record an epoch
//!                                    │
//!                                    ├──▶ logits, probabilities [N, K]
//!                                    └──▶ head.safetensors
//! ```
//!
//! Four solvers stand beside each other behind linfa's traits: Adam on minibatches, to the letter of Keras; the optimum of
//! multinomial logistic regression by L-BFGS, ours and `linfa-logistic`; and least squares in closed form. [`fit`] is the way in for a pipeline: it trains on listed rows of one matrix, which is not copied, and
//! tells of each epoch. A program that has a linfa data set can write:
//!
//! ```
//! use linfa::prelude::*;
//! use ndarray::{Array1, Array2};
//! use tlpipe::head::{HeadParams, Solver};
//!
//! // Two groups of points, left and right of x = 0.
//! let x = Array2::from_shape_fn((40, 2), |(row, column)| (row % 2) as f32 * 4.0 - 2.0 + (row * 3 + column * 7) as f32 % 5.0 / 5.0);
//! let y = Array1::from_shape_fn(40, |row| row % 2);
//! let data = DatasetBase::new(x, y);
//! for solver in [Solver::Adam, Solver::Lbfgs, Solver::Ridge, Solver::Linfa] {
//!     let head = HeadParams { solver, epochs: 50, learning_rate: 0.05, ..HeadParams::default() }.fit(&data)?;
//!     let predicted: Array1<usize> = head.predict(&data);
//!     assert_eq!(&predicted, data.targets());
//! }
//! # Ok::<(), tlpipe::head::HeadError>(())
//! ```

mod adam;
mod answer;
mod balance;
mod baseline;
mod checkpoint;
mod dense;
mod dropout;
mod early;
mod error;
mod features;
mod file;
mod fit;
mod gather;
mod group;
mod holdout;
mod kfold;
mod lbfgs;
mod logistic;
mod minimize;
mod model;
mod neighbours;
mod panel;
mod params;
mod part;
mod ridge;
mod schedule;
mod shots;
mod simd;
mod standardize;
mod statistics;
mod step;
mod stream;
mod tally;
mod team;
mod tiles;
mod update;

pub use balance::ClassWeights;
pub use baseline::{NearestMean, Neighbours, Queries, majority};
pub use checkpoint::Checkpoints;
pub use error::HeadError;
pub use fit::{Examples, Fitted, OnEpoch, Weights, fit, fit_from, fit_path, fit_resumable, fit_summed};
pub use holdout::{Rule, Split, hold_out, lacking};
pub use kfold::kfold;
pub use linfa::ParamGuard;
pub use model::{Head, PackedHead};
pub use neighbours::{Near, Nearest, nearest_among};
pub use params::{HeadParams, HeadValidParams, HoldOut, Solver, ViewUse};
pub use ridge::{LeftOut, Ridge, RidgePoint, ScaleBy, ridge_head, ridge_left_out};
pub use schedule::Schedule;
pub use shots::{few, stratified_order};
pub use standardize::Standardization;
pub use statistics::{Change, Origin, Statistics};
pub use stream::{FeatureSource, Streamed, fit_streamed};
