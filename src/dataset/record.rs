//! One image of a source, still encoded.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

/// Largest file that is read as one image.
const MAX_BYTES: u64 = 512 << 20;

/// One image of a source.
#[derive(Clone, Debug)]
pub struct Record {
    /// Unique within its split and stable: the path relative to the source with `/`, or `file#row`.
    pub id: String,
    /// Name of its split.
    pub split: Arc<str>,
    /// Index in the source's class list; none where the image has no label.
    pub label: Option<i32>,
    /// The image as it is stored.
    pub image: Encoded,
}

/// An encoded image, or the place where it is.
#[derive(Clone, Debug)]
pub enum Encoded {
    /// The bytes.
    Bytes(Bytes),
    /// A file that holds nothing else.
    File(PathBuf),
    /// There is no image, and this is why.
    Unusable(String),
}

impl Encoded {
    /// The bytes, read now where they are in a file.
    ///
    /// # Errors
    /// A reason to set the image aside: it is missing, unreadable, no regular file (a pipe would block for ever), or above 512 MiB.
    pub fn read(&self) -> Result<Bytes, String> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.clone()),
            Self::Unusable(reason) => Err(reason.clone()),
            Self::File(path) => {
                let said = |error: std::io::Error| format!("{}: {error}", path.display());
                let metadata = fs::metadata(path).map_err(said)?;
                if !metadata.is_file() {
                    return Err(format!("{}: not a regular file", path.display()));
                }
                if metadata.len() > MAX_BYTES {
                    return Err(format!(
                        "{}: {} bytes, above the limit of 512 MiB for one image",
                        path.display(),
                        metadata.len()
                    ));
                }
                let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
                // A file that grows while it is read stays within the limit.
                File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes)).map_err(said)?;
                Ok(bytes.into())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_and_a_missing_one_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jpg");
        fs::write(&path, b"abc").unwrap();
        assert_eq!(Encoded::File(path).read().unwrap(), "abc");
        let error = Encoded::File(folder.path().join("b.jpg")).read().unwrap_err();
        assert!(error.contains("b.jpg") && error.contains("No such file"), "{error}");
        assert!(Encoded::File(folder.path().to_owned()).read().unwrap_err().contains("not a regular file"));
        assert_eq!(Encoded::Unusable("null image".into()).read().unwrap_err(), "null image");
    }

    #[test]
    fn a_pipe_and_a_giant_are_refused_without_reading() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe.jpg");
        if std::process::Command::new("mkfifo").arg(&pipe).status().is_ok_and(|status| status.success()) {
            assert!(Encoded::File(pipe).read().unwrap_err().contains("not a regular file"));
        }
        let giant = folder.path().join("giant.jpg");
        File::create(&giant).unwrap().set_len(MAX_BYTES + 1).unwrap();
        assert!(Encoded::File(giant).read().unwrap_err().contains("512 MiB"));
    }
}
