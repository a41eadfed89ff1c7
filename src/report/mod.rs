//! The report of a run: `report.json` holds every fact as data, `report.html` shows the same facts as one self-contained page.
//!
//! ```text
//! metrics.json, history.csv ─┐
//! predictions.parquet ───────┼─▶ Facts ─▶ report.json
//! StoreFacts, timings ───────┘      └───▶ plots, thumbnails ─▶ report.html
//! ```
//!
//! Every score is that of `metrics.json`; questions about single rows are answered by `polars` (`tables`), curves and heat maps are drawn by `plotters` (`plots`), the page is a
//! `minijinja` template (`page`, `report.html`). The page asks nobody for anything and needs no script.

use std::collections::HashMap;
use std::path::PathBuf;

use serde::Serialize;

use crate::run::{RunDir, RunError};

/// The page, in the run.
pub const HTML: &str = "report.html";
/// What the page shows, for programs.
pub const JSON: &str = "report.json";

mod facts;
mod page;
mod plots;
mod tables;
#[cfg(test)]
mod tests;

pub use facts::{ClassFigures, Examined, Facts, REPORT_SCHEMA, SplitFacts, Timing};
pub use tables::Mistake;

/// What can go wrong with a report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The run could not be read, or the report not written.
    #[error(transparent)]
    Run(#[from] RunError),
    /// `predictions.parquet` is not what it should be.
    #[error("{path}: {reason}; fit the head again: tlpipe fit-head with the same pipeline or flags")]
    Predictions {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The files of the run come from different fits.
    #[error(
        "{run}: metrics.json says {recorded} of split {split}, predictions.parquet says {found}: they come from different fits; \
         fit the head again: tlpipe fit-head with the same pipeline or flags"
    )]
    Disagree {
        /// The run directory.
        run: PathBuf,
        /// The split in which they differ.
        split: String,
        /// Rows and correct answers by `metrics.json`.
        recorded: String,
        /// Rows and correct answers by `predictions.parquet`.
        found: String,
    },
    /// The features were made anew since the head was fitted.
    #[error(
        "{run}: the head was fitted on features with key {recorded}, {store} now has key {found}; \
         fit the head again: tlpipe fit-head with the same pipeline or flags"
    )]
    OtherStore {
        /// The run directory.
        run: PathBuf,
        /// The feature store.
        store: String,
        /// The key in `metrics.json`.
        recorded: String,
        /// The store's key.
        found: String,
    },
    /// A plot could not be drawn.
    #[error("{plot}: cannot be drawn: {reason}; report.json can be read without it")]
    Plot {
        /// Which one.
        plot: &'static str,
        /// Why.
        reason: String,
    },
    /// The page could not be put together.
    #[error("report.html: {0}; report.json can be read without it")]
    Page(#[from] minijinja::Error),
}

/// Rows of one split of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SplitRows {
    /// Name of the split as in the source.
    pub split: String,
    /// Rows with features.
    pub rows: usize,
}

/// The network that made the features.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackboneFacts {
    /// Registry name, or file name.
    pub name: String,
    /// SHA-256 of the ONNX file, hexadecimal.
    pub sha256: String,
    /// The tensor it was cut at.
    pub cut: String,
    /// Side of the square input, pixels.
    pub input_size: u32,
    /// What was done to the pixels, for a reader: "squash · RGB · x / 127.5 - 1".
    pub preprocessing: String,
}

/// How the features were made.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExtractionFacts {
    /// Wall time, seconds.
    pub seconds: f64,
    /// Images a second.
    pub images_per_second: f64,
    /// The execution provider that ran the network.
    pub provider: String,
    /// Version of ONNX Runtime.
    pub runtime: String,
    /// Threads it was given.
    pub threads: usize,
}

/// What the report says about the feature store and where it came from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StoreFacts {
    /// Name of the data: "cifar10", or the last part of the source's path.
    pub data: String,
    /// Where the data was read from.
    pub source: String,
    /// The source's fingerprint.
    pub fingerprint: String,
    /// Folder of the store.
    pub path: String,
    /// Key of the store.
    pub key: String,
    /// Rows of each split.
    pub splits: Vec<SplitRows>,
    /// Images that could not be used; `quarantine.parquet` names them.
    pub quarantined: usize,
    /// Width of a feature row.
    pub features: usize,
    /// The network.
    pub backbone: BackboneFacts,
    /// The extraction; none where no figures were kept.
    pub extraction: Option<ExtractionFacts>,
}

/// Split and row ids to encoded images by row id.
pub type FindImages<'a> = dyn Fn(&str, &[String]) -> HashMap<String, Vec<u8>> + 'a;

/// Encoded image and longest side in pixels to a small encoded image, or why not.
pub type MakeThumbnail<'a> = dyn Fn(&[u8], u32) -> Result<Vec<u8>, String> + 'a;

/// What a report is made from.
pub struct Inputs<'a> {
    /// The run to report on.
    pub run: &'a RunDir,
    /// The store it was fitted on.
    pub store: StoreFacts,
    /// Finds images of one split of the source; what cannot be found is left out.
    pub images: &'a FindImages<'a>,
    /// Makes a small PNG or JPEG.
    pub thumbnail: &'a MakeThumbnail<'a>,
    /// Stages and their wall time in seconds, in the order in which they ran.
    pub timings: Vec<(String, f64)>,
    /// Commands that make this run again.
    pub commands: Vec<String>,
}

/// What was written.
#[derive(Debug)]
pub struct Written {
    /// The page.
    pub html: PathBuf,
    /// The data.
    pub json: PathBuf,
    /// The content of `report.json`, for a summary on the terminal.
    pub facts: Facts,
}

/// Writes `report.json` and `report.html` into the run directory.
///
/// # Errors
/// When the run is missing, damaged or does not belong to the store, or the files cannot be written.
pub fn write(inputs: &Inputs) -> Result<Written, ReportError> {
    let mut facts = facts::gather(inputs)?;
    let html = page::render(&mut facts, inputs)?;
    let json = serde_json::to_vec_pretty(&facts)
        .map_err(|error| RunError::Damaged { path: inputs.run.file(JSON), reason: error.to_string() })?;
    inputs.run.write(JSON, &json)?;
    inputs.run.write(HTML, html.as_bytes())?;
    Ok(Written { html: inputs.run.file(HTML), json: inputs.run.file(JSON), facts })
}
