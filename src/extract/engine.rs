//! The engine: records -> decode, resize, normalize, infer -> store.
//!
//! ```text
//! reader ──batches──▶ worker 1..n (read, hash, decode, resize, normalize, session.run) ──results──▶ collector ──▶ shards
//! ```
//!
//! A worker carries a batch through every step on one core, with runs of one thread: the cores share nothing
//! but the two queues, and whichever step is slow, all of them work on it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::flow::{Steps, flow};
use super::network::{Network, RanOn, sessions, try_out};
use super::tally::Tally;
use super::worker::{Outcome, Worker};
use super::{ExtractError, Slice};
use crate::dataset::{Dataset, DatasetError, Record};
use crate::events::{Event, Observer};
use crate::runtime::{Runtime, Session};
use crate::store::{Dtype, Embedding, Manifest, Row, SourceRecord, StoreError, StoreWriter, Target};

/// Everything an extraction needs.
#[derive(Clone)]
pub struct Plan<'a> {
    /// The images.
    pub dataset: &'a Dataset,
    /// How the store records where they come from.
    pub source: SourceRecord,
    /// What they go through.
    pub network: Network<'a>,
    /// How its features are stored.
    pub dtype: Dtype,
    /// Where the features go.
    pub features: PathBuf,
    /// Where who reads of images that could not be used finds their table, `quarantine.parquet`.
    pub quarantine: PathBuf,
    /// Make the features anew, whatever is there; what is there stands until they are finished.
    pub rebuild: bool,
    /// The part of the images that is looked at.
    pub slice: Option<Slice>,
    /// Look at so many images, and at the whole source again and again where it has fewer: for measuring.
    pub repeated: Option<usize>,
}

impl Plan<'_> {
    /// Settles how many images make a batch.
    pub(super) fn with_batch_for(&self, session: &Session) -> Self {
        Self { network: self.network.with_batch_for(session), ..self.clone() }
    }
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
    let sessions = sessions(&plan.network, runtime)?;
    let plan = &plan.with_batch_for(&sessions[0]);
    try_out(&plan.network, &sessions[0])?;
    let ran_on = RanOn::of(plan, &sessions[0], runtime, observe)?;
    let target = Target {
        dir: plan.features.clone(),
        key_parts: plan.network.key_parts(plan.dtype, ran_on.provider),
        classes: plan.dataset.classes().to_vec(),
        dimension: plan.network.backbone.width(),
        segments: plan.network.backbone.segments().to_vec(),
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
        plan.network.threads,
        Steps {
            feed: |send: &mut dyn FnMut(Vec<Record>) -> bool| Ok(read(plan, send, stop)?),
            begin: |number| Worker::new(&plan.network, &sessions[number % sessions.len()]),
            carry: |worker: &mut Worker<'_>, records| worker.carry(&index, records),
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
            tally.stages += worker.spent();
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
        let mut records = Vec::with_capacity(plan.network.batch);
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
            if records.len() == plan.network.batch
                && !send(std::mem::replace(&mut records, Vec::with_capacity(plan.network.batch)))
            {
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

fn store(writer: &mut StoreWriter, outcome: Outcome) -> Result<(), StoreError> {
    match outcome {
        Outcome::Row { split, row, embedding, .. } => writer.push(&split, row, embedding),
        Outcome::Quarantined(image) => {
            writer.quarantine(image);
            Ok(())
        }
    }
}
