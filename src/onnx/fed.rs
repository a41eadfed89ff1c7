//! A model fed in its middle, for callers that have made the tensor there already.

use std::collections::{BTreeSet, HashMap};

use super::cut::{fixed, named, tensor_type};
use super::graph::inputs;
use super::model::Model;
use super::proto::tensor_proto::DataType;
use super::proto::{TensorProto, ValueInfoProto};

impl Model {
    /// The same model whose only input is an inner tensor of float32 `[N, a, b, c]`; what made that tensor is left out. None where
    /// there is no such tensor, or the outputs also depend on the image in another way.
    pub fn fed_at(&self, tensor: &str, [a, b, c]: [usize; 3]) -> Option<Self> {
        let source = self.graph();
        let made =
            source.node.iter().enumerate().flat_map(|(index, node)| node.output.iter().map(move |name| (name.as_str(), index)));
        let makers: HashMap<&str, usize> = made.collect();
        makers.get(tensor)?;
        let held: HashMap<&str, &TensorProto> = source.initializer.iter().map(|weight| (weight.name(), weight)).collect();
        let (mut nodes, mut weights) = (BTreeSet::new(), BTreeSet::new());
        let mut open: Vec<&str> = source.output.iter().map(ValueInfoProto::name).collect();
        while let Some(name) = open.pop() {
            if name == tensor {
                continue;
            }
            match (makers.get(name), held.get(name)) {
                (Some(&index), _) => {
                    if nodes.insert(index) {
                        open.extend(inputs(&source.node[index]));
                    }
                }
                (None, Some(_)) => {
                    weights.insert(name);
                }
                // The image, or a sparse weight: neither is left out.
                (None, None) => return None,
            }
        }
        let mut graph = source.clone();
        graph.node = nodes.into_iter().map(|index| source.node[index].clone()).collect();
        graph.initializer.retain(|weight| weights.contains(weight.name()));
        let size = |pixels: usize| i64::try_from(pixels).ok().map(fixed);
        let kind = tensor_type(DataType::Float, vec![named("N"), size(a)?, size(b)?, size(c)?]);
        graph.input = vec![ValueInfoProto { name: Some(tensor.to_owned()), r#type: Some(kind), ..ValueInfoProto::default() }];
        graph.value_info = Vec::new();
        Some(self.with_graph(graph))
    }
}

#[cfg(test)]
mod tests {
    use crate::onnx::networks;

    #[test]
    fn what_is_before_the_tensor_is_left_out() {
        let model = networks::resnet(13);
        let graph = model.graph();
        let first = graph.node[0].output[0].clone();
        let fed = model.fed_at(&first, [8, 16, 16]).unwrap();
        assert_eq!(fed.graph().node.len(), graph.node.len() - 1);
        assert_eq!(fed.graph().input.len(), 1);
        assert_eq!((fed.graph().input[0].name(), &fed.graph().output), (first.as_str(), &graph.output));
        assert!(fed.graph().initializer.len() < graph.initializer.len());
        assert!(model.fed_at("nothing", [8, 16, 16]).is_none());
        // One of two branches: the other still needs the image.
        let branch = graph
            .node
            .iter()
            .find(|node| graph.node.iter().filter(|other| other.input.first() == node.input.first()).count() > 1);
        if let Some(branch) = branch {
            assert!(model.fed_at(&branch.output[0], [8, 16, 16]).is_none());
        }
    }
}
