//! One encoded image to its place in a batch: decode, resize, normalize.

use std::panic::{AssertUnwindSafe, catch_unwind};
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
    /// A decoder that panics on hostile bytes costs that image, not the run.
    ///
    /// # Errors
    /// The reason why the image cannot be used.
    pub(super) fn run(&mut self, bytes: &[u8], out: &mut [f32]) -> Result<(u32, u32), String> {
        let done = catch_unwind(AssertUnwindSafe(|| self.steps(bytes, out)));
        let reason = match done {
            Ok(Ok(size)) => return Ok(size),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the decoder failed on it".into(),
        };
        // Buffers may be half written.
        *self = Self { spent: self.spent, ..Self::new(&self.spec) };
        Err(reason)
    }

    fn steps(&mut self, bytes: &[u8], out: &mut [f32]) -> Result<(u32, u32), ImageError> {
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
}
