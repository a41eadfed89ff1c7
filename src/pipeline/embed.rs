//! Stage 1 as a filter: a stream of images in, a stream of their features out.

use std::io::{Read, Write};

use super::extract::{open_backbone, start_network};
use super::{Context, PipelineError, Settings};
use crate::embed::{Embedded, Filter};
use crate::store::exchange::Provenance;

/// Answers a stream of images with their features, as [`Filter::run`] says; `started` is told what makes them before the first is read.
///
/// # Errors
/// When a setting is out of its range, the backbone or ONNX Runtime cannot be used, or the stream cannot be answered.
pub fn embed(
    settings: &Settings,
    context: &Context<'_>,
    from: impl Read + Send + 'static,
    to: impl Write,
    started: impl FnOnce(&Provenance),
) -> Result<Embedded, PipelineError> {
    settings.check_ranges()?;
    let (_, backbone, spec) = open_backbone(&settings.backbone, context)?;
    let (runtime, network) = start_network(&backbone, spec, &settings.runtime, context)?;
    let filter = Filter::start(network, settings.output.dtype, &runtime, context.observe)?;
    started(filter.provenance());
    Ok(filter.run(from, to, context.observe)?)
}
