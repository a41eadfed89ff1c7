//! `statistics.safetensors`: sufficient statistics on disk.
//!
//! ```text
//! gram   F64 [D (D + 1) / 2]  lower triangle, row by row
//! sums   F64 [K, D]
//! rows   U64 [K]
//! pivot  F32 [D]
//! metadata  tlpipe.statistics = {"version": 1, "classes": ["cat", …], "store_key": "…", "l2": …, "logit_scale": …}
//! ```

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use ndarray::Array2;
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use serde::{Deserialize, Serialize};

use super::Statistics;
use crate::head::HeadError;
use crate::head::file::{little_endian, values};
use crate::head::tiles::Tiles;

/// Version of the file; another version is refused.
const VERSION: u32 = 1;

/// Key of the metadata entry.
const ENTRY: &str = "tlpipe.statistics";

#[derive(Serialize, Deserialize)]
struct Metadata {
    version: u32,
    #[serde(flatten)]
    origin: Origin,
}

/// What statistics are of, and what the head that followed from them was made with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// Class names; the index is the label.
    pub classes: Vec<String>,
    /// Key of the feature store.
    pub store_key: String,
    /// The strength of L2.
    pub l2: f64,
    /// What the least-squares answers were multiplied with.
    pub logit_scale: f64,
}

impl Statistics {
    /// The file's content.
    ///
    /// # Errors
    /// When the classes are not those of the statistics.
    pub fn to_bytes(&self, origin: &Origin) -> Result<Vec<u8>, HeadError> {
        let classes = &origin.classes;
        if classes.len() != self.classes() {
            return Err(HeadError::Size { what: "classes", found: classes.len(), expected: self.classes() });
        }
        let features = self.features();
        let mut gram = Vec::with_capacity(features * (features + 1) * 4);
        self.gram.lower().for_each(|value| gram.extend_from_slice(&value.to_le_bytes()));
        let sums: Vec<u8> = self.sums.iter().flat_map(|value| value.to_le_bytes()).collect();
        let rows: Vec<u8> = self.rows.iter().flat_map(|value| value.to_le_bytes()).collect();
        let pivot = little_endian(self.pivot.iter());
        let tensors = [
            ("gram", Dtype::F64, vec![gram.len() / 8], &gram),
            ("sums", Dtype::F64, vec![classes.len(), features], &sums),
            ("rows", Dtype::U64, vec![classes.len()], &rows),
            ("pivot", Dtype::F32, vec![features], &pivot),
        ];
        let text = |error: &dyn std::fmt::Display| HeadError::Damaged { path: Self::FILE.into(), reason: error.to_string() };
        let views = tensors.into_iter().map(|(name, dtype, shape, bytes)| Ok((name, TensorView::new(dtype, shape, bytes)?)));
        let views = views.collect::<Result<Vec<_>, safetensors::SafeTensorError>>().map_err(|error| text(&error))?;
        let metadata = Metadata { version: VERSION, origin: origin.clone() };
        let metadata = serde_json::to_string(&metadata).map_err(|error| text(&error))?;
        serialize(views, Some(HashMap::from([(ENTRY.to_owned(), metadata)]))).map_err(|error| text(&error))
    }

    /// Name of the file in a run.
    pub const FILE: &'static str = "statistics.safetensors";

    /// Reads the file.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged, or is of another version.
    pub fn load(path: &Path) -> Result<(Self, Origin), HeadError> {
        let bytes = fs::read(path).map_err(|source| HeadError::Io { path: path.into(), source })?;
        Self::from_bytes(&bytes).map_err(|reason| HeadError::Damaged { path: path.into(), reason })
    }

    fn from_bytes(bytes: &[u8]) -> Result<(Self, Origin), String> {
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| format!("not a safetensors file: {error}"))?;
        let tensors = SafeTensors::deserialize(bytes).map_err(|error| format!("not a safetensors file: {error}"))?;
        let entry = header.metadata().as_ref().and_then(|metadata| metadata.get(ENTRY));
        let entry = entry.ok_or_else(|| format!("no metadata entry \"{ENTRY}\": not statistics"))?;
        let metadata: Metadata = serde_json::from_str(entry).map_err(|error| format!("metadata \"{ENTRY}\": {error}"))?;
        if metadata.version != VERSION {
            return Err(format!("version {}, this tlpipe reads version {VERSION}", metadata.version));
        }
        let pivot = values(&tensors, "pivot", 1)?.1;
        let (features, classes) = (pivot.len(), metadata.origin.classes.len());
        let of = |name: &str, dtype: Dtype, shape: &[usize]| {
            let tensor = tensors.tensor(name).map_err(|_| format!("tensor \"{name}\" is missing"))?;
            let (found, wanted) = ((tensor.dtype(), tensor.shape()), (dtype, shape));
            if found == wanted {
                Ok(tensor.data().as_chunks::<8>().0)
            } else {
                Err(format!("tensor \"{name}\" is {found:?}, expected {wanted:?}"))
            }
        };
        let triangle = features.checked_mul(features + 1).map(|twice| twice / 2).ok_or("too many features")?;
        let gram = of("gram", Dtype::F64, &[triangle])?;
        let sums: Vec<f64> =
            of("sums", Dtype::F64, &[classes, features])?.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect();
        let rows: Vec<u64> = of("rows", Dtype::U64, &[classes])?.iter().map(|&bytes| u64::from_le_bytes(bytes)).collect();
        let mut statistics = Self::none(pivot, classes);
        statistics.gram = Tiles::from_fn(features, |i, j| {
            // A tile on the diagonal is whole in memory.
            let (i, j) = (i.max(j), i.min(j));
            f64::from_le_bytes(gram[i * (i + 1) / 2 + j])
        });
        statistics.sums = Array2::from_shape_vec((classes, features), sums).map_err(|error| error.to_string())?;
        statistics.rows = rows;
        let finite = statistics.sums.iter().all(|value| value.is_finite())
            && statistics.pivot.iter().all(|value| value.is_finite())
            && gram.iter().all(|&bytes| f64::from_le_bytes(bytes).is_finite());
        if finite { Ok((statistics, metadata.origin)) } else { Err("a value is not finite".into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_come_back_whole_and_damage_is_named() {
        let x = Array2::from_shape_fn((90, 300), |(row, feature)| ((row * 31 + feature * 17) % 101) as f32 / 13.0 - 3.0);
        let labels: Vec<usize> = (0..90).map(|row| row % 2).collect();
        let statistics = Statistics::of(x.view(), &labels, &(0..80).collect::<Vec<_>>(), 2);
        let classes = vec!["a".to_owned(), "b".to_owned()];
        let origin = Origin { classes, store_key: "key".into(), l2: 0.1, logit_scale: 12.5 };
        let bytes = statistics.to_bytes(&origin).unwrap();
        let (again, found) = Statistics::from_bytes(&bytes).unwrap();
        assert_eq!((&again.rows, &again.sums, &again.pivot), (&statistics.rows, &statistics.sums, &statistics.pivot));
        assert!(again.gram == statistics.gram);
        assert_eq!(found, origin);
        assert_eq!(again.to_bytes(&origin).unwrap(), bytes);
        for length in (0..bytes.len()).step_by(997) {
            assert!(Statistics::from_bytes(&bytes[..length]).is_err(), "cut to {length} bytes");
        }
        let mut damaged = bytes.clone();
        let end = damaged.len();
        damaged[end - 300 * 4 - 8..end].fill(0xff);
        assert!(Statistics::from_bytes(&damaged).unwrap_err().contains("finite"));
        assert!(matches!(statistics.to_bytes(&Origin { classes: vec![], ..origin }), Err(HeadError::Size { .. })));
    }
}
