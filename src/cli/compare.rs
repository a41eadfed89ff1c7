//! `tlpipe compare`.

use std::path::PathBuf;

use clap::Args;

use super::say;
use super::shell::Shell;
use crate::pipeline;
use crate::report::{ComparedRun, Comparison};

/// Arguments of `tlpipe compare`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  tlpipe compare runs/cifar10-96 runs/seed-1\n  \
    tlpipe compare runs/adam runs/linfa runs/longer --json")]
pub struct CompareArgs {
    /// Run folders, two or more; each is tested against the first.
    #[arg(required = true, num_args = 2.., value_name = "RUN")]
    runs: Vec<PathBuf>,
}

/// Puts runs beside each other.
pub fn main(args: &CompareArgs, shell: &Shell<'_>) -> anyhow::Result<()> {
    let found = pipeline::compare(&args.runs, &shell.context)?;
    shell.output.result(&found, || text(&found))
}

/// A line a run, then what the tests say.
pub fn text(found: &Comparison) -> String {
    let number = |value: Option<f64>, digits: usize| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"));
    let line = |run: &ComparedRun| {
        let interval = run.accuracy_interval.map(|[low, high]| format!("{low:.3} to {high:.3}"));
        let split = run.split.as_deref().map_or("-", say::split);
        vec![
            run.run.display().to_string(),
            run.solver.clone(),
            format!("{} · {}", run.features, run.store_key.chars().take(8).collect::<String>()),
            split.to_owned(),
            number(run.accuracy, 4),
            interval.unwrap_or_else(|| "-".into()),
            number(run.loss, 4),
            number(run.ece, 3),
            say::seconds(run.fit_seconds),
        ]
    };
    let header = ["run", "solver", "features", "split", "accuracy", "95 %", "loss", "ECE", "fit"];
    let mut lines = vec![say::table(&header, found.runs.iter().map(line))];
    for pair in &found.pairs {
        let test = &pair.test;
        let [low, high] = test.interval;
        lines.push(format!(
            "\n{}\n  {:+.4} (95 %: {low:+.4} to {high:+.4}) on {} {} images; right alone: {} the first, {} the second",
            pair.verdict,
            test.difference,
            say::count(test.rows),
            say::split(&pair.split),
            say::count(test.only_first),
            say::count(test.only_second)
        ));
    }
    lines.join("\n")
}
