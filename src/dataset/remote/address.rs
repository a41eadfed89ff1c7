//! What a user writes: scheme, bucket or server, and a key that may be a pattern.

use glob::{MatchOptions, Pattern};

use super::super::DatasetError;

/// `*` stays within a folder, as in a pattern of local files.
pub(super) const MATCHING: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: false };

/// Which service answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    S3,
    Gcs,
    Azure,
    Http,
}

/// An address in its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) scheme: Scheme,
    /// `s3://bucket`, `https://server:8000`.
    pub(super) root: String,
    /// What stands behind it, without slashes at either end.
    pub(super) key: String,
    /// What a web server is asked besides (`?…`); no part of the file's name.
    pub(super) query: Option<String>,
    /// All of it.
    text: String,
}

impl Address {
    pub(super) fn parse(text: &str) -> Result<Self, DatasetError> {
        let wrong = |reason: &str| DatasetError::Unsupported { path: text.into(), reason: reason.to_owned() };
        let (scheme, rest) = text.split_once("://").unwrap_or((text, ""));
        let kind = match scheme {
            "s3" | "s3a" => Scheme::S3,
            "gs" => Scheme::Gcs,
            "az" | "azure" | "abfs" | "abfss" | "adl" => Scheme::Azure,
            "http" | "https" => Scheme::Http,
            _ => {
                return Err(wrong(
                    "an unknown kind of address; those that can be read are s3://, gs://, az://, http://, https:// and file://",
                ));
            }
        };
        let (rest, query) = if kind == Scheme::Http { without_query(rest) } else { (rest, None) };
        let (root, key) = rest.split_once('/').unwrap_or((rest, ""));
        if root.is_empty() {
            return Err(wrong("names no bucket or server; give it as in s3://bucket/folder"));
        }
        Ok(Self {
            scheme: kind,
            root: format!("{scheme}://{root}"),
            key: key.trim_matches('/').to_owned(),
            query: query.map(str::to_owned),
            text: text.to_owned(),
        })
    }

    /// Without a query.
    pub(super) fn shown(&self) -> String {
        format!("{}/{}", self.root, self.key)
    }

    /// The folder above the first wildcard, and the pattern; none where the key is none.
    pub(super) fn pattern(&self) -> Result<Option<(String, Pattern)>, DatasetError> {
        let is_wild = |part: &str| part.contains(['*', '?', '[']);
        if self.scheme == Scheme::Http || !is_wild(&self.key) {
            return Ok(None);
        }
        let folder = self.key.split('/').take_while(|part| !is_wild(part)).collect::<Vec<_>>().join("/");
        let pattern = Pattern::new(&self.key).map_err(|error| DatasetError::Unsupported {
            path: self.text.clone().into(),
            reason: format!("not a valid pattern: {error}"),
        })?;
        Ok(Some((folder, pattern)))
    }

    /// The error for an address behind which there is nothing.
    pub(super) fn nothing(&self) -> DatasetError {
        let (reason, remedy) = match self.scheme {
            Scheme::Http => (
                "no such file on this server",
                "give the address of one file (an image, .parquet or .tar): a web server does not list its folders",
            ),
            _ => ("nothing is there under this name", "check bucket and name; a pattern looks like s3://bucket/train-*.tar"),
        };
        DatasetError::Remote { address: self.text.clone(), reason: reason.to_owned(), remedy }
    }
}

/// What stands before a query, and the query. The fragment behind it is the browser's.
fn without_query(rest: &str) -> (&str, Option<&str>) {
    let rest = rest.split('#').next().unwrap_or(rest);
    rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_fall_into_their_parts() {
        let parts = |text: &str| {
            let address = Address::parse(text).unwrap();
            (address.scheme, address.root, address.key)
        };
        assert_eq!(parts("s3://bucket/a/b/"), (Scheme::S3, "s3://bucket".to_owned(), "a/b".to_owned()));
        assert_eq!(parts("gs://bucket"), (Scheme::Gcs, "gs://bucket".to_owned(), String::new()));
        assert_eq!(parts("http://host:81/x.tar"), (Scheme::Http, "http://host:81".to_owned(), "x.tar".to_owned()));
        let refused = |text: &str| Address::parse(text).unwrap_err().to_string();
        assert!(refused("ftp://host/x").contains("s3://, gs://, az://"));
        assert!(refused("s3:///x").contains("names no bucket"));
        let asked = Address::parse("https://host/a/x.png?size=2&key=a/b#top").unwrap();
        assert_eq!((asked.root.as_str(), asked.key.as_str()), ("https://host", "a/x.png"));
        assert_eq!((asked.query.as_deref(), asked.shown().as_str()), (Some("size=2&key=a/b"), "https://host/a/x.png"));
        assert_eq!(Address::parse("s3://b/x?.png").unwrap().query, None);
    }

    #[test]
    fn patterns_begin_at_the_first_wildcard() {
        let (folder, pattern) = Address::parse("s3://b/set/2024/train-*.tar").unwrap().pattern().unwrap().unwrap();
        assert_eq!(folder, "set/2024");
        assert!(
            pattern.matches_with("set/2024/train-1.tar", MATCHING) && !pattern.matches_with("set/2024/train-1/x.tar", MATCHING)
        );
        assert!(Address::parse("s3://b/set").unwrap().pattern().unwrap().is_none());
        assert!(Address::parse("s3://b/[").unwrap().pattern().unwrap_err().to_string().contains("pattern"));
    }
}
