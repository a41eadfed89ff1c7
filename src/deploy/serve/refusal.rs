//! A request that gets no answer, and why.

use hyper::StatusCode;

/// Seconds after which a client that was turned away may come again.
const AGAIN: u32 = 1;

/// Why a request is refused.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) reason: String,
    /// Seconds to wait before another try; none where it would not help.
    pub(super) retry_after: Option<u32>,
    /// The method that is taken here.
    pub(super) allow: Option<&'static str>,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, reason: impl Into<String>) -> Self {
        Self { status, reason: reason.into(), retry_after: None, allow: None }
    }

    /// Too much is under way.
    pub(super) fn busy() -> Self {
        let reason = "too many images wait already; try again later";
        Self { retry_after: Some(AGAIN), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, reason) }
    }

    /// Another method than this one.
    pub(super) fn method(allow: &'static str) -> Self {
        Self { allow: Some(allow), ..Self::new(StatusCode::METHOD_NOT_ALLOWED, format!("use {allow} here")) }
    }

    /// The client's mistake.
    pub(super) fn bad(reason: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, reason)
    }
}
