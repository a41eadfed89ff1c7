//! A store whose slices were made by jobs of their own: a folder each, read as one store.
//!
//! ```text
//! features/NAME/
//!   slice-00001-of-00004/   a store of its own: store.json, train/part-00000.parquet, ...
//!   slice-00002-of-00004/
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use super::{Extraction, Manifest, ShardRecord, StoreError};

/// The folder of slice `number` (1 is the first) of `of`.
pub fn slice_folder(number: usize, of: usize) -> String {
    format!("slice-{number:05}-of-{of:05}")
}

fn parse(name: &str) -> Option<(usize, usize)> {
    let (number, of) = name.strip_prefix("slice-")?.split_once("-of-")?;
    Some((number.parse().ok()?, of.parse().ok()?))
}

/// What the slices are together.
pub(super) struct Union {
    /// One manifest for all; its shards are named from the folder that holds the slices.
    pub(super) manifest: Manifest,
    /// Folders of the finished slices.
    pub(super) folders: Vec<String>,
    /// Numbers of the slices that are not there or not finished.
    pub(super) missing: Vec<usize>,
    /// Slices that there should be.
    pub(super) of: usize,
}

/// How many slices a store in this folder is made in; none where there is no slice.
///
/// # Errors
/// When they are slices of different numbers.
pub fn slices_in(dir: &Path) -> Result<Option<usize>, StoreError> {
    Ok(find(dir)?.map(|found| found.of))
}

/// The slices in a folder.
struct Found {
    /// How many there should be.
    of: usize,
    /// Their folders, by number.
    names: BTreeMap<usize, String>,
}

fn find(dir: &Path) -> Result<Option<Found>, StoreError> {
    let Ok(entries) = dir.read_dir() else { return Ok(None) };
    let mut found: Option<Found> = None;
    for entry in entries {
        let name = entry.map_err(StoreError::io(dir))?.file_name().to_string_lossy().into_owned();
        let Some((number, of)) = parse(&name) else { continue };
        let found = found.get_or_insert_with(|| Found { of, names: BTreeMap::new() });
        if found.of != of {
            let reason = format!("slices of {} and slices of {}", of.min(found.of), of.max(found.of));
            return Err(StoreError::Slices { dir: dir.to_owned(), reason });
        }
        found.names.insert(number, name);
    }
    Ok(found)
}

/// Reads the slices in a folder; none where it has none.
///
/// # Errors
/// When they do not belong together, or none is finished.
pub(super) fn read(dir: &Path) -> Result<Option<Union>, StoreError> {
    let Some(Found { of, names }) = find(dir)? else { return Ok(None) };
    let apart = |reason: String| StoreError::Slices { dir: dir.to_owned(), reason };
    let mut union: Option<Union> = None;
    let mut missing = Vec::new();
    for number in 1..=of {
        let manifest = names.get(&number).map(|name| (name, Manifest::read(&dir.join(name))));
        let (name, mut manifest) = match manifest {
            Some((name, Ok(manifest))) if manifest.complete => (name, manifest),
            None | Some((_, Ok(_) | Err(StoreError::Missing(_)))) => {
                missing.push(number);
                continue;
            }
            Some((_, Err(error))) => return Err(error),
        };
        for shard in manifest.shards.iter_mut().chain(&mut manifest.removed) {
            shard.file = format!("{name}/{}", shard.file);
        }
        match &mut union {
            None => union = Some(Union { manifest, folders: vec![name.clone()], missing: Vec::new(), of }),
            Some(union) => {
                let differences = union.manifest.key_parts.differences(&manifest.key_parts);
                if let Some(difference) = differences.first() {
                    return Err(apart(format!("{name} was made with other settings than the slices before it ({difference})")));
                }
                if union.manifest.classes != manifest.classes {
                    return Err(apart(format!("{name} has another class list than the slices before it")));
                }
                union.folders.push(name.clone());
                add(&mut union.manifest, manifest);
            }
        }
    }
    let mut union = union.ok_or_else(|| StoreError::Incomplete(dir.to_owned()))?;
    in_order(&mut union.manifest.shards);
    union.missing = missing;
    Ok(Some(union))
}

fn add(all: &mut Manifest, part: Manifest) {
    all.shards.extend(part.shards);
    all.removed.extend(part.removed);
    all.quarantined += part.quarantined;
    // Jobs may have run one after the other or all at once: the longest says how long it took at least.
    if let (Some(all), Some(part)) = (&mut all.extraction, part.extraction) {
        let Extraction { rows, new, changed, reused, removed, quarantined, seconds, stages, splits, .. } = part;
        all.rows += rows;
        all.new += new;
        all.changed += changed;
        all.reused += reused;
        all.removed += removed;
        all.quarantined += quarantined;
        all.stages += stages;
        all.seconds = all.seconds.max(seconds);
        all.images_per_second = all.new as f64 / all.seconds.max(1e-9);
        for split in splits {
            match all.splits.iter_mut().find(|known| known.split == split.split) {
                Some(known) => {
                    known.rows += split.rows;
                    known.seconds = known.seconds.max(split.seconds);
                }
                None => all.splits.push(split),
            }
        }
    }
}

/// The splits in the order of the first slice, in each the slices in theirs.
fn in_order(shards: &mut [ShardRecord]) {
    let mut order: Vec<String> = Vec::new();
    for shard in shards.iter() {
        if !order.contains(&shard.split) {
            order.push(shard.split.clone());
        }
    }
    shards.sort_by_key(|shard| order.iter().position(|split| *split == shard.split));
}
