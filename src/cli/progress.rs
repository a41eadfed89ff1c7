//! Events become bars and lines on stderr.

use std::collections::HashMap;
use std::io::{IsTerminal as _, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing_subscriber::EnvFilter;

use super::say;
use crate::events::{Event, Unit};

/// Shows what the engines tell. Cheap to clone; all clones share one display.
#[derive(Clone)]
pub struct Progress {
    bars: MultiProgress,
    tasks: Arc<Mutex<HashMap<String, ProgressBar>>>,
    quiet: bool,
    form: Form,
}

/// How lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// For people.
    Text,
    /// An object of JSON each, without bars: `event` is `note`, `warning`, `error` or `log`, and `message` the text.
    Json,
}

impl Progress {
    /// Bars where stderr is a terminal; plain lines elsewhere; warnings alone where quiet.
    pub fn new(quiet: bool, verbose: u8, form: Form) -> Self {
        let terminal = std::io::stderr().is_terminal() && form == Form::Text;
        let target = if terminal && !quiet { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let progress = Self { bars: MultiProgress::with_draw_target(target), tasks: Arc::default(), quiet, form };
        progress.log(verbose);
        progress
    }

    fn log(&self, verbose: u8) {
        let default = match verbose {
            0 => "off",
            1 => "tlpipe=debug",
            _ => "trace",
        };
        let asked = std::env::var("TLPIPE_LOG").ok().filter(|asked| !asked.trim().is_empty());
        let filter = asked.map_or_else(
            || EnvFilter::new(default),
            |asked| {
                EnvFilter::try_new(&asked).unwrap_or_else(|error| {
                    self.warn(&format!(
                        "TLPIPE_LOG={asked}: {error}; give a level, as in debug, or tlpipe=debug,onnxruntime=info"
                    ));
                    EnvFilter::new(default)
                })
            },
        );
        let progress = self.clone();
        // Only tests start a second one, and there the first does.
        let _ = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_ansi(say::colour_on_stderr() && self.form == Form::Text)
            .with_writer(move || Above(progress.clone()))
            .without_time()
            .try_init();
    }

    /// Shows one event.
    pub fn show(&self, event: Event<'_>) {
        match event {
            Event::Started { task, total, unit } => self.start(task, total, unit),
            Event::Advanced { task, done } => {
                if let Some(bar) = self.tasks.lock().unwrap_or_else(PoisonError::into_inner).get(task) {
                    bar.set_position(done);
                }
            }
            Event::Finished { task } => self.finish(task),
            Event::Noted(text) => self.note(&text),
            Event::Warned(text) => self.warn(&text),
        }
    }

    fn start(&self, task: &str, total: Option<u64>, unit: Unit) {
        let template = match (unit, total) {
            (Unit::Images, Some(_)) => "  {prefix:<12} {human_pos}/{human_len} {bar:24.cyan/dim} {per_sec} · {eta} left",
            (Unit::Images, None) => "  {prefix:<12} {human_pos} {spinner} {per_sec}",
            (Unit::Bytes, Some(_)) => "  {prefix} {bytes}/{total_bytes} {bar:24.cyan/dim} {bytes_per_sec} · {eta} left",
            (Unit::Heads, _) => "  {prefix:<12} {human_pos}/{human_len} {bar:24.cyan/dim} {eta} left",
            (Unit::Bytes, None) => "  {prefix} {bytes} {spinner} {bytes_per_sec}",
        };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let per_second = |state: &indicatif::ProgressState, out: &mut dyn std::fmt::Write| {
            let _ = write!(out, "{:.0} img/s", state.per_sec());
        };
        let style = if unit == Unit::Images { style.with_key("per_sec", per_second) } else { style };
        let bar = self.bars.add(ProgressBar::new(total.unwrap_or(0)).with_style(style.progress_chars("━━─")));
        bar.set_prefix(task.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).insert(task.to_owned(), bar);
    }

    fn finish(&self, task: &str) {
        let bar = self.tasks.lock().unwrap_or_else(PoisonError::into_inner).remove(task);
        if let Some(bar) = bar {
            let (done, seconds) = (bar.position(), bar.elapsed().as_secs_f64());
            bar.finish_and_clear();
            #[allow(clippy::cast_precision_loss)]
            let rate = done as f64 / seconds.max(1e-9);
            // A rate over an instant says nothing.
            let rate = if seconds < 0.5 { String::new() } else { format!("   {rate:.0}/s") };
            let done = say::count(usize::try_from(done).unwrap_or(usize::MAX));
            self.note(&format!("  {task:<12} {done}{rate}   {}", say::seconds(seconds)));
        }
    }

    /// A line that is not a result.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            self.say("note", text);
        }
    }

    /// A line to look at, whatever is quiet.
    pub fn warn(&self, text: &str) {
        self.say("warning", text);
    }

    /// An error.
    pub fn fail(&self, text: &str) {
        self.say("error", text);
    }

    /// A line that is an object whoever reads it.
    pub fn object(&self, object: &serde_json::Value) {
        self.write(&object.to_string());
    }

    fn say(&self, event: &str, text: &str) {
        let colour = match event {
            "warning" => "33",
            "error" => "1;31",
            _ => "",
        };
        match self.form {
            Form::Json => self.object(&serde_json::json!({ "event": event, "message": text.trim() })),
            Form::Text if colour.is_empty() => self.write(text),
            Form::Text if say::colour_on_stderr() => self.write(&format!("\x1b[{colour}m{event}:\x1b[0m {text}")),
            Form::Text => self.write(&format!("{event}: {text}")),
        }
    }

    /// Takes the bars away.
    pub fn clear(&self) {
        // Nothing is left to draw on where this fails.
        let _ = self.bars.clear();
    }

    fn write(&self, text: &str) {
        self.bars.suspend(|| {
            let _ = writeln!(std::io::stderr(), "{text}");
        });
    }
}

/// Log lines go above the bars.
struct Above(Progress);

impl std::io::Write for Above {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self.0.form {
            // One call is one event.
            Form::Json => self.0.say("log", &String::from_utf8_lossy(bytes)),
            Form::Text => self.0.bars.suspend(|| std::io::stderr().write_all(bytes))?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}
