//! Weights in half the room: stored as float16, converted back where the network is loaded.

use prost::bytes::Bytes;

use super::error::OnnxError;
use super::model::Model;
use super::proto::TensorProto;
use super::proto::tensor_proto::DataType;
use super::tensor::{floats, half_bits, int_attribute, node};

/// Smaller tensors are left as they are: they weigh nothing, and the limits of a Clip are among them.
const LEAST_VALUES: usize = 64;

/// Stores the float32 weights of a model as float16, each behind a conversion to float32, so that the arithmetic stays that of float32.
/// A runtime does the conversion once, when it loads the model.
///
/// # Errors
/// When a weight is larger than float16 holds.
pub fn with_half_weights(model: &Model) -> Result<Model, OnnxError> {
    let mut graph = model.graph().clone();
    let mut casts = Vec::new();
    for tensor in &mut graph.initializer {
        let Some(values) = values(tensor) else { continue };
        let name = tensor.name().to_owned();
        let mut raw = Vec::with_capacity(2 * values.len());
        for value in values {
            let bits = half_bits(value as f32);
            if bits & 0x7fff >= 0x7c00 {
                return Err(OnnxError::TooLarge { origin: model.origin().to_owned(), tensor: name, value });
            }
            raw.extend(bits.to_le_bytes());
        }
        let half = format!("{name}/float16");
        casts.push(node("Cast", &[&half], &name, vec![int_attribute("to", DataType::Float as i64)]));
        *tensor = TensorProto {
            name: Some(half),
            dims: tensor.dims.clone(),
            data_type: Some(DataType::Float16 as i32),
            raw_data: Some(Bytes::from(raw)),
            ..TensorProto::default()
        };
    }
    casts.append(&mut graph.node);
    graph.node = casts;
    Ok(model.with_graph(graph))
}

/// The values of a weight that is worth it.
fn values(tensor: &TensorProto) -> Option<Vec<f64>> {
    if tensor.data_type() != DataType::Float as i32 {
        return None;
    }
    floats(tensor).filter(|values| values.len() >= LEAST_VALUES)
}
