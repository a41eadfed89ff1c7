//! The frozen network as extraction sees it: the cut model, its pixels, its width, its part of the key.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::assets::{AssetError, Located};
use crate::image::{ChannelOrder, ImageSpec, Layout, PixelFormat};
use crate::onnx::{self, Cut, Layers, Model, OnnxError};
use crate::runtime::Precision;
use crate::store::exchange::Provenance;
use crate::store::{Dtype, KeyParts, STORE_SCHEMA, Segment, depths};

/// Why a network cannot serve as a backbone.
#[derive(Debug, thiserror::Error)]
pub enum BackboneError {
    /// Its file cannot be read.
    #[error(transparent)]
    Asset(#[from] AssetError),
    /// Its graph cannot be used.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    /// How many values an image gives depends on its size.
    #[error("{model}: the width of tensor `{tensor}` is not known; name a pooled tensor with --cut")]
    Width {
        /// The ONNX file.
        model: PathBuf,
        /// Where it was cut.
        tensor: String,
    },
    /// It takes one image size alone.
    #[error("{model}: this network takes images of {fixed} pixels only, {asked} asked for; leave --input-size out")]
    Side {
        /// The ONNX file.
        model: PathBuf,
        /// The size it takes.
        fixed: u32,
        /// The size that was asked for.
        asked: u32,
    },
}

/// Pixel values that backbones are trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PixelScale {
    /// x / 127.5 - 1.
    TensorFlow,
    /// x / 255, less the mean of `ImageNet`, over its standard deviation: PyTorch, the ONNX model zoo.
    ImageNet,
    /// x / 255.
    Unit,
    /// x: 0 to 255.
    Raw,
}

impl PixelScale {
    /// The arithmetic for a network with this order of axes; red comes first.
    pub fn format(self, layout: Layout) -> PixelFormat {
        let plain = |divisor| PixelFormat { layout, order: ChannelOrder::Rgb, divisor, mean: [0.0; 3], std: [1.0; 3] };
        match self {
            Self::TensorFlow => PixelFormat { layout, ..PixelFormat::TENSORFLOW },
            Self::ImageNet => PixelFormat { layout, ..PixelFormat::IMAGENET },
            Self::Unit => plain(255.0),
            Self::Raw => plain(1.0),
        }
    }
}

/// The order of axes, as the rooms of images and of graphs name it.
pub(crate) fn layout(layout: onnx::Layout) -> Layout {
    match layout {
        onnx::Layout::Nchw => Layout::Nchw,
        onnx::Layout::Nhwc => Layout::Nhwc,
    }
}

/// Segments as the feature store records them.
pub(crate) fn stored(segments: Vec<onnx::Segment>) -> Vec<Segment> {
    segments.into_iter().map(|onnx::Segment { tensor, offset, width }| Segment { tensor, offset, width }).collect()
}

/// A network cut behind segments as the feature store records them.
///
/// # Errors
/// When it has no such tensors.
pub(crate) fn cut_segments(model: &Model, segments: &[Segment]) -> Result<Model, OnnxError> {
    let own = |Segment { tensor, offset, width }: Segment| onnx::Segment { tensor, offset, width };
    onnx::cut_segments(model, &segments.iter().cloned().map(own).collect::<Vec<_>>())
}

/// The pixels that a network expects: what `scale` says, else its card, else its graph; and what had to be assumed.
///
/// # Errors
/// When the network has no image input.
pub(crate) fn expected_pixels(
    model: &Model,
    located: &Located,
    layout: Layout,
    scale: Option<PixelScale>,
) -> Result<(PixelFormat, Option<String>), OnnxError> {
    match (scale, &located.card) {
        (Some(scale), _) => Ok((scale.format(layout), None)),
        (None, Some(card)) => Ok((PixelFormat { layout, ..card.preprocessing.pixels.clone() }, None)),
        (None, None) => {
            let found = onnx::hints(model)?.preprocessing;
            let assumption = found.assumed.then(|| {
                format!(
                    "{}: no card says which pixel values this network expects; {}. If that is wrong, accuracy suffers: \
                     give --pixels tensorflow, imagenet, unit or raw",
                    located.path.display(),
                    found.reason
                )
            });
            let order = match found.order {
                onnx::ChannelOrder::Rgb => ChannelOrder::Rgb,
                onnx::ChannelOrder::Bgr => ChannelOrder::Bgr,
            };
            Ok((PixelFormat { layout, order, divisor: found.divisor, mean: found.mean, std: found.std }, assumption))
        }
    }
}

/// A network without its top, ready to run.
#[derive(Clone, Debug)]
pub struct Backbone {
    name: String,
    file: PathBuf,
    sha256: String,
    blake3: String,
    model: Vec<u8>,
    cut: Cut,
    layers: Layers,
    segments: Vec<Segment>,
    pixels: PixelFormat,
    native_side: Option<u32>,
    fixed_side: Option<u32>,
    fixed_batch: Option<usize>,
    assumptions: Vec<String>,
}

impl Backbone {
    /// Reads a network and cuts it: at `cut`, or before its top; `layers` says what is read before that besides. Its pixels are what `pixels` says, else its card, else its
    /// graph; what had to be assumed is in [`Self::assumptions`].
    ///
    /// # Errors
    /// When the file cannot be read, is no image network, or cannot be cut.
    pub fn load(
        located: &Located,
        cut: Option<&str>,
        layers: &Layers,
        pixels: Option<PixelScale>,
    ) -> Result<Self, BackboneError> {
        let bytes = located.read()?;
        let file = located.path.clone();
        let model = Model::from_bytes(&bytes, &file.display().to_string())?;
        let place = onnx::find_cut(&model, cut)?;
        if place.features.is_none() {
            return Err(BackboneError::Width { model: file, tensor: place.tensor });
        }
        let segments = onnx::segments(&model, &place, layers)?;
        let without_top = onnx::cut_segments(&model, &segments)?;
        let input = onnx::input(&without_top)?;
        let layout = layout(input.layout);
        let mut assumptions = Vec::new();
        let declared = onnx::input(&model)?;
        if let Some((height, width)) = declared.fixed_size().filter(|(height, width)| height != width) {
            assumptions.push(format!(
                "{}: made for images of {height} x {width} pixels (height x width); tlpipe gives it squares",
                file.display()
            ));
        }
        if let (onnx::CutReason::BeforeTop { .. }, onnx::Pooling::Mean { .. }) = (&place.reason, &place.pooling) {
            assumptions.push(format!(
                "{}: the classifier looks at every position of {:?}, a map; tlpipe takes the mean over them, which this network was not \
                 trained with",
                file.display(),
                place.tensor
            ));
        }
        let card = located.card.as_ref().map(|card| &card.preprocessing);
        let (pixels, assumption) = expected_pixels(&model, located, layout, pixels)?;
        assumptions.extend(assumption);
        let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Self {
            name: located.card.as_ref().map_or(stem, |card| card.name.clone()),
            sha256: located.sha256.clone(),
            blake3: blake3::hash(&bytes).to_hex().to_string(),
            model: without_top.to_bytes(),
            cut: place,
            layers: layers.clone(),
            segments: stored(segments),
            native_side: card.map(|card| card.side).or(declared.side),
            fixed_side: input.side,
            fixed_batch: input.batch().and_then(|batch| usize::try_from(batch).ok()),
            pixels,
            assumptions,
            file,
        })
    }

    /// Name in the registry, or of the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The ONNX file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// SHA-256 of the ONNX file.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The cut network as ONNX: one output, `[N, D]` float32.
    pub fn model(&self) -> &[u8] {
        &self.model
    }

    /// Width D of a feature row.
    pub fn width(&self) -> usize {
        self.segments.last().map_or(0, |last| last.offset + last.width)
    }

    /// What was asked to be read.
    pub fn layers(&self) -> &Layers {
        &self.layers
    }

    /// The tensors that make a feature row, in ascending depth; the last is that of [`Self::cut`].
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// What it expects of a pixel.
    pub fn pixels(&self) -> &PixelFormat {
        &self.pixels
    }

    /// Side of the images it was trained on, pixels; 224, the usual one, where neither its card nor its graph says.
    pub fn native_side(&self) -> u32 {
        const USUAL: u32 = 224;
        self.native_side.unwrap_or(USUAL)
    }

    /// Whether [`Self::native_side`] is known and not assumed.
    pub fn native_side_known(&self) -> bool {
        self.native_side.is_some()
    }

    /// The tensor that is read, and why.
    pub fn cut(&self) -> &Cut {
        &self.cut
    }

    /// What is read of it, for people: `cut at pool`, or `· multi-all · 35 tensors · 15552 values`.
    pub fn reads(&self) -> String {
        match depths(&self.layers.to_string(), &self.segments) {
            Some(depths) => format!("· {depths}"),
            None => format!("cut at {}", self.cut.tensor),
        }
    }

    /// Images a batch, where the network takes no other number.
    pub fn fixed_batch(&self) -> Option<usize> {
        self.fixed_batch
    }

    /// What neither a card nor the graph says and was assumed.
    pub fn assumptions(&self) -> &[String] {
        &self.assumptions
    }

    /// The only side that it takes, pixels, if it is so.
    pub fn fixed_side(&self) -> Option<u32> {
        self.fixed_side
    }

    /// Refuses an image size that the network does not take.
    ///
    /// # Errors
    /// When the size is fixed to another one.
    pub fn check_side(&self, side: u32) -> Result<(), BackboneError> {
        match self.fixed_side {
            Some(fixed) if fixed != side => Err(BackboneError::Side { model: self.file.clone(), fixed, asked: side }),
            _ => Ok(()),
        }
    }

    /// What a user should know about this image size: a network that halves its map five times has a single cell left of 32 px.
    pub fn warning_at(&self, side: u32) -> Option<String> {
        const USUAL: u32 = 128;
        const LEAST: u32 = 64;
        let native = self.native_side();
        (native >= USUAL && side < LEAST).then(|| {
            let trained = if self.native_side_known() { "was trained at" } else { "was probably trained at" };
            format!(
                "{} {trained} {native} px; at {side} px little is left of an image in its last layers: expect poor features (as \
                 a measure, MobileNetV2 on CIFAR-10 gives 23 % at 32 px and 77 % at 96 px); give --input-size 96 or more",
                self.name
            )
        })
    }

    /// All that a store records of features of this key, which were made on this provider by this version of ONNX Runtime.
    pub fn provenance(&self, key_parts: KeyParts, provider: &str, runtime: &str) -> Provenance {
        Provenance {
            key_parts,
            dimension: self.width(),
            segments: self.segments.clone(),
            provider: provider.to_owned(),
            runtime: runtime.to_owned(),
            model: self.name.clone(),
            model_file: self.file.display().to_string(),
            model_sha256: self.sha256.clone(),
            cut_reason: self.cut.reason.to_string(),
            layers: self.layers.to_string(),
            tlpipe: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// What the features depend on, stored in this way, with this arithmetic (`cpu`, `cuda`, `openvino`) in this precision.
    pub fn key_parts(&self, spec: &ImageSpec, dtype: Dtype, provider: &str, precision: Precision) -> KeyParts {
        KeyParts {
            backbone: self.blake3.clone(),
            cut: self.segments.iter().map(|segment| segment.tensor.clone()).collect(),
            input_size: spec.side,
            resize: spec.resize.to_string(),
            preprocessing: spec.pixels.to_string(),
            precision: precision.to_string(),
            provider: provider.to_owned(),
            schema: STORE_SCHEMA,
            views: spec.views.names(),
            dtype,
        }
    }
}
