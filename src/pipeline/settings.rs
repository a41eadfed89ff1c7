//! The pipeline file: TOML and flags become one checked [`Settings`].

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::PipelineError;
use crate::extract::PixelScale;
use crate::head::{HeadParams, ParamGuard as _, Solver};
use crate::image::{Resize, Views};
use crate::onnx::Layers;
use crate::runtime::{Compute, Device, Precision, Provider, UnknownDevice, Unreal};
use crate::store::Dtype;

/// Threads above this are a slip of the finger.
const MOST_THREADS: usize = 256;
/// Images a batch above this cost memory and gain nothing.
const MOST_BATCH: usize = 4096;
/// Largest side of an input image, pixels.
const MOST_PIXELS: u32 = 4096;

/// A pipeline as a user writes it; every key may be left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(title = "tlpipe pipeline")]
pub struct Settings {
    /// The images.
    pub data: DataSettings,
    /// The frozen network.
    pub backbone: BackboneSettings,
    /// The classifier on top.
    pub head: HeadParams,
    /// Where results go.
    pub output: OutputSettings,
    /// What it runs on.
    pub runtime: RuntimeSettings,
}

/// `[data]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DataSettings {
    /// A registry name, or a path: class folders, Parquet, a table of paths, CIFAR binary.
    pub source: Option<String>,
    /// Column that holds the images or their paths, where the usual names do not find it.
    pub image_column: Option<String>,
    /// Column that holds the labels.
    pub label_column: Option<String>,
    /// Column that names the split.
    pub split_column: Option<String>,
}

/// `[backbone]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BackboneSettings {
    /// A registry name or a path to any ONNX image classifier.
    pub model: String,
    /// Side in pixels; the model's own where left out.
    #[schemars(range(min = 1, max = MOST_PIXELS))]
    pub input_size: Option<u32>,
    /// How an image that is not square is made so.
    pub resize: Resize,
    /// Tensor to read, where the cut that tlpipe finds is not the one that is wanted.
    pub cut: Option<String>,
    /// Pixel values the backbone expects, where neither its card nor its graph says.
    pub pixels: Option<PixelScale>,
    /// What is read: `pooled`, the tensor before the classifier; `multi` or `multi-all`, feature maps of every depth before it;
    /// or the names of tensors, or patterns.
    pub layers: Layers,
    /// What of each image is seen: `identity` first, then any of `hflip`, `center`, `top-left`, ….
    pub views: Views,
}

impl Default for BackboneSettings {
    fn default() -> Self {
        Self {
            model: "mobilenet_v2".into(),
            input_size: None,
            resize: Resize::Squash,
            cut: None,
            pixels: None,
            layers: Layers::Pooled,
            views: Views::default(),
        }
    }
}

/// `[output]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OutputSettings {
    /// Folder of the feature store; `features/SOURCE-SIDE` where left out, `features/SOURCE-SIDE-LAYERS` for other layers than
    /// `pooled`.
    pub features: Option<PathBuf>,
    /// Folder of the run; named in the same way below `runs` where left out.
    pub run: Option<PathBuf>,
    /// Numbers of the feature store: `float32`, or `float16` in half the room.
    pub dtype: Dtype,
    /// Whether features are kept; left out, they are. Where they are not, `run` fits one head by least squares, and its L2 is chosen by
    /// the rows held out.
    pub cache: Option<bool>,
}

impl OutputSettings {
    /// Whether features are kept.
    pub fn keeps_features(&self) -> bool {
        self.cache != Some(false)
    }
}

/// `[runtime]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RuntimeSettings {
    /// `cpu`, `cuda`, `cuda:N`, `auto`.
    #[schemars(regex(pattern = "^(cpu|auto|cuda(:[0-9]+)?)$"))]
    pub device: String,
    /// `default`: ONNX Runtime's own of the device; `openvino`: OpenVINO on the processor.
    #[schemars(extend("enum" = ["default", "openvino"]))]
    pub provider: String,
    /// `fp32`; `bf16` with OpenVINO.
    #[schemars(extend("enum" = ["fp32", "bf16"]))]
    pub precision: String,
    /// Threads; 0 is one a core.
    #[schemars(range(max = MOST_THREADS))]
    pub threads: usize,
    /// Images a batch; 0 is as many as suit the image size.
    #[schemars(range(max = MOST_BATCH))]
    pub batch: usize,
}

impl Default for RuntimeSettings {
    fn default() -> Self {
        Self {
            device: Device::default().to_string(),
            provider: Provider::default().to_string(),
            precision: Precision::default().to_string(),
            threads: 0,
            batch: 0,
        }
    }
}

impl RuntimeSettings {
    /// Device, provider and precision as one that exists.
    ///
    /// # Errors
    /// When one of them is unknown, or they do not go together.
    pub fn compute(&self) -> Result<Compute, PipelineError> {
        let wrong = |key: &str, reason: String| PipelineError::Settings { origin: format!("runtime.{key}"), reason };
        let device: Device = self.device.parse().map_err(|error: UnknownDevice| wrong("device", error.to_string()))?;
        let provider: Provider = self.provider.parse().map_err(|error: Unreal| wrong("provider", error.to_string()))?;
        let precision: Precision = self.precision.parse().map_err(|error: Unreal| wrong("precision", error.to_string()))?;
        Compute::new(device, provider, precision).map_err(|error| {
            let key = if error == Unreal::Bf16 { "precision" } else { "provider" };
            wrong(key, error.to_string())
        })
    }
}

/// One setting given on the command line: `head.learning_rate` and its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Override {
    /// Dotted key.
    pub key: String,
    /// Its value.
    pub value: Value,
}

impl Override {
    /// Reads `KEY=VALUE`; a value that is no TOML is a text.
    ///
    /// # Errors
    /// When there is no `=`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or("give KEY=VALUE, as in head.learning_rate=3e-3")?;
        let parsed = format!("v = {value}").parse::<Table>().ok().and_then(|mut table| table.remove("v"));
        Ok(Self { key: key.trim().into(), value: parsed.unwrap_or_else(|| Value::String(value.trim().into())) })
    }
}

impl Settings {
    /// Reads a pipeline file, if one is given, and lays the overrides over it.
    ///
    /// # Errors
    /// When the file cannot be read, is no TOML, or a key or value is unknown: the nearest valid key is offered.
    pub fn load(file: Option<&Path>, overrides: &[Override]) -> Result<Self, PipelineError> {
        let origin = file.map_or_else(|| "command line".to_owned(), |file| file.display().to_string());
        let mut table = match file {
            Some(path) => {
                let bytes = std::fs::read(path).map_err(|source| PipelineError::File { path: path.into(), source })?;
                let no_text = |_| PipelineError::Settings {
                    origin: origin.clone(),
                    reason: "not text in UTF-8; a pipeline file is TOML (tlpipe run --help shows how to do without one)".into(),
                };
                let text = String::from_utf8(bytes).map_err(no_text)?;
                text.parse::<Table>().map_err(|error| PipelineError::Settings {
                    origin: origin.clone(),
                    reason: format!(
                        "{}\ncorrect the file or name another one; where it is cut short or damaged in a run folder, fit the head again \
                         with the pipeline file or the flags that it was fitted with",
                        error.to_string().trim()
                    ),
                })?
            }
            None => Table::new(),
        };
        known(&table).map_err(|reason| PipelineError::Settings { origin: origin.clone(), reason })?;
        let checked = |table: &Table, origin: &str| -> Result<Self, PipelineError> {
            Value::Table(table.clone()).try_into().map_err(|error: toml::de::Error| PipelineError::Settings {
                origin: origin.to_owned(),
                reason: plain(error.to_string().trim()),
            })
        };
        checked(&table, &origin)?;
        for Override { key, value } in overrides {
            let command_line = |reason| PipelineError::Settings { origin: format!("--set {key}"), reason };
            let (section, name) = key.split_once('.').ok_or_else(|| command_line(format!("give SECTION.KEY, not `{key}`")))?;
            let given = Table::from_iter([(section.into(), Value::Table(Table::from_iter([(name.into(), value.clone())])))]);
            known(&given).map_err(command_line)?;
            let section = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(section) = section {
                section.insert(name.into(), value.clone());
            }
        }
        // The file was good, so it is a flag that is not.
        let settings = checked(&table, "command line")?;
        let asked: Vec<&str> =
            table.get("head").and_then(Value::as_table).into_iter().flat_map(Table::keys).map(String::as_str).collect();
        Ok(settings.with_solver(&asked))
    }

    /// Features of several depths suit least squares better than Adam: where neither the solver nor a key of another one was asked
    /// for, that is taken.
    fn with_solver(mut self, asked: &[&str]) -> Self {
        const OF_ADAM: [&str; 4] = ["epochs", "batch_size", "learning_rate", "shuffle"];
        let is_open = !asked.iter().any(|key| *key == "solver" || OF_ADAM.contains(key));
        let ridge = HeadParams { solver: Solver::Ridge, ..self.head.clone() };
        if is_open && self.backbone.layers != Layers::Pooled && ridge.check_ref().is_ok() {
            self.head = ridge;
        }
        self
    }

    /// The run folder that a recorded pipeline names; none where the file is no TOML, which [`Settings::load`] explains.
    ///
    /// # Errors
    /// When the file cannot be read or was cut short: what is missing would be taken for left open.
    pub fn recorded_run(file: &Path) -> Result<Option<PathBuf>, PipelineError> {
        let text = std::fs::read(file).map_err(|source| PipelineError::File { path: file.into(), source })?;
        let Some(table) = String::from_utf8(text).ok().and_then(|text| text.parse::<Table>().ok()) else { return Ok(None) };
        let output = |key: &str| table.get("output").and_then(|output| output.get(key)).and_then(Value::as_str);
        match (output("run"), output("features"), table.get("runtime")) {
            (Some(run), Some(_), Some(_)) => Ok(Some(run.into())),
            _ => Err(PipelineError::Settings {
                origin: file.display().to_string(),
                reason: "the pipeline of this run was cut short ([output] or [runtime] is missing): fit the head again with the pipeline \
                         file or the flags that it was fitted with, and --run with this folder"
                    .into(),
            }),
        }
    }

    /// Refuses values of `[backbone]` and `[runtime]` that cannot be; those of `[head]` are checked by the head.
    pub(super) fn check_ranges(&self) -> Result<(), PipelineError> {
        let wrong = |key: &str, reason: String| Err(PipelineError::Settings { origin: key.into(), reason });
        let (runtime, side) = (&self.runtime, self.backbone.input_size);
        runtime.compute()?;
        if runtime.threads > MOST_THREADS {
            return wrong("runtime.threads", format!("{} is above the limit of {MOST_THREADS}", runtime.threads));
        }
        if runtime.batch > MOST_BATCH {
            return wrong("runtime.batch", format!("{} images a batch is above the limit of {MOST_BATCH}", runtime.batch));
        }
        match side {
            Some(side) if !(1..=MOST_PIXELS).contains(&side) => {
                wrong("backbone.input_size", format!("{side} pixels; give 1 to {MOST_PIXELS}"))
            }
            _ => Ok(()),
        }
    }
}

/// Says what serde says without its names of types.
fn plain(message: &str) -> String {
    const WORDS: [(&str, &str); 7] = [
        ("expected usize", "expected a whole number from 0"),
        ("expected u64", "expected a whole number from 0"),
        ("expected u32", "expected a whole number from 0"),
        ("expected f64", "expected a number"),
        ("expected a boolean", "expected true or false"),
        ("unknown variant", "unknown value"),
        ("floating point", "number"),
    ];
    WORDS.iter().fold(message.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// Checks that every key exists, and offers the nearest one where it does not. The keys are those of the types above.
fn known(table: &Table) -> Result<(), String> {
    let keys = |value: &serde_json::Value| -> Vec<String> {
        value.as_object().map(|object| object.keys().cloned().collect()).unwrap_or_default()
    };
    let valid = serde_json::to_value(Settings::default()).map_err(|error| error.to_string())?;
    for (section, content) in table {
        let Some(valid_section) = valid.get(section) else {
            return Err(unknown("section", &format!("[{section}]"), section, &keys(&valid)));
        };
        let Value::Table(content) = content else {
            return Err(format!("`{section}` is a section: write [{section}] and its keys below"));
        };
        let valid_keys = keys(valid_section);
        for key in content.keys() {
            if !valid_keys.contains(key) {
                return Err(unknown("key", &format!("{section}.{key}"), key, &valid_keys));
            }
        }
    }
    Ok(())
}

fn unknown(what: &str, shown: &str, given: &str, valid: &[String]) -> String {
    let nearest = valid.iter().map(|name| (strsim::jaro_winkler(given, name), name)).max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((likeness, name)) if likeness > 0.75 => format!("unknown {what} {shown}: did you mean `{name}`?"),
        _ => format!("unknown {what} {shown}; there is {}", valid.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, overrides: &[&str]) -> Result<Settings, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.toml");
        std::fs::write(&path, text).unwrap();
        let overrides: Vec<_> = overrides.iter().map(|text| Override::parse(text).unwrap()).collect();
        Settings::load(Some(&path), &overrides).map_err(|error| error.to_string())
    }

    #[test]
    fn a_file_is_read_and_flags_win() {
        let text = "[data]\nsource = 'x'\n[backbone]\ninput_size = 96\n[head]\nepochs = 3\n";
        let settings = load(text, &["head.epochs=7", "backbone.resize=crop", "head.learning_rate=3e-3"]).unwrap();
        assert_eq!(settings.data.source.as_deref(), Some("x"));
        assert_eq!(settings.backbone.input_size, Some(96));
        assert_eq!(settings.backbone.resize, Resize::Crop);
        assert_eq!(settings.head.epochs, 7);
        assert!((settings.head.learning_rate - 3e-3).abs() < 1e-12);
    }

    #[test]
    fn features_of_several_depths_have_least_squares_for_a_head_unless_another_is_asked_for() {
        let solver = |text: &str, overrides: &[&str]| load(text, overrides).unwrap().head.solver;
        assert_eq!(solver("", &[]), Solver::Adam);
        assert_eq!(solver("[backbone]\nlayers = 'multi'\n", &[]), Solver::Ridge);
        assert_eq!(solver("[backbone]\nlayers = ['a', 'b*']\n[head]\nl2 = 1e-2\n", &[]), Solver::Ridge);
        assert_eq!(solver("", &["backbone.layers=multi-all", "head.validation_split=0.1"]), Solver::Ridge);
        for asked in ["head.solver=lbfgs", "head.solver=adam"] {
            assert_eq!(solver("[backbone]\nlayers = 'multi'\n", &[asked]).to_string(), asked[12..]);
        }
        for asked in ["head.epochs=3", "head.dropout=0.1", "head.schedule=cosine"] {
            assert_eq!(solver("[backbone]\nlayers = 'multi'\n", &[asked]), Solver::Adam, "{asked}");
        }
    }

    #[test]
    fn a_misspelt_key_is_named_with_the_nearest_one() {
        let error = load("[head]\nepoch = 3\n", &[]).unwrap_err();
        assert!(error.contains("head.epoch") && error.contains("`epochs`") && error.contains("p.toml"), "{error}");
        let error = load("[heads]\nepochs = 3\n", &[]).unwrap_err();
        assert!(error.contains("[heads]") && error.contains("`head`"), "{error}");
        let error = load("", &["backbone.inputsize=96"]).unwrap_err();
        assert!(error.contains("`input_size`"), "{error}");
        let error = load("[data]\nzzz = 1\n", &[]).unwrap_err();
        assert!(error.contains("source"), "{error}");
    }

    #[test]
    fn a_wrong_value_names_the_key_and_what_may_stand_there() {
        let error = load("[backbone]\nresize = 'stretch'\n", &[]).unwrap_err();
        assert!(error.contains("stretch") && error.contains("squash"), "{error}");
        let error = load("[head]\nepochs = 'ten'\n", &[]).unwrap_err();
        assert!(error.contains("ten") || error.contains("string"), "{error}");
        let error = load("head = 3\n", &[]).unwrap_err();
        assert!(error.contains("[head]"), "{error}");
        assert!(load("[data\n", &[]).unwrap_err().contains("p.toml"));
    }
}
