//! `tlpipe fit-head`.

use clap::Args;

use super::options::{HeadArgs, PipelineArgs};
use super::say;
use super::shell::Shell;
use crate::head::Solver;
use crate::pipeline::{self, Fit, Pipeline, Shots, StageOutcome};
use crate::run::{BaselineSplit, EpochRecord, SplitScore};

/// Arguments of `tlpipe fit-head`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  tlpipe fit-head pipelines/cifar10.toml\n  \
    tlpipe fit-head pipelines/cifar10.toml --epochs 30 --learning-rate 3e-3 --run runs/longer\n  \
    tlpipe fit-head pipelines/cifar10.toml --epochs 100 --schedule cosine --weight-decay 4e-3 --patience 5\n  \
    tlpipe fit-head --features ./features --run ./run --solver linfa --set head.standardize=true\n  \
    tlpipe fit-head pipelines/cifar10.toml --baselines --shots 1,5,10,50")]
pub struct FitHeadArgs {
    #[command(flatten)]
    pipeline: PipelineArgs,
    #[command(flatten)]
    head: HeadArgs,
    /// Score classifiers that need no fitting beside the head: majority, nearest class mean, 20 nearest neighbours.
    #[arg(long)]
    baselines: bool,
    /// Also fit the head on so many training images of each class, as in 1,5,10,50.
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
    shots: Vec<u32>,
    /// How often each of --shots is drawn.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000), requires = "shots")]
    repeats: u32,
}

/// Runs stage 2, whether or not anything has changed: who asks for a head gets one.
pub fn main(args: &FitHeadArgs, shell: &Shell<'_>) -> anyhow::Result<()> {
    let pipeline = shell.pipeline(&args.pipeline, args.head.overrides())?;
    let mut fit = fit(&pipeline, shell, true)?;
    if args.baselines {
        pipeline::baselines(&pipeline, &shell.context, &mut fit.metrics)?;
    }
    let mut result = serde_json::to_value(&fit.metrics)?;
    let numbers: Vec<usize> = args.shots.iter().map(|&shots| shots as usize).collect();
    let shots = if numbers.is_empty() {
        Vec::new()
    } else {
        let shots = pipeline::few_shots(&pipeline, &shell.context, &numbers, args.repeats as usize)?;
        result["shots"] = serde_json::to_value(&shots)?;
        shots
    };
    shell.output.result(&result, || {
        let extras = [baseline_table(&fit), shot_table(&shots)].into_iter().flatten();
        std::iter::once(summary(&pipeline, &fit)).chain(extras).collect::<Vec<_>>().join("\n\n")
    })
}

/// The head among the classifiers that need no fitting.
fn baseline_table(fit: &Fit) -> Option<String> {
    let metrics = &fit.metrics;
    let shown = |score: Option<(f64, [f64; 2])>| {
        score.map_or_else(|| "-".to_owned(), |(accuracy, [low, high])| format!("{accuracy:.4} ({low:.3} to {high:.3})"))
    };
    let mut rows: Vec<Vec<String>> = metrics
        .baselines
        .iter()
        .map(|baseline| {
            let of = |split: &Option<BaselineSplit>| shown(split.as_ref().map(|split| (split.accuracy, split.accuracy_interval)));
            vec![baseline.name.replace('_', " "), of(&baseline.validation), of(&baseline.test), say::seconds(baseline.seconds)]
        })
        .collect();
    let of = |split: &Option<SplitScore>| shown(split.as_ref().map(|split| (split.accuracy, split.accuracy_interval)));
    rows.push(vec!["this head".into(), of(&metrics.validation), of(&metrics.test), say::seconds(metrics.fit_seconds)]);
    (rows.len() > 1).then(|| say::table(&["classifier", "hold-out (95 %)", "test (95 %)", "time"], rows))
}

fn shot_table(shots: &[Shots]) -> Option<String> {
    let split = &shots.first()?.split;
    let split = say::split(split);
    let rows = shots.iter().map(|shots| {
        let interval = shots.interval.map_or_else(|| "-".to_owned(), |[low, high]| format!("{low:.3} to {high:.3}"));
        vec![say::count(shots.shots), format!("{:.4}", shots.accuracy), interval, shots.repeats.len().to_string()]
    });
    Some(say::table(&["images a class", &format!("{split} accuracy"), "95 %", "repeats"], rows))
}

/// Fits with a line an epoch; unless `always`, only when something has changed.
pub fn fit(pipeline: &Pipeline, shell: &Shell<'_>, always: bool) -> anyhow::Result<Fit> {
    // Only Adam counts epochs; another solver tells once, at its end.
    let epochs = if pipeline.settings.head.solver == Solver::Adam { pipeline.settings.head.epochs } else { 1 };
    let mut show = |record: &EpochRecord| {
        shell.progress.note(&epoch_line(record, epochs));
        shell.context.flow()
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
