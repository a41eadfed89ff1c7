//! The network as the engine runs it: its sessions, what they really run on, and a batch through them.

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

/// One session that all workers share, each with a run of one thread; where runs do not overlap, one a worker on a processor.
/// On a card one will do, since the workers only prepare batches.
pub(super) fn sessions(plan: &Plan<'_>, runtime: &Runtime) -> Result<Vec<Session>, ExtractError> {
    let options = SessionOptions { compute: plan.compute, threads: 1 };
    let mut sessions = vec![runtime.session(plan.backbone.model(), &options)?];
    while sessions[0].on_processor() && sessions[0].takes_turns() && sessions.len() < plan.threads {
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

/// Features of a batch, row-major `[images, D]`. A network of fixed batch size is fed in portions, the last one filled up.
pub(super) fn infer(plan: &Plan<'_>, session: &Session, tensor: &[f32], images: usize) -> Result<Vec<f32>, ExtractError> {
    let mut features = match plan.backbone.fixed_batch() {
        None => session.run(tensor, plan.spec.shape(images))?,
        Some(batch) => {
            let mut features = Vec::new();
            for portion in tensor.chunks(batch * plan.spec.values()) {
                let mut portion = portion.to_vec();
                portion.resize(batch * plan.spec.values(), 0.0);
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
