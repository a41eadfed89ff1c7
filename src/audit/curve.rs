//! How much more data would help: a power law `a + b n^-c` through the test errors of heads on part of the images (Hestness and
//! others, 2017), and what twice as many images would give.
//!
//! The law is fitted to relative residuals by iteratively reweighted least squares with Huber's weights: for each exponent of a grid
//! `a` and `b`, neither below 0, follow in closed form. The intervals are percentiles of a bootstrap over the scored rows, the same
//! for all sizes, and the draws of each size. A law says nothing about what the images to come will be like: it takes them to be
//! drawn as the present ones were (Viering & Loog, 2023).

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Exponents that are tried: hundredths.
const EXPONENTS: std::ops::RangeInclusive<usize> = 2..=150;

/// Rounds of reweighting.
const ROUNDS: usize = 8;

/// Huber's constant: 95 % efficient where residuals are normal.
const HUBER: f64 = 1.345;

/// Sizes that three numbers are fitted to at least.
const LEAST_SIZES: usize = 4;

const BOOTSTRAPS: usize = 400;

/// Heads on so many images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// Images that a head was trained on.
    pub images: usize,
    /// Mean error of the draws, 0 to 1.
    pub error: f64,
    /// Error of each draw.
    pub draws: Vec<f64>,
}

/// `error = a + b * images ^ -c`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PowerLaw {
    /// What no number of such images would get below.
    pub a: f64,
    /// Scale of what images take away.
    pub b: f64,
    /// How fast they do.
    pub c: f64,
}

impl PowerLaw {
    /// The error at so many images.
    pub fn at(&self, images: f64) -> f64 {
        self.a + self.b * images.powf(-self.c)
    }
}

/// What twice as many images would give, by the law.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Doubling {
    /// Twice the images.
    pub images: usize,
    /// The error then.
    pub error: f64,
    /// Its 95 % interval.
    pub error_interval: [f64; 2],
    /// By how much the error falls.
    pub gain: f64,
    /// Its 95 % interval.
    pub gain_interval: [f64; 2],
}

impl Doubling {
    /// Whether the error falls at all.
    pub(crate) fn helps(&self) -> bool {
        self.gain > 0.0
    }
}

/// Error against the number of training images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// What was scored: `test`, `validation`, or `hold-out`.
    pub split: String,
    /// Labelled images of it.
    pub rows: usize,
    /// Fewest images first.
    pub points: Vec<CurvePoint>,
    /// None of fewer than four sizes.
    pub law: Option<PowerLaw>,
    /// None without a law.
    pub doubling: Option<Doubling>,
}

/// Makes a curve of `draws`: how many images a head was trained on, and which of the `rows` scored rows it got wrong.
pub fn fit_curve(split: &str, rows: usize, draws: &[(usize, Vec<usize>)], seed: u64) -> Curve {
    let mut sizes: Vec<usize> = draws.iter().map(|(images, _)| *images).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let of_size = |images: usize| draws.iter().filter(move |(of, _)| *of == images).map(|(_, wrong)| wrong);
    let points: Vec<CurvePoint> = sizes
        .iter()
        .map(|&images| {
            let draws: Vec<f64> = of_size(images).map(|wrong| wrong.len() as f64 / rows.max(1) as f64).collect();
            CurvePoint { images, error: draws.iter().sum::<f64>() / draws.len().max(1) as f64, draws }
        })
        .collect();
    let observed = |point: &CurvePoint| point.draws.iter().map(|&error| (point.images as f64, error)).collect::<Vec<_>>();
    // No error at all is as much as half of one says.
    let least_error = 0.5 / rows.max(1) as f64;
    let law = (sizes.len() >= LEAST_SIZES).then(|| law(&points.iter().flat_map(observed).collect::<Vec<_>>(), least_error));
    let doubling = law.zip(sizes.last()).map(|(found, &most)| {
        let (now, then) = (most as f64, 2.0 * most as f64);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut below = |bound: usize| ((u64::from(rng.next_u32()) * bound as u64) >> 32) as usize;
        let (mut errors, mut gains) = (Vec::new(), Vec::new());
        for _ in 0..BOOTSTRAPS {
            let mut counts = vec![0_u32; rows];
            (0..rows).for_each(|_| counts[below(rows)] += 1);
            let mut drawn = Vec::with_capacity(draws.len());
            for &images in &sizes {
                let of_size: Vec<&Vec<usize>> = of_size(images).collect();
                for _ in 0..of_size.len() {
                    let wrong = of_size[below(of_size.len())];
                    let wrong: u32 = wrong.iter().map(|&row| counts[row]).sum();
                    drawn.push((images as f64, f64::from(wrong) / rows.max(1) as f64));
                }
            }
            let drawn = self::law(&drawn, least_error);
            errors.push(drawn.at(then));
            gains.push(drawn.at(now) - drawn.at(then));
        }
        let (error, gain) = (found.at(then), found.at(now) - found.at(then));
        Doubling { images: 2 * most, error, error_interval: middle(errors), gain, gain_interval: middle(gains) }
    });
    Curve { split: split.to_owned(), rows, points, law, doubling }
}

/// The 2.5 % and 97.5 % percentiles.
fn middle(mut values: Vec<f64>) -> [f64; 2] {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
    [at(0.025), at(0.975)]
}

/// The law through (images, error); an error below the least one counts like that.
fn law(observed: &[(f64, f64)], least_error: f64) -> PowerLaw {
    let relative: Vec<f64> = observed.iter().map(|&(_, error)| error.max(least_error).powi(-2)).collect();
    let mut weights = relative.clone();
    let mut found = least(observed, &weights);
    for _ in 0..ROUNDS {
        let residuals: Vec<f64> = observed
            .iter()
            .zip(&relative)
            .map(|(&(images, error), weight)| (error - found.at(images)).abs() * weight.sqrt())
            .collect();
        let mut sorted = residuals.clone();
        sorted.sort_by(f64::total_cmp);
        let scale = (1.4826 * sorted[sorted.len() / 2]).max(1e-6);
        for ((weight, relative), residual) in weights.iter_mut().zip(&relative).zip(residuals) {
            *weight = relative * (HUBER * scale / residual.max(f64::MIN_POSITIVE)).min(1.0);
        }
        let next = least(observed, &weights);
        if next == found {
            break;
        }
        found = next;
    }
    found
}

/// Weighted least squares.
fn least(observed: &[(f64, f64)], weights: &[f64]) -> PowerLaw {
    let mut best = (f64::INFINITY, PowerLaw { a: 0.0, b: 0.0, c: 0.0 });
    for c in EXPONENTS.map(|hundredths| hundredths as f64 / 100.0) {
        let [mut w, mut u, mut uu, mut e, mut ue] = [0.0; 5];
        for (&(images, error), weight) in observed.iter().zip(weights) {
            let power = images.powf(-c);
            w += weight;
            u += weight * power;
            uu += weight * power * power;
            e += weight * error;
            ue += weight * power * error;
        }
        let b = (w * ue - u * e) / (w * uu - u * u);
        let a = (e - b * u) / w;
        let (a, b) = match (a >= 0.0, b >= 0.0) {
            (true, true) => (a, b),
            (false, _) => (0.0, (ue / uu).max(0.0)),
            (true, false) => (e / w, 0.0),
        };
        let law = PowerLaw { a, b, c };
        let loss: f64 =
            observed.iter().zip(weights).map(|(&(images, error), weight)| weight * (error - law.at(images)).powi(2)).sum();
        if loss < best.0 {
            best = (loss, law);
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [usize; 8] = [390, 781, 1562, 3125, 6250, 12_500, 25_000, 50_000];

    #[test]
    fn a_law_is_found_again_whatever_one_draw_says() {
        let truth = PowerLaw { a: 0.12, b: 2.4, c: 0.37 };
        let mut observed: Vec<(f64, f64)> = SIZES
            .iter()
            .flat_map(|&images| [1.0, 1.004, 0.996].map(|off| (images as f64, truth.at(images as f64) * off)))
            .collect();
        let found = law(&observed, 1e-4);
        assert!((found.at(1e5) / truth.at(1e5) - 1.0).abs() < 0.02, "{found:?}");
        assert!((found.c - truth.c).abs() < 0.05 && (found.a - truth.a).abs() < 0.03, "{found:?}");
        observed[10].1 *= 2.0;
        let found = law(&observed, 1e-4);
        assert!((found.at(1e5) / truth.at(1e5) - 1.0).abs() < 0.03, "{found:?}");
    }

    #[test]
    fn errors_that_do_not_fall_or_are_none_give_a_flat_law() {
        let flat: Vec<(f64, f64)> = SIZES.iter().map(|&images| (images as f64, 0.3)).collect();
        assert!((law(&flat, 1e-4).at(1e5) - 0.3).abs() < 1e-6);
        let rising: Vec<(f64, f64)> = SIZES.iter().map(|&images| (images as f64, 0.1 + images as f64 * 1e-6)).collect();
        assert!(law(&rising, 1e-4).b == 0.0);
        let none: Vec<(f64, f64)> = SIZES.iter().map(|&images| (images as f64, 0.0)).collect();
        assert!(law(&none, 1e-4).at(1e5) < 1e-9);
    }

    #[test]
    fn doubling_has_an_interval_around_it() {
        // Row r is wrong where its hash is below the error.
        let truth = PowerLaw { a: 0.1, b: 2.0, c: 0.4 };
        let place = |row: usize, draw: usize| {
            let hash = blake3::hash(format!("{row} {draw}").as_bytes());
            let own = f64::from(blake3::hash(format!("{row}").as_bytes()).as_bytes()[0]) / 256.0;
            0.9 * own + 0.1 * f64::from(hash.as_bytes()[0]) / 256.0
        };
        let draws: Vec<(usize, Vec<usize>)> = SIZES
            .iter()
            .enumerate()
            .flat_map(|(at, &images)| (0..3).map(move |draw| (at * 3 + draw, images)))
            .map(|(draw, images)| (images, (0..4000).filter(|&row| place(row, draw) < truth.at(images as f64)).collect()))
            .collect();
        let curve = fit_curve("test", 4000, &draws, 0);
        let doubling = curve.doubling.unwrap();
        let [low, high] = doubling.error_interval;
        assert!(low < doubling.error && doubling.error < high && high - low < 0.08, "{doubling:?}");
        assert!(doubling.gain > 0.0 && doubling.gain_interval[0] <= doubling.gain, "{doubling:?}");
        assert_eq!((curve.points.len(), curve.points[0].draws.len(), doubling.images), (8, 3, 100_000));
        assert_eq!(curve, fit_curve("test", 4000, &draws, 0));
        let few = fit_curve("test", 4000, &draws[..9], 0);
        assert!(few.law.is_none() && few.points.len() == 3);
    }
}
