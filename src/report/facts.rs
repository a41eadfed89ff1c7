//! The facts of a run: what `report.json` holds and the page shows.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::Value;

use super::beside::{AuditFacts, Beside, ShotFacts};
use super::map::{self, EmbeddingMap};
use super::standout::{self, Standout};
use super::tables::{Answer, Predictions, SplitCounts, cells};
use super::{Inputs, ReportError, StoreFacts};
use crate::evaluate::{Calibration, ClassScore, ConfusionCell, TopK};
use crate::head::RidgePoint;
use crate::run::{Depth, EpochRecord, Metrics, SplitScore};

/// Version of `report.json`; docs/report.md has its fields.
pub const REPORT_SCHEMA: u32 = 3;

/// Worst mistakes that are kept and shown.
const MISTAKES: usize = 40;

/// Least certain answers that are kept and shown.
const UNCERTAIN: usize = 24;

/// Images behind cells of the confusion matrix that are named in all, and for one cell at least and at most.
const EXAMPLES: (usize, usize, usize) = (1200, 4, 24);

/// Cells whose images are named; where there are more, the largest of the wrong ones.
const CELLS: usize = 400;

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

/// What the head was fitted on, and how.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FitFacts {
    /// Images that the head was fitted on in the end.
    pub trained_on: usize,
    /// Images that were held out.
    pub held_out: usize,
    /// Their share of the images that were trained on or held out, 0 to 1: where classes are small, not the one that was asked for.
    pub held_out_share: f64,
    /// Whether the head was fitted again on the images held out, too, once they had chosen its settings.
    pub refitted: bool,
    /// `average` or `augment`; none where each image was seen once, as it is.
    pub views: Option<String>,
    /// Features that the head may use; none where it may use all.
    pub budget: Option<usize>,
    /// Strength of L2.
    pub l2: f64,
    /// Whether the fit or a sweep chose it among several.
    pub l2_chosen: bool,
    /// Whether the head is found in closed form, so that there is nothing to learn step by step.
    pub closed_form: bool,
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

/// Images behind a cell of the confusion matrix.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CellExamples {
    /// The cell.
    #[serde(flatten)]
    pub cell: ConfusionCell,
    /// Its answers: of the wrong ones the most confident, of the right ones the least confident first.
    pub answers: Vec<Answer>,
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
    /// Cells of the confusion matrix that are not zero, by label, then answer; above 100 classes those between the classes of the
    /// most confused pairs.
    pub confusion: Vec<ConfusionCell>,
    /// Cells off the diagonal, the largest first; at most 20.
    pub confused_pairs: Vec<ConfusionCell>,
    /// Images behind the cells; of more than 400 cells behind the 400 with the most mistakes.
    pub examples: Vec<CellExamples>,
    /// Wrong answers.
    pub mistakes: usize,
    /// The most confident of them, worst first; at most 40.
    pub worst_mistakes: Vec<Answer>,
    /// The answers given with the least confidence, right or wrong; at most 24, and half of the rows.
    pub least_certain: Vec<Answer>,
}

/// Wall time of a stage.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Timing {
    /// Its name.
    pub stage: String,
    /// Seconds.
    pub seconds: f64,
    /// Images that it worked on; none where that says nothing.
    pub images: Option<usize>,
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
    /// What stands out, the most telling first; at most two.
    pub standouts: Vec<Standout>,
    /// What the head was fitted on, and how.
    pub fit: FitFacts,
    /// Each split that was scored or predicted.
    pub splits: Vec<SplitFacts>,
    /// The close look; none where no predicted row has a label.
    pub examined: Option<Examined>,
    /// Epochs; empty for a solver without epochs.
    pub history: Vec<EpochRecord>,
    /// Strengths of L2 that a closed form was tried with, weakest first.
    pub l2_path: Vec<RidgePoint>,
    /// Heads on few images of each class, fewest first.
    pub shots: Vec<ShotFacts>,
    /// Heads on one depth of the network each, early to late.
    pub depths: Vec<Depth>,
    /// The embeddings in two dimensions; none where no map was wanted or there are too few images.
    pub map: Option<EmbeddingMap>,
    /// What `tlpipe audit` found; none where it has not been run.
    pub audit: Option<AuditFacts>,
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
    let examined = examine(&predictions, &metrics)?;
    let unlabelled: usize = splits.iter().map(|split| split.unlabelled).sum();
    let mut notes = match unlabelled {
        0 => Vec::new(),
        1 => vec!["1 row has no label: it was predicted, but counts in no score.".into()],
        rows => vec![format!("{rows} rows have no label: they were predicted, but count in no score.")],
    };
    let Beside { history, l2_path, shots, depths, audit, notes: unreadable } = Beside::read(inputs.run, &inputs.store);
    notes.extend(unreadable);
    let map = match (&examined, inputs.features) {
        (Some((examined, answers)), Some(features)) => {
            let split = source_split(&examined.split, &metrics);
            map::draw(split, answers, features, inputs.seed).unwrap_or_else(|reason| {
                notes.push(format!("There is no map of the embeddings: {reason}."));
                None
            })
        }
        _ => None,
    };
    let examined = examined.map(|(examined, _)| examined);
    let mut facts = Facts {
        schema: REPORT_SCHEMA,
        tlpipe: env!("CARGO_PKG_VERSION").into(),
        created: now(),
        platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        run: inputs.run.path().display().to_string(),
        standouts: Vec::new(),
        fit: fit(&metrics, &inputs.store, &history),
        splits,
        examined,
        history,
        l2_path,
        shots,
        depths,
        map,
        audit,
        timings: inputs.timings.clone(),
        store: inputs.store.clone(),
        metrics,
        commands: inputs.commands.clone(),
        notes,
    };
    facts.standouts = standout::find(&facts);
    Ok(facts)
}

/// The time: UTC, `2026-01-31T12:00:00Z`.
pub(super) fn now() -> String {
    let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let created = i64::try_from(created).ok().and_then(arrow::array::temporal_conversions::timestamp_s_to_datetime);
    created.map(|time| format!("{time:?}Z")).unwrap_or_default()
}

/// The split of the source that has the rows of a split of the run: the hold-out is a part of train, unless the source has a
/// validation split of its own.
pub(super) fn source_split<'a>(split: &'a str, metrics: &Metrics) -> &'a str {
    if split == "validation" && metrics.split.kind != "source" { "train" } else { split }
}

fn fit(metrics: &Metrics, store: &StoreFacts, history: &[EpochRecord]) -> FitFacts {
    let setting = |key: &str| metrics.head.get(key).filter(|value| !value.is_null());
    let asked = setting("refit").and_then(Value::as_bool).unwrap_or(false);
    let split = &metrics.split;
    // A sweep counts the rows held out among those trained on, and so does an update of a head that was fitted on all, which has no
    // hold-out any more; a refit by itself does not.
    let again = asked && metrics.sweep.is_none() && metrics.update.is_none() && split.holdout > 0;
    let all = if metrics.sweep.is_some() { split.train } else { split.train + split.holdout };
    let closed_form = metrics.solver == "ridge";
    FitFacts {
        trained_on: split.train + if again { split.holdout } else { 0 },
        held_out: split.holdout,
        held_out_share: split.holdout as f64 / all.max(1) as f64,
        refitted: again || (metrics.sweep.is_some() && split.holdout > 0),
        views: (store.views.len() > 1).then(|| setting("views").and_then(Value::as_str).unwrap_or("average").to_owned()),
        budget: setting("budget").and_then(Value::as_u64).and_then(|budget| usize::try_from(budget).ok()),
        l2: metrics.l2,
        l2_chosen: metrics.sweep.is_some() || (closed_form && setting("l2").is_none()),
        closed_form: closed_form || (history.len() < 2 && metrics.solver != "adam"),
    }
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

/// The close look, and the answers it is of, the most confident first.
fn examine(predictions: &Predictions, metrics: &Metrics) -> Result<Option<(Examined, Vec<Answer>)>, ReportError> {
    let scores = [("test", &metrics.test), ("validation", &metrics.validation), ("train", &metrics.train)];
    let Some((split, score)) = scores.into_iter().find_map(|(split, score)| Some((split, score.as_ref()?))) else {
        return Ok(None);
    };
    let answers = predictions.answers(split)?;
    let largest = score.per_class.iter().map(|class| class.rows).max().unwrap_or(0);
    let confusion = confusion(score, &answers);
    let right = (score.accuracy * score.rows as f64).round() as usize;
    let examined = Examined {
        split: split.to_owned(),
        rows: score.rows,
        macro_f1: score.averages.macro_f1,
        majority: largest as f64 / score.rows.max(1) as f64,
        mistakes: score.rows.saturating_sub(right),
        worst_mistakes: answers.iter().filter(|answer| !answer.is_right()).take(MISTAKES).cloned().collect(),
        least_certain: answers.iter().rev().take(UNCERTAIN.min(answers.len().div_ceil(2))).cloned().collect(),
        classes: score.per_class.iter().cloned().enumerate().map(|(index, score)| ClassFigures { index, score }).collect(),
        examples: examples(&confusion, &answers),
        confusion,
        confused_pairs: score.confused.clone(),
    };
    Ok(Some((examined, answers)))
}

/// The matrix of the metrics; where they hold none, the part of it between the classes of the most confused pairs.
fn confusion(score: &SplitScore, answers: &[Answer]) -> Vec<ConfusionCell> {
    if let Some(matrix) = &score.confusion {
        let row = |(label, row): (usize, &Vec<usize>)| {
            let cell = |(predicted, &count): (usize, &usize)| ConfusionCell { label, predicted, count };
            row.iter().enumerate().map(cell).filter(|cell| cell.count > 0).collect::<Vec<_>>()
        };
        return matrix.iter().enumerate().flat_map(row).collect();
    }
    let mut among = vec![false; score.per_class.len()];
    score.confused.iter().for_each(|pair| (among[pair.label], among[pair.predicted]) = (true, true));
    cells(answers).into_iter().filter(|cell| among[cell.label] && among[cell.predicted]).collect()
}

/// Images behind the cells, or behind those with the most mistakes where there are too many cells.
fn examples(confusion: &[ConfusionCell], answers: &[Answer]) -> Vec<CellExamples> {
    let (all, least, most) = EXAMPLES;
    let mut shown = confusion.to_vec();
    if shown.len() > CELLS {
        shown.retain(|cell| cell.label != cell.predicted);
        shown.sort_by_key(|cell| std::cmp::Reverse(cell.count));
        shown.truncate(CELLS);
    }
    let each = (all / shown.len().max(1)).clamp(least, most);
    let mut of: BTreeMap<(usize, usize), Vec<&Answer>> =
        shown.iter().map(|cell| ((cell.label, cell.predicted), Vec::new())).collect();
    for answer in answers {
        if let Some(cell) = of.get_mut(&(answer.label, answer.predicted)) {
            cell.push(answer);
        }
    }
    let one = |cell: ConfusionCell| {
        let mut answers = of.remove(&(cell.label, cell.predicted)).unwrap_or_default();
        if cell.label == cell.predicted {
            answers.reverse();
        }
        CellExamples { cell, answers: answers.into_iter().take(each).cloned().collect() }
    };
    shown.into_iter().map(one).collect()
}
