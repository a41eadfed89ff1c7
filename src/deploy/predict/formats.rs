//! Predictions as text: CSV, JSON, JSON lines.

use std::fmt;
use std::io::{self, Write};
use std::str::FromStr;

use serde::Serialize;

use super::{Answer, Counts, Prediction, Ranked};

/// What stands for the class where no class is probable enough.
pub(super) const UNSURE: &str = "unsure";

/// Columns of a table of predictions, and keys of one.
pub(super) const COLUMNS: [&str; 5] = ["file", "class", "class_index", "probability", "error"];

/// How predictions are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Table,
    /// A header and a line an image (RFC 4180).
    Csv,
    /// One object with all predictions.
    Json,
    /// An object a line.
    Ndjson,
    /// Apache Parquet.
    Parquet,
}

/// Text that names no format.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no format; use table, csv, json, ndjson or parquet")]
pub struct UnknownFormat(String);

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, UnknownFormat> {
        Ok(match text {
            "table" => Self::Table,
            "csv" => Self::Csv,
            "json" => Self::Json,
            "ndjson" | "jsonl" => Self::Ndjson,
            "parquet" => Self::Parquet,
            other => return Err(UnknownFormat(other.to_owned())),
        })
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Table => "table",
            Self::Csv => "csv",
            Self::Json => "json",
            Self::Ndjson => "ndjson",
            Self::Parquet => "parquet",
        })
    }
}

/// What is said when all images are through.
#[derive(Clone, Copy, Debug)]
pub struct Summary<'a> {
    /// Name of the model.
    pub model: &'a str,
    /// How many there were.
    pub counts: Counts,
    /// From the first to the last image.
    pub seconds: f64,
    /// Whether the user ended it before the last one.
    pub stopped: bool,
}

impl Summary<'_> {
    /// Images a second.
    #[allow(clippy::cast_precision_loss)]
    pub fn rate(&self) -> f64 {
        self.counts.images as f64 / self.seconds.max(1e-9)
    }
}

/// Where predictions are written, one after the other.
pub trait Rows {
    /// Writes one.
    ///
    /// # Errors
    /// When it cannot be written.
    fn add(&mut self, prediction: &Prediction) -> io::Result<()>;

    /// Lets a reader see what was written.
    ///
    /// # Errors
    /// When it cannot be written.
    fn flush(&mut self) -> io::Result<()>;

    /// Writes what stands at the end.
    ///
    /// # Errors
    /// When it cannot be written.
    fn finish(&mut self, summary: Summary<'_>) -> io::Result<()>;
}

/// A prediction as JSON.
#[derive(Serialize)]
pub(in super::super) struct Row<'a> {
    file: &'a str,
    class: Option<&'a str>,
    class_index: Option<usize>,
    probability: Option<f32>,
    top: Vec<Class<'a>>,
    error: Option<&'a str>,
}

#[derive(Serialize)]
struct Class<'a> {
    class: &'a str,
    class_index: usize,
    probability: f32,
}

impl<'a> Row<'a> {
    pub(in super::super) fn of(prediction: &'a Prediction, classes: &'a [String]) -> Self {
        let Prediction { id, answer } = prediction;
        let name = |ranked: &Ranked| classes.get(ranked.index).map_or("", String::as_str);
        let as_class =
            |ranked: &Ranked| Class { class: name(ranked), class_index: ranked.index, probability: ranked.probability };
        match answer {
            Ok(Answer { top, sure }) => {
                let best = top.first();
                Row {
                    file: id,
                    class: best.map(|best| if *sure { name(best) } else { UNSURE }),
                    class_index: best.filter(|_| *sure).map(|best| best.index),
                    probability: best.map(|best| best.probability),
                    top: top.iter().map(as_class).collect(),
                    error: None,
                }
            }
            Err(reason) => {
                Row { file: id, class: None, class_index: None, probability: None, top: Vec::new(), error: Some(reason) }
            }
        }
    }
}

/// Columns `file`, `class`, `class_index`, `probability`; where more than one class is asked for, `class_1`, `probability_1`, …;
/// `error`.
pub struct Csv<'c, W: Write> {
    writer: csv::Writer<W>,
    classes: &'c [String],
    top: usize,
}

impl<'c, W: Write> Csv<'c, W> {
    /// Begins with the header, unless what is written to has one.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new(to: W, classes: &'c [String], top: usize, header: bool) -> io::Result<Self> {
        let top = if top > 1 { top.min(classes.len()) } else { 0 };
        let mut writer = csv::Writer::from_writer(to);
        if header {
            let (first, last) = COLUMNS.split_at(4);
            let ranked = (1..=top).flat_map(|place| [format!("class_{place}"), format!("probability_{place}")]);
            let of = |names: &[&'static str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
            let names: Vec<String> = of(first).into_iter().chain(ranked).chain(of(last)).collect();
            writer.write_record(&names)?;
        }
        Ok(Self { writer, classes, top })
    }
}

impl<W: Write> Rows for Csv<'_, W> {
    fn add(&mut self, prediction: &Prediction) -> io::Result<()> {
        let row = Row::of(prediction, self.classes);
        let number = |value: Option<f32>| value.map(|value| value.to_string()).unwrap_or_default();
        self.writer.write_field(row.file)?;
        self.writer.write_field(row.class.unwrap_or_default())?;
        self.writer.write_field(row.class_index.map(|index| index.to_string()).unwrap_or_default())?;
        self.writer.write_field(number(row.probability))?;
        for place in 0..self.top {
            let class = row.top.get(place);
            self.writer.write_field(class.map_or("", |class| class.class))?;
            self.writer.write_field(number(class.map(|class| class.probability)))?;
        }
        self.writer.write_field(row.error.unwrap_or_default())?;
        Ok(self.writer.write_record(None::<&[u8]>)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }

    fn finish(&mut self, _: Summary<'_>) -> io::Result<()> {
        self.writer.flush()
    }
}

/// An object a line.
pub struct JsonLines<'c, W: Write> {
    to: W,
    classes: &'c [String],
}

impl<'c, W: Write> JsonLines<'c, W> {
    /// Begins.
    pub fn new(to: W, classes: &'c [String]) -> Self {
        Self { to, classes }
    }
}

impl<W: Write> Rows for JsonLines<'_, W> {
    fn add(&mut self, prediction: &Prediction) -> io::Result<()> {
        serde_json::to_writer(&mut self.to, &Row::of(prediction, self.classes))?;
        self.to.write_all(b"\n")
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }

    fn finish(&mut self, _: Summary<'_>) -> io::Result<()> {
        self.to.flush()
    }
}

/// One object: `predictions`, then `model`, `images`, `failed`, `stopped`, `seconds`, `images_per_second`.
pub struct Json<'c, W: Write> {
    lines: JsonLines<'c, W>,
    first: bool,
}

impl<'c, W: Write> Json<'c, W> {
    /// Begins.
    pub fn new(to: W, classes: &'c [String]) -> Self {
        Self { lines: JsonLines::new(to, classes), first: true }
    }

    fn begin(&mut self) -> io::Result<()> {
        let before: &[u8] = if self.first { b"{\"predictions\":[\n" } else { b"," };
        self.first = false;
        self.lines.to.write_all(before)
    }
}

impl<W: Write> Rows for Json<'_, W> {
    fn add(&mut self, prediction: &Prediction) -> io::Result<()> {
        self.begin()?;
        self.lines.add(prediction)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.lines.flush()
    }

    fn finish(&mut self, summary: Summary<'_>) -> io::Result<()> {
        if self.first {
            self.begin()?;
        }
        let model = serde_json::to_string(summary.model)?;
        let (Counts { images, failed }, stopped) = (summary.counts, summary.stopped);
        writeln!(
            self.lines.to,
            "],\"model\":{model},\"images\":{images},\"failed\":{failed},\"stopped\":{stopped},\"seconds\":{:.3},\
             \"images_per_second\":{:.1}}}",
            summary.seconds,
            summary.rate()
        )?;
        self.lines.flush()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn classes() -> Vec<String> {
        ["cat, \"tabby\"", "two\nlines", "犬"].map(str::to_owned).to_vec()
    }

    pub(in super::super) fn predictions() -> Vec<Prediction> {
        let ranked = |index, probability| Ranked { index, probability };
        let answer = |top: &[Ranked], sure| Ok(Answer { top: top.to_vec(), sure });
        vec![
            Prediction { id: "a, b.png".into(), answer: answer(&[ranked(0, 0.75), ranked(1, 0.25)], true) },
            Prediction { id: "c.png".into(), answer: answer(&[ranked(1, 0.5), ranked(2, 0.5)], false) },
            Prediction { id: "d.png".into(), answer: Err("truncated PNG: \"end\"".into()) },
        ]
    }

    pub(in super::super) const SUMMARY: Summary<'_> =
        Summary { model: "m", counts: Counts { images: 3, failed: 1 }, seconds: 1.5, stopped: false };

    fn written(mut rows: impl Rows) {
        for prediction in predictions() {
            rows.add(&prediction).unwrap();
        }
        rows.finish(SUMMARY).unwrap();
    }

    #[test]
    fn csv_keeps_commas_quotes_and_lines() {
        let classes = classes();
        let mut text = Vec::new();
        written(Csv::new(&mut text, &classes, 2, true).unwrap());
        let mut reader = csv::Reader::from_reader(text.as_slice());
        let header =
            ["file", "class", "class_index", "probability", "class_1", "probability_1", "class_2", "probability_2", "error"];
        assert_eq!(reader.headers().unwrap(), header.as_slice());
        let rows: Vec<Vec<String>> = reader.records().map(|row| row.unwrap().iter().map(str::to_owned).collect()).collect();
        assert_eq!(rows[0], ["a, b.png", "cat, \"tabby\"", "0", "0.75", "cat, \"tabby\"", "0.75", "two\nlines", "0.25", ""]);
        assert_eq!(rows[1], ["c.png", "unsure", "", "0.5", "two\nlines", "0.5", "犬", "0.5", ""]);
        assert_eq!(rows[2], ["d.png", "", "", "", "", "", "", "", "truncated PNG: \"end\""]);
        let mut text = Vec::new();
        written(Csv::new(&mut text, &classes, 1, false).unwrap());
        assert!(String::from_utf8(text).unwrap().starts_with("\"a, b.png\",\"cat, \"\"tabby\"\"\",0,0.75,\n"));
    }

    #[test]
    fn json_is_one_object_or_one_a_line() {
        let classes = classes();
        let mut text = Vec::new();
        written(Json::new(&mut text, &classes));
        let all: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!((&all["images"], &all["failed"], &all["model"]), (&3.into(), &1.into(), &"m".into()));
        let mut lines = Vec::new();
        written(JsonLines::new(&mut lines, &classes));
        let lines = String::from_utf8(lines).unwrap();
        let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(all["predictions"], serde_json::Value::Array(lines.clone()));
        assert_eq!(lines[0]["top"][1]["class"], "two\nlines");
        assert_eq!((&lines[1]["class"], lines[1]["class_index"].is_null()), (&"unsure".into(), true));
        assert!(lines[2]["class"].is_null() && lines[2]["error"].as_str().unwrap().contains("truncated"));
        let mut text = Vec::new();
        Json::new(&mut text, &classes).finish(SUMMARY).unwrap();
        assert!(serde_json::from_slice::<serde_json::Value>(&text).unwrap()["predictions"].as_array().unwrap().is_empty());
    }

    #[test]
    fn names_of_formats_read_back() {
        for format in [Format::Table, Format::Csv, Format::Json, Format::Ndjson, Format::Parquet] {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        assert!("xml".parse::<Format>().unwrap_err().to_string().contains("ndjson"));
    }
}
