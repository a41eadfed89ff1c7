//! Small networks of the families that people use, for tests of taps.

use super::fixture::{Builder, value_info};
use super::model::Model;
use super::proto::tensor_proto::DataType;
use super::tensor::{int_attribute, ints_attribute};

impl Builder {
    /// A batch normalization with values that change something.
    fn batch_norm(mut self) -> Self {
        let (channels, number) = (self.channels, self.graph.node.len());
        let size = usize::try_from(channels).unwrap();
        let ramp = |from: f32, step: f32| (0..size).map(|channel| from + step * channel as f32).collect::<Vec<_>>();
        let names = ["scale", "shift", "mean", "variance"].map(|name| format!("bn_{number}_{name}"));
        for (name, values) in names.iter().zip([ramp(1.0, 0.05), ramp(0.2, -0.01), ramp(-0.1, 0.02), ramp(0.8, 0.03)]) {
            self.floats(name, &[channels], &values);
        }
        let last = self.last.clone();
        self.node("BatchNormalization", &[&last, &names[0], &names[1], &names[2], &names[3]], vec![])
    }

    /// The latest tensor and another one.
    fn with(self, op: &str, other: &str) -> Self {
        let last = self.last.clone();
        self.node(op, &[&last, other], vec![])
    }

    fn with_axis(self, op: &str, other: &str, axis: i64) -> Self {
        let last = self.last.clone();
        self.node(op, &[&last, other], vec![int_attribute("axis", axis)])
    }

    /// Goes on from another tensor of so many channels.
    fn from(mut self, tensor: &str, channels: i64) -> Self {
        self.last = tensor.to_owned();
        self.channels = channels;
        self
    }

    /// Convolution of each channel by itself.
    fn depthwise(mut self, stride: i64) -> Self {
        let (channels, name) = (self.channels, format!("depthwise_{}_weight", self.graph.node.len()));
        self.weight(&name, &[channels, 1, 3, 3]);
        let last = self.last.clone();
        let attributes = vec![
            int_attribute("group", channels),
            ints_attribute("kernel_shape", &[3, 3]),
            ints_attribute("strides", &[stride, stride]),
            ints_attribute("pads", &[1, 1, 1, 1]),
        ];
        self.node("Conv", &[&last, &name], attributes)
    }

    fn max_pool(self) -> Self {
        self.op_with("MaxPool", vec![ints_attribute("kernel_shape", &[2, 2]), ints_attribute("strides", &[2, 2])])
    }

    /// `x * Sigmoid(x)`.
    fn swish(self) -> Self {
        let x = self.last.clone();
        self.op("Sigmoid").with("Mul", &x)
    }

    /// `x * Clip(x + 3, 0, 6) / 6`, as PyTorch writes it.
    fn hard_swish(self) -> Self {
        let x = self.last.clone();
        self.op_by("Add", &[], &[3.0]).clip().op_by("Div", &[], &[6.0]).with("Mul", &x)
    }

    fn clip(mut self) -> Self {
        let number = self.graph.node.len();
        let (low, high) = (format!("low_{number}"), format!("high_{number}"));
        self.floats(&low, &[], &[0.0]);
        self.floats(&high, &[], &[6.0]);
        let last = self.last.clone();
        self.node("Clip", &[&last, &low, &high], vec![])
    }

    /// `x * (1 + Erf(x / √2)) / 2`.
    fn gelu(self) -> Self {
        let x = self.last.clone();
        let curve = self.op_by("Div", &[], &[std::f32::consts::SQRT_2]).op("Erf").op_by("Add", &[], &[1.0]);
        curve.with("Mul", &x).op_by("Mul", &[], &[0.5])
    }

    /// Squeeze and excite: gates from 0 to 1 for each channel.
    fn squeeze_excite(self) -> Self {
        let (x, channels) = (self.last.clone(), self.channels);
        let gate = self.op("GlobalAveragePool").conv(4, 1, 1).swish().conv(channels, 1, 1).op("Sigmoid");
        gate.with("Mul", &x)
    }

    fn layer_norm(mut self, width: i64) -> Self {
        let (scale, shift) = (format!("ln_{}_scale", self.graph.node.len()), format!("ln_{}_shift", self.graph.node.len()));
        self.floats(&scale, &[width], &vec![1.1; usize::try_from(width).unwrap()]);
        self.floats(&shift, &[width], &vec![0.1; usize::try_from(width).unwrap()]);
        let last = self.last.clone();
        self.node("LayerNormalization", &[&last, &scale, &shift], vec![int_attribute("axis", -1)])
    }

    fn top(self) -> Model {
        let channels = self.channels;
        self.op("GlobalAveragePool").flatten().gemm(channels, 10).op("Softmax").finish()
    }
}

/// Batch normalization and sums, the second block with a stride: 8, 8, 8 and 16 channels before the cut of 16.
pub(crate) fn resnet(opset: i64) -> Model {
    let block = |net: Builder, channels: i64, stride: i64| {
        let (x, before) = (net.last.clone(), net.channels);
        let made = net.conv(channels, 3, stride).batch_norm().op("Relu").conv(channels, 3, 1).batch_norm();
        let branch = made.last.clone();
        let skip = made.from(&x, before);
        let skip = if stride == 1 { skip } else { skip.conv(channels, 1, stride).batch_norm() };
        skip.with("Add", &branch).op("Relu")
    };
    let stem = Builder::nchw(opset).conv(8, 3, 2).batch_norm().op("Relu");
    block(block(stem, 8, 1), 16, 2).top()
}

/// A small classifier that takes images as bytes.
pub(crate) fn of_bytes() -> Model {
    let net = Builder::new(13, &[0, 3, 32, 32], DataType::Uint8);
    net.op_with("Cast", vec![int_attribute("to", DataType::Float as i64)]).op_by("Div", &[], &[255.0]).classifier()
}

/// A small classifier of float16 throughout.
pub(crate) fn of_half() -> Model {
    Builder::new(13, &[0, 3, 32, 32], DataType::Float16).classifier()
}

/// Inverted bottlenecks with Swish, or HardSwish in parts, and squeeze-and-excite: 8, 24, 24, 24 and 24 channels before the
/// cut of 32.
pub(crate) fn efficientnet(opset: i64, hard: bool) -> Model {
    let curve = |net: Builder| if hard { net.hard_swish() } else { net.swish() };
    let block = |net: Builder, stride: i64| {
        let x = net.last.clone();
        let net = curve(net.conv(24, 1, 1).batch_norm()).depthwise(stride).batch_norm();
        let net = curve(net).squeeze_excite().conv(8, 1, 1).batch_norm();
        if stride == 1 { net.with("Add", &x) } else { net }
    };
    let stem = curve(Builder::nchw(opset).conv(8, 3, 2).batch_norm());
    curve(block(block(stem, 1), 2).conv(32, 1, 1).batch_norm()).top()
}

/// Convolutions and dense layers on a flattened map: 8, 8 and 16 channels before the cut of 16, the last pooling.
pub(crate) fn vgg() -> Model {
    let net = Builder::nchw(13).conv(8, 3, 1).op("Relu").conv(8, 3, 1).op("Relu").max_pool().conv(16, 3, 1).op("Relu").max_pool();
    net.flatten().gemm(1024, 32).op("Relu").op("Dropout").gemm(32, 10).op("Softmax").finish()
}

/// Layers on all that came before, put side by side, and a transition: activations of 8, 8, 14, 20 and 10 channels before the
/// cut of 16.
pub(crate) fn densenet() -> Model {
    let layer = |net: Builder| {
        let (x, before) = (net.last.clone(), net.channels);
        let made = net.batch_norm().op("Relu").conv(6, 3, 1);
        let new = made.last.clone();
        let net = made.node("Concat", &[&x, &new], vec![int_attribute("axis", 1)]);
        let joined = net.last.clone();
        net.from(&joined, before + 6)
    };
    let net = layer(layer(Builder::nchw(13).conv(8, 3, 2).batch_norm().op("Relu"))).batch_norm().op("Relu").conv(10, 1, 1);
    let pooled = net.op_with("AveragePool", vec![ints_attribute("kernel_shape", &[2, 2]), ints_attribute("strides", &[2, 2])]);
    layer(pooled).batch_norm().op("Relu").top()
}

/// Branches of equal size, side by side: activations of 8, then 6, 6 and 4 channels before the cut of 12.
pub(crate) fn inception() -> Model {
    let stem = Builder::nchw(13).conv(8, 3, 2).op("Relu");
    let x = stem.last.clone();
    let one = stem.conv(6, 1, 1).op("Relu");
    let first = one.last.clone();
    let two = one.from(&x, 8).conv(6, 3, 1).op("Relu");
    let second = two.last.clone();
    let pooling = vec![ints_attribute("kernel_shape", &[3, 3]), ints_attribute("pads", &[1, 1, 1, 1])];
    let three = two.from(&x, 8).op_with("MaxPool", pooling).conv(4, 1, 1).op("Relu");
    let third = three.last.clone();
    let net = three.node("Concat", &[&first, &second, &third], vec![int_attribute("axis", 1)]);
    let joined = net.last.clone();
    net.from(&joined, 16).conv(12, 3, 2).op("Relu").top()
}

/// Patches of 8 x 8 pixels as tokens behind a class token, two blocks of attention and a perceptron, the class token to the top:
/// 24 and 24 values before the cut of 24.
pub(crate) fn vision_transformer() -> Model {
    let mut net = Builder::new(17, &[0, 3, 32, 32], DataType::Float);
    net.weight("patch", &[24, 3, 8, 8]);
    let patches = vec![ints_attribute("kernel_shape", &[8, 8]), ints_attribute("strides", &[8, 8])];
    let net = net.node("Conv", &["image", "patch"], patches).reshape(&[0, 24, 16]);
    let mut net = net.op_with("Transpose", vec![ints_attribute("perm", &[0, 2, 1])]);
    net.weight("class_token", &[1, 1, 24]);
    net.weight("positions", &[1, 17, 24]);
    net.integers("zero", &[0]);
    net.integers("one_token", &[1, 24]);
    let patches = net.last.clone();
    let net = net.op("Shape").with("Gather", "zero").with_axis("Concat", "one_token", 0);
    let target = net.last.clone();
    let net = net.node("Expand", &["class_token", &target], vec![]).with_axis("Concat", &patches, 1).with("Add", "positions");
    let net = transformer_block(transformer_block(net)).layer_norm(24);
    let tokens = net.last.clone();
    let first = net.node("Gather", &[&tokens, "zero"], vec![int_attribute("axis", 1)]);
    first.flatten().gemm(24, 10).finish()
}

/// Attention with one head and a perceptron, each added to what it was made of.
fn transformer_block(net: Builder) -> Builder {
    let x = net.last.clone();
    let net = net.layer_norm(24);
    let normal = net.last.clone();
    let net = net.matmul(24, 24);
    let query = net.last.clone();
    let net = net.from(&normal, 24).matmul(24, 24).op_with("Transpose", vec![ints_attribute("perm", &[0, 2, 1])]);
    let key = net.last.clone();
    let net = net.from(&normal, 24).matmul(24, 24);
    let value = net.last.clone();
    let net = net.node("MatMul", &[&query, &key], vec![]).op_with("Softmax", vec![int_attribute("axis", -1)]);
    let net = net.with("MatMul", &value).matmul(24, 24).with("Add", &x);
    let middle = net.last.clone();
    net.layer_norm(24).matmul(24, 48).gelu().matmul(48, 24).with("Add", &middle)
}

/// A block whose activation has its channels last, behind one that has them first: 8 and 32 channels before the cut of 8.
pub(crate) fn convnext(opset: i64) -> Model {
    let net = Builder::nhwc(opset).conv(8, 3, 2).op("Relu");
    let x = net.last.clone();
    let net = net.depthwise(1).op_with("Transpose", vec![ints_attribute("perm", &[0, 2, 3, 1])]);
    let net = net.layer_norm(8).matmul(8, 32).gelu().matmul(32, 8);
    net.op_with("Transpose", vec![ints_attribute("perm", &[0, 3, 1, 2])]).with("Add", &x).top()
}

/// Convolutions without any activation: the maps before the size shrinks, 8 and 12 channels, before the cut of 16.
pub(crate) fn linear() -> Model {
    Builder::nchw(13).conv(6, 3, 1).conv(8, 3, 1).conv(10, 3, 2).conv(12, 3, 1).conv(16, 3, 2).top()
}

/// A model of the same graph whose output is one of its tensors.
pub(crate) fn with_output(model: &Model, tensor: &str) -> Model {
    let mut graph = model.graph().clone();
    graph.output = vec![value_info(tensor, DataType::Float, &[])];
    if let Some(crate::onnx::proto::type_proto::Value::TensorType(kind)) =
        graph.output[0].r#type.as_mut().and_then(|kind| kind.value.as_mut())
    {
        kind.shape = None;
    }
    model.with_graph(graph)
}
