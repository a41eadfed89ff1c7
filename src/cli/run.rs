//! `tlpipe run`.

use std::time::Instant;

use clap::Args;
use serde_json::json;

use super::options::{HeadArgs, ImageArgs, PipelineArgs, Usage};
use super::say;
use super::shell::Shell;
use super::{extract, fit_head, report, summary};
use crate::head::Solver;
use crate::pipeline::{self, Goal, Override, ReportOptions, StageOutcome};

/// Arguments of `tlpipe run`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:\n  tlpipe run pipelines/quickstart.toml\n  tlpipe run pipelines/cifar10.toml --input-size 160\n  \
    tlpipe run --data ./photos --features features/photos --run runs/photos\n  \
    tlpipe run --data ./photos --layers multi-all --no-cache        one fit, no features left behind"
)]
pub struct RunArgs {
    #[command(flatten)]
    pipeline: PipelineArgs,
    #[command(flatten)]
    images: ImageArgs,
    #[command(flatten)]
    head: HeadArgs,
    /// Make the features anew, whatever is there.
    #[arg(long)]
    rebuild: bool,
    /// Keep no features: the training rows are summed up as they come, which is all that least squares needs, and the others go once
    /// the run is written (solver ridge) [output.cache = false].
    #[arg(long, conflicts_with = "rebuild")]
    no_cache: bool,
}

/// Runs every stage that is out of date.
pub fn main(args: &RunArgs, shell: &Shell<'_>) -> anyhow::Result<()> {
    let started = Instant::now();
    let (context, output) = (&shell.context, shell.output);
    let uncached = args.no_cache.then(|| Override { key: "output.cache".into(), value: false.into() });
    let flags = args.images.overrides().into_iter().chain(args.head.overrides()).chain(uncached);
    args.pipeline.guard(&args.images, &["--features", "--run"])?;
    let pipeline = shell.pipeline(&args.pipeline, flags)?;
    let keeps = pipeline.settings.output.keeps_features();
    if args.rebuild && !keeps {
        let text = "--rebuild makes the features anew, and output.cache = false keeps none: leave the flag out";
        return Err(Usage(text.to_owned()).into());
    }
    let tell = |text: String| if output.json { Ok(()) } else { say::line(&text) };
    let tell_stage = |text: String| if output.quiet { Ok(()) } else { tell(text) };

    let (uncached, cached);
    let (used, extracted, fit, extract_seconds) = if !keeps {
        uncached = pipeline::fit_uncached(&pipeline, context)?;
        let seconds = uncached.extracted.manifest.extraction.as_ref().map_or(0.0, |figures| figures.seconds);
        (&uncached.pipeline, &uncached.extracted, &uncached.fit, seconds)
    } else {
        let extracted = pipeline::extract(&pipeline, context, args.rebuild, Goal::Head)?;
        let seconds = started.elapsed().as_secs_f64();
        tell_stage(stage("extract", extracted.outcome, seconds))?;
        tell(extract::summary(&extracted))?;
        cached = (extracted, fit_head::fit(&pipeline, shell, false)?.without_features());
        (&pipeline, &cached.0, &cached.1, seconds)
    };
    let fit_seconds = started.elapsed().as_secs_f64() - extract_seconds;
    tell_stage(stage("fit-head", fit.outcome, fit_seconds))?;
    tell(fit_head::summary(&pipeline, fit))?;

    let report_started = Instant::now();
    let options = ReportOptions { always: false, ..ReportOptions::default() };
    let reported = pipeline::report(used, context, &options)?;
    let report_seconds = report_started.elapsed().as_secs_f64();
    tell_stage(stage("report", reported.outcome, report_seconds))?;
    tell(report::said(&reported, &std::io::stdout()))?;
    if let Some(facts) = &reported.facts {
        tell_stage(format!("\n{}\n", summary::text(facts)))?;
    }

    let seconds = started.elapsed().as_secs_f64();
    let idle = [extracted.outcome, fit.outcome, reported.outcome].iter().all(|outcome| *outcome == StageOutcome::UpToDate);
    let result = json!({
        "extract": extract::as_json(extracted),
        "fit_head": fit.metrics,
        "report": report::paths(&reported),
        "seconds": { "extract": extract_seconds, "fit_head": fit_seconds, "report": report_seconds, "all": seconds },
        "up_to_date": idle,
    });
    output.result(&result, || {
        if idle {
            return format!("Everything is up to date ({}).", say::seconds(seconds));
        }
        if output.quiet {
            return format!("{} in all.", say::seconds(seconds));
        }
        if !keeps {
            let text = "The features are not kept; with output.cache = true another head needs no images.";
            return format!("{} in all. {text}", say::seconds(seconds));
        }
        // A setting that the solver has.
        let other = match pipeline.settings.head.solver {
            Solver::Adam => "--set head.learning_rate=3e-3",
            Solver::Lbfgs | Solver::Ridge | Solver::Linfa => "--set head.l2=1e-1",
        };
        let hint = shell.hint("fit-head", &pipeline.run.join("pipeline.toml"), other);
        format!("{} in all. Another head on these features takes a second: {hint}", say::seconds(seconds))
    })
}

fn stage(name: &str, outcome: StageOutcome, seconds: f64) -> String {
    match outcome {
        StageOutcome::Ran => format!("{name:<9} done in {}", say::seconds(seconds)),
        StageOutcome::UpToDate => format!("{name:<9} up to date"),
    }
}
