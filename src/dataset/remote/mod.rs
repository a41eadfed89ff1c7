//! Object stores and the web: `s3://bucket/prefix`, `gs://`, `az://`, `http(s)://` and `file://`.
//!
//! Only this room knows `object_store` and `tokio`; to the others an [`Object`] is a file that takes longer. Credentials come from the
//! environment variables that each service's own tools read. A request that fails in a way that may pass is repeated for
//! `TLPIPE_RETRY_SECONDS` (45); after that the source has failed.

mod address;
mod ahead;
mod object;
mod store;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use url::Url;

pub(super) use ahead::ReadAhead;
pub use object::Object;

use super::files::{Found, SourceFile, is_hidden};
use super::place::Place;
use super::{DatasetError, counted};
use address::{Address, Scheme};
use store::Store;

/// A source that is an address, not a path.
pub(super) fn is_address(path: &Path) -> bool {
    path.to_str().is_some_and(|text| text.contains("://"))
}

/// An address without its query, which may hold a key: as ids have it.
pub(super) fn without_query(address: &Path) -> PathBuf {
    Address::parse(&address.to_string_lossy()).map_or_else(|_| address.to_owned(), |address| address.shown().into())
}

/// The path that a `file://` address means; none for any other.
///
/// # Errors
/// When it means no path of this machine.
pub(super) fn local_path(address: &Path) -> Result<Option<PathBuf>, DatasetError> {
    let Some(text) = address.to_str().filter(|text| text.starts_with("file://")) else { return Ok(None) };
    let path = Url::parse(text).ok().and_then(|url| url.to_file_path().ok());
    path.map(Some).ok_or_else(|| {
        let reason = "not a file of this machine; give file:///folder/file, with three slashes".to_owned();
        DatasetError::Unsupported { path: address.to_owned(), reason }
    })
}

/// Finds the objects of a source: one of this name, all below it, or those that match a pattern. Hidden ones are skipped.
///
/// # Errors
/// When the address is wrong, the store cannot be asked, or nothing is there.
pub(super) fn find(path: &Path, found: &mut Found) -> Result<(), DatasetError> {
    let text = path.to_string_lossy();
    let address = Address::parse(&text)?;
    let store = Arc::new(Store::connect(&address)?);
    let pattern = address.pattern()?;
    let (mut objects, prefix) = match &pattern {
        Some((folder, _)) => (store.list(folder)?, folder.as_str()),
        // A plain web server lists nothing.
        None if address.scheme == Scheme::Http => (store.head(&address.key)?.into_iter().collect(), parent(&address.key)),
        None => {
            let below = store.list(&address.key)?;
            if below.is_empty() && !address.key.is_empty() {
                (store.head(&address.key)?.into_iter().collect(), parent(&address.key))
            } else {
                (below, address.key.as_str())
            }
        }
    };
    if let Some((_, pattern)) = &pattern {
        objects.retain(|object| pattern.matches_with(object.key(), address::MATCHING));
    }
    let mut any = false;
    let mut hidden = BTreeSet::new();
    for object in objects {
        let relative = object.key().strip_prefix(prefix).unwrap_or(object.key()).trim_start_matches('/').to_owned();
        if let Some(part) = relative.split('/').find(|part| is_hidden(part)) {
            hidden.insert(part.to_owned());
            continue;
        }
        any = true;
        found.files.push(SourceFile { relative: PathBuf::from(relative), place: Place::Object(object) });
    }
    if !hidden.is_empty() {
        found.warnings.push(format!("{text}: {} skipped", counted(hidden.len(), "hidden name")));
    }
    if any { Ok(()) } else { Err(address.nothing()) }
}

fn parent(key: &str) -> &str {
    key.rsplit_once('/').map_or("", |(folder, _)| folder)
}

#[cfg(test)]
mod tests;
