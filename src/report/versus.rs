//! Several runs in one page: `compare.html`, and the same facts as data, `compare.json`.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use minijinja::context;
use minijinja::value::{Serde, Value};
use serde::Serialize;
use serde_json::json;

use super::ReportError;
use super::facts::{now, source_split};
use super::inputs::{FindImages, MakeThumbnail};
use super::page::{environment, frame, script_data};
use super::pictures::{Album, Picture, Place};
use super::plots::{COLOURS, Line, Scale, colour, lines};
use super::tables::{Answer, Predictions};
use crate::evaluate::McNemar;
use crate::persist::persist;
use crate::run::{EpochRecord, Metrics, RunDir, RunError};

/// Version of `compare.json`; docs/report.md has its fields.
pub const COMPARE_SCHEMA: u32 = 1;

/// Images that changed, of each kind, that are kept and shown.
const CHANGED: usize = 24;

/// Longest side of a picture, pixels.
const SIDE: u32 = 128;

/// Room for markup around pictures, bytes.
const SLACK: usize = 64 << 10;

/// A run as a line of the table.
#[derive(Clone, Debug, Serialize)]
pub struct ComparedRun {
    /// Its folder.
    pub run: PathBuf,
    /// How its head was fitted.
    pub solver: String,
    /// Width of its features.
    pub features: usize,
    /// Key of its features.
    pub store_key: String,
    /// `test`, or `validation` (the hold-out) where there is no test split; none where neither was scored.
    pub split: Option<String>,
    /// Labelled rows.
    pub rows: Option<usize>,
    /// Accuracy there.
    pub accuracy: Option<f64>,
    /// Its 95 % interval.
    pub accuracy_interval: Option<[f64; 2]>,
    /// Loss there.
    pub loss: Option<f64>,
    /// Calibration error there.
    pub ece: Option<f64>,
    /// Wall time of the fit.
    pub fit_seconds: f64,
}

/// A run against the first one.
#[derive(Clone, Debug, Serialize)]
pub struct Pair {
    /// The first run.
    pub first: PathBuf,
    /// The other.
    pub second: PathBuf,
    /// The split whose rows both answered.
    pub split: String,
    /// The test on them.
    #[serde(flatten)]
    pub test: McNemar,
    /// Images of the split that have another label in the other run; they are left out.
    pub relabelled: usize,
    /// Whether the difference is real at the level of 5 %.
    pub real: bool,
    /// The same in words.
    pub verdict: String,
}

/// Runs beside each other, and each after the first against the first.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// The runs as they were named.
    pub runs: Vec<ComparedRun>,
    /// Each run after the first against the first, where they share images.
    pub pairs: Vec<Pair>,
}

/// An image that two runs answer differently.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Changed {
    /// Row id.
    pub id: String,
    /// Its class.
    pub label: String,
    /// Answer of the first run, and its probability.
    pub first: String,
    /// See `first`.
    pub first_confidence: f64,
    /// Answer of the second run, and its probability.
    pub second: String,
    /// See `second`.
    pub second_confidence: f64,
}

/// Images that changed between two runs, those first whose wrong answer is the most confident; at most 24 of each kind.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Changes {
    /// Right in the first run, wrong in the second.
    pub lost: Vec<Changed>,
    /// Wrong in the first run, right in the second.
    pub won: Vec<Changed>,
    /// Images that both answer wrong, in two ways.
    pub otherwise_wrong: usize,
}

/// The content of `compare.json`.
#[derive(Clone, Debug, Serialize)]
pub struct ComparisonFacts {
    /// [`COMPARE_SCHEMA`].
    pub schema: u32,
    /// Version of tlpipe.
    pub tlpipe: String,
    /// When it was made: UTC, `2026-01-31T12:00:00Z`.
    pub created: String,
    /// Runs and paired tests.
    #[serde(flatten)]
    pub comparison: Comparison,
    /// Images that changed, in the order of the pairs.
    pub changes: Vec<Changes>,
    /// Epochs of each run, in the order of the runs.
    pub histories: Vec<Vec<EpochRecord>>,
    /// What a reader should know about this page itself.
    pub notes: Vec<String>,
}

/// What a comparison is made from.
pub struct CompareInputs<'a> {
    /// The runs and their tests.
    pub comparison: Comparison,
    /// Finds images of one split of the source.
    pub images: &'a FindImages<'a>,
    /// Makes a small PNG or JPEG.
    pub thumbnail: &'a MakeThumbnail<'a>,
    /// Bytes that pictures may bring the page to.
    pub page_bytes: usize,
    /// The page to write; the data go beside it.
    pub html: &'a Path,
}

/// What was written.
#[derive(Debug)]
pub struct WrittenComparison {
    /// The page.
    pub html: PathBuf,
    /// The data.
    pub json: PathBuf,
    /// Its content.
    pub facts: ComparisonFacts,
}

/// Writes a page on several runs.
///
/// # Errors
/// When a run is damaged, or the files cannot be written.
pub fn compare(inputs: CompareInputs) -> Result<WrittenComparison, ReportError> {
    let CompareInputs { comparison, images, thumbnail, page_bytes, html } = inputs;
    let json_path = html.with_extension("json");
    replaceable(html, &json_path)?;
    let of = |run: &ComparedRun| -> Result<(Metrics, Vec<EpochRecord>), ReportError> {
        let dir = RunDir::new(&run.run);
        let history = if dir.file("history.csv").exists() { dir.history()? } else { Vec::new() };
        Ok((dir.metrics()?, history))
    };
    let (metrics, histories): (Vec<_>, Vec<_>) =
        comparison.runs.iter().map(of).collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
    let mut known: HashMap<&Path, &Metrics> = HashMap::new();
    known.extend(comparison.runs.iter().zip(&metrics).map(|(run, metrics)| (run.run.as_path(), metrics)));
    let changes = comparison.pairs.iter().map(|pair| changes(pair, &known)).collect::<Result<Vec<_>, _>>()?;
    let mut facts = ComparisonFacts {
        schema: COMPARE_SCHEMA,
        tlpipe: env!("CARGO_PKG_VERSION").into(),
        created: now(),
        comparison,
        changes,
        histories,
        notes: Vec::new(),
    };
    let places: Vec<Vec<Place>> = facts
        .comparison
        .pairs
        .iter()
        .zip(&facts.changes)
        .map(|(pair, changes)| {
            let split = metrics.first().map_or(pair.split.as_str(), |metrics| source_split(&pair.split, metrics));
            changes.lost.iter().chain(&changes.won).map(|changed| (split.to_owned(), changed.id.clone())).collect()
        })
        .collect();
    let curves = curves(&facts)?;
    let template = environment()?;
    let template = template.get_template("compare.html")?;
    let render = |facts: &ComparisonFacts, pictures: &[Vec<Picture>]| {
        template.render(context! {
            facts => Serde(facts),
            names => names(&facts.comparison),
            curves => curves.iter().map(|(name, svg)| (*name, Value::from_safe_string(svg.clone()))).collect::<Vec<_>>(),
            pictures => Serde(pictures),
            colours => COLOURS,
            json_name => json_path.file_name().unwrap_or_default().to_string_lossy(),
            data => script_data(&json!({ "classes": [], "cells": [], "heat": [], "points": [] })),
            ..frame()
        })
    };
    let blank: Vec<Vec<Picture>> = places.iter().map(|places| vec![Picture::Missing("no picture"); places.len()]).collect();
    let room = page_bytes.saturating_sub(render(&facts, &blank)?.len() + SLACK);
    let wanted = places.iter().flatten().map(|place| (place.clone(), SIDE)).collect();
    let mut album = Album::of(wanted, room, images, thumbnail);
    let pictures: Vec<Vec<Picture>> =
        places.iter().map(|places| places.iter().map(|place| album.picture(place, SIDE)).collect()).collect();
    facts.notes.extend(album.notes("that of the first run", page_bytes));
    let page = render(&facts, &pictures)?;
    let data = serde_json::to_vec_pretty(&facts)
        .map_err(|error| RunError::Damaged { path: json_path.clone(), reason: error.to_string() })?;
    for (path, content) in [(html, page.as_bytes()), (&json_path, &data)] {
        persist(path, |file| file.write_all(content)).map_err(|source| RunError::Io { path: path.to_path_buf(), source })?;
    }
    Ok(WrittenComparison { html: html.to_path_buf(), json: json_path, facts })
}

/// Whether both files are missing or those of an earlier comparison: what stands beside the page tells.
fn replaceable(html: &Path, json: &Path) -> Result<(), ReportError> {
    let ours = || {
        let found: serde_json::Value = serde_json::from_slice(&std::fs::read(json).ok()?).ok()?;
        found.get("schema").and(found.get("changes")).map(|_| ())
    };
    match [json, html].into_iter().find(|path| path.exists()) {
        Some(path) if ours().is_none() => Err(ReportError::NotOurs { path: path.to_path_buf() }),
        _ => Ok(()),
    }
}

/// What runs are called on the page: their folders, without what all have in common.
fn names(comparison: &Comparison) -> Vec<String> {
    let paths: Vec<String> = comparison.runs.iter().map(|run| run.run.display().to_string()).collect();
    let folder = |path: &String| path.trim_end_matches('/').rsplit_once('/').map_or(0, |(folder, _)| folder.len() + 1);
    let Some(first) = paths.first() else { return paths };
    let common = first[..folder(first)].to_owned();
    if paths.iter().all(|path| path.starts_with(&common)) {
        return paths.iter().map(|path| path[common.len()..].to_owned()).collect();
    }
    paths
}

/// Curves of all runs over each other: on the hold-out, where every run that has epochs has one.
fn curves(facts: &ComparisonFacts) -> Result<Vec<(&'static str, String)>, ReportError> {
    type Of = fn(&EpochRecord) -> Option<f64>;
    let stepwise = || facts.histories.iter().enumerate().filter(|(_, history)| history.len() > 1);
    let held_out = stepwise().all(|(_, history)| history.iter().any(|epoch| epoch.val_loss.is_some()));
    let (loss, accuracy): ((&str, Of), (&str, Of)) = if held_out {
        (("Hold-out loss", |epoch| epoch.val_loss), ("Hold-out accuracy", |epoch| epoch.val_accuracy))
    } else {
        (("Training loss", |epoch| Some(epoch.loss)), ("Training accuracy", |epoch| Some(epoch.accuracy)))
    };
    let mut drawn = Vec::new();
    for ((name, value), scale) in [(loss, Scale::Plain), (accuracy, Scale::Percent)] {
        let line = |(run, history): (usize, &Vec<EpochRecord>)| Line {
            points: history.iter().filter_map(|epoch| Some((epoch.epoch as f64, value(epoch)?))).collect(),
            colour: colour(run),
            marked: false,
        };
        let of_runs: Vec<Line> = stepwise().map(line).collect();
        drawn.extend(lines(name, &of_runs, Scale::Whole, scale)?.map(|svg| (name, svg)));
    }
    Ok(drawn)
}

/// The images that two runs answer differently.
fn changes(pair: &Pair, known: &HashMap<&Path, &Metrics>) -> Result<Changes, ReportError> {
    let classes = |run: &Path| known.get(run).map_or(&[][..], |metrics| &metrics.classes);
    let (first_classes, second_classes) = (classes(&pair.first), classes(&pair.second));
    let answers = |run: &Path, classes: &[String]| {
        Predictions::open(&RunDir::new(run).file("predictions.parquet"), classes.len())?.answers(&pair.split)
    };
    let second: HashMap<String, Answer> =
        answers(&pair.second, second_classes)?.into_iter().map(|answer| (answer.id.clone(), answer)).collect();
    let mut changes = Changes { lost: Vec::new(), won: Vec::new(), otherwise_wrong: 0 };
    for first in answers(&pair.first, first_classes)? {
        let Some(second) = second.get(&first.id) else { continue };
        let name = |classes: &[String], class: usize| classes.get(class).cloned().unwrap_or_default();
        let label = name(first_classes, first.label);
        // Relabelled since: neither answer can be held against the other.
        if label != name(second_classes, second.label) {
            continue;
        }
        let changed = || Changed {
            id: first.id.clone(),
            label: label.clone(),
            first: name(first_classes, first.predicted),
            first_confidence: first.confidence,
            second: name(second_classes, second.predicted),
            second_confidence: second.confidence,
        };
        match (first.is_right(), second.is_right()) {
            (true, false) => changes.lost.push(changed()),
            (false, true) => changes.won.push(changed()),
            (false, false) if name(first_classes, first.predicted) != name(second_classes, second.predicted) => {
                changes.otherwise_wrong += 1;
            }
            _ => {}
        }
    }
    changes.lost.sort_by(|a, b| b.second_confidence.total_cmp(&a.second_confidence));
    changes.won.sort_by(|a, b| b.first_confidence.total_cmp(&a.first_confidence));
    changes.lost.truncate(CHANGED);
    changes.won.truncate(CHANGED);
    Ok(changes)
}
