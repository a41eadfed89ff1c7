//! Images in, embeddings out, as Arrow IPC streams: stage 1 as a filter inside a cluster engine.
//!
//! ```text
//! stdin ─▶ reader thread ──batches──▶ feed ──parts──▶ worker 1..n ──rows──▶ collect, a batch for a batch ─▶ stdout
//! ```
//!
//! The same workers as extraction, so the same bits. Reading, computing and writing go on at the same time, and what is under way is
//! bounded: a batch or two in each place, whatever the length of the stream. Each input batch gives one output batch, in order and
//! flushed, so that an engine may wait for it before it sends the next.

mod error;
mod incoming;
mod stream;

use std::io::{Read, Write};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use arrow::datatypes::SchemaRef;
use arrow_ipc::writer::StreamWriter;
use serde::Serialize;

pub use error::EmbedError;
use incoming::Incoming;
use stream::Batches;

use crate::events::{Event, Observer};
use crate::extract::flow::{Lost, Steps, flow};
use crate::extract::worker::{Outcome, Worker};
use crate::extract::{Network, say_where, sessions, try_out};
use crate::runtime::{Runtime, Session};
use crate::store::exchange::{Answer, Provenance, record_batch};
use crate::store::{Dtype, Embedding, Index};

/// Images that a stream held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Embedded {
    /// Batches.
    pub batches: usize,
    /// Images, a row each.
    pub rows: usize,
    /// Those that could not be used.
    pub failed: usize,
    /// From the handshake to the end, seconds.
    pub seconds: f64,
}

/// The network, ready to answer.
pub struct Filter<'a> {
    network: Network<'a>,
    sessions: Vec<Session>,
    provenance: Provenance,
    schema: SchemaRef,
}

impl<'a> Filter<'a> {
    /// Starts the network; `dtype` is what embeddings are given as.
    ///
    /// # Errors
    /// When the network cannot be run, or not on images of this size.
    pub fn start(network: Network<'a>, dtype: Dtype, runtime: &Runtime, observe: Observer<'_>) -> Result<Self, EmbedError> {
        let sessions = sessions(&network, runtime)?;
        let network = network.with_batch_for(&sessions[0]);
        try_out(&network, &sessions[0])?;
        say_where(&sessions[0], network.compute, observe);
        let provider = sessions[0].provider();
        let provenance = network.backbone.provenance(network.key_parts(dtype, provider), provider, runtime.version());
        let schema = provenance.schema().map_err(EmbedError::encode)?;
        Ok(Self { network, sessions, provenance, schema })
    }

    /// How the features are made.
    pub fn provenance(&self) -> &Provenance {
        &self.provenance
    }

    /// Answers a stream. The schema of the answer is written before anything is read.
    ///
    /// # Errors
    /// When the stream is none, has other columns than are needed, or ends without its end marker; when the network fails, or the
    /// answer cannot be written. An image that cannot be used is a row of the answer.
    pub fn run(&self, from: impl Read + Send + 'static, to: impl Write, observe: Observer<'_>) -> Result<Embedded, EmbedError> {
        let started = Instant::now();
        let mut writer = StreamWriter::try_new(to, &self.schema).map_err(EmbedError::write)?;
        writer.flush().map_err(EmbedError::write)?;
        let input = read_ahead(from);
        // Whoever fails cannot be heard by a reader that waits for the next batch.
        let failed = AtomicBool::new(false);
        let (images, failing) = (self.network.batch, &failed);
        let index = Index::default();
        let mut embedded = Embedded::default();
        let mut answers: Vec<Answer> = Vec::new();
        let passed = flow(
            self.network.threads,
            Steps {
                feed: move |send: &mut dyn FnMut(Part) -> bool| feed(&input, images, failing, send),
                begin: |number: usize| Worker::new(&self.network, &self.sessions[number % self.sessions.len()]),
                carry: |worker: &mut Worker<'_>, part: Part| {
                    let alarm = Alarm(Some(&failed));
                    let outcomes = worker.carry(&index, part.batch.records(part.rows.clone()))?;
                    alarm.off();
                    Ok((part, outcomes))
                },
                collect: |(part, outcomes): (Part, Vec<Outcome>)| {
                    let alarm = Alarm(Some(&failed));
                    answers.extend(outcomes.into_iter().map(answer));
                    if part.last {
                        let answers = std::mem::take(&mut answers);
                        embedded.batches += 1;
                        embedded.rows += answers.len();
                        embedded.failed += failures(&part.batch, &answers, embedded.failed, observe);
                        let batch = record_batch(&self.provenance, &self.schema, &part.batch.named, &answers)?;
                        writer.write(&batch).and_then(|()| writer.flush()).map_err(EmbedError::write)?;
                    }
                    alarm.off();
                    Ok(())
                },
            },
        );
        passed?;
        writer.finish().and_then(|()| writer.flush()).map_err(EmbedError::write)?;
        Ok(Embedded { seconds: started.elapsed().as_secs_f64(), ..embedded })
    }
}

/// Goes off where it is not switched off: an error or a panic came before.
struct Alarm<'f>(Option<&'f AtomicBool>);

impl Alarm<'_> {
    fn off(mut self) {
        self.0 = None;
    }
}

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if let Some(failed) = self.0 {
            failed.store(true, Ordering::Relaxed);
        }
    }
}

/// Batches that come, and none after the end marker.
type Input = Receiver<Result<Option<Incoming>, EmbedError>>;

/// Images of a batch for one worker.
struct Part {
    batch: Arc<Incoming>,
    rows: Range<usize>,
    /// The batch is whole with it.
    last: bool,
}

/// Reads a batch ahead of those that are under way, in a thread that nobody waits for: it may be blocked for as long as the other side
/// says nothing.
fn read_ahead(from: impl Read + Send + 'static) -> Input {
    let (send, receive) = sync_channel(0);
    std::thread::spawn(move || {
        let mut batches = Batches::new(from);
        loop {
            let next = batches.next_batch();
            let is_last = !matches!(next, Ok(Some(_)));
            if send.send(next).is_err() || is_last {
                return;
            }
        }
    });
    receive
}

/// Feeds the images of each batch in parts that suit the network; an empty batch is an empty part.
fn feed(input: &Input, images: usize, failed: &AtomicBool, send: &mut dyn FnMut(Part) -> bool) -> Result<(), EmbedError> {
    const LOOK_UP: Duration = Duration::from_millis(50);
    loop {
        let batch = match input.recv_timeout(LOOK_UP) {
            Ok(Ok(Some(batch))) => Arc::new(batch),
            Ok(Ok(None)) => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Err(RecvTimeoutError::Timeout) if failed.load(Ordering::Relaxed) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => continue,
            // It panicked: a reader that ends says so.
            Err(RecvTimeoutError::Disconnected) => return Err(Lost.into()),
        };
        let rows = batch.rows();
        for start in (0..rows.max(1)).step_by(images.max(1)) {
            let end = rows.min(start + images.max(1));
            if !send(Part { batch: Arc::clone(&batch), rows: start..end, last: end == rows }) {
                return Ok(());
            }
        }
    }
}

fn answer(outcome: Outcome) -> Answer {
    match outcome {
        Outcome::Row { row, embedding, .. } => {
            let features = match embedding {
                Embedding::New(features) => Ok((row.width, row.height, features)),
                // There is nothing to take over.
                Embedding::Reused(_) => Err("no features".to_owned()),
            };
            Answer { content_hash: Some(row.content_hash), features }
        }
        Outcome::Quarantined(image) => Answer { content_hash: image.content_hash, features: Err(image.error) },
    }
}

/// Counts images that could not be used, and tells the first of all.
fn failures(batch: &Incoming, answers: &[Answer], before: usize, observe: Observer<'_>) -> usize {
    let mut failures = answers.iter().enumerate().filter_map(|(row, answer)| Some((row, answer.features.as_ref().err()?)));
    let Some((row, reason)) = failures.next() else { return 0 };
    if before == 0 {
        let id = batch.named.ids.value(row);
        observe(Event::Warned(format!("{id} cannot be used: {reason}; it and others like it have the reason in their row")));
    }
    1 + failures.count()
}
