use std::path::PathBuf;

/// What can go wrong with a head. Rows are counted from 0 in the matrix that was given.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeadError {
    /// A setting is out of its range.
    #[error("head.{name} = {found}: expected {expected}")]
    Parameter {
        /// The setting's key.
        name: &'static str,
        /// What it is.
        found: String,
        /// What it may be, and what to do instead.
        expected: &'static str,
    },
    /// Two inputs that belong together differ in size.
    #[error("{what}: found {found}, expected {expected}; give one for each row and class of the same features")]
    Size {
        /// What was counted.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there should be.
        expected: usize,
    },
    /// A row that is not in the matrix was listed.
    #[error("row {row} is listed for training or hold-out, but the features have {rows} rows; list rows of these features")]
    NoSuchRow {
        /// The listed row.
        row: usize,
        /// Rows of the matrix.
        rows: usize,
    },
    /// A row has no label, or one that is no class.
    #[error("row {row}: label {} is not one of the {classes} classes (0 to {}); correct the label or the class list", .label.map_or_else(|| "(none)".to_owned(), |label| label.to_string()), .classes.saturating_sub(1))]
    Label {
        /// The row.
        row: usize,
        /// Its label.
        label: Option<i32>,
        /// Length of the class list.
        classes: usize,
    },
    /// A feature is NaN or infinite.
    #[error("row {row}: feature {feature} is {value}, not a finite number; extract the features again, or take the row out")]
    NotFinite {
        /// The row.
        row: usize,
        /// The column.
        feature: usize,
        /// NaN or an infinity.
        value: f32,
    },
    /// The head's answer for a row is not finite.
    #[error(
        "row {row}: the head gives no finite answer; its features are NaN, infinite or far larger than those it was fitted on: extract the features again"
    )]
    Answer {
        /// The row.
        row: usize,
    },
    /// Weights that no fit can give.
    #[error(
        "a weight is not finite, or a deviation is not above 0; fit the head again: tlpipe fit-head with the same pipeline or flags"
    )]
    Unusable,
    /// Nothing is left to train on.
    #[error(
        "no row is left for training ({labelled} labelled, {fraction} of them held out); add labelled images or lower head.validation_split"
    )]
    NothingToTrain {
        /// Rows with a label.
        labelled: usize,
        /// Share held out.
        fraction: f64,
    },
    /// Whole groups are to be held out, and there is one.
    #[error(
        "all {rows} labelled rows are of one group, {group:?}, by head.group = {rule:?}; set another head.group, or another head.split"
    )]
    OneGroup {
        /// The rule.
        rule: String,
        /// The only group.
        group: String,
        /// Labelled rows.
        rows: usize,
    },
    /// The training rows are all of one class.
    #[error("all {rows} training rows are of class {class:?}; a classifier needs two: add images of another class")]
    OneClass {
        /// The only class.
        class: String,
        /// Training rows.
        rows: usize,
    },
    /// The loss grew instead of falling.
    #[error(
        "the training loss became {loss} in epoch {epoch}: learning rate {learning_rate} is too large for these features; lower head.learning_rate or set head.standardize = true"
    )]
    Diverged {
        /// 1 is the first.
        epoch: usize,
        /// The loss then.
        loss: f64,
        /// The learning rate.
        learning_rate: f64,
    },
    /// linfa-logistic failed, panicked or gave a useless answer.
    #[error("solver linfa: {reason}; raise head.l2, or use head.solver = \"adam\"")]
    Linfa {
        /// What happened.
        reason: String,
    },
    /// L-BFGS has no answer.
    #[error("solver lbfgs: {reason}")]
    Lbfgs {
        /// What happened, and what to do.
        reason: String,
    },
    /// Least squares has no answer.
    #[error("solver ridge: the features cannot be solved for in f64; raise head.l2, or use head.solver = \"adam\"")]
    Ridge,
    /// Features that are not in memory could not be read.
    #[error(transparent)]
    Source(Box<dyn std::error::Error + Send + Sync>),
    /// linfa refused the data.
    #[error(transparent)]
    Dataset(#[from] linfa::Error),
    /// A head file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A head file is not what it should be.
    #[error("{path}: {reason}; fit the head again: tlpipe fit-head with the same pipeline or flags")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}
