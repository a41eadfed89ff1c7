//! `head.safetensors`: a head on disk.
//!
//! ```text
//! kernel  F32 [D, K]
//! bias    F32 [K]
//! mean    F32 [D]   only where features are standardized
//! std     F32 [D]   as mean
//! metadata  tlpipe.head = {"version": 1, "classes": ["cat", …], "store_key": "…", "store": {"backbone": "…", …}, "transform": "sqrt"}
//! ```
//!
//! `store_key` is the hash of `store`, the parts of the feature store's key; files of earlier versions have the hash alone.
//!
//! One metadata entry, because `safetensors` writes several in no particular order and the same head must give the same bytes.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use ndarray::Array2;
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use serde::{Deserialize, Serialize};

use super::{Head, HeadError, Standardization, Weights};
use crate::run::RunDir;
use crate::store::{KeyParts, Transform};

/// Version of the file; another version is refused.
const VERSION: u32 = 1;

/// Key of the metadata entry.
const ENTRY: &str = "tlpipe.head";

#[derive(Serialize, Deserialize)]
struct Metadata {
    version: u32,
    classes: Vec<String>,
    store_key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    store: Option<KeyParts>,
    #[serde(default, skip_serializing_if = "Transform::is_none")]
    transform: Transform,
}

impl Head {
    /// Writes the head to a file, whole or not at all.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), HeadError> {
        let bytes = self.to_bytes().map_err(|reason| HeadError::Damaged { path: path.into(), reason })?;
        let io = |source| HeadError::Io { path: path.into(), source };
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| io(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a file name")))?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        RunDir::new(folder).write(name, &bytes).map_err(|error| io(std::io::Error::other(error)))
    }

    /// Reads a head from a file.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged, or is of another version.
    pub fn load(path: &Path) -> Result<Self, HeadError> {
        let bytes = fs::read(path).map_err(|source| HeadError::Io { path: path.into(), source })?;
        Self::from_bytes(&bytes).map_err(|reason| HeadError::Damaged { path: path.into(), reason })
    }

    fn to_bytes(&self) -> Result<Vec<u8>, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let kernel = self.kernel();
        let mut tensors = vec![
            ("kernel", vec![kernel.nrows(), kernel.ncols()], little_endian(kernel.iter())),
            ("bias", vec![self.bias().len()], little_endian(self.bias().iter())),
        ];
        if let Some(Standardization { mean, std }) = self.standardization() {
            tensors.push(("mean", vec![mean.len()], little_endian(mean.iter())));
            tensors.push(("std", vec![std.len()], little_endian(std.iter())));
        }
        let views = tensors.iter().map(|(name, shape, bytes)| {
            TensorView::new(Dtype::F32, shape.clone(), bytes).map(|view| (*name, view)).map_err(|error| text(&error))
        });
        let views: Vec<_> = views.collect::<Result<_, _>>()?;
        let (classes, store_key) = (self.classes().to_vec(), self.store_key().to_owned());
        let (store, transform) = (self.store_parts().cloned(), self.transform());
        let metadata = Metadata { version: VERSION, classes, store_key, store, transform };
        let metadata = serde_json::to_string(&metadata).map_err(|error| text(&error))?;
        serialize(views, Some(HashMap::from([(ENTRY.to_owned(), metadata)]))).map_err(|error| text(&error))
    }

    /// `safetensors` checks the header against the length of the file; everything else is checked here.
    fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| format!("not a safetensors file: {error}"))?;
        let tensors = SafeTensors::deserialize(bytes).map_err(|error| format!("not a safetensors file: {error}"))?;
        let entry = header.metadata().as_ref().and_then(|metadata| metadata.get(ENTRY));
        let entry = entry.ok_or_else(|| format!("no metadata entry \"{ENTRY}\": not a head"))?;
        let metadata: Metadata = serde_json::from_str(entry).map_err(|error| format!("metadata \"{ENTRY}\": {error}"))?;
        if metadata.version != VERSION {
            return Err(format!("version {}, this tlpipe reads version {VERSION}", metadata.version));
        }
        let mut known = vec!["bias", "kernel"];
        let standardized = ["mean", "std"].iter().filter(|name| tensors.tensor(name).is_ok()).count() > 0;
        if standardized {
            known.extend(["mean", "std"]);
        }
        if let Some(name) = tensors.names().into_iter().find(|name| !known.contains(name)) {
            return Err(format!("unknown tensor \"{name}\""));
        }
        let (shape, kernel) = values(&tensors, "kernel", 2)?;
        let kernel = Array2::from_shape_vec((shape[0], shape[1]), kernel).map_err(|error| error.to_string())?;
        let weights = Weights { kernel, bias: vector(&tensors, "bias")?.into() };
        let standardization = if standardized {
            Some(Standardization { mean: vector(&tensors, "mean")?, std: vector(&tensors, "std")? })
        } else {
            None
        };
        let head = Self::new(weights, standardization, metadata.classes).map_err(|error| error.to_string())?;
        match metadata.store {
            Some(parts) if parts.key() != metadata.store_key => Err("the features' key is not that of its parts".to_owned()),
            Some(parts) => Ok(head.with_store(&parts, metadata.transform)),
            None => Ok(head.with_key(metadata.store_key, metadata.transform)),
        }
    }
}

pub(super) fn little_endian<'a>(values: impl Iterator<Item = &'a f32>) -> Vec<u8> {
    values.flat_map(|value| value.to_le_bytes()).collect()
}

fn vector(tensors: &SafeTensors<'_>, name: &str) -> Result<Vec<f32>, String> {
    Ok(values(tensors, name, 1)?.1)
}

/// Shape and values of a tensor with `rank` dimensions.
pub(super) fn values(tensors: &SafeTensors<'_>, name: &str, rank: usize) -> Result<(Vec<usize>, Vec<f32>), String> {
    let tensor = tensors.tensor(name).map_err(|_| format!("tensor \"{name}\" is missing"))?;
    if tensor.dtype() != Dtype::F32 || tensor.shape().len() != rank {
        let (dtype, shape) = (tensor.dtype(), tensor.shape());
        return Err(format!("tensor \"{name}\" is {dtype:?} {shape:?}, expected F32 with {rank} dimensions"));
    }
    let values = tensor.data().as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
    Ok((tensor.shape().to_vec(), values.collect()))
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use crate::store::fixture::parts;

    use super::*;

    fn head(standardized: bool) -> Head {
        let weights = Weights { kernel: array![[1.0, -2.0], [0.5, 1e-30], [3.0, 4.0]], bias: array![0.25, -0.75] };
        let standardization = Standardization { mean: vec![1.0, 2.0, 3.0], std: vec![0.5, 1.0, 2.0] };
        let classes = vec!["chat \"noir\"".to_owned(), "犬".to_owned()];
        Head::new(weights, standardized.then_some(standardization), classes)
            .unwrap()
            .with_store(&parts(), if standardized { Transform::Sqrt } else { Transform::None })
    }

    #[test]
    fn a_head_of_before_there_were_parts_is_read_and_parts_of_another_key_are_not() {
        let head = head(false).with_key("a key".to_owned(), Transform::None);
        let bytes = head.to_bytes().unwrap();
        assert!(!String::from_utf8_lossy(&bytes).contains("\\\"store\\\""));
        let read = Head::from_bytes(&bytes).unwrap();
        assert_eq!((read.store_key(), read.store_parts()), ("a key", None));
        assert_eq!(read, head);
        let mut bytes = self::head(false).to_bytes().unwrap();
        let key = parts().key();
        let at = bytes.windows(key.len()).position(|window| window == key.as_bytes()).unwrap();
        bytes[at..at + key.len()].fill(b'0');
        assert!(Head::from_bytes(&bytes).unwrap_err().contains("not that of its parts"));
    }

    #[test]
    fn a_saved_head_comes_back_whole_and_equal_heads_are_equal_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("head.safetensors");
        for standardized in [false, true] {
            let head = head(standardized);
            head.save(&path).unwrap();
            assert_eq!(Head::load(&path).unwrap(), head);
            assert_eq!(fs::read(&path).unwrap(), head.to_bytes().unwrap());
        }
    }

    #[test]
    fn every_truncation_and_every_flipped_header_byte_is_survived() {
        let bytes = head(true).to_bytes().unwrap();
        for length in 0..bytes.len() {
            assert!(Head::from_bytes(&bytes[..length]).is_err(), "cut to {length} bytes");
        }
        let values = 4 * (6 + 2 + 3 + 3);
        for position in 0..bytes.len() - values {
            for flip in [0x01, 0x20, 0x80] {
                let mut damaged = bytes.clone();
                damaged[position] ^= flip;
                // Whatever is still read must be a head whose parts fit each other.
                if let Ok(head) = Head::from_bytes(&damaged) {
                    assert_eq!((head.kernel().dim(), head.bias().len(), head.classes().len()), ((3, 2), 2, 2));
                }
            }
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let path = Path::new("runs/x/head.safetensors");
        let error = Head::load(path).unwrap_err();
        assert!(matches!(error, HeadError::Io { .. }), "{error}");

        let of = |tensors: &[(&str, Vec<usize>, Vec<f32>)], metadata: Option<&str>| {
            let data: Vec<Vec<u8>> = tensors.iter().map(|(_, _, values)| little_endian(values.iter())).collect();
            let views = tensors.iter().zip(&data);
            let views: Vec<_> = views
                .map(|((name, shape, _), data)| (*name, TensorView::new(Dtype::F32, shape.clone(), data).unwrap()))
                .collect();
            let metadata = metadata.map(|metadata| HashMap::from([(ENTRY.to_owned(), metadata.to_owned())]));
            Head::from_bytes(&serialize(views, metadata).unwrap()).unwrap_err()
        };
        let good = r#"{"version":1,"classes":["a","b"],"store_key":""}"#;
        let kernel = ("kernel", vec![1, 2], vec![1.0, 2.0]);
        let bias = ("bias", vec![2], vec![0.0, 0.0]);
        let both = [kernel.clone(), bias.clone()];
        assert!(of(&both, None).contains("not a head"));
        assert!(of(&both, Some(&good.replace('1', "2"))).contains("version 2, this tlpipe reads version 1"));
        assert!(of(&both, Some(&good.replace(",\"b\"", ""))).starts_with("classes: found 1, expected 2"));
        assert!(of(&both[..1], Some(good)).contains("\"bias\" is missing"));
        assert!(of(&[kernel.clone(), ("bias", vec![1, 2], vec![0.0, 0.0])], Some(good)).contains("with 1 dimensions"));
        assert!(of(&[kernel.clone(), ("bias", vec![3], vec![0.0; 3])], Some(good)).contains("found 3, expected 2"));
        assert!(of(&[kernel.clone(), bias.clone(), ("mean", vec![1], vec![0.0])], Some(good)).contains("\"std\" is missing"));
        assert!(
            of(&[kernel.clone(), bias.clone(), ("gamma", vec![1], vec![0.0])], Some(good)).contains("unknown tensor \"gamma\"")
        );
        assert!(of(&[("kernel", vec![1, 2], vec![1.0, f32::NAN]), bias.clone()], Some(good)).contains("finite"));
        let zero = [kernel, bias, ("mean", vec![1], vec![0.0]), ("std", vec![1], vec![0.0])];
        assert!(of(&zero, Some(good)).contains("finite"));
    }
}
