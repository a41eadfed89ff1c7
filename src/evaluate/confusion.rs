use ndarray::{Array2, ArrayView2};
use serde::Serialize;

use super::EvaluateError;
use super::error::class_index;

/// Precision, recall and F1 of one class.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ClassScore {
    /// Of the rows predicted as this class, the share that is; 0 where none is predicted (as scikit-learn counts it).
    pub precision: f64,
    /// Of the rows of this class, the share that is predicted; 0 where it has no row.
    pub recall: f64,
    /// Harmonic mean of both; 0 where both are.
    pub f1: f64,
    /// Rows of this class.
    pub support: usize,
    /// Rows predicted as this class.
    pub predicted: usize,
}

/// How often each class was taken for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confusion {
    counts: Array2<usize>,
}

impl Confusion {
    /// Counts predictions against labels; rows without a label are passed over.
    ///
    /// # Errors
    /// When predictions and labels differ in number, or one is no class.
    pub fn count(predicted: &[i32], labels: &[Option<i32>], classes: usize) -> Result<Self, EvaluateError> {
        if predicted.len() != labels.len() {
            return Err(EvaluateError::Rows { scores: predicted.len(), labels: labels.len() });
        }
        let mut counts = Array2::zeros((classes, classes));
        for (row, (&predicted, label)) in predicted.iter().zip(labels).enumerate() {
            let Some(label) = *label else { continue };
            counts[(class_index(row, label, classes)?, class_index(row, predicted, classes)?)] += 1;
        }
        Ok(Self { counts })
    }

    /// Counts `[K, K]`: row the label, column the prediction.
    pub fn counts(&self) -> ArrayView2<'_, usize> {
        self.counts.view()
    }

    /// Share of right predictions; none where nothing was counted.
    pub fn accuracy(&self) -> Option<f64> {
        let rows = self.counts.sum();
        (rows > 0).then(|| self.counts.diag().sum() as f64 / rows as f64)
    }

    /// One score a class.
    pub fn per_class(&self) -> Vec<ClassScore> {
        let share = |part: usize, of: usize| if of == 0 { 0.0 } else { part as f64 / of as f64 };
        let class = |class: usize| {
            let right = self.counts[(class, class)];
            let (support, predicted) = (self.counts.row(class).sum(), self.counts.column(class).sum());
            // 2PR / (P + R), without its division by zero.
            let f1 = share(2 * right, support + predicted);
            ClassScore { precision: share(right, predicted), recall: share(right, support), f1, support, predicted }
        };
        (0..self.counts.nrows()).map(class).collect()
    }
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn agrees_with_scikit_learn() {
        // precision_recall_fscore_support([0,0,0,1,1,2,2,2,2], [0,0,1,1,2,2,2,0,2], labels=[0,1,2,3], zero_division=0).
        let labels: Vec<_> = [0, 0, 0, 1, 1, 2, 2, 2, 2, -1].iter().map(|&label| (label >= 0).then_some(label)).collect();
        let confusion = Confusion::count(&[0, 0, 1, 1, 2, 2, 2, 0, 2, 3], &labels, 4).unwrap();
        assert_eq!(confusion.counts(), array![[2, 1, 0, 0], [0, 1, 1, 0], [1, 0, 3, 0], [0, 0, 0, 0]]);
        let expected =
            [(2.0 / 3.0, 2.0 / 3.0, 2.0 / 3.0, 3, 3), (0.5, 0.5, 0.5, 2, 2), (0.75, 0.75, 0.75, 4, 4), (0.0, 0.0, 0.0, 0, 0)];
        for (got, (precision, recall, f1, support, predicted)) in confusion.per_class().into_iter().zip(expected) {
            assert_eq!(got, ClassScore { precision, recall, f1, support, predicted });
        }
        assert_eq!(confusion.accuracy(), Some(6.0 / 9.0));
        assert_eq!(Confusion::count(&[], &[], 2).unwrap().accuracy(), None);
    }

    #[test]
    fn precision_and_recall_are_not_mixed_up() {
        let labels = [Some(0), Some(0), Some(0), Some(1)];
        let classes = Confusion::count(&[0, 1, 1, 1], &labels, 2).unwrap().per_class();
        assert_eq!((classes[0].precision, classes[0].recall, classes[0].f1), (1.0, 1.0 / 3.0, 0.5));
        assert_eq!((classes[1].precision, classes[1].recall, classes[1].f1), (1.0 / 3.0, 1.0, 0.5));
    }

    #[test]
    fn classes_out_of_range_are_named() {
        let found = Confusion::count(&[0, 2], &[Some(0), Some(1)], 2);
        assert_eq!(found, Err(EvaluateError::Class { row: 1, found: 2, classes: 2 }));
        assert_eq!(Confusion::count(&[0], &[], 2), Err(EvaluateError::Rows { scores: 1, labels: 0 }));
    }
}
