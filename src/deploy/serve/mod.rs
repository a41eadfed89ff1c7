//! A classifier over HTTP: the Open Inference Protocol (KServe v2), plain images, a page, metrics.
//!
//! ```text
//! connection ──head, body, within limits──▶ images ──▶ queue (bounded; full: 503) ──batches──▶ thread 1..n: decode, resize, network
//!     ▲                                                                                              │
//!     └────────────────────────────────────────── answers ──────────────────────────────────────────┘
//! ```

mod body;
mod connection;
mod metrics;
mod multipart;
mod protocol;
mod queue;
mod refusal;
mod routes;

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::{Either, select};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, server::conn::http1};
use hyper_util::rt::{TokioIo, TokioTimer};
use minijinja::HtmlEscape;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};

use super::{Classifier, DeployError};
use body::Memory;
use connection::Connection;
use metrics::Metrics;
use queue::Queue;

/// Connections at once; a process may have a thousand open files.
const CONNECTIONS: usize = 512;
/// How long a client may take for the head of a request, and be silent between two.
const HEAD: Duration = Duration::from_secs(10);
/// How long what is under way may take once the server is asked to stop.
const GRACE: Duration = Duration::from_secs(30);
/// Stands in the page for the model's name.
const NAME: &str = "{{model}}";

/// Limits of a server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Images that may wait.
    pub queue: usize,
    /// Bytes of a request's body.
    pub max_body: usize,
    /// Pixels of an image.
    pub max_pixels: u64,
    /// How long a batch may wait for more images.
    pub max_delay: Duration,
}

/// A place to be served at, reserved.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    address: SocketAddr,
}

impl Bound {
    /// Reserves an address; of port 0 any that is free.
    ///
    /// # Errors
    /// When it is in use, or not this machine's or user's.
    pub fn new(address: SocketAddr) -> Result<Self, DeployError> {
        let bound = TcpListener::bind(address).and_then(|listener| {
            listener.set_nonblocking(true)?;
            listener.local_addr().map(|address| Self { listener, address })
        });
        bound.map_err(|source| DeployError::Bind { address, source })
    }

    /// Where it is, with its real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// What all connections share.
struct Server {
    classifier: Classifier,
    queue: Queue,
    metrics: Metrics,
    memory: Memory,
    settings: Limits,
    page: String,
    stopping: AtomicBool,
}

impl Server {
    fn is_ready(&self) -> bool {
        !self.stopping.load(Ordering::Relaxed)
    }
}

/// Serves until `stop` is set; then what is under way is finished, for half a minute at most.
///
/// # Errors
/// When the operating system gives no threads.
pub fn serve(bound: Bound, classifier: Classifier, threads: usize, limits: Limits, stop: &AtomicBool) -> Result<(), DeployError> {
    let system = DeployError::System;
    let page = include_str!("page.html").replace(NAME, &HtmlEscape(classifier.name()).to_string());
    let server = Arc::new(Server {
        queue: Queue::new(limits.queue),
        metrics: Metrics::default(),
        memory: Memory::new(),
        settings: limits,
        page,
        stopping: AtomicBool::new(false),
        classifier,
    });
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("tlpipe-http").enable_all().build();
    let runtime = runtime.map_err(system)?;
    std::thread::scope(|scope| {
        for number in 0..threads.max(1) {
            let server = &server;
            let work = move || {
                let Limits { max_pixels, max_delay, .. } = server.settings;
                server.queue.work(&server.classifier, number, max_pixels, max_delay, &server.metrics);
            };
            let spawned = std::thread::Builder::new().name(format!("tlpipe-infer-{number}")).spawn_scoped(scope, work);
            if let Err(error) = spawned {
                server.queue.close();
                return Err(system(error));
            }
        }
        let served = runtime.block_on(accept(&server, bound.listener, stop)).map_err(system);
        // The threads end when nothing waits any more.
        server.queue.close();
        served
    })
}

async fn accept(server: &Arc<Server>, listener: TcpListener, stop: &AtomicBool) -> std::io::Result<()> {
    const LOOK: Duration = Duration::from_millis(50);
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let (close, closing) = watch::channel(());
    while !stop.load(Ordering::Relaxed) {
        let stream = match tokio::time::timeout(LOOK, listener.accept()).await {
            Ok(Ok((stream, _))) => stream,
            Ok(Err(error)) => {
                // Too many open files, mostly: some will be closed.
                tracing::warn!(target: "tlpipe::serve", "no connection: {error}");
                tokio::time::sleep(LOOK).await;
                continue;
            }
            Err(_) => continue,
        };
        match Arc::clone(&places).try_acquire_owned() {
            Ok(place) => {
                let (server, closing) = (Arc::clone(server), closing.clone());
                tokio::spawn(async move {
                    server.metrics.connections.fetch_add(1, Ordering::Relaxed);
                    connection(&server, stream, closing).await;
                    server.metrics.connections.fetch_sub(1, Ordering::Relaxed);
                    drop(place);
                });
            }
            Err(_) => {
                tokio::spawn(turn_away(stream));
            }
        }
    }
    server.stopping.store(true, Ordering::Relaxed);
    drop(listener);
    // Nobody listens where there is no connection.
    let _ = close.send(());
    let all = u32::try_from(CONNECTIONS).unwrap_or(u32::MAX);
    if tokio::time::timeout(GRACE, places.acquire_many(all)).await.is_err() {
        tracing::warn!(target: "tlpipe::serve", "some requests took longer than {} s and were given up", GRACE.as_secs());
    }
    Ok(())
}

/// Serves one connection, request after request.
async fn connection(server: &Arc<Server>, stream: TcpStream, mut closing: watch::Receiver<()>) {
    // Answers are short, and somebody waits for them.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request: Request<Incoming>| {
        let server = Arc::clone(server);
        async move { Ok::<_, Infallible>(routes::answer(&server, request).await) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(64 << 10);
    let mut connection = pin!(http.serve_connection(TokioIo::new(Connection::new(stream)), service));
    let ended = match select(connection.as_mut(), pin!(closing.changed())).await {
        Either::Left((ended, _)) => ended,
        Either::Right(_) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(target: "tlpipe::serve", "a connection ended: {error}");
    }
}

/// Tells a client that there are too many others.
async fn turn_away(mut stream: TcpStream) {
    const TEXT: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    // It is gone, then.
    let _ = tokio::time::timeout(Duration::from_secs(1), stream.write_all(TEXT)).await;
}
