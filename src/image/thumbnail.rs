//! Small pictures for the report.

use ::image::codecs::jpeg::JpegEncoder;

use super::{ImageError, Resizer, decode};

/// Good enough for a thumbnail; no artefact to be mistaken for the image's own.
const QUALITY: u8 = 90;

/// A JPEG of at most `side` x `side` pixels, aspect ratio kept; an image that is smaller keeps its size.
///
/// # Errors
/// When the image cannot be decoded, or `side` is 0.
pub fn thumbnail(bytes: &[u8], side: u32) -> Result<Vec<u8>, ImageError> {
    let mut image = decode(bytes)?;
    let (width, height) = image.dimensions();
    if width.max(height) > side {
        image = Resizer::new().contain(&image, side)?;
    }
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, QUALITY).encode_image(&image).map_err(|error| ImageError::Resize {
        width,
        height,
        side,
        reason: error.to_string(),
    })?;
    Ok(jpeg)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::image::RgbImage;

    fn png(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        RgbImage::from_pixel(width, height, [9, 99, 199].into()).write_to(&mut bytes, ::image::ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn large_images_shrink_and_small_ones_stay() {
        assert_eq!(decode(&thumbnail(&png(200, 100), 64).unwrap()).unwrap().dimensions(), (64, 32));
        assert_eq!(decode(&thumbnail(&png(20, 10), 64).unwrap()).unwrap().dimensions(), (20, 10));
        assert!(thumbnail(&png(20, 10), 0).is_err());
        assert!(thumbnail(b"nothing", 64).is_err());
    }
}
