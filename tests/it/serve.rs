//! `tlpipe serve`: the protocol, the limits, the end; by plain sockets.

#![cfg(unix)]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::predict::exported;
use crate::support::{Scratch, picture, png, signal};

/// A server of its own, gone when it is dropped.
pub struct Serving {
    child: Child,
    address: SocketAddr,
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    fn error(&self) -> String {
        self.json()["error"].as_str().unwrap().to_owned()
    }

    fn header(&self, name: &str) -> Option<&str> {
        let line = self.head.lines().find(|line| line.to_lowercase().starts_with(&format!("{name}:")))?;
        line.split_once(':').map(|(_, value)| value.trim())
    }
}

impl Serving {
    pub fn start(scratch: &Scratch, more: &[&str]) -> Self {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin("tlpipe"));
        command.current_dir(scratch.path("")).args(["serve", "m.onnx", "--port", "0", "--json"]).args(more);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said: Value = serde_json::from_str(&line).unwrap();
        let address = said["url"].as_str().unwrap().trim_start_matches("http://").parse().unwrap();
        Self { child, address }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// One request on a connection of its own.
    fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut stream = self.connect();
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
        // What is refused may not be read to its end.
        let _ = stream.write_all(body);
        read_answer(stream)
    }

    fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], b"")
    }

    fn post(&self, path: &str, body: &[u8]) -> Answer {
        self.ask("POST", path, &[], body)
    }

    fn infer(&self, request: &Value) -> Answer {
        self.post("/v2/models/m/infer", request.to_string().as_bytes())
    }
}

fn read_answer(mut stream: TcpStream) -> Answer {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    let end = all.windows(4).position(|window| window == b"\r\n\r\n").unwrap_or_else(|| panic!("no answer: {all:?}"));
    let head = String::from_utf8(all[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head, body: all[end + 4..].to_vec() }
}

/// A PNG whose header promises so many pixels.
fn bomb(side: u32) -> Vec<u8> {
    let mut bytes = png(&picture(0, 1));
    bytes[16..20].copy_from_slice(&side.to_be_bytes());
    bytes[20..24].copy_from_slice(&side.to_be_bytes());
    let mut crc = flate2::Crc::new();
    crc.update(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&crc.sum().to_be_bytes());
    bytes
}

#[test]
fn images_and_tensors_are_classified_as_predict_does() {
    let scratch = Scratch::new();
    let photos = exported(&scratch);
    let serving = Serving::start(&scratch, &[]);
    for path in ["/v2/health/live", "/v2/health/ready", "/v2/models/m/ready", "/v2/models/m/versions/1/ready"] {
        assert_eq!(serving.get(path).status, 200, "{path}");
    }
    assert_eq!(serving.get("/v2").json()["name"], "tlpipe");
    let model = serving.get("/v2/models/m").json();
    assert_eq!(model["inputs"], json!([{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]));
    assert_eq!(model["outputs"][0], json!({"name": "probabilities", "datatype": "FP32", "shape": [-1, 2]}));
    assert_eq!(model["parameters"]["classes"], json!(["cat, \"tabby\"", "two\nlines"]));

    let file = format!("{photos}/two\nlines/004.png");
    let expected: Value = scratch.json(&["predict", "m.onnx", &file, "--top-k", "2"])["predictions"][0].clone();
    let bytes = fs::read(&file).unwrap();
    let answer = serving.ask("POST", "/predict?top_k=2", &[("content-type", "image/png")], &bytes);
    assert_eq!((answer.status, &answer.json()["predictions"][0]["top"]), (200, &expected["top"]));
    let other = png(&picture(0, 2));
    let mut form = Vec::new();
    for (name, content) in [("a.png", &bytes), ("bad.png", &b"x".to_vec()), ("b.png", &other)] {
        form.extend(format!("--zz\r\nContent-Disposition: form-data; name=\"f\"; filename=\"{name}\"\r\n\r\n").as_bytes());
        form.extend(content);
        form.extend(b"\r\n");
    }
    form.extend(b"--zz--\r\n");
    let answer =
        serving.ask("POST", "/predict?top_k=2&threshold=0.1", &[("content-type", "multipart/form-data; boundary=zz")], &form);
    let found = answer.json()["predictions"].clone();
    assert_eq!((answer.status, &found[0]["file"], &found[0]["top"]), (200, &"a.png".into(), &expected["top"]));
    assert!(found[1]["error"].as_str().unwrap().contains("not an image") && found[2]["class"] == "cat, \"tabby\"", "{found}");

    // The same image as a tensor, in JSON and in binary, and as a file in Base64.
    let image = image::load_from_memory(&bytes).unwrap().to_rgb8();
    let shape = [1, image.height(), image.width(), 3];
    let input = json!({"name": "image", "shape": shape, "datatype": "UINT8", "data": image.as_raw()});
    let answer = serving.infer(&json!({"id": "7", "inputs": [input]})).json();
    assert_eq!((&answer["id"], &answer["model_name"], &answer["outputs"][1]["data"]), (&"7".into(), &"m".into(), &json!([1])));
    let probability = |answer: &Value| answer["outputs"][0]["data"][1].as_f64().unwrap() as f32;
    let wanted = expected["probability"].as_f64().unwrap() as f32;
    assert_eq!(probability(&answer), wanted);
    let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &bytes);
    let input = json!({"name": "image", "shape": [1], "datatype": "BYTES", "data": [text]});
    assert_eq!(probability(&serving.infer(&json!({"inputs": [input]})).json()), wanted);
    let request = json!({
        "inputs": [{"name": "image", "shape": shape, "datatype": "UINT8", "parameters": {"binary_data_size": image.as_raw().len()}}],
        "outputs": [{"name": "class_index"}, {"name": "probabilities", "parameters": {"binary_data": true}}],
    })
    .to_string();
    let length = request.len().to_string();
    let body = [request.as_bytes(), image.as_raw()].concat();
    let answer = serving.ask("POST", "/v2/models/m/infer", &[("inference-header-content-length", &length)], &body);
    let head: usize = answer.header("inference-header-content-length").unwrap().parse().unwrap();
    let said: Value = serde_json::from_slice(&answer.body[..head]).unwrap();
    assert_eq!((&said["outputs"][0]["data"], &said["outputs"][1]["parameters"]["binary_data_size"]), (&json!([1]), &8.into()));
    assert_eq!(f32::from_le_bytes(answer.body[head + 4..head + 8].try_into().unwrap()), wanted);

    let text = String::from_utf8(serving.get("/metrics").body).unwrap();
    assert!(text.contains("tlpipe_http_requests_total{route=\"/predict\",code=\"200\"} 2"), "{text}");
    assert!(text.contains("tlpipe_images_refused_total 1") && text.contains("tlpipe_batch_images_sum 6"), "{text}");
    let page = serving.get("/");
    let text = String::from_utf8(page.body.clone()).unwrap();
    assert!(page.header("content-security-policy").unwrap().contains("connect-src 'self'") && text.contains("<title>m</title>"));
    assert!(!text.contains("http://") && !text.contains("https://"), "the page needs no other host");
}

#[test]
fn what_is_wrong_is_refused_with_the_reason() {
    let scratch = Scratch::new();
    exported(&scratch);
    let serving = Serving::start(&scratch, &["--max-body", "1", "--queue", "4"]);
    let whole = png(&picture(0, 3));
    for (body, reason) in [
        (&b""[..], "empty"),
        (b"garbage", "not an image"),
        (&whole[..whole.len() / 2], "truncated PNG"),
        (&bomb(30_000), "30000 x 30000 pixels is above the limit of 50000000 pixels"),
    ] {
        let answer = serving.post("/predict", body);
        assert!(answer.status == 422 && answer.error().contains(reason), "{}: {}", answer.status, answer.error());
    }
    let input =
        |shape: Value, data: Value| json!({"inputs": [{"name": "image", "shape": shape, "datatype": "UINT8", "data": data}]});
    for (request, status, reason) in [
        (json!({}), 400, "missing field `inputs`"),
        (json!({"inputs": []}), 400, "0 inputs"),
        (input(json!([1, 2, 2, 3]), json!([1, 2])), 400, "2 numbers, not the 12"),
        (input(json!([1, 2, 2, 3]), json!(vec![300; 12])), 400, "300 is no UINT8"),
        (input(json!([1, 0, 2, 3]), json!([])), 400, "holds nothing"),
        (input(json!([usize::MAX, 3, 3, 3]), json!([1])), 400, "holds nothing"),
        (input(json!([1, 100_000, 100_000, 3]), json!([1])), 400, "above the limit"),
        (input(json!([5, 1, 1, 3]), json!(vec![1; 15])), 413, "above the limit of 4 in a request"),
        (json!({"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": ["a"]}]}), 400, "no input \"x\""),
        (json!({"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["?"]}]}), 400, "Base64"),
        (
            json!({"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["aGVsbG8="]}]}),
            422,
            "image 0: not an image",
        ),
        (json!({"inputs": [{"name": "image", "shape": [1, 3, 32, 32], "datatype": "FP32", "data": [1]}]}), 400, "not taken"),
        (
            json!({"inputs": [{"name": "image", "shape": [1, 1, 1, 3], "datatype": "UINT8", "data": [1, 2, 3]}], "outputs": [{"name": "y"}]}),
            400,
            "no output \"y\"",
        ),
    ] {
        let answer = serving.infer(&request);
        assert!(answer.status == status && answer.error().contains(reason), "{request}: {} {}", answer.status, answer.error());
    }
    assert!(serving.post("/v2/models/m/infer", b"{").error().contains("not a request"));
    assert_eq!(serving.post("/v2/models/other/infer", b"{}").status, 404);
    assert_eq!(serving.get("/nothing").status, 404);
    assert_eq!((serving.get("/predict").status, serving.get("/predict").header("allow")), (405, Some("POST")));
    assert_eq!(serving.post("/metrics", b"").status, 405);
    assert_eq!(serving.post("/predict?top_k=0", &whole).status, 400);
    let form = [("content-type", "multipart/form-data; boundary=zz")];
    assert!(serving.ask("POST", "/predict", &form, b"--zz\r\n").error().contains("cut short"));

    // 100 MB, announced and not.
    let large = vec![0; 100 << 20];
    let answer = serving.post("/predict", &large);
    assert!(answer.status == 413 && answer.error().contains("--max-body"), "{}", answer.head);
    let mut stream = serving.connect();
    stream.write_all(b"POST /predict HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n").unwrap();
    for part in large.chunks(1 << 20).take(8) {
        let sent = stream.write_all(format!("{:x}\r\n", part.len()).as_bytes());
        let _ = sent.and_then(|()| stream.write_all(part)).and_then(|()| stream.write_all(b"\r\n"));
    }
    let _ = stream.write_all(b"0\r\n\r\n");
    assert_eq!(read_answer(stream).status, 413);
    assert_eq!(serving.post("/predict", &whole).status, 200);
}

#[test]
fn slow_and_hostile_clients_do_not_hold_up_others() {
    let scratch = Scratch::new();
    exported(&scratch);
    let serving = Serving::start(&scratch, &[]);
    let whole = png(&picture(0, 3));
    let slow: Vec<TcpStream> = (0..60)
        .map(|number| {
            let mut stream = serving.connect();
            let start: &[u8] = match number % 3 {
                0 => b"",
                1 => b"POST /predict HTTP/1.1\r\nhost: x\r\nx-a",
                _ => b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 5000000\r\n\r\n123",
            };
            stream.write_all(start).unwrap();
            stream
        })
        .collect();
    let started = Instant::now();
    std::thread::scope(|scope| {
        for client in 0..8 {
            let (serving, whole, bad) = (&serving, &whole, [b"garbage".to_vec(), whole[..99].to_vec(), bomb(40_000)]);
            scope.spawn(move || {
                for round in 0..15 {
                    if client < 3 {
                        assert_eq!(serving.post("/predict", &bad[(client + round) % 3]).status, 422);
                    } else {
                        assert_eq!(serving.post("/predict", whole).status, 200);
                    }
                }
            });
        }
    });
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    // Who does not finish the head of a request is let go.
    let mut rest = String::new();
    let mut stream = &slow[1];
    let read = stream.read_to_string(&mut rest);
    assert!(read.is_ok() || read.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset));
    assert!(started.elapsed() < Duration::from_secs(25), "{:?}", started.elapsed());
}

#[test]
fn more_than_the_queue_holds_is_turned_away_for_a_while() {
    let scratch = Scratch::new();
    exported(&scratch);
    let serving = Serving::start(&scratch, &["--queue", "2", "--threads", "1"]);
    // Images that take a while.
    let large = png(&image::RgbImage::from_fn(3000, 2000, |x, y| [(x * y) as u8, (x / 7) as u8, (y / 3) as u8].into()));
    let statuses: Vec<(u16, bool)> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..24).map(|_| scope.spawn(|| serving.post("/predict", &large))).collect();
        let answers = clients.into_iter().map(|client| client.join().unwrap());
        answers.map(|answer| (answer.status, answer.header("retry-after").is_some())).collect()
    });
    let count = |wanted: u16| statuses.iter().filter(|(status, _)| *status == wanted).count();
    assert!(count(200) > 0 && count(503) > 0 && count(200) + count(503) == 24, "{statuses:?}");
    assert!(statuses.iter().all(|(status, again)| (*status == 503) == *again), "{statuses:?}");
    assert_eq!(serving.post("/predict", &large).status, 200);
}

#[test]
fn what_is_under_way_is_answered_before_the_end() {
    let scratch = Scratch::new();
    exported(&scratch);
    let mut serving = Serving::start(&scratch, &[]);
    let said = scratch.fails(1, &["serve", "m.onnx", "--port", &serving.address.port().to_string()]);
    assert!(said.contains("is in use") && said.contains("--port"), "{said}");
    let whole = png(&picture(1, 3));
    let mut stream = serving.connect();
    let idle = serving.connect();
    stream.write_all(format!("POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", whole.len()).as_bytes()).unwrap();
    stream.write_all(&whole[..20]).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    signal(&serving.child, "-TERM");
    std::thread::sleep(Duration::from_millis(400));
    assert!(TcpStream::connect(serving.address).is_err(), "nobody new is served");
    assert!(serving.child.try_wait().unwrap().is_none());
    stream.write_all(&whole[20..]).unwrap();
    let answer = read_answer(stream);
    assert_eq!((answer.status, &answer.json()["predictions"][0]["class"]), (200, &"two\nlines".into()));
    assert_eq!(serving.child.wait().unwrap().code(), Some(0));
    drop(idle);
}
