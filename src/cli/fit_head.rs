//! `tlpipe fit-head`.

use clap::Args;

use super::options::{HeadArgs, PipelineArgs};
use super::say;
use super::shell::Shell;
use crate::head::Solver;
use crate::pipeline::{self, Axis, Fit, Pipeline, Plan, Shots, StageOutcome};
use crate::run::Depth;
use crate::run::{BaselineSplit, EpochRecord, SplitScore};

/// Arguments of `tlpipe fit-head`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  tlpipe fit-head pipelines/cifar10.toml\n  \
    tlpipe fit-head pipelines/cifar10.toml --epochs 30 --learning-rate 3e-3 --run runs/longer\n  \
    tlpipe fit-head pipelines/cifar10.toml --epochs 100 --schedule cosine --weight-decay 4e-3 --patience 5\n  \
    tlpipe fit-head --features ./features --run ./run --solver ridge\n  \
    tlpipe fit-head pipelines/cifar10.toml --sweep --solver lbfgs\n  \
    tlpipe fit-head pipelines/cifar10.toml --sweep --grid solver=lbfgs,ridge --grid l2=1e-3,1e-2,1e-1 --folds 5\n  \
    tlpipe fit-head pipelines/cifar10.toml --baselines --shots 1,5,10,50\n  \
    tlpipe fit-head pipelines/cifar10-multi.toml --depths")]
pub struct FitHeadArgs {
    #[command(flatten)]
    pipeline: PipelineArgs,
    #[command(flatten)]
    head: HeadArgs,
    /// Try many settings on the hold-out and fit the best again on all training rows: L2, for adam learning rate and L2, or --grid.
    /// A key that is set by a flag keeps its value. Stopped, the same command goes on from there.
    #[arg(long)]
    sweep: bool,
    /// What --sweep tries for a key of [head], as in l2=1e-4,1e-3,1e-2 or solver=adam,ridge or, with --draws, l2=1e-5..1; repeatable.
    #[arg(long, value_name = "KEY=VALUES", value_parser = Axis::parse, requires = "sweep")]
    grid: Vec<Axis>,
    /// Draw so many points of the grid at random instead of trying all of it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000), requires = "sweep")]
    draws: Option<u32>,
    /// Choose by stratified cross-validation with so many folds instead of the hold-out.
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(2..), requires = "sweep")]
    folds: Option<u32>,
    /// Bring the run's ridge head up to date with the feature store, reading only the rows that came, went or were relabelled.
    #[arg(long, conflicts_with_all = ["sweep", "grid", "draws", "folds", "baselines", "shots", "depths"])]
    update: bool,
    /// Score classifiers that need no fitting beside the head: majority, nearest class mean, nearest neighbours [head.knn_k,
    /// head.knn_temperature].
    #[arg(long)]
    baselines: bool,
    /// Also fit the head on so many training images of each class, as in 1,5,10,50.
    #[arg(long, value_name = "N,N,…", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
    shots: Vec<u32>,
    /// Also fit the head on each depth of the network alone, where the features are of several (--layers).
    #[arg(long)]
    depths: bool,
    /// How often each of --shots is drawn.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000), requires = "shots")]
    repeats: u32,
}

/// Runs stage 2, whether or not anything has changed: who asks for a head gets one.
pub fn main(args: &FitHeadArgs, shell: &Shell<'_>) -> anyhow::Result<()> {
    let pipeline = shell.pipeline(&args.pipeline, args.head.overrides())?;
    let mut fit = if args.update {
        pipeline::update(&pipeline, &shell.context)?
    } else if args.sweep {
        let (draws, folds) = (args.draws.map(|draws| draws as usize), args.folds.map(|folds| folds as usize));
        let fixed = args.head.overrides().into_iter().map(|flag| flag.key).chain(args.pipeline.set_keys());
        let fixed = fixed.filter_map(|key| key.strip_prefix("head.").map(str::to_owned)).collect();
        pipeline::sweep(&pipeline, &shell.context, &Plan { axes: args.grid.clone(), draws, folds, fixed })?
    } else {
        fit(&pipeline, shell, true)?
    };
    if args.baselines {
        pipeline::baselines(&pipeline, &shell.context, &mut fit)?;
    }
    let mut result = serde_json::to_value(&fit.metrics)?;
    let numbers: Vec<usize> = args.shots.iter().map(|&shots| shots as usize).collect();
    let shots = if numbers.is_empty() {
        Vec::new()
    } else {
        let shots = pipeline::few_shots(&pipeline, &shell.context, &mut fit, &numbers, args.repeats as usize)?;
        result["shots"] = serde_json::to_value(&shots)?;
        shots
    };
    let depths = if args.depths { pipeline::depths(&pipeline, &shell.context, &mut fit)? } else { Vec::new() };
    if args.depths {
        result["depths"] = serde_json::to_value(&depths)?;
    }
    shell.output.result(&result, || {
        let extras = [baseline_table(&fit), shot_table(&shots), depth_table(&depths)].into_iter().flatten();
        sweep_table(&fit).into_iter().chain([summary(&pipeline, &fit)]).chain(extras).collect::<Vec<_>>().join("\n\n")
    })
}

/// The best of what was tried.
fn sweep_table(fit: &Fit) -> Option<String> {
    const SHOWN: usize = 10;
    let trials = &fit.metrics.sweep.as_ref()?.trials;
    let keys: Vec<&String> = trials.first()?.settings.keys().collect();
    let header: Vec<&str> = keys.iter().map(|key| key.as_str()).chain(["accuracy (95 %)", "loss", "time"]).collect();
    let rows = trials.iter().take(SHOWN).map(|trial| {
        let accuracy = match (trial.accuracy, trial.accuracy_interval) {
            (Some(accuracy), Some([low, high])) => format!("{accuracy:.4} ({low:.3} to {high:.3})"),
            _ => "failed".into(),
        };
        let loss = trial.loss.map_or_else(|| "-".into(), |loss| format!("{loss:.4}"));
        keys.iter().map(|key| trial.setting(key)).chain([accuracy, loss, say::seconds(trial.seconds)]).collect()
    });
    let table = say::table(&header, rows);
    let more = trials.len().saturating_sub(SHOWN);
    Some(if more > 0 { format!("{table}\n  … {more} more in sweep.csv\n") } else { format!("{table}\n") })
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
            let name = baseline.name.replace('_', " ");
            let name = baseline.k.map_or_else(|| name.clone(), |k| format!("{k} {name}"));
            vec![name, of(&baseline.validation), of(&baseline.test), say::seconds(baseline.seconds)]
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

fn depth_table(depths: &[Depth]) -> Option<String> {
    let shown = |accuracy: Option<f64>| accuracy.map_or_else(|| "-".to_owned(), |accuracy| format!("{accuracy:.4}"));
    let rows = depths.iter().map(|depth| {
        let Depth { tensor, width, used, validation_accuracy, test_accuracy, .. } = depth;
        let used = format!("{} of {}", say::count(*used), say::count(*width));
        vec![tensor.clone(), used, shown(*validation_accuracy), shown(*test_accuracy)]
    });
    (!depths.is_empty())
        .then(|| say::table(&["a head on this depth alone", "features used by the run's", "hold-out", "test"], rows))
}

/// Fits with a line an epoch; unless `always`, only when something has changed.
pub fn fit(pipeline: &Pipeline, shell: &Shell<'_>, always: bool) -> anyhow::Result<Fit> {
    let mut show = |record: &EpochRecord| {
        if pipeline.settings.head.solver == Solver::Adam {
            shell.progress.note(&epoch_line(record, pipeline.settings.head.epochs));
        }
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
    if metrics.converged == Some(false) {
        lines.push(format!("  optimum   not reached by {} in {} iterations", metrics.solver, say::count(metrics.epochs)));
    }
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
