//! An ONNX classifier, ready to answer: one that was exported, or any other that takes images.
//!
//! Images are decoded and resized here by the recorded preprocessing, in the arithmetic that the features of the head were made
//! with (Pillow's), whatever the model's own input; a graph that resizes is fed behind its resize. So answers are those of the cached
//! path, images of unequal size share a batch, and the network has the cores. Where the graph cuts parts out of an image, images go
//! in as they are.

use std::fmt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rayon::prelude::*;

use super::foreign;
use super::preprocess::TENSOR;
use super::{DeployError, IMAGE, InputKind, Metadata, PROBABILITIES, Said};
use crate::assets::Located;
use crate::evaluate::{argmax, softmax};
use crate::extract::prepare::{Picture, Preparer};
use crate::extract::{PixelScale, Shape, suited_batch};
use crate::image::{ImageSpec, MAX_PIXELS, Resize, RgbImage, Views, Window};
use crate::onnx::Model;
use crate::runtime::{Answer, Compute, Graph, Images, Runtime, SessionOptions};

/// Why there is no class where a probability is no number.
pub(super) const NOT_FINITE: &str = "the network answers with NaN or infinite values";

/// How to open a classifier.
#[derive(Clone, Debug)]
pub struct Opening {
    /// What it runs on.
    pub compute: Compute,
    /// Threads that will ask at the same time.
    pub threads: usize,
    /// Images a batch; 0 is as many as suit the image size.
    pub batch: usize,
    /// What is known of a model that says nothing of itself.
    pub hints: Hints,
}

/// What a user says of a model that was not exported here.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Hints {
    /// Names of its classes, a line each.
    pub labels: Option<PathBuf>,
    /// Side of its input, pixels.
    pub side: Option<u32>,
    /// How an image becomes square.
    pub resize: Option<Resize>,
    /// Values it expects of pixels.
    pub pixels: Option<PixelScale>,
}

/// What the numbers of the output that is read are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scores {
    /// Of each class, from 0 to 1.
    Probabilities,
    /// Of any size: softmax makes probabilities of them.
    Logits,
}

/// How a model is fed, and how its answer is read.
pub(super) struct Reading {
    /// Class names; none where nobody knows yet how many there are.
    pub(super) classes: Vec<String>,
    pub(super) spec: ImageSpec,
    /// Images go in at their own size: the graph cuts parts out of them.
    pub(super) own_size: bool,
    /// The output that is read.
    pub(super) output: String,
    pub(super) scores: Scores,
    /// Images a batch, where it takes no other number.
    pub(super) fixed_batch: Option<usize>,
    pub(super) assumptions: Vec<String>,
}

impl Reading {
    /// As an exported model says; the user has nothing to add.
    fn exported(metadata: &Metadata, file: &Path, hints: &Hints) -> Result<Self, DeployError> {
        if *hints != Hints::default() {
            return Err(DeployError::Known(file.to_owned()));
        }
        let spec = &metadata.preprocessing;
        Ok(Self {
            classes: metadata.classes.clone(),
            own_size: spec.views.iter().any(|view| view.window != Window::Whole),
            // The views are made in the graph.
            spec: ImageSpec { views: Views::default(), ..spec.clone() },
            output: PROBABILITIES.to_owned(),
            scores: Scores::Probabilities,
            fixed_batch: None,
            assumptions: Vec::new(),
        })
    }
}

/// A classifier on its runtime. Threads share it.
pub struct Classifier {
    name: String,
    file: PathBuf,
    metadata: Option<Metadata>,
    reading: Reading,
    graphs: Vec<Graph>,
    batch: usize,
}

impl Classifier {
    /// Opens a model: one of [`Metadata`] as that says, another as its registry card, its graph and the user say.
    ///
    /// # Errors
    /// When it is no image classifier, its metadata is damaged, ONNX Runtime cannot run it, or it has no place for such hints.
    pub fn open(located: &Located, runtime: &Runtime, opening: &Opening) -> Result<Self, DeployError> {
        let bytes = located.read()?;
        let model = Model::from_bytes(&bytes, &located.path.display().to_string())?;
        let metadata = Metadata::read(&model)?;
        let options = SessionOptions { compute: opening.compute, threads: 1 };
        let inner = metadata.as_ref().and_then(|metadata| behind_resize(&model, metadata)).map(|model| model.to_bytes());
        let started = inner.as_ref().and_then(|inner| Some((inner.as_slice(), runtime.graph(inner, &options).ok()?)));
        let (network, graph) = match started {
            Some(started) => started,
            None => (&*bytes, runtime.graph(&bytes, &options)?),
        };
        let mut graphs = vec![graph];
        while graphs[0].takes_turns() && graphs[0].on_processor() && graphs.len() < opening.threads {
            graphs.push(runtime.graph(network, &options)?);
        }
        let reading = match &metadata {
            Some(metadata) => Reading::exported(metadata, &located.path, &opening.hints)?,
            None => foreign::describe(&model, located, &opening.hints)?,
        };
        let batch = match opening.batch {
            0 => suited_batch(reading.spec.side, graphs[0].on_processor()),
            batch => batch,
        };
        let stem = located.path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let name = located.card.as_ref().map_or(stem, |card| card.name.clone());
        let mut classifier = Self { name, file: located.path.clone(), metadata, reading, graphs, batch };
        if classifier.metadata.is_none() {
            let classes = classifier.try_out()?;
            let Self { file, reading, .. } = &mut classifier;
            reading.classes = foreign::class_names(file, classes, &opening.hints, &mut reading.assumptions)?;
        }
        Ok(classifier)
    }

    /// Number of scores that a black image gets.
    fn try_out(&self) -> Result<usize, DeployError> {
        let mut loader = self.loader(u64::MAX);
        let black = RgbImage::new(self.reading.spec.side, self.reading.spec.side);
        loader.add_pixels(black).map_err(|reason| self.unfit(reason))?;
        Ok(self.scores(0, &mut loader)?.len())
    }

    fn unfit(&self, reason: String) -> DeployError {
        DeployError::Unfit { model: self.file.clone(), reason }
    }

    /// Name of the model: its registered one, or that of its file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The ONNX file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// What it says of itself; none where it was not exported here.
    pub fn metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref()
    }

    /// Names of its classes; the index is the class.
    pub fn classes(&self) -> &[String] {
        &self.reading.classes
    }

    /// What is done to an image.
    pub fn spec(&self) -> &ImageSpec {
        &self.reading.spec
    }

    /// Whether the model itself takes bytes.
    pub fn takes_bytes(&self) -> bool {
        self.metadata.as_ref().map_or_else(|| self.graphs[0].takes_bytes(), |metadata| metadata.input.kind == InputKind::Uint8)
    }

    /// Name of the model's own input.
    pub fn input(&self) -> &str {
        if self.metadata.is_some() { IMAGE } else { &self.graphs[0].input().name }
    }

    /// What it runs on: `CPU`, `CUDA` or `OpenVINO`.
    pub fn provider(&self) -> &'static str {
        self.graphs[0].provider()
    }

    /// Images that make a good batch.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// What had to be assumed of a model that says nothing of itself.
    pub fn assumptions(&self) -> &[String] {
        &self.reading.assumptions
    }

    /// Brings images to the model's input; one a thread. Those of more pixels are refused.
    pub fn loader(&self, max_pixels: u64) -> Loader {
        let held = match (self.graphs[0].takes_bytes(), self.reading.own_size) {
            (true, true) => Held::Own(Vec::new()),
            (true, false) => Held::Bytes(Vec::new()),
            (false, _) => Held::Numbers(Vec::new()),
        };
        Loader { preparer: Preparer::up_to(&self.reading.spec, max_pixels), spec: self.reading.spec.clone(), images: 0, held }
    }

    /// Classifies the loaded images and empties the loader: probabilities, row-major `[N, K]`, each row sums to 1. `worker` is the
    /// number of the thread.
    ///
    /// # Errors
    /// When the network fails, or answers with another number of classes than it says.
    pub fn probabilities(&self, worker: usize, loader: &mut Loader) -> Result<Vec<f32>, DeployError> {
        let images = loader.images;
        let mut rows = self.scores(worker, loader)?;
        let classes = self.reading.classes.len();
        if rows.len() != images * classes {
            let found = rows.len() / images.max(1);
            return Err(self.unfit(format!("it answers with {found} values an image, and {classes} classes are named")));
        }
        if self.reading.scores == Scores::Logits {
            rows.chunks_exact_mut(classes.max(1)).for_each(|row| {
                softmax(row);
            });
        }
        Ok(rows)
    }

    /// Classifies encoded images on every thread; for one that cannot be used, why not.
    ///
    /// # Errors
    /// When the network fails, or answers with another number of classes than it says.
    pub fn answer(&self, encoded: &[Bytes]) -> Result<Vec<Result<Said, String>>, DeployError> {
        let some = |images: &[Bytes]| {
            let mut loader = self.loader(MAX_PIXELS);
            let added: Vec<Result<(), String>> = images.iter().map(|bytes| loader.add(bytes)).collect();
            let rows = self.probabilities(rayon::current_thread_index().unwrap_or_default(), &mut loader)?;
            let mut rows = rows.chunks_exact(self.classes().len().max(1));
            let said = |added: Result<(), String>| {
                let row = added.map(|()| rows.next().unwrap_or_default())?;
                match row.iter().all(|value| value.is_finite()) {
                    true => Ok(Said { probabilities: row.to_vec(), class: argmax(row) }),
                    false => Err(NOT_FINITE.to_owned()),
                }
            };
            Ok(added.into_iter().map(said).collect::<Vec<_>>())
        };
        let parts = encoded.par_chunks(self.batch.max(1)).map(some).collect::<Result<Vec<_>, DeployError>>()?;
        Ok(parts.into_iter().flatten().collect())
    }

    /// The output as it is.
    fn scores(&self, worker: usize, loader: &mut Loader) -> Result<Vec<f32>, DeployError> {
        let graph = &self.graphs[worker % self.graphs.len()];
        let side = self.reading.spec.side as usize;
        let images = std::mem::take(&mut loader.images);
        if images == 0 {
            return Ok(Vec::new());
        }
        let shape = Shape { fixed: self.reading.fixed_batch, batch: self.batch, on_processor: graph.on_processor() };
        let mut rows = Vec::new();
        match &mut loader.held {
            Held::Numbers(values) => {
                for (portion, images) in shape.portions(values, self.reading.spec.values()) {
                    rows.extend(self.read(
                        graph,
                        Images::Float32(&portion),
                        self.reading.spec.shape(portion.len() / self.reading.spec.values()),
                        images,
                    )?);
                }
                values.clear();
            }
            Held::Bytes(bytes) => {
                let axes = |bytes: usize| match self.metadata {
                    Some(_) => [bytes / self.reading.spec.values(), side, side, 3],
                    None => self.reading.spec.shape(bytes / self.reading.spec.values()),
                };
                for (portion, images) in shape.portions(bytes, self.reading.spec.values()) {
                    rows.extend(self.read(graph, Images::Uint8(&portion), axes(portion.len()), images)?);
                }
                bytes.clear();
            }
            Held::Own(images) => {
                for image in std::mem::take(images) {
                    let shape = [1, image.height() as usize, image.width() as usize, 3];
                    rows.extend(self.read(graph, Images::Uint8(image.as_raw()), shape, 1)?);
                }
            }
        }
        Ok(rows)
    }

    /// Runs a batch, of which the first so many images count.
    fn read(&self, graph: &Graph, batch: Images<'_>, shape: [usize; 4], images: usize) -> Result<Vec<f32>, DeployError> {
        let output = &self.reading.output;
        let Some(Answer::Float32(found, mut values)) = graph.run(batch, shape, &[output])?.pop() else {
            return Err(self.unfit(format!("its output {output:?} is not of float32")));
        };
        if found.iter().skip(1).filter(|&&size| size != 1).count() > 1 {
            return Err(self.unfit(format!("its output {output:?} has shape {found:?}, not a row of class scores an image")));
        }
        values.truncate(values.len() / shape[0] * images);
        Ok(values)
    }
}

impl fmt::Debug for Classifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Classifier")
            .field("file", &self.file)
            .field("classes", &self.reading.classes.len())
            .finish_non_exhaustive()
    }
}

/// An exported model without its resize; none where it has none, or sees more than one view.
fn behind_resize(model: &Model, metadata: &Metadata) -> Option<Model> {
    let spec = &metadata.preprocessing;
    let resizes = metadata.input.kind == InputKind::Uint8 && spec.views.len() == 1;
    let [_, a, b, c] = spec.shape(1);
    resizes.then(|| model.fed_at(TENSOR, [a, b, c])).flatten()
}

/// Images on their way into a batch.
pub struct Loader {
    preparer: Preparer,
    spec: ImageSpec,
    images: usize,
    held: Held,
}

/// A batch as the model takes it.
enum Held {
    Numbers(Vec<f32>),
    Bytes(Vec<u8>),
    Own(Vec<RgbImage>),
}

impl Loader {
    /// Images that it holds.
    pub fn images(&self) -> usize {
        self.images
    }

    /// Adds an encoded image.
    ///
    /// # Errors
    /// The reason why it cannot be used; the loader is as before.
    pub fn add(&mut self, encoded: &[u8]) -> Result<(), String> {
        self.load(Picture::Encoded(encoded))
    }

    /// Adds an image that is decoded already, of any size.
    ///
    /// # Errors
    /// The reason why it cannot be used; the loader is as before.
    pub fn add_pixels(&mut self, image: RgbImage) -> Result<(), String> {
        self.load(Picture::Pixels(image))
    }

    /// Adds an image as a network of float32 itself takes it.
    ///
    /// # Errors
    /// When the network takes bytes, or another number of values.
    pub fn add_numbers(&mut self, values: &[f32]) -> Result<(), String> {
        match &mut self.held {
            Held::Numbers(held) if values.len() == self.spec.values() => held.extend_from_slice(values),
            Held::Numbers(_) => return Err(format!("{} values, not {} for an image", values.len(), self.spec.values())),
            _ => return Err("this model takes images as UINT8, not as FP32".to_owned()),
        }
        self.images += 1;
        Ok(())
    }

    fn load(&mut self, picture: Picture<'_>) -> Result<(), String> {
        match &mut self.held {
            Held::Numbers(values) => {
                let before = values.len();
                values.resize(before + self.spec.values(), 0.0);
                if let Err(reason) = self.preparer.numbers(picture, &mut values[before..]) {
                    values.truncate(before);
                    return Err(reason);
                }
            }
            Held::Bytes(bytes) => bytes.extend_from_slice(&self.preparer.bytes(picture)?),
            Held::Own(images) => images.push(self.preparer.pixels(picture)?),
        }
        self.images += 1;
        Ok(())
    }
}

impl fmt::Debug for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loader").field("images", &self.images).finish_non_exhaustive()
    }
}
