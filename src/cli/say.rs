//! Words and numbers on the terminal.

use std::io::{IsTerminal, Write as _};
use std::path::Path;

use anstream::{AutoStream, ColorChoice};

use serde::Serialize;

pub(crate) use crate::numbers::{bytes, count};

/// How results are to be printed.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// One JSON object on stdout, nothing else.
    pub json: bool,
    /// No lines that are not results.
    pub quiet: bool,
}

impl Output {
    /// Prints a result: as JSON where that is asked for, else as the text that `text` makes.
    pub fn result(self, value: &impl Serialize, text: impl FnOnce() -> String) -> anyhow::Result<()> {
        let shown = if self.json { serde_json::to_string_pretty(value)? } else { text() };
        line(&shown)
    }
}

/// Writes a line to stdout. A reader that has gone (`| head`) is no error.
pub fn line(text: &str) -> anyhow::Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

/// An error as the one object on stdout.
pub fn failure(text: &str, status: u8) -> String {
    serde_json::json!({ "error": text, "status": status }).to_string()
}

/// An error with its causes, each once.
pub fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.contains(&cause) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause);
        }
    }
    text
}

/// Whether stderr is to have colours, as clap decides it for its messages: on a terminal that has them; `NO_COLOR` forbids them,
/// `CLICOLOR_FORCE` asks for them anywhere (<https://no-color.org>, <https://bixense.com/clicolors>).
pub fn colour_on_stderr() -> bool {
    AutoStream::choice(&std::io::stderr()) != ColorChoice::Never
}

/// A path as it is shown on a stream: one that opens the file where that is a terminal with hyperlinks (OSC 8).
pub fn link(path: &Path, on: &impl IsTerminal) -> String {
    let shown = path.display().to_string();
    let has_links = on.is_terminal() && supports_hyperlinks::supports_hyperlinks();
    let address = std::path::absolute(path).ok().filter(|_| has_links).and_then(|path| url::Url::from_file_path(path).ok());
    match address {
        Some(address) => format!("\x1b]8;;{address}\x1b\\{shown}\x1b]8;;\x1b\\"),
        None => shown,
    }
}

/// A text without characters that move a terminal's cursor.
pub fn printable(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}

/// What a user calls a split: `validation` is the hold-out.
pub fn split(name: &str) -> &str {
    if name == "validation" { "hold-out" } else { name }
}

/// `0.0456` -> `0.05 s`, `75.2` -> `1 min 15 s`.
pub fn seconds(number: f64) -> String {
    if number >= 60.0 {
        format!("{:.0} min {:.0} s", (number / 60.0).floor(), number % 60.0)
    } else if number >= 10.0 {
        format!("{number:.0} s")
    } else if number >= 1.0 {
        format!("{number:.1} s")
    } else {
        format!("{number:.2} s")
    }
}

/// A table without borders: the first column left, the others as they come.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(header.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!([0, 999, 1000, 60000, 1234567].map(count), ["0", "999", "1,000", "60,000", "1,234,567"]);
        assert_eq!([5, 1500, 310_000_000, 5_120_000_000].map(bytes), ["5 B", "2 kB", "310 MB", "5.1 GB"]);
        assert_eq!([0.046, 1.26, 36.4, 75.2].map(seconds), ["0.05 s", "1.3 s", "36 s", "1 min 15 s"]);
    }

    #[test]
    fn a_cause_is_said_once() {
        let error = anyhow::anyhow!("b.png: empty").context("b.png: empty").context("extract");
        assert_eq!(chain(&error), "extract: b.png: empty");
    }
}
