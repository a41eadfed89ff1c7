//! Bootstrap intervals of figures that the confusion matrix determines.
//!
//! Drawing N rows with replacement draws the cells of the matrix from a multinomial distribution, so the cells are drawn
//! instead: the same intervals, at a cost that does not grow with the rows.

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::confusion::Confusion;

/// Cells that are drawn in all, and the bounds of the number of samples.
const WORK: usize = 400_000;
const SAMPLES: (usize, usize) = (200, 1000);

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

/// Draws from a fixed seed, a stream of its own for each sample, so that the threads do not change the bits.
pub(super) fn bootstrap(confusion: &Confusion) -> Bootstrap {
    let rows: usize = confusion.cells.iter().map(|cell| cell.2).sum();
    let samples = (WORK / confusion.cells.len().max(1)).clamp(SAMPLES.0, SAMPLES.1);
    let log_factorial = log_factorials(rows);
    let draw = |sample: usize| {
        let mut rng = ChaCha8Rng::seed_from_u64(sample as u64);
        let (mut left, mut weight, mut right) = (rows, rows, 0);
        let mut counts = Vec::with_capacity(confusion.cells.len());
        for &(label, predicted, count) in &confusion.cells {
            let drawn = binomial(left, count, weight, &log_factorial, &mut rng);
            left -= drawn;
            weight -= count;
            right += if label == predicted { drawn } else { 0 };
            counts.push(drawn);
        }
        let averages = confusion.averages_of(counts.into_iter());
        [right as f64 / rows as f64, averages.balanced_accuracy, averages.macro_f1]
    };
    let drawn: Vec<[f64; 3]> = (0..samples).into_par_iter().map(draw).collect();
    let interval = |figure: usize| {
        let mut values: Vec<f64> = drawn.iter().map(|figures| figures[figure]).collect();
        values.sort_by(f64::total_cmp);
        [quantile(&values, 0.025), quantile(&values, 0.975)]
    };
    Bootstrap { samples, accuracy: interval(0), balanced_accuracy: interval(1), macro_f1: interval(2) }
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
