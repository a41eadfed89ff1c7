//! A network in ONNX Runtime that several threads may run at the same time.

use std::ffi::{CStr, CString};
use std::ptr::{self, NonNull};

use ort::AsPointer as _;
use ort::session::Session as OrtSession;
use ort::sys::OrtValue;
use ort::value::DynValue;

/// A network.
pub(super) struct Network(pub(super) OrtSession);

impl Network {
    /// ONNX Runtime's `Run`, which `ort` gives to one caller at a time: one input, a tensor that it takes, and the outputs of these
    /// names.
    pub(super) fn answer(&self, name: &CStr, input: *const OrtValue, outputs: &[CString]) -> ort::Result<Vec<DynValue>> {
        let names: Vec<_> = outputs.iter().map(|name| name.as_ptr()).collect();
        let mut values = vec![ptr::null_mut(); names.len()];
        // SAFETY: names and values are as many as is said, end with a zero and outlive the call, and the session lives. ONNX Runtime
        // documents that threads may call `Run` on one session at the same time; its CPU provider keeps no state between calls.
        // Other providers have been seen to break that promise: their callers see to it that they take turns.
        let status = unsafe {
            (ort::api().Run)(
                self.0.ptr().cast_mut(),
                ptr::null(),
                [name.as_ptr()].as_ptr(),
                [input].as_ptr(),
                1,
                names.as_ptr(),
                names.len(),
                values.as_mut_ptr(),
            )
        };
        // SAFETY: the status comes from ONNX Runtime and is passed on once.
        unsafe { ort::Error::result_from_status(status) }?;
        let taken = values.into_iter().map(|value| {
            let value = NonNull::new(value).ok_or_else(|| ort::Error::new("the network gave no answer"))?;
            // SAFETY: a successful `Run` gives values that are ours to release, made by the session's allocator.
            Ok(unsafe { DynValue::from_ptr(value, Some(self.0.allocator())) })
        });
        // Each is taken, whatever is wrong with one before it.
        taken.collect::<Vec<ort::Result<DynValue>>>().into_iter().collect()
    }
}
