//! `tlpipe bench`.

use clap::Args;

use super::options::{ImageArgs, PipelineArgs};
use super::say;
use super::shell::Shell;
use crate::extract::{Bench, Effort};
use crate::pipeline;

/// Arguments of `tlpipe bench`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  tlpipe bench pipelines/cifar10.toml\n  \
    tlpipe bench --data ./photos --model mobilenet_v2 --input-size 224 --json")]
pub struct BenchArgs {
    #[command(flatten)]
    pipeline: PipelineArgs,
    #[command(flatten)]
    images: ImageArgs,
    /// Rounds; the medians are reported.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Seconds of each of a round's measurements.
    #[arg(long, value_name = "S", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
}

/// Measures stage 1.
pub fn main(args: &BenchArgs, shell: &Shell<'_>) -> anyhow::Result<()> {
    let pipeline = shell.pipeline(&args.pipeline, args.images.overrides())?;
    let effort = Effort { rounds: args.rounds as usize, seconds: f64::from(args.seconds) };
    let bench = pipeline::bench(&pipeline, &shell.context, effort)?;
    shell.output.result(&bench, || summary(&bench))
}

fn summary(bench: &Bench) -> String {
    let rate = |rate: f64| format!("{rate:.0} img/s");
    let share = |share: f64| format!("{:.1} %", share * 100.0);
    let Bench { threads, batch, provider, .. } = bench;
    let limits = say::table(
        &["", "images", "pipeline's share"],
        [
            vec!["the network alone".into(), rate(bench.ceiling_images_per_second), share(bench.of_ceiling)],
            vec!["every step alone, summed".into(), rate(bench.ideal_images_per_second), share(bench.of_ideal)],
            vec!["the whole pipeline".into(), rate(bench.images_per_second), String::new()],
        ],
    );
    let micro = |seconds: f64| format!("{:.1}", seconds * 1e6);
    let (alone, stages) = (&bench.alone, &bench.stages);
    let steps = [
        ("read and hash", None, stages.read),
        ("decode", Some(alone.decode), stages.decode),
        ("resize", Some(alone.resize), stages.resize),
        ("normalize", Some(alone.normalize), stages.normalize),
        ("network", Some(alone.infer), stages.infer),
        ("write", None, stages.write),
        ("wait", None, stages.wait),
    ];
    let steps = steps.map(|(name, alone, whole)| vec![name.into(), alone.map_or_else(|| "-".into(), micro), micro(whole)]);
    format!(
        "{limits}\n\n{}\n\n{provider}, {threads} threads, batch {batch}, medians of {} rounds; start-up {}",
        say::table(&["µs an image", "alone, one thread", "in the pipeline"], steps),
        bench.rounds,
        say::seconds(bench.startup_seconds)
    )
}
