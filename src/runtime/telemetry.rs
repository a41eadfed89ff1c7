//! ONNX Runtime's telemetry, off.
//!
//! Since 1.29 the published builds for Linux and macOS make a persistent device identifier in the user's cache and send
//! events to their maker. The interface's switch comes too late for that: identifier and first event belong to the start of
//! the environment. What is early enough is an environment variable.

use std::env;

const VARIABLE: &str = "ORT_DISABLE_TELEMETRY";

/// Switches ONNX Runtime's telemetry off for this process, unless the user has set `ORT_DISABLE_TELEMETRY` himself.
/// [`Runtime::start`](super::Runtime::start) does so too; a program calls this first of all, while it has one thread.
pub fn disable_telemetry() {
    if env::var_os(VARIABLE).is_some() {
        return;
    }
    // SAFETY: a program does this before it has other threads. Called late, by `Runtime::start` in a library's user, it
    // changes the environment once, and Rust's own readers are locked out meanwhile.
    unsafe { env::set_var(VARIABLE, "1") };
}
