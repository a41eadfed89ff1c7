//! The feature store: pooled embeddings of every usable image, in Parquet that any tool opens.
//!
//! ```text
//! features/NAME/
//!   store.json                  the manifest: key and its parts, shards with rows and hashes, figures of the extraction
//!   train/part-00000.parquet    one shard: up to 1,024 rows
//!   test/part-00000.parquet
//!   removed/part-00000.parquet  features of images that went or changed, for heads that are brought up to date
//!   quarantine.parquet          the images that could not be used, each with its reason
//! ```
//!
//! A row is an image. `embedding` is that of the image as it is; where it was seen in further views, each has a column of its own
//! (`embedding_hflip`, …). What is read of several views is their mean unless one is asked for: a linear head on the mean
//! gives the mean of the logits that it would give to each.
//!
//! A shard is written under a temporary name, synced, renamed, then recorded in the manifest: a shard that is not recorded
//! does not exist. An update never overwrites a recorded shard, so a process that dies at any moment loses at most the
//! shard in hand; the next one finds every recorded row by its id and content hash.

pub mod adopt;
pub mod exchange;
#[cfg(test)]
pub(crate) mod fixture;
mod index;
mod key;
mod layout;
mod manifest;
mod pages;
pub(crate) mod quarantine;
mod reader;
mod shard;
mod slices;
mod stream;
#[cfg(test)]
mod tests;
mod writer;

use std::path::{Path, PathBuf};

pub use index::{Index, KnownRow, OldRow};
pub use key::KeyParts;
pub use layout::{Dtype, Transform, as_read};
pub use manifest::{Drift, Extraction, Manifest, Segment, ShardRecord, SourceRecord, SplitFigures, StageSeconds, depths};
pub use quarantine::Quarantined;
pub use reader::{Place, SplitFeatures, Store};
pub use shard::Row;
pub use slices::{slice_folder, slices_in};
pub use stream::StreamedFeatures;
pub use writer::{Embedding, StoreWriter, Target};

/// Version of the store's layout; part of the key.
pub const STORE_SCHEMA: u32 = 1;

/// Folder of the features of images that went or changed.
const REMOVED: &str = "removed";

/// What can go wrong with a feature store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file of the store could not be read.
    #[error("{path}: cannot be read ({source}); give yourself access to it, or name another folder with --features")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file of the store could not be written.
    #[error(
        "{path}: cannot be written ({source}); {}, then go on with the same command: what was recorded is kept",
        room(source)
    )]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The folder cannot be made or written.
    #[error("{path}: the features cannot be written here ({source}); name another folder with --features")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No store here.
    #[error("{0}: no feature store here (store.json is missing); make one first: tlpipe extract with the same pipeline or flags")]
    Missing(PathBuf),
    /// The folder holds something else.
    #[error("{0}: this folder is not empty and holds no feature store; name another folder with --features")]
    Foreign(PathBuf),
    /// Extraction did not finish.
    #[error(
        "{0}: the extraction has not finished; go on with tlpipe extract and the same pipeline or flags (nothing that was done is lost)"
    )]
    Incomplete(PathBuf),
    /// The features were made in another way.
    #[error(
        "{dir}: these features were made with other settings:\n  {}\nname another folder with --features, or make them anew with --rebuild",
        differences.join("\n  ")
    )]
    OtherKey {
        /// The store.
        dir: PathBuf,
        /// Each part that differs, with both values.
        differences: Vec<String>,
    },
    /// Slices that do not make one store.
    #[error("{dir}: {reason}; remove those that do not belong, or name another folder with --features")]
    Slices {
        /// The folder that holds the slices.
        dir: PathBuf,
        /// What does not go together.
        reason: String,
    },
    /// The folder holds a store in slices.
    #[error(
        "{0}: this store is made in slices; go on with --shard I/N as they were made, or name another folder with --features"
    )]
    InSlices(PathBuf),
    /// The folder holds a store that is not in slices.
    #[error("{0}: this store was made in one piece; name another folder with --features for one in slices")]
    Whole(PathBuf),
    /// Another process writes here.
    #[error("{0}: another tlpipe is writing this feature store; wait for it, or name another folder with --features")]
    Locked(PathBuf),
    /// A file is not what the manifest says.
    #[error("{path}: {reason}; {remedy}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A value that the type of the store does not hold.
    #[error(
        "{split}/{id}: a feature of {value} is too large for float16, which ends at 65,504; store them as float32: --dtype float32 \
         (with --rebuild, or another --features)"
    )]
    TooLarge {
        /// Split of the image.
        split: String,
        /// The image.
        id: String,
        /// The value.
        value: f32,
    },
    /// A view that the store does not have.
    #[error("{dir}: no view {view} in this feature store (it has {}, from 0)", present.join(", "))]
    NoView {
        /// The store.
        dir: PathBuf,
        /// Its number.
        view: usize,
        /// The views there are.
        present: Vec<String>,
    },
    /// A split that the store does not have.
    #[error(
        "{dir}: no split `{split}` in this feature store (it has {}); name features that have one with --features, or give the images \
         a split of that name (a folder, a file or a value of the split column) and run tlpipe extract again",
        present.join(", ")
    )]
    NoSplit {
        /// The store.
        dir: PathBuf,
        /// The split that was asked for.
        split: String,
        /// The splits there are.
        present: Vec<String>,
    },
}

/// What lets a file be written that could not be.
fn room(error: &std::io::Error) -> &'static str {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::StorageFull => "free space on its disk",
        ErrorKind::QuotaExceeded => "free space within your quota",
        ErrorKind::FileTooLarge => "raise the limit on the size of a file (ulimit -f)",
        _ => "make its folder writable",
    }
}

/// What mends a shard whose length does not show that it is damaged.
const REPLACE: &str = "delete this file and run tlpipe extract again with the same pipeline or flags: its rows are made anew";
/// What mends a damaged shard: `extract` finds it by its hash and makes its rows anew.
const REPAIR: &str = "run tlpipe extract again with the same pipeline or flags: it makes the damaged rows anew";

impl StoreError {
    fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_path_buf(), source }
    }

    fn write(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Write { path: path.to_path_buf(), source }
    }

    /// The file and what is wrong with it, without the remedy.
    fn reason(&self) -> String {
        match self {
            Self::Damaged { path, reason, .. } => format!("{}: {reason}", path.display()),
            Self::Io { path, source } => format!("{}: {source}", path.display()),
            other => other.to_string(),
        }
    }

    fn damaged(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self::Damaged { path: path.to_path_buf(), reason: reason.to_string(), remedy: REPAIR }
    }
}
