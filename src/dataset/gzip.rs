//! A gzip file read as what it unpacks to: forwards at the speed of unpacking, backwards from its beginning again.

use std::io::{self, BufReader, Read, Seek, SeekFrom};

use bytes::Bytes;
use flate2::read::MultiGzDecoder;

use super::DatasetError;
use super::place::{Access, ReadSeek};

/// Compressed bytes that are read at a time.
const BUFFER: usize = 256 << 10;

/// The unpacked content; never in memory as a whole.
#[derive(Debug)]
pub(super) struct Unpacked {
    packed: Access,
    unpacking: MultiGzDecoder<BufReader<Box<dyn ReadSeek>>>,
    at: u64,
}

impl Unpacked {
    /// Begins at the first byte.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(super) fn new(packed: Access) -> io::Result<Self> {
        let unpacking = Self::begin(&packed)?;
        Ok(Self { packed, unpacking, at: 0 })
    }

    /// The same content from its beginning.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(super) fn again(&self) -> io::Result<Self> {
        Self::new(self.packed.clone())
    }

    /// Exactly these bytes of the unpacked content.
    ///
    /// # Errors
    /// When there are fewer, or the file is damaged.
    pub(super) fn exact(&mut self, start: u64, length: u64) -> io::Result<Bytes> {
        self.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        self.take(length).read_to_end(&mut bytes)?;
        if bytes.len() as u64 == length { Ok(bytes.into()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// Why a read failed: the store if it did, otherwise `damaged`.
    pub(super) fn blame(&self, damaged: DatasetError) -> DatasetError {
        self.packed.blame(damaged)
    }

    fn begin(packed: &Access) -> io::Result<MultiGzDecoder<BufReader<Box<dyn ReadSeek>>>> {
        Ok(MultiGzDecoder::new(BufReader::with_capacity(BUFFER, packed.cursor()?)))
    }
}

impl Read for Unpacked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.unpacking.read(buffer)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for Unpacked {
    /// Where the content ends is not known: a place can be given from its beginning or from here, and beyond the end is an error.
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(_) => None,
        };
        let target = target.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        if target < self.at {
            self.unpacking = Self::begin(&self.packed)?;
            self.at = 0;
        }
        let ahead = target - self.at;
        let passed = io::copy(&mut self.by_ref().take(ahead), &mut io::sink())?;
        if passed == ahead { Ok(target) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}
