//! Files that are there whole or not at all.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A file under a temporary name beside its place; dropped, it is gone.
pub(crate) struct Draft {
    file: tempfile::NamedTempFile,
    path: PathBuf,
}

impl Draft {
    /// Begins a file.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(".tmp-");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            // Temporary files are private by default; what is kept follows the usual mode and the user's mask.
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        Ok(Self { file: builder.tempfile_in(folder(path))?, path: path.to_path_buf() })
    }

    /// What is written to.
    pub(crate) fn file(&mut self) -> &mut fs::File {
        self.file.as_file_mut()
    }

    /// Syncs the file and renames it; the folder is synced too, so that a power cut leaves the old file or the new one, never
    /// half of one.
    pub(crate) fn keep(self) -> io::Result<()> {
        self.file.as_file().sync_all()?;
        self.file.persist(&self.path).map_err(|error| error.error)?;
        sync(folder(&self.path));
        Ok(())
    }

    /// The same, but an error of kind [`io::ErrorKind::AlreadyExists`] where there is a file already.
    pub(crate) fn keep_new(self) -> io::Result<()> {
        self.file.as_file().sync_all()?;
        self.file.persist_noclobber(&self.path).map_err(|error| error.error)?;
        sync(folder(&self.path));
        Ok(())
    }
}

fn sync(folder: &Path) {
    if let Ok(folder) = fs::File::open(folder) {
        // Not every file system can sync a folder; the rename stands without it.
        let _ = folder.sync_all();
    }
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes a file whole or not at all.
pub(crate) fn persist(path: &Path, write: impl FnOnce(&mut fs::File) -> io::Result<()>) -> io::Result<()> {
    let mut draft = Draft::create(path)?;
    write(draft.file())?;
    draft.keep()
}
