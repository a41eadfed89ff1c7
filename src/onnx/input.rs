//! The image input: which of a model's inputs it is, and how its axes are laid out.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::error::OnnxError;
use super::graph::{Graph, declared_type};
use super::model::Model;
use super::proto::ValueInfoProto;
use super::proto::tensor_proto::DataType;
use super::proto::tensor_shape_proto::dimension;
use super::proto::type_proto::Value;
use super::shapes::{Shape, declared_shape};
use super::{rules, tensor};

/// Order of the axes of an image tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// `[N, 3, H, W]`: PyTorch, the ONNX Model Zoo.
    Nchw,
    /// `[N, H, W, 3]`: TensorFlow.
    Nhwc,
}

impl Layout {
    /// The axes of height and width.
    pub fn spatial_axes(self) -> [usize; 2] {
        match self {
            Self::Nchw => [2, 3],
            Self::Nhwc => [1, 2],
        }
    }

    /// The shape of a batch of colour images.
    pub(super) fn shape(self, batch: i64, height: i64, width: i64) -> [i64; 4] {
        match self {
            Self::Nchw => [batch, 3, height, width],
            Self::Nhwc => [batch, height, width, 3],
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nchw => "NCHW",
            Self::Nhwc => "NHWC",
        })
    }
}

/// Element type of the image input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InputType {
    /// 32-bit floating point.
    Float32,
    /// 16-bit floating point. A cut model takes float32 in its place and converts.
    Float16,
    /// Bytes, 0 to 255.
    Uint8,
}

impl InputType {
    fn from_onnx(kind: DataType) -> Option<Self> {
        match kind {
            DataType::Float => Some(Self::Float32),
            DataType::Float16 => Some(Self::Float16),
            DataType::Uint8 => Some(Self::Uint8),
            _ => None,
        }
    }
}

impl fmt::Display for InputType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Float32 => "float32",
            Self::Float16 => "float16",
            Self::Uint8 => "uint8",
        })
    }
}

/// The image input of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Input {
    /// Name in the graph.
    pub name: String,
    /// Element type.
    pub dtype: InputType,
    /// Order of the axes.
    pub layout: Layout,
    /// How the order of the axes was told.
    pub layout_reason: String,
    /// Declared sizes in the order of `layout`; `null` where any size is accepted.
    pub shape: Vec<Option<i64>>,
    /// Side in pixels where height and width are declared, and equal.
    pub side: Option<u32>,
}

impl Input {
    /// Declared batch size; none where it is open.
    pub fn batch(&self) -> Option<i64> {
        self.shape.first().copied().flatten()
    }

    /// Declared height and width, pixels; none where both are open.
    pub fn fixed_size(&self) -> Option<(i64, i64)> {
        let [height, width] = self.layout.spatial_axes().map(|axis| self.shape.get(axis).copied().flatten());
        height.zip(width)
    }
}

/// Finds the image input: four axes, three channels, float32, float16 or uint8.
///
/// # Errors
/// When no input is like that.
pub fn input(model: &Model) -> Result<Input, OnnxError> {
    let graph = Graph::new(model.graph());
    graph.fed_inputs().find_map(|info| as_image(&graph, info)).ok_or_else(|| {
        let inputs: Vec<String> = graph.fed_inputs().map(describe).collect();
        let inputs = if inputs.is_empty() { "no input at all".to_owned() } else { inputs.join(", ") };
        OnnxError::NoImageInput { origin: model.origin().to_owned(), inputs }
    })
}

fn as_image(graph: &Graph, info: &ValueInfoProto) -> Option<Input> {
    let dtype = InputType::from_onnx(declared_type(info)?)?;
    let shape = declared_shape(info).unwrap_or_else(|| vec![None; 4]);
    if shape.len() != 4 {
        return None;
    }
    let (layout, layout_reason) = layout(graph, info.name(), &shape)?;
    let [height, width] = layout.spatial_axes().map(|axis| shape[axis]);
    let side = height.filter(|_| height == width).and_then(|side| u32::try_from(side).ok());
    Some(Input { name: info.name().to_owned(), dtype, layout, layout_reason, shape, side })
}

fn layout(graph: &Graph, name: &str, shape: &Shape) -> Option<(Layout, String)> {
    let three = |axis: usize| shape[axis] == Some(3);
    let may_be = |axis: usize| shape[axis].is_none_or(|size| size == 3);
    match (three(1), three(3)) {
        (true, false) => return Some((Layout::Nchw, "axis 1 of the input has 3 channels".to_owned())),
        (false, true) => return Some((Layout::Nhwc, "axis 3 of the input has 3 channels".to_owned())),
        _ => {}
    }
    // The declared shape leaves it open: the first operator that cares decides.
    let mut name = name;
    for _ in 0..graph.proto.node.len() {
        let node = graph.consumers(name).next()?;
        match node.op_type() {
            "Conv" => {
                let weight = graph.constant(node.input.get(1)?)?;
                let fits = may_be(1) && weight.dims.get(1) == Some(&3);
                return fits.then(|| (Layout::Nchw, "the first convolution takes axis 1 as its 3 channels".to_owned()));
            }
            "Transpose" => {
                let fits = may_be(3) && tensor::ints(node, "perm") == Some(&[0, 3, 1, 2]);
                return fits.then(|| (Layout::Nhwc, "the graph begins by moving axis 3, the channels, to axis 1".to_owned()));
            }
            "Cast" | "Identity" | "Add" | "Sub" | "Mul" | "Div" | "Pad" | "BatchNormalization" | "QuantizeLinear"
            | "DequantizeLinear" => {}
            op if rules::is_activation(op) => {}
            _ => return None,
        }
        name = node.output.first()?;
    }
    None
}

fn describe(info: &ValueInfoProto) -> String {
    let kind = declared_type(info).map_or("?".to_owned(), |kind| kind.as_str_name().to_lowercase());
    let Some(Value::TensorType(tensor)) = info.r#type.as_ref().and_then(|kind| kind.value.as_ref()) else {
        return format!("{:?} (no tensor)", info.name());
    };
    let size = |value: &Option<dimension::Value>| match value {
        Some(dimension::Value::DimValue(size)) => size.to_string(),
        Some(dimension::Value::DimParam(name)) => name.clone(),
        None => "?".to_owned(),
    };
    let sizes: Vec<String> = tensor.shape.iter().flat_map(|shape| &shape.dim).map(|dim| size(&dim.value)).collect();
    format!("{:?} {kind} [{}]", info.name(), sizes.join(", "))
}
