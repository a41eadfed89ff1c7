//! Which candidate is taken, and why.

use std::cmp::Ordering;

use crate::run::Trial;

/// The most accurate first; of equals the one with the lowest loss.
pub(super) fn rank(one: &Trial, other: &Trial) -> Ordering {
    let key = |trial: &Trial| (-trial.accuracy.unwrap_or(-1.0), trial.loss.unwrap_or(f64::INFINITY));
    let (one, other) = (key(one), key(other));
    one.0.total_cmp(&other.0).then(one.1.total_cmp(&other.1))
}

/// Why the first one was taken.
pub(super) fn reason(trials: &[Trial], folds: Option<usize>) -> String {
    let best = &trials[0];
    let (accuracy, [low, high]) = (best.accuracy.unwrap_or(0.0), best.accuracy_interval.unwrap_or_default());
    let near = trials[1..].iter().filter(|trial| trial.accuracy.is_some_and(|accuracy| accuracy >= low)).count();
    let rows = folds.map_or_else(|| "hold-out".to_owned(), |folds| format!("{folds}-fold"));
    let others = match near {
        0 => "no other is within that interval".to_owned(),
        _ => format!("{near} of {} others are within that interval", trials.len() - 1),
    };
    format!("{}: highest {rows} accuracy, {accuracy:.4} (95 %: {low:.3} to {high:.3}); {others}", best.shown())
}

/// A warning where the best value of a key is the smallest or largest that was tried.
pub(super) fn at_the_edge(trials: &[Trial]) -> Option<String> {
    let strengths = ["l2", "learning_rate", "weight_decay", "label_smoothing", "dropout"];
    for (key, value) in trials[0].settings.iter().filter(|(key, _)| strengths.contains(&key.as_str())) {
        let value = value.as_f64()?;
        let mut values: Vec<f64> = trials.iter().filter_map(|trial| trial.settings.get(key)?.as_f64()).collect();
        values.sort_by(f64::total_cmp);
        values.dedup();
        let (Some(&least), Some(&most)) = (values.first(), values.last()) else { continue };
        let edge = if value >= most {
            "largest"
        } else if value <= least && value > 0.0 {
            "smallest"
        } else {
            continue;
        };
        if values.len() > 2 {
            return Some(format!("the best {key}, {value}, is the {edge} that was tried: look beyond it with --grid {key}=…"));
        }
    }
    None
}
