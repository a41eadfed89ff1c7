//! What can go wrong while an asset is looked for.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// An asset could not be found or fetched.
#[derive(Debug, thiserror::Error)]
pub enum AssetError {
    /// Neither a path that exists nor a name of the registry.
    #[error("{kind} {name:?}: {} and no such name{}; known names: {}", no_file(looked), did_you_mean(suggestion.as_deref()), known.join(", "))]
    Unknown {
        /// `model` or `data set`.
        kind: &'static str,
        /// What was asked for.
        name: String,
        /// Where a file of this name would be.
        looked: PathBuf,
        /// The nearest known name.
        suggestion: Option<String>,
        /// Every known name.
        known: Vec<String>,
    },
    /// Known, but its file is nowhere, and may not or cannot be downloaded.
    #[error(transparent)]
    Absent(Box<Absent>),
    /// An address, where nothing may be asked.
    #[error("{0}: not on this machine, and --offline forbids to ask for it; leave out --offline, or copy it and give the path")]
    Offline(String),
    /// A file could not be read or written.
    #[error("{path}: {source}; {remedy}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// A registry that is part of the program is damaged.
    #[error("{file}: {reason}; correct the registry and build again")]
    Registry {
        /// The registry.
        file: &'static str,
        /// What is wrong.
        reason: String,
    },
}

/// A file that is nowhere, and what was done to get it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{subject}: {file} {reason}{}\n  looked in {}{}\n  to get it: {remedy}",
    lines("tried", attempts),
    looked.join(", "),
    lines("not used", rejected)
)]
pub struct Absent {
    /// What was asked for ("data set cifar10").
    pub subject: String,
    /// The file that is missing.
    pub file: String,
    /// Why it is not there, as the end of the sentence.
    pub reason: &'static str,
    /// One line a download address: what it answered.
    pub attempts: Vec<String>,
    /// Each place that was searched, in order.
    pub looked: Vec<String>,
    /// Files of the right name but other content: path, hash found, hash expected.
    pub rejected: Vec<String>,
    /// What to do.
    pub remedy: String,
}

pub(super) const CACHE_REMEDY: &str = "make it readable and writable, or set XDG_CACHE_HOME to a folder that is";
pub(super) const READ_REMEDY: &str = "make it readable";

fn no_file(looked: &Path) -> String {
    let looked_at = looked.display();
    if looked.is_dir() { format!("{looked_at} is a folder (name a file in it)") } else { format!("no such file ({looked_at})") }
}

fn did_you_mean(suggestion: Option<&str>) -> String {
    suggestion.map(|name| format!("; did you mean {name:?}?")).unwrap_or_default()
}

fn lines(label: &str, items: &[String]) -> String {
    items.iter().fold(String::new(), |mut text, item| {
        // Writing to a String cannot fail.
        let _ = write!(text, "\n  {label} {item}");
        text
    })
}
