//! The embeddings in two dimensions: principal components and, from the first 50 of them, t-SNE.
//!
//! Components are found by a randomized range finder with power iterations (Halko, Martinsson and Tropp, 2011, algorithms 4.4 and 5.1), the
//! map by t-SNE with Barnes and Hut's tree (van der Maaten, 2014) of the crate `bhtsne`, begun at the first two components (Kobak and
//! Berens, 2019). Both are done on one thread, so that a seed gives one map: sums on several are rounded in another order each time, and t-SNE
//! makes much of that.

use bhtsne::{Neighbor, tSNE};
use faer::{Mat, MatRef, Side};
use ndarray::{Array2, Axis};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Serialize;

use super::inputs::FindFeatures;
use super::tables::Answer;

/// Images on the map at most.
const SAMPLE: usize = 3000;

/// Images below which there is nothing to be seen.
const FEWEST: usize = 8;

/// Components that t-SNE sees.
const COMPONENTS: usize = 50;

/// Columns beyond the components, and power iterations, of the range finder.
const OVERSAMPLE: usize = 10;
const POWER: usize = 3;

/// About how many neighbours count for an image.
const PERPLEXITY: f32 = 30.0;

/// How far off a branch of the tree must be to count as one point, as a ratio of its size.
const THETA: f32 = 0.5;

/// What attraction is multiplied with in the first steps.
const EXAGGERATION: f32 = 12.0;

/// Steps of t-SNE.
const STEPS: usize = 750;

/// An image on the map.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MapPoint {
    /// Row id.
    pub id: String,
    /// True class.
    pub label: usize,
    /// Answer.
    pub predicted: usize,
    /// Probability of the answer.
    pub confidence: f64,
    /// First and second principal component.
    pub pca: [f32; 2],
    /// Place by t-SNE; none where there are too few images for it.
    pub tsne: Option<[f32; 2]>,
}

/// The embeddings of a sample of a split in two dimensions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EmbeddingMap {
    /// Labelled rows of the split, of which the sample was drawn.
    pub rows: usize,
    /// Seed of the sample.
    pub seed: u64,
    /// Share of the variance that the first two components have.
    pub explained: f64,
    /// Perplexity of t-SNE; none where there is none.
    pub perplexity: Option<f32>,
    /// The sample, in the order of a hash of the ids.
    pub points: Vec<MapPoint>,
}

/// Draws the map of labelled answers. None where there are too few, or all embeddings are the same.
pub(super) fn draw(split: &str, answers: &[Answer], features: &FindFeatures, seed: u64) -> Result<Option<EmbeddingMap>, String> {
    if answers.len() < FEWEST {
        return Ok(None);
    }
    let sample = sample(answers, seed);
    let ids: Vec<String> = sample.iter().map(|answer| answer.id.clone()).collect();
    let x = features(split, &ids)?;
    if x.iter().any(|value| !value.is_finite()) {
        return Err("the features hold NaN or infinite values".into());
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().map_err(|error| error.to_string())?;
    let Some(components) = Components::of(x, seed) else { return Ok(None) };
    let (tsne, perplexity) = pool.install(|| tsne(&components.scores)).unzip();
    let point = |(row, answer): (usize, &&Answer)| MapPoint {
        id: answer.id.clone(),
        label: answer.label,
        predicted: answer.predicted,
        confidence: answer.confidence,
        pca: [components.scores[[row, 0]], components.scores[[row, 1]]],
        tsne: tsne.as_ref().map(|places: &Vec<f32>| [places[2 * row], places[2 * row + 1]]),
    };
    let points = sample.iter().enumerate().map(point).collect();
    Ok(Some(EmbeddingMap { rows: answers.len(), seed, explained: components.explained, perplexity, points }))
}

/// The answers whose ids hash lowest: the same images whatever the head says to them.
fn sample(answers: &[Answer], seed: u64) -> Vec<&Answer> {
    let hash =
        |answer: &Answer| *blake3::Hasher::new().update(&seed.to_le_bytes()).update(answer.id.as_bytes()).finalize().as_bytes();
    let mut hashed: Vec<_> = answers.par_iter().map(|answer| (hash(answer), answer)).collect();
    hashed.par_sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| a.1.id.cmp(&b.1.id)));
    hashed.into_iter().take(SAMPLE).map(|(_, answer)| answer).collect()
}

/// Principal components of rows.
struct Components {
    /// `[rows, components]`, the first with the most variance; two columns at least.
    scores: Array2<f32>,
    /// Share of the variance of the first two.
    explained: f64,
}

impl Components {
    /// Of `x [N, D]`; none where all rows are the same.
    fn of(mut x: Array2<f32>, seed: u64) -> Option<Self> {
        let (rows, width) = x.dim();
        let mean = x.mean_axis(Axis(0))?;
        x -= &mean;
        let total: f64 = x.iter().map(|&value| f64::from(value).powi(2)).sum();
        if total <= 0.0 || !total.is_finite() {
            return None;
        }
        let x = x.as_standard_layout();
        let x = MatRef::from_row_major_slice(x.as_slice()?, rows, width);
        let kept = COMPONENTS.min(rows).min(width);
        let columns = (kept + OVERSAMPLE).min(rows).min(width);
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        // Signs at random serve as well as normal numbers (Halko and others, section 4.6).
        let test = Mat::from_fn(width, columns, |_, _| if random.random::<bool>() { 1.0_f32 } else { -1.0 });
        let mut range = orthonormal(&(x * &test));
        for _ in 0..POWER {
            let back = orthonormal(&(x.transpose() * &range));
            range = orthonormal(&(x * &back));
        }
        let small = range.transpose() * x;
        let gram = &small * small.transpose();
        let found = gram.self_adjoint_eigen(Side::Lower).ok()?;
        // Ascending, the last is the largest.
        let (values, vectors) = (found.S().column_vector(), found.U());
        let value = |component: usize| values[columns - 1 - component].max(0.0);
        let places = &range * vectors;
        let scores = Array2::from_shape_fn((rows, kept.max(2)), |(row, component)| {
            if component < kept { places[(row, columns - 1 - component)] * value(component).sqrt() } else { 0.0 }
        });
        let first: f64 = (0..kept.min(2)).map(|component| f64::from(value(component))).sum();
        Some(Self { scores, explained: (first / total).min(1.0) })
    }
}

/// A basis of the columns.
fn orthonormal(columns: &Mat<f32>) -> Mat<f32> {
    columns.qr().compute_thin_Q()
}

/// Places `[x, y, x, y, …]` of the rows and the perplexity; none where there are too few.
fn tsne(scores: &Array2<f32>) -> Option<(Vec<f32>, f32)> {
    let rows = scores.nrows();
    let perplexity = PERPLEXITY.min(((rows - 1) as f32 / 3.0).floor());
    if perplexity < 2.0 {
        return None;
    }
    let data: Vec<&[f32]> = scores.outer_iter().filter_map(|row| row.to_slice()).collect();
    let neighbours = neighbours(&data, (3.0 * perplexity) as usize);
    let spread = (scores.column(0).iter().map(|value| value * value).sum::<f32>() / rows as f32).sqrt();
    let start: Vec<f32> = scores.outer_iter().flat_map(|row| [row[0], row[1]]).map(|value| value / spread * 1e-4).collect();
    // As Belkina and others (2019) found: an image's share of the exaggerated attraction. The crate's own is a quarter of it.
    let rate = (rows as f32 / EXAGGERATION).max(50.0);
    let mut map = tSNE::<f32, &[f32]>::new(&data);
    map.perplexity(perplexity)
        .epochs(STEPS)
        .early_exaggeration(EXAGGERATION)
        .learning_rate(rate)
        .initial_embedding(start)
        .barnes_hut_with_neighbors(THETA, &neighbours);
    let places = map.embedding();
    places.iter().all(|place| place.is_finite()).then_some((places, perplexity))
}

/// The `k` nearest rows of each by Euclid's distance, nearest first, itself not among them.
fn neighbours(data: &[&[f32]], k: usize) -> Vec<Vec<Neighbor<f32>>> {
    let of = |index: usize| {
        let distance = |other: &[f32]| data[index].iter().zip(other).map(|(a, b)| (a - b) * (a - b)).sum::<f32>();
        let mut all: Vec<(f32, usize)> =
            data.iter().enumerate().filter(|(other, _)| *other != index).map(|(other, row)| (distance(row), other)).collect();
        let order = |a: &(f32, usize), b: &(f32, usize)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
        if k < all.len() {
            all.select_nth_unstable_by(k - 1, order);
            all.truncate(k);
        }
        all.sort_unstable_by(order);
        all.into_iter().map(|(distance, index)| Neighbor { index, distance: distance.sqrt() }).collect()
    };
    (0..data.len()).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows in three groups far apart, in ten dimensions.
    fn groups(rows: usize) -> Array2<f32> {
        let mut random = ChaCha8Rng::seed_from_u64(5);
        Array2::from_shape_fn((rows, 10), |(row, column)| {
            random.random::<f32>() + if column == row % 3 { 20.0 + 5.0 * column as f32 } else { 0.0 }
        })
    }

    fn answers(rows: usize) -> Vec<Answer> {
        let one =
            |row: usize| Answer { id: format!("{row}"), label: row % 3, predicted: 0, confidence: 0.5, label_probability: 0.5 };
        (0..rows).map(one).collect()
    }

    #[test]
    fn components_are_those_of_the_decomposition() {
        let x = groups(90);
        let found = Components::of(x.clone(), 1).unwrap();
        let centred = &x - &x.mean_axis(Axis(0)).unwrap();
        let whole = MatRef::from_row_major_slice(centred.as_slice().unwrap(), 90, 10).to_owned();
        let mut values: Vec<f32> = (whole.transpose() * &whole).self_adjoint_eigenvalues(Side::Lower).unwrap();
        values.reverse();
        for (component, value) in values.iter().enumerate() {
            let sum: f32 = found.scores.column(component).iter().map(|score| score * score).sum();
            assert!((sum - value).abs() < 1e-3 * values[0], "{component}: {sum} for {value}");
        }
        let share = f64::from(values[0] + values[1]) / f64::from(values.iter().sum::<f32>());
        assert!((found.explained - share).abs() < 1e-4);
        assert!(Components::of(Array2::ones((9, 4)), 1).is_none(), "all rows are the same");
        let narrow = Components::of(Array2::from_shape_fn((9, 1), |(row, _)| row as f32), 1).unwrap();
        assert!(narrow.scores.column(1).iter().all(|&score| score == 0.0));
    }

    #[test]
    fn groups_stay_together_and_a_seed_gives_one_map() {
        let x = groups(90);
        let features = |_: &str, ids: &[String]| {
            let rows: Vec<usize> = ids.iter().map(|id| id.parse().unwrap()).collect();
            Ok(x.select(Axis(0), &rows))
        };
        let answers = answers(90);
        let map = draw("test", &answers, &features, 7).unwrap().unwrap();
        assert_eq!(map, draw("test", &answers, &features, 7).unwrap().unwrap());
        assert_ne!(map.points[0].id, draw("test", &answers, &features, 8).unwrap().unwrap().points[0].id);
        let place = |point: &MapPoint| point.tsne.unwrap();
        let distance = |a: [f32; 2], b: [f32; 2]| (a[0] - b[0]).hypot(a[1] - b[1]);
        for point in &map.points {
            let nearest = map.points.iter().filter(|other| other.id != point.id);
            let nearest =
                nearest.min_by(|a, b| distance(place(a), place(point)).total_cmp(&distance(place(b), place(point)))).unwrap();
            assert_eq!(nearest.label, point.label);
        }
    }

    #[test]
    fn too_few_images_have_no_map_and_bad_features_a_reason() {
        let same = |_: &str, ids: &[String]| Ok(Array2::ones((ids.len(), 4)));
        assert_eq!(draw("test", &answers(7), &same, 0), Ok(None));
        assert_eq!(draw("test", &answers(20), &same, 0), Ok(None));
        let bad = |_: &str, ids: &[String]| Ok(Array2::from_elem((ids.len(), 4), f32::NAN));
        assert!(draw("test", &answers(20), &bad, 0).unwrap_err().contains("NaN"));
        let few = |_: &str, ids: &[String]| Ok(Array2::from_shape_fn((ids.len(), 4), |(row, column)| (row * column) as f32));
        assert!(draw("test", &answers(9), &few, 0).unwrap().unwrap().points[0].tsne.is_some());
    }
}
