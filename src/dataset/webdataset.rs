//! WebDataset shards: `.tar` files, or `.tar.gz`, in which the members of one key are one sample, `dog/1.jpg` with `dog/1.cls` or `dog/1.json`.
//!
//! A shard is gone through once when the source is opened: headers and labels are read, images are passed over. Their places are
//! remembered, so that they are then read in the order in which they lie.

mod index;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::parquet::file::reader::Length as _;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::cifar;
use super::columns::LABEL_NAMES;
use super::files::{SourceFile, is_image_extension, slashed};
use super::label::{ClassList, Counted, Tally, class_list, splits, warnings};
use super::listing::Value;
use super::place::{self, Access, MAX_BYTES, Place, Stamp};
use super::split::{self, Split, TRAIN};
use super::{DatasetError, Encoded, Opened, Record, Records, Source, SourceOptions, counted};
use index::Index;

/// The member of a label that is nothing else.
const CLASS: &str = "cls";
/// Larger members are no labels.
const MOST_LABEL: u64 = 1 << 20;

/// Read ahead where each request costs a round trip: headers lie between the images, which are then read one after the other.
const FIRST_AHEAD: u64 = 64 << 10;
const HEADERS_AHEAD: u64 = 1 << 20;
const IMAGES_AHEAD: u64 = 8 << 20;

/// One image with its label.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Sample {
    key: Box<str>,
    label: Option<Value>,
    /// Where its image begins in the shard.
    offset: u64,
    bytes: u64,
}

/// One file.
#[derive(Clone, Debug)]
struct Shard {
    file: SourceFile,
    /// As it was when it was gone through.
    stamp: Stamp,
    /// What ids begin with.
    name: String,
    split: Arc<str>,
    samples: Arc<Vec<Sample>>,
}

/// What going through one file finds.
struct Scanned {
    shard: Shard,
    tally: Tally,
    notes: Notes,
}

/// What was not used, and an example of each.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Notes {
    without_image: Few,
    more_images: Few,
    unreadable_labels: Few,
    /// Fields of `.json` members in which no label was found.
    fields: BTreeSet<String>,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Few {
    count: usize,
    first: Option<String>,
}

impl Few {
    fn add(&mut self, count: usize, first: impl FnOnce() -> String) {
        self.count += count;
        if self.first.is_none() && count > 0 {
            self.first = Some(first());
        }
    }

    /// `2 samples without an image, skipped (the first is a.tar#x)`.
    fn note(&self, noun: &str, what: &str) -> Option<String> {
        self.first.as_ref().map(|first| format!("{} {what} (the first is {first})", counted(self.count, noun)))
    }
}

/// A sample whose members are still coming.
struct Draft {
    key: Arc<str>,
    label: Option<Value>,
    image: Option<(u64, u64)>,
}

#[derive(Debug)]
struct WebDataset {
    shards: Vec<Shard>,
    classes: Arc<ClassList>,
}

/// The file is a shard by its name.
pub(super) fn is_shard(file: &SourceFile) -> bool {
    file.extension() == "tar" || file.is_packed_tar()
}

/// Some member of the archive is an image.
///
/// # Errors
/// When the file is no tar archive.
pub(super) fn has_images(file: &SourceFile) -> Result<bool, DatasetError> {
    let access = access(file, FIRST_AHEAD)?;
    let mut found = false;
    members(&file.place, &access, |member, _| {
        found = is_image_extension(member.last_extension());
        // Unpacking the rest of CIFAR's archive would show no more.
        Ok(!found && !member.is_cifar())
    })?;
    Ok(found)
}

/// The archive's content.
fn access(file: &SourceFile, ahead: u64) -> Result<Access, DatasetError> {
    let access = file.place.access(ahead)?;
    if file.is_packed_tar() { access.unpacked().map_err(DatasetError::io(file.place.shown())) } else { Ok(access) }
}

/// Opens shards.
///
/// # Errors
/// When a file is damaged, or labels do not go together.
pub(super) fn open(
    origin: &Path,
    files: &[SourceFile],
    options: &SourceOptions,
    cache: Option<&Path>,
) -> Result<Opened, DatasetError> {
    let scanned = place::each(files, |file| &file.place, |file| scan(file, options, cache))?;
    let paths: Vec<PathBuf> = scanned.iter().map(|scanned| scanned.shard.file.place.shown()).collect();
    let parts: Vec<Counted<'_>> = scanned
        .iter()
        .zip(&paths)
        .map(|(scanned, path)| Counted { path, split: &scanned.shard.split, tally: &scanned.tally })
        .collect();
    let classes = class_list(&parts, None)?;
    let splits = splits(&parts, &classes);
    let mut all = Notes::default();
    for Scanned { notes, .. } in &scanned {
        for (sum, part) in [
            (&mut all.without_image, &notes.without_image),
            (&mut all.more_images, &notes.more_images),
            (&mut all.unreadable_labels, &notes.unreadable_labels),
        ] {
            sum.add(part.count, || part.first.clone().unwrap_or_default());
        }
        all.fields.extend(notes.fields.iter().cloned());
    }
    let labelled = scanned.iter().any(|scanned| scanned.shard.samples.iter().any(|sample| sample.label.is_some()));
    let fields = || all.fields.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    if let Some(asked) = options.label_column.as_ref().filter(|_| !labelled) {
        return Err(DatasetError::Columns {
            path: origin.to_owned(),
            reason: format!(
                "no sample has a label in {asked:?}, which is a field of its .json member, or cls for its .cls member"
            ),
            found: if all.fields.is_empty() { "none".to_owned() } else { fields() },
            flag: "--label-column",
        });
    }
    let mut notes = Vec::new();
    if !labelled && !all.fields.is_empty() {
        notes.push(format!("no label field among {}; choose one with --label-column", fields()));
    }
    if options.split_column.is_some() {
        notes.push("the split is the shard's, told by its name: --split-column is ignored".to_owned());
    }
    notes.extend(all.without_image.note("sample", "without an image, skipped"));
    notes.extend(all.more_images.note("image", "beside the first one of a sample, left out; choose by --image-column EXTENSION"));
    notes.extend(all.unreadable_labels.note("label", "cannot be read, so the sample has none"));
    if splits.is_empty() {
        let found = notes.first().cloned().unwrap_or_else(|| "WebDataset shards without samples".to_owned());
        return Err(DatasetError::NoImages { path: origin.to_owned(), found });
    }
    notes.extend(warnings(&classes.names, &splits));
    Ok(Opened {
        kind: "WebDataset",
        classes: classes.names.clone(),
        splits,
        warnings: notes,
        sorted_by_class: false,
        source: Box::new(WebDataset {
            shards: scanned.into_iter().map(|scanned| scanned.shard).collect(),
            classes: Arc::new(classes),
        }),
    })
}

/// The name of a member, in its parts.
struct Member {
    /// Folders and name up to the first dot of the name.
    key: String,
    /// What follows that dot, lower case.
    extension: String,
    offset: u64,
    bytes: u64,
}

impl Member {
    /// None for what belongs to no sample: hidden files, files without an extension.
    fn of(path: &Path, offset: u64, bytes: u64) -> Option<Self> {
        let path = slashed(path);
        let name = path.rfind('/').map_or(0, |slash| slash + 1);
        let dot = name + path[name..].find('.').filter(|dot| *dot > 0)?;
        Some(Self { key: path[..dot].to_owned(), extension: path[dot + 1..].to_lowercase(), offset, bytes })
    }

    fn is_cifar(&self) -> bool {
        let name = self.key.rsplit('/').next().unwrap_or_default();
        cifar::is_member_name(&format!("{name}.{}", self.extension))
    }

    fn last_extension(&self) -> &str {
        self.extension.rsplit('.').next().unwrap_or_default()
    }
}

/// Calls `each` for the members until it says no; it may read the member's content.
fn members(
    place: &Place,
    access: &Access,
    mut each: impl FnMut(Member, &mut dyn std::io::Read) -> std::io::Result<bool>,
) -> Result<(), DatasetError> {
    let damaged = |error: std::io::Error| {
        access.blame(DatasetError::damaged(place.shown(), format_args!("not a whole tar archive ({error})")))
    };
    let length = access.len();
    let mut archive = tar::Archive::new(access.cursor().map_err(damaged)?);
    for entry in archive.entries_with_seek().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let (offset, bytes) = (entry.raw_file_position(), entry.size());
        if offset.checked_add(bytes).is_none_or(|end| end > length) {
            let name = entry.path().map(|path| slashed(&path)).unwrap_or_default();
            let reason = format!("cut short: {name} is {bytes} bytes from {offset} on, and the file ends at {length}");
            return Err(DatasetError::damaged(place.shown(), reason));
        }
        let kind = entry.header().entry_type();
        if !kind.is_file() && !kind.is_contiguous() {
            continue;
        }
        let Some(member) = Member::of(&entry.path().map_err(damaged)?, offset, bytes) else { continue };
        if !each(member, &mut entry).map_err(damaged)? {
            break;
        }
    }
    Ok(())
}

fn scan(file: &SourceFile, options: &SourceOptions, cache: Option<&Path>) -> Result<Scanned, DatasetError> {
    let stamp = file.place.stamp();
    let Index { samples, notes } = index::of(file, options, cache, || go_through(file, options))?;
    let mut tally = Tally::default();
    for (sample, row) in samples.iter().zip(0..) {
        tally.add(Value::label(sample.label.as_ref()), row);
    }
    let split = Arc::from(split::of_path(&file.relative).as_deref().unwrap_or(TRAIN));
    let name = slashed(&file.relative);
    Ok(Scanned { shard: Shard { file: file.clone(), stamp, name, split, samples: Arc::new(samples) }, tally, notes })
}

fn go_through(file: &SourceFile, options: &SourceOptions) -> Result<Index, DatasetError> {
    let access = access(file, HEADERS_AHEAD)?;
    let name = slashed(&file.relative);
    let (mut drafts, mut by_key, mut notes) = (Vec::<Draft>::new(), HashMap::<Arc<str>, usize>::new(), Notes::default());
    members(&file.place, &access, |member, content| {
        let at = by_key.get(member.key.as_str()).copied().unwrap_or_else(|| {
            let key: Arc<str> = Arc::from(member.key.as_str());
            drafts.push(Draft { key: Arc::clone(&key), label: None, image: None });
            by_key.insert(key, drafts.len() - 1);
            drafts.len() - 1
        });
        let Some(draft) = drafts.get_mut(at) else { return Ok(true) };
        let is_image = match &options.image_column {
            None => is_image_extension(member.last_extension()),
            Some(asked) => member.extension == asked.trim_start_matches('.').to_lowercase(),
        };
        if is_image {
            match draft.image {
                None => draft.image = Some((member.offset, member.bytes)),
                Some(_) => notes.more_images.add(1, || format!("{name}#{}, .{}", member.key, member.extension)),
            }
        } else if is_label(&member, options) {
            let mut text = Vec::new();
            if member.bytes <= MOST_LABEL {
                content.read_to_end(&mut text)?;
            }
            let unreadable = |reason: String| format!("{name}#{}: {reason}", member.key);
            match label(&member, &text, options, &mut notes.fields) {
                // A label by itself wins over one among other things.
                Ok(Some(value)) if member.extension == CLASS || draft.label.is_none() => draft.label = Some(value),
                Ok(_) => {}
                Err(reason) => notes.unreadable_labels.add(1, || unreadable(reason)),
            }
        }
        Ok(true)
    })?;
    let mut samples = Vec::with_capacity(drafts.len());
    for Draft { key, label, image } in drafts {
        match image {
            Some((offset, bytes)) => samples.push(Sample { key: (*key).into(), label, offset, bytes }),
            None => notes.without_image.add(1, || format!("{name}#{key}")),
        }
    }
    samples.sort_by_key(|sample| sample.offset);
    Ok(Index { samples, notes })
}

fn is_label(member: &Member, options: &SourceOptions) -> bool {
    match (member.extension.as_str(), options.label_column.as_deref()) {
        (CLASS, None | Some(CLASS)) | ("json", None) => true,
        ("json", Some(asked)) => asked != CLASS,
        _ => false,
    }
}

/// The label in a member; none where it has none.
///
/// # Errors
/// When what is there is no label; the reason.
fn label(member: &Member, text: &[u8], options: &SourceOptions, fields: &mut BTreeSet<String>) -> Result<Option<Value>, String> {
    if member.bytes > MOST_LABEL {
        return Err(format!(".{} of {} bytes", member.extension, member.bytes));
    }
    if member.extension == CLASS {
        let text = std::str::from_utf8(text).map_err(|_| ".cls is not UTF-8".to_owned())?;
        return Ok(of_text(text));
    }
    let object: serde_json::Map<String, Json> = serde_json::from_slice(text).map_err(|error| format!(".json: {error}"))?;
    let field = match options.label_column.as_deref() {
        Some(asked) => object.get(asked),
        None => std::iter::once(&CLASS)
            .chain(LABEL_NAMES)
            .find_map(|usual| object.iter().find(|(name, _)| name.eq_ignore_ascii_case(usual)))
            .map(|(_, value)| value),
    };
    match field {
        None => {
            fields.extend(object.into_iter().map(|(name, _)| name));
            Ok(None)
        }
        Some(Json::Null) => Ok(None),
        Some(Json::String(text)) => Ok(of_text(text)),
        Some(Json::Bool(value)) => Ok(Some(Value::Name(value.to_string()))),
        Some(Json::Number(number)) => match number.as_i64() {
            Some(index) => Ok(Some(Value::Index(index))),
            None => Err(format!("{number} is no class index")),
        },
        Some(Json::Array(_) | Json::Object(_)) => Err("several labels; an image has one class here".to_owned()),
    }
}

/// An index where the text is a whole number written plainly, otherwise a name.
fn of_text(text: &str) -> Option<Value> {
    let text = text.trim();
    let index = text.parse::<i64>().ok().filter(|index| index.to_string() == text);
    (!text.is_empty()).then(|| index.map_or_else(|| Value::Name(text.to_owned()), Value::Index))
}

impl Shard {
    fn stream(self, classes: Arc<ClassList>) -> Result<Records, DatasetError> {
        self.file.place.unchanged(&self.stamp)?;
        let access = access(&self.file, IMAGES_AHEAD)?;
        Ok(Records::new((0..self.samples.len()).map(move |at| {
            let sample = &self.samples[at];
            Ok(Record {
                id: format!("{}#{}", self.name, sample.key),
                split: Arc::clone(&self.split),
                label: classes.index(Value::label(sample.label.as_ref())),
                image: self.image(&access, sample)?,
            })
        })))
    }

    fn image(&self, access: &Access, sample: &Sample) -> Result<Encoded, DatasetError> {
        if sample.bytes > MAX_BYTES {
            return Ok(Encoded::Unusable(format!("{} bytes, above the limit of 512 MiB for one image", sample.bytes)));
        }
        let bytes = access.exact(sample.offset, sample.bytes).map_err(|error| {
            let damaged = DatasetError::damaged(self.file.place.shown(), format_args!("image of {}: {error}", sample.key));
            self.file.place.unchanged(&self.stamp).err().unwrap_or_else(|| access.blame(damaged))
        })?;
        Ok(Encoded::Bytes(bytes))
    }
}

impl Source for WebDataset {
    fn records(&self, split: &Split) -> Records {
        let (name, classes) = (Arc::clone(&split.name), Arc::clone(&self.classes));
        let shards = self.shards.clone().into_iter().filter(move |shard| shard.split == name);
        Records::chain(shards.map(move |shard| shard.stream(Arc::clone(&classes))))
    }

    fn images(&self, split: &Split, ids: &HashSet<String>) -> Result<HashMap<String, Bytes>, DatasetError> {
        let mut images = HashMap::with_capacity(ids.len());
        for shard in self.shards.iter().filter(|shard| shard.split == split.name) {
            let keys: HashSet<&str> = ids.iter().filter_map(|id| id.strip_prefix(&shard.name)?.strip_prefix('#')).collect();
            if keys.is_empty() {
                continue;
            }
            // Few of many: nothing is read ahead.
            let access = access(&shard.file, 1)?;
            for sample in shard.samples.iter().filter(|sample| keys.contains(&*sample.key)) {
                if let Encoded::Bytes(bytes) = shard.image(&access, sample)? {
                    images.insert(format!("{}#{}", shard.name, sample.key), bytes);
                }
            }
        }
        Ok(images)
    }

    fn files(&self) -> Vec<Place> {
        self.shards.iter().map(|shard| shard.file.place.clone()).collect()
    }
}

#[cfg(test)]
mod tests;
