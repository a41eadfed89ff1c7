//! A network in integers: static quantization in the form that ONNX Runtime fuses, pairs of `QuantizeLinear` and `DequantizeLinear`
//! (QDQ; Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, 2018).
//!
//! Activations are bytes with one scale and zero point a tensor, from the least and the largest value on calibration images. Weights of
//! a convolution are signed bytes with a scale for each output channel: with one scale for all, the depthwise convolutions of mobile
//! networks are lost. What is quantized is an activation behind its Relu or Clip, which the range then stands for.

use std::collections::{HashMap, HashSet};

use prost::bytes::Bytes;

use super::graph::Graph;
use super::model::Model;
use super::proto::tensor_proto::DataType;
use super::proto::{GraphProto, NodeProto, TensorProto};
use super::tensor::{floats, int_attribute, node};

/// Operators that ONNX Runtime computes in integers between quantized tensors.
const INTEGER: [&str; 3] = ["Conv", "Add", "MaxPool"];

/// Least and largest value of a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// The least.
    pub least: f32,
    /// The largest.
    pub most: f32,
}

impl Range {
    /// A range of no values.
    pub const NONE: Self = Self { least: f32::INFINITY, most: f32::NEG_INFINITY };

    /// The range of these values too.
    #[must_use]
    pub fn and(self, values: &[f32]) -> Self {
        values.iter().fold(self, |Self { least, most }, &value| Self { least: least.min(value), most: most.max(value) })
    }

    /// Scale and zero point of bytes; zero is always one of them.
    fn scale(self) -> (f32, u8) {
        let (least, most) = (self.least.min(0.0), self.most.max(0.0));
        let scale = (most - least) / 255.0;
        let scale = if scale.is_normal() { scale } else { 1.0 };
        (scale, (-least / scale).round().clamp(0.0, 255.0) as u8)
    }
}

/// The tensors whose ranges [`quantize`] needs to know, in the order of the graph.
pub fn calibrated(model: &Model) -> Vec<String> {
    let graph = Graph::new(model.graph());
    let mut found = Vec::new();
    for node in graph.proto.node.iter().filter(|node| is_integer(&graph, node)) {
        for name in activations(&graph, node).chain([behind(&graph, node)]) {
            if !found.contains(&name) {
                found.push(name);
            }
        }
    }
    found
}

/// The same network with convolutions, sums and pools in integers. A tensor without a range stays as it is.
#[must_use]
pub fn quantize(model: &Model, ranges: &HashMap<String, Range>) -> Model {
    let graph = Graph::new(model.graph());
    let scales: HashMap<&str, (f32, u8)> = ranges.iter().map(|(name, range)| (name.as_str(), range.scale())).collect();
    let mut made = Made::default();
    let mut nodes = Vec::with_capacity(graph.proto.node.len() * 2);
    for tensor in &graph.proto.input {
        made.pair(tensor.name(), &scales, &mut nodes);
    }
    for node in &graph.proto.node {
        let mut node = node.clone();
        let scale = node.input.first().and_then(|input| scales.get(input.as_str())).map(|(scale, _)| *scale);
        if let (true, Some(scale)) = (node.op_type() == "Conv" && is_integer(&graph, &node), scale) {
            made.weights(&graph, &mut node, scale, &mut nodes);
        }
        // All that uses a tensor uses it as it is in integers, so that nobody needs it as it was.
        for input in node.input.iter_mut().filter(|input| made.pairs.contains(*input)) {
            *input = dequantized(input);
        }
        let outputs = node.output.clone();
        nodes.push(node);
        outputs.iter().for_each(|output| made.pair(output, &scales, &mut nodes));
    }
    let mut initializer = graph.proto.initializer.clone();
    initializer.extend(made.initializers);
    let used: HashSet<&str> = nodes.iter().flat_map(|node| &node.input).map(String::as_str).collect();
    initializer.retain(|tensor| used.contains(tensor.name()));
    model.with_graph(GraphProto { node: nodes, initializer, ..graph.proto.clone() })
}

fn is_integer(graph: &Graph<'_>, node: &NodeProto) -> bool {
    let constant = |index: usize| node.input.get(index).is_some_and(|name| graph.constant(name).is_some());
    let is_float = |name: &String| graph.element_type(name).is_none_or(|kind| kind == DataType::Float);
    INTEGER.contains(&node.op_type())
        && node.input.first().is_some_and(is_float)
        && match node.op_type() {
            "Conv" => constant(1) && (node.input.len() < 3 || constant(2)),
            "Add" => !constant(0) && !constant(1),
            _ => node.output.len() == 1,
        }
}

/// What a node computes with that is no weight.
fn activations<'a>(graph: &'a Graph<'_>, node: &'a NodeProto) -> impl Iterator<Item = String> + 'a {
    node.input.iter().filter(|name| !name.is_empty() && graph.constant(name).is_none()).cloned()
}

/// The tensor that a node gives, behind the activation that is its only use.
fn behind(graph: &Graph<'_>, node: &NodeProto) -> String {
    let output = node.output.first().cloned().unwrap_or_default();
    let mut users = graph.consumers(&output);
    match (users.next(), users.next()) {
        (Some(user), None) if matches!(user.op_type(), "Relu" | "Clip") => user.output.first().cloned().unwrap_or(output),
        _ => output,
    }
}

fn dequantized(tensor: &str) -> String {
    format!("{tensor}/dequantized")
}

/// What is put into the graph.
#[derive(Default)]
struct Made {
    /// Tensors that there are in integers too.
    pairs: HashSet<String>,
    initializers: Vec<TensorProto>,
}

impl Made {
    /// Adds a tensor in bytes and back.
    fn pair(&mut self, tensor: &str, scales: &HashMap<&str, (f32, u8)>, nodes: &mut Vec<NodeProto>) {
        let Some(&(scale, zero)) = scales.get(tensor) else { return };
        let [scale_name, zero_name, bytes] = ["scale", "zero", "quantized"].map(|what| format!("{tensor}/{what}"));
        self.constant(&scale_name, DataType::Float, &[], scale.to_le_bytes().to_vec());
        self.constant(&zero_name, DataType::Uint8, &[], vec![zero]);
        nodes.push(node("QuantizeLinear", &[tensor, &scale_name, &zero_name], &bytes, Vec::new()));
        nodes.push(node("DequantizeLinear", &[&bytes, &scale_name, &zero_name], &dequantized(tensor), Vec::new()));
        self.pairs.insert(tensor.to_owned());
    }

    /// Puts the weights of a convolution into signed bytes, and its bias into integers of the scale of their products.
    fn weights(&mut self, graph: &Graph<'_>, conv: &mut NodeProto, input_scale: f32, nodes: &mut Vec<NodeProto>) {
        let Some(weight) = conv.input.get(1).and_then(|name| graph.constant(name)) else { return };
        let (Some(values), Some(&channels)) = (floats(&weight), weight.dims.first()) else { return };
        let count = usize::try_from(channels).unwrap_or_default();
        if count == 0 || values.len() % count != 0 || values.is_empty() {
            return;
        }
        let prefix = conv.output.first().cloned().unwrap_or_default();
        let mut scales = Vec::with_capacity(count);
        let mut bytes = Vec::with_capacity(values.len());
        for channel in values.chunks(values.len() / count) {
            let most = channel.iter().fold(0.0_f64, |most, value| most.max(value.abs()));
            let scale = if (most / 127.0) as f32 > 0.0 { (most / 127.0) as f32 } else { 1.0 };
            scales.push(scale);
            bytes.extend(channel.iter().map(|value| (value / f64::from(scale)).round().clamp(-127.0, 127.0) as i8 as u8));
        }
        conv.input[1] = self.integers(&prefix, "weight", (DataType::Int8, &weight.dims, bytes), &scales, nodes);
        let bias = conv.input.get(2).and_then(|name| graph.constant(name)).and_then(|bias| floats(&bias));
        if let Some(bias) = bias {
            let scales: Vec<f32> = scales.iter().map(|scale| scale * input_scale).collect();
            let values = bias.iter().zip(&scales).flat_map(|(value, &scale)| {
                let steps = (value / f64::from(scale)).round().clamp(f64::from(i32::MIN), f64::from(i32::MAX));
                (steps as i32).to_le_bytes()
            });
            let values = values.collect();
            conv.input[2] = self.integers(&prefix, "bias", (DataType::Int32, &[channels], values), &scales, nodes);
        }
    }

    /// A constant in integers with a scale for each channel, and back.
    fn integers(
        &mut self,
        prefix: &str,
        what: &str,
        (kind, dims, raw): (DataType, &[i64], Vec<u8>),
        scales: &[f32],
        nodes: &mut Vec<NodeProto>,
    ) -> String {
        let [name, scale, zero] = ["quantized", "scale", "zero"].map(|part| format!("{prefix}/{what}/{part}"));
        let count = i64::try_from(scales.len()).unwrap_or(i64::MAX);
        let width = if kind == DataType::Int32 { 4 } else { 1 };
        self.constant(&name, kind, dims, raw);
        self.constant(&scale, DataType::Float, &[count], scales.iter().flat_map(|scale| scale.to_le_bytes()).collect());
        self.constant(&zero, kind, &[count], vec![0; scales.len() * width]);
        let output = format!("{prefix}/{what}/dequantized");
        nodes.push(node("DequantizeLinear", &[&name, &scale, &zero], &output, vec![int_attribute("axis", 0)]));
        output
    }

    fn constant(&mut self, name: &str, kind: DataType, dims: &[i64], raw: Vec<u8>) {
        self.initializers.push(TensorProto {
            name: Some(name.to_owned()),
            dims: dims.to_vec(),
            data_type: Some(kind as i32),
            raw_data: Some(Bytes::from(raw)),
            ..TensorProto::default()
        });
    }
}
