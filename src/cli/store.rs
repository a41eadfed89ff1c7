//! `tlpipe store`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::options::{BackboneArgs, file_of};
use super::say;
use super::shell::{Shell, take_threads};
use crate::pipeline::{self, Override, Settings};
use crate::store::adopt::{AdoptOptions, Adopted, lines};

/// Subcommands of `tlpipe store`.
#[derive(Clone, Debug, Subcommand)]
pub enum StoreCommand {
    /// Make a feature store of what a cluster engine wrote with tlpipe embed.
    Adopt(Box<AdoptArgs>),
}

/// Arguments of `tlpipe store adopt`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "The folder holds Parquet files in any order. Columns, key, ids and numbers are checked; a row that is there twice with \
    the same bits is taken once; rows with an error go to quarantine.parquet. The store is sorted by id and appears whole or not at all. \
    Memory does not grow with the rows; the disk holds them twice more while it works.\n\n\
    Examples:\n  tlpipe store adopt spark-out                             Spark says by _SUCCESS that it was through\n  \
    tlpipe store adopt ray-out --expect-rows 60000 --features features/photos\n  \
    tlpipe store adopt ray-out --ids ids.txt --model mobilenet_v2 --input-size 96"
)]
pub struct AdoptArgs {
    /// The folder that the engine wrote to.
    dir: PathBuf,
    /// Pipeline file whose [backbone] the rows must have been made with.
    pipeline: Option<PathBuf>,
    /// Folder of the store; left out, the engine's own, whose files are removed once the store is whole [output.features].
    #[arg(long, value_name = "DIR")]
    features: Option<PathBuf>,
    /// Images that went in: fewer are an error, and more.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    expect_rows: Option<u64>,
    /// Text file with the id of each image that went in, one a line.
    #[arg(long, value_name = "FILE")]
    ids: Option<PathBuf>,
    /// Take what there is where images are missing.
    #[arg(long)]
    allow_missing: bool,
    /// Text file with the name of a class in each line; the first is label 0.
    #[arg(long, value_name = "FILE")]
    classes: Option<PathBuf>,
    /// Set any key of the pipeline file, as in `--set backbone.resize=crop`.
    #[arg(long, value_name = "KEY=VALUE", value_parser = Override::parse)]
    set: Vec<Override>,
    #[command(flatten)]
    backbone: BackboneArgs,
}

/// Runs a subcommand.
pub fn main(command: &StoreCommand, shell: &Shell<'_>) -> anyhow::Result<()> {
    match command {
        StoreCommand::Adopt(args) => adopt(args, shell),
    }
}

fn adopt(args: &AdoptArgs, shell: &Shell<'_>) -> anyhow::Result<()> {
    let flags: Vec<Override> = args.backbone.overrides().chain(args.set.iter().cloned()).collect();
    let usual = Settings::load(file_of(args.pipeline.as_deref()).as_deref(), &flags)?;
    take_threads(shell.machine()?.1);
    let is_named = args.pipeline.is_some() || !flags.is_empty();
    let options = AdoptOptions {
        features: args.features.clone(),
        rows: args.expect_rows.map(usize::try_from).transpose()?,
        ids: args.ids.as_deref().map(lines).transpose()?,
        allow_missing: args.allow_missing,
        classes: args.classes.as_deref().map(lines).transpose()?,
    };
    let adopted = pipeline::adopt(&args.dir, &options, is_named.then_some(&usual), &usual, &shell.context)?;
    let rows: usize = adopted.manifest.shards.iter().map(|shard| shard.rows).sum();
    let manifest = &adopted.manifest;
    let json = json!({
        "features": adopted.features, "rows": rows, "repeated": adopted.repeated, "missing": adopted.missing,
        "quarantined": manifest.quarantined, "classes": manifest.classes.len(), "key": manifest.key, "bytes": manifest.bytes(),
    });
    shell.output.result(&json, || summary(&adopted, rows))
}

fn summary(adopted: &Adopted, rows: usize) -> String {
    let Adopted { manifest, features, repeated, missing } = adopted;
    let mut more = Vec::new();
    for (count, what) in [
        (*repeated, "there more than once, taken once"),
        (*missing, "missing"),
        (manifest.quarantined, "quarantined: see quarantine.parquet there"),
    ] {
        if count > 0 {
            more.push(format!("{} {what}", say::count(count)));
        }
    }
    let more = if more.is_empty() { String::new() } else { format!(" · {}", more.join(" · ")) };
    format!(
        "  store     {} · {} rows x {} · {}{more}",
        features.display(),
        say::count(rows),
        say::count(manifest.dimension),
        say::bytes(manifest.bytes())
    )
}
