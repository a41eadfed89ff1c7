//! The images as the finders see them, and what a single image shows.

use ndarray::{ArrayView2, Axis};
use rayon::prelude::*;

use super::finding::{Finding, Kind, rank};

/// Everything about an image but its features.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Unique within its split.
    pub id: String,
    /// Index into [`Images::splits`].
    pub split: usize,
    /// Class index; none where unlabelled.
    pub label: Option<usize>,
    /// Hash of the encoded image.
    pub content_hash: String,
    /// Pixels; 0 where unknown.
    pub width: i32,
    /// Pixels; 0 where unknown.
    pub height: i32,
}

/// All images of a store.
#[derive(Clone, Copy, Debug)]
pub struct Images<'a> {
    /// One for each row.
    pub rows: &'a [Image],
    /// Features `[N, D]`.
    pub x: ArrayView2<'a, f32>,
    /// Names of the splits; the first one trains.
    pub splits: &'a [String],
    /// Class names; the index is the label.
    pub classes: &'a [String],
}

impl Images<'_> {
    pub(super) fn split(&self, row: usize) -> &str {
        &self.splits[self.rows[row].split]
    }

    /// Name of an image's class.
    pub(super) fn class(&self, row: usize) -> &str {
        self.rows[row].label.and_then(|label| self.classes.get(label)).map_or("no class", String::as_str)
    }

    /// Whether both have a label and it is not the same.
    pub(super) fn disagree(&self, row: usize, other: usize) -> bool {
        matches!((self.rows[row].label, self.rows[other].label), (Some(a), Some(b)) if a != b)
    }
}

/// Images whose features hold NaN or an infinity; the score is the number of such values.
pub fn not_finite(x: ArrayView2<'_, f32>) -> Vec<Finding> {
    let bad = |row: usize| x.index_axis(Axis(0), row).iter().filter(|value| !value.is_finite()).count();
    let found = (0..x.nrows()).into_par_iter().map(|row| (row, bad(row))).filter(|(_, bad)| *bad > 0);
    let mut findings: Vec<Finding> = found
        .map(|(row, bad)| Finding {
            kind: Kind::NotFinite,
            score: bad as f64,
            row,
            other: None,
            suggestion: format!("{bad} features are NaN or infinite: look at the image, then make the features anew"),
        })
        .collect();
    rank(&mut findings);
    findings
}

/// Images whose shorter side is below `share` of the side of the network's input; the score says how many times the input is as
/// long.
pub fn small(rows: &[Image], input_size: u32, share: f64) -> Vec<Finding> {
    let side = f64::from(input_size);
    let found = rows.iter().enumerate().filter_map(|(row, image)| {
        let shorter = f64::from(image.width.min(image.height));
        (shorter > 0.0 && shorter < share * side).then(|| Finding {
            kind: Kind::SmallImage,
            score: side / shorter,
            row,
            other: None,
            suggestion: format!(
                "{} x {} pixels for an input of {input_size}: find a larger one, or extract with a smaller --input-size",
                image.width, image.height
            ),
        })
    });
    let mut findings: Vec<Finding> = found.collect();
    rank(&mut findings);
    findings
}

#[cfg(test)]
pub(super) mod tests {
    use ndarray::array;

    use super::*;

    /// An image of a split and a class, with a hash of its own.
    pub(in crate::audit) fn image(number: usize, split: usize, label: Option<usize>) -> Image {
        Image { id: format!("{number}.png"), split, label, content_hash: format!("{number:064x}"), width: 64, height: 48 }
    }

    #[test]
    fn images_far_below_the_input_are_found_the_smallest_first() {
        let mut rows: Vec<Image> = (0..4).map(|number| image(number, 0, None)).collect();
        (rows[1].width, rows[1].height) = (20, 200);
        (rows[2].width, rows[2].height) = (32, 31);
        (rows[3].width, rows[3].height) = (0, 0);
        let found = small(&rows, 96, 0.5);
        assert_eq!(found.iter().map(|finding| finding.row).collect::<Vec<_>>(), [1, 2]);
        assert!((found[0].score - 4.8).abs() < 1e-12 && found[0].suggestion.contains("20 x 200"), "{found:?}");
        assert!(small(&rows, 32, 0.5).is_empty());
    }

    #[test]
    fn features_that_are_no_numbers_are_counted() {
        let x = array![[1.0, 2.0], [f32::NAN, f32::INFINITY], [0.0, f32::NAN]];
        let found: Vec<(usize, f64)> = not_finite(x.view()).iter().map(|finding| (finding.row, finding.score)).collect();
        assert_eq!(found, [(1, 2.0), (2, 1.0)]);
    }
}
