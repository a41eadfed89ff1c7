//! `tlpipe embed`, as a cluster engine meets it: an Arrow stream in, an Arrow stream out.

use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use arrow::array::{
    Array as _, ArrayRef, AsArray as _, BinaryArray, Float64Array, Int64Array, LargeBinaryArray, RecordBatch, StringArray,
};
use arrow::datatypes::{Float16Type, Float32Type, Int32Type, SchemaRef};
use arrow_ipc::reader::StreamReader;
use arrow_ipc::writer::{FileWriter, StreamWriter};
use tlpipe::store::Store;

use crate::support::{Image, Scratch, images, picture, png, quick, row_bits, stream};

/// The flags of the quickstart's backbone.
pub const QUICK: [&str; 4] = ["--model", "quickstart", "--input-size", "32"];

/// What a filter did.
pub struct Filtered {
    pub status: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Filtered {
    /// What it answered, the end marker included.
    pub fn batches(&self) -> (SchemaRef, Vec<RecordBatch>) {
        assert_eq!(self.status, Some(0), "{}", self.stderr);
        assert!(self.stdout.ends_with(&[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]), "no end marker");
        let reader = StreamReader::try_new(self.stdout.as_slice(), None).unwrap();
        (reader.schema(), reader.collect::<Result<_, _>>().unwrap())
    }
}

fn spawn(scratch: &Scratch, flags: &[&str]) -> Child {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin("tlpipe"));
    command.current_dir(scratch.path("")).env_remove("TLPIPE_ASSETS").env_remove("TLPIPE_LOG").arg("embed").args(flags);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Runs `tlpipe embed FLAGS` on some bytes.
pub fn filter(scratch: &Scratch, flags: &[&str], input: Vec<u8>) -> Filtered {
    let mut child = spawn(scratch, flags);
    let mut stdin = child.stdin.take().unwrap();
    // It may end before it has read everything.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    for line in stderr.lines() {
        let object: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(object["event"].is_string(), "{line}");
    }
    Filtered { status: output.status.code(), stdout: output.stdout, stderr }
}

#[test]
fn rows_have_the_bits_of_extract_in_the_batches_they_came_in() {
    let scratch = Scratch::new();
    for split in ["train", "test"] {
        scratch.folders(&format!("photos/{split}"), &["cat", "dog"], 11);
    }
    let images = images(&scratch, "photos");
    let sizes = [1, 0, 30, 7, images.len() - 38];
    for more in [&[][..], &["--views", "identity,hflip", "--dtype", "float16"], &["--layers", "multi"]] {
        let features = format!("f{}", more.len());
        scratch.ok(&[&["extract"][..], &quick("photos", &["--features", &features]), more].concat());
        let (schema, batches) =
            filter(&scratch, &[&QUICK[..], more, &["--threads", "2"]].concat(), stream(&images, &sizes)).batches();
        assert_eq!(batches.iter().map(RecordBatch::num_rows).collect::<Vec<_>>(), sizes);
        let store = Store::open(&scratch.path(&features)).unwrap();
        assert_eq!(schema.metadata()["tlpipe.key"], store.manifest().key, "{more:?}");
        assert_eq!(schema.metadata()["tlpipe.proto"], "1");
        let expected = row_bits(&scratch.path(&features));
        let mut rows = 0;
        for batch in &batches {
            for row in 0..batch.num_rows() {
                let text = |name: &str| batch.column_by_name(name).unwrap().as_string::<i32>().value(row).to_owned();
                let image = &images[rows];
                assert_eq!((text("id"), text("split")), (image.id.clone(), image.split.clone()), "order");
                let whole = &expected[&(text("split"), text("id"))];
                let number = |name: &str| batch.column_by_name(name).unwrap().as_primitive::<Int32Type>().value(row);
                assert_eq!((Some(number("label")), number("width"), number("height")), (whole.label, 40, 30));
                assert_eq!((text("class"), text("content_hash")), (image.class.clone(), whole.content_hash.clone()));
                assert!(batch.column_by_name("error").unwrap().is_null(row));
                let of_view = |name: &str| -> Vec<u32> {
                    let list = batch.column_by_name(name).unwrap().as_fixed_size_list().value(row);
                    match list.as_primitive_opt::<Float32Type>() {
                        Some(values) => values.values().iter().map(|value| value.to_bits()).collect(),
                        None => {
                            list.as_primitive::<Float16Type>().values().iter().map(|value| value.to_f32().to_bits()).collect()
                        }
                    }
                };
                assert_eq!(of_view("embedding"), whole.views[0], "{more:?}: {}", image.id);
                if whole.views.len() > 1 {
                    assert_eq!(of_view("embedding_hflip"), whole.views[1]);
                }
                rows += 1;
            }
        }
        assert_eq!(rows, images.len());
    }
}

#[test]
fn an_image_that_cannot_be_used_is_a_row_with_its_reason() {
    let scratch = Scratch::new();
    let good = png(&picture(0, 1));
    let huge = vec![7_u8; 100_000_000];
    let bytes: ArrayRef = Arc::new(LargeBinaryArray::from(vec![
        Some(good.as_slice()),
        None,
        Some(b"no image".as_slice()),
        Some(huge.as_slice()),
        Some(b"".as_slice()),
        Some(&good[..good.len() / 2]),
        Some(good.as_slice()),
        Some(good.as_slice()),
    ]));
    let ids = [Some("a"), Some("b"), Some("c"), Some("d"), Some("e"), Some("f"), None, Some("h")];
    let ids: ArrayRef = Arc::new(StringArray::from(ids.to_vec()));
    let mixed = RecordBatch::try_from_iter([("id", Arc::clone(&ids)), ("bytes", bytes)]).unwrap();
    let nulls: ArrayRef = Arc::new(LargeBinaryArray::new_null(3));
    let nothing: ArrayRef = Arc::new(StringArray::new_null(3));
    let nulls = RecordBatch::try_new(mixed.schema(), vec![nothing, nulls]).unwrap();
    let filtered = filter(&scratch, &QUICK, written(&[mixed.slice(0, 1), nulls, mixed]));
    let (_, batches) = filtered.batches();
    let failed = |batch: &RecordBatch| {
        let embeddings = batch.column_by_name("embedding").unwrap();
        let errors = batch.column_by_name("error").unwrap();
        (0..batch.num_rows())
            .map(|row| {
                assert_ne!(embeddings.is_null(row), errors.is_null(row));
                errors.is_valid(row).then(|| errors.as_string::<i32>().value(row).to_owned())
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(failed(&batches[0]), [None]);
    assert!(failed(&batches[1]).iter().all(|error| error.as_ref().unwrap().contains("no id")));
    let said = failed(&batches[2]);
    assert_eq!(said.iter().map(Option::is_none).collect::<Vec<_>>(), [true, false, false, false, false, false, false, true]);
    assert!(said[1].as_ref().unwrap().contains("null") && said[3].as_ref().unwrap().contains("64 MiB"), "{said:?}");
    let hashes = batches[2].column_by_name("content_hash").unwrap();
    assert_eq!((hashes.is_null(1), hashes.is_null(2)), (true, false));
    assert!(filtered.stderr.contains("cannot be used") && filtered.stderr.contains("\"failed\":9"), "{}", filtered.stderr);
}

/// The batches as a stream with its end marker.
fn written(batches: &[RecordBatch]) -> Vec<u8> {
    let mut writer = StreamWriter::try_new(Vec::new(), &batches[0].schema()).unwrap();
    batches.iter().for_each(|batch| writer.write(batch).unwrap());
    writer.finish().unwrap();
    writer.into_inner().unwrap()
}

fn some_images(count: usize) -> Vec<Image> {
    let image = |number: usize| Image {
        id: format!("i{number}"),
        split: "train".into(),
        label: 0,
        class: "cat".into(),
        bytes: png(&picture(number % 2, number)),
    };
    (0..count).map(image).collect()
}

#[test]
fn a_stream_that_does_not_come_to_its_end_is_an_error() {
    let scratch = Scratch::new();
    let images = some_images(20);
    let whole = stream(&images, &[10, 10]);
    let filtered = filter(&scratch, &QUICK, whole[..whole.len() - 8].to_vec());
    assert_eq!(filtered.status, Some(1), "{}", filtered.stderr);
    assert!(filtered.stderr.contains("after 20 rows without the end marker"), "{}", filtered.stderr);
    // What was answered stands, and the answer has no end marker either.
    let answered: Vec<_> = StreamReader::try_new(filtered.stdout.as_slice(), None).unwrap().collect();
    assert_eq!(answered.len(), 2);
    assert!(!filtered.stdout.ends_with(&[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]));
    for cut in [0, whole.len() - 4, whole.len() - 200, whole.len() / 2] {
        let filtered = filter(&scratch, &QUICK, whole[..cut].to_vec());
        assert_eq!(filtered.status, Some(1), "{cut}: {}", filtered.stderr);
    }
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle..].fill(0x55);
    assert_eq!(filter(&scratch, &QUICK, damaged).status, Some(1));
    // Nothing but the schema and the end is a stream of no rows.
    assert_eq!(filter(&scratch, &QUICK, stream(&images, &[])).batches().1.len(), 0);
}

#[test]
fn what_the_same_again_would_not_mend_is_status_2() {
    let scratch = Scratch::new();
    let text = |values: &[&str]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
    let bytes = Arc::new(BinaryArray::from_vec(vec![b"x"])) as ArrayRef;
    let batch = |columns: Vec<(&str, ArrayRef)>| RecordBatch::try_from_iter(columns).unwrap();
    let numbers = Arc::new(Int64Array::from(vec![1])) as ArrayRef;
    let large = Arc::new(Int64Array::from(vec![1 << 40])) as ArrayRef;
    let floats = Arc::new(Float64Array::from(vec![1.0])) as ArrayRef;
    for (columns, needle) in [
        (vec![("bytes", Arc::clone(&bytes))], "no column `id`"),
        (vec![("id", text(&["a"])), ("image", Arc::clone(&bytes))], "no column `bytes`"),
        (vec![("id", Arc::clone(&numbers)), ("bytes", Arc::clone(&bytes))], "`id` is Int64, not text"),
        (vec![("id", text(&["a"])), ("bytes", text(&["b"]))], "`bytes` is Utf8, not binary"),
        (vec![("id", text(&["a"])), ("bytes", Arc::clone(&bytes)), ("label", floats)], "`label` is Float64"),
        (vec![("id", text(&["a"])), ("bytes", Arc::clone(&bytes)), ("label", large)], "a label is no class index"),
        (vec![("id", text(&["a"])), ("bytes", Arc::clone(&bytes)), ("split", numbers)], "`split` is Int64"),
    ] {
        let filtered = filter(&scratch, &QUICK, written(&[batch(columns)]));
        assert_eq!(filtered.status, Some(2), "{needle}: {}", filtered.stderr);
        assert!(filtered.stderr.contains(needle), "{needle}: {}", filtered.stderr);
    }
    let one = batch(vec![("id", text(&["a"])), ("bytes", bytes)]);
    let mut file = FileWriter::try_new(Vec::new(), &one.schema()).unwrap();
    file.write(&one).unwrap();
    for (input, needle) in [
        (b"hello".to_vec(), "no Arrow IPC stream"),
        (b"hello, this is a text of more than a few letters".to_vec(), "no Arrow IPC stream"),
        (file.into_inner().unwrap(), "an Arrow file"),
    ] {
        let filtered = filter(&scratch, &QUICK, input);
        assert_eq!(filtered.status, Some(2), "{}", filtered.stderr);
        assert!(filtered.stderr.contains(needle), "{}", filtered.stderr);
    }
    let input = || stream(&some_images(1), &[1]);
    assert_eq!(filter(&scratch, &["--model", "quickstart", "--input-size", "0"], input()).status, Some(2));
    let filtered = filter(&scratch, &[&QUICK[..], &["--json"]].concat(), input());
    assert_eq!((filtered.status, filtered.stdout.len()), (Some(2), 0), "{}", filtered.stderr);
    assert_eq!(filter(&scratch, &["--model", "nothing.onnx"], input()).status, Some(1));
    assert_eq!(filter(&scratch, &["--nonsense"], input()).status, Some(2));
}

#[test]
fn an_engine_may_wait_for_each_answer_and_many_small_batches_come_in_order() {
    let scratch = Scratch::new();
    let images = some_images(60);
    let mut child = spawn(&scratch, &[&QUICK[..], &["--threads", "2"]].concat());
    // The handshake comes before anything is sent.
    let mut answers = StreamReader::try_new(child.stdout.take().unwrap(), None).unwrap();
    assert!(answers.schema().metadata().contains_key("tlpipe.key"));
    let whole = stream(&images, &[1; 60]);
    let mut reader = StreamReader::try_new(whole.as_slice(), None).unwrap();
    let mut writer = StreamWriter::try_new(child.stdin.take().unwrap(), &reader.schema()).unwrap();
    for image in &images {
        writer.write(&reader.next().unwrap().unwrap()).unwrap();
        writer.flush().unwrap();
        let answer = answers.next().unwrap().unwrap();
        assert_eq!(answer.column_by_name("id").unwrap().as_string::<i32>().value(0), image.id);
    }
    writer.finish().unwrap();
    drop(writer);
    assert!(answers.next().is_none());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[cfg(unix)]
#[test]
fn nobody_is_kept_waiting_when_the_other_side_goes() {
    use crate::support::signal;
    let scratch = Scratch::new();
    let whole = stream(&some_images(40), &[20, 20]);
    let begun = |cut: usize| {
        let mut child = spawn(&scratch, &QUICK);
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(&whole[..cut]).unwrap();
        let mut first = [0; 8];
        child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
        (child, stdin)
    };
    // Stdout is closed while stdin stays open: it ends as soon as it has something to say.
    let (mut child, stdin) = begun(whole.len() - 8);
    drop(child.stdout.take());
    let status = child.wait().unwrap();
    drop(stdin);
    assert_eq!(status.code(), Some(1));
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.lines().last().unwrap().contains("stdout"), "{said}");
    // A signal ends it while it waits for the next batch.
    for (name, status) in [("-TERM", Some(130)), ("-INT", Some(130)), ("-KILL", None)] {
        let (mut child, stdin) = begun(whole.len() / 2);
        signal(&child, name);
        assert_eq!(child.wait().unwrap().code(), status, "{name}");
        drop(stdin);
    }
}
