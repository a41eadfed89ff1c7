/// Wilson's 95 % interval of a share: of `rows` rows, `right` are right. `[0, 1]` where there is no row.
pub fn wilson_interval(right: usize, rows: usize) -> [f64; 2] {
    /// 97.5 % quantile of the normal distribution.
    const Z: f64 = 1.959_963_984_540_054;
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

#[cfg(test)]
mod tests {
    use super::*;

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
