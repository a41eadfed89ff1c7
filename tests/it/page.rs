//! The page of `tlpipe serve` in a real browser.

#![cfg(unix)]

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::predict::exported;
use crate::serve::Serving;
use crate::support::{Scratch, picture, pipe, png};

/// Chromium without a window, driven over its pipe by the DevTools protocol.
struct Browser {
    child: Child,
    to: File,
    from: BufReader<File>,
    session: Option<String>,
    asked: u64,
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Browser {
    /// None, and a line that says so, where there is no Chromium.
    fn start(folder: &Path) -> Option<Self> {
        let there = |name: &&str| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success());
        let Some(name) = ["chromium", "chromium-browser", "google-chrome"].into_iter().find(there) else {
            println!("skipped: no Chromium here");
            return None;
        };
        let (to, from) = (folder.join("to"), folder.join("from"));
        if !(pipe(&to) && pipe(&from)) {
            return None;
        }
        // It reads what it is told at descriptor 3, and answers at 4.
        let line = format!(
            "exec {name} --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --remote-debugging-pipe \
             --user-data-dir=profile about:blank 3<to 4>from"
        );
        let mut command = Command::new("sh");
        command.current_dir(folder).args(["-c", &line]).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap();
        let to = File::options().write(true).open(to).unwrap();
        let from = BufReader::new(File::open(from).unwrap());
        Some(Self { child, to, from, session: None, asked: 0 })
    }

    fn ask(&mut self, method: &str, parameters: Value) -> Value {
        self.asked += 1;
        let mut message = json!({"id": self.asked, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.to.write_all(format!("{message}\0").as_bytes()).unwrap();
        loop {
            let mut answer = Vec::new();
            self.from.read_until(0, &mut answer).unwrap();
            answer.pop();
            let answer: Value = serde_json::from_slice(&answer).unwrap();
            if answer["id"] == json!(self.asked) {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].clone();
            }
        }
    }

    /// Opens an address in a page of its own.
    fn open(&mut self, address: &str) {
        let target = self.ask("Target.createTarget", json!({"url": address}))["targetId"].clone();
        let attached = self.ask("Target.attachToTarget", json!({"targetId": target, "flatten": true}));
        self.session = attached["sessionId"].as_str().map(str::to_owned);
    }

    fn value(&mut self, script: &str) -> Value {
        self.ask("Runtime.evaluate", json!({"expression": script, "returnByValue": true}))["result"]["value"].clone()
    }

    fn wait(&mut self, script: &str) {
        let started = Instant::now();
        while self.value(script) != json!(true) {
            assert!(started.elapsed() < Duration::from_secs(30), "{script}: {}", self.value("document.body.innerText"));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn choose(&mut self, files: &[&Path]) {
        let root = self.ask("DOM.getDocument", json!({}))["root"]["nodeId"].clone();
        let input = self.ask("DOM.querySelector", json!({"nodeId": root, "selector": "input[type=file]"}))["nodeId"].clone();
        self.ask("DOM.setFileInputFiles", json!({"files": files, "nodeId": input}));
    }
}

#[test]
fn a_picture_is_shown_with_its_classes() {
    let scratch = Scratch::new();
    exported(&scratch);
    let Some(mut browser) = Browser::start(&scratch.path("")) else { return };
    let serving = Serving::start(&scratch, &[]);
    browser.open(&format!("http://{}/", serving.address()));
    browser.wait("document.readyState === 'complete' && document.title === 'm'");
    let (good, bad) = (scratch.path("good.png"), scratch.path("bad.png"));
    fs::write(&good, png(&picture(1, 4))).unwrap();
    fs::write(&bad, "no picture").unwrap();
    browser.choose(&[&good, &bad]);
    browser.wait("document.querySelectorAll('article[data-done]').length === 2");
    let text = |browser: &mut Browser, selector: &str| {
        let script = format!("document.querySelector({}).innerText", json!(selector));
        browser.value(&script).as_str().unwrap().to_owned()
    };
    assert!(text(&mut browser, "article[data-done=failed] .bad").contains("not an image"));
    assert_eq!(text(&mut browser, "article[data-done=yes] li span"), "two lines", "the best class comes first");
    let head = text(&mut browser, "article[data-done=yes] header");
    assert!(head.contains("good.png") && head.contains("ms in the server"), "{head}");
    assert_eq!(browser.value("document.querySelector('article[data-done=yes] img').naturalWidth"), json!(40));
    assert!(browser.value("document.querySelector('article[data-done=yes] li div div').offsetWidth").as_u64().unwrap() > 50);

    // Dropped and pasted pictures come the same way.
    let image = format!("new File([Uint8Array.from({})], 'made.png', {{type: 'image/png'}})", json!(png(&picture(0, 4))));
    for event in ["new DragEvent('drop', {dataTransfer: data})", "new ClipboardEvent('paste', {clipboardData: data})"] {
        let before = browser.value("document.querySelectorAll('article[data-done=yes]').length").as_u64().unwrap();
        browser
            .value(&format!("(() => {{ const data = new DataTransfer(); data.items.add({image}); dispatchEvent({event}); }})()"));
        browser.wait(&format!("document.querySelectorAll('article[data-done=yes]').length === {}", before + 1));
    }
    let best = text(&mut browser, "article li span");
    assert!(best.starts_with("cat"), "{best}: {}", browser.value("document.body.innerText"));
    // Nothing but this server was asked.
    let hosts = browser.value("[...new Set(performance.getEntriesByType('resource').map(entry => new URL(entry.name).protocol + new URL(entry.name).host))]");
    for host in hosts.as_array().unwrap() {
        let host = host.as_str().unwrap();
        assert!(
            host == format!("http:{}", serving.address()) || host.starts_with("blob:") || host.starts_with("data:"),
            "{hosts}"
        );
    }
    if let Some(folder) = std::env::var_os("TLPIPE_KEEP_PAGE") {
        for (name, scheme) in [("light", "light"), ("dark", "dark")] {
            let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
            browser.ask("Emulation.setEmulatedMedia", features);
            let shot = browser.ask("Page.captureScreenshot", json!({}))["data"].as_str().unwrap().to_owned();
            let shot = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, shot).unwrap();
            fs::write(Path::new(&folder).join(format!("{name}.png")), shot).unwrap();
        }
    }
}
