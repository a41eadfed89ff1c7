//! Which files a source has: a file, a folder with everything below it, a pattern, or several of these.

use std::collections::{BTreeMap, HashSet};
use std::path::{Component, Path, PathBuf};

use walkdir::{DirEntry, WalkDir};

use super::place::Place;
use super::{DatasetError, remote};

/// A file of a source.
#[derive(Clone, Debug)]
pub(super) struct SourceFile {
    /// Where it is.
    pub(super) place: Place,
    /// The same relative to the source: what ids are made of.
    pub(super) relative: PathBuf,
}

impl SourceFile {
    /// The file's extension, lower case.
    pub(super) fn extension(&self) -> String {
        extension(&self.relative)
    }

    /// Its name is that of an image.
    pub(super) fn is_image(&self) -> bool {
        is_image_extension(&self.extension())
    }

    /// It is an archive of tar and gzip by its name.
    pub(super) fn is_packed_tar(&self) -> bool {
        let name = self.name().to_lowercase();
        name.ends_with(".tar.gz") || name.ends_with(".tgz")
    }

    /// Its name without folders.
    pub(super) fn name(&self) -> String {
        self.relative.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }
}

fn extension(path: &Path) -> String {
    path.extension().map(|text| text.to_string_lossy().to_lowercase()).unwrap_or_default()
}

/// A file with this extension, lower case, is an image.
pub(super) fn is_image_extension(extension: &str) -> bool {
    const IMAGES: [&str; 14] =
        ["jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "dib", "gif", "tif", "tiff", "ppm", "pgm", "pbm"];
    IMAGES.contains(&extension)
}

/// The file's name is that of an image.
pub(crate) fn is_image_name(path: &Path) -> bool {
    is_image_extension(&extension(path))
}

/// Everything that was found, in the order of the relative paths' bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    pub(super) files: Vec<SourceFile>,
    /// Folders below the source, relative to it.
    pub(super) folders: Vec<PathBuf>,
    pub(super) warnings: Vec<String>,
}

impl Found {
    /// Files by their extension, for a message: `3 .txt, 1 .json`.
    pub(super) fn by_extension<'a>(files: impl Iterator<Item = &'a SourceFile>) -> String {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for file in files {
            let extension = file.extension();
            *counts
                .entry(if extension.is_empty() { "without extension".to_owned() } else { format!(".{extension}") })
                .or_default() += 1;
        }
        if counts.is_empty() {
            return "no files".to_owned();
        }
        let counts: Vec<String> = counts.into_iter().map(|(extension, count)| format!("{count} {extension}")).collect();
        counts.join(", ")
    }
}

/// `path` as messages and ids show it: `/` between the parts on every system.
pub(super) fn slashed(path: &Path) -> String {
    let parts = path.components().filter(|part| !matches!(part, Component::CurDir));
    parts.map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}

/// Finds the files of a source. Hidden files and the folders that tlpipe itself writes are skipped, symbolic links are followed, and a loop of them ends.
///
/// # Errors
/// When a path does not exist or a folder cannot be read.
pub(super) fn find(paths: &[PathBuf]) -> Result<Found, DatasetError> {
    let mut found = Found::default();
    for path in paths {
        let local = remote::local_path(path)?;
        let path = local.as_ref().unwrap_or(path);
        if remote::is_address(path) {
            remote::find(path, &mut found)?;
        } else if path.exists() {
            let root = if path.is_dir() { path.clone() } else { path.parent().map(Path::to_owned).unwrap_or_default() };
            walk(path, &root, &mut found)?;
        } else {
            expand(path, &mut found)?;
        }
    }
    if paths.len() > 1 {
        relate(&mut found.files);
    }
    let mut seen = HashSet::new();
    found.files.retain(|file| seen.insert(file.place.shown()));
    found.files.sort_by(|a, b| a.relative.as_os_str().as_encoded_bytes().cmp(b.relative.as_os_str().as_encoded_bytes()));
    Ok(found)
}

/// Several paths: ids are file names while these differ, otherwise paths below the folder that all share.
fn relate(files: &mut [SourceFile]) {
    let names: HashSet<String> = files.iter().map(SourceFile::name).collect();
    if names.len() == files.len() {
        for file in files {
            file.relative = file.name().into();
        }
        return;
    }
    let paths: Vec<PathBuf> = files.iter().map(|file| file.place.shown()).collect();
    let mut shared = paths.first().and_then(|path| path.parent()).map(Path::to_owned).unwrap_or_default();
    while !paths.iter().all(|path| path.starts_with(&shared)) && shared.pop() {}
    for (file, path) in files.iter_mut().zip(&paths) {
        if let Ok(relative) = path.strip_prefix(&shared) {
            file.relative = relative.to_owned();
        }
    }
}

fn expand(pattern: &Path, found: &mut Found) -> Result<(), DatasetError> {
    let text = pattern.to_string_lossy();
    let is_wild = |part: &str| part.contains(['*', '?', '[']);
    if !is_wild(&text) {
        return Err(DatasetError::NotFound(pattern.to_owned()));
    }
    let root: PathBuf = pattern.components().take_while(|part| !is_wild(&part.as_os_str().to_string_lossy())).collect();
    let unsupported = |reason: String| DatasetError::Unsupported { path: pattern.to_owned(), reason };
    let matches = glob::glob(&text).map_err(|error| unsupported(format!("not a valid pattern: {error}")))?;
    let mut any = false;
    for path in matches {
        let path = path.map_err(|error| {
            let path = error.path().to_owned();
            DatasetError::Io { path, source: error.into() }
        })?;
        any = true;
        if !path.file_name().is_some_and(|name| is_hidden(&name.to_string_lossy())) {
            walk(&path, &root, found)?;
        }
    }
    if any { Ok(()) } else { Err(DatasetError::NotFound(pattern.to_owned())) }
}

pub(super) fn is_hidden(name: &str) -> bool {
    name.starts_with('.') || name == "__MACOSX"
}

/// Hidden folders that nobody takes for images.
const TOOLS: [&str; 6] = [".git", ".cache", ".huggingface", ".ipynb_checkpoints", ".venv", "__MACOSX"];

/// A feature store or a run, which people keep beside their images.
fn is_own(path: &Path) -> bool {
    let is_one = |path: &Path| ["store.json", "head.safetensors"].iter().any(|file| path.join(file).is_file());
    // The folders that hold them unless told otherwise.
    let holds_them = path.file_name().is_some_and(|name| name == "features" || name == "runs")
        && path.read_dir().is_ok_and(|entries| entries.flatten().any(|entry| is_one(&entry.path())));
    holds_them || is_one(path)
}

fn walk(top: &Path, root: &Path, found: &mut Found) -> Result<(), DatasetError> {
    let relative = |path: &Path| path.strip_prefix(root).unwrap_or(path).to_owned();
    let mut skipped = Vec::new();
    let visible = |entry: &DirEntry| {
        let name = entry.file_name().to_string_lossy();
        if entry.depth() == 0 {
            return true;
        }
        if !is_hidden(&name) {
            return !is_own(entry.path());
        }
        if entry.file_type().is_dir() && !TOOLS.contains(&name.as_ref()) {
            skipped.push(format!("{}: a hidden folder, skipped", entry.path().display()));
        }
        false
    };
    for entry in WalkDir::new(top).follow_links(true).into_iter().filter_entry(visible) {
        match entry {
            Ok(entry) if entry.file_type().is_dir() => found.folders.push(relative(entry.path())),
            Ok(entry) => {
                let regular = entry.file_type().is_file();
                let relative = relative(entry.path());
                let path = entry.into_path();
                let shown = path.display().to_string();
                let file = SourceFile { place: Place::File(path), relative };
                // A pipe named like an image is set aside as one; any other must not be opened, since that would block for ever.
                if regular || file.is_image() {
                    found.files.push(file);
                } else {
                    found.warnings.push(format!("{shown}: not a regular file, skipped"));
                }
            }
            Err(error) => {
                let path = error.path().unwrap_or(top).to_owned();
                if error.loop_ancestor().is_some() {
                    found.warnings.push(format!("{}: a symbolic link to a folder that contains it, skipped", path.display()));
                    continue;
                }
                let source = error.into_io_error().unwrap_or_else(|| std::io::Error::other("cannot be read"));
                if path.is_symlink() {
                    // A dangling link: named like an image it will be set aside as one, with the reason.
                    found.files.push(SourceFile { relative: relative(&path), place: Place::File(path) });
                } else {
                    return Err(DatasetError::Io { path, source });
                }
            }
        }
    }
    found.warnings.append(&mut skipped);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        folder
    }

    fn relative(found: &Found) -> Vec<String> {
        found.files.iter().map(|file| slashed(&file.relative)).collect()
    }

    #[test]
    fn a_folder_is_walked_in_byte_order_without_hidden_files() {
        let files =
            ["b/2.jpg", "b/10.jpg", "a b/é.png", "B/1.jpg", ".git/x.jpg", "b/.hidden.jpg", "__MACOSX/y.jpg", ".owl/1.jpg"];
        let folder = tree(&files);
        let found = find(&[folder.path().to_owned()]).unwrap();
        assert_eq!(relative(&found), ["B/1.jpg", "a b/é.png", "b/10.jpg", "b/2.jpg"]);
        assert!(found.warnings.len() == 1 && found.warnings[0].contains(".owl: a hidden folder"), "{:?}", found.warnings);
    }

    #[test]
    fn what_tlpipe_writes_beside_the_images_is_no_part_of_them() {
        let files =
            ["cat/1.jpg", "features/x/store.json", "features/x/quarantine.parquet", "runs/x/head.safetensors", "runs/x/a.png"];
        let folder = tree(&files);
        let found = find(&[folder.path().to_owned()]).unwrap();
        assert_eq!((relative(&found), found.folders.len()), (vec!["cat/1.jpg".to_owned()], 2), "{:?}", found.folders);
    }

    #[test]
    fn patterns_and_lists_keep_ids_short() {
        let folder = tree(&["p/train-0.parquet", "p/test-0.parquet", "q/test-1.parquet", "q/train-0.parquet"]);
        let at = |path: &str| folder.path().join(path);
        assert_eq!(relative(&find(&[at("p/*.parquet")]).unwrap()), ["test-0.parquet", "train-0.parquet"]);
        assert_eq!(relative(&find(&[at("*/test*")]).unwrap()), ["p/test-0.parquet", "q/test-1.parquet"]);
        assert_eq!(relative(&find(&[at("p/train-0.parquet")]).unwrap()), ["train-0.parquet"]);
        assert_eq!(
            relative(&find(&[at("p/train-0.parquet"), at("q/test-1.parquet")]).unwrap()),
            ["test-1.parquet", "train-0.parquet"]
        );
        assert_eq!(
            relative(&find(&[at("p/train-0.parquet"), at("q/train-0.parquet")]).unwrap()),
            ["p/train-0.parquet", "q/train-0.parquet"]
        );
    }

    #[test]
    fn nothing_there_is_an_error_with_a_remedy() {
        let folder = tree(&["a.jpg"]);
        for path in ["missing", "*.png"] {
            let text = find(&[folder.path().join(path)]).unwrap_err().to_string();
            assert!(text.contains(path) && text.contains("no such file"), "{text}");
        }
        assert!(find(&[folder.path().join("[")]).unwrap_err().to_string().contains("pattern"));
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_loops_end() {
        use std::os::unix::fs::symlink;
        let folder = tree(&["real/a/1.jpg", "source/b/2.jpg"]);
        symlink(folder.path().join("real/a"), folder.path().join("source/a")).unwrap();
        symlink(folder.path().join("source"), folder.path().join("source/b/again")).unwrap();
        symlink("gone.jpg", folder.path().join("source/b/dangling.jpg")).unwrap();
        let found = find(&[folder.path().join("source")]).unwrap();
        assert_eq!(relative(&found), ["a/1.jpg", "b/2.jpg", "b/dangling.jpg"]);
        assert!(found.warnings.len() == 1 && found.warnings[0].contains("again"), "{:?}", found.warnings);
    }
}
