//! The same picture twice: byte for byte, or nearly so by its features.
//!
//! Whether two images are near duplicates is no question of their distance alone: in a dense region, frogs among leaves, different
//! images are as near as copies are elsewhere. So their distance is measured against their surroundings: by `d(a, b)` over the
//! geometric mean of the distances of `a` and of `b` to their tenth nearest neighbours (the local scaling of Zelnik-Manor & Perona,
//! 2004). Copies stand out from their neighbours, whatever the backbone.

use std::collections::{HashMap, HashSet};

use super::finding::{Finding, Kind, rank};
use super::images::Images;
use crate::head::{Near, Nearest};

/// The neighbour whose distance is the scale.
pub const SCALE_NEIGHBOUR: usize = 10;

/// Share of the scale below which two images are near duplicates, at most, where nothing else is asked for.
const NEAR: f64 = 0.5;

/// Share of the images that may have one so near by chance.
const BY_CHANCE: f64 = 1e-2;

/// Cosine distance that rounding alone can make of equal features.
const ROUNDING: f64 = 2e-6;

/// Pairs and what they mean, strongest first in each list. Scores of copies are 1, those of near duplicates `1 - d / scale`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Duplicates {
    /// For each image of a split but the first the strongest copy in an earlier split, where there is one.
    pub leaks: Vec<Finding>,
    /// Of the leaks, those that are equal in every byte.
    pub exact_leaks: usize,
    /// For each copy within a split the first image that it is a copy of.
    pub exact: Vec<Finding>,
    /// Near duplicates within a split: as many as there are images that stand for another one, each with the strongest link.
    pub near: Vec<Finding>,
    /// Pairs of either sort whose labels differ.
    pub conflicts: Vec<Finding>,
}

/// Two images that are copies.
struct Pair {
    row: usize,
    other: usize,
    score: f64,
}

/// Share of the scale below which two images are near duplicates: 0.5, or less where features have so few dimensions that images which
/// have nothing to do with each other come as near.
///
/// Where the images around one fill `d` dimensions evenly, `10 * line^(d/2)` of them lie within `line` of the cosine distance (half the
/// square of Euclid's) to its tenth neighbour. `d` is the maximum-likelihood estimate of Levina & Bickel (2004), averaged over the
/// images by its inverse (MacKay & Ghahramani, 2005), from the tenth neighbour on, so that copies have no part in it.
pub fn near_line(nearest: &Nearest, images: usize) -> f64 {
    let Some(last) = nearest.k().checked_sub(1).filter(|&last| last >= SCALE_NEIGHBOUR) else { return NEAR };
    let logarithm = |near: &Near| near.distance().max(ROUNDING).ln();
    // 2 / d of the images around one, where the nearest ten stand as far away as the tenth for all that is known.
    let growth = |row: usize| {
        let own = &nearest.of(row)[..=last];
        let far = logarithm(&own[last]);
        let nearer = |near: &Near| far - logarithm(near);
        let known: f64 = own[SCALE_NEIGHBOUR..].iter().map(nearer).sum();
        (known + SCALE_NEIGHBOUR as f64 * nearer(&own[SCALE_NEIGHBOUR - 1])) / (own.len() - SCALE_NEIGHBOUR) as f64
    };
    let mean = (0..images).map(growth).sum::<f64>() / images as f64;
    (BY_CHANCE / SCALE_NEIGHBOUR as f64).powf(mean).min(NEAR)
}

/// Finds copies by content hash, and near duplicates among the nearest neighbours at less than `near` of the local scale.
pub fn duplicates(images: &Images<'_>, nearest: &Nearest, near: f64) -> Duplicates {
    let (same, alike) = (same_bytes(images), alike(images, nearest, near));
    let mut found = Duplicates::default();
    let mut leaks: HashMap<usize, (f64, usize)> = HashMap::new();
    for pair in same.iter().chain(&alike) {
        let (early, late) = order(images, pair);
        let is_stronger = |known: &(f64, usize)| pair.score > known.0 || (pair.score == known.0 && early < known.1);
        if images.rows[early].split != images.rows[late].split && leaks.get(&late).is_none_or(is_stronger) {
            leaks.insert(late, (pair.score, early));
        }
    }
    found.leaks = leaks.into_iter().map(|(row, (score, other))| leak(images, row, other, score)).collect();
    found.exact_leaks =
        found.leaks.iter().filter(|leak| leak.other.is_some_and(|other| is_same(images, leak.row, other))).count();
    found.exact = forest(images, &same, &[]).into_iter().map(exact).collect();
    found.near = forest(images, &alike, &same).into_iter().map(near_pair).collect();
    let conflicts = same.iter().chain(&alike).filter(|pair| images.disagree(pair.row, pair.other));
    found.conflicts = conflicts.map(|pair| conflict(images, pair)).collect();
    for list in [&mut found.leaks, &mut found.exact, &mut found.near, &mut found.conflicts] {
        rank(list);
    }
    found
}

/// Each image that has the bytes of an earlier one, with the first of these in each split.
fn same_bytes(images: &Images<'_>) -> Vec<Pair> {
    let mut first: HashMap<&str, Vec<usize>> = HashMap::with_capacity(images.rows.len());
    let mut pairs = Vec::new();
    for (row, image) in images.rows.iter().enumerate() {
        let known = first.entry(&image.content_hash).or_default();
        pairs.extend(known.iter().map(|&other| Pair { row, other, score: 1.0 }));
        if known.iter().all(|&other| images.rows[other].split != image.split) {
            known.push(row);
        }
    }
    pairs
}

/// Pairs of other bytes that are near duplicates.
fn alike(images: &Images<'_>, nearest: &Nearest, near: f64) -> Vec<Pair> {
    let Some(scale) = nearest.k().min(SCALE_NEIGHBOUR).checked_sub(1) else { return Vec::new() };
    let mut seen = HashSet::new();
    let mut pairs = Vec::new();
    for row in 0..images.rows.len() {
        let own = nearest.of(row);
        for found in own {
            let (other, distance) = (found.row(), found.distance());
            let scale = (own[scale].distance() * nearest.of(other)[scale].distance()).sqrt();
            let ratio = if distance <= ROUNDING { 0.0 } else { distance / scale.max(ROUNDING) };
            if ratio < near && !is_same(images, row, other) && seen.insert((row.min(other), row.max(other))) {
                pairs.push(Pair { row: row.max(other), other: row.min(other), score: 1.0 - ratio });
            }
        }
    }
    pairs
}

fn is_same(images: &Images<'_>, row: usize, other: usize) -> bool {
    images.rows[row].content_hash == images.rows[other].content_hash
}

/// The row of the earlier split first; of one split, the earlier row.
fn order(images: &Images<'_>, pair: &Pair) -> (usize, usize) {
    let key = |row: usize| (images.rows[row].split, row);
    if key(pair.row) < key(pair.other) { (pair.row, pair.other) } else { (pair.other, pair.row) }
}

/// The strongest pairs within a split that join what was not joined before (Kruskal, 1956): one less than there are images in each
/// group of copies. What `joined` joins stands for one image.
fn forest<'p>(images: &Images<'_>, pairs: &'p [Pair], joined: &[Pair]) -> Vec<&'p Pair> {
    let mut groups = Groups((0..images.rows.len()).collect());
    let within = |pair: &&Pair| images.rows[pair.row].split == images.rows[pair.other].split;
    joined.iter().filter(within).for_each(|pair| {
        groups.join(pair.row, pair.other);
    });
    let mut sorted: Vec<&Pair> = pairs.iter().filter(within).collect();
    sorted.sort_by(|a, b| b.score.total_cmp(&a.score).then((a.row, a.other).cmp(&(b.row, b.other))));
    sorted.into_iter().filter(|pair| groups.join(pair.row, pair.other)).collect()
}

/// Groups of rows, each row with one on the way to the group's first.
struct Groups(Vec<usize>);

impl Groups {
    fn first(&mut self, mut row: usize) -> usize {
        while self.0[row] != row {
            self.0[row] = self.0[self.0[row]];
            row = self.0[row];
        }
        row
    }

    /// Whether they were two groups before.
    fn join(&mut self, a: usize, b: usize) -> bool {
        let (a, b) = (self.first(a), self.first(b));
        self.0[a.max(b)] = a.min(b);
        a != b
    }
}

fn leak(images: &Images<'_>, row: usize, other: usize, score: f64) -> Finding {
    let (split, earlier) = (images.split(row), images.split(other));
    let what = if is_same(images, row, other) { "the same file" } else { "a near duplicate" };
    let mut suggestion = format!("{what} is in {earlier}: take one of the two out, or scores on {split} are too good");
    if images.disagree(row, other) {
        suggestion.push_str(&format!("; their labels differ ({}, {})", images.class(row), images.class(other)));
    }
    Finding { kind: Kind::Leak, score, row, other: Some(other), suggestion }
}

fn exact(pair: &Pair) -> Finding {
    let suggestion = "the same file twice: keep one".to_owned();
    Finding { kind: Kind::Duplicate, score: pair.score, row: pair.row, other: Some(pair.other), suggestion }
}

fn near_pair(pair: &Pair) -> Finding {
    let suggestion = "the same picture in other bytes: keep one, or keep both on one side of the hold-out".to_owned();
    Finding { kind: Kind::NearDuplicate, score: pair.score, row: pair.row, other: Some(pair.other), suggestion }
}

fn conflict(images: &Images<'_>, pair: &Pair) -> Finding {
    let (own, other) = (images.class(pair.row), images.class(pair.other));
    let suggestion = format!("labelled {own}, its copy {other}: one label is wrong, or the classes overlap");
    Finding { kind: Kind::LabelConflict, score: pair.score, row: pair.row, other: Some(pair.other), suggestion }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use ndarray::Array2;

    use super::*;
    use crate::audit::images::Image;
    use crate::audit::images::tests::image;
    use crate::head::nearest_among;

    /// 400 images of made-up features, the last 100 of them test; `change` plants copies.
    fn planted(change: impl Fn(&mut [Image], &mut Array2<f32>)) -> (Vec<Image>, Array2<f32>) {
        let noise = |row: usize, column: usize| {
            let hash = blake3::hash(format!("{row} {column}").as_bytes());
            f32::from(hash.as_bytes()[0]) / 255.0
        };
        let mut x = Array2::from_shape_fn((400, 40), |(row, column)| noise(row, column));
        let mut rows: Vec<Image> = (0..400).map(|row| image(row, usize::from(row >= 300), Some(row % 3))).collect();
        change(&mut rows, &mut x);
        (rows, x)
    }

    fn find(rows: &[Image], x: &Array2<f32>) -> Duplicates {
        let (splits, classes) = (["train", "test"].map(str::to_owned), ["a", "b", "c"].map(str::to_owned));
        let images = Images { rows, x: x.view(), splits: &splits, classes: &classes };
        let nearest = nearest_among(x.view(), 20, &mut |_| ControlFlow::Continue(())).unwrap();
        duplicates(&images, &nearest, near_line(&nearest, rows.len()))
    }

    fn pairs(findings: &[Finding]) -> Vec<(usize, Option<usize>)> {
        findings.iter().map(|finding| (finding.row, finding.other)).collect()
    }

    #[test]
    fn without_copies_nothing_is_found() {
        let (rows, x) = planted(|_, _| {});
        assert_eq!(find(&rows, &x), Duplicates::default());
    }

    #[test]
    fn copies_are_found_within_and_between_splits_once_each() {
        let (rows, x) = planted(|rows, x| {
            let mut copy = |from: usize, to: usize, noise: f32| {
                for column in 0..40 {
                    x[(to, column)] = x[(from, column)] + noise * ((column * (to + 3)) % 7) as f32;
                }
                if noise == 0.0 {
                    rows[to].content_hash = rows[from].content_hash.clone();
                }
                rows[to].label = rows[from].label;
            };
            // Three exact copies, one of them in test; a near one in train, a near one in test.
            copy(10, 20, 0.0);
            copy(10, 310, 0.0);
            copy(40, 50, 0.01);
            copy(60, 320, 0.005);
            // A near duplicate of the three.
            copy(10, 70, 0.004);
            rows[50].label = Some(2);
            rows[40].label = Some(0);
        });
        let found = find(&rows, &x);
        assert_eq!(pairs(&found.leaks), [(310, Some(10)), (320, Some(60))]);
        assert_eq!(found.exact_leaks, 1);
        assert!(found.leaks[0].suggestion.contains("same file") && found.leaks[0].suggestion.contains("train"));
        assert_eq!(pairs(&found.exact), [(20, Some(10))]);
        let near = pairs(&found.near);
        assert_eq!(near.len(), 2, "{near:?}");
        assert!(near.contains(&(50, Some(40))) && near.iter().any(|(row, _)| *row == 70), "{near:?}");
        assert_eq!(pairs(&found.conflicts), [(50, Some(40))]);
        assert!(found.conflicts[0].suggestion.contains("labelled c, its copy a"), "{:?}", found.conflicts);
        assert!(found.near.iter().all(|finding| finding.score > 1.0 - NEAR && finding.score <= 1.0));
    }

    #[test]
    fn in_few_dimensions_it_takes_more_to_be_a_copy() {
        let (rows, x) = planted(|rows, x| {
            // All lie about the points of a lattice of two dimensions.
            for row in 0..400 {
                let (a, b) = ((row % 20) as f32 + 0.5 * x[(row, 0)], (row / 20) as f32 + 0.5 * x[(row, 1)]);
                (0..40).for_each(|column| x[(row, column)] = 100.0 + a * (column % 7) as f32 + b * (column % 5) as f32);
            }
            (0..40).for_each(|column| x[(310, column)] = x[(10, column)] + 1e-3 * (column % 2) as f32);
            rows[310].label = rows[10].label;
        });
        let nearest = nearest_among(x.view(), 20, &mut |_| ControlFlow::Continue(())).unwrap();
        let line = near_line(&nearest, 400);
        assert!(line < 0.01 && nearest.of(0)[0].distance() < NEAR * nearest.of(0)[9].distance(), "{line}");
        let found = find(&rows, &x);
        assert_eq!(pairs(&found.leaks), [(310, Some(10))], "{found:?}");
        assert_eq!(found.near, []);
    }

    #[test]
    fn few_images_are_no_trouble() {
        for count in 0..5 {
            let (rows, x) = planted(|_, _| {});
            let x = x.slice(ndarray::s![..count, ..]).to_owned();
            assert_eq!(find(&rows[..count], &x).leaks, []);
        }
    }
}
