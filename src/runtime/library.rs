//! Which ONNX Runtime library: the places, in order, and what is found there.
//!
//! `--onnxruntime`, `ORT_DYLIB_PATH`, beside the executable, tlpipe's cache, an active Python environment, the system
//! loader; if none fits, the pinned wheel is installed into the cache.

use std::collections::BTreeSet;
use std::env;
use std::ffi::{CStr, OsString, c_char, c_void};
use std::fs;
use std::path::{Path, PathBuf};

use super::RuntimeError;
use super::provision::{self, Pin};
use crate::events::{Event, Observer};

/// The oldest minor version of ONNX Runtime 1 that has the interface tlpipe is built for.
pub(super) const OLDEST: u32 = ort::MINOR_VERSION;

/// What to look for, and what is allowed.
#[derive(Clone, Debug)]
pub struct RuntimeOptions {
    /// The library to use, or a folder that holds it; no other is looked for.
    pub library: Option<PathBuf>,
    /// tlpipe's cache folder.
    pub cache: PathBuf,
    /// Install nothing.
    pub offline: bool,
}

/// A library that fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Library {
    /// The file, or a bare name where the system loader finds it.
    pub path: PathBuf,
    /// As the library says it ("1.32.0").
    pub version: String,
    /// The place it was found in, for people.
    pub how: String,
}

/// A place, and what is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The place, for people.
    pub place: String,
    /// The file; none where the place is empty.
    pub path: Option<PathBuf>,
    /// Its version, where it loads.
    pub version: Option<String>,
    /// Whether it can be used.
    pub fits: bool,
    /// One sentence for people.
    pub verdict: String,
}

/// Finds the library to use, and installs the pinned one where there is none.
///
/// # Errors
/// When the library that was asked for does not fit; when none fits and none can be installed.
pub fn locate(options: &RuntimeOptions, observer: Observer<'_>) -> Result<Library, RuntimeError> {
    locate_among(&Surroundings::of_process(), options, observer)
}

/// Every place in order, and what is there; the first that fits is the one [`locate`] takes. Nothing is installed.
pub fn candidates(options: &RuntimeOptions) -> Vec<Candidate> {
    places(&Surroundings::of_process(), options).iter().flat_map(Place::candidates).collect()
}

/// What the process' environment says.
struct Surroundings {
    variable: Option<OsString>,
    executable_folder: Option<PathBuf>,
    python_environments: Vec<(&'static str, PathBuf)>,
    system: bool,
}

impl Surroundings {
    fn of_process() -> Self {
        let folder = |name| env::var_os(name).filter(|value| !value.is_empty());
        Self {
            variable: folder("ORT_DYLIB_PATH"),
            executable_folder: env::current_exe().ok().and_then(|path| path.parent().map(Path::to_owned)),
            python_environments: ["VIRTUAL_ENV", "CONDA_PREFIX"]
                .into_iter()
                .filter_map(|name| Some((name, folder(name)?.into())))
                .collect(),
            system: true,
        }
    }
}

struct Place {
    name: String,
    paths: Vec<PathBuf>,
}

fn places(surroundings: &Surroundings, options: &RuntimeOptions) -> Vec<Place> {
    let place = |name: &str, paths| Place { name: name.to_owned(), paths };
    if let Some(path) = &options.library {
        return vec![place("--onnxruntime", given(path))];
    }
    let mut places = Vec::new();
    if let Some(path) = &surroundings.variable {
        places.push(place("ORT_DYLIB_PATH", given(Path::new(path))));
    }
    let folder = surroundings.executable_folder.as_deref();
    places.push(place("beside the executable", folder.map(libraries_in).unwrap_or_default()));
    places.push(place("tlpipe's cache", cached(&options.cache)));
    for (variable, folder) in &surroundings.python_environments {
        places.push(place(&format!("Python environment ({variable})"), libraries_of_python(folder)));
    }
    if surroundings.system {
        places.push(place("system loader", system_names().iter().map(PathBuf::from).collect()));
    }
    places
}

impl Place {
    fn candidates(&self) -> Vec<Candidate> {
        if self.paths.is_empty() {
            let verdict = "nothing there".to_owned();
            return vec![Candidate { place: self.name.clone(), path: None, version: None, fits: false, verdict }];
        }
        self.paths.iter().map(|path| self.candidate(path)).collect()
    }

    fn candidate(&self, path: &Path) -> Candidate {
        let (version, fits, verdict) = match version(path) {
            Ok(version) if minor(&version).is_some_and(|minor| minor >= OLDEST) => (Some(version), true, "fits".to_owned()),
            Ok(version) => {
                let verdict = format!("version {version} is older than 1.{OLDEST}");
                (Some(version), false, verdict)
            }
            Err(reason) => (None, false, reason),
        };
        Candidate { place: self.name.clone(), path: Some(path.to_owned()), version, fits, verdict }
    }

    /// The first that fits, or what is wrong with each.
    fn first_fit(&self) -> Result<Library, Vec<Candidate>> {
        let mut unfit = Vec::new();
        for path in &self.paths {
            match self.candidate(path) {
                Candidate { fits: true, version: Some(version), .. } => {
                    return Ok(Library { path: path.clone(), version, how: self.name.clone() });
                }
                candidate => unfit.push(candidate),
            }
        }
        Err(unfit)
    }
}

fn locate_among(surroundings: &Surroundings, options: &RuntimeOptions, observer: Observer<'_>) -> Result<Library, RuntimeError> {
    let mut tried = Vec::new();
    for place in places(surroundings, options) {
        let unfit = match place.first_fit() {
            Ok(library) => return Ok(library),
            Err(unfit) => unfit,
        };
        if let Some(path) = &options.library {
            let reason = unfit.first().map_or_else(|| "holds no such library".to_owned(), |first| first.verdict.clone());
            return Err(RuntimeError::Unusable { path: path.clone(), reason, oldest: OLDEST });
        }
        for candidate in unfit {
            let path = candidate.path.unwrap_or_default();
            let line = format!("{}: {}: {}", candidate.place, path.display(), candidate.verdict);
            if candidate.place == "ORT_DYLIB_PATH" {
                observer(Event::Warned(format!("{line}; looking elsewhere")));
            }
            tried.push(line);
        }
    }
    let Some(pin) = Pin::of_this_machine() else {
        let reason = format!("and none is pinned for {} on {}", env::consts::OS, env::consts::ARCH);
        let remedy =
            format!("install ONNX Runtime 1.{OLDEST} or newer and name its library with --onnxruntime or ORT_DYLIB_PATH");
        return Err(RuntimeError::NotFound { reason, tried, remedy });
    };
    let remedy = format!("{}\n  or name a library with --onnxruntime or ORT_DYLIB_PATH", pin.command(&options.cache));
    if options.offline {
        let reason = "and --offline forbids to install it".to_owned();
        return Err(RuntimeError::NotFound { reason, tried, remedy });
    }
    observer(Event::Noted(format!(
        "installing ONNX Runtime {} into {}: no usable one on this machine",
        provision::VERSION,
        pin.folder(&options.cache).display()
    )));
    let path = match provision::install(&pin, &options.cache) {
        Ok(path) => path,
        Err(provision::Failure::Pip(attempts)) => {
            tried.extend(attempts);
            return Err(RuntimeError::NotFound { reason: "and pip could not install it".to_owned(), tried, remedy });
        }
        Err(provision::Failure::Io { path, source }) => return Err(RuntimeError::Io { path, source }),
    };
    let installed = Place { name: "installed just now".to_owned(), paths: vec![path] };
    installed.first_fit().map_err(|unfit| {
        tried.extend(unfit.into_iter().map(|candidate| candidate.verdict));
        RuntimeError::NotFound { reason: "and the one that pip installed does not load".to_owned(), tried, remedy }
    })
}

/// A path that a user gave: a library, a folder that holds one, or a name for the system loader.
fn given(path: &Path) -> Vec<PathBuf> {
    if path.is_dir() { libraries_in(path) } else { vec![path.to_owned()] }
}

/// Only a library of the pinned size counts in our own folder: a truncated one would crash the process that loads it.
fn cached(cache: &Path) -> Vec<PathBuf> {
    let Some(pin) = Pin::of_this_machine() else { return Vec::new() };
    let folder = pin.folder(cache);
    let whole = |path: &PathBuf| path.metadata().is_ok_and(|metadata| metadata.len() == pin.bytes);
    [folder.clone(), folder.join("onnxruntime").join("capi")]
        .iter()
        .flat_map(|folder| libraries_in(folder))
        .filter(whole)
        .collect()
}

fn libraries_of_python(environment: &Path) -> Vec<PathBuf> {
    let package = |folder: PathBuf| folder.join("site-packages").join("onnxruntime").join("capi");
    let mut folders = vec![package(environment.join("Lib"))];
    if let Ok(entries) = fs::read_dir(environment.join("lib")) {
        folders.extend(entries.filter_map(Result::ok).map(|entry| package(entry.path())));
    }
    folders.sort();
    folders.iter().flat_map(|folder| libraries_in(folder)).collect()
}

/// ONNX Runtime libraries in a folder by their file name, the highest name first; links to the same file once.
fn libraries_in(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let named = |path: &PathBuf| path.file_name().and_then(|name| name.to_str()).is_some_and(is_library_name);
    let mut paths: Vec<PathBuf> = entries.filter_map(Result::ok).map(|entry| entry.path()).filter(named).collect();
    paths.sort_by(|a, b| b.cmp(a));
    let mut seen = BTreeSet::new();
    paths.retain(|path| fs::canonicalize(path).is_ok_and(|real| seen.insert(real)));
    paths
}

fn is_library_name(name: &str) -> bool {
    if cfg!(windows) {
        name == "onnxruntime.dll"
    } else if cfg!(target_os = "macos") {
        name == "libonnxruntime.dylib" || (name.starts_with("libonnxruntime.") && name.ends_with(".dylib"))
    } else {
        name == "libonnxruntime.so" || name.starts_with("libonnxruntime.so.")
    }
}

fn system_names() -> &'static [&'static str] {
    if cfg!(windows) {
        &["onnxruntime.dll"]
    } else if cfg!(target_os = "macos") {
        &["libonnxruntime.dylib"]
    } else {
        &["libonnxruntime.so", "libonnxruntime.so.1"]
    }
}

fn minor(version: &str) -> Option<u32> {
    version.strip_prefix("1.")?.split('.').next()?.parse().ok()
}

/// The start of ONNX Runtime's `OrtApiBase`, the part of its interface that never changes.
#[repr(C)]
struct ApiBase {
    get_api: *const c_void,
    get_version: unsafe extern "system" fn() -> *const c_char,
}

/// Loads a library and asks for its version; the error is the reason why it is no ONNX Runtime.
fn version(path: &Path) -> Result<String, String> {
    // SAFETY: loading runs the library's initializers; the file is one that a user or the system put where ONNX Runtime's
    // library belongs.
    let library = unsafe { libloading::Library::new(path) }.map_err(|error| loader_reason(&error))?;
    // SAFETY: every release of ONNX Runtime exports `OrtGetApiBase` with this signature.
    let base = unsafe { library.get::<unsafe extern "C" fn() -> *const ApiBase>(b"OrtGetApiBase") };
    let base = base.map_err(|_| "is no ONNX Runtime library".to_owned())?;
    // SAFETY: the function takes nothing, and gives a static structure or null.
    let base = unsafe { base().as_ref() }.ok_or("gives no interface")?;
    // SAFETY: as above; the text is static for as long as the library stays loaded.
    let text = unsafe { (base.get_version)().as_ref().map(|text| CStr::from_ptr(text)) }.ok_or("gives no version")?;
    Ok(text.to_string_lossy().into_owned())
}

/// The loader's own words; `libloading` keeps them as the cause.
fn loader_reason(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), |cause| format!("does not load: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::ignore;
    use std::sync::Mutex;

    fn nowhere() -> Surroundings {
        Surroundings { variable: None, executable_folder: None, python_environments: Vec::new(), system: false }
    }

    fn options(cache: &Path) -> RuntimeOptions {
        RuntimeOptions { library: None, cache: cache.to_owned(), offline: true }
    }

    #[test]
    fn offline_and_nothing_there_gives_the_command() {
        let folder = tempfile::tempdir().unwrap();
        let error = locate_among(&nowhere(), &options(folder.path()), &ignore).unwrap_err().to_string();
        assert!(
            error.contains("--offline") && error.contains("-m pip install --no-deps --only-binary=:all: --target"),
            "{error}"
        );
        assert!(error.contains("onnxruntime==1.32.0") && error.contains("ORT_DYLIB_PATH"), "{error}");
    }

    #[test]
    fn a_library_that_was_asked_for_is_the_only_one() {
        let folder = tempfile::tempdir().unwrap();
        let text = folder.path().join("libonnxruntime.so");
        fs::write(&text, "not a library").unwrap();
        for (path, reason) in
            [(text, "does not load"), (folder.path().join("absent.so"), "does not load"), (folder.path().join("e"), "holds no")]
        {
            fs::create_dir_all(folder.path().join("e")).unwrap();
            let options = RuntimeOptions { library: Some(path), ..options(folder.path()) };
            let error = locate_among(&nowhere(), &options, &ignore).unwrap_err().to_string();
            assert!(error.contains("--onnxruntime") && error.contains(reason), "{error}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn another_library_is_told_apart() {
        let libc = Place { name: "x".into(), paths: vec!["libc.so.6".into()] };
        assert_eq!(libc.candidates()[0].verdict, "is no ONNX Runtime library");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_wrong_variable_is_warned_about_and_passed() {
        let folder = tempfile::tempdir().unwrap();
        let warnings = Mutex::new(Vec::new());
        let observer = |event: Event<'_>| {
            if let Event::Warned(text) = event {
                warnings.lock().unwrap().push(text);
            }
        };
        let surroundings = Surroundings { variable: Some("/absent/libonnxruntime.so".into()), ..nowhere() };
        let error = locate_among(&surroundings, &options(folder.path()), &observer).unwrap_err().to_string();
        assert!(error.contains("ORT_DYLIB_PATH: /absent/libonnxruntime.so: does not load"), "{error}");
        assert!(warnings.lock().unwrap()[0].contains("looking elsewhere"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn folders_are_searched_by_name_and_links_count_once() {
        let folder = tempfile::tempdir().unwrap();
        let capi = folder.path().join("lib/python3.11/site-packages/onnxruntime/capi");
        fs::create_dir_all(&capi).unwrap();
        for name in ["libonnxruntime.so.1.32.0", "libonnxruntime_providers_shared.so", "readme"] {
            fs::write(capi.join(name), "").unwrap();
        }
        std::os::unix::fs::symlink(capi.join("libonnxruntime.so.1.32.0"), capi.join("libonnxruntime.so")).unwrap();
        assert_eq!(libraries_of_python(folder.path()), [capi.join("libonnxruntime.so.1.32.0")]);
    }

    #[test]
    fn a_truncated_library_in_the_cache_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let Some(pin) = Pin::of_this_machine() else { return };
        fs::create_dir_all(pin.folder(folder.path())).unwrap();
        fs::write(pin.folder(folder.path()).join(pin.library), "half").unwrap();
        assert!(cached(folder.path()).is_empty());
    }

    #[test]
    fn versions() {
        assert_eq!((minor("1.32.0"), minor("1.9"), minor("2.1.0"), minor("")), (Some(32), Some(9), None, None));
    }
}
