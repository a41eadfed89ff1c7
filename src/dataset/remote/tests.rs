use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::super::place::Access;
use super::*;

/// A web server of one file that misbehaves as it is told, and counts its answers.
struct Server {
    address: String,
    answers: Arc<AtomicUsize>,
}

#[derive(Clone, Copy)]
enum Habit {
    Good,
    /// The first answers to GET end in the middle.
    Breaks(usize),
    /// No answer to GET but this status.
    Says(&'static str),
}

fn content() -> Vec<u8> {
    (0..100_000_u32).map(|at| (at % 251) as u8).collect()
}

fn serve(habit: Habit) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/folder/a%20file.bin", listener.local_addr().unwrap());
    let answers = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&answers);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let counter = Arc::clone(&counter);
            std::thread::spawn(move || answer(stream.unwrap(), habit, &counter));
        }
    });
    Server { address, answers }
}

/// Answers the one request of a connection.
fn answer(mut stream: TcpStream, habit: Habit, counter: &AtomicUsize) {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|count| count == 1) {
        request.push(byte[0]);
    }
    let request = String::from_utf8(request).unwrap();
    let content = content();
    let range = request.lines().find_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
    let (start, end) = range.as_deref().map_or((0, content.len()), |range| {
        let (start, end) = range.split_once('-').unwrap();
        (start.parse().unwrap(), end.parse::<usize>().unwrap() + 1)
    });
    let (status, more) = match &range {
        Some(_) => ("206 Partial Content", format!("Content-Range: bytes {start}-{}/{}\r\n", end - 1, content.len())),
        None => ("200 OK", String::new()),
    };
    let body = &content[start..end];
    let (status, body, sent) = if request.starts_with("HEAD") {
        (status, body, 0)
    } else if !["GET /folder/a%20file.bin ", "GET /folder/a%20file.bin?size=2&key=a/b "]
        .iter()
        .any(|asked| request.starts_with(asked))
    {
        ("404 Not Found", &b""[..], 0)
    } else {
        let number = counter.fetch_add(1, Ordering::SeqCst);
        match habit {
            Habit::Breaks(times) if number < times => (status, body, body.len() / 2),
            Habit::Says(status) => (status, &b""[..], 0),
            _ => (status, body, body.len()),
        }
    };
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{more}Connection: close\r\n\r\n", body.len());
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(&body[..sent]);
}

fn object(server: &Server, patience: u64) -> Object {
    let address = Address::parse(&server.address).unwrap();
    let store = Arc::new(Store::patient(&address, Duration::from_secs(patience)).unwrap());
    store.head(&address.key).unwrap().unwrap()
}

#[test]
fn every_part_is_read_in_few_requests() {
    let server = serve(Habit::Good);
    let object = object(&server, 5);
    assert_eq!((object.bytes(), object.key()), (100_000, "folder/a file.bin"));
    let mut ahead = ReadAhead::new(object, 30_000);
    let content = content();
    // The end comes first and whole, then windows follow each other; a part may lie across two of them.
    for (start, length, requests) in
        [(99_990, 10, 1), (70_000, 20_000, 1), (0, 10, 2), (20_000, 20_000, 4), (35_000, 0, 4), (10, 80_000, 4)]
    {
        assert_eq!(ahead.exact(start, length).unwrap(), content[start as usize..(start + length) as usize], "{start} {length}");
        if requests < 3 {
            assert_eq!(server.answers.load(Ordering::SeqCst), requests, "{start}");
        }
    }
    assert!(server.answers.load(Ordering::SeqCst) <= 6, "{}", server.answers.load(Ordering::SeqCst));
    assert_eq!(ahead.some(99_995, 100).unwrap(), content[99_995..]);
    assert!(ahead.some(200_000, 100).unwrap().is_empty());
    assert_eq!(ahead.exact(99_999, 2).unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
}

#[test]
fn a_query_is_asked_and_is_no_part_of_the_name() {
    let mut server = serve(Habit::Good);
    server.address.push_str("?size=2&key=a/b");
    let object = object(&server, 5);
    assert_eq!(object.content().unwrap().unwrap(), content());
    assert!(object.address().ends_with("/folder/a file.bin"), "{}", object.address());
}

#[test]
fn an_answer_that_breaks_off_is_asked_for_again() {
    let server = serve(Habit::Breaks(3));
    let object = object(&server, 20);
    assert_eq!(object.coming().content().unwrap().unwrap(), content());
    assert_eq!(server.answers.load(Ordering::SeqCst), 4);
}

#[test]
fn a_server_that_never_recovers_fails_in_time() {
    let server = serve(Habit::Says("503 Service Unavailable"));
    let started = Instant::now();
    let place = Place::Object(object(&server, 1));
    let text = place.image().unwrap_err().to_string();
    assert!(text.contains(&server.address.replace("%20", " ")) && text.contains("503") && text.contains("again"), "{text}");
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    assert!(server.answers.load(Ordering::SeqCst) > 1);
    // What the layers between make of it does not hide it.
    let access = place.access(1000).unwrap();
    assert!(matches!(access, Access::Object(_)));
    assert!(access.exact(0, 10).is_err());
    let error = access.blame(DatasetError::damaged("x", "y"));
    assert!(matches!(error, DatasetError::Remote { .. }), "{error}");
}

#[test]
fn a_refusal_is_final_and_a_lost_object_is_one_image() {
    let server = serve(Habit::Says("403 Forbidden"));
    let text = object(&server, 20).content().unwrap_err().to_string();
    assert!(text.contains("403") && text.contains("password"), "{text}");
    assert_eq!(server.answers.load(Ordering::SeqCst), 1);
    let server = serve(Habit::Says("404 Not Found"));
    assert!(object(&server, 20).content().unwrap().unwrap_err().contains("no longer there"));
}

#[test]
fn a_web_server_gives_single_files() {
    let server = serve(Habit::Good);
    let find = |address: &str| {
        let mut found = Found::default();
        super::find(Path::new(address), &mut found).map(|()| found)
    };
    let found = find(&server.address).unwrap();
    assert_eq!(found.files[0].relative, Path::new("a file.bin"));
    assert!(found.files[0].place.shown().ends_with("folder/a file.bin"));
}

#[test]
fn file_addresses_are_paths() {
    assert_eq!(local_path(Path::new("file:///a%20b/c")).unwrap().unwrap(), Path::new("/a b/c"));
    assert!(local_path(Path::new("s3://b/c")).unwrap().is_none());
    assert!(local_path(Path::new("file://elsewhere/c")).unwrap_err().to_string().contains("three slashes"));
}
