//! The network as the engine runs it: its sessions, what they really run on, and a batch through them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::{Backbone, ExtractError, Plan, drift};
use crate::events::{Event, Observer};
use crate::image::ImageSpec;
use crate::runtime::{Compute, Runtime, Session, SessionOptions, listed};
use crate::store::{Drift, Dtype, KeyParts};

/// The frozen network, how an image becomes its input, and what runs it.
#[derive(Clone, Debug)]
pub struct Network<'a> {
    /// The network.
    pub backbone: &'a Backbone,
    /// How an image becomes its input.
    pub spec: ImageSpec,
    /// What it runs on.
    pub compute: Compute,
    /// Worker threads.
    pub threads: usize,
    /// Images a batch; 0 is as many as suit the image size and the device.
    pub batch: usize,
}

impl Network<'_> {
    /// Settles how many images make a batch.
    pub(crate) fn with_batch_for(&self, session: &Session) -> Self {
        let suited = suited_batch(self.spec.side, session.on_processor());
        Self { batch: if self.batch == 0 { suited } else { self.batch }, ..self.clone() }
    }

    /// What its features depend on, stored in this way; `provider` is what the session runs on.
    pub fn key_parts(&self, dtype: Dtype, provider: &str) -> KeyParts {
        self.backbone.key_parts(&self.spec, dtype, &provider.to_lowercase(), self.compute.precision())
    }
}

/// How many images of this side make a batch. On a processor a batch is quickest while its maps stay near the core, and long
/// enough that the weights are not fetched anew for each image: with MobileNetV2 on cores of 1 MiB, 64 images of 32 pixels,
/// 8 of 96, 2 of 224, each 10 to 40 % above a batch of 16. A card wants many.
pub(crate) fn suited_batch(side: u32, on_processor: bool) -> usize {
    let (pixels, least, most) = if on_processor { (80_000, 1, 64) } else { (3_200_000, 32, 256) };
    let area = (side as usize * side as usize).max(1);
    ((pixels + area / 2) / area).clamp(least, most)
}

/// What the network really runs on, asked of the session.
pub(super) struct RanOn {
    pub(super) provider: &'static str,
    pub(super) nodes: BTreeMap<String, usize>,
    pub(super) drift: Option<Drift>,
}

impl RanOn {
    /// Tells it too, unless it is what everybody has.
    pub(super) fn of(plan: &Plan<'_>, session: &Session, runtime: &Runtime, observe: Observer<'_>) -> Result<Self, ExtractError> {
        say_where(session, plan.network.compute, observe);
        let drift = drift::measure(plan, runtime, session, observe)?;
        Ok(Self { provider: session.provider(), nodes: session.placement().clone(), drift })
    }
}

/// Says what the network runs on, unless it is what everybody has.
pub(crate) fn say_where(session: &Session, compute: Compute, observe: Observer<'_>) {
    if let Some(reason) = session.fallback() {
        observe(Event::Noted(format!("  on the processor: CUDA cannot be used: {reason}")));
    } else if compute != Compute::CPU {
        let (provider, nodes) = (session.provider(), session.placement());
        observe(Event::Noted(format!("  runs on {provider} in {}: nodes: {}", compute.precision(), listed(nodes))));
    }
}

/// Sessions on a card: while one computes, the next copies its batch there and the last one its answer back.
const ON_CARD: usize = 2;

/// One session that all workers share, each with a run of one thread; where runs do not overlap, one a worker on a processor,
/// a few on a card.
pub(crate) fn sessions(network: &Network<'_>, runtime: &Runtime) -> Result<Vec<Session>, ExtractError> {
    let options = SessionOptions { compute: network.compute, threads: 1 };
    let mut sessions = vec![runtime.session(network.backbone.model(), &options)?];
    let most = if sessions[0].on_processor() { network.threads } else { network.threads.min(ON_CARD) };
    while sessions[0].takes_turns() && sessions.len() < most {
        sessions.push(runtime.session(network.backbone.model(), &options)?);
    }
    Ok(sessions)
}

/// One black image: a size that the network cannot take, or an answer of another width, is said before anything is written.
pub(crate) fn try_out(network: &Network<'_>, session: &Session) -> Result<(), ExtractError> {
    let (model, side, native) = (network.backbone.file().to_path_buf(), network.spec.side, network.backbone.native_side());
    match infer(network, session, &vec![0.0; network.spec.values()], 1) {
        Err(ExtractError::Runtime(source)) => Err(ExtractError::Side { model, side, native, source }),
        other => other.map(drop),
    }
}

/// Features of a batch, row-major `[images, D]`. A network of fixed batch size is fed in portions, the last one filled up. So is a
/// card: ONNX Runtime plans every convolution anew when the shape of a batch changes, about half a second each time.
pub(super) fn infer(network: &Network<'_>, session: &Session, tensor: &[f32], images: usize) -> Result<Vec<f32>, ExtractError> {
    let always = network.backbone.fixed_batch().or_else(|| (!session.on_processor()).then_some(network.batch));
    let mut features = match always {
        None => session.run(tensor, network.spec.shape(images))?,
        Some(batch) => {
            let mut features = Vec::new();
            for (portion, _) in portions(tensor, network.spec.values(), batch) {
                features.extend(session.run(&portion, network.spec.shape(batch))?);
            }
            features
        }
    };
    let expected = network.backbone.width();
    if features.len() < images * expected || features.len() % expected != 0 {
        let model = network.backbone.file().to_path_buf();
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
