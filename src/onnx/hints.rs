//! What a graph says about the pixels it expects, and what has to be assumed.

use std::collections::BTreeMap;

use serde::Serialize;

use super::error::OnnxError;
use super::graph::{Graph, label};
use super::input::{Input, InputType, Layout, input};
use super::model::Model;
use super::proto::NodeProto;
use super::tensor;

/// Order of the colour channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChannelOrder {
    /// Red first.
    Rgb,
    /// Blue first.
    Bgr,
}

/// How pixels become the model's input: `(x / divisor - mean[c]) / std[c]` with `x` from 0 to 255.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Preprocessing {
    /// See above.
    pub divisor: f32,
    /// By channel, after the division.
    pub mean: [f32; 3],
    /// By channel, after the division.
    pub std: [f32; 3],
    /// Order of the channels.
    pub order: ChannelOrder,
    /// Whether this is a guess from custom, to be said aloud, rather than read in the graph.
    pub assumed: bool,
    /// What it was told by, a sentence.
    pub reason: String,
}

/// What the graph itself says about preprocessing.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Hints {
    /// The preprocessing to use where nobody knows better.
    pub preprocessing: Preprocessing,
    /// Operators by which the graph scales its pixels itself, in order.
    pub scaling: Vec<String>,
    /// The model's own metadata.
    pub metadata: BTreeMap<String, String>,
}

/// Reads what the graph says about preprocessing.
///
/// # Errors
/// When the model has no image input.
pub fn hints(model: &Model) -> Result<Hints, OnnxError> {
    let input = input(model)?;
    let graph = Graph::new(model.graph());
    let entries = model.proto().metadata_props.iter();
    let metadata: BTreeMap<String, String> = entries.map(|entry| (entry.key().to_owned(), entry.value().to_owned())).collect();
    let scaling = Scaling::read(&graph, &input.name);
    let preprocessing = preprocessing(model, &input, &scaling, &metadata);
    Ok(Hints { preprocessing, scaling: scaling.operators, metadata })
}

const ZERO: [f32; 3] = [0.0; 3];
const ONE: [f32; 3] = [1.0; 3];
const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

fn preprocessing(model: &Model, input: &Input, scaling: &Scaling, metadata: &BTreeMap<String, String>) -> Preprocessing {
    let rgb = |divisor, mean, std, assumed, reason: String| Preprocessing {
        divisor,
        mean,
        std,
        order: ChannelOrder::Rgb,
        assumed,
        reason,
    };
    if input.dtype == InputType::Uint8 {
        return rgb(1.0, ZERO, ONE, false, "the input takes bytes: raw pixels, 0 to 255".to_owned());
    }
    let operators = scaling.operators.join(", ");
    match scaling.range() {
        Some(Range::Bytes) => {
            return rgb(1.0, ZERO, ONE, false, format!("the graph scales pixels from 0 to 255 itself: {operators}"));
        }
        Some(Range::Unit) => {
            return rgb(255.0, ZERO, ONE, false, format!("the graph scales pixels from 0 to 1 itself: {operators}"));
        }
        None => {}
    }
    if metadata.get("author").is_some_and(|author| author == "Ultralytics") {
        return rgb(255.0, ZERO, ONE, false, "an Ultralytics export: pixels from 0 to 1".to_owned());
    }
    if input.layout == Layout::Nhwc || model.proto().producer_name() == "tf2onnx" {
        return rgb(127.5, ONE, ONE, true, "assumed as is usual for TensorFlow's networks: RGB, x / 127.5 - 1".to_owned());
    }
    let reason = "assumed as is usual for PyTorch's networks: RGB, x / 255, ImageNet's mean and standard deviation";
    rgb(255.0, IMAGENET_MEAN, IMAGENET_STD, true, reason.to_owned())
}

/// The range of pixels that a graph starts from.
#[derive(Debug, PartialEq)]
enum Range {
    Bytes,
    Unit,
}

/// What the first operators make of a pixel: `factor[c] * x + offset[c]`.
struct Scaling {
    factor: [f64; 3],
    offset: [f64; 3],
    operators: Vec<String>,
}

impl Scaling {
    fn read(graph: &Graph, image: &str) -> Self {
        let mut scaling = Self { factor: [1.0; 3], offset: [0.0; 3], operators: Vec::new() };
        let mut name = image;
        for _ in 0..graph.proto.node.len() {
            let mut consumers = graph.consumers(name);
            let (Some(node), None) = (consumers.next(), consumers.next()) else { break };
            if !matches!(node.op_type(), "Cast" | "Identity" | "Transpose") && scaling.apply(graph, node, name).is_none() {
                break;
            }
            let Some(output) = node.output.first() else { break };
            name = output;
        }
        scaling
    }

    /// Takes a node into account; none where it is not of this kind.
    fn apply(&mut self, graph: &Graph, node: &NodeProto, data: &str) -> Option<()> {
        let constant = |index: usize| {
            let values = tensor::floats(&graph.constant(node.input.get(index)?)?)?;
            by_channel(&values)
        };
        let is_first = node.input.first().is_some_and(|first| first == data);
        let (factor, offset) = match node.op_type() {
            "BatchNormalization" => {
                let (scale, bias, mean, variance) = (constant(1)?, constant(2)?, constant(3)?, constant(4)?);
                let factor = each(|c| scale[c] / (variance[c] + 1e-5).sqrt());
                (factor, each(|c| bias[c] - mean[c] * factor[c]))
            }
            op => {
                let value = constant(usize::from(is_first))?;
                match op {
                    "Add" => ([1.0; 3], value),
                    "Sub" if is_first => ([1.0; 3], each(|c| -value[c])),
                    "Mul" => (value, [0.0; 3]),
                    "Div" if is_first => (each(|c| 1.0 / value[c]), [0.0; 3]),
                    _ => return None,
                }
            }
        };
        *self = Self {
            factor: each(|c| self.factor[c] * factor[c]),
            offset: each(|c| self.offset[c] * factor[c] + offset[c]),
            operators: std::mem::take(&mut self.operators),
        };
        self.operators.push(label(node));
        Some(())
    }

    /// The range, where the scaling shows it.
    fn range(&self) -> Option<Range> {
        let centre = each(|c| -self.offset[c] / self.factor[c]);
        let all = |test: &dyn Fn(usize) -> bool| (0..3).all(test);
        if self.operators.is_empty() {
            None
        } else if all(&|c| self.factor[c].abs() < 0.05) || all(&|c| centre[c] > 2.0) {
            Some(Range::Bytes)
        } else if all(&|c| (0.3..0.7).contains(&centre[c])) {
            Some(Range::Unit)
        } else {
            // A mere rescaling of values that are normalized already.
            None
        }
    }
}

fn each(value: impl FnMut(usize) -> f64) -> [f64; 3] {
    [0, 1, 2].map(value)
}

fn by_channel(values: &[f64]) -> Option<[f64; 3]> {
    match *values {
        [all] => Some([all; 3]),
        [a, b, c] => Some([a, b, c]),
        _ => None,
    }
}
