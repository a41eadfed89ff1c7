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

/// Features of a batch, row-major `[images, D]`.
pub(super) fn infer(network: &Network<'_>, session: &Session, tensor: &[f32], images: usize) -> Result<Vec<f32>, ExtractError> {
    let shape = Shape { fixed: network.backbone.fixed_batch(), batch: network.batch, on_processor: session.on_processor() };
    let mut features = Vec::new();
    for (portion, _) in shape.portions(tensor, network.spec.values()) {
        join(&mut features, session.run(&portion, network.spec.shape(portion.len() / network.spec.values()))?);
    }
    let expected = network.backbone.width();
    if features.len() < images * expected || features.len() % expected != 0 {
        let model = network.backbone.file().to_path_buf();
        return Err(ExtractError::Width { model, found: features.len() / images, expected });
    }
    features.truncate(images * expected);
    Ok(features)
}

/// Appends values; the first are taken as they are, not copied.
pub(super) fn join(to: &mut Vec<f32>, values: Vec<f32>) {
    if to.is_empty() {
        *to = values;
    } else {
        to.extend(values);
    }
}

/// How many images go into a network at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Of a network that takes no other number.
    pub(crate) fixed: Option<usize>,
    /// As many as make a good batch.
    pub(crate) batch: usize,
    /// Whether the network runs on a processor.
    pub(crate) on_processor: bool,
}

impl Shape {
    /// Some images, one after the other, in portions of that many, and how many of each are no filling. A network of fixed batch size
    /// takes nothing but whole portions. Nor is a card given anything else: ONNX Runtime plans every convolution anew when the shape of
    /// a batch changes, about half a second each time. A processor takes as many as there are.
    pub(crate) fn portions<T: Copy + Default>(self, values: &[T], image: usize) -> impl Iterator<Item = (Cow<'_, [T]>, usize)> {
        let always = self.fixed.or((!self.on_processor).then_some(self.batch));
        let length = always.map_or(values.len(), |images| image * images).max(1);
        values.chunks(length).map(move |portion| {
            let images = portion.len() / image.max(1);
            if portion.len() == length {
                return (portion.into(), images);
            }
            let mut filled = portion.to_vec();
            filled.resize(length, T::default());
            (filled.into(), images)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_portion_is_filled_up_but_on_a_processor() {
        let fed = |fixed, batch, on_processor, values: &[u8], image| -> Vec<(Vec<u8>, usize)> {
            let shape = Shape { fixed, batch, on_processor };
            shape.portions(values, image).map(|(portion, images)| (portion.into_owned(), images)).collect()
        };
        let six = [1, 2, 3, 4, 5, 6];
        let filled = [(vec![1, 2, 3, 4], 2), (vec![5, 6, 0, 0], 1)];
        assert_eq!(fed(Some(2), 8, true, &six, 2), filled, "a fixed batch size");
        assert_eq!(fed(None, 2, false, &six, 2), filled, "a card");
        assert_eq!(fed(None, 4, false, &six[..2], 2), [(vec![1, 2, 0, 0, 0, 0, 0, 0], 1)], "one image on a card");
        assert_eq!(fed(Some(3), 2, false, &six[..3], 1), [(vec![1, 2, 3], 3)], "a fixed batch size on a card");
        assert_eq!(fed(None, 2, true, &six, 2), [(six.to_vec(), 3)], "a processor");
        assert_eq!(fed(None, 2, false, &[], 2), []);
    }
}
