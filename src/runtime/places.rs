//! Where a library of ONNX Runtime may lie: the places, in the order in which they are looked at.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::probe::{Probed, probe};
use super::{Build, RuntimeOptions, installed};

/// What the process' environment says.
pub(super) struct Surroundings {
    /// `ORT_DYLIB_PATH`.
    pub variable: Option<OsString>,
    /// The folder of the running program, links resolved.
    pub executable_folder: Option<PathBuf>,
    /// Active environments, and the variables that name them.
    pub python_environments: Vec<(&'static str, PathBuf)>,
    /// Whether the system loader is asked.
    pub system: bool,
    /// Asks a file what it is.
    pub probe: fn(&Path) -> Result<Probed, String>,
}

impl Surroundings {
    pub fn of_process() -> Self {
        let folder = |name| env::var_os(name).filter(|value| !value.is_empty());
        // pipx and others put a link on the PATH; the environment is where it leads.
        let executable = env::current_exe().ok().map(|path| fs::canonicalize(&path).unwrap_or(path));
        Self {
            variable: folder("ORT_DYLIB_PATH"),
            executable_folder: executable.and_then(|path| path.parent().map(Path::to_owned)),
            python_environments: ["VIRTUAL_ENV", "CONDA_PREFIX"]
                .into_iter()
                .filter_map(|name| Some((name, folder(name)?.into())))
                .collect(),
            system: true,
            probe,
        }
    }
}

/// A place, and the libraries in it.
pub(super) struct Place {
    /// For people.
    pub name: String,
    /// The best first.
    pub paths: Vec<PathBuf>,
    /// Whether a user chose it: one that does not do is worth a warning.
    pub is_chosen: bool,
    /// Where it is a Python environment: how a package gets into it, up to the package's name.
    pub pip: Option<String>,
}

impl Place {
    pub fn new(name: &str, paths: Vec<PathBuf>) -> Self {
        Self { name: name.to_owned(), paths, is_chosen: false, pip: None }
    }

    fn python(name: &str, paths: Vec<PathBuf>, pip: String) -> Self {
        Self { pip: Some(pip), ..Self::new(name, paths) }
    }
}

/// Every place that counts for these options, in order.
pub(super) fn places(surroundings: &Surroundings, options: &RuntimeOptions, build: Build) -> Vec<Place> {
    if let Some(path) = &options.library {
        return vec![Place { is_chosen: true, ..Place::new("--onnxruntime", given(path)) }];
    }
    let mut places = Vec::new();
    if let Some(path) = &surroundings.variable {
        places.push(Place { is_chosen: true, ..Place::new("ORT_DYLIB_PATH", given(Path::new(path))) });
    }
    let folder = surroundings.executable_folder.as_deref();
    places.push(Place::new("beside the executable", folder.map(libraries_in).unwrap_or_default()));
    let own = folder.and_then(prefix);
    if let Some(prefix) = own {
        let (paths, pip) = installed_beside(prefix);
        // A program that no pip installed has no environment.
        if !paths.is_empty() {
            places.push(Place::python("the executable's Python environment", paths, pip));
        }
    }
    places.push(Place::new("tlpipe's cache", installed(build, &options.cache).into_iter().collect()));
    let others = surroundings.python_environments.iter().filter(|(_, folder)| !own.is_some_and(|own| is_same(own, folder)));
    for (variable, folder) in others {
        let name = format!("Python environment ({variable})");
        places.push(Place::python(&name, libraries_of_python(folder), pip_of(folder)));
    }
    if surroundings.system {
        places.push(Place::new("system loader", system_names().iter().map(PathBuf::from).collect()));
    }
    places
}

/// A path that a user gave: a library, a folder that holds one, or a name for the system loader.
fn given(path: &Path) -> Vec<PathBuf> {
    if path.is_dir() { libraries_in(path) } else { vec![path.to_owned()] }
}

/// The environment of a program in this folder, if it is one for an environment's programs.
fn prefix(executable_folder: &Path) -> Option<&Path> {
    let name = executable_folder.file_name()?.to_str()?;
    ["bin", "Scripts"].contains(&name).then(|| executable_folder.parent()).flatten()
}

/// What pip put beside a program in PREFIX/bin or PREFIX\Scripts: of an environment, a system, `--user` or `--prefix`, whose packages
/// are in PREFIX/lib/python3.X/site-packages (Windows: PREFIX\Lib\site-packages, `--user` PREFIX\site-packages); or of `--target
/// PREFIX`. And how pip gets there.
fn installed_beside(prefix: &Path) -> (Vec<PathBuf>, String) {
    let mut paths = libraries_of_python(prefix);
    paths.extend(libraries_in(&capi(&prefix.join("site-packages"))));
    if paths.is_empty() {
        let command = format!("python3 -m pip install --upgrade --target '{}'", prefix.display());
        return (libraries_in(&capi(prefix)), command);
    }
    (paths, pip_of(prefix))
}

/// pip of the Python in an environment; of `python3`, where it has none of its own (`--user`, `--prefix`).
fn pip_of(environment: &Path) -> String {
    let own = ["bin/python3", "bin/python", "Scripts/python.exe", "python.exe"].map(|name| environment.join(name));
    match own.iter().find(|path| path.is_file()) {
        Some(python) => format!("'{}' -m pip install", python.display()),
        None => "python3 -m pip install".to_owned(),
    }
}

/// Where the package keeps its library.
fn capi(packages: &Path) -> PathBuf {
    packages.join("onnxruntime").join("capi")
}

/// Libraries of every Python version in an environment.
fn libraries_of_python(environment: &Path) -> Vec<PathBuf> {
    let mut folders = vec![capi(&environment.join("Lib").join("site-packages"))];
    for lib in ["lib", "lib64"] {
        let Ok(entries) = fs::read_dir(environment.join(lib)) else { continue };
        // Debian's own Python calls them dist-packages.
        let packages = |entry: fs::DirEntry| ["site-packages", "dist-packages"].map(|name| capi(&entry.path().join(name)));
        folders.extend(entries.filter_map(Result::ok).flat_map(packages));
    }
    folders.sort();
    // In most environments lib64 is a link to lib.
    let mut seen = BTreeSet::new();
    folders.retain(|folder| fs::canonicalize(folder).is_ok_and(|real| seen.insert(real)));
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

fn is_same(a: &Path, b: &Path) -> bool {
    a == b || fs::canonicalize(a).is_ok_and(|a| fs::canonicalize(b).is_ok_and(|b| a == b))
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

/// What the system loader knows it by.
pub(super) fn system_names() -> &'static [&'static str] {
    if cfg!(windows) {
        &["onnxruntime.dll"]
    } else if cfg!(target_os = "macos") {
        &["libonnxruntime.dylib"]
    } else {
        &["libonnxruntime.so", "libonnxruntime.so.1"]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        std::os::unix::fs::symlink("lib", folder.path().join("lib64")).unwrap();
        assert_eq!(libraries_of_python(folder.path()), [capi.join("libonnxruntime.so.1.32.0")]);
    }

    /// Each way in which pip lays out a program and a package, and how pip is called to mend it.
    #[test]
    fn the_package_is_found_from_where_pip_put_the_program() {
        for (bin, packages, command) in [
            ("bin", "lib/python3.12/site-packages", "python3 -m pip install"),
            ("bin", "lib64/python3.12/site-packages", "python3 -m pip install"),
            ("bin", "local/../lib/python3/dist-packages", "python3 -m pip install"),
            ("Scripts", "Lib/site-packages", "python3 -m pip install"),
            ("Scripts", "site-packages", "python3 -m pip install"),
            ("bin", "", "python3 -m pip install --upgrade --target '"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir_all(folder.path().join("local")).unwrap();
            let library = capi(&folder.path().join(packages)).join(system_names()[0]);
            fs::create_dir_all(library.parent().unwrap()).unwrap();
            fs::write(&library, "").unwrap();
            let executable_folder = folder.path().join(bin);
            fs::create_dir_all(&executable_folder).unwrap();
            let (paths, pip) = installed_beside(prefix(&executable_folder).unwrap());
            let real: Vec<PathBuf> = paths.iter().map(|path| fs::canonicalize(path).unwrap()).collect();
            assert_eq!(real, [fs::canonicalize(&library).unwrap()], "{bin}, {packages}");
            assert!(pip.starts_with(command), "{pip}");
        }
        assert_eq!(prefix(Path::new("/work/target/release")), None);
    }

    #[test]
    fn pip_is_that_of_the_environment_where_it_has_one() {
        let folder = tempfile::tempdir().unwrap();
        let python = folder.path().join("bin/python3");
        fs::create_dir_all(python.parent().unwrap()).unwrap();
        fs::write(&python, "").unwrap();
        assert_eq!(pip_of(folder.path()), format!("'{}' -m pip install", python.display()));
    }
}
