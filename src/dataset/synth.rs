//! A small image data set that tlpipe draws itself, so that a first run needs no download.
//!
//! Ten balanced classes: six shapes and four textures, each at any place, size and angle, in any two colours of different
//! brightness (either one the brighter), on an uneven backdrop with stray strokes, under uneven light and sensor noise. A
//! linear classifier on the pixels is hardly better than chance; a network that sees edges and corners tells them apart.
//!
//! Every picture is a function of the seed, the split and its index alone: the same pixels on every platform.
//!
//! ```
//! use tlpipe::dataset::synth::{self, Split, SynthParams};
//!
//! let params = SynthParams { seed: 7, ..SynthParams::default() };
//! let (label, picture) = synth::image(&params, Split::Train, 3);
//! assert_eq!(synth::CLASSES[label], "triangle");
//! assert_eq!(picture.dimensions(), (64, 64));
//! ```

mod drawing;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, Int64Array, StringArray, StructArray};
use arrow::datatypes::{DataType, Field, Fields, Schema};
use arrow::record_batch::RecordBatch;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder as _, RgbImage};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use rayon::prelude::*;

use crate::persist::Draft;
use drawing::{FIGURES, PRETRAINING_FIGURES};

/// Version of the drawing: another version draws other pixels from the same seed.
pub const VERSION: u32 = 1;

/// Name of this data set as a pipeline's source.
pub const NAME: &str = "synth";

/// Class names; the index is the label.
pub const CLASSES: [&str; 10] =
    ["disc", "ring", "square", "triangle", "cross", "star", "stripes", "zigzag", "checkerboard", "dots"];

/// Names of the figures of [`pretraining_image`]; none is in [`CLASSES`].
pub const PRETRAINING_CLASSES: [&str; 16] = [
    "ellipse",
    "rectangle",
    "crescent",
    "half disc",
    "pentagon",
    "tee",
    "trefoil",
    "frame",
    "grid",
    "bricks",
    "waves",
    "dashes",
    "lattice",
    "target",
    "pluses",
    "rings",
];

/// First random stream of the pretraining pictures, beyond those of both splits.
const PRETRAINING_STREAMS: u64 = 1 << 63;

/// Images in a row group: what is drawn, encoded and held at once.
const ROW_GROUP: u64 = 500;

/// What can go wrong while the data set is written.
#[derive(Debug, thiserror::Error)]
pub enum SynthError {
    /// A setting is out of range.
    #[error("synthetic data: {setting} is {found}, expected {expected}; set it within that range")]
    Setting {
        /// Name of the setting.
        setting: &'static str,
        /// Its value.
        found: u64,
        /// What is allowed.
        expected: &'static str,
    },
    /// The folder or a file could not be written.
    #[error("{path}: {source}; name a folder that can be written to")]
    Io {
        /// The folder or file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file of the name is there already.
    #[error("{path} is there already and is not replaced; name another folder, or remove it first")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The rows could not be encoded.
    #[error("{path}: {reason}; the disk may be full: free space or name another folder")]
    Encode {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// What to draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SynthParams {
    /// Another seed draws other pictures of the same ten classes.
    pub seed: u64,
    /// Images in the train split, 10 to 10,000,000.
    pub train: u64,
    /// Images in the test split, 10 to 10,000,000.
    pub test: u64,
    /// Side of an image in pixels, 16 to 1024.
    pub side: u32,
}

impl Default for SynthParams {
    fn default() -> Self {
        Self { seed: 0, train: 3000, test: 1000, side: 64 }
    }
}

impl SynthParams {
    /// A folder name that tells this data set from any other: equal names, equal pixels.
    pub fn name(&self) -> String {
        let Self { seed, train, test, side } = self;
        format!("synth-v{VERSION}-seed{seed}-{train}-{test}-{side}px")
    }

    fn check(&self) -> Result<(), SynthError> {
        for (setting, found) in [("train", self.train), ("test", self.test)] {
            if !(CLASSES.len() as u64..=10_000_000).contains(&found) {
                return Err(SynthError::Setting { setting, found, expected: "10 to 10000000 images" });
            }
        }
        if !(16..=1024).contains(&self.side) {
            return Err(SynthError::Setting { setting: "side", found: self.side.into(), expected: "16 to 1024 pixels" });
        }
        Ok(())
    }
}

/// A part of the data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    /// For training and hold-out.
    Train,
    /// For the final score.
    Test,
}

impl Split {
    /// `train` or `test`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Test => "test",
        }
    }

    /// Random stream of an image; streams of the splits never meet.
    fn stream(self, index: u64) -> u64 {
        index * 2 + u64::from(self == Self::Test)
    }
}

/// Where the data set was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Parquet file of the train split.
    pub train: PathBuf,
    /// Parquet file of the test split.
    pub test: PathBuf,
}

/// Draws one image: its label and `params.side` x `params.side` pixels. Labels go round with the index, so that every ten
/// neighbours hold every class.
pub fn image(params: &SynthParams, split: Split, index: u64) -> (usize, RgbImage) {
    let label = (index % FIGURES.len() as u64) as usize;
    (label, picture(FIGURES[label], params.seed, split.stream(index), params.side))
}

/// Draws one image of the [`PRETRAINING_CLASSES`], in the same manner as [`image`] but of other figures: what the quickstart
/// backbone was trained on. Labels go round with the index.
pub fn pretraining_image(seed: u64, index: u64, side: u32) -> (usize, RgbImage) {
    let label = (index % PRETRAINING_FIGURES.len() as u64) as usize;
    (label, picture(PRETRAINING_FIGURES[label], seed, PRETRAINING_STREAMS + index, side))
}

fn picture(figure: drawing::Figure, seed: u64, stream: u64, side: u32) -> RgbImage {
    let mut picture = RgbImage::new(side, side);
    drawing::draw(figure, seed, stream, side, &mut picture);
    picture
}

/// Draws the data set into `dir` (made if missing) as Parquet in the Hugging Face image layout: `image` (struct of `bytes`,
/// PNG, and `path`), `label` (int64), class names in the `huggingface` metadata. Each file appears whole or not at all.
///
/// # Errors
/// When a setting is out of range, a file is there already, or one cannot be written.
pub fn write(params: &SynthParams, dir: &Path) -> Result<Written, SynthError> {
    params.check()?;
    std::fs::create_dir_all(dir).map_err(|source| SynthError::Io { path: dir.to_path_buf(), source })?;
    let file = |split: Split| dir.join(format!("{}-00000-of-00001.parquet", split.name()));
    let written = Written { train: file(Split::Train), test: file(Split::Test) };
    if let Some(path) = [&written.train, &written.test].into_iter().find(|path| path.exists()) {
        return Err(SynthError::Exists { path: path.clone() });
    }
    write_split(params, Split::Train, params.train, &written.train)?;
    write_split(params, Split::Test, params.test, &written.test)?;
    Ok(written)
}

fn write_split(params: &SynthParams, split: Split, count: u64, path: &Path) -> Result<(), SynthError> {
    let io = |source| SynthError::Io { path: path.to_path_buf(), source };
    let encode = |reason: String| SynthError::Encode { path: path.to_path_buf(), reason };
    let mut draft = Draft::create(path).map_err(io)?;
    let properties = WriterProperties::builder()
        .set_compression(Compression::UNCOMPRESSED) // PNG is compressed already
        .set_dictionary_enabled(false)
        .set_key_value_metadata(Some(vec![KeyValue::new("huggingface".to_owned(), hugging_face_metadata())]))
        .build();
    let mut writer = ArrowWriter::try_new(draft.file(), schema(), Some(properties)).map_err(|error| encode(error.to_string()))?;
    for start in (0..count).step_by(ROW_GROUP as usize) {
        let batch = row_group(params, split, start..count.min(start + ROW_GROUP)).map_err(encode)?;
        writer.write(&batch).and_then(|()| writer.flush()).map_err(|error| encode(error.to_string()))?;
    }
    writer.close().map_err(|error| encode(error.to_string()))?;
    draft.keep_new().map_err(io)
}

fn row_group(params: &SynthParams, split: Split, rows: std::ops::Range<u64>) -> Result<RecordBatch, String> {
    let drawn: Vec<(String, Vec<u8>, i64)> = rows
        .into_par_iter()
        .map(|index| {
            let (label, picture) = image(params, split, index);
            let path = format!("{}/{index:06}-{}.png", split.name(), CLASSES[label]);
            Ok((path, png(&picture)?, label as i64))
        })
        .collect::<Result<_, String>>()?;
    let bytes: ArrayRef = Arc::new(BinaryArray::from_iter_values(drawn.iter().map(|(_, bytes, _)| bytes)));
    let paths: ArrayRef = Arc::new(StringArray::from_iter_values(drawn.iter().map(|(path, ..)| path)));
    let labels: ArrayRef = Arc::new(Int64Array::from_iter_values(drawn.iter().map(|(.., label)| *label)));
    let images: ArrayRef =
        Arc::new(StructArray::try_new(image_fields(), vec![bytes, paths], None).map_err(|error| error.to_string())?);
    RecordBatch::try_new(schema(), vec![images, labels]).map_err(|error| error.to_string())
}

fn png(picture: &RgbImage) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Sub)
        .write_image(picture, picture.width(), picture.height(), ExtendedColorType::Rgb8)
        .map_err(|error| error.to_string())?;
    Ok(bytes)
}

fn image_fields() -> Fields {
    Fields::from(vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)])
}

fn schema() -> Arc<Schema> {
    Arc::new(Schema::new(vec![
        Field::new("image", DataType::Struct(image_fields()), true),
        Field::new("label", DataType::Int64, true),
    ]))
}

fn hugging_face_metadata() -> String {
    let features = serde_json::json!({
        "image": { "_type": "Image" },
        "label": { "_type": "ClassLabel", "names": CLASSES },
    });
    serde_json::json!({ "info": { "features": features } }).to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::fs::{self, File};

    use arrow::array::AsArray as _;
    use arrow::datatypes::Int64Type;
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    use super::*;

    fn small() -> SynthParams {
        SynthParams { seed: 3, train: 1010, test: 20, side: 24 }
    }

    /// Pixels are pinned: a change here is another data set, and needs another [`VERSION`].
    #[test]
    fn pixels_are_those_of_this_version() {
        let params = SynthParams::default();
        let mut hasher = blake3::Hasher::new();
        for index in 0..10 {
            hasher.update(&image(&params, Split::Train, index).1);
            hasher.update(&image(&params, Split::Test, index).1);
        }
        for index in 0..16 {
            hasher.update(&pretraining_image(0, index, 64).1);
        }
        assert_eq!(
            hasher.finalize().to_hex().as_str(),
            "86153d0e2176a588f00ffe9f7efc08c065053aaea7c343492d2bd70d1cf7f4f0",
            "the drawing changed: raise VERSION and pin the new hash"
        );
    }

    #[test]
    fn every_image_is_different() {
        let params = SynthParams { side: 16, ..small() };
        let other = SynthParams { seed: 4, ..params };
        let drawn = (0..200).flat_map(|index| {
            [(params, Split::Train), (params, Split::Test), (other, Split::Train)]
                .map(|(params, split)| image(&params, split, index).1.into_raw())
        });
        assert_eq!(drawn.collect::<HashSet<_>>().len(), 600);
    }

    #[test]
    fn a_figure_stands_out_from_its_backdrop() {
        let params = SynthParams::default();
        for index in 0..100 {
            let (label, picture) = image(&params, Split::Train, index);
            let brightness: Vec<f64> =
                picture.pixels().map(|p| 0.299 * f64::from(p[0]) + 0.587 * f64::from(p[1]) + 0.114 * f64::from(p[2])).collect();
            let mean = brightness.iter().sum::<f64>() / brightness.len() as f64;
            let deviation = (brightness.iter().map(|b| (b - mean).powi(2)).sum::<f64>() / brightness.len() as f64).sqrt();
            assert!(deviation > 8.0, "{} {index} is nearly blank: {deviation}", CLASSES[label]);
        }
    }

    #[test]
    fn parquet_holds_the_images_in_the_hugging_face_layout() {
        let dir = tempfile::tempdir().unwrap();
        let written = write(&small(), dir.path()).unwrap();
        for (split, path, count) in [(Split::Train, &written.train, 1010), (Split::Test, &written.test, 20)] {
            let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
            let metadata = builder.metadata().file_metadata().key_value_metadata().unwrap();
            let info = metadata.iter().find(|entry| entry.key == "huggingface").unwrap().value.clone().unwrap();
            let info: serde_json::Value = serde_json::from_str(&info).unwrap();
            assert_eq!(info["info"]["features"]["label"]["names"][3], "triangle");
            let mut index = 0;
            for batch in builder.build().unwrap() {
                let batch = batch.unwrap();
                let images = batch.column(0).as_struct();
                for row in 0..batch.num_rows() {
                    let (label, picture) = image(&small(), split, index);
                    let bytes = images.column(0).as_binary::<i32>().value(row);
                    assert_eq!(image::load_from_memory(bytes).unwrap().to_rgb8(), picture);
                    assert_eq!(batch.column(1).as_primitive::<Int64Type>().value(row), label as i64);
                    index += 1;
                }
            }
            assert_eq!(index, count);
        }
    }

    #[test]
    fn the_same_settings_give_the_same_bytes_and_nothing_is_replaced() {
        let [first, second] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let written = [&first, &second].map(|dir| write(&small(), dir.path()).unwrap());
        assert_eq!(fs::read(&written[0].train).unwrap(), fs::read(&written[1].train).unwrap());
        assert_eq!(fs::read_dir(first.path()).unwrap().count(), 2);
        fs::remove_file(&written[0].train).unwrap();
        fs::write(&written[0].test, "mine").unwrap();
        let refused = write(&small(), first.path()).unwrap_err().to_string();
        assert!(refused.contains("test-00000-of-00001.parquet is there already"), "{refused}");
        assert_eq!(fs::read(&written[0].test).unwrap(), b"mine");
        assert!(!written[0].train.exists());
    }

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        for (params, named) in [
            (SynthParams { train: 9, ..small() }, "train is 9"),
            (SynthParams { test: 0, ..small() }, "test is 0"),
            (SynthParams { side: 15, ..small() }, "side is 15"),
            (SynthParams { side: 1025, ..small() }, "side is 1025"),
        ] {
            let message = write(&params, dir.path()).unwrap_err().to_string();
            assert!(message.contains(named), "{message}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("taken");
        fs::write(&file, "").unwrap();
        let error = write(&small(), &file.join("synth")).unwrap_err();
        assert!(error.to_string().contains("taken"), "{error}");
    }
}
