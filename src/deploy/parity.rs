//! Whether a merged model gives the answers of the cached path, and if not, at which stage it leaves it.

use std::fmt;

use bytes::Bytes;
use ndarray::Array2;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::merge::FEATURES;
use super::metadata::{CLASS_INDEX, InputKind, Metadata, PROBABILITIES};
use super::preprocess::{RESIZED, TENSOR};
use super::{DeployError, Parts};
use crate::evaluate::argmax;
use crate::image::{ImageSpec, PixelTable, Resizer, RgbImage, Window, decode, mirror};
use crate::onnx::Model;
use crate::runtime::{Answer, Compute, Graph, Images, Runtime, SessionOptions};
use crate::store::Transform;

/// Images that a thread holds decoded, and those of one size that are run at once.
const BATCH: usize = 8;
/// Pixels that are run at once, at most, unless one image has more: the graph resizes them as float32.
const BATCH_PIXELS: u64 = 4 << 20;
/// Rows that a model keeps of those it was compared on, so that it can be compared again.
const MOST_KEPT: usize = 256;
/// Images that a stage is found by.
const LOOKED_AT: usize = 4;

/// How a model runs in a proof: as everybody has it, whatever made the features.
const ON_CPU: SessionOptions = SessionOptions { compute: Compute::CPU, threads: 1 };

/// An image and what the cached path says of it.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Its id in the source.
    pub id: String,
    /// The encoded image.
    pub bytes: Bytes,
    /// Probability of each class.
    pub expected: Vec<f32>,
}

/// How far answers may be apart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bound {
    /// Of any probability.
    pub difference: f64,
    /// Least share of images with the same most probable class.
    pub agreement: f64,
}

/// One answer that a model gave when it was exported.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeptAnswer {
    /// BLAKE3 of the encoded image: the first 16 hexadecimal digits.
    pub hash: String,
    /// The most probable class on the cached path.
    pub class: usize,
    /// Its probability there.
    pub probability: f32,
}

/// How a model compares with the cached path; `tlpipe.parity` of the metadata.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Parity {
    /// Images that were compared.
    pub images: usize,
    /// Of this split.
    pub split: String,
    /// Largest distance of any probability.
    pub max_difference: f64,
    /// Share of images with the same most probable class.
    pub agreement: f64,
    /// What was allowed.
    pub bound: Bound,
    /// Some of the answers on the cached path.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<KeptAnswer>,
}

impl Parity {
    /// Whether the answers are as near as they must be.
    pub fn holds(&self) -> bool {
        self.max_difference <= self.bound.difference && self.agreement >= self.bound.agreement
    }
}

/// Where a model leaves the cached path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Images of another size or other pixels.
    Resize(String),
    /// Other numbers of the same pixels.
    Range(String),
    /// The same numbers in another order of axes or channels.
    Layout(String),
    /// Other features of the same numbers.
    Backbone(String),
    /// Other answers to the same features.
    Head(String),
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, what) = match self {
            Self::Resize(what) => ("resize", what),
            Self::Range(what) => ("range", what),
            Self::Layout(what) => ("layout", what),
            Self::Backbone(what) => ("backbone", what),
            Self::Head(what) => ("head", what),
        };
        write!(f, "{name} ({what})")
    }
}

/// A classifier that is fed images as it takes them itself.
pub struct Deployed {
    graph: Graph,
    kind: InputKind,
    spec: ImageSpec,
    classes: usize,
    table: PixelTable,
}

/// What a classifier says of an image.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    /// Of each class.
    pub probabilities: Vec<f32>,
    /// The most probable class, as the model itself tells it.
    pub class: usize,
}

impl Deployed {
    /// Starts a classifier.
    ///
    /// # Errors
    /// When ONNX Runtime cannot run it.
    pub fn open(runtime: &Runtime, model: &Model, metadata: &Metadata) -> Result<Self, DeployError> {
        let graph = runtime.graph(&model.to_bytes(), &ON_CPU)?;
        let spec = metadata.preprocessing.clone();
        let (kind, classes, table) = (metadata.input.kind, metadata.classes.len(), PixelTable::new(&spec.pixels));
        if graph.takes_bytes() != (kind == InputKind::Uint8) {
            let reason = "the input of the graph is not of the kind that it says".to_owned();
            return Err(DeployError::Metadata { origin: model.origin().to_owned(), key: "tlpipe.input", reason });
        }
        Ok(Self { graph, kind, spec, classes, table })
    }

    /// Classifies encoded images on every thread; for one that cannot be used, why not.
    ///
    /// # Errors
    /// When the model fails.
    pub fn answer(&self, encoded: &[Bytes]) -> Result<Vec<Result<Said, String>>, DeployError> {
        let parts = encoded.par_chunks(BATCH).map(|part| self.answer_some(part)).collect::<Result<Vec<_>, _>>()?;
        Ok(parts.into_iter().flatten().collect())
    }

    fn answer_some(&self, encoded: &[Bytes]) -> Result<Vec<Result<Said, String>>, DeployError> {
        let images: Vec<Result<RgbImage, String>> =
            encoded.iter().map(|bytes| decode(bytes).map_err(|error| error.to_string())).collect();
        let good: Vec<&RgbImage> = images.iter().flatten().collect();
        let mut said = Vec::with_capacity(good.len());
        // A batch has one size; a graph that is fed tensors gives all of them the same.
        let same = |a: &&RgbImage, b: &&RgbImage| self.kind == InputKind::Tensor || a.dimensions() == b.dimensions();
        let at_once = |run: &[&RgbImage]| match self.kind {
            InputKind::Tensor => BATCH,
            InputKind::Uint8 => {
                let pixels = run.first().map_or(1, |image| u64::from(image.width()) * u64::from(image.height()));
                usize::try_from(BATCH_PIXELS / pixels.max(1)).unwrap_or(BATCH).clamp(1, BATCH)
            }
        };
        for run in good.chunk_by(same).flat_map(|run| run.chunks(at_once(run))) {
            let outputs = self.run(run, &[PROBABILITIES, CLASS_INDEX])?;
            let [Answer::Float32(_, probabilities), Answer::Int64(_, classes)] = &outputs[..] else {
                return Err(DeployError::Answer("its outputs are not probabilities and a class".to_owned()));
            };
            if probabilities.len() != run.len() * self.classes || classes.len() != run.len() {
                let found = probabilities.len() / run.len();
                return Err(DeployError::Answer(format!("it answers with {found} values an image, not {}", self.classes)));
            }
            for (row, class) in probabilities.chunks(self.classes.max(1)).zip(classes) {
                said.push(Said { probabilities: row.to_vec(), class: usize::try_from(*class).unwrap_or(usize::MAX) });
            }
        }
        let mut said = said.into_iter();
        let lost = || DeployError::Answer("it answers for fewer images than it was given".to_owned());
        images.into_iter().map(|image| image.map(|_| said.next().ok_or_else(lost))).map(transposed).collect()
    }

    /// Some outputs of the model for images of one size.
    fn run(&self, images: &[&RgbImage], outputs: &[&str]) -> Result<Vec<Answer>, DeployError> {
        match self.kind {
            InputKind::Uint8 => {
                let (width, height) = images.first().map_or((0, 0), |image| image.dimensions());
                let bytes: Vec<u8> = images.iter().flat_map(|image| image.as_raw().iter().copied()).collect();
                let shape = [images.len(), height as usize, width as usize, 3];
                Ok(self.graph.run(Images::Uint8(&bytes), shape, outputs)?)
            }
            InputKind::Tensor => {
                let mut tensor = vec![0.0; images.len() * self.spec.values()];
                let mut resizer = Resizer::new();
                for (image, out) in images.iter().zip(tensor.chunks_mut(self.spec.values().max(1))) {
                    let small = resizer.resize((*image).clone(), self.spec.side, self.spec.resize);
                    let written = small.and_then(|small| self.table.write(&small, out));
                    written.map_err(|error| DeployError::Answer(error.to_string()))?;
                }
                Ok(self.graph.run(Images::Float32(&tensor), self.spec.shape(images.len()), outputs)?)
            }
        }
    }
}

fn transposed(said: Result<Result<Said, DeployError>, String>) -> Result<Result<Said, String>, DeployError> {
    match said {
        Ok(Ok(said)) => Ok(Ok(said)),
        Ok(Err(error)) => Err(error),
        Err(reason) => Ok(Err(reason)),
    }
}

/// Compares answers as they come.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    images: usize,
    same: usize,
    max_difference: f64,
    kept: Vec<KeptAnswer>,
    /// Of the images whose answers are furthest apart: difference and image.
    worst: Vec<(f64, Bytes)>,
}

impl Comparison {
    /// Adds an image.
    pub fn add(&mut self, sample: &Sample, said: &Said) {
        self.add_known(&sample.expected, argmax(&sample.expected), &sample.bytes, said);
    }

    /// Adds an image of which the most probable class on the cached path is known.
    pub fn add_known(&mut self, expected: &[f32], class: usize, bytes: &Bytes, said: &Said) {
        let pairs = expected.iter().zip(&said.probabilities);
        // Not a number is as far away as can be.
        let distance = |(a, b): (&f32, &f32)| if a.is_finite() && b.is_finite() { f64::from((a - b).abs()) } else { 1.0 };
        let difference = pairs.map(distance).fold(0.0, f64::max);
        self.images += 1;
        self.same += usize::from(class == said.class);
        self.max_difference = self.max_difference.max(difference);
        if self.kept.len() < MOST_KEPT {
            let probability = expected.get(class).copied().unwrap_or_default();
            self.kept.push(KeptAnswer { hash: short_hash(bytes), class, probability });
        }
        self.worst.push((difference, bytes.clone()));
        self.worst.sort_by(|a, b| b.0.total_cmp(&a.0));
        self.worst.truncate(LOOKED_AT);
    }

    /// Images so far.
    pub fn images(&self) -> usize {
        self.images
    }

    /// What came of it.
    pub fn finish(&self, split: &str, bound: Bound) -> Parity {
        Parity {
            images: self.images,
            split: split.to_owned(),
            max_difference: self.max_difference,
            agreement: self.same as f64 / self.images.max(1) as f64,
            bound,
            answers: self.kept.clone(),
        }
    }

    /// The images whose answers are furthest apart.
    pub fn worst(&self) -> Vec<Bytes> {
        self.worst.iter().map(|(_, image)| image.clone()).collect()
    }
}

/// By what an image is known again.
pub fn short_hash(encoded: &[u8]) -> String {
    blake3::hash(encoded).to_hex()[..16].to_owned()
}

/// The stage at which a model leaves the steps of the pipeline on some images. The graph is asked for what it holds in between, and
/// that is compared, stage by stage, with the same step done by the pipeline.
///
/// # Errors
/// When the model or the backbone cannot be run.
pub fn stage(
    runtime: &Runtime,
    (model, metadata): (&Model, &Metadata),
    parts: &Parts<'_>,
    images: &[Bytes],
) -> Result<Option<Stage>, DeployError> {
    let kind = metadata.input.kind;
    let inner: &[&str] = match kind {
        InputKind::Uint8 => &[RESIZED, TENSOR, FEATURES, PROBABILITIES],
        InputKind::Tensor => &[TENSOR, FEATURES, PROBABILITIES],
    };
    let shown = model.clone().with_outputs(&inner[..inner.len() - 1]);
    let deployed = Deployed::open(runtime, &shown, metadata)?;
    let session = runtime.session(&parts.backbone.to_bytes(), &ON_CPU)?;
    let mut found: Option<Stage> = None;
    for encoded in images {
        let Ok(image) = decode(encoded) else { continue };
        let answers = deployed.run(&[&image], inner)?;
        let mut answers: Vec<Vec<f32>> = answers.into_iter().filter_map(Answer::floats).collect();
        if answers.len() != inner.len() {
            return Err(DeployError::Answer("its inner tensors are not of float32".to_owned()));
        }
        let steps = Steps::of(&image, parts.spec, parts.head.transform(), &session).map_err(DeployError::Answer)?;
        let (probabilities, features) = (answers.pop().unwrap_or_default(), answers.pop().unwrap_or_default());
        let tensor = answers.pop().unwrap_or_default();
        let resized = answers.pop();
        let own = Array2::from_shape_vec((1, features.len()), features.clone());
        let own = own.map_err(|error| DeployError::Answer(error.to_string()))?;
        let answer = parts.head.probabilities(own.view())?;
        let stage = leaves(&steps, resized.as_deref(), &tensor, &features).or_else(|| {
            let off = furthest(&probabilities, answer.as_slice().unwrap_or_default());
            (off > 1e-4).then(|| Stage::Head(format!("probabilities off by up to {off:.1e} on the same features")))
        });
        found = earlier(found, stage);
    }
    Ok(found)
}

/// The earlier of two stages.
fn earlier(a: Option<Stage>, b: Option<Stage>) -> Option<Stage> {
    let order = |stage: &Stage| match stage {
        Stage::Resize(_) => 0,
        Stage::Range(_) | Stage::Layout(_) => 1,
        Stage::Backbone(_) => 2,
        Stage::Head(_) => 3,
    };
    [a, b].into_iter().flatten().min_by_key(order)
}

/// The first stage before the head at which a graph differs from the steps.
fn leaves(steps: &Steps, resized: Option<&[f32]>, tensor: &[f32], features: &[f32]) -> Option<Stage> {
    if let Some(resized) = resized {
        let off = furthest(resized, &steps.resized);
        // The last bit of a byte here and there is rounding.
        let many = resized.iter().zip(&steps.resized).filter(|(a, b)| a != b).count();
        if off > 1.0 || many * 100 > resized.len() {
            return Some(Stage::Resize(format!("{many} of {} bytes differ, by up to {off}", steps.resized.len())));
        }
        // What follows is judged by the graph's own pixels where these are not quite the same.
        if many > 0 {
            return None;
        }
    }
    let off = furthest(tensor, &steps.tensor);
    if off > 1e-4 {
        let sorted = |values: &[f32]| {
            let mut values = values.to_vec();
            values.sort_by(f32::total_cmp);
            values
        };
        let same_numbers = furthest(&sorted(tensor), &sorted(&steps.tensor)) <= 1e-4;
        return Some(if same_numbers {
            Stage::Layout("the same numbers in another order".to_owned())
        } else {
            Stage::Range(format!("numbers of the same pixels off by up to {off:.1e}"))
        });
    }
    let most = steps.features.iter().fold(1.0_f32, |most, value| most.max(value.abs()));
    let off = furthest(features, &steps.features) / most;
    (off > 1e-3).then(|| Stage::Backbone(format!("features off by up to {off:.1e} of the largest")))
}

fn furthest(a: &[f32], b: &[f32]) -> f32 {
    if a.len() != b.len() {
        return f32::INFINITY;
    }
    let distance = |(a, b): (&f32, &f32)| if (a - b).is_nan() { f32::INFINITY } else { (a - b).abs() };
    a.iter().zip(b).map(distance).fold(0.0, f32::max)
}

/// One image by the steps of the pipeline.
struct Steps {
    /// Bytes of all views `[V, 3, side, side]`.
    resized: Vec<f32>,
    /// Numbers of all views, in the backbone's layout.
    tensor: Vec<f32>,
    /// The features that the head sees.
    features: Vec<f32>,
}

impl Steps {
    fn of(image: &RgbImage, spec: &ImageSpec, transform: Transform, session: &crate::runtime::Session) -> Result<Self, String> {
        let (mut resizer, table) = (Resizer::new(), PixelTable::new(&spec.pixels));
        let mut steps = Self { resized: Vec::new(), tensor: vec![0.0; spec.values_of_views()], features: Vec::new() };
        for (view, out) in spec.views.iter().zip(steps.tensor.chunks_mut(spec.values().max(1))) {
            let small = match view.window {
                Window::Whole => resizer.resize(image.clone(), spec.side, spec.resize),
                part => resizer.part(image, spec.side, spec.resize, part),
            };
            let mut small = small.map_err(|error| error.to_string())?;
            if view.mirrored {
                mirror(&mut small);
            }
            let plane = |channel: usize| small.pixels().map(move |pixel| f32::from(pixel.0[channel]));
            steps.resized.extend((0..3).flat_map(plane));
            table.write(&small, out).map_err(|error| error.to_string())?;
        }
        let views = spec.views.len();
        let rows = session.run(&steps.tensor, spec.shape(views)).map_err(|error| error.to_string())?;
        let width = rows.len() / views.max(1);
        let changed = |value: f32| if transform == Transform::Sqrt { value.abs().sqrt().copysign(value) } else { value };
        steps.features = (0..width)
            .map(|at| rows.iter().skip(at).step_by(width.max(1)).map(|&value| changed(value)).sum::<f32>() / views as f32)
            .collect();
        Ok(steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps() -> Steps {
        Steps { resized: vec![1.0, 2.0, 250.0], tensor: vec![-1.0, 0.0, 1.0], features: vec![4.0, 0.5] }
    }

    #[test]
    fn the_first_stage_that_differs_is_named() {
        let good = steps();
        let named = |resized: &[f32], tensor: &[f32], features: &[f32]| {
            leaves(&good, Some(resized), tensor, features).map(|stage| stage.to_string()).unwrap_or_default()
        };
        let Steps { resized, tensor, features } = steps();
        assert_eq!(named(&resized, &tensor, &features), "");
        assert!(named(&[1.0, 2.0, 200.0], &[9.0; 3], &features).starts_with("resize (1 of 3 bytes differ, by up to 50)"));
        assert!(named(&resized[..2], &tensor, &features).starts_with("resize"));
        assert!(named(&resized, &[-1.0, 0.0, 0.5], &features).starts_with("range"));
        assert!(named(&resized, &[1.0, 0.0, -1.0], &features).starts_with("layout"));
        assert!(named(&resized, &tensor, &[4.0, 0.6]).starts_with("backbone"));
        assert!(named(&resized, &tensor, &[4.0, f32::NAN]).starts_with("backbone"));
        assert!(leaves(&good, None, &[-1.0, 0.0, 0.5], &features).is_some_and(|stage| matches!(stage, Stage::Range(_))));
    }

    #[test]
    fn a_comparison_counts_and_keeps() {
        let mut comparison = Comparison::default();
        let sample = |number: u8| Sample { id: "a".into(), bytes: vec![number].into(), expected: vec![0.25, 0.75] };
        let said = |first: f32, class| Said { probabilities: vec![first, 1.0 - first], class };
        comparison.add(&sample(1), &said(0.25, 1));
        comparison.add(&sample(2), &said(0.5, 0));
        comparison.add(&sample(3), &said(f32::NAN, 1));
        let bound = Bound { difference: 0.3, agreement: 0.6 };
        let parity = comparison.finish("test", bound);
        assert_eq!((parity.images, parity.max_difference), (3, 1.0));
        assert!((parity.agreement - 2.0 / 3.0).abs() < 1e-12 && !parity.holds());
        assert_eq!(comparison.worst()[0], vec![3_u8]);
        assert_eq!(parity.answers[0], KeptAnswer { hash: short_hash(&[1]), class: 1, probability: 0.75 });
        let text = serde_json::to_string(&parity).unwrap();
        assert_eq!(serde_json::from_str::<Parity>(&text).unwrap(), parity);
    }
}
