//! `tlpipe report`.

use clap::Args;
use serde_json::json;

use super::options::PipelineArgs;
use super::say;
use super::shell::Shell;
use crate::pipeline::{self, Reported};

/// Arguments of `tlpipe report`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  tlpipe report pipelines/cifar10.toml\n  tlpipe report --run runs/cifar10-96 --json")]
pub struct ReportArgs {
    #[command(flatten)]
    pipeline: PipelineArgs,
    /// Where the images are, for the pictures of mistakes [data.source].
    #[arg(long, value_name = "SOURCE")]
    data: Option<String>,
}

/// Runs stage 3.
pub fn main(args: &ReportArgs, shell: &Shell<'_>) -> anyhow::Result<()> {
    let source = args.data.clone().map(|data| pipeline::Override { key: "data.source".into(), value: data.into() });
    let pipeline = shell.pipeline(&args.pipeline.or_recorded()?, source)?;
    let reported = pipeline::report(&pipeline, &shell.context, true)?;
    shell.output.result(&json!({ "html": reported.html, "json": reported.json }), || {
        [table(&reported), Some(summary(&reported))].into_iter().flatten().collect::<Vec<_>>().join("\n")
    })
}

/// Where the report is.
pub fn summary(reported: &Reported) -> String {
    format!("  report    {}", reported.html.display())
}

/// A share from 0 to 1; a dash where there is none.
fn share(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"))
}

/// A line a split, then the weakest classes.
fn table(reported: &Reported) -> Option<String> {
    let facts = reported.facts.as_ref()?;
    let splits = facts.splits.iter().filter_map(|split| {
        let score = split.score.as_ref()?;
        let [low, high] = score.accuracy_interval;
        let name = say::split(&split.split);
        Some(vec![
            name.to_owned(),
            say::count(score.rows),
            format!("{:.4}", score.accuracy),
            format!("{low:.3} to {high:.3}"),
            format!("{:.4}", score.loss),
        ])
    });
    let mut text = say::table(&["split", "rows", "accuracy", "95 %", "loss"], splits);
    if let Some(examined) = &facts.examined {
        let mut classes: Vec<_> = examined.classes.iter().map(|class| &class.score).filter(|class| class.rows > 0).collect();
        classes.sort_by(|a, b| a.f1.unwrap_or(0.0).total_cmp(&b.f1.unwrap_or(0.0)));
        let shown = classes.iter().take(10).map(|class| {
            vec![class.class.clone(), say::count(class.rows), share(class.precision), share(class.recall), share(class.f1)]
        });
        text.push_str("\n\n");
        text.push_str(&say::table(&[&format!("weakest on {}", examined.split), "rows", "precision", "recall", "F1"], shown));
    }
    Some(text)
}
