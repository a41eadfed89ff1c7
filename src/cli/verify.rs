//! `tlpipe verify`.

use std::path::PathBuf;

use clap::Args;

use super::open::ForeignArgs;
use super::options::ColumnArgs;
use super::say;
use super::shell::Shell;
use crate::pipeline::{self, Verified, VerifyOptions};

/// Arguments of `tlpipe verify`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:\n  tlpipe verify classifier.onnx                              on the images that it was scored with\n  \
    tlpipe verify classifier.onnx ./photos --split test        on others of the same classes\n  \
    tlpipe verify classifier.onnx --run runs/cifar10-96        against every answer of the run that it came from\n  \
    tlpipe verify other.onnx ./photos --labels names.txt       a model that tlpipe did not export: how often it is right\n\n\
    Exit status: 0 it holds, 1 it does not, or it cannot be compared with --run."
)]
pub struct VerifyArgs {
    /// A classifier.onnx that tlpipe export wrote; any ONNX image classifier, or a model's name, is scored.
    model: String,
    /// Labelled images, as for --data; those that the model was scored with where left out.
    source: Option<String>,
    #[command(flatten)]
    columns: ColumnArgs,
    /// Split of the images; that of the answers of --run, else test, else validation, else the first there is.
    #[arg(long, value_name = "NAME")]
    split: Option<String>,
    /// The first so many images alone.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Compare with all answers of this run, which the model came from, instead of those that the model keeps.
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,
    #[command(flatten)]
    foreign: ForeignArgs,
}

/// Runs the classifier and says how it did.
pub fn main(args: &VerifyArgs, shell: &Shell<'_>) -> anyhow::Result<()> {
    let options = VerifyOptions {
        model: args.model.clone(),
        data: args.columns.of(args.source.clone()),
        split: args.split.clone(),
        limit: args.limit.map(|limit| limit as usize),
        run: args.run.clone(),
        hints: args.foreign.hints(),
    };
    let verified = pipeline::verify(&options, &shell.context)?;
    shell.output.result(&verified, || text(&verified))
}

fn text(verified: &Verified) -> String {
    let mut lines =
        vec![format!("verify    {} · {} of {}", verified.model.display(), say::split(&verified.split), verified.source)];
    if let (Some(accuracy), Some([low, high]), Some(loss)) = (verified.accuracy, verified.accuracy_interval, verified.loss) {
        let (images, seen) = (say::count(verified.labelled), if verified.trained_on { " that it was trained on" } else { "" });
        lines.push(format!("  accuracy  {accuracy:.4} (95 %: {low:.3} to {high:.3})  loss {loss:.4}  {images} images{seen}"));
    } else {
        lines.push(format!("  accuracy  none of the {} images has a label", say::count(verified.images)));
    }
    if verified.unusable > 0 {
        lines.push(format!("  left out  {} images that cannot be used", say::count(verified.unusable)));
    }
    lines.push(match &verified.parity {
        Some(parity) => format!(
            "  parity    {} images: probabilities differ by up to {:.1e} (allowed {:.0e}), the first class agrees for {:.2} %",
            say::count(parity.images),
            parity.max_difference,
            parity.bound.difference,
            100.0 * parity.agreement
        ),
        None => "  parity    not compared: none of the images is one that the model keeps the answer to".to_owned(),
    });
    lines.join("\n")
}
