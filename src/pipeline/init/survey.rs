//! A look at a source of images: what it says of itself, and what its images turn out to be.

use rayon::prelude::*;
use serde::Serialize;

use super::super::audit::{FEW, IMBALANCE};
use super::super::{Context, Interrupted, PipelineError};
use crate::dataset::{Dataset, Record};
use crate::events::{Event, Unit};
use crate::image::decode;

/// Images read at a time; encoded, so many are in memory.
const AT_ONCE: usize = 32;
/// Images that cannot be used, of which more than the number is told.
const EXAMPLES: usize = 5;

/// What a source says of itself; no image is read for it.
#[derive(Clone, Debug, Serialize)]
pub struct Contents {
    /// The source, as it was named.
    pub source: String,
    /// Kind of source, for people: `class folders`, `Parquet`.
    pub kind: String,
    /// Its splits: train, validation, test, then others by name.
    pub splits: Vec<SplitRows>,
    /// Class names; the index is the label.
    pub classes: Vec<String>,
    /// Whether a source of this kind has its rows in the order of their classes.
    pub sorted_by_class: bool,
    /// What a user should know.
    pub warnings: Vec<String>,
}

/// A split of a source.
#[derive(Clone, Debug, Serialize)]
pub struct SplitRows {
    /// Its name.
    pub name: String,
    /// Images in it.
    pub rows: usize,
    /// Images of each class, in the order of the classes; the rest has no label.
    pub per_class: Vec<usize>,
}

impl Contents {
    /// What an opened source says.
    pub fn of(source: &str, dataset: &Dataset) -> Self {
        let split = |split: &crate::dataset::Split| SplitRows {
            name: split.name.to_string(),
            rows: split.rows,
            per_class: split.per_class.clone(),
        };
        Self {
            source: source.to_owned(),
            kind: dataset.name().to_owned(),
            splits: dataset.splits().iter().map(split).collect(),
            classes: dataset.classes().to_vec(),
            sorted_by_class: dataset.sorted_by_class(),
            warnings: dataset.warnings().to_vec(),
        }
    }

    /// Images of all splits.
    pub fn images(&self) -> usize {
        self.splits.iter().map(|split| split.rows).sum()
    }

    /// A split by name.
    pub fn split(&self, name: &str) -> Option<&SplitRows> {
        self.splits.iter().find(|split| split.name == name)
    }
}

/// What a look at a source finds.
#[derive(Clone, Debug, Serialize)]
pub struct Survey {
    /// What the source says of itself.
    #[serde(flatten)]
    pub contents: Contents,
    /// Images that were decoded, or could not be: all, or a sample that is evenly spread.
    pub looked_at: usize,
    /// Of these, how many cannot be used.
    pub broken: usize,
    /// The first of those, and why.
    pub broken_examples: Vec<Broken>,
    /// Sizes of the others.
    pub sizes: Sizes,
    /// How even the classes are among the images to train on.
    pub balance: ClassBalance,
    /// Whether the rows to train on stand class by class, so that the last ones are no fair hold-out.
    pub class_by_class: bool,
}

/// An image that cannot be used.
#[derive(Clone, Debug, Serialize)]
pub struct Broken {
    /// Its id.
    pub id: String,
    /// Why.
    pub error: String,
}

/// Sizes of images, upright, in pixels.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sizes {
    /// Median width and median height.
    pub median: [u32; 2],
    /// Median of the shorter sides.
    pub shorter_median: u32,
    /// Width and height of the image with the fewest pixels.
    pub smallest: [u32; 2],
    /// Width and height of the image with the most.
    pub largest: [u32; 2],
    /// Longer side over shorter side, that nine images of ten do not exceed; at least 1.
    pub elongation_p90: f64,
    /// How far the shapes (width over height) of the middle nine tenths lie apart: the ratio of the 95th and the 5th percentile;
    /// at least 1.
    pub shape_spread: f64,
    /// Share of an image's area outside of its middle square, on average.
    pub outside_square: f64,
}

/// How many images to train on the classes have.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassBalance {
    /// The class with the most, and their number.
    pub largest: (String, usize),
    /// The class with the fewest that has any, and their number.
    pub smallest: (String, usize),
    /// `largest / smallest`.
    pub ratio: f64,
    /// Whether that is so much that a head learns the large classes at the cost of the small ones.
    pub imbalanced: bool,
    /// Classes that have some, but fewer than a head can learn from.
    pub few: Vec<String>,
}

impl Survey {
    /// Looks at up to `sample` images of a source that can be trained on.
    ///
    /// # Errors
    /// When the source fails, not one of its images can be used, or the user stopped it.
    pub(super) fn take(source: &str, dataset: &Dataset, sample: usize, context: &Context<'_>) -> Result<Self, PipelineError> {
        let contents = Contents::of(source, dataset);
        let looked = context.stoppable(|| look(dataset, &contents, sample, context))?;
        let Looked { sizes, broken, examples, labels } = looked;
        let looked_at = sizes.len() + broken;
        let Some(sizes) = Sizes::of(&sizes) else {
            let first = examples.first().map(|first| format!("; {}: {}", first.id, first.error)).unwrap_or_default();
            return Err(PipelineError::NotTrainable {
                source_name: source.to_owned(),
                reason: format!(
                    "none of the {looked_at} images looked at can be used{first}; is this the source, or is it another column \
                     (--image-column)?"
                ),
            });
        };
        let balance = ClassBalance::of(&contents);
        let class_by_class = contents.sorted_by_class || stand_class_by_class(&labels);
        Ok(Self { contents, looked_at, broken, broken_examples: examples, sizes, balance, class_by_class })
    }

    /// Labelled images to train on.
    pub fn trained(&self) -> usize {
        self.contents.split("train").map_or(0, |train| train.per_class.iter().sum())
    }
}

#[derive(Default)]
struct Looked {
    sizes: Vec<(u32, u32)>,
    broken: usize,
    examples: Vec<Broken>,
    /// Of the images to train on, in their order.
    labels: Vec<i32>,
}

fn look(dataset: &Dataset, contents: &Contents, sample: usize, context: &Context<'_>) -> Result<Looked, PipelineError> {
    const TASK: &str = "looking";
    let images = contents.images().max(1);
    // Each split has its share of the sample.
    let shares: Vec<(&SplitRows, usize)> =
        contents.splits.iter().map(|split| (split, (sample.min(images) * split.rows).div_ceil(images))).collect();
    let total = shares.iter().map(|(_, share)| *share as u64).sum();
    (context.observe)(Event::Started { task: TASK, total: Some(total), unit: Unit::Images });
    let (mut looked, mut done) = (Looked::default(), 0);
    for (split, share) in shares {
        let mut records = dataset.sample(&split.name, share)?;
        loop {
            let batch: Vec<Record> = records.by_ref().take(AT_ONCE).collect::<Result<_, _>>()?;
            if batch.is_empty() {
                break;
            }
            if context.stop.load(std::sync::atomic::Ordering::Relaxed) {
                return Err(Interrupted("stopped while looking at the images; nothing was written".into()).into());
            }
            let found: Vec<Result<(u32, u32), String>> = batch.par_iter().map(size).collect::<Result<_, PipelineError>>()?;
            done += batch.len() as u64;
            for (record, found) in batch.into_iter().zip(found) {
                if &*record.split == "train" {
                    looked.labels.extend(record.label);
                }
                match found {
                    Ok(size) => looked.sizes.push(size),
                    Err(error) => {
                        looked.broken += 1;
                        if looked.examples.len() < EXAMPLES {
                            looked.examples.push(Broken { id: record.id, error });
                        }
                    }
                }
            }
            (context.observe)(Event::Advanced { task: TASK, done });
        }
    }
    (context.observe)(Event::Finished { task: TASK });
    Ok(looked)
}

/// Width and height of an image, upright; or why it cannot be used.
fn size(record: &Record) -> Result<Result<(u32, u32), String>, PipelineError> {
    let bytes = match record.image.read()? {
        Ok(bytes) => bytes,
        Err(reason) => return Ok(Err(reason)),
    };
    Ok(decode(&bytes).map(|image| image.dimensions()).map_err(|error| error.to_string()))
}

impl Sizes {
    fn of(sizes: &[(u32, u32)]) -> Option<Self> {
        let pixels = |&(width, height): &(u32, u32)| u64::from(width) * u64::from(height);
        let (&smallest, &largest) =
            (sizes.iter().min_by_key(|size| pixels(size))?, sizes.iter().max_by_key(|size| pixels(size))?);
        let sides = |side: fn(&(u32, u32)) -> u32| percentile(sizes.iter().map(side).collect(), 0.5, u32::cmp);
        let ratios = |ratio: fn(&(u32, u32)) -> f64, at: f64| percentile(sizes.iter().map(ratio).collect(), at, f64::total_cmp);
        let elongation = |&(width, height): &(u32, u32)| f64::from(width.max(height)) / f64::from(width.min(height).max(1));
        let shape = |&(width, height): &(u32, u32)| f64::from(width.max(1)) / f64::from(height.max(1));
        Some(Self {
            median: [sides(|size| size.0)?, sides(|size| size.1)?],
            shorter_median: sides(|size| size.0.min(size.1))?,
            smallest: smallest.into(),
            largest: largest.into(),
            elongation_p90: ratios(elongation, 0.9)?,
            shape_spread: ratios(shape, 0.95)? / ratios(shape, 0.05)?,
            outside_square: sizes.iter().map(|size| 1.0 - 1.0 / elongation(size)).sum::<f64>() / sizes.len() as f64,
        })
    }
}

/// The value at a share of the sorted values, by the nearest rank.
fn percentile<T>(mut values: Vec<T>, share: f64, order: fn(&T, &T) -> std::cmp::Ordering) -> Option<T> {
    values.sort_unstable_by(order);
    let rank = ((values.len() as f64 * share).ceil() as usize).clamp(1, values.len().max(1));
    values.into_iter().nth(rank - 1)
}

impl ClassBalance {
    fn of(contents: &Contents) -> Self {
        let rows = contents.split("train").map(|train| train.per_class.as_slice()).unwrap_or_default();
        let counted = || contents.classes.iter().zip(rows).filter(|(_, rows)| **rows > 0);
        let named =
            |found: Option<(&String, &usize)>| found.map_or_else(Default::default, |(class, rows)| (class.clone(), *rows));
        // Of several, the first of the list.
        let largest = named(counted().rev().max_by_key(|(_, rows)| **rows));
        let smallest = named(counted().min_by_key(|(_, rows)| **rows));
        let ratio = largest.1 as f64 / smallest.1.max(1) as f64;
        let few = counted().filter(|(_, rows)| **rows < FEW).map(|(class, _)| class.clone()).collect();
        Self { largest, smallest, ratio, imbalanced: ratio >= IMBALANCE, few }
    }
}

/// Whether neighbours change class less than half as often as they would in a random order.
fn stand_class_by_class(labels: &[i32]) -> bool {
    let mut counts = std::collections::HashMap::new();
    for label in labels {
        *counts.entry(label).or_insert(0_usize) += 1;
    }
    let rows = labels.len() as f64;
    let same: f64 = counts.values().map(|&count| (count as f64 / rows).powi(2)).sum();
    let changes = labels.windows(2).filter(|pair| pair[0] != pair[1]).count();
    (changes as f64) < 0.5 * (1.0 - same) * (rows - 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_summed_up() {
        assert_eq!(Sizes::of(&[]), None);
        let square = Sizes::of(&[(32, 32); 7]).unwrap();
        assert_eq!((square.median, square.shorter_median, square.elongation_p90), ([32, 32], 32, 1.0));
        assert!((square.shape_spread - 1.0).abs() < 1e-12 && square.outside_square == 0.0);
        let mut mixed = vec![(400, 300); 8];
        mixed.extend([(300, 400), (1000, 250)]);
        let found = Sizes::of(&mixed).unwrap();
        assert_eq!((found.median, found.shorter_median), ([400, 300], 300));
        assert_eq!((found.smallest, found.largest), ([400, 300], [1000, 250]));
        assert!((found.elongation_p90 - 4.0 / 3.0).abs() < 1e-12, "{found:?}");
        assert!((found.shape_spread - 4.0 / 0.75).abs() < 1e-12, "{found:?}");
        assert!((found.outside_square - (9.0 * 0.25 + 0.75) / 10.0).abs() < 1e-12, "{found:?}");
    }

    #[test]
    fn order_by_class_is_seen() {
        let sorted: Vec<i32> = (0..100).map(|row| row / 25).collect();
        let shuffled: Vec<i32> = (0..100).map(|row| (row * 37 + row * row) % 4).collect();
        let in_turn: Vec<i32> = (0..100).map(|row| row % 4).collect();
        // Shards of one class each, a few rows of others between.
        let nearly: Vec<i32> = (0..100).map(|row| if row % 10 == 0 { row / 10 % 4 } else { row / 25 }).collect();
        assert!(stand_class_by_class(&sorted) && stand_class_by_class(&nearly));
        assert!(!stand_class_by_class(&shuffled) && !stand_class_by_class(&in_turn));
        assert!(!stand_class_by_class(&[]) && !stand_class_by_class(&[0]) && !stand_class_by_class(&[0; 9]));
    }

    #[test]
    fn the_balance_is_that_of_the_images_to_train_on() {
        let split = |name: &str, per_class: [usize; 4]| SplitRows {
            name: name.into(),
            rows: per_class.iter().sum(),
            per_class: per_class.into(),
        };
        let contents = Contents {
            source: "s".into(),
            kind: "test".into(),
            splits: vec![split("train", [300, 30, 0, 19]), split("test", [5, 5, 5, 5])],
            classes: ["cat", "dog", "fox", "owl"].map(str::to_owned).into(),
            sorted_by_class: false,
            warnings: Vec::new(),
        };
        let balance = ClassBalance::of(&contents);
        assert_eq!((balance.largest, balance.smallest), (("cat".into(), 300), ("owl".into(), 19)));
        assert!(balance.imbalanced && balance.few == ["owl"]);
    }
}
