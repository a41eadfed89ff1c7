//! Nodes in the making: what is put before and behind a network.

use prost::bytes::Bytes;

use super::proto::tensor_proto::DataType;
use super::proto::{AttributeProto, NodeProto, TensorProto};
use super::tensor::{int_attribute, int64_tensor, ints_attribute, node};

/// A setting of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting<'a> {
    /// A number.
    Int(&'a str, i64),
    /// Several numbers.
    Ints(&'a str, &'a [i64]),
}

/// An element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// Bytes.
    Uint8,
    /// 16-bit floating point.
    Float16,
    /// 32-bit floating point.
    Float32,
    /// 64-bit floating point.
    Float64,
    /// 64-bit integers.
    Int64,
}

impl Element {
    pub(super) fn onnx(self) -> DataType {
        match self {
            Self::Uint8 => DataType::Uint8,
            Self::Float16 => DataType::Float16,
            Self::Float32 => DataType::Float,
            Self::Float64 => DataType::Double,
            Self::Int64 => DataType::Int64,
        }
    }
}

/// Nodes of the standard operators and their constants, in order. Every tensor has a name that begins with [`Writer::PREFIX`], unless it
/// is given one.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    pub(super) nodes: Vec<NodeProto>,
    pub(super) initializers: Vec<TensorProto>,
    room: String,
}

impl Writer {
    /// What names of tensors begin with.
    pub const PREFIX: &'static str = "tlpipe/";

    /// Names from now on begin with the prefix and this.
    pub fn enter(&mut self, room: &str) {
        room.clone_into(&mut self.room);
    }

    fn fresh(&self, what: &str) -> String {
        format!("{}{}/{}_{}", Self::PREFIX, self.room, what.to_lowercase(), self.nodes.len() + self.initializers.len())
    }

    /// Adds a node and gives its output.
    pub fn node(&mut self, op_type: &str, inputs: &[&str], settings: &[Setting<'_>]) -> String {
        let output = self.fresh(op_type);
        self.named(op_type, inputs, &output, settings);
        output
    }

    /// Adds a node whose output has this name.
    pub fn named(&mut self, op_type: &str, inputs: &[&str], output: &str, settings: &[Setting<'_>]) {
        let attributes: Vec<AttributeProto> = settings
            .iter()
            .map(|setting| match *setting {
                Setting::Int(name, value) => int_attribute(name, value),
                Setting::Ints(name, values) => ints_attribute(name, values),
            })
            .collect();
        self.nodes.push(node(op_type, inputs, output, attributes));
    }

    /// Adds a conversion.
    pub fn cast(&mut self, input: &str, to: Element) -> String {
        self.node("Cast", &[input], &[Setting::Int("to", to.onnx() as i64)])
    }

    /// Adds a conversion whose output has this name.
    pub fn named_cast(&mut self, input: &str, to: Element, output: &str) {
        self.named("Cast", &[input], output, &[Setting::Int("to", to.onnx() as i64)]);
    }

    /// Adds a constant of float32.
    pub fn floats(&mut self, dims: &[i64], values: &[f32]) -> String {
        self.constant(DataType::Float, dims, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    /// Adds a constant of float64.
    pub fn doubles(&mut self, dims: &[i64], values: &[f64]) -> String {
        self.constant(DataType::Double, dims, values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    /// Adds a number of float64.
    pub fn double(&mut self, value: f64) -> String {
        self.doubles(&[], &[value])
    }

    /// Adds a list of int64.
    pub fn integers(&mut self, values: &[i64]) -> String {
        let name = self.fresh("integers");
        self.initializers.push(TensorProto { name: Some(name.clone()), ..int64_tensor(values) });
        name
    }

    fn constant(&mut self, kind: DataType, dims: &[i64], raw: Vec<u8>) -> String {
        let name = self.fresh("constant");
        self.initializers.push(TensorProto {
            name: Some(name.clone()),
            dims: dims.to_vec(),
            data_type: Some(kind as i32),
            raw_data: Some(Bytes::from(raw)),
            ..TensorProto::default()
        });
        name
    }
}
