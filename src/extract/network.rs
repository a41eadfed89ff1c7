//! The network as the engine runs it: its sessions, what they really run on, and a batch through them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::{ExtractError, Plan, drift};
use crate::events::{Event, Observer};
use crate::runtime::{Compute, Runtime, Session, SessionOptions, listed};
use crate::store::Drift;

/// What the network really runs on, asked of the session.
pub(super) struct RanOn {
    pub(super) provider: &'static str,
    pub(super) nodes: BTreeMap<String, usize>,
    pub(super) drift: Option<Drift>,
}

impl RanOn {
    /// Tells it too, unless it is what everybody has.
    pub(super) fn of(plan: &Plan<'_>, session: &Session, runtime: &Runtime, observe: Observer<'_>) -> Result<Self, ExtractError> {
        if let Some(reason) = session.fallback() {
            observe(Event::Noted(format!("  on the processor: CUDA cannot be used: {reason}")));
        } else if plan.compute != Compute::CPU {
            let (provider, nodes) = (session.provider(), session.placement());
            observe(Event::Noted(format!("  runs on {provider} in {}: nodes: {}", plan.compute.precision(), listed(nodes))));
        }
        let drift = drift::measure(plan, runtime, session, observe)?;
        Ok(Self { provider: session.provider(), nodes: session.placement().clone(), drift })
    }
}

/// Sessions on a card: while one computes, the next copies its batch there and the last one its answer back.
const ON_CARD: usize = 2;

/// One session that all workers share, each with a run of one thread; where runs do not overlap, one a worker on a processor,
/// a few on a card.
pub(super) fn sessions(plan: &Plan<'_>, runtime: &Runtime) -> Result<Vec<Session>, ExtractError> {
    let options = SessionOptions { compute: plan.compute, threads: 1 };
    let mut sessions = vec![runtime.session(plan.backbone.model(), &options)?];
    let most = if sessions[0].on_processor() { plan.threads } else { plan.threads.min(ON_CARD) };
    while sessions[0].takes_turns() && sessions.len() < most {
        sessions.push(runtime.session(plan.backbone.model(), &options)?);
    }
    Ok(sessions)
}

/// One black image: a size that the network cannot take, or an answer of another width, is said before anything is written.
pub(super) fn try_out(plan: &Plan<'_>, session: &Session) -> Result<(), ExtractError> {
    let (model, side, native) = (plan.backbone.file().to_path_buf(), plan.spec.side, plan.backbone.native_side());
    match infer(plan, session, &vec![0.0; plan.spec.values()], 1) {
        Err(ExtractError::Runtime(source)) => Err(ExtractError::Side { model, side, native, source }),
        other => other.map(drop),
    }
}

/// Features of a batch, row-major `[images, D]`. A network of fixed batch size is fed in portions, the last one filled up. So is a
/// card: ONNX Runtime plans every convolution anew when the shape of a batch changes, about half a second each time.
pub(super) fn infer(plan: &Plan<'_>, session: &Session, tensor: &[f32], images: usize) -> Result<Vec<f32>, ExtractError> {
    let always = plan.backbone.fixed_batch().or_else(|| (!session.on_processor()).then_some(plan.batch));
    let mut features = match always {
        None => session.run(tensor, plan.spec.shape(images))?,
        Some(batch) => {
            let mut features = Vec::new();
            for (portion, _) in portions(tensor, plan.spec.values(), batch) {
                features.extend(session.run(&portion, plan.spec.shape(batch))?);
            }
            features
        }
    };
    let expected = plan.backbone.width();
    if features.len() < images * expected || features.len() % expected != 0 {
        let model = plan.backbone.file().to_path_buf();
        return Err(ExtractError::Width { model, found: features.len() / images, expected });
    }
    features.truncate(images * expected);
    Ok(features)
}

/// Batches of `batch` images, and how many of each are no filling: a network of fixed batch size takes nothing else.
pub(crate) fn portions<T: Copy + Default>(
    values: &[T],
    image: usize,
    batch: usize,
) -> impl Iterator<Item = (Cow<'_, [T]>, usize)> {
    let length = image * batch;
    values.chunks(length.max(1)).map(move |portion| {
        let images = portion.len() / image.max(1);
        if portion.len() == length {
            return (portion.into(), images);
        }
        let mut filled = portion.to_vec();
        filled.resize(length, T::default());
        (filled.into(), images)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_portion_is_filled_up() {
        let found: Vec<_> = portions(&[1, 2, 3, 4, 5, 6], 2, 2).map(|(portion, images)| (portion.into_owned(), images)).collect();
        assert_eq!(found, [(vec![1, 2, 3, 4], 2), (vec![5, 6, 0, 0], 1)]);
        let whole: Vec<_> = portions(&[1, 2, 3], 1, 3).map(|(portion, images)| (portion.into_owned(), images)).collect();
        assert_eq!(whole, [(vec![1, 2, 3], 3)]);
    }
}
