//! `tlpipe extract`.

use clap::Args;
use serde_json::json;

use super::options::{ImageArgs, PipelineArgs};
use super::say;
use super::shell::Shell;
use crate::extract::Slice;
use crate::pipeline::{self, Extracted, Goal, StageOutcome};
use crate::store::Dtype;

/// Arguments of `tlpipe extract`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  tlpipe extract pipelines/cifar10.toml\n  \
    tlpipe extract --data ./photos --model mobilenet_v2 --input-size 96 --features ./features\n  \
    tlpipe extract pipelines/cifar10.toml --shard 1/4        and 2/4, 3/4, 4/4 elsewhere: one store")]
pub struct ExtractArgs {
    #[command(flatten)]
    pipeline: PipelineArgs,
    #[command(flatten)]
    images: ImageArgs,
    /// Make the features anew, whatever is there.
    #[arg(long)]
    rebuild: bool,
    /// Only slice I of N of the images, by a hash of their ids: N jobs fill one store without talking to each other.
    #[arg(long, value_name = "I/N")]
    shard: Option<Slice>,
}

/// Runs stage 1.
pub fn main(args: &ExtractArgs, shell: &Shell<'_>) -> anyhow::Result<()> {
    args.pipeline.guard(&args.images, &["--features"])?;
    let pipeline = shell.pipeline(&args.pipeline, args.images.overrides())?;
    let extracted = pipeline::extract(&pipeline, &shell.context, args.rebuild, args.shard.map_or(Goal::Features, Goal::Slice))?;
    shell.output.result(&as_json(&extracted), || summary(&extracted))
}

/// `rows, new, reused, quarantined, seconds, images_per_second, provider, key`.
pub fn as_json(extracted: &Extracted) -> serde_json::Value {
    let manifest = &extracted.manifest;
    let figures = manifest.extraction.as_ref();
    let ran = extracted.outcome == StageOutcome::Ran;
    let rows: usize = manifest.shards.iter().map(|shard| shard.rows).sum();
    json!({
        "rows": rows,
        "new": figures.filter(|_| ran).map_or(0, |figures| figures.new),
        "changed": figures.filter(|_| ran).map_or(0, |figures| figures.changed),
        "removed": figures.filter(|_| ran).map_or(0, |figures| figures.removed),
        "reused": figures.filter(|_| ran).map_or(rows, |figures| figures.reused),
        "quarantined": manifest.quarantined,
        "seconds": figures.filter(|_| ran).map_or(0.0, |figures| figures.seconds),
        "images_per_second": figures.map(|figures| figures.images_per_second),
        "provider": figures.map(|figures| figures.provider.clone()),
        "precision": manifest.key_parts.precision,
        "drift": figures.and_then(|figures| figures.drift.clone()),
        "key": manifest.key,
        "views": manifest.key_parts.views,
        "dtype": manifest.key_parts.dtype,
        "up_to_date": !ran,
    })
}

/// One line on the store, a second one on what could not be used.
pub fn summary(extracted: &Extracted) -> String {
    let manifest = &extracted.manifest;
    let rows: usize = manifest.shards.iter().map(|shard| shard.rows).sum();
    let did = match (&manifest.extraction, extracted.outcome) {
        (Some(figures), StageOutcome::Ran) if figures.reused + figures.changed + figures.removed == 0 => {
            format!("{:.0} img/s on {}, {}", figures.images_per_second, figures.provider, say::seconds(figures.seconds))
        }
        (Some(figures), StageOutcome::Ran) => {
            let new = figures.new - figures.changed;
            format!(
                "{} new, {} changed, {} removed, {} reused, {}",
                say::count(new),
                say::count(figures.changed),
                say::count(figures.removed),
                say::count(figures.reused),
                say::seconds(figures.seconds)
            )
        }
        _ => "up to date".to_owned(),
    };
    let quarantined = match manifest.quarantined {
        0 => "none quarantined".to_owned(),
        some => format!("{} quarantined: see quarantine.parquet there", say::count(some)),
    };
    let views = manifest.key_parts.views.len();
    let stored = if views > 1 { format!(" x {views} views") } else { String::new() };
    let stored = if manifest.key_parts.dtype == Dtype::Float16 { format!("{stored}, float16") } else { stored };
    format!(
        "  store     {} · {} rows x {}{stored} · {} · {did} · {quarantined}",
        extracted.features.display(),
        say::count(rows),
        say::count(manifest.dimension),
        say::bytes(manifest.bytes()),
    )
}
