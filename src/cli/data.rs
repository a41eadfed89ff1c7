//! `tlpipe data`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::options::ColumnArgs;
use super::say;
use super::shell::Shell;
use crate::assets::Finder;
use crate::dataset::synth;
use crate::pipeline::{Contents, Context, open_dataset};

/// Subcommands of `tlpipe data`.
#[derive(Clone, Debug, Subcommand)]
pub enum DataCommand {
    /// Data sets that tlpipe knows by name, and whether they are at hand.
    #[command(after_help = "Examples:\n  tlpipe data list --json")]
    List,
    /// Find a data set or download it.
    #[command(after_help = "Examples:\n  tlpipe data fetch cifar10")]
    Fetch {
        /// Its name, as `tlpipe data list` shows it.
        name: String,
    },
    /// What tlpipe sees in a source: kind, splits, classes, warnings.
    Inspect(InspectArgs),
    /// Draw the quickstart's images into a folder.
    Synth(SynthArgs),
}

/// Arguments of `tlpipe data inspect`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  tlpipe data inspect ./photos\n  \
    tlpipe data inspect 's3://bucket/shards/train-*.tar' --label-column species")]
pub struct InspectArgs {
    /// A data set's name, a path, or an address.
    source: String,
    #[command(flatten)]
    columns: ColumnArgs,
}

/// Arguments of `tlpipe data synth`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:\n  tlpipe data synth -o drawn\n  tlpipe data synth -o small --train 200 --test 50 --side 32 --seed 1"
)]
pub struct SynthArgs {
    /// Folder to write to.
    #[arg(short, long, value_name = "DIR")]
    out: PathBuf,
    /// Seed: the same seed draws the same images.
    #[arg(long, default_value_t = synth::SynthParams::default().seed)]
    seed: u64,
    /// Images to train on.
    #[arg(long, default_value_t = synth::SynthParams::default().train)]
    train: u64,
    /// Images to test on.
    #[arg(long, default_value_t = synth::SynthParams::default().test)]
    test: u64,
    /// Side of an image, pixels.
    #[arg(long, default_value_t = synth::SynthParams::default().side)]
    side: u32,
}

/// Runs a subcommand.
pub fn main(command: &DataCommand, shell: &Shell<'_>) -> anyhow::Result<()> {
    let (context, output) = (&shell.context, shell.output);
    match command {
        DataCommand::List => list(context, output),
        DataCommand::Fetch { name } => {
            let located = Finder::new(context.search.clone())?.fetch_dataset(name, context.observe)?;
            let paths: Vec<String> = located.paths.iter().map(|path| path.display().to_string()).collect();
            output.result(&json!({ "name": name, "paths": paths, "how": located.how }), || {
                format!("{name} ({})\n  {}", located.how, paths.join("\n  "))
            })
        }
        DataCommand::Inspect(args) => inspect(args, context, output),
        DataCommand::Synth(args) => {
            let params = synth::SynthParams { seed: args.seed, train: args.train, test: args.test, side: args.side };
            synth::write(&params, &args.out)?;
            output.result(&json!({ "path": args.out, "train": args.train, "test": args.test, "seed": args.seed }), || {
                let images = args.train + args.test;
                format!("{}: {images} images drawn (seed {})", args.out.display(), args.seed)
            })
        }
    }
}

fn list(context: &Context<'_>, output: say::Output) -> anyhow::Result<()> {
    let finder = Finder::new(context.search.clone())?;
    let sets: Vec<_> = finder.datasets().iter().map(|card| (card, finder.dataset_at_hand(card).map(|found| found.how))).collect();
    let json: Vec<_> = sets
        .iter()
        .map(|(card, found)| json!({ "name": card.name, "title": card.title, "licence": card.licence, "at_hand": found }))
        .collect();
    output.result(&json!({ "data": json }), || {
        let drawn = [synth::NAME, "drawn by tlpipe itself", "Apache-2.0", "yes"].map(str::to_owned).to_vec();
        let known = sets.iter().map(|(card, found)| {
            vec![card.name.clone(), card.title.clone(), card.licence.clone(), found.clone().unwrap_or_else(|| "no".into())]
        });
        say::table(&["name", "what", "licence", "at hand"], known.chain([drawn]))
    })
}

fn inspect(args: &InspectArgs, context: &Context<'_>, output: say::Output) -> anyhow::Result<()> {
    let dataset = open_dataset(&args.columns.of(Some(args.source.clone())), context)?;
    let contents = Contents::of(&args.source, &dataset);
    output.result(&contents, || {
        let mut lines = vec![format!("{} · {}", contents.source, contents.kind)];
        let split = |name: &str, rows| format!("  {:<12} {} images", say::printable(name), say::count(rows));
        lines.extend(contents.splits.iter().map(|found| split(&found.name, found.rows)));
        lines.push(format!("  {} classes: {}", contents.classes.len(), some_of(&contents.classes)));
        lines.extend(contents.warnings.iter().map(|warning| format!("  warning: {warning}")));
        lines.join("\n")
    })
}

/// The first few of many names.
fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 12;
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| say::printable(name)).collect();
    let shown = shown.join(", ");
    match names.len() {
        0..=SHOWN => shown,
        many => format!("{shown}, and {} more", many - SHOWN),
    }
}
