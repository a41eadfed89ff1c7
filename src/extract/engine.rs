//! The engine: records -> decode, resize, normalize, infer -> store.
//!
//! ```text
//! reader ──batches──▶ worker 1..n (read, hash, decode, resize, normalize, session.run) ──results──▶ collector ──▶ shards
//!    ▲                                                                                                  │
//!    └────────────────────────── permits: at most PER_WORKER x n batches under way ─────────────────────┘
//! ```
//!
//! A worker carries a batch through every step on one core, with runs of one thread: the cores share nothing
//! but the two queues, and whichever step is slow, all of them work on it.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::prepare::Preparer;
use super::{Backbone, ExtractError, Slice, drift};
use crate::dataset::{Dataset, DatasetError, Record};
use crate::events::{Event, Observer, Unit};
use crate::image::ImageSpec;
use crate::runtime::{Compute, Runtime, Session, SessionOptions};
use crate::store::{
    Drift, Embedding, Extraction, Index, Manifest, Quarantined, Row, SourceRecord, SplitFigures, StageSeconds, StoreError,
    StoreWriter, Target,
};

/// Batches under way for each worker, the one it works on included.
const PER_WORKER: usize = 4;

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
    /// Where the features go.
    pub features: PathBuf,
    /// Drop what is there, whatever its key.
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
    /// Settles how many images make a batch. On a processor a batch is quickest while its maps stay near the core, and long
    /// enough that the weights are not fetched anew for each image: with MobileNetV2 on cores of 1 MiB, 64 images of 32 pixels,
    /// 8 of 96, 2 of 224, each 10 to 40 % above a batch of 16. A card wants many.
    pub(super) fn with_batch_for(&self, session: &Session) -> Self {
        const PIXELS: usize = 80_000;
        const MOST: usize = 64;
        let side = self.spec.side as usize;
        let on_processor = session.on_processor();
        let suited = if on_processor { ((PIXELS + side * side / 2) / (side * side)).clamp(1, MOST) } else { MOST };
        Self { batch: if self.batch == 0 { suited } else { self.batch }, ..self.clone() }
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

/// A batch on its way to a worker.
struct Batch {
    number: usize,
    records: Vec<Record>,
}

/// What became of one image.
enum Outcome {
    Row { split: Arc<str>, row: Row, embedding: Embedding, changed: bool },
    Quarantined(Quarantined),
}

/// What came back from a worker.
struct Done {
    number: usize,
    outcomes: Result<Vec<Outcome>, ExtractError>,
}

/// Runs every image of the source that the store does not hold yet.
///
/// # Errors
/// When the source cannot be read, the store cannot be written, or the network fails. What was done until then is recorded.
pub fn extract(plan: &Plan<'_>, runtime: &Runtime, observe: Observer<'_>, stop: &AtomicBool) -> Result<Ended, ExtractError> {
    let started = Instant::now();
    let sessions = sessions(plan, runtime)?;
    let plan = &plan.with_batch_for(&sessions[0]);
    try_out(plan, &sessions[0])?;
    let ran_on = RanOn::of(plan, &sessions[0], runtime, observe)?;
    let target = Target {
        dir: plan.features.clone(),
        key_parts: plan.backbone.key_parts(&plan.spec, &ran_on.provider.to_lowercase(), plan.compute.precision()),
        classes: plan.dataset.classes().to_vec(),
        dimension: plan.backbone.width(),
        source: plan.source.clone(),
    };
    let mut writer = StoreWriter::open(target, plan.rebuild)?;
    for reason in writer.damaged() {
        observe(Event::Warned(format!("{reason}; its rows are made anew")));
    }
    let index = writer.index();
    let failed = AtomicBool::new(false);
    let halted = || stop.load(Ordering::Relaxed) || failed.load(Ordering::Relaxed);
    let under_way = plan.threads * PER_WORKER;
    let (to_workers, batches) = sync_channel::<Batch>(under_way);
    let (to_collector, results) = sync_channel::<Done>(under_way);
    let (take_permit, give_permit) = sync_channel::<()>(under_way);
    let batches = Mutex::new(batches);
    let mut tally = Tally::new(plan, observe);
    tally.startup_seconds = started.elapsed().as_secs_f64();
    let outcome = std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(plan, to_workers, take_permit, &halted));
        let worker = |number: usize| {
            let (results, batches, index) = (to_collector.clone(), &batches, &index);
            let session = &sessions[number % sessions.len()];
            scope.spawn(move || work(plan, session, index, batches, &results))
        };
        let workers: Vec<_> = (0..plan.threads).map(worker).collect();
        drop(to_collector);
        let collected = collect(&mut writer, &mut tally, results, &give_permit);
        failed.store(collected.is_err(), Ordering::Relaxed);
        drop(give_permit);
        for worker in workers {
            tally.stages += worker.join().map_err(|_| ExtractError::Worker)?;
        }
        let read = reader.join().map_err(|_| ExtractError::Worker)?;
        collected?;
        Ok(read?)
    });
    match outcome {
        Ok(Reached::End) => {}
        Ok(Reached::Stop) => {
            writer.pause()?;
            return Ok(Ended::Interrupted { done: tally.done(), total: tally.total });
        }
        Err(error) => {
            writer.pause()?;
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
    if usable == 0 { Err(ExtractError::NothingUsable(looked_at)) } else { Ok(Ended::Finished(Box::new(manifest))) }
}

/// What the network really runs on, asked of the session.
struct RanOn {
    provider: &'static str,
    nodes: BTreeMap<String, usize>,
    drift: Option<Drift>,
}

impl RanOn {
    /// Tells it too, unless it is what everybody has.
    fn of(plan: &Plan<'_>, session: &Session, runtime: &Runtime, observe: Observer<'_>) -> Result<Self, ExtractError> {
        let (provider, nodes) = {
            if let Some(reason) = session.fallback() {
                observe(Event::Noted(format!("  on the processor: CUDA cannot be used: {reason}")));
            } else if plan.compute != Compute::CPU {
                let shares: Vec<String> = session.placement().iter().map(|(name, nodes)| format!("{name} {nodes}")).collect();
                let text =
                    format!("  runs on {} in {}: nodes: {}", session.provider(), plan.compute.precision(), shares.join(", "));
                observe(Event::Noted(text));
            }
            (session.provider(), session.placement().clone())
        };
        Ok(Self { provider, nodes, drift: drift::measure(plan, runtime, session, observe)? })
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
fn try_out(plan: &Plan<'_>, session: &Session) -> Result<(), ExtractError> {
    let (model, side, native) = (plan.backbone.file().to_path_buf(), plan.spec.side, plan.backbone.native_side());
    match infer(plan, session, &vec![0.0; plan.spec.values()], 1) {
        Err(ExtractError::Runtime(source)) => Err(ExtractError::Side { model, side, native, source }),
        other => other.map(drop),
    }
}

/// How far the reader came.
enum Reached {
    End,
    Stop,
}

/// Feeds the workers, split by split, in the order of the source.
fn read(
    plan: &Plan<'_>,
    workers: SyncSender<Batch>,
    permits: SyncSender<()>,
    halted: &dyn Fn() -> bool,
) -> Result<Reached, DatasetError> {
    let mut number = 0;
    // A closed channel means that the other side gave up and will say why.
    let mut send = |records: Vec<Record>| {
        let sent = permits.send(()).is_ok() && workers.send(Batch { number, records }).is_ok();
        number += 1;
        sent
    };
    let mut left = plan.repeated.unwrap_or(usize::MAX);
    loop {
        for split in plan.dataset.splits() {
            let mut records = Vec::with_capacity(plan.batch);
            for record in plan.dataset.records(&split.name)? {
                if halted() {
                    return Ok(Reached::Stop);
                }
                let record = record?;
                if plan.slice.is_some_and(|slice| !slice.holds(&record.id)) {
                    continue;
                }
                records.push(record);
                left -= 1;
                let full = records.len() == plan.batch;
                if full && !send(std::mem::replace(&mut records, Vec::with_capacity(plan.batch))) {
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
                return Ok(Reached::End);
            }
        }
        if plan.repeated.is_none() {
            return Ok(Reached::End);
        }
    }
}

/// Carries batches until there are no more; gives what it spent.
fn work(
    plan: &Plan<'_>,
    session: &Session,
    index: &Index,
    batches: &Mutex<Receiver<Batch>>,
    results: &SyncSender<Done>,
) -> StageSeconds {
    let mut preparer = Preparer::new(&plan.spec);
    let mut tensor = Vec::new();
    loop {
        let waiting = Instant::now();
        let next = batches.lock().unwrap_or_else(PoisonError::into_inner).recv();
        preparer.spent.wait += waiting.elapsed().as_secs_f64();
        let Ok(Batch { number, records }) = next else { return preparer.spent };
        // A panic must not leave the others waiting for this batch.
        let carried = catch_unwind(AssertUnwindSafe(|| batch(plan, session, index, &mut preparer, &mut tensor, records)));
        let outcomes = carried.unwrap_or(Err(ExtractError::Worker));
        if results.send(Done { number, outcomes }).is_err() {
            return preparer.spent;
        }
    }
}

/// Carries one batch through every step.
fn batch(
    plan: &Plan<'_>,
    session: &Session,
    index: &Index,
    preparer: &mut Preparer,
    tensor: &mut Vec<f32>,
    records: Vec<Record>,
) -> Result<Vec<Outcome>, ExtractError> {
    let image_len = plan.spec.values();
    let mut outcomes = Vec::with_capacity(records.len());
    let mut fresh = Vec::with_capacity(records.len());
    tensor.clear();
    for record in records {
        let Record { id, split, label, image } = record;
        let quarantined = |id, split: Arc<str>, error, content_hash| {
            Outcome::Quarantined(Quarantined { id, split: split.to_string(), error, content_hash })
        };
        let reading = Instant::now();
        let read = image.read()?.map(|bytes| (blake3::hash(&bytes).to_hex().to_string(), bytes));
        preparer.spent.read += reading.elapsed().as_secs_f64();
        let (content_hash, bytes) = match read {
            Ok(read) => read,
            Err(reason) => {
                outcomes.push(quarantined(id, split, reason, None));
                continue;
            }
        };
        let old = index.find(&split, &id);
        if let Some((place, old)) = old
            && old.content_hash == content_hash
        {
            let row = Row { id, label, content_hash, width: old.width, height: old.height };
            outcomes.push(Outcome::Row { split, row, embedding: Embedding::Reused(place), changed: false });
            continue;
        }
        let changed = old.is_some();
        let slot = tensor.len();
        tensor.resize(slot + image_len, 0.0);
        // A decoder that panics on hostile bytes costs that image, not the run.
        let prepared = catch_unwind(AssertUnwindSafe(|| preparer.run(&bytes, &mut tensor[slot..])));
        match prepared {
            Ok(Ok((width, height))) => {
                fresh.push(outcomes.len());
                let size = |pixels| i32::try_from(pixels).unwrap_or(i32::MAX);
                let row = Row { id, label, content_hash, width: size(width), height: size(height) };
                outcomes.push(Outcome::Row { split, row, embedding: Embedding::New(Vec::new()), changed });
            }
            failed => {
                tensor.truncate(slot);
                preparer.renew();
                let reason = failed.map_or_else(|_| "the decoder failed on it".into(), |result| reason(result.err()));
                outcomes.push(quarantined(id, split, reason, Some(content_hash)));
            }
        }
    }
    if !fresh.is_empty() {
        let inferring = Instant::now();
        let features = infer(plan, session, tensor, fresh.len())?;
        preparer.spent.infer += inferring.elapsed().as_secs_f64();
        for (&place, values) in fresh.iter().zip(features.chunks_exact(plan.backbone.width())) {
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

fn reason(error: Option<crate::image::ImageError>) -> String {
    error.map_or_else(String::new, |error| error.to_string())
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

/// Puts the results back in order and into the store.
fn collect(
    writer: &mut StoreWriter,
    tally: &mut Tally<'_>,
    results: Receiver<Done>,
    permits: &Receiver<()>,
) -> Result<(), ExtractError> {
    let mut early = BTreeMap::new();
    let mut next = 0;
    for Done { number, outcomes } in results {
        early.insert(number, outcomes?);
        while let Some(outcomes) = early.remove(&next) {
            let writing = Instant::now();
            for outcome in outcomes {
                tally.count(&outcome);
                store(writer, outcome)?;
            }
            tally.stages.write += writing.elapsed().as_secs_f64();
            tally.advance();
            next += 1;
            // Cannot fail while the reader lives, and where it does not, nothing waits for the permit.
            let _ = permits.recv();
        }
    }
    Ok(())
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

/// Counts, and tells the observer.
struct Tally<'a> {
    observe: Observer<'a>,
    expected: Vec<(Arc<str>, usize)>,
    total: usize,
    split: Option<(String, usize, Instant)>,
    splits: Vec<SplitFigures>,
    new: usize,
    changed: usize,
    reused: usize,
    quarantined: usize,
    startup_seconds: f64,
    stages: StageSeconds,
}

impl<'a> Tally<'a> {
    fn new(plan: &Plan<'_>, observe: Observer<'a>) -> Self {
        // How many ids of a split fall into a slice is known at the end.
        let parts = plan.slice.map_or(1, |slice| slice.of());
        let expected: Vec<_> =
            plan.dataset.splits().iter().map(|split| (Arc::clone(&split.name), split.rows.div_ceil(parts))).collect();
        Self {
            observe,
            total: expected.iter().map(|(_, rows)| rows).sum(),
            expected,
            split: None,
            splits: Vec::new(),
            new: 0,
            changed: 0,
            reused: 0,
            quarantined: 0,
            startup_seconds: 0.0,
            stages: StageSeconds::default(),
        }
    }

    fn done(&self) -> usize {
        self.new + self.reused + self.quarantined
    }

    fn count(&mut self, outcome: &Outcome) {
        let (split, rows) = match outcome {
            Outcome::Row { split, .. } => (split.as_ref(), 1),
            Outcome::Quarantined(image) => (image.split.as_str(), 0),
        };
        if self.split.as_ref().is_none_or(|(name, ..)| name != split) {
            self.close();
            let total = self.expected.iter().find(|(name, _)| name.as_ref() == split).map(|(_, rows)| *rows as u64);
            (self.observe)(Event::Started { task: split, total, unit: Unit::Images });
            self.split = Some((split.to_owned(), 0, Instant::now()));
            self.splits.push(SplitFigures { split: split.to_owned(), rows: 0, seconds: 0.0 });
        }
        if let Some((_, done, _)) = &mut self.split {
            *done += 1;
        }
        if let Some(figures) = self.splits.last_mut() {
            figures.rows += rows;
        }
        match outcome {
            Outcome::Row { embedding: Embedding::New(_), changed, .. } => {
                self.new += 1;
                self.changed += usize::from(*changed);
            }
            Outcome::Row { embedding: Embedding::Reused(_), .. } => self.reused += 1,
            Outcome::Quarantined(image) => {
                self.quarantined += 1;
                if self.quarantined == 1 {
                    let Quarantined { split, id, error, .. } = image;
                    let text = format!("{split}: {id} cannot be used: {error}; it and others like it are set aside");
                    (self.observe)(Event::Warned(text));
                }
                tracing::warn!(target: "tlpipe::quarantine", "{}/{}: {}", image.split, image.id, image.error);
            }
        }
    }

    fn advance(&self) {
        if let Some((split, done, _)) = &self.split {
            (self.observe)(Event::Advanced { task: split, done: *done as u64 });
        }
    }

    fn close(&mut self) {
        if let Some((split, _, started)) = self.split.take() {
            if let Some(figures) = self.splits.last_mut() {
                figures.seconds = started.elapsed().as_secs_f64();
            }
            (self.observe)(Event::Finished { task: &split });
        }
    }

    #[allow(clippy::cast_precision_loss)]
    fn finish(mut self, plan: &Plan<'_>, runtime: &Runtime, ran_on: RanOn, seconds: f64, removed: usize) -> Extraction {
        self.close();
        if self.quarantined > 0 {
            let place = plan.features.join("quarantine.parquet");
            let text =
                format!("{} of {} images cannot be used: {} says why for each", self.quarantined, self.done(), place.display());
            (self.observe)(Event::Warned(text));
        }
        Extraction {
            rows: self.new + self.reused,
            new: self.new,
            changed: self.changed,
            reused: self.reused,
            removed,
            quarantined: self.quarantined,
            seconds,
            startup_seconds: self.startup_seconds,
            stages: self.stages,
            images_per_second: self.new as f64 / seconds.max(1e-9),
            provider: ran_on.provider.to_owned(),
            nodes: ran_on.nodes,
            drift: ran_on.drift,
            runtime: runtime.version().to_owned(),
            threads: plan.threads,
            batch: plan.batch,
            model: plan.backbone.name().to_owned(),
            model_file: plan.backbone.file().display().to_string(),
            model_sha256: plan.backbone.sha256().to_owned(),
            cut_reason: plan.backbone.cut().reason.to_string(),
            splits: self.splits,
            tlpipe: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}
