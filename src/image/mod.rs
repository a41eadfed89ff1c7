//! From encoded bytes to the numbers a network reads: decode, orient, resize, normalize.
//!
//! ```text
//! JPEG, PNG, … ──decode──▶ RgbImage [h, w, 3] ──Resizer──▶ RgbImage [side, side, 3] ──PixelTable──▶ f32 [side, side, 3] or [3, side, side]
//! ```
//!
//! The arithmetic is that of Pillow and torchvision, since most published weights were trained on it: bilinear, antialiased,
//! rounded to bytes. [`ImageSpec`] says all of it in a few values that can be stored and compared.
//!
//! ```
//! use tlpipe::image::{PixelFormat, PixelTable, Resize, Resizer, RgbImage};
//!
//! let image = RgbImage::from_pixel(4, 2, [255, 0, 0].into());
//! let small = Resizer::new().resize(image, 2, Resize::Squash)?;
//! let mut tensor = vec![0.0; 2 * 2 * 3];
//! PixelTable::new(&PixelFormat::TENSORFLOW).write(&small, &mut tensor)?;
//! assert_eq!(&tensor[..3], [1.0, -1.0, -1.0]);
//! # Ok::<(), tlpipe::image::ImageError>(())
//! ```

mod decode;
mod normalize;
mod resize;
mod spec;
mod thumbnail;
mod views;

pub use ::image::RgbImage;

pub use decode::{MAX_PIXELS, decode, decode_up_to, is_whole};
pub use normalize::PixelTable;
pub use resize::Resizer;
pub use spec::{ChannelOrder, ImageSpec, Layout, PixelFormat, Resize};
pub use thumbnail::thumbnail;
pub use views::{View, Views, Window, mirror};

/// Why an image cannot be used. Each is about one image: work on the others goes on.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// There are no bytes.
    #[error("the file is empty (0 bytes)")]
    Empty,
    /// The first bytes are those of no format that is read.
    #[error("not an image: it is {kind}; JPEG, PNG, WebP, BMP, GIF, TIFF and PNM are read")]
    UnknownFormat {
        /// What it seems to be.
        kind: &'static str,
    },
    /// The file ends before the image does.
    #[error("truncated {format}: the file ends before the image does")]
    Truncated {
        /// The format by its first bytes.
        format: &'static str,
    },
    /// The file is damaged, or uses a feature that the decoder lacks.
    #[error("{format} cannot be decoded: {reason}")]
    Damaged {
        /// The format by its first bytes.
        format: &'static str,
        /// What the decoder says.
        reason: String,
    },
    /// More pixels than anyone should decode by accident.
    #[error("{width} x {height} pixels is above the limit of {limit} pixels; scale the image down first")]
    TooLarge {
        /// Width in pixels, from the header.
        width: u32,
        /// Height in pixels, from the header.
        height: u32,
        /// Most pixels.
        limit: u64,
    },
    /// The image would need more memory than one image may take.
    #[error(
        "{width} x {height} pixels would take {bytes} bytes decoded, above the limit of 512 MiB; scale the image down or save it with 8 bits a channel"
    )]
    TooManyBytes {
        /// Width in pixels, from the header.
        width: u32,
        /// Height in pixels, from the header.
        height: u32,
        /// Size of the decoded image in the file's own depth.
        bytes: u64,
    },
    /// Resizing or encoding failed.
    #[error("{width} x {height} pixels cannot be brought to {side} pixels: {reason}")]
    Resize {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// The side asked for.
        side: u32,
        /// Why not.
        reason: String,
    },
    /// A tensor buffer of the wrong length.
    #[error("a {width} x {height} image makes {expected} values, the buffer holds {found}")]
    Buffer {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// Values that the image makes.
        expected: usize,
        /// Values that the buffer holds.
        found: usize,
    },
    /// A list of views that cannot be.
    #[error("views: {0}")]
    Views(String),
    /// A setting that is none of the known ones.
    #[error("{found:?} is no {what}; use one of {allowed}")]
    UnknownName {
        /// The setting.
        what: &'static str,
        /// What was given.
        found: String,
        /// What may be given.
        allowed: &'static str,
    },
}
