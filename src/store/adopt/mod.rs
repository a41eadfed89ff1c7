//! Rows that a cluster engine wrote become a feature store.
//!
//! ```text
//! engine's files ─▶ checked, sorted into runs on the disk ─▶ merged by id ─▶ .adopting/store/ ─▶ renamed into place, store.json last
//! ```
//!
//! The memory that this takes does not depend on the number of rows. Until the last rename the folder is as the engine left it but for
//! `.adopting`; a process that died there is done again. Once all is written, `.adopting/taken.json` says so, and the next call
//! finishes what is left: renames, and the removal of files whose rows now stand in the store.

mod error;
mod found;
mod publish;
mod scan;
mod spill;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

pub use error::AdoptError;
use found::Part;
pub use found::{Found, look};
pub use publish::resume;

use publish::{Staging, Taken};
use scan::{Classes, Scanner};
use spill::{Content, Merged, Record, Sorter};

use super::exchange::Provenance;
use super::{Embedding, Manifest, Quarantined, Row, SourceRecord, StoreError, StoreWriter, Target};
use crate::events::{Event, Observer, Unit};

/// Memory in which rows are sorted, bytes, over all threads.
const MEMORY: usize = 128 << 20;

/// What is asked of an adoption.
#[derive(Clone, Debug, Default)]
pub struct AdoptOptions {
    /// Folder of the store; none is the engine's own, whose files then give way to the store's.
    pub features: Option<PathBuf>,
    /// Images that went in.
    pub rows: Option<usize>,
    /// Ids of the images that went in.
    pub ids: Option<Vec<String>>,
    /// Images that went in and did not come out are no error.
    pub allow_missing: bool,
    /// Class names; the index is the label.
    pub classes: Option<Vec<String>>,
}

/// What was adopted.
#[derive(Clone, Debug)]
pub struct Adopted {
    /// The store.
    pub manifest: Manifest,
    /// Its folder.
    pub features: PathBuf,
    /// Rows that were there more than once, with the same bits.
    pub repeated: usize,
    /// Images that went in and did not come out.
    pub missing: usize,
}

/// Makes a store of what was found, with features made as `provenance` says.
///
/// # Errors
/// When a file or a row is not what is expected, ids are missing or have two contents, or the store cannot be written. What the engine
/// wrote is as it was then.
pub fn adopt(
    found: &Found,
    provenance: &Provenance,
    options: &AdoptOptions,
    observe: Observer<'_>,
) -> Result<Adopted, AdoptError> {
    if !found.is_through && options.rows.is_none() && options.ids.is_none() {
        return Err(AdoptError::Unbounded(found.dir.clone()));
    }
    let target = options.features.as_deref().unwrap_or(&found.dir);
    let staging = Staging::open(target, options.features.is_none())?;
    let classes = Classes::default();
    let sorters = sort(found, provenance, &classes, staging.folder(), observe)?;
    let (names, labels) = classes.settle(options.classes.as_deref())?;
    let disk = |source| AdoptError::Store(StoreError::Write { path: staging.folder().to_owned(), source });
    let source = SourceRecord {
        name: found.dir.display().to_string(),
        kind: "rows of a cluster engine".to_owned(),
        fingerprint: String::new(),
        sorted_by_class: false,
    };
    let store = Target {
        dir: staging.store(),
        key_parts: provenance.key_parts.clone(),
        classes: names,
        dimension: provenance.dimension,
        segments: provenance.segments.clone(),
        source,
    };
    let mut filled = Filled::new(StoreWriter::open(store, false)?, options, labels);
    let mut merged = Merged::new(sorters).map_err(disk)?;
    let total = found.parts.iter().map(|part| part.rows as u64).sum();
    observe(Event::Started { task: WRITE, total: Some(total), unit: Unit::Images });
    let mut last: Option<Record> = None;
    let mut done = 0;
    while let Some(record) = merged.next().map_err(disk)? {
        done += 1;
        if done % 1024 == 0 {
            observe(Event::Advanced { task: WRITE, done });
        }
        match &last {
            Some(before) if !record.id.is_empty() && before.id == record.id && before.split == record.split => {
                if let Some(what) = difference(before, &record) {
                    return Err(AdoptError::Twice { split: record.split, id: record.id, what });
                }
                filled.repeated += 1;
            }
            _ => {
                if let Some(whole) = last.replace(record) {
                    filled.push(whole)?;
                }
            }
        }
    }
    if let Some(whole) = last {
        filled.push(whole)?;
    }
    observe(Event::Advanced { task: WRITE, done });
    observe(Event::Finished { task: WRITE });
    let (repeated, missing) = (filled.repeated, filled.check(&found.dir, options)?);
    let Filled { mut writer, rows, quarantined, changes, .. } = filled;
    writer.set_sorted_by_class(changes * 4 < rows);
    writer.finish(provenance.extraction(rows, quarantined))?;
    let relative = |part: &Part| part.path.strip_prefix(&found.dir).map(Path::to_owned).ok();
    let files = if options.features.is_none() { found.parts.iter().filter_map(relative).collect() } else { Vec::new() };
    staging.publish(Taken { files, repeated, missing })
}

const READ: &str = "read";
const WRITE: &str = "write";

/// Reads all files, each thread the next one, into sorted runs.
fn sort(
    found: &Found,
    provenance: &Provenance,
    classes: &Classes,
    folder: &Path,
    observe: Observer<'_>,
) -> Result<Vec<Sorter>, AdoptError> {
    let threads = rayon::current_num_threads().min(found.parts.len()).max(1);
    let scanner = Scanner::new(&provenance.key_parts, provenance.dimension, found.key(), classes);
    let disk = |source: io::Error| AdoptError::Store(StoreError::Write { path: folder.to_owned(), source });
    let total = found.parts.iter().map(|part| part.rows as u64).sum();
    observe(Event::Started { task: READ, total: Some(total), unit: Unit::Images });
    let (files, done) = (Mutex::new(found.parts.iter()), AtomicUsize::new(0));
    let work = || -> Result<Sorter, AdoptError> {
        let mut sorter = Sorter::new(folder, MEMORY / threads).map_err(disk)?;
        loop {
            let next = files.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(part) = next else { return Ok(sorter) };
            scanner.read(part, &mut |record| {
                let done = done.fetch_add(1, Ordering::Relaxed) + 1;
                if done % 1024 == 0 {
                    observe(Event::Advanced { task: READ, done: done as u64 });
                }
                sorter.push(&record).map_err(disk)
            })?;
        }
    };
    let sorters = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let stopped = || AdoptError::file(&found.dir, "a file could not be read: its thread stopped unexpectedly");
        workers.into_iter().map(|worker| worker.join().map_err(|_| stopped())?).collect::<Result<Vec<_>, _>>()
    });
    observe(Event::Advanced { task: READ, done: done.load(Ordering::Relaxed) as u64 });
    observe(Event::Finished { task: READ });
    sorters
}

/// In what two rows of one image differ; none where they are the same.
fn difference(one: &Record, other: &Record) -> Option<&'static str> {
    let bits = |record: &Record| match &record.content {
        Content::Embedding(values) => Some(values.iter().map(|value| value.to_bits()).collect::<Vec<_>>()),
        Content::Error(_) => None,
    };
    let checks = [
        ("their content_hash", one.hash == other.hash),
        ("their label", (one.label, one.class) == (other.label, other.class)),
        ("their embedding", bits(one) == bits(other)),
    ];
    checks.into_iter().find(|(_, same)| !same).map(|(what, _)| what)
}

/// The store that is being filled.
struct Filled {
    writer: StoreWriter,
    /// Of each class name, by its number.
    labels: Vec<i32>,
    /// Ids that are expected, by a hash, and whether each came.
    expected: Option<HashMap<[u8; 16], bool>>,
    unasked: usize,
    an_unasked: String,
    images: usize,
    rows: usize,
    quarantined: usize,
    repeated: usize,
    /// How often a row has another label than the one before.
    changes: usize,
    last_label: Option<i32>,
}

impl Filled {
    fn new(writer: StoreWriter, options: &AdoptOptions, labels: Vec<i32>) -> Self {
        let expected = options.ids.as_ref().map(|ids| ids.iter().map(|id| (short_hash(id), false)).collect());
        Self {
            writer,
            labels,
            expected,
            unasked: 0,
            an_unasked: String::new(),
            images: 0,
            rows: 0,
            quarantined: 0,
            repeated: 0,
            changes: 0,
            last_label: None,
        }
    }

    fn push(&mut self, record: Record) -> Result<(), StoreError> {
        let Record { split, id, label, class, width, height, hash, content } = record;
        self.images += 1;
        if let Some(expected) = &mut self.expected {
            match expected.get_mut(&short_hash(&id)) {
                Some(came) => *came = true,
                None => {
                    self.unasked += 1;
                    self.an_unasked.clone_from(&id);
                }
            }
        }
        let content_hash = hash.map(|hash| blake3::Hash::from_bytes(hash).to_hex().to_string());
        match content {
            Content::Embedding(values) => {
                let label = label.or_else(|| self.labels.get(class? as usize).copied());
                self.changes += usize::from(self.last_label != label);
                self.last_label = label;
                self.rows += 1;
                let row = Row { id, label, content_hash: content_hash.unwrap_or_default(), width, height };
                self.writer.push(&split, row, Embedding::New(values))
            }
            Content::Error(error) => {
                self.quarantined += 1;
                self.writer.quarantine(Quarantined { id, split, error, content_hash });
                Ok(())
            }
        }
    }

    /// Images that are missing, where that is allowed.
    fn check(&self, dir: &Path, options: &AdoptOptions) -> Result<usize, AdoptError> {
        let dir = dir.to_owned();
        let missing = |missing: usize, reason: String| match missing {
            0 => Ok(0),
            missing if options.allow_missing => Ok(missing),
            _ => Err(AdoptError::Missing { dir: dir.clone(), reason }),
        };
        if self.unasked > 0 {
            let reason = format!("{} images are not in the list of --ids, {} for one", self.unasked, self.an_unasked);
            return Err(AdoptError::Unasked { dir, reason });
        }
        if let Some(rows) = options.rows {
            if self.images > rows {
                let reason = format!("{} images are here, and {rows} were expected", self.images);
                return Err(AdoptError::Unasked { dir, reason });
            }
            missing(rows - self.images, format!("{} images are here, and {rows} were expected", self.images))?;
        }
        let absent = |expected: &HashMap<[u8; 16], bool>| {
            let ids = options.ids.iter().flatten();
            let mut absent = ids.filter(|id| expected.get(&short_hash(id)) == Some(&false)).peekable();
            let one = absent.peek().map(|id| (*id).clone()).unwrap_or_default();
            (absent.count(), one)
        };
        match self.expected.as_ref().map(absent) {
            Some((count, one)) => missing(count, format!("{count} images of the list did not come, {one} for one")),
            None => Ok(options.rows.map_or(0, |rows| rows - self.images)),
        }
    }
}

/// Ids are long and many; two with the same 128 bits do not happen.
fn short_hash(id: &str) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&blake3::hash(id.as_bytes()).as_bytes()[..16]);
    half
}

/// The lines of a file of ids or of class names.
///
/// # Errors
/// When it cannot be read as text.
pub fn lines(path: &Path) -> Result<Vec<String>, AdoptError> {
    let unread = |error| AdoptError::file(path, format!("cannot be read ({error}); name a text file with an entry in each line"));
    let text = fs::read_to_string(path).map_err(unread)?;
    Ok(text.lines().map(|line| line.trim_end_matches('\r').to_owned()).filter(|line| !line.is_empty()).collect())
}
