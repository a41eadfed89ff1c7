//! The learning rate of each step.

use std::f64::consts::PI;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::HeadValidParams;

/// How the learning rate goes on after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// The same for every step.
    #[default]
    Constant,
    /// Half a cosine from the full rate down to 0 at the end of the last epoch, a step at a time (Loshchilov & Hutter, SGDR, 2017).
    Cosine,
    /// Multiplied by `step_factor` every `step_epochs` epochs.
    Step,
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Constant => "constant",
            Self::Cosine => "cosine",
            Self::Step => "step",
        })
    }
}

/// The planned learning rates of a whole fit.
pub(super) struct Rates {
    full: f64,
    schedule: Schedule,
    /// Steps of the warm-up.
    warmup: u64,
    /// Steps of an epoch, and of all.
    epoch: u64,
    all: u64,
    step_epochs: u64,
    step_factor: f64,
}

impl Rates {
    /// Plans for so many training rows.
    pub(super) fn plan(params: &HeadValidParams, rows: usize) -> Self {
        let epoch = rows.div_ceil(params.batch_size) as u64;
        let all = epoch.saturating_mul(params.epochs as u64);
        Self {
            full: params.learning_rate,
            schedule: params.schedule.unwrap_or_default(),
            warmup: (params.warmup.unwrap_or(0.0) * all as f64).round() as u64,
            epoch,
            all,
            step_epochs: params.step_epochs() as u64,
            step_factor: params.step_factor(),
        }
    }

    /// The rate of a step; 0 is the first. The warm-up climbs in equal parts and reaches the full rate with its last step.
    pub(super) fn at(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.full * (step + 1) as f64 / self.warmup as f64;
        }
        match self.schedule {
            Schedule::Constant => self.full,
            Schedule::Cosine => {
                let way = (step - self.warmup) as f64 / (self.all - self.warmup).max(1) as f64;
                self.full * 0.5 * (1.0 + (PI * way.min(1.0)).cos())
            }
            Schedule::Step => {
                let drops = step / self.epoch.max(1) / self.step_epochs;
                self.full * self.step_factor.powi(i32::try_from(drops).unwrap_or(i32::MAX))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head::{HeadParams, ParamGuard as _};

    /// 10 epochs of 8 steps.
    fn rates(change: HeadParams) -> Vec<f64> {
        let params = HeadParams { batch_size: 4, learning_rate: 0.5, ..change }.check().unwrap();
        let rates = Rates::plan(&params, 30);
        (0..80).map(|step| rates.at(step)).collect()
    }

    #[test]
    fn a_constant_rate_is_the_rate_itself() {
        assert_eq!(rates(HeadParams::default()), [0.5; 80]);
    }

    #[test]
    fn a_warm_up_climbs_in_equal_parts() {
        let rates = rates(HeadParams { warmup: Some(0.25), ..HeadParams::default() });
        assert_eq!((rates[0], rates[9], rates[19], rates[20]), (0.025, 0.25, 0.5, 0.5));
    }

    #[test]
    fn a_cosine_falls_from_the_full_rate_towards_zero() {
        let rates = rates(HeadParams { schedule: Some(Schedule::Cosine), warmup: Some(0.25), ..HeadParams::default() });
        assert_eq!(rates[20], 0.5);
        assert!((rates[50] - 0.25).abs() < 1e-12, "half way: {}", rates[50]);
        assert!(rates[79] > 0.0 && rates[79] < 5e-4, "{}", rates[79]);
        assert!(rates[20..].windows(2).all(|pair| pair[1] < pair[0]));
    }

    #[test]
    fn steps_are_taken_between_epochs() {
        let step = HeadParams { schedule: Some(Schedule::Step), ..HeadParams::default() };
        let by_three = rates(HeadParams { step_epochs: Some(3), step_factor: Some(0.5), ..step.clone() });
        assert_eq!((by_three[0], by_three[23], by_three[24], by_three[47], by_three[48]), (0.5, 0.5, 0.25, 0.25, 0.125));
        // A third of ten epochs, rounded up, and a tenth.
        let open = rates(step);
        assert_eq!((open[31], open[32], open[64]), (0.5, 0.05, 0.5 * 0.1_f64.powi(2)));
    }
}
