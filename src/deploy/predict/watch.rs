//! A folder in which images appear: each is classified once it is whole.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use walkdir::WalkDir;

use super::{DeployError, Feed};
use crate::dataset::{DatasetError, Encoded, Place, Record, is_image_name};
use crate::image::is_whole;

/// How often the folder is looked at.
const EVERY: Duration = Duration::from_millis(200);
/// A file that does not change for so long is taken as it is, whole or not.
const SETTLED: Duration = Duration::from_secs(2);

/// Size and time of change: another pair, another content.
type Stamp = (u64, Option<SystemTime>);

/// A folder to watch, and everything below it.
pub struct Watch<'s> {
    folder: PathBuf,
    /// Files that were looked at, as they were then.
    done: HashMap<PathBuf, Stamp>,
    /// Files that are being written, perhaps: as they are, and since when.
    pending: HashMap<PathBuf, (Stamp, Instant)>,
    /// Ends it.
    stop: &'s AtomicBool,
}

impl<'s> Watch<'s> {
    /// Begins to watch: what is there already is left alone, unless it changes.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn new(folder: &Path, stop: &'s AtomicBool) -> Result<Self, DatasetError> {
        let mut watch = Self { folder: folder.to_owned(), done: HashMap::new(), pending: HashMap::new(), stop };
        watch.done = watch.list()?;
        Ok(watch)
    }

    /// Image files by their names; hidden ones are somebody's temporary files.
    fn list(&self) -> Result<HashMap<PathBuf, Stamp>, DatasetError> {
        let cannot = |source| DatasetError::Io { path: self.folder.clone(), source };
        if !fs::metadata(&self.folder).map_err(cannot)?.is_dir() {
            return Err(cannot(std::io::Error::other("not a folder")));
        }
        let visible = |entry: &walkdir::DirEntry| entry.depth() == 0 || !entry.file_name().to_string_lossy().starts_with('.');
        // What vanishes while it is looked at is not there.
        let entries = WalkDir::new(&self.folder).sort_by_file_name().into_iter().filter_entry(visible).flatten();
        let images = entries.filter(|entry| entry.file_type().is_file() && is_image_name(entry.path()));
        let stamped = images.filter_map(|entry| {
            let metadata = entry.metadata().ok()?;
            Some((entry.into_path(), (metadata.len(), metadata.modified().ok())))
        });
        Ok(stamped.collect())
    }

    /// Looks once; gives the images that are ready, by name.
    fn look(&mut self) -> Result<Vec<Record>, DatasetError> {
        let found = self.list()?;
        let now = Instant::now();
        self.done.retain(|path, _| found.contains_key(path));
        let before = std::mem::take(&mut self.pending);
        let mut ready = Vec::new();
        for (path, stamp) in found {
            if self.done.get(&path) == Some(&stamp) {
                continue;
            }
            let (same, since) = match before.get(&path) {
                Some((old, since)) if *old == stamp => (true, *since),
                _ => (false, now),
            };
            match same.then(|| whole(&path, since.elapsed() >= SETTLED)).flatten() {
                Some(image) => {
                    self.done.insert(path.clone(), stamp);
                    ready.push(Record { id: path.display().to_string(), split: "images".into(), label: None, image });
                }
                None => {
                    self.pending.insert(path, (stamp, since));
                }
            }
        }
        ready.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(ready)
    }
}

/// A file's content, unless more of it may be on its way.
fn whole(path: &Path, settled: bool) -> Option<Encoded> {
    let place = Place::File(path.to_owned());
    if settled {
        // The reason why it cannot be used is said, if there is one.
        return Some(Encoded::At(place));
    }
    let bytes = Encoded::At(place).read().ok()?.ok()?;
    // A format that does not say where it ends is whole when nothing more comes.
    (is_whole(&bytes) == Some(true)).then_some(Encoded::Bytes(bytes))
}

impl Feed for Watch<'_> {
    fn feed(mut self, batch: usize, send: &mut dyn FnMut(Vec<Record>) -> bool) -> Result<(), DeployError> {
        while !self.stop.load(Ordering::Relaxed) {
            let looking = Instant::now();
            let mut ready = self.look()?;
            while !ready.is_empty() {
                let rest = ready.split_off(batch.min(ready.len()));
                if !send(std::mem::replace(&mut ready, rest)) {
                    return Ok(());
                }
            }
            // A large folder is not looked at all the time.
            let pause = EVERY.max(looking.elapsed() * 4);
            let until = Instant::now() + pause;
            while Instant::now() < until && !self.stop.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }
}

impl Watch<'_> {
    /// Leaves alone what was classified otherwise.
    pub fn without(mut self, ids: &HashSet<String>) -> Self {
        if let Ok(found) = self.list() {
            self.done.extend(found.into_iter().filter(|(path, _)| ids.contains(path.display().to_string().as_str())));
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(side: u32) -> Vec<u8> {
        let mut bytes = std::io::Cursor::new(Vec::new());
        ::image::RgbImage::new(side, side).write_to(&mut bytes, ::image::ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn a_file_is_taken_once_it_is_whole_and_again_when_it_changes() {
        let (folder, stop) = (tempfile::tempdir().unwrap(), AtomicBool::new(false));
        let path = |name: &str| folder.path().join(name);
        fs::write(path("old.png"), png(3)).unwrap();
        let mut watch = Watch::new(folder.path(), &stop).unwrap();
        let mut look = || watch.look().unwrap().into_iter().map(|record| record.id).collect::<Vec<_>>();
        let shown = |name: &str| path(name).display().to_string();
        assert!(look().is_empty());
        let whole = png(30);
        fs::write(path("new.png"), &whole[..whole.len() / 2]).unwrap();
        fs::write(path("note.txt"), "x").unwrap();
        fs::write(path(".part.png"), "x").unwrap();
        assert!(look().is_empty() && look().is_empty(), "half of it is there");
        fs::write(path("new.png"), &whole).unwrap();
        assert!(look().is_empty(), "it may be growing");
        assert_eq!(look(), [shown("new.png")]);
        assert!(look().is_empty());
        fs::write(path("old.png"), png(5)).unwrap();
        look();
        assert_eq!(look(), [shown("old.png")]);
    }

    #[test]
    fn what_stays_damaged_is_said_in_the_end() {
        let (folder, stop) = (tempfile::tempdir().unwrap(), AtomicBool::new(false));
        let mut watch = Watch::new(folder.path(), &stop).unwrap();
        let path = folder.path().join("half.png");
        fs::write(&path, &png(30)[..40]).unwrap();
        let started = Instant::now();
        let ready = loop {
            let ready = watch.look().unwrap();
            if !ready.is_empty() {
                break ready;
            }
            assert!(started.elapsed() < SETTLED * 5);
            std::thread::sleep(Duration::from_millis(50));
        };
        assert!(started.elapsed() >= SETTLED);
        assert_eq!(ready[0].id, path.display().to_string());
        drop(folder);
        assert!(watch.look().unwrap_err().to_string().contains("cannot be read"));
    }
}
