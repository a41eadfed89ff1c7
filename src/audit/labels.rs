//! Probable label errors by confident learning (Northcutt, Jiang & Chuang, 2021).
//!
//! Every labelled image is answered by a classifier that has not seen it: the mean of two, both leave-one-out from what there is
//! already, least squares and the votes of the nearest neighbours. They err in different ways: of labels that were flipped on
//! purpose, their mean finds more than either, and than a logistic regression fitted in folds.
//!
//! An image counts as one of class `j` where the probability of `j` is at least the mean of those of the images labelled `j`. The
//! counts of (label, such a class), scaled to the number of images with each label, are the joint; what is off its diagonal says how
//! many labels are wrong, and the images with the least probability of their own label, of those that another class fits better, are
//! named.

use ndarray::{Array2, ArrayView2};
use serde::{Deserialize, Serialize};

use super::finding::{Finding, Kind, rank};
use super::images::Images;
use crate::evaluate::{argmax, softmax};
use crate::head::{self, Examples, HeadError, LeftOut, Nearest};

/// Neighbours that vote, and the temperature of their votes: one of cosine similarity `s` counts `exp(s / 0.07)`.
pub const VOTERS: usize = 50;
const TEMPERATURE: f64 = 0.07;

/// Images of a class below which the others cannot speak about its labels.
const LEAST_OF_CLASS: usize = 3;

/// Pairs of classes that are listed.
const LISTED_PAIRS: usize = 20;

/// How often images with one label look like another class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassPair {
    /// The label.
    pub label: String,
    /// The class that fits better.
    pub looks_like: String,
    /// Estimated number of images.
    pub images: f64,
}

/// What is found.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelErrors {
    /// The score is 1 minus the probability of the own label.
    pub findings: Vec<Finding>,
    /// Labelled images.
    pub labelled: usize,
    /// Of these, those whose label the classifier gives, each answered without itself.
    pub agreeing: usize,
    /// Estimated number of wrong labels.
    pub estimated: f64,
    /// Mean probability of its own label over each class's images, what another image's must reach to count as one of it; none of a
    /// class without images.
    pub thresholds: Vec<Option<f64>>,
    /// The pairs off the diagonal, most images first; at most 20.
    pub pairs: Vec<ClassPair>,
    /// L2 of the least squares.
    pub l2: f64,
}

/// Finds probable label errors among the labelled images, of which there are two classes or more.
///
/// # Errors
/// When a label is no class, or least squares has no answer.
pub fn label_errors(images: &Images<'_>, nearest: &Nearest) -> Result<LabelErrors, HeadError> {
    let labels: Vec<Option<i32>> =
        images.rows.iter().map(|image| image.label.and_then(|label| i32::try_from(label).ok())).collect();
    let listed: Vec<usize> = (0..labels.len()).filter(|&row| labels[row].is_some()).collect();
    let examples =
        Examples { x: images.x.reborrow(), labels: &labels, train: &listed, holdout: &[], refit: &[], classes: images.classes };
    let LeftOut { logits, l2, .. } = head::ridge_left_out(&examples)?;
    let mut probabilities = logits;
    for (mut answer, &row) in probabilities.rows_mut().into_iter().zip(&listed) {
        if let Some(answer) = answer.as_slice_mut() {
            softmax(answer);
            add_votes(answer, images, nearest, row);
        }
    }
    Ok(confident(images, &listed, probabilities.view(), l2))
}

/// Takes the mean with the votes of the labelled neighbours, where there are any.
fn add_votes(answer: &mut [f32], images: &Images<'_>, nearest: &Nearest, row: usize) {
    let near = nearest.of(row);
    let Some(first) = near.first() else { return };
    let mut votes = vec![0.0_f64; answer.len()];
    for near in near.iter().take(VOTERS) {
        if let Some(vote) = images.rows[near.row()].label.and_then(|label| votes.get_mut(label)) {
            *vote += ((f64::from(near.similarity) - f64::from(first.similarity)) / TEMPERATURE).exp();
        }
    }
    let sum: f64 = votes.iter().sum();
    if sum > 0.0 {
        answer.iter_mut().zip(votes).for_each(|(answer, vote)| *answer = ((f64::from(*answer) + vote / sum) / 2.0) as f32);
    }
}

/// Confident learning on probabilities `[listed, K]`.
fn confident(images: &Images<'_>, listed: &[usize], probabilities: ArrayView2<'_, f32>, l2: f64) -> LabelErrors {
    let classes = images.classes.len();
    let label = |place: usize| images.rows[listed[place]].label.unwrap_or(0);
    let mut of_class = vec![(0_usize, 0.0_f64); classes];
    for (place, answer) in probabilities.rows().into_iter().enumerate() {
        let (count, sum) = &mut of_class[label(place)];
        *count += 1;
        *sum += f64::from(answer[label(place)]);
    }
    let thresholds: Vec<Option<f64>> = of_class.iter().map(|&(count, sum)| (count > 0).then(|| sum / count as f64)).collect();
    let mut counts = Array2::<f64>::zeros((classes, classes));
    let (mut findings, mut agreeing) = (Vec::new(), 0);
    for (place, answer) in probabilities.rows().into_iter().enumerate() {
        let own = label(place);
        let confident = (0..classes)
            .filter(|&class| thresholds[class].is_some_and(|least| f64::from(answer[class]) >= least))
            .max_by(|&a, &b| answer[a].total_cmp(&answer[b]).then(b.cmp(&a)));
        if let Some(class) = confident {
            counts[(own, class)] += 1.0;
        }
        let looks_like = answer.to_slice().map_or(own, argmax);
        agreeing += usize::from(looks_like == own);
        if looks_like != own && of_class[own].0 >= LEAST_OF_CLASS {
            let (like, share) = (&images.classes[looks_like], answer[looks_like]);
            findings.push(Finding {
                kind: Kind::LabelError,
                score: 1.0 - f64::from(answer[own]),
                row: listed[place],
                other: None,
                suggestion: format!("labelled {}, looks like {like} ({share:.2})", images.classes[own]),
            });
        }
    }
    for (mut row, (images, _)) in counts.rows_mut().into_iter().zip(&of_class) {
        let sum = row.sum();
        row.mapv_inplace(|count| if sum > 0.0 { count / sum * *images as f64 } else { 0.0 });
    }
    let mut pairs: Vec<ClassPair> = counts
        .indexed_iter()
        .filter(|&((own, other), &count)| own != other && count > 0.0)
        .map(|((own, other), &count)| ClassPair {
            label: images.classes[own].clone(),
            looks_like: images.classes[other].clone(),
            images: count,
        })
        .collect();
    let estimated = pairs.iter().map(|pair| pair.images).sum::<f64>();
    pairs.sort_by(|a, b| b.images.total_cmp(&a.images));
    pairs.truncate(LISTED_PAIRS);
    rank(&mut findings);
    findings.truncate(estimated.ceil() as usize);
    LabelErrors { findings, labelled: listed.len(), agreeing, estimated, thresholds, pairs, l2 }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use ndarray::{Array2, array};

    use super::*;
    use crate::audit::images::Image;
    use crate::audit::images::tests::image;
    use crate::head::nearest_among;

    #[test]
    fn the_joint_is_that_of_the_paper() {
        // Class 0: 3 images, one of which looks like 1; class 1: 3 images, one of which is no one's.
        let probabilities = array![[0.9_f32, 0.1], [0.8, 0.2], [0.1, 0.9], [0.3, 0.7], [0.2, 0.8], [0.5, 0.5]];
        let rows: Vec<Image> = (0..6).map(|row| image(row, 0, Some(usize::from(row >= 3)))).collect();
        let (splits, classes) = (["train".to_owned()], ["a", "b"].map(str::to_owned));
        let x = Array2::zeros((6, 1));
        let images = Images { rows: &rows, x: x.view(), splits: &splits, classes: &classes };
        let found = confident(&images, &[0, 1, 2, 3, 4, 5], probabilities.view(), 1.0);
        // Thresholds 0.6 and 2/3: rows 0 and 1 count as a, 2 as b, 3 and 4 as b, 5 as none.
        let [Some(a), Some(b)] = found.thresholds[..] else { panic!("{found:?}") };
        assert!((a - 0.6).abs() < 1e-6 && (b - 2.0 / 3.0).abs() < 1e-6);
        assert!((found.estimated - 1.0).abs() < 1e-9, "{found:?}");
        assert_eq!((found.pairs.len(), found.pairs[0].looks_like.as_str()), (1, "b"));
        assert_eq!((found.findings.len(), found.findings[0].row, found.agreeing), (1, 2, 4));
        assert!(found.findings[0].suggestion.contains("labelled a, looks like b (0.90)"));
    }

    #[test]
    fn flipped_labels_are_found_and_unlabelled_images_passed_over() {
        let (width, classes) = (24, ["a", "b", "c"].map(str::to_owned));
        let noise =
            |row: usize, column: usize| f32::from(blake3::hash(format!("{row} {column}").as_bytes()).as_bytes()[0]) / 255.0;
        let x = Array2::from_shape_fn((900, width), |(row, column)| {
            noise(row, column) + if column % 3 == row % 3 { 0.7 } else { 0.0 }
        });
        let flipped: Vec<usize> = (0..900).step_by(20).collect();
        let mut rows: Vec<Image> = (0..900).map(|row| image(row, 0, Some(row % 3))).collect();
        flipped.iter().for_each(|&row| rows[row].label = Some((row + 1) % 3));
        (1..900).step_by(20).for_each(|row| rows[row].label = None);
        let splits = ["train".to_owned()];
        let images = Images { rows: &rows, x: x.view(), splits: &splits, classes: &classes };
        let nearest = nearest_among(x.view(), VOTERS, &mut |_| ControlFlow::Continue(())).unwrap();
        let found = label_errors(&images, &nearest).unwrap();
        assert_eq!(found.labelled, 855);
        assert!((found.estimated - 45.0).abs() < 10.0, "{}", found.estimated);
        let right = found.findings.iter().take(45).filter(|finding| flipped.contains(&finding.row)).count();
        assert!(right >= 42, "{right}");
        assert!(found.findings.iter().all(|finding| rows[finding.row].label.is_some()));
    }
}
