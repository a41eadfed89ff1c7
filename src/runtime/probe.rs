//! What a library is, asked of the library itself: loaded for a moment, before the one that is used is started.

use std::ffi::{CStr, c_char};
use std::path::Path;
use std::ptr;

use ort::sys::{OrtApi, OrtApiBase};

/// The oldest minor version of ONNX Runtime 1 that has the interface tlpipe is built for.
pub(super) const OLDEST: u32 = ort::MINOR_VERSION;

/// What a library says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Probed {
    /// "1.32.0".
    pub version: String,
    /// Providers it was built with ("CPU", "CUDA"); none where it is too old to be asked.
    pub providers: Vec<String>,
}

impl Probed {
    /// Whether it has the interface that is needed.
    pub(super) fn is_new_enough(&self) -> bool {
        is_new_enough(&self.version)
    }
}

/// Whether a library of this version has the interface that is needed.
pub(super) fn is_new_enough(version: &str) -> bool {
    minor(version).is_some_and(|minor| minor >= OLDEST)
}

/// Loads a library and asks; the error is the reason why it is no ONNX Runtime.
pub(super) fn probe(path: &Path) -> Result<Probed, String> {
    // SAFETY: loading runs the library's initializers; the file is one that a user or the system put where ONNX Runtime's
    // library belongs.
    let library = unsafe { libloading::Library::new(path) }.map_err(|error| loader_reason(&error))?;
    // SAFETY: every release of ONNX Runtime exports `OrtGetApiBase` with this signature.
    let base = unsafe { library.get::<unsafe extern "C" fn() -> *const OrtApiBase>(b"OrtGetApiBase") };
    let base = base.map_err(|_| "is no ONNX Runtime library".to_owned())?;
    // SAFETY: the function takes nothing, and gives a static structure or null.
    let base = unsafe { base().as_ref() }.ok_or("gives no interface")?;
    // SAFETY: as above; the text is static for as long as the library stays loaded.
    let text = unsafe { (base.GetVersionString)().as_ref().map(|text| CStr::from_ptr(text)) }.ok_or("gives no version")?;
    let mut probed = Probed { version: text.to_string_lossy().into_owned(), providers: Vec::new() };
    // An older one complains on stderr about being asked.
    if probed.is_new_enough() {
        // SAFETY: a library of this version has this interface; the pointer is static or null.
        let api = unsafe { (base.GetApi)(OLDEST).as_ref() }.ok_or("does not give the interface of its version")?;
        probed.providers = providers(api);
    }
    Ok(probed)
}

fn providers(api: &OrtApi) -> Vec<String> {
    let (mut names, mut count) = (ptr::null_mut::<*mut c_char>(), 0);
    // SAFETY: both outputs are valid for writing.
    let status = unsafe { (api.GetAvailableProviders)(&raw mut names, &raw mut count) };
    if !status.0.is_null() {
        // SAFETY: the status comes from this library and is released once.
        unsafe { (api.ReleaseStatus)(status.0) };
        return Vec::new();
    }
    let count_of_names = usize::try_from(count).unwrap_or(0);
    // SAFETY: a successful call gives an array of this length, of texts that end with a zero.
    let text = |index| unsafe { CStr::from_ptr(*names.add(index)) }.to_string_lossy().into_owned();
    let texts = (0..count_of_names).map(text).map(|name| name.trim_end_matches("ExecutionProvider").to_owned()).collect();
    // SAFETY: the array comes from this library and is released once. The status of a release is always null.
    let _ = unsafe { (api.ReleaseAvailableProviders)(names, count) };
    texts
}

fn minor(version: &str) -> Option<u32> {
    version.strip_prefix("1.")?.split('.').next()?.parse().ok()
}

/// The loader's own words; `libloading` keeps them as the cause.
pub(super) fn loader_reason(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), |cause| format!("does not load: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!((minor("1.32.0"), minor("1.9"), minor("2.1.0"), minor("")), (Some(32), Some(9), None, None));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn another_library_is_told_apart() {
        assert_eq!(probe(Path::new("libc.so.6")).unwrap_err(), "is no ONNX Runtime library");
    }
}
