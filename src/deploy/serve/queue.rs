//! Images of all requests on their way through the network: a bounded queue, and threads that take batches from it.
//!
//! A thread takes what is there, up to a batch. Where less is there and further requests are arriving, it waits for them, a few
//! milliseconds at most; a lone client waits for nobody.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::metrics::Metrics;
use crate::deploy::{Classifier, Loader};
use crate::image::RgbImage;

/// An image as a request brings it.
pub(super) enum Picture {
    Encoded(Bytes),
    Pixels(RgbImage),
    /// As the network itself takes it.
    Numbers(Vec<f32>),
}

/// Why an image has no answer.
#[derive(Clone, Debug)]
pub(super) enum Failed {
    /// It cannot be used.
    Image(String),
    /// The network failed.
    Model(String),
}

/// Probabilities of the classes.
pub(super) type Reply = Result<Vec<f32>, Failed>;

struct Job {
    picture: Picture,
    reply: oneshot::Sender<Reply>,
}

struct Waiting {
    jobs: VecDeque<Job>,
    closed: bool,
}

/// The images that wait.
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    more: Condvar,
    capacity: usize,
    /// Requests whose images are not here yet.
    arriving: AtomicUsize,
}

/// The queue has no place for so many images now.
pub(super) struct Full;

/// A request on its way; dropped, it has arrived.
pub(super) struct Arriving<'q>(&'q Queue);

impl Drop for Arriving<'_> {
    fn drop(&mut self) {
        self.0.arriving.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Queue {
    pub(super) fn new(capacity: usize) -> Self {
        let waiting = Mutex::new(Waiting { jobs: VecDeque::with_capacity(capacity), closed: false });
        Self { waiting, more: Condvar::new(), capacity, arriving: AtomicUsize::new(0) }
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Says that a request has begun.
    pub(super) fn arriving(&self) -> Arriving<'_> {
        self.arriving.fetch_add(1, Ordering::Relaxed);
        Arriving(self)
    }

    /// Images that wait.
    pub(super) fn len(&self) -> usize {
        self.lock().jobs.len()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the images of a request: all of them, or none.
    pub(super) fn submit(&self, pictures: Vec<Picture>) -> Result<Vec<oneshot::Receiver<Reply>>, Full> {
        let mut waiting = self.lock();
        if waiting.closed || waiting.jobs.len() + pictures.len() > self.capacity {
            return Err(Full);
        }
        let mut replies = Vec::with_capacity(pictures.len());
        for picture in pictures {
            let (reply, answer) = oneshot::channel();
            waiting.jobs.push_back(Job { picture, reply });
            replies.push(answer);
        }
        drop(waiting);
        self.more.notify_all();
        Ok(replies)
    }

    /// What waits is still worked on; nothing more is taken.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.more.notify_all();
    }

    /// The next images, at most `most`; none once it is closed and empty.
    fn take(&self, most: usize, delay: Duration) -> Option<Vec<Job>> {
        let mut waiting = self.lock();
        while waiting.jobs.is_empty() {
            if waiting.closed {
                return None;
            }
            waiting = self.more.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        let mut batch = Vec::with_capacity(most);
        let until = Instant::now() + delay;
        loop {
            let free = most - batch.len();
            let there = waiting.jobs.len().min(free);
            batch.extend(waiting.jobs.drain(..there));
            let now = Instant::now();
            let wait = batch.len() < most && now < until && !waiting.closed && self.arriving.load(Ordering::Relaxed) > 0;
            if !wait {
                return Some(batch);
            }
            waiting = self.more.wait_timeout(waiting, until - now).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Works on batches until the queue is closed and empty. `worker` is the number of this thread.
    pub(super) fn work(&self, classifier: &Classifier, worker: usize, max_pixels: u64, delay: Duration, metrics: &Metrics) {
        let mut loader = classifier.loader(max_pixels);
        while let Some(jobs) = self.take(classifier.batch(), delay) {
            let (answered, loaded): (Vec<_>, Vec<_>) = jobs
                .into_iter()
                // Who has gone needs no answer.
                .filter(|job| !job.reply.is_closed())
                .map(|Job { picture, reply }| (reply, load(&mut loader, picture)))
                .unzip();
            metrics.batch(loader.images(), loaded.iter().filter(|loaded| loaded.is_err()).count());
            let classes = classifier.classes().len().max(1);
            // The network is not a request's: if it fails, each of them hears why.
            let rows = classifier.probabilities(worker, &mut loader).map_err(|error| Failed::Model(error.to_string()));
            let mut rows = rows.as_ref().map(|rows| rows.chunks_exact(classes));
            for (reply, loaded) in answered.into_iter().zip(loaded) {
                let answer = loaded.map_err(Failed::Image).and_then(|()| match &mut rows {
                    Ok(rows) => rows.next().map(<[f32]>::to_vec).ok_or(Failed::Model("no answer".to_owned())),
                    Err(failed) => Err((*failed).clone()),
                });
                // Who has gone needs no answer.
                let _ = reply.send(answer);
            }
        }
    }
}

fn load(loader: &mut Loader, picture: Picture) -> Result<(), String> {
    match picture {
        Picture::Encoded(bytes) => loader.add(&bytes),
        Picture::Pixels(image) => loader.add_pixels(image),
        Picture::Numbers(values) => loader.add_numbers(&values),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pictures(count: usize) -> Vec<Picture> {
        (0..count).map(|_| Picture::Encoded(Bytes::from_static(b"x"))).collect()
    }

    #[test]
    fn a_full_queue_takes_all_images_of_a_request_or_none() {
        let queue = Queue::new(5);
        assert!(queue.submit(pictures(3)).is_ok());
        assert!(queue.submit(pictures(3)).is_err());
        assert!(queue.submit(pictures(2)).is_ok());
        assert_eq!(queue.len(), 5);
        assert_eq!(queue.take(4, Duration::ZERO).map(|batch| batch.len()), Some(4));
        queue.close();
        assert!(queue.submit(pictures(1)).is_err());
        assert_eq!(queue.take(4, Duration::ZERO).map(|batch| batch.len()), Some(1), "what waits is worked on");
        assert!(queue.take(4, Duration::ZERO).is_none());
    }

    #[test]
    fn a_batch_waits_only_while_others_arrive() {
        let queue = Queue::new(9);
        let long = Duration::from_secs(5);
        assert!(queue.submit(pictures(1)).is_ok());
        let started = Instant::now();
        assert_eq!(queue.take(4, long).map(|batch| batch.len()), Some(1));
        assert!(started.elapsed() < long / 2, "a lone client waits for nobody");
        assert!(queue.submit(pictures(1)).is_ok());
        let arriving = queue.arriving();
        std::thread::scope(|scope| {
            let taken = scope.spawn(|| queue.take(4, long).map(|batch| batch.len()));
            std::thread::sleep(Duration::from_millis(20));
            assert!(queue.submit(pictures(3)).is_ok());
            assert_eq!(taken.join().unwrap(), Some(4));
        });
        assert!(queue.submit(pictures(1)).is_ok());
        assert_eq!(queue.take(4, Duration::from_millis(5)).map(|batch| batch.len()), Some(1), "it waits no longer than that");
        drop(arriving);
    }
}
