//! A fitted head with its backbone as one ONNX file, compared with the answers that were scored before it is written.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::made::Made;
use super::scored::Scored;
use super::{Context, DataSettings, Pipeline, PipelineError, open_dataset};
use crate::dataset::Dataset;
use crate::deploy::{
    self, Beside, Bound, Card, Columns, Comparison, DeployError, Deployed, InputKind, MergeOptions, Metadata, MetricsRecord,
    Parity, Parts, Provenance, StoreKey,
};
use crate::extract::cut_segments;
use crate::head::Head;
use crate::image::ImageSpec;
use crate::onnx::{self, Model};
use crate::persist::persist;
use crate::run::{Metrics, RunDir};
use crate::runtime::{Compute, Runtime, locate};
use crate::store::{Dtype, KeyParts, Segment, Transform};

/// Images that the ranges of activations are taken from.
const CALIBRATION: usize = 128;

/// Numbers that a model's weights are stored as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightType {
    /// As they are.
    #[default]
    Fp32,
    /// In half the room; the arithmetic stays that of float32.
    Fp16,
    /// Convolutions in integers, calibrated on images to train on: a quarter of the room, and quicker where the processor has instructions
    /// for them.
    Int8,
}

const FP16: &str = "fp16";
const INT8: &str = "int8";

impl WeightType {
    /// As [`Provenance::precision`] says it.
    fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Fp16 => FP16,
            Self::Int8 => INT8,
        }
    }
}

/// On what a model is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompareOn {
    /// So many images of those that were scored, evenly spaced.
    Some(usize),
    /// All of them.
    All,
    /// Nothing; the card says so.
    None,
}

/// How a head is exported.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// The file; none is `classifier.onnx` in the run.
    pub out: Option<PathBuf>,
    /// What it takes.
    pub input: InputKind,
    /// Version of the standard operators.
    pub opset: Option<i64>,
    /// What weights are stored as.
    pub weights: WeightType,
    /// Whether logits are divided by the temperature of the hold-out.
    pub calibrated: bool,
    /// On what it is compared.
    pub compare: CompareOn,
    /// Where the images are, where that is not what the pipeline says.
    pub data: Option<String>,
}

/// What was written.
#[derive(Clone, Debug)]
pub struct Exported {
    /// The model.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// The card beside it.
    pub card: PathBuf,
    /// The list of classes beside it.
    pub labels: PathBuf,
    /// Version of the standard operators.
    pub opset: i64,
    /// What it says of itself.
    pub metadata: Metadata,
    /// Tensors of the backbone that the head does not use, and that are not computed.
    pub left_out: usize,
}

/// Exports the head of a pipeline's run.
///
/// # Errors
/// When the run, its head, the backbone or the images cannot be used or do not belong together, the variant cannot be made, the model
/// does not give the answers that were scored, or a file cannot be written.
pub fn export(pipeline: &Pipeline, context: &Context<'_>, options: &ExportOptions) -> Result<Exported, PipelineError> {
    let run = RunDir::new(&pipeline.run);
    let out = options.out.clone().unwrap_or_else(|| run.file("classifier.onnx"));
    let Beside { card: card_path, labels } = check_place(&out)?;
    let metrics = run.metrics()?;
    let head = Head::load(&run.file("head.safetensors"))?;
    let made = Made::find(pipeline, context, &head)?;
    if made.backbone.file().is_file() && super::same_folder(made.backbone.file(), &out) {
        let reason = format!("{}: this is the backbone itself; name another file", out.display());
        return Err(PipelineError::Settings { origin: "-o".into(), reason });
    }
    let (model, metadata, parts) = build(&made, &head, &metrics, context, options)?;
    let (model, metadata) = prove(pipeline, context, options, &out, (model, metadata), &parts, &made)?;
    let bytes = model.to_bytes();
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let sha256 = crate::assets::sha256_of(&bytes);
    let card = Card {
        file: &name(&out),
        labels: &name(&labels),
        bytes: bytes.len() as u64,
        sha256: &sha256,
        opset: model.opset(),
        metadata: &metadata,
        metrics: &metrics,
    };
    let card_text = card.markdown()?;
    write(&out, &bytes)?;
    write(&labels, deploy::label_lines(&metadata.classes).as_bytes())?;
    write(&card_path, card_text.as_bytes())?;
    let left_out = made.backbone.segments().len() - parts.segments.len();
    Ok(Exported { path: out, bytes: bytes.len() as u64, card: card_path, labels, opset: model.opset(), metadata, left_out })
}

fn write(path: &Path, content: &[u8]) -> Result<(), DeployError> {
    persist(path, |file| file.write_all(content)).map_err(|source| DeployError::Write { path: path.to_owned(), source })
}

/// Where the card and the list of classes go; that the folder can be written is said before the work.
fn check_place(out: &Path) -> Result<Beside, DeployError> {
    let unwritable = |source| DeployError::Write { path: out.to_owned(), source };
    if out.is_dir() {
        return Err(unwritable(std::io::Error::other("it is a folder; name a file in it")));
    }
    let is_model = || Model::read(out).ok().and_then(|model| Metadata::read(&model).ok().flatten()).is_some();
    if std::fs::metadata(out).is_ok_and(|found| found.len() > 0) && !is_model() {
        return Err(DeployError::InTheWay(out.to_owned()));
    }
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
    std::fs::create_dir_all(&folder).and_then(|()| tempfile::tempfile_in(&folder).map(drop)).map_err(unwritable)?;
    Beside::of(out)
}

/// The parts that a merged model was made of.
struct Owned {
    backbone: Model,
    segments: Vec<Segment>,
    head: Head,
    spec: ImageSpec,
    dtype: Dtype,
}

impl Owned {
    fn parts(&self) -> Parts<'_> {
        let Self { backbone, segments, head, spec, dtype } = self;
        Parts { backbone, segments, head, spec, dtype: *dtype }
    }
}

/// Puts the model together.
fn build(
    made: &Made,
    head: &Head,
    metrics: &Metrics,
    context: &Context<'_>,
    options: &ExportOptions,
) -> Result<(Model, Metadata, Owned), PipelineError> {
    let whole =
        Model::from_bytes(made.backbone.model(), &made.backbone.file().display().to_string()).map_err(DeployError::from)?;
    let owned = match deploy::used(head, made.backbone.segments())? {
        Some((segments, head)) => {
            let backbone = cut_segments(&whole, &segments).map_err(DeployError::from)?;
            Owned { backbone, segments, head, spec: made.spec.clone(), dtype: made.key.dtype }
        }
        None => {
            let segments = made.backbone.segments().to_vec();
            Owned { backbone: whole, segments, head: head.clone(), spec: made.spec.clone(), dtype: made.key.dtype }
        }
    };
    let temperature = match (options.calibrated, metrics.temperature) {
        (false, _) => None,
        (true, Some(temperature)) => Some(temperature),
        (true, None) => {
            let reason =
                "no temperature was fitted: the run has no hold-out, or none is best on it; leave the flag out".to_owned();
            return Err(PipelineError::Settings { origin: "--calibrated".into(), reason });
        }
    };
    let merging = MergeOptions { input: options.input, opset: options.opset, temperature };
    let integers = match options.weights {
        WeightType::Int8 => {
            let images = calibration_images(&open_dataset(&images_of(made, options), context)?)?;
            let runtime = Runtime::start(&locate(&context.runtime_options(Compute::CPU), context.observe)?)?;
            Some(deploy::in_integers(&runtime, &owned.backbone, &owned.spec, &images)?)
        }
        _ => None,
    };
    let parts = Parts { backbone: integers.as_ref().unwrap_or(&owned.backbone), ..owned.parts() };
    let (mut model, input) = deploy::merge(&parts, &merging)?;
    if options.weights == WeightType::Fp16 {
        model = onnx::with_half_weights(&model).map_err(DeployError::from)?;
    }
    let views = made.spec.views.len();
    let data = &made.data;
    let metadata = Metadata {
        classes: head.classes().to_vec(),
        preprocessing: made.spec.clone(),
        input,
        store_key: StoreKey { key: made.key.key(), parts: made.key.clone() },
        metrics: MetricsRecord::new(metrics, options.calibrated),
        provenance: Provenance {
            tlpipe: env!("CARGO_PKG_VERSION").to_owned(),
            backbone: made.backbone.name().to_owned(),
            backbone_sha256: made.backbone.sha256().to_owned(),
            licence: made.located.card.as_ref().map(|card| card.licence.clone()),
            tensors: owned.segments.iter().map(|segment| segment.tensor.clone()).collect(),
            views: (views > 1).then(|| format!("features are averaged over the {views} views in the graph, as for the fit")),
            transform: if head.transform() == Transform::Sqrt { "sqrt" } else { "none" }.to_owned(),
            source: data.source.clone(),
            columns: Columns {
                image: data.image_column.clone(),
                label: data.label_column.clone(),
                split: data.split_column.clone(),
            },
            precision: options.weights.name().to_owned(),
        },
        parity: None,
    };
    Ok((model, metadata, owned))
}

/// Where the images are.
fn images_of(made: &Made, options: &ExportOptions) -> DataSettings {
    DataSettings { source: options.data.clone().or(made.data.source.clone()), ..made.data.clone() }
}

/// Encoded images to train on, evenly spaced.
fn calibration_images(dataset: &Dataset) -> Result<Vec<Bytes>, PipelineError> {
    let splits = dataset.splits();
    let Some(split) = splits.iter().find(|split| &*split.name == "train").or(splits.first()) else { return Ok(Vec::new()) };
    let step = split.rows.div_ceil(CALIBRATION).max(1);
    let mut images = Vec::with_capacity(CALIBRATION);
    for record in dataset.records(&split.name)?.step_by(step) {
        if let Ok(bytes) = record?.image.read()? {
            images.push(bytes);
        }
    }
    Ok(images)
}

/// Compares the model with the answers that the run scored, and puts what came of it into the model.
fn prove(
    pipeline: &Pipeline,
    context: &Context<'_>,
    options: &ExportOptions,
    out: &Path,
    (model, mut metadata): (Model, Metadata),
    parts: &Owned,
    made: &Made,
) -> Result<(Model, Metadata), PipelineError> {
    let most = match options.compare {
        CompareOn::None => {
            let model = model.with_metadata(metadata.entries()?);
            return Ok((model, metadata));
        }
        CompareOn::Some(images) => images.max(1),
        CompareOn::All => usize::MAX,
    };
    let scored = Scored::load(&RunDir::new(&pipeline.run), &metadata, most)?;
    let data = images_of(made, options);
    let dataset = open_dataset(&data, context).map_err(|error| match error {
        PipelineError::NoSource => error,
        other => PipelineError::NoProof(Box::new(other)),
    })?;
    let runtime = Runtime::start(&locate(&context.runtime_options(Compute::CPU), context.observe)?)?;
    let deployed = Deployed::open(&runtime, &model, &metadata)?;
    let mut comparison = Comparison::default();
    scored.compare(&dataset, &deployed, context, &mut comparison)?;
    let parity = comparison.finish(&scored.split, bound(&made.key, options.weights.name()));
    if parity.images == 0 {
        let reason = format!(
            "none of the {} images of {} that the run scored is in {}: name the images with --data, or export without a proof \
             (--unproven)",
            scored.len(),
            scored.split,
            data.source.unwrap_or_default()
        );
        return Err(PipelineError::Settings { origin: "--data".into(), reason });
    }
    if !parity.holds() {
        let stage = match options.weights {
            // It differs at every stage of the network, and is meant to.
            WeightType::Int8 => None,
            _ => deploy::stage(&runtime, (&model, &metadata), &parts.parts(), &comparison.worst())?,
        };
        let stage = stage.map_or_else(
            || {
                if options.weights == WeightType::Int8 {
                    return "the convolutions in integers; leave --quantize out".to_owned();
                }
                "none of the graph's: the features that were scored are others than this backbone makes of these images now; make them \
                 anew with tlpipe extract --rebuild"
                    .to_owned()
            },
            |stage| stage.to_string(),
        );
        let parity = Box::new(Parity { answers: Vec::new(), ..parity });
        return Err(DeployError::Parity { path: out.to_owned(), parity, stage }.into());
    }
    metadata.parity = Some(parity);
    let model = model.with_metadata(metadata.entries()?);
    Ok((model, metadata))
}

/// How far a model with such weights may be from the answers that were scored: arithmetic in another order is near, numbers of another
/// length are not.
pub(super) fn bound(key: &KeyParts, weights: &str) -> Bound {
    match (key.precision.as_str(), weights, key.provider.as_str(), key.dtype) {
        // A probability of an image between two classes may be anything: what counts is how many are answered alike.
        (_, INT8, ..) => Bound { difference: 1.0, agreement: 0.85 },
        ("fp32", FP16, ..) => Bound { difference: 5e-2, agreement: 0.98 },
        ("fp32", _, "cpu", Dtype::Float32) => Bound { difference: 1e-3, agreement: 0.995 },
        // Features a hair apart may be rounded to neighbours.
        ("fp32", _, "cpu", Dtype::Float16) => Bound { difference: 5e-3, agreement: 0.99 },
        ("fp32", ..) => Bound { difference: 1e-2, agreement: 0.99 },
        _ => Bound { difference: 0.25, agreement: 0.95 },
    }
}
