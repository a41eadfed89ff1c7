//! What a fit is put on record as: `metrics.json`, and the rows of `history.csv` and `depths.csv`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::evaluate::{Averages, Bootstrap, Calibration, ClassScore, ConfusionCell, Scaled, TopK};

/// Version of `metrics.json`; another version is refused.
pub const METRICS_SCHEMA: u32 = 2;

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
