//! `tlpipe fit-head`.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use clap::Args;

use super::options::{HeadArgs, PipelineArgs};
use super::say;
use super::shell::Shell;
use crate::head::Solver;
use crate::pipeline::{self, Fit, Pipeline, StageOutcome};
use crate::run::{EpochRecord, SplitScore};

/// Arguments of `tlpipe fit-head`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  tlpipe fit-head pipelines/cifar10.toml\n  \
    tlpipe fit-head pipelines/cifar10.toml --epochs 30 --learning-rate 3e-3 --run runs/longer\n  \
    tlpipe fit-head --features ./features --run ./run --solver linfa --set head.standardize=true")]
pub struct FitHeadArgs {
    #[command(flatten)]
    pipeline: PipelineArgs,
    #[command(flatten)]
    head: HeadArgs,
}

/// Runs stage 2, whether or not anything has changed: who asks for a head gets one.
pub fn main(args: &FitHeadArgs, shell: &Shell<'_>) -> anyhow::Result<()> {
    let pipeline = shell.pipeline(&args.pipeline, args.head.overrides())?;
    let fit = fit(&pipeline, shell, true)?;
    shell.output.result(&fit.metrics, || summary(&pipeline, &fit))
}

/// Fits with a line an epoch; unless `always`, only when something has changed.
pub fn fit(pipeline: &Pipeline, shell: &Shell<'_>, always: bool) -> anyhow::Result<Fit> {
    // Only Adam counts epochs; another solver tells once, at its end.
    let epochs = if pipeline.settings.head.solver == Solver::Adam { pipeline.settings.head.epochs } else { 1 };
    let mut show = |record: &EpochRecord| {
        shell.progress.note(&epoch_line(record, epochs));
        if shell.context.stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    Ok(pipeline::fit_head(pipeline, &shell.context, always, &mut show)?)
}

fn epoch_line(record: &EpochRecord, epochs: usize) -> String {
    let validation = match (record.val_loss, record.val_accuracy) {
        (Some(loss), Some(accuracy)) => format!("  val_loss {loss:.4}  val_accuracy {accuracy:.4}"),
        _ => String::new(),
    };
    let width = epochs.to_string().len();
    format!(
        "  epoch {:>width$}/{epochs}  loss {:.4}  accuracy {:.4}{validation}  {}",
        record.epoch,
        record.loss,
        record.accuracy,
        say::seconds(record.seconds)
    )
}

/// A line on each scored split.
pub fn summary(pipeline: &Pipeline, fit: &Fit) -> String {
    let metrics = &fit.metrics;
    let line = |name: &str, score: &Option<SplitScore>| {
        let score = score.as_ref()?;
        let [low, high] = score.accuracy_interval;
        Some(format!(
            "  {name:<9} accuracy {:.4} (95 %: {low:.3} to {high:.3})  loss {:.4}  macro F1 {:.4}  ECE {:.3}  {} rows",
            score.accuracy,
            score.loss,
            score.averages.macro_f1,
            score.calibration.ece,
            say::count(score.rows)
        ))
    };
    let mut lines: Vec<String> =
        [line("hold-out", &metrics.validation), line("test", &metrics.test)].into_iter().flatten().collect();
    lines.push(match fit.outcome {
        StageOutcome::Ran => format!(
            "  head      {} · fit {}, features read in {}",
            pipeline.run.join("head.safetensors").display(),
            say::seconds(metrics.fit_seconds),
            say::seconds(metrics.load_seconds)
        ),
        StageOutcome::UpToDate => format!("  head      {} · up to date", pipeline.run.join("head.safetensors").display()),
    });
    lines.join("\n")
}
