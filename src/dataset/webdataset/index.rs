//! What going through a shard found, remembered for shards that are far away: going through one again would fetch most of it, and a
//! source that has not changed should cost nothing.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::files::{SourceFile, slashed};
use super::super::place::{Place, Stamp};
use super::super::{DatasetError, SourceOptions};
use super::{Notes, Sample};
use crate::persist::persist;

/// Another version reads members otherwise.
const VERSION: u32 = 1;

/// Everything that opening needs of one shard.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Index {
    pub(super) samples: Vec<Sample>,
    pub(super) notes: Notes,
}

/// The index of a shard: the remembered one where the shard is far away and unchanged, otherwise a new one.
pub(super) fn of(
    file: &SourceFile,
    options: &SourceOptions,
    cache: Option<&Path>,
    make: impl FnOnce() -> Result<Index, DatasetError>,
) -> Result<Index, DatasetError> {
    let Some(path) = cache.and_then(|cache| place(file, options, cache)) else { return make() };
    // A damaged memory is as good as none.
    if let Some(index) = fs::read(&path).ok().and_then(|content| serde_json::from_slice(&content).ok()) {
        return Ok(index);
    }
    let index = make()?;
    let written = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| {
        let content = serde_json::to_vec(&index)?;
        persist(&path, |file| file.write_all(&content))
    });
    if let Err(error) = written {
        tracing::warn!(target: "tlpipe::remote", "{}: {error}; the shard is gone through again next time", path.display());
    }
    Ok(index)
}

/// Where the index of a shard is remembered; none where nothing would tell that the shard has changed.
fn place(file: &SourceFile, options: &SourceOptions, cache: &Path) -> Option<PathBuf> {
    let Place::Object(_) = &file.place else { return None };
    let Stamp { shown, bytes, nanoseconds, tag } = file.place.stamp();
    let tag = tag.unwrap_or_default();
    if tag.is_empty() && nanoseconds == 0 {
        return None;
    }
    let parts = (VERSION, shown, bytes, nanoseconds.to_string(), tag, slashed(&file.relative), options);
    let key = blake3::hash(&serde_json::to_vec(&parts).ok()?);
    Some(cache.join("shards").join(format!("{}.json", key.to_hex())))
}
