//! The trained network as an ONNX model, and back.

use anyhow::{Context as _, Result, ensure};
use prost::Message as _;
use tlpipe::onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto, TensorShapeProto,
    TypeProto, ValueInfoProto, attribute_proto::AttributeType, tensor_proto::DataType, tensor_shape_proto, type_proto,
};

use super::network::{Kind, Layer, Network};

const DESCRIPTION: &str = "A small MobileNetV2 trained by tlpipe on sixteen kinds of drawn figures, for tlpipe's quickstart only. \
    Input: RGB, 64 x 64, (x / 127.5) - 1.";

/// Serializes the network with a classifier over `classes` on top.
pub fn to_onnx(network: &Network, parameters: &[f32], classes: &[&str]) -> Vec<u8> {
    let mut graph = Graph::default();
    let mut maps = vec!["image".to_owned()];
    for (index, layer) in network.layers.iter().enumerate() {
        let output = graph.convolution(index, layer, &maps, parameters);
        maps.push(output);
    }
    let (features, classes_count) = (network.features as i64, network.classes as i64);
    let pooled = graph.node("GlobalAveragePool", "pool", &[&maps[network.layers.len()]], vec![]);
    let flat = graph.node("Flatten", "flatten", &[&pooled], vec![integer("axis", 1)]);
    let weight = graph.tensor("classifier.weight", &[classes_count, features], &parameters[network.weights.clone()]);
    let bias = graph.tensor("classifier.bias", &[classes_count], &parameters[network.bias.clone()]);
    let logits = graph.node("Gemm", "classifier", &[&flat, &weight, &bias], vec![integer("transB", 1)]);
    let probabilities = graph.node("Softmax", "probabilities", &[&logits], vec![integer("axis", 1)]);
    let side = network.side as i64;
    let metadata = [("tlpipe.pretraining_classes", classes.join(", "))];
    ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(13) }],
        producer_name: Some("tlpipe quickstart_backbone".to_owned()),
        doc_string: Some(DESCRIPTION.to_owned()),
        graph: Some(GraphProto {
            name: Some("quickstart".to_owned()),
            node: graph.nodes,
            initializer: graph.tensors,
            input: vec![value("image", &[None, Some(3), Some(side), Some(side)])],
            output: vec![value(&probabilities, &[None, Some(classes_count)])],
            ..GraphProto::default()
        }),
        metadata_props: metadata
            .map(|(key, value)| StringStringEntryProto { key: Some(key.to_owned()), value: Some(value) })
            .to_vec(),
        ..ModelProto::default()
    }
    .encode_to_vec()
}

/// The parameters of a model that [`to_onnx`] wrote: its tensors lie in the order of the parameter vector.
pub fn parameters_of(network: &Network, model: &[u8]) -> Result<Vec<f32>> {
    let graph = ModelProto::decode(model)?.graph.context("the model has no graph")?;
    let bytes: Vec<u8> = graph.initializer.iter().flat_map(|tensor| tensor.raw_data.iter().flatten().copied()).collect();
    ensure!(bytes.len() == network.parameters * 4, "the model is of another shape; train it again");
    Ok(bytes.as_chunks().0.iter().map(|value| f32::from_le_bytes(*value)).collect())
}

#[derive(Default)]
struct Graph {
    nodes: Vec<NodeProto>,
    tensors: Vec<TensorProto>,
}

impl Graph {
    /// Adds a convolution with what follows it; returns the name of its output.
    fn convolution(&mut self, index: usize, layer: &Layer, maps: &[String], parameters: &[f32]) -> String {
        let (group, kernel) = match layer.kind {
            Kind::Dense => (1, 3),
            Kind::Depthwise => (layer.inputs, 3),
            Kind::Pointwise => (1, 1),
        };
        let name = format!("conv{index:02}");
        let dims = [layer.outputs, layer.inputs / group, kernel, kernel].map(|dim| dim as i64);
        let weight = self.tensor(&format!("{name}.weight"), &dims, &parameters[layer.weights.clone()]);
        let bias = self.tensor(&format!("{name}.bias"), &dims[..1], &parameters[layer.bias.clone()]);
        let attributes = vec![
            integer("group", group as i64),
            integers("kernel_shape", &[kernel as i64; 2]),
            integers("pads", &[kernel as i64 / 2; 4]),
            integers("strides", &[layer.stride as i64; 2]),
        ];
        let mut output = self.node("Conv", &name, &[&maps[index], &weight, &bias], attributes);
        if layer.relu6 {
            let limits = [("min", 0.0), ("max", 6.0)].map(|(limit, value)| self.tensor_scalar(&format!("{name}.{limit}"), value));
            output = self.node("Clip", &format!("{name}.relu6"), &[&output, &limits[0], &limits[1]], vec![]);
        }
        if let Some(source) = layer.residual {
            output = self.node("Add", &format!("{name}.residual"), &[&output, &maps[source]], vec![]);
        }
        output
    }

    /// Adds a node; its only output is named after it.
    fn node(&mut self, op: &str, name: &str, inputs: &[&str], attribute: Vec<AttributeProto>) -> String {
        self.nodes.push(NodeProto {
            op_type: Some(op.to_owned()),
            name: Some(name.to_owned()),
            input: inputs.iter().map(|&input| input.to_owned()).collect(),
            output: vec![name.to_owned()],
            attribute,
            ..NodeProto::default()
        });
        name.to_owned()
    }

    fn tensor(&mut self, name: &str, dims: &[i64], values: &[f32]) -> String {
        self.tensors.push(TensorProto {
            name: Some(name.to_owned()),
            dims: dims.to_vec(),
            data_type: Some(DataType::Float as i32),
            raw_data: Some(values.iter().flat_map(|value| value.to_le_bytes()).collect()),
            ..TensorProto::default()
        });
        name.to_owned()
    }

    /// A constant, kept apart from the trained parameters.
    fn tensor_scalar(&mut self, name: &str, value: f32) -> String {
        let tensor = TensorProto { data_type: Some(DataType::Float as i32), float_data: vec![value], ..TensorProto::default() };
        let attribute = AttributeProto {
            name: Some("value".to_owned()),
            r#type: Some(AttributeType::Tensor as i32),
            t: Some(tensor),
            ..AttributeProto::default()
        };
        self.node("Constant", name, &[], vec![attribute])
    }
}

fn integer(name: &str, value: i64) -> AttributeProto {
    let kind = Some(AttributeType::Int as i32);
    AttributeProto { name: Some(name.to_owned()), r#type: kind, i: Some(value), ..AttributeProto::default() }
}

fn integers(name: &str, values: &[i64]) -> AttributeProto {
    let kind = Some(AttributeType::Ints as i32);
    AttributeProto { name: Some(name.to_owned()), r#type: kind, ints: values.to_vec(), ..AttributeProto::default() }
}

/// A float tensor at the border of the graph; the batch is open.
fn value(name: &str, dims: &[Option<i64>]) -> ValueInfoProto {
    use tensor_shape_proto::{Dimension, dimension::Value};
    let dim = dims.iter().map(|dim| Dimension {
        value: Some(dim.map_or_else(|| Value::DimParam("batch".to_owned()), Value::DimValue)),
        ..Dimension::default()
    });
    let shape = Some(TensorShapeProto { dim: dim.collect() });
    let tensor = type_proto::Tensor { elem_type: Some(DataType::Float as i32), shape };
    let kind = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
    ValueInfoProto { name: Some(name.to_owned()), r#type: Some(kind), ..ValueInfoProto::default() }
}
