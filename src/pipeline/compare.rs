//! Runs beside each other: their scores, and whether they differ on the images that they share.

use std::path::{Path, PathBuf};

use polars::prelude::*;

use super::{Context, PipelineError};
use crate::evaluate::McNemar;
use crate::events::Event;
use crate::report::{ComparedRun, Comparison, Pair};
use crate::run::{Metrics, RunDir, RunError, SplitScore};

/// Compares runs with the first of them. Images that have another label in the other run are left out of a pair, with a warning.
///
/// # Errors
/// When a run is missing or damaged, or no run can be compared with the first: it shares no image with it, or has other labels for most.
pub fn compare(folders: &[PathBuf], context: &Context<'_>) -> Result<Comparison, PipelineError> {
    let runs = folders.iter().map(|path| Ok((path.as_path(), RunDir::new(path).metrics()?)));
    let runs: Vec<(&Path, Metrics)> = runs.collect::<Result<_, PipelineError>>()?;
    let (mut pairs, mut reasons) = (Vec::new(), Vec::new());
    if let Some((first, others)) = runs.split_first() {
        for second in others {
            match pair(first, second, context)? {
                Ok(pair) => pairs.push(pair),
                Err(reason) => reasons.push(reason),
            }
        }
    }
    if pairs.is_empty() && !reasons.is_empty() {
        return Err(PipelineError::NothingToCompare(reasons.join("; ")));
    }
    reasons.into_iter().for_each(|reason| (context.observe)(Event::Warned(reason)));
    Ok(Comparison { runs: runs.iter().map(|(path, metrics)| line(path, metrics)).collect(), pairs })
}

fn score<'a>(metrics: &'a Metrics, split: &str) -> Option<&'a SplitScore> {
    if split == "test" { metrics.test.as_ref() } else { metrics.validation.as_ref() }
}

fn line(path: &Path, metrics: &Metrics) -> ComparedRun {
    let split = ["test", "validation"].into_iter().find(|split| score(metrics, split).is_some());
    let score = split.and_then(|split| score(metrics, split));
    ComparedRun {
        run: path.to_owned(),
        solver: metrics.solver.clone(),
        features: metrics.features,
        store_key: metrics.store_key.clone(),
        split: split.map(str::to_owned),
        rows: score.map(|score| score.rows),
        accuracy: score.map(|score| score.accuracy),
        accuracy_interval: score.map(|score| score.accuracy_interval),
        loss: score.map(|score| score.loss),
        ece: score.map(|score| score.calibration.ece),
        fit_seconds: metrics.fit_seconds,
    }
}

/// A pair, or why there is none.
fn pair(
    (first, first_metrics): &(&Path, Metrics),
    (second, second_metrics): &(&Path, Metrics),
    context: &Context<'_>,
) -> Result<Result<Pair, String>, PipelineError> {
    let warn = |text: String| (context.observe)(Event::Warned(text));
    let (a, b) = (first.display(), second.display());
    let both = ["test", "validation"]
        .into_iter()
        .find_map(|split| Some((split, score(first_metrics, split)?.rows, score(second_metrics, split)?.rows)));
    let Some((split, first_rows, second_rows)) = both else {
        return Ok(Err(format!("{a} and {b} were not scored on the same split: they cannot be compared row by row")));
    };
    let joined = answers(first, split)?
        .lazy()
        .join(answers(second, split)?.lazy(), [col("id")], [col("id")], JoinArgs::new(JoinType::Inner))
        .sort(["id"], SortMultipleOptions::default());
    let joined = joined.collect().map_err(|error| damaged(second, &error))?;
    let column = |name: &str| -> PolarsResult<Vec<usize>> {
        Ok(joined
            .column(name)?
            .i32()?
            .iter()
            .map(|value| value.and_then(|value| usize::try_from(value).ok()).unwrap_or(usize::MAX))
            .collect())
    };
    let columns = || Ok([column("label")?, column("predicted")?, column("label_right")?, column("predicted_right")?]);
    let [labels, predicted, other_labels, other_predicted] = columns().map_err(|error| damaged(second, &error))?;
    let (mut shared, mut only_first, mut only_second) = (0, 0, 0);
    let mut relabelled = Vec::new();
    for row in 0..joined.height() {
        let (own, other) = (first_metrics.classes.get(labels[row]), second_metrics.classes.get(other_labels[row]));
        if own.is_none() || own != other {
            relabelled.push((row, own, other));
            continue;
        }
        shared += 1;
        match (labels[row] == predicted[row], other_labels[row] == other_predicted[row]) {
            (true, false) => only_first += 1,
            (false, true) => only_second += 1,
            _ => {}
        }
    }
    let name = if split == "test" { "test" } else { "hold-out" };
    if let Some(&(row, own, other)) = relabelled.first() {
        let id = joined.column("id").and_then(|ids| ids.str()).ok().and_then(|ids| ids.get(row)).unwrap_or_default();
        let [own, other] = [own, other].map(|class| class.map_or("of no class", String::as_str));
        let (count, example) = (relabelled.len(), format!("{id} is {own} in the one, {other} in the other"));
        if count > shared {
            let images = joined.height();
            return Ok(Err(format!(
                "{count} of the {images} {name} images that {a} and {b} share have another label ({example}): these are not the same labels"
            )));
        }
        warn(format!("{count} of the {name} images that {a} and {b} share have another label ({example}): left out"));
    }
    let Some(test) = McNemar::of(shared, only_first, only_second) else {
        return Ok(Err(format!("{a} and {b} share no image of their {name} splits ({first_rows} and {second_rows} images)")));
    };
    let common = joined.height();
    if common < first_rows || common < second_rows {
        warn(format!(
            "{a} and {b} share {common} images of their {name} splits ({first_rows} and {second_rows}): compared on those"
        ));
    }
    let real = test.p < 0.05;
    let verdict = if real {
        let (better, worse) = if test.difference > 0.0 { (b, a) } else { (a, b) };
        format!("{better} is better than {worse}: the difference is real (p = {})", chance(test.p))
    } else {
        format!("{a} and {b} do not differ as far as {shared} {name} images can tell (p = {})", chance(test.p))
    };
    let (first, second) = (first.to_path_buf(), second.to_path_buf());
    Ok(Ok(Pair { first, second, split: split.to_owned(), test, relabelled: relabelled.len(), real, verdict }))
}

fn chance(p: f64) -> String {
    if p < 1e-4 { format!("{p:.0e}") } else { format!("{p:.4}") }
}

/// `id`, `label` and `predicted` of the labelled rows of a split.
fn answers(run: &Path, split: &str) -> Result<DataFrame, RunError> {
    let path = RunDir::new(run).file("predictions.parquet");
    let args = ScanArgsParquet { glob: false, ..Default::default() };
    let frame = PlRefPath::try_from_path(&path).and_then(|path| LazyFrame::scan_parquet(path, args)).and_then(|frame| {
        frame
            .filter(col("split").eq(lit(split.to_owned())).and(col("label").is_not_null()))
            .select([col("id"), col("label").cast(DataType::Int32), col("predicted").cast(DataType::Int32)])
            .collect()
    });
    frame.map_err(|error| damaged(run, &error))
}

fn damaged(run: &Path, error: &PolarsError) -> RunError {
    RunError::Damaged { path: RunDir::new(run).file("predictions.parquet"), reason: error.to_string() }
}
