use std::fmt;

use linfa::ParamGuard;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ClassWeights, HeadError, Neighbours, Rule, Schedule};
use crate::store::Transform;

/// How the weights are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Solver {
    /// Minibatches with Adam, to the letter of Keras: the guide's recipe.
    #[default]
    Adam,
    /// Multinomial logistic regression with L2: the one optimum.
    Lbfgs,
    /// One-vs-rest least squares with L2, in closed form.
    Ridge,
    /// `linfa-logistic`: what `lbfgs` does, in f64.
    Linfa,
}

impl Solver {
    /// Whether it asks after each epoch or iteration whether to go on.
    pub fn can_be_stopped(self) -> bool {
        matches!(self, Self::Adam | Self::Lbfgs)
    }
}

impl fmt::Display for Solver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Adam => "adam",
            Self::Lbfgs => "lbfgs",
            Self::Ridge => "ridge",
            Self::Linfa => "linfa",
        })
    }
}

/// Neighbours that may vote at most.
const MOST_NEIGHBOURS: usize = 1000;

/// Which rows are held out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum HoldOut {
    /// The last rows, in order: Keras' rule.
    Tail,
    /// The same share of each class, chosen by a hash of the id.
    Stratified,
    /// Drawn from the seed.
    Random,
    /// Those whose id hashes below the share: stable when other images come or go.
    Hash,
    /// Whole groups of images.
    Grouped,
    /// The validation split of the source itself.
    Source,
}

impl fmt::Display for HoldOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tail => "tail",
            Self::Stratified => "stratified",
            Self::Random => "random",
            Self::Hash => "hash",
            Self::Grouped => "grouped",
            Self::Source => "source",
        })
    }
}

/// What a head is fitted on where images were seen in several views. What is held out and what is scored is always their mean,
/// on which a linear head gives the mean of the logits that it would give to each view.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ViewUse {
    /// The mean over the views of an image: a row an image.
    #[default]
    Average,
    /// Each view: as many rows an image as it has views, all on the same side of the hold-out.
    Augment,
}

/// Settings of a head: the `[head]` table of a pipeline. [`ParamGuard::check`] turns them into [`HeadValidParams`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HeadParams {
    /// How the weights are found.
    pub solver: Solver,
    /// Passes over the training rows (`adam`); at least 1.
    #[schemars(range(min = 1))]
    pub epochs: usize,
    /// Rows of a step (`adam`); at least 1.
    #[schemars(range(min = 1))]
    pub batch_size: usize,
    /// Step size (`adam`); above 0.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub learning_rate: f64,
    /// Share of the labelled rows that is held out, 0 (none) to below 1.
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub validation_split: f64,
    /// Which rows are held out; left open, the source decides.
    pub split: Option<HoldOut>,
    /// What belongs together under `grouped`: `folder` (the folder of the id; where it is left open), or a text: then the id
    /// up to the text's first occurrence.
    #[schemars(length(min = 1))]
    pub group: Option<String>,
    /// Seed of the initial weights and of the order of the rows (`adam`), and of `random` and `grouped` hold-outs.
    pub seed: u64,
    /// Whether each epoch takes the rows in a new order (`adam`).
    pub shuffle: bool,
    /// Strength of L2: `l2 / 2 * sum(kernel²)` is added to the mean loss that is minimized (cross-entropy; `ridge` half the
    /// squared error), not to the loss that is reported; 0 to 1e6. Left open: `adam` 0; `lbfgs` and `linfa` 1e-2; `ridge` chooses
    /// by leaving each row out, and of more than 2,048 features by the rows held out.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub l2: Option<f64>,
    /// Iterations after which `lbfgs` and `linfa` stop; at least 1. Left open: `lbfgs` 1,000, `linfa` 100.
    #[schemars(range(min = 1))]
    pub max_iterations: Option<u64>,
    /// When `lbfgs` is done, above 0: no entry of the objective's gradient is larger, and its value is at most three times this
    /// share above the least one. Left open: 3e-5.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub tolerance: Option<f64>,
    /// Whether features are standardized over the training rows. Left open: `adam` no, `lbfgs` yes; `linfa` and `ridge` always
    /// do.
    pub standardize: Option<bool>,
    /// Decoupled weight decay (`adam`; AdamW, Loshchilov & Hutter, 2019), as Keras' `AdamW`: each step takes
    /// `rate * weight_decay` of the kernel away, the bias is spared; 0 to 100. Left open, 0.
    #[schemars(range(min = 0, max = 100))]
    pub weight_decay: Option<f64>,
    /// Label smoothing (`adam`, `lbfgs`): share of the asked-for probability that is spread over all classes, 0 to below 1. Left open, 0.
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub label_smoothing: Option<f64>,
    /// Share of the features that is dropped anew for each row and epoch of training (`adam`), 0 to below 1; the rest is scaled
    /// up. Left open, 0.
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub dropout: Option<f64>,
    /// What the rows of each class count (`adam`, `lbfgs`). Left open, all the same.
    pub class_weights: Option<ClassWeights>,
    /// How the learning rate changes from step to step (`adam`). Left open, it does not.
    pub schedule: Option<Schedule>,
    /// Share of all planned steps over which the learning rate climbs to its full value (`adam`), 0 to below 1. Left open, 0.
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub warmup: Option<f64>,
    /// Epochs between two drops of the learning rate (`schedule = "step"`); at least 1. Left open, a third of `epochs`.
    #[schemars(range(min = 1))]
    pub step_epochs: Option<usize>,
    /// What the learning rate is multiplied with at a drop (`schedule = "step"`), above 0 to 1. Left open, 0.1.
    #[schemars(extend("exclusiveMinimum" = 0), range(max = 1))]
    pub step_factor: Option<f64>,
    /// Early stopping (`adam`): epochs without a lower `val_loss` after which the fit ends; at least 1. The head has the weights
    /// of the best epoch, whether or not the fit ended early. Left open, all epochs are run and the last one's weights kept.
    #[schemars(range(min = 1))]
    pub patience: Option<usize>,
    /// By how much `val_loss` must fall to count as lower (with `patience`); at least 0. Left open, 0.
    #[schemars(range(min = 0))]
    pub min_delta: Option<f64>,
    /// Features that the head may use (`ridge`), at least 1: those are kept whose deletion would cost the objective most. Left open,
    /// all.
    #[schemars(range(min = 1))]
    pub budget: Option<usize>,
    /// Whether, once everything is chosen on the hold-out, the head is fitted again on all rows (`ridge`); the hold-out's scores
    /// stay those of the head that did not see it. Left open, no.
    pub refit: Option<bool>,
    /// Whether sufficient statistics are kept with the run (`ridge`), so that `--update` can bring the head up to date; they take
    /// 4 bytes times the features squared. Left open, those of up to 4,096 features are.
    pub keep_statistics: Option<bool>,
    /// MiB that features may take in memory; at least 1. Above, `adam` reads them anew in each epoch, in another order, `lbfgs` in
    /// each iteration, and `ridge` a few times. Left open, half of the memory that is free.
    #[schemars(range(min = 1))]
    pub memory: Option<u64>,
    /// Neighbours that vote in the baseline of the nearest neighbours; 1 to 1,000. Left open, 20, as in DINOv2. The head does not
    /// depend on it.
    #[schemars(range(min = 1, max = MOST_NEIGHBOURS))]
    pub knn_k: Option<usize>,
    /// Temperature of their votes, above 0: one of cosine similarity `s` counts `exp(s / knn_temperature)`. Left open, 0.07.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub knn_temperature: Option<f64>,
    /// What is done to each value of the features as they are read: `none`, or `sqrt`, the square root of its magnitude with its
    /// sign, which suits pooled activations.
    pub transform: Transform,
    /// What the fit takes of images that were seen in several views: `average`, or `augment`.
    pub views: ViewUse,
}

impl Default for HeadParams {
    fn default() -> Self {
        Self {
            solver: Solver::Adam,
            epochs: 10,
            batch_size: 32,
            learning_rate: 1e-3,
            validation_split: 0.2,
            split: None,
            group: None,
            seed: 0,
            shuffle: true,
            l2: None,
            max_iterations: None,
            tolerance: None,
            standardize: None,
            weight_decay: None,
            label_smoothing: None,
            dropout: None,
            class_weights: None,
            schedule: None,
            warmup: None,
            step_epochs: None,
            step_factor: None,
            patience: None,
            min_delta: None,
            budget: None,
            refit: None,
            keep_statistics: None,
            memory: None,
            knn_k: None,
            knn_temperature: None,
            transform: Transform::None,
            views: ViewUse::Average,
        }
    }
}

/// Settings of a head whose values are known to be in range.
#[derive(Clone, Debug, PartialEq)]
#[repr(transparent)]
pub struct HeadValidParams(HeadParams);

impl HeadValidParams {
    /// Whether features are standardized.
    pub fn standardize(&self) -> bool {
        self.standardize.unwrap_or(self.solver != Solver::Adam)
    }

    /// Strength of L2; not for `ridge` where it is left open.
    pub(super) fn l2(&self) -> f64 {
        self.l2.unwrap_or(match self.solver {
            Solver::Adam => 0.0,
            Solver::Lbfgs | Solver::Linfa | Solver::Ridge => 1e-2,
        })
    }

    /// Whether the head is fitted again on all rows.
    pub fn refit(&self) -> bool {
        self.refit.unwrap_or(false)
    }

    /// Iterations after which a solver stops.
    pub fn max_iterations(&self) -> u64 {
        self.max_iterations.unwrap_or(if self.solver == Solver::Linfa { 100 } else { 1000 })
    }

    /// Gradient at which `lbfgs` is done.
    pub fn tolerance(&self) -> f64 {
        self.tolerance.unwrap_or(3e-5)
    }

    /// What the rows of each class count.
    pub fn class_weights(&self) -> ClassWeights {
        self.class_weights.clone().unwrap_or_default()
    }

    /// How the nearest neighbours vote.
    pub fn neighbours(&self) -> Neighbours {
        let usual = Neighbours::default();
        Neighbours { k: self.knn_k.unwrap_or(usual.k), temperature: self.knn_temperature.unwrap_or(usual.temperature) }
    }

    /// Epochs between two drops of the learning rate.
    pub fn step_epochs(&self) -> usize {
        self.step_epochs.unwrap_or(self.epochs.div_ceil(3))
    }

    /// What the learning rate is multiplied with at a drop.
    pub fn step_factor(&self) -> f64 {
        self.step_factor.unwrap_or(0.1)
    }
}

impl std::ops::Deref for HeadValidParams {
    type Target = HeadParams;

    fn deref(&self) -> &HeadParams {
        &self.0
    }
}

impl HeadParams {
    /// Whether statistics of so many features are kept.
    pub fn keep_statistics(&self, features: usize) -> bool {
        const MOST: usize = 4096;
        self.keep_statistics.unwrap_or(features <= MOST && self.budget.is_none() && !self.augments())
    }

    /// Whether each view of an image is a row to train on.
    pub fn augments(&self) -> bool {
        self.views == ViewUse::Augment
    }

    /// How rows are divided where `kind` decides.
    pub fn rule(&self, kind: HoldOut) -> Rule<'_> {
        Rule { kind, fraction: self.validation_split, seed: self.seed, group: self.group.as_deref().unwrap_or("folder") }
    }

    fn validate(&self) -> Result<(), HeadError> {
        let wrong =
            |name, found: &dyn fmt::Display, expected| Err(HeadError::Parameter { name, found: found.to_string(), expected });
        if self.epochs == 0 {
            return wrong("epochs", &self.epochs, "at least 1");
        }
        if self.batch_size == 0 {
            return wrong("batch_size", &self.batch_size, "at least 1");
        }
        // In f32, in which it works.
        if !(self.learning_rate.is_finite() && self.learning_rate as f32 > 0.0) {
            return wrong("learning_rate", &self.learning_rate, "a finite number above 0, such as 1e-3");
        }
        if !(0.0..1.0).contains(&self.validation_split) {
            return wrong("validation_split", &self.validation_split, "a share from 0 (no hold-out) to below 1, such as 0.2");
        }
        match (&self.group, self.split) {
            (Some(group), _) if group.is_empty() => {
                return wrong("group", &"\"\"", "folder, or a text that follows the group's name");
            }
            (Some(group), split) if split != Some(HoldOut::Grouped) => {
                return wrong("group", group, "nothing without head.split = \"grouped\"; set that, or take the line out");
            }
            _ => {}
        }
        match self.budget {
            Some(0) => return wrong("budget", &0, "at least 1 feature"),
            Some(found) if self.solver != Solver::Ridge => {
                return wrong("budget", &found, "nothing unless head.solver is \"ridge\"; take it out");
            }
            Some(_) if self.keep_statistics == Some(true) => {
                let expected = "not with head.budget, which no update can keep to; take one of the two out";
                return wrong("keep_statistics", &true, expected);
            }
            None if self.keep_statistics == Some(true) && self.augments() => {
                let expected = "not with head.views = \"augment\", which an update does not go through; take one of the two out";
                return wrong("keep_statistics", &true, expected);
            }
            _ => {}
        }
        let of_ridge = [("refit", self.refit), ("keep_statistics", self.keep_statistics)];
        for (name, found) in of_ridge {
            if let (Some(found), true) = (found, self.solver != Solver::Ridge) {
                return wrong(name, &found, "nothing unless head.solver is \"ridge\"; take it out");
            }
        }
        if let Some(found) = self.knn_k.filter(|k| !(1..=MOST_NEIGHBOURS).contains(k)) {
            return wrong("knn_k", &found, "1 to 1000 neighbours, such as 20");
        }
        if let Some(found) = self.knn_temperature.filter(|found| !(found.is_finite() && *found > 0.0)) {
            return wrong("knn_temperature", &found, "a finite number above 0, such as 0.07");
        }
        if self.memory == Some(0) {
            return wrong("memory", &0, "at least 1 MiB");
        }
        match self.max_iterations {
            Some(0) => return wrong("max_iterations", &0, "at least 1"),
            Some(found) if !matches!(self.solver, Solver::Lbfgs | Solver::Linfa) => {
                return wrong("max_iterations", &found, "nothing unless head.solver is \"lbfgs\" or \"linfa\"; take it out");
            }
            _ => {}
        }
        match self.tolerance {
            Some(found) if !(found.is_finite() && found > 0.0) => {
                return wrong("tolerance", &found, "a finite number above 0, such as 1e-4");
            }
            Some(found) if self.solver != Solver::Lbfgs => {
                return wrong("tolerance", &found, "nothing unless head.solver is \"lbfgs\"; take it out");
            }
            _ => {}
        }
        // On unscaled features linfa's line search can go on for ever, which nothing outside can stop.
        if matches!(self.solver, Solver::Linfa | Solver::Ridge) && self.standardize == Some(false) {
            return wrong("standardize", &false, "true with head.solver = \"linfa\" or \"ridge\"; take the line out");
        }
        match self.l2 {
            Some(l2) if !(0.0..=1e6).contains(&l2) => wrong("l2", &l2, "a number from 0 to 1e6, such as 1e-3"),
            _ => self.validate_adam(),
        }
    }

    /// The keys that not every solver has.
    fn validate_adam(&self) -> Result<(), HeadError> {
        let share = |share: f64| (0.0..1.0).contains(&share);
        let keys: [(_, Option<&dyn fmt::Display>, _, _); 10] = [
            (
                "weight_decay",
                shown(&self.weight_decay),
                self.weight_decay.is_none_or(|decay| (0.0..=100.0).contains(&decay)),
                "a number from 0 to 100, such as 4e-3",
            ),
            (
                "label_smoothing",
                shown(&self.label_smoothing),
                self.label_smoothing.is_none_or(share),
                "a share from 0 to below 1, such as 0.1",
            ),
            ("dropout", shown(&self.dropout), self.dropout.is_none_or(share), "a share from 0 to below 1, such as 0.2"),
            (
                "class_weights",
                shown(&self.class_weights),
                self.class_weights.as_ref().is_none_or(ClassWeights::is_valid),
                "\"none\", \"balanced\", or a number from 0 to 1e6 for each class, not all 0",
            ),
            ("schedule", shown(&self.schedule), true, ""),
            (
                "warmup",
                shown(&self.warmup),
                self.warmup.is_none_or(share),
                "a share of all steps from 0 to below 1, such as 0.05",
            ),
            ("step_epochs", shown(&self.step_epochs), self.step_epochs != Some(0), "at least 1"),
            (
                "step_factor",
                shown(&self.step_factor),
                self.step_factor.is_none_or(|factor| factor > 0.0 && factor <= 1.0),
                "a factor above 0, up to 1, such as 0.1",
            ),
            ("patience", shown(&self.patience), self.patience != Some(0), "at least 1 epoch"),
            (
                "min_delta",
                shown(&self.min_delta),
                self.min_delta.is_none_or(|delta| delta.is_finite() && delta >= 0.0),
                "a finite number from 0, such as 1e-3",
            ),
        ];
        let steps = self.schedule == Some(Schedule::Step);
        for (name, found, is_valid, expected) in keys {
            let Some(found) = found else { continue };
            let of_both = ["label_smoothing", "class_weights"].contains(&name);
            let refused = match name {
                _ if of_both && !matches!(self.solver, Solver::Adam | Solver::Lbfgs) => {
                    "no such key with this head.solver; take it out, or set head.solver to \"adam\" or \"lbfgs\""
                }
                _ if !of_both && self.solver != Solver::Adam => {
                    "no such key with this head.solver; take it out, or set head.solver = \"adam\""
                }
                _ if !is_valid => expected,
                "step_epochs" | "step_factor" if !steps => {
                    "no such key without head.schedule = \"step\"; take it out, or set that"
                }
                "min_delta" if self.patience.is_none() => "no such key without head.patience; take it out, or set that too",
                _ => continue,
            };
            return Err(HeadError::Parameter { name, found: found.to_string(), expected: refused });
        }
        Ok(())
    }
}

fn shown<T: fmt::Display>(value: &Option<T>) -> Option<&dyn fmt::Display> {
    value.as_ref().map(|value| value as &dyn fmt::Display)
}

impl ParamGuard for HeadParams {
    type Checked = HeadValidParams;
    type Error = HeadError;

    fn check_ref(&self) -> Result<&HeadValidParams, HeadError> {
        self.validate()?;
        // SAFETY: `HeadValidParams` is a transparent wrapper of `HeadParams`, so both have one layout.
        Ok(unsafe { &*std::ptr::from_ref(self).cast::<HeadValidParams>() })
    }

    fn check(self) -> Result<HeadValidParams, HeadError> {
        self.validate()?;
        Ok(HeadValidParams(self))
    }
}

#[cfg(test)]
mod tests;
