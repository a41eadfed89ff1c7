/// What can go wrong with scoring. Rows are counted from 0.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum EvaluateError {
    /// Scores and labels are of different rows.
    #[error("{scores} rows of scores, but {labels} labels; give one label (or none) for each row")]
    Rows {
        /// Rows of the scores.
        scores: usize,
        /// Length of the labels.
        labels: usize,
    },
    /// A label or prediction is no class.
    #[error("row {row}: {found} is not one of the {classes} classes; correct the label or the class list")]
    Class {
        /// The row.
        row: usize,
        /// Its label or prediction.
        found: i32,
        /// Number of classes.
        classes: usize,
    },
    /// A score is not a finite number.
    #[error("row {row}: a score is not a finite number; extract the features or fit the head again")]
    NotFinite {
        /// The row.
        row: usize,
    },
}

impl EvaluateError {
    /// The same, where `before` rows came before.
    pub(super) fn after(self, before: usize) -> Self {
        match self {
            Self::Class { row, found, classes } => Self::Class { row: before + row, found, classes },
            Self::NotFinite { row } => Self::NotFinite { row: before + row },
            sizes @ Self::Rows { .. } => sizes,
        }
    }
}

/// A label as an index.
pub(super) fn class_index(row: usize, found: i32, classes: usize) -> Result<usize, EvaluateError> {
    let class = usize::try_from(found).ok().filter(|&class| class < classes);
    class.ok_or(EvaluateError::Class { row, found, classes })
}
