//! The text of a pipeline file that explains itself.

use toml::Value;

use super::survey::{Broken, Survey};
use super::{Choice, SCHEMA_FILE};
use crate::numbers::count;

/// Characters of a line of comment at most.
const WIDTH: usize = 100;
/// What a line goes on below, behind a name and two spaces.
const UNDER: &str = "#               ";
/// Classes that are named with their numbers.
const CLASSES: usize = 8;

/// The file: what was found, then each setting below its reason.
pub(super) fn text(survey: &Survey, choices: &[Choice], command: &str, next: &str, with_schema: bool) -> String {
    let mut lines = Vec::new();
    if with_schema {
        lines.push(format!("#:schema ./{SCHEMA_FILE}"));
    }
    let made = format!(
        "Written by `{command}`, from what it found. Change what you like and run it again: only what is out of date is done."
    );
    lines.extend(wrapped("# ", &made));
    lines.extend(wrapped("#   ", next));
    lines.push("#".into());
    for (name, text) in summary(survey) {
        let (first, under) = if name.is_empty() { ("# ".into(), "# ") } else { (format!("#   {name:<10}  "), UNDER) };
        lines.extend(fill(&first, under, &text));
    }
    let mut section = "";
    for choice in choices {
        let (of, key) = choice.key.split_once('.').unwrap_or(("", choice.key));
        lines.push(String::new());
        if of != section {
            lines.push(format!("[{of}]"));
            section = of;
        }
        lines.extend(wrapped("# ", &choice.reason));
        let mark = if choice.set { "" } else { "# " };
        lines.push(format!("{mark}{key} = {}", choice.value));
    }
    lines.join("\n") + "\n"
}

/// What was found: a name and what there is to say under it; the first has no name.
pub(super) fn summary(survey: &Survey) -> Vec<(String, String)> {
    let contents = &survey.contents;
    let (images, classes) = (count(contents.images()), count(contents.classes.len()));
    let mut lines = vec![item("", &format!("{} · {} · {images} images in {classes} classes", contents.source, contents.kind))];
    for split in &contents.splits {
        let mut counted: Vec<(&String, usize)> = contents.classes.iter().zip(split.per_class.iter().copied()).collect();
        // The largest first; equal ones as they come.
        counted.sort_by_key(|(_, rows)| std::cmp::Reverse(*rows));
        let more = counted.len().saturating_sub(CLASSES);
        let named: Vec<String> = counted.iter().take(CLASSES).map(|(class, rows)| format!("{class} {}", count(*rows))).collect();
        let more = if more > 0 { format!(", {more} more") } else { String::new() };
        lines.push(item(&split.name, &format!("{} images: {}{more}", count(split.rows), named.join(", "))));
    }
    let sizes = &survey.sizes;
    let size = |[width, height]: [u32; 2]| format!("{width} x {height}");
    let of_all = if survey.looked_at < contents.images() {
        format!("; {} of the images were looked at", count(survey.looked_at))
    } else {
        String::new()
    };
    let sizes = if sizes.smallest == sizes.largest {
        format!("{} pixels each{of_all}", size(sizes.median))
    } else {
        format!("{} pixels at the median, from {} to {}{of_all}", size(sizes.median), size(sizes.smallest), size(sizes.largest))
    };
    lines.push(item("sizes", &sizes));
    if survey.broken > 0 {
        let told = |broken: &Broken| format!("{} ({})", broken.id, broken.error);
        let told: Vec<String> = survey.broken_examples.iter().map(told).collect();
        let more = survey.broken - told.len();
        let more = if more > 0 { format!(", {} more", count(more)) } else { String::new() };
        lines.push(item("unusable", &format!("{}, to be set aside: {}{more}", count(survey.broken), told.join(", "))));
    }
    if !survey.balance.few.is_empty() {
        let few = &survey.balance.few;
        let named: Vec<&str> = few.iter().take(CLASSES).map(String::as_str).collect();
        let more = few.len().saturating_sub(CLASSES);
        let more = if more > 0 { format!(", {more} more") } else { String::new() };
        lines.push(item(
            "few images",
            &format!("{}{more}: fewer than {} to train on", named.join(", "), super::super::audit::FEW),
        ));
    }
    lines.extend(contents.warnings.iter().map(|warning| item("warning", warning)));
    lines
}

fn item(name: &str, text: &str) -> (String, String) {
    (plain(name), plain(text))
}

/// Names of files and classes may hold anything; neither a comment nor a terminal may.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn wrapped(prefix: &str, text: &str) -> Vec<String> {
    fill(prefix, prefix, text)
}

fn fill(first: &str, others: &str, text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = first.to_owned();
    let mut is_empty = true;
    for word in plain(text).split_whitespace() {
        if !is_empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
            lines.push(std::mem::replace(&mut line, others.to_owned()));
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    lines.push(line.trim_end().to_owned());
    lines
}

/// The settings that are set, as a table of sections.
pub(super) fn table(choices: &[Choice]) -> toml::Table {
    let mut table = toml::Table::new();
    for choice in choices.iter().filter(|choice| choice.set) {
        if let Some((section, key)) = choice.key.split_once('.')
            && let Value::Table(section) = table.entry(section).or_insert_with(|| Value::Table(toml::Table::new()))
        {
            section.insert(key.to_owned(), choice.value.clone());
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_groups_and_lines_an_end() {
        assert_eq!([0, 12, 123, 1234, 123_456, 1_234_567].map(count), ["0", "12", "123", "1,234", "123,456", "1,234,567"]);
        let lines = fill("#   sizes       ", UNDER, &"word ".repeat(60));
        assert!(lines.len() > 2 && lines.iter().all(|line| line.chars().count() <= WIDTH), "{lines:?}");
        assert!(lines[0].starts_with("#   sizes       word") && lines[1].starts_with("#               word"), "{lines:?}");
        assert_eq!(wrapped("# ", "a b"), ["# a b"]);
    }
}
