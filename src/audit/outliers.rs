//! Images that are far from all others: by the distance to the k-th nearest neighbour (Ramaswamy, Rastogi & Shim, 2000).

use super::duplicates::SCALE_NEIGHBOUR;
use super::finding::{Finding, Kind, rank};
use crate::head::Nearest;

/// Interquartile ranges above the upper quartile from which on a distance is an outlier (Tukey, 1977).
const FENCE: f64 = 1.5;

/// Images that are needed to tell what is far.
const LEAST_IMAGES: usize = 20;

/// What is found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outliers {
    /// The score is the cosine distance to the tenth nearest neighbour.
    pub findings: Vec<Finding>,
    /// The distance above which an image is an outlier; none of fewer than 20 images.
    pub fence: Option<f64>,
}

/// Finds images whose tenth nearest neighbour is farther than Tukey's fence over all such distances.
pub fn outliers(nearest: &Nearest, rows: usize) -> Outliers {
    let Some(place) = nearest.k().min(SCALE_NEIGHBOUR).checked_sub(1).filter(|_| rows >= LEAST_IMAGES) else {
        return Outliers::default();
    };
    let distances: Vec<f64> = (0..rows).map(|row| nearest.of(row)[place].distance()).collect();
    let mut sorted = distances.clone();
    sorted.sort_by(f64::total_cmp);
    let (lower, median, upper) = (sorted[rows / 4], sorted[rows / 2], sorted[rows * 3 / 4]);
    let fence = upper + FENCE * (upper - lower);
    let far = distances.into_iter().enumerate().filter(|(_, distance)| *distance > fence);
    let mut findings: Vec<Finding> = far
        .map(|(row, distance)| Finding {
            kind: Kind::Outlier,
            score: distance,
            row,
            other: None,
            suggestion: format!(
                "{:.1} times as far from its neighbours as most: look whether it belongs here",
                distance / median.max(f64::MIN_POSITIVE)
            ),
        })
        .collect();
    rank(&mut findings);
    Outliers { findings, fence: Some(fence) }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use ndarray::Array2;

    use super::*;
    use crate::head::nearest_among;

    #[test]
    fn what_is_far_from_all_is_found() {
        let mut x = Array2::from_shape_fn((300, 30), |(row, column)| {
            1.0 + f32::from(blake3::hash(format!("{row} {column}").as_bytes()).as_bytes()[0]) / 512.0
        });
        for (row, column) in [(17, 3), (200, 8)] {
            x[(row, column)] = 20.0 + row as f32;
        }
        let nearest = nearest_among(x.view(), 12, &mut |_| ControlFlow::Continue(())).unwrap();
        let found = outliers(&nearest, 300);
        assert_eq!(found.findings.iter().take(2).map(|finding| finding.row).collect::<Vec<_>>(), [200, 17]);
        assert!(found.findings.len() < 12 && found.findings[1].score > found.fence.unwrap(), "{}", found.findings.len());
        let few = nearest_among(x.slice(ndarray::s![..19, ..]), 12, &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(outliers(&few, 19), Outliers::default());
    }
}
