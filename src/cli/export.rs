//! `tlpipe export`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::options::{PipelineArgs, Usage};
use super::say;
use super::shell::Shell;
use crate::deploy::InputKind;
use crate::pipeline::{self, CompareOn, ExportOptions, Exported, WeightType};

/// Arguments of `tlpipe export`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "With --precision fp16 weights are stored as float16, in half the room; arithmetic stays that of float32. With --quantize int8 \
    convolutions are computed in integers.\n\n\
    Examples:\n  tlpipe export pipelines/cifar10.toml -o deploy/classifier.onnx\n  \
    tlpipe export runs/cifar10-96 --input tensor --precision fp16 -o deploy/small.onnx\n  \
    tlpipe export runs/photos --data /mnt/photos --sample all --json"
)]
pub struct ExportArgs {
    #[command(flatten)]
    pipeline: PipelineArgs,
    /// File to write; classifier.onnx in the run folder where left out. MODEL_CARD.md and labels.txt are put beside it; where those are
    /// another model's, NAME.MODEL_CARD.md and NAME.labels.txt, with the name of this file.
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// What the model takes: images as bytes, of any size, or the backbone's own tensor of float32.
    #[arg(long, value_enum, value_name = "KIND", default_value = "uint8")]
    input: InputArg,
    /// Version of ONNX's operators; the backbone's own, or the least that serves, where left out.
    #[arg(long, value_name = "N")]
    opset: Option<i64>,
    /// Convolutions in integers, calibrated on 128 images to train on: int8.
    #[arg(long, value_enum, value_name = "TYPE")]
    quantize: Option<IntegerArg>,
    /// Divide logits by the temperature that is best on the hold-out; left out, probabilities are those of the report.
    #[arg(long)]
    calibrated: bool,
    /// Compare on so many of the images that were scored, or on all of them.
    #[arg(long, value_name = "N|all", default_value = "512", value_parser = sample)]
    sample: CompareOn,
    /// Do not compare; the card says so.
    #[arg(long, conflicts_with = "sample")]
    unproven: bool,
    /// Where the images are, if not where the pipeline says [data.source].
    #[arg(long, value_name = "SOURCE")]
    data: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum InputArg {
    Uint8,
    Tensor,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum IntegerArg {
    Int8,
}

fn sample(text: &str) -> Result<CompareOn, String> {
    match text {
        "all" => Ok(CompareOn::All),
        number => match number.parse() {
            Ok(images) if images > 0 => Ok(CompareOn::Some(images)),
            _ => Err("give a number of images from 1, or all".to_owned()),
        },
    }
}

/// Exports and says what was written.
pub fn main(args: &ExportArgs, shell: &Shell<'_>) -> anyhow::Result<()> {
    let (runtime, precision) = shell.runtime.without_precision();
    let weights = match (precision, args.quantize) {
        (None, Some(IntegerArg::Int8)) => WeightType::Int8,
        (Some(_), Some(_)) => {
            return Err(Usage("--quantize and --precision both say what weights are: give one".to_owned()).into());
        }
        (None | Some("fp32"), None) => WeightType::Fp32,
        (Some("fp16"), None) => WeightType::Fp16,
        (Some(other), None) => {
            return Err(Usage(format!("--precision {other}: weights are stored as fp32 or fp16")).into());
        }
    };
    let pipeline = shell.pipeline_on(&args.pipeline.or_recorded()?, [], &runtime)?;
    let options = ExportOptions {
        out: args.out.clone(),
        input: match args.input {
            InputArg::Uint8 => InputKind::Uint8,
            InputArg::Tensor => InputKind::Tensor,
        },
        opset: args.opset,
        weights,
        calibrated: args.calibrated,
        compare: if args.unproven { CompareOn::None } else { args.sample },
        data: args.data.clone(),
    };
    let exported = pipeline::export(&pipeline, &shell.context, &options)?;
    let metadata = &exported.metadata;
    let parity = metadata.parity.as_ref().map(|parity| {
        json!({
            "images": parity.images, "split": parity.split, "max_difference": parity.max_difference, "agreement": parity.agreement,
            "bound": parity.bound
        })
    });
    let result = json!({
        "path": exported.path, "bytes": exported.bytes, "card": exported.card, "labels": exported.labels, "opset": exported.opset,
        "input": metadata.input, "classes": metadata.classes.len(), "precision": metadata.provenance.precision,
        "calibrated": metadata.metrics.calibrated, "tensors": metadata.provenance.tensors.len(), "tensors_left_out": exported.left_out,
        "parity": parity
    });
    shell.output.result(&result, || text(&exported))
}

fn text(exported: &Exported) -> String {
    let metadata = &exported.metadata;
    let mut lines = vec![format!(
        "export    {} · {:.2} MB · operators of version {}, weights in {}",
        exported.path.display(),
        exported.bytes as f64 / 1e6,
        exported.opset,
        metadata.provenance.precision
    )];
    let takes = match metadata.input.kind {
        InputKind::Uint8 => "uint8, images of any size",
        InputKind::Tensor => "float32, resized and normalized images",
    };
    lines.push(format!("  input     image [{}] · {takes}", metadata.input.shape.join(", ")));
    let scaled = match (metadata.metrics.calibrated, metadata.metrics.temperature) {
        (true, Some(temperature)) => format!(" · logits divided by {temperature:.3}"),
        _ => String::new(),
    };
    lines.push(format!("  output    probabilities [N, {}], class_index [N]{scaled}", metadata.classes.len()));
    if exported.left_out > 0 {
        lines.push(format!("  backbone  {} tensors that the head does not use are left out", exported.left_out));
    }
    lines.push(match &metadata.parity {
        Some(parity) => format!(
            "  parity    {} images of {} from their bytes: probabilities differ by up to {:.1e}, the first class agrees for {:.2} %",
            say::count(parity.images),
            parity.split,
            parity.max_difference,
            100.0 * parity.agreement
        ),
        None => "  parity    not compared with the answers that were scored".to_owned(),
    });
    lines.push(format!("  beside    {} · {}", exported.card.display(), exported.labels.display()));
    lines.join("\n")
}
