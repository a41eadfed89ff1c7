//! Taps: the feature maps inside a network that can be read beside the cut.
//!
//! ```text
//! image ── Conv ── Clip ── Conv ── Clip ── … ── Conv ── Clip ── GlobalAveragePool ── Flatten ── top
//!                   └ tap           └ tap                        └ the cut
//! ```
//!
//! Taps are told by what the graph computes, never by names:
//!
//! * A *map* has positions: axes that are neither the batch nor the channels. What is pooled already, and the gates of
//!   squeeze-and-excitation, which are made of what is pooled, have none.
//! * Of maps with four axes the *activations* are taps. Element-wise operators that work on one and the same tensor are one
//!   activation, however it is written: `x * Sigmoid(x)`, `x * Clip(x + 3) / 6`, `x / 2 * (1 + Erf(x / √2))`. What leaves such a
//!   group for another layer is the tap. A Sigmoid that only multiplies something else is a gate and none.
//! * Of tokens, three axes, the outputs of *blocks* are taps: sums of a tensor and what was made of it with an activation on
//!   the way. Where no block has one, all such sums are. The average is over all tokens, a class token among them.
//! * Where no activation has a spatial size, the last map of that size, before it shrinks, is a tap. (Not in a network of tokens.)

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use serde::Serialize;

use super::error::OnnxError;
use super::find::{Cut, Finder, Pooling, has_weights};
use super::graph::{Graph, inputs, label};
use super::input::input;
use super::model::Model;
use super::proto::NodeProto;
use super::rules;
use super::shapes::Shape;

/// A feature map that can be read beside the cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tap {
    /// The tensor.
    pub tensor: String,
    /// What makes it: the operator and its name.
    pub produced_by: String,
    /// Values that it adds to a feature row.
    pub channels: usize,
    /// Its positions at the model's own image size: height and width, or the number of tokens.
    pub positions: Vec<usize>,
    /// Whether `layers = "multi"` reads it.
    pub multi: bool,
}

/// Finds the taps of a model that is cut at `cut`, in ascending depth.
///
/// # Errors
/// When the model has no image input.
pub fn taps(model: &Model, cut: &Cut) -> Result<Vec<Tap>, OnnxError> {
    let input = input(model)?;
    let graph = Graph::new(model.graph());
    let finder = Finder::new(model, &graph, &input);
    Ok(Scan::new(&finder, cut).taps())
}

/// The element-wise group that a tensor belongs to.
#[derive(Clone, Copy)]
struct Group<'m> {
    /// The tensor that the group works on.
    root: &'m str,
    /// Whether an activation lies between.
    curved: bool,
}

/// The search through one model that is cut at one place.
pub(super) struct Scan<'f, 'm> {
    finder: &'f Finder<'m>,
    cut: &'f Cut,
    /// Tensors that the cut is made of, in the graph's order.
    upstream: Vec<&'m str>,
    /// Tensors that weights had a part in.
    learned: HashSet<&'m str>,
    /// The cut, and maps whose average it is.
    averaged: HashSet<&'m str>,
    groups: HashMap<&'m str, Group<'m>>,
}

impl<'f, 'm> Scan<'f, 'm> {
    pub(super) fn new(finder: &'f Finder<'m>, cut: &'f Cut) -> Self {
        let nodes = finder.graph.ancestors(&cut.tensor).into_iter().map(|index| &finder.graph.proto.node[index]);
        let upstream: Vec<&str> =
            nodes.flat_map(|node| &node.output).map(String::as_str).filter(|name| !name.is_empty()).collect();
        let (averaged, learned, groups) = (HashSet::new(), HashSet::new(), HashMap::new());
        let mut scan = Self { finder, cut, averaged, groups, upstream, learned };
        scan.averaged = scan.same_average();
        for node in &finder.graph.proto.node {
            scan.join(node);
            if has_weights(node) || inputs(node).iter().any(|tensor| scan.learned.contains(tensor)) {
                scan.learned.extend(node.output.iter().map(String::as_str));
            }
        }
        scan
    }

    /// All taps that are found without being named, in ascending depth.
    pub(super) fn taps(&self) -> Vec<Tap> {
        let blocks = self.blocks();
        let is_tap = |tensor: &str, rank: usize| if rank == 4 { self.is_activation(tensor) } else { blocks.contains(tensor) };
        let maps: Vec<(&str, Tap)> = self.maps().filter(|(tensor, _)| self.learned.contains(tensor)).collect();
        let rank = |tap: &Tap| tap.positions.len() + 2;
        let mut chosen: HashSet<&str> =
            maps.iter().filter(|(tensor, tap)| is_tap(tensor, rank(tap))).map(|(tensor, _)| *tensor).collect();
        let sizes: HashSet<&[usize]> =
            maps.iter().filter(|(tensor, _)| chosen.contains(tensor)).map(|(_, tap)| tap.positions.as_slice()).collect();
        let mut ends: BTreeMap<&[usize], &str> = BTreeMap::new();
        // The map that patches of the image make is no stage of a network of tokens.
        let is_end = |tap: &Tap| blocks.is_empty() && rank(tap) == 4 && !sizes.contains(tap.positions.as_slice());
        for (tensor, tap) in maps.iter().filter(|(_, tap)| is_end(tap)) {
            ends.insert(&tap.positions, tensor);
        }
        chosen.extend(ends.into_values());
        let same = |tensor: &str| self.averaged.contains(tensor);
        let mut taps: Vec<Tap> =
            maps.iter().filter(|(tensor, _)| chosen.contains(tensor) && !same(tensor)).map(|(_, tap)| tap.clone()).collect();
        choose(&mut taps, self.cut.features.unwrap_or(0));
        taps
    }

    /// Every map before the cut, in ascending depth.
    pub(super) fn maps(&self) -> impl Iterator<Item = (&'m str, Tap)> + '_ {
        self.upstream.iter().filter_map(|&tensor| Some((tensor, self.tap(tensor).ok()?)))
    }

    /// Whether a tensor's average is what the cut gives.
    pub(super) fn is_cut(&self, tensor: &str) -> bool {
        self.averaged.contains(tensor)
    }

    /// A tensor as a tap; the error is the reason why it cannot be one.
    pub(super) fn tap(&self, tensor: &str) -> Result<Tap, String> {
        if !self.upstream.contains(&tensor) {
            return Err(format!("the cut, {:?}, does not need it; taps lie before the cut (--cut moves it)", self.cut.tensor));
        }
        let (axes, channels) = match self.finder.row(tensor)? {
            (Pooling::Mean { axes }, Some(channels)) => (axes, channels),
            (Pooling::Mean { .. }, None) => return Err("its number of channels cannot be told".to_owned()),
            (Pooling::None, _) => return Err("it is a row of values for each image and has no positions".to_owned()),
            (Pooling::Flatten | Pooling::GlobalAverage, _) => {
                return Err("it is pooled, or a gate: it has one position".to_owned());
            }
        };
        let at = |shape: Option<&Shape>| -> Vec<Option<usize>> {
            let size = |&axis: &i64| usize::try_from((*shape?.get(usize::try_from(axis).ok()?)?)?).ok();
            axes.iter().map(size).collect()
        };
        let (native, larger) = (at(self.finder.native.shape(tensor)), at(self.finder.larger.shape(tensor)));
        if !native.iter().chain(&larger).any(|size| size.is_some_and(|size| size > 1)) {
            return Err("it is pooled, or a gate: it has one position".to_owned());
        }
        let produced_by = self.finder.graph.producer(tensor).map(label).unwrap_or_default();
        let positions = native.into_iter().map(|size| size.unwrap_or(0)).collect();
        Ok(Tap { tensor: tensor.to_owned(), produced_by, channels, positions, multi: false })
    }

    /// The cut and, back from it, what has the same average over its positions.
    fn same_average(&self) -> HashSet<&'m str> {
        let mut found = HashSet::new();
        let Some(mut tensor) = self.upstream.iter().copied().find(|&tensor| tensor == self.cut.tensor) else { return found };
        loop {
            if self.finder.row(tensor).is_ok_and(|(_, features)| features == self.cut.features) {
                found.insert(tensor);
            }
            let Some(node) = self.finder.graph.producer(tensor) else { return found };
            let keeps = match node.op_type() {
                "Identity" | "Dropout" | "Cast" | "Flatten" | "Squeeze" | "Unsqueeze" | "Reshape" | "Transpose"
                | "GlobalAveragePool" => true,
                "AveragePool" => self.finder.is_global(node),
                "ReduceMean" => self.finder.reduces_positions(node),
                _ => false,
            };
            match node.input.first() {
                Some(input) if keeps => tensor = input,
                _ => return found,
            }
        }
    }

    /// Adds a node to the group of what it works on, if it is element-wise.
    fn join(&mut self, node: &'m NodeProto) {
        let Some(output) = node.output.first() else { return };
        if !(node.domain().is_empty() || node.domain() == "ai.onnx") || !is_elementwise(node.op_type()) {
            return;
        }
        let inputs: Vec<Group> = self.data(node).map(|tensor| self.group(tensor)).collect();
        let Some(&first) = inputs.first() else { return };
        let shape = self.finder.native.shape(output);
        let keeps_shape = shape.is_some() && self.data(node).all(|tensor| self.finder.native.shape(tensor) == shape);
        if keeps_shape && inputs.iter().all(|group| group.root == first.root) {
            let curved = is_curve(node.op_type()) || inputs.iter().any(|group| group.curved);
            self.groups.insert(output, Group { root: first.root, curved });
        }
    }

    /// The inputs of a node that come from the image.
    fn data(&self, node: &'m NodeProto) -> impl Iterator<Item = &'m str> + '_ {
        node.input.iter().map(String::as_str).filter(|name| self.finder.dependents.contains(name))
    }

    fn group(&self, tensor: &'m str) -> Group<'m> {
        self.groups.get(tensor).copied().unwrap_or(Group { root: tensor, curved: false })
    }

    /// Whether an activation ends here: another layer takes the tensor.
    fn is_activation(&self, tensor: &str) -> bool {
        let Some(group) = self.groups.get(tensor).filter(|group| group.curved) else { return false };
        let leaves = |node: &&NodeProto| {
            let output = node.output.first().and_then(|output| self.groups.get(output.as_str()));
            !matches!(node.op_type(), "Shape" | "Size") && output.is_none_or(|output| output.root != group.root)
        };
        let takers: Vec<&NodeProto> = self.finder.graph.consumers(tensor).filter(leaves).collect();
        let is_output = self.finder.graph.proto.output.iter().any(|output| output.name() == tensor);
        let gates = || self.is_gate(tensor) && takers.iter().all(|node| node.op_type() == "Mul");
        (is_output || !takers.is_empty()) && !gates()
    }

    /// Whether a tensor holds shares from 0 to 1.
    fn is_gate(&self, tensor: &str) -> bool {
        let made_by = |tensor: &str| self.finder.graph.producer(tensor).map(|node| (node.op_type(), node));
        match made_by(tensor) {
            Some(("Sigmoid" | "HardSigmoid", _)) => true,
            // A hard sigmoid in parts.
            Some(("Div" | "Mul", node)) => self.data(node).filter_map(made_by).any(|(op, _)| op == "Clip"),
            _ => false,
        }
    }

    /// Outputs of the blocks of a network of tokens.
    fn blocks(&self) -> HashSet<&'m str> {
        let is_tokens = |tensor: &str| self.finder.native.shape(tensor).is_some_and(|shape| shape.len() == 3);
        let upstream = self.upstream.iter().filter(|tensor| is_tokens(tensor));
        let sums: Vec<(&str, bool)> = upstream
            .filter_map(|&tensor| {
                let node = self.finder.graph.producer(tensor).filter(|node| matches!(node.op_type(), "Add" | "Sum"))?;
                Some((tensor, self.curves(node, tensor)?))
            })
            .collect();
        let any = sums.iter().any(|(_, curved)| *curved);
        sums.into_iter().filter(|(_, curved)| *curved == any).map(|(tensor, _)| tensor).collect()
    }

    /// Of a sum of a tensor and what was made of it: whether an activation was on the way. None for other sums.
    fn curves(&self, node: &'m NodeProto, sum: &str) -> Option<bool> {
        let parts: Vec<&str> = self.data(node).collect();
        let shape = self.finder.native.shape(sum)?;
        if parts.len() < 2 || !parts.iter().all(|part| self.finder.native.shape(part) == Some(shape)) {
            return None;
        }
        let graph = self.finder.graph;
        let behind: Vec<BTreeSet<usize>> = parts.iter().map(|part| graph.ancestors(part)).collect();
        // The earliest is the one that all others are made of; its maker is the last of its own ancestors.
        let start = behind.iter().min_by_key(|nodes| nodes.len())?;
        let maker = start.last()?;
        if behind.iter().any(|nodes| !nodes.contains(maker)) || behind.iter().all(|nodes| nodes.len() == start.len()) {
            return None;
        }
        let between = behind.iter().flat_map(|nodes| nodes.difference(start));
        Some(between.map(|&index| &graph.proto.node[index]).any(|node| is_curve(node.op_type())))
    }
}

/// Operators that change each value by itself, or by a constant, or by another value of the same group.
fn is_elementwise(op: &str) -> bool {
    is_curve(op)
        || matches!(
            op,
            "Identity"
                | "Dropout"
                | "Cast"
                | "Add"
                | "Sub"
                | "Mul"
                | "Div"
                | "Min"
                | "Max"
                | "Pow"
                | "Neg"
                | "Abs"
                | "Exp"
                | "Log"
                | "Sqrt"
                | "Reciprocal"
        )
}

/// Operators that make an activation of a group.
fn is_curve(op: &str) -> bool {
    rules::is_activation(op) || matches!(op, "PRelu" | "Erf" | "Shrink")
}

/// Marks what `layers = "multi"` reads beside a cut of so many values.
///
/// A stage is all taps of one spatial size. Of the stages between the first and the last, in turn from late to early, the
/// deepest tap that is left is taken, then those of the last stage, as long as the row keeps to 8,192 values (half of that are
/// for taps however wide the cut is). The first stage has the largest maps, which cost the most and were measured to add
/// nothing; the last one is what the cut averages. A network of one stage, as of tokens, gives its deepest taps.
fn choose(taps: &mut [Tap], cut: usize) {
    const VALUES: usize = 8192;
    let mut stages: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (place, tap) in taps.iter().enumerate() {
        stages.entry(tap.positions.iter().product()).or_default().push(place);
    }
    // The smallest maps, and so the last stage, come first; the deepest tap of each does too.
    let mut stages: Vec<Vec<usize>> = stages.into_values().map(|stage| stage.into_iter().rev().collect()).collect();
    if stages.len() > 1 {
        stages.pop();
    }
    let Some((last, middle)) = stages.split_first() else { return };
    let rounds = middle.iter().map(Vec::len).max().unwrap_or(0);
    let in_turn = (0..rounds).flat_map(|round| middle.iter().filter_map(move |stage| stage.get(round)));
    let mut left = VALUES.saturating_sub(cut).max(VALUES / 2);
    for &place in in_turn.chain(last) {
        if taps[place].channels <= left {
            left -= taps[place].channels;
            taps[place].multi = true;
        }
    }
}

#[cfg(test)]
mod tests;
