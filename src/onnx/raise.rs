//! A network brought to a later version of the standard operators: what a later version takes as an input and an earlier one as an
//! attribute, and what is no longer there.
//!
//! Only operators that are known are passed: the changes are those of ONNX's `docs/Changelog.md`.

use super::error::OnnxError;
use super::graph::{Graph, label};
use super::input::input;
use super::model::Model;
use super::open::native_side;
use super::proto::tensor_proto::DataType;
use super::proto::{GraphProto, NodeProto, TensorProto};
use super::shapes::Shapes;
use super::tensor::{int, int_attribute, int64_tensor, ints, node, tensor_attribute};

/// Versions that are known here.
const KNOWN: std::ops::RangeInclusive<i64> = 7..=23;

/// Operators that, as inference uses them, are in every known version what they were in the one before.
const STEADY: [&str; 76] = [
    "Abs",
    "Add",
    "And",
    "ArgMax",
    "AveragePool",
    "Cast",
    "Ceil",
    "Concat",
    "Constant",
    "ConstantOfShape",
    "Conv",
    "ConvTranspose",
    "Cos",
    "DepthToSpace",
    "Div",
    "Einsum",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "Expand",
    "Flatten",
    "Floor",
    "Gather",
    "Gelu",
    "Gemm",
    "GlobalAveragePool",
    "GlobalLpPool",
    "GlobalMaxPool",
    "Greater",
    "GreaterOrEqual",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "InstanceNormalization",
    "LRN",
    "LayerNormalization",
    "LeakyRelu",
    "Less",
    "LessOrEqual",
    "Log",
    "LpNormalization",
    "MatMul",
    "Max",
    "MaxPool",
    "Mean",
    "Min",
    "Mish",
    "Mul",
    "Neg",
    "Not",
    "Or",
    "PRelu",
    "Pow",
    "Range",
    "Reciprocal",
    "Relu",
    "Reshape",
    "Round",
    "Selu",
    "Shape",
    "Sigmoid",
    "Sign",
    "Sin",
    "Size",
    "Softplus",
    "Softsign",
    "SpaceToDepth",
    "Sqrt",
    "Sub",
    "Sum",
    "Tanh",
    "Tile",
    "Transpose",
    "Where",
    "Xor",
];

/// Reductions that took `axes` as an attribute until version 18.
const REDUCTIONS: [&str; 9] = [
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSumSquare",
];

/// The same network in version `to` of the standard operators.
///
/// # Errors
/// When `to` is earlier than the model's own version or not known, or an operator has no equal there.
pub fn raise(model: &Model, to: i64) -> Result<Model, OnnxError> {
    let from = model.opset();
    if from == to {
        return Ok(model.clone());
    }
    let refuse =
        |operator: String, reason: String| OnnxError::Version { origin: model.origin().to_owned(), from, to, operator, reason };
    let all = || "the network".to_owned();
    if to < from {
        return Err(refuse(all(), format!("it needs version {from} at least")));
    }
    if !KNOWN.contains(&from) || !KNOWN.contains(&to) {
        return Err(refuse(all(), format!("only versions {} to {} are known", KNOWN.start(), KNOWN.end())));
    }
    if !model.proto().functions.is_empty() {
        return Err(refuse(all(), "it has functions of its own".to_owned()));
    }
    let graph = Graph::new(model.graph());
    let image = input(model)?;
    let side = native_side(&image);
    let (height, width) = image.fixed_size().unwrap_or((side, side));
    let size = image.layout.shape(image.batch().unwrap_or(1), height, width);
    let shapes = Shapes::infer(&graph, from, &image.name, &size);
    let step = Step { from, to, graph: &graph, shapes: &shapes };
    let mut nodes = Vec::with_capacity(graph.proto.node.len());
    for node in &graph.proto.node {
        let mut node = node.clone();
        let standard = node.domain().is_empty() || node.domain() == "ai.onnx";
        if standard {
            step.rewrite(&mut node, &mut nodes).map_err(|reason| refuse(label(&node), reason))?;
        }
        nodes.push(node);
    }
    let raised = GraphProto { node: nodes, ..model.graph().clone() };
    Ok(model.with_graph(raised).change(|proto| {
        for entry in &mut proto.opset_import {
            if entry.domain().is_empty() || entry.domain() == "ai.onnx" {
                entry.version = Some(to);
            }
        }
    }))
}

/// From one version to another.
struct Step<'m> {
    from: i64,
    to: i64,
    graph: &'m Graph<'m>,
    shapes: &'m Shapes<'m>,
}

impl Step<'_> {
    /// Whether a change that came with a version lies between the two.
    fn crosses(&self, version: i64) -> bool {
        self.from < version && version <= self.to
    }

    /// Rewrites a node; constants that it needs are put before it. The error is the reason why it cannot be.
    fn rewrite(&self, node: &mut NodeProto, before: &mut Vec<NodeProto>) -> Result<(), String> {
        let is_half = || node.input.first().is_some_and(|name| self.graph.element_type(name) == Some(DataType::Float16));
        if matches!(node.op_type(), "Clip" | "Pad") && self.crosses(11) && is_half() {
            return Err("it is of float16".to_owned());
        }
        match node.op_type() {
            op if STEADY.contains(&op) => Ok(()),
            "Clip" if self.crosses(11) => {
                let limits = ["min", "max"].map(|name| take_float(node, name));
                for (name, limit) in ["min", "max"].into_iter().zip(limits) {
                    let input = limit.map_or_else(String::new, |limit| constant(node, name, float_scalar(limit), before));
                    node.input.push(input);
                }
                Ok(())
            }
            "Clip" => Ok(()),
            "Pad" if self.crosses(11) => {
                let pads = ints(node, "pads").map(<[i64]>::to_vec).ok_or("it has no pads")?;
                take(node, "pads");
                let value = take_float(node, "value").unwrap_or(0.0);
                push_list(node, "pads", &pads, before);
                let value = constant(node, "value", float_scalar(value), before);
                node.input.push(value);
                Ok(())
            }
            "Pad" => Ok(()),
            "Slice" if self.crosses(10) => {
                let [starts, ends, axes] = ["starts", "ends", "axes"].map(|name| ints(node, name).map(<[i64]>::to_vec));
                let (starts, ends) = starts.zip(ends).ok_or("it has no starts or ends")?;
                let axes = axes.unwrap_or_else(|| (0..).take(starts.len()).collect());
                for (name, values) in [("starts", starts), ("ends", ends), ("axes", axes)] {
                    take(node, name);
                    push_list(node, name, &values, before);
                }
                Ok(())
            }
            "Slice" => Ok(()),
            "Squeeze" | "Unsqueeze" | "ReduceSum" => self.axes(node, 13, before),
            op if REDUCTIONS.contains(&op) => self.axes(node, 18, before),
            "Split" => {
                if self.crosses(13)
                    && let Some(sizes) = ints(node, "split").map(<[i64]>::to_vec)
                {
                    take(node, "split");
                    push_list(node, "split", &sizes, before);
                }
                if self.crosses(18) && node.input.len() < 2 {
                    let outputs = i64::try_from(node.output.len()).unwrap_or(i64::MAX);
                    node.attribute.push(int_attribute("num_outputs", outputs));
                }
                Ok(())
            }
            // What it drops in training it passes on here.
            "Dropout" => {
                if node.output.get(1).is_some_and(|mask| !mask.is_empty()) {
                    return Err("its mask is asked for".to_owned());
                }
                node.op_type = Some("Identity".to_owned());
                node.attribute.clear();
                node.input.truncate(1);
                node.output.truncate(1);
                Ok(())
            }
            "BatchNormalization" => {
                if int(node, "spatial") == Some(0) || int(node, "training_mode") == Some(1) {
                    return Err("it is not that of inference".to_owned());
                }
                take(node, "spatial");
                node.output.truncate(1);
                Ok(())
            }
            "Softmax" | "LogSoftmax" if self.crosses(13) => {
                let rank = self.shapes.input(node, 0).map(Vec::len).and_then(|rank| i64::try_from(rank).ok());
                let axis = int(node, "axis").unwrap_or(1);
                // Over one axis in both versions, if it is the last.
                if axis == -1 || rank.is_some_and(|rank| axis == rank - 1) {
                    take(node, "axis");
                    node.attribute.push(int_attribute("axis", -1));
                    return Ok(());
                }
                Err(format!("until version 13 it is over all axes from {axis} on"))
            }
            "Softmax" | "LogSoftmax" => Ok(()),
            "Resize" if self.from >= 11 => Ok(()),
            "QuantizeLinear" | "DequantizeLinear" if self.from >= 13 => Ok(()),
            "QuantizeLinear" | "DequantizeLinear" => {
                let scalar =
                    node.input.get(1).and_then(|scale| self.graph.constant(scale)).is_some_and(|scale| scale.dims.is_empty());
                if scalar { Ok(()) } else { Err("its scale is not one number".to_owned()) }
            }
            _ => Err("what changed there is not known here".to_owned()),
        }
    }

    /// Makes the attribute `axes` an input, where a version between the two does.
    fn axes(&self, node: &mut NodeProto, version: i64, before: &mut Vec<NodeProto>) -> Result<(), String> {
        if self.crosses(version)
            && let Some(axes) = ints(node, "axes").map(<[i64]>::to_vec)
        {
            take(node, "axes");
            push_list(node, "axes", &axes, before);
        }
        Ok(())
    }
}

/// Gives a node a list as its next input.
fn push_list(node: &mut NodeProto, what: &str, values: &[i64], before: &mut Vec<NodeProto>) {
    let name = constant(node, what, int64_tensor(values), before);
    node.input.push(name);
}

/// Puts a constant before a node and gives its name.
fn constant(of: &NodeProto, what: &str, value: TensorProto, before: &mut Vec<NodeProto>) -> String {
    let name = format!("{}/{what}", of.output.first().map_or("", String::as_str));
    before.push(node("Constant", &[], &name, vec![tensor_attribute("value", value)]));
    name
}

fn float_scalar(value: f32) -> TensorProto {
    TensorProto { data_type: Some(DataType::Float as i32), float_data: vec![value], ..TensorProto::default() }
}

fn take(node: &mut NodeProto, name: &str) {
    node.attribute.retain(|attribute| attribute.name() != name);
}

fn take_float(node: &mut NodeProto, name: &str) -> Option<f32> {
    let found = node.attribute.iter().find(|attribute| attribute.name() == name).and_then(|attribute| attribute.f);
    take(node, name);
    found
}
