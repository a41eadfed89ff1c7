//! Performing a cut: a new model whose one output is a row of features an image.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::error::OnnxError;
use super::find::{Cut, Finder, Pooling};
use super::graph::{Graph, inputs};
use super::input::{Input, InputType, input};
use super::layers::Segment;
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
    cut_at(model, &[&cut.tensor])
}

/// Cuts a model that gives several tensors at once: each averaged over its positions, all of them in one row, in this order.
/// Otherwise as [`cut`].
///
/// # Errors
/// As [`cut`].
pub fn cut_segments(model: &Model, segments: &[Segment]) -> Result<Model, OnnxError> {
    let tensors: Vec<&str> = segments.iter().map(|segment| segment.tensor.as_str()).collect();
    cut_at(model, &tensors)
}

fn cut_at(model: &Model, tensors: &[&str]) -> Result<Model, OnnxError> {
    let input = input(model)?;
    let graph = Graph::new(model.graph());
    let finder = Finder::new(model, &graph, &input);
    let places = tensors.iter().map(|tensor| finder.named(tensor)).collect::<Result<Vec<_>, _>>()?;
    let features = places.iter().map(|place| place.features).sum::<Option<usize>>();
    let part = Part { model, graph: &graph, input: &input, places: &places, features, native: &finder.native };
    let (batch, size) = (input.batch(), input.fixed_size());
    let side = open::native_side(&input);
    let (height, width) = size.unwrap_or((side, side));
    let works = |open: Open, probe: [i64; 3]| {
        features.is_some_and(|features| open::works(&part.assemble(open), model.opset(), &as_fed(&input), probe, features))
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
    /// The tensors that are read, in the order of their values.
    places: &'m [Cut],
    /// Values of all of them.
    features: Option<usize>,
    /// Shapes at the declared batch and image size.
    native: &'m Shapes<'m>,
}

impl Part<'_> {
    fn assemble(&self, open: Open) -> GraphProto {
        let source = self.graph.proto;
        let needed: BTreeSet<usize> = self.places.iter().flat_map(|place| self.graph.ancestors(&place.tensor)).collect();
        let mut nodes: Vec<NodeProto> = needed.into_iter().map(|index| source.node[index].clone()).collect();
        if let Some(batch) = self.input.batch().filter(|_| open.batch) {
            open::open_reshapes(&mut nodes, self.graph, self.native, batch);
        }
        for place in self.places.iter().filter(|place| place.pooling == Pooling::GlobalAverage) {
            if let Some(pool) = nodes.iter_mut().find(|node| node.output.first() == Some(&place.tensor)) {
                pool.op_type = Some("GlobalAveragePool".to_owned());
                pool.attribute.clear();
            }
        }
        let used: HashSet<String> = nodes.iter().flat_map(inputs).map(str::to_owned).collect();
        let made = nodes.iter().flat_map(|node| &node.output).map(String::as_str);
        let names: HashSet<String> = used.iter().map(String::as_str).chain(made).map(str::to_owned).collect();
        self.read(&mut nodes);
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
        make_way(&mut graph);
        graph
    }

    /// Adds what makes the output of the tensors that are read.
    ///
    /// A map is averaged right behind the node that makes it, while it is in the processor's cache: at the end of the graph the
    /// averages take nearly three times as long. They are put together as maps of one position and flattened once, which spares
    /// ONNX Runtime a change of memory layout for each (measured with all 35 activations of MobileNetV2: 1.07 of the time of
    /// one tensor, against 1.4 when each is flattened).
    fn read(&self, nodes: &mut Vec<NodeProto>) {
        let averages: Vec<Average> = (0..self.places.len()).map(|index| self.average(index)).collect();
        let mut tail = Vec::new();
        if let [only] = averages.as_slice() {
            tail.extend(only.nodes.iter().cloned());
        } else {
            for (place, average) in self.places.iter().zip(&averages) {
                let maker = nodes.iter().position(|node| node.output.contains(&place.tensor));
                let behind = maker.map_or(nodes.len(), |maker| maker + 1);
                nodes.splice(behind..behind, average.nodes.iter().cloned());
            }
        }
        let mut rows: Vec<String> = Vec::new();
        for run in averages.chunk_by(|a, b| a.is_map == b.is_map) {
            let tensors = run.iter().map(|average| average.tensor.as_str());
            if run[0].is_map {
                let number = rows.len();
                let map = concatenation(&mut tail, tensors.collect(), &format!("{EMBEDDING}/maps_{number}"));
                let flat = format!("{EMBEDDING}/flat_{number}");
                tail.push(node("Flatten", &[&map], &flat, vec![int_attribute("axis", 1)]));
                rows.push(flat);
            } else {
                rows.extend(tensors.map(str::to_owned));
            }
        }
        let row = concatenation(&mut tail, rows.iter().map(String::as_str).collect(), &format!("{EMBEDDING}/rows"));
        match tail.last_mut() {
            Some(last) => {
                last.name = Some(EMBEDDING.to_owned());
                last.output = vec![EMBEDDING.to_owned()];
            }
            None => tail.push(node("Identity", &[&row], EMBEDDING, Vec::new())),
        }
        nodes.extend(tail);
    }

    /// The average of a tensor over its positions.
    fn average(&self, index: usize) -> Average {
        let place = &self.places[index];
        let prefix = if self.places.len() == 1 { EMBEDDING.to_owned() } else { format!("{EMBEDDING}/{index}") };
        let mut average = Average { prefix, nodes: Vec::new(), tensor: place.tensor.clone(), is_map: false };
        if self.graph.element_type(&place.tensor) != Some(DataType::Float) {
            average.push("Cast", "float32", vec![int_attribute("to", DataType::Float as i64)]);
        }
        match &place.pooling {
            Pooling::None => {}
            Pooling::Flatten | Pooling::GlobalAverage if self.channels_lead(place) => average.is_map = true,
            Pooling::Flatten | Pooling::GlobalAverage => average.push("Flatten", "flat", vec![int_attribute("axis", 1)]),
            // The same average, by an operator that runtimes know better.
            Pooling::Mean { axes } if axes == &[2, 3] => {
                average.push("GlobalAveragePool", "pooled", Vec::new());
                average.is_map = true;
            }
            Pooling::Mean { axes } if self.model.opset() < 18 => {
                average.push("ReduceMean", "pooled", vec![ints_attribute("axes", axes), int_attribute("keepdims", 0)]);
            }
            Pooling::Mean { axes } => {
                let name = format!("{}/axes", average.prefix);
                average.nodes.push(node("Constant", &[], &name, vec![tensor_attribute("value", int64_tensor(axes))]));
                average.push("ReduceMean", "pooled", vec![int_attribute("keepdims", 0)]);
                if let Some(mean) = average.nodes.last_mut() {
                    mean.input.push(name);
                }
            }
        }
        average
    }

    /// Whether a tensor is `[N, C, 1, 1]`.
    fn channels_lead(&self, place: &Cut) -> bool {
        let channels = place.features.and_then(|features| i64::try_from(features).ok());
        self.native.shape(&place.tensor).is_some_and(|shape| shape.len() == 4 && channels.is_some() && shape[1] == channels)
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
        let width = self.features.and_then(|width| i64::try_from(width).ok()).map_or_else(Dimension::default, fixed);
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

/// What averages one tensor over its positions.
struct Average {
    /// What the names of its nodes begin with.
    prefix: String,
    nodes: Vec<NodeProto>,
    /// What it gives.
    tensor: String,
    /// Whether that is `[N, C, 1, 1]` and not `[N, C]`.
    is_map: bool,
}

impl Average {
    fn push(&mut self, op_type: &str, output: &str, attributes: Vec<super::proto::AttributeProto>) {
        let output = format!("{}/{output}", self.prefix);
        self.nodes.push(node(op_type, &[&self.tensor], &output, attributes));
        self.tensor = output;
    }
}

/// Puts tensors side by side along the channels; one alone is left as it is.
fn concatenation(nodes: &mut Vec<NodeProto>, tensors: Vec<&str>, output: &str) -> String {
    match tensors[..] {
        [only] => only.to_owned(),
        _ => {
            nodes.push(node("Concat", &tensors, output, vec![int_attribute("axis", 1)]));
            output.to_owned()
        }
    }
}

pub(super) fn fixed(size: i64) -> Dimension {
    Dimension { value: Some(dimension::Value::DimValue(size)), ..Dimension::default() }
}

pub(super) fn named(name: &str) -> Dimension {
    Dimension { value: Some(dimension::Value::DimParam(name.to_owned())), ..Dimension::default() }
}

pub(super) fn tensor_type(kind: DataType, dim: Vec<Dimension>) -> TypeProto {
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

/// Renames the model's own tensor that has the output's name, and its nodes of that name: it may have been cut before.
fn make_way(graph: &mut GraphProto) {
    let renamed = renamed();
    let Some(last) = graph.node.pop() else { return };
    let names = BTreeMap::from([(EMBEDDING, renamed.as_str())]);
    rename_in_nodes(&mut graph.node, &names);
    for node in graph.node.iter_mut().filter(|node| node.name() == EMBEDDING) {
        node.name = Some(renamed.clone());
    }
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

pub(super) fn rename_in_nodes(nodes: &mut [NodeProto], names: &BTreeMap<&str, &str>) {
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
