//! OpenVINO on the processor.

use ort::ep::{self, ArbitrarilyConfigurableExecutionProvider as _, ExecutionProviderDispatch};
use serde_json::json;

use super::Precision;

/// The provider. It must register or fail: without that, ONNX Runtime's own provider runs and does not tell.
pub(super) fn provider(precision: Precision, threads: usize) -> ExecutionProviderDispatch {
    // Left alone, OpenVINO takes bfloat16 by itself where the processor is quick at it: fp32 must be asked for too.
    let numbers = match precision {
        Precision::Fp32 => "f32",
        Precision::Bf16 => "bf16",
    };
    let settings = json!({ "CPU": {
        "INFERENCE_PRECISION_HINT": numbers,
        "INFERENCE_NUM_THREADS": threads.to_string(),
        "NUM_STREAMS": "1",
        // Each session would pin its threads to the same first cores.
        "ENABLE_CPU_PINNING": "NO",
    }});
    ep::OpenVINO::default()
        .with_device_type("CPU")
        .with_num_threads(threads)
        .with_arbitrary_config("load_config", settings)
        .build()
        .error_on_failure()
}
