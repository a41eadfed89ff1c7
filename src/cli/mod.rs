//! The command line: what is typed, what is printed. The only room that prints.

mod audit;
mod bench;
mod compare;
mod completions;
mod data;
mod doctor;
mod embed;
mod export;
mod extract;
mod fit_head;
mod help;
mod init;
mod models;
mod open;
mod options;
mod predict;
mod progress;
mod report;
mod run;
mod say;
mod serve;
mod shell;
mod store;
mod summary;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::assets::Search;
use crate::deploy::DeployError;
use crate::pipeline::{Context, PipelineError};
use options::RuntimeArgs;
use progress::{Form, Progress};
use shell::Shell;

/// Exit status of a command that was interrupted; what was done is kept.
const INTERRUPTED: u8 = 130;
/// Exit status of a command that was called wrongly: an unknown flag or key, a value out of range.
const USAGE: u8 = 2;

/// Transfer learning on frozen image features: images in, classifier out.
#[derive(Debug, Parser)]
#[command(
    name = "tlpipe",
    version,
    max_term_width = 110,
    after_help = "Examples:\n  \
        tlpipe run pipelines/quickstart.toml            everything, on images that tlpipe draws itself\n  \
        tlpipe init ./photos                            your own images: a pipeline file for them\n  \
        tlpipe run                                      everything, as tlpipe.toml says\n  \
        tlpipe fit-head --set head.l2=1e-3              another head on the same features, in a second\n\n\
        Environment:\n  \
        TLPIPE_ASSETS             folders that hold models and data sets, with colons between them\n  \
        TLPIPE_LOG                what is logged, as in debug or tlpipe=debug,onnxruntime=info\n  \
        TLPIPE_MIRROR             a server that is asked for downloads first\n  \
        XDG_CACHE_HOME            where downloads and ONNX Runtime are kept (~/.cache where it is not set)\n  \
        NO_COLOR, CLICOLOR_FORCE  no colours; colours even where there is no terminal"
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags that every command takes.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
struct Global {
    /// Do as if started in this folder.
    #[arg(short = 'C', long = "directory", global = true, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Never use the network.
    #[arg(long, global = true)]
    offline: bool,
    /// One JSON object on stdout instead of text.
    #[arg(long, global = true)]
    json: bool,
    /// Say more (-vv: everything).
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// No progress: only results, warnings and errors.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// ONNX Runtime library to use (libonnxruntime.so).
    #[arg(long, global = true, value_name = "PATH")]
    onnxruntime: Option<PathBuf>,
    #[command(flatten)]
    runtime: RuntimeArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Look at images and write a pipeline file that fits them.
    Init(init::InitArgs),
    /// Run every stage that is out of date, in order.
    Run(Box<run::RunArgs>),
    /// Stage 1: images -> feature store.
    Extract(extract::ExtractArgs),
    /// Stage 2: cached features -> head; opens neither images nor backbone.
    FitHead(fit_head::FitHeadArgs),
    /// Stage 3: run directory -> report.html, report.json, a table on the terminal.
    Report(report::ReportArgs),
    /// What is wrong with the images: leaks, duplicates, label errors, outliers.
    Audit(audit::AuditArgs),
    /// Runs beside each other, and whether the difference between them is real.
    Compare(compare::CompareArgs),
    /// This machine's ceiling, the pipeline's share of it, where the time goes.
    Bench(bench::BenchArgs),
    /// Backbone and head as one classifier.onnx, proven equal to what was scored.
    Export(export::ExportArgs),
    /// Prove a classifier.onnx again, and score it on labelled images.
    Verify(verify::VerifyArgs),
    /// Classify images.
    Predict(predict::PredictArgs),
    /// The same over HTTP.
    Serve(serve::ServeArgs),
    /// Images in, embeddings out, as an Arrow stream: stage 1 for a cluster engine.
    Embed(embed::EmbedArgs),
    /// Models: list, fetch, inspect, cut.
    #[command(
        subcommand,
        after_help = "Examples:\n  tlpipe models list\n  tlpipe models inspect resnet50.onnx                where it would be cut, and why"
    )]
    Models(models::ModelsCommand),
    /// Data sets: list, fetch, inspect, synth.
    #[command(
        subcommand,
        after_help = "Examples:\n  tlpipe data list\n  tlpipe data inspect ./photos                       what tlpipe sees in a source"
    )]
    Data(data::DataCommand),
    /// Feature stores: adopt.
    #[command(
        subcommand,
        after_help = "Examples:\n  tlpipe store adopt features-raw                    what Spark wrote becomes a feature store"
    )]
    Store(store::StoreCommand),
    /// Which ONNX Runtime, providers, caches and assets would be used, and why.
    Doctor(doctor::DoctorArgs),
    /// The script by which a shell completes commands and flags.
    Completions(completions::CompletionsArgs),
    /// A manual page for each command.
    Man(completions::ManArgs),
}

/// The command line as clap knows it: for help, completions, manual pages.
pub fn command() -> clap::Command {
    help::grouped(Cli::command())
}

/// Set by Ctrl-C and SIGTERM while an engine works that ends cleanly by itself.
static STOP: AtomicBool = AtomicBool::new(false);
/// Whether such an engine works; elsewhere a signal ends the process at once.
static STOPPABLE: AtomicBool = AtomicBool::new(false);

/// Parses the command line, runs the command, prints an error; the status is 0 done, 1 failed, 2 wrong usage, 130 interrupted.
pub fn main() -> ExitCode {
    // Before there are threads: it sets a variable of the environment.
    crate::runtime::disable_telemetry();
    let cli = match command().try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => {
            let wanted = std::env::args_os().any(|arg| arg == "--json");
            if error.use_stderr() && std::env::args_os().nth(1).is_some_and(|command| command == "embed") {
                // Whoever starts a filter reads lines of JSON.
                Progress::new(true, 0, Form::Json).fail(&error.to_string());
                return ExitCode::from(USAGE);
            }
            if wanted && error.use_stderr() {
                // Where stdout is closed there is nobody to tell.
                let _ = say::line(&say::failure(error.to_string().trim().trim_start_matches("error: "), USAGE));
            }
            error.exit();
        }
    };
    let is_stream = matches!(cli.command, Command::Embed(_));
    let form = if is_stream { Form::Json } else { Form::Text };
    let progress = Progress::new(cli.global.quiet || cli.global.json, cli.global.verbose, form);
    if let Err(error) = watch_signals(&progress) {
        progress.warn(&format!("Ctrl-C cannot be caught ({error}): it will end at once"));
    }
    let error = match dispatch(&cli, &progress) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(error) => error,
    };
    progress.clear();
    let status = status(&error);
    let text = say::chain(&error);
    progress.fail(&text);
    // One object, and that was the result; a stream is none.
    if cli.global.json && !is_stream && !error.is::<predict::Ended>() {
        // Where stdout is closed there is nobody to tell.
        let _ = say::line(&say::failure(&text, status));
    }
    ExitCode::from(status)
}

fn status(error: &anyhow::Error) -> u8 {
    if let Some(predict::Ended::Stopped { .. }) = error.downcast_ref() {
        return INTERRUPTED;
    }
    match error.downcast_ref::<PipelineError>() {
        Some(PipelineError::Interrupted(_)) => INTERRUPTED,
        Some(error) if error.is_usage() => USAGE,
        _ if error.is::<options::Usage>() => USAGE,
        _ if error.downcast_ref::<DeployError>().is_some_and(DeployError::is_usage) => USAGE,
        _ => 1,
    }
}

fn dispatch(cli: &Cli, progress: &Progress) -> anyhow::Result<()> {
    if let Some(directory) = &cli.global.directory {
        std::env::set_current_dir(directory).map_err(|error| anyhow::anyhow!("-C {}: {error}", directory.display()))?;
    }
    let observe = |event: crate::events::Event<'_>| progress.show(event);
    let context = Context {
        search: Search::from_env(cli.global.offline),
        library: cli.global.onnxruntime.clone(),
        observe: &observe,
        stop: &STOP,
        stoppable: &STOPPABLE,
    };
    let output = say::Output { json: cli.global.json, quiet: cli.global.quiet };
    let directory = cli.global.directory.as_deref();
    let shell = Shell { context, progress, output, directory, runtime: &cli.global.runtime };
    match &cli.command {
        Command::Init(args) => init::main(args, &shell),
        Command::Run(args) => run::main(args, &shell),
        Command::Extract(args) => extract::main(args, &shell),
        Command::FitHead(args) => fit_head::main(args, &shell),
        Command::Report(args) => report::main(args, &shell),
        Command::Audit(args) => audit::main(args, &shell),
        Command::Compare(args) => compare::main(args, &shell),
        Command::Bench(args) => bench::main(args, &shell),
        Command::Export(args) => export::main(args, &shell),
        Command::Verify(args) => verify::main(args, &shell),
        Command::Predict(args) => predict::main(args, &shell),
        Command::Serve(args) => serve::main(args, &shell),
        Command::Embed(args) => embed::main(args, &shell),
        Command::Models(command) => models::main(command, &shell),
        Command::Data(command) => data::main(command, &shell),
        Command::Store(command) => store::main(command, &shell),
        Command::Doctor(args) => doctor::main(args, &shell),
        Command::Completions(args) => completions::completions(args, &shell),
        Command::Man(args) => completions::man(args, &shell),
    }
}

/// The first signal asks a running engine to end cleanly; the second, or one at another time, ends the process.
fn watch_signals(progress: &Progress) -> Result<(), ctrlc::Error> {
    let progress = progress.clone();
    ctrlc::set_handler(move || {
        if !STOPPABLE.load(Ordering::Relaxed) || STOP.swap(true, Ordering::Relaxed) {
            progress.clear();
            std::process::exit(i32::from(INTERRUPTED));
        }
        progress.warn("stopping (again: at once)");
    })
}
