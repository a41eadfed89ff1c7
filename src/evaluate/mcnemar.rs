//! Whether two classifiers differ on the same rows.

use serde::Serialize;

use super::interval::Z;

/// Discordant rows up to which the exact test is used.
const FEW: usize = 25;

/// McNemar's test (1947) on rows that both classifiers answered.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct McNemar {
    /// Rows that both answered.
    pub rows: usize,
    /// Rows that only the first answered right.
    pub only_first: usize,
    /// Rows that only the second answered right.
    pub only_second: usize,
    /// Accuracy of the second less that of the first.
    pub difference: f64,
    /// Its 95 % interval: Wald's for matched pairs after half a row is added to each cell (Agresti and Min 2005).
    pub interval: [f64; 2],
    /// Chance of as large a difference between equals, two-sided: by the binomial distribution up to 25 discordant rows, else by
    /// chi-squared with Edwards' (1948) correction for continuity.
    pub p: f64,
}

impl McNemar {
    /// Tests counts; none where there is no row.
    pub fn of(rows: usize, only_first: usize, only_second: usize) -> Option<Self> {
        if rows == 0 {
            return None;
        }
        let (first, second, all) = (only_first as f64, only_second as f64, rows as f64);
        let (centre, discordant) = ((second - first) / (all + 2.0), first + second + 1.0);
        let spread = Z * (discordant - (second - first).powi(2) / (all + 2.0)).max(0.0).sqrt() / (all + 2.0);
        let p = if only_first + only_second <= FEW {
            exact(only_first.min(only_second), only_first + only_second)
        } else {
            let excess = ((second - first).abs() - 1.0).max(0.0);
            erfc((excess * excess / (first + second) / 2.0).sqrt())
        };
        let interval = [(centre - spread).max(-1.0), (centre + spread).min(1.0)];
        Some(Self { rows, only_first, only_second, difference: (second - first) / all, interval, p })
    }
}

/// Twice the chance that a fair coin shows heads `least` times or fewer in `throws`.
fn exact(least: usize, throws: usize) -> f64 {
    let mut term = 0.5_f64.powi(i32::try_from(throws).unwrap_or(i32::MAX));
    let mut sum = 0.0;
    for heads in 0..=least {
        sum += term;
        term *= (throws - heads) as f64 / (heads + 1) as f64;
    }
    (2.0 * sum).min(1.0)
}

/// Complementary error function from 0 on: by its series near 0, by its continued fraction beyond.
fn erfc(x: f64) -> f64 {
    const TERMS: usize = 200;
    let scale = (-x * x).exp() / std::f64::consts::PI.sqrt();
    if x < 2.0 {
        let (mut term, mut sum) = (2.0 * x * scale, 0.0);
        for n in 0..TERMS {
            sum += term;
            term *= 2.0 * x * x / (2 * n + 3) as f64;
        }
        return 1.0 - sum;
    }
    scale / (1..TERMS).rev().fold(x, |rest, n| x + n as f64 / 2.0 / rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_scipy() {
        // scipy.stats.binomtest(a, a + b).pvalue and chi2.sf((|a - b| - 1)**2 / (a + b), 1).
        let cases = [
            (3, 12, 0.035_156_25),
            (10, 10, 1.0),
            (0, 5, 0.0625),
            (1, 9, 0.021_484_375),
            (120, 80, 0.005_820_666_407_810_877),
            (30, 15, 0.036_888_425_707_049_914),
        ];
        for (first, second, expected) in cases {
            let found = McNemar::of(1000, first, second).unwrap();
            assert!((found.p - expected).abs() < 1e-12, "{first} {second}: {}", found.p);
            assert_eq!(found.p.to_bits(), McNemar::of(1000, second, first).unwrap().p.to_bits());
        }
        assert_eq!(McNemar::of(0, 0, 0), None);
        assert_eq!(McNemar::of(9, 0, 0).unwrap().p, 1.0);
    }

    #[test]
    fn the_interval_is_that_of_agresti_and_min() {
        // 100 rows, 20 against 10: -10.0 / 102, sqrt(31 - 100 / 102) / 102, by hand.
        let found = McNemar::of(100, 20, 10).unwrap();
        assert!((found.difference + 0.1).abs() < 1e-15);
        assert!(
            (found.interval[0] + 0.203_320_318_755).abs() < 1e-9 && (found.interval[1] - 0.007_241_887_363).abs() < 1e-9,
            "{found:?}"
        );
    }

    #[test]
    fn erfc_is_smooth_where_its_halves_meet() {
        // scipy.special.erfc(2) = 0.004677734981047266.
        assert!((erfc(2.0) - 0.004_677_734_981_047_266).abs() < 1e-15, "{}", erfc(2.0));
        assert!((erfc(2.0 - 1e-12) - 0.004_677_734_981_047_266).abs() < 1e-13);
    }
}
