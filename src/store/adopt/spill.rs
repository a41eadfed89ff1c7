//! Rows in the order of their ids, however many there are: sorted runs on the disk, merged (external merge sort, Knuth, The Art of
//! Computer Programming, volume 3, section 5.4).
//!
//! ```text
//! run    record record record ...          each run sorted by key
//! record length u32 · key length u32 · key · flags u8 · label i32 · class u32 · width i32 · height i32 · hash [32] · payload
//! key    rank of the split u8 · split · 0 · id
//! payload  embeddings as little-endian float32, view after view; or the error as text
//! ```

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

/// One row. Lengths are bounded by those of a Parquet page.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Record {
    pub(super) split: String,
    pub(super) id: String,
    pub(super) label: Option<i32>,
    /// Number of the class name in the order in which names were met.
    pub(super) class: Option<u32>,
    pub(super) width: i32,
    pub(super) height: i32,
    pub(super) hash: Option<[u8; 32]>,
    pub(super) content: Content,
}

/// What became of the image.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Content {
    /// Its features.
    Embedding(Vec<f32>),
    /// Why there are none.
    Error(String),
}

const HAS_LABEL: u8 = 1;
const HAS_CLASS: u8 = 2;
const HAS_HASH: u8 = 4;
const IS_ERROR: u8 = 8;
/// Bytes of a record between its key and its payload.
const FIXED: usize = 1 + 4 * 4 + 32;

/// A file was written here and reads otherwise now.
fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a temporary file is not what was written to it")
}

impl Record {
    /// What records are sorted by: as a person expects the splits, then by id.
    fn key(split: &str, id: &str) -> Vec<u8> {
        let rank = ["train", "validation", "test"].iter().position(|known| *known == split).unwrap_or(3);
        let rank = u8::try_from(rank).unwrap_or(u8::MAX);
        [&[rank], split.as_bytes(), &[0], id.as_bytes()].concat()
    }

    fn append(&self, to: &mut Vec<u8>) {
        let start = to.len();
        let key = Self::key(&self.split, &self.id);
        let flag = |is: bool, flag: u8| if is { flag } else { 0 };
        let is_error = matches!(self.content, Content::Error(_));
        let flags = flag(self.label.is_some(), HAS_LABEL)
            | flag(self.class.is_some(), HAS_CLASS)
            | flag(self.hash.is_some(), HAS_HASH)
            | flag(is_error, IS_ERROR);
        to.extend_from_slice(&[0; 4]);
        to.extend_from_slice(&length(key.len()).to_le_bytes());
        to.extend_from_slice(&key);
        to.push(flags);
        to.extend_from_slice(&self.label.unwrap_or_default().to_le_bytes());
        to.extend_from_slice(&self.class.unwrap_or_default().to_le_bytes());
        to.extend_from_slice(&self.width.to_le_bytes());
        to.extend_from_slice(&self.height.to_le_bytes());
        to.extend_from_slice(&self.hash.unwrap_or_default());
        match &self.content {
            Content::Embedding(values) => values.iter().for_each(|value| to.extend_from_slice(&value.to_le_bytes())),
            Content::Error(text) => to.extend_from_slice(text.as_bytes()),
        }
        let whole = length(to.len() - start - 4);
        to[start..start + 4].copy_from_slice(&whole.to_le_bytes());
    }

    /// Reads what stands after the length.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (key, rest) = split_key(bytes)?;
        let named = key.get(1..)?;
        let end = named.iter().position(|byte| *byte == 0)?;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        let (fixed, payload) = rest.split_at_checked(FIXED)?;
        let flags = fixed[0];
        let word = |at: usize| fixed[1 + 4 * at..][..4].first_chunk().copied();
        let mut hash = [0; 32];
        hash.copy_from_slice(&fixed[17..]);
        let has = |flag: u8| flags & flag != 0;
        let content = if has(IS_ERROR) {
            Content::Error(text(payload)?)
        } else {
            Content::Embedding(payload.as_chunks().0.iter().map(|value| f32::from_le_bytes(*value)).collect())
        };
        Some(Self {
            split: text(&named[..end])?,
            id: text(&named[end + 1..])?,
            label: has(HAS_LABEL).then_some(i32::from_le_bytes(word(0)?)),
            class: has(HAS_CLASS).then_some(u32::from_le_bytes(word(1)?)),
            width: i32::from_le_bytes(word(2)?),
            height: i32::from_le_bytes(word(3)?),
            hash: has(HAS_HASH).then_some(hash),
            content,
        })
    }
}

/// Rows of more than 4 GiB do not come out of Parquet.
fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// The key of a record and what stands after it.
fn split_key(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = u32::from_le_bytes(*bytes.first_chunk()?) as usize;
    bytes[4..].split_at_checked(length)
}

/// Where a run stands in the file of its sorter.
#[derive(Clone, Copy, Debug)]
struct Run {
    start: u64,
    end: u64,
}

/// Sorts rows into runs.
pub(super) struct Sorter {
    file: BufWriter<File>,
    written: u64,
    runs: Vec<Run>,
    arena: Vec<u8>,
    /// Where each record of the arena begins.
    places: Vec<usize>,
    memory: usize,
}

impl Sorter {
    /// One that keeps so many bytes in memory, and the rest in an unnamed file in a folder.
    pub(super) fn new(folder: &Path, memory: usize) -> io::Result<Self> {
        let file = BufWriter::with_capacity(1 << 20, tempfile::tempfile_in(folder)?);
        Ok(Self { file, written: 0, runs: Vec::new(), arena: Vec::new(), places: Vec::new(), memory })
    }

    pub(super) fn push(&mut self, record: &Record) -> io::Result<()> {
        self.places.push(self.arena.len());
        record.append(&mut self.arena);
        if self.arena.len() >= self.memory { self.write_run() } else { Ok(()) }
    }

    fn write_run(&mut self) -> io::Result<()> {
        let arena = &self.arena;
        let record = |place: usize| {
            let length = arena[place..].first_chunk().map_or(0, |length| u32::from_le_bytes(*length)) as usize;
            &arena[place..][..4 + length]
        };
        let key = |place: &usize| split_key(&record(*place)[4..]).map(|(key, _)| key);
        self.places.sort_by(|a, b| key(a).cmp(&key(b)));
        for &place in &self.places {
            self.file.write_all(record(place))?;
        }
        let start = self.written;
        self.written += self.arena.len() as u64;
        self.runs.push(Run { start, end: self.written });
        self.arena.clear();
        self.places.clear();
        Ok(())
    }

    fn finish(mut self) -> io::Result<(File, Vec<Run>)> {
        if !self.places.is_empty() {
            self.write_run()?;
        }
        Ok((self.file.into_inner().map_err(io::IntoInnerError::into_error)?, self.runs))
    }
}

/// The records of some sorters, in order.
pub(super) struct Merged {
    files: Vec<File>,
    cursors: Vec<Cursor>,
    heads: BinaryHeap<Head>,
}

/// A place in a run.
struct Cursor {
    file: usize,
    next: u64,
    end: u64,
    /// What was read ahead, from `at` on not yet given.
    buffer: Vec<u8>,
    at: usize,
    chunk: usize,
}

/// The first record of a run that was not given yet.
struct Head {
    bytes: Vec<u8>,
    cursor: usize,
}

impl Head {
    fn key(&self) -> Option<&[u8]> {
        split_key(&self.bytes).map(|(key, _)| key)
    }
}

impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Head {}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Head {
    /// The greatest is the one with the least key: that is what a heap gives first.
    fn cmp(&self, other: &Self) -> Ordering {
        other.key().cmp(&self.key()).then(other.cursor.cmp(&self.cursor))
    }
}

impl Merged {
    /// Merges what some sorters hold.
    pub(super) fn new(sorters: Vec<Sorter>) -> io::Result<Self> {
        const MEMORY: usize = 64 << 20;
        let finished = sorters.into_iter().map(Sorter::finish).collect::<io::Result<Vec<_>>>()?;
        let runs: usize = finished.iter().map(|(_, runs)| runs.len()).sum();
        let chunk = (MEMORY / runs.max(1)).clamp(16 << 10, 1 << 20);
        let (mut files, mut cursors) = (Vec::new(), Vec::new());
        for (number, (file, runs)) in finished.into_iter().enumerate() {
            files.push(file);
            let cursor = |Run { start, end }| Cursor { file: number, next: start, end, buffer: Vec::new(), at: 0, chunk };
            cursors.extend(runs.into_iter().map(cursor));
        }
        let mut merged = Self { files, cursors, heads: BinaryHeap::new() };
        for cursor in 0..merged.cursors.len() {
            merged.advance(cursor)?;
        }
        Ok(merged)
    }

    fn advance(&mut self, number: usize) -> io::Result<()> {
        let cursor = &mut self.cursors[number];
        let file = &mut self.files[cursor.file];
        let Some(length) = cursor.take(file, 4)? else { return Ok(()) };
        let length = length.first_chunk().map_or(0, |length| u32::from_le_bytes(*length)) as usize;
        let bytes = cursor.take(file, length)?.ok_or_else(damaged)?.to_vec();
        self.heads.push(Head { bytes, cursor: number });
        Ok(())
    }

    /// The next record.
    ///
    /// # Errors
    /// When a temporary file cannot be read.
    pub(super) fn next(&mut self) -> io::Result<Option<Record>> {
        let Some(head) = self.heads.pop() else { return Ok(None) };
        self.advance(head.cursor)?;
        Record::parse(&head.bytes).ok_or_else(damaged).map(Some)
    }
}

impl Cursor {
    /// The next so many bytes; none at the end of the run.
    fn take(&mut self, file: &mut File, bytes: usize) -> io::Result<Option<&[u8]>> {
        if self.buffer.len() - self.at < bytes {
            self.buffer.drain(..self.at);
            self.at = 0;
            let left = usize::try_from(self.end - self.next).unwrap_or(usize::MAX);
            let wanted = self.chunk.max(bytes).min(left);
            let before = self.buffer.len();
            file.seek(SeekFrom::Start(self.next))?;
            self.buffer.resize(before + wanted, 0);
            file.read_exact(&mut self.buffer[before..])?;
            self.next += wanted as u64;
            if self.buffer.is_empty() {
                return Ok(None);
            }
        }
        let taken = self.buffer.get(self.at..self.at + bytes).ok_or_else(damaged)?;
        self.at += bytes;
        Ok(Some(taken))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(split: &str, id: &str, value: f32) -> Record {
        Record {
            split: split.into(),
            id: id.into(),
            label: Some(-3).filter(|_| id.len().is_multiple_of(2)),
            class: Some(7).filter(|_| id.len().is_multiple_of(3)),
            width: 4,
            height: 5,
            hash: Some(*blake3::hash(id.as_bytes()).as_bytes()),
            content: Content::Embedding(vec![value; 5]),
        }
    }

    #[test]
    fn many_runs_of_two_sorters_come_out_in_order_and_whole() {
        let folder = tempfile::tempdir().unwrap();
        let mut sorters: Vec<Sorter> = (0..2).map(|_| Sorter::new(folder.path(), 1000).unwrap()).collect();
        let mut expected = Vec::new();
        for number in 0..500_usize {
            let split = ["test", "train", "zoo", "validation", ""][number % 5];
            let mut record = record(split, &format!("i{}", number * 7919 % 500), number as f32);
            if number % 50 == 0 {
                record.content = Content::Error("no image, \u{fffd}".into());
                record.hash = None;
            }
            sorters[number % 2].push(&record).unwrap();
            expected.push(record);
        }
        expected.sort_by_key(|record| Record::key(&record.split, &record.id));
        let mut merged = Merged::new(sorters).unwrap();
        let mut found = Vec::new();
        while let Some(record) = merged.next().unwrap() {
            found.push(record);
        }
        assert_eq!(found, expected);
        assert_eq!(
            found.iter().map(|record| record.split.as_str()).step_by(100).collect::<Vec<_>>(),
            ["train", "validation", "test", "", "zoo"]
        );
        assert!(Merged::new(Vec::new()).unwrap().next().unwrap().is_none());
    }

    #[test]
    fn a_record_longer_than_what_is_read_at_a_time_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let mut sorter = Sorter::new(folder.path(), 1).unwrap();
        let long = Record { content: Content::Embedding(vec![0.5; 1 << 20]), ..record("train", "b", 0.0) };
        for record in [&record("train", "c", 1.0), &long, &record("train", "a", 2.0)] {
            sorter.push(record).unwrap();
        }
        let mut merged = Merged::new(vec![sorter]).unwrap();
        let ids: Vec<Record> = (0..3).map(|_| merged.next().unwrap().unwrap()).collect();
        assert_eq!(ids[1], long);
        assert_eq!([&ids[0].id, &ids[2].id], ["a", "c"]);
    }
}
