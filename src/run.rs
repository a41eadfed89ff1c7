//! The run directory: what one fit leaves behind, and what report, compare and export read.
//!
//! ```text
//! runs/NAME/
//!   head.safetensors      the fitted head; written first
//!   history.csv           one row an epoch
//!   metrics.json          settings, scores of each split
//!   predictions.parquet   one row an image that was scored
//!   pipeline.toml         the pipeline as resolved
//!   sweep.csv             one row a candidate, where a sweep chose the settings
//!   shots.csv, depths.csv  heads on few images, and on one depth of the network each, where they were asked for
//!   report.html report.json
//!   audit.parquet audit.json data_curve.csv  what is wrong with the images, where it was asked for; they know no head
//!   statistics.safetensors, statistics.parquet  of ridge: what the head follows from, and the rows it is of
//!   l2_path.csv, left_out.parquet  of ridge: every strength of L2; each training row's answer by a fit without it
//!   features.json, quarantine.parquet  where the features are not kept: what a store.json says of them; the images that could not be used
//!   sweep.partial           only while a sweep runs or after it was stopped: what it has fitted
//!   checkpoint.safetensors  only while a long fit runs or after it was stopped: where it goes on
//! ```

mod audit;
mod predictions;
mod records;
mod rows;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::head::Checkpoints;
use crate::persist::persist;
pub use audit::{AUDIT, AUDIT_FINDINGS, DATA_CURVE};
pub use predictions::{Predictions, PredictionsWriter};
pub use records::{
    BaselineScore, BaselineSplit, Depth, EpochRecord, METRICS_SCHEMA, Metrics, SplitRecord, SplitScore, SweepRecord, Trial,
    UpdateRecord,
};
pub use rows::TrainedRows;

/// What a sweep has fitted so far; the file in a run folder is there only until the sweep is done.
pub const SWEEP_JOURNAL: &str = "sweep.partial";

/// What was known of features that are not kept: what their store's manifest said.
pub const FEATURES: &str = "features.json";

/// Images that could not be used, where the features are not kept.
pub const QUARANTINE: &str = "quarantine.parquet";

/// What can go wrong with a run directory.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A file of the run could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The folder cannot be made or written.
    #[error("{path}: the run cannot be written here ({source}); name another folder with --run")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The folder holds something else.
    #[error("{0}: this folder holds files that are not a run's; name another folder with --run")]
    Foreign(PathBuf),
    /// Another process writes here.
    #[error("{0}: another tlpipe fits a head into this folder; wait for it, or name another folder with --run")]
    Locked(PathBuf),
    /// There is no fitted head here.
    #[error("{0}: no run here (metrics.json is missing); fit a head first: tlpipe fit-head with the same pipeline or flags")]
    Missing(PathBuf),
    /// The summary of an audit is not what it should be.
    #[error("{path}: {reason}; audit again: tlpipe audit with the same pipeline or flags")]
    DamagedAudit {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file is not what it should be.
    #[error("{path}: {reason}; fit the head again: tlpipe fit-head with the same pipeline or flags")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// A run directory.
#[derive(Clone, Debug)]
pub struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// Names a run directory; nothing is read or made.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes the folder and tries whether it can be written: before the work whose result goes there.
    ///
    /// # Errors
    /// When it cannot, or when it holds files and none of them is a head.
    pub fn prepare(&self) -> Result<(), RunError> {
        let unwritable = |source| RunError::Folder { path: self.path.clone(), source };
        fs::create_dir_all(&self.path).and_then(|()| tempfile::tempfile_in(&self.path).map(drop)).map_err(unwritable)?;
        // The head is the first file of a run; folders beside it, such as a feature store, are the user's own.
        let mut files = self.path.read_dir().map_err(unwritable)?.flatten().filter(|entry| entry.path().is_file());
        // A first fit or sweep that was stopped leaves these alone, or an audit before the first fit.
        let left = [Checkpoints::FILE, SWEEP_JOURNAL, AUDIT, AUDIT_FINDINGS, DATA_CURVE, QUARANTINE];
        let own = |name: &str| name.starts_with(".tmp-") || left.contains(&name);
        let foreign = !self.file("head.safetensors").is_file() && files.any(|entry| !own(&entry.file_name().to_string_lossy()));
        if foreign { Err(RunError::Foreign(self.path.clone())) } else { Ok(()) }
    }

    /// Keeps other fits out of the folder as long as the answer lives: files of two fits would stand side by side. Where the system has no
    /// locks on folders, nobody is kept out.
    ///
    /// # Errors
    /// When another fit works here.
    pub fn lock(&self) -> Result<Option<fs::File>, RunError> {
        let Ok(folder) = fs::File::open(&self.path) else { return Ok(None) };
        match folder.try_lock() {
            Err(fs::TryLockError::WouldBlock) => Err(RunError::Locked(self.path.clone())),
            locked => Ok(locked.is_ok().then_some(folder)),
        }
    }

    /// Reads `metrics.json`.
    ///
    /// # Errors
    /// When the run does not exist, or the file is damaged or of another version.
    pub fn metrics(&self) -> Result<Metrics, RunError> {
        let path = self.file("metrics.json");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(RunError::Missing(self.path.clone()));
            }
            Err(source) => return Err(RunError::Io { path, source }),
        };
        let metrics: Metrics =
            serde_json::from_str(&text).map_err(|error| RunError::Damaged { path: path.clone(), reason: error.to_string() })?;
        if metrics.schema != METRICS_SCHEMA {
            let reason = format!("schema {}, this tlpipe reads schema {METRICS_SCHEMA}", metrics.schema);
            return Err(RunError::Damaged { path, reason });
        }
        Ok(metrics)
    }

    /// Writes `metrics.json`: last of a fit, since its presence says that the run is whole.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_metrics(&self, metrics: &Metrics) -> Result<(), RunError> {
        let path = self.file("metrics.json");
        let text = serde_json::to_vec_pretty(metrics)
            .map_err(|error| RunError::Damaged { path: path.clone(), reason: error.to_string() })?;
        self.write("metrics.json", &text)
    }

    /// Reads `history.csv`.
    ///
    /// # Errors
    /// When the file is missing or damaged.
    pub fn history(&self) -> Result<Vec<EpochRecord>, RunError> {
        let path = self.file("history.csv");
        let damaged = |error: csv::Error| RunError::Damaged { path: path.clone(), reason: error.to_string() };
        csv::Reader::from_path(&path).map_err(damaged)?.deserialize().collect::<Result<_, _>>().map_err(damaged)
    }

    /// Writes `history.csv`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_history(&self, history: &[EpochRecord]) -> Result<(), RunError> {
        self.write_table("history.csv", history)
    }

    /// Writes a table as CSV.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_table<T: Serialize>(&self, name: &str, rows: &[T]) -> Result<(), RunError> {
        let path = self.file(name);
        let damaged = |reason: String| RunError::Damaged { path: path.clone(), reason };
        let mut writer = csv::Writer::from_writer(Vec::new());
        for row in rows {
            writer.serialize(row).map_err(|error| damaged(error.to_string()))?;
        }
        let bytes = writer.into_inner().map_err(|error| damaged(error.to_string()))?;
        self.write(name, &bytes)
    }

    /// Begins a file of predictions of `classes` classes: `predictions.parquet`, or one of that form.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn predictions(&self, name: &str, classes: usize) -> Result<PredictionsWriter, RunError> {
        PredictionsWriter::create(self.file(name), classes)
    }

    /// Removes a file of the run, if it is there.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, name: &str) -> Result<(), RunError> {
        let path = self.file(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(RunError::Io { path, source }),
            _ => Ok(()),
        }
    }

    /// Writes a file of the run whole or not at all.
    ///
    /// # Errors
    /// When the folder or the file cannot be written.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<(), RunError> {
        let path = self.file(name);
        let io = |source| RunError::Io { path: path.clone(), source };
        fs::create_dir_all(&self.path).map_err(io)?;
        persist(&path, |file| file.write_all(content)).map_err(io)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_fit_at_a_time_has_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::new(folder.path());
        let first = run.lock().unwrap();
        assert!(first.is_some());
        assert!(matches!(RunDir::new(folder.path()).lock(), Err(RunError::Locked(path)) if path == folder.path()));
        drop(first);
        assert!(run.lock().is_ok());
        assert!(RunDir::new(folder.path().join("none")).lock().unwrap().is_none());
    }
}
