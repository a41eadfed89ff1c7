//! One encoded image to its place in a batch: decode, resize, normalize.

use crate::image::{ImageError, ImageSpec, PixelTable, Resizer, decode};

/// Keeps the buffers that one thread needs.
pub(super) struct Preparer {
    spec: ImageSpec,
    resizer: Resizer,
    table: PixelTable,
}

impl Preparer {
    pub(super) fn new(spec: &ImageSpec) -> Self {
        Self { spec: spec.clone(), resizer: Resizer::new(), table: PixelTable::new(&spec.pixels) }
    }

    /// Writes the image's numbers to `out`, which holds [`ImageSpec::values`]; returns the width and height of the source, pixels.
    pub(super) fn run(&mut self, bytes: &[u8], out: &mut [f32]) -> Result<(u32, u32), ImageError> {
        let image = decode(bytes)?;
        let size = image.dimensions();
        let small = self.resizer.resize(image, self.spec.side, self.spec.resize)?;
        self.table.write(&small, out)?;
        Ok(size)
    }
}
