//! `tlpipe store adopt`: what a cluster engine wrote with `tlpipe embed` becomes a feature store.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array as _, ArrayRef, AsArray as _, Float32Array, ListArray, RecordBatch, StringArray};
use arrow::buffer::OffsetBuffer;
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;

use crate::filter::{QUICK, filter};
use crate::support::{Scratch, images, quick, row_bits, stream};

const KEY: &str = "tlpipe.key";

/// 44 images in two splits, one of them broken; the answer of the filter to all of them.
fn answered(scratch: &Scratch, more: &[&str]) -> RecordBatch {
    for split in ["train", "test"] {
        scratch.folders(&format!("photos/{split}"), &["cat", "dog"], 11);
    }
    fs::write(scratch.path("photos/train/cat/bad.png"), b"no image").unwrap();
    let images = images(scratch, "photos");
    let (schema, batches) = filter(scratch, &[&QUICK[..], more].concat(), stream(&images, &[20, images.len() - 20])).batches();
    concat_batches(&schema, &batches).unwrap()
}

/// Some rows of an answer, in this order, as a Parquet file.
fn write(path: &Path, batch: &RecordBatch, rows: impl IntoIterator<Item = usize>) {
    write_as(path, batch, rows, WriterProperties::builder().build());
}

fn write_as(path: &Path, batch: &RecordBatch, rows: impl IntoIterator<Item = usize>, properties: WriterProperties) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let rows: Vec<RecordBatch> = rows.into_iter().map(|row| batch.slice(row, 1)).collect();
    let chosen = concat_batches(&batch.schema(), &rows).unwrap();
    // Arrow's own writers put the schema's metadata into the file's, this one within Arrow's schema alone.
    let metadata =
        batch.schema().metadata().iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone())).collect::<Vec<_>>();
    let mut writer = ArrowWriter::try_new(fs::File::create(path).unwrap(), chosen.schema(), Some(properties)).unwrap();
    metadata.into_iter().for_each(|pair| writer.append_key_value_metadata(pair));
    writer.write(&chosen).unwrap();
    writer.close().unwrap();
}

/// The same rows as Spark writes them: lists of any length, no metadata but Spark's, the key as a column, the provenance in the first row.
fn as_spark(batch: &RecordBatch, with_provenance: bool) -> RecordBatch {
    let metadata = batch.schema().metadata().clone();
    let mut columns: Vec<(String, ArrayRef)> = Vec::new();
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        let column = match column.as_fixed_size_list_opt() {
            Some(list) => {
                let rows = (0..list.len()).map(|row| list.is_valid(row).then(|| list.value(row)));
                let values: Vec<ArrayRef> = rows.clone().flatten().collect();
                let values: Vec<&dyn arrow::array::Array> = values.iter().map(AsRef::as_ref).collect();
                let values = arrow::compute::concat(&values).unwrap();
                let lengths = rows.map(|values| values.map_or(0, |values| values.len()));
                let item = Arc::new(Field::new("element", DataType::Float32, true));
                Arc::new(ListArray::new(item, OffsetBuffer::from_lengths(lengths), values, list.nulls().cloned())) as ArrayRef
            }
            None => Arc::clone(column),
        };
        columns.push((field.name().clone(), column));
    }
    let rows = batch.num_rows();
    columns.push(("tlpipe_key".into(), Arc::new(StringArray::from(vec![metadata[KEY].as_str(); rows]))));
    if with_provenance {
        let provenance = |row| (row == 0).then(|| metadata["tlpipe.provenance"].as_str());
        columns.push(("tlpipe_provenance".into(), Arc::new((0..rows).map(provenance).collect::<StringArray>())));
    }
    RecordBatch::try_from_iter(columns).unwrap()
}

fn spark() -> WriterProperties {
    let version = KeyValue::new("org.apache.spark.version".into(), "4.0.0".to_owned());
    WriterProperties::builder().set_key_value_metadata(Some(vec![version])).build()
}

/// The adopted store holds what extraction makes of the same images, and extraction finds nothing to do there but to look.
fn assert_is_that_of_extract(scratch: &Scratch, adopted: &str, more: &[&str]) {
    let own = format!("{adopted}-own");
    let extract = |features: &str| scratch.json(&[&["extract"][..], &quick("photos", &["--features", features]), more].concat());
    extract(&own);
    assert_eq!(row_bits(&scratch.path(adopted)), row_bits(&scratch.path(&own)));
    let manifest = |name: &str| -> serde_json::Value {
        serde_json::from_str(&fs::read_to_string(scratch.path(name).join("store.json")).unwrap()).unwrap()
    };
    let (one, other) = (manifest(adopted), manifest(&own));
    for part in ["key", "key_parts", "dimension", "segments", "classes", "complete", "quarantined"] {
        assert_eq!(one[part], other[part], "{part}");
    }
    for part in ["provider", "runtime", "model", "model_file", "model_sha256", "cut_reason", "layers", "rows", "quarantined"] {
        assert_eq!(one["extraction"][part], other["extraction"][part], "{part}");
    }
    scratch.ok(&["fit-head", "--features", adopted, "--run", &format!("{adopted}-run"), "--epochs", "2"]);
    let again = extract(adopted);
    assert_eq!((again["new"].as_u64(), again["reused"].as_u64()), (Some(0), Some(44)), "{again}");
    assert_eq!(extract(adopted)["up_to_date"], true);
}

fn files(folder: &Path) -> Vec<String> {
    if !folder.exists() {
        return Vec::new();
    }
    let entries =
        walkdir::WalkDir::new(folder).into_iter().map(|entry| entry.unwrap()).filter(|entry| entry.file_type().is_file());
    let name = |entry: walkdir::DirEntry| entry.path().strip_prefix(folder).unwrap().to_string_lossy().into_owned();
    let mut files: Vec<String> = entries.map(name).filter(|name| name != ".lock").collect();
    files.sort();
    files
}

const STORE: [&str; 4] = ["quarantine.parquet", "store.json", "test/part-00000.parquet", "train/part-00000.parquet"];

#[test]
fn files_in_any_order_become_the_store_of_extract() {
    let scratch = Scratch::new();
    let batch = answered(&scratch, &[]);
    write(&scratch.path("ray/z/1_000.parquet"), &batch, (0..21).rev());
    write(&scratch.path("ray/0_000.parquet"), &batch, (20..45).rev());
    write(&scratch.path("ray/_temporary.parquet"), &batch, 0..1);
    fs::write(scratch.path("ray/.hidden.parquet"), b"x").unwrap();
    let adopted = scratch.json(&["store", "adopt", "ray", "--expect-rows", "45", "--features", "f"]);
    assert_eq!((adopted["rows"].as_u64(), adopted["repeated"].as_u64()), (Some(44), Some(1)), "{adopted}");
    assert_eq!(adopted["quarantined"], 1);
    assert_eq!(files(&scratch.path("f")), STORE);
    assert_eq!(files(&scratch.path("ray")), [".hidden.parquet", "0_000.parquet", "_temporary.parquet", "z/1_000.parquet"]);
    assert_is_that_of_extract(&scratch, "f", &[]);
    // In place, its files give way to the store's.
    fs::remove_file(scratch.path("ray/_temporary.parquet")).unwrap();
    fs::remove_file(scratch.path("ray/.hidden.parquet")).unwrap();
    scratch.ok(&["store", "adopt", "ray", "--expect-rows", "45", "--features", "./ray", "--threads", "1"]);
    assert_eq!(files(&scratch.path("ray")), STORE);
    assert_is_that_of_extract(&scratch, "ray", &[]);
    for (args, needle) in [
        (&["ray"][..], "already"),
        (&["f", "--expect-rows", "45"], "already"),
        (&["gone", "--features", "g"], "gone: no such folder; name the folder that the engine wrote to"),
        (&["ray", "--ids", "gone.txt"], "gone.txt: cannot be read"),
    ] {
        let said = scratch.fails(1, &[&["store", "adopt"][..], args].concat());
        assert!(said.contains(needle), "{said}");
    }
}

#[test]
fn what_spark_writes_becomes_the_store_of_extract() {
    let scratch = Scratch::new();
    let more = ["--views", "identity,hflip", "--dtype", "float16"];
    let batch = answered(&scratch, &more);
    let halves = |batch: &RecordBatch| {
        let own = batch.schema();
        let fields = own.fields().iter().map(|field| match field.data_type() {
            DataType::FixedSizeList(_, width) => {
                let item = Arc::new(Field::new("item", DataType::Float32, false));
                Field::new(field.name(), DataType::FixedSizeList(item, *width), true)
            }
            _ => field.as_ref().clone(),
        });
        let schema = Schema::new_with_metadata(fields.collect::<Vec<_>>(), batch.schema().metadata().clone());
        let cast = |(field, column): (&Arc<Field>, &ArrayRef)| arrow::compute::cast(column, field.data_type()).unwrap();
        let columns = schema.fields().iter().zip(batch.columns()).map(cast).collect();
        RecordBatch::try_new(Arc::new(schema), columns).unwrap()
    };
    // Spark knows no float16: it is handed float32, of the same values.
    let rows = as_spark(&halves(&batch), true);
    let part = |number: usize| scratch.path(&format!("out/part-{number:05}-c000.snappy.parquet"));
    write_as(&part(0), &rows, 0..30, spark());
    write_as(&part(1), &rows, 30..45, spark());
    write_as(&part(2), &rows.slice(0, 1).slice(0, 0), [], spark());
    fs::write(scratch.path("out/.part-00000-c000.snappy.parquet.crc"), b"crc").unwrap();
    let said = scratch.fails(1, &["store", "adopt", "out", "--expect-rows", "45"]);
    assert!(said.contains("_SUCCESS is missing"), "{said}");
    fs::write(scratch.path("out/_SUCCESS"), b"").unwrap();
    fs::create_dir(scratch.path("out/_temporary")).unwrap();
    let said = scratch.fails(1, &["store", "adopt", "out"]);
    assert!(said.contains("_temporary"), "{said}");
    fs::remove_dir(scratch.path("out/_temporary")).unwrap();
    scratch.ok(&["store", "adopt", "out"]);
    assert_eq!(files(&scratch.path("out")), STORE);
    assert_is_that_of_extract(&scratch, "out", &more);
}

#[test]
fn rows_that_carry_the_key_alone_need_the_settings_that_make_it() {
    let scratch = Scratch::new();
    let batch = answered(&scratch, &[]);
    write_as(&scratch.path("out/a.parquet"), &as_spark(&batch, false), 0..45, WriterProperties::builder().build());
    let adopt = ["store", "adopt", "out", "--expect-rows", "45"];
    let said = scratch.fails(1, &[&adopt[..], &["--model", "quickstart", "--input-size", "64"]].concat());
    assert!(said.contains("key") && said.contains("64 px"), "{said}");
    scratch.ok(&[&adopt[..], &QUICK].concat());
    assert_eq!(row_bits(&scratch.path("out")).len(), 44);
    // Settings that are named are checked where the rows say how they were made.
    write(&scratch.path("said/a.parquet"), &batch, 0..45);
    let said =
        scratch.fails(1, &["store", "adopt", "said", "--expect-rows", "45", "--model", "quickstart", "--input-size", "64"]);
    assert!(said.contains("input_size: 32") && said.contains("64 asked for"), "{said}");
    scratch.ok(&[&["store", "adopt", "said", "--expect-rows", "45"][..], &QUICK].concat());
}

#[test]
fn what_is_missing_or_too_much_is_said() {
    let scratch = Scratch::new();
    let batch = answered(&scratch, &[]);
    write(&scratch.path("out/a.parquet"), &batch, 0..44);
    let adopt = |more: &[&str]| scratch.run(&[&["store", "adopt", "out", "--features", "f"][..], more].concat());
    let refused = |more: &[&str], status: i32, needle: &str| {
        let ran = adopt(more);
        assert_eq!(ran.status, Some(status), "{more:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(needle), "{more:?}: {}", ran.stderr);
        assert!(files(&scratch.path("f")).is_empty(), "{:?}", files(&scratch.path("f")));
    };
    refused(&[], 2, "--expect-rows");
    refused(&["--expect-rows", "45"], 1, "44 images are here, and 45 were expected");
    refused(&["--expect-rows", "43"], 1, "44 images are here, and 43 were expected");
    refused(&["--expect-rows", "43", "--allow-missing"], 1, "43 were expected");
    let ids = batch.column_by_name("id").unwrap().as_string::<i32>();
    let list = |rows: std::ops::Range<usize>| rows.map(|row| format!("{}\n", ids.value(row))).collect::<String>();
    fs::write(scratch.path("all.txt"), list(0..45)).unwrap();
    fs::write(scratch.path("few.txt"), list(1..45)).unwrap();
    refused(&["--ids", "all.txt"], 1, &format!("1 images of the list did not come, {} for one", ids.value(44)));
    refused(&["--ids", "few.txt", "--allow-missing"], 1, ids.value(0));
    refused(&["--ids", "nowhere.txt"], 1, "nowhere.txt");
    let ran = adopt(&["--ids", "all.txt", "--allow-missing"]);
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    assert!(ran.stdout.contains("1 missing"), "{}", ran.stdout);
    assert!(scratch.fails(1, &["store", "adopt", "nowhere"]).contains("nowhere"));
    fs::create_dir(scratch.path("empty")).unwrap();
    assert!(scratch.fails(1, &["store", "adopt", "empty", "--expect-rows", "1"]).contains("no Parquet files"));
}

/// The answer with other values in one column.
fn with(batch: &RecordBatch, name: &str, column: ArrayRef) -> RecordBatch {
    let at = batch.schema().index_of(name).unwrap();
    let mut columns = batch.columns().to_vec();
    columns[at] = column;
    RecordBatch::try_new(batch.schema(), columns).unwrap()
}

#[test]
fn files_and_rows_that_do_not_belong_are_refused_and_nothing_changes() {
    let scratch = Scratch::new();
    let batch = answered(&scratch, &[]);
    let dir = scratch.path("out");
    write(&dir.join("a.parquet"), &batch, 0..45);
    let other = dir.join("b.parquet");
    let refused = |needles: &[&str]| {
        let before = files(&dir);
        let said = scratch.fails(1, &["store", "adopt", "out", "--expect-rows", "45"]);
        for needle in needles {
            assert!(said.contains(needle), "no {needle:?} in: {said}");
        }
        assert_eq!(files(&dir), before);
        fs::remove_file(&other).unwrap();
    };
    // Two keys in one folder.
    let at_64 = answered(&scratch, &["--set", "backbone.input_size=64"]);
    write(&other, &at_64, 0..3);
    refused(&["a.parquet and ", "b.parquet", "input_size: 32 and 64"]);
    let rows = as_spark(&batch, true);
    let own = batch.schema().metadata()[KEY].clone();
    let keys: ArrayRef = Arc::new(StringArray::from_iter_values((0..45).map(|row| if row == 7 { "0123" } else { own.as_str() })));
    write_as(&other, &with(&rows, "tlpipe_key", keys), 0..45, WriterProperties::builder().build());
    refused(&["b.parquet: row 7", "its key is 0123"]);
    // Cut off, at its end and before it.
    for cut in [20_000, 100] {
        write(&other, &batch, 0..45);
        let length = fs::metadata(&other).unwrap().len();
        fs::File::options().write(true).open(&other).unwrap().set_len(length - cut).unwrap();
        refused(&["b.parquet", "cut off"]);
    }
    fs::write(&other, b"").unwrap();
    refused(&["b.parquet", "cut off"]);
    // No key at all, a column less.
    write_as(&other, &rows.project(&[0, 1, 2, 3, 4, 5, 6, 7, 8]).unwrap(), 0..3, WriterProperties::builder().build());
    refused(&["b.parquet", "no key", "tlpipe_key"]);
    write(&other, &batch.project(&[0, 1, 2, 3, 4, 5, 6, 8]).unwrap(), 0..3);
    refused(&["b.parquet", "no column `embedding`"]);
    // One id with two contents.
    let bits: Vec<f32> = {
        let list = batch.column_by_name("embedding").unwrap().as_fixed_size_list();
        list.values().as_primitive::<arrow::datatypes::Float32Type>().values().to_vec()
    };
    let changed = |change: fn(&mut f32)| {
        let list = batch.column_by_name("embedding").unwrap().as_fixed_size_list();
        let mut bits = bits.clone();
        change(&mut bits[5 * list.value_length() as usize + 3]);
        let DataType::FixedSizeList(item, width) = list.data_type() else { panic!("{}", list.data_type()) };
        let values = Arc::new(Float32Array::from(bits));
        let list = arrow::array::FixedSizeListArray::try_new(Arc::clone(item), *width, values, list.nulls().cloned());
        with(&batch, "embedding", Arc::new(list.unwrap()))
    };
    write(&other, &changed(|value| *value = f32::from_bits(value.to_bits() ^ 1)), 5..6);
    refused(&["differ in their embedding", "train/cat/005.png"]);
    write(&other, &changed(|value| *value = f32::NAN), 5..6);
    refused(&["b.parquet: row 0 (train/cat/005.png)", "NaN"]);
    let hashes = batch.column_by_name("content_hash").unwrap().as_string::<i32>();
    let moved: ArrayRef =
        Arc::new(StringArray::from_iter((0..45).map(|row| hashes.is_valid(row).then(|| hashes.value((row + 1) % 44)))));
    write(&other, &with(&batch, "content_hash", moved), 5..6);
    refused(&["differ in their content_hash"]);
    // A list of another length.
    let list = rows.column_by_name("embedding").unwrap().as_list::<i32>();
    let short: Vec<Option<Vec<Option<f32>>>> = (0..45)
        .map(|row| {
            list.is_valid(row).then(|| {
                let values = list.value(row);
                let values = values.as_primitive::<arrow::datatypes::Float32Type>();
                (0..values.len() - usize::from(row == 5)).map(|at| Some(values.value(at))).collect()
            })
        })
        .collect();
    let mut builder = arrow::array::ListBuilder::new(arrow::array::Float32Builder::new()).with_field(Field::new(
        "element",
        DataType::Float32,
        true,
    ));
    short.into_iter().for_each(|row| builder.append_option(row));
    write_as(&other, &with(&rows, "embedding", Arc::new(builder.finish())), 0..45, WriterProperties::builder().build());
    refused(&["b.parquet: row 5 (train/cat/005.png)", "values in `embedding`"]);
    // And without all that it is a store.
    scratch.ok(&["store", "adopt", "out", "--expect-rows", "45"]);
    assert_eq!(files(&dir), STORE);
}

#[test]
fn class_names_come_from_the_rows_or_from_a_list() {
    let scratch = Scratch::new();
    let batch = answered(&scratch, &[]);
    let without = |names: &[&str]| {
        let keep: Vec<usize> =
            (0..batch.num_columns()).filter(|at| !names.contains(&batch.schema().field(*at).name().as_str())).collect();
        batch.project(&keep).unwrap()
    };
    let classes = |dir: &str, more: &[&str]| -> Vec<String> {
        scratch.ok(&[&["store", "adopt", dir, "--expect-rows", "45"][..], more].concat());
        let store: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(scratch.path(dir).join("store.json")).unwrap()).unwrap();
        store["classes"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
    };
    let labels = |dir: &str| -> HashMap<String, Option<i32>> {
        row_bits(&scratch.path(dir)).into_iter().map(|((_, id), row)| (id, row.label)).collect()
    };
    fs::write(scratch.path("names.txt"), "dog\r\nbird\ncat\n").unwrap();
    write(&scratch.path("labels/a.parquet"), &without(&["class"]), 0..45);
    assert_eq!(classes("labels", &[]), ["0", "1"]);
    write(&scratch.path("names/a.parquet"), &without(&["label"]), 0..45);
    assert_eq!(classes("names", &[]), ["cat", "dog"]);
    assert_eq!(labels("names"), labels("labels"));
    write(&scratch.path("listed/a.parquet"), &without(&["label"]), 0..45);
    assert_eq!(classes("listed", &["--classes", "names.txt"]), ["dog", "bird", "cat"]);
    assert_eq!(labels("listed")["train/cat/000.png"], Some(2));
    write(&scratch.path("both/a.parquet"), &batch, 0..45);
    let said = scratch.fails(1, &["store", "adopt", "both", "--expect-rows", "45", "--classes", "names.txt"]);
    assert!(said.contains("class \"cat\" in the rows and \"dog\" in the list"), "{said}");
    write(&scratch.path("none/a.parquet"), &without(&["label", "class", "split"]), 0..45);
    assert!(classes("none", &[]).is_empty());
    assert!(row_bits(&scratch.path("none")).keys().all(|(split, _)| split == "train"));
}

#[test]
fn an_adoption_that_died_is_finished_or_done_again() {
    let scratch = Scratch::new();
    let batch = answered(&scratch, &[]);
    write(&scratch.path("engine/a.parquet"), &batch, 0..45);
    scratch.ok(&["store", "adopt", "engine", "--expect-rows", "45", "--features", "whole"]);
    let died = |name: &str, moved: &[&str], is_whole: bool| {
        let dir = scratch.path(name);
        write(&dir.join("a.parquet"), &batch, 0..45);
        for file in STORE {
            let place = if moved.contains(&file) { dir.clone() } else { dir.join(".adopting/store") };
            fs::create_dir_all(place.join(file).parent().unwrap()).unwrap();
            fs::copy(scratch.path("whole").join(file), place.join(file)).unwrap();
        }
        fs::create_dir_all(dir.join(".adopting")).unwrap();
        if is_whole {
            fs::write(dir.join(".adopting/taken.json"), r#"{"files":["a.parquet"],"repeated":3,"missing":0}"#).unwrap();
        } else {
            fs::remove_file(dir.join(".adopting/store/store.json")).unwrap();
        }
        let adopted = scratch.json(&["store", "adopt", name, "--expect-rows", "45"]);
        assert_eq!((adopted["rows"].as_u64(), adopted["repeated"].as_u64()), (Some(44), Some(if is_whole { 3 } else { 0 })));
        assert_eq!(files(&dir), STORE, "{name}");
        assert_eq!(row_bits(&dir), row_bits(&scratch.path("whole")), "{name}");
    };
    died("in-the-middle", &[], false);
    died("before-the-first-rename", &[], true);
    died("between-renames", &["test/part-00000.parquet", "quarantine.parquet"], true);
    died("before-files-go", &STORE, true);
}
