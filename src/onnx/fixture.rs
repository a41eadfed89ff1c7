//! Small networks for tests, put together layer by layer.

use prost::Message as _;
use prost::bytes::Bytes;

use super::model::Model;
use super::proto::attribute_proto::AttributeType;
use super::proto::tensor_proto::DataType;
use super::proto::tensor_shape_proto::{Dimension, dimension};
use super::proto::type_proto::{self, Value};
use super::proto::*;
use super::tensor::{half_bits, int_attribute, int64_tensor, ints_attribute, node};

/// A network in the making; every layer takes the output of the one before.
#[derive(Clone)]
pub(super) struct Builder {
    pub(super) graph: GraphProto,
    opset: i64,
    ir_version: i64,
    /// The latest tensor.
    pub(super) last: String,
    pub(super) channels: i64,
    kind: DataType,
    outputs: Vec<String>,
    seed: u64,
}

impl Builder {
    /// Input `image` float32 `[N, 3, 32, 32]` with an open batch.
    pub(super) fn nchw(opset: i64) -> Self {
        Self::new(opset, &[0, 3, 32, 32], DataType::Float)
    }

    /// Input `image` float32 `[N, 32, 32, 3]`, moved to NCHW first as converters do.
    pub(super) fn nhwc(opset: i64) -> Self {
        Self::new(opset, &[0, 32, 32, 3], DataType::Float).op_with("Transpose", vec![ints_attribute("perm", &[0, 3, 1, 2])])
    }

    /// Zero stands for an open size.
    pub(super) fn new(opset: i64, shape: &[i64], kind: DataType) -> Self {
        let ir_version = match opset {
            ..9 => 3,
            9..13 => 5,
            _ => 8,
        };
        let graph =
            GraphProto { name: Some("network".into()), input: vec![value_info("image", kind, shape)], ..GraphProto::default() };
        let float = if kind == DataType::Float16 { DataType::Float16 } else { DataType::Float };
        Self { graph, opset, ir_version, last: "image".into(), channels: 3, kind: float, outputs: vec![], seed: 7 }
    }

    /// A weight tensor of small random values.
    pub(super) fn weight(&mut self, name: &str, dims: &[i64]) {
        let count = dims.iter().product::<i64>();
        let fan = dims.iter().skip(1).product::<i64>().max(1) as f32;
        let mut values = Vec::new();
        for _ in 0..count {
            self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            values.push(((self.seed >> 40) as f32 / (1_u64 << 24) as f32 - 0.5) * 3.0 / fan.sqrt());
        }
        self.floats(name, dims, &values);
    }

    /// A tensor of given values, stored in the network's float type.
    pub(super) fn floats(&mut self, name: &str, dims: &[i64], values: &[f32]) {
        let raw: Vec<u8> = match self.kind {
            DataType::Float16 => values.iter().flat_map(|&value| half_bits(value).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        };
        self.initializer(
            name,
            TensorProto {
                dims: dims.to_vec(),
                data_type: Some(self.kind as i32),
                raw_data: Some(Bytes::from(raw)),
                ..TensorProto::default()
            },
        );
    }

    pub(super) fn integers(&mut self, name: &str, values: &[i64]) {
        self.initializer(name, int64_tensor(values));
    }

    fn initializer(&mut self, name: &str, tensor: TensorProto) {
        if self.ir_version < 4 {
            let kind = DataType::try_from(tensor.data_type()).unwrap();
            self.graph.input.push(value_info(name, kind, &tensor.dims));
        }
        self.graph.initializer.push(TensorProto { name: Some(name.into()), ..tensor });
    }

    fn fresh(&self, op_type: &str) -> String {
        format!("{}_{}", op_type.to_lowercase(), self.graph.node.len())
    }

    /// Adds a node with these inputs; the latest tensor is its output.
    pub(super) fn node(mut self, op_type: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> Self {
        let output = self.fresh(op_type);
        let mut node = node(op_type, inputs, &output, attributes);
        node.name = Some(format!("node_{output}"));
        self.graph.node.push(node);
        self.last = output;
        self
    }

    /// Adds a node on the latest tensor.
    pub(super) fn op(self, op_type: &str) -> Self {
        self.op_with(op_type, vec![])
    }

    pub(super) fn op_with(self, op_type: &str, attributes: Vec<AttributeProto>) -> Self {
        let last = self.last.clone();
        self.node(op_type, &[&last], attributes)
    }

    /// A node on the latest tensor and a float constant.
    pub(super) fn op_by(mut self, op_type: &str, dims: &[i64], values: &[f32]) -> Self {
        let name = format!("{}_value", self.fresh(op_type));
        self.floats(&name, dims, values);
        let last = self.last.clone();
        self.node(op_type, &[&last, &name], vec![])
    }

    /// Convolution with a square kernel, padded to keep the size before the stride.
    pub(super) fn conv(mut self, channels: i64, kernel: i64, stride: i64) -> Self {
        let name = format!("{}_weight", self.fresh("Conv"));
        self.weight(&name, &[channels, self.channels, kernel, kernel]);
        self.channels = channels;
        let (last, pad) = (self.last.clone(), kernel / 2);
        let attributes = vec![
            ints_attribute("kernel_shape", &[kernel, kernel]),
            ints_attribute("strides", &[stride, stride]),
            ints_attribute("pads", &[pad, pad, pad, pad]),
        ];
        self.node("Conv", &[&last, &name], attributes)
    }

    /// Two strided convolutions: `[N, 16, side / 4, side / 4]`.
    pub(super) fn backbone(self) -> Self {
        self.conv(8, 3, 2).op("Relu").conv(16, 3, 2).op("Relu")
    }

    pub(super) fn reshape(mut self, target: &[i64]) -> Self {
        let name = format!("{}_target", self.fresh("Reshape"));
        self.integers(&name, target);
        let last = self.last.clone();
        self.node("Reshape", &[&last, &name], vec![])
    }

    /// Gemm with a bias, weights stored `[units, width]`.
    pub(super) fn gemm(mut self, width: i64, units: i64) -> Self {
        let (weight, bias) = (format!("{}_weight", self.fresh("Gemm")), format!("{}_bias", self.fresh("Gemm")));
        self.weight(&weight, &[units, width]);
        self.weight(&bias, &[units]);
        let last = self.last.clone();
        self.node("Gemm", &[&last, &weight, &bias], vec![int_attribute("transB", 1)])
    }

    /// MatMul and Add.
    pub(super) fn matmul(mut self, width: i64, units: i64) -> Self {
        let (weight, bias) = (format!("{}_weight", self.fresh("MatMul")), format!("{}_bias", self.fresh("MatMul")));
        self.weight(&weight, &[width, units]);
        self.weight(&bias, &[units]);
        let last = self.last.clone();
        let with_product = self.node("MatMul", &[&last, &weight], vec![]);
        let last = with_product.last.clone();
        with_product.node("Add", &[&last, &bias], vec![])
    }

    pub(super) fn flatten(self) -> Self {
        self.op_with("Flatten", vec![int_attribute("axis", 1)])
    }

    /// An average over axes, written as the operator set wants it.
    pub(super) fn mean(mut self, op_type: &str, axes: &[i64], keep: bool) -> Self {
        let keep = int_attribute("keepdims", i64::from(keep));
        if self.opset < 18 {
            return self.op_with(op_type, vec![ints_attribute("axes", axes), keep]);
        }
        let name = format!("{}_axes", self.fresh(op_type));
        self.integers(&name, axes);
        let last = self.last.clone();
        self.node(op_type, &[&last, &name], vec![keep])
    }

    /// An average pooling with a window of fixed size.
    pub(super) fn average_pool(self, kernel: i64) -> Self {
        self.op_with("AveragePool", vec![ints_attribute("kernel_shape", &[kernel, kernel])])
    }

    /// Marks the latest tensor as an output.
    pub(super) fn output(mut self) -> Self {
        self.outputs.push(self.last.clone());
        self
    }

    /// The usual classifier: backbone, global pooling, Flatten, Gemm, Softmax.
    pub(super) fn classifier(self) -> Model {
        self.backbone().op("GlobalAveragePool").flatten().gemm(16, 10).op("Softmax").finish()
    }

    /// The model; the latest tensor is its output if none was marked.
    pub(super) fn finish(mut self) -> Model {
        if self.outputs.is_empty() {
            self.outputs.push(self.last.clone());
        }
        let kind = self.kind;
        self.graph.output = self.outputs.iter().map(|name| open_info(name, kind)).collect();
        let proto = ModelProto {
            ir_version: Some(self.ir_version),
            producer_name: Some("fixture".into()),
            opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(self.opset) }],
            graph: Some(self.graph),
            metadata_props: vec![StringStringEntryProto { key: Some("purpose".into()), value: Some("test".into()) }],
            ..ModelProto::default()
        };
        Model::from_bytes(&proto.encode_to_vec(), "fixture.onnx").unwrap()
    }
}

/// An input or output; zero stands for an open size.
pub(super) fn value_info(name: &str, kind: DataType, shape: &[i64]) -> ValueInfoProto {
    let dim = |(axis, &size): (usize, &i64)| {
        let value = if size == 0 { dimension::Value::DimParam(format!("d{axis}")) } else { dimension::Value::DimValue(size) };
        Dimension { value: Some(value), ..Dimension::default() }
    };
    let shape = TensorShapeProto { dim: shape.iter().enumerate().map(dim).collect() };
    typed(name, kind, Some(shape))
}

/// An output of unknown shape, as many exports declare them.
fn open_info(name: &str, kind: DataType) -> ValueInfoProto {
    typed(name, kind, None)
}

fn typed(name: &str, kind: DataType, shape: Option<TensorShapeProto>) -> ValueInfoProto {
    let tensor = type_proto::Tensor { elem_type: Some(kind as i32), shape };
    let r#type = Some(TypeProto { value: Some(Value::TensorType(tensor)), ..TypeProto::default() });
    ValueInfoProto { name: Some(name.into()), r#type, ..ValueInfoProto::default() }
}

/// A text attribute.
pub(super) fn text_attribute(name: &str, value: &str) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        r#type: Some(AttributeType::String as i32),
        s: Some(value.as_bytes().to_vec()),
        ..AttributeProto::default()
    }
}
