//! Making and updating a store.

mod removed;

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use rayon::prelude::*;

use super::layout::{Dtype, Layout, Reading};
use super::manifest::{MANIFEST, REBUILD};
use super::{
    Extraction, Index, KeyParts, KnownRow, Manifest, OldRow, Quarantined, Row, STORE_SCHEMA, Segment, ShardRecord, SourceRecord,
    StoreError, pages, quarantine, shard, slices,
};

/// What a store is to hold.
#[derive(Clone, Debug)]
pub struct Target {
    /// The folder.
    pub dir: PathBuf,
    /// What the features depend on.
    pub key_parts: KeyParts,
    /// Class names; the index is the label.
    pub classes: Vec<String>,
    /// Width D of an embedding.
    pub dimension: usize,
    /// The tensors that make it; none stand for one.
    pub segments: Vec<Segment>,
    /// Where the images come from.
    pub source: SourceRecord,
}

/// An embedding for a row.
#[derive(Clone, Debug)]
pub enum Embedding {
    /// Computed now: D values of each view, view after view.
    New(Vec<f32>),
    /// Taken over.
    Reused(OldRow),
}

/// Writes a store, shard by shard. One process at a time.
#[derive(Debug)]
pub struct StoreWriter {
    dir: PathBuf,
    manifest: Manifest,
    layout: Layout,
    /// Recorded earlier, by `OldRow::shard`; none once its rows stand in the new state.
    old: Vec<ShardRecord>,
    index: Arc<Index>,
    same_classes: bool,
    damaged: Vec<String>,
    /// Whether each row that was recorded earlier stands in the new state, shard by shard.
    taken: Vec<Vec<bool>>,
    split: String,
    rows: Vec<Row>,
    embeddings: Vec<Embedding>,
    quarantine: Vec<Quarantined>,
    /// The shard that is being written; it is recorded with the first row after that, at the latest when the next one is due.
    under_way: Option<JoinHandle<Result<ShardRecord, StoreError>>>,
    /// What `store.json` records while features are made anew beside it.
    standing: Vec<PathBuf>,
    /// The last shards whose embeddings were read for reuse; of each view.
    read: Vec<(usize, Vec<Vec<f32>>)>,
    // Held for its lock: the system frees it when the process ends, however it ends.
    _lock: File,
}

impl StoreWriter {
    /// Opens a folder for writing and takes its lock. What is recorded there under the same key is kept for reuse; under
    /// another key it is refused. With `rebuild` the features are made anew whatever is there: what is recorded stands until
    /// the new features are finished, and a rebuild that was stopped goes on.
    ///
    /// # Errors
    /// When the folder cannot be written, is locked, holds something else, or holds features of another key.
    pub fn open(target: Target, rebuild: bool) -> Result<Self, StoreError> {
        let dir = target.dir;
        let unwritable = |source| StoreError::Folder { path: dir.clone(), source };
        fs::create_dir_all(&dir).map_err(unwritable)?;
        let mut standing = Vec::new();
        let previous = match Manifest::read(&dir) {
            Ok(recorded) if rebuild && recorded.complete => {
                standing = recorded.shards.iter().map(|shard| dir.join(&shard.file)).collect();
                Manifest::read_as(&dir, REBUILD).ok().filter(|draft| draft.key_parts == target.key_parts)
            }
            Ok(_) | Err(StoreError::Damaged { .. }) if rebuild => None,
            Ok(manifest) if manifest.key_parts == target.key_parts => Some(manifest),
            // An extraction that failed before its first row binds nobody.
            Ok(manifest) if manifest.shards.is_empty() && manifest.retired.is_empty() => None,
            Ok(manifest) => {
                let differences = manifest.key_parts.differences(&target.key_parts);
                return Err(StoreError::OtherKey { dir, differences });
            }
            Err(StoreError::Missing(_)) if slices::slices_in(&dir)?.is_some() => return Err(StoreError::InSlices(dir)),
            Err(StoreError::Missing(_)) if is_foreign(&dir, &[])? => return Err(StoreError::Foreign(dir)),
            Err(StoreError::Missing(_)) => None,
            Err(error) => return Err(error),
        };
        let lock = lock(&dir)?;
        let same_classes = previous.as_ref().is_some_and(|manifest| manifest.classes == target.classes);
        let mut kept = Vec::new();
        let recorded = previous.map(|manifest| {
            kept = manifest.removed;
            kept.retain(|shard| dir.join(&shard.file).is_file());
            [manifest.shards, manifest.retired].concat()
        });
        let recorded = recorded.unwrap_or_default();
        let (old, rows, damaged) = whole_shards(&dir, recorded);
        let manifest = Manifest {
            schema: STORE_SCHEMA,
            key: target.key_parts.key(),
            key_parts: target.key_parts,
            dimension: target.dimension,
            segments: target.segments,
            classes: target.classes,
            source: target.source,
            complete: false,
            shards: Vec::new(),
            retired: old.clone(),
            removed: kept,
            quarantined: 0,
            extraction: None,
        };
        let writer = Self {
            index: Arc::new(Index::new(&old, rows)?),
            dir,
            layout: Layout::of(&manifest),
            manifest,
            taken: old.iter().map(|record| vec![false; record.rows]).collect(),
            old,
            same_classes,
            damaged,
            split: String::new(),
            rows: Vec::new(),
            embeddings: Vec::new(),
            quarantine: Vec::new(),
            under_way: None,
            standing,
            read: Vec::new(),
            _lock: lock,
        };
        writer.record()?;
        if writer.standing.is_empty() {
            writer.remove_rebuild()?;
        }
        writer.remove_unrecorded()?;
        Ok(writer)
    }

    /// The rows that can be reused.
    pub fn index(&self) -> Arc<Index> {
        Arc::clone(&self.index)
    }

    /// Recorded shards that were found damaged and whose rows are made anew: file and reason.
    pub fn damaged(&self) -> &[String] {
        &self.damaged
    }

    /// Adds a row. Rows of one split come one after the other, in the order of the source.
    ///
    /// # Errors
    /// When a full shard cannot be written, or a value is larger than the store's numbers can be.
    pub fn push(&mut self, split: &str, row: Row, embedding: Embedding) -> Result<(), StoreError> {
        if self.under_way.as_ref().is_some_and(JoinHandle::is_finished) {
            self.settle()?;
        }
        if let (Dtype::Float16, Embedding::New(values)) = (self.layout.dtype, &embedding)
            // Without a way out of the loop, which is many values at once.
            && values.iter().fold(false, |found, value| found | (value.abs() > Dtype::MOST))
            && let Some(&value) = values.iter().find(|value| value.abs() > Dtype::MOST)
        {
            return Err(StoreError::TooLarge { split: split.into(), id: row.id, value });
        }
        if self.split != split {
            self.flush()?;
            self.split = split.into();
        }
        if let Embedding::Reused(place) = &embedding {
            self.taken[place.shard][place.row] = true;
        }
        self.rows.push(row);
        self.embeddings.push(embedding);
        if self.rows.len() == shard::rows_per_shard(&self.layout) { self.flush() } else { Ok(()) }
    }

    /// Notes whether rows may stand in order of class, where that shows only as they come.
    pub(super) fn set_sorted_by_class(&mut self, sorted: bool) {
        self.manifest.source.sorted_by_class = sorted;
    }

    /// Notes an image that could not be used.
    pub fn quarantine(&mut self, image: Quarantined) {
        self.quarantine.push(image);
    }

    /// Records the rows in hand as a short shard, so that nothing is lost; the next run goes on from here.
    ///
    /// # Errors
    /// When the shard cannot be written.
    pub fn pause(mut self) -> Result<(), StoreError> {
        self.complete()
    }

    /// Records the rows in hand and waits until they are on the disk.
    ///
    /// # Errors
    /// When a shard cannot be written.
    pub fn complete(&mut self) -> Result<(), StoreError> {
        self.flush()?;
        self.settle()
    }

    /// Records the last rows and declares the store finished.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn finish(mut self, extraction: Extraction) -> Result<Manifest, StoreError> {
        self.complete()?;
        self.keep_removed()?;
        quarantine::write(&self.dir.join("quarantine.parquet"), &self.quarantine)?;
        self.manifest.quarantined = self.quarantine.len();
        self.manifest.extraction = Some(extraction);
        self.manifest.retired.clear();
        self.manifest.complete = true;
        self.standing.clear();
        self.record()?;
        self.remove_rebuild()?;
        self.remove_unrecorded()?;
        Ok(self.manifest.clone())
    }

    /// Begins to write the rows in hand as one shard; a shard that would come out as it was is kept.
    fn flush(&mut self) -> Result<(), StoreError> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let rows = std::mem::take(&mut self.rows);
        let embeddings = std::mem::take(&mut self.embeddings);
        if let Some(shard) = self.unchanged(&rows, &embeddings) {
            self.settle()?;
            return self.add(self.old[shard].clone());
        }
        let embeddings = self.values(embeddings)?;
        self.settle()?;
        let draft = shard::Draft {
            dir: self.dir.clone(),
            key: self.manifest.key.clone(),
            classes: self.manifest.classes.clone(),
            layout: self.layout.clone(),
            split: self.split.clone(),
            file: self.next_file(&self.split),
            rows,
            embeddings,
        };
        // Encoding and syncing must not keep the images waiting.
        let thread = std::thread::Builder::new().name("shard".into()).spawn(|| shard::write(draft));
        self.under_way = Some(thread.map_err(StoreError::write(&self.dir))?);
        Ok(())
    }

    /// Waits for the shard that is being written, and records it.
    fn settle(&mut self) -> Result<(), StoreError> {
        let Some(thread) = self.under_way.take() else { return Ok(()) };
        let failed = |_| StoreError::damaged(&self.dir, "a shard could not be written: its thread stopped unexpectedly");
        let record = thread.join().map_err(failed)??;
        self.add(record)
    }

    fn add(&mut self, record: ShardRecord) -> Result<(), StoreError> {
        self.manifest.retired.retain(|shard| shard.file != record.file);
        self.manifest.shards.push(record);
        self.record()
    }

    fn record(&self) -> Result<(), StoreError> {
        self.manifest.write_as(&self.dir, if self.standing.is_empty() { MANIFEST } else { REBUILD })
    }

    fn remove_rebuild(&self) -> Result<(), StoreError> {
        let path = self.dir.join(REBUILD);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(StoreError::write(&path)(error)),
            _ => Ok(()),
        }
    }

    /// The recorded shard that holds exactly these rows, if there is one.
    fn unchanged(&self, rows: &[Row], embeddings: &[Embedding]) -> Option<usize> {
        let Some(Embedding::Reused(first)) = embeddings.first() else { return None };
        // Ids and contents are the same, or these would not be its embeddings.
        let labels = || self.index.shard(first.shard).iter().map(|known| known.label).eq(rows.iter().map(|row| row.label));
        let whole = self.same_classes && self.old[first.shard].split == self.split && labels();
        let in_order = |(row, embedding): (usize, &Embedding)| matches!(embedding, Embedding::Reused(place) if *place == OldRow { shard: first.shard, row });
        (whole && embeddings.iter().enumerate().all(in_order)).then_some(first.shard)
    }

    /// The values of each row: D of each view, view after view.
    fn values(&mut self, embeddings: Vec<Embedding>) -> Result<Vec<Vec<f32>>, StoreError> {
        let (mut values, mut reused) = (Vec::with_capacity(embeddings.len()), Vec::new());
        for (at, embedding) in embeddings.into_iter().enumerate() {
            values.push(match embedding {
                Embedding::New(new) => new,
                Embedding::Reused(place) => {
                    reused.push((place, at));
                    Vec::new()
                }
            });
        }
        // Each old shard is read once, whatever the order in which its rows are wanted.
        reused.sort_unstable();
        for (place, at) in reused {
            values[at] = self.old_values(place)?;
        }
        Ok(values)
    }

    /// The values of a row that was recorded earlier, as [`Embedding::New`] has them.
    fn old_values(&mut self, OldRow { shard, row }: OldRow) -> Result<Vec<f32>, StoreError> {
        let dimension = self.layout.dimension;
        let views = self.old_embeddings(shard)?.iter();
        Ok(views.flat_map(|values| &values[row * dimension..][..dimension]).copied().collect())
    }

    fn old_embeddings(&mut self, shard: usize) -> Result<&[Vec<f32>], StoreError> {
        // Rows keep their order, so neighbours come from the same two shards.
        const KEPT: usize = 2;
        if let Some(at) = self.read.iter().position(|(read, _)| *read == shard) {
            return Ok(&self.read[at].1);
        }
        if self.read.len() == KEPT {
            self.read.remove(0);
        }
        let (record, layout) = (&self.old[shard], &self.layout);
        let content = shard::read(&self.dir, record)?;
        let path = self.dir.join(&record.file);
        let view = |view: usize| {
            let mut values = vec![0.0; record.rows * layout.dimension];
            pages::embeddings(&path, record, &content, layout, Reading::View(view), &mut values).map(|()| values)
        };
        let views = (0..layout.views()).map(view).collect::<Result<_, _>>()?;
        self.read.push((shard, views));
        Ok(&self.read[self.read.len() - 1].1)
    }

    /// A name that no recorded shard has: recorded files are never overwritten.
    fn next_file(&self, split: &str) -> String {
        let safe = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '_' };
        let folder: String = split.chars().map(safe).collect();
        let taken = |file: &str| {
            let name = file.strip_prefix(&folder)?.strip_prefix("/part-")?.strip_suffix(".parquet")?;
            name.parse::<usize>().ok()
        };
        let manifest = &self.manifest;
        let recorded = manifest.shards.iter().chain(&manifest.retired).chain(&manifest.removed).map(|shard| shard.file.as_str());
        let standing = self.standing.iter().filter_map(|path| path.strip_prefix(&self.dir).ok()?.to_str());
        let number = recorded.chain(standing).filter_map(taken).max().map_or(0, |last| last + 1);
        format!("{folder}/part-{number:05}.parquet")
    }

    /// Removes what a process that died left behind: shards that were not recorded, temporary files.
    fn remove_unrecorded(&self) -> Result<(), StoreError> {
        let recorded: HashSet<PathBuf> = [&self.manifest.shards, &self.manifest.retired, &self.manifest.removed]
            .into_iter()
            .flatten()
            .map(|shard| self.dir.join(&shard.file))
            .chain(self.standing.iter().cloned())
            .collect();
        for entry in list(&self.dir)? {
            if is_temporary(&entry) {
                fs::remove_file(&entry).map_err(StoreError::write(&entry))?;
            }
            if !entry.is_dir() {
                continue;
            }
            for file in list(&entry)? {
                let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                let shard = name.starts_with("part-") && name.ends_with(".parquet") && !recorded.contains(&file);
                if shard || is_temporary(&file) {
                    fs::remove_file(&file).map_err(StoreError::write(&file))?;
                }
            }
        }
        Ok(())
    }
}

impl Drop for StoreWriter {
    fn drop(&mut self) {
        // Whoever gave up may remove the folder next: nothing is written there any more.
        if let Some(thread) = self.under_way.take() {
            let _ = thread.join();
        }
    }
}

/// Keeps the shards that are as recorded, with their rows; says what is wrong with the others.
fn whole_shards(dir: &Path, recorded: Vec<ShardRecord>) -> (Vec<ShardRecord>, Vec<Vec<KnownRow>>, Vec<String>) {
    let checked: Vec<Result<(ShardRecord, Vec<KnownRow>), String>> = recorded
        .into_par_iter()
        .map(|record| {
            let rows = shard::read(dir, &record).and_then(|content| shard::rows(dir, &record, content));
            let known = rows.map_err(|error| error.reason())?.iter().map(KnownRow::new).collect::<Result<_, _>>();
            known.map(|known| (record.clone(), known)).map_err(|reason| format!("{}: {reason}", dir.join(&record.file).display()))
        })
        .collect();
    let (mut shards, mut rows, mut damaged) = (Vec::new(), Vec::new(), Vec::new());
    for shard in checked {
        match shard {
            Ok((record, described)) => {
                shards.push(record);
                rows.push(described);
            }
            Err(reason) => damaged.push(reason),
        }
    }
    (shards, rows, damaged)
}

pub(super) fn lock(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join(".lock");
    let file = File::create(&path).map_err(|source| StoreError::Folder { path: dir.into(), source })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(StoreError::Locked(dir.into())),
        Err(fs::TryLockError::Error(error)) => Err(StoreError::write(&path)(error)),
    }
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let entries = fs::read_dir(dir).map_err(StoreError::io(dir))?;
    entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>().map_err(StoreError::io(dir))
}

fn is_temporary(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(".tmp-"))
}

/// Whether a folder without a manifest holds anything that a store does not, nor is named among `others`.
pub(super) fn is_foreign(dir: &Path, others: &[&str]) -> Result<bool, StoreError> {
    let named = |path: &Path, wanted: fn(&str) -> bool| path.file_name().and_then(|name| name.to_str()).is_some_and(wanted);
    let shard = |path: &PathBuf| named(path, |name| name.starts_with("part-") && name.ends_with(".parquet"));
    let ours = |path: &PathBuf| {
        let split = || list(path).is_ok_and(|files| files.iter().all(|file| shard(file) || is_temporary(file)));
        let file = |name: &str| [".lock", REBUILD, "quarantine.parquet"].contains(&name);
        let other = || others.iter().any(|other| path.ends_with(other));
        is_temporary(path) || other() || if path.is_dir() { split() } else { named(path, file) }
    };
    Ok(!list(dir)?.iter().all(ours))
}

#[cfg(test)]
mod tests;
