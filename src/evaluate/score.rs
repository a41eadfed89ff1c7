use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::bootstrap::{bootstrap, loss_interval};
use super::calibration::{Calibration, Scaled};
use super::confusion::Confusion;
use super::roc::roc_auc;
use super::{EvaluateError, argmax, labelled, log_sum_exp, wilson_interval};
use crate::run::SplitScore;

/// Rows that one task scores.
pub(super) const BLOCK_ROWS: usize = 1024;

/// Logits that one task looks at, about.
const TASK_VALUES: usize = 1 << 16;

/// Classes above which the confusion matrix is left out.
const MOST_CONFUSION: usize = 100;

/// Confused pairs that are listed.
const MOST_CONFUSED: usize = 20;

/// Probabilities that are held for the ROC curves, 256 MiB; above, they are left out.
const MOST_VALUES: usize = 1 << 26;

/// The `k` of top-k accuracy.
const TOP: usize = 5;

/// Share of rows whose label is among the `k` most probable classes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TopK {
    /// How many classes count.
    pub k: usize,
    /// 0 to 1.
    pub accuracy: f64,
}

/// What scores need of one labelled row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) label: usize,
    pub(super) predicted: usize,
    /// Probability of the answer.
    pub(super) confidence: f64,
    pub(super) loss: f64,
    /// `ln(sum(exp(logit)))`.
    log_sum: f64,
    /// Classes that come before the label.
    rank: usize,
}

/// Everything `metrics.json` says of a split, from logits `[N, K]`. None where no row has a label. Summed in f64, in the order
/// of the rows, whatever the number of threads.
///
/// # Errors
/// When logits and labels differ in number, a label is no class, or a logit of a labelled row is not finite.
pub fn score(
    logits: ArrayView2<'_, f32>,
    labels: &[Option<i32>],
    classes: &[String],
) -> Result<Option<SplitScore>, EvaluateError> {
    let mut scorer = Scorer::new(classes, labels.len(), None);
    scorer.add(logits, labels)?;
    Ok(scorer.finish())
}

/// Scores of a split whose logits come block by block, which need not be held.
pub struct Scorer<'a> {
    classes: &'a [String],
    temperature: Option<f64>,
    /// Rows so far, with a label or not.
    seen: usize,
    rows: Vec<Row>,
    scaled: Vec<Row>,
    /// `[rows, K]`; none where they would be too many.
    probabilities: Option<Vec<f32>>,
}

impl<'a> Scorer<'a> {
    /// For `rows` rows. With a temperature, [`SplitScore::scaled`] is found, too.
    pub fn new(classes: &'a [String], rows: usize, temperature: Option<f64>) -> Self {
        let probabilities = (rows.saturating_mul(classes.len()) <= MOST_VALUES).then(Vec::new);
        Self { classes, temperature, seen: 0, rows: Vec::new(), scaled: Vec::new(), probabilities }
    }

    /// Adds logits `[N, K]` and their labels.
    ///
    /// # Errors
    /// As [`score`]; rows are counted from the first that was added.
    pub fn add(&mut self, logits: ArrayView2<'_, f32>, labels: &[Option<i32>]) -> Result<(), EvaluateError> {
        let later = |error: EvaluateError| error.after(self.seen);
        let listed = labelled(logits, labels).map_err(later)?;
        let rows = rows_of(logits, &listed, 1.0).map_err(later)?;
        if let Some(temperature) = self.temperature {
            self.scaled.extend(rows_of(logits, &listed, temperature).map_err(later)?);
        }
        if let Some(all) = &mut self.probabilities {
            let start = all.len();
            all.resize(start + listed.len() * logits.ncols(), 0.0);
            let places = all[start..].par_chunks_exact_mut(logits.ncols().max(1));
            places.zip(&listed).zip(&rows).for_each(|((place, &(row, _)), scored)| {
                let chance = |&logit: &f32| (f64::from(logit) - scored.log_sum).exp() as f32;
                place.iter_mut().zip(logits.row(row)).for_each(|(p, logit)| *p = chance(logit));
            });
        }
        self.rows.extend(rows);
        self.seen += labels.len();
        Ok(())
    }

    /// The scores; none where no row has a label.
    pub fn finish(self) -> Option<SplitScore> {
        let Self { classes, rows, scaled, probabilities, temperature, .. } = self;
        if rows.is_empty() {
            return None;
        }
        let width = classes.len();
        let count = rows.len() as f64;
        let right = rows.iter().filter(|row| row.predicted == row.label).count();
        let losses: Vec<f64> = rows.iter().map(|row| row.loss).collect();
        let confusion = Confusion::count(rows.iter().map(|row| (row.label, row.predicted)), width);
        let k = TOP.min(width);
        let labels: Vec<usize> = rows.iter().map(|row| row.label).collect();
        let probabilities = probabilities.and_then(|all| Array2::from_shape_vec((rows.len(), width), all).ok());
        Some(SplitScore {
            rows: rows.len(),
            loss: mean_loss(&rows),
            loss_interval: loss_interval(&losses),
            accuracy: right as f64 / count,
            accuracy_interval: wilson_interval(right, rows.len()),
            averages: confusion.averages(),
            top_k: TopK { k, accuracy: rows.iter().filter(|row| row.rank < k).count() as f64 / count },
            roc_auc: probabilities.and_then(|probabilities| roc_auc(probabilities.t(), &labels)),
            bootstrap: bootstrap(&confusion),
            calibration: Calibration::of(&rows),
            scaled: temperature.map(|_| Scaled { loss: mean_loss(&scaled), ece: Calibration::of(&scaled).ece }),
            confusion: (width <= MOST_CONFUSION).then(|| confusion.matrix()),
            confused: confusion.confused(MOST_CONFUSED),
            per_class: confusion.per_class(classes),
        })
    }
}

/// Mean cross-entropy of rows, of which there are some.
fn mean_loss(rows: &[Row]) -> f64 {
    rows.iter().map(|row| row.loss).sum::<f64>() / rows.len() as f64
}

/// Looks at the listed rows, logits divided by the temperature.
pub(super) fn rows_of(
    logits: ArrayView2<'_, f32>,
    listed: &[(usize, usize)],
    temperature: f64,
) -> Result<Vec<Row>, EvaluateError> {
    let one = |values: &mut Vec<f32>, row: usize, label: usize| {
        values.clear();
        values.extend(logits.row(row).iter().map(|&logit| (f64::from(logit) / temperature) as f32));
        if !values.iter().all(|value| value.is_finite()) {
            return Err(EvaluateError::NotFinite { row });
        }
        let log_sum = log_sum_exp(values);
        let (predicted, own) = (argmax(values), values[label]);
        // Of equal scores the first class comes first, so that top-1 is the accuracy.
        let before = |&(class, &other): &(usize, &f32)| other > own || (other == own && class < label);
        let rank = values.iter().enumerate().filter(before).count();
        let confidence = (f64::from(values[predicted]) - log_sum).exp();
        Ok(Row { label, predicted, confidence, loss: log_sum - f64::from(own), log_sum, rank })
    };
    let block = |rows: &[(usize, usize)]| {
        let mut values = Vec::new();
        rows.iter().map(|&(row, label)| one(&mut values, row, label)).collect()
    };
    // With many classes, few rows are work for every thread.
    let size = (TASK_VALUES / logits.ncols().max(1)).clamp(1, BLOCK_ROWS);
    let blocks: Vec<Result<Vec<Row>, EvaluateError>> = listed.par_chunks(size).map(block).collect();
    let mut rows = Vec::with_capacity(listed.len());
    for block in blocks {
        rows.extend(block?);
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, array, s};

    use super::*;
    use crate::evaluate::temperature;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|class| class.to_string()).collect()
    }

    #[test]
    fn loss_and_accuracy_of_a_small_case() {
        let logits = array![[2.0_f32, 0.0, -1.0], [0.0, 1.0, 0.0], [500.0, -500.0, 0.0], [9.0, 9.0, 9.0]];
        let found = score(logits.view(), &[Some(0), Some(2), Some(1), None], &names(3)).unwrap().unwrap();
        // ln(1 + e^-2 + e^-3), ln(2 + e), and 1000 for the confident mistake.
        let losses = [0.169_846_019_554_628_6, 1.551_444_713_932_051, 1000.0];
        assert_eq!(found.rows, 3);
        assert!((found.loss - losses.iter().sum::<f64>() / 3.0).abs() < 1e-12, "{}", found.loss);
        assert!((found.accuracy - 1.0 / 3.0).abs() < 1e-15);
        assert_eq!(found.accuracy_interval, wilson_interval(1, 3));
        assert_eq!(score(logits.view(), &[None; 4], &names(3)).unwrap(), None);
    }

    /// Logits in halves, with ties, and labels that are the answer in three rows of four.
    fn case() -> (Array2<f32>, Vec<Option<i32>>) {
        let logits = Array2::from_shape_fn((24, 3), |(r, c)| (((r * 7 + c * 5 + r * c) % 9) as f32 - 4.0) / 2.0);
        let labels = [0, 0, 0, 0, 2, 0, 1, 1, 0, 1, 0, 0, 1, 0, 0, 1, 0, 1, 1, 0, 1, 0, 0, 0];
        (logits, labels.map(Some).to_vec())
    }

    fn near(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-7, "{found} for {expected}");
    }

    #[test]
    fn agrees_with_scikit_learn() {
        // scikit-learn 1.x: log_loss, balanced_accuracy_score, precision_recall_fscore_support(zero_division=0), roc_auc_score(ovr),
        // top_k_accuracy_score, confusion_matrix on the same rows.
        let (logits, labels) = case();
        let found = score(logits.view(), &labels, &names(3)).unwrap().unwrap();
        near(found.loss, 0.710_916_870_994_098);
        near(found.accuracy, 0.75);
        near(found.averages.balanced_accuracy, 0.516_666_666_666_666_7);
        near(found.averages.macro_precision, 0.488_888_888_888_888_93);
        near(found.averages.macro_f1, 0.501_960_784_313_725_5);
        near(found.averages.weighted_f1, 0.735_294_117_647_058_9);
        near(found.roc_auc.unwrap(), 0.842_287_724_771_873_4);
        assert_eq!(found.confusion.unwrap(), [[12, 3, 0], [2, 6, 0], [1, 0, 0]]);
        let none = &found.per_class[2];
        assert_eq!((none.rows, none.predicted, none.precision, none.recall, none.f1), (1, 0, None, Some(0.0), Some(0.0)));
        assert_eq!((found.top_k.k, found.top_k.accuracy), (3, 1.0));
        // numpy: 15 bins of equal width, closed above.
        near(found.calibration.ece, 0.140_506_855_782_747_5);
        assert_eq!(found.calibration.bins.iter().map(|bin| bin.rows).sum::<usize>(), 24);
    }

    #[test]
    fn the_temperature_is_the_best_one() {
        // scipy.optimize.minimize_scalar on log_loss: T = 1.01472698, where the loss is 0.71086813.
        let (logits, labels) = case();
        let best = temperature(logits.view(), &labels).unwrap().unwrap();
        assert!((best - 1.014_726_98).abs() < 1e-5, "{best}");
        let classes = names(3);
        let mut scorer = Scorer::new(&classes, 24, Some(best));
        scorer.add(logits.view(), &labels).unwrap();
        near(scorer.finish().unwrap().scaled.unwrap().loss, 0.710_868_129_713_617_2);
        // Logits three times too large are brought back.
        let loud = temperature((&logits * 3.0).view(), &labels).unwrap().unwrap();
        assert!((loud / best - 3.0).abs() < 1e-6, "{loud}");
        let unique = array![[1.0_f32, 0.0], [0.0, 2.0]];
        assert_eq!(temperature(unique.view(), &[Some(0), Some(1)]).unwrap(), None, "every answer right: the colder the better");
        assert_eq!(
            temperature(unique.view(), &[Some(1), Some(0)]).unwrap(),
            Some(100.0),
            "every answer wrong: the flatter the better"
        );
        assert_eq!(temperature(logits.view(), &[None; 24]).unwrap(), None);
        assert_eq!(temperature(Array2::zeros((4, 2)).view(), &[Some(0); 4]).unwrap(), None);
    }

    #[test]
    fn ranks_go_to_the_first_of_equals_and_nothing_is_nan() {
        let logits = Array2::from_shape_fn((8, 7), |(row, class)| if class < 6 { 1.0 } else { row as f32 });
        // Class 5 comes after five equals: never among the first five; class 4 always is, unless class 6 is ahead.
        let found = score(logits.view(), &[Some(5), Some(4), None, None, None, None, None, Some(4)], &names(7)).unwrap().unwrap();
        assert_eq!((found.top_k.k, found.top_k.accuracy), (5, 1.0 / 3.0));
        assert_eq!(found.roc_auc, None, "most classes have no row");
        let json = serde_json::to_string(&found).unwrap();
        assert!(serde_json::from_str::<SplitScore>(&json).is_ok(), "NaN would be null, which is no number: {json}");
        let one = score(logits.view(), &[Some(0), None, None, None, None, None, None, None], &names(7)).unwrap().unwrap();
        assert_eq!((one.rows, one.loss_interval), (1, None));
    }

    #[test]
    fn bad_input_is_named() {
        let logits = array![[1.0_f32, 0.0], [f32::NAN, 0.0]];
        let score = |logits, labels: &[Option<i32>]| score(logits, labels, &names(2));
        assert_eq!(score(logits.view(), &[Some(0)]), Err(EvaluateError::Rows { scores: 2, labels: 1 }));
        assert_eq!(score(logits.view(), &[Some(2), None]), Err(EvaluateError::Class { row: 0, found: 2, classes: 2 }));
        assert_eq!(score(logits.view(), &[Some(-1), None]), Err(EvaluateError::Class { row: 0, found: -1, classes: 2 }));
        assert_eq!(score(logits.view(), &[Some(0), Some(0)]), Err(EvaluateError::NotFinite { row: 1 }));
        assert!(score(logits.view(), &[Some(0), None]).is_ok(), "an unlabelled row is not scored");
    }

    #[test]
    fn blocks_give_the_scores_of_the_whole() {
        let (logits, mut labels) = case();
        labels[5] = None;
        let classes = names(3);
        let blocks = |sizes: &[usize]| {
            let (mut scorer, mut start) = (Scorer::new(&classes, 24, None), 0);
            for size in sizes {
                scorer.add(logits.slice(s![start..start + size, ..]), &labels[start..start + size]).unwrap();
                start += size;
            }
            scorer.finish().unwrap()
        };
        assert_eq!(blocks(&[7, 0, 16, 1]), score(logits.view(), &labels, &classes).unwrap().unwrap());
        let mut scorer = Scorer::new(&classes, usize::MAX, None);
        scorer.add(logits.view(), &labels).unwrap();
        let mut later = labels.clone();
        later[3] = Some(3);
        assert_eq!(scorer.add(logits.view(), &later), Err(EvaluateError::Class { row: 27, found: 3, classes: 3 }));
        assert_eq!(scorer.finish().unwrap().roc_auc, None, "too many probabilities to hold");
    }

    #[test]
    fn threads_do_not_change_the_bits() {
        let logits = Array2::from_shape_fn((5000, 7), |(row, class)| ((row * 37 + class * 101) % 89) as f32 / 9.0);
        let labels: Vec<_> = (0..5000).map(|row| Some(row % 7)).collect();
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| (score(logits.view(), &labels, &names(7)).unwrap(), temperature(logits.view(), &labels).unwrap()))
        };
        assert_eq!(with(1), with(3));
    }
}
