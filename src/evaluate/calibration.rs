use ndarray::ArrayView2;
use serde::Serialize;

use super::{EvaluateError, argmax, labelled};

/// Rows of similar confidence: the probability of their predicted class lies above `lower` (or is 0) and at or below `upper`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bin {
    /// Lower bound.
    pub lower: f64,
    /// Upper bound.
    pub upper: f64,
    /// Labelled rows in the bin.
    pub rows: usize,
    /// Their mean confidence; 0 where there is none.
    pub confidence: f64,
    /// Share of them that is right; 0 where there is none.
    pub accuracy: f64,
}

/// How far confidence and accuracy agree.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Calibration {
    /// Expected calibration error: the mean of |confidence - accuracy| over the bins, weighted by their rows.
    pub error: f64,
    /// Bins of equal width over 0 to 1.
    pub bins: Vec<Bin>,
}

impl Calibration {
    /// Bins of the usual expected calibration error (Guo and others, 2017).
    pub const BINS: usize = 15;

    /// Measures probabilities `[N, K]` in [`Calibration::BINS`] bins. None where no row has a label.
    ///
    /// # Errors
    /// When probabilities and labels differ in number, a label is no class, or a probability is not finite.
    pub fn measure(probabilities: ArrayView2<'_, f32>, labels: &[Option<i32>]) -> Result<Option<Self>, EvaluateError> {
        let rows = labelled(probabilities, labels)?;
        let width = Self::BINS as f64;
        let bound = |bin: usize| bin as f64 / width;
        let mut bins: Vec<Bin> = (0..Self::BINS)
            .map(|bin| Bin { lower: bound(bin), upper: bound(bin + 1), rows: 0, confidence: 0.0, accuracy: 0.0 })
            .collect();
        for &(row, label) in &rows {
            let values = probabilities.row(row).to_vec();
            if !values.iter().all(|value| value.is_finite()) {
                return Err(EvaluateError::NotFinite { row });
            }
            let predicted = argmax(&values);
            let confidence = f64::from(values[predicted]);
            let bin = &mut bins[((confidence * width).ceil() as usize).clamp(1, Self::BINS) - 1];
            bin.rows += 1;
            bin.confidence += confidence;
            bin.accuracy += f64::from(u8::from(predicted == label));
        }
        let mut error = 0.0;
        for bin in bins.iter_mut().filter(|bin| bin.rows > 0) {
            error += (bin.confidence - bin.accuracy).abs() / rows.len() as f64;
            bin.confidence /= bin.rows as f64;
            bin.accuracy /= bin.rows as f64;
        }
        Ok((!rows.is_empty()).then_some(Self { error, bins }))
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn the_error_is_the_weighted_gap() {
        let probabilities = array![[0.95_f32, 0.05], [0.95, 0.05], [0.4, 0.6], [0.625, 0.375], [0.5, 0.5]];
        let labels = [Some(0), Some(1), Some(1), Some(0), None];
        let found = Calibration::measure(probabilities.view(), &labels).unwrap().unwrap();
        // Bin 0.933 to 1: confidence 0.95, half of two right. Bin 0.6 to 0.667: confidence 0.6 (in f32 just above) and 0.625, both right.
        let expected = (2.0 * (0.95 - 0.5) + 2.0 * (1.0 - 0.6125)) / 4.0;
        assert!((found.error - expected).abs() < 1e-7, "{}", found.error);
        assert_eq!((found.bins[14].rows, found.bins[14].accuracy), (2, 0.5));
        assert_eq!((found.bins[9].rows, found.bins[9].accuracy), (2, 1.0));
        assert_eq!(found.bins.iter().map(|bin| bin.rows).sum::<usize>(), 4);
        assert_eq!(Calibration::measure(probabilities.view(), &[None; 5]).unwrap(), None);
    }

    #[test]
    fn certainty_falls_into_the_last_bin() {
        let probabilities = array![[1.0_f32, 0.0], [0.0, 1.0]];
        let found = Calibration::measure(probabilities.view(), &[Some(0), Some(1)]).unwrap().unwrap();
        assert_eq!((found.error, found.bins[14].rows), (0.0, 2));
    }
}
