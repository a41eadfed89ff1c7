//! From a pipeline file and flags to finished stages: what is asked for, what is out of date, and the three stages in order.

mod adopt;
mod audit;
mod compare;
mod data_curve;
mod depths;
mod embed;
mod export;
mod extract;
mod extras;
mod fit;
#[cfg(test)]
mod fixture;
mod init;
mod made;
mod outcome;
mod proof;
mod report;
mod schema;
mod scored;
mod scoring;
mod settings;
mod streamed;
mod sweep;
mod uncached;
mod update;
mod verify;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

pub use adopt::adopt;
pub use audit::{AuditPlan, Audited, audit};
pub use compare::compare;
pub use depths::depths;
pub use embed::embed;
pub use export::{CompareOn, ExportOptions, Exported, WeightType, export};
pub use extract::{Extracted, Goal, StageOutcome, bench, extract, open_dataset};
pub use extras::{Shots, baselines, few_shots};
pub use fit::{Fit, fit_head};
pub use init::{Broken, Choice, ClassBalance, Contents, InitOptions, Initialized, SCHEMA_FILE, Sizes, SplitRows, Survey, init};
pub use proof::{Proof, prove};
pub use report::{ReportOptions, Reported, report, report_compared};
pub use schema::schema;
pub use settings::{BackboneSettings, DataSettings, OutputSettings, Override, RuntimeSettings, Settings};
pub use sweep::{Axis, Plan, sweep};
pub use uncached::{Uncached, fit_uncached};
pub use update::update;
pub use verify::{Verified, VerifyOptions, verify};

use crate::assets::Search;
use crate::events::Observer;
use crate::head::{ParamGuard as _, Solver};
use crate::onnx::Layers;
use crate::run::RunDir;
use crate::runtime::{Compute, RuntimeOptions};
use crate::store::{Store, StoreError};

/// Anything that a stage can fail with.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The pipeline file cannot be read.
    #[error("{path}: {source}; name a pipeline file, or give --data PATH")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A setting is wrong.
    #[error("{origin}: {reason}")]
    Settings {
        /// The file or flag.
        origin: String,
        /// What is wrong and what may stand there.
        reason: String,
    },
    /// A file that was to be written is there.
    #[error("{path}: there is such a file, and it stays as it is; name another one with -o, or replace it with --force")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be written.
    #[error("{path}: cannot be written ({source}); name a place that can be with -o")]
    NotWritten {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No source is named.
    #[error("no images named: give --data PATH, or `source` below [data] in a pipeline file")]
    NoSource,
    /// Neither a source nor a store is named.
    #[error(
        "neither images nor features named: name a pipeline file, or give --features DIR (or, to run or extract, --data PATH)"
    )]
    NoFeatures,
    /// Two folders that must differ are one.
    #[error("{path}: this is both {one} and {other}; name another folder with {flag}")]
    SameFolder {
        /// The folder.
        path: PathBuf,
        /// What it is.
        one: &'static str,
        /// What else it is.
        other: &'static str,
        /// What names another one.
        flag: &'static str,
    },
    /// No head can be fitted on these images.
    #[error("{source_name}: {reason}")]
    NotTrainable {
        /// The source.
        source_name: String,
        /// Why, and what to do.
        reason: String,
    },
    /// A model or data set cannot be found.
    #[error(transparent)]
    Assets(#[from] crate::assets::AssetError),
    /// The images cannot be read.
    #[error(transparent)]
    Dataset(#[from] crate::dataset::DatasetError),
    /// The cache cannot be written.
    #[error("{path}: {source}; this is tlpipe's cache: name another place for it in XDG_CACHE_HOME")]
    Cache {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The images cannot be drawn.
    #[error(transparent)]
    Synth(#[from] crate::dataset::synth::SynthError),
    /// The backbone cannot be used.
    #[error(transparent)]
    Backbone(#[from] crate::extract::BackboneError),
    /// Stage 1 failed.
    #[error(transparent)]
    Extract(#[from] crate::extract::ExtractError),
    /// ONNX Runtime cannot be used.
    #[error(transparent)]
    Runtime(#[from] crate::runtime::RuntimeError),
    /// The features cannot be used.
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    /// The features were not kept.
    #[error(
        "{features}: no features here: the run keeps none (run --no-cache, output.cache = false), and this needs those of every image; \
         make them with tlpipe extract {how}"
    )]
    Uncached {
        /// Where they would be.
        features: PathBuf,
        /// What to give to `tlpipe extract`.
        how: String,
    },
    /// The answers cannot be scored.
    #[error(transparent)]
    Evaluate(#[from] crate::evaluate::EvaluateError),
    /// The head cannot be fitted.
    #[error(transparent)]
    Head(#[from] crate::head::HeadError),
    /// A feature is no number.
    #[error(
        "the features of {id} hold NaN or infinite values: make them anew with tlpipe extract --rebuild and the same \
         pipeline or flags, \
         and look at the backbone with tlpipe models inspect"
    )]
    BadFeatures {
        /// The image.
        id: String,
    },
    /// A label is no class.
    #[error(
        "{id}: label {label} is not one of the {classes} classes of these features (0 to {}): make them anew with tlpipe extract \
         --rebuild and the same pipeline or flags",
        classes.saturating_sub(1)
    )]
    BadLabel {
        /// The image.
        id: String,
        /// Its label.
        label: i32,
        /// Length of the class list.
        classes: usize,
    },
    /// The run directory cannot be used.
    #[error(transparent)]
    Run(#[from] crate::run::RunError),
    /// No run can be compared with the first.
    #[error("{0}; compare runs that answer the same images of one split: fit them on the same features with the same head.split")]
    NothingToCompare(String),
    /// The findings of an audit cannot be encoded.
    #[error("{path}: the findings cannot be encoded ({source})")]
    Findings {
        /// The file.
        path: PathBuf,
        /// Why.
        source: parquet::errors::ParquetError,
    },
    /// The report cannot be made.
    #[error(transparent)]
    Report(#[from] crate::report::ReportError),
    /// A head and the backbone that it is to be put on do not belong together.
    #[error(
        "{head}: this head was fitted on other features than these settings make:\n  {reason}\nname the pipeline or the flags that the features \
         were made with, or fit the head again"
    )]
    OtherFeatures {
        /// The head.
        head: PathBuf,
        /// What differs.
        reason: String,
    },
    /// A classifier was to be held against a run that it did not come from.
    #[error("{run}: the answers of this run cannot be those of {model}: {reason}")]
    OtherRun {
        /// The run.
        run: PathBuf,
        /// The classifier.
        model: String,
        /// What differs, and what to do.
        reason: String,
    },
    /// There are no images to compare a model on.
    #[error(
        "the model cannot be compared with the answers that were scored: {0}; name the images with --data, or give --unproven"
    )]
    NoProof(Box<PipelineError>),
    /// A classifier cannot be made or does not answer as it did.
    #[error(transparent)]
    Deploy(#[from] crate::deploy::DeployError),
    /// A stream of images cannot be answered.
    #[error(transparent)]
    Embed(#[from] crate::embed::EmbedError),
    /// What an engine wrote cannot be adopted.
    #[error(transparent)]
    Adopt(#[from] crate::store::adopt::AdoptError),
    /// The user stopped it.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl PipelineError {
    /// Whether the user asked for something that cannot be, rather than something having failed.
    pub fn is_usage(&self) -> bool {
        use crate::head::HeadError;
        match self {
            Self::Settings { .. } | Self::NoSource | Self::NoFeatures | Self::SameFolder { .. } => true,
            Self::Head(error) => matches!(error, HeadError::Parameter { .. }),
            Self::Deploy(error) => error.is_usage(),
            Self::Embed(error) => error.is_usage(),
            Self::Adopt(error) => error.is_usage(),
            _ => false,
        }
    }
}

/// The user stopped a stage; what was done is kept.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Interrupted(pub String);

/// What every stage works with.
pub struct Context<'a> {
    /// Where models and data sets are looked for.
    pub search: Search,
    /// ONNX Runtime library that the user named.
    pub library: Option<PathBuf>,
    /// Where events go.
    pub observe: Observer<'a>,
    /// Set from outside to end a stage cleanly.
    pub stop: &'a AtomicBool,
    /// Set by a stage while it watches `stop`.
    pub stoppable: &'a AtomicBool,
}

impl Context<'_> {
    /// Where ONNX Runtime is looked for, and what it must be able to do.
    pub fn runtime_options(&self, compute: Compute) -> RuntimeOptions {
        let (cache, offline) = (self.search.cache.clone(), self.search.offline);
        RuntimeOptions { library: self.library.clone(), cache, offline, compute }
    }

    /// Whether to go on, as a solver asks.
    pub fn flow(&self) -> ControlFlow<()> {
        if self.stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Runs a fit: cleanly stopped where the solver asks whether to go on, ended at once elsewhere, since the run is untouched then.
    fn stopping<T>(&self, solver: Solver, fit: impl FnOnce() -> T) -> T {
        if solver.can_be_stopped() { self.stoppable(fit) } else { self.ending_at_once(fit) }
    }

    /// Runs something that does not ask whether to go on; a signal ends the process.
    fn ending_at_once<T>(&self, work: impl FnOnce() -> T) -> T {
        let before = self.stoppable.swap(false, Ordering::Relaxed);
        let result = work();
        self.stoppable.store(before, Ordering::Relaxed);
        result
    }

    /// Runs something that ends cleanly by itself once `stop` is set.
    pub fn stoppable<T>(&self, work: impl FnOnce() -> T) -> T {
        self.stoppable.store(true, Ordering::Relaxed);
        let result = work();
        self.stoppable.store(false, Ordering::Relaxed);
        result
    }
}

/// A pipeline with its folders resolved.
#[derive(Clone, Debug)]
pub struct Pipeline {
    /// The file it came from.
    pub file: Option<PathBuf>,
    /// As set.
    pub settings: Settings,
    /// Short name: of the source and the input size.
    pub name: String,
    /// Folder of the feature store.
    pub features: PathBuf,
    /// Folder of the run.
    pub run: PathBuf,
}

impl Pipeline {
    /// Opens the feature store, read as the head wants it.
    fn open_store(&self) -> Result<Store, PipelineError> {
        match Store::open(&self.features) {
            Err(StoreError::Missing(_)) if !self.settings.output.keeps_features() => {
                let recorded = RunDir::new(&self.run).file("pipeline.toml");
                let file = self.file.as_ref().or(recorded.is_file().then_some(&recorded)).map(|file| quoted(file));
                let how = file.unwrap_or_else(|| "with the same flags".to_owned());
                Err(PipelineError::Uncached { features: self.features.clone(), how })
            }
            opened => {
                let store = opened?;
                made::agree(&self.settings, &self.features, store.manifest())?;
                Ok(store.with_transform(self.settings.head.transform))
            }
        }
    }

    /// Settles what the settings leave open.
    ///
    /// # Errors
    /// When a value is out of its range, neither a source nor a features folder is named, or one folder is to be two things.
    pub fn new(settings: Settings, file: Option<&Path>) -> Result<Self, PipelineError> {
        settings.head.check_ref()?;
        settings.check_ranges()?;
        let output = &settings.output;
        let source = settings.data.source.as_deref().map(short_name);
        let from_features = || output.features.as_ref().map(|path| short_name(&path.to_string_lossy()));
        let mut name = source.or_else(from_features).ok_or(PipelineError::NoFeatures)?;
        if let (Some(_), Some(side)) = (&settings.data.source, settings.backbone.input_size) {
            name = format!("{name}-{side}");
        }
        if settings.data.source.is_some() {
            name.push_str(&suffix(&settings.backbone.layers));
        }
        let features = output.features.clone().unwrap_or_else(|| Path::new("features").join(&name));
        let run = output.run.clone().unwrap_or_else(|| Path::new("runs").join(&name));
        for (key, path) in [("output.features", &features), ("output.run", &run)] {
            if path.as_os_str().is_empty() {
                return Err(PipelineError::Settings { origin: key.into(), reason: "empty; name a folder".into() });
            }
        }
        if is_inside(&run, &features) {
            let reason = format!("{} lies inside the feature store, {}; name another folder", run.display(), features.display());
            return Err(PipelineError::Settings { origin: "output.run".into(), reason });
        }
        let source = settings.data.source.as_deref().map(Path::new);
        for (path, one, with, other, flag) in [
            (&run, "the run folder", Some(features.as_path()), "the feature store", "--run"),
            (&run, "the run folder", source, "the source of images", "--run"),
            (&features, "the feature store", source, "the source of images", "--features"),
        ] {
            if with.is_some_and(|with| same_folder(path, with)) {
                return Err(PipelineError::SameFolder { path: path.clone(), one, other, flag });
            }
        }
        Ok(Self { file: file.map(Path::to_path_buf), settings, name, features, run })
    }

    /// The pipeline as resolved, in TOML: what `pipeline.toml` of the run holds.
    ///
    /// # Errors
    /// When a setting cannot be written as TOML.
    pub fn resolved(&self) -> Result<String, PipelineError> {
        let mut settings = self.settings.clone();
        settings.output.features = Some(self.features.clone());
        settings.output.run = Some(self.run.clone());
        toml::to_string(&settings)
            .map_err(|error| PipelineError::Settings { origin: "pipeline.toml".into(), reason: error.to_string() })
    }
}

/// Where a path leads, whether or not there is anything.
fn place(path: &Path) -> Option<PathBuf> {
    std::fs::canonicalize(path).or_else(|_| std::path::absolute(path)).ok()
}

/// Whether two paths lead to one place.
pub(crate) fn same_folder(a: &Path, b: &Path) -> bool {
    a == b || place(a).is_some_and(|a| place(b) == Some(a))
}

fn is_inside(inner: &Path, outer: &Path) -> bool {
    !same_folder(inner, outer) && place(inner).zip(place(outer)).is_some_and(|(inner, outer)| inner.starts_with(outer))
}

/// What tells the folders of these layers from those of others.
fn suffix(layers: &Layers) -> String {
    match layers {
        Layers::Pooled => String::new(),
        Layers::Multi | Layers::MultiAll => format!("-{layers}"),
        Layers::Named(_) => format!("-layers-{}", &blake3::hash(layers.to_string().as_bytes()).to_hex()[..8]),
    }
}

/// A path as a shell takes it.
pub(crate) fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@%,".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// `./photos/pets/` -> `pets`, `a/b.parquet` -> `b`.
fn short_name(source: &str) -> String {
    let stem = Path::new(source).file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let safe = |c: char| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    let name: String = stem.chars().map(safe).collect();
    if name.trim_matches(['.', '_']).is_empty() { "images".into() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_follow_the_source_unless_named() {
        let mut settings = Settings::default();
        assert!(matches!(Pipeline::new(settings.clone(), None), Err(PipelineError::NoFeatures)));
        settings.data.source = Some("./photos/pets/".into());
        settings.backbone.input_size = Some(96);
        let pipeline = Pipeline::new(settings.clone(), None).unwrap();
        assert_eq!(pipeline.features, Path::new("features/pets-96"));
        assert_eq!(pipeline.run, Path::new("runs/pets-96"));
        for (layers, features) in [
            ("multi-all", "features/pets-96-multi-all"),
            ("multi", "features/pets-96-multi"),
            ("a/b, block_*/out", "features/pets-96-layers-"),
        ] {
            settings.backbone.layers = layers.parse().unwrap();
            let pipeline = Pipeline::new(settings.clone(), None).unwrap();
            assert!(pipeline.features.display().to_string().starts_with(features), "{}", pipeline.features.display());
        }
        settings.output.run = Some("r".into());
        assert_eq!(Pipeline::new(settings, None).unwrap().run, Path::new("r"));
    }

    #[test]
    fn paths_are_quoted_where_a_shell_needs_it() {
        assert_eq!(
            ["runs/a-1.toml", "my photos", "it's", ""].map(|path| quoted(Path::new(path))),
            ["runs/a-1.toml", "'my photos'", r"'it'\''s'", "''"]
        );
    }

    #[test]
    fn odd_sources_still_have_a_name() {
        assert_eq!(
            ["cifar10", "a/*.parquet", "/", "..", "x/b c.tar"].map(short_name),
            ["cifar10", "images", "images", "images", "b_c"]
        );
    }
}
