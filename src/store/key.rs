//! The store's key: everything that a feature's value depends on, besides the image.

use serde::{Deserialize, Serialize};

/// The parts of the key. Two stores with equal keys hold comparable features.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyParts {
    /// BLAKE3 of the ONNX file.
    pub backbone: String,
    /// Tensors that are read, in order.
    pub cut: Vec<String>,
    /// Side of the input image, pixels.
    pub input_size: u32,
    /// How an image that is not square is made so: `squash`, `crop`, `pad`.
    pub resize: String,
    /// Pixel arithmetic in words ("rgb nhwc x / 127.5 - 1").
    pub preprocessing: String,
    /// `fp32`, `bf16`.
    pub precision: String,
    /// Whose arithmetic made the values: `cpu`, `cuda`, `openvino`.
    pub provider: String,
    /// [`super::STORE_SCHEMA`].
    pub schema: u32,
}

impl KeyParts {
    /// BLAKE3 of the parts in a fixed order, as hexadecimal.
    pub fn key(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for (name, value) in self.named() {
            // Lengths keep ("ab", "c") apart from ("a", "bc").
            for text in [name, value.as_str()] {
                hasher.update(&(text.len() as u64).to_le_bytes());
                hasher.update(text.as_bytes());
            }
        }
        hasher.finalize().to_hex().to_string()
    }

    /// One line for each part that differs: what the store has, what is asked for.
    pub fn differences(&self, wanted: &Self) -> Vec<String> {
        self.named()
            .into_iter()
            .zip(wanted.named())
            .filter(|((_, have), (_, want))| have != want)
            .map(|((name, have), (_, want))| format!("{name}: {have} in the store, {want} asked for"))
            .collect()
    }

    fn named(&self) -> [(&'static str, String); 8] {
        [
            ("backbone", self.backbone.clone()),
            ("cut", self.cut.join(", ")),
            ("input_size", self.input_size.to_string()),
            ("resize", self.resize.clone()),
            ("preprocessing", self.preprocessing.clone()),
            ("precision", self.precision.clone()),
            ("provider", self.provider.clone()),
            ("schema", self.schema.to_string()),
        ]
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn parts() -> KeyParts {
        KeyParts {
            backbone: "b".into(),
            cut: vec!["t".into()],
            input_size: 96,
            resize: "squash".into(),
            preprocessing: "rgb".into(),
            precision: "fp32".into(),
            provider: "cpu".into(),
            schema: super::super::STORE_SCHEMA,
        }
    }

    #[test]
    fn every_part_moves_the_key() {
        let base = parts();
        let others = [
            KeyParts { backbone: "c".into(), ..base.clone() },
            KeyParts { cut: vec!["u".into()], ..base.clone() },
            KeyParts { input_size: 97, ..base.clone() },
            KeyParts { resize: "crop".into(), ..base.clone() },
            KeyParts { preprocessing: "bgr".into(), ..base.clone() },
            KeyParts { precision: "bf16".into(), ..base.clone() },
            KeyParts { provider: "cuda".into(), ..base.clone() },
            KeyParts { schema: 2, ..base.clone() },
        ];
        for other in others {
            assert_ne!(base.key(), other.key());
            assert_eq!(base.differences(&other).len(), 1, "{other:?}");
        }
        assert_eq!(base.key(), parts().key());
    }

    #[test]
    fn neighbouring_parts_do_not_run_together() {
        let one = KeyParts { precision: "ab".into(), provider: "c".into(), ..parts() };
        let two = KeyParts { precision: "a".into(), provider: "bc".into(), ..parts() };
        assert_ne!(one.key(), two.key());
    }
}
