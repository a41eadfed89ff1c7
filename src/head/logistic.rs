//! `linfa-logistic` as a solver: multinomial logistic regression with L2, by L-BFGS.
//!
//! In f32 linfa-logistic 0.8.1 returns all-zero weights, and on unscaled features it can stall or panic (rust-ml/linfa #334,
//! argmin #400). So the training rows are copied to f64 (8 bytes a value: 410 MB for 40,000 x 1280) and always standardized, the
//! iterations are bounded, a panic becomes an error, and the answer is checked before it is believed.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use linfa::DatasetBase;
use linfa::traits::Fit as _;
use linfa_logistic::MultiLogisticRegression;
use ndarray::{Array1, Array2, Axis, s};
use rayon::prelude::*;

use super::fit::{OnEpoch, Problem, Solved, Weights};
use super::lbfgs::{UNSEEN, slope};
use super::tally::closed_record;
use super::{HeadError, HeadValidParams};

/// Norm of the mean gradient at which the fit is done.
const TOLERANCE: f64 = 1e-6;

/// Largest entry of the gradient above which the answer is not the optimum.
const UNCONVERGED: f64 = 1e-4;

/// By how much rounding to f32 may raise the training loss.
const SLACK: f64 = 1e-5;

/// Fits from a zero kernel. There are no epochs to report: the history has one record, the fitted head's.
pub(super) fn solve(params: &HeadValidParams, problem: &Problem<'_>, on_epoch: OnEpoch<'_>) -> Result<Solved, HeadError> {
    let start = Instant::now();
    let failed = |reason: String| HeadError::Linfa { reason };
    let rows = problem.train.len() as f64;
    let targets: Array1<usize> = problem.train.iter().map(|&row| problem.labels[row]).collect();
    let present: Vec<f64> = problem.shares().into_iter().filter(|&share| share > 0.0).collect();
    let dataset = DatasetBase::new(records(problem), targets);
    // linfa minimizes the sum over the rows.
    let solver = MultiLogisticRegression::default()
        .alpha(params.l2() * rows)
        .gradient_tolerance(TOLERANCE * rows)
        .max_iterations(params.max_iterations())
        .initial_params(start_from(problem.features.width(), &present));
    let fitted = catch_unwind(AssertUnwindSafe(|| solver.fit(&dataset)))
        .map_err(|panic| failed(format!("linfa-logistic panicked: {}", said(&*panic))))?
        .map_err(|error| failed(error.to_string()))?;

    let mut weights = Weights {
        kernel: Array2::zeros((problem.features.width(), problem.classes)),
        bias: Array1::from_elem(problem.classes, UNSEEN as f32),
    };
    for (column, &class) in fitted.classes().iter().enumerate() {
        weights.kernel.slice_mut(s![.., class]).assign(&fitted.params().column(column).mapv(|value| value as f32));
        weights.bias[class] = fitted.intercept()[column] as f32;
    }
    if !weights.kernel.iter().chain(&weights.bias).all(|value| value.is_finite()) {
        return Err(failed("the weights are not finite".into()));
    }
    if fitted.params().iter().all(|&value| value == 0.0) {
        return Err(failed("the weights are all zero; if the features are not constant, this is a fault of the solver".into()));
    }
    let record = closed_record(&weights, problem, start)?;
    let chance = -present.iter().map(|share| share * share.ln()).sum::<f64>();
    if record.loss.is_nan() || record.loss > chance + SLACK {
        return Err(failed(format!("the training loss is {}, worse than the class shares alone ({chance})", record.loss)));
    }
    // There is nothing left to break off.
    let _ = on_epoch(&record);
    let slope = slope(problem, &weights, params.l2());
    let warnings = (slope > UNCONVERGED).then(|| {
        format!(
            "linfa-logistic ended by a rule of its own with a gradient of {slope:.1e}, not at the optimum; raise head.l2, or use \
             head.solver = \"lbfgs\""
        )
    });
    let warnings = warnings.into_iter().collect();
    Ok(Solved { warnings, converged: Some(slope <= UNCONVERGED), ..Solved::new(weights, vec![record], params.l2()) })
}

/// Zero kernel, and the bias that is best for it: from a zero bias the first step of an unbalanced set is along the bias, far
/// too long, and the line search takes a hundred evaluations to come back (measured).
fn start_from(width: usize, shares: &[f64]) -> Array2<f64> {
    let mean = shares.iter().map(|share| share.ln()).sum::<f64>() / shares.len() as f64;
    let mut start = Array2::zeros((width + 1, shares.len()));
    start.row_mut(width).iter_mut().zip(shares).for_each(|(bias, share)| *bias = share.ln() - mean);
    start
}

/// The training rows in f64.
fn records(problem: &Problem<'_>) -> Array2<f64> {
    let width = problem.features.width();
    let mut records = Array2::zeros((problem.train.len(), width));
    records.axis_iter_mut(Axis(0)).into_par_iter().zip(problem.train).for_each_init(
        || vec![0.0_f32; width],
        |row, (mut record, &index)| {
            problem.features.copy_row(index, row);
            record.iter_mut().zip(&*row).for_each(|(record, &value)| *record = f64::from(value));
        },
    );
    records
}

/// The message of a panic.
fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}
