//! One encoded image to its place in a batch: decode, resize, normalize, once for each view.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use crate::image::{ImageError, ImageSpec, MAX_PIXELS, PixelTable, Resizer, RgbImage, View, Window, decode_up_to, mirror};
use crate::store::StageSeconds;

/// An image as it comes.
pub(crate) enum Picture<'a> {
    /// A file's content.
    Encoded(&'a [u8]),
    /// Decoded by somebody else.
    Pixels(RgbImage),
}

/// Keeps the buffers that one thread needs, and what it spent.
pub(crate) struct Preparer {
    spec: ImageSpec,
    max_pixels: u64,
    parts: Vec<Window>,
    resizer: Resizer,
    table: PixelTable,
    /// Seconds in `decode`, `resize` and `normalize`.
    pub(super) spent: StageSeconds,
}

impl Preparer {
    pub(super) fn new(spec: &ImageSpec) -> Self {
        Self::up_to(spec, MAX_PIXELS)
    }

    /// One that refuses larger images.
    pub(crate) fn up_to(spec: &ImageSpec, max_pixels: u64) -> Self {
        let (resizer, table) = (Resizer::new(), PixelTable::new(&spec.pixels));
        Self { spec: spec.clone(), max_pixels, parts: spec.views.parts(), resizer, table, spent: StageSeconds::default() }
    }

    /// Writes the numbers of the image's views to `out`, which holds [`ImageSpec::values_of_views`]; returns the width and height of the source, pixels.
    ///
    /// # Errors
    /// The reason why the image cannot be used.
    pub(super) fn run(&mut self, bytes: &[u8], out: &mut [f32]) -> Result<(u32, u32), String> {
        self.numbers(Picture::Encoded(bytes), out)
    }

    /// The same for an image that may be decoded already.
    ///
    /// # Errors
    /// The reason why the image cannot be used.
    pub(crate) fn numbers(&mut self, picture: Picture<'_>, out: &mut [f32]) -> Result<(u32, u32), String> {
        self.guarded(|preparer| preparer.steps(picture, out))
    }

    /// The bytes of the whole image at the network's size, `[side, side, 3]`.
    ///
    /// # Errors
    /// The reason why the image cannot be used.
    pub(crate) fn bytes(&mut self, picture: Picture<'_>) -> Result<RgbImage, String> {
        self.guarded(|preparer| {
            let image = preparer.decoded(picture)?;
            preparer.resizer.resize(image, preparer.spec.side, preparer.spec.resize)
        })
    }

    /// The image at its own size.
    ///
    /// # Errors
    /// The reason why the image cannot be used.
    pub(crate) fn pixels(&mut self, picture: Picture<'_>) -> Result<RgbImage, String> {
        self.guarded(|preparer| preparer.decoded(picture))
    }

    /// A decoder that panics on hostile bytes costs that image, not the run.
    fn guarded<T>(&mut self, steps: impl FnOnce(&mut Self) -> Result<T, ImageError>) -> Result<T, String> {
        let reason = match catch_unwind(AssertUnwindSafe(|| steps(self))) {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the decoder failed on it".into(),
        };
        // Buffers may be half written.
        *self = Self { spent: self.spent, ..Self::up_to(&self.spec, self.max_pixels) };
        Err(reason)
    }

    fn decoded(&self, picture: Picture<'_>) -> Result<RgbImage, ImageError> {
        match picture {
            Picture::Encoded(bytes) => decode_up_to(bytes, self.max_pixels),
            Picture::Pixels(image) => Ok(image),
        }
    }

    fn steps(&mut self, picture: Picture<'_>, out: &mut [f32]) -> Result<(u32, u32), ImageError> {
        let start = Instant::now();
        let image = self.decoded(picture)?;
        let size = image.dimensions();
        self.spent.decode += start.elapsed().as_secs_f64();
        let (side, how) = (self.spec.side, self.spec.resize);
        for at in 0..self.parts.len() {
            let part = self.parts[at];
            let resizing = Instant::now();
            let small = self.resizer.part(&image, side, how, part)?;
            self.spent.resize += resizing.elapsed().as_secs_f64();
            self.write(small, part, out)?;
        }
        let resizing = Instant::now();
        let small = self.resizer.resize(image, side, how)?;
        self.spent.resize += resizing.elapsed().as_secs_f64();
        self.write(small, Window::Whole, out)?;
        Ok(size)
    }

    /// Writes the views that show a part.
    fn write(&mut self, mut small: RgbImage, window: Window, out: &mut [f32]) -> Result<(), ImageError> {
        let start = Instant::now();
        let values = self.spec.values();
        for mirrored in [false, true] {
            if let Some(at) = self.spec.views.iter().position(|view| *view == View { window, mirrored }) {
                if mirrored {
                    mirror(&mut small);
                }
                self.table.write(&small, out.get_mut(at * values..).and_then(|out| out.get_mut(..values)).unwrap_or_default())?;
            }
        }
        self.spent.normalize += start.elapsed().as_secs_f64();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::image::{PixelFormat, Resize, Views};

    fn spec(views: &[&str], pixels: PixelFormat, resize: Resize) -> ImageSpec {
        let views = Views::new(views.iter().map(|view| view.parse().unwrap()).collect()).unwrap();
        ImageSpec { side: 16, resize, pixels, views }
    }

    fn png(image: &RgbImage) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, ::image::ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    fn prepared(spec: &ImageSpec, image: &RgbImage) -> Vec<f32> {
        let mut out = vec![f32::NAN; spec.values_of_views()];
        assert_eq!(Preparer::new(spec).run(&png(image), &mut out).unwrap(), image.dimensions());
        out
    }

    fn drawing(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| [(x * x * 3 + y) as u8, (x * 7 + y * y) as u8, (x * y + 90) as u8].into())
    }

    #[test]
    fn the_mirrored_view_is_that_of_the_mirrored_file() {
        for pixels in [PixelFormat::TENSORFLOW, PixelFormat::IMAGENET] {
            let spec = spec(&["identity", "hflip"], pixels, Resize::Squash);
            let image = drawing(16, 16);
            let mut mirrored = image.clone();
            mirror(&mut mirrored);
            let (own, other) = (prepared(&spec, &image), prepared(&spec, &mirrored));
            let (identity, hflip) = own.split_at(spec.values());
            assert_ne!(identity, hflip);
            assert_eq!(other, [hflip, identity].concat());
        }
    }

    #[test]
    fn each_view_is_what_it_is_alone_in_any_order() {
        let image = drawing(50, 37);
        let names = ["identity", "bottom-right-hflip", "center", "hflip", "bottom-right"];
        for resize in [Resize::Squash, Resize::Crop, Resize::Pad] {
            let spec = |views: &[&str]| spec(views, PixelFormat::IMAGENET, resize);
            let all = prepared(&spec(&names), &image);
            let each: Vec<&[f32]> = all.chunks(spec(&names).values()).collect();
            assert_eq!(each.len(), 5);
            assert!(all.iter().all(|value| value.is_finite()));
            for (name, found) in names.into_iter().zip(&each).skip(1) {
                let alone = prepared(&spec(&["identity", name]), &image);
                assert_eq!(alone, [each[0], found].concat(), "{resize}, {name}");
            }
            let distinct = each.iter().enumerate().all(|(at, view)| each[..at].iter().all(|other| other != view));
            assert!(distinct, "{resize}");
        }
    }
}
