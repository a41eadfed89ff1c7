//! A network, ready to run: batches of pixels in, rows of features out.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::path::Path;
use std::sync::OnceLock;

use ort::environment::Environment;
use ort::value::{TensorElementType, ValueType};

use super::graph::Images;
use super::opened::{Element, Opened, c_name, element, reason};
use super::{Compute, RuntimeError};

/// How to run a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionOptions {
    /// What to run on.
    pub compute: Compute,
    /// Threads of one run on the processor; at least 1. Several runs of one thread do more images a second than one run of
    /// several threads.
    pub threads: usize,
}

/// A network of one image input and one output. Threads may share it: on ONNX Runtime's own CPU provider they run at the same
/// time, with one copy of the weights between them, which is what the caches of the cores want; elsewhere one after the other.
pub struct Session {
    opened: Opened,
    element: Element,
    input: CString,
    output: CString,
    width: OnceLock<usize>,
}

impl Session {
    pub(super) fn new(
        environment: &Environment,
        library: &Path,
        model: &[u8],
        options: &SessionOptions,
    ) -> Result<Self, RuntimeError> {
        Self::checked(Opened::new(environment, library, model, options)?)
    }

    fn checked(opened: Opened) -> Result<Self, RuntimeError> {
        let model = |reason: String| RuntimeError::Model(reason);
        let (inputs, outputs) = (opened.inputs(), opened.outputs());
        let ([input], [output]) = (inputs, outputs) else {
            let found = format!("it has {} inputs and {} outputs, not one of each", inputs.len(), outputs.len());
            return Err(model(found));
        };
        let element = element(input)?;
        let width = match output.dtype() {
            ValueType::Tensor { ty: TensorElementType::Float32, shape, .. } => {
                // The first is the batch; an unknown dimension is negative and makes the product unknown.
                shape.iter().skip(1).try_fold(1, |product: usize, size| product.checked_mul(usize::try_from(*size).ok()?))
            }
            other => return Err(model(format!("its output {:?} is {other}, not float32", output.name()))),
        };
        let (input, output) = (c_name(input.name())?, c_name(output.name())?);
        let width = width.map_or_else(OnceLock::new, OnceLock::from);
        Ok(Self { opened, element, input, output, width })
    }

    /// Runs a batch and gives the features, row-major `[N, D]`. `batch` holds `shape`'s product of values, in the layout
    /// that the network wants; a uint8 network gets them rounded to 0..=255.
    ///
    /// # Errors
    /// When the batch is not of this shape, the network refuses the shape, or the answer is not one row an image.
    pub fn run(&self, batch: &[f32], shape: [usize; 4]) -> Result<Vec<f32>, RuntimeError> {
        let failed = |reason: String| RuntimeError::Run { shape, reason };
        let values: usize = shape.iter().product();
        if batch.len() != values {
            return Err(failed(format!("it holds {} values, not {values}", batch.len())));
        }
        let rows_wanted = shape[0];
        if values == 0 {
            return if rows_wanted == 0 { Ok(Vec::new()) } else { Err(failed("its images are empty".to_owned())) };
        }
        let ort_failed = |error: ort::Error| failed(reason(&error));
        let bytes: Vec<u8>;
        let images = match self.element {
            Element::Float32 => Images::Float32(batch),
            Element::Uint8 => {
                // `as` saturates, and turns NaN into 0.
                bytes = batch.iter().map(|value| value.round() as u8).collect();
                Images::Uint8(&bytes)
            }
        };
        let output = self.opened.answer(&self.input, images, shape, std::slice::from_ref(&self.output));
        let outputs = output.map_err(ort_failed)?;
        let output = outputs.first().ok_or_else(|| failed("the network gave no answer".to_owned()))?;
        let (dimensions, rows) = output.try_extract_tensor::<f32>().map_err(ort_failed)?;
        if dimensions.first().and_then(|count| usize::try_from(*count).ok()) != Some(rows_wanted) {
            return Err(failed(format!("the network answers with shape {dimensions:?}, not one row an image")));
        }
        let width = rows.len() / rows_wanted;
        let known = *self.width.get_or_init(|| width);
        if known != width {
            return Err(failed(format!("the network answers with {width} values an image, {known} before")));
        }
        Ok(rows.to_vec())
    }

    /// The same network, run by the processor as if it were a card.
    #[cfg(test)]
    pub(super) fn into_card(self) -> Self {
        Self { opened: self.opened.into_card(), ..self }
    }

    /// What it runs on: `CPU`, `CUDA` or `OpenVINO`.
    pub fn provider(&self) -> &'static str {
        self.opened.build.provider()
    }

    /// Whether it computes on the processor, in threads of its own.
    pub fn on_processor(&self) -> bool {
        self.opened.on_processor()
    }

    /// Whether only one thread at a time can run it, so that more threads want more sessions.
    pub fn takes_turns(&self) -> bool {
        self.opened.takes_turns()
    }

    /// Number of the optimized network's nodes on each provider (`CPU`, `CUDA`).
    pub fn placement(&self) -> &BTreeMap<String, usize> {
        &self.opened.placement
    }

    /// Why [`Device::Auto`] took the processor; none if it did not.
    pub fn fallback(&self) -> Option<&str> {
        self.opened.fallback.as_deref()
    }

    /// Values an image, D; none until the first run where the network does not declare it.
    pub fn width(&self) -> Option<usize> {
        self.width.get().copied()
    }
}

/// Nodes on each provider, for people: `CPU 3, OpenVINO 1`.
pub fn listed(placement: &BTreeMap<String, usize>) -> String {
    placement.iter().map(|(name, nodes)| format!("{name} {nodes}")).collect::<Vec<_>>().join(", ")
}
