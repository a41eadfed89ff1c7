//! What another precision does to the features: a sample of the source in that precision and in fp32 on the processor.

use super::network::infer;
use super::prepare::Preparer;
use super::{ExtractError, Plan, sample};
use crate::events::{Event, Observer};
use crate::image::{ImageSpec, Views};
use crate::runtime::{Compute, Precision, Runtime, Session, SessionOptions};
use crate::store::Drift;

/// Images of the sample: the first ones of the source that can be used.
const SAMPLE: usize = 64;
/// Images prepared at a time.
const AT_ONCE: usize = 8;
/// A mean cosine below this changes what a head learns.
const GOOD_COSINE: f64 = 0.99;
/// A relative distance below this is that of two orders of adding in fp32: the other precision was not computed in.
const LEAST_DISTANCE: f64 = 1e-4;

/// Measures the drift of a session that does not compute in fp32, and tells it; none where there is nothing to measure.
pub(super) fn measure(
    plan: &Plan<'_>,
    runtime: &Runtime,
    session: &Session,
    observe: Observer<'_>,
) -> Result<Option<Drift>, ExtractError> {
    let precision = plan.network.compute.precision();
    if precision == Precision::Fp32 {
        return Ok(None);
    }
    let options = SessionOptions { compute: Compute::CPU, threads: plan.network.threads };
    let exact = runtime.session(plan.network.backbone.model(), &options)?;
    let mut sums = Sums::default();
    // Of the image itself; what another precision does to its other views is no different.
    let spec = ImageSpec { views: Views::default(), ..plan.network.spec.clone() };
    let (values, width) = (spec.values(), plan.network.backbone.width());
    let mut preparer = Preparer::new(&spec);
    for images in sample::take(plan, SAMPLE)?.chunks(AT_ONCE) {
        let mut tensor = vec![0.0; images.len() * values];
        sample::prepare(&mut preparer, images, &mut tensor, values);
        let found = infer(&plan.network, session, &tensor, images.len())?;
        let reference = infer(&plan.network, &exact, &tensor, images.len())?;
        for (found, reference) in found.chunks_exact(width).zip(reference.chunks_exact(width)) {
            sums.add(found, reference);
        }
    }
    let Some(drift) = sums.drift() else { return Ok(None) };
    if drift.relative_l2 < LEAST_DISTANCE {
        return Err(ExtractError::Precision { precision, distance: drift.relative_l2 });
    }
    let text = format!(
        "{precision} against fp32 on {} images: cosine {:.5} (least {:.5}), relative L2 distance {:.4}",
        drift.images, drift.cosine_mean, drift.cosine_min, drift.relative_l2
    );
    observe(if drift.cosine_mean < GOOD_COSINE {
        Event::Warned(format!("{text}: features as far off as this cost accuracy; --precision fp32 is exact"))
    } else {
        Event::Noted(format!("  {text}"))
    });
    Ok(Some(drift))
}

/// Sums over the rows of a sample.
#[derive(Default)]
struct Sums {
    images: usize,
    cosines: f64,
    least: Option<f64>,
    difference: f64,
    reference: f64,
}

impl Sums {
    fn add(&mut self, found: &[f32], reference: &[f32]) {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let (own, other, both) = (dot(found, found), dot(reference, reference), dot(found, reference));
        // Two rows of zeros are the same, one alone has no direction.
        let cosine = if own == other && own == 0.0 { 1.0 } else { both / (own * other).sqrt().max(f64::MIN_POSITIVE) };
        self.images += 1;
        self.cosines += cosine;
        self.least = Some(self.least.map_or(cosine, |least| least.min(cosine)));
        self.difference += found.iter().zip(reference).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>();
        self.reference += other;
    }

    #[allow(clippy::cast_precision_loss, reason = "a sample is small")]
    fn drift(&self) -> Option<Drift> {
        Some(Drift {
            images: self.images,
            cosine_mean: self.cosines / self.images.max(1) as f64,
            cosine_min: self.least?,
            relative_l2: (self.difference / self.reference.max(f64::MIN_POSITIVE)).sqrt(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_rows_have_no_drift_and_turned_ones_do() {
        let mut sums = Sums::default();
        assert_eq!(sums.drift(), None);
        sums.add(&[3.0, 4.0], &[3.0, 4.0]);
        sums.add(&[0.0, 0.0], &[0.0, 0.0]);
        let drift = sums.drift().unwrap();
        assert_eq!((drift.images, drift.cosine_min, drift.relative_l2), (2, 1.0, 0.0));
        sums.add(&[1.0, 0.0], &[0.0, 1.0]);
        let drift = sums.drift().unwrap();
        assert!(drift.cosine_min.abs() < 1e-12 && (drift.cosine_mean - 2.0 / 3.0).abs() < 1e-12);
        // Square root of 2 / 26.
        assert!((drift.relative_l2 - (2.0_f64 / 26.0).sqrt()).abs() < 1e-12);
    }
}
