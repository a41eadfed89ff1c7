//! `tlpipe init`.

use std::path::PathBuf;

use clap::Args;

use super::options::ColumnArgs;
use super::say;
use super::shell::Shell;
use crate::pipeline::{self, InitOptions, Initialized, quoted};

/// Images that are looked at where a source has more.
const SAMPLE: &str = "2000";

/// Arguments of `tlpipe init`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:\n  tlpipe init ./photos                          look, choose, write tlpipe.toml; then: tlpipe run\n  \
    tlpipe init train.parquet --model resnet50.onnx -o pets.toml\n  \
    tlpipe init ./photos --sample all --force     look at every image, and write the file anew\n  \
    tlpipe init --schema                          the JSON Schema of pipeline files\n\n\
    Beside the file it puts tlpipe.schema.json, by which editors complete, explain and check its keys."
)]
pub struct InitArgs {
    /// Images: a data set's name, a path or an address, as for --data.
    #[arg(required_unless_present = "schema")]
    source: Option<String>,
    #[command(flatten)]
    columns: ColumnArgs,
    /// Backbone: a model's name, or a path to any ONNX image classifier.
    #[arg(long, value_name = "MODEL", default_value = "mobilenet_v2")]
    model: String,
    /// File to write.
    #[arg(short, long, value_name = "FILE", default_value = "tlpipe.toml")]
    out: PathBuf,
    /// Replace the file if there is one.
    #[arg(long)]
    force: bool,
    /// Images to look at, evenly spread, or all of them.
    #[arg(long, value_name = "N|all", default_value = SAMPLE, value_parser = sample)]
    sample: usize,
    /// Print the JSON Schema of pipeline files, and do nothing else.
    #[arg(long, conflicts_with_all = ["source", "force"])]
    schema: bool,
}

fn sample(text: &str) -> Result<usize, String> {
    match text {
        "all" => Ok(usize::MAX),
        number => {
            number.parse().ok().filter(|images| *images > 0).ok_or_else(|| "give a number of images from 1, or all".to_owned())
        }
    }
}

/// Looks at images and writes a pipeline file for them.
pub fn main(args: &InitArgs, shell: &Shell<'_>) -> anyhow::Result<()> {
    if args.schema {
        return say::line(pipeline::schema().trim_end());
    }
    let options = InitOptions {
        data: args.columns.of(args.source.clone()),
        model: args.model.clone(),
        out: args.out.clone(),
        force: args.force,
        sample: args.sample,
    };
    let written = pipeline::init(&options, &shell.context)?;
    shell.output.result(&written, || text(&written, args, shell))
}

fn text(written: &Initialized, args: &InitArgs, shell: &Shell<'_>) -> String {
    let line = |(name, text): (String, String)| if name.is_empty() { text } else { format!("  {name:<10}  {text}") };
    let mut lines: Vec<String> = written.summary().into_iter().map(line).collect();
    let chosen = written.choices.iter().filter(|choice| choice.set && !choice.key.starts_with("data."));
    let chosen: Vec<String> = chosen.map(|choice| format!("{} = {}", choice.key, choice.value)).collect();
    lines.push(String::new());
    lines.extend(chosen.into_iter().map(|choice| format!("  {choice}")));
    let directory = shell.directory.map(|directory| format!(" -C {}", quoted(directory))).unwrap_or_default();
    let file = if args.out == std::path::Path::new("tlpipe.toml") { String::new() } else { format!(" {}", quoted(&args.out)) };
    lines.push(String::new());
    lines.push(format!("{} says why, key by key. Next: tlpipe{directory} run{file}", written.path.display()));
    lines.join("\n")
}
