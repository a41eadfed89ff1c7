//! What the features of a head were made by: the backbone, and what is done to an image before it.

use std::path::Path;

use super::extract::open_backbone;
use super::{Context, DataSettings, Pipeline, PipelineError, Settings};
use crate::assets::Located;
use crate::extract::Backbone;
use crate::head::Head;
use crate::image::{ImageSpec, Views};
use crate::onnx::Layers;
use crate::runtime::Precision;
use crate::store::{Dtype, KeyParts, Manifest, Store};

/// What the features of a head were made by.
pub(super) struct Made {
    pub(super) backbone: Backbone,
    pub(super) located: Located,
    pub(super) spec: ImageSpec,
    pub(super) key: KeyParts,
    /// Where the images are, as far as is known.
    pub(super) data: DataSettings,
}

impl Made {
    /// Finds it by the pipeline; by the feature store where the head was fitted on features alone. The key decides whether it is right.
    pub(super) fn find(pipeline: &Pipeline, context: &Context<'_>, head: &Head) -> Result<Self, PipelineError> {
        let manifest = Store::open(&pipeline.features).ok().map(|store| store.manifest().clone());
        let of_head = manifest.as_ref().filter(|manifest| manifest.key == head.store_key());
        let mut settings = pipeline.settings.backbone.clone();
        let mut data = pipeline.settings.data.clone();
        if data.source.is_none() {
            // The pipeline is of features alone: what they were made by, they say.
            let Some(manifest) = of_head else { return Err(Self::unknown(pipeline, head)) };
            let parts = &manifest.key_parts;
            settings.input_size = Some(parts.input_size);
            settings.resize = parts.resize.parse().unwrap_or(settings.resize);
            let views = parts.views.iter().map(|view| view.parse()).collect::<Result<Vec<_>, _>>();
            settings.views = views.and_then(Views::new).unwrap_or_default();
            if let Some(figures) = &manifest.extraction {
                settings.layers = figures.layers.parse().unwrap_or(Layers::Pooled);
                let file = Path::new(&figures.model_file);
                settings.model = if file.is_file() { figures.model_file.clone() } else { figures.model.clone() };
                settings.cut = parts.cut.last().cloned();
            }
            data.source = Some(manifest.source.name.clone());
        }
        let (located, backbone, spec) = open_backbone(&settings, context)?;
        let key = key(pipeline, head, of_head, (&backbone, &spec))?;
        Ok(Self { backbone, located, spec, key, data })
    }

    fn unknown(pipeline: &Pipeline, head: &Head) -> PipelineError {
        let reason = format!(
            "no backbone is named in this pipeline, and the features in {} are not those of the head (its key is {})",
            pipeline.features.display(),
            head.store_key()
        );
        PipelineError::OtherFeatures { head: pipeline.run.join("head.safetensors"), reason }
    }
}

/// Refuses features that were made in another way than the settings ask for, as far as that is certain without images and backbone:
/// which of several depths they are is not, since other words and patterns may stand for the same tensors. What is as it would be
/// unasked is not asked for: features alone make a head too.
pub(super) fn agree(settings: &Settings, features: &Path, manifest: &Manifest) -> Result<(), PipelineError> {
    let (layers, views, dtype) = (&settings.backbone.layers, &settings.backbone.views, settings.output.dtype);
    let made = &manifest.key_parts;
    let (key, asked, made) = if *layers != Layers::Pooled && manifest.segments.len() < 2 {
        ("backbone.layers", layers.to_string(), Layers::Pooled.to_string())
    } else if *views != Views::default() && views.names() != made.views {
        ("backbone.views", views.names().join(","), made.views.join(","))
    } else if dtype != Dtype::default() && dtype != made.dtype {
        ("output.dtype", dtype.name().to_owned(), made.dtype.name().to_owned())
    } else {
        return Ok(());
    };
    let features = features.display();
    let reason =
        format!("the features in {features} were made with {made}; leave it out, or make others: tlpipe extract --features DIR");
    Err(PipelineError::Settings { origin: format!("{key} = {asked}"), reason })
}

/// The parts of the head's key, if that is what a backbone and a preprocessing give. Whose arithmetic, in what precision and stored as
/// what: that is asked of the head; of the features, where it was written before heads knew it; or of the pipeline, where they are gone.
fn key(
    pipeline: &Pipeline,
    head: &Head,
    of_head: Option<&Manifest>,
    (backbone, spec): (&Backbone, &ImageSpec),
) -> Result<KeyParts, PipelineError> {
    let recorded = head.store_parts().or(of_head.map(|manifest| &manifest.key_parts));
    let made = match recorded {
        Some(KeyParts { provider, precision, dtype, .. }) => KeyParts {
            provider: provider.clone(),
            precision: precision.clone(),
            ..backbone.key_parts(spec, *dtype, "cpu", Precision::Fp32)
        },
        None => {
            let compute = pipeline.settings.runtime.compute()?;
            backbone.key_parts(spec, pipeline.settings.output.dtype, compute.class().unwrap_or("cpu"), compute.precision())
        }
    };
    if made.key() == head.store_key() {
        return Ok(made);
    }
    let unlike = || format!("the head's key is {}, and {} gives another one", head.store_key(), backbone.file().display());
    let reason = recorded.map_or_else(unlike, |recorded| recorded.differences(&made).join("\n  "));
    Err(PipelineError::OtherFeatures { head: pipeline.run.join("head.safetensors"), reason })
}
