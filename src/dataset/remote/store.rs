//! One bucket or server: the client, its retries, and the threads that wait for it.

use std::env;
use std::error::Error as StdError;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::HttpError;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::path::Path as Key;
use object_store::{
    BackoffConfig, ClientConfigKey, Error, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt as _, RetryConfig,
};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::super::DatasetError;
use super::address::{Address, Scheme};
use super::object::Object;

/// How long a request is repeated, in seconds.
const PATIENCE: &str = "TLPIPE_RETRY_SECONDS";
const USUAL_PATIENCE: u64 = 45;

/// Requests under way at once.
const REQUESTS: usize = 32;

/// A bucket, or a web server.
#[derive(Debug)]
pub(super) struct Store {
    scheme: Scheme,
    root: String,
    client: Arc<dyn ObjectStore>,
    requests: Arc<Semaphore>,
    patience: Duration,
    runtime: Runtime,
}

impl Store {
    /// Prepares a client; nothing is asked yet.
    ///
    /// # Errors
    /// When the environment's settings do not go together.
    pub(super) fn connect(address: &Address) -> Result<Self, DatasetError> {
        let patience = match env::var(PATIENCE) {
            Err(_) => USUAL_PATIENCE,
            Ok(text) => text.parse().map_err(|_| DatasetError::Remote {
                address: address.root.clone(),
                reason: format!("{PATIENCE}={text} is no number of seconds"),
                remedy: "set it to a whole number, or unset it",
            })?,
        };
        Self::patient(address, Duration::from_secs(patience))
    }

    pub(super) fn patient(address: &Address, patience: Duration) -> Result<Self, DatasetError> {
        let (scheme, root) = (address.scheme, address.root.as_str());
        let client = client(address, patience).map_err(|error| failed(scheme, root.to_owned(), &error))?;
        let runtime = Builder::new_multi_thread().worker_threads(2).thread_name("tlpipe-remote").enable_all().build();
        let runtime = runtime.map_err(DatasetError::io(root))?;
        let requests = Arc::new(Semaphore::new(REQUESTS));
        Ok(Self { scheme, root: root.to_owned(), client, requests, patience, runtime })
    }

    pub(super) fn root(&self) -> &str {
        &self.root
    }

    /// Every object below a folder.
    pub(super) fn list(self: &Arc<Self>, folder: &str) -> Result<Vec<Object>, DatasetError> {
        let prefix = self.key(folder)?;
        let listed = self.runtime.block_on(self.client.list(Some(&prefix).filter(|_| !folder.is_empty())).try_collect());
        let listed: Vec<ObjectMeta> = listed.map_err(|error| self.failed(format!("{}/{folder}", self.root), &error))?;
        // Some tools mark a folder by an empty object of its name.
        let files = listed.into_iter().filter(|meta| meta.size > 0 || meta.location.extension().is_some());
        Ok(files.map(|meta| Object::new(Arc::clone(self), meta)).collect())
    }

    /// The object of this name, if there is one.
    pub(super) fn head(self: &Arc<Self>, name: &str) -> Result<Option<Object>, DatasetError> {
        match self.runtime.block_on(self.client.head(&self.key(name)?)) {
            Ok(meta) => Ok(Some(Object::new(Arc::clone(self), meta))),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed(format!("{}/{name}", self.root), &error)),
        }
    }

    fn key(&self, name: &str) -> Result<Key, DatasetError> {
        // An address of the web is written in percent code.
        let key = if self.scheme == Scheme::Http { Key::from_url_path(name) } else { Key::parse(name) };
        key.map_err(|error| self.failed(format!("{}/{name}", self.root), &error.into()))
    }

    /// Begins to fetch an object, or a part of it.
    pub(super) fn fetch(&self, meta: &ObjectMeta, range: Option<Range<u64>>) -> JoinHandle<Result<Bytes, Error>> {
        let (client, requests, patience) = (Arc::clone(&self.client), Arc::clone(&self.requests), self.patience);
        let (key, size) = (meta.location.clone(), meta.size);
        self.runtime.spawn(async move {
            // Never closed; were it, the request would go out all the same.
            let _turn = requests.acquire().await;
            let started = Instant::now();
            loop {
                match get(&*client, &key, range.clone(), size).await {
                    // The client repeats what it can tell to be safe; a body that breaks off it repeats only if it has a tag.
                    Err(error) if broke_off(&error) && started.elapsed() < patience => {
                        tracing::info!(target: "tlpipe::remote", "{key}: {error}; asked for again");
                        tokio::time::sleep(Duration::from_millis(250)).await;
                    }
                    answer => return answer,
                }
            }
        })
    }

    pub(super) fn wait(&self, task: JoinHandle<Result<Bytes, Error>>) -> Result<Bytes, Error> {
        self.runtime.block_on(task)?
    }

    pub(super) fn failed(&self, address: String, error: &Error) -> DatasetError {
        failed(self.scheme, address, error)
    }
}

fn client(address: &Address, patience: Duration) -> Result<Arc<dyn ObjectStore>, Error> {
    let root = address.root.as_str();
    let backoff = BackoffConfig { max_backoff: Duration::from_secs(5), ..BackoffConfig::default() };
    // Time alone ends the retries, but an error quotes their limit.
    let retry = RetryConfig { backoff, max_retries: 10_000, retry_timeout: patience };
    Ok(match address.scheme {
        Scheme::S3 => Arc::new(AmazonS3Builder::from_env().with_url(root).with_retry(retry).build()?),
        Scheme::Gcs => Arc::new(GoogleCloudStorageBuilder::from_env().with_url(root).with_retry(retry).build()?),
        Scheme::Azure => Arc::new(MicrosoftAzureBuilder::from_env().with_url(root).with_retry(retry).build()?),
        Scheme::Http => {
            // The client puts a file's path between its server and its query.
            let url = address.query.as_ref().map_or_else(|| root.to_owned(), |query| format!("{root}?{query}"));
            let builder = HttpBuilder::new().with_url(url).with_config(ClientConfigKey::AllowHttp, "true");
            Arc::new(builder.with_retry(retry).build()?)
        }
    })
}

async fn get(client: &dyn ObjectStore, key: &Key, range: Option<Range<u64>>, size: u64) -> Result<Bytes, Error> {
    let expected = range.as_ref().map_or(size, |range| range.end - range.start);
    let options = GetOptions { range: range.map(GetRange::Bounded), ..GetOptions::default() };
    let answer = client.get_opts(key, options).await?;
    if answer.meta.size != size {
        return Err(changed(key, size, answer.meta.size));
    }
    let bytes = answer.bytes().await?;
    if bytes.len() as u64 != expected {
        return Err(changed(key, expected, bytes.len() as u64));
    }
    Ok(bytes)
}

fn changed(key: &Key, expected: u64, found: u64) -> Error {
    let source = format!("changed while it was read: {found} bytes instead of {expected}").into();
    Error::Precondition { path: key.to_string(), source }
}

/// The answer began and did not end.
fn broke_off(error: &Error) -> bool {
    matches!(error, Error::Generic { .. }) && chain(error).any(|error| error.is::<HttpError>())
}

fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// What a failure means to a user.
fn failed(scheme: Scheme, address: String, error: &Error) -> DatasetError {
    const SHOWN: usize = 400;
    let mut text = error.to_string();
    // What lies below is often the only line that says what happened.
    for cause in chain(error).skip(1) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    let mut reason = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = reason.char_indices().nth(SHOWN) {
        reason.truncate(end);
        reason.push('…');
    }
    let credentials = match scheme {
        Scheme::S3 => {
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_REGION; AWS_ENDPOINT for another service than Amazon's), or AWS_SKIP_SIGNATURE=true for a public bucket"
        }
        Scheme::Gcs => "set GOOGLE_APPLICATION_CREDENTIALS to a key file, or GOOGLE_SKIP_SIGNATURE=true for a public bucket",
        Scheme::Azure => {
            "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_SKIP_SIGNATURE=true for a public container"
        }
        Scheme::Http => "check that the address can be read without a password, or download the file",
    };
    let remedy = match error {
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => credentials,
        Error::NotFound { .. } => "check bucket and name",
        Error::Precondition { .. } => "run the same command again; what was done is kept",
        Error::NotSupported { .. } => "this server gives no parts of a file; download the file",
        Error::InvalidPath { .. } => "correct the name: no empty parts, no . or ..",
        // A listing that is refused is told from others by its text only.
        _ if ["401 Unauthorized", "403 Forbidden"].iter().any(|status| reason.contains(status)) => credentials,
        _ if reason.contains("404 Not Found") => "check bucket and name",
        // The addresses at which machines of the clouds ask for their own credentials.
        _ if reason.contains("169.254.169.254") || reason.contains("metadata.google.internal") => credentials,
        _ if reason.contains("URL scheme is not allowed") => "set AWS_ALLOW_HTTP=true for a server without encryption",
        _ => "check address and network, then run the same command again: what was done is kept",
    };
    DatasetError::Remote { address, reason, remedy }
}
