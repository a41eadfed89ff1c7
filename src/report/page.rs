//! The page: facts, plots and pictures put into the template.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{AutoEscape, Environment, UndefinedBehavior, context};
use serde::Serialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::beside::{AuditKind, AuditRow};
use super::facts::{ClassFigures, Examined, Facts, source_split};
use super::pictures::{Album, Picture, Place, Stock};
use super::plots::{FIRST, Line, SECOND, Scale, Spot, heat_map, histogram, lines, on_map, reliability, scatter};
use super::tables::Answer;
use super::{Inputs, JSON, ReportError, data_curve, words};
use crate::head::RidgePoint;
use crate::run::EpochRecord;

/// What numbers in JSON and markup around pictures may take beyond the page without them, bytes.
const SLACK: usize = 128 << 10;

/// Longest sides of pictures, pixels: in galleries, behind cells, on the map.
const GALLERY_SIDE: u32 = 128;
const CELL_SIDE: u32 = 96;
const MAP_SIDE: u32 = 48;

/// Classes up to which the confusion matrix is a table of all counts.
const TABLE_CLASSES: usize = 20;

/// Classes of the table where there are more: those that are confused most.
const PART_CLASSES: usize = 16;

/// Classes up to which all of it is drawn as a heat map.
const HEAT_MAP_CLASSES: usize = 100;

/// Epochs that are written out at most.
const SHOWN_EPOCHS: usize = 100;

/// What is drawn, as SVG.
struct Plots {
    loss: Option<String>,
    accuracy: Option<String>,
    l2: Vec<(&'static str, String)>,
    heat_map: Option<String>,
    reliability: Option<String>,
    histogram: Option<String>,
    map: Option<String>,
    data_curve: Option<data_curve::Drawn>,
}

/// Renders the page. Adds to the notes of the facts what could not be shown.
pub(super) fn render(facts: &mut Facts, inputs: &Inputs) -> Result<String, ReportError> {
    let environment = environment()?;
    let template = environment.get_template("report.html")?;
    let plots = Plots::of(facts)?;
    let close = facts.examined.as_ref().map(Close::of);
    let step = facts.history.len().div_ceil(SHOWN_EPOCHS).max(1);
    let mut epochs: Vec<EpochRecord> = facts.history.iter().rev().step_by(step).cloned().collect();
    epochs.reverse();
    let headline = facts.headline().map(|(split, _)| Value::from(Serde(split)));
    let top_columns: BTreeSet<_> = facts.splits.iter().flat_map(|split| &split.top).map(|top| top.k).filter(|&k| k > 1).collect();
    let keys = facts.metrics.sweep.iter().flat_map(|sweep| &sweep.trials).flat_map(|trial| trial.settings.keys());
    let sweep_keys: BTreeSet<String> = keys.cloned().collect();
    let left_out = facts.l2_path.iter().any(|point| point.holdout_accuracy.is_some());
    let safe = |svg: &Option<String>| svg.clone().map(Value::from_safe_string);
    let page = |pictures: &Pictures, facts: &Facts| {
        template.render(context! {
            facts => Serde(facts),
            headline => headline.clone(),
            curves => !facts.history.is_empty() || !plots.l2.is_empty(),
            loss => safe(&plots.loss),
            accuracy => safe(&plots.accuracy),
            has_holdout => facts.history.iter().any(|epoch| epoch.val_loss.is_some()),
            l2_plots => plots.l2.iter().map(|(name, svg)| (*name, Value::from_safe_string(svg.clone()))).collect::<Vec<_>>(),
            l2_what => if left_out { "hold-out" } else { "each row left out in turn" },
            heat_map => safe(&plots.heat_map),
            reliability => safe(&plots.reliability),
            histogram => safe(&plots.histogram),
            map => safe(&plots.map),
            data_curve => plots.data_curve.as_ref().map(data_curve::Drawn::value),
            top_columns => &top_columns,
            sweep_keys => &sweep_keys,
            epochs => Serde(&epochs),
            close => Serde(&close),
            galleries => Serde(&pictures.galleries),
            audited => Serde(&pictures.audited),
            audit_command => facts.commands.iter().find_map(|command| {
                Some(format!("tlpipe audit {}", command.strip_prefix("tlpipe report ")?))
            }).unwrap_or_else(|| "tlpipe audit".into()),
            json_name => JSON,
            data => script_data(&pictures.data),
            ..frame()
        })
    };
    let bare = page(&Pictures::of(facts, &mut Album::of(Vec::new(), 0, inputs.images, inputs.thumbnail)), facts)?.len();
    let room = inputs.page_bytes.saturating_sub(bare + SLACK);
    let mut album = Album::of(wanted(facts), room, inputs.images, inputs.thumbnail);
    let pictures = Pictures::of(facts, &mut album);
    let mut noted = facts.clone();
    noted.notes.extend(album.notes(&facts.store.source, inputs.page_bytes));
    let html = page(&pictures, &noted)?;
    *facts = noted;
    Ok(html)
}

impl Plots {
    fn of(facts: &Facts) -> Result<Self, ReportError> {
        let history = &facts.history;
        let drawn = |training: fn(&EpochRecord) -> f64, hold_out: fn(&EpochRecord) -> Option<f64>, label, scale| {
            // One point is no curve.
            if history.len() < 2 {
                return Ok(None);
            }
            let epoch = |record: &EpochRecord| record.epoch as f64;
            let training = history.iter().map(|record| (epoch(record), training(record))).collect();
            let hold_out = history.iter().filter_map(|record| Some((epoch(record), hold_out(record)?))).collect();
            let training = Line { points: training, colour: FIRST, marked: false };
            lines(label, &[training, Line { points: hold_out, colour: SECOND, marked: true }], Scale::Whole, scale)
        };
        let look = facts.examined.as_ref().filter(|look| look.classes.len() > TABLE_CLASSES);
        let heat = look.filter(|look| look.classes.len() <= HEAT_MAP_CLASSES);
        let heat = heat.map(|look| heat_map("Confusion matrix as a heat map", look.classes.len(), &look.confusion));
        let bins = facts.headline().map(|(_, score)| &score.calibration.bins);
        let spots = facts.map.as_ref().map(|map| {
            let spot = |point: &super::MapPoint| Spot {
                place: point.tsne.unwrap_or(point.pca),
                class: point.label,
                right: point.label == point.predicted,
            };
            map.points.iter().map(spot).collect::<Vec<_>>()
        });
        Ok(Self {
            loss: drawn(|record| record.loss, |record| record.val_loss, "Loss by epoch", Scale::Plain)?,
            accuracy: drawn(|record| record.accuracy, |record| record.val_accuracy, "Accuracy by epoch", Scale::Percent)?,
            l2: l2_plots(facts)?,
            heat_map: heat.transpose()?,
            reliability: bins.map(|bins| reliability("Accuracy by confidence", bins)).transpose()?,
            histogram: bins.map(|bins| histogram("Images by confidence", bins)).transpose()?,
            map: spots.map(|spots| scatter("Map of the embeddings", &spots)).transpose()?,
            data_curve: facts
                .audit
                .as_ref()
                .and_then(|audit| audit.data_curve.as_ref())
                .map(data_curve::draw)
                .transpose()?
                .flatten(),
        })
    }
}

/// Error and accuracy over the strengths of L2; the one that was chosen is marked.
fn l2_plots(facts: &Facts) -> Result<Vec<(&'static str, String)>, ReportError> {
    type Of = fn(&RidgePoint) -> Option<f64>;
    let figures: [(&str, Of, Scale); 2] = [
        ("Squared error", |point| point.holdout_error.or(point.leave_one_out_error), Scale::Plain),
        ("Accuracy", |point| point.holdout_accuracy.or(point.leave_one_out_accuracy), Scale::Percent),
    ];
    let mut drawn = Vec::new();
    if facts.l2_path.len() < 2 {
        return Ok(drawn);
    }
    let chosen = |point: &&RidgePoint| (point.l2 / facts.fit.l2 - 1.0).abs() < 1e-6;
    for (name, of, scale) in figures {
        let place = |point: &RidgePoint| Some((point.l2.log10(), of(point)?));
        let path = || facts.l2_path.iter().filter(|point| point.l2 > 0.0);
        let of_path = [
            Line { points: path().filter_map(place).collect(), colour: SECOND, marked: true },
            Line { points: path().filter(chosen).filter_map(place).collect(), colour: FIRST, marked: true },
        ];
        drawn.extend(lines(name, &of_path, Scale::Power, scale)?.map(|svg| (name, svg)));
    }
    Ok(drawn)
}

/// A table of the confusion matrix.
#[derive(Serialize)]
struct Matrix {
    /// Class indices of rows and columns.
    classes: Vec<usize>,
    /// Counts by label, then answer.
    rows: Vec<Vec<usize>>,
    /// Whether it is of some classes only.
    part: bool,
}

/// What the template needs of the close look beyond the facts themselves.
#[derive(Serialize)]
struct Close<'a> {
    matrix: Matrix,
    /// Classes, the weakest first.
    weakest: Vec<&'a ClassFigures>,
}

impl<'a> Close<'a> {
    fn of(examined: &'a Examined) -> Self {
        let all = examined.classes.len();
        let mut classes: Vec<usize> = (0..all).collect();
        if all > TABLE_CLASSES {
            classes.clear();
            for class in examined.confused_pairs.iter().flat_map(|pair| [pair.label, pair.predicted]) {
                if classes.len() < PART_CLASSES && !classes.contains(&class) {
                    classes.push(class);
                }
            }
            classes.sort_unstable();
        }
        let place: BTreeMap<usize, usize> = classes.iter().enumerate().map(|(place, &class)| (class, place)).collect();
        let mut rows = vec![vec![0; classes.len()]; classes.len()];
        for cell in &examined.confusion {
            if let (Some(&row), Some(&column)) = (place.get(&cell.label), place.get(&cell.predicted)) {
                rows[row][column] = cell.count;
            }
        }
        let mut weakest: Vec<&ClassFigures> = examined.classes.iter().collect();
        // Classes without a figure last.
        let f1 = |class: &ClassFigures| class.score.f1.unwrap_or(2.0);
        weakest.sort_by(|a, b| f1(a).total_cmp(&f1(b)).then(a.index.cmp(&b.index)));
        Self { matrix: Matrix { part: classes.len() < all, classes, rows }, weakest }
    }
}

/// Places of the answers in the source, and of the findings of the audit.
fn places<'a>(facts: &'a Facts, answers: &'a [Answer]) -> impl Iterator<Item = Place> + 'a {
    let split = facts.examined.as_ref().map_or("", |look| source_split(&look.split, &facts.metrics));
    answers.iter().map(move |answer| (split.to_owned(), answer.id.clone()))
}

fn ends(row: &AuditRow) -> [Option<Place>; 2] {
    let place = |split: &Option<String>, id: &Option<String>| split.clone().zip(id.clone());
    [place(&row.split, &row.id), place(&row.other_split, &row.other_id)]
}

/// Every picture that the page could show.
fn wanted(facts: &Facts) -> Vec<(Place, u32)> {
    let mut wanted = Vec::new();
    let findings = facts.audit.iter().flat_map(|audit| &audit.kinds).flat_map(|kind| &kind.strongest);
    wanted.extend(findings.flat_map(ends).flatten().map(|place| (place, GALLERY_SIDE)));
    if let Some(look) = &facts.examined {
        for answers in [&look.worst_mistakes, &look.least_certain] {
            wanted.extend(places(facts, answers).map(|place| (place, GALLERY_SIDE)));
        }
        for cell in &look.examples {
            wanted.extend(places(facts, &cell.answers).map(|place| (place, CELL_SIDE)));
        }
        let split = source_split(&look.split, &facts.metrics);
        let points = facts.map.iter().flat_map(|map| &map.points);
        wanted.extend(points.map(|point| ((split.to_owned(), point.id.clone()), MAP_SIDE)));
    }
    wanted
}

/// Pictures of a kind of finding.
#[derive(Serialize)]
struct Audited<'a> {
    kind: &'a str,
    count: usize,
    /// Whether a finding is of two images.
    pairs: bool,
    rows: Vec<AuditedRow<'a>>,
}

#[derive(Serialize)]
struct AuditedRow<'a> {
    #[serde(flatten)]
    row: &'a AuditRow,
    picture: Option<Picture>,
    other: Option<Picture>,
}

impl<'a> Audited<'a> {
    fn of(kind: &'a AuditKind, album: &mut Album) -> Option<Self> {
        let rows: Vec<AuditedRow> = kind
            .strongest
            .iter()
            .filter(|row| row.id.is_some() && row.split.is_some())
            .map(|row| {
                let [picture, other] = ends(row).map(|place| place.map(|place| album.picture(&place, GALLERY_SIDE)));
                AuditedRow { row, picture, other }
            })
            .collect();
        let pairs = rows.iter().any(|row| row.other.is_some());
        (!rows.is_empty()).then_some(Self { kind: &kind.kind, count: kind.count, pairs, rows })
    }
}

#[derive(Serialize)]
struct Galleries {
    mistakes: Vec<Picture>,
    uncertain: Vec<Picture>,
}

/// The pictures of a page and the data of its script.
struct Pictures<'a> {
    galleries: Galleries,
    audited: Vec<Audited<'a>>,
    data: serde_json::Value,
}

impl<'a> Pictures<'a> {
    /// As far as the album has room: first the galleries, then the audit, the cells (one image of each after the other), the map.
    fn of(facts: &'a Facts, album: &mut Album) -> Self {
        let look = facts.examined.as_ref();
        let mut gallery = |answers: fn(&Examined) -> &[Answer]| -> Vec<Picture> {
            let answers = look.map_or(&[][..], answers);
            places(facts, answers).map(|place| album.picture(&place, GALLERY_SIDE)).collect()
        };
        let mistakes = gallery(|look| &look.worst_mistakes);
        let galleries = Galleries { mistakes, uncertain: gallery(|look| &look.least_certain) };
        let kinds = facts.audit.iter().flat_map(|audit| &audit.kinds);
        let audited = kinds.filter_map(|kind| Audited::of(kind, album)).collect();
        let mut stock = Stock::default();
        let examples = look.map_or(&[][..], |look| &look.examples);
        let deepest = examples.iter().map(|cell| cell.answers.len()).max().unwrap_or(0);
        for depth in 0..deepest {
            for cell in examples {
                for place in places(facts, cell.answers.get(depth..=depth).unwrap_or_default()) {
                    album.put(&mut stock, &place, CELL_SIDE);
                }
            }
        }
        let cells: Vec<_> = examples
            .iter()
            .map(|cell| {
                let item = |(answer, place): (&Answer, Place)| {
                    json!([answer.id, rounded(answer.confidence), stock.find(&place, CELL_SIDE)])
                };
                let items: Vec<_> = cell.answers.iter().zip(places(facts, &cell.answers)).map(item).collect();
                let of = look.and_then(|look| look.classes.get(cell.cell.label)).map_or(0, |class| class.score.rows);
                json!({ "l": cell.cell.label, "p": cell.cell.predicted, "n": cell.cell.count, "of": of, "items": items })
            })
            .collect();
        let heat = look.filter(|look| (TABLE_CLASSES + 1..=HEAT_MAP_CLASSES).contains(&look.classes.len()));
        let heat: Vec<_> =
            heat.iter().flat_map(|look| &look.confusion).map(|cell| (cell.label, cell.predicted, cell.count)).collect();
        let points = points(facts, album, &mut stock);
        let data = json!({
            "classes": facts.metrics.classes,
            "cells": cells,
            "heat": heat,
            "points": points,
            "pictures": stock,
        });
        Self { galleries, audited, data }
    }
}

/// The points of the map for the script.
fn points(facts: &Facts, album: &mut Album, stock: &mut Stock) -> Vec<serde_json::Value> {
    let (Some(map), Some(look)) = (&facts.map, &facts.examined) else { return Vec::new() };
    let split = source_split(&look.split, &facts.metrics);
    let components = on_map(map.points.iter().map(|point| point.pca));
    let point = |(point, (x, y)): (&super::MapPoint, (i32, i32))| {
        let place = (split.to_owned(), point.id.clone());
        // A picture that a cell has already is not needed twice.
        let picture = stock.find(&place, CELL_SIDE).or_else(|| album.put(stock, &place, MAP_SIDE));
        json!([point.label, point.predicted, rounded(point.confidence), picture, point.id, x, y])
    };
    map.points.iter().zip(components).map(point).collect()
}

fn rounded(share: f64) -> f64 {
    (share * 1e4).round() / 1e4
}

/// JSON that may stand in a page: nothing in it ends the element that holds it.
pub(super) fn script_data(data: &serde_json::Value) -> Value {
    let text = data.to_string().replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026");
    Value::from_safe_string(text)
}

/// What every page has: style, script, and the hash by which the browser lets the script run.
pub(super) fn frame() -> Value {
    const STYLE: &str = include_str!("page/style.css");
    const SCRIPT: &str = include_str!("page/script.js");
    context! {
        style => Value::from_safe_string(STYLE.into()),
        script => Value::from_safe_string(SCRIPT.into()),
        script_hash => Value::from_safe_string(STANDARD.encode(Sha256::digest(SCRIPT.as_bytes()))),
    }
}

/// The templates and what they write numbers with.
pub(super) fn environment() -> Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    words::add_to(&mut environment);
    for (name, source) in [
        ("frame.html", include_str!("page/frame.html")),
        ("parts.html", include_str!("page/parts.html")),
        ("report.html", include_str!("page/report.html")),
        ("compare.html", include_str!("page/compare.html")),
    ] {
        environment.add_template(name, source)?;
    }
    Ok(environment)
}
