//! Reading parts of an object in few requests.

use std::collections::VecDeque;
use std::io;

use bytes::{Bytes, BytesMut};

use super::super::DatasetError;
use super::object::{Object, Part};

/// Windows that are kept: the columns of a Parquet file are read in turns.
const KEPT: usize = 3;

/// Reads an object window by window; where one window follows another, the next is fetched meanwhile.
#[derive(Debug)]
pub(in super::super) struct ReadAhead {
    object: Object,
    window: u64,
    /// Where each begins, and its content.
    kept: VecDeque<(u64, Bytes)>,
    next: Option<(u64, Part)>,
    failure: Option<DatasetError>,
}

impl ReadAhead {
    pub(in super::super) fn new(object: Object, window: u64) -> Self {
        Self { object, window: window.max(1), kept: VecDeque::new(), next: None, failure: None }
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
        // The end of a file is where its index is: it comes in one piece.
        let begin = if self.kept.is_empty() { start.min(self.bytes().saturating_sub(self.window)) } else { start };
        let follows = self.kept.iter().any(|(begin, window)| begin + window.len() as u64 == start);
        let (window, bytes) = (self.window, self.bytes());
        let range = |begin: u64| begin..begin.saturating_add(window).min(bytes);
        let part = match self.next.take() {
            Some((at, part)) if at == begin => part,
            _ => self.object.part(range(begin)),
        };
        let after = range(begin).end;
        if follows && after < self.bytes() {
            self.next = Some((after, self.object.part(range(after))));
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
