//! A classifier on labelled images: whether it answers as it did when it was exported, and how often it is right.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::Serialize;

use super::export::bound;
use super::scored::Scored;
use super::{Context, DataSettings, PipelineError, open_dataset, same_folder};
use crate::assets::{Finder, Located};
use crate::dataset::Dataset;
use crate::deploy::{
    Bound, Classifier, Comparison, DeployError, Deployed, Hints, KeptAnswer, Metadata, Opening, Parity, Said, Sample, short_hash,
};
use crate::evaluate::wilson_interval;
use crate::events::{Event, Unit};
use crate::head::Head;
use crate::onnx::Model;
use crate::run::RunDir;
use crate::runtime::{Compute, Runtime, locate};
use crate::store::KeyParts;

/// Images that are read and answered at a time.
const CHUNK: usize = 512;

/// The split that heads are fitted on.
const TRAIN: &str = "train";

/// What is verified, on what.
#[derive(Clone, Debug, Default)]
pub struct VerifyOptions {
    /// The classifier: a path, or a registered name.
    pub model: String,
    /// The images; where no source is named, those that the model was scored with.
    pub data: DataSettings,
    /// The split; none is that of the answers of `run`, else test, else validation, else the first.
    pub split: Option<String>,
    /// At most so many images, the first of the split; none is all.
    pub limit: Option<usize>,
    /// The run that the model came from: its answers are compared too, and must be.
    pub run: Option<PathBuf>,
    /// What is known of a model that was not exported here.
    pub hints: Hints,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Verified {
    /// The classifier.
    pub model: PathBuf,
    /// The images.
    pub source: String,
    /// Their split.
    pub split: String,
    /// Whether these are images that the head was fitted on, so that it is right more often than on others.
    pub trained_on: bool,
    /// Images that were answered.
    pub images: usize,
    /// Images that cannot be used.
    pub unusable: usize,
    /// Answered images with a label that is one of the model's classes.
    pub labelled: usize,
    /// Share of these that is answered right; none where there is none.
    pub accuracy: Option<f64>,
    /// Wilson 95 % interval of `accuracy`.
    pub accuracy_interval: Option<[f64; 2]>,
    /// Mean cross-entropy of these, natural logarithm.
    pub loss: Option<f64>,
    /// Against the answers that the model keeps, or those of the run that was named; none where no image of those is there.
    pub parity: Option<Parity>,
}

/// Runs a classifier on labelled images. One that was not exported here is scored, and held against nothing.
///
/// # Errors
/// When the model, the images or the run cannot be used, the model did not come from the run, or the answers differ by more than was
/// allowed when it was exported.
pub fn verify(options: &VerifyOptions, context: &Context<'_>) -> Result<Verified, PipelineError> {
    let located = Finder::new(context.search.clone())?.model(&options.model, context.observe)?;
    let model = Model::from_bytes(&located.read()?, &options.model).map_err(DeployError::from)?;
    match Metadata::read(&model)? {
        Some(_) if options.hints != Hints::default() => Err(DeployError::Known(located.path).into()),
        Some(metadata) => exported(options, context, &located, (&model, &metadata)),
        None => foreign(options, context, &located),
    }
}

fn exported(
    options: &VerifyOptions,
    context: &Context<'_>,
    located: &Located,
    (model, metadata): (&Model, &Metadata),
) -> Result<Verified, PipelineError> {
    let scored = match &options.run {
        Some(run) => {
            came_from(&RunDir::new(run), options, metadata)?;
            Some(Scored::load(&RunDir::new(run), metadata, usize::MAX)?)
        }
        None => None,
    };
    let recorded = &metadata.provenance;
    let data = match &options.data.source {
        Some(_) => options.data.clone(),
        None => DataSettings {
            source: recorded.source.clone(),
            image_column: options.data.image_column.clone().or(recorded.columns.image.clone()),
            label_column: options.data.label_column.clone().or(recorded.columns.label.clone()),
            split_column: options.data.split_column.clone().or(recorded.columns.split.clone()),
        },
    };
    let images = Labelled::open(options, context, data, scored.as_ref())?;
    let own = recorded.source.as_ref();
    let trained_on = images.split == TRAIN
        && own.is_some_and(|own| *own == images.source || same_folder(Path::new(own), Path::new(&images.source)));
    if trained_on {
        (context.observe)(Event::Warned(format!(
            "these are the images of {} in {}, which the model was trained on: on others it is right less often; name others, as in tlpipe \
             verify MODEL SOURCE",
            images.split, images.source
        )));
    }
    let labels = images.classes_of(&metadata.classes, context)?;
    let runtime = Runtime::start(&locate(&context.runtime_options(Compute::CPU), context.observe)?)?;
    let answers = Answers::Exported(Box::new(Deployed::open(&runtime, model, metadata)?));
    let against = match (&scored, &metadata.parity) {
        (Some(scored), kept) => {
            let usual = || bound(&metadata.store_key.parts, &metadata.provenance.precision);
            Against::Run(scored, kept.as_ref().map_or_else(usual, |kept| kept.bound))
        }
        (None, Some(kept)) => {
            Against::Kept(kept.answers.iter().map(|answer| (answer.hash.as_str(), answer)).collect(), kept.bound)
        }
        (None, None) => Against::Nothing,
    };
    let mut pass = Pass::new(&labels, against);
    pass.run(&images, options.limit, &answers, context)?;
    if let (Some(run), Some(scored), 0) = (&options.run, &scored, pass.comparison.images()) {
        let reason = format!(
            "it scored {} images of {}, and none of them is among the {} of {} in {}: name the images that it was scored with",
            scored.len(),
            scored.split,
            pass.images,
            images.split,
            images.source
        );
        return Err(PipelineError::OtherRun { run: run.clone(), model: options.model.clone(), reason });
    }
    let verified = Verified { trained_on, ..pass.finish(located.path.clone(), &images) };
    match &verified.parity {
        Some(parity) if !parity.holds() => {
            Err(DeployError::Differs { model: options.model.clone(), parity: Box::new(parity.clone()) }.into())
        }
        _ => Ok(verified),
    }
}

fn foreign(options: &VerifyOptions, context: &Context<'_>, located: &Located) -> Result<Verified, PipelineError> {
    if let Some(run) = &options.run {
        let reason = "it was not exported by tlpipe and came from no run; leave --run out to score it".to_owned();
        return Err(PipelineError::OtherRun { run: run.clone(), model: options.model.clone(), reason });
    }
    let images = Labelled::open(options, context, options.data.clone(), None)?;
    let runtime = Runtime::start(&locate(&context.runtime_options(Compute::CPU), context.observe)?)?;
    let opening = Opening { compute: Compute::CPU, threads: 1, batch: 0, hints: options.hints.clone() };
    let classifier = Classifier::open(located, &runtime, &opening)?;
    for assumption in classifier.assumptions() {
        (context.observe)(Event::Warned(assumption.clone()));
    }
    let labels = images.classes_of(classifier.classes(), context)?;
    let mut pass = Pass::new(&labels, Against::Nothing);
    pass.run(&images, options.limit, &Answers::Foreign(Box::new(classifier)), context)?;
    Ok(pass.finish(located.path.clone(), &images))
}

/// Refuses a run that the model did not come from: its answers are those of another head.
fn came_from(run: &RunDir, options: &VerifyOptions, metadata: &Metadata) -> Result<(), PipelineError> {
    let metrics = run.metrics()?;
    let (store, fit) = (&metadata.store_key, &metadata.metrics.fit_key);
    let keys = |here: &str, there: &str| format!("key {} in the run, {} in the model", short(here), short(there));
    let what = if metrics.store_key != store.key {
        let head = Head::load(&run.file("head.safetensors"))?;
        let unlike = |parts: &KeyParts| {
            let parts = parts.unlike(&store.parts).map(|(name, here, there)| match name {
                "backbone" => format!("{name} {} in the run, {} in the model", short(&here), short(&there)),
                "cut" => "other tensors".to_owned(),
                _ => format!("{name} {here} in the run, {there} in the model"),
            });
            parts.collect::<Vec<_>>().join("; ")
        };
        let unlike = head.store_parts().map(unlike).filter(|unlike| !unlike.is_empty());
        format!("its head was fitted on other features ({})", unlike.unwrap_or_else(|| keys(&metrics.store_key, &store.key)))
    } else if metrics.fit_key != *fit {
        format!("its head is of another fit on the same features: other settings or rows ({})", keys(&metrics.fit_key, fit))
    } else {
        return Ok(());
    };
    let reason = format!(
        "{what}; name the run that the model was exported from, or export this one: tlpipe export {}",
        super::quoted(run.path())
    );
    Err(PipelineError::OtherRun { run: run.path().to_owned(), model: options.model.clone(), reason })
}

/// Labelled images.
struct Labelled {
    dataset: Dataset,
    source: String,
    split: String,
}

impl Labelled {
    /// Opens the source and settles on a split: as asked, that of answers to be compared with, or the usual one.
    fn open(
        options: &VerifyOptions,
        context: &Context<'_>,
        data: DataSettings,
        scored: Option<&Scored>,
    ) -> Result<Self, PipelineError> {
        let usage = |origin: &str, reason: String| PipelineError::Settings { origin: origin.to_owned(), reason };
        let Some(source) = data.source.clone() else {
            let reason = "the model does not say which images it was scored with: name some, as in tlpipe verify MODEL SOURCE";
            return Err(usage(&options.model, reason.to_owned()));
        };
        let dataset = open_dataset(&data, context)?;
        let names: Vec<&str> = dataset.splits().iter().map(|split| &*split.name).collect();
        let found = names.join(", ");
        let there = |wanted: &[&str]| wanted.iter().find(|wanted| names.contains(wanted)).map(|&split| split.to_owned());
        let split = match (&options.split, scored) {
            (Some(asked), _) if there(&[asked]).is_none() => {
                return Err(usage("--split", format!("there is no split {asked:?} in {source}; splits found: {found}")));
            }
            (Some(asked), Some(scored)) if !scored.places().contains(&asked.as_str()) => {
                let reason = format!("the run's answers are to images of {}, not of {asked}: leave --split out", scored.split);
                return Err(usage("--split", reason));
            }
            (Some(asked), _) => asked.clone(),
            (None, Some(scored)) => there(&scored.places()).ok_or_else(|| {
                let reason = format!("the run's answers are to images of {}; splits of {source}: {found}", scored.split);
                usage("--run", reason)
            })?,
            (None, None) => there(&["test", "validation"]).or(there(&names)).unwrap_or_default(),
        };
        Ok(Self { dataset, source, split })
    }

    /// The model's class for each class of the source: by name, or one by one where the model does not name as many as there are.
    fn classes_of(&self, classes: &[String], context: &Context<'_>) -> Result<Vec<Option<usize>>, PipelineError> {
        let own = self.dataset.classes();
        let place = |class: &String| classes.iter().position(|known| known == class);
        let labels: Vec<Option<usize>> = own.iter().map(place).collect();
        if labels.is_empty() || labels.iter().any(Option::is_some) {
            return Ok(labels);
        }
        let unnamed = classes.iter().enumerate().all(|(index, name)| *name == index.to_string());
        if unnamed && classes.len() == own.len() {
            (context.observe)(Event::Warned(format!(
                "the model's {} classes are taken for those of {} in their order: {}",
                classes.len(),
                self.source,
                some(own)
            )));
            return Ok((0..classes.len()).map(Some).collect());
        }
        let reason = format!(
            "none of its {} classes ({}) is one of the model's {} ({}): name images of the same classes{}",
            own.len(),
            some(own),
            classes.len(),
            some(classes),
            if unnamed { ", or give the names of the model's with --labels" } else { "" }
        );
        Err(PipelineError::Settings { origin: self.source.clone(), reason })
    }
}

/// The first digits of a key.
fn short(key: &str) -> &str {
    key.get(..12).unwrap_or(key)
}

/// The first of some names.
fn some(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let more = if names.len() > SHOWN { ", …" } else { "" };
    names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ") + more
}

/// What answers.
enum Answers {
    /// As the model itself takes images.
    Exported(Box<Deployed>),
    /// By what is known of it.
    Foreign(Box<Classifier>),
}

impl Answers {
    fn to(&self, images: &[Bytes]) -> Result<Vec<Result<Said, String>>, DeployError> {
        match self {
            Self::Exported(deployed) => deployed.answer(images),
            Self::Foreign(classifier) => classifier.answer(images),
        }
    }
}

/// What answers are held against, and how far they may be from it.
enum Against<'a> {
    /// Those that the model keeps, by the image.
    Kept(HashMap<&'a str, &'a KeptAnswer>, Bound),
    /// Those of a run.
    Run(&'a Scored, Bound),
    Nothing,
}

/// One pass over the images.
struct Pass<'a> {
    labels: &'a [Option<usize>],
    against: Against<'a>,
    comparison: Comparison,
    images: usize,
    unusable: usize,
    labelled: usize,
    right: usize,
    loss: f64,
}

impl<'a> Pass<'a> {
    fn new(labels: &'a [Option<usize>], against: Against<'a>) -> Self {
        let comparison = Comparison::default();
        Self { labels, against, comparison, images: 0, unusable: 0, labelled: 0, right: 0, loss: 0.0 }
    }

    fn run(
        &mut self,
        from: &Labelled,
        limit: Option<usize>,
        answers: &Answers,
        context: &Context<'_>,
    ) -> Result<(), PipelineError> {
        const TASK: &str = "verify";
        let limit = limit.unwrap_or(usize::MAX);
        let rows = from.dataset.splits().iter().find(|found| *found.name == *from.split).map_or(0, |found| found.rows);
        (context.observe)(Event::Started { task: TASK, total: Some(rows.min(limit) as u64), unit: Unit::Images });
        let mut records = from.dataset.records(&from.split)?.take(limit);
        let (mut done, mut refused) = (0, None);
        loop {
            let chunk = records.by_ref().take(CHUNK).collect::<Result<Vec<_>, _>>()?;
            if chunk.is_empty() {
                break;
            }
            done += chunk.len() as u64;
            let mut named: Vec<(String, Option<usize>)> = Vec::with_capacity(chunk.len());
            let mut images: Vec<Bytes> = Vec::with_capacity(chunk.len());
            for record in chunk {
                match record.image.read()? {
                    Ok(bytes) => {
                        let label = record.label.and_then(|label| usize::try_from(label).ok());
                        named.push((record.id, label.and_then(|label| self.labels.get(label).copied().flatten())));
                        images.push(bytes);
                    }
                    Err(reason) => {
                        self.unusable += 1;
                        refused.get_or_insert(reason);
                    }
                }
            }
            for (((id, label), bytes), said) in named.into_iter().zip(&images).zip(answers.to(&images)?) {
                match said {
                    Ok(said) => self.add(id, label, bytes, &said),
                    Err(reason) => {
                        self.unusable += 1;
                        refused.get_or_insert(reason);
                    }
                }
            }
            (context.observe)(Event::Advanced { task: TASK, done });
        }
        (context.observe)(Event::Finished { task: TASK });
        match refused {
            Some(reason) if self.images == 0 => {
                Err(DeployError::NoneUsable { images: self.unusable, reason: reason.to_string() }.into())
            }
            _ => Ok(()),
        }
    }

    fn add(&mut self, id: String, label: Option<usize>, bytes: &Bytes, said: &Said) {
        self.images += 1;
        if let Some(label) = label {
            self.labelled += 1;
            self.right += usize::from(said.class == label);
            let probability = said.probabilities.get(label).copied().unwrap_or_default();
            self.loss -= f64::from(probability).max(f64::MIN_POSITIVE).ln();
        }
        match &self.against {
            Against::Run(scored, _) => {
                if let Some(expected) = scored.answer(&id) {
                    self.comparison.add(&Sample { id, bytes: bytes.clone(), expected: expected.to_vec() }, said);
                }
            }
            Against::Kept(kept, _) => {
                if let Some(answer) = kept.get(short_hash(bytes).as_str()) {
                    // What is not kept is taken for what it is.
                    let mut expected = said.probabilities.clone();
                    if let Some(probability) = expected.get_mut(answer.class) {
                        *probability = answer.probability;
                    }
                    self.comparison.add_known(&expected, answer.class, bytes, said);
                }
            }
            Against::Nothing => {}
        }
    }

    fn finish(self, model: PathBuf, from: &Labelled) -> Verified {
        let some = self.labelled > 0;
        let rows = self.labelled.max(1) as f64;
        let bound = match self.against {
            Against::Run(_, bound) | Against::Kept(_, bound) => Some(bound),
            Against::Nothing => None,
        };
        let parity = bound.filter(|_| self.comparison.images() > 0).map(|bound| self.comparison.finish(&from.split, bound));
        Verified {
            model,
            source: from.source.clone(),
            split: from.split.clone(),
            trained_on: false,
            images: self.images,
            unusable: self.unusable,
            labelled: self.labelled,
            accuracy: some.then(|| self.right as f64 / rows),
            accuracy_interval: some.then(|| wilson_interval(self.right, self.labelled)),
            loss: some.then(|| self.loss / rows),
            parity: parity.map(|parity| Parity { answers: Vec::new(), ..parity }),
        }
    }
}
