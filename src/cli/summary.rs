//! The facts of a report in a few lines, in several formats.

use super::say;
use crate::markdown;
use crate::report::{Comparison, Facts};
use crate::run::EpochRecord;

/// Classes that are shown, the weakest first.
const CLASSES: usize = 10;

/// Steps of a sparkline at most.
const STEPS: usize = 40;

const SPLITS: [&str; 8] = ["split", "rows", "accuracy", "low", "high", "loss", "macro_f1", "ece"];
const RUNS: [&str; 8] = ["run", "solver", "split", "accuracy", "low", "high", "loss", "ece"];

/// A table of the splits, curves, the weakest classes, what stands out.
pub fn text(facts: &Facts) -> String {
    let splits = facts.splits.iter().filter_map(|split| {
        let score = split.score.as_ref()?;
        let [low, high] = score.accuracy_interval;
        Some(vec![
            say::split(&split.split).to_owned(),
            say::count(score.rows),
            format!("{:.4}", score.accuracy),
            format!("{low:.3} to {high:.3}"),
            format!("{:.4}", score.loss),
            format!("{:.4}", score.averages.macro_f1),
            format!("{:.3}", score.calibration.ece),
        ])
    });
    let mut parts = vec![say::table(&["split", "rows", "accuracy", "95 %", "loss", "macro F1", "ECE"], splits)];
    if facts.history.len() > 1 {
        parts.push(curves(&facts.history));
    }
    if let Some(examined) = &facts.examined {
        let title = format!("weakest on {}", say::split(&examined.split));
        parts.push(say::table(&[&title, "rows", "precision", "recall", "F1"], classes(facts, CLASSES)));
    }
    let told: Vec<String> = facts.standouts.iter().map(|standout| format!("  {}", plain(&standout.text))).collect();
    if !told.is_empty() {
        parts.push(told.join("\n"));
    }
    parts.join("\n\n")
}

/// The same as Markdown.
pub fn markdown(facts: &Facts) -> String {
    let title = format!("# {} · {} · {} px", facts.store.data, facts.store.backbone.name, facts.store.backbone.input_size);
    let mut parts = vec![markdown::text(&title)];
    parts.extend(facts.standouts.iter().map(|standout| markdown::text(&plain(&standout.text))));
    parts.push(markdown_table(&SPLITS, splits(facts)));
    if facts.history.len() > 1 {
        parts.push(format!("```\n{}\n```", curves(&facts.history)));
    }
    if let Some(examined) = &facts.examined {
        let header = [&format!("weakest on {}", say::split(&examined.split)), "rows", "precision", "recall", "F1"];
        parts.push(markdown_table(&header, classes(facts, CLASSES)));
    }
    parts.join("\n\n")
}

/// A line a split.
pub fn csv(facts: &Facts) -> String {
    csv_table(&SPLITS, splits(facts))
}

/// A line a run, and the verdicts, as Markdown.
pub fn compared_markdown(found: &Comparison) -> String {
    let verdicts = found.pairs.iter().map(|pair| format!("- {}", markdown::text(&pair.verdict))).collect::<Vec<_>>().join("\n");
    [markdown_table(&RUNS, runs(found)), verdicts].join("\n\n")
}

/// A line a run.
pub fn compared_csv(found: &Comparison) -> String {
    csv_table(&RUNS, runs(found))
}

fn splits(facts: &Facts) -> Vec<Vec<String>> {
    let line = |split: &crate::report::SplitFacts| {
        let score = split.score.as_ref()?;
        let [low, high] = score.accuracy_interval;
        let figures = [score.accuracy, low, high, score.loss, score.averages.macro_f1, score.calibration.ece];
        Some([split.split.clone(), score.rows.to_string()].into_iter().chain(figures.map(digits)).collect())
    };
    facts.splits.iter().filter_map(line).collect()
}

fn runs(found: &Comparison) -> Vec<Vec<String>> {
    let figure = |value: Option<f64>| value.map(digits).unwrap_or_default();
    let line = |run: &crate::report::ComparedRun| {
        let interval = run.accuracy_interval;
        vec![
            run.run.display().to_string(),
            run.solver.clone(),
            run.split.clone().unwrap_or_default(),
            figure(run.accuracy),
            figure(interval.map(|interval| interval[0])),
            figure(interval.map(|interval| interval[1])),
            figure(run.loss),
            figure(run.ece),
        ]
    };
    found.runs.iter().map(line).collect()
}

/// The weakest classes that have rows.
fn classes(facts: &Facts, shown: usize) -> Vec<Vec<String>> {
    let all = facts.examined.iter().flat_map(|examined| &examined.classes).map(|class| &class.score);
    let mut classes: Vec<_> = all.filter(|class| class.rows > 0).collect();
    classes.sort_by(|a, b| a.f1.unwrap_or(0.0).total_cmp(&b.f1.unwrap_or(0.0)));
    let share = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"));
    classes
        .into_iter()
        .take(shown)
        .map(|class| {
            vec![class.class.clone(), say::count(class.rows), share(class.precision), share(class.recall), share(class.f1)]
        })
        .collect()
}

/// Loss and accuracy over the epochs, a line each.
fn curves(history: &[EpochRecord]) -> String {
    type Of = fn(&EpochRecord) -> Option<f64>;
    let named: [(&str, Of); 4] = [
        ("loss", |epoch| Some(epoch.loss)),
        ("hold-out loss", |epoch| epoch.val_loss),
        ("accuracy", |epoch| Some(epoch.accuracy)),
        ("hold-out accuracy", |epoch| epoch.val_accuracy),
    ];
    let line = |(name, of): (&str, Of)| {
        let values: Vec<f64> = history.iter().filter_map(of).filter(|value| value.is_finite()).collect();
        let (first, last) = (values.first()?, values.last()?);
        Some(format!(" {name:<17} {}  {first:.4} → {last:.4}", sparkline(&values)))
    };
    named.into_iter().filter_map(line).collect::<Vec<_>>().join("\n")
}

/// Values as bars of eight heights; of many, as many as fit.
fn sparkline(values: &[f64]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let step = values.len().div_ceil(STEPS).max(1);
    let (low, high) =
        values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &value| (low.min(value), high.max(value)));
    let bar = |value: f64| {
        let share = if high > low { (value - low) / (high - low) } else { 0.5 };
        BARS[((share * 7.0).round() as usize).min(7)]
    };
    let mut shown: Vec<char> = values.iter().rev().step_by(step).map(|&value| bar(value)).collect();
    shown.reverse();
    shown.into_iter().collect()
}

/// Without the marks that keep the direction of names to themselves, which terminals show as boxes.
fn plain(text: &str) -> String {
    text.replace(['\u{2068}', '\u{2069}'], "").replace('\u{a0}', " ")
}

fn digits(value: f64) -> String {
    format!("{}", (value * 1e6).round() / 1e6)
}

fn markdown_table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let line = |cells: Vec<String>| format!("| {} |", cells.join(" | "));
    let heads = line(header.iter().map(|head| markdown::text(head)).collect());
    let rule = line(header.iter().enumerate().map(|(column, _)| if column == 0 { "---" } else { "---:" }.to_owned()).collect());
    let rows = rows.into_iter().map(|row| line(row.iter().map(|cell| markdown::text(cell)).collect()));
    [heads, rule].into_iter().chain(rows).collect::<Vec<_>>().join("\n")
}

fn csv_table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut writer = csv::Writer::from_writer(Vec::new());
    // Memory takes whatever is written.
    let _ = writer.write_record(header);
    for row in rows {
        let _ = writer.write_record(row);
    }
    let bytes = writer.into_inner().unwrap_or_default();
    String::from_utf8_lossy(&bytes).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_are_bars_from_the_least_to_the_greatest() {
        assert_eq!(sparkline(&[0.0, 1.0, 0.5]), "▁█▅");
        assert_eq!(sparkline(&[2.0, 2.0]), "▅▅");
        let many: Vec<f64> = (0..1000).map(f64::from).collect();
        let shown = sparkline(&many);
        assert!(shown.chars().count() <= STEPS && shown.ends_with('█'), "{shown}");
    }

    #[test]
    fn names_do_not_break_tables() {
        let rows = vec![vec!["a|b".to_owned(), "<i>\n2".to_owned()]];
        assert_eq!(markdown_table(&["x", "y"], rows.clone()), "| x | y |\n| --- | ---: |\n| a\\|b | &lt;i&gt; 2 |");
        assert_eq!(csv_table(&["x", "y"], rows), "x,y\na|b,\"<i>\n2\"");
        assert_eq!(plain("\u{2068}cat\u{2069} 5\u{a0}%"), "cat 5 %");
    }
}
