//! CUDA: its provider, and the libraries it needs.

use std::ffi::c_int;
use std::path::{Path, PathBuf};

use ort::ep::{self, ExecutionProviderDispatch};
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};

/// What the machine lacks for a card of this number, whatever is installed; none if nothing. The driver is asked, since ONNX
/// Runtime's own words on it are a list of possible causes.
pub(super) fn missing(card: u32) -> Option<String> {
    type Init = unsafe extern "system" fn(u32) -> c_int;
    type Count = unsafe extern "system" fn(*mut c_int) -> c_int;
    const DRIVER: &str = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };
    if cfg!(target_os = "macos") {
        return Some("there is no CUDA on macOS".to_owned());
    }
    // SAFETY: the driver's library is the system's own; it stays loaded while its functions are called.
    let Ok(driver) = (unsafe { libloading::Library::new(DRIVER) }) else {
        return Some(format!("there is no NVIDIA driver on this machine ({DRIVER} does not load)"));
    };
    // SAFETY: the signatures are those of CUDA's driver interface, the same since its first release.
    let functions = unsafe { (driver.get::<Init>(b"cuInit"), driver.get::<Count>(b"cuDeviceGetCount")) };
    let (Ok(init), Ok(count)) = functions else { return Some(format!("{DRIVER} is no NVIDIA driver")) };
    let mut cards = 0;
    // SAFETY: `cuInit` takes flags, which must be 0, and comes first.
    let started = unsafe { init(0) };
    // SAFETY: the output is valid for writing.
    if started != 0 || unsafe { count(&raw mut cards) } != 0 || cards <= 0 {
        return Some(format!("the NVIDIA driver finds no card (its status is {started}; nvidia-smi says more)"));
    }
    let there = i64::from(card) < i64::from(cards);
    (!there).then(|| format!("there is no card {card}: the NVIDIA driver finds {cards}, counted from 0"))
}

/// The provider. It must register or fail: without that, ONNX Runtime runs on the processor and does not tell.
pub(super) fn provider(card: u32) -> Result<ExecutionProviderDispatch, String> {
    let card = i32::try_from(card).map_err(|_| format!("there is no card {card}"))?;
    // The exhaustive search times every algorithm and takes the quickest of that day: other bits in another run.
    let search = ep::cuda::ConvAlgorithmSearch::Heuristic;
    // Left alone, cards since Ampere multiply float32 in TF32, with 10 bits of mantissa: that is not fp32.
    let cuda = ep::CUDA::default().with_device_id(card).with_conv_algorithm_search(search).with_tf32(false);
    Ok(cuda.build().error_on_failure())
}

/// Memory of the processor that the card reads itself.
pub(super) fn page_locked(card: u32) -> ort::Result<MemoryInfo<'static>> {
    let card = i32::try_from(card).map_err(|error| ort::Error::new(error.to_string()))?;
    MemoryInfo::new(AllocationDevice::CUDA_PINNED, card, AllocatorType::Device, MemoryType::CPUInput)
}

/// File name prefixes of what the provider needs, dependencies first.
const NEEDED: [&str; 17] = [
    "libcudart.so",
    "libnvJitLink.so",
    "libcublasLt.so",
    "libcublas.so",
    "libnvrtc.so",
    "libcurand.so",
    "libcufft.so",
    "libcudnn.so",
    "libcudnn_graph.so",
    "libcudnn_ops.so",
    "libcudnn_heuristic.so",
    "libcudnn_adv.so",
    "libcudnn_cnn.so",
    "libcudnn_engines_precompiled.so",
    "libcudnn_engines_runtime_compiled.so",
    "libcudnn_engines_tensor_ir.so",
    "libcudnn_ext.so",
];

/// Loads CUDA and cuDNN from NVIDIA's Python packages that stand beside ONNX Runtime's, if they do; the system's are found
/// without this. One that does not load is left to the provider, which tells its name.
pub(super) fn preload(library: &Path) {
    for path in beside(library) {
        if let Err(error) = ort::util::preload_dylib(&path) {
            tracing::debug!("{}: {error}", path.display());
        }
    }
}

fn beside(library: &Path) -> Vec<PathBuf> {
    // site-packages/onnxruntime/capi/libonnxruntime.so, site-packages/nvidia/*/lib/libcudart.so.13
    let Some(packages) = library.ancestors().nth(3) else { return Vec::new() };
    let files = walkdir::WalkDir::new(packages.join("nvidia")).max_depth(3).sort_by_file_name().into_iter();
    let files: Vec<PathBuf> = files.filter_map(Result::ok).map(walkdir::DirEntry::into_path).collect();
    let named = |prefix: &'static str| {
        files
            .iter()
            .filter(move |path| path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(prefix)))
    };
    NEEDED.into_iter().flat_map(named).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_that_cannot_be_there_is_missing_with_a_reason() {
        let reason = missing(4_000).unwrap();
        assert!(reason.contains("NVIDIA driver") || reason.contains("macOS"), "{reason}");
    }

    #[test]
    fn nvidia_packages_are_found_in_the_order_they_need_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let file = |path: &str| {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "").unwrap();
            path
        };
        let library = file("onnxruntime/capi/libonnxruntime.so.1.31.1");
        let cublas = file("nvidia/cu13/lib/libcublas.so.13");
        let cublas_lt = file("nvidia/cu13/lib/libcublasLt.so.13");
        let cudnn = file("nvidia/cudnn/lib/libcudnn.so.9");
        file("nvidia/cu13/include/cuda.h");
        assert_eq!(beside(&library), [cublas_lt, cublas, cudnn]);
    }
}
