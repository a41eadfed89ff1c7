//! Bodies of requests, within their limits.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use hyper::header::EXPECT;
use hyper::{HeaderMap, StatusCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::refusal::Refusal;

/// How long the body of a request may take.
const TIME: Duration = Duration::from_secs(30);
/// How long the rest of one that is refused is read away, so that the client reads why instead of a broken line.
const AWAY: Duration = Duration::from_secs(2);
/// What memory is counted in, bytes.
const UNIT: usize = 4096;
/// Memory that all bodies together may take, in [`UNIT`].
const MEMORY: usize = (512 << 20) / UNIT;

/// Memory of bodies.
#[derive(Clone)]
pub(super) struct Memory(Arc<Semaphore>);

impl Memory {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(MEMORY)))
    }

    /// The whole body, and its place in memory for as long as it is needed.
    ///
    /// # Errors
    /// When it is too long or too slow, or there are too many others.
    pub(super) async fn read(&self, body: Incoming, headers: &HeaderMap, most: usize) -> Result<(Bytes, Held), Refusal> {
        let mut body = body;
        let read = tokio::time::timeout(TIME, self.whole(&mut body, most)).await;
        let refusal = match read {
            Ok(Ok(whole)) => return Ok(whole),
            Ok(Err(refusal)) => refusal,
            Err(_) => return Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "the body took more than 30 seconds")),
        };
        // Who asks before sending has sent nothing yet.
        if !headers.contains_key(EXPECT) {
            tokio::spawn(
                async move { tokio::time::timeout(AWAY, async { while let Some(Ok(_)) = body.frame().await {} }).await },
            );
        }
        Err(refusal)
    }

    async fn whole(&self, body: &mut Incoming, most: usize) -> Result<(Bytes, Held), Refusal> {
        let too_long = || {
            let text =
                format!("the body is above the limit of {most} bytes; scale the image down, or serve with a higher --max-body");
            Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, text)
        };
        if body.size_hint().lower() > most as u64 {
            return Err(too_long());
        }
        let (mut whole, mut held) = (BytesMut::new(), Held(None));
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, format!("the body broke off: {error}")))?;
            // Anything else is a trailer.
            let Ok(data) = frame.into_data() else { continue };
            let length = whole.len() + data.len();
            if length > most {
                return Err(too_long());
            }
            let units = length.div_ceil(UNIT) - whole.len().div_ceil(UNIT);
            held.grow(&self.0, units)?;
            whole.extend_from_slice(&data);
        }
        Ok((whole.freeze(), held))
    }
}

/// Memory that is taken; dropped, it is free.
pub(super) struct Held(Option<OwnedSemaphorePermit>);

impl Held {
    fn grow(&mut self, memory: &Arc<Semaphore>, units: usize) -> Result<(), Refusal> {
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        let more = Arc::clone(memory).try_acquire_many_owned(units).map_err(|_| Refusal::busy())?;
        match &mut self.0 {
            Some(held) => held.merge(more),
            None => self.0 = Some(more),
        }
        Ok(())
    }
}
