//! Weights that an export keeps outside its .onnx file: taken in on reading, so that a model is one thing from then on.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Component, Path};

use prost::bytes::Bytes;

use super::error::OnnxError;
use super::proto::tensor_proto::DataLocation;
use super::proto::{GraphProto, ModelProto, TensorProto};

/// Protobuf messages cannot be larger than this, so neither can a model in one piece.
const LIMIT: u64 = i32::MAX as u64;

/// Replaces every reference to another file by that file's bytes. `folder` is the model's, or none where there is no file.
pub(super) fn take_in(proto: &mut ModelProto, origin: &str, folder: Option<&Path>) -> Result<(), OnnxError> {
    let mut total = 0;
    if let Some(graph) = proto.graph.as_mut() {
        in_graph(graph, &mut |tensor| load(tensor, folder, &mut total), origin)?;
    }
    Ok(())
}

fn in_graph(
    graph: &mut GraphProto,
    load: &mut impl FnMut(&mut TensorProto) -> Result<(), String>,
    origin: &str,
) -> Result<(), OnnxError> {
    let mut attempt = |tensor: &mut TensorProto| {
        load(tensor).map_err(|reason| OnnxError::ExternalData {
            origin: origin.to_owned(),
            tensor: tensor.name().to_owned(),
            reason,
        })
    };
    for tensor in &mut graph.initializer {
        attempt(tensor)?;
    }
    for attribute in graph.node.iter_mut().flat_map(|node| &mut node.attribute) {
        for tensor in attribute.t.iter_mut().chain(&mut attribute.tensors) {
            attempt(tensor)?;
        }
    }
    for attribute in graph.node.iter_mut().flat_map(|node| &mut node.attribute) {
        for inner in attribute.g.iter_mut().chain(&mut attribute.graphs) {
            in_graph(inner, load, origin)?;
        }
    }
    Ok(())
}

fn load(tensor: &mut TensorProto, folder: Option<&Path>, total: &mut u64) -> Result<(), String> {
    if tensor.data_location() != DataLocation::External {
        return Ok(());
    }
    let place: HashMap<&str, &str> = tensor.external_data.iter().map(|entry| (entry.key(), entry.value())).collect();
    let location = place.get("location").copied().ok_or("no location is given")?;
    let folder = folder.ok_or_else(|| format!("{location}, and the model was not read from a file"))?;
    let relative = Path::new(location);
    // A model must not be able to read files elsewhere on the machine.
    if !relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(format!("{location} is not beside the model"));
    }
    let number = |key: &str| match place.get(key) {
        Some(text) => text.parse::<u64>().map(Some).map_err(|_| format!("{key} {text:?} is not a number")),
        None => Ok(None),
    };
    let path = folder.join(relative);
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let mut file = File::open(&path).map_err(failed)?;
    let facts = file.metadata().map_err(failed)?;
    if !facts.is_file() {
        return Err(format!("{} is not a regular file", path.display()));
    }
    let offset = number("offset")?.unwrap_or(0);
    let rest = facts.len().checked_sub(offset);
    let length = number("length")?.or(rest).unwrap_or(0);
    if rest.is_none_or(|rest| length > rest) {
        return Err(format!("{} ends before byte {}", path.display(), offset.saturating_add(length)));
    }
    *total += length;
    if *total > LIMIT {
        return Err("the weights are larger than 2 GiB, which one ONNX file cannot hold".to_owned());
    }
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(offset)).map_err(failed)?;
    file.take(length).read_to_end(&mut bytes).map_err(failed)?;
    tensor.raw_data = Some(Bytes::from(bytes));
    tensor.external_data.clear();
    tensor.data_location = None;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::onnx::Model;
    use crate::onnx::fixture::Builder;
    use crate::onnx::proto::StringStringEntryProto;

    fn split_off(model: &Model, location: &str) -> (Vec<u8>, Vec<u8>) {
        let mut proto = model.proto().clone();
        let mut data = vec![0_u8; 16];
        for tensor in &mut proto.graph.as_mut().unwrap().initializer {
            let Some(raw) = tensor.raw_data.take() else { continue };
            let entry = |key: &str, value: String| StringStringEntryProto { key: Some(key.into()), value: Some(value) };
            tensor.external_data = vec![
                entry("location", location.into()),
                entry("offset", data.len().to_string()),
                entry("length", raw.len().to_string()),
            ];
            tensor.data_location = Some(DataLocation::External as i32);
            data.extend_from_slice(&raw);
        }
        (prost::Message::encode_to_vec(&proto), data)
    }

    #[test]
    fn weights_beside_the_model_are_taken_in() {
        let whole = Builder::nchw(17).classifier();
        let (bytes, data) = split_off(&whole, "weights.bin");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.onnx");
        fs::write(&path, &bytes).unwrap();
        let missing = Model::read(&path).unwrap_err().to_string();
        assert!(missing.contains("weights.bin") && missing.contains("onnx.save"), "{missing}");
        fs::write(folder.path().join("weights.bin"), &data).unwrap();
        assert_eq!(Model::read(&path).unwrap().to_bytes(), whole.to_bytes());
        fs::write(folder.path().join("weights.bin"), &data[..data.len() - 1]).unwrap();
        assert!(Model::read(&path).unwrap_err().to_string().contains("ends before byte"));
        assert!(Model::from_bytes(&bytes, "memory").unwrap_err().to_string().contains("not read from a file"));
    }

    #[test]
    fn weights_elsewhere_are_refused() {
        let whole = Builder::nchw(17).classifier();
        let folder = tempfile::tempdir().unwrap();
        for location in ["../weights.bin", "/etc/passwd"] {
            let (bytes, _) = split_off(&whole, location);
            let path = folder.path().join("m.onnx");
            fs::write(&path, &bytes).unwrap();
            assert!(Model::read(&path).unwrap_err().to_string().contains("not beside the model"));
        }
    }
}
