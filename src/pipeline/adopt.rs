//! Rows that a cluster engine wrote become the features of a pipeline.

use std::path::Path;

use super::extract::open_backbone;
use super::{Context, PipelineError, Settings, same_folder};
use crate::extract::Backbone;
use crate::image::ImageSpec;
use crate::runtime::Precision;
use crate::store::adopt::{AdoptError, AdoptOptions, Adopted, Found, adopt as take, look, resume};
use crate::store::exchange::Provenance;
use crate::store::{Dtype, KeyParts};

/// Makes a feature store of what an engine wrote. Where `settings` are given, the rows must have been made with them; where the rows do
/// not say how they were made, `usual` settings are tried.
///
/// # Errors
/// When the rows cannot be adopted, or were made in another way.
pub fn adopt(
    dir: &Path,
    options: &AdoptOptions,
    settings: Option<&Settings>,
    usual: &Settings,
    context: &Context<'_>,
) -> Result<Adopted, PipelineError> {
    let elsewhere = options.features.clone().filter(|features| !same_folder(features, dir));
    let options = &AdoptOptions { features: elsewhere, ..options.clone() };
    if let Some(adopted) = resume(options.features.as_deref().unwrap_or(dir))? {
        return Ok(adopted);
    }
    let found = look(dir)?;
    let provenance = match (found.provenance(), settings) {
        (Some(provenance), None) => provenance.clone(),
        (said, settings) => explained(&found, said, settings.unwrap_or(usual), context)?,
    };
    Ok(take(&found, &provenance, options, context.observe)?)
}

/// How features of this key come about by these settings.
fn explained(
    found: &Found,
    said: Option<&Provenance>,
    settings: &Settings,
    context: &Context<'_>,
) -> Result<Provenance, PipelineError> {
    settings.check_ranges()?;
    let unexplained =
        |reason: String| AdoptError::Unexplained { dir: found.dir().to_owned(), key: found.key().to_owned(), reason };
    let (_, backbone, spec) = open_backbone(&settings.backbone, context).map_err(|error| match said {
        Some(_) => error,
        None => unexplained(error.to_string()).into(),
    })?;
    let Some(key_parts) = parts_of(found.key(), &backbone, &spec) else {
        return Err(match said {
            Some(said) => {
                AdoptError::Otherwise { dir: found.dir().to_owned(), differences: differences(&said.key_parts, &backbone, &spec) }
            }
            None => unexplained(format!("{} at {} px gives other keys", backbone.file().display(), spec.side)),
        }
        .into());
    };
    if let Some(said) = said {
        return Ok(said.clone());
    }
    let provider = match key_parts.provider.as_str() {
        "cpu" => "CPU",
        "cuda" => "CUDA",
        _ => "OpenVINO",
    };
    Ok(backbone.provenance(key_parts, provider, ""))
}

/// The parts of a key, where features of this network on such images can have it: whoever did the arithmetic, however it is stored.
fn parts_of(key: &str, backbone: &Backbone, spec: &ImageSpec) -> Option<KeyParts> {
    let kinds = ["cpu", "cuda", "openvino"].into_iter().flat_map(|provider| {
        let precisions = [Precision::Fp32, Precision::Bf16].into_iter();
        precisions.flat_map(move |precision| [Dtype::Float32, Dtype::Float16].map(|dtype| (provider, precision, dtype)))
    });
    let mut keys = kinds.map(|(provider, precision, dtype)| backbone.key_parts(spec, dtype, provider, precision));
    keys.find(|parts| parts.key() == key)
}

/// What is other in a key than in those that this network on such images can have.
fn differences(have: &KeyParts, backbone: &Backbone, spec: &ImageSpec) -> Vec<String> {
    let KeyParts { provider, precision, dtype, .. } = have.clone();
    have.differences(&KeyParts { provider, precision, dtype, ..backbone.key_parts(spec, dtype, "cpu", Precision::Fp32) })
}
