use linfa::traits::PredictInplace;
use ndarray::{Array1, Array2, ArrayBase, ArrayView1, ArrayView2, Axis, Data, Ix2};
use rayon::prelude::*;

use super::dense::{BLOCK_ROWS, Dense};
use super::features::Features;
use super::{HeadError, Standardization, Weights};
use crate::evaluate::{argmax, softmax};
use crate::store::{KeyParts, Transform};

/// A fitted softmax head: `logits = standardized(x) · kernel + bias`. Its parts fit each other and are finite.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    weights: Weights,
    standardization: Option<Standardization>,
    classes: Vec<String>,
    store_key: String,
    store_parts: Option<KeyParts>,
    transform: Transform,
}

impl Head {
    /// Puts a head together.
    ///
    /// # Errors
    /// When sizes do not fit each other, or a value is not finite or a deviation not above 0.
    pub fn new(weights: Weights, standardization: Option<Standardization>, classes: Vec<String>) -> Result<Self, HeadError> {
        let (features, count) = weights.kernel.dim();
        let mut sizes = vec![("classes", classes.len(), count), ("values of the bias", weights.bias.len(), count)];
        if let Some(Standardization { mean, std }) = &standardization {
            sizes.extend([("means", mean.len(), features), ("deviations", std.len(), features)]);
        }
        for (what, found, expected) in sizes {
            if found != expected {
                return Err(HeadError::Size { what, found, expected });
            }
        }
        for (what, at_least) in [("features of the kernel", features), ("classes of the kernel", count)] {
            if at_least == 0 {
                return Err(HeadError::Size { what, found: 0, expected: 1 });
            }
        }
        let is_fine = |value: &f32| value.is_finite();
        let standardization_is_fine = standardization
            .as_ref()
            .is_none_or(|found| found.mean.iter().all(is_fine) && found.std.iter().all(|&std| std.is_finite() && std > 0.0));
        if !weights.kernel.iter().chain(&weights.bias).all(is_fine) || !standardization_is_fine {
            return Err(HeadError::Unusable);
        }
        Ok(Self { weights, standardization, classes, store_key: String::new(), store_parts: None, transform: Transform::None })
    }

    /// The head that sees some of the features alone, in this order; the others must have no weight for its answers to be the same.
    ///
    /// # Errors
    /// When none is named, or one that is not there.
    pub fn of_features(&self, features: &[usize]) -> Result<Self, HeadError> {
        let count = self.weights.kernel.nrows();
        if let Some(&feature) = features.iter().find(|&&feature| feature >= count) {
            return Err(HeadError::Size { what: "features of the kernel", found: count, expected: feature + 1 });
        }
        let weights = Weights { kernel: self.weights.kernel.select(Axis(0), features), bias: self.weights.bias.clone() };
        let some = |values: &[f32]| features.iter().map(|&feature| values[feature]).collect();
        let standardization = self.standardization.as_ref();
        let standardization = standardization.map(|found| Standardization { mean: some(&found.mean), std: some(&found.std) });
        let Self { store_key, store_parts, transform, .. } = self.clone();
        Ok(Self { store_key, store_parts, transform, ..Self::new(weights, standardization, self.classes.clone())? })
    }

    /// Says which feature store the head was fitted on, and what was done to its values as they were read. The head does not do it:
    /// the features that it is given have been read so.
    #[must_use]
    pub fn with_store(self, parts: &KeyParts, transform: Transform) -> Self {
        Self { store_key: parts.key(), store_parts: Some(parts.clone()), transform, ..self }
    }

    /// The same of a head that was written before heads knew the parts of the key.
    pub(super) fn with_key(self, store_key: String, transform: Transform) -> Self {
        Self { store_key, store_parts: None, transform, ..self }
    }

    /// What is done to each value of a view's features before views are averaged and the head sees them.
    pub fn transform(&self) -> Transform {
        self.transform
    }

    /// Kernel `[D, K]`, for standardized features where there is a standardization.
    pub fn kernel(&self) -> ArrayView2<'_, f32> {
        self.weights.kernel.view()
    }

    /// Bias `[K]`.
    pub fn bias(&self) -> ArrayView1<'_, f32> {
        self.weights.bias.view()
    }

    /// What is done to features first.
    pub fn standardization(&self) -> Option<&Standardization> {
        self.standardization.as_ref()
    }

    /// Class names; the index is the label.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Key of the feature store that the head was fitted on; empty where it was fitted on no store.
    pub fn store_key(&self) -> &str {
        &self.store_key
    }

    /// The parts of that key; none where it was fitted on no store, or by a tlpipe that did not record them.
    pub fn store_parts(&self) -> Option<&KeyParts> {
        self.store_parts.as_ref()
    }

    /// Logits `[N, K]` of features `[N, D]`, in parallel over blocks of rows; the same bits on any number of threads.
    ///
    /// # Errors
    /// When the features have another width, or a row gives no finite answer.
    pub fn logits(&self, x: ArrayView2<'_, f32>) -> Result<Array2<f32>, HeadError> {
        self.pack().logits(x)
    }

    /// The head as it is computed with, for many blocks of rows.
    pub fn pack(&self) -> PackedHead<'_> {
        PackedHead { layer: Dense::pack(self.kernel(), self.bias()), standardization: self.standardization() }
    }

    /// Class probabilities `[N, K]` of features `[N, D]`; each row sums to 1.
    ///
    /// # Errors
    /// As [`Head::logits`].
    pub fn probabilities(&self, x: ArrayView2<'_, f32>) -> Result<Array2<f32>, HeadError> {
        self.pack().map_rows(x, |row| {
            softmax(row);
        })
    }
}

/// A head whose weights lie as they are computed with.
pub struct PackedHead<'a> {
    layer: Dense,
    standardization: Option<&'a Standardization>,
}

impl PackedHead<'_> {
    /// As [`Head::logits`].
    ///
    /// # Errors
    /// As [`Head::logits`].
    pub fn logits(&self, x: ArrayView2<'_, f32>) -> Result<Array2<f32>, HeadError> {
        self.map_rows(x, |_| {})
    }

    fn map_rows(&self, x: ArrayView2<'_, f32>, finish: impl Fn(&mut [f32]) + Sync) -> Result<Array2<f32>, HeadError> {
        let (layer, features, classes) = (&self.layer, self.layer.features(), self.layer.classes());
        if x.ncols() != features {
            return Err(HeadError::Size { what: "features of a row", found: x.ncols(), expected: features });
        }
        let source = Features::new(x, self.standardization);
        let indices: Vec<usize> = (0..x.nrows()).collect();
        let mut out = vec![0.0; x.nrows() * classes];
        // With many classes, few rows are work for every thread.
        let rows = x.nrows().div_ceil(rayon::current_num_threads()).clamp(1, BLOCK_ROWS);
        let blocks = out.par_chunks_mut(rows * classes).zip(indices.par_chunks(rows));
        let bad = blocks.filter_map(|(out, indices)| {
            layer.logits_into(&source, indices, out);
            let bad = out.chunks_exact(classes).position(|row| !row.iter().all(|logit| logit.is_finite()));
            out.chunks_exact_mut(classes).for_each(&finish);
            bad.map(|position| indices[position])
        });
        match bad.min() {
            Some(row) => Err(HeadError::Answer { row }),
            None => Array2::from_shape_vec((x.nrows(), classes), out).map_err(|error| HeadError::Dataset(error.into())),
        }
    }
}

impl<D: Data<Elem = f32>> PredictInplace<ArrayBase<D, Ix2>, Array1<usize>> for Head {
    /// Writes the index of the most probable class of each row.
    ///
    /// # Panics
    /// Like linfa's own models, when `x` has another width than the head or another number of rows than `y`, or holds values
    /// that are not finite; [`Head::logits`] returns an error instead.
    #[allow(clippy::panic, reason = "the trait leaves no room for an error; linfa's models assert")]
    fn predict_inplace(&self, x: &ArrayBase<D, Ix2>, y: &mut Array1<usize>) {
        assert_eq!(x.nrows(), y.len(), "the number of rows must match the number of targets");
        match self.logits(x.view()) {
            Ok(logits) => {
                for (target, row) in y.iter_mut().zip(logits.axis_iter(Axis(0))) {
                    *target = row.to_slice().map_or(0, argmax);
                }
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn default_target(&self, x: &ArrayBase<D, Ix2>) -> Array1<usize> {
        Array1::zeros(x.nrows())
    }
}
