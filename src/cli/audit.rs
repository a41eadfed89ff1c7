//! `tlpipe audit`.

use clap::Args;

use super::options::{ImageArgs, PipelineArgs};
use super::say;
use super::shell::Shell;
use crate::audit::{Curve, KindSummary, Summary};
use crate::pipeline::{self, AuditPlan};

/// Arguments of `tlpipe audit`.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "Examples:\n  tlpipe audit pipelines/cifar10.toml\n  tlpipe audit --features ./features --run ./run --json\n  \
    tlpipe audit pipelines/cifar10.toml --data-curve          how much would more images help?\n\n\
    It writes audit.parquet (a row a finding) and audit.json (the counts) to the run folder; tlpipe report shows them."
)]
pub struct AuditArgs {
    #[command(flatten)]
    pipeline: PipelineArgs,
    #[command(flatten)]
    images: ImageArgs,
    /// Two images are near duplicates when they are nearer than this share of the distance to their tenth neighbours, 0 to 1 [default:
    /// 0.5, or less where the features have few dimensions].
    #[arg(long, value_name = "SHARE", value_parser = share)]
    near: Option<f64>,
    /// Also measure the error against the number of training images, and what twice as many would give.
    #[arg(long)]
    data_curve: bool,
}

fn share(text: &str) -> Result<f64, String> {
    let value = text.parse::<f64>().ok().filter(|value| (0.0..=1.0).contains(value));
    value.ok_or_else(|| "expected a share from 0 to 1, such as 0.5".into())
}

/// Audits the images.
pub fn main(args: &AuditArgs, shell: &Shell<'_>) -> anyhow::Result<()> {
    let flags = args.images.overrides();
    // Images that are named are not those of the run.
    let named = if flags.is_empty() { args.pipeline.or_recorded()? } else { args.pipeline.clone() };
    let pipeline = shell.pipeline(&named, flags)?;
    let plan = AuditPlan { near: args.near, data_curve: args.data_curve };
    let audited = pipeline::audit(&pipeline, &shell.context, plan)?;
    let summary = &audited.summary;
    shell.output.result(summary, || {
        let files = format!(
            "  audit     {}, {} · {}",
            audited.findings.display(),
            audited.json.display(),
            say::seconds(summary.seconds.all)
        );
        [Some(table(summary)), nothing(summary), summary.data_curve.as_ref().map(curve), Some(files)]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join("\n\n")
    })
}

/// A line a kind that was found.
fn table(summary: &Summary) -> String {
    let found = summary.findings.iter().filter(|kind| kind.count > 0);
    say::table(&["found", "count", "what to do, and the strongest of them"], found.map(line))
}

fn line(kind: &KindSummary) -> Vec<String> {
    let strongest = kind.strongest.as_ref().map_or_else(String::new, |strongest| match &strongest.other_id {
        Some(other) => format!("{} and {other}", strongest.id),
        None => format!("{}: {}", strongest.id, strongest.suggestion),
    });
    let text = format!("{}\n  {strongest}", kind.suggestion.as_deref().unwrap_or_default());
    vec![kind.kind.replace('_', " "), say::count(kind.count), text]
}

/// What was not found, and what was not looked for.
fn nothing(summary: &Summary) -> Option<String> {
    let name = |kind: &KindSummary| kind.kind.replace('_', " ");
    let none: Vec<String> = summary.findings.iter().filter(|kind| kind.count == 0 && kind.skipped.is_none()).map(name).collect();
    let mut lines = Vec::new();
    if !none.is_empty() {
        lines.push(format!("  none of   {}", none.join(", ")));
    }
    for kind in &summary.findings {
        if let Some(reason) = &kind.skipped {
            lines.push(format!("  no check  {}: {reason}", name(kind)));
        }
    }
    (!lines.is_empty()).then(|| lines.join("\n"))
}

/// The data curve, and what it says.
fn curve(curve: &Curve) -> String {
    let rows = curve
        .points
        .iter()
        .map(|point| vec![say::count(point.images), format!("{:.4}", point.error), point.draws.len().to_string()]);
    let mut text = say::table(&["training images", &format!("{} error", curve.split), "draws"], rows);
    match (&curve.law, &curve.doubling) {
        (Some(_), Some(doubling)) if !doubling.helps() => {
            text.push_str("\n  the error does not fall with more images: nothing says that more of the same kind would help");
        }
        (Some(law), Some(doubling)) => {
            let [low, high] = doubling.error_interval;
            let [least, most] = doubling.gain_interval;
            text.push_str(&format!(
                "\n  error = {:.3} + {:.3} x images ^ -{:.2}; {} images would give {:.4} (95 %: {low:.4} to {high:.4}), {:.4} less \
                 ({least:.4} to {most:.4})",
                law.a,
                law.b,
                law.c,
                say::count(doubling.images),
                doubling.error,
                doubling.gain
            ));
        }
        _ => text.push_str("\n  too few sizes for a law: add images"),
    }
    text
}
