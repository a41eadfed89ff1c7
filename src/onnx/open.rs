//! Opening what an export fixed: the batch size and the image size.
//!
//! Either is opened only where the shapes prove that the graph then works; a graph that does not (attention over a fixed number
//! of tokens, say) keeps its declared size, and runs at that.

use super::cut::EMBEDDING;
use super::graph::Graph;
use super::input::Input;
use super::proto::{GraphProto, NodeProto};
use super::shapes::Shapes;
use super::tensor;

/// The size that a model without a declared size is probed at: what nearly all of them were trained on.
const USUAL_SIDE: i64 = 224;

/// The declared side, or the usual one; pixels.
pub(super) fn native_side(input: &Input) -> i64 {
    input.side.map_or(USUAL_SIDE, i64::from)
}

/// Which sizes of the image input a cut model leaves open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Open {
    pub(super) batch: bool,
    pub(super) size: bool,
}

/// Whether a cut graph, fed `batch` images of `height` and `width` pixels, gives as many rows of `features` values.
pub(super) fn works(cut: &GraphProto, opset: i64, input: &Input, [batch, height, width]: [i64; 3], features: usize) -> bool {
    let graph = Graph::new(cut);
    let shapes = Shapes::infer(&graph, opset, &input.name, &input.layout.shape(batch, height, width));
    let features = i64::try_from(features).ok();
    shapes.conflicts.is_empty() && shapes.shape(EMBEDDING).is_some_and(|shape| shape[..] == [Some(batch), features])
}

/// Lets every Reshape to a fixed batch take its batch from the tensor itself. `nodes` are those of the cut, in order; `native`
/// holds the shapes at the declared batch size.
pub(super) fn open_reshapes(nodes: &mut Vec<NodeProto>, graph: &Graph, native: &Shapes, batch: i64) {
    let mut targets = Vec::new();
    for node in nodes.iter_mut().filter(|node| node.op_type() == "Reshape" && tensor::int(node, "allowzero").unwrap_or(0) == 0) {
        let target = node.input.get(1).and_then(|name| graph.constant(name)).and_then(|value| tensor::integers(&value));
        let Some(mut target) = target else { continue };
        let leads = native.input(node, 0).is_some_and(|shape| shape.first() == Some(&Some(batch)));
        if leads && target.first() == Some(&batch) {
            // Zero means: as in the tensor that is reshaped.
            target[0] = 0;
            let name = format!("{}/open_shape", node.output.first().map_or("", String::as_str));
            let value = tensor::tensor_attribute("value", tensor::int64_tensor(&target));
            targets.push(tensor::node("Constant", &[], &name, vec![value]));
            node.input[1] = name;
        }
    }
    nodes.splice(0..0, targets);
}
