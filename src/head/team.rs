//! Threads that take many short steps together.
//!
//! A step of a small head takes microseconds, less than waking a thread: the threads of a team spin until all have come so far.

use std::cell::UnsafeCell;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::{hint, thread};

/// Turns of waiting before a thread lets others have its core.
const SPINS: usize = 1 << 12;

/// A counter that has two cache lines to itself, as the processor fetches them in pairs.
#[repr(align(128))]
#[derive(Default)]
struct Counter(AtomicUsize);

/// Where the threads of a team wait for each other.
pub(super) struct Meeting {
    /// How often each has come.
    come: Vec<Counter>,
    broken: AtomicBool,
}

/// One thread of a team.
pub(super) struct Member<'m> {
    meeting: &'m Meeting,
    pub(super) number: usize,
    times: usize,
}

impl Meeting {
    pub(super) fn new(members: usize) -> Self {
        Self { come: (0..members).map(|_| Counter::default()).collect(), broken: AtomicBool::new(false) }
    }

    /// Runs a function on as many threads as there are members and things for them; this thread is the first.
    pub(super) fn hold<T: Send>(&self, things: Vec<T>, act: impl Fn(&mut Member<'_>, T) + Sync) {
        let act = &act;
        let member = |number| Member { meeting: self, number, times: 0 };
        thread::scope(|scope| {
            let mut things = things.into_iter();
            let first = things.next();
            for (number, thing) in (1..).zip(things) {
                scope.spawn(move || act(&mut member(number), thing));
            }
            if let Some(thing) = first {
                act(&mut member(0), thing);
            }
        });
    }
}

impl Member<'_> {
    /// How many there are.
    pub(super) fn of(&self) -> usize {
        self.meeting.come.len()
    }

    /// Waits for the others; what any of them wrote before, all read after.
    pub(super) fn meet(&mut self) {
        self.times += 1;
        self.meeting.come[self.number].0.store(self.times, Ordering::Release);
        for other in &self.meeting.come {
            let mut turns = 0;
            while other.0.load(Ordering::Acquire) < self.times {
                turns += 1;
                if turns < SPINS {
                    hint::spin_loop();
                } else {
                    assert!(!self.meeting.broken.load(Ordering::Relaxed), "another thread of the team has panicked");
                    thread::yield_now();
                }
            }
        }
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.meeting.broken.store(true, Ordering::Relaxed);
        }
    }
}

/// Values that the threads of a team write and read in turns.
pub(super) struct Board<T>(Vec<UnsafeCell<T>>);

// SAFETY: `read` and `write` hand out references, and their callers see to it that these do not conflict.
unsafe impl<T: Send + Sync> Sync for Board<T> {}

impl<T: Clone> Board<T> {
    pub(super) fn new(value: &T, length: usize) -> Self {
        Self((0..length).map(|_| UnsafeCell::new(value.clone())).collect())
    }

    /// # Safety
    /// Nobody writes them before all have met again.
    pub(super) unsafe fn read(&self, range: Range<usize>) -> &[T] {
        let cells = &self.0[range];
        // SAFETY: a cell lies in memory like its value; by the contract no reference to these values can change them.
        unsafe { std::slice::from_raw_parts(cells.as_ptr().cast(), cells.len()) }
    }

    /// # Safety
    /// Nobody else reads or writes them before all have met again.
    #[allow(clippy::mut_from_ref, reason = "what the cells are for")]
    pub(super) unsafe fn write(&self, range: Range<usize>) -> &mut [T] {
        let cells = &self.0[range];
        // SAFETY: a cell lies in memory like its value; by the contract this is the only reference to these values.
        unsafe { std::slice::from_raw_parts_mut(UnsafeCell::raw_get(cells.as_ptr()), cells.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_before_a_meeting_is_read_after_it() {
        for members in [1, 2, 5] {
            let board = Board::new(&0_usize, members);
            let sums = Board::new(&0_usize, members);
            Meeting::new(members).hold((0..members).collect(), |member, thing| {
                assert_eq!((member.number, member.of()), (thing, members));
                for round in 1..200 {
                    // SAFETY: each writes a place of its own, and reads between two meetings.
                    unsafe { board.write(thing..thing + 1)[0] = round * (thing + 1) };
                    member.meet();
                    // SAFETY: as above.
                    unsafe { sums.write(thing..thing + 1)[0] += board.read(0..members).iter().sum::<usize>() };
                    member.meet();
                }
            });
            let expected = (1..200).sum::<usize>() * (1..=members).sum::<usize>();
            // SAFETY: all are done.
            assert_eq!(unsafe { sums.read(0..members) }, vec![expected; members]);
        }
    }

    #[test]
    fn a_panic_in_one_thread_ends_the_others() {
        let ended = std::panic::catch_unwind(|| {
            Meeting::new(2).hold(vec![0, 1], |member, thing| {
                assert_eq!(thing, 0, "meant to fail");
                member.meet();
            });
        });
        assert!(ended.is_err());
    }
}
