//! Downloads: resumed by byte range, checked by SHA-256 before the file gets its name, one mirror after the other.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ureq::http::StatusCode;
use ureq::http::header::{ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, RANGE};

use super::checksum;
use super::error::{AssetError, CACHE_REMEDY};
use super::registry::AssetFile;
use crate::events::{Event, Observer, Unit};

/// Attempts in a row that bring no byte before an address is given up.
const FRUITLESS: u32 = 3;
/// Attempts in all for an address, so that one that sends a byte at a time ends too.
const ATTEMPTS: u32 = 100;
/// Bytes between two progress events.
const STEP: u64 = 256 << 10;

pub(super) struct Downloader {
    agent: ureq::Agent,
    mirror: Option<String>,
    pause: Duration,
}

/// Why a download did not come about.
pub(super) enum Failure {
    /// Each address, and what it answered. Empty: there is no address.
    Addresses(Vec<String>),
    Local(AssetError),
}

enum Attempt {
    /// All bytes are there, their hash unknown.
    Whole,
    /// Not worth another try at this address.
    Refused(String),
    /// Worth another try.
    Interrupted { reason: String, progressed: bool },
}

/// The bytes so far, beside the target.
struct Part {
    path: PathBuf,
    file: File,
    bytes: u64,
    /// Whether they all came from the address in use; if not, a wrong hash may be another's fault.
    pure: bool,
}

impl Downloader {
    /// `mirror` is tried before the registry's addresses: `{mirror}/{file name}`.
    pub(super) fn new(mirror: Option<String>) -> Self {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .user_agent(concat!("tlpipe/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(Duration::from_secs(10)))
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_recv_response(Some(Duration::from_secs(30)))
            .timeout_per_read(Some(Duration::from_secs(30)))
            .build()
            .into();
        Self { agent, mirror, pause: Duration::from_millis(500) }
    }

    /// Fetches a file to `target`. On success the file is there, whole and of the right hash; on failure what came so far
    /// is kept in a `.part` file for the next time.
    pub(super) fn fetch(&self, file: &AssetFile, target: &Path, observer: Observer<'_>) -> Result<(), Failure> {
        let mirror = self.mirror.iter().map(|base| format!("{}/{}", base.trim_end_matches('/'), file.name));
        let urls: Vec<String> = mirror.chain(file.urls.iter().cloned()).collect();
        if urls.is_empty() {
            return Err(Failure::Addresses(Vec::new()));
        }
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| Failure::Local(AssetError::Io { path, source, remedy: CACHE_REMEDY })
        };
        let folder = target.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(io(folder))?;
        // Another process may be fetching the same file: wait for it, then see whether it is there.
        let lock_path = folder.join(format!(".{}.lock", file.name));
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path).map_err(io(&lock_path))?;
        lock.lock().map_err(io(&lock_path))?;
        if checksum::sha256(target).is_ok_and(|sha256| sha256 == file.sha256) {
            return Ok(());
        }
        let part_path = folder.join(format!("{}.part", file.name));
        let mut part = Part::open(&part_path).map_err(io(&part_path))?;
        observer(Event::Started { task: &file.name, total: Some(file.bytes), unit: Unit::Bytes });
        let mut failures = Vec::new();
        let mut done = false;
        for url in &urls {
            match self.exhaust(url, file, &mut part, observer).map_err(io(&part_path))? {
                Ok(()) => {
                    done = true;
                    break;
                }
                Err(reason) => {
                    observer(Event::Warned(format!("{url}: {reason}")));
                    failures.push(format!("{url}: {reason}"));
                }
            }
        }
        observer(Event::Finished { task: &file.name });
        if !done {
            if part.bytes == 0 {
                // Nothing worth keeping.
                let _ = fs::remove_file(&part_path);
            }
            return Err(Failure::Addresses(failures));
        }
        part.file.sync_all().map_err(io(&part_path))?;
        drop(part);
        fs::rename(&part_path, target).map_err(io(target))
    }

    /// Takes one address as far as it goes. The inner error says why it did not do; the outer one is this machine's.
    fn exhaust(&self, url: &str, file: &AssetFile, part: &mut Part, observer: Observer<'_>) -> io::Result<Result<(), String>> {
        part.pure = part.bytes == 0;
        let mut fruitless = 0;
        for _ in 0..ATTEMPTS {
            match self.attempt(url, file, part, observer)? {
                Attempt::Whole => {
                    let sha256 = checksum::sha256(&part.path)?;
                    if sha256 == file.sha256 {
                        return Ok(Ok(()));
                    }
                    let pure = part.pure;
                    part.clear()?;
                    if pure {
                        return Ok(Err(format!("wrong content: SHA-256 is {sha256}, expected {}", file.sha256)));
                    }
                }
                Attempt::Refused(reason) => return Ok(Err(reason)),
                Attempt::Interrupted { reason, progressed } => {
                    fruitless = if progressed { 0 } else { fruitless + 1 };
                    if fruitless >= FRUITLESS {
                        return Ok(Err(format!("{reason}, {FRUITLESS} times in a row")));
                    }
                    std::thread::sleep(self.pause);
                }
            }
        }
        Ok(Err(format!("gave up after {ATTEMPTS} attempts")))
    }

    fn attempt(&self, url: &str, file: &AssetFile, part: &mut Part, observer: Observer<'_>) -> io::Result<Attempt> {
        if part.bytes > file.bytes {
            part.clear()?;
        }
        if part.bytes == file.bytes {
            return Ok(Attempt::Whole);
        }
        // A compressed answer would have other bytes and other lengths.
        let mut request = self.agent.get(url).header(ACCEPT_ENCODING, "identity");
        if part.bytes > 0 {
            request = request.header(RANGE, format!("bytes={}-", part.bytes));
        }
        let response = match request.call() {
            Ok(response) => response,
            Err(error) => return Ok(failed_call(&error)),
        };
        match response.status() {
            StatusCode::OK => part.clear()?,
            StatusCode::PARTIAL_CONTENT => {
                let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
                if !range.is_some_and(|range| range.starts_with(&format!("bytes {}-", part.bytes))) {
                    part.clear()?;
                    return Ok(Attempt::Interrupted { reason: "answered another byte range".into(), progressed: false });
                }
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                part.clear()?;
                return Ok(Attempt::Interrupted { reason: "has no such byte range".into(), progressed: false });
            }
            status if status.is_server_error() || matches!(status.as_u16(), 408 | 429) => {
                return Ok(Attempt::Interrupted { reason: format!("answered {status}"), progressed: false });
            }
            status => return Ok(Attempt::Refused(format!("answered {status}"))),
        }
        let length = response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if let Some(length) = length
            && part.bytes + length != file.bytes
        {
            return Ok(Attempt::Refused(format!("wrong size: {} bytes, expected {}", part.bytes + length, file.bytes)));
        }
        receive(&mut response.into_body().into_reader(), file, part, observer)
    }
}

fn receive(body: &mut dyn io::Read, file: &AssetFile, part: &mut Part, observer: Observer<'_>) -> io::Result<Attempt> {
    let before = part.bytes;
    let mut told = before;
    let mut buffer = vec![0; 64 << 10];
    let reason = loop {
        match body.read(&mut buffer) {
            Ok(0) => break "closed the connection early".to_owned(),
            Ok(count) => {
                part.file.write_all(&buffer[..count])?;
                part.bytes += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break error.to_string(),
        }
        if part.bytes > file.bytes {
            part.clear()?;
            return Ok(Attempt::Refused(format!("wrong size: more than the expected {} bytes", file.bytes)));
        }
        if part.bytes >= told + STEP || part.bytes == file.bytes {
            told = part.bytes;
            observer(Event::Advanced { task: &file.name, done: told });
        }
    };
    if part.bytes == file.bytes {
        return Ok(Attempt::Whole);
    }
    Ok(Attempt::Interrupted { reason, progressed: part.bytes > before })
}

/// A connection that broke is worth another try; a host that is not there will not be there in half a second either.
fn failed_call(error: &ureq::Error) -> Attempt {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    let broke = match error {
        ureq::Error::Io(io) => matches!(io.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof),
        ureq::Error::Protocol(_) | ureq::Error::BodyStalled => true,
        _ => false,
    };
    let reason = error.to_string();
    if broke { Attempt::Interrupted { reason, progressed: false } } else { Attempt::Refused(reason) }
}

impl Part {
    fn open(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path)?;
        let bytes = file.seek(SeekFrom::End(0))?;
        Ok(Self { path: path.to_owned(), file, bytes, pure: bytes == 0 })
    }

    fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.bytes = 0;
        self.pure = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::net::{TcpListener, TcpStream};
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What the server does with the n-th request.
    #[derive(Clone, Copy)]
    enum Answer {
        /// The whole file, or the range that was asked for.
        Good,
        /// Says the full length, sends this many bytes, closes.
        CutAfter(usize),
        /// The whole file, whatever was asked.
        IgnoreRange,
        /// Right length, wrong bytes.
        WrongBytes,
        Status(&'static str),
        /// A page of another size.
        Page,
    }

    struct Server {
        url: String,
        requests: Arc<Mutex<Vec<Option<u64>>>>,
    }

    /// Answers as many requests as there are answers, then closes.
    fn serve(content: &[u8], answers: &[Answer]) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (content, answers, log) = (content.to_vec(), answers.to_vec(), Arc::clone(&requests));
        std::thread::spawn(move || {
            for answer in answers {
                let (stream, _) = listener.accept().unwrap();
                let start = read_request(&stream);
                log.lock().unwrap().push(start);
                reply(stream, answer, &content, start);
            }
        });
        Server { url, requests }
    }

    fn read_request(stream: &TcpStream) -> Option<u64> {
        let mut start = None;
        for line in BufReader::new(stream).lines() {
            let line = line.unwrap().to_lowercase();
            if let Some(range) = line.strip_prefix("range: bytes=") {
                start = range.trim_end_matches('-').parse().ok();
            }
            if line.is_empty() {
                break;
            }
        }
        start
    }

    fn reply(mut stream: TcpStream, answer: Answer, content: &[u8], start: Option<u64>) {
        let from = usize::try_from(start.unwrap_or(0)).unwrap();
        let head = |status: &str, length: usize, more: &str| {
            format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{more}\r\n")
        };
        let range = format!("Content-Range: bytes {from}-{}/{}\r\n", content.len() - 1, content.len());
        let partial = if start.is_some() { ("206 Partial Content", range.as_str()) } else { ("200 OK", "") };
        let rest = &content[from..];
        let (head, body) = match answer {
            Answer::Good => (head(partial.0, rest.len(), partial.1), rest.to_vec()),
            Answer::CutAfter(count) => (head(partial.0, rest.len(), partial.1), rest[..count.min(rest.len())].to_vec()),
            Answer::IgnoreRange => (head("200 OK", content.len(), ""), content.to_vec()),
            Answer::WrongBytes => (head(partial.0, rest.len(), partial.1), vec![7; rest.len()]),
            Answer::Status(status) => (head(status, 0, ""), Vec::new()),
            Answer::Page => (head("200 OK", 5, ""), b"sorry".to_vec()),
        };
        stream.write_all(head.as_bytes()).unwrap();
        let _ = stream.write_all(&body);
    }

    fn content() -> Vec<u8> {
        (0..300_000_u32).map(|index| u8::try_from(index % 251).unwrap()).collect()
    }

    fn asset(content: &[u8], servers: &[&Server]) -> AssetFile {
        let urls = servers.iter().map(|server| format!("{}/f.bin", server.url)).collect();
        AssetFile { name: "f.bin".into(), sha256: checksum::sha256_of(content), bytes: content.len() as u64, urls }
    }

    fn fetch(file: &AssetFile, target: &Path) -> Result<(), Vec<String>> {
        let downloader = Downloader { pause: Duration::ZERO, ..Downloader::new(None) };
        downloader.fetch(file, target, &crate::events::ignore).map_err(|failure| match failure {
            Failure::Addresses(reasons) => reasons,
            Failure::Local(error) => panic!("{error}"),
        })
    }

    #[test]
    fn a_cut_connection_is_resumed_where_it_broke() {
        let (content, folder) = (content(), tempfile::tempdir().unwrap());
        let server = serve(&content, &[Answer::CutAfter(100_000), Answer::CutAfter(50_000), Answer::Good]);
        let target = folder.path().join("f.bin");
        fetch(&asset(&content, &[&server]), &target).unwrap();
        assert_eq!(fs::read(&target).unwrap(), content);
        assert_eq!(*server.requests.lock().unwrap(), [None, Some(100_000), Some(150_000)]);
        assert!(!folder.path().join("f.bin.part").exists());
    }

    #[test]
    fn a_later_run_resumes_what_an_earlier_one_left() {
        let (content, folder) = (content(), tempfile::tempdir().unwrap());
        let target = folder.path().join("f.bin");
        let cuts = [Answer::CutAfter(100_000), Answer::CutAfter(0), Answer::CutAfter(0), Answer::CutAfter(0)];
        let reasons = fetch(&asset(&content, &[&serve(&content, &cuts)]), &target).unwrap_err();
        assert!(reasons[0].contains("3 times in a row"), "{reasons:?}");
        assert!(!target.exists());
        let server = serve(&content, &[Answer::Good]);
        fetch(&asset(&content, &[&server]), &target).unwrap();
        assert_eq!(*server.requests.lock().unwrap(), [Some(100_000)]);
        assert_eq!(fs::read(&target).unwrap(), content);
    }

    #[test]
    fn a_server_that_ignores_the_range_starts_again() {
        let (content, folder) = (content(), tempfile::tempdir().unwrap());
        let server = serve(&content, &[Answer::CutAfter(10), Answer::IgnoreRange]);
        let target = folder.path().join("f.bin");
        fetch(&asset(&content, &[&server]), &target).unwrap();
        assert_eq!(fs::read(&target).unwrap(), content);
    }

    #[test]
    fn wrong_bytes_404_and_error_pages_lead_to_the_next_mirror() {
        let (content, folder) = (content(), tempfile::tempdir().unwrap());
        let (wrong, gone) = (serve(&content, &[Answer::WrongBytes]), serve(&content, &[Answer::Status("404 Not Found")]));
        let (page, good) = (serve(&content, &[Answer::Page]), serve(&content, &[Answer::Good]));
        let target = folder.path().join("f.bin");
        fetch(&asset(&content, &[&wrong, &gone, &page, &good]), &target).unwrap();
        assert_eq!(fs::read(&target).unwrap(), content);
        assert_eq!(*good.requests.lock().unwrap(), [None], "wrong bytes must not be resumed");
    }

    #[test]
    fn every_address_is_named_with_what_it_answered() {
        let (content, folder) = (content(), tempfile::tempdir().unwrap());
        let (wrong, gone) = (serve(&content, &[Answer::WrongBytes]), serve(&content, &[Answer::Status("404 Not Found")]));
        let file = asset(&content, &[&wrong, &gone]);
        let reasons = fetch(&file, &folder.path().join("f.bin")).unwrap_err();
        let found = checksum::sha256_of(&vec![7; content.len()]);
        assert!(reasons[0].contains(&found) && reasons[0].contains(&file.sha256), "{reasons:?}");
        assert!(reasons[1].contains("404"), "{reasons:?}");
        assert!(!folder.path().join("f.bin").exists() && !folder.path().join("f.bin.part").exists());
    }

    #[test]
    fn a_bad_start_from_one_mirror_does_not_condemn_the_next() {
        let (content, folder) = (content(), tempfile::tempdir().unwrap());
        fs::write(folder.path().join("f.bin.part"), vec![9; 1000]).unwrap();
        let server = serve(&content, &[Answer::Good, Answer::Good]);
        let target = folder.path().join("f.bin");
        fetch(&asset(&content, &[&server]), &target).unwrap();
        assert_eq!(*server.requests.lock().unwrap(), [Some(1000), None]);
        assert_eq!(fs::read(&target).unwrap(), content);
    }

    #[test]
    fn a_busy_server_is_asked_again() {
        let (content, folder) = (content(), tempfile::tempdir().unwrap());
        let server = serve(&content, &[Answer::Status("503 Service Unavailable"), Answer::Good]);
        fetch(&asset(&content, &[&server]), &folder.path().join("f.bin")).unwrap();
    }

    #[test]
    fn two_at_once_fetch_once() {
        let (content, folder) = (content(), tempfile::tempdir().unwrap());
        let server = serve(&content, &[Answer::Good]);
        let (file, target) = (asset(&content, &[&server]), folder.path().join("f.bin"));
        std::thread::scope(|scope| {
            for worker in [scope.spawn(|| fetch(&file, &target)), scope.spawn(|| fetch(&file, &target))] {
                worker.join().unwrap().unwrap();
            }
        });
        assert_eq!(fs::read(&target).unwrap(), content);
    }
}
