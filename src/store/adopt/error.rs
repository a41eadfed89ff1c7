//! Why rows that an engine wrote do not become a store.

use std::path::{Path, PathBuf};

use crate::store::StoreError;

/// Why rows that an engine wrote do not become a store.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The store cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is nothing to adopt.
    #[error("{0}: no Parquet files here; name the folder that the engine wrote to")]
    Nothing(PathBuf),
    /// The job that wrote the files is not through.
    #[error("{dir}: {reason}; let the job finish or run it again, then adopt what it wrote")]
    Unfinished {
        /// The folder.
        dir: PathBuf,
        /// How it shows.
        reason: &'static str,
    },
    /// Nothing says how many rows there should be.
    #[error(
        "{0}: nothing here says whether all rows came, and an engine may leave whole files when it stops halfway; give --expect-rows N (the \
         images that went in) or --ids FILE"
    )]
    Unbounded(PathBuf),
    /// A file is not what is expected.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A row cannot be taken.
    #[error("{path}: row {row}{}: {reason}", id.as_ref().map(|id| format!(" ({id})")).unwrap_or_default())]
    Row {
        /// The file.
        path: PathBuf,
        /// Counted from 0.
        row: usize,
        /// Its id.
        id: Option<String>,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// Files of more than one key.
    #[error(
        "{first} and {second}: these features were made in different ways{}; adopt each kind by itself, from a folder of its own",
        differences.iter().map(|line| format!("\n  {line}")).collect::<String>()
    )]
    Keys {
        /// A file.
        first: PathBuf,
        /// Another one.
        second: PathBuf,
        /// What differs, as far as it is known.
        differences: Vec<String>,
    },
    /// Rows that carry a key and nothing else, and no settings that make it.
    #[error(
        "{dir}: these rows carry the key {key} alone, not how it came about; name the pipeline or give the flags of tlpipe embed that they \
         were made with ({reason})"
    )]
    Unexplained {
        /// The folder.
        dir: PathBuf,
        /// The key.
        key: String,
        /// Why the settings at hand do not do.
        reason: String,
    },
    /// Features of other settings than those that are named.
    #[error("{dir}: these rows were made with other settings:\n  {}\nname those that tlpipe embed was given", differences.join("\n  "))]
    Otherwise {
        /// The folder.
        dir: PathBuf,
        /// Each part of the key that differs, with both values.
        differences: Vec<String>,
    },
    /// One id with two contents.
    #[error(
        "{split}/{id}: two rows of this image that differ in {what}; run both again with one binary, on processors of one kind (the bits of \
         features are not promised across models of processors), or remove the wrong one"
    )]
    Twice {
        /// Split of the image.
        split: String,
        /// Its id.
        id: String,
        /// What differs.
        what: &'static str,
    },
    /// Rows that should be there are not.
    #[error("{dir}: {reason}; run the engine's job again, or take what there is with --allow-missing")]
    Missing {
        /// The folder.
        dir: PathBuf,
        /// How many, and one of them.
        reason: String,
    },
    /// There are rows that should not be there.
    #[error("{dir}: {reason}; name the right number or list")]
    Unasked {
        /// The folder.
        dir: PathBuf,
        /// How many, and one of them.
        reason: String,
    },
    /// Labels and names of classes do not go together.
    #[error("{0}")]
    Classes(String),
    /// A store is there already.
    #[error("{0}: this is a feature store already; name another folder with --features")]
    Already(PathBuf),
}

impl AdoptError {
    pub(super) fn file(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self::File { path: path.to_path_buf(), reason: reason.to_string() }
    }

    /// Whether something else must be asked for, rather than something having failed.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Unbounded(_))
    }
}
