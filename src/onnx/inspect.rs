//! Everything that is worth knowing about a model before it is used.

use serde::Serialize;

use super::cut::cut;
use super::error::OnnxError;
use super::find::{Cut, find_cut};
use super::hints::{Hints, hints};
use super::input::{Input, input};
use super::model::Model;
use super::proto::TensorProto;
use super::taps::{Tap, taps};

/// What a model is, and what would be done with it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inspection {
    /// Where the model came from.
    pub origin: String,
    /// The image input.
    pub input: Input,
    /// Names of the outputs.
    pub outputs: Vec<String>,
    /// The cut that would be made; none where none can be found, and then `problem` says why.
    pub cut: Option<Cut>,
    /// Width D of a feature row; none where it is not known.
    pub features: Option<usize>,
    /// The image input of the cut model: what stays fixed in its `shape` cannot be opened.
    pub cut_input: Option<Input>,
    /// Feature maps before the cut that `layers` can read, in ascending depth.
    pub taps: Vec<Tap>,
    /// Why the model cannot be cut by itself, and what to do.
    pub problem: Option<String>,
    /// What the graph says about preprocessing.
    pub hints: Hints,
    /// Version of the standard operators.
    pub opset: i64,
    /// Version of the file format.
    pub ir_version: i64,
    /// What wrote the model, with its version; empty where it does not say.
    pub producer: String,
    /// Number of operators.
    pub nodes: usize,
    /// Number of weights.
    pub parameters: i64,
}

/// Looks at a model; `named` is the tensor to cut at, if one is named.
///
/// # Errors
/// When the model has no image input, or the named tensor cannot serve. A model whose top is not recognized is no error here.
pub fn inspect(model: &Model, named: Option<&str>) -> Result<Inspection, OnnxError> {
    let place = match find_cut(model, named) {
        Ok(place) => Ok(place),
        Err(error @ OnnxError::NoCut { .. }) => Err(error.to_string()),
        Err(error) => return Err(error),
    };
    let cut_input = place.as_ref().ok().map(|place| input(&cut(model, place)?)).transpose()?;
    let taps = place.as_ref().map_or(Ok(Vec::new()), |place| taps(model, place))?;
    let graph = model.graph();
    let producer = format!("{} {}", model.proto().producer_name(), model.proto().producer_version());
    let size = |tensor: &TensorProto| tensor.dims.iter().fold(1_i64, |product, &dim| product.saturating_mul(dim));
    Ok(Inspection {
        origin: model.origin().to_owned(),
        input: input(model)?,
        outputs: graph.output.iter().map(|output| output.name().to_owned()).collect(),
        features: place.as_ref().ok().and_then(|place| place.features),
        cut_input,
        taps,
        problem: place.as_ref().err().cloned(),
        cut: place.ok(),
        hints: hints(model)?,
        opset: model.opset(),
        ir_version: model.proto().ir_version(),
        producer: producer.trim().to_owned(),
        nodes: graph.node.len(),
        parameters: graph.initializer.iter().map(size).fold(0, i64::saturating_add),
    })
}
