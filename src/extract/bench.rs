//! What stage 1 could do on this machine, and what it does.
//!
//! The *ideal* is the limit when every core does nothing but the work itself: cores over the sum of decode, resize, normalize
//! and network, each timed alone on one thread; with a card, the slower of the cores without the network and of the card. The
//! *ceiling* is the network alone, on all threads, on tensors that lie ready.
//! Both are taken beside each run of the whole pipeline, and each round gives its own ratios, since machines drift.

use std::sync::Barrier;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;

use super::engine::{Ended, Plan, extract};
use super::network::{infer, sessions};
use super::prepare::Preparer;
use super::{ExtractError, sample};
use crate::events::{Event, Observer, ignore};
use crate::runtime::{Runtime, Session};
use crate::store::StageSeconds;

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Rounds; each measures everything.
    pub rounds: usize,
    /// Seconds of a measurement.
    pub seconds: f64,
}

/// What was found: medians over the rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Bench {
    /// `session.run` alone on ready tensors, on all threads.
    pub ceiling_images_per_second: f64,
    /// Threads over the seconds of every step alone on one thread; where a card runs the network, threads over the seconds of
    /// the other steps, or the ceiling if that is lower.
    pub ideal_images_per_second: f64,
    /// The whole pipeline, from the first image to the finished store.
    pub images_per_second: f64,
    /// `images_per_second / ceiling_images_per_second` of the same round.
    pub of_ceiling: f64,
    /// `images_per_second / ideal_images_per_second` of the same round.
    pub of_ideal: f64,
    /// Where the pipeline's time went: seconds an image, summed over its threads.
    pub stages: StageSeconds,
    /// The steps alone on one thread, seconds an image.
    pub alone: Alone,
    /// Opening the store and preparing the network, before the first image; not part of `images_per_second`.
    pub startup_seconds: f64,
    /// Images that the pipeline ran in a round.
    pub images: usize,
    /// Rounds.
    pub rounds: usize,
    /// Threads.
    pub threads: usize,
    /// Images a batch.
    pub batch: usize,
    /// What the network ran on.
    pub provider: String,
}

/// Seconds an image that each step takes alone on one thread.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Alone {
    /// Encoded image to pixels.
    pub decode: f64,
    /// Pixels to the input size.
    pub resize: f64,
    /// Pixels to numbers.
    pub normalize: f64,
    /// The network.
    pub infer: f64,
}

impl Alone {
    fn sum(self) -> f64 {
        self.on_processor() + self.infer
    }

    /// What is left to the processor where a card runs the network.
    fn on_processor(self) -> f64 {
        self.decode + self.resize + self.normalize
    }
}

/// What one round gave.
struct Round {
    ceiling: f64,
    ideal: f64,
    whole: f64,
    alone: Alone,
    stages: StageSeconds,
    startup: f64,
    images: usize,
}

/// Measures a plan. Its features go to a folder that is gone afterwards.
///
/// # Errors
/// When the source has no usable image, or the pipeline fails.
pub fn bench(plan: &Plan<'_>, runtime: &Runtime, effort: Effort, observe: Observer<'_>) -> Result<Bench, ExtractError> {
    let sessions = sessions(&plan.network, runtime)?;
    let plan = &plan.with_batch_for(&sessions[0]);
    let sample = whole_batches(plan)?;
    let mut tensors = vec![0.0; sample.len() * plan.network.spec.values_of_views()];
    let provider = sessions[0].provider().to_owned();
    let mut rounds = Vec::with_capacity(effort.rounds.max(1));
    for number in 1..=effort.rounds.max(1) {
        let alone = alone(plan, &sample, &mut tensors, &sessions[0], effort.seconds)?;
        let ceiling = ceiling(plan, &tensors[..plan.network.batch * plan.network.spec.values()], &sessions, effort.seconds)?;
        let ideal = if sessions[0].on_processor() {
            plan.network.threads as f64 / alone.sum()
        } else {
            (plan.network.threads as f64 / alone.on_processor()).min(ceiling)
        };
        let images = (ideal * effort.seconds * 2.0).ceil().max(plan.network.batch as f64) as usize;
        let (whole, stages, startup) = whole(plan, runtime, images)?;
        (observe)(Event::Noted(format!(
            "  round {number}/{}  ceiling {ceiling:.0}  ideal {ideal:.0}  pipeline {whole:.0} img/s, {:.3} of ideal",
            effort.rounds.max(1),
            whole / ideal
        )));
        rounds.push(Round { ceiling, ideal, whole, alone, stages, startup, images });
    }
    let median = |of: &dyn Fn(&Round) -> f64| median(rounds.iter().map(of).collect());
    Ok(Bench {
        ceiling_images_per_second: median(&|round| round.ceiling),
        ideal_images_per_second: median(&|round| round.ideal),
        images_per_second: median(&|round| round.whole),
        of_ceiling: median(&|round| round.whole / round.ceiling),
        of_ideal: median(&|round| round.whole / round.ideal),
        stages: StageSeconds {
            read: median(&|round| round.stages.read / round.images as f64),
            decode: median(&|round| round.stages.decode / round.images as f64),
            resize: median(&|round| round.stages.resize / round.images as f64),
            normalize: median(&|round| round.stages.normalize / round.images as f64),
            infer: median(&|round| round.stages.infer / round.images as f64),
            write: median(&|round| round.stages.write / round.images as f64),
            wait: median(&|round| round.stages.wait / round.images as f64),
        },
        alone: Alone {
            decode: median(&|round| round.alone.decode),
            resize: median(&|round| round.alone.resize),
            normalize: median(&|round| round.alone.normalize),
            infer: median(&|round| round.alone.infer),
        },
        startup_seconds: median(&|round| round.startup),
        images: rounds.last().map_or(0, |round| round.images),
        rounds: rounds.len(),
        threads: plan.network.threads,
        batch: plan.network.batch,
        provider,
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

/// A sample of whole batches that is a fair mixture; a small source comes again and again.
fn whole_batches(plan: &Plan<'_>) -> Result<Vec<Bytes>, ExtractError> {
    const IMAGES: usize = 256;
    let images = IMAGES.next_multiple_of(plan.network.batch);
    let sample = sample::take(plan, images)?;
    if sample.is_empty() {
        let images = plan.dataset.splits().iter().map(|split| split.rows).sum();
        return Err(ExtractError::NothingUsable { images, table: None });
    }
    Ok(sample.iter().cycle().take(images).cloned().collect())
}

/// Each step alone, one thread, over the sample again and again; leaves its images in `tensors` as the network takes them.
fn alone(plan: &Plan<'_>, sample: &[Bytes], tensors: &mut [f32], on: &Session, seconds: f64) -> Result<Alone, ExtractError> {
    let mut preparer = Preparer::new(&plan.network.spec);
    let mut passes = 0.0;
    let budget = Duration::from_secs_f64(seconds / 2.0);
    let started = Instant::now();
    while passes == 0.0 || started.elapsed() < budget {
        sample::prepare(&mut preparer, sample, tensors, plan.network.spec.values_of_views());
        passes += 1.0;
    }
    let images = passes * sample.len() as f64;
    let StageSeconds { decode, resize, normalize, .. } = preparer.spent;
    let infer = {
        // The first run sets things up: on a card for a second.
        infer(&plan.network, on, &tensors[..plan.network.batch * plan.network.spec.values()], plan.network.batch)?;
        let started = Instant::now();
        let mut done = 0;
        while done == 0 || started.elapsed() < budget {
            for batch in tensors.chunks(plan.network.batch * plan.network.spec.values()) {
                infer(&plan.network, on, batch, batch.len() / plan.network.spec.values())?;
            }
            done += sample.len();
        }
        started.elapsed().as_secs_f64() / done as f64
    };
    Ok(Alone { decode: decode / images, resize: resize / images, normalize: normalize / images, infer })
}

/// The network alone, on every thread at once, on one batch: images a second.
fn ceiling(plan: &Plan<'_>, tensor: &[f32], sessions: &[Session], seconds: f64) -> Result<f64, ExtractError> {
    let barrier = Barrier::new(plan.network.threads);
    let budget = Duration::from_secs_f64(seconds);
    let run = |on: &Session| -> Result<f64, ExtractError> {
        barrier.wait();
        let (started, mut done) = (Instant::now(), 0);
        while started.elapsed() < budget {
            infer(&plan.network, on, tensor, plan.network.batch)?;
            done += plan.network.batch;
        }
        Ok((done as f64 / plan.network.spec.views.len() as f64) / started.elapsed().as_secs_f64())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = sessions.iter().cycle().take(plan.network.threads).map(|on| scope.spawn(|| run(on))).collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| ExtractError::Worker)?).sum()
    })
}

/// The whole pipeline on so many images: images a second, where its time went, and the seconds before the first image.
fn whole(plan: &Plan<'_>, runtime: &Runtime, images: usize) -> Result<(f64, StageSeconds, f64), ExtractError> {
    let scratch = tempfile::tempdir().map_err(ExtractError::Scratch)?;
    let plan = Plan { features: scratch.path().join("features"), rebuild: false, repeated: Some(images), ..plan.clone() };
    match extract(&plan, runtime, &ignore, &AtomicBool::new(false))? {
        Ended::Finished(manifest) => {
            let figures = manifest.extraction.as_ref();
            let startup = figures.map_or(0.0, |figures| figures.startup_seconds);
            let seconds = figures.map_or(f64::NAN, |figures| figures.seconds - startup);
            Ok((images as f64 / seconds, figures.map_or_else(StageSeconds::default, |figures| figures.stages), startup))
        }
        Ended::Interrupted { .. } => Err(ExtractError::Worker),
    }
}
