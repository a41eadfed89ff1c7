//! Dropout on features, decided by a hash of seed, epoch, row and feature: neither threads, nor batches, nor what was done
//! before change a mask.

/// Inverted dropout of one epoch: a feature is dropped with a probability, and what is left is scaled up to the same mean.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dropout {
    /// Hashes below it are dropped.
    threshold: u32,
    scale: f32,
    key: u64,
}

impl Dropout {
    /// `share` of the features is dropped, 0 to below 1.
    pub(super) fn new(share: f64, seed: u64, epoch: usize) -> Self {
        let threshold = (share * (f64::from(u32::MAX) + 1.0)) as u32;
        Self { threshold, scale: (1.0 / (1.0 - share)) as f32, key: mix(mix(seed) ^ epoch as u64) }
    }

    /// Drops some of the values of a row, which is known by its index in the matrix; the first is that of feature `start`.
    #[inline(always)]
    pub(super) fn apply(self, index: usize, start: usize, row: &mut [f32]) {
        let key = mix(self.key ^ index as u64);
        let (low, high) = (key as u32, (key >> 32) as u32);
        for (feature, value) in (start as u32..).zip(row) {
            // A 32-bit hash of good avalanche (C. Wellons, "Hash function prospector"), keyed twice; it is vectorized.
            let mut hash = feature.wrapping_mul(0x9e37_79b9) ^ low;
            hash = (hash ^ (hash >> 16)).wrapping_mul(0x21f0_aaad) ^ high;
            hash = (hash ^ (hash >> 15)).wrapping_mul(0xd35a_2d97);
            hash ^= hash >> 15;
            *value = if hash < self.threshold { 0.0 } else { *value * self.scale };
        }
    }
}

/// SplitMix64's output function.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(share: f64, seed: u64, epoch: usize, index: usize) -> Vec<f32> {
        let mut row = vec![1.0; 1280];
        Dropout::new(share, seed, epoch).apply(index, 0, &mut row);
        row
    }

    fn dropped(row: &[f32]) -> f64 {
        row.iter().filter(|&&value| value == 0.0).count() as f64
    }

    #[test]
    fn the_share_is_dropped_and_the_mean_kept() {
        for share in [0.0, 0.1, 0.5, 0.9] {
            let rows: Vec<_> = (0..1000).map(|index| mask(share, 1, 1, index)).collect();
            let found = rows.iter().map(|row| dropped(row)).sum::<f64>() / 1.28e6;
            // Five standard deviations of a binomial share.
            assert!((found - share).abs() < 5.0 * (0.25_f64 / 1.28e6).sqrt(), "{found} for {share}");
            let mean = rows.iter().flatten().map(|&value| f64::from(value)).sum::<f64>() / 1.28e6;
            assert!((mean - 1.0).abs() < 0.02, "{mean} for {share}");
            // No feature is favoured: each is dropped in 1000 rows as often as chance has it (six deviations).
            for feature in [0, 1, 2, 640, 1279] {
                let count = rows.iter().filter(|row| row[feature] == 0.0).count() as f64;
                assert!((count - 1000.0 * share).abs() <= 6.0 * (1000.0 * share * (1.0 - share)).sqrt(), "{feature}: {count}");
            }
        }
    }

    #[test]
    fn masks_of_other_rows_epochs_and_seeds_are_independent() {
        let one = mask(0.5, 1, 1, 7);
        assert_eq!(one, mask(0.5, 1, 1, 7));
        for other in [mask(0.5, 1, 1, 8), mask(0.5, 1, 2, 7), mask(0.5, 2, 1, 7)] {
            let agree = one.iter().zip(&other).filter(|(a, b)| a == b).count() as f64;
            assert!((agree - 640.0).abs() < 6.0 * (1280.0_f64 / 4.0).sqrt(), "{agree}");
        }
    }
}
