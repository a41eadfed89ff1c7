//! Networks and data sets by name: two registries, a search path, downloads.
//!
//! A name or path is resolved in this order:
//!
//! ```text
//! a path that exists
//! models/FILE or data/[NAME/]FILE in the working directory
//! each folder of TLPIPE_ASSETS: by file name anywhere below, then by SHA-256
//! the cache ($XDG_CACHE_HOME/tlpipe)
//! built into the program
//! download: TLPIPE_MIRROR/FILE, then the registry's addresses
//! ```
//!
//! A file of the registry counts only with the registry's SHA-256, wherever it comes from.

mod checksum;
mod download;
mod embedded;
mod error;
mod places;
mod registry;

use std::borrow::Cow;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use checksum::Checksums;
use download::{Downloader, Failure};
use error::READ_REMEDY;
use etcetera::BaseStrategy as _;
use places::{Hit, Places, Shelf, Trace};
use registry::Registry;

pub use checksum::sha256_of;
pub use error::{Absent, AssetError};
pub use registry::{Alias, AssetFile, DataCard, ModelCard, Preprocessing, Variant};

use crate::events::{Event, Observer};

/// Where to look, and what is allowed.
#[derive(Clone, Debug)]
pub struct Search {
    /// Relative paths, `models/` and `data/` start here; empty means the working directory.
    pub workdir: PathBuf,
    /// Folders of `TLPIPE_ASSETS`.
    pub roots: Vec<PathBuf>,
    /// Where downloads and remembered checksums live.
    pub cache: PathBuf,
    /// Base address that is tried before those of the registry.
    pub mirror: Option<String>,
    /// No downloads.
    pub offline: bool,
}

impl Search {
    /// As the environment says: `TLPIPE_ASSETS` (folders separated as in `PATH`), `TLPIPE_MIRROR`, `XDG_CACHE_HOME`.
    pub fn from_env(offline: bool) -> Self {
        let roots = env::var_os("TLPIPE_ASSETS").map(|value| env::split_paths(&value).collect::<Vec<_>>()).unwrap_or_default();
        Self {
            workdir: PathBuf::new(),
            roots: roots.into_iter().filter(|path| !path.as_os_str().is_empty()).collect(),
            cache: cache_folder(),
            mirror: env::var("TLPIPE_MIRROR").ok().filter(|value| !value.is_empty()),
            offline,
        }
    }
}

/// tlpipe's cache folder; nothing is made. Without a home directory, a folder of the system's temporary one.
pub fn cache_folder() -> PathBuf {
    etcetera::choose_base_strategy().map_or_else(|_| env::temp_dir(), |strategy| strategy.cache_dir()).join("tlpipe")
}

/// A network that is at hand.
#[derive(Clone, Debug)]
pub struct Located {
    /// The ONNX file; for one that is built into the program only its name.
    pub path: PathBuf,
    /// SHA-256 of its content, lowercase hex.
    pub sha256: String,
    /// Where it was found, for people.
    pub how: String,
    /// What the registry knows about this content.
    pub card: Option<ModelCard>,
    embedded: Option<&'static [u8]>,
}

impl Located {
    /// The ONNX file's bytes.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(&self) -> Result<Cow<'static, [u8]>, AssetError> {
        match self.embedded {
            Some(bytes) => Ok(Cow::Borrowed(bytes)),
            None => fs::read(&self.path).map(Cow::Owned).map_err(|source| AssetError::Io {
                path: self.path.clone(),
                source,
                remedy: READ_REMEDY,
            }),
        }
    }
}

/// A data set that is at hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocatedData {
    /// Its files; or the one path (or pattern, or address) that was given.
    pub paths: Vec<PathBuf>,
    /// Where it was found, for people.
    pub how: String,
    /// What the registry knows, for a registered name.
    pub card: Option<DataCard>,
}

/// Finds networks and data sets.
pub struct Finder {
    search: Search,
    registry: Registry,
    places: Places,
    sums: Checksums,
    downloader: Downloader,
}

impl Finder {
    /// A finder over the registries that are built into the program.
    ///
    /// # Errors
    /// When a registry is damaged.
    pub fn new(search: Search) -> Result<Self, AssetError> {
        Ok(Self::with_registry(search, Registry::built_in()?))
    }

    fn with_registry(search: Search, registry: Registry) -> Self {
        Self {
            places: Places::new(&search),
            sums: Checksums::open(&search.cache),
            downloader: Downloader::new(search.mirror.clone()),
            registry,
            search,
        }
    }

    /// Every registered network.
    pub fn models(&self) -> &[ModelCard] {
        &self.registry.models
    }

    /// Names that stand for the first of several networks.
    pub fn aliases(&self) -> &[Alias] {
        &self.registry.aliases
    }

    /// Every registered data set.
    pub fn datasets(&self) -> &[DataCard] {
        &self.registry.datasets
    }

    /// A network by path, name or alias; downloaded where it is allowed and needed.
    ///
    /// # Errors
    /// When it is unknown, not at hand and not to be had.
    pub fn model(&self, name_or_path: &str, observer: Observer<'_>) -> Result<Located, AssetError> {
        let path = self.search.workdir.join(name_or_path);
        if path.is_file() { self.model_file(&path, observer) } else { self.fetch_model(name_or_path, observer) }
    }

    /// A network by name or alias; downloaded where it is allowed and needed.
    ///
    /// # Errors
    /// When it is unknown, not at hand and not to be had.
    pub fn fetch_model(&self, name: &str, observer: Observer<'_>) -> Result<Located, AssetError> {
        let choices = self.registry.choices(name);
        let Some(first) = choices.first() else { return Err(self.unknown("model", name, self.registry.model_names())) };
        let mut trace = Trace::default();
        if let Some(located) = choices.iter().find_map(|card| self.local_model(card, &mut trace)) {
            return Ok(located);
        }
        let files = choices.iter().map(|card| card.file.name.as_str()).collect::<Vec<_>>().join(" or ");
        let absent = |attempts| absent("model", "models", name, &first.file.name, &files, attempts, trace);
        if self.search.offline {
            return Err(absent(None));
        }
        let mut attempts = Vec::new();
        for card in &choices {
            let target = self.places.cached(Shelf::Models, &card.file);
            match self.download(&card.file, &target, observer) {
                Ok(()) => {
                    return Ok(Located {
                        path: target,
                        sha256: card.file.sha256.clone(),
                        how: "downloaded".into(),
                        card: Some((*card).clone()),
                        embedded: None,
                    });
                }
                Err(Failure::Local(error)) => return Err(error),
                Err(Failure::Addresses(reasons)) => attempts.extend(reasons),
            }
        }
        Err(absent(Some(attempts)))
    }

    /// A data set by path, pattern, address or name; downloaded where it is allowed and needed. An address is left to who reads it.
    ///
    /// # Errors
    /// When it is unknown, not at hand and not to be had.
    pub fn dataset(&self, name_or_path: &str, observer: Observer<'_>) -> Result<LocatedData, AssetError> {
        if name_or_path.contains("://") {
            if self.search.offline && !name_or_path.starts_with("file://") {
                return Err(AssetError::Offline(name_or_path.to_owned()));
            }
            return Ok(LocatedData { paths: vec![name_or_path.into()], how: "address".into(), card: None });
        }
        let path = self.search.workdir.join(name_or_path);
        let pattern = name_or_path.contains(['*', '?', '[']);
        if path.exists() || pattern {
            let how = if path.exists() { "path" } else { "pattern" };
            return Ok(LocatedData { paths: vec![path], how: how.into(), card: None });
        }
        self.fetch_dataset(name_or_path, observer)
    }

    /// A data set by name; downloaded where it is allowed and needed.
    ///
    /// # Errors
    /// When it is unknown, not at hand and not to be had.
    pub fn fetch_dataset(&self, name: &str, observer: Observer<'_>) -> Result<LocatedData, AssetError> {
        let Some(card) = self.registry.dataset(name) else {
            return Err(self.unknown("data set", name, self.registry.dataset_names()));
        };
        let mut trace = Trace::default();
        if let Some(located) = card.variants.iter().find_map(|variant| self.local_variant(card, variant, &mut trace)) {
            return Ok(located);
        }
        let forms = card.variants.iter();
        let forms = forms.map(|form| form.files.iter().map(|file| file.name.as_str()).collect::<Vec<_>>().join(" and "));
        let forms = forms.collect::<Vec<_>>().join(", or ");
        // The first file of the preferred form that is not at hand.
        let mut files = card.variants.iter().flat_map(|variant| &variant.files);
        let is_lacking =
            |file: &&AssetFile| self.places.find(Shelf::Data(name), file, &self.sums, &mut Trace::default()).is_none();
        let lacking = files.find(is_lacking).map_or(name, |file| file.name.as_str());
        let absent = |attempts| absent("data set", "data", name, lacking, &forms, attempts, trace);
        if self.search.offline {
            return Err(absent(None));
        }
        let mut attempts = Vec::new();
        for variant in &card.variants {
            match self.download_variant(card, variant, observer) {
                Ok(located) => return Ok(located),
                Err(Failure::Local(error)) => return Err(error),
                Err(Failure::Addresses(reasons)) => attempts.extend(reasons),
            }
        }
        Err(absent(Some(attempts)))
    }

    /// A registered network, if it is on this machine; nothing is downloaded.
    pub fn model_at_hand(&self, card: &ModelCard) -> Option<Located> {
        self.local_model(card, &mut Trace::default())
    }

    /// A registered data set, if it is on this machine whole; nothing is downloaded.
    pub fn dataset_at_hand(&self, card: &DataCard) -> Option<LocatedData> {
        card.variants.iter().find_map(|variant| self.local_variant(card, variant, &mut Trace::default()))
    }

    /// A file that a user named: any ONNX file will do, and what the registry knows about its content comes with it.
    fn model_file(&self, path: &Path, observer: Observer<'_>) -> Result<Located, AssetError> {
        let sha256 =
            self.sums.sha256(path).map_err(|source| AssetError::Io { path: path.to_owned(), source, remedy: READ_REMEDY })?;
        let card = self.registry.model_by_hash(&sha256).cloned();
        let namesake = path.file_name().and_then(|name| self.registry.model(name.to_str()?));
        if let (None, Some(namesake)) = (&card, namesake) {
            observer(Event::Warned(format!(
                "{}: named like the registry's {}, but its SHA-256 is {sha256}, not {}; what the registry knows about that network is not used",
                path.display(),
                namesake.name,
                namesake.file.sha256
            )));
        }
        Ok(Located { path: path.to_owned(), sha256, how: "path".into(), card, embedded: None })
    }

    fn local_model(&self, card: &ModelCard, trace: &mut Trace) -> Option<Located> {
        let located = |path, how: String, embedded| Located {
            path,
            sha256: card.file.sha256.clone(),
            how,
            card: Some(card.clone()),
            embedded,
        };
        let hit = self.places.find(Shelf::Models, &card.file, &self.sums, trace);
        if let Some(Hit { path, how }) = hit {
            return Some(located(path, how, None));
        }
        let bytes = embedded::content(&card.file)?;
        Some(located(PathBuf::from(&card.file.name), "built into tlpipe".into(), Some(bytes)))
    }

    fn local_variant(&self, card: &DataCard, variant: &Variant, trace: &mut Trace) -> Option<LocatedData> {
        let hits = variant.files.iter().map(|file| self.places.find(Shelf::Data(&card.name), file, &self.sums, trace));
        let hits = hits.collect::<Option<Vec<Hit>>>()?;
        let mut hows: Vec<String> = hits.iter().map(|hit| hit.how.clone()).collect();
        hows.dedup();
        let how = format!("{}, {}", variant.format, hows.join(" and "));
        Some(LocatedData { paths: hits.into_iter().map(|hit| hit.path).collect(), how, card: Some(card.clone()) })
    }

    fn download_variant(&self, card: &DataCard, variant: &Variant, observer: Observer<'_>) -> Result<LocatedData, Failure> {
        let shelf = Shelf::Data(&card.name);
        let mut paths = Vec::with_capacity(variant.files.len());
        for file in &variant.files {
            let hit = self.places.find(shelf, file, &self.sums, &mut Trace::default());
            let target = match hit {
                Some(hit) => hit.path,
                None => {
                    let target = self.places.cached(shelf, file);
                    self.download(file, &target, observer)?;
                    target
                }
            };
            paths.push(target);
        }
        Ok(LocatedData { paths, how: format!("{}, downloaded", variant.format), card: Some(card.clone()) })
    }

    fn unknown(&self, kind: &'static str, name: &str, known: Vec<String>) -> AssetError {
        let nearest = known.iter().map(|candidate| (strsim::jaro_winkler(name, candidate), candidate));
        let nearest = nearest.filter(|(similarity, _)| *similarity > 0.8).max_by(|a, b| a.0.total_cmp(&b.0));
        let suggestion = nearest.map(|(_, name)| name.clone());
        let looked = self.search.workdir.join(name);
        let looked = std::path::absolute(&looked).unwrap_or(looked);
        AssetError::Unknown { kind, name: name.to_owned(), looked, suggestion, known }
    }

    fn download(&self, file: &AssetFile, target: &Path, observer: Observer<'_>) -> Result<(), Failure> {
        self.downloader.fetch(file, target, observer)?;
        self.sums.remember(target, &file.sha256);
        Ok(())
    }
}

/// `attempts` is what the download addresses answered; none where downloads are forbidden.
fn absent(
    kind: &str,
    command: &str,
    name: &str,
    file: &str,
    files: &str,
    attempts: Option<Vec<String>>,
    trace: Trace,
) -> AssetError {
    let reason = match &attempts {
        None => "is not at hand, and --offline forbids the download",
        Some(attempts) if attempts.is_empty() => "is not at hand, and is published nowhere",
        Some(_) => "is not at hand, and could not be downloaded",
    };
    AssetError::Absent(Box::new(Absent {
        subject: format!("{kind} {name}"),
        file: file.to_owned(),
        reason,
        attempts: attempts.unwrap_or_default(),
        looked: trace.looked,
        rejected: trace.rejected,
        remedy: format!(
            "set TLPIPE_ASSETS to a folder that holds {files}, or run `tlpipe {command} fetch {name}` where there is a network"
        ),
    }))
}

#[cfg(test)]
mod tests;
