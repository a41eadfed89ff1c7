//! Files of a form, `multipart/form-data` (RFC 7578), whose body is in memory.

use bytes::Bytes;

/// A part of a form that is a file.
#[derive(Debug, PartialEq)]
pub(super) struct File {
    /// The name that the client gives it.
    pub(super) name: String,
    pub(super) content: Bytes,
}

/// The boundary that a `Content-Type` names; none where it is of no form.
pub(super) fn boundary(content_type: &str) -> Option<String> {
    let (kind, parameters) = content_type.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    parameter(parameters, "boundary").filter(|boundary| !boundary.is_empty() && boundary.len() <= 70)
}

/// The value of a parameter in `a=b; c="d"`.
fn parameter(text: &str, wanted: &str) -> Option<String> {
    let mut rest = text;
    while !rest.trim().is_empty() {
        let (name, after) = rest.split_once('=')?;
        let after = after.trim_start();
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => {
                let mut value = String::new();
                let mut chars = quoted.char_indices().peekable();
                let end = loop {
                    match chars.next()? {
                        (at, '"') => break at + 1,
                        // Clients quote the quote alone, if anything: a path of Windows keeps its backslashes.
                        (_, '\\') if chars.peek().is_some_and(|(_, next)| *next == '"') => value.push(chars.next()?.1),
                        (_, other) => value.push(other),
                    }
                };
                (value, &quoted[end..])
            }
            None => {
                let end = after.find(';').unwrap_or(after.len());
                (after[..end].trim().to_owned(), &after[end..])
            }
        };
        if name.trim().trim_start_matches(';').trim().eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
        rest = next.trim_start().trim_start_matches(';');
    }
    None
}

/// The files of a form: parts that have a file name or say that they are images.
///
/// # Errors
/// When the body is not what the boundary promises.
pub(super) fn files(body: &Bytes, boundary: &str) -> Result<Vec<File>, String> {
    let mark = format!("\r\n--{boundary}");
    let first = &mark[2..];
    if !body.starts_with(first.as_bytes()) {
        return Err("the form does not begin with its boundary".to_owned());
    }
    let mut files = Vec::new();
    let mut at = first.len();
    loop {
        if body[at..].starts_with(b"--") {
            return Ok(files);
        }
        let cut = || "the form is cut short".to_owned();
        if !body[at..].starts_with(b"\r\n") {
            return Err(cut());
        }
        let head = at + 2;
        // A part without a head begins with the empty line.
        let (head_end, content) = match find(&body[at..], b"\r\n\r\n") {
            Some(offset) => ((at + offset).max(head), at + offset + 4),
            None => return Err(cut()),
        };
        let length = find(&body[content..], mark.as_bytes()).ok_or_else(cut)?;
        let text = String::from_utf8_lossy(&body[head..head_end]).into_owned();
        if let Some(name) = file_name(&text) {
            files.push(File { name, content: body.slice(content..content + length) });
        }
        at = content + length + mark.len();
    }
}

/// The name of a part that is a file, by its head.
fn file_name(head: &str) -> Option<String> {
    let field = |wanted: &str| {
        let lines = head.split("\r\n").filter_map(|line| line.split_once(':'));
        lines.filter(|(name, _)| name.trim().eq_ignore_ascii_case(wanted)).map(|(_, value)| value.trim()).next()
    };
    let disposition = field("content-disposition").and_then(|value| value.split_once(';')).map_or("", |(_, rest)| rest);
    let image = field("content-type").is_some_and(|value| value.to_ascii_lowercase().starts_with("image/"));
    parameter(disposition, "filename").or_else(|| image.then(|| parameter(disposition, "name").unwrap_or_default()))
}

fn find(body: &[u8], wanted: &[u8]) -> Option<usize> {
    let first = *wanted.first()?;
    let mut at = 0;
    while let Some(offset) = body[at..].iter().position(|&byte| byte == first) {
        at += offset;
        if body[at..].starts_with(wanted) {
            return Some(at);
        }
        at += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boundaries_are_read() {
        assert_eq!(boundary("multipart/form-data; boundary=abc").as_deref(), Some("abc"));
        assert_eq!(boundary("Multipart/Form-Data; charset=utf-8; boundary=\"a b;c\"").as_deref(), Some("a b;c"));
        for other in ["image/png", "multipart/form-data", "multipart/form-data; boundary=", "multipart/mixed; boundary=a"] {
            assert_eq!(boundary(other), None, "{other}");
        }
    }

    fn form(text: &str) -> Result<Vec<(String, String)>, String> {
        let found = files(&Bytes::from(text.replace('\n', "\r\n")), "b")?;
        Ok(found.into_iter().map(|file| (file.name, String::from_utf8(file.content.to_vec()).unwrap())).collect())
    }

    #[test]
    fn files_are_found_among_fields() {
        let text = "--b\nContent-Disposition: form-data; name=\"note\"\n\nhello\n--b\n\
                    Content-Disposition: form-data; name=\"file\"; filename=\"a; b.png\"\nContent-Type: image/png\n\nX--bY\n\n\n--b\n\
                    content-type: IMAGE/jpeg\ncontent-disposition: form-data; name=\"shot\"\n\nZ\n--b\n\nbare\n--b--\nend";
        let pair = |name: &str, content: &str| (name.to_owned(), content.to_owned());
        assert_eq!(form(text).unwrap(), [pair("a; b.png", "X--bY\r\n\r\n"), pair("shot", "Z")]);
        assert_eq!(form("--b--").unwrap(), []);
    }

    #[test]
    fn what_is_cut_short_is_refused_wherever_it_is_cut() {
        let text = "--b\nContent-Disposition: form-data; name=\"file\"; filename=\"a.png\"\n\nXYZ\n--b--";
        assert_eq!(form(text).unwrap().len(), 1);
        for end in 0..text.len() {
            assert!(form(&text[..end]).is_err(), "{end}");
        }
    }
}
