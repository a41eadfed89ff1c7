//! A model as read: the protobuf message and where it came from.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use prost::Message as _;
use prost::bytes::Bytes;

use super::error::OnnxError;
use super::external;
use super::proto::{GraphProto, ModelProto, StringStringEntryProto};

static NO_GRAPH: LazyLock<GraphProto> = LazyLock::new(GraphProto::default);

/// An ONNX model with all its weights in memory.
#[derive(Clone, Debug)]
pub struct Model {
    proto: ModelProto,
    origin: String,
}

impl Model {
    /// Reads a model file. Weights that are kept in files beside it are taken in.
    ///
    /// # Errors
    /// When the file cannot be read, is no ONNX model, or its weights are missing.
    pub fn read(path: &Path) -> Result<Self, OnnxError> {
        let io = |source| OnnxError::Io { path: path.to_owned(), source };
        if !fs::metadata(path).map_err(io)?.is_file() {
            return Err(io(std::io::Error::other("not a regular file; give an .onnx file")));
        }
        let mut model = decode(Bytes::from(fs::read(path).map_err(io)?), &path.display().to_string())?;
        let folder = path.parent().unwrap_or(Path::new(""));
        external::take_in(&mut model.proto, &model.origin, Some(folder))?;
        Ok(model)
    }

    /// Reads a model from memory; `origin` names it in messages.
    ///
    /// # Errors
    /// When the bytes are no ONNX model, or some of its weights are in another file.
    pub fn from_bytes(bytes: &[u8], origin: &str) -> Result<Self, OnnxError> {
        let mut model = decode(Bytes::copy_from_slice(bytes), origin)?;
        external::take_in(&mut model.proto, origin, None)?;
        Ok(model)
    }

    /// The model as a file's content.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.proto.encode_to_vec()
    }

    /// The whole message.
    pub fn proto(&self) -> &ModelProto {
        &self.proto
    }

    /// Where the model came from, as messages name it.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Version of the standard operators that the model is written for.
    pub fn opset(&self) -> i64 {
        let standard = |domain: &str| domain.is_empty() || domain == "ai.onnx";
        self.proto.opset_import.iter().find(|entry| standard(entry.domain())).map_or(1, |entry| entry.version())
    }

    /// An entry of the model's own metadata, `metadata_props`.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.proto.metadata_props.iter().find(|entry| entry.key() == key).map(StringStringEntryProto::value)
    }

    /// The same model with these entries in its metadata; one of the same key is replaced.
    #[must_use]
    pub fn with_metadata(mut self, entries: Vec<(String, String)>) -> Self {
        self.proto.metadata_props.retain(|old| entries.iter().all(|(key, _)| key != old.key()));
        let entries = entries.into_iter();
        let entries = entries.map(|(key, value)| StringStringEntryProto { key: Some(key), value: Some(value) });
        self.proto.metadata_props.extend(entries);
        self
    }

    /// The same model with its message changed.
    pub(super) fn change(mut self, change: impl FnOnce(&mut ModelProto)) -> Self {
        change(&mut self.proto);
        self
    }

    /// The graph; `decode` has made sure that there is one.
    pub(super) fn graph(&self) -> &GraphProto {
        self.proto.graph.as_ref().unwrap_or(&NO_GRAPH)
    }

    /// The same model around another graph.
    pub(super) fn with_graph(&self, graph: GraphProto) -> Self {
        // Field by field, since a clone of the whole would copy the graph that is replaced.
        let proto = ModelProto {
            ir_version: self.proto.ir_version,
            opset_import: self.proto.opset_import.clone(),
            producer_name: self.proto.producer_name.clone(),
            producer_version: self.proto.producer_version.clone(),
            domain: self.proto.domain.clone(),
            model_version: self.proto.model_version,
            doc_string: self.proto.doc_string.clone(),
            graph: Some(graph),
            metadata_props: self.proto.metadata_props.clone(),
            // Training graphs speak of tensors that another graph does not have.
            training_info: Vec::new(),
            functions: self.proto.functions.clone(),
            configuration: self.proto.configuration.clone(),
        };
        Self { proto, origin: self.origin.clone() }
    }
}

fn decode(bytes: Bytes, origin: &str) -> Result<Model, OnnxError> {
    let refuse = |reason: String| OnnxError::NotOnnx { origin: origin.to_owned(), reason };
    if bytes.is_empty() {
        return Err(refuse("it is empty".to_owned()));
    }
    if let Some(kind) = recognize(&bytes) {
        return Err(refuse(format!("it looks like {kind}")));
    }
    let proto = ModelProto::decode(bytes).map_err(|error| refuse(format!("damaged or of another kind: {error}")))?;
    let has_nodes = proto.graph.as_ref().is_some_and(|graph| !graph.node.is_empty());
    if !has_nodes {
        return Err(refuse("it holds no graph".to_owned()));
    }
    Ok(Model { proto, origin: origin.to_owned() })
}

/// Other files that people hand over by mistake.
fn recognize(bytes: &[u8]) -> Option<&'static str> {
    if bytes.starts_with(b"version https://git-lfs") {
        return Some("a Git LFS pointer, not the model itself: run `git lfs pull`");
    }
    if bytes.starts_with(b"PK\x03\x04") {
        return Some("a zip archive, such as a PyTorch or Keras checkpoint: export it to ONNX");
    }
    if bytes.starts_with(b"\x89HDF") {
        return Some("an HDF5 file, such as Keras weights: export it to ONNX");
    }
    if bytes.get(4..8) == Some(b"TFL3".as_slice()) {
        return Some("a TensorFlow Lite model: convert it to ONNX");
    }
    let start: Vec<u8> = bytes.iter().take(64).map(u8::to_ascii_lowercase).collect();
    let html = start.windows(5).any(|window| window == b"<html") || start.starts_with(b"<!doctype");
    html.then_some("a web page, such as a download's error page")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::fixture::Builder;

    #[test]
    fn a_model_survives_reading_and_writing() {
        let model = Builder::nchw(13).classifier();
        let again = Model::from_bytes(&model.to_bytes(), "again").unwrap();
        assert_eq!(model.proto(), again.proto());
        assert_eq!(again.opset(), 13);
        assert_eq!(again.origin(), "again");
    }

    #[test]
    fn what_is_no_model_is_refused_with_what_it_is() {
        let message = |bytes: &[u8]| Model::from_bytes(bytes, "m.onnx").unwrap_err().to_string();
        assert!(message(b"").contains("empty"));
        assert!(message(b"PK\x03\x04rest").contains("zip"));
        assert!(message(b"<!DOCTYPE html><html>404").contains("web page"));
        assert!(message(b"version https://git-lfs.github.com/spec/v1\n").contains("git lfs pull"));
        assert!(message(b"just some text, not a model").contains("m.onnx: not an ONNX model"));
        let garbage: Vec<u8> = (0..4096_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        assert!(message(&garbage).contains("not an ONNX model"));
        let whole = Builder::nchw(13).classifier().to_bytes();
        assert!(message(&whole[..whole.len() / 2]).contains("not an ONNX model"));
        assert!(message(&ModelProto { ir_version: Some(8), ..ModelProto::default() }.encode_to_vec()).contains("no graph"));
    }

    #[test]
    fn a_missing_file_and_a_folder_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("none.onnx");
        assert!(Model::read(&missing).unwrap_err().to_string().contains("none.onnx"));
        assert!(Model::read(folder.path()).unwrap_err().to_string().contains("not a regular file"));
    }
}
