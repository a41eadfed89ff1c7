//! What the engines tell while they work. They never print: a caller shows, logs or drops these.

/// What a task counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Images of a split.
    Images,
    /// Bytes of a download.
    Bytes,
    /// Heads of a sweep.
    Heads,
}

/// One thing that happened. `task` names the same task in `Started`, `Advanced` and `Finished`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A task begins; `total` is `None` where the amount is not known.
    Started {
        /// Short name, shown before the bar ("train", "mobilenetv2-12.onnx").
        task: &'a str,
        /// How much there is to do.
        total: Option<u64>,
        /// What is counted.
        unit: Unit,
    },
    /// A task has done `done` of its total so far.
    Advanced {
        /// The task's name.
        task: &'a str,
        /// Amount done since the start.
        done: u64,
    },
    /// A task is done.
    Finished {
        /// The task's name.
        task: &'a str,
    },
    /// Something a user should know that changes nothing about the outcome ("using …").
    Noted(String),
    /// Something a user should look at; work goes on.
    Warned(String),
}

/// Where events go. Called from worker threads too.
pub type Observer<'a> = &'a (dyn Fn(Event<'_>) + Sync);

/// Drops every event.
pub fn ignore(_: Event<'_>) {}
