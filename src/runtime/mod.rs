//! ONNX Runtime: find its library, start it, run networks. The only room that knows `ort`.
//!
//! ONNX Runtime is a process-wide thing: one library, one environment, for good. [`Runtime::start`] may be called any
//! number of times with the same library and gives handles to the one runtime; another library is refused.
//!
//! ```no_run
//! use tlpipe::runtime::{Compute, Runtime, RuntimeOptions, SessionOptions, locate};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let options = RuntimeOptions { library: None, cache: tlpipe::assets::cache_folder(), offline: false, compute: Compute::CPU };
//! let library = locate(&options, &tlpipe::events::ignore)?;
//! let runtime = Runtime::start(&library)?;
//! let model = std::fs::read("cut.onnx")?;
//! let session = runtime.session(&model, &SessionOptions { compute: Compute::CPU, threads: 1 })?;
//! let features = session.run(&vec![0.0; 8 * 96 * 96 * 3], [8, 96, 96, 3])?;
//! assert_eq!(features.len() % 8, 0);
//! # Ok(())
//! # }
//! ```

mod builds;
mod card;
mod compute;
mod cuda;
mod device;
mod error;
mod graph;
mod library;
mod network;
mod opened;
mod openvino;
mod places;
mod probe;
mod provision;
mod session;
mod telemetry;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ort::environment::Environment;
use ort::logging::LogLevel;

pub use builds::{Build, UnknownBuild};
pub use compute::{Compute, Precision, Provider, Unreal, processor_has_bf16};
pub use device::{Device, UnknownDevice};
pub use error::RuntimeError;
pub use graph::{Answer, Graph, Images, Port};
pub use library::{Candidate, Library, RuntimeOptions, candidates, install, installed, locate};
pub use session::{Session, SessionOptions, listed};
pub use telemetry::disable_telemetry;

/// The runtime of this process. It is never released: `ort` allows one environment in a process' life, and loads one
/// library, whatever it is asked for later.
static STARTED: Mutex<Option<Runtime>> = Mutex::new(None);

/// A handle to ONNX Runtime, loaded and started.
#[derive(Clone, Debug)]
pub struct Runtime {
    library: Library,
    environment: Environment,
}

impl Runtime {
    /// Starts ONNX Runtime, or gives another handle to it if this library is the one that runs already.
    ///
    /// # Errors
    /// When the library does not start, or another one runs in this process.
    pub fn start(library: &Library) -> Result<Self, RuntimeError> {
        let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = &*started {
            if is_same_file(&runtime.library.path, &library.path) {
                return Ok(runtime.clone());
            }
            return Err(RuntimeError::AlreadyStarted { loaded: runtime.library.path.clone(), asked: library.path.clone() });
        }
        let failed = |reason: String| RuntimeError::Start { path: library.path.clone(), reason };
        disable_telemetry();
        // `ort::init` panics where this gives an error.
        let environment = ort::init_from(&library.path)
            .map_err(|error| failed(error.to_string()))?
            .with_name("tlpipe")
            .with_telemetry(false)
            .with_logger(Arc::new(log))
            .build()
            .map_err(|error| failed(error.to_string()))?;
        environment.set_log_level(LogLevel::Warning);
        let runtime = Self { library: library.clone(), environment };
        *started = Some(runtime.clone());
        Ok(runtime)
    }

    /// The library's version ("1.32.0").
    pub fn version(&self) -> &str {
        &self.library.version
    }

    /// The library that runs.
    pub fn library(&self) -> &Library {
        &self.library
    }

    /// Prepares a network to run.
    ///
    /// # Errors
    /// When the bytes are no network of one image input and one output, or the device does not work.
    pub fn session(&self, model: &[u8], options: &SessionOptions) -> Result<Session, RuntimeError> {
        Session::new(&self.environment, &self.library.path, model, options)
    }

    /// Prepares a network of one image input and any number of outputs to run.
    ///
    /// # Errors
    /// When the bytes are no network of one image input, or the device does not work.
    pub fn graph(&self, model: &[u8], options: &SessionOptions) -> Result<Graph, RuntimeError> {
        Graph::new(&self.environment, &self.library.path, model, options)
    }
}

/// Cores that this process may use: what 0 threads stands for.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn is_same_file(a: &Path, b: &Path) -> bool {
    let real = |path: &Path| -> PathBuf { std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()) };
    real(a) == real(b)
}

/// ONNX Runtime's own log. What matters comes back as an error too, so nothing of it is louder than a warning.
fn log(level: LogLevel, _category: &str, _id: &str, location: &str, message: &str) {
    match level {
        LogLevel::Error | LogLevel::Fatal => tracing::warn!(target: "onnxruntime", location, "{message}"),
        LogLevel::Warning => tracing::debug!(target: "onnxruntime", location, "{message}"),
        _ => tracing::trace!(target: "onnxruntime", location, "{message}"),
    }
}

#[cfg(test)]
pub(crate) mod tests;
