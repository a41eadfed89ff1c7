//! Numbers as a reader wants them, wherever they are shown.

/// A whole number in groups of three digits: `60000` -> `60,000`.
pub(crate) fn count(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `310000000` -> `310 MB`.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn bytes(number: u64) -> String {
    match number {
        0..1_000 => format!("{number} B"),
        1_000..1_000_000 => format!("{:.0} kB", number as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.0} MB", number as f64 / 1e6),
        _ => format!("{:.1} GB", number as f64 / 1e9),
    }
}
