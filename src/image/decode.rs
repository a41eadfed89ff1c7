//! Encoded bytes to RGB, strictly: what is damaged or cut short is an error, never a half-grey image.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use ::image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use super::{ImageError, RgbImage};

/// Most pixels that an image may have: Pillow's own bound, above which it speaks of a decompression bomb.
pub const MAX_PIXELS: u64 = 178_956_970;

/// Most bytes that a decoded image may take, in the file's own depth.
const MAX_BYTES: u64 = 512 << 20;

/// Decodes an image to 8-bit RGB, upright.
///
/// The format is told by the first bytes, never by a file's name. EXIF orientation is applied. As Pillow's `convert("RGB")` does it:
/// alpha is dropped, grey is repeated, palettes and CMYK are worked out, 16 bits become 8; of an animation the first frame is taken.
///
/// # Errors
/// When the bytes are no image, are damaged or cut short, or when the image is above [`MAX_PIXELS`] or 512 MiB.
pub fn decode(bytes: &[u8]) -> Result<RgbImage, ImageError> {
    decode_up_to(bytes, MAX_PIXELS)
}

/// The same with a lower limit of pixels.
///
/// # Errors
/// As [`decode`].
pub fn decode_up_to(bytes: &[u8], max_pixels: u64) -> Result<RgbImage, ImageError> {
    if bytes.is_empty() {
        return Err(ImageError::Empty);
    }
    let format = ::image::guess_format(bytes).map_err(|_| ImageError::UnknownFormat { kind: kind(bytes) })?;
    let name = name(format);
    let whole = whole_as(bytes, format).unwrap_or(true);
    // The size limit is said even of a file that is cut short: its header is enough to refuse it.
    let decoded = catch_unwind(AssertUnwindSafe(|| decode_as(bytes, format, whole, max_pixels)));
    // A decoder that panics on hostile bytes must not end a run over a million good ones.
    decoded.unwrap_or_else(|_| Err(ImageError::Damaged { format: name, reason: "the decoder failed on it".to_owned() }))
}

/// Whether an image is there to its end, told without decoding it; none where its format does not say.
pub fn is_whole(bytes: &[u8]) -> Option<bool> {
    ::image::guess_format(bytes).ok().and_then(|format| whole_as(bytes, format))
}

fn whole_as(bytes: &[u8], format: ImageFormat) -> Option<bool> {
    match format {
        ImageFormat::Jpeg => Some(jpeg_is_whole(bytes)),
        ImageFormat::Png => Some(png_is_whole(bytes)),
        ImageFormat::WebP => Some(webp_is_whole(bytes)),
        _ => None,
    }
}

fn decode_as(bytes: &[u8], format: ImageFormat, whole: bool, max_pixels: u64) -> Result<RgbImage, ImageError> {
    let name = name(format);
    let damaged = |error: ::image::ImageError| match error {
        ::image::ImageError::IoError(io) if io.kind() == std::io::ErrorKind::UnexpectedEof => {
            ImageError::Truncated { format: name }
        }
        _ if !whole => ImageError::Truncated { format: name },
        other => ImageError::Damaged { format: name, reason: other.to_string() },
    };
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_BYTES);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > max_pixels {
        return Err(ImageError::TooLarge { width, height, limit: max_pixels });
    }
    if decoder.total_bytes() > MAX_BYTES {
        return Err(ImageError::TooManyBytes { width, height, bytes: decoder.total_bytes() });
    }
    if !whole {
        return Err(ImageError::Truncated { format: name });
    }
    let orientation = decoder.orientation().map_err(damaged)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    image.apply_orientation(orientation);
    Ok(image.into_rgb8())
}

/// The JPEG decoder of `image` fills what is missing with grey and says nothing; browsers want that, training data does not.
/// A whole JPEG has an end marker outside of every segment (a preview in the EXIF segment has one of its own).
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    const END: u8 = 0xD9;
    // In entropy-coded data FF is always followed by 00 or a restart marker, so this cannot be pixels.
    if bytes.ends_with(&[0xFF, END]) {
        return true;
    }
    let mut at = 2;
    while let Some(offset) = bytes.get(at..).and_then(|rest| rest.iter().position(|&byte| byte == 0xFF)) {
        at += offset + 1;
        match bytes.get(at) {
            Some(&END) => return true,
            // A fill byte: the marker may start here.
            Some(0xFF) => {}
            // A stuffed FF, or a marker without a length.
            Some(0x00 | 0x01 | 0xD0..=0xD8) => at += 1,
            Some(_) => match bytes.get(at + 1..at + 3) {
                Some(&[high, low]) => at += 1 + usize::from(u16::from_be_bytes([high, low])).max(2),
                _ => return false,
            },
            None => return false,
        }
    }
    false
}

/// The PNG decoder stops after the last row of pixels; the chunks after it must be there too.
fn png_is_whole(bytes: &[u8]) -> bool {
    let mut at = 8;
    while let Some((length, rest)) = bytes.get(at..).and_then(|rest| rest.split_first_chunk::<4>()) {
        let end = u32::from_be_bytes(*length) as usize + 12;
        if bytes.len() - at < end {
            return false;
        }
        if rest.starts_with(b"IEND") {
            return true;
        }
        at += end;
    }
    false
}

/// RIFF states its length, and the lossy decoder goes on without an error where bytes are missing.
fn webp_is_whole(bytes: &[u8]) -> bool {
    bytes.get(4..8).and_then(|length| length.try_into().ok()).is_some_and(|length| {
        let length = u32::from_le_bytes(length) as usize;
        bytes.len() - 8 >= length
    })
}

fn name(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Jpeg => "JPEG",
        ImageFormat::Png => "PNG",
        ImageFormat::WebP => "WebP",
        ImageFormat::Bmp => "BMP",
        ImageFormat::Gif => "GIF",
        ImageFormat::Tiff => "TIFF",
        ImageFormat::Pnm => "PNM",
        _ => "image of a format that is not read",
    }
}

/// What bytes that are no image seem to be. They are never quoted: whoever named the file may be somebody else than its owner.
fn kind(bytes: &[u8]) -> &'static str {
    const LOOKED_AT: usize = 512;
    const MARKS: [(&[u8], &str); 7] = [
        (b"version https://git-lfs", "a pointer of Git LFS, whose file was not fetched"),
        (b"%PDF", "a PDF document"),
        (b"PK\x03\x04", "a ZIP archive"),
        (b"\x1f\x8b", "a gzip file"),
        (b"PAR1", "a Parquet file"),
        (b"<?xml", "XML, or an SVG drawing"),
        (b"<svg", "an SVG drawing"),
    ];
    let start = &bytes[..bytes.len().min(LOOKED_AT)];
    let text = start.trim_ascii_start();
    if let Some((_, kind)) = MARKS.iter().find(|(mark, _)| text.starts_with(mark)) {
        return kind;
    }
    let is_page = ["<!doctype html", "<html"]
        .iter()
        .any(|mark| text.get(..mark.len()).is_some_and(|start| start.eq_ignore_ascii_case(mark.as_bytes())));
    if is_page {
        return "a web page";
    }
    if start.get(4..8) == Some(b"ftyp") {
        return "of the family of HEIC, AVIF and MP4";
    }
    // A letter may be cut in two at the end of what is looked at.
    let valid = start.utf8_chunks().next().map_or("", |chunk| chunk.valid());
    let is_text = valid.len() + 3 >= start.len() && !valid.contains(|c: char| c.is_control() && !c.is_ascii_whitespace());
    if is_text && !valid.is_empty() { "text" } else { "of no known kind" }
}

#[cfg(test)]
mod tests {
    use ::image::{GrayAlphaImage, GrayImage, ImageBuffer, Luma, Rgb, RgbaImage};

    use super::*;

    fn gradient(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| [(x * 3 % 256) as u8, (y * 5 % 256) as u8, ((x * y) % 256) as u8].into())
    }

    fn encode(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.into().write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn jpeg(image: &RgbImage) -> Vec<u8> {
        encode(image.clone(), ImageFormat::Jpeg)
    }

    fn reason(bytes: &[u8]) -> String {
        decode(bytes).expect_err("must not decode").to_string()
    }

    #[test]
    fn lossless_formats_give_the_pixels_back() {
        let image = gradient(31, 17);
        for format in [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Tiff, ImageFormat::Pnm] {
            assert_eq!(decode(&encode(image.clone(), format)).unwrap(), image, "{format:?}");
        }
        assert_eq!(decode(&encode(image, ImageFormat::Gif)).unwrap().dimensions(), (31, 17));
    }

    #[test]
    fn grey_alpha_and_sixteen_bits_become_rgb() {
        let grey = GrayImage::from_pixel(3, 2, Luma([90]));
        assert!(decode(&encode(grey, ImageFormat::Png)).unwrap().pixels().all(|pixel| pixel.0 == [90; 3]));
        let alpha = RgbaImage::from_pixel(3, 2, [10, 20, 30, 0].into());
        assert!(
            decode(&encode(alpha, ImageFormat::Png)).unwrap().pixels().all(|pixel| pixel.0 == [10, 20, 30]),
            "alpha is dropped"
        );
        let grey_alpha = GrayAlphaImage::from_pixel(3, 2, [77, 5].into());
        assert!(decode(&encode(grey_alpha, ImageFormat::Png)).unwrap().pixels().all(|pixel| pixel.0 == [77; 3]));
        let deep: ImageBuffer<Rgb<u16>, Vec<u16>> = ImageBuffer::from_pixel(3, 2, Rgb([65535, 32768, 0]));
        assert!(decode(&encode(deep, ImageFormat::Png)).unwrap().pixels().all(|pixel| pixel.0 == [255, 128, 0]));
        let deep_grey: ImageBuffer<Luma<u16>, Vec<u16>> = ImageBuffer::from_pixel(3, 2, Luma([0x4040]));
        assert!(decode(&encode(deep_grey, ImageFormat::Png)).unwrap().pixels().all(|pixel| pixel.0 == [0x40; 3]));
    }

    #[test]
    fn one_pixel_is_an_image() {
        assert_eq!(decode(&encode(gradient(1, 1), ImageFormat::Png)).unwrap().dimensions(), (1, 1));
        assert_eq!(decode(&jpeg(&gradient(1, 1))).unwrap().dimensions(), (1, 1));
    }

    /// A CMYK JPEG of 16 x 8 pixels written by Pillow 12, cyan left half and yellow right half.
    #[test]
    fn cmyk_becomes_rgb() {
        let image = decode(include_bytes!("testdata/cmyk.jpg")).unwrap();
        assert_eq!(image.dimensions(), (16, 8));
        let near = |at: (u32, u32), colour: [u8; 3]| {
            let found = image.get_pixel(at.0, at.1).0;
            assert!(found.iter().zip(colour).all(|(a, b)| a.abs_diff(b) < 8), "{at:?}: {found:?}, expected {colour:?}");
        };
        near((2, 4), [0, 255, 255]);
        near((13, 4), [255, 255, 0]);
    }

    /// EXIF orientation 6: the camera was turned, show it turned by 90 degrees clockwise.
    #[test]
    fn a_rotated_photograph_stands_upright() {
        let plain = jpeg(&RgbImage::from_fn(32, 16, |x, _| if x < 16 { [250, 0, 0].into() } else { [0, 0, 250].into() }));
        let mut exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0".to_vec();
        let mut turned = plain[..2].to_vec();
        turned.extend([0xFF, 0xE1]);
        turned.extend(u16::try_from(exif.len() + 2).unwrap().to_be_bytes());
        turned.append(&mut exif);
        turned.extend(&plain[2..]);
        let image = decode(&turned).unwrap();
        assert_eq!(image.dimensions(), (16, 32));
        assert!(image.get_pixel(8, 4).0[0] > 200, "the left becomes the top");
        assert!(image.get_pixel(8, 28).0[2] > 200);
    }

    #[test]
    fn what_is_no_image_says_so() {
        assert!(reason(b"").contains("empty"));
        let text = reason(b"not an image\n");
        assert!(text.contains("not an image: it is text"), "{text}");
        for (bytes, kind) in [
            (&[0x13, 0x37, 0xfe, 0x00, 0x99][..], "of no known kind"),
            (b"root:x:0:0:root\n", "text"),
            (b"\n<!DOCTYPE HTML>secret", "a web page"),
            (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS"),
            (b"%PDF-1.7", "a PDF"),
        ] {
            let said = reason(bytes);
            assert!(said.contains(kind) && !said.contains("root") && !said.contains("secret"), "{said}");
        }
        let other = reason(b"\0\0\0\x1cftypavif\0\0\0\0");
        assert!(other.contains("AVIF") || other.contains("not"), "{other}");
    }

    #[test]
    fn a_truncated_jpeg_is_an_error_wherever_it_is_cut() {
        let whole = jpeg(&gradient(120, 90));
        assert!(decode(&whole).is_ok());
        for length in (2..whole.len()).step_by(97).chain([whole.len() / 3, whole.len() - 2, whole.len() - 1]) {
            assert!(decode(&whole[..length]).is_err(), "{length} of {} bytes were accepted", whole.len());
        }
        let text = reason(&whole[..whole.len() / 3]);
        assert!(text.contains("truncated JPEG"), "{text}");
    }

    #[test]
    fn harmless_bytes_around_a_jpeg_are_accepted() {
        let whole = jpeg(&gradient(40, 30));
        let mut padded = whole.clone();
        padded.extend([0; 64]);
        assert_eq!(decode(&padded).unwrap(), decode(&whole).unwrap(), "bytes after the end");
        let mut stuffed = whole[..20].to_vec();
        stuffed.extend([0; 12]);
        stuffed.extend(&whole[20..]);
        assert_eq!(decode(&stuffed).unwrap(), decode(&whole).unwrap(), "bytes between two segments");
    }

    #[test]
    fn every_cut_or_flipped_png_is_an_error() {
        let whole = encode(gradient(60, 45), ImageFormat::Png);
        for length in (8..whole.len()).step_by(53).chain([whole.len() - 1, whole.len() - 12, whole.len() - 13]) {
            assert!(decode(&whole[..length]).is_err(), "{length} of {} bytes were accepted", whole.len());
        }
        for at in (8..whole.len() - 12).step_by(41) {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x10;
            assert!(decode(&flipped).is_err(), "a flipped bit at {at} of {} went unseen", whole.len());
        }
    }

    #[test]
    fn other_formats_cut_in_half_are_errors() {
        for format in [ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Gif, ImageFormat::Tiff, ImageFormat::Pnm] {
            let whole = encode(gradient(60, 45), format);
            assert!(decode(&whole[..whole.len() / 2]).is_err(), "{format:?}");
        }
    }

    /// A PNG whose header claims `side` x `side` pixels; nothing of that size is ever written.
    fn claims(image: impl Into<DynamicImage>, side: u32) -> Vec<u8> {
        let mut png = encode(image, ImageFormat::Png);
        png[16..20].copy_from_slice(&side.to_be_bytes());
        png[20..24].copy_from_slice(&side.to_be_bytes());
        let mut crc = flate2::Crc::new();
        crc.update(&png[12..29]);
        png[29..33].copy_from_slice(&crc.sum().to_be_bytes());
        png
    }

    #[test]
    fn an_image_above_a_limit_is_refused_by_its_header() {
        let text = reason(&claims(gradient(1, 1), 20_000));
        assert!(text.contains("20000 x 20000") && text.contains("limit of 178956970 pixels"), "{text}");
        let deep: ImageBuffer<Rgb<u16>, Vec<u16>> = ImageBuffer::from_pixel(1, 1, Rgb([1, 2, 3]));
        let text = reason(&claims(deep, 10_000));
        assert!(text.contains("600000000 bytes") && text.contains("512 MiB"), "{text}");
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let whole = jpeg(&gradient(64, 48));
        let mut state = 1u32;
        for _ in 0..300 {
            let mut broken = whole.clone();
            for _ in 0..4 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let at = state as usize % broken.len();
                broken[at] = (state >> 24) as u8;
            }
            let _ = decode(&broken);
        }
    }

    #[test]
    fn real_photographs_decode() {
        let Some(assets) = std::env::var_os("TLPIPE_ASSETS").map(std::path::PathBuf::from) else {
            println!("skipped: TLPIPE_ASSETS is unset, so there are no photographs to read");
            return;
        };
        let photos = std::fs::read_dir(assets.join("photos")).unwrap();
        let mut count = 0;
        for entry in photos {
            let path = entry.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            let image = decode(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert!(image.width() > 50 && image.height() > 50);
            assert!(decode(&bytes[..bytes.len() / 3]).is_err(), "{}: a third of it was accepted", path.display());
            count += 1;
        }
        assert!(count >= 100, "{count} photographs");
    }
}
