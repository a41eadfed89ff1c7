//! Performing a cut: a new model whose one output is a row of features an image.

use std::collections::{BTreeMap, HashSet};

use super::error::OnnxError;
use super::find::{Cut, Pooling, find_cut};
use super::graph::{Graph, inputs};
use super::input::{Input, InputType, input};
use super::model::Model;
use super::open::{self, Open};
use super::proto::tensor_proto::DataType;
use super::proto::tensor_shape_proto::{Dimension, dimension};
use super::proto::type_proto::{self, Value};
use super::proto::{GraphProto, NodeProto, TensorShapeProto, TypeProto, ValueInfoProto};
use super::shapes::Shapes;
use super::tensor::{int_attribute, int64_tensor, ints_attribute, node, tensor_attribute};

/// Name of a cut model's output, float32 `[N, D]`.
pub const EMBEDDING: &str = "embedding";

/// Cuts a model: image in, one output [`EMBEDDING`] `[N, D]` float32.
///
/// Batch size, height and width are opened wherever the graph provably works with others; [`input`] of the new model tells
/// what stayed fixed. Nodes and weights that the features do not need are dropped, metadata is kept.
///
/// # Errors
/// When the cut does not fit the model, or the model takes images of one size only that is not a square.
pub fn cut(model: &Model, cut: &Cut) -> Result<Model, OnnxError> {
    let place = find_cut(model, Some(&cut.tensor))?;
    let input = input(model)?;
    let graph = Graph::new(model.graph());
    let part = Part { model, graph: &graph, input: &input, place: &place };
    let (batch, size) = (input.batch(), input.fixed_size());
    let side = open::native_side(&input);
    let (height, width) = size.unwrap_or((side, side));
    let works = |open: Open, probe: [i64; 3]| {
        place.features.is_some_and(|features| open::works(&part.assemble(open), model.opset(), &as_fed(&input), probe, features))
    };
    let other_batch = batch.unwrap_or(1).saturating_add(1);
    let open_batch = batch.is_none() || works(Open { batch: true, size: false }, [other_batch, height, width]);
    let probe_batch = if open_batch { other_batch } else { batch.unwrap_or(1) };
    let open_size = size.is_none() || works(Open { batch: open_batch, size: true }, [probe_batch, 2 * side, 2 * side]);
    if !open_size && height != width {
        return Err(OnnxError::NotSquare { origin: model.origin().to_owned(), height, width });
    }
    Ok(model.with_graph(part.assemble(Open { batch: open_batch, size: open_size })))
}

/// The input under the name that it has in a cut model.
fn as_fed(input: &Input) -> Input {
    Input { name: if input.name == EMBEDDING { renamed() } else { input.name.clone() }, ..input.clone() }
}

/// What a tensor of the model is called that happens to have the output's name.
fn renamed() -> String {
    format!("{EMBEDDING}/inner")
}

struct Part<'m> {
    model: &'m Model,
    graph: &'m Graph<'m>,
    input: &'m Input,
    place: &'m Cut,
}

impl Part<'_> {
    fn assemble(&self, open: Open) -> GraphProto {
        let source = self.graph.proto;
        let mut nodes: Vec<NodeProto> =
            self.graph.ancestors(&self.place.tensor).into_iter().map(|index| source.node[index].clone()).collect();
        if let Some(batch) = self.input.batch().filter(|_| open.batch) {
            let native = self.input.fixed_size().unwrap_or((open::native_side(self.input), open::native_side(self.input)));
            let size = self.input.layout.shape(batch, native.0, native.1);
            let shapes = Shapes::infer(self.graph, self.model.opset(), &self.input.name, &size);
            open::open_reshapes(&mut nodes, self.graph, &shapes, batch);
        }
        if self.place.pooling == Pooling::GlobalAverage {
            let pool = nodes.iter_mut().find(|node| node.output.first() == Some(&self.place.tensor));
            if let Some(pool) = pool {
                pool.op_type = Some("GlobalAveragePool".to_owned());
                pool.attribute.clear();
            }
        }
        let used: HashSet<String> = nodes.iter().flat_map(inputs).map(str::to_owned).collect();
        let made = nodes.iter().flat_map(|node| &node.output).map(String::as_str);
        let names: HashSet<String> = used.iter().map(String::as_str).chain(made).map(str::to_owned).collect();
        nodes.extend(self.tail());
        let mut graph = GraphProto {
            node: nodes,
            name: source.name.clone(),
            initializer: source.initializer.iter().filter(|tensor| used.contains(tensor.name())).cloned().collect(),
            sparse_initializer: (source.sparse_initializer.iter())
                .filter(|sparse| sparse.values.as_ref().is_some_and(|values| used.contains(values.name())))
                .cloned()
                .collect(),
            doc_string: source.doc_string.clone(),
            input: self.inputs(open, &used),
            output: vec![self.output(open)],
            // Optional, and of the old sizes.
            value_info: Vec::new(),
            quantization_annotation: (source.quantization_annotation.iter())
                .filter(|annotation| names.contains(annotation.tensor_name()))
                .cloned()
                .collect(),
            metadata_props: source.metadata_props.clone(),
        };
        if self.input.dtype == InputType::Float16 {
            take_float32(&mut graph, &self.input.name);
        }
        if names.contains(EMBEDDING) {
            make_way(&mut graph);
        }
        graph
    }

    /// The nodes from the cut tensor to the output.
    fn tail(&self) -> Vec<NodeProto> {
        let mut tail = Tail { nodes: Vec::new(), tensor: self.place.tensor.clone() };
        if self.graph.element_type(&self.place.tensor) != Some(DataType::Float) {
            tail.push("Cast", "float32", vec![int_attribute("to", DataType::Float as i64)]);
        }
        match &self.place.pooling {
            Pooling::None => {}
            Pooling::Flatten | Pooling::GlobalAverage => tail.push("Flatten", "flat", vec![int_attribute("axis", 1)]),
            // The same average, by an operator that runtimes know better.
            Pooling::Mean { axes } if axes == &[2, 3] => {
                tail.push("GlobalAveragePool", "pooled", Vec::new());
                tail.push("Flatten", "flat", vec![int_attribute("axis", 1)]);
            }
            Pooling::Mean { axes } if self.model.opset() < 18 => {
                tail.push("ReduceMean", "pooled", vec![ints_attribute("axes", axes), int_attribute("keepdims", 0)]);
            }
            Pooling::Mean { axes } => {
                let name = format!("{EMBEDDING}/axes");
                tail.nodes.push(node("Constant", &[], &name, vec![tensor_attribute("value", int64_tensor(axes))]));
                tail.push("ReduceMean", "pooled", vec![int_attribute("keepdims", 0)]);
                if let Some(mean) = tail.nodes.last_mut() {
                    mean.input.push(name);
                }
            }
        }
        tail.finish()
    }

    fn inputs(&self, open: Open, used: &HashSet<String>) -> Vec<ValueInfoProto> {
        // Before version 4 weights are inputs too.
        let weights_are_inputs = self.model.proto().ir_version() < 4;
        let kept = self.graph.proto.input.iter().filter(|info| {
            info.name() == self.input.name
                || (weights_are_inputs && used.contains(info.name()) && self.graph.is_initializer(info.name()))
        });
        let inputs = kept.map(|info| if info.name() == self.input.name { self.image(info, open) } else { info.clone() });
        inputs.collect()
    }

    fn image(&self, info: &ValueInfoProto, open: Open) -> ValueInfoProto {
        let spatial = self.input.layout.spatial_axes();
        let axes = self.input.shape.iter().enumerate().map(|(axis, &size)| {
            let (is_open, usual) = match axis {
                0 => (open.batch, "N"),
                axis if axis == spatial[0] => (open.size, "H"),
                axis if axis == spatial[1] => (open.size, "W"),
                _ => return fixed(3),
            };
            match size {
                Some(size) if !is_open => fixed(size),
                _ => named(self.declared_name(axis).unwrap_or(usual)),
            }
        });
        let kind = match self.input.dtype {
            InputType::Float16 => DataType::Float16,
            InputType::Float32 => DataType::Float,
            InputType::Uint8 => DataType::Uint8,
        };
        ValueInfoProto { r#type: Some(tensor_type(kind, axes.collect())), ..info.clone() }
    }

    fn output(&self, open: Open) -> ValueInfoProto {
        let batch = match self.input.batch() {
            Some(batch) if !open.batch => fixed(batch),
            _ => named(self.declared_name(0).unwrap_or("N")),
        };
        let width = self.place.features.and_then(|width| i64::try_from(width).ok()).map_or_else(Dimension::default, fixed);
        let name = Some(EMBEDDING.to_owned());
        ValueInfoProto { name, r#type: Some(tensor_type(DataType::Float, vec![batch, width])), ..ValueInfoProto::default() }
    }

    /// The name that the model itself gives to an open axis of the image.
    fn declared_name(&self, axis: usize) -> Option<&str> {
        let info = self.graph.proto.input.iter().find(|info| info.name() == self.input.name)?;
        let Value::TensorType(tensor) = info.r#type.as_ref()?.value.as_ref()? else { return None };
        match tensor.shape.as_ref()?.dim.get(axis)?.value.as_ref()? {
            dimension::Value::DimParam(name) if !name.is_empty() => Some(name),
            _ => None,
        }
    }
}

/// A chain of nodes that is being appended.
struct Tail {
    nodes: Vec<NodeProto>,
    tensor: String,
}

impl Tail {
    fn push(&mut self, op_type: &str, output: &str, attributes: Vec<super::proto::AttributeProto>) {
        let output = format!("{EMBEDDING}/{output}");
        self.nodes.push(node(op_type, &[&self.tensor], &output, attributes));
        self.tensor = output;
    }

    fn finish(mut self) -> Vec<NodeProto> {
        match self.nodes.last_mut() {
            Some(last) => {
                last.name = Some(EMBEDDING.to_owned());
                last.output = vec![EMBEDDING.to_owned()];
            }
            None => self.nodes.push(node("Identity", &[&self.tensor], EMBEDDING, Vec::new())),
        }
        self.nodes
    }
}

fn fixed(size: i64) -> Dimension {
    Dimension { value: Some(dimension::Value::DimValue(size)), ..Dimension::default() }
}

fn named(name: &str) -> Dimension {
    Dimension { value: Some(dimension::Value::DimParam(name.to_owned())), ..Dimension::default() }
}

fn tensor_type(kind: DataType, dim: Vec<Dimension>) -> TypeProto {
    let tensor = type_proto::Tensor { elem_type: Some(kind as i32), shape: Some(TensorShapeProto { dim }) };
    TypeProto { value: Some(Value::TensorType(tensor)), ..TypeProto::default() }
}

/// Puts a conversion behind the image input, so that callers need no 16-bit floats.
fn take_float32(graph: &mut GraphProto, name: &str) {
    let half = format!("{name}/float16");
    rename_in_nodes(&mut graph.node, &BTreeMap::from([(name, half.as_str())]));
    graph.node.insert(0, node("Cast", &[name], &half, vec![int_attribute("to", DataType::Float16 as i64)]));
    for info in graph.input.iter_mut().filter(|info| info.name() == name) {
        if let Some(Value::TensorType(tensor)) = info.r#type.as_mut().and_then(|kind| kind.value.as_mut()) {
            tensor.elem_type = Some(DataType::Float as i32);
        }
    }
}

/// Renames the model's own tensor that has the output's name.
fn make_way(graph: &mut GraphProto) {
    let renamed = renamed();
    let Some(last) = graph.node.pop() else { return };
    let names = BTreeMap::from([(EMBEDDING, renamed.as_str())]);
    rename_in_nodes(&mut graph.node, &names);
    let mut last = last;
    for input in last.input.iter_mut().filter(|input| *input == EMBEDDING) {
        renamed.clone_into(input);
    }
    graph.node.push(last);
    let weights = graph.initializer.iter_mut().map(|tensor| &mut tensor.name);
    let inputs = graph.input.iter_mut().map(|info| &mut info.name);
    for name in weights.chain(inputs).filter(|name| name.as_deref() == Some(EMBEDDING)) {
        *name = Some(renamed.clone());
    }
}

fn rename_in_nodes(nodes: &mut [NodeProto], names: &BTreeMap<&str, &str>) {
    for node in nodes {
        for name in node.input.iter_mut().chain(&mut node.output) {
            if let Some(new) = names.get(name.as_str()) {
                (*new).clone_into(name);
            }
        }
        for inner in node.attribute.iter_mut().flat_map(|attribute| attribute.g.iter_mut().chain(&mut attribute.graphs)) {
            rename_in_nodes(&mut inner.node, names);
        }
    }
}
