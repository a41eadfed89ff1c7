//! A whole classifier, ready to run: images in, whatever it gives out.

use std::ffi::CString;
use std::path::Path;

use ort::environment::Environment;
use ort::value::{DynValue, Outlet, TensorElementType, ValueType};

use super::opened::{Element, Opened, c_name, element, reason};
use super::{RuntimeError, SessionOptions};

/// An input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Sizes of its axes; none where they are open.
    pub shape: Vec<Option<usize>>,
}

/// A batch of images, row-major in the layout that the network wants.
#[derive(Clone, Copy, Debug)]
pub enum Images<'a> {
    /// For a network of float32.
    Float32(&'a [f32]),
    /// For a network of bytes.
    Uint8(&'a [u8]),
}

/// What an output gives, row-major.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Of float32: shape and values.
    Float32(Vec<usize>, Vec<f32>),
    /// Of int64: shape and values.
    Int64(Vec<usize>, Vec<i64>),
}

impl Answer {
    /// Its values, where they are float32.
    pub fn floats(self) -> Option<Vec<f32>> {
        match self {
            Self::Float32(_, values) => Some(values),
            Self::Int64(..) => None,
        }
    }

    /// Its values, where they are int64.
    pub fn integers(self) -> Option<Vec<i64>> {
        match self {
            Self::Int64(_, values) => Some(values),
            Self::Float32(..) => None,
        }
    }

    fn of(value: &DynValue) -> Result<Self, String> {
        let sizes = |shape: &[i64]| shape.iter().map(|&size| usize::try_from(size).unwrap_or_default()).collect();
        match value.dtype() {
            ValueType::Tensor { ty: TensorElementType::Float32, .. } => {
                let (shape, values) = value.try_extract_tensor::<f32>().map_err(|error| reason(&error))?;
                Ok(Self::Float32(sizes(shape), values.to_vec()))
            }
            ValueType::Tensor { ty: TensorElementType::Int64, .. } => {
                let (shape, values) = value.try_extract_tensor::<i64>().map_err(|error| reason(&error))?;
                Ok(Self::Int64(sizes(shape), values.to_vec()))
            }
            other => Err(format!("the network answers with {other}, not float32 or int64")),
        }
    }
}

/// A network of one image input and any number of outputs. Threads may share it, as they may a [`super::Session`].
pub struct Graph {
    opened: Opened,
    element: Element,
    input: Port,
    input_name: CString,
    outputs: Vec<Port>,
}

impl Graph {
    pub(super) fn new(
        environment: &Environment,
        library: &Path,
        model: &[u8],
        options: &SessionOptions,
    ) -> Result<Self, RuntimeError> {
        let opened = Opened::new(environment, library, model, options)?;
        let [input] = opened.inputs() else {
            return Err(RuntimeError::Model(format!("it has {} inputs, not one", opened.inputs().len())));
        };
        let (element, input_name, input) = (element(input)?, c_name(input.name())?, port(input));
        let outputs = opened.outputs().iter().map(port).collect();
        Ok(Self { opened, element, input, input_name, outputs })
    }

    /// What it takes.
    pub fn input(&self) -> &Port {
        &self.input
    }

    /// Whether it takes bytes, and not float32.
    pub fn takes_bytes(&self) -> bool {
        self.element == Element::Uint8
    }

    /// What it gives.
    pub fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    /// Whether only one thread at a time can run it.
    pub fn takes_turns(&self) -> bool {
        self.opened.takes_turns()
    }

    /// Whether it computes on the processor.
    pub fn on_processor(&self) -> bool {
        self.opened.on_processor()
    }

    /// What it runs on: `CPU`, `CUDA` or `OpenVINO`.
    pub fn provider(&self) -> &'static str {
        self.opened.build.provider()
    }

    /// Runs a batch and gives the outputs of these names, in their order.
    ///
    /// # Errors
    /// When the batch is not of this shape or of the wrong numbers, there is no such output, or the network fails.
    pub fn run(&self, images: Images<'_>, shape: [usize; 4], outputs: &[&str]) -> Result<Vec<Answer>, RuntimeError> {
        let failed = |reason: String| RuntimeError::Run { shape, reason };
        let ort_failed = |error: ort::Error| failed(reason(&error));
        let held = match images {
            Images::Float32(values) => values.len(),
            Images::Uint8(bytes) => bytes.len(),
        };
        let values: usize = shape.iter().product();
        if held != values || values == 0 {
            return Err(failed(format!("it holds {held} values, not {values}")));
        }
        let names = outputs.iter().map(|name| c_name(name)).collect::<Result<Vec<_>, _>>()?;
        match (images, self.element) {
            (Images::Float32(_), Element::Float32) | (Images::Uint8(_), Element::Uint8) => {}
            (_, Element::Float32) => return Err(failed("the network takes float32, not bytes".to_owned())),
            (_, Element::Uint8) => return Err(failed("the network takes bytes, not float32".to_owned())),
        }
        let answers = self.opened.answer(&self.input_name, images, shape, &names);
        answers.map_err(ort_failed)?.iter().map(|answer| Answer::of(answer).map_err(failed)).collect()
    }
}

fn port(outlet: &Outlet) -> Port {
    let shape = match outlet.dtype() {
        ValueType::Tensor { shape, .. } => shape.iter().map(|&size| usize::try_from(size).ok()).collect(),
        _ => Vec::new(),
    };
    Port { name: outlet.name().to_owned(), shape }
}
