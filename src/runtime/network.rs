//! A network in ONNX Runtime that several threads may run at the same time.

use std::ffi::CString;
use std::ptr::{self, NonNull};

use ort::AsPointer as _;
use ort::session::Session as OrtSession;
use ort::sys::OrtValue;
use ort::value::DynValue;

/// A network of one input and one output.
pub(super) struct Network {
    session: OrtSession,
    input: CString,
    output: CString,
}

impl Network {
    pub(super) fn new(session: OrtSession, input: CString, output: CString) -> Self {
        Self { session, input, output }
    }

    pub(super) fn session(&self) -> &OrtSession {
        &self.session
    }

    /// ONNX Runtime's `Run`, which `ort` gives to one caller at a time. `input` is a tensor of the network's input.
    pub(super) fn answer(&self, input: *const OrtValue) -> ort::Result<DynValue> {
        let (inputs, outputs) = ([self.input.as_ptr()], [self.output.as_ptr()]);
        let mut output = ptr::null_mut();
        // SAFETY: names and values are one each, end with a zero and outlive the call, and the session lives. ONNX Runtime
        // documents that threads may call `Run` on one session at the same time; its CPU provider keeps no state between calls.
        // Other providers have been seen to break that promise: their callers see to it that they take turns.
        let status = unsafe {
            (ort::api().Run)(
                self.session.ptr().cast_mut(),
                ptr::null(),
                inputs.as_ptr(),
                [input].as_ptr(),
                1,
                outputs.as_ptr(),
                1,
                &mut output,
            )
        };
        // SAFETY: the status comes from ONNX Runtime and is passed on once.
        unsafe { ort::Error::result_from_status(status) }?;
        let output = NonNull::new(output).ok_or_else(|| ort::Error::new("the network gave no answer"))?;
        // SAFETY: a successful `Run` gives a value that is ours to release, made by the session's allocator.
        Ok(unsafe { DynValue::from_ptr(output, Some(self.session.allocator())) })
    }
}
