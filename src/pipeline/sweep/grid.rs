//! What a sweep tries: a grid or random points of it.

use std::collections::BTreeMap;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use super::super::PipelineError;
use crate::head::{HeadParams, ParamGuard as _, Solver};

/// Candidates above this are a slip of the finger.
const MOST_CANDIDATES: usize = 10_000;

/// One key of `[head]` and what is tried for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    key: String,
    choices: Choices,
}

#[derive(Clone, Debug, PartialEq)]
enum Choices {
    Each(Vec<Value>),
    /// Drawn so that each decade is as likely.
    Between(f64, f64),
}

impl Axis {
    /// Reads `KEY=VALUE,VALUE,…` or `KEY=LOW..HIGH`; `head.` before the key may be left out.
    ///
    /// # Errors
    /// When it has neither form.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (key, values) = text.split_once('=').ok_or("give KEY=VALUE,VALUE,… or KEY=LOW..HIGH, as in l2=1e-4,1e-3,1e-2")?;
        let key = key.trim();
        let key = key.strip_prefix("head.").unwrap_or(key).to_owned();
        if let Some((low, high)) = values.split_once("..") {
            let number = |text: &str| text.trim().parse::<f64>().ok().filter(|value| value.is_finite() && *value > 0.0);
            return match (number(low), number(high)) {
                (Some(low), Some(high)) if low < high => Ok(Self { key, choices: Choices::Between(low, high) }),
                _ => Err(format!("{values}: give two numbers above 0, the smaller first, as in {key}=1e-5..1")),
            };
        }
        let values = values.split(',').map(str::trim).filter(|value| !value.is_empty());
        let each: Vec<Value> =
            values.map(|value| serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.into()))).collect();
        if each.is_empty() { Err(format!("no value for {key}")) } else { Ok(Self { key, choices: Choices::Each(each) }) }
    }

    fn each(key: &str, values: impl IntoIterator<Item = f64>) -> Self {
        Self { key: key.into(), choices: Choices::Each(values.into_iter().map(Value::from).collect()) }
    }
}

/// What a sweep tries, and on which rows.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The grid; empty for the one that suits the solver.
    pub axes: Vec<Axis>,
    /// Random search: so many points of the grid's space instead of all of the grid.
    pub draws: Option<usize>,
    /// Stratified cross-validation with so many folds instead of the hold-out.
    pub folds: Option<usize>,
    /// Keys of `[head]` that were set for this sweep and keep their value, whatever the grid that suits the solver says.
    pub fixed: Vec<String>,
}

/// Settings that are tried.
pub(super) struct Candidate {
    pub(super) varied: BTreeMap<String, Value>,
    pub(super) params: HeadParams,
}

impl Plan {
    /// The axes that suit a solver: L2 in thirds of decades; for Adam learning rate and L2.
    fn suited(solver: Solver) -> Vec<Axis> {
        let thirds = |from: i32, to: i32| (from..=to).map(|third| rounded(10_f64.powf(f64::from(third) / 3.0)));
        match solver {
            Solver::Adam => {
                vec![Axis::each("learning_rate", [1e-4, 3e-4, 1e-3, 3e-3]), Axis::each("l2", [0.0, 1e-3, 1e-2, 1e-1])]
            }
            Solver::Lbfgs | Solver::Linfa => vec![Axis::each("l2", thirds(-14, 5))],
            Solver::Ridge => vec![Axis::each("l2", thirds(-15, 4))],
        }
    }

    /// The candidates, in the order of the grid.
    ///
    /// # Errors
    /// When an axis is given twice, fixed as well, unknown or a range without `draws`, when there are too many points, or when a
    /// value is not valid.
    pub(super) fn candidates(&self, base: &HeadParams) -> Result<Vec<Candidate>, PipelineError> {
        let mut axes = if self.axes.is_empty() { Self::suited(base.solver) } else { self.axes.clone() };
        let wrong = |reason: String| PipelineError::Settings { origin: "--grid".into(), reason };
        if self.axes.is_empty() {
            let settings = serde_json::to_value(base).unwrap_or_default();
            for axis in axes.iter_mut().filter(|axis| self.fixed.contains(&axis.key)) {
                axis.choices = Choices::Each(vec![settings[&axis.key].clone()]);
            }
        } else if let Some(axis) = axes.iter().find(|axis| self.fixed.contains(&axis.key)) {
            let key = &axis.key;
            return Err(wrong(format!(
                "{key} has values to try, and one that was set for this sweep (--{} or --set head.{key}): give one of the two",
                key.replace('_', "-")
            )));
        }
        if axes.iter().any(|axis| axis.key == "transform") {
            return Err(wrong(
                "transform is how the features are read, once for all heads: sweep with each of its values".into(),
            ));
        }
        if let Some(axis) = axes.iter().enumerate().find(|(at, axis)| axes[..*at].iter().any(|other| other.key == axis.key)) {
            return Err(wrong(format!("{} is given twice; list all its values in one --grid", axis.1.key)));
        }
        let mut points: Vec<BTreeMap<String, Value>> = vec![BTreeMap::new()];
        if let Some(draws) = self.draws {
            let mut rng = ChaCha8Rng::seed_from_u64(base.seed);
            let mut draw = |axis: &Axis| match &axis.choices {
                Choices::Each(values) => values[rng.random_range(0..values.len())].clone(),
                Choices::Between(low, high) => Value::from(rounded(rng.random_range(low.ln()..high.ln()).exp())),
            };
            points = (0..draws).map(|_| axes.iter().map(|axis| (axis.key.clone(), draw(axis))).collect()).collect();
        } else {
            for axis in &axes {
                let Choices::Each(values) = &axis.choices else {
                    return Err(wrong(format!("{}: a range is for random search: add --draws N, or list values", axis.key)));
                };
                if points.len() * values.len() > MOST_CANDIDATES {
                    return Err(wrong(format!("more than {MOST_CANDIDATES} candidates; list fewer values, or add --draws N")));
                }
                let with = |point: &BTreeMap<String, Value>, value: &Value| {
                    let mut point = point.clone();
                    point.insert(axis.key.clone(), value.clone());
                    point
                };
                points = points.iter().flat_map(|point| values.iter().map(move |value| with(point, value))).collect();
            }
        }
        let mut candidates: Vec<Candidate> = Vec::new();
        let mut refused = None;
        for varied in points {
            let mut params = laid_over(base, &varied).map_err(&wrong)?;
            // What the solver does not look at does not make another candidate.
            if params.solver != Solver::Adam {
                params.learning_rate = base.learning_rate;
            }
            match params.check_ref() {
                Err(error) => refused = Some(error),
                Ok(_) if candidates.iter().any(|other| other.params == params) => {}
                Ok(_) => candidates.push(Candidate { varied, params }),
            }
        }
        // With several solvers in the grid, what one of them has no use for is left out for it.
        let several = axes.iter().any(|axis| axis.key == "solver");
        match refused {
            Some(error) if candidates.is_empty() || !several => Err(error.into()),
            _ => Ok(candidates),
        }
    }
}

/// Three digits, as a person would write it.
fn rounded(value: f64) -> f64 {
    format!("{value:.2e}").parse().unwrap_or(value)
}

fn laid_over(base: &HeadParams, varied: &BTreeMap<String, Value>) -> Result<HeadParams, String> {
    let mut table = serde_json::to_value(base).map_err(|error| error.to_string())?;
    for (key, value) in varied {
        let known = table.as_object().map(|table| table.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
        if !known.contains(key) {
            return Err(format!("no key head.{key}; there is {}", known.join(", ")));
        }
        if ["validation_split", "split", "group"].contains(&key.as_str()) {
            return Err(format!("head.{key} decides what is held out; it cannot be chosen by what is held out"));
        }
        if ["knn_k", "knn_temperature"].contains(&key.as_str()) {
            return Err(format!("head.{key} is of --baselines and changes no head; there is nothing to choose"));
        }
        table[key] = value.clone();
    }
    let shown = |error: serde_json::Error| format!("{}: {error}", varied.keys().cloned().collect::<Vec<_>>().join(", "));
    serde_json::from_value(table).map_err(shown)
}

/// Candidates that differ by L2 alone share a path where the solver gains by it, strongest first; the others are fitted each alone.
pub(super) fn groups(candidates: &[Candidate]) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let without = |index: usize| HeadParams { l2: None, ..candidates[index].params.clone() };
    for (index, candidate) in candidates.iter().enumerate() {
        let is_of_path = |params: &HeadParams| matches!(params.solver, Solver::Lbfgs | Solver::Ridge) && params.l2.is_some();
        let same = groups.iter_mut().find(|group| {
            is_of_path(&candidate.params) && is_of_path(&candidates[group[0]].params) && without(group[0]) == without(index)
        });
        match same {
            Some(group) => group.push(index),
            None => groups.push(vec![index]),
        }
    }
    for group in &mut groups {
        group.sort_by(|&a, &b| candidates[b].params.l2.unwrap_or(0.0).total_cmp(&candidates[a].params.l2.unwrap_or(0.0)));
    }
    groups
}
