//! The registries: `models/registry.toml` and `data/registry.toml`, built into the program.

use serde::{Deserialize, Serialize};

use super::error::AssetError;
use crate::image::PixelFormat;

/// A file, known by its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AssetFile {
    /// File name.
    pub name: String,
    /// SHA-256 of the content, lowercase hex.
    pub sha256: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Where it can be downloaded, best first. Empty: nowhere.
    pub urls: Vec<String>,
}

/// How a network wants its images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Preprocessing {
    /// Layout and pixel arithmetic.
    #[serde(flatten)]
    pub pixels: PixelFormat,
    /// Side of the images it was trained on, pixels.
    pub side: u32,
}

/// What is known about a network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelCard {
    /// Name in pipelines.
    pub name: String,
    /// One line for people.
    pub title: String,
    /// SPDX name, or a sentence.
    pub licence: String,
    /// Number of classes of its own top.
    pub classes: usize,
    /// What those classes are.
    pub labels: String,
    /// The ONNX file.
    pub file: AssetFile,
    /// How it wants its pixels.
    pub preprocessing: Preprocessing,
}

/// A name for the first of several networks that is at hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alias {
    /// Name in pipelines.
    pub name: String,
    /// Names of networks, preferred first.
    pub models: Vec<String>,
}

/// One form in which a data set is published; holds the whole set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// Kind of files, for people.
    pub format: String,
    /// Every file of it.
    #[serde(rename = "file")]
    pub files: Vec<AssetFile>,
}

/// What is known about a data set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataCard {
    /// Name in pipelines.
    pub name: String,
    /// One line for people.
    pub title: String,
    /// SPDX name, or a sentence.
    pub licence: String,
    /// The same data in several forms, preferred first.
    #[serde(rename = "variant")]
    pub variants: Vec<Variant>,
}

/// Both registries.
#[derive(Clone, Debug)]
pub(super) struct Registry {
    pub(super) models: Vec<ModelCard>,
    pub(super) aliases: Vec<Alias>,
    pub(super) datasets: Vec<DataCard>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelsFile {
    #[serde(default)]
    alias: Vec<Alias>,
    #[serde(default)]
    model: Vec<ModelCard>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DataFile {
    #[serde(default)]
    dataset: Vec<DataCard>,
}

const MODELS: &str = "models/registry.toml";
const DATA: &str = "data/registry.toml";

impl Registry {
    /// The registries that are part of the program.
    pub(super) fn built_in() -> Result<Self, AssetError> {
        Self::parse(include_str!("../../models/registry.toml"), include_str!("../../data/registry.toml"))
    }

    pub(super) fn parse(models: &str, data: &str) -> Result<Self, AssetError> {
        let models: ModelsFile =
            toml::from_str(models).map_err(|error| AssetError::Registry { file: MODELS, reason: error.to_string() })?;
        let data: DataFile =
            toml::from_str(data).map_err(|error| AssetError::Registry { file: DATA, reason: error.to_string() })?;
        let registry = Self { models: models.model, aliases: models.alias, datasets: data.dataset };
        registry.check()?;
        Ok(registry)
    }

    /// The network of this name or file name.
    pub(super) fn model(&self, name: &str) -> Option<&ModelCard> {
        self.models.iter().find(|card| card.name == name || card.file.name == name)
    }

    /// The network with this content.
    pub(super) fn model_by_hash(&self, sha256: &str) -> Option<&ModelCard> {
        self.models.iter().find(|card| card.file.sha256 == sha256)
    }

    /// The networks that a name stands for, preferred first; empty for an unknown name.
    pub(super) fn choices(&self, name: &str) -> Vec<&ModelCard> {
        match self.aliases.iter().find(|alias| alias.name == name) {
            Some(alias) => alias.models.iter().filter_map(|name| self.model(name)).collect(),
            None => self.model(name).into_iter().collect(),
        }
    }

    pub(super) fn dataset(&self, name: &str) -> Option<&DataCard> {
        self.datasets.iter().find(|card| card.name == name)
    }

    pub(super) fn model_names(&self) -> Vec<String> {
        self.aliases.iter().map(|alias| &alias.name).chain(self.models.iter().map(|card| &card.name)).cloned().collect()
    }

    pub(super) fn dataset_names(&self) -> Vec<String> {
        self.datasets.iter().map(|card| card.name.clone()).collect()
    }

    fn check(&self) -> Result<(), AssetError> {
        let mut names = self.model_names();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(AssetError::Registry { file: MODELS, reason: format!("two entries are named {:?}", pair[0]) });
        }
        if let Some(name) = self.aliases.iter().flat_map(|alias| &alias.models).find(|name| self.model(name).is_none()) {
            return Err(AssetError::Registry { file: MODELS, reason: format!("an alias names {name:?}, which is no model") });
        }
        let data = self.datasets.iter().flat_map(|card| &card.variants).flat_map(|variant| &variant.files);
        let files = self.models.iter().map(|card| (MODELS, &card.file)).chain(data.map(|file| (DATA, file)));
        for (registry, file) in files {
            let hex = file.sha256.len() == 64 && file.sha256.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            if !hex || file.bytes == 0 || file.name.contains(['/', '\\']) {
                let reason = format!("{:?} needs a plain file name, a size and a SHA-256 of 64 lowercase hex digits", file.name);
                return Err(AssetError::Registry { file: registry, reason });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_registries_are_sound() {
        let registry = Registry::built_in().unwrap();
        let names: Vec<_> = registry.choices("mobilenet_v2").iter().map(|card| card.name.as_str()).collect();
        assert_eq!(names, ["mobilenet_v2_1.0_224", "mobilenetv2-12"]);
        assert_eq!(registry.model("mobilenetv2-12.onnx").unwrap().preprocessing.pixels.layout, crate::image::Layout::Nchw);
        for card in &registry.models {
            assert!(
                card.preprocessing.pixels.divisor > 0.0 && card.preprocessing.pixels.std.iter().all(|value| *value > 0.0),
                "{}",
                card.name
            );
        }
        assert_eq!(registry.dataset("cifar10").unwrap().variants[0].files.len(), 2);
    }

    #[test]
    fn faults_in_a_registry_are_named() {
        let fault = |models: &str| Registry::parse(models, "").unwrap_err().to_string();
        assert!(fault("[[model]]\nname = 3").contains("models/registry.toml"));
        assert!(fault("[[alias]]\nname = 'a'\nmodels = ['b']").contains("\"b\", which is no model"));
        assert!(fault("[[alias]]\nname = 'a'\nmodels = []\n[[alias]]\nname = 'a'\nmodels = []").contains("two entries"));
        let data = "[[dataset]]\nname='d'\ntitle=''\nlicence=''\n[[dataset.variant]]\nformat=''\n\
                    [[dataset.variant.file]]\nname='../x'\nbytes=1\nsha256='00'\nurls=[]";
        assert!(Registry::parse("", data).unwrap_err().to_string().contains("plain file name"));
    }
}
