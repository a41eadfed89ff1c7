//! To a square of the network's side: bilinear, antialiased, on bytes, as Pillow does it.

use std::fmt;

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions};

use super::{ImageError, Resize, RgbImage, Window};

/// Resizes images one after the other and keeps its scratch memory between them; one a thread.
#[derive(Default)]
pub struct Resizer {
    inner: fast_image_resize::Resizer,
}

impl fmt::Debug for Resizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resizer").finish_non_exhaustive()
    }
}

impl Resizer {
    /// A resizer with no memory yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Brings an image to `side` x `side` pixels; one that has that size comes back untouched.
    ///
    /// # Errors
    /// When `side` or the image is empty.
    pub fn resize(&mut self, image: RgbImage, side: u32, how: Resize) -> Result<RgbImage, ImageError> {
        let (width, height) = image.dimensions();
        if (width, height) == (side, side) && side > 0 {
            return Ok(image);
        }
        self.part(&image, side, how, Window::Whole)
    }

    /// Brings a part of what [`Self::resize`] would give to `side` x `side` pixels: cut out of the image itself, so that no pixel
    /// is interpolated twice.
    ///
    /// # Errors
    /// When `side` or the image is empty.
    pub fn part(&mut self, image: &RgbImage, side: u32, how: Resize, part: Window) -> Result<RgbImage, ImageError> {
        let (width, height) = image.dimensions();
        let within = |[left, top, width, height]: [f64; 4]| {
            let [x, y, share] = part.shares();
            Some([left + x * width, top + y * height, width * share, height * share])
        };
        match how {
            Resize::Squash => self.scale(image, [side, side], within([0.0, 0.0, f64::from(width), f64::from(height)])),
            Resize::Crop => {
                let long_side = width.max(height);
                let short_side = width.min(height).max(1);
                // torchvision truncates the long side and rounds the margin half to even.
                let long = f64::from(side) * f64::from(long_side) / f64::from(short_side);
                let long = long.floor();
                let margin = ((long - f64::from(side)) / 2.0).round_ties_even();
                let scale = f64::from(long_side) / long;
                let [start, length] = [margin * scale, f64::from(side) * scale];
                let length = length.min(f64::from(long_side) - start);
                let whole = f64::from(short_side);
                let window = if width > height { [start, 0.0, length, whole] } else { [0.0, start, whole, length] };
                self.scale(image, [side, side], within(window))
            }
            Resize::Pad if part != Window::Whole && side > 0 => self.padded(image, side, part),
            Resize::Pad => self.contain(image, side).map(|inside| {
                let mut square = RgbImage::new(side, side);
                let margin = |length: u32| i64::from(half_to_even(f64::from(side - length) / 2.0));
                let (left, top) = (margin(inside.width()), margin(inside.height()));
                ::image::imageops::replace(&mut square, &inside, left, top);
                square
            }),
        }
    }

    /// A part of the square of the long side in whose middle the image lies, black around it.
    fn padded(&mut self, image: &RgbImage, side: u32, part: Window) -> Result<RgbImage, ImageError> {
        let (width, height) = image.dimensions();
        let square = f64::from(width.max(height).max(1));
        let [x, y, share] = part.shares();
        let scale = f64::from(side) / (share * square);
        // Along one axis: first pixel and pixels of the answer, start and length in the image.
        let along = |length: u32, edge: f64| {
            let length = f64::from(length);
            let start = (square - length) / 2.0 - edge * square;
            let [first, last] = [start, start + length].map(|at| (at * scale).clamp(0.0, f64::from(side)));
            let from = half_to_even(first).min(side.saturating_sub(1));
            let pixels = half_to_even(last).saturating_sub(from).max(1);
            let cut = (first / scale - start).max(0.0);
            (from, pixels, cut, ((last - first) / scale).min(length - cut))
        };
        let (left, columns, from_x, across) = along(width, x);
        let (top, rows, from_y, down) = along(height, y);
        let inside = self.scale(image, [columns, rows], Some([from_x, from_y, across, down]))?;
        let mut answer = RgbImage::new(side, side);
        ::image::imageops::replace(&mut answer, &inside, left.into(), top.into());
        Ok(answer)
    }

    /// Brings the long side to `side` and keeps the aspect ratio; no side becomes less than a pixel.
    ///
    /// # Errors
    /// When `side` or the image is empty.
    pub(super) fn contain(&mut self, image: &RgbImage, side: u32) -> Result<RgbImage, ImageError> {
        let (width, height) = image.dimensions();
        let long_side = f64::from(width.max(height).max(1));
        let to = |length: u32| half_to_even(f64::from(length) * f64::from(side) / long_side).max(1).min(side);
        self.scale(image, [to(width), to(height)], None)
    }

    /// `window` is left, top, width and height in the source, in pixels; none is all of it. Rows first, then columns, rounded
    /// to bytes in between, as Pillow does: in the library's own order every thirteenth value would differ by one.
    fn scale(&mut self, image: &RgbImage, [width, height]: [u32; 2], window: Option<[f64; 4]>) -> Result<RgbImage, ImageError> {
        let (from_width, from_height) = image.dimensions();
        let error = |reason: String| ImageError::Resize { width: from_width, height: from_height, side: width, reason };
        if width == 0 || height == 0 || from_width == 0 || from_height == 0 {
            return Err(error("a side of 0 pixels".to_owned()));
        }
        let [left, top, window_width, window_height] =
            window.unwrap_or([0.0, 0.0, f64::from(from_width), f64::from(from_height)]);
        let bilinear = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear)).use_alpha(false);
        let mut pass = |source: &ImageRef<'_>, target: &mut Image<'_>, window: [f64; 4]| {
            let [left, top, width, height] = window;
            self.inner.resize(source, target, &bilinear.crop(left, top, width, height)).map_err(|why| error(why.to_string()))
        };
        let reference = |pixels, width, height| ImageRef::new(width, height, pixels, PixelType::U8x3);

        let source = reference(image.as_raw().as_slice(), from_width, from_height).map_err(|why| error(why.to_string()))?;
        let mut narrow = Image::new(width, from_height, PixelType::U8x3);
        pass(&source, &mut narrow, [left, 0.0, window_width, f64::from(from_height)])?;
        let narrow = reference(narrow.buffer(), width, from_height).map_err(|why| error(why.to_string()))?;
        let mut target = Image::new(width, height, PixelType::U8x3);
        pass(&narrow, &mut target, [0.0, top, f64::from(width), window_height])?;
        RgbImage::from_raw(width, height, target.into_vec()).ok_or_else(|| error("the resizer returned too few bytes".to_owned()))
    }
}

/// Python's `round`, which Pillow uses.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "lengths of images, not negative")]
fn half_to_even(value: f64) -> u32 {
    value.round_ties_even() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Red left, green middle, blue right; `width` is a multiple of three.
    fn stripes(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, _| {
            let mut pixel = [0; 3];
            pixel[(x * 3 / width) as usize] = 255;
            pixel.into()
        })
    }

    fn resized(image: RgbImage, side: u32, how: Resize) -> RgbImage {
        let result = Resizer::new().resize(image, side, how).unwrap();
        assert_eq!(result.dimensions(), (side, side));
        result
    }

    #[test]
    fn squash_keeps_everything_and_crop_keeps_the_middle() {
        let squashed = resized(stripes(90, 30), 30, Resize::Squash);
        assert_eq!([squashed.get_pixel(0, 9).0, squashed.get_pixel(29, 9).0], [[255, 0, 0], [0, 0, 255]]);
        let cropped = resized(stripes(90, 30), 30, Resize::Crop);
        assert!(cropped.pixels().all(|pixel| pixel.0 == [0, 255, 0]), "the middle third is green");
    }

    #[test]
    fn crop_takes_the_middle_of_a_tall_image_too() {
        let tall = ::image::imageops::rotate90(&stripes(90, 30));
        assert!(resized(tall, 30, Resize::Crop).pixels().all(|pixel| pixel.0 == [0, 255, 0]));
    }

    #[test]
    fn pad_puts_black_above_and_below() {
        let padded = resized(stripes(90, 30), 30, Resize::Pad);
        assert!((0..10).chain(20..30).all(|y| padded.get_pixel(15, y).0 == [0, 0, 0]));
        assert_eq!(padded.get_pixel(0, 15).0, [255, 0, 0]);
        assert_eq!(padded.get_pixel(15, 10).0, [0, 255, 0]);
    }

    #[test]
    fn the_right_size_is_left_alone() {
        let image = stripes(30, 30);
        for how in [Resize::Squash, Resize::Crop, Resize::Pad] {
            assert_eq!(resized(image.clone(), 30, how), image);
        }
    }

    #[test]
    fn one_pixel_and_one_row_fill_the_square() {
        for how in [Resize::Squash, Resize::Crop, Resize::Pad] {
            let one = RgbImage::from_pixel(1, 1, [7, 8, 9].into());
            assert!(resized(one, 32, how).pixels().all(|pixel| pixel.0 == [7, 8, 9]));
            let row = RgbImage::from_pixel(20_000, 1, [7, 8, 9].into());
            assert!(resized(row, 32, how).pixels().any(|pixel| pixel.0 == [7, 8, 9]));
        }
    }

    #[test]
    fn parts_are_cut_out_of_what_would_be_seen() {
        // A gradient: what a pixel shows says where it comes from.
        let gradient = |width: u32, height: u32| {
            RgbImage::from_fn(width, height, |x, y| [(x * 255 / width) as u8, (y * 255 / height) as u8, 99].into())
        };
        let corners = |image: &RgbImage, how, part| {
            let seen = Resizer::new().part(image, 64, how, part).unwrap();
            let at = |x, y| seen.get_pixel(x, y).0.map(|value| f64::from(value) / 255.0);
            let ([left, top, _], [right, bottom, _]) = (at(0, 0), at(63, 63));
            [left, top, right, bottom]
        };
        let near = |found: [f64; 4], expected: [f64; 4]| {
            let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(worst < 0.02, "{found:?} {expected:?}");
        };
        let wide = gradient(320, 160);
        near(corners(&wide, Resize::Squash, Window::TopLeft), [0.0, 0.0, 0.875, 0.875]);
        near(corners(&wide, Resize::Squash, Window::BottomRight), [0.125, 0.125, 1.0, 1.0]);
        near(corners(&wide, Resize::Squash, Window::Center), [0.0625, 0.0625, 0.9375, 0.9375]);
        // The middle square is from 0.25 to 0.75.
        near(corners(&wide, Resize::Crop, Window::TopRight), [0.3125, 0.0, 0.75, 0.875]);
        near(corners(&wide, Resize::Crop, Window::BottomLeft), [0.25, 0.125, 0.6875, 1.0]);
        // The square of the long side: black up to a quarter, and from three quarters on.
        for (part, from, rows) in
            [(Window::TopLeft, 0.0, 18..55), (Window::Center, 0.0625, 14..50), (Window::BottomLeft, 0.0, 9..46)]
        {
            let seen = Resizer::new().part(&wide, 64, Resize::Pad, part).unwrap();
            for y in 0..64 {
                let black = seen.get_pixel(9, y).0 == [0; 3];
                assert_eq!(black, !rows.contains(&y), "{part:?}, row {y}");
            }
            let left = f64::from(seen.get_pixel(0, 30).0[0]) / 255.0;
            assert!((left - from).abs() < 0.02, "{part:?}: {left}");
        }
        for (width, height) in [(1, 1), (4000, 1), (1, 4000), (3, 2)] {
            for how in [Resize::Squash, Resize::Crop, Resize::Pad] {
                for part in [Window::Center, Window::TopLeft, Window::TopRight, Window::BottomLeft, Window::BottomRight] {
                    let image = RgbImage::from_pixel(width, height, [7, 8, 9].into());
                    let seen = Resizer::new().part(&image, 32, how, part).unwrap();
                    assert!(seen.pixels().any(|pixel| pixel.0 == [7, 8, 9]), "{width} x {height}, {how}, {part:?}");
                }
            }
        }
        assert!(Resizer::new().part(&wide, 0, Resize::Pad, Window::Center).is_err());
    }

    /// Mirrored first or resized first: bytes that differ by one, here and there. (`crop` and `pad` round their margins to one side.)
    #[test]
    fn squashing_is_nearly_symmetric() {
        let image = RgbImage::from_fn(50, 37, |x, y| [(x * x + 7 * y) as u8, (x * 91 + y * y) as u8, (x ^ y) as u8].into());
        let (mut after, mut before) = (resized(image.clone(), 32, Resize::Squash), image);
        crate::image::mirror(&mut after);
        crate::image::mirror(&mut before);
        let worst = after.as_raw().iter().zip(resized(before, 32, Resize::Squash).as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(worst <= Some(1), "{worst:?}");
    }

    #[test]
    fn a_side_of_nothing_is_an_error() {
        assert!(Resizer::new().resize(RgbImage::new(2, 2), 0, Resize::Squash).is_err());
        assert!(Resizer::new().resize(RgbImage::new(0, 0), 0, Resize::Crop).is_err());
        assert!(Resizer::new().resize(RgbImage::new(0, 3), 4, Resize::Pad).is_err());
    }

    /// Values by Pillow 13: `Image.fromarray(a).resize((3, 3), Image.BILINEAR)` of `a[y, x, c] = (x * 37 + y * 11 + c * 85) % 256`, 8 x 5.
    #[test]
    fn the_same_bytes_as_pillow() {
        let image = RgbImage::from_fn(8, 5, |x, y| [0, 1, 2].map(|c| ((x * 37 + y * 11 + c * 85) % 256) as u8).into());
        let result = resized(image, 3, Resize::Squash);
        let expected = [
            46, 131, 196, 135, 171, 97, 149, 72, 137, 63, 148, 166, 152, 170, 81, 166, 85, 154, 80, 165, 169, 165, 126, 89, 126,
            86, 171,
        ];
        let worst = result.as_raw().iter().zip(expected).map(|(a, b)| a.abs_diff(b)).max();
        assert!(worst <= Some(1), "{:?}\n{expected:?}", result.as_raw());
    }
}
