//! Questions about the rows of `predictions.parquet`, answered by polars: which they are. What they are worth is in `metrics.json`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use polars::prelude::*;
use serde::Serialize;

use super::ReportError;
use crate::evaluate::ConfusionCell;

/// What a head answered to a labelled image.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answer {
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

impl Answer {
    /// Whether the answer is the label.
    pub fn is_right(&self) -> bool {
        self.label == self.predicted
    }
}

/// Row counts of one split.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SplitCounts {
    pub rows: usize,
    pub labelled: usize,
    pub correct: usize,
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
        let mut frame = scan(path).map_err(|error| damaged(error.to_string()))?;
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
            labelled.sum().cast(DataType::Int64).alias("labelled"),
            col("label").eq(col("predicted")).sum().cast(DataType::Int64).alias("correct"),
        ]);
        let frame = self.collect(query)?;
        let read = || -> PolarsResult<BTreeMap<String, SplitCounts>> {
            let (rows, labelled) = (counts(&frame, "rows")?, counts(&frame, "labelled")?);
            let correct = counts(&frame, "correct")?;
            let splits = frame.column("split")?.str()?.iter().enumerate();
            Ok(splits
                .map(|(row, split)| {
                    let counts = SplitCounts { rows: rows[row], labelled: labelled[row], correct: correct[row] };
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

    /// The answers to the labelled rows of a split, the most confident first; of equals in the order of their ids.
    pub(super) fn answers(&self, split: &str) -> Result<Vec<Answer>, ReportError> {
        let probability = |index: &str| col("probabilities").arr().get(col(index), false).cast(DataType::Float64);
        let query = self
            .scored(split)
            .select([
                col("id"),
                col("label"),
                col("predicted"),
                probability("predicted").alias("confidence"),
                probability("label").alias("label_probability"),
            ])
            .sort(["confidence", "id"], SortMultipleOptions::default().with_order_descending_multi([true, false]));
        let frame = self.collect(query)?;
        let read = || -> PolarsResult<Vec<Answer>> {
            let (ids, labels, predicted) = (frame.column("id")?.str()?, counts(&frame, "label")?, counts(&frame, "predicted")?);
            let (confidence, own) = (frame.column("confidence")?.f64()?, frame.column("label_probability")?.f64()?);
            Ok((0..frame.height())
                .map(|row| Answer {
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

    fn collect(&self, query: LazyFrame) -> Result<DataFrame, ReportError> {
        query.collect().map_err(|error| self.damaged(&error))
    }

    fn damaged(&self, error: &PolarsError) -> ReportError {
        ReportError::Predictions { path: self.path.clone(), reason: error.to_string() }
    }
}

/// A Parquet file whose name is no pattern.
pub(super) fn scan(path: &Path) -> PolarsResult<LazyFrame> {
    let args = ScanArgsParquet { glob: false, ..Default::default() };
    PlRefPath::try_from_path(path).and_then(|path| LazyFrame::scan_parquet(path, args))
}

/// A column of whole numbers that are not negative.
pub(super) fn counts(frame: &DataFrame, column: &str) -> PolarsResult<Vec<usize>> {
    let values = frame.column(column)?.cast(&DataType::Int64)?;
    Ok(values.i64()?.iter().map(|value| value.and_then(|value| usize::try_from(value).ok()).unwrap_or(0)).collect())
}

/// The cells of the confusion matrix that are not zero, by label, then answer.
pub(super) fn cells(answers: &[Answer]) -> Vec<ConfusionCell> {
    let mut cells = BTreeMap::new();
    for answer in answers {
        *cells.entry((answer.label, answer.predicted)).or_insert(0) += 1;
    }
    cells.into_iter().map(|((label, predicted), count)| ConfusionCell { label, predicted, count }).collect()
}
