//! CUDA: its provider, and the libraries it needs.

use std::path::{Path, PathBuf};

use ort::ep::{self, ExecutionProvider as _, ExecutionProviderDispatch};

/// The name ONNX Runtime gives the provider.
pub(super) const NAME: &str = "CUDAExecutionProvider";

/// Why this build cannot do CUDA at all; none if it might.
pub(super) fn absent() -> Option<String> {
    match ep::CUDA::is_available() {
        Ok(true) => None,
        Ok(false) => Some(
            "this ONNX Runtime is a build without CUDA; install the Python package onnxruntime-gpu and name its library with --onnxruntime"
                .to_owned(),
        ),
        Err(error) => Some(error.to_string()),
    }
}

/// The provider. It must register or fail: without that, ONNX Runtime runs on the processor and does not tell.
pub(super) fn provider(card: u32) -> Result<ExecutionProviderDispatch, String> {
    let card = i32::try_from(card).map_err(|_| format!("there is no card {card}"))?;
    // The exhaustive search times every algorithm and takes the quickest of that day: other bits in another run.
    let search = ep::cuda::ConvAlgorithmSearch::Heuristic;
    Ok(ep::CUDA::default().with_device_id(card).with_conv_algorithm_search(search).build().error_on_failure())
}

/// File name prefixes of what the provider needs, dependencies first.
const NEEDED: [&str; 14] = [
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
