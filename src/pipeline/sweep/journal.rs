//! `sweep.partial`: what a sweep has fitted so far, so that one that was stopped or killed goes on where it was.
//!
//! ```text
//! {"candidate":…,"fold":…,"rows":…,"classes":…,"seconds":…,"best_epoch":…,"digest":…}   one line of JSON
//! logits [rows, classes] of the fold's held-out rows, f32, little-endian                 then the next line
//! ```
//!
//! Records are only ever added, each in one write. One that was cut short or damaged ends the file: it and what follows is dropped.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ndarray::Array2;
use serde::{Deserialize, Serialize};

use crate::events::{Event, Observer};

/// Bytes of a line at most.
const MOST_LINE: u64 = 4096;

/// A candidate that was fitted on one fold.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    /// Hash of everything that the fit depends on, but the fold.
    candidate: String,
    fold: usize,
    rows: usize,
    classes: usize,
    seconds: f64,
    best_epoch: Option<usize>,
    /// BLAKE3 of the logits.
    digest: String,
}

/// What one fit on one fold answers to the rows that the fold holds out.
pub(super) struct Answers {
    /// `[rows, K]`.
    pub(super) logits: Array2<f32>,
    pub(super) seconds: f64,
    pub(super) best_epoch: Option<usize>,
}

/// The file, and where in it each record's logits begin.
pub(super) struct Journal<'a> {
    path: PathBuf,
    places: HashMap<(String, usize), (u64, Record)>,
    file: Mutex<State>,
    observe: Observer<'a>,
}

enum State {
    /// Nothing was added yet.
    Closed,
    Open(File),
    /// It could not be written.
    Broken,
}

impl<'a> Journal<'a> {
    /// Reads what there is; nothing is made before something is added.
    pub(super) fn open(path: PathBuf, observe: Observer<'a>) -> Self {
        let places = match File::open(&path) {
            Ok(file) => Self::scan(file, &path),
            Err(_) => HashMap::new(),
        };
        Self { path, places, file: Mutex::new(State::Closed), observe }
    }

    /// Finds the records, and cuts off what is no whole one.
    fn scan(file: File, path: &Path) -> HashMap<(String, usize), (u64, Record)> {
        let mut places = HashMap::new();
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        let (mut reader, mut end) = (BufReader::new(file), 0_u64);
        loop {
            let mut line = Vec::new();
            let Ok(taken @ 1..) = reader.by_ref().take(MOST_LINE).read_until(b'\n', &mut line) else { break };
            let Ok(record) = serde_json::from_slice::<Record>(&line) else { break };
            let start = end + taken as u64;
            let Some(bytes) = record.bytes().filter(|bytes| start + bytes <= length) else { break };
            let mut hasher = blake3::Hasher::new();
            let hashed = hasher.update_reader(reader.by_ref().take(bytes)).map(|hasher| hasher.finalize().to_hex().to_string());
            if hashed.ok().as_deref() != Some(record.digest.as_str()) {
                break;
            }
            end = start + bytes;
            places.insert((record.candidate.clone(), record.fold), (start, record));
        }
        if end < length {
            // Where that fails the rest is dropped again the next time.
            let _ = OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(end));
        }
        places
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a candidate was fitted on a fold before, on as many rows and classes.
    pub(super) fn has(&self, candidate: &str, fold: usize, shape: (usize, usize)) -> bool {
        self.places.get(&(candidate.to_owned(), fold)).is_some_and(|(_, record)| (record.rows, record.classes) == shape)
    }

    /// What was kept; none where it was not, or cannot be read.
    pub(super) fn get(&self, candidate: &str, fold: usize, shape: (usize, usize)) -> Option<Answers> {
        let (start, record) = self.places.get(&(candidate.to_owned(), fold))?;
        let bytes = record.bytes().filter(|_| (record.rows, record.classes) == shape)?;
        let mut file = File::open(&self.path).ok()?;
        file.seek(SeekFrom::Start(*start)).ok()?;
        let mut content = vec![0; usize::try_from(bytes).ok()?];
        file.read_exact(&mut content).ok()?;
        let values = content.as_chunks::<4>().0.iter().map(|&value| f32::from_le_bytes(value)).collect();
        let logits = Array2::from_shape_vec(shape, values).ok()?;
        Some(Answers { logits, seconds: record.seconds, best_epoch: record.best_epoch })
    }

    /// Adds a fit. A file that cannot be written is warned of once: the sweep itself needs none.
    pub(super) fn add(&self, candidate: &str, fold: usize, answers: &Answers) {
        let content: Vec<u8> = answers.logits.iter().flat_map(|value| value.to_le_bytes()).collect();
        let record = Record {
            candidate: candidate.to_owned(),
            fold,
            rows: answers.logits.nrows(),
            classes: answers.logits.ncols(),
            seconds: answers.seconds,
            best_epoch: answers.best_epoch,
            digest: blake3::hash(&content).to_hex().to_string(),
        };
        let mut state = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, State::Broken) {
            return;
        }
        let write = || -> std::io::Result<State> {
            let mut line = serde_json::to_vec(&record)?;
            line.push(b'\n');
            line.extend_from_slice(&content);
            let mut file = match &*state {
                State::Open(file) => file.try_clone()?,
                State::Closed | State::Broken => OpenOptions::new().create(true).append(true).open(&self.path)?,
            };
            file.write_all(&line)?;
            Ok(State::Open(file))
        };
        *state = write().unwrap_or_else(|error| {
            let path = self.path.display();
            (self.observe)(Event::Warned(format!(
                "{path}: cannot be written ({error}); the sweep goes on, but a stop loses what it has done: free space, or name another \
                 folder with --run"
            )));
            State::Broken
        });
    }
}

impl Record {
    /// Bytes of its logits.
    fn bytes(&self) -> Option<u64> {
        u64::try_from(self.rows.checked_mul(self.classes)?.checked_mul(size_of::<f32>())?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::ignore;

    fn answers(value: f32) -> Answers {
        Answers { logits: Array2::from_elem((3, 2), value), seconds: 1.5, best_epoch: Some(4) }
    }

    #[test]
    fn what_was_added_is_there_again_and_a_record_cut_short_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sweep.partial");
        let journal = Journal::open(path.clone(), &ignore);
        assert!(!journal.has("a", 0, (3, 2)) && !path.exists());
        journal.add("a", 0, &answers(1.0));
        journal.add("a", 1, &answers(2.0));
        journal.add("b", 0, &answers(3.0));

        let again = Journal::open(path.clone(), &ignore);
        let found = again.get("a", 1, (3, 2)).unwrap();
        assert_eq!((found.logits, found.seconds, found.best_epoch), (Array2::from_elem((3, 2), 2.0), 1.5, Some(4)));
        assert!(again.has("b", 0, (3, 2)) && !again.has("b", 1, (3, 2)) && !again.has("b", 0, (2, 3)));

        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 3]).unwrap();
        let cut = Journal::open(path.clone(), &ignore);
        assert!(cut.has("a", 1, (3, 2)) && !cut.has("b", 0, (3, 2)));
        cut.add("b", 0, &answers(5.0));
        let mended = Journal::open(path.clone(), &ignore);
        assert_eq!(mended.get("b", 0, (3, 2)).unwrap().logits[(2, 1)], 5.0);

        // A damaged value: that record and those behind it are fitted again.
        let mut damaged = whole.clone();
        let first = whole.iter().position(|&byte| byte == b'\n').unwrap();
        damaged[first + 2] ^= 1;
        std::fs::write(&path, damaged).unwrap();
        assert!(!Journal::open(path.clone(), &ignore).has("a", 0, (3, 2)));
        std::fs::write(&path, "{\"candidate\": no").unwrap();
        assert!(!Journal::open(path, &ignore).has("a", 0, (3, 2)));
    }

    #[test]
    fn a_file_that_cannot_be_written_is_warned_of_once() {
        let folder = tempfile::tempdir().unwrap();
        let told = Mutex::new(Vec::new());
        let observe = |event: Event<'_>| {
            if let Event::Warned(text) = event {
                told.lock().unwrap().push(text);
            }
        };
        let journal = Journal::open(folder.path().join("missing/sweep.partial"), &observe);
        journal.add("a", 0, &answers(1.0));
        journal.add("a", 1, &answers(1.0));
        let told = told.lock().unwrap();
        assert!(told.len() == 1 && told[0].contains("sweep.partial: cannot be written"), "{told:?}");
    }
}
