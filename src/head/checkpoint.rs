//! `checkpoint.safetensors`: a fit between two epochs, so that a long one that was stopped or killed goes on where it was.
//!
//! ```text
//! weights.*  first.*  second.*  best.*    F32 kernel [D, K] and bias [K]; best only with early stopping
//! history                                 F64 [epochs, 7], the columns of history.csv; NaN where there is none
//! losses                                  F64 [2]: the first batch's, the best val_loss; NaN where there is none
//! metadata  tlpipe.checkpoint = {"version": 1, "key": the fit's, "steps": …, "best_epoch": …, "digest": BLAKE3 of all else}
//! ```

use std::collections::HashMap;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ndarray::Array2;
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use serde::{Deserialize, Serialize};

use super::early::Best;
use super::file::{little_endian, values};
use super::{HeadError, Weights};
use crate::events::{Event, Observer};
use crate::persist::persist;
use crate::run::EpochRecord;

const VERSION: u32 = 1;

/// Key of the metadata entry.
const ENTRY: &str = "tlpipe.checkpoint";

/// Columns of an epoch's record.
const COLUMNS: usize = 7;

/// A fit between two epochs.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct State {
    pub(super) weights: Weights,
    /// Adam's moments.
    pub(super) first: Weights,
    pub(super) second: Weights,
    pub(super) steps: u64,
    /// Mean loss of the first batch.
    pub(super) first_loss: Option<f64>,
    pub(super) history: Vec<EpochRecord>,
    pub(super) best: Option<Best>,
}

impl State {
    /// Before the first epoch.
    pub(super) fn start(initial: &Weights) -> Self {
        let zero = Weights { kernel: Array2::zeros(initial.kernel.dim()), bias: ndarray::Array1::zeros(initial.bias.len()) };
        let (weights, first, second) = (initial.clone(), zero.clone(), zero);
        Self { weights, first, second, steps: 0, first_loss: None, history: Vec::new(), best: None }
    }
}

/// Keeps checkpoints of one fit in one file.
pub struct Checkpoints<'a> {
    path: PathBuf,
    key: String,
    observe: Observer<'a>,
    every: Duration,
    last: Instant,
}

#[derive(Serialize, Deserialize)]
struct Metadata {
    version: u32,
    key: String,
    steps: u64,
    best_epoch: Option<usize>,
    #[serde(default)]
    digest: String,
}

/// A tensor's name, type, shape and little-endian values.
type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

impl<'a> Checkpoints<'a> {
    /// Name of the file in a run folder.
    pub const FILE: &'static str = "checkpoint.safetensors";

    /// Checkpoints in the file `path`, at an epoch's end when ten seconds have passed. `key` stands for everything that the fit
    /// depends on: a checkpoint with another key is removed.
    pub fn new(path: impl Into<PathBuf>, key: impl Into<String>, observe: Observer<'a>) -> Self {
        let (every, last) = (Duration::from_secs(10), Instant::now());
        Self { path: path.into(), key: key.into(), observe, every, last }
    }

    /// Checkpoints at an epoch's end when another time has passed.
    #[must_use]
    pub fn every(self, every: Duration) -> Self {
        Self { every, ..self }
    }

    /// The checkpoint, if there is one of this fit that can be used.
    pub(super) fn resume(&self, shape: (usize, usize), epochs: usize) -> Option<State> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => return self.ignore(&error.to_string()),
        };
        match self.read(&bytes, shape, epochs) {
            Ok(Some(state)) => {
                let done = state.history.len();
                (self.observe)(Event::Noted(format!(
                    "fit-head  goes on after epoch {done} of {epochs} ({})",
                    self.path.display()
                )));
                Some(state)
            }
            Ok(None) => {
                // Of settings or features that are no more; it is written over in any case.
                let _ = fs::remove_file(&self.path);
                None
            }
            Err(reason) => self.ignore(&reason),
        }
    }

    fn ignore(&self, reason: &str) -> Option<State> {
        let path = self.path.display();
        (self.observe)(Event::Warned(format!(
            "{path}: {reason}; the checkpoint is ignored and the fit starts from the beginning"
        )));
        None
    }

    /// Writes a checkpoint if it is time.
    pub(super) fn keep_if_due(&mut self, state: impl FnOnce() -> State) {
        if self.last.elapsed() < self.every {
            return;
        }
        if let Err(error) = self.keep(&state()) {
            // The fit is worth more than its checkpoint.
            (self.observe)(Event::Warned(format!("no checkpoint could be written: {error}")));
        }
        self.last = Instant::now();
    }

    /// Writes a checkpoint.
    pub(super) fn keep(&mut self, state: &State) -> Result<(), HeadError> {
        let bytes = self.to_bytes(state).map_err(|reason| HeadError::Damaged { path: self.path.clone(), reason })?;
        persist(&self.path, |file| file.write_all(&bytes)).map_err(|source| HeadError::Io { path: self.path.clone(), source })?;
        self.last = Instant::now();
        Ok(())
    }

    fn to_bytes(&self, state: &State) -> Result<Vec<u8>, String> {
        let best = state.best.as_ref();
        let sets = [("weights", &state.weights), ("first", &state.first), ("second", &state.second)];
        let sets = sets.into_iter().chain(best.map(|best| ("best", &best.weights)));
        let mut tensors: Vec<Tensor> = Vec::new();
        for (name, Weights { kernel, bias }) in sets {
            let (rows, columns) = kernel.dim();
            tensors.push((format!("{name}.kernel"), Dtype::F32, vec![rows, columns], little_endian(kernel.iter())));
            tensors.push((format!("{name}.bias"), Dtype::F32, vec![bias.len()], little_endian(bias.iter())));
        }
        let history: Vec<f64> = state.history.iter().flat_map(columns).collect();
        let losses = [state.first_loss, best.map(|best| best.val_loss)].map(or_nan);
        tensors.push(("history".into(), Dtype::F64, vec![state.history.len(), COLUMNS], wide(&history)));
        tensors.push(("losses".into(), Dtype::F64, vec![losses.len()], wide(&losses)));

        let (steps, best_epoch) = (state.steps, best.map(|best| best.epoch));
        let mut metadata = Metadata { version: VERSION, key: self.key.clone(), steps, best_epoch, digest: String::new() };
        let views: Vec<_> = tensors
            .iter()
            .map(|(name, dtype, shape, bytes)| TensorView::new(*dtype, shape.clone(), bytes).map(|view| (name.as_str(), view)))
            .collect::<Result<_, _>>()
            .map_err(|error| error.to_string())?;
        metadata.digest = digest(&metadata, views.iter().map(|(name, view)| (*name, view.shape(), view.data())))?;
        let metadata = serde_json::to_string(&metadata).map_err(|error| error.to_string())?;
        serialize(views, Some(HashMap::from([(ENTRY.to_owned(), metadata)]))).map_err(|error| error.to_string())
    }

    /// The state; none where it is of another fit.
    pub(super) fn read(&self, bytes: &[u8], (features, classes): (usize, usize), epochs: usize) -> Result<Option<State>, String> {
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| format!("not a safetensors file: {error}"))?;
        let tensors = SafeTensors::deserialize(bytes).map_err(|error| format!("not a safetensors file: {error}"))?;
        let entry = header.metadata().as_ref().and_then(|metadata| metadata.get(ENTRY));
        let entry = entry.ok_or_else(|| format!("no metadata entry \"{ENTRY}\""))?;
        let mut metadata: Metadata = serde_json::from_str(entry).map_err(|error| format!("metadata \"{ENTRY}\": {error}"))?;
        let said = std::mem::take(&mut metadata.digest);
        // Any order will do, as long as it is that of `to_bytes`.
        let order =
            ["weights", "first", "second", "best"].into_iter().flat_map(|set| [format!("{set}.kernel"), format!("{set}.bias")]);
        let names: Vec<String> = order.chain(["history".into(), "losses".into()]).collect();
        let present: Vec<_> = names.iter().filter_map(|name| Some((name.as_str(), tensors.tensor(name).ok()?))).collect();
        if digest(&metadata, present.iter().map(|(name, view)| (*name, view.shape(), view.data())))? != said {
            return Err("damaged (its digest is another one)".into());
        }
        if metadata.version != VERSION || metadata.key != self.key {
            return Ok(None);
        }
        let set = |name: &str| -> Result<Weights, String> {
            let (shape, kernel) = values(&tensors, &format!("{name}.kernel"), 2)?;
            let (_, bias) = values(&tensors, &format!("{name}.bias"), 1)?;
            if (shape[0], shape[1], bias.len()) != (features, classes, classes) {
                return Err(format!("the fit has {features} features and {classes} classes, the checkpoint {shape:?}"));
            }
            let kernel = Array2::from_shape_vec((features, classes), kernel).map_err(|error| error.to_string())?;
            Ok(Weights { kernel, bias: bias.into() })
        };
        let doubles = |name: &str| -> Result<Vec<f64>, String> {
            let tensor = tensors.tensor(name).map_err(|_| format!("tensor \"{name}\" is missing"))?;
            Ok(tensor.data().as_chunks::<8>().0.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect())
        };
        let history: Vec<EpochRecord> = doubles("history")?
            .as_chunks::<COLUMNS>()
            .0
            .iter()
            .enumerate()
            .map(|(row, values)| record(row + 1, values))
            .collect();
        let losses = doubles("losses")?;
        let &[first_loss, val_loss] = &losses[..] else { return Err("tensor \"losses\" has another length than 2".into()) };
        if history.is_empty() || history.len() > epochs {
            return Err(format!("{} epochs of {epochs}", history.len()));
        }
        let best = match metadata.best_epoch {
            Some(epoch) => Some(Best { epoch, val_loss, weights: set("best")? }),
            None => None,
        };
        let (weights, first, second) = (set("weights")?, set("first")?, set("second")?);
        Ok(Some(State { weights, first, second, steps: metadata.steps, first_loss: some(first_loss), history, best }))
    }
}

fn digest<'t>(metadata: &Metadata, tensors: impl Iterator<Item = (&'t str, &'t [usize], &'t [u8])>) -> Result<String, String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&serde_json::to_vec(metadata).map_err(|error| error.to_string())?);
    for (name, shape, bytes) in tensors {
        hasher.update(format!("{name}{shape:?}").as_bytes()).update(bytes);
    }
    Ok(hasher.finalize().to_hex().to_string())
}

fn columns(record: &EpochRecord) -> [f64; COLUMNS] {
    let EpochRecord { epoch, loss, accuracy, val_loss, val_accuracy, seconds, learning_rate } = record;
    [*epoch as f64, *loss, *accuracy, or_nan(*val_loss), or_nan(*val_accuracy), *seconds, or_nan(*learning_rate)]
}

fn record(epoch: usize, &[_, loss, accuracy, val_loss, val_accuracy, seconds, learning_rate]: &[f64; COLUMNS]) -> EpochRecord {
    let [val_loss, val_accuracy, learning_rate] = [val_loss, val_accuracy, learning_rate].map(some);
    EpochRecord { epoch, loss, accuracy, val_loss, val_accuracy, seconds, learning_rate }
}

fn or_nan(value: Option<f64>) -> f64 {
    value.unwrap_or(f64::NAN)
}

fn some(value: f64) -> Option<f64> {
    Some(value).filter(|value| !value.is_nan())
}

fn wide(values: &[f64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
