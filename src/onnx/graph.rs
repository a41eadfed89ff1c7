//! Questions about a graph: who makes a tensor, who uses it, what it depends on.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::proto::tensor_proto::DataType;
use super::proto::type_proto::Value;
use super::proto::{GraphProto, NodeProto, TensorProto, ValueInfoProto};
use super::tensor;

/// A graph with its tensors indexed by name.
pub(super) struct Graph<'m> {
    pub(super) proto: &'m GraphProto,
    producers: HashMap<&'m str, usize>,
    consumers: HashMap<&'m str, Vec<usize>>,
    initializers: HashMap<&'m str, &'m TensorProto>,
}

impl<'m> Graph<'m> {
    pub(super) fn new(proto: &'m GraphProto) -> Self {
        let mut producers = HashMap::new();
        let mut consumers: HashMap<&str, Vec<usize>> = HashMap::new();
        for (index, node) in proto.node.iter().enumerate() {
            for output in node.output.iter().filter(|name| !name.is_empty()) {
                producers.insert(output.as_str(), index);
            }
            for input in inputs(node) {
                consumers.entry(input).or_default().push(index);
            }
        }
        let initializers = proto.initializer.iter().map(|tensor| (tensor.name(), tensor)).collect();
        Self { proto, producers, consumers, initializers }
    }

    /// The node that makes a tensor.
    pub(super) fn producer(&self, tensor: &str) -> Option<&'m NodeProto> {
        self.producers.get(tensor).map(|&index| &self.proto.node[index])
    }

    /// The nodes that use a tensor.
    pub(super) fn consumers(&self, tensor: &str) -> impl Iterator<Item = &'m NodeProto> + '_ {
        self.consumers.get(tensor).into_iter().flatten().map(|&index| &self.proto.node[index])
    }

    pub(super) fn is_initializer(&self, tensor: &str) -> bool {
        self.initializers.contains_key(tensor)
            || self
                .proto
                .sparse_initializer
                .iter()
                .any(|sparse| sparse.values.as_ref().is_some_and(|values| values.name() == tensor))
    }

    /// The value of a tensor that is written in the model, through nodes that leave it as it is.
    pub(super) fn constant(&self, tensor: &str) -> Option<TensorProto> {
        let mut name = tensor;
        for _ in 0..=self.proto.node.len() {
            if let Some(&value) = self.initializers.get(name) {
                return Some(value.clone());
            }
            let node = self.producer(name)?;
            match node.op_type() {
                "Constant" => return tensor::constant_value(node),
                "Identity" => name = node.input.first()?,
                _ => return None,
            }
        }
        None
    }

    /// Inputs that a caller has to feed: those without a value in the model.
    pub(super) fn fed_inputs(&self) -> impl Iterator<Item = &'m ValueInfoProto> + '_ {
        self.proto.input.iter().filter(|input| !self.is_initializer(input.name()))
    }

    /// Indices of all nodes that a tensor is made by, in the graph's order.
    pub(super) fn ancestors(&self, tensor: &str) -> BTreeSet<usize> {
        let mut found = BTreeSet::new();
        let mut open = vec![tensor];
        while let Some(name) = open.pop() {
            if let Some(&index) = self.producers.get(name)
                && found.insert(index)
            {
                open.extend(inputs(&self.proto.node[index]));
            }
        }
        found
    }

    /// The fed inputs that a tensor depends on.
    pub(super) fn inputs_of(&self, tensor: &str) -> Vec<&'m str> {
        let nodes = self.ancestors(tensor);
        let used: HashSet<&str> = nodes.iter().flat_map(|&index| inputs(&self.proto.node[index])).chain([tensor]).collect();
        self.fed_inputs().map(ValueInfoProto::name).filter(|name| used.contains(name)).collect()
    }

    /// All tensors that change when `input` changes, the input among them.
    pub(super) fn dependents(&self, input: &'m str) -> HashSet<&'m str> {
        let mut found = HashSet::from([input]);
        let mut open = vec![input];
        while let Some(name) = open.pop() {
            for output in self.consumers(name).flat_map(|node| &node.output).filter(|name| !name.is_empty()) {
                if found.insert(output) {
                    open.push(output);
                }
            }
        }
        found
    }

    /// Every name that stands for a tensor and is computed from a fed input or a constant by a node.
    pub(super) fn computed(&self) -> impl Iterator<Item = &'m str> + '_ {
        self.proto.node.iter().flat_map(|node| &node.output).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// The element type of a tensor; none where it cannot be told.
    pub(super) fn element_type(&self, tensor: &str) -> Option<DataType> {
        let mut name = tensor;
        for _ in 0..=self.proto.node.len() {
            if let Some(&value) = self.initializers.get(name) {
                return DataType::try_from(value.data_type()).ok();
            }
            let mut declared = self.proto.input.iter().chain(&self.proto.output).chain(&self.proto.value_info);
            if let Some(known) = declared.find(|info| info.name() == name).and_then(declared_type) {
                return Some(known);
            }
            let node = self.producer(name)?;
            let input = |index: usize| node.input.get(index).filter(|name| !name.is_empty()).map(String::as_str);
            name = match node.op_type() {
                "Cast" => return i32::try_from(tensor::int(node, "to")?).ok().and_then(|to| DataType::try_from(to).ok()),
                "Shape" | "Size" | "ArgMax" | "ArgMin" | "NonZero" => return Some(DataType::Int64),
                "Constant" => return DataType::try_from(tensor::constant_value(node)?.data_type()).ok(),
                "QuantizeLinear" => match input(2) {
                    Some(zero_point) => zero_point,
                    None => return Some(DataType::Uint8),
                },
                "DequantizeLinear" | "Where" | "CastLike" => input(1)?,
                _ => input(0)?,
            };
        }
        None
    }
}

/// The tensors that a node uses, those that its inner graphs take from outside among them.
pub(super) fn inputs(node: &NodeProto) -> Vec<&str> {
    let mut names: Vec<&str> = node.input.iter().map(String::as_str).filter(|name| !name.is_empty()).collect();
    for inner in node.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs)) {
        names.extend(captured(inner));
    }
    names
}

fn captured(graph: &GraphProto) -> Vec<&str> {
    let own: HashSet<&str> = (graph.node.iter().flat_map(|node| &node.output).map(String::as_str))
        .chain(graph.input.iter().map(ValueInfoProto::name))
        .chain(graph.initializer.iter().map(TensorProto::name))
        .collect();
    let outputs = graph.output.iter().map(ValueInfoProto::name);
    graph.node.iter().flat_map(inputs).chain(outputs).filter(|name| !own.contains(name)).collect()
}

/// The declared element type of an input, output or inner tensor.
pub(super) fn declared_type(info: &ValueInfoProto) -> Option<DataType> {
    match info.r#type.as_ref()?.value.as_ref()? {
        Value::TensorType(tensor) => DataType::try_from(tensor.elem_type()).ok().filter(|&kind| kind != DataType::Undefined),
        _ => None,
    }
}

/// How a node is called in messages: operator and name.
pub(super) fn label(node: &NodeProto) -> String {
    if node.name().is_empty() { node.op_type().to_owned() } else { format!("{} \"{}\"", node.op_type(), node.name()) }
}
