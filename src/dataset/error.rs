//! What can go wrong with a source of images as a whole. One bad image is not an error: see [`super::Encoded`].

use std::path::PathBuf;

/// Why a source cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// There is nothing at the path, and it matches nothing.
    #[error("{0}: no such file or folder; give a path that exists, or a pattern such as 'photos/*/*.jpg' in quotes")]
    NotFound(PathBuf),
    /// A file or a folder cannot be read.
    #[error("{path}: cannot be read ({source}); make it readable, or take it out of the source")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not what it was when the source was opened.
    #[error("{0}: it was changed or removed while the source was read; run the same command again: what was done is kept")]
    Changed(PathBuf),
    /// Nothing in it is read as images.
    #[error(
        "{path}: no images here ({found}); a source is class folders of images, Parquet files, WebDataset shards, a CSV table of image paths, or CIFAR binary files"
    )]
    NoImages {
        /// The source.
        path: PathBuf,
        /// What is there instead.
        found: String,
    },
    /// A file of a kind that is not read, or kinds that cannot be read together.
    #[error("{path}: {reason}")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// No column, or more than one, can be meant.
    #[error("{path}: {reason}; columns found: {found}; choose one with {flag}")]
    Columns {
        /// The file.
        path: PathBuf,
        /// What is missing.
        reason: String,
        /// The columns and their types.
        found: String,
        /// The flag that chooses.
        flag: &'static str,
    },
    /// The file is damaged.
    #[error("{path}: {reason}; get the file again, or leave it out")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A label that the class list does not have.
    #[error(
        "{path}, row {row}: label {label} is outside the class list (0 to {last}); correct the row, or choose another column with --label-column"
    )]
    Label {
        /// The file.
        path: PathBuf,
        /// Row of the file, 0 is the first.
        row: u64,
        /// The label found.
        label: String,
        /// The last index of the class list.
        last: usize,
    },
    /// A value of the label column that is no label.
    #[error("{path}: {reason}; choose another column with --label-column")]
    LabelColumn {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Two rows of a split have the same id.
    #[error("{path}: {id:?} is in split {split:?} twice; ids must be unique: remove one of the two rows")]
    DuplicateId {
        /// The source.
        path: PathBuf,
        /// The id.
        id: String,
        /// The split.
        split: String,
    },
    /// An object store or a web server did not give what was asked for.
    #[error("{address}: {reason}; {remedy}")]
    Remote {
        /// What was asked for.
        address: String,
        /// What the other side said.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
    /// No such split.
    #[error("{path}: there is no split {split:?}; splits found: {found}")]
    UnknownSplit {
        /// The source.
        path: PathBuf,
        /// The split asked for.
        split: String,
        /// The splits there are.
        found: String,
    },
}

impl DatasetError {
    pub(super) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    pub(super) fn damaged(path: impl Into<PathBuf>, reason: impl std::fmt::Display) -> Self {
        Self::Damaged { path: path.into(), reason: reason.to_string() }
    }
}
