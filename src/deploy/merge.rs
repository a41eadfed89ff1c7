//! Preprocessing, a cut backbone and a head put together in one graph.

use super::metadata::{CLASS_INDEX, IMAGE, InputKind, InputRecord, PROBABILITIES};
use super::{DeployError, preprocess};
use crate::head::{Head, Standardization};
use crate::image::{ImageSpec, Layout, Window};
use crate::onnx::{self, Around, Axis, EMBEDDING, Element, Model, OnnxError, PortSpec, Setting, Writer};
use crate::store::{Dtype, Segment, Transform};

/// The graph's tensor `[N, D]` of the features that the head sees.
pub(super) const FEATURES: &str = "tlpipe/features";

/// The least version of the standard operators in which images can be resized and views be averaged as it is done here.
const OPSET: i64 = 13;
/// The same for a graph that does neither.
const PLAIN_OPSET: i64 = 7;

/// What is put together.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// The network without its top, as [`onnx::cut_segments`] gives it.
    pub backbone: &'a Model,
    /// The segments of its row.
    pub segments: &'a [Segment],
    /// The head, of these segments.
    pub head: &'a Head,
    /// What is done to an image.
    pub spec: &'a ImageSpec,
    /// What features were stored as: the head was fitted on, and scored with, features rounded so.
    pub dtype: Dtype,
}

/// How it is put together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MergeOptions {
    /// What the classifier takes.
    pub input: InputKind,
    /// Version of the standard operators; none is the backbone's own, or the least that serves.
    pub opset: Option<i64>,
    /// What logits are divided by; none is 1.
    pub temperature: Option<f64>,
}

/// One graph from images to probabilities, without metadata, and what its input is.
///
/// # Errors
/// When the parts do not fit each other, or the variant cannot be made of them.
pub fn merge(parts: &Parts<'_>, options: &MergeOptions) -> Result<(Model, InputRecord), DeployError> {
    let Parts { backbone, segments, head, spec, dtype } = *parts;
    let image = onnx::input(backbone)?;
    let refuse = |reason: String| DeployError::Refused { origin: backbone.origin().to_owned(), reason };
    if let Some(batch) = image.batch() {
        let images = if batch == 1 { "one image".to_owned() } else { format!("{batch} images") };
        return Err(refuse(format!(
            "the network takes {images} at a time and no other number, and a classifier's batch is open: export the network with an open batch"
        )));
    }
    let width = segments.last().map_or(0, |last| last.offset + last.width);
    if width != head.kernel().nrows() {
        return Err(refuse(format!(
            "the head is of {} features, and the network gives {width}: fit it again on features of this network",
            head.kernel().nrows()
        )));
    }
    let (views, windows) = (spec.views.len(), spec.views.iter().any(|view| view.window != Window::Whole));
    if options.input == InputKind::Tensor && windows {
        return Err(refuse(format!(
            "the head sees parts of an image ({}), which are cut out before it is resized: a tensor of the resized image does not hold \
             them; use --input uint8",
            spec.views.names().join(", ")
        )));
    }
    let least = if options.input == InputKind::Uint8 || views > 1 { OPSET } else { PLAIN_OPSET };
    if let Some(asked) = options.opset.filter(|&asked| asked < least) {
        let reason = format!("this variant needs operators of version {least} at least");
        return Err(DeployError::Opset { asked, reason });
    }
    let opset = options.opset.unwrap_or_else(|| backbone.opset().max(least));

    let mut before = Writer::default();
    let shape = match options.input {
        InputKind::Uint8 => {
            preprocess::from_bytes(&mut before, IMAGE, spec, image.dtype);
            vec![Axis::Open("N"), Axis::Open("H"), Axis::Open("W"), Axis::Fixed(3)]
        }
        InputKind::Tensor => {
            preprocess::from_tensor(&mut before, IMAGE, spec, image.dtype);
            let side = Axis::Fixed(i64::from(spec.side));
            match spec.pixels.layout {
                Layout::Nchw => vec![Axis::Open("N"), Axis::Fixed(3), side.clone(), side],
                Layout::Nhwc => vec![Axis::Open("N"), side.clone(), side, Axis::Fixed(3)],
            }
        }
    };
    let record = InputRecord {
        kind: options.input,
        shape: shape
            .iter()
            .map(|axis| match axis {
                Axis::Fixed(size) => size.to_string(),
                Axis::Open(name) => (*name).to_owned(),
            })
            .collect(),
    };
    let element = match options.input {
        InputKind::Uint8 => Element::Uint8,
        InputKind::Tensor => Element::Float32,
    };
    let classes = i64::try_from(head.classes().len()).unwrap_or(i64::MAX);
    let port = |name: &str, element, shape| PortSpec { name: name.to_owned(), element, shape };
    let around = Around {
        input: port(IMAGE, element, shape),
        before,
        fed: preprocess::TENSOR.to_owned(),
        behind: behind(head, views, dtype, options.temperature.unwrap_or(1.0)),
        outputs: vec![
            port(PROBABILITIES, Element::Float32, vec![Axis::Open("N"), Axis::Fixed(classes)]),
            port(CLASS_INDEX, Element::Int64, vec![Axis::Open("N")]),
        ],
        opset,
    };
    let merged = onnx::attach(backbone, around).map_err(|error| match (options.opset, error) {
        (Some(asked), error @ OnnxError::Version { .. }) => DeployError::Opset { asked, reason: error.to_string() },
        (_, other) => other.into(),
    })?;
    Ok((merged, record))
}

/// From the row of features of each view to the outputs.
fn behind(head: &Head, views: usize, dtype: Dtype, temperature: f64) -> Writer {
    let mut writer = Writer::default();
    writer.enter("head");
    let mut features = EMBEDDING.to_owned();
    if dtype == Dtype::Float16 {
        let rounded = writer.cast(&features, Element::Float16);
        features = writer.cast(&rounded, Element::Float32);
    }
    if head.transform() == Transform::Sqrt {
        let sign = writer.node("Sign", &[&features], &[]);
        let magnitude = writer.node("Abs", &[&features], &[]);
        let root = writer.node("Sqrt", &[&magnitude], &[]);
        features = writer.node("Mul", &[&sign, &root], &[]);
    }
    if views > 1 {
        // The mean over the views, as the feature store gives it.
        let width = i64::try_from(head.kernel().nrows()).unwrap_or(i64::MAX);
        let target = writer.integers(&[i64::try_from(views).unwrap_or(i64::MAX), -1, width]);
        let each = writer.node("Reshape", &[&features, &target], &[]);
        let axis = writer.integers(&[0]);
        let sum = writer.node("ReduceSum", &[&each, &axis], &[Setting::Int("keepdims", 0)]);
        let share = writer.floats(&[], &[1.0 / views as f32]);
        features = writer.node("Mul", &[&sum, &share], &[]);
    }
    writer.named("Identity", &[&features], FEATURES, &[]);
    let Folded { kernel, bias, dims } = Folded::of(head, temperature);
    let kernel = writer.floats(&dims, &kernel);
    let bias = writer.floats(&dims[1..], &bias);
    let logits = writer.node("Gemm", &[FEATURES, &kernel, &bias], &[]);
    writer.named("Softmax", &[&logits], PROBABILITIES, &[Setting::Int("axis", 1)]);
    writer.named("ArgMax", &[&logits], CLASS_INDEX, &[Setting::Int("axis", 1), Setting::Int("keepdims", 0)]);
    writer
}

/// A head without a standardization that gives the logits of one with it.
struct Folded {
    /// Row-major `[D, K]`.
    kernel: Vec<f32>,
    bias: Vec<f32>,
    dims: [i64; 2],
}

impl Folded {
    /// `((x - mean) / std) · W + b = x · (W / std) + (b - (mean / std) · W)`, all of it over the temperature; sums in float64.
    fn of(head: &Head, temperature: f64) -> Self {
        let (kernel, bias) = (head.kernel(), head.bias());
        let mut folded = Vec::with_capacity(kernel.len());
        let mut shift: Vec<f64> = bias.iter().map(|&value| f64::from(value)).collect();
        for (feature, row) in kernel.rows().into_iter().enumerate() {
            let (mean, std) = match head.standardization() {
                Some(Standardization { mean, std }) => (f64::from(mean[feature]), f64::from(std[feature])),
                None => (0.0, 1.0),
            };
            for (&weight, shift) in row.iter().zip(&mut shift) {
                let weight = f64::from(weight) / std;
                folded.push((weight / temperature) as f32);
                *shift -= mean * weight;
            }
        }
        let size = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        Self {
            kernel: folded,
            bias: shift.into_iter().map(|value| (value / temperature) as f32).collect(),
            dims: [size(kernel.nrows()), size(kernel.ncols())],
        }
    }
}

/// The segments that a head uses, put close together, and the head on them: features whose weights are all zero (`head.budget`) are not
/// used, and a tensor of which none is used need not be computed. None where it uses every segment.
///
/// # Errors
/// When the head that is left cannot be put together.
pub fn used(head: &Head, segments: &[Segment]) -> Result<Option<(Vec<Segment>, Head)>, DeployError> {
    let kernel = head.kernel();
    let is_used = |segment: &&Segment| {
        (segment.offset..segment.offset + segment.width)
            .any(|feature| feature < kernel.nrows() && kernel.row(feature).iter().any(|&weight| weight != 0.0))
    };
    let mut kept: Vec<Segment> = segments.iter().filter(is_used).cloned().collect();
    if kept.is_empty() || kept.len() == segments.len() {
        return Ok(None);
    }
    let features: Vec<usize> = kept.iter().flat_map(|segment| segment.offset..segment.offset + segment.width).collect();
    let mut offset = 0;
    for segment in &mut kept {
        segment.offset = offset;
        offset += segment.width;
    }
    Ok(Some((kept, head.of_features(&features)?)))
}
