//! Reading parts of an object in few requests.

use std::collections::VecDeque;
use std::io;

use bytes::{Bytes, BytesMut};

use super::super::DatasetError;
use super::object::{Object, Part};

/// Windows that are kept: the columns of a Parquet file are read in turns.
const KEPT: usize = 3;

/// Windows that are on their way where one follows another.
const COMING: usize = 3;

/// Reads an object window by window; where one window follows another, the next ones are fetched meanwhile.
#[derive(Debug)]
pub(in super::super) struct ReadAhead {
    object: Object,
    window: u64,
    /// Where each begins, and its content.
    kept: VecDeque<(u64, Bytes)>,
    /// Windows on their way, in order.
    next: VecDeque<(u64, Part)>,
    failure: Option<DatasetError>,
}

impl ReadAhead {
    pub(in super::super) fn new(object: Object, window: u64) -> Self {
        Self { object, window: window.max(1), kept: VecDeque::new(), next: VecDeque::new(), failure: None }
    }

    pub(in super::super) fn bytes(&self) -> u64 {
        self.object.bytes()
    }

    /// Why the store failed, once.
    pub(in super::super) fn failure(&mut self) -> Option<DatasetError> {
        self.failure.take()
    }

    /// Exactly these bytes.
    pub(in super::super) fn exact(&mut self, start: u64, length: u64) -> io::Result<Bytes> {
        let end = start.checked_add(length).filter(|end| *end <= self.bytes());
        let end = end.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        if length > self.window && self.at_hand(start).is_none() {
            let part = self.object.part(start..end);
            return self.wait(part);
        }
        let first = self.from(start, end)?;
        if first.len() as u64 == length {
            return Ok(first);
        }
        let mut whole = BytesMut::with_capacity(usize::try_from(length).map_err(io::Error::other)?);
        whole.extend_from_slice(&first);
        while (whole.len() as u64) < length {
            whole.extend_from_slice(&self.from(start + whole.len() as u64, end)?);
        }
        Ok(whole.freeze())
    }

    /// Up to so many bytes; none only at the end.
    pub(in super::super) fn some(&mut self, start: u64, most: usize) -> io::Result<Bytes> {
        let end = start.saturating_add(most as u64).min(self.bytes());
        if start >= end { Ok(Bytes::new()) } else { self.from(start, end) }
    }

    /// What a window has from `start` on, up to `end`.
    fn from(&mut self, start: u64, end: u64) -> io::Result<Bytes> {
        let (begin, window) = match self.at_hand(start) {
            Some(window) => window,
            None => self.fetch(start)?,
        };
        let at = |place: u64| usize::try_from(place - begin).map_err(io::Error::other);
        Ok(window.slice(at(start)?..at(end)?.min(window.len())))
    }

    fn at_hand(&self, start: u64) -> Option<(u64, Bytes)> {
        let holds = |(begin, window): &&(u64, Bytes)| (*begin..*begin + window.len() as u64).contains(&start);
        self.kept.iter().find(holds).cloned()
    }

    fn fetch(&mut self, start: u64) -> io::Result<(u64, Bytes)> {
        let (window, bytes) = (self.window, self.bytes());
        let range = |begin: u64| begin..begin.saturating_add(window).min(bytes);
        // The end of a file is where its index is: it comes in one piece.
        let begin = if self.kept.is_empty() { start.min(bytes.saturating_sub(window)) } else { start };
        // What is passed over is so little that the windows after this one will be wanted, too.
        let follows = self
            .kept
            .iter()
            .map(|(begin, window)| begin + window.len() as u64)
            .any(|end| start.checked_sub(end).is_some_and(|gap| gap <= window / 2));
        while self.next.front().is_some_and(|(at, _)| range(*at).end <= begin) {
            self.next.pop_front();
        }
        let (begin, part) = match self.next.pop_front() {
            Some((at, part)) if at <= begin => (at, part),
            _ => {
                self.next.clear();
                (begin, self.object.part(range(begin)))
            }
        };
        let mut after = self.next.back().map_or(range(begin).end, |(at, _)| range(*at).end);
        while follows && self.next.len() < COMING && after < bytes {
            self.next.push_back((after, self.object.part(range(after))));
            after = range(after).end;
        }
        let window = self.wait(part)?;
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back((begin, window.clone()));
        Ok((begin, window))
    }

    fn wait(&mut self, part: Part) -> io::Result<Bytes> {
        part.wait().map_err(|error| {
            let text = error.to_string();
            self.failure = Some(error);
            io::Error::other(text)
        })
    }
}
