//! What stands out in a run, in sentences: each candidate is weighed by how far it lies from what would be expected, and the two that
//! weigh most are told.

use serde::Serialize;

use super::facts::{Examined, Facts};

/// Sentences that are told.
const TOLD: usize = 2;

/// What stands out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Standout {
    /// `leaks`, `label_errors`, `no_better`, `missing`, `gap`, `overtrained`, `confused`, `weakest` or `calibration`.
    pub kind: &'static str,
    /// A sentence. Class names stand between U+2068 and U+2069, which keep their direction to themselves.
    pub text: String,
    /// What it weighs; the larger, the more telling.
    pub weight: f64,
}

/// The sentences on a run, the most telling first.
pub(super) fn find(facts: &Facts) -> Vec<Standout> {
    let mut found: Vec<Standout> = match &facts.examined {
        Some(look) if facts.metrics.classes.len() > 1 => {
            let candidates = [
                no_better(look, facts),
                missing(look, facts),
                gap(facts),
                overtrained(facts),
                confused(look, facts),
                weakest(look),
                calibration(facts),
            ];
            candidates.into_iter().flatten().collect()
        }
        _ => Vec::new(),
    };
    found.extend(leaks(facts));
    found.extend(label_errors(facts));
    found.sort_by(|a, b| b.weight.total_cmp(&a.weight));
    found.truncate(TOLD);
    found
}

/// A name that may be written in any direction.
fn isolated(name: &str) -> String {
    format!("\u{2068}{name}\u{2069}")
}

fn percent(share: f64) -> String {
    format!("{:.1}\u{a0}%", share * 100.0)
}

fn named(split: &str) -> &'static str {
    match split {
        "test" => "test",
        "validation" => "held-out",
        _ => "training",
    }
}

/// Not better than always answering the most frequent class.
fn no_better(look: &Examined, facts: &Facts) -> Option<Standout> {
    let (_, score) = facts.headline()?;
    (score.accuracy_interval[0] <= look.majority).then(|| Standout {
        kind: "no_better",
        text: format!(
            "The head is no better than always answering the most frequent class, which is right for {} of the {} images.",
            percent(look.majority),
            named(&look.split)
        ),
        weight: 100.0,
    })
}

/// Classes that are never answered, or have no image to be scored on.
fn missing(look: &Examined, facts: &Facts) -> Option<Standout> {
    let classes = || look.classes.iter().map(|class| &class.score);
    let never: Vec<&str> =
        classes().filter(|class| class.rows > 0 && class.predicted == 0).map(|class| class.class.as_str()).collect();
    let absent = classes().filter(|class| class.rows == 0).count();
    let all = facts.metrics.classes.len();
    let (text, weight) = match (never.as_slice(), absent) {
        ([], 0) => return None,
        ([], absent) => {
            let text =
                format!("{absent} of {all} classes have no {} image, so that nothing is known of them.", named(&look.split));
            (text, 4.0 * absent as f64 / all as f64)
        }
        ([one], _) => (format!("{} is never answered, although it has images.", isolated(one)), 8.0),
        ([first, rest @ ..], _) => {
            let text = format!(
                "{} and {} of the {all} classes more are never answered, although they have images.",
                isolated(first),
                rest.len()
            );
            (text, 8.0)
        }
    };
    Some(Standout { kind: "missing", text, weight })
}

/// Better on what it was trained on than on what it has not seen.
fn gap(facts: &Facts) -> Option<Standout> {
    let (split, score) = facts.headline().filter(|(split, _)| split.split != "train")?;
    let train = facts.metrics.train.as_ref()?;
    let gap = train.accuracy - score.accuracy;
    let spread = (score.accuracy_interval[1] - score.accuracy_interval[0]).max(0.005);
    // As large as the interval is nothing; from there on each point counts.
    let weight = 30.0 * (gap - spread).max(0.0);
    (weight > 0.0).then(|| Standout {
        kind: "gap",
        text: format!(
            "It is right for {} of the images it was trained on, but for {} of the {} images: it has learned some of them by heart, and more \
             images or a stronger L2 should help.",
            percent(train.accuracy),
            percent(score.accuracy),
            named(&split.split)
        ),
        weight,
    })
}

/// A hold-out loss that has risen since it was least.
fn overtrained(facts: &Facts) -> Option<Standout> {
    let losses = facts.history.iter().filter_map(|epoch| Some((epoch.epoch, epoch.val_loss.filter(|loss| loss.is_finite())?)));
    let losses: Vec<(usize, f64)> = losses.collect();
    let (&(best, least), &(last, end)) = (losses.iter().min_by(|a, b| a.1.total_cmp(&b.1))?, losses.last()?);
    let kept = facts.metrics.best_epoch.is_some();
    let rise = (end - least) / least.max(1e-9);
    (!kept && best < last && rise > 0.05).then(|| Standout {
        kind: "overtrained",
        text: format!(
            "The hold-out loss was least after epoch {best} ({least:.3}) and has risen to {end:.3} since: fewer epochs, or early stopping \
             (--patience), would do."
        ),
        weight: 12.0 * rise,
    })
}

/// The two classes that are taken for each other most.
fn confused(look: &Examined, facts: &Facts) -> Option<Standout> {
    let pair = look.confused_pairs.first()?;
    let other = look.confused_pairs.iter().find(|other| (other.label, other.predicted) == (pair.predicted, pair.label));
    let both = pair.count + other.map_or(0, |other| other.count);
    let share = both as f64 / look.mistakes.max(1) as f64;
    let name = |class: usize| isolated(facts.metrics.classes.get(class).map_or("", String::as_str));
    let of =
        |class: usize, count: usize| count as f64 / look.classes.get(class).map_or(1, |class| class.score.rows).max(1) as f64;
    let (first, second) = (name(pair.label), name(pair.predicted));
    let text = match other {
        Some(other) => format!(
            "{first} and {second} are confused most: {} of the {} images of {first} are taken for {second} and {} the other way round, \
             together {} of all mistakes.",
            percent(of(pair.label, pair.count)),
            named(&look.split),
            percent(of(pair.predicted, other.count)),
            percent(share)
        ),
        None => format!(
            "{first} is taken for {second} most often: {} of its {} images, {} of all mistakes.",
            percent(of(pair.label, pair.count)),
            named(&look.split),
            percent(share)
        ),
    };
    // Were all pairs alike, each would have this share.
    let classes = look.classes.iter().filter(|class| class.score.rows > 0).count() as f64;
    let alike = 2.0 / (classes * (classes - 1.0)).max(1.0);
    let enough = both as f64 / (both as f64 + 5.0);
    Some(Standout { kind: "confused", text, weight: (share / alike).ln_1p() * share.sqrt() * 2.0 * enough })
}

/// The class with the least F1, against the mean of all.
fn weakest(look: &Examined) -> Option<Standout> {
    let mut classes: Vec<_> = look
        .classes
        .iter()
        .map(|class| &class.score)
        .filter(|class| class.rows > 0)
        .filter_map(|class| Some((class.f1?, class)))
        .collect();
    classes.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (&(least, weakest), &(most, strongest)) = (classes.first()?, classes.last()?);
    let mean = classes.iter().map(|class| class.0).sum::<f64>() / classes.len() as f64;
    let figure = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), percent);
    (most > least).then(|| Standout {
        kind: "weakest",
        text: format!(
            "{} is the weakest class: {} of its images are found and {} of the answers that name it are right; {} is the strongest, with {} and {}.",
            isolated(&weakest.class),
            figure(weakest.recall),
            figure(weakest.precision),
            isolated(&strongest.class),
            figure(strongest.recall),
            figure(strongest.precision)
        ),
        weight: 8.0 * (mean - least),
    })
}

/// Confidence that is too high or too low.
fn calibration(facts: &Facts) -> Option<Standout> {
    let (split, score) = facts.headline()?;
    let confidence = split.mean_confidence?;
    let (low, high) = (score.accuracy_interval[0], score.accuracy_interval[1]);
    let excess = confidence - score.accuracy;
    let (word, remedy) =
        if excess > 0.0 { ("surer", "trust its probabilities less") } else { ("less sure", "it knows more than it says") };
    let scaled = score.scaled.filter(|scaled| scaled.ece < score.calibration.ece / 2.0).and(facts.metrics.temperature);
    let remedy = match scaled {
        Some(temperature) => format!("dividing its logits by {temperature:.2} mends most of that"),
        None => remedy.to_owned(),
    };
    (confidence < low || confidence > high).then(|| Standout {
        kind: "calibration",
        text: format!(
            "It is {word} than it should be: its mean confidence is {} where {} of the answers are right; {remedy}.",
            percent(confidence),
            percent(score.accuracy)
        ),
        weight: 25.0 * excess.abs(),
    })
}

/// Images of the test split that are in train, too.
fn leaks(facts: &Facts) -> Option<Standout> {
    let leaks = facts.audit.as_ref()?.count("leak");
    let rows = facts.examined.as_ref().map_or(0, |look| look.rows);
    (leaks > 0 && rows > 0).then(|| Standout {
        kind: "leaks",
        text: format!(
            "The audit found {leaks} leaks, images that stand in two splits nearly or exactly alike: up to {} of the images it is judged by are no test at all.",
            percent((leaks as f64 / rows as f64).min(1.0))
        ),
        weight: 3.0 + 60.0 * leaks as f64 / rows as f64,
    })
}

/// Labels that are probably wrong.
fn label_errors(facts: &Facts) -> Option<Standout> {
    let found = facts.audit.as_ref()?.count("label_error");
    // Those of every split.
    let rows: usize = facts.store.splits.iter().map(|split| split.rows).sum();
    let share = found as f64 / rows.max(1) as f64;
    (share > 0.02).then(|| Standout {
        kind: "label_errors",
        text: format!(
            "The audit takes {found} labels for wrong, {} of all images: look at the strongest of them first.",
            percent(share)
        ),
        weight: 20.0 * share,
    })
}
