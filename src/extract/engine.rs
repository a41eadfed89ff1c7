//! The engine: records -> decode, resize, normalize, infer -> store.
//!
//! ```text
//! reader ──batches──▶ worker 1..n (read, hash, decode, resize, normalize, session.run) ──results──▶ collector ──▶ shards
//! ```
//!
//! A worker carries a batch through every step on one core, with runs of one thread: the cores share nothing
//! but the two queues, and whichever step is slow, all of them work on it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::flow::{Steps, flow};
use super::network::{RanOn, infer, sessions, try_out};
use super::prepare::Preparer;
use super::tally::Tally;
use super::{Backbone, ExtractError, Slice};
use crate::dataset::{Dataset, DatasetError, Record};
use crate::events::{Event, Observer};
use crate::image::ImageSpec;
use crate::runtime::{Compute, Runtime, Session};
use crate::store::{Dtype, Embedding, Index, Manifest, Quarantined, Row, SourceRecord, StoreError, StoreWriter, Target};

/// Everything an extraction needs.
#[derive(Clone)]
pub struct Plan<'a> {
    /// The images.
    pub dataset: &'a Dataset,
    /// How the store records where they come from.
    pub source: SourceRecord,
    /// The frozen network.
    pub backbone: &'a Backbone,
    /// How an image becomes its input.
    pub spec: ImageSpec,
    /// How its features are stored.
    pub dtype: Dtype,
    /// Where the features go.
    pub features: PathBuf,
    /// Where who reads of images that could not be used finds their table, `quarantine.parquet`.
    pub quarantine: PathBuf,
    /// Make the features anew, whatever is there; what is there stands until they are finished.
    pub rebuild: bool,
    /// What the network runs on.
    pub compute: Compute,
    /// Worker threads.
    pub threads: usize,
    /// Images a batch; 0 is as many as suit the image size and the device.
    pub batch: usize,
    /// The part of the images that is looked at.
    pub slice: Option<Slice>,
    /// Look at so many images, and at the whole source again and again where it has fewer: for measuring.
    pub repeated: Option<usize>,
}

impl Plan<'_> {
    /// Settles how many images make a batch.
    pub(super) fn with_batch_for(&self, session: &Session) -> Self {
        let suited = suited_batch(self.spec.side, session.on_processor());
        Self { batch: if self.batch == 0 { suited } else { self.batch }, ..self.clone() }
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

/// How an extraction ended.
#[derive(Debug)]
pub enum Ended {
    /// Every image was looked at.
    Finished(Box<Manifest>),
    /// It was asked to stop; what was done is recorded.
    Interrupted {
        /// Images looked at.
        done: usize,
        /// Images of the source.
        total: usize,
    },
}

/// What became of one image.
pub(super) enum Outcome {
    Row { split: Arc<str>, row: Row, embedding: Embedding, changed: bool },
    Quarantined(Quarantined),
}

/// Is shown the split, the row and the features of all views `[V * D]` of each new image, in the order of the source; what it takes is
/// not stored.
pub type Taker<'a> = &'a mut dyn FnMut(&str, &Row, &[f32]) -> bool;

/// Runs every image of the source that the store does not hold yet.
///
/// # Errors
/// When the source cannot be read, the store cannot be written, or the network fails. What was done until then is recorded.
pub fn extract(plan: &Plan<'_>, runtime: &Runtime, observe: Observer<'_>, stop: &AtomicBool) -> Result<Ended, ExtractError> {
    extract_beside(plan, runtime, observe, stop, &mut |_, _, _| false)
}

/// The same, with images whose features are for something else than the store.
///
/// # Errors
/// As [`extract`].
pub fn extract_beside(
    plan: &Plan<'_>,
    runtime: &Runtime,
    observe: Observer<'_>,
    stop: &AtomicBool,
    take: Taker<'_>,
) -> Result<Ended, ExtractError> {
    let started = Instant::now();
    let sessions = sessions(plan, runtime)?;
    let plan = &plan.with_batch_for(&sessions[0]);
    try_out(plan, &sessions[0])?;
    let ran_on = RanOn::of(plan, &sessions[0], runtime, observe)?;
    let target = Target {
        dir: plan.features.clone(),
        key_parts: plan.backbone.key_parts(&plan.spec, plan.dtype, &ran_on.provider.to_lowercase(), plan.compute.precision()),
        classes: plan.dataset.classes().to_vec(),
        dimension: plan.backbone.width(),
        segments: plan.backbone.segments().to_vec(),
        source: plan.source.clone(),
    };
    let mut writer = StoreWriter::open(target, plan.rebuild)?;
    for reason in writer.damaged() {
        observe(Event::Warned(format!("{reason}; its rows are made anew")));
    }
    let index = writer.index();
    let mut tally = Tally::new(plan, observe);
    tally.startup_seconds = started.elapsed().as_secs_f64();
    let passed = flow(
        plan.threads,
        Steps {
            feed: |send: &mut dyn FnMut(Vec<Record>) -> bool| Ok(read(plan, send, stop)?),
            begin: |number| Worker {
                preparer: Preparer::new(&plan.spec),
                tensor: Vec::new(),
                session: &sessions[number % sessions.len()],
            },
            carry: |worker: &mut Worker<'_>, records| batch(plan, &index, worker, records),
            collect: |outcomes: Vec<Outcome>| {
                let writing = Instant::now();
                for outcome in outcomes {
                    tally.count(&outcome);
                    if let Outcome::Row { split, row, embedding: Embedding::New(views), .. } = &outcome
                        && take(split, row, views)
                    {
                        continue;
                    }
                    store(&mut writer, outcome)?;
                }
                tally.stages.write += writing.elapsed().as_secs_f64();
                tally.advance();
                Ok(())
            },
        },
    );
    let outcome = passed.map(|passed| {
        for worker in &passed.workers {
            tally.stages += worker.preparer.spent;
        }
        tally.stages.wait += passed.waited;
        passed.fed
    });
    match outcome {
        Ok(Reached::End) => {
            if plan.repeated.is_none() && plan.dataset.fingerprint() != plan.source.fingerprint {
                let text = "the source changed while it was read; run the same command again: only what changed is run";
                observe(Event::Warned(format!("{}: {text}", plan.source.name)));
            }
        }
        Ok(Reached::Stop) => {
            writer.pause()?;
            return Ok(Ended::Interrupted { done: tally.done(), total: tally.total });
        }
        Err(error) => {
            if let Err(second) = writer.pause() {
                observe(Event::Warned(format!("what was not recorded yet is run again next time: {second}")));
            }
            return Err(error);
        }
    }
    let usable = tally.new + tally.reused;
    let removed = index.images().saturating_sub(tally.changed + tally.reused);
    let flushing = Instant::now();
    writer.complete()?;
    tally.stages.write += flushing.elapsed().as_secs_f64();
    let extraction = tally.finish(plan, runtime, ran_on, started.elapsed().as_secs_f64(), removed);
    let looked_at = usable + extraction.quarantined;
    let manifest = writer.finish(extraction)?;
    let nothing = || ExtractError::NothingUsable { images: looked_at, table: Some(plan.quarantine.clone()) };
    if usable == 0 { Err(nothing()) } else { Ok(Ended::Finished(Box::new(manifest))) }
}

/// How far the reader came.
enum Reached {
    End,
    Stop,
}

/// Feeds the workers, split by split, in the order of the source.
fn read(plan: &Plan<'_>, send: &mut dyn FnMut(Vec<Record>) -> bool, stop: &AtomicBool) -> Result<Reached, DatasetError> {
    let mut left = plan.repeated.unwrap_or(usize::MAX);
    let passes = if plan.repeated.is_some() { usize::MAX } else { 1 };
    for split in (0..passes).flat_map(|_| plan.dataset.splits()) {
        let mut records = Vec::with_capacity(plan.batch);
        for record in plan.dataset.records(&split.name)? {
            if stop.load(Ordering::Relaxed) {
                return Ok(Reached::Stop);
            }
            let record = record?;
            if plan.slice.is_some_and(|slice| !slice.holds(&record.id)) {
                continue;
            }
            records.push(record);
            left -= 1;
            if records.len() == plan.batch && !send(std::mem::replace(&mut records, Vec::with_capacity(plan.batch))) {
                return Ok(Reached::Stop);
            }
            if left == 0 {
                break;
            }
        }
        if !records.is_empty() && !send(records) {
            return Ok(Reached::Stop);
        }
        if left == 0 {
            break;
        }
    }
    Ok(Reached::End)
}

/// What a worker keeps between batches.
struct Worker<'s> {
    preparer: Preparer,
    tensor: Vec<f32>,
    session: &'s Session,
}

/// Carries one batch through every step.
fn batch(plan: &Plan<'_>, index: &Index, worker: &mut Worker<'_>, records: Vec<Record>) -> Result<Vec<Outcome>, ExtractError> {
    let Worker { preparer, tensor, session } = worker;
    let image_len = plan.spec.values_of_views();
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
        let (view_len, width) = (plan.spec.values(), plan.backbone.width() * plan.spec.views.len());
        let mut features = Vec::with_capacity(fresh.len() * width);
        for views in tensor.chunks(plan.batch * view_len) {
            features.append(&mut infer(plan, session, views, views.len() / view_len)?);
        }
        preparer.spent.infer += inferring.elapsed().as_secs_f64();
        for (&place, values) in fresh.iter().zip(features.chunks_exact(width)) {
            let Some(Outcome::Row { split, row, embedding, .. }) = outcomes.get_mut(place) else { continue };
            if values.iter().any(|value| !value.is_finite()) {
                let model = plan.backbone.file().to_path_buf();
                return Err(ExtractError::NotFinite { model, split: split.to_string(), id: row.id.clone() });
            }
            *embedding = Embedding::New(values.to_vec());
        }
    }
    Ok(outcomes)
}

fn store(writer: &mut StoreWriter, outcome: Outcome) -> Result<(), StoreError> {
    match outcome {
        Outcome::Row { split, row, embedding, .. } => writer.push(&split, row, embedding),
        Outcome::Quarantined(image) => {
            writer.quarantine(image);
            Ok(())
        }
    }
}
