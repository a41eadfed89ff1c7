//! One encoded image to its place in a batch: decode, resize, normalize.

use std::time::Instant;

use crate::image::{ImageError, ImageSpec, PixelTable, Resizer, decode};
use crate::store::StageSeconds;

/// Keeps the buffers that one thread needs, and what it spent.
pub(super) struct Preparer {
    spec: ImageSpec,
    resizer: Resizer,
    table: PixelTable,
    /// Seconds in `decode`, `resize` and `normalize`.
    pub(super) spent: StageSeconds,
}

impl Preparer {
    pub(super) fn new(spec: &ImageSpec) -> Self {
        let (resizer, table) = (Resizer::new(), PixelTable::new(&spec.pixels));
        Self { spec: spec.clone(), resizer, table, spent: StageSeconds::default() }
    }

    /// Writes the image's numbers to `out`, which holds [`ImageSpec::values`]; returns the width and height of the source, pixels.
    pub(super) fn run(&mut self, bytes: &[u8], out: &mut [f32]) -> Result<(u32, u32), ImageError> {
        let start = Instant::now();
        let image = decode(bytes)?;
        let size = image.dimensions();
        let decoded = Instant::now();
        let small = self.resizer.resize(image, self.spec.side, self.spec.resize)?;
        let resized = Instant::now();
        self.table.write(&small, out)?;
        self.spent.decode += (decoded - start).as_secs_f64();
        self.spent.resize += (resized - decoded).as_secs_f64();
        self.spent.normalize += resized.elapsed().as_secs_f64();
        Ok(size)
    }

    /// Drops buffers that a panic may have left half written.
    pub(super) fn renew(&mut self) {
        *self = Self { spent: self.spent, ..Self::new(&self.spec) };
    }
}
