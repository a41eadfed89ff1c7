//! SHA-256 of files, remembered by path, size and time of change, so that a run with nothing to do reads no big file.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// A file that was changed less than this ago may change again without its time stamp telling.
const SETTLED: Duration = Duration::from_secs(2);

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    bytes: u64,
    modified: u64,
    sha256: String,
}

type Entries = BTreeMap<String, Entry>;

/// Remembered checksums. A cache folder that cannot be written only costs time.
pub(super) struct Checksums {
    file: PathBuf,
    entries: Mutex<Entries>,
}

impl Checksums {
    pub(super) fn open(cache: &Path) -> Self {
        let file = cache.join("checksums.json");
        let entries = read(&file);
        Self { file, entries: Mutex::new(entries) }
    }

    /// SHA-256 of a file's content, lowercase hex.
    pub(super) fn sha256(&self, path: &Path) -> io::Result<String> {
        let path = fs::canonicalize(path)?;
        let before = fs::metadata(&path)?;
        if let Some(known) = self.known(&path, &before) {
            return Ok(known);
        }
        let sha256 = sha256(&path)?;
        let after = fs::metadata(&path)?;
        let settled = after.modified().ok().and_then(|time| SystemTime::now().duration_since(time).ok());
        if stamp(&before) == stamp(&after) && settled.is_some_and(|age| age > SETTLED) {
            self.insert(&path, &after, &sha256);
        }
        Ok(sha256)
    }

    /// Remembers what was just verified.
    pub(super) fn remember(&self, path: &Path, sha256: &str) {
        if let Ok(path) = fs::canonicalize(path)
            && let Ok(metadata) = fs::metadata(&path)
        {
            self.insert(&path, &metadata, sha256);
        }
    }

    /// An unchanged file below `root` that is known to have this content.
    pub(super) fn holder(&self, sha256: &str, root: &Path) -> Option<PathBuf> {
        let root = fs::canonicalize(root).ok()?;
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let mut candidates = entries.iter().filter(|(path, entry)| entry.sha256 == sha256 && Path::new(path).starts_with(&root));
        candidates.find(|(path, entry)| is_unchanged(path, entry)).map(|(path, _)| PathBuf::from(path))
    }

    fn known(&self, path: &Path, metadata: &Metadata) -> Option<String> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = entries.get(path.to_str()?)?;
        (stamp(metadata)? == (entry.bytes, entry.modified)).then(|| entry.sha256.clone())
    }

    fn insert(&self, path: &Path, metadata: &Metadata, sha256: &str) {
        let (Some(path), Some((bytes, modified))) = (path.to_str(), stamp(metadata)) else { return };
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        // Another process may have written meanwhile.
        entries.extend(read(&self.file));
        entries.retain(|path, entry| is_unchanged(path, entry));
        entries.insert(path.to_owned(), Entry { bytes, modified, sha256: sha256.to_owned() });
        if let Err(error) = write(&self.file, &entries) {
            tracing::debug!("{}: {error}; checksums are not remembered", self.file.display());
        }
    }
}

/// SHA-256 of a file's content, lowercase hex.
pub(super) fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => hasher.update(&buffer[..count]),
        }
    }
    Ok(hex(&hasher.finalize()))
}

/// SHA-256 of bytes in memory, lowercase hex.
pub fn sha256_of(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn stamp(metadata: &Metadata) -> Option<(u64, u64)> {
    let modified = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some((metadata.len(), u64::try_from(modified.as_nanos()).ok()?))
}

fn is_unchanged(path: &str, entry: &Entry) -> bool {
    fs::metadata(path).is_ok_and(|metadata| stamp(&metadata) == Some((entry.bytes, entry.modified)))
}

fn read(file: &Path) -> Entries {
    fs::read(file).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

fn write(file: &Path, entries: &Entries) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
    temporary.write_all(&serde_json::to_vec_pretty(entries)?)?;
    temporary.persist(file).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn aged(path: &Path, seconds: u64) {
        File::options().write(true).open(path).unwrap().set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
    }

    #[test]
    fn known_digests() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "").unwrap();
        assert_eq!(sha256(&path).unwrap(), EMPTY);
        assert_eq!(sha256_of(b"abc"), ABC);
    }

    #[test]
    fn remembered_until_the_file_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "abc").unwrap();
        aged(&path, 60);
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        assert_eq!(Checksums::open(folder.path()).sha256(&path).unwrap(), ABC);
        // Same size and time: the answer comes from memory, of another process too.
        fs::write(&path, "xyz").unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
        let again = Checksums::open(folder.path());
        assert_eq!(again.sha256(&path).unwrap(), ABC);
        assert_eq!(again.holder(ABC, folder.path()), Some(fs::canonicalize(&path).unwrap()));
        aged(&path, 30);
        assert_eq!(again.holder(ABC, folder.path()), None);
        assert_ne!(again.sha256(&path).unwrap(), ABC);
    }

    #[test]
    fn a_file_just_written_is_not_trusted_to_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "abc").unwrap();
        let sums = Checksums::open(folder.path());
        assert_eq!(sums.sha256(&path).unwrap(), ABC);
        assert_eq!(sums.holder(ABC, folder.path()), None);
        sums.remember(&path, ABC);
        assert!(sums.holder(ABC, folder.path()).is_some());
    }

    #[test]
    fn works_without_a_cache() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "abc").unwrap();
        aged(&path, 60);
        // A cache folder whose name is taken by a file cannot be made, whoever runs this.
        assert_eq!(Checksums::open(&path.join("cache")).sha256(&path).unwrap(), ABC);
        fs::write(folder.path().join("checksums.json"), "garbage").unwrap();
        assert_eq!(Checksums::open(folder.path()).sha256(&path).unwrap(), ABC);
    }
}
