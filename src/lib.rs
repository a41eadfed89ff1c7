//! Transfer learning on frozen image features: images in, deployable classifier out.
//!
//! The rooms stand in the order in which the data flows:
//!
//! ```text
//! dataset ─▶ image ─▶ onnx + runtime ─▶ store ─▶ head ─▶ evaluate ─▶ report
//! records    tensor   backbone, cut     rows     logits  scores      page
//!           └──────────── extract ─────────┘└▶ audit   └──▶ deploy
//!            embed: the same for a stream      what is      one file,
//!            of a cluster engine               wrong        predict, serve
//! ```
//!
//! [`pipeline`] puts them together from one TOML file, [`cli`] is the `tlpipe` program around it. A program of your own can
//! use the stages directly:
//!
//! ```no_run
//! use std::sync::atomic::AtomicBool;
//! use tlpipe::pipeline::{self, Context, Pipeline, Settings};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let file = std::path::Path::new("pipelines/quickstart.toml");
//! let pipeline = Pipeline::new(Settings::load(Some(file), &[])?, Some(file))?;
//! let context = Context {
//!     search: tlpipe::assets::Search::from_env(false),
//!     library: None,
//!     observe: &tlpipe::events::ignore,
//!     stop: &AtomicBool::new(false),
//!     stoppable: &AtomicBool::new(false),
//! };
//! pipeline::extract(&pipeline, &context, false, pipeline::Goal::Head)?;
//! let fit = pipeline::fit_head(&pipeline, &context, false, &mut |_| std::ops::ControlFlow::Continue(()))?;
//! println!("{:?}", fit.metrics.test);
//! # Ok(())
//! # }
//! ```
#![warn(missing_docs)]

pub mod assets;
pub mod audit;
pub mod cli;
pub mod dataset;
pub mod deploy;
pub mod embed;
pub mod evaluate;
pub mod events;
pub mod extract;
pub mod head;
pub mod image;
mod markdown;
mod numbers;
pub mod onnx;
mod persist;
pub mod pipeline;
pub mod report;
pub mod run;
pub mod runtime;
pub mod store;
