//! `tlpipe predict`.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, IsTerminal as _, Read as _, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Instant;

use clap::Args;

use super::open::{ClassifierArgs, ForeignArgs};
use super::options::Usage;
use super::say;
use super::shell::Shell;
use crate::assets::AssetError;
use crate::dataset::{Inputs, SourceOptions};
use crate::deploy::predict::{
    Answer, Asked, Counts, Csv, Format, Json, JsonLines, Listed, Parquet, Prediction, Ranked, Rows, Summary, Watch,
    is_replaceable, predict,
};
use crate::deploy::{Classifier, DeployError};
use crate::events::Event;
use crate::persist::Draft;
use crate::pipeline::{Context, same_folder};

/// Most bytes of an image on stdin.
const MAX_STDIN: u64 = 512 << 20;
/// How messages name stdout.
const STDOUT: &str = "stdout";

/// Arguments of `tlpipe predict`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  tlpipe predict classifier.onnx photos/ --top-k 3\n  \
    tlpipe predict classifier.onnx 'photos/*.jpg' test.parquet -o predictions.csv\n  \
    curl -s https://host/cat.jpg | tlpipe predict classifier.onnx -\n  \
    find . -name '*.png' | tlpipe predict classifier.onnx --files-from - --format ndjson\n  \
    tlpipe predict classifier.onnx --watch inbox/ --threshold 0.8\n\n\
    Exit status: 0 all images were classified, 1 some, or some of several inputs, could not be used (column `error`) or the command \
    failed.")]
pub struct PredictArgs {
    #[command(flatten)]
    classifier: ClassifierArgs,
    /// Images: files, folders, patterns, Parquet files, WebDataset shards, tables of paths, addresses; - is an image on stdin.
    #[arg(value_name = "INPUT")]
    inputs: Vec<PathBuf>,
    /// Text file with an input in each line (or between zero bytes, as find -print0 writes them); - is stdin.
    #[arg(long, value_name = "FILE")]
    files_from: Option<PathBuf>,
    /// Go on with images as they appear in this folder, until Ctrl-C.
    #[arg(long, value_name = "DIR")]
    watch: Option<PathBuf>,
    /// table, csv, json, ndjson or parquet; by the name of -o, else a table on a terminal and csv elsewhere.
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
    /// File to write instead of stdout; what is there is replaced where it is an earlier result.
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write the file of -o whatever is there.
    #[arg(long, requires = "out")]
    force: bool,
    /// Classes to name of each image, the most probable first.
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    top_k: u16,
    /// Probability below which the class is "unsure", 0 to 1.
    #[arg(long, value_name = "P", default_value_t = 0.0, value_parser = probability)]
    threshold: f32,
    /// Column of the images or their paths, where the usual names do not find it.
    #[arg(long, value_name = "NAME")]
    image_column: Option<String>,
    #[command(flatten)]
    foreign: ForeignArgs,
}

/// Why the exit status is not 0 after a result, which is the one object of `--json`.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// Some images could not be used.
    #[error("{failed} of {images} images could not be used: the column `error` says why for each")]
    SomeFailed {
        /// How many.
        failed: String,
        /// Of how many.
        images: String,
    },
    /// The user ended it.
    #[error("stopped after {done} of {images}; their rows are kept")]
    Stopped {
        /// Images that are through.
        done: String,
        /// Of how many.
        images: String,
    },
}

fn probability(text: &str) -> Result<f32, String> {
    text.parse().ok().filter(|value| (0.0..=1.0).contains(value)).ok_or_else(|| "give a number from 0 to 1".to_owned())
}

/// Classifies images.
pub fn main(args: &PredictArgs, shell: &Shell<'_>) -> anyhow::Result<()> {
    let format = args.format(shell)?;
    let inputs = args.inputs(shell)?;
    // A place that cannot be written is said before anything is done.
    let mut out = Out::open(args)?;
    let (classifier, threads) = args.classifier.open(&args.foreign, shell)?;
    let to_person = args.out.is_none() && format == Format::Table && io::stdout().is_terminal();
    let mut sink = Sink {
        rows: args.rows(format, &mut out, &classifier)?,
        at_once: to_person || args.watch.is_some(),
        shown: args.shown(),
        seen: args.watch.is_some().then(HashSet::new),
    };
    let (context, total) = (&shell.context, inputs.total());
    let asked = Asked { top: usize::from(args.top_k), threshold: args.threshold };
    let started = Instant::now();
    let result = context.stoppable(|| {
        let watch = args.watch.as_ref().map(|folder| Watch::new(folder, context.stop)).transpose()?;
        let mut counts = Counts::default();
        if !inputs.is_empty() {
            // Rows on the terminal are progress enough.
            let progress = total.filter(|&total| total > 1 && !to_person).map(|total| (total as u64, context.observe));
            let listed = Listed { records: inputs.records(), stop: context.stop };
            counts = predict(&classifier, asked, threads, listed, progress, &mut |prediction| sink.take(prediction))?;
        }
        if let (Some(watch), Some(folder)) = (watch, &args.watch) {
            let watch = watch.without(sink.seen.as_ref().unwrap_or(&HashSet::new()));
            (context.observe)(Event::Noted(format!("watching {} (Ctrl-C ends it)", folder.display())));
            let more = predict(&classifier, asked, threads, watch, None, &mut |prediction| sink.take(prediction))?;
            counts = Counts { images: counts.images + more.images, failed: counts.failed + more.failed };
        }
        sink.finish(args.summary(&classifier, counts, started, context))?;
        Ok(counts)
    });
    drop(sink);
    let counts = match result {
        // Who reads has read enough.
        Err(DeployError::Write { source, .. }) if args.out.is_none() && source.kind() == io::ErrorKind::BrokenPipe => {
            return Ok(());
        }
        other => other?,
    };
    out.keep().map_err(|source| DeployError::Write { path: args.shown(), source })?;
    let summary = args.summary(&classifier, counts, started, context);
    if counts.images > 1 {
        let (images, took) = (say::count(counts.images), say::seconds(summary.seconds));
        shell.progress.note(&format!("{images} images in {took}, {:.0} a second, on {}", summary.rate(), classifier.provider()));
    }
    let done = say::count(counts.images);
    if summary.stopped {
        let images = total.map_or_else(|| "the images".to_owned(), |total| format!("{} images", say::count(total)));
        return Err(Ended::Stopped { done, images }.into());
    }
    if counts.failed > 0 {
        return Err(Ended::SomeFailed { failed: say::count(counts.failed), images: done }.into());
    }
    Ok(())
}

/// Where predictions go.
struct Sink<'a> {
    rows: Box<dyn Rows + 'a>,
    /// Somebody waits for each row.
    at_once: bool,
    shown: PathBuf,
    /// What was classified, where a folder is watched too.
    seen: Option<HashSet<String>>,
}

impl Sink<'_> {
    fn take(&mut self, prediction: &Prediction) -> Result<(), DeployError> {
        if let Some(seen) = &mut self.seen {
            seen.insert(prediction.id.clone());
        }
        let written = self.rows.add(prediction).and_then(|()| if self.at_once { self.rows.flush() } else { Ok(()) });
        written.map_err(|source| DeployError::Write { path: self.shown.clone(), source })
    }

    fn finish(&mut self, summary: Summary<'_>) -> Result<(), DeployError> {
        self.rows.finish(summary).map_err(|source| DeployError::Write { path: self.shown.clone(), source })
    }
}

impl PredictArgs {
    fn summary<'c>(&self, classifier: &'c Classifier, counts: Counts, started: Instant, context: &Context<'_>) -> Summary<'c> {
        // A folder is watched until somebody ends it.
        let stopped = self.watch.is_none() && context.stop.load(Ordering::Relaxed);
        Summary { model: classifier.name(), counts, seconds: started.elapsed().as_secs_f64(), stopped }
    }

    /// What messages call the place of the result.
    fn shown(&self) -> PathBuf {
        self.out.clone().unwrap_or_else(|| STDOUT.into())
    }

    fn format(&self, shell: &Shell<'_>) -> anyhow::Result<Format> {
        let usage = |text: &str| Err(Usage(text.to_owned()).into());
        let extension = self.out.as_deref().and_then(Path::extension).map(|text| text.to_string_lossy().to_lowercase());
        let by_name = extension.and_then(|text| text.parse().ok());
        let json = shell.output.json.then_some(Format::Json);
        if let (Some(_), Some(format)) = (json, self.format)
            && format != Format::Json
        {
            return usage(&format!("--json and --format {format} do not go together; leave one out"));
        }
        let terminal = self.out.is_none() && io::stdout().is_terminal();
        let usual = if terminal { Format::Table } else { Format::Csv };
        let format = self.format.or(json).or(by_name).unwrap_or(usual);
        match format {
            Format::Parquet if terminal => usage("Parquet is no text for a terminal: give -o FILE"),
            Format::Parquet | Format::Json if self.watch.is_some() => {
                usage(&format!("{format} is whole at its end only, and --watch has none: use csv or ndjson"))
            }
            _ => Ok(format),
        }
    }

    fn inputs(&self, shell: &Shell<'_>) -> anyhow::Result<Inputs> {
        let usage = |text: &str| Err(Usage(text.to_owned()).into());
        let is_stdin = |path: &Path| path == Path::new("-");
        let from_stdin = self.inputs.iter().filter(|path| is_stdin(path)).count();
        let list_from_stdin = self.files_from.as_deref().is_some_and(is_stdin);
        if from_stdin + usize::from(list_from_stdin) > 1 {
            return usage("stdin can be read once: - stands there more than once");
        }
        if self.inputs.is_empty() && self.files_from.is_none() && self.watch.is_none() {
            return usage("no images named: give files, folders, patterns or addresses, - for stdin, --files-from or --watch");
        }
        if let Some(folder) = self.watch.as_ref().filter(|folder| !folder.is_dir()) {
            return usage(&format!("--watch {}: no such folder; make it first, or name another", folder.display()));
        }
        let listed = self.files_from.as_deref().map(listed).transpose()?.unwrap_or_default();
        let options = SourceOptions { image_column: self.image_column.clone(), ..SourceOptions::default() };
        let search = &shell.context.search;
        let mut inputs = Inputs::new(&options, Some(&search.cache));
        let several = self.inputs.len() + listed.len() + usize::from(self.watch.is_some()) > 1;
        for (path, is_stdin) in
            self.inputs.iter().map(|path| (path, is_stdin(path))).chain(listed.iter().map(|path| (path, false)))
        {
            let text = path.to_string_lossy();
            if is_stdin {
                inputs.push("-", stdin()?);
                continue;
            }
            let added = if search.offline && text.contains("://") && !text.starts_with("file://") {
                Err(DeployError::from(AssetError::Offline(text.into_owned())))
            } else {
                inputs.add(path).map_err(DeployError::from)
            };
            match added {
                Ok(()) => {}
                // One of several that cannot be used is an error of its own row.
                Err(error) if several => inputs.set_aside(path, error.to_string()),
                Err(error) => return Err(error.into()),
            }
        }
        let model = Path::new(&self.classifier.model);
        let mut read = self.inputs.iter().chain(&listed).map(PathBuf::as_path).chain([model]);
        if let Some(out) = &self.out
            && read.any(|read| same_folder(out, read))
        {
            return usage(&format!("-o {}: this file is read; name another", out.display()));
        }
        for warning in inputs.warnings() {
            (shell.context.observe)(Event::Warned(warning.to_owned()));
        }
        Ok(inputs)
    }

    fn rows<'c>(&self, format: Format, out: &mut Out, classifier: &'c Classifier) -> anyhow::Result<Box<dyn Rows + 'c>> {
        let classes = classifier.classes();
        let mut to = || out.writer().map_err(|source| DeployError::Write { path: self.shown(), source });
        let begun = |source| DeployError::Write { path: self.shown(), source };
        Ok(match format {
            Format::Table => Box::new(Table::new(to()?, classes)),
            Format::Csv => Box::new(Csv::new(to()?, classes, usize::from(self.top_k), !out.goes_on).map_err(begun)?),
            Format::Json => Box::new(Json::new(to()?, classes)),
            Format::Ndjson => Box::new(JsonLines::new(to()?, classes)),
            Format::Parquet => Box::new(Parquet::new(to()?, classes).map_err(begun)?),
        })
    }
}

/// The image on stdin.
fn stdin() -> anyhow::Result<Vec<u8>> {
    let mut input = io::stdin();
    if input.is_terminal() {
        return Err(Usage("- is an image on stdin, and stdin is a terminal: pipe an image into it".to_owned()).into());
    }
    let mut bytes = Vec::new();
    input.by_ref().take(MAX_STDIN + 1).read_to_end(&mut bytes)?;
    anyhow::ensure!(bytes.len() as u64 <= MAX_STDIN, "stdin: above the limit of 512 MiB for one image");
    Ok(bytes)
}

/// The paths in a file, or on stdin.
fn listed(list: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let read = if list == Path::new("-") { io::read_to_string(io::stdin()) } else { fs::read_to_string(list) };
    let text = read.map_err(|error| anyhow::anyhow!("--files-from {}: {error}", list.display()))?;
    let end = if text.contains('\0') { '\0' } else { '\n' };
    let lines = text.split(end).map(|line| if end == '\n' { line.strip_suffix('\r').unwrap_or(line) } else { line });
    Ok(lines.filter(|line| !line.is_empty()).map(PathBuf::from).collect())
}

/// Where the result is written.
struct Out {
    place: Place,
    /// The file has rows already.
    goes_on: bool,
}

enum Place {
    Stdout,
    /// A file that is there whole or not at all.
    Whole(Draft),
    /// One that grows as long as somebody watches.
    Growing(File),
}

impl Out {
    fn open(args: &PredictArgs) -> anyhow::Result<Self> {
        let Some(path) = &args.out else { return Ok(Self { place: Place::Stdout, goes_on: false }) };
        let cannot = |source| DeployError::Write { path: path.clone(), source };
        if path.is_dir() {
            return Err(cannot(io::Error::other("a folder")).into());
        }
        if !args.force && !is_replaceable(path).map_err(cannot)? {
            let text = "this file is no earlier result of predict, and would be replaced; name another, or give --force";
            return Err(Usage(format!("-o {}: {text}", path.display())).into());
        }
        if args.watch.is_none() {
            return Ok(Self { place: Place::Whole(Draft::create(path).map_err(cannot)?), goes_on: false });
        }
        let file = File::options().append(true).create(true).open(path).map_err(cannot)?;
        let goes_on = file.metadata().map_err(cannot)?.len() > 0;
        Ok(Self { place: Place::Growing(file), goes_on })
    }

    fn writer(&mut self) -> io::Result<Box<dyn Write + Send>> {
        Ok(match &mut self.place {
            Place::Stdout => Box::new(io::BufWriter::new(io::stdout())),
            Place::Whole(draft) => Box::new(io::BufWriter::new(draft.file().try_clone()?)),
            Place::Growing(file) => Box::new(io::BufWriter::new(file.try_clone()?)),
        })
    }

    fn keep(self) -> io::Result<()> {
        match self.place {
            Place::Whole(draft) => draft.keep(),
            Place::Stdout | Place::Growing(_) => Ok(()),
        }
    }
}

/// A line an image, for people: class, probability, file, and the other classes that were asked for.
struct Table<W: Write> {
    to: W,
    /// As a terminal shows them.
    classes: Vec<String>,
    /// Of the first column.
    width: usize,
    header: bool,
}

impl<W: Write> Table<W> {
    fn new(to: W, classes: &[String]) -> Self {
        const WIDEST: usize = 32;
        let classes: Vec<String> = classes.iter().map(|name| say::printable(name)).collect();
        let width = classes.iter().map(|name| name.chars().count()).max().unwrap_or(0).clamp("unsure".len(), WIDEST);
        Self { to, classes, width, header: true }
    }

    fn class(&self, index: usize) -> &str {
        self.classes.get(index).map_or("", String::as_str)
    }
}

impl<W: Write> Rows for Table<W> {
    fn add(&mut self, prediction: &Prediction) -> io::Result<()> {
        let width = self.width;
        if std::mem::take(&mut self.header) {
            writeln!(self.to, "{:width$}  {:>7}  file", "class", "prob.")?;
        }
        let file = say::printable(&prediction.id);
        match &prediction.answer {
            Ok(Answer { top, sure }) => {
                let percent = |probability: f32| format!("{:.1} %", probability * 100.0);
                let Some(best) = top.first() else { return Ok(()) };
                let class = if *sure { self.class(best.index) } else { "unsure" };
                let listed = if *sure { &top[1..] } else { &top[..] };
                let named = |class: &Ranked| format!("{} {}", self.class(class.index), percent(class.probability));
                let others = listed.iter().map(named).collect::<Vec<_>>().join(", ");
                let others = if others.is_empty() { others } else { format!("  ({others})") };
                let line = format!("{class:width$}  {:>7}  {file}{others}", percent(best.probability));
                writeln!(self.to, "{line}")
            }
            Err(reason) => writeln!(self.to, "{:width$}  {:>7}  {file}: {}", "error", "-", say::printable(reason)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }

    fn finish(&mut self, _: Summary<'_>) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_a_line_an_image() {
        let ranked = |index, probability| Ranked { index, probability };
        let classes = ["cat\n\u{1b}[2J", "dog"].map(str::to_owned);
        let mut text = Vec::new();
        let mut table = Table::new(&mut text, &classes);
        for (id, answer) in [
            ("a.png", Ok(Answer { top: vec![ranked(1, 0.9), ranked(0, 0.1)], sure: true })),
            ("b.png", Ok(Answer { top: vec![ranked(0, 0.6), ranked(1, 0.4)], sure: false })),
            ("c.png", Err("truncated PNG".to_owned())),
        ] {
            table.add(&Prediction { id: id.to_owned(), answer }).unwrap();
        }
        let text = String::from_utf8(text).unwrap();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["class", "prob.", "file"]);
        assert_eq!(lines[1].join(" "), "dog 90.0 % a.png (cat\\n\\u{1b}[2J 10.0 %)");
        assert_eq!(lines[2].join(" "), "unsure 60.0 % b.png (cat\\n\\u{1b}[2J 60.0 %, dog 40.0 %)");
        assert_eq!(lines[3].join(" "), "error - c.png: truncated PNG");
    }

    #[test]
    fn lists_are_lines_or_end_with_zero_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let list = folder.path().join("list");
        let paths = |text: &str| {
            fs::write(&list, text).unwrap();
            listed(&list).unwrap().iter().map(|path| path.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(paths("a.png\r\nb c.png\n\n"), ["a.png", "b c.png"]);
        assert_eq!(paths("a\nb.png\0c.png\0"), ["a\nb.png", "c.png"]);
        assert!(listed(&folder.path().join("gone")).unwrap_err().to_string().contains("--files-from"));
    }
}
