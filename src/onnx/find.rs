//! Where the features are: the walk from the scores back to the tensor before the classifier's top.
//!
//! ```text
//! image ── backbone ── Conv ── GlobalAveragePool ── Flatten ── Gemm ── Softmax ── scores
//!                                       │            glue     dense   scores
//!                                       └ the cut
//! ```
//!
//! Going back from the scores, dense layers and what only reshapes, scales or activates ("glue") are passed. The walk ends at
//! a pooling over all positions, where the cut is, or at anything else, and then the cut is before the first dense layer.

use std::fmt;

use serde::{Serialize, Serializer};

use super::error::OnnxError;
use super::graph::{Graph, label};
use super::input::{Input, input};
use super::model::Model;
use super::open;
use super::proto::NodeProto;
use super::proto::tensor_proto::DataType;
use super::rules;
use super::shapes::{Shape, Shapes, declared_output};
use super::tensor;

/// How a tensor becomes one row of features an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Pooling {
    /// It is `[N, D]` already.
    None,
    /// It is pooled, `[N, D, 1, 1]`: the empty axes are dropped.
    Flatten,
    /// The average over these axes, which are positions.
    Mean {
        /// Axes of the tensor.
        axes: Vec<i64>,
    },
    /// An average pooling of fixed size over the whole map becomes one of any size; the empty axes are dropped.
    GlobalAverage,
}

/// Why the cut is where it is. Shown as one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CutReason {
    /// The tensor stands before the classifier's top.
    BeforeTop {
        /// What makes the tensor.
        produced_by: String,
        /// The operators of the top, in the order of the data.
        top: Vec<String>,
    },
    /// The tensor was named by the caller.
    Named {
        /// What makes the tensor.
        produced_by: String,
    },
    /// The model has no classifier's top; its output is used.
    NoTop {
        /// What makes the output.
        produced_by: String,
    },
}

impl fmt::Display for CutReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BeforeTop { produced_by, top } => write!(f, "output of {produced_by}, followed by {}", top.join(", ")),
            Self::Named { produced_by } => write!(f, "as named: output of {produced_by}"),
            Self::NoTop { produced_by } => {
                write!(f, "the model's own output, made by {produced_by}: no classifier top to remove")
            }
        }
    }
}

impl Serialize for CutReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A place to cut a model at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cut {
    /// The tensor that holds the features.
    pub tensor: String,
    /// Why this one.
    pub reason: CutReason,
    /// Width D of a feature row; none where it depends on the image size.
    pub features: Option<usize>,
    /// What is done to the tensor to make a row of it.
    pub pooling: Pooling,
}

/// Finds the tensor that holds the features: the one before the classifier's top, or the one that is `named`.
///
/// # Errors
/// When there is no image input, the named tensor does not exist or cannot serve, or the top is not recognized.
pub fn find_cut(model: &Model, named: Option<&str>) -> Result<Cut, OnnxError> {
    let input = input(model)?;
    let graph = Graph::new(model.graph());
    let finder = Finder::new(model, &graph, &input);
    match named {
        Some(name) => finder.named(name),
        None => finder.automatic(),
    }
}

pub(super) struct Finder<'m> {
    pub(super) model: &'m Model,
    pub(super) graph: &'m Graph<'m>,
    pub(super) dependents: std::collections::HashSet<&'m str>,
    input: &'m str,
    fixed_size: bool,
    /// Batch size of both probes.
    batch: i64,
    pub(super) native: Shapes<'m>,
    /// The same for images of twice the side.
    pub(super) larger: Shapes<'m>,
}

/// What a node is on the way back from the scores.
enum Step<'m> {
    /// It changes no more than form, scale or sign.
    Glue(&'m str),
    /// It mixes the features into others.
    Dense(&'m str),
    /// A 1x1 convolution or its like: dense where it works on a pooled map, a layer of the backbone elsewhere.
    Pointwise(&'m str),
    /// It gathers all positions of the image.
    Pool,
    Stop,
}

/// The walk back from one output.
struct Walk<'m> {
    output: &'m str,
    /// Nodes passed, the last of the graph first.
    passed: Vec<&'m NodeProto>,
    /// What each of them takes.
    fed: Vec<&'m str>,
    /// Places in `passed` of the dense layers, the last of the graph first.
    dense: Vec<usize>,
    pointwise: bool,
    scores: bool,
    end: &'m str,
    pool: bool,
}

impl<'m> Finder<'m> {
    pub(super) fn new(model: &'m Model, graph: &'m Graph<'m>, input: &'m Input) -> Self {
        let (batch, side) = (input.batch().unwrap_or(2), open::native_side(input));
        let probe = |side| Shapes::infer(graph, model.opset(), &input.name, &input.layout.shape(batch, side, side));
        // A fixed size need not be a square.
        let native = match input.fixed_size() {
            Some((height, width)) => Shapes::infer(graph, model.opset(), &input.name, &input.layout.shape(batch, height, width)),
            None => probe(side),
        };
        let fixed_size = input.fixed_size().is_some();
        let name = graph.fed_inputs().map(|info| info.name()).find(|&name| name == input.name).unwrap_or_default();
        Self { model, graph, dependents: graph.dependents(name), input: name, fixed_size, batch, native, larger: probe(2 * side) }
    }

    pub(super) fn named(&self, name: &str) -> Result<Cut, OnnxError> {
        if !self.graph.computed().any(|tensor| tensor == name) {
            if self.graph.is_initializer(name) || self.graph.proto.input.iter().any(|input| input.name() == name) {
                return Err(self.not_features(name, "it is an input or a weight, which no layer makes".to_owned()));
            }
            return Err(self.unknown(name));
        }
        let produced_by = self.graph.producer(name).map(label).unwrap_or_default();
        self.place(name, CutReason::Named { produced_by })
    }

    fn automatic(&self) -> Result<Cut, OnnxError> {
        let outputs = self.graph.proto.output.iter().map(|output| output.name());
        let mut walks: Vec<Walk> = outputs.filter(|output| self.is_image_alone(output)).map(|output| self.walk(output)).collect();
        // Of several outputs the deepest is the main one: auxiliary classifiers branch off earlier.
        walks.sort_by_key(|walk| std::cmp::Reverse(self.graph.ancestors(walk.output).len()));
        let Some(main) = walks.first() else {
            return Err(self.no_cut(format!("no output depends on the image {:?} alone", self.input)));
        };
        let with_top = walks.iter().find_map(|walk| self.before_top(walk));
        match with_top.or_else(|| walks.iter().find_map(|walk| self.without_top(walk))) {
            Some((tensor, reason)) => self.place(tensor, reason),
            None => Err(self.no_cut(self.failure(main))),
        }
    }

    fn is_image_alone(&self, tensor: &str) -> bool {
        self.graph.inputs_of(tensor) == [self.input]
    }

    fn walk(&self, output: &'m str) -> Walk<'m> {
        let mut walk = Walk {
            output,
            passed: vec![],
            fed: vec![],
            dense: vec![],
            pointwise: false,
            scores: false,
            end: output,
            pool: false,
        };
        while walk.passed.len() <= self.graph.proto.node.len() {
            let Some(node) = self.graph.producer(walk.end) else { break };
            walk.scores |= matches!(node.op_type(), "Softmax" | "LogSoftmax" | "Hardmax")
                || (walk.passed.is_empty() && node.op_type() == "Sigmoid");
            let next = match self.step(node) {
                Step::Glue(next) => next,
                Step::Dense(next) => {
                    walk.dense.push(walk.passed.len());
                    next
                }
                Step::Pointwise(next) => {
                    walk.pointwise = true;
                    next
                }
                Step::Pool => {
                    walk.pool = true;
                    break;
                }
                Step::Stop => break,
            };
            walk.passed.push(node);
            walk.fed.push(next);
            walk.end = next;
        }
        walk
    }

    fn step(&self, node: &'m NodeProto) -> Step<'m> {
        let input = |index: usize| node.input.get(index).map(String::as_str).filter(|name| self.dependents.contains(name));
        let sources: Vec<&str> = node.input.iter().map(String::as_str).filter(|name| self.dependents.contains(name)).collect();
        // A Reshape's target may be computed from the image's own shape.
        let data =
            if node.op_type() == "Reshape" { input(0) } else { Some(sources.as_slice()).filter(|s| s.len() == 1).map(|s| s[0]) };
        let Some(data) = data else { return Step::Stop };
        let is_first = node.input.first().is_some_and(|first| first == data);
        match node.op_type() {
            _ if !(node.domain().is_empty() || node.domain() == "ai.onnx") => Step::Stop,
            // On a map or on tokens it mixes the values of each position apart.
            "MatMul" if is_first && self.native.shape(data).is_some_and(|shape| shape.len() > 2) => Step::Pointwise(data),
            "Gemm" | "MatMul" if is_first => Step::Dense(data),
            "Conv" if is_first && self.is_pointwise(node) => Step::Pointwise(data),
            "GlobalAveragePool" | "GlobalMaxPool" | "GlobalLpPool" => Step::Pool,
            "AveragePool" if self.is_global(node) => Step::Pool,
            "ReduceMean" | "ReduceMax" | "ReduceSum" if self.reduces_positions(node) => Step::Pool,
            "Softmax" | "LogSoftmax" | "Hardmax" | "Identity" | "Dropout" | "Cast" | "Reshape" | "Flatten" | "Squeeze"
            | "Unsqueeze" | "Transpose" | "Add" | "Sub" | "Mul" | "Div" | "QuantizeLinear" | "DequantizeLinear" => {
                Step::Glue(data)
            }
            op if rules::is_activation(op) => Step::Glue(data),
            _ => Step::Stop,
        }
    }

    fn is_pointwise(&self, node: &NodeProto) -> bool {
        let weight = self.native.input(node, 1);
        weight.is_some_and(|weight| weight.len() == 4 && weight[2..] == [Some(1), Some(1)])
            && tensor::int(node, "group").unwrap_or(1) == 1
    }

    /// A pooling of fixed size that leaves one position of the native map.
    pub(super) fn is_global(&self, node: &NodeProto) -> bool {
        let Some(output) = node.output.first().and_then(|output| self.native.shape(output)) else { return false };
        output.len() == 4 && output[2..] == [Some(1), Some(1)]
    }

    pub(super) fn reduces_positions(&self, node: &NodeProto) -> bool {
        let (Some(axes), Some(input)) = (self.native.list(node, "axes", 1), self.native.input(node, 0)) else { return false };
        let rank = i64::try_from(input.len()).unwrap_or(i64::MAX);
        !axes.is_empty() && axes.len() + 2 <= input.len() && axes.iter().all(|&axis| axis.rem_euclid(rank.max(1)) != 0)
    }

    fn before_top(&self, walk: &Walk<'m>) -> Option<(&'m str, CutReason)> {
        if walk.pool && (walk.pointwise || !walk.dense.is_empty()) {
            return Some(self.top_after(walk.end, &walk.passed));
        }
        if walk.pool {
            return self.before_scoring_convolution(walk);
        }
        // Without a pool the first dense layer must not be fed the image itself.
        let place = walk.dense.iter().rev().copied().find(|&place| self.is_learned(walk.fed[place]))?;
        let is_map = |place: &usize| self.native.shape(walk.fed[*place]).is_some_and(|shape| shape.len() == 4);
        // Dense layers on a flattened map (VGG) fix its size; the map itself, pooled, takes any.
        let map = (place..walk.fed.len()).find(is_map).filter(|_| walk.dense.last() == Some(&place)).unwrap_or(place);
        Some(self.top_after(walk.fed[map], &walk.passed[..=map]))
    }

    /// Whether something with weights stands between the image and a tensor.
    fn is_learned(&self, tensor: &str) -> bool {
        self.graph.ancestors(tensor).iter().any(|&index| has_weights(&self.graph.proto.node[index]))
    }

    /// SqueezeNet's top: a 1x1 convolution to the classes, and the pooling after it.
    fn before_scoring_convolution(&self, walk: &Walk<'m>) -> Option<(&'m str, CutReason)> {
        let classes =
            self.native.shape(walk.output).and_then(|shape| shape.iter().skip(1).find_map(|&size| size.filter(|&s| s > 1)));
        if !walk.scores && !matches!(classes, Some(1000 | 1001)) {
            return None;
        }
        let mut passed = walk.passed.clone();
        passed.push(self.graph.producer(walk.end)?);
        let mut tensor = passed.last()?.input.first()?.as_str();
        for _ in 0..self.graph.proto.node.len() {
            let node = self.graph.producer(tensor)?;
            passed.push(node);
            match self.step(node) {
                Step::Pointwise(next) => return Some(self.top_after(next, &passed)),
                Step::Glue(next) if rules::is_activation(node.op_type()) => tensor = next,
                _ => return None,
            }
        }
        None
    }

    fn top_after(&self, tensor: &'m str, passed: &[&NodeProto]) -> (&'m str, CutReason) {
        let top = passed.iter().rev().map(|node| node.op_type().to_owned()).collect();
        let produced_by = self.graph.producer(tensor).map(label).unwrap_or_default();
        (tensor, CutReason::BeforeTop { produced_by, top })
    }

    fn without_top(&self, walk: &Walk<'m>) -> Option<(&'m str, CutReason)> {
        let last = self.graph.producer(walk.end)?;
        if walk.scores || !walk.dense.is_empty() || hides_a_product(last) {
            return None;
        }
        let produced_by = label(self.graph.producer(walk.output)?);
        Some((walk.output, CutReason::NoTop { produced_by }))
    }

    fn failure(&self, walk: &Walk) -> String {
        let last = self.graph.producer(walk.end);
        match last {
            Some(node) if hides_a_product(node) => {
                format!("the output {:?} comes from {}, an operator that this search cannot look into", walk.output, label(node))
            }
            _ if !walk.dense.is_empty() => format!("the output {:?} is a dense layer on the pixels themselves", walk.output),
            Some(node) => {
                format!("the output {:?} is made of scores, and before them {} is no dense layer", walk.output, label(node))
            }
            None => format!("the output {:?} is not computed from layers", walk.output),
        }
    }

    /// Checks that a tensor can be features, and says how it becomes rows.
    fn place(&self, tensor: &str, reason: CutReason) -> Result<Cut, OnnxError> {
        if let Some(other) = self.graph.inputs_of(tensor).into_iter().find(|&name| name != self.input) {
            let (origin, candidates) = (self.model.origin().to_owned(), self.candidates());
            return Err(OnnxError::OtherInput { origin, tensor: tensor.to_owned(), input: other.to_owned(), candidates });
        }
        let (pooling, features) = self.row(tensor).map_err(|reason| self.not_features(tensor, reason))?;
        Ok(Cut { tensor: tensor.to_owned(), reason, features, pooling })
    }

    /// How a tensor becomes one row an image, and the row's width; the error is the reason why it cannot.
    pub(super) fn row(&self, tensor: &str) -> Result<(Pooling, Option<usize>), String> {
        if !self.dependents.contains(tensor) {
            return Err("it does not depend on the image".to_owned());
        }
        let is_float = |kind| matches!(kind, DataType::Float | DataType::Float16 | DataType::Bfloat16 | DataType::Double);
        if let Some(kind) = self.graph.element_type(tensor).filter(|&kind| !is_float(kind)) {
            let kind = kind.as_str_name().to_lowercase();
            return Err(format!("it holds {kind} values, and features are floating-point"));
        }
        self.pooling(tensor)
    }

    fn pooling(&self, tensor: &str) -> Result<(Pooling, Option<usize>), String> {
        let width = |size: Option<i64>| size.and_then(|size| usize::try_from(size).ok());
        let declared = declared_output(self.graph.proto, tensor);
        let Some(shape) = self.native.shape(tensor).or(declared.as_ref()) else {
            return self.unshaped(tensor);
        };
        if shape.first().copied().flatten().is_some_and(|size| size != self.batch) {
            return Err("its first axis is not the batch".to_owned());
        }
        let larger = self.larger.shape(tensor).filter(|larger| larger.len() == shape.len());
        match shape.len() {
            // A width that grows with the image is known only where the image cannot grow.
            2 => Ok((
                Pooling::None,
                width(shape[1].filter(|_| self.fixed_size || larger.is_none_or(|larger| larger[1] == shape[1]))),
            )),
            3 | 4 => {
                let channel = channel_axis(shape, larger);
                let fixed_pool = self.graph.producer(tensor).filter(|node| node.op_type() == "AveragePool");
                let single = |shape: &Shape| (1..shape.len()).all(|axis| axis == channel || shape[axis] == Some(1));
                let pooling = if fixed_pool.is_some_and(|node| self.is_global(node)) {
                    Pooling::GlobalAverage
                } else if single(shape) && larger.is_some_and(single) {
                    Pooling::Flatten
                } else {
                    let axes = (1..shape.len()).filter(|&axis| axis != channel);
                    Pooling::Mean { axes: axes.map(|axis| i64::try_from(axis).unwrap_or(i64::MAX)).collect() }
                };
                Ok((pooling, width(shape[channel])))
            }
            rank => Err(format!("it has {rank} axes; features have 2, [N, D], or are a map of 3 or 4 that can be averaged")),
        }
    }

    /// A tensor behind an operator without a rule: the dense layer that takes it tells its shape.
    fn unshaped(&self, tensor: &str) -> Result<(Pooling, Option<usize>), String> {
        let gemm =
            self.graph.consumers(tensor).find(|node| node.op_type() == "Gemm" && node.input.first().is_some_and(|a| a == tensor));
        let Some(gemm) = gemm else {
            let maker = self.graph.producer(tensor).map(label).unwrap_or_default();
            return Err(format!("its shape cannot be told (it is made by {maker})"));
        };
        let row = usize::from(tensor::int(gemm, "transB").unwrap_or(0) != 0);
        let width = self.native.input(gemm, 1).and_then(|weight| *weight.get(row)?);
        Ok((Pooling::None, width.and_then(|width| usize::try_from(width).ok())))
    }

    fn not_features(&self, tensor: &str, reason: String) -> OnnxError {
        let (origin, candidates) = (self.model.origin().to_owned(), self.candidates());
        OnnxError::NotFeatures { origin, tensor: tensor.to_owned(), reason, candidates }
    }

    fn no_cut(&self, reason: String) -> OnnxError {
        OnnxError::NoCut { origin: self.model.origin().to_owned(), reason, candidates: self.candidates() }
    }

    /// Tensors near the end of the graph that could be features, the last first.
    fn candidates(&self) -> Vec<String> {
        let tensors: Vec<&str> = self.graph.computed().filter(|tensor| self.dependents.contains(tensor)).collect();
        let usable = tensors.into_iter().rev().filter(|tensor| {
            self.is_image_alone(tensor)
                && self.native.shape(tensor).is_some_and(|shape| (2..=4).contains(&shape.len()))
                && self.pooling(tensor).is_ok()
        });
        usable.take(8).map(str::to_owned).collect()
    }

    fn unknown(&self, name: &str) -> OnnxError {
        let nearest = self.nearest(name, self.graph.computed());
        OnnxError::UnknownTensor { origin: self.model.origin().to_owned(), name: name.to_owned(), nearest }
    }

    /// Up to five of the tensors whose names are most like one that is not there, best first.
    pub(super) fn nearest(&self, name: &str, tensors: impl Iterator<Item = &'m str>) -> Vec<String> {
        let likeness = |tensor: &str| strsim::jaro_winkler(&name.to_lowercase(), &tensor.to_lowercase());
        let mut tensors: Vec<(f64, &str)> = tensors.map(|tensor| (likeness(tensor), tensor)).collect();
        tensors.sort_by(|a, b| b.0.total_cmp(&a.0));
        // A node's name is easily taken for its output's.
        let of_node = self.graph.proto.node.iter().find(|node| node.name() == name).and_then(|node| node.output.first());
        let like = tensors.into_iter().filter(|(likeness, _)| *likeness > 0.7).map(|(_, tensor)| tensor);
        let mut nearest: Vec<String> = Vec::new();
        for tensor in of_node.map(String::as_str).into_iter().chain(like) {
            if nearest.len() < 5 && !nearest.iter().any(|known| known == tensor) {
                nearest.push(tensor.to_owned());
            }
        }
        nearest
    }
}

/// Whether a node is a layer that learns.
pub(super) fn has_weights(node: &NodeProto) -> bool {
    matches!(node.op_type(), "Conv" | "Gemm" | "MatMul") || !node.domain().is_empty()
}

/// Operators that may be a dense layer in another form.
fn hides_a_product(node: &NodeProto) -> bool {
    !(node.domain().is_empty() || node.domain() == "ai.onnx")
        || matches!(
            node.op_type(),
            "Einsum"
                | "MatMulInteger"
                | "QLinearMatMul"
                | "ConvInteger"
                | "QLinearConv"
                | "Gemm"
                | "MatMul"
                | "If"
                | "Loop"
                | "Scan"
                | "ArgMax"
                | "TopK"
        )
}

/// The axis that is neither the batch nor a position: the one that does not grow with the image.
fn channel_axis(shape: &Shape, larger: Option<&Shape>) -> usize {
    let axes = 1..shape.len();
    let last = shape.len() - 1;
    if let Some(larger) = larger {
        let steady: Vec<usize> = axes.clone().filter(|&axis| shape[axis].is_some() && shape[axis] == larger[axis]).collect();
        if let [only] = steady[..] {
            return only;
        }
    }
    let wide: Vec<usize> = axes.filter(|&axis| shape[axis] != Some(1)).collect();
    match (wide.as_slice(), shape.len()) {
        ([only], _) => *only,
        // A map is square where the image is.
        (_, 4) if shape[1].is_some() && shape[1] == shape[2] && shape[2] != shape[3] => last,
        (_, 4) => 1,
        // Tokens come before their values.
        _ => last,
    }
}
