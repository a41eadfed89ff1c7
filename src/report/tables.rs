//! Questions about the rows of `predictions.parquet`, answered by polars.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use polars::prelude::*;
use serde::Serialize;

use super::ReportError;

/// Rows read at a time where probabilities are needed: bounds memory at 1,000 classes to some 60 MB.
const ROWS_AT_A_TIME: usize = 16_384;

/// How often a label was answered with a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ConfusionCell {
    /// True class.
    pub label: usize,
    /// Answer.
    pub predicted: usize,
    /// Rows.
    pub count: usize,
}

/// Figures of one class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassFigures {
    /// Class index.
    pub index: usize,
    /// Class name.
    pub class: String,
    /// Rows with this label.
    pub support: usize,
    /// Rows answered with this class.
    pub predicted: usize,
    /// Rows of this class answered right.
    pub correct: usize,
    /// `correct / predicted`; none where the class was never answered.
    pub precision: Option<f64>,
    /// `correct / support`; none where no row has the class.
    pub recall: Option<f64>,
    /// Harmonic mean of the two, `2 correct / (support + predicted)`; none where no row has the class and none was answered with it.
    pub f1: Option<f64>,
}

/// A wrong answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mistake {
    /// Row id.
    pub id: String,
    /// True class.
    pub label: usize,
    /// Answer.
    pub predicted: usize,
    /// Probability of the answer.
    pub confidence: f64,
    /// Probability of the true class.
    pub label_probability: f64,
}

/// Row counts of one split.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SplitCounts {
    pub rows: usize,
    pub labelled: usize,
    pub correct: usize,
    /// Mean probability of the answer over the labelled rows.
    pub mean_confidence: Option<f64>,
}

/// `predictions.parquet`, checked.
pub(super) struct Predictions {
    path: PathBuf,
    frame: LazyFrame,
    classes: usize,
}

impl Predictions {
    /// Opens the file and checks its columns, the width of its probabilities and the range of its labels.
    pub(super) fn open(path: &Path, classes: usize) -> Result<Self, ReportError> {
        let damaged = |reason: String| ReportError::Predictions { path: path.to_path_buf(), reason };
        if !path.is_file() {
            return Err(damaged("the file is missing".into()));
        }
        let args = ScanArgsParquet { glob: false, ..Default::default() };
        let mut frame = PlRefPath::try_from_path(path)
            .and_then(|path| LazyFrame::scan_parquet(path, args))
            .map_err(|error| damaged(error.to_string()))?;
        let schema = frame.collect_schema().map_err(|error| damaged(error.to_string()))?;
        let probabilities = DataType::Array(Box::new(DataType::Float32), classes);
        for (name, expected) in [
            ("id", DataType::String),
            ("split", DataType::String),
            ("label", DataType::Int32),
            ("predicted", DataType::Int32),
            ("probabilities", probabilities),
        ] {
            match schema.get(name) {
                Some(found) if *found == expected => {}
                Some(found) => return Err(damaged(format!("column {name} is {found}, expected {expected}"))),
                None => return Err(damaged(format!("column {name} is missing"))),
            }
        }
        let table = Self { path: path.to_path_buf(), frame, classes };
        table.check_range("label")?;
        table.check_range("predicted")?;
        Ok(table)
    }

    fn check_range(&self, column: &str) -> Result<(), ReportError> {
        let outside = col(column).lt(lit(0)).or(col(column).cast(DataType::Int64).gt_eq(lit(self.classes as i64)));
        let query = self.frame.clone().filter(outside).select([col("id"), col(column)]).limit(1);
        let found = self.collect(query)?;
        let row = || -> PolarsResult<Option<(String, i32)>> {
            let value = found.column(column)?.i32()?.iter().next().flatten();
            Ok(found.column("id")?.str()?.iter().next().flatten().map(str::to_owned).zip(value))
        };
        match row().map_err(|error| self.damaged(&error))? {
            None => Ok(()),
            Some((id, value)) => {
                let reason = format!("row {id}: {column} is {value}, but there are {} classes", self.classes);
                Err(ReportError::Predictions { path: self.path.clone(), reason })
            }
        }
    }

    /// Rows, labelled rows and right answers of each split.
    pub(super) fn splits(&self) -> Result<BTreeMap<String, SplitCounts>, ReportError> {
        let labelled = col("label").is_not_null();
        let query = self.frame.clone().group_by([col("split")]).agg([
            len().cast(DataType::Int64).alias("rows"),
            labelled.clone().sum().cast(DataType::Int64).alias("labelled"),
            col("label").eq(col("predicted")).sum().cast(DataType::Int64).alias("correct"),
            col("probabilities").arr().max().filter(labelled).cast(DataType::Float64).mean().alias("confidence"),
        ]);
        let frame = self.collect(query)?;
        let read = || -> PolarsResult<BTreeMap<String, SplitCounts>> {
            let (rows, labelled) = (counts(&frame, "rows")?, counts(&frame, "labelled")?);
            let (correct, confidence) = (counts(&frame, "correct")?, frame.column("confidence")?.f64()?);
            let splits = frame.column("split")?.str()?.iter().enumerate();
            Ok(splits
                .map(|(row, split)| {
                    let counts = SplitCounts {
                        rows: rows[row],
                        labelled: labelled[row],
                        correct: correct[row],
                        mean_confidence: confidence.get(row),
                    };
                    (split.unwrap_or_default().to_owned(), counts)
                })
                .collect())
        };
        read().map_err(|error| self.damaged(&error))
    }

    /// Labelled rows of a split.
    fn scored(&self, split: &str) -> LazyFrame {
        self.frame.clone().filter(col("split").eq(lit(split.to_owned())).and(col("label").is_not_null()))
    }

    /// How often each label was answered with each class: cells that are not zero, by label, then answer.
    pub(super) fn confusion(&self, split: &str) -> Result<Vec<ConfusionCell>, ReportError> {
        let query = self
            .scored(split)
            .group_by([col("label"), col("predicted")])
            .agg([len().cast(DataType::Int64).alias("count")])
            .sort(["label", "predicted"], SortMultipleOptions::default());
        let frame = self.collect(query)?;
        let read = || -> PolarsResult<Vec<ConfusionCell>> {
            let (labels, predicted) = (counts(&frame, "label")?, counts(&frame, "predicted")?);
            let cells = labels.into_iter().zip(predicted).zip(counts(&frame, "count")?);
            Ok(cells.map(|((label, predicted), count)| ConfusionCell { label, predicted, count }).collect())
        };
        read().map_err(|error| self.damaged(&error))
    }

    /// Support, precision, recall and F1 of each class, in the order of the class list.
    pub(super) fn per_class(&self, split: &str, names: &[String]) -> Result<Vec<ClassFigures>, ReportError> {
        let scored = self.scored(split);
        let support = scored.clone().group_by([col("label").alias("class")]).agg([
            len().cast(DataType::Int64).alias("support"),
            col("label").eq(col("predicted")).sum().cast(DataType::Int64).alias("correct"),
        ]);
        let answered = scored.group_by([col("predicted").alias("class")]).agg([len().cast(DataType::Int64).alias("predicted")]);
        let indices: Vec<i32> = (0..).take(self.classes).collect();
        let query = DataFrame::new(indices.len(), vec![Column::new("class".into(), indices)])
            .map_err(|error| self.damaged(&error))?
            .lazy()
            .join(support, [col("class")], [col("class")], JoinArgs::new(JoinType::Left))
            .join(answered, [col("class")], [col("class")], JoinArgs::new(JoinType::Left))
            .with_columns([
                col("support").fill_null(lit(0_i64)),
                col("correct").fill_null(lit(0_i64)),
                col("predicted").fill_null(lit(0_i64)),
            ])
            .with_columns([
                share(col("correct"), col("predicted")).alias("precision"),
                share(col("correct"), col("support")).alias("recall"),
                share(col("correct") + col("correct"), col("support") + col("predicted")).alias("f1"),
            ])
            .sort(["class"], SortMultipleOptions::default());
        let frame = self.collect(query)?;
        let read = || -> PolarsResult<Vec<ClassFigures>> {
            let (support, predicted) = (counts(&frame, "support")?, counts(&frame, "predicted")?);
            let correct = counts(&frame, "correct")?;
            let (precision, recall) = (frame.column("precision")?.f64()?, frame.column("recall")?.f64()?);
            let f1 = frame.column("f1")?.f64()?;
            let rows = names.iter().enumerate().take(support.len());
            Ok(rows
                .map(|(index, class)| ClassFigures {
                    index,
                    class: class.clone(),
                    support: support[index],
                    predicted: predicted[index],
                    correct: correct[index],
                    precision: precision.get(index),
                    recall: recall.get(index),
                    f1: f1.get(index),
                })
                .collect())
        };
        read().map_err(|error| self.damaged(&error))
    }

    /// The wrong answers given with the greatest confidence, worst first.
    pub(super) fn worst_mistakes(&self, split: &str, limit: u32) -> Result<Vec<Mistake>, ReportError> {
        let probability = |index: &str| col("probabilities").arr().get(col(index), false).cast(DataType::Float64);
        let query = self
            .scored(split)
            .filter(col("label").neq(col("predicted")))
            .select([
                col("id"),
                col("label"),
                col("predicted"),
                probability("predicted").alias("confidence"),
                probability("label").alias("label_probability"),
            ])
            .sort(["confidence", "id"], SortMultipleOptions::default().with_order_descending_multi([true, false]))
            .limit(limit);
        let frame = self.collect(query)?;
        let read = || -> PolarsResult<Vec<Mistake>> {
            let (ids, labels, predicted) = (frame.column("id")?.str()?, counts(&frame, "label")?, counts(&frame, "predicted")?);
            let (confidence, own) = (frame.column("confidence")?.f64()?, frame.column("label_probability")?.f64()?);
            Ok((0..frame.height())
                .map(|row| Mistake {
                    id: ids.get(row).unwrap_or_default().to_owned(),
                    label: labels[row],
                    predicted: predicted[row],
                    confidence: confidence.get(row).unwrap_or(f64::NAN),
                    label_probability: own.get(row).unwrap_or(f64::NAN),
                })
                .collect())
        };
        read().map_err(|error| self.damaged(&error))
    }

    /// For each split: how many labelled rows have their label at rank 0 (the answer), 1, 2, … by probability. Of equal probabilities
    /// the lower class index comes first, as it does where the answer is chosen.
    pub(super) fn label_ranks(&self) -> Result<BTreeMap<String, Vec<usize>>, ReportError> {
        let mut ranks = BTreeMap::new();
        let rows = self.collect(self.frame.clone().select([len().cast(DataType::Int64).alias("rows")]))?;
        let rows = counts(&rows, "rows").map_err(|error| self.damaged(&error))?.first().copied().unwrap_or(0);
        for start in (0..rows).step_by(ROWS_AT_A_TIME) {
            let query = self
                .frame
                .clone()
                .select([col("split"), col("label"), col("probabilities")])
                .slice(start as i64, ROWS_AT_A_TIME as IdxSize);
            let frame = self.collect(query)?;
            self.add_ranks(&frame, &mut ranks).map_err(|error| self.damaged(&error))?;
        }
        Ok(ranks)
    }

    fn add_ranks(&self, frame: &DataFrame, ranks: &mut BTreeMap<String, Vec<usize>>) -> PolarsResult<()> {
        let inner = frame.column("probabilities")?.array()?.get_inner().rechunk();
        let probabilities = inner.f32()?.cont_slice()?.chunks_exact(self.classes.max(1));
        let (splits, labels) = (frame.column("split")?.str()?, frame.column("label")?.i32()?);
        for ((split, label), row) in splits.iter().zip(labels.iter()).zip(probabilities) {
            let Some(label) = label.and_then(|label| usize::try_from(label).ok()) else { continue };
            let own = row[label];
            let before = |&(index, &other): &(usize, &f32)| other > own || (other == own && index < label);
            let rank = row.iter().enumerate().filter(before).count();
            let split = split.unwrap_or_default();
            if !ranks.contains_key(split) {
                ranks.insert(split.to_owned(), vec![0; self.classes]);
            }
            if let Some(count) = ranks.get_mut(split).and_then(|counts| counts.get_mut(rank)) {
                *count += 1;
            }
        }
        Ok(())
    }

    fn collect(&self, query: LazyFrame) -> Result<DataFrame, ReportError> {
        query.collect().map_err(|error| self.damaged(&error))
    }

    fn damaged(&self, error: &PolarsError) -> ReportError {
        ReportError::Predictions { path: self.path.clone(), reason: error.to_string() }
    }
}

/// `part / whole`, null where the whole is zero.
fn share(part: Expr, whole: Expr) -> Expr {
    when(whole.clone().gt(lit(0_i64)))
        .then(part.cast(DataType::Float64) / whole.cast(DataType::Float64))
        .otherwise(lit(NULL).cast(DataType::Float64))
}

/// A column of whole numbers that are not negative.
fn counts(frame: &DataFrame, column: &str) -> PolarsResult<Vec<usize>> {
    let values = frame.column(column)?.cast(&DataType::Int64)?;
    Ok(values.i64()?.iter().map(|value| value.and_then(|value| usize::try_from(value).ok()).unwrap_or(0)).collect())
}
