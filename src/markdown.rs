//! Text that stands within Markdown as it is (CommonMark 0.31, and GitHub's tables).

/// Text on one line, of which nothing is taken for markup, neither Markdown's nor HTML's.
pub(crate) fn text(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\n' | '\r' => escaped.push(' '),
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '~' | '$' => escaped.extend(['\\', letter]),
            other => escaped.push(other),
        }
    }
    escaped
}

/// Text as a span of code, between more backticks than follow each other in it.
pub(crate) fn code(text: &str) -> String {
    let text = text.replace(['\n', '\r'], " ");
    let longest = text.split(|letter| letter != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest + 1);
    let pad = if text.starts_with('`') || text.ends_with('`') { " " } else { "" };
    format!("{fence}{pad}{text}{pad}{fence}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_markup() {
        assert_eq!(text("<img src=x onerror=y>|a_b*\n`c`"), "&lt;img src=x onerror=y&gt;\\|a\\_b\\* \\`c\\`");
        assert_eq!(text("[a](http://b) \\ & $x$ ~~y~~"), "\\[a\\](http://b) \\\\ &amp; \\$x\\$ \\~\\~y\\~\\~");
        assert_eq!(text("chat noir 犬 #1"), "chat noir 犬 #1");
        assert_eq!(["a", "a`b", "``c", ""].map(code), ["`a`", "``a`b``", "``` ``c ```", "``"]);
    }
}
