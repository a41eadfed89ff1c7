//! Numbers and kinds as the templates write them.

use minijinja::Environment;
use minijinja::value::{Value, ValueKind};

use crate::numbers::count;

/// What stands for a value that does not exist.
const NONE: &str = "–";

/// Gives the templates their filters.
pub(super) fn add_to(environment: &mut Environment<'_>) {
    environment.add_filter("percent", percent);
    environment.add_filter("interval", interval);
    environment.add_filter("figure", figure);
    environment.add_filter("digit", digit);
    environment.add_filter("points", points);
    environment.add_filter("small", small);
    environment.add_filter("plain", plain);
    environment.add_filter("count", count);
    environment.add_filter("duration", duration);
    environment.add_filter("finding", finding);
    environment.add_filter("setting", setting);
    environment.add_filter("id", id);
    environment.add_filter("words", |name: String| name.replace('_', " "));
}

/// A share as a percentage with one digit: `77.4 %`.
fn percent(share: Option<f64>) -> String {
    match share {
        Some(share) if share.is_finite() => format!("{:.1}\u{a0}%", share * 100.0),
        _ => NONE.into(),
    }
}

/// A difference of shares in points: `+1.20`.
fn points(difference: f64) -> String {
    format!("{:+.2}", difference * 100.0)
}

/// Both ends of an interval of shares: `76.6 to 78.2 %`.
fn interval(ends: Vec<f64>) -> String {
    match ends[..] {
        [low, high] if low.is_finite() && high.is_finite() => {
            format!("{:.1}\u{a0}to\u{a0}{:.1}\u{a0}%", low * 100.0, high * 100.0)
        }
        _ => NONE.into(),
    }
}

/// A figure with three digits after the point.
fn figure(value: Option<f64>) -> String {
    match value {
        Some(value) if value.is_finite() => format!("{value:.3}"),
        _ => NONE.into(),
    }
}

/// A figure with one digit after the point.
fn digit(value: f64) -> String {
    format!("{value:.1}")
}

/// A strength or chance of any size: `0.01`, `3.16e-5`.
fn small(value: Option<f64>) -> String {
    match value {
        Some(value) if value != 0.0 && !(1e-3..1e5).contains(&value.abs()) => {
            let text = format!("{value:.2e}");
            let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            format!("{}e{exponent}", digits.trim_end_matches('0').trim_end_matches('.'))
        }
        Some(value) => format!("{}", (value * 1e4).round() / 1e4),
        None => NONE.into(),
    }
}

/// A figure to sort by; nothing where there is none.
fn plain(value: Option<f64>) -> String {
    value.filter(|value| value.is_finite()).map(|value| value.to_string()).unwrap_or_default()
}

/// Seconds for a reader: `0.05 s`, `36.2 s`, `12 min 05 s`, `2 h 10 min`.
fn duration(seconds: Option<f64>) -> String {
    match seconds {
        Some(seconds) if seconds.is_finite() && seconds >= 0.0 => {
            let whole = seconds.round() as u64;
            match seconds {
                _ if seconds < 10.0 => format!("{seconds:.2}\u{a0}s"),
                _ if seconds < 99.95 => format!("{seconds:.1}\u{a0}s"),
                _ if whole < 3600 => format!("{}\u{a0}min {:02}\u{a0}s", whole / 60, whole % 60),
                _ => format!("{}\u{a0}h {:02}\u{a0}min", whole / 3600, whole % 3600 / 60),
            }
        }
        _ => NONE.into(),
    }
}

/// A row id as markup that is broken before the row's number and behind a folder, rather than anywhere.
fn id(id: String) -> Value {
    let mut markup = String::with_capacity(id.len() + 16);
    for letter in id.chars() {
        match letter {
            '#' => markup.push_str("<wbr>#"),
            '/' => markup.push_str("/<wbr>"),
            '<' => markup.push_str("&lt;"),
            '>' => markup.push_str("&gt;"),
            '&' => markup.push_str("&amp;"),
            '"' => markup.push_str("&quot;"),
            other => markup.push(other),
        }
    }
    Value::from_safe_string(markup)
}

/// A setting as it is given on a command line.
fn setting(value: Value) -> String {
    match value.kind() {
        ValueKind::Bool => value.is_true().to_string(),
        _ => value.to_string(),
    }
}

/// A kind of finding of the audit, for a reader.
fn finding(kind: String) -> String {
    let text = match kind.as_str() {
        "duplicate" => "Exact duplicates",
        "near_duplicate" => "Near duplicates",
        "leak" => "Leaks between train and test",
        "label_conflict" => "Copies with different labels",
        "label_error" => "Labels that are probably wrong",
        "outlier" => "Outliers",
        "not_finite" => "Features that are no numbers",
        "small_image" => "Images far smaller than the input",
        other => {
            let mut words = other.replace('_', " ");
            if let Some(first) = words.get_mut(..1) {
                first.make_ascii_uppercase();
            }
            return words;
        }
    };
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_a_reader() {
        assert_eq!(percent(Some(0.7744)), "77.4\u{a0}%");
        assert_eq!(percent(Some(f64::NAN)), "–");
        assert_eq!(interval(vec![0.7656, 0.7821]), "76.6\u{a0}to\u{a0}78.2\u{a0}%");
        assert_eq!(figure(None), "–");
        assert_eq!([count(0), count(999), count(1000), count(1_234_567)], ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(duration(Some(0.046)), "0.05\u{a0}s");
        assert_eq!(duration(Some(725.2)), "12\u{a0}min 05\u{a0}s");
        assert_eq!(duration(Some(7800.0)), "2\u{a0}h 10\u{a0}min");
        assert_eq!([0.01, 0.0, 1e-4, 3.162e-5, 2e6].map(|value| small(Some(value))), ["0.01", "0", "1e-4", "3.16e-5", "2e6"]);
        assert_eq!(id("a/<b>&c#7".into()).to_string(), "a/<wbr>&lt;b&gt;&amp;c<wbr>#7");
        assert_eq!([Value::from(true), Value::from("sqrt"), Value::from(0.5)].map(setting), ["true", "sqrt", "0.5"]);
        assert_eq!((points(0.012), points(-0.5)), ("+1.20".into(), "-50.00".into()));
        assert_eq!(["leak", "odd_kind", "é"].map(|kind| finding(kind.into())), ["Leaks between train and test", "Odd kind", "é"]);
    }
}
