//! `tlpipe report`.

use std::io::{IsTerminal, stderr, stdout};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::json;

use super::options::{PipelineArgs, Usage};
use super::shell::Shell;
use super::{compare, say, summary};
use crate::pipeline::{self, ReportOptions, Reported};

/// Arguments of `tlpipe report`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:\n  tlpipe report pipelines/cifar10.toml\n  tlpipe report runs/cifar10-96 --no-map --format markdown\n  \
    tlpipe report --compare runs/adam runs/ridge --output compare.html"
)]
pub struct ReportArgs {
    #[command(flatten)]
    pipeline: PipelineArgs,
    /// Where the images are, for pictures of them [data.source].
    #[arg(long, value_name = "SOURCE")]
    data: Option<String>,
    /// Leave out the map of the embeddings, for which features are read.
    #[arg(long)]
    no_map: bool,
    /// Size in MiB that pictures may bring the page to; 0 leaves them out.
    #[arg(long, value_name = "MIB", default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=1024))]
    thumbnails_mib: u32,
    /// How the summary on stdout is written.
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Text)]
    format: Format,
    /// One page on several runs instead, two or more; each is tested against the first.
    #[arg(long, num_args = 2.., value_name = "RUN", conflicts_with_all = ["pipeline", "set", "features", "run", "data", "no_map"])]
    compare: Vec<PathBuf>,
    /// The page of --compare; the same facts as data go beside it [default: compare.html].
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// How a summary is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Tables for a terminal.
    Text,
    /// Tables of GitHub's Markdown.
    Markdown,
    /// What is in report.json, or compare.json.
    Json,
    /// A line a split, or a run.
    Csv,
}

/// Runs stage 3.
pub fn main(args: &ReportArgs, shell: &Shell<'_>) -> anyhow::Result<()> {
    let page_bytes = args.thumbnails_mib as usize * (1 << 20);
    if args.output.is_some() && args.compare.is_empty() {
        return Err(Usage("--output is the page of --compare; a run's own report lies in its folder".to_owned()).into());
    }
    if !args.compare.is_empty() {
        return compared(args, shell, page_bytes);
    }
    let source = args.data.clone().map(|data| pipeline::Override { key: "data.source".into(), value: data.into() });
    let pipeline = shell.pipeline(&args.pipeline.or_recorded()?, source)?;
    let options = ReportOptions { always: true, map: !args.no_map, page_bytes };
    let reported = pipeline::report(&pipeline, &shell.context, &options)?;
    let Some(facts) = &reported.facts else { return shell.output.result(&paths(&reported), || said(&reported, &stdout())) };
    if args.format != Format::Text && !shell.output.json {
        shell.progress.note(&said(&reported, &stderr()));
    }
    let json = serde_json::to_string_pretty(facts)?;
    shell.output.result(&paths(&reported), || match args.format {
        Format::Text => format!("{}\n{}", summary::text(facts), said(&reported, &stdout())),
        Format::Markdown => summary::markdown(facts),
        Format::Json => json,
        Format::Csv => summary::csv(facts),
    })
}

fn compared(args: &ReportArgs, shell: &Shell<'_>, page_bytes: usize) -> anyhow::Result<()> {
    let page = args.output.as_deref().unwrap_or(Path::new("compare.html"));
    let written = pipeline::report_compared(&args.compare, page, &shell.context, page_bytes)?;
    if args.format != Format::Text && !shell.output.json {
        shell.progress.note(&line(&written.html, &stderr()));
    }
    let (found, json) = (&written.facts.comparison, serde_json::to_string_pretty(&written.facts)?);
    shell.output.result(&json!({ "html": written.html, "json": written.json }), || match args.format {
        Format::Text => format!("{}\n{}", compare::text(found), line(&written.html, &stdout())),
        Format::Markdown => summary::compared_markdown(found),
        Format::Json => json,
        Format::Csv => summary::compared_csv(found),
    })
}

/// Where the report is, as the one object on stdout.
pub fn paths(reported: &Reported) -> serde_json::Value {
    json!({ "html": reported.html, "json": reported.json })
}

/// Where the report is, as it is shown on a stream.
pub fn said(reported: &Reported, on: &impl IsTerminal) -> String {
    line(&reported.html, on)
}

fn line(html: &Path, on: &impl IsTerminal) -> String {
    format!("  report    {}", say::link(html, on))
}
