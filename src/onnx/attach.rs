//! A network with nodes of our own before and behind it: one graph of one image input.

use std::collections::BTreeMap;

use super::cut::{EMBEDDING, fixed, named, rename_in_nodes, tensor_type};
use super::error::OnnxError;
use super::input::input;
use super::model::Model;
use super::proto::{GraphProto, OperatorSetIdProto, ValueInfoProto};
use super::raise::raise;
use super::writer::{Element, Writer};

/// An input or output of the new graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSpec {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub element: Element,
    /// Sizes of its axes, or names of open ones.
    pub shape: Vec<Axis>,
}

/// One axis of an input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Of this size.
    Fixed(i64),
    /// Of any size, under this name.
    Open(&'static str),
}

impl PortSpec {
    fn info(&self) -> ValueInfoProto {
        let axes = self.shape.iter().map(|axis| match axis {
            Axis::Fixed(size) => fixed(*size),
            Axis::Open(name) => named(name),
        });
        let kind = Some(tensor_type(self.element.onnx(), axes.collect()));
        ValueInfoProto { name: Some(self.name.clone()), r#type: kind, ..ValueInfoProto::default() }
    }
}

/// What stands around a cut network.
pub struct Around {
    /// The new input.
    pub input: PortSpec,
    /// Nodes from the input to the network.
    pub before: Writer,
    /// The tensor of `before` that the network takes as its image.
    pub fed: String,
    /// Nodes from [`EMBEDDING`] to the outputs.
    pub behind: Writer,
    /// The new outputs.
    pub outputs: Vec<PortSpec>,
    /// Version of the standard operators; at least the network's own.
    pub opset: i64,
}

/// Puts nodes around a network that [`super::cut`] made.
///
/// # Errors
/// When the network has no image input, or cannot be brought to this version of the operators.
pub fn attach(cut: &Model, around: Around) -> Result<Model, OnnxError> {
    let Around { input: port, before, fed, behind, outputs, opset } = around;
    let image = input(cut)?.name;
    let raised = raise(cut, opset)?;
    let mut graph = raised.graph().clone();
    clear_names(&mut graph, &image, &fed, &port, &outputs);
    // From version 4 on weights need not be inputs.
    graph.input = vec![port.info()];
    graph.output = outputs.iter().map(PortSpec::info).collect();
    graph.value_info = Vec::new();
    graph.name = Some("classifier".to_owned());
    let inner = std::mem::take(&mut graph.node);
    graph.node = before.nodes.into_iter().chain(inner).chain(behind.nodes).collect();
    graph.initializer.extend(before.initializers);
    graph.initializer.extend(behind.initializers);
    Ok(raised.with_graph(graph).with_versions(opset))
}

/// Gives the image the name of the tensor that feeds it, and other names to tensors that are called like ours.
fn clear_names(graph: &mut GraphProto, image: &str, fed: &str, port: &PortSpec, outputs: &[PortSpec]) {
    let ours: Vec<&str> = outputs.iter().chain([port]).map(|port| port.name.as_str()).collect();
    let made = graph.node.iter().flat_map(|node| &node.output).map(String::as_str);
    let held = graph.initializer.iter().map(super::proto::TensorProto::name);
    let taken = |name: &&str| *name != image && (ours.contains(name) || name.starts_with(Writer::PREFIX));
    let clashes: Vec<String> = made.chain(held).filter(taken).map(str::to_owned).collect();
    let renamed: Vec<(String, String)> =
        clashes.into_iter().map(|name| (name.clone(), format!("backbone/{name}"))).chain([(image.into(), fed.into())]).collect();
    let names: BTreeMap<&str, &str> = renamed.iter().map(|(old, new)| (old.as_str(), new.as_str())).collect();
    rename_in_nodes(&mut graph.node, &names);
    for tensor in &mut graph.initializer {
        if let Some(new) = names.get(tensor.name()) {
            tensor.name = Some((*new).to_owned());
        }
    }
    debug_assert!(!names.contains_key(EMBEDDING), "the output of a cut keeps its name");
}

impl Model {
    /// The same model with the standard operators of this version, and the version of the format that they came with.
    fn with_versions(self, opset: i64) -> Self {
        let format = match opset {
            ..=12 => 7,
            13..=14 => 7,
            15..=18 => 8,
            19..=20 => 9,
            21..=22 => 10,
            _ => 11,
        };
        self.change(|proto| {
            proto.ir_version = Some(proto.ir_version().max(format));
            let standard = |entry: &OperatorSetIdProto| entry.domain().is_empty() || entry.domain() == "ai.onnx";
            proto.opset_import.retain(|entry| !standard(entry));
            proto.opset_import.insert(0, OperatorSetIdProto { domain: Some(String::new()), version: Some(opset) });
            proto.producer_name = Some("tlpipe".to_owned());
            proto.producer_version = Some(env!("CARGO_PKG_VERSION").to_owned());
        })
    }

    /// The same model that also gives inner tensors of float32, so that they can be looked at.
    #[must_use]
    pub fn with_outputs(self, tensors: &[&str]) -> Self {
        self.change(|proto| {
            for tensor in tensors {
                let kind = super::proto::type_proto::Tensor { elem_type: Some(Element::Float32.onnx() as i32), shape: None };
                let value = super::proto::type_proto::Value::TensorType(kind);
                let info = ValueInfoProto {
                    name: Some((*tensor).to_owned()),
                    r#type: Some(super::proto::TypeProto { value: Some(value), ..Default::default() }),
                    ..ValueInfoProto::default()
                };
                proto.graph.iter_mut().for_each(|graph| graph.output.push(info.clone()));
            }
        })
    }
}
