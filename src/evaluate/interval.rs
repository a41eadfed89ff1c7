/// 97.5 % quantile of the normal distribution.
pub(super) const Z: f64 = 1.959_963_984_540_054;

/// Wilson's 95 % interval of a share: of `rows` rows, `right` are right. `[0, 1]` where there is no row.
pub fn wilson_interval(right: usize, rows: usize) -> [f64; 2] {
    if rows == 0 {
        return [0.0, 1.0];
    }
    let n = rows as f64;
    let share = right as f64 / n;
    let centre = share + Z * Z / (2.0 * n);
    let spread = Z * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + Z * Z / n;
    [((centre - spread) / scale).max(0.0), ((centre + spread) / scale).min(1.0)]
}

/// Mean of some values and its 95 % interval by Student's t; no interval for one value. NaN is never returned: the mean of none
/// is 0.
pub fn mean_interval(values: &[f64]) -> (f64, Option<[f64; 2]>) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count.max(1.0);
    if values.len() < 2 {
        return (mean, None);
    }
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0);
    let spread = student(values.len() - 1) * (variance / count).sqrt();
    (mean, Some([mean - spread, mean + spread]))
}

/// 97.5 % quantile of Student's t; beyond ten degrees of freedom by its expansion around the normal one (Abramowitz and Stegun
/// 26.7.5), to 2e-4.
fn student(degrees: usize) -> f64 {
    const FIRST: [f64; 10] =
        [12.706_205, 4.302_653, 3.182_446, 2.776_445, 2.570_582, 2.446_912, 2.364_624, 2.306_004, 2.262_157, 2.228_139];
    let n = degrees as f64;
    FIRST.get(degrees.wrapping_sub(1)).copied().unwrap_or_else(|| {
        Z + (Z.powi(3) + Z) / (4.0 * n)
            + (5.0 * Z.powi(5) + 16.0 * Z.powi(3) + 3.0 * Z) / (96.0 * n * n)
            + (3.0 * Z.powi(7) + 19.0 * Z.powi(5) + 17.0 * Z.powi(3) - 15.0 * Z) / (384.0 * n.powi(3))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_of_repeats_has_the_interval_of_student() {
        // scipy.stats.t.ppf(0.975, n).
        for (degrees, expected) in [(4, 2.776_445), (11, 2.200_985), (29, 2.045_230), (200, 1.971_896)] {
            assert!((student(degrees) - expected).abs() < 2e-4, "{degrees}: {}", student(degrees));
        }
        // Mean 2, deviation 1: 2 -+ 4.302653 / sqrt(3).
        let (mean, interval) = mean_interval(&[1.0, 2.0, 3.0]);
        let [low, high] = interval.unwrap();
        assert!(mean == 2.0 && (low + 0.484_138).abs() < 1e-5 && (high - 4.484_138).abs() < 1e-5, "{low} {high}");
        assert_eq!((mean_interval(&[0.5]), mean_interval(&[])), ((0.5, None), (0.0, None)));
    }

    #[test]
    fn agrees_with_published_values() {
        // Newcombe (1998), table I: 81/263, 15/148, 0/20, 1/29, by Wilson's score method.
        let cases = [
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718),
            (29, 29, 0.8830, 1.0),
        ];
        for (right, rows, low, high) in cases {
            let found = wilson_interval(right, rows);
            assert!((found[0] - low).abs() < 6e-5 && (found[1] - high).abs() < 6e-5, "{right}/{rows}: {found:?}");
        }
        assert_eq!(wilson_interval(0, 0), [0.0, 1.0]);
    }
}
