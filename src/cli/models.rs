//! `tlpipe models`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::say;
use super::shell::Shell;
use crate::assets::{Finder, Located};
use crate::extract::Backbone;
use crate::onnx::{self, Inspection, Layers, Model, Tap};
use crate::pipeline::same_folder;

/// Subcommands of `tlpipe models`.
#[derive(Clone, Debug, Subcommand)]
pub enum ModelsCommand {
    /// Backbones that tlpipe knows by name, and whether they are at hand.
    #[command(after_help = "Examples:\n  tlpipe models list --json")]
    List,
    /// Find a backbone or download it.
    #[command(after_help = "Examples:\n  tlpipe models fetch mobilenet_v2")]
    Fetch {
        /// Its name, as `tlpipe models list` shows it.
        name: String,
    },
    /// Input, layout, the cut that would be made and why, feature width, preprocessing.
    #[command(after_help = "Examples:\n  tlpipe models inspect mobilenet_v2\n  tlpipe models inspect resnet50.onnx --json")]
    Inspect(ModelArgs),
    /// Write the backbone without its top.
    #[command(after_help = "Examples:\n  tlpipe models cut resnet50.onnx -o backbone.onnx\n  \
        tlpipe models cut mobilenet_v2 --layers multi -o depths.onnx      averages of maps of many depths in one row")]
    Cut {
        #[command(flatten)]
        model: ModelArgs,
        /// What is read: pooled, multi, multi-all, or tensors and patterns with commas between them.
        #[arg(long, value_name = "LAYERS", default_value_t, hide_default_value = true)]
        layers: Layers,
        /// File to write.
        #[arg(short, long, value_name = "FILE")]
        out: PathBuf,
    },
}

/// A model and where to cut it.
#[derive(Clone, Debug, Args)]
pub struct ModelArgs {
    /// A model's name, or a path to an ONNX file.
    model: String,
    /// Tensor to cut at instead of the one before the classifier.
    #[arg(long, value_name = "TENSOR")]
    cut: Option<String>,
}

/// Runs a subcommand.
pub fn main(command: &ModelsCommand, shell: &Shell<'_>) -> anyhow::Result<()> {
    let (context, output) = (&shell.context, shell.output);
    let finder = Finder::new(context.search.clone())?;
    match command {
        ModelsCommand::List => list(&finder, output),
        ModelsCommand::Fetch { name } => {
            let located = finder.fetch_model(name, context.observe)?;
            output.result(&json!({ "name": name, "path": located.path, "sha256": located.sha256, "how": located.how }), || {
                format!("{} ({})", located.path.display(), located.how)
            })
        }
        ModelsCommand::Inspect(args) => inspect(&finder.model(&args.model, context.observe)?, args, output),
        ModelsCommand::Cut { model, layers, out } => {
            let located = finder.model(&model.model, context.observe)?;
            if out.exists() && same_folder(out, &located.path) {
                anyhow::bail!("{}: this is the model itself; name another file with -o", out.display());
            }
            if out.exists() && Model::read(out).is_err() {
                anyhow::bail!("{}: this file is no ONNX model, and would be replaced; name another with -o", out.display());
            }
            let backbone = Backbone::load(&located, model.cut.as_deref(), layers, None)?;
            std::fs::write(out, backbone.model()).map_err(|error| anyhow::anyhow!("{}: {error}", out.display()))?;
            let result = json!({
                "path": out, "cut": backbone.cut(), "segments": backbone.segments(), "features": backbone.width(),
                "bytes": backbone.model().len()
            });
            output.result(&result, || {
                let depths = backbone.segments().len();
                let from = if depths > 1 { format!(" of {depths} tensors") } else { String::new() };
                let (cut, width) = (backbone.cut(), backbone.width());
                format!("{}: cut at {} ({}), {width} features{from}", out.display(), cut.tensor, cut.reason)
            })
        }
    }
}

fn list(finder: &Finder, output: say::Output) -> anyhow::Result<()> {
    let models: Vec<_> = finder.models().iter().map(|card| (card, finder.model_at_hand(card).map(|found| found.how))).collect();
    let json: Vec<_> = models
        .iter()
        .map(|(card, found)| json!({ "name": card.name, "title": card.title, "licence": card.licence, "at_hand": found }))
        .collect();
    output.result(&json!({ "models": json }), || {
        let known = models.iter().map(|(card, found)| {
            vec![card.name.clone(), card.title.clone(), card.licence.clone(), found.clone().unwrap_or_else(|| "no".into())]
        });
        let mut text = say::table(&["name", "what", "licence", "at hand"], known);
        for alias in finder.aliases() {
            text.push_str(&format!("\n{} stands for the first at hand of {}", alias.name, alias.models.join(", ")));
        }
        text
    })
}

fn inspect(located: &Located, args: &ModelArgs, output: say::Output) -> anyhow::Result<()> {
    let model = Model::from_bytes(&located.read()?, &located.path.display().to_string())?;
    let inspection = onnx::inspect(&model, args.cut.as_deref())?;
    let backbone = Backbone::load(located, args.cut.as_deref(), &Layers::Pooled, None).ok();
    let mut json = serde_json::to_value(&inspection)?;
    json["sha256"] = located.sha256.clone().into();
    json["preprocessing"] = serde_json::to_value(backbone.as_ref().map(Backbone::pixels))?;
    json["assumed"] = serde_json::to_value(backbone.as_ref().map(Backbone::assumptions))?;
    output.result(&json, || text(located, &inspection, backbone.as_ref()))
}

fn text(located: &Located, inspection: &Inspection, backbone: Option<&Backbone>) -> String {
    let input = &inspection.input;
    let size = |size: &Option<i64>| size.map_or("any".to_owned(), |size| size.to_string());
    let shape: Vec<String> = input.shape.iter().map(size).collect();
    let mut lines = vec![
        format!("{} ({})", located.path.display(), located.how),
        format!("  sha256         {}", located.sha256),
        format!("  made by        {}, opset {}", some(&inspection.producer), inspection.opset),
        format!("  size           operators: {}, weights: {}", inspection.nodes, inspection.parameters),
        format!("  input          {} {} {} [{}]", input.name, input.dtype, input.layout, shape.join(", ")),
        format!("                 {}", input.layout_reason),
        format!("  outputs        {}", inspection.outputs.join(", ")),
    ];
    if let Some(cut) = &inspection.cut {
        lines.push(format!("  cut            {}", cut.tensor));
        lines.push(format!("                 {}", cut.reason));
    }
    if let Some(problem) = &inspection.problem {
        lines.push(format!("  no cut         {problem}"));
    }
    lines.extend(taps(inspection));
    let features = inspection.features.map_or("depends on the image size".to_owned(), |width| width.to_string());
    lines.push(format!("  features       {features}"));
    if let Some(backbone) = backbone {
        lines.push(format!("  pixels         {}", backbone.pixels()));
        let known = if backbone.native_side_known() { "" } else { " (assumed: neither a card nor the graph says)" };
        lines.push(format!("  trained at     {} px{known}", backbone.native_side()));
        lines.extend(backbone.assumptions().iter().map(|assumption| format!("  assumed        {assumption}")));
    }
    lines.join("\n")
}

/// What `--layers` can read, a line each.
fn taps(inspection: &Inspection) -> Vec<String> {
    let (taps, cut) = (&inspection.taps, inspection.features.unwrap_or(0));
    let all = format!("multi-all: all {} and the cut, {} values", taps.len(), say::count(wide(taps.iter()) + cut));
    let multi: Vec<&Tap> = taps.iter().filter(|tap| tap.multi).collect();
    let some = format!("multi: those with *, {} and the cut, {} values", multi.len(), say::count(wide(multi) + cut));
    if taps.is_empty() {
        return Vec::new();
    }
    let positions = |tap: &Tap| tap.positions.iter().map(ToString::to_string).collect::<Vec<_>>().join(" x ");
    let rows = taps.iter().map(|tap| {
        let star = if tap.multi { "*" } else { "" };
        // Many converters call a tensor as they call its node.
        let made_by = tap.produced_by.trim_end_matches(&format!(" \"{}\"", tap.tensor)).to_owned();
        vec![format!("    {}", tap.tensor), star.into(), tap.channels.to_string(), positions(tap), made_by]
    });
    let table = say::table(&["  taps, early to late", "", "channels", "positions", "made by"], rows);
    [some, all].into_iter().map(|line| format!("  --layers       {line}")).chain(table.lines().map(str::to_owned)).collect()
}

fn wide<'t>(taps: impl IntoIterator<Item = &'t Tap>) -> usize {
    taps.into_iter().map(|tap| tap.channels).sum()
}

fn some(text: &str) -> &str {
    if text.is_empty() { "an unnamed tool" } else { text }
}
