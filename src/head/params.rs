use std::fmt;

use linfa::ParamGuard;
use serde::{Deserialize, Serialize};

use super::{HeadError, Rule};

/// How the weights are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Solver {
    /// Minibatches with Adam, to the letter of Keras: the guide's recipe.
    #[default]
    Adam,
    /// `linfa-logistic`: multinomial logistic regression with L2 by L-BFGS, in f64.
    Linfa,
}

impl fmt::Display for Solver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Adam => "adam",
            Self::Linfa => "linfa",
        })
    }
}

/// Which rows are held out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// Settings of a head: the `[head]` table of a pipeline. [`ParamGuard::check`] turns them into [`HeadValidParams`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HeadParams {
    /// How the weights are found.
    pub solver: Solver,
    /// Passes over the training rows (`adam`); at least 1.
    pub epochs: usize,
    /// Rows of a step (`adam`); at least 1.
    pub batch_size: usize,
    /// Step size (`adam`); above 0.
    pub learning_rate: f64,
    /// Share of the labelled rows that is held out, 0 (none) to below 1.
    pub validation_split: f64,
    /// Which rows are held out; left open, the source decides.
    pub split: Option<HoldOut>,
    /// What belongs together under `grouped`: `folder` (the folder of the id; where it is left open), or a text: then the id
    /// up to the text's first occurrence.
    pub group: Option<String>,
    /// Seed of the initial weights and of the order of the rows (`adam`), and of `random` and `grouped` hold-outs.
    pub seed: u64,
    /// Whether each epoch takes the rows in a new order (`adam`).
    pub shuffle: bool,
    /// Strength of L2 (`linfa`): `l2 / 2 * sum(kernel²)` is added to the mean cross-entropy; 0 to 1e6. Left open, 1e-3.
    pub l2: Option<f64>,
    /// Iterations after which `linfa` stops; at least 1.
    pub max_iterations: u64,
    /// Whether features are standardized over the training rows. Left open: `adam` no; `linfa` always does.
    pub standardize: Option<bool>,
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
            max_iterations: 100,
            standardize: None,
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
        self.standardize.unwrap_or(self.solver == Solver::Linfa)
    }

    /// Strength of L2.
    pub fn l2(&self) -> f64 {
        self.l2.unwrap_or(match self.solver {
            Solver::Adam => 0.0,
            Solver::Linfa => 1e-3,
        })
    }
}

impl std::ops::Deref for HeadValidParams {
    type Target = HeadParams;

    fn deref(&self) -> &HeadParams {
        &self.0
    }
}

impl HeadParams {
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
        if self.max_iterations == 0 {
            return wrong("max_iterations", &self.max_iterations, "at least 1");
        }
        if self.solver == Solver::Linfa && self.standardize == Some(false) {
            // On unscaled features its line search can go on for ever, which nothing outside can stop.
            return wrong("standardize", &false, "true with head.solver = \"linfa\"; take the line out");
        }
        match self.l2 {
            Some(l2) if !(0.0..=1e6).contains(&l2) => wrong("l2", &l2, "a number from 0 to 1e6, such as 1e-3"),
            Some(l2) if l2 > 0.0 && self.solver == Solver::Adam => {
                wrong("l2", &l2, "0 with head.solver = \"adam\", which has no L2; set head.solver = \"linfa\"")
            }
            _ => Ok(()),
        }
    }
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
mod tests {
    use super::*;

    #[test]
    fn values_out_of_range_are_named() {
        let base = HeadParams::default();
        let cases = [
            ("epochs", HeadParams { epochs: 0, ..base.clone() }),
            ("batch_size", HeadParams { batch_size: 0, ..base.clone() }),
            ("learning_rate", HeadParams { learning_rate: f64::NAN, ..base.clone() }),
            ("learning_rate", HeadParams { learning_rate: -1e-3, ..base.clone() }),
            ("validation_split", HeadParams { validation_split: 1.0, ..base.clone() }),
            ("validation_split", HeadParams { validation_split: f64::NAN, ..base.clone() }),
            ("l2", HeadParams { l2: Some(-1.0), solver: Solver::Linfa, ..base.clone() }),
            ("l2", HeadParams { l2: Some(0.1), ..base.clone() }),
            ("l2", HeadParams { l2: Some(f64::INFINITY), solver: Solver::Linfa, ..base.clone() }),
            ("standardize", HeadParams { standardize: Some(false), solver: Solver::Linfa, ..base.clone() }),
            ("group", HeadParams { group: Some("_".into()), ..base.clone() }),
            ("group", HeadParams { group: Some(String::new()), split: Some(HoldOut::Grouped), ..base.clone() }),
            ("max_iterations", HeadParams { max_iterations: 0, ..base.clone() }),
        ];
        for (name, params) in cases {
            let message = params.check().unwrap_err().to_string();
            assert!(message.starts_with(&format!("head.{name} = ")), "{message}");
        }
        assert_eq!(**base.check_ref().unwrap(), base);
    }

    #[test]
    fn a_head_table_is_read_and_a_typo_refused() {
        let params: HeadParams = toml::from_str("solver = \"linfa\"\nsplit = \"stratified\"\nlearning_rate = 1").unwrap();
        let expected =
            HeadParams { solver: Solver::Linfa, split: Some(HoldOut::Stratified), learning_rate: 1.0, ..HeadParams::default() };
        assert_eq!(params, expected);
        assert_eq!(params.solver.to_string(), "linfa");
        let params = params.check().unwrap();
        assert!(params.standardize() && params.l2() > 0.0);
        let error = toml::from_str::<HeadParams>("epoch = 3").unwrap_err().to_string();
        assert!(error.contains("epoch"), "{error}");
    }
}
