use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Figures of one class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassScore {
    /// Its name.
    pub class: String,
    /// Rows with this label.
    pub rows: usize,
    /// Rows answered with this class.
    pub predicted: usize,
    /// Share of the answers that is right; none where the class was never answered.
    pub precision: Option<f64>,
    /// Share of the rows that was answered right; none where no row has the class.
    pub recall: Option<f64>,
    /// `2 right / (rows + predicted)`; none where no row has the class and none was answered with it.
    pub f1: Option<f64>,
}

/// Figures over the classes that have rows. Micro averages of all three are the accuracy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Averages {
    /// Mean precision; a class that was never answered counts as 0.
    pub macro_precision: f64,
    /// Mean recall: the accuracy where every class counts alike.
    pub balanced_accuracy: f64,
    /// Mean F1.
    pub macro_f1: f64,
    /// Mean F1, weighted by the rows of the classes.
    pub weighted_f1: f64,
}

/// How often a label was answered with a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfusionCell {
    /// True class.
    pub label: usize,
    /// Answer.
    pub predicted: usize,
    /// Rows.
    pub count: usize,
}

/// How often each label was answered with each class: the cells that are not zero, by label, then answer.
pub(super) struct Confusion {
    pub(super) cells: Vec<(usize, usize, usize)>,
    classes: usize,
}

impl Confusion {
    /// Counts pairs of label and answer.
    pub(super) fn count(pairs: impl Iterator<Item = (usize, usize)>, classes: usize) -> Self {
        let mut keys: Vec<u64> = pairs.map(|(label, predicted)| (label * classes + predicted) as u64).collect();
        keys.par_sort_unstable();
        let cells = keys.chunk_by(|a, b| a == b).map(|chunk| {
            let key = chunk[0] as usize;
            (key / classes, key % classes, chunk.len())
        });
        Self { cells: cells.collect(), classes }
    }

    /// Rows, answers and right answers of each class, of these counts of the cells.
    fn margins(&self, counts: impl Iterator<Item = usize>) -> Vec<[usize; 3]> {
        let mut margins = vec![[0; 3]; self.classes];
        for (&(label, predicted, _), count) in self.cells.iter().zip(counts) {
            margins[label][0] += count;
            margins[predicted][1] += count;
            if label == predicted {
                margins[label][2] += count;
            }
        }
        margins
    }

    fn counts(&self) -> impl Iterator<Item = usize> {
        self.cells.iter().map(|cell| cell.2)
    }

    /// One score a class.
    pub(super) fn per_class(&self, names: &[String]) -> Vec<ClassScore> {
        let share = |part: usize, of: usize| (of > 0).then(|| part as f64 / of as f64);
        let score = |([rows, predicted, right], class): ([usize; 3], &String)| ClassScore {
            class: class.clone(),
            rows,
            predicted,
            precision: share(right, predicted),
            recall: share(right, rows),
            f1: share(2 * right, rows + predicted),
        };
        self.margins(self.counts()).into_iter().zip(names).map(score).collect()
    }

    /// Averages over the classes.
    pub(super) fn averages(&self) -> Averages {
        self.averages_of(self.counts())
    }

    /// Averages where the cells had these counts.
    pub(super) fn averages_of(&self, counts: impl Iterator<Item = usize>) -> Averages {
        let share = |part: usize, of: usize| if of == 0 { 0.0 } else { part as f64 / of as f64 };
        let (mut sums, mut present, mut all) = (Averages::default(), 0.0, 0.0);
        for [rows, predicted, right] in self.margins(counts).into_iter().filter(|&[rows, ..]| rows > 0) {
            let f1 = share(2 * right, rows + predicted);
            sums.macro_precision += share(right, predicted);
            sums.balanced_accuracy += share(right, rows);
            sums.macro_f1 += f1;
            sums.weighted_f1 += f1 * rows as f64;
            present += 1.0;
            all += rows as f64;
        }
        let Averages { macro_precision, balanced_accuracy, macro_f1, weighted_f1 } = sums;
        Averages {
            macro_precision: macro_precision / present,
            balanced_accuracy: balanced_accuracy / present,
            macro_f1: macro_f1 / present,
            weighted_f1: weighted_f1 / all,
        }
    }

    /// The pairs that are confused most often, the largest first; of equals by label, then answer.
    pub(super) fn confused(&self, most: usize) -> Vec<ConfusionCell> {
        let pairs = self.cells.iter().filter(|(label, predicted, _)| label != predicted);
        let mut pairs: Vec<_> = pairs.map(|&(label, predicted, count)| ConfusionCell { label, predicted, count }).collect();
        pairs.sort_by_key(|pair| (std::cmp::Reverse(pair.count), pair.label, pair.predicted));
        pairs.truncate(most);
        pairs
    }

    /// The matrix `[K][K]`: row the label, column the answer.
    pub(super) fn matrix(&self) -> Vec<Vec<usize>> {
        let mut matrix = vec![vec![0; self.classes]; self.classes];
        self.cells.iter().for_each(|&(label, predicted, count)| matrix[label][predicted] = count);
        matrix
    }
}
