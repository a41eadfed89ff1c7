//! `tlpipe embed`.

use std::io::{self, IsTerminal as _};
use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::options::{BackboneArgs, Usage, file_of};
use super::shell::Shell;
use crate::pipeline::{self, Override, Settings};

/// Arguments of `tlpipe embed`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "On stdin an Arrow IPC stream with the columns id (text) and bytes (an encoded image), and label (a class index or a \
    name), class, split where they are known. On stdout an Arrow IPC stream with the columns of the feature store and error: a batch for a \
    batch, in order, flushed; its schema says by tlpipe.key how the features are made. On stderr an object of JSON a line.\n\n\
    Exit status: 0 every row is answered and the end marker was seen; 2 wrong flags or columns, the same again is of no use; another: run \
    this part again.\n\n\
    Examples:\n  tlpipe embed --model mobilenet_v2 --input-size 96 --threads 2 < images.arrows > features.arrows\n  \
    see integrations/ for Spark and Ray, and tlpipe store adopt for what they write"
)]
pub struct EmbedArgs {
    /// Pipeline file, for [backbone] and [runtime]; `tlpipe.toml` where there is one and no other is named.
    pipeline: Option<PathBuf>,
    /// Set any key of the pipeline file, as in `--set backbone.resize=crop`.
    #[arg(long, value_name = "KEY=VALUE", value_parser = Override::parse)]
    set: Vec<Override>,
    #[command(flatten)]
    backbone: BackboneArgs,
}

/// Answers the stream on stdin.
pub fn main(args: &EmbedArgs, shell: &Shell<'_>) -> anyhow::Result<()> {
    let usage = |text: &str| Err(Usage(text.to_owned()).into());
    if shell.output.json {
        return usage("--json: stdout is an Arrow stream here; what there is to say is JSON on stderr anyway");
    }
    if io::stdin().is_terminal() || io::stdout().is_terminal() {
        return usage("embed reads an Arrow stream from stdin and writes one to stdout, and one of them is a terminal");
    }
    let file = file_of(args.pipeline.as_deref());
    let flags = args.backbone.overrides().chain(shell.runtime.overrides()).chain(args.set.iter().cloned());
    let settings = Settings::load(file.as_deref(), &flags.collect::<Vec<_>>())?;
    let to = io::BufWriter::new(io::stdout().lock());
    let embedded = pipeline::embed(&settings, &shell.context, io::stdin(), to, |provenance| {
        let parts = &provenance.key_parts;
        shell.progress.object(&json!({
            "event": "started", "key": parts.key(), "model": provenance.model, "input_size": parts.input_size,
            "dimension": provenance.dimension, "provider": provenance.provider, "onnxruntime": provenance.runtime,
        }));
    })?;
    let rate = embedded.rows as f64 / embedded.seconds.max(1e-9);
    shell.progress.object(&json!({
        "event": "finished", "batches": embedded.batches, "rows": embedded.rows, "failed": embedded.failed,
        "seconds": embedded.seconds, "images_per_second": rate,
    }));
    Ok(())
}
