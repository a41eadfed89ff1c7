//! What every test here needs: the binary, images, the assets.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray, StructArray};
use arrow_ipc::writer::StreamWriter;
use assert_cmd::Command;
use image::{Rgb, RgbImage};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::properties::WriterProperties;
use tempfile::TempDir;
use tlpipe::store::Store;

/// A scratch folder, and commands that run in it.
pub struct Scratch {
    dir: TempDir,
}

/// What a command did.
pub struct Ran {
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Scratch {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `tlpipe ARGS`, here, without assets unless given.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::cargo_bin("tlpipe").unwrap();
        command.current_dir(self.dir.path()).args(args).env_remove("TLPIPE_ASSETS").env_remove("TLPIPE_LOG");
        command
    }

    /// Runs `tlpipe ARGS`.
    pub fn run(&self, args: &[&str]) -> Ran {
        finish(&mut self.command(args))
    }

    /// Runs `tlpipe ARGS`, which must succeed.
    pub fn ok(&self, args: &[&str]) -> Ran {
        let ran = self.run(args);
        assert_eq!(ran.status, Some(0), "tlpipe {}\n{}{}", args.join(" "), ran.stdout, ran.stderr);
        ran
    }

    /// Runs `tlpipe ARGS --json`, which must succeed, and reads what it prints.
    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        let ran = self.ok(&[args, &["--json"]].concat());
        serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {}", ran.stdout))
    }

    /// Runs `tlpipe ARGS`, which must fail with this status; returns what it says.
    pub fn fails(&self, status: i32, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.status, Some(status), "tlpipe {}\n{}{}", args.join(" "), ran.stdout, ran.stderr);
        ran.stderr
    }

    /// Class folders `NAME/CLASS/N.png` of 40 x 30 images whose colour says the class; returns the folder as a text.
    pub fn folders(&self, name: &str, classes: &[&str], each: usize) -> String {
        for (class, class_name) in classes.iter().enumerate() {
            let folder = self.path(name).join(class_name);
            fs::create_dir_all(&folder).unwrap();
            for number in 0..each {
                picture(class, number).save(folder.join(format!("{number:03}.png"))).unwrap();
            }
        }
        self.path(name).display().to_string()
    }
}

pub fn finish(command: &mut Command) -> Ran {
    let output = command.output().unwrap();
    Ran {
        status: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Checks a committed text against what the program says; with `TLPIPE_BLESS=1` it becomes that.
pub fn committed(path: &Path, now: &str) {
    if std::env::var_os("TLPIPE_BLESS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, now).unwrap();
    }
    let then = fs::read_to_string(path).unwrap_or_default();
    let differs = then.lines().zip(now.lines()).position(|(then, now)| then != now);
    let line = differs.unwrap_or_else(|| then.lines().count().min(now.lines().count()));
    assert!(
        then == now,
        "{} is not what the program says, from line {} on: {:?}; if that is meant, TLPIPE_BLESS=1 cargo test makes it so",
        path.display(),
        line + 1,
        now.lines().nth(line)
    );
}

/// A small image: the class sets the colour, the number the pattern.
pub fn picture(class: usize, number: usize) -> RgbImage {
    let level = |shift: usize| u8::try_from((class * 83 + shift * 61) % 200).unwrap();
    RgbImage::from_fn(40, 30, |x, y| {
        let stripe = u8::try_from((x as usize * (number + 1) + y as usize * 3) % 56).unwrap();
        Rgb([level(0) + stripe, level(1) + stripe, level(2)])
    })
}

/// The real inputs, or nothing and a line that says so.
pub fn assets() -> Option<PathBuf> {
    let found = std::env::var_os("TLPIPE_ASSETS").map(PathBuf::from).filter(|path| path.is_dir());
    if found.is_none() {
        println!("skipped: TLPIPE_ASSETS names no folder with the real model and CIFAR-10");
    }
    found
}

/// Reference values that lie beside the assets, or nothing and a line that says so.
pub fn golden(name: &str) -> Option<PathBuf> {
    let path = assets()?.parent()?.join("golden").join(name);
    if path.is_file() {
        return Some(path);
    }
    println!("skipped: {} is not there", path.display());
    None
}

/// The first rows of a Parquet file as another one, schema and its metadata kept.
pub fn first_rows(from: &Path, rows: usize, to: &Path) {
    let file = fs::File::open(from).unwrap();
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let metadata = builder.metadata().file_metadata().key_value_metadata().cloned();
    let metadata = metadata.map(|pairs| pairs.into_iter().filter(|pair| pair.key != "ARROW:schema").collect());
    let properties = WriterProperties::builder().set_key_value_metadata(metadata).build();
    let reader = builder.with_limit(rows).with_batch_size(rows).build().unwrap();
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    let mut writer = None;
    for batch in reader {
        let batch = batch.unwrap();
        let open = || ArrowWriter::try_new(fs::File::create(to).unwrap(), batch.schema(), Some(properties.clone())).unwrap();
        writer.get_or_insert_with(open).write(&batch).unwrap();
    }
    writer.unwrap().close().unwrap();
}

/// A Parquet file in the Hugging Face layout from encoded images and labels; a missing image is a null.
pub fn parquet(path: &Path, images: &[Option<Vec<u8>>], labels: &[i64]) {
    let bytes: ArrayRef = Arc::new(BinaryArray::from_iter(images.iter().map(|image| image.as_deref())));
    let field = arrow::datatypes::Field::new("bytes", arrow::datatypes::DataType::Binary, true);
    let image = StructArray::from(vec![(Arc::new(field), bytes)]);
    let batch = RecordBatch::try_from_iter([
        ("image", Arc::new(image) as ArrayRef),
        ("label", Arc::new(Int64Array::from(labels.to_vec())) as ArrayRef),
    ])
    .unwrap();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut writer = ArrowWriter::try_new(fs::File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

/// An image as PNG bytes.
pub fn png(image: &RgbImage) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// The arguments of a quick extraction with the built-in backbone.
pub fn quick<'a>(data: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["--data", data, "--model", "quickstart", "--input-size", "32"], more].concat()
}

/// Sends a signal, `-INT` for instance, to a program that was started.
#[cfg(unix)]
pub fn signal(child: &std::process::Child, name: &str) {
    let sent = std::process::Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

/// Whether a pipe of this name could be made; if not, a line says so.
#[cfg(unix)]
pub fn pipe(path: &Path) -> bool {
    let made = std::process::Command::new("mkfifo").arg(path).status().is_ok_and(|status| status.success());
    if !made {
        println!("skipped: no mkfifo here");
    }
    made
}

/// An encoded image as a cluster engine has it.
#[derive(Clone)]
pub struct Image {
    pub id: String,
    pub split: String,
    pub label: i64,
    pub class: String,
    pub bytes: Vec<u8>,
}

/// The images in folders `SPLIT/CLASS/`, with the ids that extraction gives them.
pub fn images(scratch: &Scratch, name: &str) -> Vec<Image> {
    let mut images = Vec::new();
    for split in ["train", "test"] {
        for (label, class) in [(0, "cat"), (1, "dog")] {
            let folder = scratch.path(name).join(split).join(class);
            let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
            files.sort();
            for file in files {
                let id = format!("{split}/{class}/{}", file.file_name().unwrap().to_string_lossy());
                images.push(Image { id, split: split.into(), label, class: class.into(), bytes: fs::read(file).unwrap() });
            }
        }
    }
    images
}

/// Images as an Arrow stream in batches of these sizes, its end marker included, with a column that nobody asked for.
pub fn stream(images: &[Image], sizes: &[usize]) -> Vec<u8> {
    let batch = |images: &[Image]| {
        let text = |take: fn(&Image) -> &String| Arc::new(StringArray::from_iter_values(images.iter().map(take))) as ArrayRef;
        RecordBatch::try_from_iter([
            ("size", Arc::new(images.iter().map(|image| Some(image.bytes.len() as i64)).collect::<Int64Array>()) as ArrayRef),
            ("id", text(|image| &image.id)),
            ("class", text(|image| &image.class)),
            ("bytes", Arc::new(BinaryArray::from_iter_values(images.iter().map(|image| &image.bytes)))),
            ("label", Arc::new(images.iter().map(|image| Some(image.label)).collect::<Int64Array>())),
            ("split", text(|image| &image.split)),
        ])
        .unwrap()
    };
    let mut writer = StreamWriter::try_new(Vec::new(), &batch(&[]).schema()).unwrap();
    let mut rest = images;
    for &size in sizes {
        let (these, after) = rest.split_at(size);
        writer.write(&batch(these)).unwrap();
        rest = after;
    }
    writer.finish().unwrap();
    writer.into_inner().unwrap()
}

/// All of a row but its id and split.
#[derive(Clone, Debug, PartialEq)]
pub struct RowBits {
    pub label: Option<i32>,
    pub content_hash: String,
    /// Of each view, as bits.
    pub views: Vec<Vec<u32>>,
}

/// The rows of a store by split and id.
pub fn row_bits(dir: &Path) -> HashMap<(String, String), RowBits> {
    let store = Store::open(dir).unwrap();
    let mut rows = HashMap::new();
    for split in store.manifest().splits() {
        let described = store.describe(&[&split]).unwrap();
        let views = (0..store.views().len()).map(|view| store.load_view(&[&split], view).unwrap().embeddings);
        let views: Vec<_> = views.collect();
        for (at, (_, row)) in described.into_iter().enumerate() {
            let views = views.iter().map(|view| view.row(at).iter().map(|value| value.to_bits()).collect()).collect();
            let bits = RowBits { label: row.label, content_hash: row.content_hash, views };
            assert!(rows.insert((split.clone(), row.id), bits).is_none(), "a row twice");
        }
    }
    rows
}
