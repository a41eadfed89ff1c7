//! CIFAR-10 and CIFAR-100 in their authors' binary form, as a folder or as the `.tar.gz`.
//!
//! A record is one label byte (CIFAR-100: two, coarse and fine) and 3,072 bytes of pixels, a plane a colour. Images become PPM in
//! memory, so that every source hands out encoded images.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::GzDecoder;

use super::files::SourceFile;
use super::label::{Counted, Label, Tally, class_list, splits, warnings};
use super::place::Place;
use super::split::{Split, TRAIN};
use super::{DatasetError, Encoded, Opened, Record, Records, Source, SourceOptions};

/// What these files are, for a message.
const WHAT: &str = "a CIFAR binary file";

const SIDE: usize = 32;
const PLANE: usize = SIDE * SIDE;
const PPM_HEADER: &[u8] = b"P6\n32 32\n255\n";
const CIFAR10: [&str; 10] = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// One `.bin` file, on its own or inside an archive.
#[derive(Clone, Debug)]
struct Member {
    /// The file, or the archive.
    path: PathBuf,
    /// Where it begins in the unpacked archive.
    offset: Option<u64>,
    /// Its name without folders.
    name: String,
    bytes: u64,
}

/// A member, and the label bytes of all its records.
struct Scanned {
    member: Member,
    labels: Vec<u8>,
}

/// How a record of this data set is laid out.
#[derive(Clone, Copy, Debug)]
struct Form {
    kind: &'static str,
    labels: usize,
    /// Which of the label bytes is the label.
    label: usize,
}

impl Form {
    fn record(self) -> usize {
        self.labels + 3 * PLANE
    }
}

#[derive(Debug)]
struct Cifar {
    form: Form,
    members: Vec<(Arc<str>, Member)>,
}

/// The file is one of CIFAR's binary files by its name.
pub(super) fn is_member(file: &SourceFile) -> bool {
    is_member_name(&file.name())
}

pub(super) fn is_member_name(name: &str) -> bool {
    let batch = name.strip_prefix("data_batch_").and_then(|rest| rest.strip_suffix(".bin"));
    batch.is_some_and(|number| number.parse::<u32>().is_ok()) || matches!(name, "test_batch.bin" | "train.bin" | "test.bin")
}

/// Opens the files of a folder, or archives.
///
/// # Errors
/// When a file is cut short, or a label is outside the class list.
pub(super) fn open(origin: &Path, files: &[SourceFile], options: &SourceOptions) -> Result<Opened, DatasetError> {
    let mut members = Vec::new();
    let mut texts: Vec<(String, String)> = Vec::new();
    for file in files {
        if file.is_packed_tar() {
            read_archive(file.place.local(WHAT)?, &mut members, &mut texts)?;
            continue;
        }
        let name = file.name();
        if is_member_name(&name) {
            let path = file.place.local(WHAT)?;
            let bytes = std::fs::metadata(path).map_err(DatasetError::io(path))?.len();
            let labels = labels_of_file(path, label_bytes(&name))?;
            members.push(Scanned { member: Member { path: path.to_owned(), offset: None, name, bytes }, labels });
        } else if is_names(&name) {
            let path = file.place.local(WHAT)?;
            let text = std::fs::read_to_string(path).map_err(DatasetError::io(path))?;
            texts.push((name, text));
        }
    }
    members.sort_by(|a, b| a.member.name.cmp(&b.member.name));
    if members.is_empty() {
        return Err(DatasetError::Unsupported {
            path: origin.to_owned(),
            reason: "no CIFAR binary files in this archive; unpack it and give its folder".to_owned(),
        });
    }
    if let Some(pair) = members.windows(2).find(|pair| pair[0].member.name == pair[1].member.name) {
        let Member { name, path, .. } = &pair[1].member;
        let reason = format!("{name} is there twice; give only one folder or archive");
        return Err(DatasetError::Unsupported { path: path.clone(), reason });
    }
    let form = form(&members, options)?;
    let mut tallies = Vec::new();
    for Scanned { member, labels } in &members {
        let record = form.record() as u64;
        if member.bytes % record != 0 || member.bytes == 0 {
            let reason =
                format!("{} has {} bytes, not a multiple of {record} ({} records)", member.name, member.bytes, form.kind);
            return Err(DatasetError::damaged(&member.path, reason));
        }
        let split = if member.name.starts_with("test") { "test" } else { TRAIN };
        let mut tally = Tally::default();
        for (labels, row) in labels.chunks_exact(form.labels).zip(0..) {
            tally.add(Label::Index(i64::from(labels[form.label])), row);
        }
        tallies.push((split, member, tally));
    }
    let parts: Vec<Counted<'_>> =
        tallies.iter().map(|(split, member, tally)| Counted { path: &member.path, split, tally }).collect();
    let classes = class_list(&parts, names(form, &texts))?;
    let splits = splits(&parts, &classes);
    let members = tallies.iter().map(|(split, member, _)| (Arc::from(*split), (*member).clone())).collect();
    Ok(Opened {
        kind: form.kind,
        warnings: warnings(&classes.names, &splits),
        classes: classes.names,
        splits,
        sorted_by_class: false,
        source: Box::new(Cifar { form, members }),
    })
}

fn is_names(name: &str) -> bool {
    matches!(name, "batches.meta.txt" | "fine_label_names.txt" | "coarse_label_names.txt")
}

/// Label bytes of a record: CIFAR-100's files have other names than CIFAR-10's.
fn label_bytes(name: &str) -> usize {
    if matches!(name, "train.bin" | "test.bin") { 2 } else { 1 }
}

fn form(members: &[Scanned], options: &SourceOptions) -> Result<Form, DatasetError> {
    let first = &members[0].member;
    let hundred = label_bytes(&first.name) == 2;
    if let Some(other) = members.iter().find(|other| label_bytes(&other.member.name) != label_bytes(&first.name)) {
        let reason = format!("CIFAR-10 and CIFAR-100 ({}, {}) side by side; give one of them", first.name, other.member.name);
        return Err(DatasetError::Unsupported { path: other.member.path.clone(), reason });
    }
    let label = match options.label_column.as_deref() {
        None | Some("label") if !hundred => 0,
        None | Some("fine" | "fine_label") if hundred => 1,
        Some("coarse" | "coarse_label") if hundred => 0,
        asked => {
            let found = if hundred { "fine (int), coarse (int)" } else { "label (int)" };
            return Err(DatasetError::Columns {
                path: first.path.clone(),
                reason: format!("there is no label column {:?}", asked.unwrap_or_default()),
                found: found.to_owned(),
                flag: "--label-column",
            });
        }
    };
    Ok(if hundred {
        Form { kind: "CIFAR-100 binary", labels: 2, label }
    } else {
        Form { kind: "CIFAR-10 binary", labels: 1, label }
    })
}

/// Class names from the file that comes with the data, otherwise the well-known ten.
fn names(form: Form, texts: &[(String, String)]) -> Option<Vec<String>> {
    let wanted = match (form.labels, form.label) {
        (1, _) => "batches.meta.txt",
        (_, 0) => "coarse_label_names.txt",
        _ => "fine_label_names.txt",
    };
    let listed = texts
        .iter()
        .find(|(name, _)| name == wanted)
        .map(|(_, text)| text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect::<Vec<_>>());
    listed.filter(|names| !names.is_empty()).or_else(|| (form.labels == 1).then(|| CIFAR10.map(str::to_owned).to_vec()))
}

/// Notes where each member lies, so that it can be read later without looking for it; unpacks the archive once.
fn read_archive(path: &Path, members: &mut Vec<Scanned>, texts: &mut Vec<(String, String)>) -> Result<(), DatasetError> {
    let damaged = |error: io::Error| DatasetError::damaged(path, format_args!("not a whole .tar.gz: {error}"));
    let file = File::open(path).map_err(DatasetError::io(path))?;
    let mut archive = tar::Archive::new(GzDecoder::new(BufReader::with_capacity(1 << 20, file)));
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let name = entry.path().map_err(damaged)?.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if is_member_name(&name) {
            let (offset, bytes) = (Some(entry.raw_file_position()), entry.size());
            let labels = labels_of_stream(&mut entry, label_bytes(&name)).map_err(damaged)?;
            members.push(Scanned { member: Member { path: path.to_owned(), offset, name, bytes }, labels });
        } else if is_names(&name) {
            let mut text = String::new();
            entry.by_ref().take(1 << 20).read_to_string(&mut text).map_err(damaged)?;
            texts.push((name, text));
        }
    }
    Ok(())
}

impl Member {
    fn open(&self) -> io::Result<Box<dyn Read + Send>> {
        let file = BufReader::with_capacity(1 << 20, File::open(&self.path)?);
        let Some(offset) = self.offset else { return Ok(Box::new(file)) };
        let mut unpacked = GzDecoder::new(file);
        io::copy(&mut unpacked.by_ref().take(offset), &mut io::sink())?;
        Ok(Box::new(unpacked.take(self.bytes)))
    }

    fn damaged(&self, error: &io::Error) -> DatasetError {
        DatasetError::damaged(&self.path, format_args!("{}: {error}", self.name))
    }
}

/// The label bytes of a file: a byte or two in three thousand, so the rest is passed over.
fn labels_of_file(path: &Path, labels: usize) -> Result<Vec<u8>, DatasetError> {
    let mut file = File::open(path).map_err(DatasetError::io(path))?;
    let bytes = file.metadata().map_err(DatasetError::io(path))?.len();
    let mut found = Vec::new();
    for start in (0..bytes).step_by(labels + 3 * PLANE) {
        let mut record = [0; 2];
        file.seek(SeekFrom::Start(start)).map_err(DatasetError::io(path))?;
        // A cut last record may lack its labels: the length is checked later, with a better message.
        if file.read_exact(&mut record[..labels]).is_ok() {
            found.extend_from_slice(&record[..labels]);
        }
    }
    Ok(found)
}

/// The label bytes of a stream.
fn labels_of_stream(mut stream: impl Read, labels: usize) -> io::Result<Vec<u8>> {
    let mut found = Vec::new();
    let mut record = Vec::with_capacity(labels + 3 * PLANE);
    loop {
        record.clear();
        stream.by_ref().take((labels + 3 * PLANE) as u64).read_to_end(&mut record)?;
        match record.get(..labels) {
            Some(bytes) => found.extend_from_slice(bytes),
            None => return Ok(found),
        }
    }
}

/// Three planes to one PPM file.
fn ppm(planes: &[u8]) -> Vec<u8> {
    let mut file = Vec::with_capacity(PPM_HEADER.len() + planes.len());
    file.extend_from_slice(PPM_HEADER);
    for at in 0..PLANE {
        file.extend([planes[at], planes[PLANE + at], planes[2 * PLANE + at]]);
    }
    file
}

impl Source for Cifar {
    fn records(&self, split: &Split) -> Records {
        let (form, name) = (self.form, Arc::clone(&split.name));
        let members = self.members.clone().into_iter().filter({
            let name = Arc::clone(&name);
            move |(split, _)| *split == name
        });
        Records::chain(members.map(move |(split, member)| {
            let mut reader = member.open().map_err(|error| member.damaged(&error))?;
            let rows = member.bytes / form.record() as u64;
            Ok(Records::new((0..rows).map(move |row| {
                let mut record = vec![0; form.record()];
                reader.read_exact(&mut record).map_err(|error| member.damaged(&error))?;
                let (labels, planes) = record.split_at(form.labels);
                let image = Encoded::Bytes(ppm(planes).into());
                let label = Some(i32::from(labels[form.label]));
                Ok(Record { id: format!("{}#{row}", member.name), split: Arc::clone(&split), label, image })
            })))
        }))
    }

    fn files(&self) -> Vec<Place> {
        let mut files: Vec<PathBuf> = self.members.iter().map(|(_, member)| member.path.clone()).collect();
        files.dedup();
        files.into_iter().map(Place::File).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::super::fixture::{labelled, open, records, refused, splits, tar, write};
    use super::super::{Dataset, SourceOptions};
    use super::*;

    /// Records of one colour each: red is the label, green the row, blue 7.
    fn batch(labels: &[&[u8]]) -> Vec<u8> {
        let record = |(row, labels): (usize, &&[u8])| {
            let planes = [labels[labels.len() - 1], row as u8, 7].map(|value| [value; PLANE]).concat();
            [labels.to_vec(), planes].concat()
        };
        labels.iter().enumerate().flat_map(record).collect()
    }

    fn ten() -> Vec<(&'static str, Vec<u8>)> {
        vec![
            ("cifar-10-batches-bin/data_batch_2.bin", batch(&[&[9]])),
            ("cifar-10-batches-bin/readme.html", b"<html>".to_vec()),
            ("cifar-10-batches-bin/data_batch_1.bin", batch(&[&[3], &[0]])),
            ("cifar-10-batches-bin/test_batch.bin", batch(&[&[1]])),
        ]
    }

    fn folder(files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            write(&folder.path().join(name), content);
        }
        folder
    }

    fn archive(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let members: Vec<(&str, &[u8])> = files.iter().map(|(name, content)| (*name, content.as_slice())).collect();
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&tar(&members)).unwrap();
        gzip.finish().unwrap()
    }

    #[test]
    fn folder_and_archive_hold_the_same_records() {
        let folder = folder(&ten());
        let packed = folder.path().join("packed/cifar-10-binary.tar.gz");
        write(&packed, &archive(&ten()));
        let unpacked = folder.path().join("cifar-10-batches-bin");
        for path in [&unpacked, &packed] {
            let dataset = open(path).unwrap();
            assert_eq!((dataset.name(), dataset.classes()[3].as_str()), ("CIFAR-10 binary", "cat"));
            assert_eq!(splits(&dataset), [("train", 3), ("test", 1)]);
            let expected = [("data_batch_1.bin#0", 3), ("data_batch_1.bin#1", 0), ("data_batch_2.bin#0", 9)];
            assert_eq!(labelled(&dataset, "train"), expected.map(|(id, label)| (id.to_owned(), Some(label))));
            let second = crate::image::decode(&records(&dataset, "train")[1].image.read().unwrap().unwrap()).unwrap();
            assert_eq!((second.dimensions(), second.get_pixel(31, 31).0), ((32, 32), [0, 1, 7]));
            let images = dataset.images("train", &["data_batch_2.bin#0".to_owned()].into()).unwrap();
            assert_eq!(crate::image::decode(&images["data_batch_2.bin#0"]).unwrap().get_pixel(0, 0).0, [9, 0, 7]);
        }
    }

    #[test]
    fn names_come_from_the_file_beside_the_data() {
        let mut files = ten();
        files.push(("cifar-10-batches-bin/batches.meta.txt", b"a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n\n".to_vec()));
        assert_eq!(open(folder(&files).path()).unwrap().classes()[9], "j");
    }

    #[test]
    fn cifar100_has_fine_and_coarse_labels() {
        let names =
            |count: usize, prefix: &str| (0..count).map(|index| format!("{prefix}{index}\n")).collect::<String>().into_bytes();
        let files = vec![
            ("train.bin", batch(&[&[19, 99], &[0, 1]])),
            ("test.bin", batch(&[&[1, 0]])),
            ("fine_label_names.txt", names(100, "fine")),
            ("coarse_label_names.txt", names(20, "coarse")),
        ];
        let folder = folder(&files);
        let dataset = open(folder.path()).unwrap();
        assert_eq!((dataset.name(), dataset.classes()[99].as_str()), ("CIFAR-100 binary", "fine99"));
        assert_eq!(labelled(&dataset, "train")[0], ("train.bin#0".to_owned(), Some(99)));
        let with = |label: &str| {
            let options = SourceOptions { label_column: Some(label.to_owned()), ..SourceOptions::default() };
            Dataset::open(&[folder.path().to_owned()], &options)
        };
        assert_eq!(with("coarse").unwrap().classes()[19], "coarse19");
        assert_eq!(labelled(&with("coarse").unwrap(), "train")[0].1, Some(19));
        assert!(with("medium").unwrap_err().to_string().contains("fine (int), coarse (int)"));
    }

    #[test]
    fn cut_files_and_wrong_labels_are_errors() {
        let short = batch(&[&[1]])[..3000].to_vec();
        let text = refused(folder(&[("data_batch_1.bin", short)]).path());
        assert!(text.contains("data_batch_1.bin has 3000 bytes, not a multiple of 3073"), "{text}");
        let both = [("data_batch_1.bin", batch(&[&[1]])), ("test.bin", batch(&[&[1, 2]]))];
        assert!(refused(folder(&both).path()).contains("CIFAR-10 and CIFAR-100 (data_batch_1.bin, test.bin)"));
        let text = refused(folder(&[("data_batch_1.bin", batch(&[&[1], &[10]]))]).path());
        assert!(text.contains("row 1: label 10 is outside the class list (0 to 9)"), "{text}");

        let folder = folder(&[]);
        let path = folder.path().join("c.tar.gz");
        let whole = archive(&ten());
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert!(refused(&path).contains("not a whole .tar.gz"));
        fs::write(&path, archive(&[("notes.txt", vec![1])])).unwrap();
        assert!(refused(&path).contains("no CIFAR binary files"));
    }
}
