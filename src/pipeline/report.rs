//! Stage 3 of a pipeline: the run directory, the store's manifest, and the images behind the mistakes.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use super::extract::{StageOutcome, open_dataset};
use super::{Context, Pipeline, PipelineError};
use crate::assets::Search;
use crate::events::Event;
use crate::image;
use crate::report::{self, BackboneFacts, ExtractionFacts, Facts, Inputs, SplitRows, StoreFacts};
use crate::run::{Metrics, RunDir};
use crate::store::{Manifest, Store};

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

/// Writes the report. Unless `always`, a report on the same fit is kept.
///
/// # Errors
/// When the run or the store cannot be read, or the report cannot be written. Images that cannot be found are left out.
pub fn report(pipeline: &Pipeline, context: &Context<'_>, always: bool) -> Result<Reported, PipelineError> {
    let run = RunDir::new(&pipeline.run);
    let metrics = run.metrics()?;
    let (html, json) = (run.file(report::HTML), run.file(report::JSON));
    let whole = || std::fs::read_to_string(&html).is_ok_and(|page| page.trim_end().ends_with("</html>"));
    if !always && whole() && reported_fit(&run).as_deref() == Some(metrics.fit_key.as_str()) {
        return Ok(Reported { outcome: StageOutcome::UpToDate, html, json, facts: None });
    }
    run.prepare()?;
    let store = Store::open(&pipeline.features)?;
    let inputs = Inputs {
        run: &run,
        store: facts(pipeline, store.manifest()),
        images: &|split, ids| images(pipeline, context, split, ids),
        thumbnail: &|bytes, side| image::thumbnail(bytes, side).map_err(|error| error.to_string()),
        timings: timings(store.manifest(), &metrics),
        commands: vec![
            format!("tlpipe extract {}", run.file("pipeline.toml").display()),
            format!("tlpipe fit-head {}", run.file("pipeline.toml").display()),
            format!("tlpipe report {}", run.file("pipeline.toml").display()),
        ],
    };
    let written = report::write(&inputs)?;
    Ok(Reported { outcome: StageOutcome::Ran, html: written.html, json: written.json, facts: Some(written.facts) })
}

/// The fit that the report in a run directory is about.
fn reported_fit(run: &RunDir) -> Option<String> {
    let text = std::fs::read_to_string(run.file(report::JSON)).ok()?;
    let json: serde_json::Value = serde_json::from_str(&text).ok()?;
    Some(json.get("metrics")?.get("fit_key")?.as_str()?.to_owned())
}

fn timings(manifest: &Manifest, metrics: &Metrics) -> Vec<(String, f64)> {
    let mut timings = Vec::new();
    if let Some(extraction) = &manifest.extraction {
        timings.push(("extract".to_owned(), extraction.seconds));
    }
    timings.push(("read features".to_owned(), metrics.load_seconds));
    timings.push(("fit head".to_owned(), metrics.fit_seconds));
    timings
}

fn facts(pipeline: &Pipeline, manifest: &Manifest) -> StoreFacts {
    let parts = &manifest.key_parts;
    let extraction = manifest.extraction.as_ref();
    let text =
        |take: fn(&crate::store::Extraction) -> &str| extraction.map(|figures| take(figures).to_owned()).unwrap_or_default();
    StoreFacts {
        data: super::short_name(&manifest.source.name),
        source: format!("{} ({})", manifest.source.name, manifest.source.kind),
        fingerprint: manifest.source.fingerprint.clone(),
        path: pipeline.features.display().to_string(),
        key: manifest.key.clone(),
        splits: manifest.splits().into_iter().map(|split| SplitRows { rows: manifest.rows(&split), split }).collect(),
        quarantined: manifest.quarantined,
        features: manifest.dimension,
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
            provider: match parts.precision.as_str() {
                "fp32" => figures.provider.clone(),
                precision => format!("{} in {precision}", figures.provider),
            },
            runtime: figures.runtime.clone(),
            threads: figures.threads,
        }),
    }
}

/// The images behind some rows of a split of the source.
fn images(pipeline: &Pipeline, context: &Context<'_>, split: &str, ids: &[String]) -> HashMap<String, Vec<u8>> {
    // Pictures are worth a look on this machine, not a download.
    let search = Search { offline: true, ..context.search.clone() };
    let context = &Context { search, library: None, ..*context };
    let found = open_dataset(&pipeline.settings.data, context)
        .and_then(|dataset| Ok(dataset.images(split, &ids.iter().cloned().collect::<HashSet<_>>())?));
    match found {
        Ok(images) => images.into_iter().map(|(id, bytes)| (id, bytes.to_vec())).collect(),
        Err(error) => {
            (context.observe)(Event::Warned(format!("the report shows no images: {error}")));
            HashMap::new()
        }
    }
}
