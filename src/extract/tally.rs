//! Counts what becomes of the images, and tells the observer.

use std::sync::Arc;
use std::time::Instant;

use super::Plan;
use super::network::RanOn;
use super::worker::Outcome;
use crate::events::{Event, Observer, Unit};
use crate::runtime::Runtime;
use crate::store::{Embedding, Extraction, Quarantined, SplitFigures, StageSeconds};

/// Counts, and tells the observer.
pub(super) struct Tally<'a> {
    observe: Observer<'a>,
    expected: Vec<(Arc<str>, usize)>,
    pub(super) total: usize,
    split: Option<(String, usize, Instant)>,
    splits: Vec<SplitFigures>,
    pub(super) new: usize,
    pub(super) changed: usize,
    pub(super) reused: usize,
    quarantined: usize,
    pub(super) startup_seconds: f64,
    pub(super) stages: StageSeconds,
}

impl<'a> Tally<'a> {
    pub(super) fn new(plan: &Plan<'_>, observe: Observer<'a>) -> Self {
        // How many ids of a split fall into a slice is known at the end.
        let parts = plan.slice.map_or(1, |slice| slice.of());
        let expected: Vec<_> =
            plan.dataset.splits().iter().map(|split| (Arc::clone(&split.name), split.rows.div_ceil(parts))).collect();
        Self {
            observe,
            total: expected.iter().map(|(_, rows)| rows).sum(),
            expected,
            split: None,
            splits: Vec::new(),
            new: 0,
            changed: 0,
            reused: 0,
            quarantined: 0,
            startup_seconds: 0.0,
            stages: StageSeconds::default(),
        }
    }

    pub(super) fn done(&self) -> usize {
        self.new + self.reused + self.quarantined
    }

    pub(super) fn count(&mut self, outcome: &Outcome) {
        let (split, rows) = match outcome {
            Outcome::Row { split, .. } => (split.as_ref(), 1),
            Outcome::Quarantined(image) => (image.split.as_str(), 0),
        };
        if self.split.as_ref().is_none_or(|(name, ..)| name != split) {
            self.close();
            let total = self.expected.iter().find(|(name, _)| name.as_ref() == split).map(|(_, rows)| *rows as u64);
            (self.observe)(Event::Started { task: split, total, unit: Unit::Images });
            self.split = Some((split.to_owned(), 0, Instant::now()));
            self.splits.push(SplitFigures { split: split.to_owned(), rows: 0, seconds: 0.0 });
        }
        if let Some((_, done, _)) = &mut self.split {
            *done += 1;
        }
        if let Some(figures) = self.splits.last_mut() {
            figures.rows += rows;
        }
        match outcome {
            Outcome::Row { embedding: Embedding::New(_), changed, .. } => {
                self.new += 1;
                self.changed += usize::from(*changed);
            }
            Outcome::Row { embedding: Embedding::Reused(_), .. } => self.reused += 1,
            Outcome::Quarantined(image) => {
                self.quarantined += 1;
                if self.quarantined == 1 {
                    let Quarantined { split, id, error, .. } = image;
                    let text = format!("{split}: {id} cannot be used: {error}; it and others like it are set aside");
                    (self.observe)(Event::Warned(text));
                }
                tracing::warn!(target: "tlpipe::quarantine", "{}/{}: {}", image.split, image.id, image.error);
            }
        }
    }

    pub(super) fn advance(&self) {
        if let Some((split, done, _)) = &self.split {
            (self.observe)(Event::Advanced { task: split, done: *done as u64 });
        }
    }

    fn close(&mut self) {
        if let Some((split, _, started)) = self.split.take() {
            if let Some(figures) = self.splits.last_mut() {
                figures.seconds = started.elapsed().as_secs_f64();
            }
            (self.observe)(Event::Finished { task: &split });
        }
    }

    #[allow(clippy::cast_precision_loss)]
    pub(super) fn finish(
        mut self,
        plan: &Plan<'_>,
        runtime: &Runtime,
        ran_on: RanOn,
        seconds: f64,
        removed: usize,
    ) -> Extraction {
        self.close();
        if self.quarantined > 0 {
            // Where features are not kept, all images are.
            let only = if plan.quarantine.starts_with(&plan.features) { ": only they are run" } else { "" };
            let text = format!(
                "{} of {} images cannot be used: {} says why for each; mend or remove them and run the same command again{only}",
                self.quarantined,
                self.done(),
                plan.quarantine.display()
            );
            (self.observe)(Event::Warned(text));
        }
        Extraction {
            rows: self.new + self.reused,
            new: self.new,
            changed: self.changed,
            reused: self.reused,
            removed,
            quarantined: self.quarantined,
            seconds,
            startup_seconds: self.startup_seconds,
            stages: self.stages,
            images_per_second: self.new as f64 / seconds.max(1e-9),
            provider: ran_on.provider.to_owned(),
            nodes: ran_on.nodes,
            drift: ran_on.drift,
            runtime: runtime.version().to_owned(),
            threads: plan.network.threads,
            batch: plan.network.batch,
            model: plan.network.backbone.name().to_owned(),
            model_file: plan.network.backbone.file().display().to_string(),
            model_sha256: plan.network.backbone.sha256().to_owned(),
            cut_reason: plan.network.backbone.cut().reason.to_string(),
            layers: plan.network.backbone.layers().to_string(),
            splits: self.splits,
            tlpipe: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}
