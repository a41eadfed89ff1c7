//! One object: what is known of it, and its bytes.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use object_store::ObjectMeta;
use tokio::task::JoinHandle;

use super::super::DatasetError;
use super::store::Store;

/// Objects above this are fetched when they are wanted: they fill the line by themselves, and many of them the memory.
const SMALL: u64 = 1 << 20;

type Fetched = Result<Bytes, object_store::Error>;

/// A file in an object store, or on a web server.
#[derive(Clone)]
pub struct Object {
    store: Arc<Store>,
    meta: Arc<ObjectMeta>,
    /// The whole of it, on its way. Who takes it first waits for it.
    coming: Option<Arc<Mutex<Option<JoinHandle<Fetched>>>>>,
}

/// A part of an object, on its way.
#[derive(Debug)]
pub(super) struct Part {
    object: Object,
    task: JoinHandle<Fetched>,
}

impl Object {
    pub(super) fn new(store: Arc<Store>, meta: ObjectMeta) -> Self {
        Self { store, meta: Arc::new(meta), coming: None }
    }

    /// `s3://bucket/key`.
    pub fn address(&self) -> String {
        format!("{}/{}", self.store.root(), self.key())
    }

    pub(super) fn key(&self) -> &str {
        self.meta.location.as_ref()
    }

    pub(in super::super) fn bytes(&self) -> u64 {
        self.meta.size
    }

    /// What the store calls this content: another text, another content.
    pub(in super::super) fn tag(&self) -> &str {
        self.meta.e_tag.as_deref().unwrap_or_default()
    }

    /// Nanoseconds since 1970.
    pub(in super::super) fn modified(&self) -> u128 {
        self.meta.last_modified.timestamp_nanos_opt().and_then(|time| u128::try_from(time).ok()).unwrap_or(0)
    }

    /// The same object, whose content is fetched from now on if it is small.
    pub(in super::super) fn coming(&self) -> Self {
        let task = (self.bytes() <= SMALL).then(|| self.store.fetch(&self.meta, None));
        Self { coming: task.map(|task| Arc::new(Mutex::new(Some(task)))), ..self.clone() }
    }

    /// The whole content; or why there is none.
    ///
    /// # Errors
    /// When the store fails, not this object.
    pub(in super::super) fn content(&self) -> Result<Result<Bytes, String>, DatasetError> {
        let taken = self.coming.as_ref().and_then(|task| task.lock().unwrap_or_else(PoisonError::into_inner).take());
        match self.store.wait(taken.unwrap_or_else(|| self.store.fetch(&self.meta, None))) {
            Ok(bytes) => Ok(Ok(bytes)),
            Err(object_store::Error::NotFound { .. }) => Ok(Err(format!("{}: no longer there", self.address()))),
            Err(error) => Err(self.store.failed(self.address(), &error)),
        }
    }

    /// Begins to fetch a part.
    pub(super) fn part(&self, range: Range<u64>) -> Part {
        Part { task: self.store.fetch(&self.meta, Some(range)), object: self.clone() }
    }
}

impl Part {
    /// # Errors
    /// When the store fails.
    pub(super) fn wait(self) -> Result<Bytes, DatasetError> {
        let store = &self.object.store;
        store.wait(self.task).map_err(|error| store.failed(self.object.address(), &error))
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Object").field(&self.address()).finish()
    }
}
