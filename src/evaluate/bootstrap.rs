//! Bootstrap intervals.
//!
//! Drawing N rows with replacement draws the cells of the confusion matrix from a multinomial distribution, so the cells are drawn
//! instead: the same intervals for the figures that it determines, at a cost that does not grow with the rows. For the mean of the
//! losses the cells are rows of like loss.

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::confusion::Confusion;

/// Cells that are drawn in all, and the bounds of the number of samples.
const WORK: usize = 400_000;
const SAMPLES: (usize, usize) = (200, 1000);

/// Classes of like loss.
const LOSSES: usize = 100;

/// Percentile bootstrap 95 % intervals (Efron 1979).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// Samples drawn.
    pub samples: usize,
    /// Of `accuracy`.
    pub accuracy: [f64; 2],
    /// Of `balanced_accuracy`.
    pub balanced_accuracy: [f64; 2],
    /// Of `macro_f1`.
    pub macro_f1: [f64; 2],
}

pub(super) fn bootstrap(confusion: &Confusion) -> Bootstrap {
    let counts: Vec<usize> = confusion.cells.iter().map(|cell| cell.2).collect();
    let rows: usize = counts.iter().sum();
    let drawn: Vec<[f64; 3]> = drawings(&counts, |drawn| {
        let cells = confusion.cells.iter().zip(drawn).filter(|((label, predicted, _), _)| label == predicted);
        let right: usize = cells.map(|(_, drawn)| drawn).sum();
        let averages = confusion.averages_of(drawn.iter().copied());
        [right as f64 / rows as f64, averages.balanced_accuracy, averages.macro_f1]
    });
    let interval = |figure: usize| interval(drawn.iter().map(|figures| figures[figure]).collect());
    Bootstrap { samples: drawn.len(), accuracy: interval(0), balanced_accuracy: interval(1), macro_f1: interval(2) }
}

/// Percentile bootstrap 95 % interval of the mean of some losses; none for one row.
///
/// Rows are drawn by classes of like loss, each as its mean. What the loss varies by within a class is small, and is made up for:
/// the drawn means are spread by as much as the variance of all rows is larger than that between the classes.
pub(super) fn loss_interval(losses: &[f64]) -> Option<[f64; 2]> {
    if losses.len() < 2 {
        return None;
    }
    let count = losses.len() as f64;
    let (least, most) =
        losses.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &loss| (low.min(loss), high.max(loss)));
    let width = (most - least) / LOSSES as f64;
    let mut cells = vec![(0_usize, 0.0); LOSSES];
    for &loss in losses {
        let cell = if width > 0.0 { ((loss - least) / width) as usize } else { 0 };
        let cell = &mut cells[cell.min(LOSSES - 1)];
        *cell = (cell.0 + 1, cell.1 + loss);
    }
    cells.retain(|cell| cell.0 > 0);
    let mean = losses.iter().sum::<f64>() / count;
    let total: f64 = losses.iter().map(|loss| (loss - mean).powi(2)).sum();
    let between: f64 = cells.iter().map(|&(rows, sum)| rows as f64 * (sum / rows as f64 - mean).powi(2)).sum();
    let spread = if between > 0.0 { (total / between).sqrt() } else { 1.0 };
    let counts: Vec<usize> = cells.iter().map(|cell| cell.0).collect();
    let drawn = drawings(&counts, |drawn| {
        let sum: f64 = cells.iter().zip(drawn).map(|(&(rows, sum), &drawn)| drawn as f64 * (sum / rows as f64)).sum();
        mean + spread * (sum / count - mean)
    });
    let [low, high] = interval(drawn);
    Some([low.max(0.0), high])
}

/// Draws as many rows as there are from cells that hold so many, again and again; what is made of each drawing. From a fixed seed,
/// with a stream of its own for each drawing, so that the threads do not change the bits.
fn drawings<T: Send>(cells: &[usize], figure: impl Fn(&[usize]) -> T + Sync) -> Vec<T> {
    let rows: usize = cells.iter().sum();
    let samples = (WORK / cells.len().max(1)).clamp(SAMPLES.0, SAMPLES.1);
    let log_factorial = log_factorials(rows);
    let draw = |sample: usize| {
        let mut rng = ChaCha8Rng::seed_from_u64(sample as u64);
        let (mut left, mut weight) = (rows, rows);
        let drawn = cells.iter().map(|&count| {
            let drawn = binomial(left, count, weight, &log_factorial, &mut rng);
            left -= drawn;
            weight -= count;
            drawn
        });
        figure(&drawn.collect::<Vec<_>>())
    };
    (0..samples).into_par_iter().map(draw).collect()
}

/// The middle 95 %.
fn interval(mut values: Vec<f64>) -> [f64; 2] {
    values.sort_by(f64::total_cmp);
    [quantile(&values, 0.025), quantile(&values, 0.975)]
}

/// Quantile of sorted values, interpolated between neighbours.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (low, rest) = (place.floor() as usize, place.fract());
    sorted[low] + rest * (sorted[(low + 1).min(sorted.len() - 1)] - sorted[low])
}

/// `ln(n!)` for 0 to `most`.
fn log_factorials(most: usize) -> Vec<f64> {
    let logarithms = (1..=most).scan(0.0, |sum, n| {
        *sum += (n as f64).ln();
        Some(*sum)
    });
    std::iter::once(0.0).chain(logarithms).collect()
}

/// How many of `n` rows fall into a cell of chance `count / weight`: by inversion from the mode outwards, some standard
/// deviations of steps.
fn binomial(n: usize, count: usize, weight: usize, log_factorial: &[f64], rng: &mut ChaCha8Rng) -> usize {
    if count == weight || n == 0 {
        return n;
    }
    let p = count as f64 / weight as f64;
    let ratio = p / (1.0 - p);
    let mode = (((n + 1) as f64 * p) as usize).min(n);
    let log_chance = log_factorial[n] - log_factorial[mode] - log_factorial[n - mode]
        + mode as f64 * p.ln()
        + (n - mode) as f64 * (1.0 - p).ln();
    let mut left = (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64 - log_chance.exp();
    let (mut low, mut high) = (mode, mode);
    let (mut low_chance, mut high_chance) = (log_chance.exp(), log_chance.exp());
    while left >= 0.0 && (low > 0 || high < n) {
        if high < n {
            high_chance *= (n - high) as f64 / (high + 1) as f64 * ratio;
            high += 1;
            left -= high_chance;
            if left < 0.0 {
                return high;
            }
        }
        if low > 0 {
            low_chance *= low as f64 / (n - low + 1) as f64 / ratio;
            low -= 1;
            left -= low_chance;
            if left < 0.0 {
                return low;
            }
        }
        // Rounding may leave a rest of 1e-13 that no chance fills.
        if low_chance + high_chance < 1e-300 {
            break;
        }
    }
    mode
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_binomial() {
        let table = log_factorials(1000);
        for (n, count, weight) in [(1000, 3, 1000), (1000, 80, 100), (7, 1, 2), (500, 499, 500)] {
            let mut rng = ChaCha8Rng::seed_from_u64(1);
            let draws: Vec<f64> = (0..20_000).map(|_| binomial(n, count, weight, &table, &mut rng) as f64).collect();
            let (n, p) = (n as f64, count as f64 / weight as f64);
            let mean = draws.iter().sum::<f64>() / 2e4;
            let variance = draws.iter().map(|draw| (draw - mean).powi(2)).sum::<f64>() / 2e4;
            let expected = n * p * (1.0 - p);
            assert!((mean - n * p).abs() < 4.0 * (expected / 2e4).sqrt(), "{n} {p}: mean {mean}");
            assert!((variance / expected - 1.0).abs() < 0.05, "{n} {p}: variance {variance} for {expected}");
        }
    }

    /// Means of rows drawn one by one.
    fn plain(losses: &[f64], samples: u64) -> [f64; 2] {
        let one = |sample: u64| {
            let mut rng = ChaCha8Rng::seed_from_u64(1000 + sample);
            let draw = |_| losses[(rng.next_u64() % losses.len() as u64) as usize];
            losses.iter().map(draw).sum::<f64>() / losses.len() as f64
        };
        interval((0..samples).map(one).collect())
    }

    #[test]
    fn the_interval_of_the_loss_is_that_of_rows_drawn_one_by_one() {
        // Few rows that are right and one that is far off: the interval leans to the right, as the normal one does not.
        let skewed: Vec<f64> = (0..40).map(|row| if row == 0 { 12.0 } else { 0.01 + f64::from(row) / 400.0 }).collect();
        // Many rows, most losses small.
        let many: Vec<f64> = (0..20_000_u32).map(|row| f64::from(row % 997).powi(6) / 1e17).collect();
        for losses in [skewed, many] {
            let (found, expected) = (loss_interval(&losses).unwrap(), plain(&losses, 2000));
            let width = expected[1] - expected[0];
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() < 0.06 * width, "{found} for {expected}, width {width}");
            }
        }
        let mean = 12.0 / 40.0;
        let [low, high] = loss_interval(&[vec![12.0], vec![0.0; 39]].concat()).unwrap();
        assert!(low == 0.0 && high - mean > mean, "{low} to {high} around {mean}");
        assert_eq!(loss_interval(&[0.5]), None);
        assert_eq!(loss_interval(&[0.5; 9]), Some([0.5, 0.5]));
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let losses = [0.1, 0.7, 0.3, 2.5];
        assert_eq!(pool.install(|| loss_interval(&losses)), loss_interval(&losses));
    }

    #[test]
    fn the_interval_of_the_accuracy_is_that_of_its_binomial() {
        // 776 of 1000 right: standard error sqrt(0.776 * 0.224 / 1000) = 0.01318.
        let pairs = (0..1000).map(|row| (row % 2, if row < 776 { row % 2 } else { 1 - row % 2 }));
        let confusion = Confusion::count(pairs, 2);
        let found = bootstrap(&confusion);
        assert_eq!(found.samples, 1000);
        for (bound, sign) in found.accuracy.into_iter().zip([-1.0, 1.0]) {
            assert!((bound - (0.776 + sign * 1.96 * 0.01318)).abs() < 0.004, "{found:?}");
        }
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(pool.install(|| bootstrap(&confusion)), found);
        // A set that is all right has no spread.
        let certain = bootstrap(&Confusion::count((0..10).map(|row| (row % 2, row % 2)), 2));
        assert_eq!((certain.accuracy, certain.macro_f1), ([1.0, 1.0], [1.0, 1.0]));
    }
}
