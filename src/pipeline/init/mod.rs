//! A pipeline file for images that nobody has looked at yet.

mod choices;
mod file;
mod survey;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use toml::Value;

pub use choices::Choice;
pub use survey::{Broken, ClassBalance, Contents, Sizes, SplitRows, Survey};

use super::extract::{open_dataset, trainable};
use super::schema::schema;
use super::{Context, DataSettings, Pipeline, PipelineError, Settings, is_inside, quoted, same_folder};
use crate::assets::{AssetError, Finder, Search};
use crate::events::Event;
use crate::extract::{Backbone, BackboneError};
use crate::onnx::{Layers, OnnxError};
use crate::persist::Draft;

/// Name of the schema's file beside the pipeline, where editors find it.
pub const SCHEMA_FILE: &str = "tlpipe.schema.json";
/// Values that `layers = "multi"` reads at most, for a network that is not at hand.
const MULTI_WIDTH: usize = 8192;

/// What a pipeline file is asked for.
#[derive(Clone, Debug)]
pub struct InitOptions {
    /// The images.
    pub data: DataSettings,
    /// The backbone: a name or a path.
    pub model: String,
    /// The file to write.
    pub out: PathBuf,
    /// Whether a file that is there is replaced.
    pub force: bool,
    /// Images to look at, at most.
    pub sample: usize,
}

/// A pipeline file that was written.
#[derive(Clone, Debug, Serialize)]
pub struct Initialized {
    /// The file.
    pub path: PathBuf,
    /// The schema that it names, beside it; none where another file has that name.
    pub schema: Option<PathBuf>,
    /// What was found.
    pub survey: Survey,
    /// What was chosen and offered, in the order of the file.
    pub choices: Vec<Choice>,
}

impl Initialized {
    /// What was found, for people: a name and what there is to say under it; the first has no name.
    pub fn summary(&self) -> Vec<(String, String)> {
        file::summary(&self.survey)
    }
}

/// What is to be known about a backbone before settings are chosen for it.
struct Network {
    name: String,
    /// What it is, for people.
    title: String,
    /// Side of the images it was trained on, pixels.
    side: u32,
    /// Whether that is known and not assumed.
    side_known: bool,
    /// The only side it takes.
    fixed_side: Option<u32>,
    /// Values of a row of `layers = "multi"`; none where it has no depths to read.
    multi: Option<usize>,
}

/// Looks at images, chooses settings for them, and writes them to a pipeline file with their reasons; the schema of such files is
/// put beside it.
///
/// # Errors
/// When there is a file already, the images cannot be found, read or trained on, the backbone cannot be used, or the file cannot
/// be written.
pub fn init(options: &InitOptions, context: &Context<'_>) -> Result<Initialized, PipelineError> {
    let out = &options.out;
    let exists = || PipelineError::Exists { path: out.clone() };
    if !options.force && out.symlink_metadata().is_ok() {
        return Err(exists());
    }
    let source = options.data.source.as_deref().ok_or(PipelineError::NoSource)?;
    let dataset = open_dataset(&options.data, context)?;
    trainable(&dataset, source)?;
    let network = network(&options.model, context)?;
    let survey = Survey::take(source, &dataset, options.sample, context)?;

    let mut all = of_data(&options.data);
    all.extend(choices::choose(&survey, &network));
    all.extend(folders(&all, source)?);
    all.push(choices::device());
    // What does not fit together is said here, not by the first run.
    Pipeline::new(settings(&all)?, None)?;

    let schema = put_schema(out, context)?;
    let command = format!("tlpipe init {}", quoted(Path::new(source)));
    let next = if out == Path::new("tlpipe.toml") { "tlpipe run".to_owned() } else { format!("tlpipe run {}", quoted(out)) };
    let text = file::text(&survey, &all, &command, &next, schema.is_some());
    let written = Draft::create(out).and_then(|mut draft| {
        draft.file().write_all(text.as_bytes())?;
        if options.force { draft.keep() } else { draft.keep_new() }
    });
    match written {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && !options.force => Err(exists()),
        Err(source) => Err(PipelineError::NotWritten { path: out.clone(), source }),
        Ok(()) => Ok(Initialized { path: out.clone(), schema, survey, choices: all }),
    }
}

fn settings(choices: &[Choice]) -> Result<Settings, PipelineError> {
    let wrong = |error: toml::de::Error| PipelineError::Settings { origin: "tlpipe init".into(), reason: error.to_string() };
    Value::Table(file::table(choices)).try_into().map_err(wrong)
}

fn of_data(data: &DataSettings) -> Vec<Choice> {
    let columns = [
        ("data.image_column", &data.image_column, "The column of the images or their paths."),
        ("data.label_column", &data.label_column, "The column of the labels."),
        ("data.split_column", &data.split_column, "The column of the splits."),
    ];
    let why = "The images. A path that is relative starts where tlpipe does.";
    let source = [("data.source", &data.source, why)];
    let choice = |(key, value, reason): (&'static str, &Option<String>, &str)| {
        let value = value.as_deref()?.into();
        Some(Choice { key, value, reason: reason.to_owned(), set: true })
    };
    source.into_iter().chain(columns).filter_map(choice).collect()
}

/// The output folders: those that a pipeline without them would have, but never among the images.
fn folders(choices: &[Choice], source: &str) -> Result<Vec<Choice>, PipelineError> {
    let pipeline = Pipeline::new(settings(choices)?, None)?;
    let source = Path::new(source);
    let inside = |folder: &Path| source.is_dir() && (is_inside(folder, source) || same_folder(folder, source));
    let place = |folder: &Path| {
        let beside = if source == Path::new(".") { Path::new("..").join(folder) } else { source.join("..").join(folder) };
        Value::String(if inside(folder) { beside } else { folder.to_owned() }.display().to_string())
    };
    let choice = |key, folder: &Path, reason: &str| Choice { key, value: place(folder), reason: reason.into(), set: true };
    Ok(vec![
        choice(
            "output.features",
            &pipeline.features,
            "The feature store: Parquet. It is made anew when [data] or [backbone] changes.",
        ),
        choice(
            "output.run",
            &pipeline.run,
            "The head, its scores and the report. Name another folder to keep this run beside the next.",
        ),
    ])
}

/// What is known about a backbone: from its graph where it is at hand, else from its card. Nothing is downloaded.
fn network(name: &str, context: &Context<'_>) -> Result<Network, PipelineError> {
    let finder = Finder::new(Search { offline: true, ..context.search.clone() })?;
    let located = match finder.model(name, context.observe) {
        Ok(located) => located,
        Err(error @ AssetError::Absent(_)) => {
            let first = finder.aliases().iter().find(|alias| alias.name == name).and_then(|alias| alias.models.first());
            let known = first.map_or(name, String::as_str);
            let Some(card) = finder.models().iter().find(|card| card.name == known) else { return Err(error.into()) };
            return Ok(Network {
                name: name.to_owned(),
                title: format!("{}. The first run fetches it.", card.title),
                side: card.preprocessing.side,
                side_known: true,
                fixed_side: None,
                multi: Some(MULTI_WIDTH),
            });
        }
        Err(error) => return Err(error.into()),
    };
    let load = |layers| Backbone::load(&located, None, &layers, None);
    let (backbone, multi) = match load(Layers::Multi) {
        Ok(backbone) => {
            let width = backbone.width();
            (backbone, Some(width))
        }
        Err(BackboneError::Onnx(OnnxError::NoTaps { .. })) => (load(Layers::Pooled)?, None),
        Err(error) => return Err(error.into()),
    };
    let title = located.card.as_ref().map_or("A network of your own.".to_owned(), |card| format!("{}.", card.title));
    Ok(Network {
        name: name.to_owned(),
        title: format!("{title} Any ONNX image classifier serves; `tlpipe models list` names some."),
        side: backbone.native_side(),
        side_known: backbone.native_side_known(),
        fixed_side: backbone.fixed_side(),
        multi,
    })
}

/// Puts the schema beside the pipeline file, unless a file of another making has its name.
fn put_schema(out: &Path, context: &Context<'_>) -> Result<Option<PathBuf>, PipelineError> {
    let path = out.with_file_name(SCHEMA_FILE);
    let text = schema();
    let title = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok().and_then(|schema| schema.get("title").cloned());
    match std::fs::read_to_string(&path) {
        Ok(found) if found == text => return Ok(Some(path)),
        Ok(found) if title(&found) != title(&text) => {
            (context.observe)(Event::Warned(format!(
                "{}: not a schema of tlpipe's, so it is left alone and the pipeline file names none (tlpipe init --schema prints it)",
                path.display()
            )));
            return Ok(None);
        }
        // One of another version, or none.
        _ => {}
    }
    crate::persist::persist(&path, |file| file.write_all(text.as_bytes()))
        .map_err(|source| PipelineError::NotWritten { path: path.clone(), source })?;
    Ok(Some(path))
}
