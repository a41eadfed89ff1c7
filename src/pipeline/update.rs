//! Bringing a ridge head up to date with its feature store: from its statistics and the rows that changed.

use std::collections::HashMap;
use std::time::Instant;

use super::extract::StageOutcome;
use super::fit::{Fit, Labelled, divide, fit_key, fitting_splits, warn_of_missing};
use super::outcome::{Kept, Outcome, PREDICTIONS, trained_rows};
use super::scoring::{Scoring, all};
use super::{Context, Pipeline, PipelineError};
use crate::events::Event;
use crate::head::{self, Change, HeadParams, Origin, ScaleBy, Statistics};
use crate::run::{Metrics, RunDir, SplitRecord, TrainedRows, UpdateRecord};
use crate::store::{Place, Row, SplitFeatures, Store};

/// A row to be added or taken out, and its class.
type Changed = (Place, usize);

/// Brings the head of a run up to date: images that came, went or have another label since the fit change its statistics, and the
/// head that follows is, to rounding, the one that a fit on all rows with the same L2 gives. Only those rows are read, and those
/// that are scored; all of them where nothing is held out to find the logit scale by, or where the features of a row that went are
/// gone too.
///
/// # Errors
/// When the run has no statistics, was made of other features or with other settings, or a file cannot be used.
pub fn update(pipeline: &Pipeline, context: &Context<'_>) -> Result<Fit, PipelineError> {
    let refused = |reason: String| PipelineError::Settings { origin: "--update".into(), reason };
    let run = RunDir::new(&pipeline.run);
    let _lock = run.lock()?;
    let metrics = run.metrics()?;
    if metrics.solver != "ridge" {
        let reason =
            format!("the head in {} was fitted by {}; only that of ridge can be updated", run.path().display(), metrics.solver);
        return Err(refused(format!("{reason}: fit it with --solver ridge first")));
    }
    let params: HeadParams = serde_json::from_value(metrics.head.clone())
        .map_err(|error| refused(format!("{}: {error}; fit the head again without --update", run.path().display())))?;
    // How much memory a fit may take says nothing of the head.
    let asked = HeadParams { memory: params.memory, ..pipeline.settings.head.clone() };
    if metrics.sweep.is_none() && params != asked {
        let now = serde_json::to_value(&asked).unwrap_or_default();
        let then = metrics.head.as_object().into_iter().flatten();
        let other =
            then.filter(|(key, value)| now.get(key.as_str()) != Some(value)).map(|(key, value)| format!("head.{key} = {value}"));
        let reason = format!("an update keeps the settings of the run, and has {}", other.collect::<Vec<_>>().join(", "));
        return Err(refused(format!("{reason}; use tlpipe fit-head {} --update, or fit without --update", run.path().display())));
    }
    for name in [Statistics::FILE, TrainedRows::FILE] {
        if !run.file(name).is_file() {
            let remedy = if params.budget.is_some() || params.augments() {
                "a head with a budget of features, or of each view, keeps none; fit it again without --update"
            } else {
                "fit the head again without --update (more than 4,096 features: with head.keep_statistics = true)"
            };
            return Err(refused(format!("{} is missing; {remedy}", run.file(name).display())));
        }
    }
    let store = pipeline.open_store()?;
    warn_of_missing(&store, pipeline, context);
    let (mut statistics, origin) = Statistics::load(&run.file(Statistics::FILE))?;
    let manifest = store.manifest();
    if origin.store_key != manifest.key || origin.classes != metrics.classes {
        let reason = format!("the head in {} is of other features than {}", run.path().display(), pipeline.features.display());
        return Err(refused(format!("{reason}; fit it on these without --update")));
    }
    let trained = TrainedRows::load(&run.file(TrainedRows::FILE))?;
    let counted = |class: usize| trained.labels.iter().filter(|&&label| usize::try_from(label) == Ok(class)).count() as u64;
    if statistics.rows().iter().enumerate().any(|(class, &rows)| rows != counted(class)) {
        let files = format!("{} and {}", run.file(Statistics::FILE).display(), TrainedRows::FILE);
        return Err(refused(format!("{files} are not of the same rows; fit the head again without --update")));
    }

    let started = Instant::now();
    let splits = fitting_splits(&store, params.split);
    let described = store.describe(&splits)?;
    let ids: Vec<String> = described.iter().map(|(_, row)| row.id.clone()).collect();
    let labels: Vec<Option<i32>> = described.iter().map(|(_, row)| row.label).collect();
    let first = if splits.len() > 1 { manifest.rows("train") } else { ids.len() };
    let division = divide(Labelled::of(&store), &params, &ids, &labels, first..ids.len())?;
    division.warnings.iter().for_each(|warning| (context.observe)(Event::Warned(warning.clone())));
    let (mut train, mut holdout) = (division.train, division.holdout);
    if metrics.sweep.is_some() || params.refit == Some(true) {
        // The last fit was on all of them.
        let text = "the head was fitted on all rows, those held out too: it has no hold-out to be scored on, and its logits are scaled by \
                    rows left out";
        (context.observe)(Event::Noted(format!("fit-head  {text}")));
        train.append(&mut holdout);
        train.sort_unstable();
    }
    let classes = &manifest.classes;
    let Changes { gone, came, record } = changes(&store, &described, &train, &trained, &origin)?;
    // Of every row, where that is needed.
    let everything = || -> Result<(SplitFeatures, Vec<usize>), PipelineError> {
        let features = some_rows(&store, &described, &train)?;
        let classes =
            features.labels.iter().map(|label| label.and_then(|label| usize::try_from(label).ok()).unwrap_or(usize::MAX));
        let classes = classes.collect();
        Ok((features, classes))
    };
    let removed = gone.map(|gone| -> Result<(), PipelineError> { apply(&mut statistics, &store, Change::Remove, &gone) });
    if matches!(removed, Some(Ok(()))) {
        let left =
            |class| refused(format!("class {class} has rows in the statistics and is no longer there; fit without --update"));
        statistics.reorder(&origin.classes, classes).map_err(left)?;
        apply(&mut statistics, &store, Change::Add, &came)?;
    } else {
        let text = "the features of images that went are gone too: the statistics are taken anew of all rows";
        (context.observe)(Event::Noted(format!("fit-head  {text}")));
        let (features, of_rows) = everything()?;
        statistics = Statistics::new(features.embeddings.view(), &of_rows, classes.len())?;
    }
    let held = some_rows(&store, &described, &holdout)?;
    let (head, logit_scale) = if holdout.is_empty() {
        let (features, of_rows) = everything()?;
        head::ridge_head(&statistics, classes, origin.l2, ScaleBy::LeftOut(features.embeddings.view(), &of_rows))?
    } else {
        head::ridge_head(&statistics, classes, origin.l2, ScaleBy::HeldOut(held.embeddings.view(), &held.labels))?
    };
    let head = head.with_store(&manifest.key_parts, store.transform());
    let fit_seconds = started.elapsed().as_secs_f64();
    (context.observe)(Event::Noted(format!(
        "fit-head  updated: of the images it is fitted on {} came, {} went, {} have another label · {} train, {} hold-out",
        record.added,
        record.removed,
        record.relabelled,
        train.len(),
        holdout.len()
    )));

    let mut scoring = Scoring::begin(&run, PREDICTIONS, classes)?;
    let validation = scoring.head(&head, "validation", &held, &all(&held))?;
    let test = match manifest.splits().iter().any(|split| split == "test") {
        true => {
            let test = store.load(&["test"])?;
            scoring.head(&head, "test", &test, &all(&test))?
        }
        false => None,
    };
    let settings = serde_json::to_value(&pipeline.settings.head).unwrap_or_default();
    let metrics = Metrics {
        fit_key: format!("update-{}", fit_key(&store, &settings)),
        epochs: 1,
        fit_seconds,
        load_seconds: 0.0,
        classes: classes.clone(),
        split: SplitRecord { train: train.len(), holdout: holdout.len(), ..metrics.split },
        train: None,
        temperature: scoring.temperature,
        update: Some(record),
        baselines: Vec::new(),
        validation,
        test,
        ..metrics
    };
    // That of the fit from which the statistics come.
    let history = run.history()?;
    let rows = trained_rows(&described, &train);
    let origin = Origin { classes: classes.clone(), store_key: manifest.key.clone(), l2: origin.l2, logit_scale };
    let kept = Some(Kept { statistics: Some(&statistics), rows, origin, path: &[], left_out: None });
    let mut resolved = pipeline.clone();
    resolved.settings.head = params;
    Outcome { head: &head, history: &history, predictions: scoring.predictions, metrics: &metrics, kept, passing: None }
        .write(&run, &resolved)?;
    Ok(Fit { outcome: StageOutcome::Ran, metrics, loaded: None })
}

fn apply(statistics: &mut Statistics, store: &Store, change: Change, rows: &[Changed]) -> Result<(), PipelineError> {
    let places: Vec<Place> = rows.iter().map(|(place, _)| *place).collect();
    let classes: Vec<usize> = rows.iter().map(|(_, class)| *class).collect();
    Ok(statistics.update(change, store.embeddings(&places)?.view(), &classes)?)
}

/// What changed since the statistics were taken.
struct Changes {
    /// With their classes of then; none where the features of one are not kept.
    gone: Option<Vec<Changed>>,
    /// With their classes of now.
    came: Vec<Changed>,
    record: UpdateRecord,
}

/// Compares the rows of the statistics with those that train now.
fn changes(
    store: &Store,
    described: &[(Place, Row)],
    train: &[usize],
    trained: &TrainedRows,
    origin: &Origin,
) -> Result<Changes, PipelineError> {
    let classes = &store.manifest().classes;
    let name = |classes: &[String], label: i32| usize::try_from(label).ok().and_then(|label| classes.get(label).cloned());
    // Where they are damaged, they are as good as gone.
    let kept = store.describe_removed().unwrap_or_default();
    let mut old: HashMap<&str, usize> = trained.ids.iter().enumerate().map(|(row, id)| (id.as_str(), row)).collect();
    let (mut gone, mut came, mut record) = (Vec::new(), Vec::new(), UpdateRecord::default());
    // Rows of the statistics that have to be taken out, by id and content.
    let mut wanted: HashMap<(&str, &str), usize> = HashMap::new();
    for &row in train {
        let (place, now) = &described[row];
        let Some(label) = now.label.and_then(|label| usize::try_from(label).ok()) else { continue };
        match old.remove(now.id.as_str()) {
            Some(then) if trained.content_hashes[then] == now.content_hash => {
                if name(&origin.classes, trained.labels[then]).as_ref() != classes.get(label) {
                    wanted.insert((&now.id, &now.content_hash), then);
                    came.push((*place, label));
                    record.relabelled += 1;
                }
            }
            Some(then) => {
                wanted.insert((&now.id, &trained.content_hashes[then]), then);
                came.push((*place, label));
                record.added += 1;
                record.removed += 1;
            }
            None => {
                came.push((*place, label));
                record.added += 1;
            }
        }
    }
    record.removed += old.len();
    wanted.extend(old.into_values().map(|then| ((trained.ids[then].as_str(), trained.content_hashes[then].as_str()), then)));
    for (place, row) in described.iter().chain(&kept) {
        if let Some(then) = wanted.remove(&(row.id.as_str(), row.content_hash.as_str())) {
            gone.push((*place, usize::try_from(trained.labels[then]).unwrap_or(usize::MAX)));
        }
    }
    Ok(Changes { gone: wanted.is_empty().then_some(gone), came, record })
}

fn some_rows(store: &Store, described: &[(Place, Row)], rows: &[usize]) -> Result<SplitFeatures, PipelineError> {
    let places: Vec<Place> = rows.iter().map(|&row| described[row].0).collect();
    Ok(SplitFeatures {
        ids: rows.iter().map(|&row| described[row].1.id.clone()).collect(),
        labels: rows.iter().map(|&row| described[row].1.label).collect(),
        embeddings: store.embeddings(&places)?,
    })
}
