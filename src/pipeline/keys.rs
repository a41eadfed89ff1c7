//! Which features a backbone could have made.

use crate::extract::Backbone;
use crate::image::ImageSpec;
use crate::runtime::Precision;
use crate::store::{Dtype, KeyParts};

/// The parts of a key, where features of this network on such images can have it: whoever did the arithmetic, however it is stored.
pub(super) fn parts_of(key: &str, backbone: &Backbone, spec: &ImageSpec) -> Option<KeyParts> {
    let kinds = ["cpu", "cuda", "openvino"].into_iter().flat_map(|provider| {
        let precisions = [Precision::Fp32, Precision::Bf16].into_iter();
        precisions.flat_map(move |precision| [Dtype::Float32, Dtype::Float16].map(|dtype| (provider, precision, dtype)))
    });
    let mut keys = kinds.map(|(provider, precision, dtype)| backbone.key_parts(spec, dtype, provider, precision));
    keys.find(|parts| parts.key() == key)
}

/// What is other in a key than in those that this network on such images can have.
pub(super) fn differences(have: &KeyParts, backbone: &Backbone, spec: &ImageSpec) -> Vec<String> {
    let KeyParts { provider, precision, dtype, .. } = have.clone();
    have.differences(&KeyParts { provider, precision, dtype, ..backbone.key_parts(spec, dtype, "cpu", Precision::Fp32) })
}
