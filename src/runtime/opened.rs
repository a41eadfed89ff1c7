//! A network that ONNX Runtime has taken in, and what it put where.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::path::Path;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use ort::AsPointer as _;
use ort::environment::Environment;
use ort::ep::{self, ExecutionProvider, ExecutionProviderDispatch};
use ort::session::Session as OrtSession;
use ort::session::builder::GraphOptimizationLevel;
use ort::value::{DynValue, Outlet, TensorElementType, TensorRef, ValueType};

use super::card::Card;
use super::graph::Images;
use super::network::Network;
use super::{Build, Device, Provider, RuntimeError, SessionOptions, cuda, openvino};

/// Part of a network's nodes that OpenVINO must have taken: it takes whole networks, and what it leaves is slow and of
/// another precision.
const OPENVINO_LEAST: f64 = 0.9;
/// Part of a network's nodes that a card must have taken. ONNX Runtime leaves arithmetic on shapes to the processor.
const CUDA_LEAST: f64 = 0.5;

/// A network on its provider. Threads may share it: on ONNX Runtime's own CPU provider they run at the same time, elsewhere one after
/// the other.
pub(super) struct Opened {
    /// Before the network: what holds its memory goes first.
    runs: Runs,
    network: Arc<Network>,
    pub(super) build: Build,
    pub(super) placement: BTreeMap<String, usize>,
    pub(super) fallback: Option<String>,
}

/// How runs of one network go together.
enum Runs {
    /// At the same time.
    Together,
    /// One after the other, with this held.
    InTurn(Mutex<()>),
    /// One after the other, on a card.
    OnCard(Card),
}

impl Opened {
    pub(super) fn new(
        environment: &Environment,
        library: &Path,
        model: &[u8],
        options: &SessionOptions,
    ) -> Result<Self, RuntimeError> {
        let SessionOptions { compute, threads } = *options;
        let on_processor = |fallback| {
            let inner = commit(environment, model, threads, None).map_err(|error| RuntimeError::Model(reason(&error)))?;
            Self::placed(inner, (Build::Cpu, None), fallback)
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

    /// A network on a provider, which must take at least this part of it. The error is the reason why it cannot be used.
    fn on_provider(
        environment: &Environment,
        model: &[u8],
        threads: usize,
        provider: ExecutionProviderDispatch,
        (build, card, least): (Build, Option<u32>, f64),
    ) -> Result<Self, String> {
        let inner = commit(environment, model, threads, Some(provider)).map_err(|error| reason(&error))?;
        let opened = Self::placed(inner, (build, card), None).map_err(|error| error.to_string())?;
        // Asked for, registered, and still: what counts is where the nodes are.
        took(&opened.placement, build.provider(), least)?;
        Ok(opened)
    }

    fn placed(inner: OrtSession, (build, card): (Build, Option<u32>), fallback: Option<String>) -> Result<Self, RuntimeError> {
        let failed = |error: ort::Error| RuntimeError::Model(reason(&error));
        let placement = placement(&inner).map_err(failed)?;
        let network = Arc::new(Network(inner));
        let runs = match (build, card) {
            (Build::Cpu, _) => Runs::Together,
            (_, None) => Runs::InTurn(Mutex::default()),
            (_, Some(card)) => {
                let card = cuda::page_locked(card).and_then(|memory| Card::new(Arc::clone(&network), memory));
                Runs::OnCard(card.map_err(failed)?)
            }
        };
        Ok(Self { runs, network, build, placement, fallback })
    }

    /// Inputs of the network.
    pub(super) fn inputs(&self) -> &[Outlet] {
        self.network.0.inputs()
    }

    /// Outputs of the network.
    pub(super) fn outputs(&self) -> &[Outlet] {
        self.network.0.outputs()
    }

    /// Whether it computes on the processor.
    pub(super) fn on_processor(&self) -> bool {
        self.build != Build::Cuda
    }

    /// Whether only one thread at a time can run it.
    pub(super) fn takes_turns(&self) -> bool {
        !matches!(self.runs, Runs::Together)
    }

    /// The outputs of these names for a batch of this shape, given as the input of this name.
    pub(super) fn answer(
        &self,
        name: &CString,
        images: Images<'_>,
        shape: [usize; 4],
        outputs: &[CString],
    ) -> ort::Result<Vec<DynValue>> {
        let _turn = match &self.runs {
            Runs::OnCard(card) => return card.run(name, images, shape, outputs),
            Runs::InTurn(turn) => Some(turn.lock().unwrap_or_else(PoisonError::into_inner)),
            Runs::Together => None,
        };
        match images {
            Images::Float32(values) => self.network.answer(name, TensorRef::from_array_view((shape, values))?.ptr(), outputs),
            Images::Uint8(bytes) => self.network.answer(name, TensorRef::from_array_view((shape, bytes))?.ptr(), outputs),
        }
    }

    /// The same network, run by the processor as if it were a card.
    #[cfg(test)]
    pub(super) fn into_card(mut self) -> Self {
        let card = Card::new(Arc::clone(&self.network), ort::memory::MemoryInfo::default());
        self.runs = Runs::OnCard(card.unwrap());
        self
    }
}

/// The numbers that an image input takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element {
    Float32,
    Uint8,
}

/// Refuses an input that takes no images.
pub(super) fn element(input: &Outlet) -> Result<Element, RuntimeError> {
    match input.dtype() {
        ValueType::Tensor { ty: TensorElementType::Float32, shape, .. } if shape.len() == 4 => Ok(Element::Float32),
        ValueType::Tensor { ty: TensorElementType::Uint8, shape, .. } if shape.len() == 4 => Ok(Element::Uint8),
        other => {
            Err(RuntimeError::Model(format!("its input {:?} is {other}, not four-dimensional float32 or uint8", input.name())))
        }
    }
}

/// A name as ONNX Runtime takes it.
pub(super) fn c_name(name: &str) -> Result<CString, RuntimeError> {
    CString::new(name).map_err(|error| RuntimeError::Model(format!("the name {name:?}: {error}")))
}

/// What went wrong, for people.
pub(super) fn reason(error: &ort::Error) -> String {
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
