//! The flags that stand for keys of the pipeline file.

use std::path::{Path, PathBuf};

use clap::Args;
use toml::Value;

use crate::pipeline::{DataSettings, Override, Pipeline, Settings, same_folder};

/// The pipeline file where none is named.
const DEFAULT: &str = "tlpipe.toml";
/// The pipeline that is recorded in a run folder.
const OF_RUN: &str = "pipeline.toml";

/// Wrong usage: exit status 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// The pipeline and what is laid over it.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Pipeline")]
pub struct PipelineArgs {
    /// Pipeline file, or a run folder with its `pipeline.toml`; `tlpipe.toml` where there is one and no other is named.
    pipeline: Option<PathBuf>,
    /// Set any key of the pipeline file, as in `--set head.learning_rate=3e-3`.
    #[arg(long, value_name = "KEY=VALUE", value_parser = Override::parse)]
    set: Vec<Override>,
    /// Feature store folder [output.features].
    #[arg(long, value_name = "DIR")]
    features: Option<String>,
    /// Run folder [output.run].
    #[arg(long, value_name = "DIR")]
    run: Option<String>,
}

/// Columns of a table or Parquet file, where the usual names do not find them.
#[derive(Clone, Debug, Args)]
pub struct ColumnArgs {
    /// Column of the images or their paths [data.image_column].
    #[arg(long, value_name = "NAME")]
    pub image_column: Option<String>,
    /// Column of the labels [data.label_column].
    #[arg(long, value_name = "NAME")]
    pub label_column: Option<String>,
    /// Column of the splits [data.split_column].
    #[arg(long, value_name = "NAME")]
    pub split_column: Option<String>,
}

/// Flags for the images and the backbone.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Images and backbone")]
pub struct ImageArgs {
    /// Images: a data set's name, or a path to class folders, Parquet, WebDataset, a table of paths, CIFAR binary; the first three also
    /// by address, as in s3://bucket/photos [data.source].
    #[arg(long, value_name = "SOURCE")]
    data: Option<String>,
    #[command(flatten)]
    columns: ColumnArgs,
    #[command(flatten)]
    backbone: BackboneArgs,
}

/// Flags for the backbone and what is done with an image.
#[derive(Clone, Debug, Args)]
pub struct BackboneArgs {
    /// Backbone: a model's name, or a path to any ONNX image classifier [backbone.model].
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Side of the input image, pixels [backbone.input_size].
    #[arg(long, value_name = "PIXELS", allow_negative_numbers = true)]
    input_size: Option<i64>,
    /// How an image becomes square: squash, crop or pad [backbone.resize].
    #[arg(long, value_name = "HOW")]
    resize: Option<String>,
    /// Tensor to read instead of the one before the classifier [backbone.cut].
    #[arg(long, value_name = "TENSOR")]
    cut: Option<String>,
    /// What is read of the backbone: pooled, multi, multi-all, or tensors and patterns with commas between them [backbone.layers].
    #[arg(long, value_name = "LAYERS")]
    layers: Option<String>,
    /// Pixel values the backbone expects: tensorflow, imagenet, unit or raw [backbone.pixels].
    #[arg(long, value_name = "SCALE")]
    pixels: Option<String>,
    /// What of each image is seen, commas between: identity, hflip, center, top-left, top-right, bottom-left, bottom-right
    /// [backbone.views].
    #[arg(long, value_name = "VIEWS", value_delimiter = ',')]
    views: Option<Vec<String>>,
    /// Numbers of the feature store: float32 or float16 [output.dtype].
    #[arg(long, value_name = "TYPE")]
    dtype: Option<String>,
    /// Images a batch of the backbone; 0 is as many as suit the image size [runtime.batch].
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    batch: Option<i64>,
}

/// Flags for what it runs on; every command takes them.
#[derive(Clone, Debug, Args)]
pub struct RuntimeArgs {
    /// What the backbone runs on: cpu, cuda, cuda:N or auto [runtime.device].
    #[arg(long, global = true, value_name = "DEVICE")]
    device: Option<String>,
    /// What does the arithmetic: default, or openvino on the processor [runtime.provider].
    #[arg(long, global = true, value_name = "PROVIDER")]
    provider: Option<String>,
    /// Numbers of the backbone's arithmetic: fp32, or bf16 with openvino [runtime.precision].
    #[arg(long, global = true, value_name = "PRECISION")]
    precision: Option<String>,
    /// Threads; 0 is one a core [runtime.threads].
    #[arg(long, global = true, value_name = "N", allow_negative_numbers = true)]
    threads: Option<i64>,
}

impl RuntimeArgs {
    /// The flags but --precision, and that one by itself: for a command that means the numbers of a file by it.
    pub fn without_precision(&self) -> (Self, Option<&str>) {
        (Self { precision: None, ..self.clone() }, self.precision.as_deref())
    }

    /// The flags that were given.
    pub fn overrides(&self) -> impl Iterator<Item = Override> {
        [
            text("runtime.device", self.device.as_ref()),
            text("runtime.provider", self.provider.as_ref()),
            text("runtime.precision", self.precision.as_ref()),
            integer("runtime.threads", self.threads),
        ]
        .into_iter()
        .flatten()
    }
}

/// Flags for the head.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Head")]
pub struct HeadArgs {
    /// How the head is fitted: adam, lbfgs, ridge or linfa [head.solver].
    #[arg(long, value_name = "SOLVER")]
    solver: Option<String>,
    /// Passes over the training rows [head.epochs].
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    epochs: Option<i64>,
    /// Rows a step [head.batch_size].
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    batch_size: Option<i64>,
    /// Adam's step size [head.learning_rate].
    #[arg(long, value_name = "RATE", allow_negative_numbers = true)]
    learning_rate: Option<f64>,
    /// How the learning rate goes on: constant, cosine or step [head.schedule].
    #[arg(long, value_name = "HOW")]
    schedule: Option<String>,
    /// Strength of L2 [head.l2].
    #[arg(long, value_name = "L2", allow_negative_numbers = true)]
    l2: Option<f64>,
    /// Adam's decoupled weight decay, as in AdamW [head.weight_decay].
    #[arg(long, value_name = "DECAY", allow_negative_numbers = true)]
    weight_decay: Option<f64>,
    /// Share of each label that is spread over all classes, 0 to 1 [head.label_smoothing].
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    label_smoothing: Option<f64>,
    /// Share of the features that training drops at random, 0 to 1 [head.dropout].
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    dropout: Option<f64>,
    /// What the rows of a class count: none or balanced; a list by --set [head.class_weights].
    #[arg(long, value_name = "HOW")]
    class_weights: Option<String>,
    /// Stop after so many epochs without a lower loss on the hold-out, and keep the best [head.patience].
    #[arg(long, value_name = "EPOCHS", allow_negative_numbers = true)]
    patience: Option<i64>,
    /// Share of the training rows that is held out, 0 to 1 [head.validation_split].
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    validation_split: Option<f64>,
    /// Which rows are held out: tail, stratified, random, hash, grouped or source [head.split].
    #[arg(long, value_name = "HOW")]
    split: Option<String>,
    /// What stays together with --split grouped: folder, or a text that ends the group's name in an id [head.group].
    #[arg(long, value_name = "RULE")]
    group: Option<String>,
    /// Seed of the initial weights and the order of rows [head.seed].
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    seed: Option<i64>,
    /// MiB that features may take in memory; above, adam reads them anew in each epoch [head.memory].
    #[arg(long, value_name = "MIB", allow_negative_numbers = true)]
    memory: Option<i64>,
}

fn text(key: &str, value: Option<&String>) -> Option<Override> {
    Some(Override { key: key.into(), value: Value::String(value?.clone()) })
}

fn texts(key: &str, values: Option<&Vec<String>>) -> Option<Override> {
    let texts = values?.iter().map(|text| Value::String(text.trim().to_owned()));
    Some(Override { key: key.into(), value: Value::Array(texts.collect()) })
}

fn integer(key: &str, value: Option<i64>) -> Option<Override> {
    Some(Override { key: key.into(), value: Value::Integer(value?) })
}

fn number(key: &str, value: Option<f64>) -> Option<Override> {
    Some(Override { key: key.into(), value: Value::Float(value?) })
}

impl ImageArgs {
    /// The flags that were given.
    pub fn overrides(&self) -> Vec<Override> {
        [
            text("data.source", self.data.as_ref()),
            text("data.image_column", self.columns.image_column.as_ref()),
            text("data.label_column", self.columns.label_column.as_ref()),
            text("data.split_column", self.columns.split_column.as_ref()),
        ]
        .into_iter()
        .flatten()
        .chain(self.backbone.overrides())
        .collect()
    }
}

impl BackboneArgs {
    /// The flags that were given.
    pub fn overrides(&self) -> impl Iterator<Item = Override> {
        [
            text("backbone.model", self.model.as_ref()),
            integer("backbone.input_size", self.input_size),
            text("backbone.resize", self.resize.as_ref()),
            text("backbone.cut", self.cut.as_ref()),
            text("backbone.layers", self.layers.as_ref()),
            text("backbone.pixels", self.pixels.as_ref()),
            texts("backbone.views", self.views.as_ref()),
            text("output.dtype", self.dtype.as_ref()),
            integer("runtime.batch", self.batch),
        ]
        .into_iter()
        .flatten()
    }
}

impl ColumnArgs {
    /// The columns that were chosen, of this source.
    pub fn of(&self, source: Option<String>) -> DataSettings {
        DataSettings {
            source,
            image_column: self.image_column.clone(),
            label_column: self.label_column.clone(),
            split_column: self.split_column.clone(),
        }
    }
}

impl HeadArgs {
    /// The flags that were given.
    pub fn overrides(&self) -> Vec<Override> {
        [
            text("head.solver", self.solver.as_ref()),
            integer("head.epochs", self.epochs),
            integer("head.batch_size", self.batch_size),
            number("head.learning_rate", self.learning_rate),
            text("head.schedule", self.schedule.as_ref()),
            number("head.l2", self.l2),
            number("head.weight_decay", self.weight_decay),
            number("head.label_smoothing", self.label_smoothing),
            number("head.dropout", self.dropout),
            text("head.class_weights", self.class_weights.as_ref()),
            integer("head.patience", self.patience),
            number("head.validation_split", self.validation_split),
            text("head.split", self.split.as_ref()),
            text("head.group", self.group.as_ref()),
            integer("head.seed", self.seed),
            integer("head.memory", self.memory),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

impl PipelineArgs {
    /// The pipeline that is recorded in the run folder, where only that is named.
    pub fn or_recorded(&self) -> Result<Self, Usage> {
        let Some(run) = self.run.as_deref().filter(|_| self.pipeline.is_none() && self.features.is_none()) else {
            return Ok(self.clone());
        };
        let recorded = Path::new(run).join(OF_RUN);
        if !recorded.is_file() && !Path::new(DEFAULT).is_file() {
            return Err(Usage(format!("{run}: no run here ({OF_RUN} is missing); name the folder of a run, or a pipeline file")));
        }
        Ok(Self { pipeline: Some(recorded).filter(|file| file.is_file()), ..self.clone() })
    }

    /// Keys that `--set` sets.
    pub fn set_keys(&self) -> impl Iterator<Item = String> {
        self.set.iter().map(|set| set.key.clone())
    }

    /// Refuses other images than those of a pipeline file that nobody named: they would take the place of its features and its run.
    /// `writes` are the flags of what the command writes.
    pub fn guard(&self, images: &ImageArgs, writes: &[&str]) -> anyhow::Result<()> {
        let (None, Some(file), Some(data)) = (&self.pipeline, file_of(None), &images.data) else { return Ok(()) };
        let settings = Settings::load(Some(&file), &[])?;
        let Some(own) = settings.data.source.filter(|own| own != data && !same_folder(Path::new(own), Path::new(data))) else {
            return Ok(());
        };
        let is_set = |flag: bool, key: &str| flag || self.set.iter().any(|set| set.key == key);
        let set = [
            ("--features", settings.output.features.is_none() || is_set(self.features.is_some(), "output.features")),
            ("--run", settings.output.run.is_none() || is_set(self.run.is_some(), "output.run")),
        ];
        let missing: Vec<&str> =
            set.iter().filter(|(flag, is_set)| writes.contains(flag) && !is_set).map(|(flag, _)| *flag).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let text = format!(
            "{} is of {own}, and what it made would be replaced by that of {data}: add {}, or work in another folder (-C DIR)",
            file.display(),
            missing.join(" and ")
        );
        Err(Usage(text).into())
    }

    /// The pipeline with every flag laid over it; `--set` wins over the named flags. What a user should know of it goes to `note`.
    pub fn resolve(&self, flags: impl IntoIterator<Item = Override>, note: impl FnOnce(String)) -> anyhow::Result<Pipeline> {
        let file = file_of(self.pipeline.as_deref());
        let file = file.as_deref();
        let output = [text("output.features", self.features.as_ref()), text("output.run", self.run.as_ref())];
        let mut overrides: Vec<Override> =
            flags.into_iter().chain(output.into_iter().flatten()).chain(self.set.iter().cloned()).collect();
        if file.is_none() && overrides.is_empty() {
            return Err(
                Usage(format!("no pipeline: there is no {DEFAULT} here; name a pipeline file, or give --data PATH")).into()
            );
        }
        if let Some(moved) = file.and_then(|file| moved_run(file).transpose()).transpose()?
            && overrides.iter().all(|set| set.key != "output.run")
        {
            let MovedRun { folder, recorded } = moved;
            note(format!(
                "{} was recorded for {}: this works on {}, where it lies (--run names another folder)",
                folder.join(OF_RUN).display(),
                recorded.display(),
                folder.display()
            ));
            overrides.push(Override { key: "output.run".into(), value: Value::String(folder.display().to_string()) });
        }
        Ok(Pipeline::new(Settings::load(file, &overrides)?, file)?)
    }
}

/// The pipeline file: the one that is named, that of the run folder that is named, or the usual one where there is one.
pub fn file_of(named: Option<&Path>) -> Option<PathBuf> {
    let named = named.map(|path| if path.is_dir() { path.join(OF_RUN) } else { path.to_owned() });
    named.or_else(|| Some(PathBuf::from(DEFAULT)).filter(|file| file.is_file()))
}

/// A run that lies elsewhere than its recorded pipeline says: a copy.
struct MovedRun {
    folder: PathBuf,
    recorded: PathBuf,
}

/// Whether a pipeline file is that of a run which was copied or moved.
///
/// # Errors
/// When the file is that of a run and was cut short.
fn moved_run(file: &Path) -> anyhow::Result<Option<MovedRun>> {
    let folder = file.parent().unwrap_or(Path::new(""));
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let is_of_run = file.file_name().is_some_and(|name| name == OF_RUN) && folder.join("head.safetensors").is_file();
    if !is_of_run {
        return Ok(None);
    }
    let Some(recorded) = Settings::recorded_run(file)? else { return Ok(None) };
    Ok((!same_folder(&recorded, folder)).then(|| MovedRun { folder: folder.to_owned(), recorded }))
}
