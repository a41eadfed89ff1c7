//! Classifiers that need no fitting: what a head has to beat.

use std::ops::ControlFlow;

use ndarray::{Array1, Array2, ArrayView2};
use rayon::prelude::*;

use super::dense::{BLOCK_ROWS, Dense};
use super::features::Features;
use super::fit::check;
use super::neighbours::{Near, nearest_of};
use super::{Examples, HeadError};
use crate::evaluate::argmax;

/// How the nearest neighbours vote; left as it is, as in DINO and DINOv2 (Caron and others 2021, Oquab and others 2023).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neighbours {
    /// How many vote; at least 1.
    pub k: usize,
    /// One of cosine similarity `s` counts `exp(s / temperature)`; above 0.
    pub temperature: f64,
}

impl Default for Neighbours {
    fn default() -> Self {
        Self { k: 20, temperature: 0.07 }
    }
}

/// Rows to be classified: features `[N, D]`, and which of them.
pub type Queries<'a> = (ArrayView2<'a, f32>, &'a [usize]);

/// The class that most training rows have, the first of equals.
///
/// # Errors
/// As [`super::fit()`], for examples that are not usable.
pub fn majority(examples: &Examples<'_>) -> Result<usize, HeadError> {
    let labels = check(examples)?;
    let mut counts = vec![0_usize; examples.classes.len()];
    examples.train.iter().for_each(|&row| counts[labels[row]] += 1);
    Ok((0..counts.len()).rev().max_by_key(|&class| counts[class]).unwrap_or(0))
}

/// The mean of each class, as a classifier: the class whose mean is nearest by Euclid's distance.
pub struct NearestMean {
    layer: Dense,
    classes: usize,
}

impl NearestMean {
    /// Takes the means of the training rows.
    ///
    /// # Errors
    /// As [`super::fit()`], for examples that are not usable.
    pub fn of(examples: &Examples<'_>) -> Result<Self, HeadError> {
        let labels = check(examples)?;
        let (width, classes) = (examples.x.ncols(), examples.classes.len());
        let mut sums = Array2::<f64>::zeros((classes, width));
        let mut counts = vec![0_usize; classes];
        for &row in examples.train {
            counts[labels[row]] += 1;
            sums.row_mut(labels[row]).iter_mut().zip(examples.x.row(row)).for_each(|(sum, &value)| *sum += f64::from(value));
        }
        // The nearest mean m is the one with the largest x · m - |m|² / 2; a class without rows has none.
        let mut bias = Array1::from_elem(classes, f32::NEG_INFINITY);
        for (class, &count) in counts.iter().enumerate().filter(|&(_, &count)| count > 0) {
            sums.row_mut(class).mapv_inplace(|sum| sum / count as f64);
            bias[class] = (-0.5 * sums.row(class).dot(&sums.row(class))) as f32;
        }
        Ok(Self { layer: Dense::pack(sums.mapv(|mean| mean as f32).t(), bias.view()), classes })
    }

    /// The class of each listed row of `x`.
    ///
    /// # Errors
    /// When the features have another width.
    pub fn answers(&self, (x, rows): Queries<'_>) -> Result<Vec<usize>, HeadError> {
        width(x, self.layer.features())?;
        let source = Features::new(x, None);
        let nearest = |rows: &[usize]| {
            let mut scores = vec![0.0; rows.len() * self.classes];
            self.layer.logits_into(&source, rows, &mut scores);
            scores.chunks_exact(self.classes).map(argmax).collect::<Vec<_>>()
        };
        Ok(rows.par_chunks(BLOCK_ROWS).map(nearest).collect::<Vec<_>>().concat())
    }
}

impl Neighbours {
    /// For each of the queries the class that its nearest training rows vote for, by cosine similarity. `on_rows` is told how many
    /// training rows have been compared; none where it breaks off. Of equal similarities the first training row is nearer.
    ///
    /// # Errors
    /// As [`super::fit()`], for examples that are not usable, and when the features of a query have another width.
    pub fn answers(
        &self,
        examples: &Examples<'_>,
        queries: &[Queries<'_>],
        on_rows: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Option<Vec<Vec<usize>>>, HeadError> {
        let labels = check(examples)?;
        queries.iter().try_for_each(|(x, _)| width(*x, examples.x.ncols()))?;
        let Some(nearest) = nearest_of((examples.x, examples.train), queries, self.k, on_rows) else { return Ok(None) };
        let answers = nearest.into_iter().zip(queries).map(|(nearest, (_, rows))| {
            (0..rows.len()).map(|row| self.vote(nearest.of(row), &labels, examples.classes.len())).collect()
        });
        Ok(Some(answers.collect()))
    }

    /// The class with most votes, the first of equals.
    fn vote(&self, nearest: &[Near], labels: &[usize], classes: usize) -> usize {
        let mut votes = vec![0.0_f64; classes];
        // Relative to the nearest, so that no temperature is too low.
        let most = nearest.first().map_or(0.0, |near| f64::from(near.similarity));
        let weight = |near: &Near| ((f64::from(near.similarity) - most) / self.temperature).exp();
        nearest.iter().for_each(|near| votes[labels[near.row()]] += weight(near));
        (0..classes).rev().max_by(|&a, &b| votes[a].total_cmp(&votes[b])).unwrap_or(0)
    }
}

fn width(x: ArrayView2<'_, f32>, expected: usize) -> Result<(), HeadError> {
    let found = x.ncols();
    if found == expected { Ok(()) } else { Err(HeadError::Size { what: "features of a row", found, expected }) }
}

#[cfg(test)]
mod tests {
    use ndarray::Axis;

    use super::*;

    /// 1,500 rows around three centres, and what the three baselines should say of 50 others, worked out the slow way.
    #[test]
    fn agree_with_the_slow_way() {
        let noise = |row: usize, column: usize| ((row * 7919 + column * 104_729) % 1009) as f32 / 1009.0 - 0.5;
        let x = Array2::from_shape_fn((1550, 9), |(row, column)| {
            noise(row, column) * 4.0 + if column % 3 == row % 3 { 1.5 } else { 0.5 }
        });
        let labels: Vec<Option<i32>> = (0..1550).map(|row| Some(if row % 10 == 0 { 1 } else { row % 3 })).collect();
        let (train, rows): (Vec<usize>, Vec<usize>) = ((0..1500).collect(), (1500..1550).collect());
        let classes = ["a", "b", "c"].map(str::to_owned);
        let examples = Examples { x: x.view(), labels: &labels, train: &train, holdout: &[], refit: &[], classes: &classes };
        assert_eq!(majority(&examples).unwrap(), 1);

        let means: Vec<Array1<f64>> = (0..3)
            .map(|class| {
                let own: Vec<usize> = train.iter().copied().filter(|&row| labels[row] == Some(class)).collect();
                x.select(Axis(0), &own).mapv(f64::from).mean_axis(Axis(0)).unwrap()
            })
            .collect();
        let by_mean: Vec<usize> = rows
            .iter()
            .map(|&row| {
                let far = |mean: &Array1<f64>| (&x.row(row).mapv(f64::from) - mean).mapv(|d| d * d).sum();
                (0..3).min_by(|&a, &b| far(&means[a]).total_cmp(&far(&means[b]))).unwrap()
            })
            .collect();
        let means = NearestMean::of(&examples).unwrap();
        assert_eq!(means.answers((x.view(), &rows)).unwrap(), by_mean);
        assert!(matches!(means.answers((Array2::zeros((1, 8)).view(), &[0])), Err(HeadError::Size { found: 8, .. })));

        let length = |row: usize| x.row(row).mapv(|v| f64::from(v).powi(2)).sum().sqrt();
        let cosine = |a: usize, b: usize| x.row(a).mapv(f64::from).dot(&x.row(b).mapv(f64::from)) / length(a) / length(b);
        let by_vote = |k: usize, temperature: f64, rows: &[usize]| -> Vec<usize> {
            let one = |&row: &usize| {
                let mut near: Vec<(f64, usize)> = train.iter().map(|&other| (cosine(row, other), other)).collect();
                near.sort_by(|a, b| b.0.total_cmp(&a.0));
                let mut votes = [0.0; 3];
                near[..k].iter().for_each(|&(s, other)| votes[labels[other].unwrap() as usize] += (s / temperature).exp());
                (0..3).max_by(|&a, &b| votes[a].total_cmp(&votes[b])).unwrap()
            };
            rows.iter().map(one).collect()
        };
        let mut told = Vec::new();
        let queries = [(x.view(), &rows[..]), (x.view(), &rows[7..9])];
        let found = Neighbours::default().answers(&examples, &queries, &mut |rows| {
            told.push(rows);
            ControlFlow::Continue(())
        });
        let expected = by_vote(20, 0.07, &rows);
        assert_eq!(found.unwrap().unwrap(), [expected.clone(), expected[7..9].to_vec()]);
        assert_eq!(told, [1024, 1500], "the training rows are gone through once for all queries");
        let few = Neighbours { k: 3, temperature: 0.5 };
        let found = few.answers(&examples, &queries, &mut |_| ControlFlow::Continue(())).unwrap().unwrap();
        assert_eq!(found[0], by_vote(3, 0.5, &rows));
        // So cold that the nearest alone decides.
        let cold = Neighbours { k: 9, temperature: 1e-300 };
        let found = cold.answers(&examples, &queries, &mut |_| ControlFlow::Continue(())).unwrap().unwrap();
        assert_eq!(found[0], by_vote(1, 1.0, &rows));
        assert_eq!(few.answers(&examples, &queries, &mut |_| ControlFlow::Break(())).unwrap(), None);
    }
}
