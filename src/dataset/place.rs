//! Where a file of a source is, and one way to read it there.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use ::parquet::errors::ParquetError;
use ::parquet::file::reader::{ChunkReader, Length};
use bytes::Bytes;
use rayon::prelude::*;

use super::DatasetError;
use super::gzip::Unpacked;
use super::remote::{Object, ReadAhead};

/// Largest file that is read as one image.
pub(super) const MAX_BYTES: u64 = 512 << 20;

/// Requests under way at once while a source is opened: they wait for the network, not for a core.
const SCANS: usize = 8;

/// Where a file is.
#[derive(Clone, Debug)]
pub enum Place {
    /// On this machine.
    File(PathBuf),
    /// In an object store, or on a web server.
    Object(Object),
}

/// What tells that a file has changed, without reading it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stamp {
    pub(super) shown: PathBuf,
    pub(super) bytes: u64,
    pub(super) nanoseconds: u128,
    pub(super) tag: Option<String>,
}

impl Place {
    /// The path or the address, for messages and as an identity.
    pub fn shown(&self) -> PathBuf {
        match self {
            Self::File(path) => path.clone(),
            Self::Object(object) => PathBuf::from(object.address()),
        }
    }

    /// The path of a file that can only be read on this machine.
    pub(super) fn local(&self, what: &str) -> Result<&Path, DatasetError> {
        match self {
            Self::File(path) => Ok(path),
            Self::Object(object) => {
                let reason = format!(
                    "{what} cannot be read from there; copy it to this machine, or give Parquet files, WebDataset shards or class folders"
                );
                Err(DatasetError::Unsupported { path: object.address().into(), reason })
            }
        }
    }

    /// A file in this one's folder or below it. A table may come from a stranger: what it names must not be any other file of this
    /// machine.
    ///
    /// # Errors
    /// The reason to set the image aside.
    pub(super) fn below(&self, relative: &str) -> Result<Self, String> {
        let within = |part| matches!(part, Component::Normal(_) | Component::CurDir);
        match self {
            Self::File(path) if Path::new(relative).components().all(within) => {
                Ok(Self::File(path.parent().unwrap_or(Path::new("")).join(relative)))
            }
            Self::File(_) => Err(format!(
                "the row has no bytes, only a path that leads out of the table's folder: {relative:?}; put the file into that folder and \
                 name it relative to it, or its bytes into the table"
            )),
            // Nobody knows whether it exists.
            Self::Object(_) => Err(format!("the row has no bytes, only a path: {relative:?}")),
        }
    }

    pub(super) fn stamp(&self) -> Stamp {
        match self {
            Self::File(path) => {
                let metadata = path.metadata().ok();
                let changed = metadata.as_ref().and_then(|metadata| metadata.modified().ok());
                let nanoseconds = changed.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map_or(0, |time| time.as_nanos());
                let bytes = metadata.map_or(u64::MAX, |metadata| metadata.len());
                Stamp { shown: path.clone(), bytes, nanoseconds, tag: None }
            }
            Self::Object(object) => Stamp {
                shown: self.shown(),
                bytes: object.bytes(),
                nanoseconds: object.modified(),
                tag: Some(object.tag().to_owned()),
            },
        }
    }

    /// Fails where the file is not what it was when this stamp was taken.
    pub(super) fn unchanged(&self, since: &Stamp) -> Result<(), DatasetError> {
        if self.stamp() == *since { Ok(()) } else { Err(DatasetError::Changed(self.shown())) }
    }

    /// The same place; where reading means waiting for a network, the wait begins now.
    pub(super) fn coming(&self) -> Self {
        match self {
            Self::File(_) => self.clone(),
            Self::Object(object) => Self::Object(object.coming()),
        }
    }

    /// The whole content, as one image; or a reason to set the image aside: it is missing, unreadable, no regular file (a pipe would
    /// block for ever), or above 512 MiB.
    ///
    /// # Errors
    /// When the store fails, not the image.
    pub(super) fn image(&self) -> Result<Result<Bytes, String>, DatasetError> {
        let too_large =
            |bytes: u64| Err(format!("{}: {bytes} bytes, above the limit of 512 MiB for one image", self.shown().display()));
        match self {
            Self::File(path) => Ok(file(path, too_large)),
            Self::Object(object) if object.bytes() > MAX_BYTES => Ok(too_large(object.bytes())),
            Self::Object(object) => object.content(),
        }
    }

    /// Any part of the file, `ahead` bytes at a time where each request costs a round trip.
    pub(super) fn access(&self, ahead: u64) -> Result<Access, DatasetError> {
        Ok(match self {
            Self::File(path) => {
                let opened = File::open(path).and_then(|file| file.metadata().map(|metadata| (file, metadata.len())));
                let (file, bytes) = opened.map_err(DatasetError::io(path))?;
                Access::File { file: Arc::new(file), bytes }
            }
            Self::Object(object) => Access::Object(Arc::new(Mutex::new(ReadAhead::new(object.clone(), ahead)))),
        })
    }
}

fn file(path: &Path, too_large: impl Fn(u64) -> Result<Bytes, String>) -> Result<Bytes, String> {
    let said = |error: io::Error| format!("{}: {error}", path.display());
    let metadata = fs::metadata(path).map_err(said)?;
    if !metadata.is_file() {
        return Err(format!("{}: not a regular file", path.display()));
    }
    if metadata.len() > MAX_BYTES {
        return too_large(metadata.len());
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
    // A file that grows while it is read stays within the limit.
    File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes)).map_err(said)?;
    Ok(bytes.into())
}

/// Opens each of several files, as many at once as is good for where they are.
pub(super) fn each<T: Send, F: Sync>(
    files: &[F],
    place: impl Fn(&F) -> &Place,
    open: impl Fn(&F) -> Result<T, DatasetError> + Sync + Send,
) -> Result<Vec<T>, DatasetError> {
    let all = || files.par_iter().map(&open).collect();
    if files.iter().any(|file| matches!(place(file), Place::Object(_)))
        && let Ok(pool) = rayon::ThreadPoolBuilder::new().num_threads(SCANS.min(files.len())).build()
    {
        return pool.install(all);
    }
    all()
}

/// Reads parts of one file. Clones share what was read ahead.
#[derive(Clone, Debug)]
pub(super) enum Access {
    File {
        file: Arc<File>,
        bytes: u64,
    },
    Object(Arc<Mutex<ReadAhead>>),
    /// What a gzip file unpacks to; how long that is shows at its end.
    Unpacked(Arc<Mutex<Unpacked>>),
}

/// What [`Access::cursor`] gives.
pub(super) trait ReadSeek: Read + Seek + Send + fmt::Debug {}
impl<T: Read + Seek + Send + fmt::Debug> ReadSeek for T {}

impl Access {
    /// A reader that passes over what is not wanted without reading it.
    pub(super) fn cursor(&self) -> io::Result<Box<dyn ReadSeek>> {
        Ok(match self {
            Self::File { file, .. } => {
                let mut file = file.try_clone()?;
                file.seek(SeekFrom::Start(0))?;
                Box::new(file)
            }
            Self::Object(ahead) => Box::new(Cursor { ahead: Arc::clone(ahead), at: 0 }),
            Self::Unpacked(unpacked) => Box::new(unpacked.lock().unwrap_or_else(PoisonError::into_inner).again()?),
        })
    }

    /// The content of this gzip file, unpacked as it is read.
    pub(super) fn unpacked(self) -> io::Result<Self> {
        Ok(Self::Unpacked(Arc::new(Mutex::new(Unpacked::new(self)?))))
    }

    /// Exactly these bytes.
    pub(super) fn exact(&self, start: u64, length: u64) -> io::Result<Bytes> {
        match self {
            Self::File { file, .. } => {
                let mut file: &File = file;
                file.seek(SeekFrom::Start(start))?;
                let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
                file.read_exact(&mut bytes)?;
                Ok(bytes.into())
            }
            Self::Object(ahead) => ahead.lock().unwrap_or_else(PoisonError::into_inner).exact(start, length),
            Self::Unpacked(unpacked) => unpacked.lock().unwrap_or_else(PoisonError::into_inner).exact(start, length),
        }
    }

    /// Why a read failed: the store if it did, otherwise `damaged`. Layers in between make a text of the error that they get.
    pub(super) fn blame(&self, damaged: DatasetError) -> DatasetError {
        match self {
            Self::File { .. } => damaged,
            Self::Object(ahead) => ahead.lock().unwrap_or_else(PoisonError::into_inner).failure().unwrap_or(damaged),
            Self::Unpacked(unpacked) => unpacked.lock().unwrap_or_else(PoisonError::into_inner).blame(damaged),
        }
    }
}

impl Length for Access {
    fn len(&self) -> u64 {
        match self {
            Self::File { bytes, .. } => *bytes,
            Self::Object(ahead) => ahead.lock().unwrap_or_else(PoisonError::into_inner).bytes(),
            Self::Unpacked(_) => u64::MAX,
        }
    }
}

impl ChunkReader for Access {
    type T = Box<dyn Read>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        Ok(match self {
            Self::File { file, .. } => Box::new(file.get_read(start)?),
            Self::Object(ahead) => Box::new(Cursor { ahead: Arc::clone(ahead), at: start }),
            Self::Unpacked(_) => {
                let mut cursor = self.cursor()?;
                cursor.seek(SeekFrom::Start(start))?;
                Box::new(cursor)
            }
        })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        match self {
            Self::File { file, .. } => file.get_bytes(start, length),
            Self::Object(_) | Self::Unpacked(_) => Ok(self.exact(start, length as u64)?),
        }
    }
}

/// A place in an object.
#[derive(Debug)]
struct Cursor {
    ahead: Arc<Mutex<ReadAhead>>,
    at: u64,
}

impl Read for Cursor {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.ahead.lock().unwrap_or_else(PoisonError::into_inner).some(self.at, buffer.len())?;
        buffer[..bytes.len()].copy_from_slice(&bytes);
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }
}

impl Seek for Cursor {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.ahead.lock().unwrap_or_else(PoisonError::into_inner).bytes().checked_add_signed(by),
        };
        self.at = target.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}
