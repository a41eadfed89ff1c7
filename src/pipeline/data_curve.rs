//! Error against the number of training images: heads by least squares on part of them.
//!
//! Least squares, whatever the head of the pipeline is: closed form, with the strength of L2 chosen for each size by leaving out each
//! image in turn, so that the curve is that of the data and not of settings that suit one size.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use ndarray::Axis;
use serde::Serialize;

use super::fit::named;
use super::{Context, Interrupted, PipelineError};
use crate::audit::{Curve, Images, fit_curve};
use crate::evaluate::argmax;
use crate::events::{Event, Unit};
use crate::head::{self, Examples, HeadParams, HoldOut, ParamGuard as _, Rule, Solver};

/// Sizes of the curve, in equal ratios.
const SIZES: usize = 8;
/// The smallest is this part of all images.
const SMALLEST: usize = 128;
/// Draws of each size but the last, which there is one of.
const DRAWS: usize = 3;
/// Share of the images that is held out where there is no labelled test split.
const HELD_OUT: f64 = 0.2;

/// A row of `data_curve.csv`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Draw {
    images: usize,
    draw: usize,
    error: f64,
    l2: f64,
    seconds: f64,
}

/// What trains, and what is scored: rows.
struct Sides {
    train: Vec<usize>,
    scored: Vec<usize>,
    split: String,
}

/// Measures the curve.
pub(super) fn measure(
    images: &Images<'_>,
    params: &HeadParams,
    context: &Context<'_>,
) -> Result<(Curve, Vec<Draw>), PipelineError> {
    const TASK: &str = "data curve";
    let ids: Vec<String> = images.rows.iter().map(|image| image.id.clone()).collect();
    let labels: Vec<Option<i32>> =
        images.rows.iter().map(|image| image.label.and_then(|label| i32::try_from(label).ok())).collect();
    let classes = images.classes.len();
    let Sides { train, scored, split } = sides(images, &ids, &labels)?;
    let sizes = sizes(train.len(), classes);
    let x = images.x.select(Axis(0), &scored);
    let checked =
        HeadParams { solver: Solver::Ridge, validation_split: 0.0, ..HeadParams { seed: params.seed, ..HeadParams::default() } };
    let checked = checked.check()?;
    let total = (sizes.len().saturating_sub(1) * DRAWS + 1) as u64;
    (context.observe)(Event::Started { task: TASK, total: Some(total), unit: Unit::Heads });
    let (mut table, mut wrong) = (Vec::new(), Vec::new());
    let mut measured = || -> Result<(), PipelineError> {
        for draw in 0..DRAWS {
            let seed = params.seed.wrapping_add(draw as u64);
            let order = head::stratified_order(seed, &train, &ids, &labels, classes).map_err(|error| named(error, &ids))?;
            let last = usize::from(draw > 0);
            for &size in &sizes[..sizes.len() - last] {
                let started = std::time::Instant::now();
                let mut rows = order[..size].to_vec();
                rows.sort_unstable();
                let examples = Examples {
                    x: images.x.reborrow(),
                    labels: &labels,
                    train: &rows,
                    holdout: &[],
                    refit: &[],
                    classes: images.classes,
                };
                let fitted = head::fit(&checked, &examples, &mut |_| ControlFlow::Continue(()));
                let fitted = fitted.map_err(|error| named(error, &ids))?;
                let logits = fitted.head.logits(x.view())?;
                let answers = logits.outer_iter().map(|row| row.to_slice().map_or(0, argmax));
                let missed =
                    answers.zip(&scored).enumerate().filter(|(_, (answer, row))| images.rows[**row].label != Some(*answer));
                let missed: Vec<usize> = missed.map(|(place, _)| place).collect();
                let error = missed.len() as f64 / scored.len() as f64;
                let seconds = started.elapsed().as_secs_f64();
                table.push(Draw { images: size, draw: draw + 1, error, l2: fitted.l2, seconds });
                wrong.push((size, missed));
                (context.observe)(Event::Advanced { task: TASK, done: wrong.len() as u64 });
                if context.stop.load(Ordering::Relaxed) {
                    return Err(Interrupted("stopped while the data curve was measured".into()).into());
                }
            }
        }
        Ok(())
    };
    let result = context.stoppable(&mut measured);
    (context.observe)(Event::Finished { task: TASK });
    result?;
    table.sort_by_key(|row| (row.images, row.draw));
    Ok((fit_curve(&split, scored.len(), &wrong, params.seed), table))
}

/// The labelled rows of the split that trains; scored are those of test, else of validation, else a fifth of them that is held out.
fn sides(images: &Images<'_>, ids: &[String], labels: &[Option<i32>]) -> Result<Sides, PipelineError> {
    let of = |name: &str| -> Vec<usize> {
        let split = images.splits.iter().position(|split| split == name);
        (0..images.rows.len()).filter(|&row| Some(images.rows[row].split) == split && images.rows[row].label.is_some()).collect()
    };
    let train = of("train");
    let refuse = |reason: &str| PipelineError::Settings { origin: "--data-curve".into(), reason: reason.into() };
    if train.is_empty() {
        return Err(refuse("no image of train has a label; label some, or leave it out"));
    }
    for split in ["test", "validation"] {
        let scored = of(split);
        if !scored.is_empty() {
            return Ok(Sides { train, scored, split: split.into() });
        }
    }
    let mut of_train = vec![None; labels.len()];
    train.iter().for_each(|&row| of_train[row] = labels[row]);
    let rule = Rule { kind: HoldOut::Stratified, fraction: HELD_OUT, seed: 0, group: "folder" };
    let divided = head::hold_out(&rule, ids, &of_train, images.classes).map_err(|error| named(error, ids))?;
    if divided.holdout.is_empty() {
        return Err(refuse("nothing to score on: no class has two labelled images, and there is no test split; add images"));
    }
    Ok(Sides { train: divided.train, scored: divided.holdout, split: "hold-out".into() })
}

/// Sizes from a 128th of the images to all, of each class one or more.
fn sizes(images: usize, classes: usize) -> Vec<usize> {
    let first = (images / SMALLEST).max(2 * classes).max(8).min(images);
    let ratio = (images as f64 / first as f64).powf(1.0 / (SIZES - 1) as f64);
    let mut sizes: Vec<usize> = (0..SIZES).map(|step| (first as f64 * ratio.powi(step as i32)).round() as usize).collect();
    sizes[SIZES - 1] = images;
    sizes.dedup();
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_go_up_to_all_images() {
        assert_eq!(sizes(50_000, 10), [390, 780, 1561, 3122, 6246, 12_494, 24_994, 50_000]);
        assert_eq!(sizes(30, 10), [20, 21, 22, 24, 25, 27, 28, 30]);
        assert_eq!(sizes(5, 10), [5]);
    }
}
