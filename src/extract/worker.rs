//! A worker of the engine: a batch of encoded images to rows, on one core.

use std::sync::Arc;
use std::time::Instant;

use super::ExtractError;
use super::network::{Network, infer, join};
use super::prepare::Preparer;
use crate::dataset::Record;
use crate::runtime::Session;
use crate::store::{Embedding, Index, Quarantined, Row, StageSeconds};

/// What became of one image.
pub(crate) enum Outcome {
    Row { split: Arc<str>, row: Row, embedding: Embedding, changed: bool },
    Quarantined(Quarantined),
}

/// What a worker keeps between batches.
pub(crate) struct Worker<'n> {
    network: &'n Network<'n>,
    session: &'n Session,
    preparer: Preparer,
    tensor: Vec<f32>,
}

impl<'n> Worker<'n> {
    pub(crate) fn new(network: &'n Network<'n>, session: &'n Session) -> Self {
        Self { network, session, preparer: Preparer::new(&network.spec), tensor: Vec::new() }
    }

    /// Seconds in each stage.
    pub(super) fn spent(&self) -> StageSeconds {
        self.preparer.spent
    }

    /// Carries one batch through every step; an image that the index holds with the same content is not run. The outcomes are in the
    /// order of the records.
    ///
    /// # Errors
    /// When the source or the network fails; an image that cannot be used is an outcome.
    pub(crate) fn carry(&mut self, index: &Index, records: Vec<Record>) -> Result<Vec<Outcome>, ExtractError> {
        let Self { network, session, preparer, tensor } = self;
        let image_len = network.spec.values_of_views();
        let mut outcomes = Vec::with_capacity(records.len());
        let mut fresh = Vec::with_capacity(records.len());
        tensor.clear();
        for record in records {
            let Record { id, split, label, image } = record;
            let quarantined = |id, split: Arc<str>, error, content_hash| {
                Outcome::Quarantined(Quarantined { id, split: split.to_string(), error, content_hash })
            };
            let reading = Instant::now();
            let read = image.read()?.map(|bytes| (blake3::hash(&bytes), bytes));
            preparer.spent.read += reading.elapsed().as_secs_f64();
            let (hash, bytes) = match read {
                Ok(read) => read,
                Err(reason) => {
                    outcomes.push(quarantined(id, split, reason, None));
                    continue;
                }
            };
            let content_hash = hash.to_hex().to_string();
            let old = index.find(&split, &id);
            if let Some((place, old)) = old
                && old.is_of(&hash)
            {
                let row = Row { id, label, content_hash, width: old.width, height: old.height };
                outcomes.push(Outcome::Row { split, row, embedding: Embedding::Reused(place), changed: false });
                continue;
            }
            let changed = old.is_some();
            let slot = tensor.len();
            tensor.resize(slot + image_len, 0.0);
            match preparer.run(&bytes, &mut tensor[slot..]) {
                Ok((width, height)) => {
                    fresh.push(outcomes.len());
                    let size = |pixels| i32::try_from(pixels).unwrap_or(i32::MAX);
                    let row = Row { id, label, content_hash, width: size(width), height: size(height) };
                    outcomes.push(Outcome::Row { split, row, embedding: Embedding::New(Vec::new()), changed });
                }
                Err(reason) => {
                    tensor.truncate(slot);
                    outcomes.push(quarantined(id, split, reason, Some(content_hash)));
                }
            }
        }
        if !fresh.is_empty() {
            let inferring = Instant::now();
            // Each view is an image to the network; its batches stay as long as they are without views.
            let (view_len, width) = (network.spec.values(), network.backbone.width() * network.spec.views.len());
            let mut features = Vec::new();
            for views in tensor.chunks(network.batch * view_len) {
                join(&mut features, infer(network, session, views, views.len() / view_len)?);
            }
            preparer.spent.infer += inferring.elapsed().as_secs_f64();
            for (&place, values) in fresh.iter().zip(features.chunks_exact(width)) {
                let Some(Outcome::Row { split, row, embedding, .. }) = outcomes.get_mut(place) else { continue };
                // Without a way out of the loop, which is many values at once.
                if values.iter().fold(false, |found, value| found | !value.is_finite()) {
                    let model = network.backbone.file().to_path_buf();
                    return Err(ExtractError::NotFinite { model, split: split.to_string(), id: row.id.clone() });
                }
                *embedding = Embedding::New(values.to_vec());
            }
        }
        Ok(outcomes)
    }
}
