//! The report of a run: `report.json` holds every fact as data, `report.html` shows the same facts as one self-contained page.
//!
//! ```text
//! metrics.json, history.csv ─────┐
//! predictions.parquet ───────────┤
//! l2_path.csv, audit.parquet, … ─┼─▶ Facts ─▶ report.json
//! features of a sample ──────────┤     └───▶ plots, pictures ─▶ report.html
//! StoreFacts, timings ───────────┘
//! ```
//!
//! Every score is that of `metrics.json`; questions about single rows are answered by `polars` (`tables`), plots are drawn by `plotters`
//! (`plots`), the map of the embeddings by `faer` and `bhtsne` (`map`), the page is a `minijinja` template (`page`). It asks nobody for
//! anything. Its script opens images, sorts tables and moves the map; without it everything else can still be read. [`compare`] puts
//! several runs into one such page.

use std::path::PathBuf;

use crate::run::RunError;

/// The page, in the run.
pub const HTML: &str = "report.html";
/// What the page shows, for programs.
pub const JSON: &str = "report.json";

/// Bytes that pictures may bring a page to unless something else is said.
pub const PAGE_BYTES: usize = 10 << 20;

mod beside;
mod data_curve;
mod facts;
mod inputs;
mod map;
mod page;
mod pictures;
mod plots;
mod standout;
mod tables;
#[cfg(test)]
mod tests;
mod versus;
mod words;

pub use beside::{AuditFacts, AuditKind, AuditRow, ShotFacts};
pub use facts::{CellExamples, ClassFigures, Examined, Facts, FitFacts, REPORT_SCHEMA, SplitFacts, Timing};
pub use inputs::{
    BackboneFacts, ExtractionFacts, FindFeatures, FindImages, Inputs, MakeThumbnail, QuarantinedImage, SplitRows, StageTime,
    StoreFacts,
};
pub use map::{EmbeddingMap, MapPoint};
pub use standout::Standout;
pub use tables::Answer;
pub use versus::{
    COMPARE_SCHEMA, Changed, Changes, CompareInputs, ComparedRun, Comparison, ComparisonFacts, Pair, WrittenComparison, compare,
};

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
    /// A comparison would replace a file that is none.
    #[error(
        "{path}: is there already and is not an earlier comparison of tlpipe; name another page by --output, or take it away"
    )]
    NotOurs {
        /// The file.
        path: PathBuf,
    },
    /// A plot could not be drawn.
    #[error("{plot}: cannot be drawn: {reason}")]
    Plot {
        /// Which one.
        plot: &'static str,
        /// Why.
        reason: String,
    },
    /// The page could not be put together.
    #[error("the page cannot be put together: {0}; the JSON of an earlier report can be read without it")]
    Page(#[from] minijinja::Error),
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
