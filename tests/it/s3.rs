//! An S3 server on localhost: `s3s-fs`, with the faults that a test asks for.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use assert_cmd::Command;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

const KEY: &str = "a-key";
const SECRET: &str = "a-secret";

/// Buckets are folders of a scratch folder.
pub struct S3 {
    root: TempDir,
    address: SocketAddr,
    /// `METHOD /bucket/key` of every request.
    log: Arc<Mutex<Vec<String>>>,
    /// Requests that are answered before 503 is the answer to all; negative for no end.
    answers: Arc<AtomicIsize>,
    runtime: Runtime,
}

impl S3 {
    /// A server that wants credentials.
    pub fn start() -> Self {
        Self::with(Some(SimpleAuth::from_single(KEY, SECRET)))
    }

    /// A server for everybody, which is a plain web server to who asks it like one.
    pub fn open() -> Self {
        Self::with(None)
    }

    fn with(auth: Option<SimpleAuth>) -> Self {
        let root = tempfile::tempdir().unwrap();
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root.path()).unwrap());
        if let Some(auth) = auth {
            builder.set_auth(auth);
        }
        let service = builder.build();
        let runtime = Runtime::new().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let (log, answers) = (Arc::default(), Arc::new(AtomicIsize::new(-1)));
        runtime.spawn(serve(listener, service, Arc::clone(&log), Arc::clone(&answers)));
        Self { root, address, log, answers, runtime }
    }

    /// A file of a bucket.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on: so many answers, then 503 for ever; negative for no end.
    pub fn answer(&self, times: isize) {
        self.answers.store(times, Ordering::SeqCst);
    }

    /// What was asked since the last call.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock().unwrap())
    }

    /// Another address of this server, whose first connections break after so many bytes.
    pub fn behind_a_bad_line(&self, connections: usize, bytes: u64) -> SocketAddr {
        let listener = self.runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let (server, left) = (self.address, Arc::new(AtomicUsize::new(connections)));
        self.runtime.spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let left = Arc::clone(&left);
                tokio::spawn(async move {
                    let bad = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
                    let mut server = TcpStream::connect(server).await.unwrap();
                    if !bad {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                        return;
                    }
                    let (mut from_client, mut to_client) = client.split();
                    let (from_server, mut to_server) = server.split();
                    let mut answers = from_server.take(bytes);
                    tokio::select! {
                        _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
                        _ = tokio::io::copy(&mut answers, &mut to_client) => {}
                    }
                    let _ = to_client.flush().await;
                });
            }
        });
        address
    }

    /// The environment of a user of this server.
    pub fn environment(&self, command: &mut Command) {
        self.environment_at(self.address, command);
    }

    pub fn environment_at(&self, address: SocketAddr, command: &mut Command) {
        command
            .env("AWS_ACCESS_KEY_ID", KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET)
            .env("AWS_ENDPOINT", format!("http://{address}"))
            .env("AWS_ALLOW_HTTP", "true")
            .env("AWS_REGION", "us-east-1");
    }
}

async fn serve(listener: TcpListener, service: S3Service, log: Arc<Mutex<Vec<String>>>, answers: Arc<AtomicIsize>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (service, log, answers) = (service.clone(), Arc::clone(&log), Arc::clone(&answers));
        let answer = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
            log.lock().unwrap().push(format!("{} {}", request.method(), request.uri()));
            let left = answers.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| (left > 0).then(|| left - 1));
            let service = service.clone();
            async move {
                if left == Err(0) {
                    let busy = hyper::Response::builder().status(503).body(s3s::Body::from("SlowDown".to_owned())).unwrap();
                    return Ok(busy);
                }
                service.call(request.map(s3s::Body::from)).await
            }
        });
        tokio::spawn(async move {
            let builder = Builder::new(TokioExecutor::new());
            let _ = builder.serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}
