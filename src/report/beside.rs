//! The files that may stand beside the head: its epochs, paths of L2, heads on few images and on single depths, the findings of an audit.
//! A report does without each of them; one that cannot be read is a note.

use std::collections::BTreeMap;
use std::path::Path;

use polars::prelude::*;
use serde::{Deserialize, Serialize};

use super::StoreFacts;
use super::tables::{counts, scan};
use crate::audit::{Curve, KindSummary};
use crate::evaluate::mean_interval;
use crate::head::RidgePoint;
use crate::run::{AUDIT_FINDINGS, Depth, EpochRecord, RunDir};

/// Findings of a kind that are kept and shown.
const SHOWN: usize = 12;

/// Heads on a few images of each class (of `shots.csv`).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ShotFacts {
    /// Images of a class.
    pub shots: usize,
    /// Images in all.
    pub rows: usize,
    /// Heads that were fitted.
    pub repeats: usize,
    /// Their mean accuracy.
    pub accuracy: f64,
    /// Its 95 % interval by Student's t; none for one repeat.
    pub interval: Option<[f64; 2]>,
}

#[derive(Deserialize)]
struct ShotRow {
    shots: usize,
    rows: usize,
    accuracy: f64,
}

/// A kind of finding of `tlpipe audit`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AuditKind {
    /// `leak`, `label_error`, `duplicate`, ….
    pub kind: String,
    /// How many there are.
    pub count: usize,
    /// What to do about them.
    pub suggestion: Option<String>,
    /// Why it was not looked for; none where it was.
    pub skipped: Option<String>,
    /// The strongest, at most 12.
    pub strongest: Vec<AuditRow>,
}

/// One finding (a row of `audit.parquet`).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AuditRow {
    /// 1 is the strongest of its kind.
    pub rank: usize,
    /// How strong it is; what that means depends on the kind.
    pub score: Option<f64>,
    /// The image; none where a finding is of none.
    pub id: Option<String>,
    /// Its split.
    pub split: Option<String>,
    /// The image that it is found with.
    pub other_id: Option<String>,
    /// Its split.
    pub other_split: Option<String>,
    /// What to do about it.
    pub suggestion: Option<String>,
}

/// What `tlpipe audit` found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AuditFacts {
    /// Kinds in the order of `audit.json`.
    pub kinds: Vec<AuditKind>,
    /// Error against the number of training images.
    pub data_curve: Option<Curve>,
}

impl AuditFacts {
    /// How many findings of a kind there are.
    pub fn count(&self, kind: &str) -> usize {
        self.kinds.iter().find(|found| found.kind == kind).map_or(0, |found| found.count)
    }
}

/// What stands beside the head of a run.
#[derive(Clone, Debug, Default)]
pub(super) struct Beside {
    pub(super) history: Vec<EpochRecord>,
    pub(super) l2_path: Vec<RidgePoint>,
    pub(super) shots: Vec<ShotFacts>,
    pub(super) depths: Vec<Depth>,
    pub(super) audit: Option<AuditFacts>,
    pub(super) notes: Vec<String>,
}

impl Beside {
    pub(super) fn read(run: &RunDir, store: &StoreFacts) -> Self {
        let mut notes = Vec::new();
        let history = noted(&mut notes, rows(&run.file("history.csv")), "history.csv", "tlpipe fit-head");
        let l2_path = noted(&mut notes, rows(&run.file("l2_path.csv")), "l2_path.csv", "tlpipe fit-head");
        let shots = noted(&mut notes, rows(&run.file("shots.csv")), "shots.csv", "tlpipe fit-head --shots");
        let depths = noted(&mut notes, rows(&run.file("depths.csv")), "depths.csv", "tlpipe fit-head --depths");
        let audit = noted(&mut notes, audit(run, store), "audit.json or audit.parquet", "tlpipe audit");
        Self { history, l2_path, shots: repeated(shots), depths, audit, notes }
    }
}

fn noted<T: Default>(notes: &mut Vec<String>, read: Result<T, String>, name: &str, command: &str) -> T {
    read.unwrap_or_else(|reason| {
        notes.push(format!("{name} cannot be read and is left out ({reason}); make it again with {command}."));
        T::default()
    })
}

/// Rows of a CSV file; none where there is no file.
fn rows<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Vec<T>, String> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let read = || csv::Reader::from_path(path)?.deserialize().collect::<Result<_, _>>();
    read().map_err(|error| error.to_string())
}

fn repeated(rows: Vec<ShotRow>) -> Vec<ShotFacts> {
    let mut by_shots: BTreeMap<usize, Vec<ShotRow>> = BTreeMap::new();
    for row in rows {
        by_shots.entry(row.shots).or_default().push(row);
    }
    let one = |(shots, rows): (usize, Vec<ShotRow>)| {
        let accuracies: Vec<f64> = rows.iter().map(|row| row.accuracy).collect();
        let (accuracy, interval) = mean_interval(&accuracies);
        let interval = interval.map(|[low, high]| [low.max(0.0), high.min(1.0)]);
        ShotFacts { shots, rows: rows.first().map_or(0, |row| row.rows), repeats: rows.len(), accuracy, interval }
    };
    by_shots.into_iter().map(one).collect()
}

/// The findings of an audit; none where there was none.
fn audit(run: &RunDir, store: &StoreFacts) -> Result<Option<AuditFacts>, String> {
    let table = run.file(AUDIT_FINDINGS);
    let summary = run.audit().map_err(|error| error.to_string())?;
    if summary.is_none() && !table.exists() {
        return Ok(None);
    }
    if let Some(summary) = &summary {
        if summary.store_key != store.key {
            return Err("it is of other features than this run".into());
        }
        if summary.store_digest != store.digest {
            return Err("it is of other images, or the features have changed since".into());
        }
    }
    let mut found = if table.exists() { findings(&table).map_err(|error| error.to_string())? } else { BTreeMap::new() };
    let (listed, data_curve) = summary.map(|summary| (summary.findings, summary.data_curve)).unwrap_or_default();
    let mut kinds = Vec::with_capacity(listed.len());
    for KindSummary { kind, count, suggestion, skipped, .. } in listed {
        let strongest = found.remove(&kind).map(|(_, strongest)| strongest).unwrap_or_default();
        kinds.push(AuditKind { kind, count, suggestion, skipped, strongest });
    }
    kinds.extend(found.into_iter().map(|(kind, (count, strongest))| {
        let suggestion = strongest.first().and_then(|row| row.suggestion.clone());
        AuditKind { kind, count, suggestion, skipped: None, strongest }
    }));
    Ok(Some(AuditFacts { kinds, data_curve }))
}

/// Findings of each kind: how many, and the strongest.
fn findings(path: &Path) -> PolarsResult<BTreeMap<String, (usize, Vec<AuditRow>)>> {
    let frame = scan(path)?;
    let kinds = frame.clone().group_by([col("kind")]).agg([len().cast(DataType::Int64).alias("count")]).collect()?;
    let strongest = frame
        .filter(col("rank").cast(DataType::Int64).lt_eq(lit(SHOWN as i64)))
        .with_columns([col("score").cast(DataType::Float64)])
        .sort(["kind", "rank"], SortMultipleOptions::default())
        .collect()?;
    let mut found: BTreeMap<String, (usize, Vec<AuditRow>)> = BTreeMap::new();
    for (kind, count) in kinds.column("kind")?.str()?.iter().zip(counts(&kinds, "count")?) {
        found.insert(kind.unwrap_or_default().to_owned(), (count, Vec::new()));
    }
    let text = |name: &str| -> PolarsResult<Vec<Option<String>>> {
        Ok(strongest.column(name)?.str()?.iter().map(|text| text.map(str::to_owned)).collect())
    };
    let (kind, id, split, suggestion) = (text("kind")?, text("id")?, text("split")?, text("suggestion")?);
    let (other_id, other_split) = (text("other_id")?, text("other_split")?);
    let (rank, score) = (counts(&strongest, "rank")?, strongest.column("score")?.f64()?);
    for row in 0..strongest.height() {
        let Some((_, rows)) = kind[row].as_ref().and_then(|kind| found.get_mut(kind)) else { continue };
        rows.push(AuditRow {
            rank: rank[row],
            score: score.get(row),
            id: id[row].clone(),
            split: split[row].clone(),
            other_id: other_id[row].clone(),
            other_split: other_split[row].clone(),
            suggestion: suggestion[row].clone(),
        });
    }
    Ok(found)
}
