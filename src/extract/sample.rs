//! The first images of a source that can be used: what a measurement is made on.

use bytes::Bytes;

use super::prepare::Preparer;
use super::{ExtractError, Plan};

/// Up to so many images, encoded.
pub(super) fn take(plan: &Plan<'_>, images: usize) -> Result<Vec<Bytes>, ExtractError> {
    let mut preparer = Preparer::new(&plan.network.spec);
    let mut scratch = vec![0.0; plan.network.spec.values_of_views()];
    let mut sample = Vec::with_capacity(images);
    for split in plan.dataset.splits() {
        for record in plan.dataset.records(&split.name)? {
            if sample.len() == images {
                return Ok(sample);
            }
            // The engine says what is wrong with an image; here another one serves.
            if let Ok(bytes) = record?.image.read()?
                && preparer.run(&bytes, &mut scratch).is_ok()
            {
                sample.push(bytes);
            }
        }
    }
    Ok(sample)
}

/// Writes images of a sample, `values` numbers of views each, one after the other to `tensors`.
pub(super) fn prepare(preparer: &mut Preparer, images: &[Bytes], tensors: &mut [f32], values: usize) {
    for (bytes, out) in images.iter().zip(tensors.chunks_exact_mut(values)) {
        // They could be used when the sample was taken.
        let _ = preparer.run(bytes, out);
    }
}
