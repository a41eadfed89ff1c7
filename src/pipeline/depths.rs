//! What each depth of a network is worth alone: the pipeline's head on one segment of the features at a time.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::time::Instant;

use ndarray::{Axis, s};

use super::fit::{Fit, Loaded, labelled};
use super::outcome::DEPTHS;
use super::{Context, Interrupted, Pipeline, PipelineError, extras};
use crate::events::{Event, Unit};
use crate::head::{self, Examples, Head, HeadParams, ParamGuard as _};
use crate::run::{Depth, RunDir};
use crate::store::{Segment, SplitFeatures};

/// Fits the pipeline's head on each segment of the features and writes `depths.csv` to the run.
///
/// # Errors
/// When the features or the run cannot be used, a fit fails, or the user stopped it; the head is kept.
pub fn depths(pipeline: &Pipeline, context: &Context<'_>, fit: &mut Fit) -> Result<Vec<Depth>, PipelineError> {
    const TASK: &str = "depths";
    let loaded = fit.take_loaded(pipeline, "--depths")?;
    let run = RunDir::new(&pipeline.run);
    let head = Head::load(&run.file("head.safetensors"))?;
    let segments = &loaded.store.manifest().segments;
    // Each on its own: nothing to leave out, and nothing to go on with later.
    let params = HeadParams { budget: None, refit: None, ..pipeline.settings.head.clone() };
    (context.observe)(Event::Started { task: TASK, total: Some(segments.len() as u64), unit: Unit::Heads });
    let found = segments.iter().enumerate().map(|(done, segment)| {
        let depth = context.stoppable(|| alone(segment, &params, &loaded, &head, context));
        (context.observe)(Event::Advanced { task: TASK, done: done as u64 + 1 });
        if context.stop.load(Ordering::Relaxed) {
            return Err(Interrupted("stopped; the head is kept, depths.csv is not written".into()).into());
        }
        depth
    });
    let found = found.collect::<Result<Vec<_>, PipelineError>>();
    (context.observe)(Event::Finished { task: TASK });
    fit.loaded = Some(loaded);
    let found = found?;
    run.write_table(DEPTHS, &found)?;
    Ok(found)
}

fn alone(
    segment: &Segment,
    params: &HeadParams,
    loaded: &Loaded,
    whole: &Head,
    context: &Context<'_>,
) -> Result<Depth, PipelineError> {
    let Loaded { store, rows, division } = loaded;
    let (start, checked) = (Instant::now(), params.clone().check()?);
    let columns = s![.., segment.offset..segment.offset + segment.width];
    let (train, holdout, classes) = (rows.unfold(params, &division.train), &division.holdout, &store.manifest().classes);
    let x = rows.fitting.embeddings.slice(columns);
    let examples = Examples { x, labels: &rows.fitting.labels, train: &train, holdout, refit: &[], classes };
    let mut go_on = |_: &_| -> ControlFlow<()> { context.flow() };
    let head = head::fit(&checked, &examples, &mut go_on).map_err(|error| rows.name(error))?.head;
    let accuracy = |features: &SplitFeatures, scored: &[usize]| -> Result<Option<f64>, PipelineError> {
        let logits = head.logits(features.embeddings.slice(columns).select(Axis(0), scored).view())?;
        Ok((!scored.is_empty()).then(|| extras::accuracy(&logits, &features.labels, scored)))
    };
    let tested = rows.test.as_ref().map(|test| accuracy(test, &labelled(&test.labels, 0..test.ids.len())));
    let kernel = whole.kernel();
    let used = kernel.slice(s![segment.offset..segment.offset + segment.width, ..]);
    Ok(Depth {
        tensor: segment.tensor.clone(),
        width: segment.width,
        used: used.rows().into_iter().filter(|row| row.iter().any(|&weight| weight != 0.0)).count(),
        validation_accuracy: accuracy(&rows.fitting, holdout)?,
        test_accuracy: tested.transpose()?.flatten(),
        seconds: start.elapsed().as_secs_f64(),
    })
}
