//! Where files are looked for on this machine, in order: the working directory's `models/` or `data/`, each root of
//! `TLPIPE_ASSETS` (by name anywhere below, then by content), the cache. Only a file with the right SHA-256 counts.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use walkdir::WalkDir;

use super::Search;
use super::checksum::Checksums;
use super::registry::AssetFile;

/// Which folder of the working directory and of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shelf<'a> {
    Models,
    /// Files of the data set of this name.
    Data(&'a str),
}

/// A file that was found, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hit {
    pub(super) path: PathBuf,
    pub(super) how: String,
}

/// What a search saw, for the error that may follow.
#[derive(Default)]
pub(super) struct Trace {
    pub(super) looked: Vec<String>,
    pub(super) rejected: Vec<String>,
}

impl Trace {
    fn look(&mut self, place: String) {
        if !self.looked.contains(&place) {
            self.looked.push(place);
        }
    }

    pub(super) fn reject(&mut self, text: String) {
        if !self.rejected.contains(&text) {
            self.rejected.push(text);
        }
    }
}

pub(super) struct Places {
    workdir: PathBuf,
    cache: PathBuf,
    roots: Vec<Root>,
}

struct Root {
    path: PathBuf,
    files: OnceLock<Vec<PathBuf>>,
}

impl Root {
    /// Every regular file below, listed once.
    fn files(&self) -> &[PathBuf] {
        self.files.get_or_init(|| {
            let entries = WalkDir::new(&self.path).follow_links(true).sort_by_file_name().into_iter();
            // An unreadable folder or a link that leads in a circle holds nothing that could be used.
            entries.filter_map(Result::ok).filter(|entry| entry.file_type().is_file()).map(walkdir::DirEntry::into_path).collect()
        })
    }
}

impl Places {
    pub(super) fn new(search: &Search) -> Self {
        let roots = search.roots.iter().map(|path| Root { path: path.clone(), files: OnceLock::new() }).collect();
        Self { workdir: search.workdir.clone(), cache: search.cache.clone(), roots }
    }

    /// Where a download of this file goes.
    pub(super) fn cached(&self, shelf: Shelf<'_>, file: &AssetFile) -> PathBuf {
        match shelf {
            Shelf::Models => self.cache.join("models").join(&file.name),
            Shelf::Data(set) => self.cache.join("data").join(set).join(&file.name),
        }
    }

    pub(super) fn find(&self, shelf: Shelf<'_>, file: &AssetFile, sums: &Checksums, trace: &mut Trace) -> Option<Hit> {
        self.beside(shelf, file, sums, trace)
            .or_else(|| self.below_roots(file, sums, trace))
            .or_else(|| self.in_cache(shelf, file, sums, trace))
    }

    fn beside(&self, shelf: Shelf<'_>, file: &AssetFile, sums: &Checksums, trace: &mut Trace) -> Option<Hit> {
        let (folder, paths) = match shelf {
            Shelf::Models => ("models", vec![PathBuf::from("models").join(&file.name)]),
            Shelf::Data(set) => ("data", vec![["data", &file.name].iter().collect(), ["data", set, &file.name].iter().collect()]),
        };
        trace.look(format!("{folder}/"));
        let path = paths.into_iter().map(|path| self.workdir.join(path)).find(|path| is_right(path, file, sums, trace))?;
        Some(Hit { path, how: format!("in {folder}/") })
    }

    fn below_roots(&self, file: &AssetFile, sums: &Checksums, trace: &mut Trace) -> Option<Hit> {
        if self.roots.is_empty() {
            trace.look("TLPIPE_ASSETS (not set)".into());
        }
        self.roots.iter().find_map(|root| {
            let missing = if root.path.is_dir() { "" } else { ", no such folder" };
            trace.look(format!("{} (TLPIPE_ASSETS{missing})", root.path.display()));
            let known = sums.holder(&file.sha256, &root.path);
            let path = known.or_else(|| root.by_name(file, sums, trace)).or_else(|| root.by_content(file, sums))?;
            Some(Hit { path, how: "in TLPIPE_ASSETS".into() })
        })
    }

    fn in_cache(&self, shelf: Shelf<'_>, file: &AssetFile, sums: &Checksums, trace: &mut Trace) -> Option<Hit> {
        let path = self.cached(shelf, file);
        trace.look(path.parent().unwrap_or(&path).display().to_string());
        is_right(&path, file, sums, trace).then(|| Hit { path, how: "in the cache".into() })
    }
}

impl Root {
    fn by_name(&self, file: &AssetFile, sums: &Checksums, trace: &mut Trace) -> Option<PathBuf> {
        let mut named = self.files().iter().filter(|path| path.file_name().is_some_and(|name| name == file.name.as_str()));
        named.find(|path| is_right(path, file, sums, trace)).cloned()
    }

    /// Only files of the right size are read.
    fn by_content(&self, file: &AssetFile, sums: &Checksums) -> Option<PathBuf> {
        let mut sized = self.files().iter().filter(|path| path.metadata().is_ok_and(|metadata| metadata.len() == file.bytes));
        sized.find(|path| sums.sha256(path).is_ok_and(|sha256| sha256 == file.sha256)).cloned()
    }
}

/// Whether the file is there with the right content. One of another content is reported, one that is not there is not.
fn is_right(path: &Path, file: &AssetFile, sums: &Checksums, trace: &mut Trace) -> bool {
    if !path.is_file() {
        return false;
    }
    match sums.sha256(path) {
        Ok(sha256) if sha256 == file.sha256 => true,
        Ok(sha256) => {
            trace.reject(format!("{}: SHA-256 is {sha256}, expected {}", path.display(), file.sha256));
            false
        }
        Err(error) => {
            trace.reject(format!("{}: {error}", path.display()));
            false
        }
    }
}
