//! Stage 1 of a pipeline.

use std::path::{Path, PathBuf};

use super::{BackboneSettings, Context, DataSettings, Interrupted, Pipeline, PipelineError, RuntimeSettings};
use crate::assets::{Finder, Located};
use crate::dataset::{Dataset, SourceOptions, synth};
use crate::events::Event;
use crate::extract::{self, Backbone, Bench, Effort, Ended, Network, Plan, Slice, extract as run_engine};
use crate::image::{ImageSpec, Views};
use crate::run::RunDir;
use crate::runtime::{Compute, Runtime, cores, locate};
use crate::store::{Dtype, Manifest, SourceRecord, StoreError, slices_in};

/// Whether a stage had anything to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageOutcome {
    /// It ran.
    Ran,
    /// Nothing had changed.
    UpToDate,
}

/// What stage 1 leaves.
#[derive(Clone, Debug)]
pub struct Extracted {
    /// Whether it ran.
    pub outcome: StageOutcome,
    /// The store.
    pub manifest: Manifest,
    /// Its folder.
    pub features: PathBuf,
}

/// What the features are for: what stands in the way of a later stage is said before the first one has cost anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// The features themselves.
    Features,
    /// The features of one slice of the images, beside those of others.
    Slice(Slice),
    /// A head is fitted on them: there must be labels, and a place for the run.
    Head,
}

/// Opens the images that a pipeline names.
///
/// # Errors
/// When none is named, or they cannot be found or read.
pub fn open_dataset(data: &DataSettings, context: &Context<'_>) -> Result<Dataset, PipelineError> {
    let source = data.source.as_deref().ok_or(PipelineError::NoSource)?;
    let paths = if source == synth::NAME {
        vec![drawn(&context.search.cache)?]
    } else {
        Finder::new(context.search.clone())?.dataset(source, context.observe)?.paths
    };
    let options = SourceOptions {
        image_column: data.image_column.clone(),
        label_column: data.label_column.clone(),
        split_column: data.split_column.clone(),
    };
    Ok(Dataset::open_cached(&paths, &options, Some(&context.search.cache))?)
}

/// Opens the backbone that settings name: its file, the network without its top, and how an image becomes its input.
///
/// # Errors
/// When it cannot be found or used, or not for images of this size.
pub(super) fn open_backbone(
    settings: &BackboneSettings,
    context: &Context<'_>,
) -> Result<(Located, Backbone, ImageSpec), PipelineError> {
    let located = Finder::new(context.search.clone())?.model(&settings.model, context.observe)?;
    let backbone = Backbone::load(&located, settings.cut.as_deref(), &settings.layers, settings.pixels)?;
    let spec = ImageSpec {
        side: settings.input_size.unwrap_or_else(|| backbone.native_side()),
        resize: settings.resize,
        pixels: backbone.pixels().clone(),
        views: settings.views.clone(),
    };
    backbone.check_side(spec.side)?;
    Ok((located, backbone, spec))
}

/// Starts ONNX Runtime for a backbone, and says what was assumed of it.
///
/// # Errors
/// When ONNX Runtime cannot be used.
pub(super) fn start_network<'b>(
    backbone: &'b Backbone,
    spec: ImageSpec,
    settings: &RuntimeSettings,
    context: &Context<'_>,
) -> Result<(Runtime, Network<'b>), PipelineError> {
    for warning in backbone.assumptions().iter().chain(&backbone.warning_at(spec.side)) {
        (context.observe)(Event::Warned(warning.clone()));
    }
    let compute = settings.compute()?;
    let runtime = Runtime::start(&locate(&context.runtime_options(compute), context.observe)?)?;
    let threads = if settings.threads == 0 { cores() } else { settings.threads };
    Ok((runtime, Network { backbone, spec, compute, threads, batch: settings.batch }))
}

/// What stage 1 works with, opened and checked.
pub(super) struct Stage {
    pub(super) dataset: Dataset,
    pub(super) backbone: Backbone,
    spec: ImageSpec,
    source: SourceRecord,
    dtype: Dtype,
    compute: Compute,
    features: PathBuf,
    slice: Option<Slice>,
}

impl Stage {
    pub(super) fn open(pipeline: &Pipeline, context: &Context<'_>, goal: Goal) -> Result<Self, PipelineError> {
        let settings = &pipeline.settings;
        let compute = settings.runtime.compute()?;
        let dataset = open_dataset(&settings.data, context)?;
        let (mut features, mut slice) = (pipeline.features.clone(), None);
        match goal {
            Goal::Features => {}
            Goal::Slice(part) => {
                if Manifest::read(&features).is_ok() {
                    return Err(StoreError::Whole(features).into());
                }
                if let Some(of) = slices_in(&features)?.filter(|&of| of != part.of()) {
                    let reason = format!("slices of {of} are here, and this is one of {}", part.of());
                    return Err(StoreError::Slices { dir: features, reason }.into());
                }
                (features, slice) = (part.folder(&features), Some(part));
            }
            Goal::Head => {
                trainable(&dataset, settings.data.source.as_deref().unwrap_or_default())?;
                RunDir::new(&pipeline.run).prepare()?;
            }
        }
        let (_, backbone, spec) = open_backbone(&settings.backbone, context)?;
        let source = SourceRecord {
            name: settings.data.source.clone().unwrap_or_default(),
            kind: dataset.name().to_owned(),
            fingerprint: dataset.fingerprint(),
            sorted_by_class: dataset.sorted_by_class(),
        };
        Ok(Self { dataset, backbone, spec, source, dtype: settings.output.dtype, compute, features, slice })
    }

    /// Starts ONNX Runtime, and says what is about to be run.
    pub(super) fn start(
        &self,
        pipeline: &Pipeline,
        context: &Context<'_>,
        what: &str,
    ) -> Result<(Runtime, Plan<'_>), PipelineError> {
        for warning in self.dataset.warnings() {
            (context.observe)(Event::Warned(warning.clone()));
        }
        let (settings, spec) = (&pipeline.settings.runtime, self.spec.clone());
        let (runtime, network) = start_network(&self.backbone, spec, settings, context)?;
        let threads = network.threads;
        (context.observe)(Event::Noted(format!(
            "{what:<9} {} · {} {} · {} px{} · {}, ONNX Runtime {}, {threads} thread{}",
            self.source.name,
            self.backbone.name(),
            self.backbone.reads(),
            self.spec.side,
            said(&self.spec.views),
            self.compute,
            runtime.version(),
            if threads == 1 { "" } else { "s" },
        )));
        let plan = Plan {
            dataset: &self.dataset,
            source: self.source.clone(),
            network,
            dtype: self.dtype,
            features: self.features.clone(),
            quarantine: self.features.join("quarantine.parquet"),
            rebuild: false,
            slice: self.slice,
            repeated: None,
        };
        Ok((runtime, plan))
    }

    /// The store as it is, where it already holds what is asked for.
    fn up_to_date(&self) -> Option<Manifest> {
        // Where the manifest cannot be read, the writer says why.
        let manifest = Manifest::read(&self.features).ok()?;
        // `auto` takes what it gets, so it is content with what there is.
        let class = &manifest.key_parts.provider;
        let current = manifest.complete
            && self.compute.accepts(class)
            && manifest.key_parts == self.backbone.key_parts(&self.spec, self.dtype, class, self.compute.precision())
            && manifest.source == self.source
            && manifest.classes == self.dataset.classes()
            && !manifest.shards.is_empty()
            && manifest.shards_present(&self.features);
        current.then_some(manifest)
    }
}

/// ` · 2 views (identity, hflip)`; nothing where each image is seen once.
fn said(views: &Views) -> String {
    if views.len() == 1 { String::new() } else { format!(" · {} views ({})", views.len(), views.names().join(", ")) }
}

/// Brings the feature store up to date for a goal; with `rebuild`, makes it anew whatever is there.
///
/// # Errors
/// When the images, the backbone, ONNX Runtime or the store cannot be used, or the user stopped it.
pub fn extract(pipeline: &Pipeline, context: &Context<'_>, rebuild: bool, goal: Goal) -> Result<Extracted, PipelineError> {
    let stage = Stage::open(pipeline, context, goal)?;
    if !rebuild && let Some(manifest) = stage.up_to_date() {
        return Ok(Extracted { outcome: StageOutcome::UpToDate, manifest, features: stage.features });
    }
    let (runtime, plan) = stage.start(pipeline, context, "extract")?;
    let plan = Plan { rebuild, ..plan };
    match context.stoppable(|| run_engine(&plan, &runtime, context.observe, context.stop))? {
        Ended::Finished(manifest) => Ok(Extracted { outcome: StageOutcome::Ran, manifest: *manifest, features: plan.features }),
        Ended::Interrupted { done, total } => {
            Err(Interrupted(format!("stopped after {done} of {total} images; they are kept, go on with the same command")).into())
        }
    }
}

/// Measures stage 1 against what this machine can do; the pipeline's own store is left alone.
///
/// # Errors
/// When the images, the backbone or ONNX Runtime cannot be used.
pub fn bench(pipeline: &Pipeline, context: &Context<'_>, effort: Effort) -> Result<Bench, PipelineError> {
    let stage = Stage::open(pipeline, context, Goal::Features)?;
    let (runtime, plan) = stage.start(pipeline, context, "bench")?;
    Ok(extract::bench(&plan, &runtime, effort, context.observe)?)
}

/// Refuses images that no head can be fitted on.
pub(super) fn trainable(dataset: &Dataset, source: &str) -> Result<(), PipelineError> {
    let no = |reason: String| Err(PipelineError::NotTrainable { source_name: source.to_owned(), reason });
    let Some(train) = dataset.splits().iter().find(|split| &*split.name == "train") else {
        let found = dataset.splits().iter().map(|split| &*split.name).collect::<Vec<_>>().join(", ");
        return no(format!(
            "no images to train on: there is no split `train` (splits found: {found}); name the folder, file or rows `train`, or \
             choose the column with --split-column"
        ));
    };
    let mut present = dataset.classes().iter().zip(&train.per_class).filter(|(_, rows)| **rows > 0);
    match (present.next(), present.next()) {
        (None, _) => no(format!(
            "none of the {} images of train has a label, and a head needs labels: put the images of each class in a folder of its \
             own, or choose the column with --label-column (tlpipe extract makes features without labels)",
            train.rows
        )),
        (Some((class, _)), None) => no(format!(
            "all labelled images of train are of class {class:?}, and a classifier needs two: add images of another class"
        )),
        _ => Ok(()),
    }
}

/// The quickstart's images, drawn into the cache unless they are there. A folder appears whole or not at all.
fn drawn(cache: &Path) -> Result<PathBuf, PipelineError> {
    let params = synth::SynthParams::default();
    let folder = cache.join("data").join(params.name());
    if folder.is_dir() {
        return Ok(folder);
    }
    let parent = cache.join("data");
    let io = |source| PipelineError::Cache { path: folder.clone(), source };
    std::fs::create_dir_all(&parent).map_err(io)?;
    let scratch = tempfile::tempdir_in(&parent).map_err(io)?;
    synth::write(&params, scratch.path())?;
    match std::fs::rename(scratch.path(), &folder) {
        // Another process was quicker; what it drew is the same.
        Err(error) if !folder.is_dir() => Err(io(error)),
        _ => Ok(folder),
    }
}
