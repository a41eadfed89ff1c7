//! Which ONNX Runtime library: the places, in order, and what is found there.
//!
//! `--onnxruntime`, `ORT_DYLIB_PATH`, beside the executable, in the Python environment that pip put the executable into,
//! tlpipe's cache, an active Python environment, the system loader; if none fits, the pinned wheel is installed into the cache.
//! Only a build counts that has the provider which is asked for; one with CUDA or OpenVINO is large and installed by
//! [`install`] alone.

use std::env;
use std::path::{Path, PathBuf};

use super::places::{Place, Surroundings, places};
use super::probe::{OLDEST, Probed, is_new_enough};
use super::provision::{self, Pin};
use super::{Build, Compute, RuntimeError};
use crate::events::{Event, Observer};

/// What to look for, and what is allowed.
#[derive(Clone, Debug)]
pub struct RuntimeOptions {
    /// The library to use, or a folder that holds it; no other is looked for.
    pub library: Option<PathBuf>,
    /// tlpipe's cache folder.
    pub cache: PathBuf,
    /// Install nothing.
    pub offline: bool,
    /// What it is to run: only a build that can counts.
    pub compute: Compute,
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
    /// Providers it was built with ("CPU", "CUDA").
    pub providers: Vec<String>,
    /// Whether it can be used.
    pub fits: bool,
    /// One sentence for people.
    pub verdict: String,
}

/// Finds the library to use, and installs the pinned one where there is none and it is the default one.
///
/// # Errors
/// When this machine cannot do what is asked for; when the library that was asked for does not fit; when none fits and none
/// can be installed.
pub fn locate(options: &RuntimeOptions, observer: Observer<'_>) -> Result<Library, RuntimeError> {
    if let Some(reason) = options.compute.missing_hardware() {
        return Err(RuntimeError::unavailable(options.compute, reason));
    }
    locate_among(&Surroundings::of_process(), options, options.compute.builds(), observer)
}

/// Every place in order, and what is there; the first that fits is the one [`locate`] takes. Nothing is installed.
pub fn candidates(options: &RuntimeOptions) -> Vec<Candidate> {
    let surroundings = Surroundings::of_process();
    let build = options.compute.builds().first().copied().unwrap_or(Build::Cpu);
    places(&surroundings, options, build).iter().flat_map(|place| place.candidates(&surroundings, build)).collect()
}

/// The pinned library of a build in the cache, if it is there.
pub fn installed(build: Build, cache: &Path) -> Option<PathBuf> {
    Pin::of_this_machine(build)?.installed(cache)
}

/// Installs the pinned library of a build into the cache, unless it is there.
///
/// # Errors
/// When there is none for this machine, pip cannot install it, or what it installed does not load.
pub fn install(build: Build, options: &RuntimeOptions, observer: Observer<'_>) -> Result<Library, RuntimeError> {
    install_among(&Surroundings::of_process(), build, options, observer)
}

impl Place {
    fn candidates(&self, surroundings: &Surroundings, build: Build) -> Vec<Candidate> {
        if self.paths.is_empty() {
            let (place, verdict) = (self.name.clone(), "nothing there".to_owned());
            return vec![Candidate { place, path: None, version: None, providers: Vec::new(), fits: false, verdict }];
        }
        self.paths.iter().map(|path| self.candidate(surroundings, path, build)).collect()
    }

    fn candidate(&self, surroundings: &Surroundings, path: &Path, build: Build) -> Candidate {
        let (place, path, name) = (self.name.clone(), path.to_owned(), build.provider());
        match (surroundings.probe)(&path) {
            Ok(probed) => {
                let has_provider = probed.providers.iter().any(|provider| provider == name);
                let verdict = if !probed.is_new_enough() {
                    let update = self.pip.as_ref().map(|pip| format!("; to update it: {pip} '{}'", build.requirement()));
                    format!("version {} is older than 1.{OLDEST}{}", probed.version, update.unwrap_or_default())
                } else if has_provider {
                    "fits".to_owned()
                } else {
                    format!("is a build without {name} (it has {})", probed.providers.join(", "))
                };
                let fits = has_provider && probed.is_new_enough();
                let Probed { version, providers } = probed;
                Candidate { place, path: Some(path), version: Some(version), providers, fits, verdict }
            }
            Err(verdict) => Candidate { place, path: Some(path), version: None, providers: Vec::new(), fits: false, verdict },
        }
    }

    /// The first that fits, or what is wrong with each.
    fn first_fit(&self, surroundings: &Surroundings, build: Build) -> Result<Library, Vec<Candidate>> {
        let mut unfit = Vec::new();
        for path in &self.paths {
            match self.candidate(surroundings, path, build) {
                Candidate { fits: true, version: Some(version), .. } => {
                    return Ok(Library { path: path.clone(), version, how: self.name.clone() });
                }
                candidate => unfit.push(candidate),
            }
        }
        Err(unfit)
    }
}

/// The first library that serves one of the builds, the best build first; the last one is installed where it may be.
fn locate_among(
    surroundings: &Surroundings,
    options: &RuntimeOptions,
    builds: &[Build],
    observer: Observer<'_>,
) -> Result<Library, RuntimeError> {
    let Some((&build, better)) = builds.split_last() else { return Err(RuntimeError::NoBuild) };
    for &build in better {
        let found = places(surroundings, options, build).iter().find_map(|place| place.first_fit(surroundings, build).ok());
        if let Some(library) = found {
            return Ok(library);
        }
    }
    let mut tried = Vec::new();
    for place in places(surroundings, options, build) {
        let unfit = match place.first_fit(surroundings, build) {
            Ok(library) => return Ok(library),
            Err(unfit) => unfit,
        };
        if let Some(path) = &options.library {
            let reason = unfit.first().map_or_else(|| "holds no such library".to_owned(), |first| first.verdict.clone());
            return Err(RuntimeError::Unusable { path: path.clone(), reason, wanted: wanted(build) });
        }
        for candidate in unfit {
            let path = candidate.path.unwrap_or_default();
            let line = format!("{}: {}: {}", candidate.place, path.display(), candidate.verdict);
            // Other builds beside the one that is asked for are as they should be, and the system may hold anything.
            let is_old = place.pip.is_some() && candidate.version.is_some_and(|version| !is_new_enough(&version));
            if place.is_chosen || is_old {
                observer(Event::Warned(format!("{line}\nlooking elsewhere")));
            }
            tried.push(line);
        }
    }
    match build {
        Build::Cpu => install_among(surroundings, build, options, observer).map_err(|error| error.after(tried)),
        Build::Cuda | Build::OpenVino => Err(RuntimeError::NotFound {
            build,
            reason: format!("and one ({}) is installed by command only", build.download()),
            tried,
            remedy: format!("tlpipe doctor --install {build}\n  or name a library with --onnxruntime or ORT_DYLIB_PATH"),
        }),
    }
}

fn install_among(
    surroundings: &Surroundings,
    build: Build,
    options: &RuntimeOptions,
    observer: Observer<'_>,
) -> Result<Library, RuntimeError> {
    let not_found = |reason: &str, tried, remedy| RuntimeError::NotFound { build, reason: reason.to_owned(), tried, remedy };
    let Some(pin) = Pin::of_this_machine(build) else {
        let reason = format!("and none is pinned for {} on {}", env::consts::OS, env::consts::ARCH);
        let remedy = format!("install {} and name its library with --onnxruntime or ORT_DYLIB_PATH", wanted(build));
        return Err(not_found(&reason, Vec::new(), remedy));
    };
    let remedy = format!("{}\n  or name a library with --onnxruntime or ORT_DYLIB_PATH", pin.command(&options.cache));
    let path = if let Some(path) = pin.installed(&options.cache) {
        path
    } else {
        if options.offline {
            return Err(not_found("and --offline forbids to install it", Vec::new(), remedy));
        }
        observer(Event::Noted(format!(
            "installing {} into {} ({})",
            pin.packages().next().unwrap_or_default(),
            pin.folder(&options.cache).display(),
            build.download(),
        )));
        match provision::install(&pin, &options.cache) {
            Ok(path) => path,
            Err(provision::Failure::Pip(attempts)) => {
                return Err(not_found("and pip could not install it", attempts, remedy));
            }
            Err(provision::Failure::Io { path, source }) => return Err(RuntimeError::Io { path, source }),
        }
    };
    let place = Place::new("installed", vec![path]);
    place.first_fit(surroundings, build).map_err(|unfit| {
        let tried = unfit.into_iter().map(|candidate| candidate.verdict).collect();
        not_found("and the one that pip installed cannot be used", tried, remedy)
    })
}

/// What a library must be to serve, for people.
fn wanted(build: Build) -> String {
    format!("{} in version 1.{OLDEST} or newer", build.title())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Mutex;

    use super::*;
    use crate::events::ignore;
    use crate::runtime::places::system_names;
    use crate::runtime::probe::probe;

    fn nowhere() -> Surroundings {
        Surroundings { variable: None, executable_folder: None, python_environments: Vec::new(), system: false, probe }
    }

    fn options(cache: &Path) -> RuntimeOptions {
        RuntimeOptions { library: None, cache: cache.to_owned(), offline: true, compute: Compute::CPU }
    }

    #[test]
    fn offline_and_nothing_there_gives_the_command() {
        let folder = tempfile::tempdir().unwrap();
        let error = locate_among(&nowhere(), &options(folder.path()), &[Build::Cpu], &ignore).unwrap_err().to_string();
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
            let error = locate_among(&nowhere(), &options, &[Build::Cpu], &ignore).unwrap_err().to_string();
            assert!(error.contains("--onnxruntime") && error.contains(reason), "{error}");
        }
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
        let error = locate_among(&surroundings, &options(folder.path()), &[Build::Cpu], &observer).unwrap_err().to_string();
        assert!(error.contains("ORT_DYLIB_PATH: /absent/libonnxruntime.so: does not load"), "{error}");
        assert!(warnings.lock().unwrap()[0].contains("looking elsewhere"));
    }

    /// A file that says in words what a library would say of itself: "1.24.1 OpenVINO CPU".
    fn fake(path: &Path) -> Result<Probed, String> {
        let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
        let mut words = text.split_whitespace().map(str::to_owned);
        let version = words.next().ok_or("is no ONNX Runtime library")?;
        Ok(Probed { version, providers: words.collect() })
    }

    /// A CPU build beside the executable, and two Python environments with CUDA and OpenVINO.
    fn three_builds(folder: &Path) -> Surroundings {
        let write = |path: PathBuf, text: &str| {
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join(system_names()[0]), text).unwrap();
        };
        write(folder.join("bin"), "1.32.0 Azure CPU");
        write(folder.join("a/lib/python3.11/site-packages/onnxruntime/capi"), "1.31.1 CUDA CPU");
        write(folder.join("b/lib/python3.11/site-packages/onnxruntime/capi"), "1.24.1 OpenVINO CPU");
        Surroundings {
            executable_folder: Some(folder.join("bin")),
            python_environments: vec![("VIRTUAL_ENV", folder.join("a")), ("CONDA_PREFIX", folder.join("b"))],
            probe: fake,
            ..nowhere()
        }
    }

    #[test]
    fn the_build_with_the_provider_that_is_asked_for_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let surroundings = three_builds(folder.path());
        let version = |builds: &[Build]| {
            locate_among(&surroundings, &options(folder.path()), builds, &ignore).map(|library| library.version).unwrap()
        };
        assert_eq!(version(&[Build::Cpu]), "1.32.0");
        assert_eq!(version(&[Build::Cuda]), "1.31.1");
        assert_eq!(version(&[Build::OpenVino]), "1.24.1");
        // A better one that is at hand comes before an earlier place; one that is not is no error.
        assert_eq!(version(&[Build::Cuda, Build::Cpu]), "1.31.1");
        fs::remove_dir_all(folder.path().join("a")).unwrap();
        assert_eq!(version(&[Build::Cuda, Build::Cpu]), "1.32.0");
    }

    /// A program that pip put into an environment with these libraries, each as [`fake`] reads it.
    fn environment(folder: &Path, libraries: &[(&str, &str)]) -> Surroundings {
        let capi = folder.join("lib/python3.11/site-packages/onnxruntime/capi");
        for path in [&capi, &folder.join("bin")] {
            fs::create_dir_all(path).unwrap();
        }
        for (ending, text) in libraries {
            fs::write(capi.join(format!("{}{ending}", system_names()[0])), text).unwrap();
        }
        Surroundings { executable_folder: Some(folder.join("bin")), probe: fake, ..nowhere() }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn builds_of_two_versions_share_the_folder_of_a_package() {
        let folder = tempfile::tempdir().unwrap();
        let libraries = [(".1.32.0", "1.32.0 Azure CPU"), (".1.24.1", "1.24.1 OpenVINO CPU")];
        let surroundings = environment(folder.path(), &libraries);
        let found = |build| locate_among(&surroundings, &options(folder.path()), &[build], &ignore).unwrap();
        assert_eq!(found(Build::Cpu).version, "1.32.0");
        assert_eq!(found(Build::Cpu).how, "the executable's Python environment");
        assert_eq!(found(Build::OpenVino).version, "1.24.1");
    }

    #[test]
    fn an_environment_whose_library_is_too_old_is_said_with_the_command_and_passed() {
        let folder = tempfile::tempdir().unwrap();
        let warnings = Mutex::new(Vec::new());
        let observer = |event: Event<'_>| {
            if let Event::Warned(text) = event {
                warnings.lock().unwrap().push(text);
            }
        };
        let mut surroundings = environment(folder.path(), &[("", "1.23.2")]);
        fs::write(folder.path().join("bin/python3"), "").unwrap();
        let error = locate_among(&surroundings, &options(folder.path()), &[Build::Cpu], &observer).unwrap_err().to_string();
        let python = folder.path().join("bin/python3");
        let command = format!("to update it: '{}' -m pip install 'onnxruntime>=1.24.1,<1.33'", python.display());
        let warning = warnings.lock().unwrap().remove(0);
        for said in [&error, &warning] {
            assert!(said.contains("onnxruntime/capi/") && said.contains("version 1.23.2 is older than 1.24; "), "{said}");
            assert!(said.contains(&command), "{said}");
        }
        assert!(warning.ends_with("looking elsewhere"), "{warning}");
        // A later place has one that does.
        environment(&folder.path().join("other"), &[("", "1.30.0 CPU")]);
        surroundings.python_environments = vec![("VIRTUAL_ENV", folder.path().join("other"))];
        let library = locate_among(&surroundings, &options(folder.path()), &[Build::Cpu], &observer).unwrap();
        assert_eq!((library.version.as_str(), library.how.as_str()), ("1.30.0", "Python environment (VIRTUAL_ENV)"));
        assert_eq!(warnings.lock().unwrap().len(), 1);
    }

    #[test]
    fn without_such_a_build_each_other_one_is_named_with_its_providers() {
        let folder = tempfile::tempdir().unwrap();
        let surroundings = three_builds(folder.path());
        fs::remove_dir_all(folder.path().join("b")).unwrap();
        let said = locate_among(&surroundings, &options(folder.path()), &[Build::OpenVino], &ignore).unwrap_err().to_string();
        assert!(said.starts_with("no usable ONNX Runtime with OpenVINO on this machine"), "{said}");
        assert!(
            said.contains("is a build without OpenVINO (it has Azure, CPU)") && said.contains("(it has CUDA, CPU)"),
            "{said}"
        );
        assert!(said.contains("to get it: tlpipe doctor --install openvino"), "{said}");
    }

    #[test]
    fn a_named_library_must_have_the_provider_too() {
        let folder = tempfile::tempdir().unwrap();
        let surroundings = three_builds(folder.path());
        let options = RuntimeOptions { library: Some(folder.path().join("bin")), ..options(folder.path()) };
        let said = locate_among(&surroundings, &options, &[Build::Cuda], &ignore).unwrap_err().to_string();
        assert!(said.contains("--onnxruntime") && said.contains("is a build without CUDA (it has Azure, CPU)"), "{said}");
        assert!(said.contains("name ONNX Runtime with CUDA"), "{said}");
    }

    #[test]
    fn an_install_without_network_names_every_package() {
        let folder = tempfile::tempdir().unwrap();
        if Pin::of_this_machine(Build::Cuda).is_none() {
            return;
        }
        let said = install_among(&nowhere(), Build::Cuda, &options(folder.path()), &ignore).unwrap_err().to_string();
        assert!(said.contains("--offline") && said.contains("onnxruntime-gpu==1.31.1 nvidia-cublas=="), "{said}");
    }
}
