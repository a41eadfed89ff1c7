//! Batches through worker threads and back in order: what every pass over images has in common.
//!
//! ```text
//! feed ──batches──▶ worker 1..n ──results──▶ collect, in the order of the feed
//!   ▲                                           │
//!   └───── permits: at most PER_WORKER x n batches under way ─────┘
//! ```

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Batches under way for each worker, the one it works on included.
const PER_WORKER: usize = 4;

/// A worker thread ended without an answer.
#[derive(Debug)]
pub(crate) struct Lost;

/// What is left when every batch has come back.
pub(crate) struct Passed<F, S> {
    /// What the feed gave.
    pub(crate) fed: F,
    /// The workers' states.
    pub(crate) workers: Vec<S>,
    /// Seconds that the workers waited for work, summed.
    pub(crate) waited: f64,
}

/// What is done in each place of a flow.
pub(crate) struct Steps<Feed, Begin, Carry, Collect> {
    /// Gives batches to the function it is handed, until that says no: then the other side has failed, and will say why.
    pub(crate) feed: Feed,
    /// The state of the worker of this number.
    pub(crate) begin: Begin,
    /// Works on a batch.
    pub(crate) carry: Carry,
    /// Takes what came of a batch, in the order of the feed.
    pub(crate) collect: Collect,
}

/// Feeds batches to `threads` workers, and collects what comes of them in order.
///
/// # Errors
/// The first error of any step; that of collecting and carrying before that of the feed.
pub(crate) fn flow<R, S, T, F, E>(
    threads: usize,
    steps: Steps<
        impl FnOnce(&mut dyn FnMut(R) -> bool) -> Result<F, E> + Send,
        impl Fn(usize) -> S + Sync,
        impl Fn(&mut S, R) -> Result<T, E> + Sync,
        impl FnMut(T) -> Result<(), E>,
    >,
) -> Result<Passed<F, S>, E>
where
    R: Send,
    S: Send,
    T: Send,
    F: Send,
    E: From<Lost> + Send,
{
    let Steps { feed, begin, carry, mut collect } = steps;
    let under_way = threads * PER_WORKER;
    let (to_workers, batches) = sync_channel::<(usize, R)>(under_way);
    // Permits bound it.
    let (to_collector, results) = channel::<(usize, Result<T, E>)>();
    let (take_permit, give_permit) = sync_channel::<()>(under_way);
    let batches = Mutex::new(batches);
    std::thread::scope(|scope| {
        let feeder = scope.spawn(move || {
            let mut number = 0;
            feed(&mut |batch| {
                let sent = take_permit.send(()).is_ok() && to_workers.send((number, batch)).is_ok();
                number += 1;
                sent
            })
        });
        let worker = |number: usize| {
            let (results, batches, begin, carry) = (to_collector.clone(), &batches, &begin, &carry);
            scope.spawn(move || work(begin(number), batches, carry, &results))
        };
        let workers: Vec<_> = (0..threads).map(worker).collect();
        drop(to_collector);
        let collected = collect_in_order(&results, &give_permit, &mut collect);
        // Both ends that wait are let go.
        drop((results, give_permit));
        let mut passed = (Vec::with_capacity(threads), 0.0);
        for worker in workers {
            let (state, waited) = worker.join().map_err(|_| Lost)?;
            passed.0.push(state);
            passed.1 += waited;
        }
        let fed = feeder.join().map_err(|_| Lost)?;
        collected?;
        Ok(Passed { fed: fed?, workers: passed.0, waited: passed.1 })
    })
}

/// Carries batches until there are no more; gives the state and the seconds it waited.
fn work<R, S, T, E: From<Lost>>(
    mut state: S,
    batches: &Mutex<Receiver<(usize, R)>>,
    carry: &impl Fn(&mut S, R) -> Result<T, E>,
    results: &Sender<(usize, Result<T, E>)>,
) -> (S, f64) {
    let mut waited = 0.0;
    loop {
        let waiting = Instant::now();
        let next = batches.lock().unwrap_or_else(PoisonError::into_inner).recv();
        waited += waiting.elapsed().as_secs_f64();
        let Ok((number, batch)) = next else { return (state, waited) };
        // A panic must not leave the others waiting for this batch.
        let carried = catch_unwind(AssertUnwindSafe(|| carry(&mut state, batch)));
        if results.send((number, carried.unwrap_or_else(|_| Err(Lost.into())))).is_err() {
            return (state, waited);
        }
    }
}

fn collect_in_order<T, E>(
    results: &Receiver<(usize, Result<T, E>)>,
    permits: &Receiver<()>,
    collect: &mut impl FnMut(T) -> Result<(), E>,
) -> Result<(), E> {
    let mut early = BTreeMap::new();
    let mut next = 0;
    for (number, result) in results {
        early.insert(number, result?);
        while let Some(result) = early.remove(&next) {
            collect(result)?;
            next += 1;
            // Cannot fail while the feed lives, and where it does not, nothing waits for the permit.
            let _ = permits.recv();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    enum Failed {
        Lost,
        At(usize),
    }

    impl From<Lost> for Failed {
        fn from(Lost: Lost) -> Self {
            Self::Lost
        }
    }

    /// Numbers through four workers; gives what came back and how many were fed.
    fn pass(carry: impl Fn(usize) -> Result<usize, Failed> + Sync) -> (Vec<usize>, Result<usize, Failed>) {
        let mut came = Vec::new();
        let passed = flow(
            4,
            Steps {
                feed: |send: &mut dyn FnMut(usize) -> bool| Ok((0..1000).take_while(|&number| send(number)).count()),
                begin: |_| 0_usize,
                carry: |carried: &mut usize, number| {
                    *carried += 1;
                    carry(number)
                },
                collect: |number| {
                    came.push(number);
                    Ok(())
                },
            },
        );
        let fed = passed.map(|passed| {
            assert_eq!(passed.workers.iter().sum::<usize>(), passed.fed);
            passed.fed
        });
        (came, fed)
    }

    #[test]
    fn results_come_in_the_order_of_the_feed() {
        let (came, fed) = pass(|number| {
            // Every seventh is late.
            if number % 7 == 0 {
                std::thread::sleep(std::time::Duration::from_micros(300));
            }
            Ok(number * 2)
        });
        assert_eq!((came, fed), ((0..1000).map(|number| number * 2).collect(), Ok(1000)));
    }

    #[test]
    fn an_error_and_a_panic_end_it() {
        let (came, fed) = pass(|number| if number == 100 { Err(Failed::At(number)) } else { Ok(number) });
        assert!(came.len() <= 100);
        assert_eq!(fed, Err(Failed::At(100)));
        let (_, fed) = pass(|number| if number == 50 { std::panic::panic_any("a worker's panic") } else { Ok(number) });
        assert_eq!(fed, Err(Failed::Lost));
    }
}
