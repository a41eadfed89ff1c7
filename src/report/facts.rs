//! The facts of a run: what `report.json` holds and the page shows.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::tables::{Mistake, Predictions, SplitCounts};
use super::{Inputs, ReportError, StoreFacts};
use crate::evaluate::{Calibration, ClassScore, ConfusionCell, TopK};
use crate::run::{EpochRecord, Metrics, SplitScore};

/// Version of `report.json`.
pub const REPORT_SCHEMA: u32 = 2;

/// Worst mistakes that are kept and shown.
const MISTAKES: u32 = 40;

/// Figures of one split.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SplitFacts {
    /// `train` (the rows trained on), `validation` (the hold-out), `test`, or a split of the source.
    pub split: String,
    /// Its scores; none where no row has a label.
    pub score: Option<SplitScore>,
    /// Rows without a label: predicted, not scored.
    pub unlabelled: usize,
    /// Top-k accuracy for each `k` below the number of classes; empty where no row has a label.
    pub top: Vec<TopK>,
    /// Mean probability of the answers; equal to the accuracy where confidence can be trusted.
    pub mean_confidence: Option<f64>,
}

/// Figures of one class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassFigures {
    /// Class index.
    pub index: usize,
    /// As in `metrics.json`.
    #[serde(flatten)]
    pub score: ClassScore,
}

/// The split that the report looks at closely: test, else the hold-out, else the rows trained on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Examined {
    /// Its name.
    pub split: String,
    /// Labelled rows.
    pub rows: usize,
    /// Mean F1 over the classes that have rows.
    pub macro_f1: f64,
    /// Share of the most frequent class: the accuracy of always answering it.
    pub majority: f64,
    /// Figures of each class, in the order of the class list.
    pub classes: Vec<ClassFigures>,
    /// Cells of the confusion matrix that are not zero, by label, then answer; empty above 100 classes.
    pub confusion: Vec<ConfusionCell>,
    /// Cells off the diagonal, the largest first; at most 20.
    pub confused_pairs: Vec<ConfusionCell>,
    /// Wrong answers.
    pub mistakes: usize,
    /// The most confident of them, worst first; at most 40.
    pub worst_mistakes: Vec<Mistake>,
}

/// Wall time of a stage.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Timing {
    /// Its name.
    pub stage: String,
    /// Seconds.
    pub seconds: f64,
}

/// The content of `report.json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Facts {
    /// [`REPORT_SCHEMA`].
    pub schema: u32,
    /// Version of tlpipe.
    pub tlpipe: String,
    /// When the report was made: UTC, `2026-01-31T12:00:00Z`.
    pub created: String,
    /// Platform: `linux x86_64`.
    pub platform: String,
    /// The run directory.
    pub run: String,
    /// Each split that was scored or predicted.
    pub splits: Vec<SplitFacts>,
    /// The close look; none where no predicted row has a label.
    pub examined: Option<Examined>,
    /// Epochs; empty for a solver without epochs.
    pub history: Vec<EpochRecord>,
    /// Stages in the order in which they ran.
    pub timings: Vec<Timing>,
    /// The features.
    pub store: StoreFacts,
    /// `metrics.json`.
    pub metrics: Metrics,
    /// Commands that make this run again.
    pub commands: Vec<String>,
    /// What a reader should know about this report itself.
    pub notes: Vec<String>,
}

impl Facts {
    /// The split whose accuracy is the headline, with its score: test, else the hold-out, else the rows trained on.
    pub fn headline(&self) -> Option<(&SplitFacts, &SplitScore)> {
        ["test", "validation", "train"].iter().find_map(|name| {
            let split = self.splits.iter().find(|split| split.split == *name)?;
            Some((split, split.score.as_ref()?))
        })
    }
}

/// Reads the run and answers every question that the report asks.
pub(super) fn gather(inputs: &Inputs) -> Result<Facts, ReportError> {
    let metrics = inputs.run.metrics()?;
    if metrics.store_key != inputs.store.key {
        return Err(ReportError::OtherStore {
            run: inputs.run.path().to_path_buf(),
            store: inputs.store.path.clone(),
            recorded: metrics.store_key,
            found: inputs.store.key.clone(),
        });
    }
    let predictions = Predictions::open(&inputs.run.file("predictions.parquet"), metrics.classes.len())?;
    let counts = predictions.splits()?;
    let splits = splits(inputs, &metrics, &counts)?;
    let history = if inputs.run.file("history.csv").exists() { inputs.run.history()? } else { Vec::new() };
    let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let created = i64::try_from(created).ok().and_then(arrow::array::temporal_conversions::timestamp_s_to_datetime);
    let unlabelled: usize = splits.iter().map(|split| split.unlabelled).sum();
    let notes = match unlabelled {
        0 => Vec::new(),
        1 => vec!["1 row has no label: it was predicted, but counts in no score.".into()],
        rows => vec![format!("{rows} rows have no label: they were predicted, but count in no score.")],
    };
    Ok(Facts {
        schema: REPORT_SCHEMA,
        tlpipe: env!("CARGO_PKG_VERSION").into(),
        created: created.map(|time| format!("{time:?}Z")).unwrap_or_default(),
        platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        run: inputs.run.path().display().to_string(),
        splits,
        examined: examine(&predictions, &metrics)?,
        history,
        timings: inputs.timings.iter().map(|(stage, seconds)| Timing { stage: stage.clone(), seconds: *seconds }).collect(),
        store: inputs.store.clone(),
        metrics,
        commands: inputs.commands.clone(),
        notes,
    })
}

fn splits(inputs: &Inputs, metrics: &Metrics, counts: &BTreeMap<String, SplitCounts>) -> Result<Vec<SplitFacts>, ReportError> {
    let scores = [("train", &metrics.train), ("validation", &metrics.validation), ("test", &metrics.test)];
    let named = scores.iter().map(|&(name, score)| (name, score.as_ref()));
    let others = counts.keys().filter(|name| scores.iter().all(|(known, _)| known != name));
    let mut facts = Vec::new();
    for (split, score) in named.chain(others.map(|name| (name.as_str(), None))) {
        let found = counts.get(split);
        if score.is_none() && found.is_none() {
            continue;
        }
        if let (Some(score), Some(found)) = (score, found) {
            agree(inputs, split, score, found)?;
        }
        let top = score.map_or_else(Vec::new, |score| top_k(score, metrics.classes.len()));
        facts.push(SplitFacts {
            split: split.to_owned(),
            score: score.cloned(),
            unlabelled: found.map_or(0, |found| found.rows - found.labelled),
            top,
            mean_confidence: score.and_then(|score| mean_confidence(&score.calibration)),
        });
    }
    Ok(facts)
}

/// A fit that was killed may leave new predictions beside old metrics. Probabilities are rounded to 32 bits, so that a near tie may
/// fall the other way here: one row in a thousand is let pass.
fn agree(inputs: &Inputs, split: &str, score: &SplitScore, found: &SplitCounts) -> Result<(), ReportError> {
    let recorded = (score.accuracy * score.rows as f64).round();
    let allowed = 1.0 + score.rows as f64 / 1000.0;
    if score.rows == found.labelled && (recorded - found.correct as f64).abs() <= allowed {
        return Ok(());
    }
    Err(ReportError::Disagree {
        run: inputs.run.path().to_path_buf(),
        split: split.to_owned(),
        recorded: format!("{recorded} of {} right", score.rows),
        found: format!("{} of {} right", found.correct, found.labelled),
    })
}

fn top_k(score: &SplitScore, classes: usize) -> Vec<TopK> {
    let best = TopK { k: 1, accuracy: score.accuracy };
    std::iter::once(best).chain((2..classes).contains(&score.top_k.k).then_some(score.top_k)).collect()
}

fn mean_confidence(calibration: &Calibration) -> Option<f64> {
    let rows: usize = calibration.bins.iter().map(|bin| bin.rows).sum();
    let sum: f64 = calibration.bins.iter().filter_map(|bin| Some(bin.rows as f64 * bin.confidence?)).sum();
    (rows > 0).then(|| sum / rows as f64)
}

fn examine(predictions: &Predictions, metrics: &Metrics) -> Result<Option<Examined>, ReportError> {
    let scores = [("test", &metrics.test), ("validation", &metrics.validation), ("train", &metrics.train)];
    let Some((split, score)) = scores.into_iter().find_map(|(split, score)| Some((split, score.as_ref()?))) else {
        return Ok(None);
    };
    let largest = score.per_class.iter().map(|class| class.rows).max().unwrap_or(0);
    let cells = score.confusion.iter().flatten().enumerate().flat_map(|(label, row)| {
        row.iter().enumerate().map(move |(predicted, &count)| ConfusionCell { label, predicted, count })
    });
    let right = (score.accuracy * score.rows as f64).round() as usize;
    Ok(Some(Examined {
        split: split.to_owned(),
        rows: score.rows,
        macro_f1: score.averages.macro_f1,
        majority: largest as f64 / score.rows.max(1) as f64,
        mistakes: score.rows.saturating_sub(right),
        worst_mistakes: predictions.worst_mistakes(split, MISTAKES)?,
        classes: score.per_class.iter().cloned().enumerate().map(|(index, score)| ClassFigures { index, score }).collect(),
        confusion: cells.filter(|cell| cell.count > 0).collect(),
        confused_pairs: score.confused.clone(),
    }))
}
