//! Runs on a card: all by one thread, out of page-locked memory.
//!
//! ONNX Runtime sets CUDA's libraries up anew for each thread that runs a network, which takes a quarter of a second every time; and
//! what lies in ordinary memory is copied once more by the driver on its way to the card, at 3.5 GB/s (measured on an H100).

use std::ffi::CString;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use ort::AsPointer as _;
use ort::memory::{Allocator, MemoryInfo};
use ort::value::{DynTensor, DynValue, TensorElementType};

use super::graph::Images;
use super::network::Network;

/// The thread that runs a network on a card.
pub(super) struct Card {
    /// None once no more will come.
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
    locked: Mutex<Locked>,
}

struct Job {
    name: CString,
    input: DynTensor,
    outputs: Vec<CString>,
    answer: SyncSender<(ort::Result<Vec<DynValue>>, DynTensor)>,
}

/// Page-locked memory. Dear to get, so tensors are kept; those of the largest shape alone, which is that of nearly every batch.
struct Locked {
    spare: Vec<DynTensor>,
    allocator: Allocator,
}

impl Card {
    /// For a network on a card that reads this memory.
    pub(super) fn new(network: Arc<Network>, memory: MemoryInfo<'_>) -> ort::Result<Self> {
        let allocator = Allocator::new(&network.0, memory)?;
        let (jobs, next) = sync_channel::<Job>(0);
        let run = move || {
            for Job { name, input, outputs, answer } in next {
                // Cannot fail: who asked waits for it.
                let _ = answer.send((network.answer(&name, input.ptr(), &outputs), input));
            }
        };
        let thread = std::thread::Builder::new().name("card".to_owned()).spawn(run);
        let thread = thread.map_err(|error| ort::Error::new(format!("no thread for the card: {error}")))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread), locked: Mutex::new(Locked { spare: Vec::new(), allocator }) })
    }

    /// The outputs of these names for a batch of this shape, given as the input of this name.
    pub(super) fn run(
        &self,
        name: &CString,
        images: Images<'_>,
        shape: [usize; 4],
        outputs: &[CString],
    ) -> ort::Result<Vec<DynValue>> {
        let gone = || ort::Error::new("the thread that runs the card has ended");
        let input = match images {
            Images::Float32(values) => {
                let mut input = self.locked(|locked| locked.take(TensorElementType::Float32, shape))?;
                input.try_extract_tensor_mut::<f32>()?.1.copy_from_slice(values);
                input
            }
            Images::Uint8(bytes) => {
                let mut input = self.locked(|locked| locked.take(TensorElementType::Uint8, shape))?;
                input.try_extract_tensor_mut::<u8>()?.1.copy_from_slice(bytes);
                input
            }
        };
        let (answer, answered) = sync_channel(1);
        let job = Job { name: name.clone(), input, outputs: outputs.to_vec(), answer };
        self.jobs.as_ref().ok_or_else(gone)?.send(job).map_err(|_| gone())?;
        let (output, input) = answered.recv().map_err(|_| gone())?;
        self.locked(|locked| locked.give_back(input));
        output
    }

    fn locked<T>(&self, with: impl FnOnce(&mut Locked) -> T) -> T {
        with(&mut self.locked.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Locked {
    fn take(&mut self, element: TensorElementType, shape: [usize; 4]) -> ort::Result<DynTensor> {
        let fits =
            |spare: &DynTensor| *spare.data_type() == element && spare.shape().iter().eq(shape.map(|size| size as i64).iter());
        match self.spare.pop_if(|spare| fits(spare)) {
            Some(spare) => Ok(spare),
            None => DynTensor::new(&self.allocator, element, shape),
        }
    }

    fn give_back(&mut self, tensor: DynTensor) {
        let values = |tensor: &DynTensor| tensor.shape().num_elements();
        let largest = self.spare.first().map_or(0, values);
        if values(&tensor) > largest {
            self.spare.clear();
        }
        if values(&tensor) >= largest {
            self.spare.push(tensor);
        }
    }
}
