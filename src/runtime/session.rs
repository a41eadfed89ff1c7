//! A network, ready to run: batches of pixels in, rows of features out.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::path::Path;
use std::ptr;
use std::sync::{Mutex, OnceLock, PoisonError};

use ort::AsPointer as _;
use ort::environment::Environment;
use ort::ep::{self, ExecutionProvider, ExecutionProviderDispatch};
use ort::session::Session as OrtSession;
use ort::session::builder::GraphOptimizationLevel;
use ort::value::{DynValue, Tensor, TensorElementType, TensorRef, ValueType};

use super::card::Card;
use super::network::Network;
use super::{Build, Compute, Device, Provider, RuntimeError, cuda, openvino};

/// How to run a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionOptions {
    /// What to run on.
    pub compute: Compute,
    /// Threads of one run on the processor; at least 1. Several runs of one thread do more images a second than one run of
    /// several threads.
    pub threads: usize,
}

#[derive(Clone, Copy)]
enum Element {
    Float32,
    Uint8,
}

/// How runs of one network go together.
enum Runs {
    /// At the same time.
    Together(Network),
    /// One after the other.
    InTurn(Mutex<Network>),
    /// One after the other, on a card.
    OnCard(Card),
}

/// A network of one image input and one output. Threads may share it: on ONNX Runtime's own CPU provider they run at the same
/// time, with one copy of the weights between them, which is what the caches of the cores want; elsewhere one after the other.
pub struct Session {
    runs: Runs,
    element: Element,
    width: OnceLock<usize>,
    build: Build,
    placement: BTreeMap<String, usize>,
    fallback: Option<String>,
}

/// Part of a network's nodes that OpenVINO must have taken: it takes whole networks, and what it leaves is slow and of
/// another precision.
const OPENVINO_LEAST: f64 = 0.9;
/// Part of a network's nodes that a card must have taken. ONNX Runtime leaves arithmetic on shapes to the processor.
const CUDA_LEAST: f64 = 0.5;

impl Session {
    pub(super) fn new(
        environment: &Environment,
        library: &Path,
        model: &[u8],
        options: &SessionOptions,
    ) -> Result<Self, RuntimeError> {
        let SessionOptions { compute, threads } = *options;
        let on_processor = |fallback| {
            let inner = commit(environment, model, threads, None).map_err(|error| RuntimeError::Model(reason(&error)))?;
            Self::checked(inner, (Build::Cpu, None), fallback)
        };
        let on_card = |card| {
            ready::<ep::CUDA>(Build::Cuda, cuda::missing(card))?;
            cuda::preload(library);
            Self::on_provider(environment, model, threads, cuda::provider(card)?, (Build::Cuda, Some(card), CUDA_LEAST))
        };
        let result = match (compute.provider(), compute.device()) {
            (Provider::Default, Device::Cpu) => return on_processor(None),
            (Provider::Default, Device::Auto) => return on_card(0).or_else(|reason| on_processor(Some(reason))),
            (Provider::Default, Device::Cuda(card)) => on_card(card),
            (Provider::OpenVino, _) => ready::<ep::OpenVINO>(Build::OpenVino, compute.missing_hardware()).and_then(|()| {
                let provider = openvino::provider(compute.precision(), threads.max(1));
                Self::on_provider(environment, model, threads, provider, (Build::OpenVino, None, OPENVINO_LEAST))
            }),
        };
        result.map_err(|reason| RuntimeError::unavailable(compute, reason))
    }

    /// A session on a provider, which must take at least this part of the network. The error is the reason why it cannot be used.
    fn on_provider(
        environment: &Environment,
        model: &[u8],
        threads: usize,
        provider: ExecutionProviderDispatch,
        (build, card, least): (Build, Option<u32>, f64),
    ) -> Result<Self, String> {
        let inner = commit(environment, model, threads, Some(provider)).map_err(|error| reason(&error))?;
        let session = Self::checked(inner, (build, card), None).map_err(|error| error.to_string())?;
        // Asked for, registered, and still: what counts is where the nodes are.
        took(session.placement(), build.provider(), least)?;
        Ok(session)
    }

    fn checked(inner: OrtSession, (build, card): (Build, Option<u32>), fallback: Option<String>) -> Result<Self, RuntimeError> {
        let model = |reason: String| RuntimeError::Model(reason);
        let ([input], [output]) = (inner.inputs(), inner.outputs()) else {
            let found = format!("it has {} inputs and {} outputs, not one of each", inner.inputs().len(), inner.outputs().len());
            return Err(model(found));
        };
        let element = match input.dtype() {
            ValueType::Tensor { ty: TensorElementType::Float32, shape, .. } if shape.len() == 4 => Element::Float32,
            ValueType::Tensor { ty: TensorElementType::Uint8, shape, .. } if shape.len() == 4 => Element::Uint8,
            other => {
                return Err(model(format!("its input {:?} is {other}, not four-dimensional float32 or uint8", input.name())));
            }
        };
        let width = match output.dtype() {
            ValueType::Tensor { ty: TensorElementType::Float32, shape, .. } => {
                // The first is the batch; an unknown dimension is negative and makes the product unknown.
                shape.iter().skip(1).try_fold(1, |product: usize, size| product.checked_mul(usize::try_from(*size).ok()?))
            }
            other => return Err(model(format!("its output {:?} is {other}, not float32", output.name()))),
        };
        let placement = placement(&inner).map_err(|error| model(reason(&error)))?;
        let name = |name: &str| CString::new(name).map_err(|error| model(format!("the name {name:?}: {error}")));
        let (input, output) = (name(input.name())?, name(output.name())?);
        let width = width.map_or_else(OnceLock::new, OnceLock::from);
        let network = Network::new(inner, input, output);
        let runs = match (build, card) {
            (Build::Cpu, _) => Runs::Together(network),
            (_, None) => Runs::InTurn(Mutex::new(network)),
            (_, Some(card)) => {
                let card = cuda::page_locked(card).and_then(|memory| Card::new(network, memory));
                Runs::OnCard(card.map_err(|error| model(reason(&error)))?)
            }
        };
        Ok(Self { runs, element, width, build, placement, fallback })
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
        let images = shape[0];
        if values == 0 {
            return if images == 0 { Ok(Vec::new()) } else { Err(failed("its images are empty".to_owned())) };
        }
        let ort_failed = |error: ort::Error| failed(reason(&error));
        let output = self.answer(batch, shape).map_err(ort_failed)?;
        let (dimensions, rows) = output.try_extract_tensor::<f32>().map_err(ort_failed)?;
        if dimensions.first().and_then(|count| usize::try_from(*count).ok()) != Some(images) {
            return Err(failed(format!("the network answers with shape {dimensions:?}, not one row an image")));
        }
        let width = rows.len() / images;
        let known = *self.width.get_or_init(|| width);
        if known != width {
            return Err(failed(format!("the network answers with {width} values an image, {known} before")));
        }
        Ok(rows.to_vec())
    }

    fn answer(&self, batch: &[f32], shape: [usize; 4]) -> ort::Result<DynValue> {
        // `as` saturates, and turns NaN into 0.
        let byte = |value: &f32| value.round() as u8;
        let run = |network: &Network| match self.element {
            Element::Float32 => network.answer(TensorRef::from_array_view((shape, batch))?.ptr()),
            Element::Uint8 => {
                let bytes: Vec<u8> = batch.iter().map(byte).collect();
                network.answer(Tensor::from_array((shape, bytes))?.ptr())
            }
        };
        match (&self.runs, self.element) {
            (Runs::Together(network), _) => run(network),
            (Runs::InTurn(network), _) => run(&network.lock().unwrap_or_else(PoisonError::into_inner)),
            (Runs::OnCard(card), Element::Float32) => card.run(TensorElementType::Float32, shape, |input| {
                input.try_extract_tensor_mut::<f32>()?.1.copy_from_slice(batch);
                Ok(())
            }),
            (Runs::OnCard(card), Element::Uint8) => card.run(TensorElementType::Uint8, shape, |input| {
                input.try_extract_tensor_mut::<u8>()?.1.iter_mut().zip(batch).for_each(|(to, from)| *to = byte(from));
                Ok(())
            }),
        }
    }

    /// The same network, run by the processor as if it were a card.
    #[cfg(test)]
    pub(super) fn into_card(self) -> Self {
        let Runs::Together(network) = self.runs else { return self };
        let card = Card::new(network, ort::memory::MemoryInfo::default()).unwrap();
        Self { runs: Runs::OnCard(card), ..self }
    }

    /// What it runs on: `CPU`, `CUDA` or `OpenVINO`.
    pub fn provider(&self) -> &'static str {
        self.build.provider()
    }

    /// Whether it computes on the processor, in threads of its own.
    pub fn on_processor(&self) -> bool {
        self.build != Build::Cuda
    }

    /// Whether only one thread at a time can run it, so that more threads want more sessions.
    pub fn takes_turns(&self) -> bool {
        !matches!(self.runs, Runs::Together(_))
    }

    /// Number of the optimized network's nodes on each provider (`CPU`, `CUDA`).
    pub fn placement(&self) -> &BTreeMap<String, usize> {
        &self.placement
    }

    /// Why [`Device::Auto`] took the processor; none if it did not.
    pub fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
    }

    /// Values an image, D; none until the first run where the network does not declare it.
    pub fn width(&self) -> Option<usize> {
        self.width.get().copied()
    }
}

fn reason(error: &ort::Error) -> String {
    plain(error.message())
}

/// The message without ONNX Runtime's source line and status code before it, and what CUDA adds behind.
fn plain(message: &str) -> String {
    if let Some((of_cuda, _)) = message.split_once(" ; GPU=") {
        let said = of_cuda.rsplit_once("] ").map_or(of_cuda, |(_, said)| said);
        let full = ["alloc", "memory"].iter().any(|word| said.to_lowercase().contains(word));
        return format!("{said}{}", if full { "; the card's memory may be too small: give a smaller --batch" } else { "" });
    }
    let text = message.split_once("[ONNXRuntimeError] : ").and_then(|(_, rest)| rest.splitn(3, " : ").nth(2));
    text.unwrap_or(message).trim().to_owned()
}

/// Whether the machine and this build of ONNX Runtime can do it; the error is the reason why not.
fn ready<E: ExecutionProvider>(build: Build, missing_hardware: Option<String>) -> Result<(), String> {
    if let Some(reason) = missing_hardware {
        return Err(reason);
    }
    match E::is_available() {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!(
            "this ONNX Runtime is a build without {}; tlpipe doctor --install {build} gets one with it",
            build.provider()
        )),
        Err(error) => Err(error.to_string()),
    }
}

/// Refuses a placement that leaves a provider less than this part of the nodes.
#[allow(clippy::cast_precision_loss, reason = "a network has fewer nodes than 2^52")]
fn took(placement: &BTreeMap<String, usize>, provider: &str, least: f64) -> Result<(), String> {
    let (own, all) = (placement.get(provider).copied().unwrap_or(0), placement.values().sum::<usize>());
    if own > 0 && own as f64 >= all as f64 * least {
        return Ok(());
    }
    Err(format!("{provider} took {own} of the network's {all} nodes, the processor would run the others"))
}

fn commit(
    environment: &Environment,
    model: &[u8],
    threads: usize,
    provider: Option<ExecutionProviderDispatch>,
) -> ort::Result<OrtSession> {
    let mut builder = OrtSession::builder(environment)?
        .with_optimization_level(GraphOptimizationLevel::Level3)?
        .with_intra_threads(threads.max(1))?
        // Spinning threads take the cores from those that decode.
        .with_intra_op_spinning(false)?
        .with_config_entry("session.record_ep_graph_assignment_info", "1")?;
    if let Some(provider) = provider {
        builder = builder.with_execution_providers([provider])?;
    }
    builder.commit_from_memory(model)
}

/// Nodes on each provider, for people: `CPU 3, OpenVINO 1`.
pub fn listed(placement: &BTreeMap<String, usize>) -> String {
    placement.iter().map(|(name, nodes)| format!("{name} {nodes}")).collect::<Vec<_>>().join(", ")
}

/// Nodes on each provider, as ONNX Runtime recorded them.
fn placement(session: &OrtSession) -> ort::Result<BTreeMap<String, usize>> {
    let api = ort::api();
    let (mut parts, mut count) = (ptr::null(), 0);
    // SAFETY: the session lives, and owns the array that is given.
    let status = unsafe { (api.Session_GetEpGraphAssignmentInfo)(session.ptr(), &mut parts, &mut count) };
    // SAFETY: the status comes from ONNX Runtime and is passed on once.
    unsafe { ort::Error::result_from_status(status) }?;
    let mut placement = BTreeMap::new();
    for index in 0..count {
        let (mut name, mut nodes, mut node_count) = (ptr::null(), ptr::null(), 0);
        // SAFETY: `index` is below the length of the array; its items live as long as the session.
        let part = unsafe { *parts.add(index) };
        // SAFETY: as above.
        unsafe { ort::Error::result_from_status((api.EpAssignedSubgraph_GetEpName)(part, &mut name)) }?;
        // SAFETY: as above.
        unsafe { ort::Error::result_from_status((api.EpAssignedSubgraph_GetNodes)(part, &mut nodes, &mut node_count)) }?;
        // SAFETY: a successful call gives a text that ends with a zero and lives as long as the session.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
        *placement.entry(name.trim_end_matches("ExecutionProvider").to_owned()).or_insert(0) += node_count;
    }
    Ok(placement)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cuda_says_is_told_without_its_source_lines() {
        let said = "/src/cuda_call.cc:154 std::conditional_t<THRW, void, Status> CudaCall(int) [with bool THRW = true] CUBLAS failure 3: \
                    the resource allocation failed ; GPU=0 ; hostname=vm ; file=/src/cuda_stream_handle.cc ; line=79";
        let said = plain(said);
        assert!(said.starts_with("CUBLAS failure 3: the resource allocation failed; "), "{said}");
        assert!(said.ends_with("--batch"), "{said}");
    }

    #[test]
    fn a_provider_that_took_too_little_is_refused_with_the_counts() {
        let placement = |own, others| BTreeMap::from([("OpenVINO".to_owned(), own), ("CPU".to_owned(), others)]);
        assert_eq!(took(&placement(99, 1), "OpenVINO", 0.9), Ok(()));
        let said = took(&placement(60, 40), "OpenVINO", 0.9).unwrap_err();
        assert!(said.contains("OpenVINO took 60 of the network's 100 nodes"), "{said}");
        assert!(took(&placement(60, 40), "CUDA", 0.5).unwrap_err().contains("CUDA took 0 of"));
        assert!(took(&BTreeMap::new(), "CUDA", 0.5).is_err());
    }
}
