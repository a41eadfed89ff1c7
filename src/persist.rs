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
    /// Begins a file. A link to a file stays one; a device or a pipe is refused: a file would take its place.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let is_link = fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink());
        let path = &if is_link { fs::canonicalize(path)? } else { path.to_path_buf() };
        if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            return Err(io::Error::other("there is no regular file, and what is there would be replaced; name another"));
        }
        let mut builder = tempfile::Builder::new();
        builder.prefix(".tmp-");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            // Temporary files are private by default; what is kept follows the usual mode and the user's mask.
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        Ok(Self { file: builder.tempfile_in(folder(path))?, path: path.clone() })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn links_stay_and_what_is_no_file_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let [file, link, socket] = ["file", "link", "socket"].map(|name| folder.path().join(name));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        persist(&link, |file| io::Write::write_all(file, b"new")).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"new");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(persist(&socket, |_| Ok(())).unwrap_err().to_string().contains("no regular file"));
        assert!(!fs::metadata(&socket).unwrap().is_file());
    }
}
