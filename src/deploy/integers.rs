//! A backbone in integers, calibrated on images.

use std::collections::HashMap;

use bytes::Bytes;

use super::DeployError;
use crate::image::{ImageSpec, PixelTable, Resizer, decode};
use crate::onnx::{self, EMBEDDING, Model, Range};
use crate::runtime::{Answer, Compute, Images, Runtime, SessionOptions};

/// Images that go through the network at once: every activation of each is looked at.
const BATCH: usize = 4;

/// Version of the standard operators that has a scale for each channel.
const OPSET: i64 = 13;

/// The backbone with its convolutions in integers: the range of each activation is that on these encoded images.
///
/// # Errors
/// When no image can be used, the network cannot be run, or it has no convolution that can be put into integers.
pub fn in_integers(runtime: &Runtime, backbone: &Model, spec: &ImageSpec, images: &[Bytes]) -> Result<Model, DeployError> {
    let refuse = |reason: &str| DeployError::Refused { origin: backbone.origin().to_owned(), reason: reason.to_owned() };
    let raised = onnx::raise(backbone, backbone.opset().max(OPSET))?;
    let input = onnx::input(&raised)?.name;
    let names = onnx::calibrated(&raised);
    let inner: Vec<&str> = names.iter().map(String::as_str).filter(|name| *name != input && *name != EMBEDDING).collect();
    if inner.is_empty() {
        return Err(refuse("it has no convolution that can be put into integers: leave --quantize out"));
    }
    let shown = raised.clone().with_outputs(&inner);
    let graph = runtime.graph(&shown.to_bytes(), &SessionOptions { compute: Compute::CPU, threads: 1 })?;
    let (mut resizer, table) = (Resizer::new(), PixelTable::new(&spec.pixels));
    let mut tensors = Vec::new();
    for encoded in images {
        let Ok(image) = decode(encoded) else { continue };
        let before = tensors.len();
        tensors.resize(before + spec.values(), 0.0);
        let small = resizer.resize(image, spec.side, spec.resize);
        let written = small.and_then(|small| table.write(&small, &mut tensors[before..]));
        written.map_err(|error| DeployError::Answer(error.to_string()))?;
    }
    if tensors.is_empty() {
        return Err(refuse("none of the images to calibrate on can be used; name others with --data"));
    }
    let mut ranges: HashMap<String, Range> = HashMap::new();
    if names.contains(&input) {
        ranges.insert(input.clone(), Range::NONE.and(&tensors));
    }
    for batch in tensors.chunks(BATCH * spec.values()) {
        let answers = graph.run(Images::Float32(batch), spec.shape(batch.len() / spec.values()), &inner)?;
        for (name, values) in inner.iter().zip(answers.into_iter().filter_map(Answer::floats)) {
            let range = ranges.entry((*name).to_owned()).or_insert(Range::NONE);
            *range = range.and(&values);
        }
    }
    Ok(onnx::quantize(&raised, &ranges))
}
