//! What is wrong with the images of a pipeline: it opens the feature store and writes to the run directory, nothing else.

use std::path::PathBuf;
use std::time::Instant;

use ndarray::{Array2, Axis};

use super::fit::{named, warn_of_missing};
use super::streamed::fits;
use super::{Context, Interrupted, Pipeline, PipelineError, data_curve};
use crate::audit::{self, Finding, Found, Image, Images, Seconds, Summary, Thresholds};
use crate::events::{Event, Unit};
use crate::head::Nearest;
use crate::run::{AUDIT, AUDIT_FINDINGS, DATA_CURVE, RunDir};
use crate::store::Store;

/// Shorter side of an image, as a share of the network's input, below which it is far too small.
const SMALL: f64 = 0.5;
/// Images to train on that a class should have.
pub(super) const FEW: usize = 20;
/// How many times as many images the largest class may have as the smallest.
pub(super) const IMBALANCE: f64 = 10.0;

/// What an audit is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AuditPlan {
    /// Share of the local scale below which two images are near duplicates; none: what the features give.
    pub near: Option<f64>,
    /// Whether the error against the number of training images is measured too.
    pub data_curve: bool,
}

/// What an audit leaves.
#[derive(Clone, Debug)]
pub struct Audited {
    /// Content of `audit.json`.
    pub summary: Summary,
    /// Where the findings are.
    pub findings: PathBuf,
    /// Where the summary is.
    pub json: PathBuf,
}

/// Audits the images of a feature store and writes `audit.parquet`, `audit.json` and, if it is asked for, `data_curve.csv` to the run.
/// No head is needed, and none is changed.
///
/// # Errors
/// When the features do not fit in memory or cannot be read, a label is no class, the run cannot be written, or the user stopped it.
pub fn audit(pipeline: &Pipeline, context: &Context<'_>, plan: AuditPlan) -> Result<Audited, PipelineError> {
    let started = Instant::now();
    let params = &pipeline.settings.head;
    let store = pipeline.open_store()?;
    let run = RunDir::new(&pipeline.run);
    run.prepare()?;
    warn_of_missing(&store, pipeline, context);
    let manifest = store.manifest();
    let all: usize = manifest.shards.iter().map(|shard| shard.rows).sum();
    (context.observe)(Event::Noted(format!(
        "audit     {all} images x {} features · {}",
        manifest.dimension,
        pipeline.features.display()
    )));
    let bytes = all as u64 * (manifest.dimension * size_of::<f32>()) as u64;
    fits(bytes, params, "an audit", "")?;
    let loaded = Loaded::read(&store)?;
    let load = started.elapsed().as_secs_f64();

    let (loaded, mut bad) = loaded.without_bad();
    let images = loaded.images(&manifest.classes);
    let nearest_started = Instant::now();
    let nearest = neighbours(&images, context)?;
    let neighbours = nearest_started.elapsed().as_secs_f64();

    let labels_started = Instant::now();
    let labels = labels(&images, &nearest)?;
    let labels_seconds = labels_started.elapsed().as_secs_f64();

    let rest_started = Instant::now();
    let near = plan.near.unwrap_or_else(|| audit::near_line(&nearest, images.rows.len()));
    let duplicates = audit::duplicates(&images, &nearest, near);
    let outliers = audit::outliers(&nearest, images.rows.len());
    let input_size = manifest.key_parts.input_size;
    let mut findings: Vec<Finding> = [duplicates.leaks, duplicates.exact, duplicates.near, duplicates.conflicts].concat();
    findings.extend(labels.as_ref().map(|labels| labels.findings.clone()).unwrap_or_default());
    findings.extend(outliers.findings);
    // The rows that are no numbers stand behind the others.
    let whole = loaded.with_bad(&bad);
    findings.extend(audit::small(&whole, input_size, SMALL));
    bad.findings.iter_mut().enumerate().for_each(|(place, finding)| finding.row = images.rows.len() + place);
    findings.extend(bad.findings);
    let thresholds = Thresholds {
        near,
        scale_neighbour: audit::SCALE_NEIGHBOUR,
        outlier: outliers.fence,
        small: SMALL,
        few: FEW,
        imbalance: IMBALANCE,
    };
    let whole = Images { rows: &whole, ..images };
    let found = Found {
        images: &whole,
        findings: &findings,
        exact_leaks: duplicates.exact_leaks,
        labels,
        classes: audit::balance(&whole, FEW, IMBALANCE),
        features: audit::feature_use(images.x.reborrow()),
        thresholds,
        input_size,
    };
    let mut summary = found.summarize();
    let rest = rest_started.elapsed().as_secs_f64();

    summary.store_key = manifest.key.clone();
    summary.store_digest = manifest.digest();
    let all = started.elapsed().as_secs_f64();
    summary.seconds = Seconds { load, neighbours, labels: labels_seconds, rest, data_curve: 0.0, all };
    let encoded = audit::to_parquet(&whole, &findings);
    let encoded = encoded.map_err(|source| PipelineError::Findings { path: run.file(AUDIT_FINDINGS), source })?;
    run.write_audit(&summary, &encoded)?;
    if plan.data_curve {
        let curve_started = Instant::now();
        let measured = data_curve::measure(&images, params, context);
        let (curve, table) = measured.inspect_err(|_| {
            let kept = format!("there is no data curve; everything else of the audit is kept in {}", run.file(AUDIT).display());
            (context.observe)(Event::Warned(kept));
        })?;
        run.write_table(DATA_CURVE, &table)?;
        summary.data_curve = Some(curve);
        summary.seconds.data_curve = curve_started.elapsed().as_secs_f64();
        summary.seconds.all = started.elapsed().as_secs_f64();
        run.write_summary(&summary)?;
    }
    Ok(Audited { summary, findings: run.file(AUDIT_FINDINGS), json: run.file(AUDIT) })
}

/// Every image of a store with its features.
struct Loaded {
    rows: Vec<Image>,
    x: Array2<f32>,
    /// The one that trains first.
    splits: Vec<String>,
}

/// Images whose features are no numbers.
struct Bad {
    rows: Vec<Image>,
    findings: Vec<Finding>,
}

impl Loaded {
    fn read(store: &Store) -> Result<Self, PipelineError> {
        let mut splits = store.manifest().splits();
        let place = |name: &String| ["train", "validation", "test"].iter().position(|known| known == name).unwrap_or(usize::MAX);
        splits.sort_by_key(place);
        let names: Vec<&str> = splits.iter().map(String::as_str).collect();
        let features = store.load(&names)?;
        let classes = store.manifest().classes.len();
        let mut rows = Vec::with_capacity(features.ids.len());
        for (split, name) in names.iter().enumerate() {
            for (_, row) in store.describe(&[name])? {
                let label = row.label.map(|label| {
                    let class = usize::try_from(label).ok().filter(|&class| class < classes);
                    class.ok_or_else(|| PipelineError::BadLabel { id: row.id.clone(), label, classes })
                });
                let label = label.transpose()?;
                let crate::store::Row { id, content_hash, width, height, .. } = row;
                rows.push(Image { id, split, label, content_hash, width, height });
            }
        }
        Ok(Self { rows, x: features.embeddings, splits })
    }

    /// Takes out the images whose features are no numbers: nothing can be computed of them.
    fn without_bad(mut self) -> (Self, Bad) {
        let findings = audit::not_finite(self.x.view());
        if findings.is_empty() {
            return (self, Bad { rows: Vec::new(), findings });
        }
        let rows = findings.iter().map(|finding| self.rows[finding.row].clone()).collect();
        let mut is_bad = vec![false; self.rows.len()];
        findings.iter().for_each(|finding| is_bad[finding.row] = true);
        let fine: Vec<usize> = (0..is_bad.len()).filter(|&row| !is_bad[row]).collect();
        self.x = self.x.select(Axis(0), &fine);
        self.rows = fine.into_iter().map(|row| self.rows[row].clone()).collect();
        (self, Bad { rows, findings })
    }

    /// All images, those that were taken out last.
    fn with_bad(&self, bad: &Bad) -> Vec<Image> {
        self.rows.iter().chain(&bad.rows).cloned().collect()
    }

    fn images<'a>(&'a self, classes: &'a [String]) -> Images<'a> {
        Images { rows: &self.rows, x: self.x.view(), splits: &self.splits, classes }
    }
}

fn neighbours(images: &Images<'_>, context: &Context<'_>) -> Result<Nearest, PipelineError> {
    const TASK: &str = "neighbours";
    (context.observe)(Event::Started { task: TASK, total: Some(images.rows.len() as u64), unit: Unit::Images });
    let mut advance = |done: usize| {
        (context.observe)(Event::Advanced { task: TASK, done: done as u64 });
        context.flow()
    };
    let nearest = context.stoppable(|| crate::head::nearest_among(images.x.reborrow(), audit::VOTERS, &mut advance));
    (context.observe)(Event::Finished { task: TASK });
    Ok(nearest.ok_or_else(|| Interrupted("stopped; nothing was written".into()))?)
}

/// Label errors, or why they are not looked for.
fn labels(images: &Images<'_>, nearest: &Nearest) -> Result<Result<audit::LabelErrors, String>, PipelineError> {
    let mut classes: Vec<usize> = images.rows.iter().filter_map(|image| image.label).collect();
    classes.sort_unstable();
    classes.dedup();
    match classes[..] {
        [] => Ok(Err("no image has a label".into())),
        [class] => Ok(Err(format!("every labelled image is of class {}", images.classes[class]))),
        _ => {
            let ids: Vec<String> = images.rows.iter().map(|image| image.id.clone()).collect();
            audit::label_errors(images, nearest).map(Ok).map_err(|error| named(error, &ids))
        }
    }
}

#[cfg(test)]
mod tests;
