//! Classifiers that need no fitting: what a head has to beat.

use std::ops::ControlFlow;

use ndarray::{Array1, Array2, ArrayView2, Axis, s};
use rayon::prelude::*;

use super::dense::{BLOCK_ROWS, Dense};
use super::features::Features;
use super::fit::check;
use super::{Examples, HeadError};
use crate::evaluate::argmax;

/// Neighbours that vote, and the temperature of their votes: those of DINO and DINOv2 (Caron and others 2021, Oquab and others
/// 2023).
pub const NEIGHBOURS: usize = 20;
const TEMPERATURE: f64 = 0.07;

/// Training rows whose similarities to a block of rows are held at a time: they fit a core's cache.
const CHUNK: usize = 1024;

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

/// For each listed row of `x` the class whose mean is nearest by Euclid's distance.
///
/// # Errors
/// As [`super::fit()`], for examples that are not usable.
pub fn nearest_mean(examples: &Examples<'_>, x: ArrayView2<'_, f32>, rows: &[usize]) -> Result<Vec<usize>, HeadError> {
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
    let layer = Dense::pack(sums.mapv(|mean| mean as f32).t(), bias.view());
    let source = Features::new(x, None);
    let nearest = |rows: &[usize]| {
        let mut scores = vec![0.0; rows.len() * classes];
        layer.logits_into(&source, rows, &mut scores);
        scores.chunks_exact(classes).map(argmax).collect::<Vec<_>>()
    };
    Ok(rows.par_chunks(BLOCK_ROWS).map(nearest).collect::<Vec<_>>().concat())
}

/// For each listed row of `x` the class that its 20 nearest training rows vote for: by cosine similarity `s`, each with
/// `exp(s / 0.07)`. `on_rows` is told how many training rows have been compared; none where it breaks off. Of equal
/// similarities the first training row is nearer.
///
/// # Errors
/// As [`super::fit()`], for examples that are not usable.
pub fn nearest_neighbours(
    examples: &Examples<'_>,
    x: ArrayView2<'_, f32>,
    rows: &[usize],
    on_rows: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<Option<Vec<usize>>, HeadError> {
    let labels = check(examples)?;
    let queries = normalized(x, rows);
    let queries = Features::new(queries.view(), None);
    let indices: Vec<usize> = (0..rows.len()).collect();
    let mut nearest: Vec<Vec<(f32, usize)>> = vec![Vec::with_capacity(NEIGHBOURS + 1); rows.len()];
    for (number, train) in examples.train.chunks(CHUNK).enumerate() {
        // Training rows are the classes of a layer: its logits are the similarities.
        let layer = Dense::pack(normalized(examples.x, train).t(), Array1::zeros(train.len()).view());
        nearest.par_chunks_mut(BLOCK_ROWS).zip(indices.par_chunks(BLOCK_ROWS)).for_each_init(
            Vec::new,
            |scores, (nearest, rows)| {
                scores.resize(rows.len() * train.len(), 0.0);
                layer.logits_into(&queries, rows, scores);
                for (nearest, scores) in nearest.iter_mut().zip(scores.chunks_exact(train.len())) {
                    scores.iter().zip(train).for_each(|(&score, &row)| insert(nearest, score, row));
                }
            },
        );
        if on_rows(number * CHUNK + train.len()).is_break() {
            return Ok(None);
        }
    }
    let classes = examples.classes.len();
    let vote = |nearest: Vec<(f32, usize)>| {
        let mut votes = vec![0.0_f64; classes];
        nearest.iter().for_each(|&(score, row)| votes[labels[row]] += (f64::from(score) / TEMPERATURE).exp());
        (0..classes).rev().max_by(|&a, &b| votes[a].total_cmp(&votes[b])).unwrap_or(0)
    };
    Ok(Some(nearest.into_iter().map(vote).collect()))
}

/// Keeps the highest scores, best first.
fn insert(nearest: &mut Vec<(f32, usize)>, score: f32, row: usize) {
    if nearest.len() == NEIGHBOURS && nearest.last().is_some_and(|&(last, _)| score <= last) {
        return;
    }
    let place = nearest.partition_point(|&(other, _)| other >= score);
    nearest.insert(place, (score, row));
    nearest.truncate(NEIGHBOURS);
}

/// Copies of rows, each of length 1; a row of zeros stays one.
fn normalized(x: ArrayView2<'_, f32>, rows: &[usize]) -> Array2<f32> {
    let mut copies = Array2::zeros((rows.len(), x.ncols()));
    copies.axis_iter_mut(Axis(0)).into_par_iter().zip(rows).for_each(|(mut copy, &row)| {
        copy.assign(&x.slice(s![row, ..]));
        let length = copy.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
        if length > 0.0 {
            copy.mapv_inplace(|value| (f64::from(value) / length) as f32);
        }
    });
    copies
}

#[cfg(test)]
mod tests {
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
        let examples = Examples { x: x.view(), labels: &labels, train: &train, holdout: &[], classes: &classes };
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
        assert_eq!(nearest_mean(&examples, x.view(), &rows).unwrap(), by_mean);

        let length = |row: usize| x.row(row).mapv(|v| f64::from(v).powi(2)).sum().sqrt();
        let cosine = |a: usize, b: usize| x.row(a).mapv(f64::from).dot(&x.row(b).mapv(f64::from)) / length(a) / length(b);
        let by_vote: Vec<usize> = rows
            .iter()
            .map(|&row| {
                let mut near: Vec<(f64, usize)> = train.iter().map(|&other| (cosine(row, other), other)).collect();
                near.sort_by(|a, b| b.0.total_cmp(&a.0));
                let mut votes = [0.0; 3];
                near[..20].iter().for_each(|&(s, other)| votes[labels[other].unwrap() as usize] += (s / 0.07).exp());
                (0..3).max_by(|&a, &b| votes[a].total_cmp(&votes[b])).unwrap()
            })
            .collect();
        let mut told = Vec::new();
        let found = nearest_neighbours(&examples, x.view(), &rows, &mut |rows| {
            told.push(rows);
            ControlFlow::Continue(())
        });
        assert_eq!(found.unwrap().unwrap(), by_vote);
        assert_eq!(told, [1024, 1500]);
        assert_eq!(nearest_neighbours(&examples, x.view(), &rows, &mut |_| ControlFlow::Break(())).unwrap(), None);
    }

    #[test]
    fn the_first_of_equals_stays() {
        let mut nearest = Vec::new();
        (0..30).for_each(|row| insert(&mut nearest, if row == 25 { 2.0 } else { 1.0 }, row));
        assert_eq!((nearest.len(), nearest[0], nearest[1], nearest[19]), (20, (2.0, 25), (1.0, 0), (1.0, 18)));
    }
}
