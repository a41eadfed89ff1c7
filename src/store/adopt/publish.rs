//! The last steps of an adoption: from a folder beside the engine's files to their place.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::found::SUCCESS;
use super::{AdoptError, Adopted};
use crate::persist::persist;
use crate::store::manifest::MANIFEST;
use crate::store::{Manifest, StoreError, writer};

/// Where the store is made; names that begin with a dot are none of the engine's.
const STAGING: &str = ".adopting";
/// There once the store in the staging folder is whole.
const TAKEN: &str = "taken.json";

/// What is left to be done when the store is whole.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Taken {
    /// Files whose rows the store holds, and which go; from its folder.
    pub(super) files: Vec<PathBuf>,
    pub(super) repeated: usize,
    pub(super) missing: usize,
}

/// A store in the making, beside its place.
pub(super) struct Staging {
    target: PathBuf,
    folder: PathBuf,
    // Held for its lock.
    _lock: File,
}

impl Staging {
    /// Begins anew: what an adoption that died before its end left is removed.
    ///
    /// # Errors
    /// When the place holds a store or something else, cannot be written, or another process works there.
    pub(super) fn open(target: &Path, in_place: bool) -> Result<Self, AdoptError> {
        fs::create_dir_all(target).map_err(|source| StoreError::Folder { path: target.into(), source })?;
        if target.join(MANIFEST).exists() {
            return Err(AdoptError::Already(target.into()));
        }
        if !in_place && writer::is_foreign(target, &[STAGING])? {
            return Err(StoreError::Foreign(target.into()).into());
        }
        let staging = Self { target: target.into(), folder: target.join(STAGING), _lock: writer::lock(target)? };
        remove(&staging.folder)?;
        fs::create_dir(&staging.folder).map_err(|source| StoreError::Folder { path: staging.folder.clone(), source })?;
        Ok(staging)
    }

    /// Where what is temporary goes.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the store is made.
    pub(super) fn store(&self) -> PathBuf {
        self.folder.join("store")
    }

    /// Brings the whole store to its place.
    pub(super) fn publish(self, taken: Taken) -> Result<Adopted, AdoptError> {
        let path = self.folder.join(TAKEN);
        let text = serde_json::to_vec(&taken).map_err(|error| AdoptError::file(&path, error))?;
        persist(&path, |file| file.write_all(&text)).map_err(StoreError::write(&path))?;
        self.finish(taken)
    }

    /// The steps of publishing that are not done yet; each may have been done before.
    fn finish(self, taken: Taken) -> Result<Adopted, AdoptError> {
        let (store, target) = (self.store(), &self.target);
        if store.join(MANIFEST).is_file() {
            let manifest = Manifest::read(&store)?;
            for file in manifest.shards.iter().map(|shard| shard.file.as_str()).chain(["quarantine.parquet", MANIFEST]) {
                rename(&store.join(file), &target.join(file))?;
            }
        }
        let manifest = Manifest::read(target)?;
        let shards: Vec<PathBuf> = manifest.shards.iter().map(|shard| target.join(&shard.file)).collect();
        for file in taken.files.iter().map(|file| target.join(file)) {
            // A shard may have taken the place of a file.
            if !shards.contains(&file) {
                remove_file(&file)?;
                remove_file(&checksum(&file))?;
                // Where it was the last of its folder.
                let _ = file.parent().filter(|folder| folder != target).map(fs::remove_dir);
            }
        }
        if !taken.files.is_empty() {
            let success = target.join(SUCCESS);
            remove_file(&success)?;
            remove_file(&checksum(&success))?;
        }
        remove(&self.folder)?;
        Ok(Adopted { manifest, features: self.target.clone(), repeated: taken.repeated, missing: taken.missing })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // What failed leaves nothing; what is whole is finished by the next call.
        if !self.folder.join(TAKEN).exists() {
            let _ = remove(&self.folder);
        }
    }
}

/// Finishes an adoption that died once its store was whole; none where there is no such thing.
///
/// # Errors
/// When there is a store already, the files cannot be brought to their place, or another process does it.
pub fn resume(target: &Path) -> Result<Option<Adopted>, AdoptError> {
    let folder = target.join(STAGING);
    let path = folder.join(TAKEN);
    if !path.is_file() {
        return if target.join(MANIFEST).exists() { Err(AdoptError::Already(target.into())) } else { Ok(None) };
    }
    let staging = Staging { target: target.into(), folder, _lock: writer::lock(target)? };
    let text = fs::read(&path).map_err(StoreError::io(&path))?;
    let taken = serde_json::from_slice(&text).map_err(|error| AdoptError::file(&path, error))?;
    staging.finish(taken).map(Some)
}

/// Hadoop's checksum of a file.
fn checksum(file: &Path) -> PathBuf {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    file.with_file_name(format!(".{name}.crc"))
}

/// Renames a file over whatever is there, unless it was renamed before.
fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).map_err(StoreError::write(folder))?;
    }
    if !from.exists() {
        return Ok(());
    }
    fs::rename(from, to).map_err(StoreError::write(to))?;
    if let Some(folder) = to.parent().and_then(|folder| File::open(folder).ok()) {
        // Not every file system can sync a folder; the rename stands without it.
        let _ = folder.sync_all();
    }
    Ok(())
}

fn remove_file(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(StoreError::write(path)(error)),
        _ => Ok(()),
    }
}

fn remove(folder: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(StoreError::write(folder)(error)),
        _ => Ok(()),
    }
}
