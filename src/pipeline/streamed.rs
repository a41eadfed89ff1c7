//! Features in memory, or on disk where they would not fit: what a fit asks of both.

use std::error::Error;

use ndarray::{Array2, Axis};

use super::PipelineError;
use super::fit::Wanted;
use crate::head::{
    self, Checkpoints, Examples, FeatureSource, Fitted, HeadError, HeadParams, HeadValidParams, OnEpoch, Solver, Streamed,
};
use crate::store::{SplitFeatures, Store, StoreError, StreamedFeatures};

/// Bytes that features may take where the system does not say what is free.
const UNKNOWN: u64 = 4 << 30;

/// Rows of a store.
pub(super) trait Features {
    fn ids(&self) -> &[String];

    fn labels(&self) -> &[Option<i32>];

    /// A copy of some rows, `[rows, D]`, given in ascending order.
    fn select(&self, rows: &[usize]) -> Result<Array2<f32>, StoreError>;

    /// Rows that are gone, and of which the sums are left.
    fn summed(&self) -> usize {
        0
    }

    /// Fits a head on some rows.
    fn fit(&self, plan: &Plan<'_>, checkpoints: &mut Checkpoints<'_>, on_epoch: OnEpoch<'_>) -> Result<Fitted, HeadError>;
}

/// What is to be fitted.
pub(super) struct Plan<'a> {
    pub(super) params: &'a HeadValidParams,
    pub(super) train: &'a [usize],
    pub(super) holdout: &'a [usize],
    /// What a refit adds to `train`: the rows held out, or each of their views.
    pub(super) refit: &'a [usize],
    pub(super) classes: &'a [String],
}

impl Features for SplitFeatures {
    fn ids(&self) -> &[String] {
        &self.ids
    }

    fn labels(&self) -> &[Option<i32>] {
        &self.labels
    }

    fn select(&self, rows: &[usize]) -> Result<Array2<f32>, StoreError> {
        Ok(self.embeddings.select(Axis(0), rows))
    }

    fn fit(&self, plan: &Plan<'_>, checkpoints: &mut Checkpoints<'_>, on_epoch: OnEpoch<'_>) -> Result<Fitted, HeadError> {
        let Plan { params, train, holdout, refit, classes } = *plan;
        let examples = Examples { x: self.embeddings.view(), labels: &self.labels, train, holdout, refit, classes };
        head::fit_resumable(params, &examples, checkpoints, on_epoch)
    }
}

impl Features for StreamedFeatures {
    fn ids(&self) -> &[String] {
        &self.ids
    }

    fn labels(&self) -> &[Option<i32>] {
        &self.labels
    }

    fn select(&self, rows: &[usize]) -> Result<Array2<f32>, StoreError> {
        let mut values = Array2::zeros((rows.len(), self.dimension()));
        if let Some(values) = values.as_slice_mut() {
            StreamedFeatures::read(self, rows, values)?;
        }
        Ok(values)
    }

    fn fit(&self, plan: &Plan<'_>, checkpoints: &mut Checkpoints<'_>, on_epoch: OnEpoch<'_>) -> Result<Fitted, HeadError> {
        let Plan { params, train, holdout, refit, classes } = *plan;
        let is_listed = |row: &usize| train.binary_search(row).is_ok() || holdout.binary_search(row).is_ok();
        if let Some(&row) = self.not_finite.iter().find(|row| is_listed(row)) {
            let values = self.select(&[row]).map_err(|error| HeadError::Source(error.into()))?;
            let (feature, value) = values.into_iter().enumerate().find(|(_, value)| !value.is_finite()).unwrap_or((0, f32::NAN));
            return Err(HeadError::NotFinite { row, feature, value });
        }
        let memory = usize::try_from(budget(params)).unwrap_or(usize::MAX);
        let streamed = Streamed { source: self, labels: &self.labels, train, holdout, refit, classes, memory };
        head::fit_streamed(params, &streamed, Some(checkpoints), on_epoch)
    }
}

impl FeatureSource for StreamedFeatures {
    fn width(&self) -> usize {
        self.dimension()
    }

    fn read(&self, rows: &[usize], out: &mut [f32]) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(StreamedFeatures::read(self, rows, out)?)
    }
}

/// Whether the features of a fit are to stay on disk.
///
/// # Errors
/// When they should, and the solver needs them in memory.
pub(super) fn is_streamed(store: &Store, params: &HeadParams, wanted: Wanted) -> Result<bool, PipelineError> {
    match params.solver {
        Solver::Adam | Solver::Lbfgs | Solver::Ridge => Ok(need(store, wanted) > budget(params)),
        solver => {
            in_memory(
                store,
                params,
                wanted,
                &format!("solver {solver}"),
                ", or set head.solver to \"adam\", \"lbfgs\" or \"ridge\", which read them in passes",
            )?;
            Ok(false)
        }
    }
}

/// Refuses features that do not fit in memory, for `what` needs them there.
///
/// # Errors
/// When they do not.
pub(super) fn in_memory(
    store: &Store,
    params: &HeadParams,
    wanted: Wanted,
    what: &str,
    instead: &str,
) -> Result<(), PipelineError> {
    fits(need(store, wanted), params, what, instead)
}

/// Refuses more bytes of features in memory than there may be, for `what` needs them there.
///
/// # Errors
/// When there are more.
pub(super) fn fits(need: u64, params: &HeadParams, what: &str, instead: &str) -> Result<(), PipelineError> {
    let (need, budget) = (need.div_ceil(1 << 20), budget(params) >> 20);
    if need <= budget {
        return Ok(());
    }
    let reason =
        format!("{what} needs the features in memory: {need} MiB, above the limit of {budget} MiB; raise head.memory{instead}");
    Err(PipelineError::Settings { origin: "head.memory".into(), reason })
}

/// Bytes of a store's features in memory.
fn need(store: &Store, wanted: Wanted) -> u64 {
    let manifest = store.manifest();
    let rows = |split: &str| manifest.rows(split) as u64;
    let rows = (rows("train") + rows("validation")) * wanted.rows(store) as u64 + rows("test");
    rows * (manifest.dimension * size_of::<f32>()) as u64
}

/// Bytes that features may take: what was set, or half of what is free.
fn budget(params: &HeadParams) -> u64 {
    params.memory.map_or_else(|| free().map_or(UNKNOWN, |free| free / 2), |mebibytes| mebibytes.saturating_mul(1 << 20))
}

/// Bytes of memory that this process can still get; none where the system does not say.
fn free() -> Option<u64> {
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let available = line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024;
    // Of a container with a limit of its own; a container sees its own group at the root.
    let left = |limit: &str, used: &str| Some(number(limit)?.saturating_sub(number(used)?));
    let group = left("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current")
        .or_else(|| left("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"));
    Some(group.map_or(available, |group| group.min(available)))
}

#[cfg(test)]
mod tests;
