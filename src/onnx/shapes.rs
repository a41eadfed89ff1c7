//! Shapes of all tensors of a graph for one size of its image input, worked out node by node.
//!
//! This is not ONNX's own shape inference: it takes a concrete size, does not believe the sizes an export declares for inner
//! tensors, and goes on after a contradiction, which it records. Asking twice with different sizes tells which axes follow what.

use std::collections::HashMap;

use super::graph::{Graph, label};
use super::proto::tensor_shape_proto::dimension;
use super::proto::type_proto::Value;
use super::proto::{GraphProto, NodeProto, ValueInfoProto};
use super::rules;
use super::tensor;

/// Sizes of the axes; none where a size is not known.
pub(super) type Shape = Vec<Option<i64>>;

/// Integer tensors longer than this are never shapes.
const MAX_VALUES: usize = 64;

/// The shapes of one graph at one size.
pub(super) struct Shapes<'m> {
    opset: i64,
    graph: &'m Graph<'m>,
    shapes: HashMap<&'m str, Shape>,
    /// Contents of small integer tensors: shapes that the graph itself computes.
    values: HashMap<&'m str, Shape>,
    /// Nodes (by index) whose inputs do not fit together, and why.
    pub(super) conflicts: Vec<(usize, String)>,
}

impl<'m> Shapes<'m> {
    /// Works out the shapes with the input `image` of shape `size`.
    pub(super) fn infer(graph: &'m Graph<'m>, opset: i64, image: &str, size: &[i64]) -> Self {
        let mut shapes = Self { opset, graph, shapes: HashMap::new(), values: HashMap::new(), conflicts: Vec::new() };
        for input in graph.fed_inputs() {
            if input.name() == image {
                shapes.shapes.insert(input.name(), size.iter().copied().map(Some).collect());
            } else if let Some(declared) = declared_shape(input) {
                shapes.shapes.insert(input.name(), declared);
            }
        }
        for initializer in &graph.proto.initializer {
            shapes.shapes.insert(initializer.name(), initializer.dims.iter().copied().map(Some).collect());
            if initializer.dims.len() <= 1
                && let Some(values) = small_integers(initializer)
            {
                shapes.values.insert(initializer.name(), values);
            }
        }
        for (index, node) in graph.proto.node.iter().enumerate() {
            shapes.visit(index, node);
        }
        shapes
    }

    fn visit(&mut self, index: usize, node: &'m NodeProto) {
        match rules::outputs(node, self) {
            Ok(outputs) => {
                for (name, shape) in node.output.iter().zip(outputs) {
                    if let Some(shape) = shape {
                        if shape.iter().flatten().any(|&size| size < 0) {
                            self.conflicts.push((index, format!("{}: the image is too small", label(node))));
                        } else {
                            self.shapes.insert(name, shape);
                        }
                    }
                }
            }
            Err(reason) => self.conflicts.push((index, format!("{}: {reason}", label(node)))),
        }
        if let (Some(output), Some(values)) = (node.output.first(), rules::values(node, self))
            && values.len() <= MAX_VALUES
        {
            self.values.insert(output, values);
        }
    }

    /// Shape of a tensor; none where not even its number of axes is known.
    pub(super) fn shape(&self, name: &str) -> Option<&Shape> {
        self.shapes.get(name)
    }

    /// Shape of a node's input.
    pub(super) fn input(&self, node: &NodeProto, index: usize) -> Option<&Shape> {
        self.shape(node.input.get(index)?)
    }

    /// Content of a node's small integer input, such as the target of a Reshape.
    pub(super) fn value(&self, node: &NodeProto, index: usize) -> Option<&Shape> {
        self.values.get(node.input.get(index)?.as_str())
    }

    /// Content of a node's input where it is constant in the model and of floating-point type.
    pub(super) fn floats(&self, node: &NodeProto, index: usize) -> Option<Vec<f64>> {
        tensor::floats(&self.graph.constant(node.input.get(index)?)?)
    }

    /// Content of an integer list that is an attribute in old operator sets and an input in new ones.
    pub(super) fn list(&self, node: &NodeProto, attribute: &str, index: usize) -> Option<Vec<i64>> {
        match tensor::ints(node, attribute) {
            Some(values) => Some(values.to_vec()),
            None => self.value(node, index)?.iter().copied().collect(),
        }
    }

    /// Version of the standard operators.
    pub(super) fn opset(&self) -> i64 {
        self.opset
    }
}

fn small_integers(tensor: &super::proto::TensorProto) -> Option<Shape> {
    let length: i64 = tensor.dims.iter().product();
    if usize::try_from(length).is_ok_and(|length| length <= MAX_VALUES) {
        Some(tensor::integers(tensor)?.into_iter().map(Some).collect())
    } else {
        None
    }
}

/// Content of a small integer constant.
pub(super) fn constant_integers(node: &NodeProto) -> Option<Shape> {
    small_integers(&tensor::constant_value(node)?)
}

/// The shape that an input or output declares; a named or missing size is none.
pub(super) fn declared_shape(info: &ValueInfoProto) -> Option<Shape> {
    let Value::TensorType(tensor) = info.r#type.as_ref()?.value.as_ref()? else { return None };
    let size = |value: &Option<dimension::Value>| match value {
        Some(dimension::Value::DimValue(size)) if *size > 0 => Some(*size),
        _ => None,
    };
    Some(tensor.shape.as_ref()?.dim.iter().map(|dim| size(&dim.value)).collect())
}

/// The declared shape of an output.
pub(super) fn declared_output(graph: &GraphProto, name: &str) -> Option<Shape> {
    declared_shape(graph.output.iter().find(|output| output.name() == name)?)
}
