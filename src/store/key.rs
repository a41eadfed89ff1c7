//! The store's key: everything that a feature's value depends on, besides the image.

use serde::{Deserialize, Serialize};

use super::layout::{Dtype, IDENTITY};

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
    /// What of each image is seen, in the order of the columns. `identity` alone is no part of the hash: it is what stores had
    /// before there were views. The same is true of `float32`.
    #[serde(default = "identity", skip_serializing_if = "is_identity")]
    pub views: Vec<String>,
    /// What the embeddings are stored as.
    #[serde(default, skip_serializing_if = "Dtype::is_default")]
    pub dtype: Dtype,
}

/// The image as it is, alone.
pub(super) fn identity() -> Vec<String> {
    vec![IDENTITY.into()]
}

fn is_identity(views: &[String]) -> bool {
    views == identity()
}

impl KeyParts {
    /// BLAKE3 of the parts in a fixed order, as hexadecimal.
    pub fn key(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let later = [("views", is_identity(&self.views)), ("dtype", self.dtype.is_default())];
        for (name, value) in self.named() {
            if later.contains(&(name, true)) {
                continue;
            }
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
        self.unlike(wanted)
            .map(|(name, have, want)| match name {
                "cut" if self.cut.len() + wanted.cut.len() > 2 => other_tensors(&self.cut, &wanted.cut),
                _ => format!("{name}: {have} in the store, {want} asked for"),
            })
            .collect()
    }

    /// Each part that differs: its name, here, there.
    pub fn unlike(&self, other: &Self) -> impl Iterator<Item = (&'static str, String, String)> + use<> {
        let pairs = self.named().into_iter().zip(other.named());
        pairs.filter(|((_, here), (_, there))| here != there).map(|((name, here), (_, there))| (name, here, there))
    }

    fn named(&self) -> [(&'static str, String); 10] {
        [
            ("backbone", self.backbone.clone()),
            ("cut", self.cut.join(", ")),
            ("input_size", self.input_size.to_string()),
            ("resize", self.resize.clone()),
            ("preprocessing", self.preprocessing.clone()),
            ("precision", self.precision.clone()),
            ("provider", self.provider.clone()),
            ("schema", self.schema.to_string()),
            ("views", self.views.join(", ")),
            ("dtype", self.dtype.name().into()),
        ]
    }
}

/// What differs between two lists of tensors.
fn other_tensors(have: &[String], want: &[String]) -> String {
    const SHOWN: usize = 3;
    let count = |tensors: &[String]| match tensors {
        [only] => format!("{only} alone"),
        many => format!("{} tensors", many.len()),
    };
    let only = |where_: &str, these: &[String], those: &[String]| {
        let mut names: Vec<&str> = these.iter().filter(|name| !those.contains(name)).map(String::as_str).collect();
        let more = names.len().saturating_sub(SHOWN);
        names.truncate(SHOWN);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        if names.is_empty() { String::new() } else { format!("; only {where_}: {}{more}", names.join(", ")) }
    };
    let (in_store, asked_for) = (only("in the store", have, want), only("asked for", want, have));
    let order = if in_store.is_empty() && asked_for.is_empty() { "; the same in another order" } else { "" };
    format!("layers: {} in the store, {} asked for{in_store}{asked_for}{order}", count(have), count(want))
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
            views: identity(),
            dtype: Dtype::Float32,
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
            KeyParts { views: vec![IDENTITY.into(), "hflip".into()], ..base.clone() },
            KeyParts { dtype: Dtype::Float16, ..base.clone() },
        ];
        for other in others {
            assert_ne!(base.key(), other.key());
            assert_eq!(base.differences(&other).len(), 1, "{other:?}");
        }
        assert_eq!(base.key(), parts().key());
    }

    #[test]
    fn of_many_tensors_only_what_differs_is_named() {
        let name = |number: usize| format!("block_{number}/out");
        let all = KeyParts { cut: (0..35).map(name).collect(), ..parts() };
        let few = KeyParts { cut: [name(30), "other".into(), name(34)].into(), ..parts() };
        let said = all.differences(&few);
        let expected = "layers: 35 tensors in the store, 3 tensors asked for; only in the store: block_0/out, block_1/out, \
                        block_2/out and 30 more; only asked for: other";
        assert_eq!(said, [expected]);
        let one = KeyParts { cut: vec![name(34)], ..parts() };
        let said = one.differences(&few);
        assert_eq!(said, ["layers: block_34/out alone in the store, 3 tensors asked for; only asked for: block_30/out, other"]);
    }

    #[test]
    fn what_stores_had_before_there_were_views_keeps_its_key() {
        assert_eq!(parts().key(), "b6877c0739b6d0ee9c4eb67e758d181ccb6add7a7b41c730b5c0b565ed6cc446");
        let text = serde_json::to_string(&parts()).unwrap();
        assert!(!text.contains("views") && !text.contains("dtype"), "{text}");
        assert_eq!(serde_json::from_str::<KeyParts>(&text).unwrap(), parts());
        let other = KeyParts { views: vec![IDENTITY.into(), "hflip".into()], dtype: Dtype::Float16, ..parts() };
        let text = serde_json::to_string(&other).unwrap();
        assert_eq!(serde_json::from_str::<KeyParts>(&text).unwrap(), other);
        assert_eq!(
            parts().differences(&other),
            ["views: identity in the store, identity, hflip asked for", "dtype: float32 in the store, float16 asked for"]
        );
    }

    #[test]
    fn neighbouring_parts_do_not_run_together() {
        let one = KeyParts { precision: "ab".into(), provider: "c".into(), ..parts() };
        let two = KeyParts { precision: "a".into(), provider: "bc".into(), ..parts() };
        assert_ne!(one.key(), two.key());
    }
}
