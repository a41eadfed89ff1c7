//! Stage 3 of a pipeline: the run directory, the store's manifest and features, and the images behind the answers.

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::extract::{StageOutcome, open_dataset};
use super::settings::DataSettings;
use super::uncached::is_passing;
use super::{Context, Pipeline, PipelineError, Settings, quoted};
use crate::assets::Search;
use crate::dataset::Dataset;
use crate::image;
use crate::report::{
    self, BackboneFacts, CompareInputs, ExtractionFacts, Facts, Inputs, QuarantinedImage, REPORT_SCHEMA, SplitRows, StageTime,
    StoreFacts, Timing, WrittenComparison,
};
use crate::run::{FEATURES, Metrics, QUARANTINE, RunDir};
use crate::store::{Manifest, Place, Quarantined, Store, StoreError, quarantine};

/// Images of the quarantine that a report names.
const QUARANTINED: usize = 200;

/// What a report is to hold.
#[derive(Clone, Copy, Debug)]
pub struct ReportOptions {
    /// Whether one is made where there is one on the same fit.
    pub always: bool,
    /// Whether it has a map of the embeddings, for which features are read.
    pub map: bool,
    /// Bytes that pictures may bring the page to.
    pub page_bytes: usize,
}

impl Default for ReportOptions {
    fn default() -> Self {
        Self { always: true, map: true, page_bytes: report::PAGE_BYTES }
    }
}

/// What stage 3 leaves.
#[derive(Clone, Debug)]
pub struct Reported {
    /// Whether it ran.
    pub outcome: StageOutcome,
    /// The page.
    pub html: PathBuf,
    /// The data.
    pub json: PathBuf,
    /// The content of `report.json`; none where nothing was made.
    pub facts: Option<Facts>,
}

/// Writes the report.
///
/// # Errors
/// When the run or the store cannot be read, or the report cannot be written. Images that cannot be found are left out.
pub fn report(pipeline: &Pipeline, context: &Context<'_>, options: &ReportOptions) -> Result<Reported, PipelineError> {
    let run = RunDir::new(&pipeline.run);
    let metrics = run.metrics()?;
    let (html, json) = (run.file(report::HTML), run.file(report::JSON));
    let whole = || std::fs::read_to_string(&html).is_ok_and(|page| page.trim_end().ends_with("</html>"));
    if !options.always && whole() && reported_fit(&run).as_deref() == Some(metrics.fit_key.as_str()) {
        return Ok(Reported { outcome: StageOutcome::UpToDate, html, json, facts: None });
    }
    run.prepare()?;
    let known = Known::of(pipeline, &run)?;
    let recorded = quoted(&run.file("pipeline.toml"));
    let stages: &[&str] = if pipeline.settings.output.keeps_features() { &["extract", "fit-head", "report"] } else { &["run"] };
    let source = Source::new(&pipeline.settings.data, context, "tlpipe report --data SOURCE");
    let features = |split: &str, ids: &[String]| match &known.store {
        Some(store) => features(store, split, ids),
        None => Err("the run keeps no features (output.cache = false)".to_owned()),
    };
    let inputs = Inputs {
        run: &run,
        store: known.facts(),
        images: &|split, ids| source.images(split, ids),
        thumbnail: &|bytes, side| image::thumbnail(bytes, side).map_err(|error| error.to_string()),
        features: options.map.then_some(&features),
        page_bytes: options.page_bytes,
        seed: pipeline.settings.head.seed,
        timings: timings(&known.manifest, &metrics),
        commands: stages.iter().map(|stage| format!("tlpipe {stage} {recorded}")).collect(),
    };
    let written = report::write(&inputs)?;
    Ok(Reported { outcome: StageOutcome::Ran, html: written.html, json: written.json, facts: Some(written.facts) })
}

/// Writes a page on several runs. Images are those of the source that the first run names.
///
/// # Errors
/// As [`super::compare`], and when the page cannot be written.
pub fn report_compared(
    folders: &[PathBuf],
    html: &Path,
    context: &Context<'_>,
    page_bytes: usize,
) -> Result<WrittenComparison, PipelineError> {
    let comparison = super::compare(folders, context)?;
    let recorded = folders.first().map(|folder| RunDir::new(folder).file("pipeline.toml")).filter(|file| file.is_file());
    let data = recorded.map(|file| Settings::load(Some(&file), &[])).transpose()?.unwrap_or_default().data;
    let source = Source::new(&data, context, "the pipeline.toml of the first run");
    Ok(report::compare(CompareInputs {
        comparison,
        images: &|split, ids| source.images(split, ids),
        thumbnail: &|bytes, side| image::thumbnail(bytes, side).map_err(|error| error.to_string()),
        page_bytes,
        html,
    })?)
}

/// The fit that the report in a run directory is about; none where it is of another version.
fn reported_fit(run: &RunDir) -> Option<String> {
    let text = std::fs::read_to_string(run.file(report::JSON)).ok()?;
    let json: serde_json::Value = serde_json::from_str(&text).ok()?;
    // One of another version holds less, or other things.
    if json.get("schema")?.as_u64()? != u64::from(REPORT_SCHEMA) {
        return None;
    }
    Some(json.get("metrics")?.get("fit_key")?.as_str()?.to_owned())
}

fn timings(manifest: &Manifest, metrics: &Metrics) -> Vec<Timing> {
    let mut timings = Vec::new();
    let mut add = |stage: &str, seconds, images| timings.push(Timing { stage: stage.to_owned(), seconds, images });
    if let Some(extraction) = &manifest.extraction {
        add("extract", extraction.seconds, Some(extraction.new));
    }
    let rows = manifest.splits().iter().map(|split| manifest.rows(split)).sum();
    add("read features", metrics.load_seconds, (metrics.load_seconds > 0.0).then_some(rows));
    // Each epoch of adam sees each image once; what another solver does of an image says nothing.
    let seen = (metrics.solver == "adam").then_some(metrics.split.train * metrics.epochs);
    add("fit head", metrics.fit_seconds, seen);
    timings
}

/// Features `[ids, D]` of some images of a split, as the head reads them.
fn features(store: &Store, split: &str, ids: &[String]) -> Result<ndarray::Array2<f32>, String> {
    let read = || -> Result<Option<ndarray::Array2<f32>>, StoreError> {
        let places: HashMap<String, Place> = store.describe(&[split])?.into_iter().map(|(place, row)| (row.id, place)).collect();
        let places: Option<Vec<Place>> = ids.iter().map(|id| places.get(id).copied()).collect();
        places.map(|places| store.embeddings(&places)).transpose()
    };
    match read() {
        Ok(Some(features)) => Ok(features),
        Ok(None) => Err("the feature store lacks images that the run has predictions for".into()),
        Err(error) => Err(error.to_string()),
    }
}

/// What is known of the features.
struct Known {
    manifest: Manifest,
    /// The first images that could not be used.
    quarantine: Vec<Quarantined>,
    /// The folder that has the others.
    folder: PathBuf,
    /// The features themselves; none where they were not kept.
    store: Option<Store>,
}

impl Known {
    /// By the feature store; by the run, where it is one that keeps no features.
    fn of(pipeline: &Pipeline, run: &RunDir) -> Result<Self, PipelineError> {
        match pipeline.open_store() {
            Ok(store) => {
                let manifest = store.manifest().clone();
                let quarantine = if manifest.quarantined > 0 { store.quarantine()? } else { Vec::new() };
                let folder = if is_passing(&pipeline.features) { run.path() } else { &pipeline.features };
                Ok(Self { manifest, quarantine, folder: folder.to_owned(), store: Some(store) })
            }
            Err(PipelineError::Uncached { .. }) if run.file(FEATURES).is_file() => {
                let manifest = Manifest::read_as(run.path(), FEATURES)?;
                let quarantine = if manifest.quarantined > 0 { quarantine::read(&run.file(QUARANTINE))? } else { Vec::new() };
                Ok(Self { manifest, quarantine, folder: run.path().to_owned(), store: None })
            }
            Err(error) => Err(error),
        }
    }

    fn facts(&self) -> StoreFacts {
        let manifest = &self.manifest;
        let parts = &manifest.key_parts;
        let extraction = manifest.extraction.as_ref();
        let text =
            |take: fn(&crate::store::Extraction) -> &str| extraction.map(|figures| take(figures).to_owned()).unwrap_or_default();
        let quarantine = self.quarantine.iter().take(QUARANTINED).cloned();
        StoreFacts {
            data: super::short_name(&manifest.source.name),
            source: format!("{} ({})", manifest.source.name, manifest.source.kind),
            fingerprint: manifest.source.fingerprint.clone(),
            path: self.folder.display().to_string(),
            key: manifest.key.clone(),
            digest: manifest.digest(),
            splits: manifest.splits().into_iter().map(|split| SplitRows { rows: manifest.rows(&split), split }).collect(),
            quarantined: manifest.quarantined,
            quarantine: quarantine.map(|row| QuarantinedImage { id: row.id, split: row.split, error: row.error }).collect(),
            features: manifest.dimension,
            tensors: manifest.segments.len().max(1),
            views: parts.views.clone(),
            backbone: BackboneFacts {
                name: text(|figures| &figures.model),
                sha256: text(|figures| &figures.model_sha256),
                cut: match manifest.depths() {
                    Some(depths) => format!("{} ({depths})", parts.cut.last().map_or("", String::as_str)),
                    None => parts.cut.join(", "),
                },
                input_size: parts.input_size,
                preprocessing: format!("{} · {}", parts.resize, parts.preprocessing),
            },
            extraction: extraction.map(|figures| ExtractionFacts {
                seconds: figures.seconds,
                images_per_second: figures.images_per_second,
                images: figures.new,
                provider: match parts.precision.as_str() {
                    "fp32" => figures.provider.clone(),
                    precision => format!("{} in {precision}", figures.provider),
                },
                runtime: figures.runtime.clone(),
                threads: figures.threads,
                stages: stages(&figures.stages),
            }),
        }
    }
}

/// Where the time of the threads went; nothing where that was not recorded.
fn stages(seconds: &crate::store::StageSeconds) -> Vec<StageTime> {
    let named = [
        ("read", seconds.read),
        ("decode", seconds.decode),
        ("resize", seconds.resize),
        ("normalize", seconds.normalize),
        ("infer", seconds.infer),
        ("write", seconds.write),
        ("wait", seconds.wait),
    ];
    let any = named.iter().any(|(_, seconds)| *seconds > 0.0);
    let stages = named.map(|(stage, seconds)| StageTime { stage: stage.to_owned(), seconds });
    if any { stages.to_vec() } else { Vec::new() }
}

/// The source of images, opened when the first are asked for.
struct Source<'a> {
    data: &'a DataSettings,
    context: &'a Context<'a>,
    /// Where a source can be named.
    name_in: &'static str,
    opened: OnceCell<Result<Dataset, String>>,
}

impl<'a> Source<'a> {
    fn new(data: &'a DataSettings, context: &'a Context<'a>, name_in: &'static str) -> Self {
        Self { data, context, name_in, opened: OnceCell::new() }
    }

    fn open(&self) -> Result<Dataset, String> {
        if self.data.source.is_none() {
            return Err(format!(
                "There are no pictures: this run does not know where its images are; name them by {}.",
                self.name_in
            ));
        }
        // Pictures are worth a look on this machine, not a download.
        let search = Search { offline: true, ..self.context.search.clone() };
        let context = &Context { search, library: None, ..*self.context };
        open_dataset(self.data, context).map_err(|error| format!("There are no pictures: {error}"))
    }

    /// The images behind some rows of a split.
    fn images(&self, split: &str, ids: &[String]) -> Result<HashMap<String, Vec<u8>>, String> {
        let dataset = self.opened.get_or_init(|| self.open()).as_ref().map_err(Clone::clone)?;
        let images = dataset.images(split, &ids.iter().cloned().collect::<HashSet<_>>());
        let images = images.map_err(|error| format!("There are no pictures of {split}: {error}"))?;
        Ok(images.into_iter().map(|(id, bytes)| (id, bytes.to_vec())).collect())
    }
}
