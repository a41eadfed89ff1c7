//! Training data as Adam goes through it: parts in memory, each with the order of its rows. A matrix in memory is one part.

use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;

use super::HeadError;
use super::features::Features;
use super::fit::Problem;

/// Rows in memory, and the order in which they are taken.
pub(super) struct Part<'a> {
    pub(super) features: Features<'a>,
    /// Label of each row of the features.
    pub(super) labels: &'a [usize],
    /// Indices of rows of the features.
    pub(super) order: &'a [usize],
}

/// Which rows are for what; all that is known of them but their features.
#[derive(Clone, Copy)]
pub(super) struct Listed<'a> {
    /// Label of each row; anything for rows that are not listed.
    pub(super) labels: &'a [usize],
    pub(super) train: &'a [usize],
    pub(super) holdout: &'a [usize],
    pub(super) refit: &'a [usize],
    pub(super) classes: usize,
}

/// What is done with a part.
pub(super) type OnPart<'a> = &'a mut (dyn FnMut(Part<'_>) -> Result<(), HeadError> + Send);

/// Rows that come in parts.
pub(super) trait Parts: Sync {
    /// The rows.
    fn listed(&self) -> Listed<'_>;

    /// Hands out some rows once: in their order, or shuffled. Each part but the last holds a multiple of `whole` rows.
    ///
    /// # Errors
    /// When rows cannot be read, and those of `act`.
    fn each_part(&self, rows: &[usize], shuffle: Option<ChaCha8Rng>, whole: usize, act: OnPart<'_>) -> Result<(), HeadError>;
}

impl Parts for Problem<'_> {
    fn listed(&self) -> Listed<'_> {
        Listed { labels: self.labels, train: self.train, holdout: self.holdout, refit: self.refit, classes: self.classes }
    }

    fn each_part(&self, rows: &[usize], shuffle: Option<ChaCha8Rng>, _: usize, act: OnPart<'_>) -> Result<(), HeadError> {
        let mut order = rows.to_vec();
        if let Some(mut rng) = shuffle {
            order.shuffle(&mut rng);
        }
        act(Part { features: self.features.shorter(), labels: self.labels, order: &order })
    }
}
