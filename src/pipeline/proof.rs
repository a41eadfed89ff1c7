//! Whether a library does what it was installed for: one image through a small network that ships with tlpipe.

use std::collections::BTreeMap;

use super::{Context, PipelineError};
use crate::assets::Finder;
use crate::extract::Backbone;
use crate::image::ImageSpec;
use crate::onnx::Layers;
use crate::runtime::{Compute, Library, Runtime, SessionOptions};

/// The network that is built in.
const NETWORK: &str = "quickstart";

/// What ran.
#[derive(Clone, Debug)]
pub struct Proof {
    /// What it ran on: `CPU`, `CUDA`, `OpenVINO`.
    pub provider: &'static str,
    /// Number of nodes on each provider.
    pub nodes: BTreeMap<String, usize>,
}

/// Runs one image through the built-in network. The library is this process' for good.
///
/// # Errors
/// When the library does not start, or cannot do what is asked for.
pub fn prove(library: &Library, compute: Compute, context: &Context<'_>) -> Result<Proof, PipelineError> {
    let located = Finder::new(context.search.clone())?.model(NETWORK, context.observe)?;
    let backbone = Backbone::load(&located, None, &Layers::Pooled, None)?;
    let spec = ImageSpec {
        side: backbone.native_side(),
        resize: crate::image::Resize::Squash,
        pixels: backbone.pixels().clone(),
        views: crate::image::Views::default(),
    };
    let session = Runtime::start(library)?.session(backbone.model(), &SessionOptions { compute, threads: 1 })?;
    session.run(&vec![0.0; spec.values()], spec.shape(1))?;
    Ok(Proof { provider: session.provider(), nodes: session.placement().clone() })
}
