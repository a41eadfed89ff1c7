//! Bytes to the network's numbers.

use super::{ChannelOrder, ImageError, Layout, PixelFormat, RgbImage};

/// A [`PixelFormat`] worked out for each of the 256 bytes: one look-up a value, and the same bits as the arithmetic.
#[derive(Clone, Debug)]
pub struct PixelTable {
    layout: Layout,
    /// Which of red, green and blue stands in each channel of the tensor.
    source: [usize; 3],
    values: [[f32; 256]; 3],
}

impl PixelTable {
    /// Works the table out.
    pub fn new(format: &PixelFormat) -> Self {
        let mut values = [[0.0; 256]; 3];
        for (channel, values) in values.iter_mut().enumerate() {
            for (byte, value) in (0u8..=255).zip(values.iter_mut()) {
                *value = (f32::from(byte) / format.divisor - format.mean[channel]) / format.std[channel];
            }
        }
        let source = match format.order {
            ChannelOrder::Rgb => [0, 1, 2],
            ChannelOrder::Bgr => [2, 1, 0],
        };
        Self { layout: format.layout, source, values }
    }

    /// Writes the tensor of one image, `[height, width, 3]` or `[3, height, width]`.
    ///
    /// # Errors
    /// When `out` does not hold exactly `width * height * 3` values.
    pub fn write(&self, image: &RgbImage, out: &mut [f32]) -> Result<(), ImageError> {
        let pixels = image.as_raw().chunks_exact(3);
        let plane = pixels.len();
        if out.len() != plane * 3 {
            let (width, height) = image.dimensions();
            return Err(ImageError::Buffer { width, height, expected: plane * 3, found: out.len() });
        }
        let [[a, b, c], [first, second, third]] = [self.source, [0, 1, 2]];
        let value = |channel: usize, byte: u8| self.values[channel][usize::from(byte)];
        match self.layout {
            Layout::Nhwc => {
                for (out, pixel) in out.chunks_exact_mut(3).zip(pixels) {
                    out[0] = value(first, pixel[a]);
                    out[1] = value(second, pixel[b]);
                    out[2] = value(third, pixel[c]);
                }
            }
            Layout::Nchw => {
                let (out_0, rest) = out.split_at_mut(plane);
                let (out_1, out_2) = rest.split_at_mut(plane);
                for (((pixel, out_0), out_1), out_2) in pixels.zip(out_0).zip(out_1).zip(out_2) {
                    *out_0 = value(first, pixel[a]);
                    *out_1 = value(second, pixel[b]);
                    *out_2 = value(third, pixel[c]);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two pixels: (10, 20, 30) and (40, 50, 60).
    fn image() -> RgbImage {
        RgbImage::from_raw(2, 1, vec![10, 20, 30, 40, 50, 60]).unwrap()
    }

    fn tensor(format: &PixelFormat) -> Vec<f32> {
        let mut out = vec![f32::NAN; 6];
        PixelTable::new(format).write(&image(), &mut out).unwrap();
        out
    }

    #[test]
    fn layouts_and_orders() {
        let plain = PixelFormat { divisor: 1.0, mean: [0.0; 3], std: [1.0; 3], ..PixelFormat::TENSORFLOW };
        assert_eq!(tensor(&plain), [10.0, 20.0, 30.0, 40.0, 50.0, 60.0]);
        let planes = PixelFormat { layout: Layout::Nchw, ..plain.clone() };
        assert_eq!(tensor(&planes), [10.0, 40.0, 20.0, 50.0, 30.0, 60.0]);
        let bgr = PixelFormat { order: ChannelOrder::Bgr, mean: [1.0, 2.0, 3.0], ..plain };
        assert_eq!(tensor(&bgr), [29.0, 18.0, 7.0, 59.0, 48.0, 37.0], "means count the tensor's channels");
    }

    #[test]
    fn arithmetic_of_the_two_families() {
        assert_eq!(tensor(&PixelFormat::TENSORFLOW)[0], 10.0 / 127.5 - 1.0);
        let expected = (20.0 / 255.0 - 0.456) / 0.224;
        assert_eq!(tensor(&PixelFormat::IMAGENET)[2], expected);
    }

    #[test]
    fn a_wrong_buffer_is_an_error() {
        let error = PixelTable::new(&PixelFormat::TENSORFLOW).write(&image(), &mut [0.0; 5]).unwrap_err();
        assert!(matches!(error, ImageError::Buffer { expected: 6, found: 5, .. }), "{error}");
    }
}
