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
mod rows;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::evaluate::{Averages, Bootstrap, Calibration, ClassScore, ConfusionCell, Scaled, TopK};
use crate::head::Checkpoints;
use crate::persist::persist;
pub use audit::{AUDIT, AUDIT_FINDINGS, DATA_CURVE};
pub use predictions::{Predictions, PredictionsWriter};
pub use rows::TrainedRows;

/// Version of `metrics.json`; another version is refused.
pub const METRICS_SCHEMA: u32 = 2;

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

/// One tensor, early to late; a row of `depths.csv`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Depth {
    /// The tensor.
    pub tensor: String,
    /// Features of it.
    pub width: usize,
    /// Features of it that the run's head uses: all, or those that `head.budget` left.
    pub used: usize,
    /// Accuracy on the hold-out of a head on this tensor alone; none where nothing is held out.
    pub validation_accuracy: Option<f64>,
    /// Accuracy of that head on the test split; none where there is none.
    pub test_accuracy: Option<f64>,
    /// Time of the fit.
    pub seconds: f64,
}

/// Scores of one split. What is undefined is null.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SplitScore {
    /// Labelled rows that were scored.
    pub rows: usize,
    /// Mean cross-entropy, natural logarithm.
    pub loss: f64,
    /// Percentile bootstrap 95 % interval of `loss`; none for one row.
    pub loss_interval: Option<[f64; 2]>,
    /// Share of rows whose most probable class is the label, 0 to 1.
    pub accuracy: f64,
    /// Wilson 95 % interval of `accuracy`.
    pub accuracy_interval: [f64; 2],
    /// `macro_precision`, `balanced_accuracy`, `macro_f1`, `weighted_f1`.
    #[serde(flatten)]
    pub averages: Averages,
    /// Top-5 accuracy; top-K where there are fewer classes.
    pub top_k: TopK,
    /// Area under the ROC curve, one against the rest, mean over the classes; none where a class has no row, or
    /// every row, or where there are more than 67,108,864 probabilities.
    pub roc_auc: Option<f64>,
    /// Intervals by the bootstrap.
    pub bootstrap: Bootstrap,
    /// How far confidence and accuracy agree.
    pub calibration: Calibration,
    /// Loss and calibration at [`Metrics::temperature`]; none for the rows trained on.
    pub scaled: Option<Scaled>,
    /// `[K][K]`, row the label, column the answer; none above 100 classes.
    pub confusion: Option<Vec<Vec<usize>>>,
    /// The pairs of label and wrong answer that are confused most, the most frequent first; at most 20.
    #[serde(default)]
    pub confused: Vec<ConfusionCell>,
    /// One figure a class, in the order of the class list.
    pub per_class: Vec<ClassScore>,
}

/// How the rows of `train` were divided.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SplitRecord {
    /// `tail`, `stratified`, `random`, `hash`, `grouped`, or `source` where the source has a validation split of its own.
    pub kind: String,
    /// Share of the rows that was asked for, 0 to 1.
    pub fraction: f64,
    /// Rows the head was trained on.
    pub train: usize,
    /// Rows held out.
    pub holdout: usize,
}

/// What bringing a head up to date changed of the rows it is fitted on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateRecord {
    /// Rows that came.
    pub added: usize,
    /// Rows that went.
    pub removed: usize,
    /// Rows that have another label.
    pub relabelled: usize,
}

/// How a sweep chose the settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepRecord {
    /// Settings that were tried.
    pub candidates: usize,
    /// Folds of the cross-validation; none where the hold-out decided.
    pub folds: Option<usize>,
    /// Why these settings.
    pub reason: String,
    /// Every candidate, best first.
    pub trials: Vec<Trial>,
}

/// One candidate of a sweep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// The keys of `[head]` that were varied, and their values.
    pub settings: BTreeMap<String, serde_json::Value>,
    /// On the rows that were held out; none where the fit failed.
    pub accuracy: Option<f64>,
    /// Percentile bootstrap 95 % interval of `accuracy`.
    pub accuracy_interval: Option<[f64; 2]>,
    /// Mean cross-entropy of the same rows.
    pub loss: Option<f64>,
    /// Wall time of its fits, seconds; of those that share work, the first has it.
    pub seconds: f64,
    /// Why the fit failed.
    pub error: Option<String>,
}

impl Trial {
    /// A setting as it is given on a command line.
    pub fn setting(&self, key: &str) -> String {
        match self.settings.get(key) {
            Some(serde_json::Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
            None => String::new(),
        }
    }

    /// The settings as they are given on a command line.
    pub fn shown(&self) -> String {
        self.settings.keys().map(|key| format!("{key}={}", self.setting(key))).collect::<Vec<_>>().join(" ")
    }
}

impl SweepRecord {
    /// `sweep.csv`: a header, then a row for each candidate; a column for each key that was varied.
    pub fn table(&self) -> Vec<Vec<String>> {
        let keys: Vec<&String> = self.trials.first().map(|trial| trial.settings.keys().collect()).unwrap_or_default();
        let scores = ["accuracy", "accuracy_low", "accuracy_high", "loss", "seconds", "error"].map(String::from);
        let number = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
        let line = |trial: &Trial| -> Vec<String> {
            let interval = trial.accuracy_interval;
            let found = [
                number(trial.accuracy),
                number(interval.map(|interval| interval[0])),
                number(interval.map(|interval| interval[1])),
                number(trial.loss),
                number(Some(trial.seconds)),
                trial.error.clone().unwrap_or_default(),
            ];
            keys.iter().map(|key| trial.setting(key)).chain(found).collect()
        };
        let header = keys.iter().map(|key| (*key).clone()).chain(scores).collect();
        std::iter::once(header).chain(self.trials.iter().map(line)).collect()
    }
}

/// Scores of a classifier that needs no fitting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BaselineScore {
    /// `majority`, `nearest_mean`, `nearest_neighbours`.
    pub name: String,
    /// Of `nearest_neighbours`: how many vote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub k: Option<usize>,
    /// Of `nearest_neighbours`: the temperature of their votes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Wall time, seconds.
    pub seconds: f64,
    /// On the hold-out.
    pub validation: Option<BaselineSplit>,
    /// On the test split.
    pub test: Option<BaselineSplit>,
}

/// Accuracy of a baseline on one split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BaselineSplit {
    /// Labelled rows.
    pub rows: usize,
    /// 0 to 1.
    pub accuracy: f64,
    /// Wilson 95 % interval of `accuracy`.
    pub accuracy_interval: [f64; 2],
}

/// `metrics.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// [`METRICS_SCHEMA`].
    pub schema: u32,
    /// Key of the feature store that the head was fitted on.
    pub store_key: String,
    /// Hash of everything this fit depends on; equal means up to date.
    pub fit_key: String,
    /// `adam`, `lbfgs`, `ridge`, `linfa`.
    pub solver: String,
    /// Epochs that were run (iterations for a solver without epochs); fewer than `head.epochs` where early stopping ended the fit.
    pub epochs: usize,
    /// With early stopping, the epoch whose weights the head has.
    #[serde(default)]
    pub best_epoch: Option<usize>,
    /// Whether an iterative solver of a convex problem came as near to the optimum as was asked for; none for the other solvers.
    #[serde(default)]
    pub converged: Option<bool>,
    /// Wall time of the fit alone, seconds; with that of the epochs before a checkpoint from which it went on.
    pub fit_seconds: f64,
    /// Wall time of loading the features, seconds.
    pub load_seconds: f64,
    /// Width of a feature row.
    pub features: usize,
    /// Class names; the index is the label.
    pub classes: Vec<String>,
    /// How the hold-out was chosen.
    pub split: SplitRecord,
    /// The rows that the head was trained on, scored after the fit.
    pub train: Option<SplitScore>,
    /// The hold-out.
    pub validation: Option<SplitScore>,
    /// The test split.
    pub test: Option<SplitScore>,
    /// The temperature that is best for the loss on the hold-out: divide the logits by it for probabilities that can be trusted
    /// more. Not applied to predictions; none where there is no hold-out or no best one.
    pub temperature: Option<f64>,
    /// The strength of L2 that was used.
    #[serde(default)]
    pub l2: f64,
    /// How the settings were chosen, where a sweep chose them; then `validation` is of the head before it was fitted again on all
    /// labelled rows of train.
    #[serde(default)]
    pub sweep: Option<SweepRecord>,
    /// What changed, where the head was brought up to date from its statistics; `train` is not scored then.
    #[serde(default)]
    pub update: Option<UpdateRecord>,
    /// Classifiers that need no fitting, where they were asked for.
    #[serde(default)]
    pub baselines: Vec<BaselineScore>,
    /// The settings of the head as resolved.
    pub head: serde_json::Value,
}

/// One row of `history.csv`: an epoch as Keras reports it. Training figures are running means over the epoch's batches,
/// validation figures are taken after the epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// 1 is the first.
    pub epoch: usize,
    /// Mean training loss.
    pub loss: f64,
    /// Mean training accuracy, 0 to 1.
    pub accuracy: f64,
    /// Loss on the hold-out; none where there is no hold-out.
    pub val_loss: Option<f64>,
    /// Accuracy on the hold-out, 0 to 1.
    pub val_accuracy: Option<f64>,
    /// Wall time of the epoch, seconds.
    pub seconds: f64,
    /// Learning rate of the epoch's last step; none for a solver that has none.
    #[serde(default)]
    pub learning_rate: Option<f64>,
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
