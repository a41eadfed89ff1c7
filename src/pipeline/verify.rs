//! A classifier on labelled images: whether it answers as it did when it was exported, and how often it is right.

use std::collections::HashMap;
use std::path::PathBuf;

use bytes::Bytes;
use serde::Serialize;

use super::export::Scored;
use super::{Context, DataSettings, PipelineError, open_dataset};
use crate::dataset::Dataset;
use crate::deploy::{Comparison, DeployError, Deployed, KeptAnswer, Metadata, Parity, Said, Sample, short_hash};
use crate::evaluate::wilson_interval;
use crate::events::{Event, Unit};
use crate::onnx::Model;
use crate::run::RunDir;
use crate::runtime::{Compute, Runtime, locate};

/// Images that are read and answered at a time.
const CHUNK: usize = 512;

/// What is verified, on what.
#[derive(Clone, Debug, Default)]
pub struct VerifyOptions {
    /// The classifier.
    pub model: PathBuf,
    /// The images; where no source is named, those that the model was scored with.
    pub data: DataSettings,
    /// The split; none is test, else validation, else the first.
    pub split: Option<String>,
    /// At most so many images, the first of the split; none is all.
    pub limit: Option<usize>,
    /// A run whose answers are compared too.
    pub run: Option<PathBuf>,
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

/// Runs a classifier on labelled images.
///
/// # Errors
/// When the model, the images or the run cannot be used, or the answers differ by more than was allowed when it was exported.
pub fn verify(options: &VerifyOptions, context: &Context<'_>) -> Result<Verified, PipelineError> {
    let model = Model::read(&options.model).map_err(DeployError::from)?;
    let shown = options.model.display().to_string();
    let metadata = Metadata::read(&model)?.ok_or_else(|| DeployError::Foreign(shown.clone()))?;
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
    let Some(source) = data.source.clone() else {
        let reason =
            "the model does not say which images it was scored with: name some, as in tlpipe verify MODEL SOURCE".to_owned();
        return Err(PipelineError::Settings { origin: shown, reason });
    };
    let dataset = open_dataset(&data, context)?;
    let names: Vec<&str> = dataset.splits().iter().map(|split| &*split.name).collect();
    let usual = || ["test", "validation"].into_iter().find(|name| names.contains(name)).or(names.first().copied());
    let split = options.split.as_deref().or_else(usual).unwrap_or_default().to_owned();
    let labels = labels(&dataset, &metadata, &source)?;
    let scored = match &options.run {
        Some(run) => Some(Scored::load(&RunDir::new(run), &metadata, usize::MAX)?),
        None => None,
    };
    let runtime = Runtime::start(&locate(&context.runtime_options(Compute::CPU), context.observe)?)?;
    let deployed = Deployed::open(&runtime, &model, &metadata)?;
    let mut pass = Pass::new(&metadata, &labels, scored.as_ref().filter(|scored| scored.split == split));
    pass.run(&dataset, &split, options.limit.unwrap_or(usize::MAX), &deployed, context)?;
    let verified = pass.finish(options.model.clone(), source, split);
    match &verified.parity {
        Some(parity) if !parity.holds() => Err(DeployError::Differs { model: shown, parity: Box::new(parity.clone()) }.into()),
        _ => Ok(verified),
    }
}

/// The model's class for each class of the source, by name.
fn labels(dataset: &Dataset, metadata: &Metadata, source: &str) -> Result<Vec<Option<usize>>, PipelineError> {
    let place = |class: &String| metadata.classes.iter().position(|known| known == class);
    let labels: Vec<Option<usize>> = dataset.classes().iter().map(place).collect();
    if !labels.is_empty() && labels.iter().all(Option::is_none) {
        let some = |names: &[String]| names.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
        let reason = format!(
            "none of its classes ({}) is one of the model's ({}): name images of the same classes",
            some(dataset.classes()),
            some(&metadata.classes)
        );
        return Err(PipelineError::Settings { origin: source.to_owned(), reason });
    }
    Ok(labels)
}

/// One pass over the images.
struct Pass<'a> {
    metadata: &'a Metadata,
    labels: &'a [Option<usize>],
    /// Answers that the model keeps, by the image.
    kept: HashMap<&'a str, &'a KeptAnswer>,
    scored: Option<&'a Scored>,
    comparison: Comparison,
    images: usize,
    unusable: usize,
    labelled: usize,
    right: usize,
    loss: f64,
}

impl<'a> Pass<'a> {
    fn new(metadata: &'a Metadata, labels: &'a [Option<usize>], scored: Option<&'a Scored>) -> Self {
        let kept = metadata.parity.iter().flat_map(|parity| &parity.answers);
        Self {
            metadata,
            labels,
            kept: kept.map(|answer| (answer.hash.as_str(), answer)).collect(),
            scored,
            comparison: Comparison::default(),
            images: 0,
            unusable: 0,
            labelled: 0,
            right: 0,
            loss: 0.0,
        }
    }

    fn run(
        &mut self,
        dataset: &Dataset,
        split: &str,
        limit: usize,
        deployed: &Deployed,
        context: &Context<'_>,
    ) -> Result<(), PipelineError> {
        const TASK: &str = "verify";
        let rows = dataset.splits().iter().find(|found| &*found.name == split).map_or(0, |found| found.rows);
        (context.observe)(Event::Started { task: TASK, total: Some(rows.min(limit) as u64), unit: Unit::Images });
        let mut records = dataset.records(split)?.take(limit);
        let mut done = 0;
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
                    Err(_) => self.unusable += 1,
                }
            }
            for (((id, label), bytes), said) in named.into_iter().zip(&images).zip(deployed.answer(&images)?) {
                match said {
                    Ok(said) => self.add(id, label, bytes, &said),
                    Err(_) => self.unusable += 1,
                }
            }
            (context.observe)(Event::Advanced { task: TASK, done });
        }
        (context.observe)(Event::Finished { task: TASK });
        Ok(())
    }

    fn add(&mut self, id: String, label: Option<usize>, bytes: &Bytes, said: &Said) {
        self.images += 1;
        if let Some(label) = label {
            self.labelled += 1;
            self.right += usize::from(said.class == label);
            let probability = said.probabilities.get(label).copied().unwrap_or_default();
            self.loss -= f64::from(probability).max(f64::MIN_POSITIVE).ln();
        }
        if let Some(scored) = self.scored {
            if let Some(expected) = scored.answer(&id) {
                self.comparison.add(&Sample { id, bytes: bytes.clone(), expected: expected.to_vec() }, said);
            }
        } else if !self.kept.is_empty()
            && let Some(answer) = self.kept.get(short_hash(bytes).as_str())
        {
            // What is not kept is taken for what it is.
            let mut expected = said.probabilities.clone();
            if let Some(probability) = expected.get_mut(answer.class) {
                *probability = answer.probability;
            }
            self.comparison.add_known(&expected, answer.class, bytes, said);
        }
    }

    fn finish(self, model: PathBuf, source: String, split: String) -> Verified {
        let some = self.labelled > 0;
        let rows = self.labelled.max(1) as f64;
        let parity = self.metadata.parity.as_ref().map(|parity| self.comparison.finish(&split, parity.bound));
        Verified {
            model,
            source,
            split,
            images: self.images,
            unusable: self.unusable,
            labelled: self.labelled,
            accuracy: some.then(|| self.right as f64 / rows),
            accuracy_interval: some.then(|| wilson_interval(self.right, self.labelled)),
            loss: some.then(|| self.loss / rows),
            parity: parity.filter(|parity| parity.images > 0).map(|parity| Parity { answers: Vec::new(), ..parity }),
        }
    }
}
