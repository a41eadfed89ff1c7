//! The rows that are nearest to each row by cosine similarity, exactly: every pair is compared, in blocks that stay in the cache.
//!
//! ```text
//! 1,024 rows of length 1 ──pack──▶ a layer: its logits for a row are the row's similarities to them
//!        64 rows ──layer──▶ 64 x 1,024 similarities ──above the worst that is kept──▶ the k nearest of each row
//! ```
//!
//! Among all rows of one matrix each pair is computed once and offered to both. Similarities are sums in f32 in the order of the
//! features, and of equal ones the row that comes first is nearer: the answer depends neither on blocks nor on threads.

use std::ops::ControlFlow;

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis};
use rayon::prelude::*;

use super::dense::Dense;
use super::features::Features;
use super::simd::{LANES, Lanes};

/// Rows of a layer.
const CHUNK: usize = 1024;

/// Rows that are compared with a layer at a time: they, a panel of the layer and the similarities fit a core's cache.
const GROUP: usize = 64;

/// A row that is near another one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Near {
    /// Cosine of the angle between the two, -1 to 1; 0 where one of them is all zeros.
    pub similarity: f32,
    row: u32,
}

impl Near {
    /// What stands where no row has been found yet.
    const NONE: Self = Self { similarity: f32::NEG_INFINITY, row: u32::MAX };

    fn new(similarity: f32, row: usize) -> Self {
        Self { similarity, row: row as u32 }
    }

    /// The row.
    pub fn row(self) -> usize {
        self.row as usize
    }

    /// `1 - similarity`, and never below 0.
    pub fn distance(self) -> f64 {
        (1.0 - f64::from(self.similarity)).max(0.0)
    }

    fn is_nearer(self, other: Self) -> bool {
        self.similarity > other.similarity || (self.similarity == other.similarity && self.row < other.row)
    }
}

/// The nearest rows of each row.
#[derive(Clone, Debug, PartialEq)]
pub struct Nearest {
    k: usize,
    /// `[rows, k]`, the nearest first.
    found: Vec<Near>,
}

impl Nearest {
    /// How many there are of each row.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Those of a row, the nearest first.
    pub fn of(&self, row: usize) -> &[Near] {
        &self.found[row * self.k..][..self.k]
    }
}

/// The `k` nearest other rows of each row of `x` `[N, D]`, whose values are finite; `N - 1` where there are no more. `on_rows` is
/// told how many rows have been compared with all others; none where it breaks off.
///
/// Memory: `N * k * 8` bytes, and a copy of 1,024 rows.
pub fn nearest_among(x: ArrayView2<'_, f32>, k: usize, on_rows: &mut dyn FnMut(usize) -> ControlFlow<()>) -> Option<Nearest> {
    let rows = x.nrows();
    let k = k.min(rows.saturating_sub(1));
    let mut found = vec![Near::NONE; rows * k];
    if k == 0 {
        return Some(Nearest { k, found });
    }
    let (source, scales) = (Features::new(x, None), scales(x));
    for first in (0..rows).step_by(CHUNK) {
        let block: Vec<usize> = (first..rows.min(first + CHUNK)).collect();
        let layer = layer(x, &block, &scales);
        let (own, later) = found[first * k..].split_at_mut(block.len() * k);
        own.par_chunks_mut(GROUP * k).zip(block.par_chunks(GROUP)).for_each_init(Scores::default, |scores, (kept, group)| {
            scores.fill(&layer, &source, group, &scales);
            for (place, (kept, &row)) in kept.chunks_exact_mut(k).zip(group).enumerate() {
                scores.offer(place, kept, |column| Some(block[column]).filter(|&other| other != row));
            }
        });
        // What the later rows find among these, these find among the later rows.
        let worst: Vec<f32> = own.chunks_exact(k).map(|kept| kept[k - 1].similarity).collect();
        let begin = || (vec![Near::NONE; own.len()], Bounds::new(&worst), Scores::default());
        let start = first + block.len();
        let offered =
            later.par_chunks_mut(GROUP * k).enumerate().fold(begin, |(mut own, mut bounds, mut scores), (group, kept)| {
                let group: Vec<usize> = (start + group * GROUP..).take(kept.len() / k).collect();
                scores.fill(&layer, &source, &group, &scales);
                for (place, (kept, &row)) in kept.chunks_exact_mut(k).zip(&group).enumerate() {
                    scores.offer(place, kept, |column| Some(block[column]));
                    bounds.pass(&scores, place, |column, similarity| {
                        let own = &mut own[column * k..][..k];
                        insert(own, Near::new(similarity, row));
                        own[k - 1].similarity
                    });
                }
                (own, bounds, scores)
            });
        let offered: Vec<Vec<Near>> = offered.map(|(own, ..)| own).collect();
        for offered in offered {
            for (own, offered) in own.chunks_exact_mut(k).zip(offered.chunks_exact(k)) {
                offered.iter().take_while(|near| **near != Near::NONE).for_each(|&near| insert(own, near));
            }
        }
        if on_rows(start).is_break() {
            return None;
        }
    }
    Some(Nearest { k, found })
}

/// Some rows of a matrix `[N, D]`.
type Listed<'a> = (ArrayView2<'a, f32>, &'a [usize]);

/// For each listed row of the queries its `k` nearest of the listed rows of `x`, or all where there are no more; values are finite.
/// `on_rows` is told how many rows of `x` have been compared; none where it breaks off.
pub(super) fn nearest_of(
    (x, listed): Listed<'_>,
    queries: &[Listed<'_>],
    k: usize,
    on_rows: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Option<Vec<Nearest>> {
    let k = k.min(listed.len());
    let mut nearest: Vec<Nearest> =
        queries.iter().map(|(_, rows)| Nearest { k, found: vec![Near::NONE; rows.len() * k] }).collect();
    if k == 0 {
        return Some(nearest);
    }
    let of_listed = scales(x);
    let asked: Vec<_> = queries.iter().map(|&(x, rows)| (Features::new(x, None), rows, scales(x))).collect();
    let mut done = 0;
    for block in listed.chunks(CHUNK) {
        let layer = layer(x, block, &of_listed);
        for ((source, rows, own), nearest) in asked.iter().zip(&mut nearest) {
            let groups = nearest.found.par_chunks_mut(GROUP * k).zip(rows.par_chunks(GROUP));
            groups.for_each_init(Scores::default, |scores, (kept, group)| {
                scores.fill(&layer, source, group, own);
                let kept = kept.chunks_exact_mut(k).enumerate();
                kept.for_each(|(place, kept)| scores.offer(place, kept, |column| Some(block[column])));
            });
        }
        done += block.len();
        if on_rows(done).is_break() {
            return None;
        }
    }
    Some(nearest)
}

/// What each row is multiplied with to be of length 1; 0 for a row of zeros.
fn scales(x: ArrayView2<'_, f32>) -> Vec<f32> {
    let scale = |row: ArrayView1<'_, f32>| {
        let length = row.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
        if length > 0.0 { (1.0 / length) as f32 } else { 0.0 }
    };
    x.axis_iter(Axis(0)).into_par_iter().map(scale).collect()
}

/// A layer whose logits for a row are its products with these rows, each of length 1.
fn layer(x: ArrayView2<'_, f32>, rows: &[usize], scales: &[f32]) -> Dense {
    let mut copies = Array2::zeros((rows.len(), x.ncols()));
    copies.axis_iter_mut(Axis(0)).into_par_iter().zip(rows).for_each(|(mut copy, &row)| {
        copy.zip_mut_with(&x.row(row), |to, &value| *to = value * scales[row]);
    });
    Dense::pack(copies.t(), Array1::zeros(rows.len()).view())
}

/// Similarities `[panel][row]` of some rows to those of a layer, sixteen a panel.
#[derive(Default)]
struct Scores {
    lanes: Vec<Lanes>,
    /// `[rows, columns]`, not scaled.
    products: Vec<f32>,
    rows: usize,
    columns: usize,
}

impl Scores {
    fn fill(&mut self, layer: &Dense, source: &Features<'_>, rows: &[usize], scales: &[f32]) {
        (self.rows, self.columns) = (rows.len(), layer.classes());
        self.products.resize(self.rows * self.columns, 0.0);
        layer.logits_into(source, rows, &mut self.products);
        self.lanes.clear();
        self.lanes.resize(self.columns.div_ceil(LANES) * self.rows, Lanes::ZERO);
        for (place, (products, &row)) in self.products.chunks_exact(self.columns).zip(rows).enumerate() {
            for (lanes, products) in self.lanes.iter_mut().skip(place).step_by(self.rows).zip(products.chunks(LANES)) {
                lanes.0.iter_mut().zip(products).for_each(|(lane, &product)| *lane = product * scales[row]);
            }
        }
    }

    /// Offers a row the rows of the layer: `other` says which row a column is, or that it is none.
    fn offer(&self, place: usize, kept: &mut [Near], other: impl Fn(usize) -> Option<usize>) {
        let mut worst = kept.last().map_or(f32::INFINITY, |near| near.similarity);
        for (panel, lanes) in self.lanes.iter().skip(place).step_by(self.rows).enumerate() {
            // Without a shortcut, so that it is vectorized: few pass.
            if !lanes.0.iter().fold(false, |any, &value| any | (value >= worst)) {
                continue;
            }
            for (column, &value) in (panel * LANES..self.columns).zip(&lanes.0).filter(|(_, value)| **value >= worst) {
                if let Some(row) = other(column) {
                    insert(kept, Near::new(value, row));
                }
            }
            worst = kept.last().map_or(f32::INFINITY, |near| near.similarity);
        }
    }
}

/// For each row of a layer the similarity below which nothing is nearer than what is known.
struct Bounds(Vec<Lanes>);

impl Bounds {
    fn new(worst: &[f32]) -> Self {
        let lanes = worst.chunks(LANES).map(|worst| {
            let mut lanes = Lanes([f32::INFINITY; LANES]);
            lanes.0[..worst.len()].copy_from_slice(worst);
            lanes
        });
        Self(lanes.collect())
    }

    /// Hands over the similarities to a row that reach the bounds; `keep` returns the worst that is kept then.
    fn pass(&mut self, scores: &Scores, place: usize, mut keep: impl FnMut(usize, f32) -> f32) {
        let panels = scores.lanes.iter().skip(place).step_by(scores.rows);
        for (panel, (lanes, bounds)) in panels.zip(&mut self.0).enumerate() {
            if !lanes.0.iter().zip(&bounds.0).fold(false, |any, (value, bound)| any | (value >= bound)) {
                continue;
            }
            for (lane, (&value, bound)) in lanes.0.iter().zip(&mut bounds.0).enumerate() {
                if value >= *bound {
                    *bound = bound.max(keep(panel * LANES + lane, value));
                }
            }
        }
    }
}

/// Keeps the nearest, the nearest first.
fn insert(kept: &mut [Near], near: Near) {
    if kept.last().is_none_or(|last| !near.is_nearer(*last)) {
        return;
    }
    let place = kept.partition_point(|other| other.is_nearer(near));
    kept[place..].rotate_right(1);
    kept[place] = near;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2,500 rows, some of them equal, one of zeros.
    fn matrix() -> Array2<f32> {
        let value = |row: usize, column: usize| ((row * 7919 + column * 104_729 + row * row * 31) % 1009) as f32 / 1009.0;
        Array2::from_shape_fn((2500, 19), |(row, column)| match row {
            1500 => 0.0,
            2000..2030 => value(77, column) * (1.0 + (row % 3) as f32),
            _ => value(row, column),
        })
    }

    /// The slow way, in f64.
    fn similarity(x: &Array2<f32>, a: usize, b: usize) -> f64 {
        let dot = |a: usize, b: usize| x.row(a).mapv(f64::from).dot(&x.row(b).mapv(f64::from));
        let length = (dot(a, a) * dot(b, b)).sqrt();
        if length > 0.0 { dot(a, b) / length } else { 0.0 }
    }

    #[test]
    fn among_all_rows_they_are_those_of_the_slow_way_on_any_threads() {
        let x = matrix();
        let mut told = Vec::new();
        let mut on_rows = |rows| {
            told.push(rows);
            ControlFlow::Continue(())
        };
        let found = nearest_among(x.view(), 12, &mut on_rows).unwrap();
        assert_eq!(told, [1024, 2048, 2500]);
        for row in (0..2500).step_by(61).chain([77, 1023, 1024, 1500, 2029, 2499]) {
            let mut slow: Vec<(f64, usize)> =
                (0..2500).filter(|&other| other != row).map(|other| (similarity(&x, row, other), other)).collect();
            slow.sort_by(|a, b| b.0.total_cmp(&a.0));
            let near = found.of(row);
            assert!(near.is_sorted_by(|a, b| a.is_nearer(*b)), "row {row}: {near:?}");
            for (near, (expected, _)) in near.iter().zip(&slow) {
                let exact = similarity(&x, row, near.row());
                assert!((f64::from(near.similarity) - exact).abs() < 1e-6, "row {row}: {near:?} {exact}");
                assert!((exact - expected).abs() < 1e-6, "row {row}: {near:?} {expected}");
            }
        }
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let again = pool.install(|| nearest_among(x.view(), 12, &mut |_| ControlFlow::Continue(())));
            assert_eq!(again.unwrap(), found);
        }
        assert_eq!(nearest_among(x.view(), 12, &mut |_| ControlFlow::Break(())), None);
    }

    #[test]
    fn few_rows_have_what_there_is() {
        let x = matrix();
        let mut go_on = |_| ControlFlow::Continue(());
        for rows in 0..4_usize {
            let found = nearest_among(x.slice(ndarray::s![..rows, ..]), 12, &mut go_on).unwrap();
            assert_eq!(found.k(), rows.saturating_sub(1));
            for row in 0..rows {
                let mut others: Vec<usize> = found.of(row).iter().map(|near| near.row()).collect();
                others.sort_unstable();
                assert_eq!(others, (0..rows).filter(|&other| other != row).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn of_equals_the_first_rows_are_kept() {
        let x = Array2::<f32>::ones((1500, 3));
        let found = nearest_among(x.view(), 5, &mut |_| ControlFlow::Continue(())).unwrap();
        let rows = |row: usize| found.of(row).iter().map(|near| near.row()).collect::<Vec<_>>();
        assert_eq!(rows(0), [1, 2, 3, 4, 5]);
        assert_eq!((rows(3), rows(1400)), (vec![0, 1, 2, 4, 5], vec![0, 1, 2, 3, 4]));
        let listed: Vec<usize> = (0..1500).rev().collect();
        let found = nearest_of((x.view(), &listed), &[(x.view(), &[7])], 3, &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(found[0].of(0).iter().map(|near| near.row()).collect::<Vec<_>>(), [0, 1, 2]);
    }

    /// `TLPIPE_NEIGHBOURS="ROWS WIDTH K" cargo test --release nearest_speed -- --ignored --nocapture`
    #[test]
    #[ignore = "a measurement"]
    fn nearest_speed() {
        let text = std::env::var("TLPIPE_NEIGHBOURS").unwrap();
        let size: Vec<usize> = text.split(' ').map(|word| word.parse().unwrap()).collect();
        let x = Array2::from_shape_fn((size[0], size[1]), |(row, column)| ((row * 7919 + column * 104_729) % 1009) as f32);
        let started = std::time::Instant::now();
        let found = nearest_among(x.view(), size[2], &mut |_| ControlFlow::Continue(())).unwrap();
        #[allow(clippy::print_stdout, reason = "a measurement")]
        {
            println!("{text}: {:.1} s, {:?}", started.elapsed().as_secs_f64(), found.of(0)[0]);
        }
    }
}
