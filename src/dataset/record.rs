//! One image of a source, still encoded.

use std::sync::Arc;

use bytes::Bytes;

use super::DatasetError;
use super::place::Place;

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
    At(Place),
    /// There is no image, and this is why.
    Unusable(String),
}

impl Encoded {
    /// The bytes, read now where they are in a file; or a reason to set the image aside.
    ///
    /// # Errors
    /// When the source fails, not the image: an object store that does not answer.
    pub fn read(&self) -> Result<Result<Bytes, String>, DatasetError> {
        match self {
            Self::Bytes(bytes) => Ok(Ok(bytes.clone())),
            Self::Unusable(reason) => Ok(Err(reason.clone())),
            Self::At(place) => place.image(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::super::place::MAX_BYTES;
    use super::*;

    fn file(path: impl Into<std::path::PathBuf>) -> Encoded {
        Encoded::At(Place::File(path.into()))
    }

    #[test]
    fn a_file_is_read_and_a_missing_one_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jpg");
        fs::write(&path, b"abc").unwrap();
        assert_eq!(file(path).read().unwrap().unwrap(), "abc");
        let error = file(folder.path().join("b.jpg")).read().unwrap().unwrap_err();
        assert!(error.contains("b.jpg") && error.contains("No such file"), "{error}");
        assert!(file(folder.path().to_owned()).read().unwrap().unwrap_err().contains("not a regular file"));
        assert_eq!(Encoded::Unusable("null image".into()).read().unwrap().unwrap_err(), "null image");
    }

    #[test]
    fn a_pipe_and_a_giant_are_refused_without_reading() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe.jpg");
        if std::process::Command::new("mkfifo").arg(&pipe).status().is_ok_and(|status| status.success()) {
            assert!(file(pipe).read().unwrap().unwrap_err().contains("not a regular file"));
        }
        let giant = folder.path().join("giant.jpg");
        File::create(&giant).unwrap().set_len(MAX_BYTES + 1).unwrap();
        assert!(file(giant).read().unwrap().unwrap_err().contains("512 MiB"));
    }
}
