//! The page of `tlpipe serve` in a real browser.

#![cfg(unix)]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::browser::keep;
use crate::chromium::Browser;
use crate::predict::exported;
use crate::serve::Serving;
use crate::support::{Scratch, picture, png};

/// Waits until a script says that it is so.
fn wait(browser: &mut Browser, script: &str) {
    let started = Instant::now();
    while browser.eval(script) != true {
        assert!(started.elapsed() < Duration::from_secs(30), "{script}: {}", browser.eval("document.body.innerText"));
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Chooses files, as the user does in the system's dialogue.
fn choose(browser: &mut Browser, files: &[&Path]) {
    let root = browser.call("DOM.getDocument", json!({}))["root"]["nodeId"].clone();
    let input = browser.call("DOM.querySelector", json!({"nodeId": root, "selector": "input[type=file]"}))["nodeId"].clone();
    browser.call("DOM.setFileInputFiles", json!({"files": files, "nodeId": input}));
}

#[test]
fn a_picture_is_shown_with_its_classes() {
    let scratch = Scratch::new();
    exported(&scratch);
    let Some(mut browser) = Browser::start() else { return };
    let serving = Serving::start(&scratch, &[]);
    browser.call("Page.navigate", json!({"url": format!("http://{}/", serving.address())}));
    wait(&mut browser, "document.readyState === 'complete' && document.title === 'm'");
    let (good, bad) = (scratch.path("good.png"), scratch.path("bad.png"));
    fs::write(&good, png(&picture(1, 4))).unwrap();
    fs::write(&bad, "no picture").unwrap();
    choose(&mut browser, &[&good, &bad]);
    wait(&mut browser, "document.querySelectorAll('article[data-done]').length === 2");
    let text = |browser: &mut Browser, selector: &str| {
        let script = format!("document.querySelector({}).innerText", json!(selector));
        browser.eval(&script).as_str().unwrap().to_owned()
    };
    assert!(text(&mut browser, "article[data-done=failed] .bad").contains("not an image"));
    assert_eq!(text(&mut browser, "article[data-done=yes] li span"), "two lines", "the best class comes first");
    let head = text(&mut browser, "article[data-done=yes] header");
    assert!(head.contains("good.png") && head.contains("ms in the server"), "{head}");
    assert_eq!(browser.eval("document.querySelector('article[data-done=yes] img').naturalWidth"), json!(40));
    assert!(browser.eval("document.querySelector('article[data-done=yes] li div div').offsetWidth").as_u64().unwrap() > 50);

    // Dropped and pasted pictures come the same way.
    let image = format!("new File([Uint8Array.from({})], 'made.png', {{type: 'image/png'}})", json!(png(&picture(0, 0))));
    for event in ["new DragEvent('drop', {dataTransfer: data})", "new ClipboardEvent('paste', {clipboardData: data})"] {
        let before = browser.eval("document.querySelectorAll('article[data-done=yes]').length").as_u64().unwrap();
        browser
            .eval(&format!("(() => {{ const data = new DataTransfer(); data.items.add({image}); dispatchEvent({event}); }})()"));
        wait(&mut browser, &format!("document.querySelectorAll('article[data-done=yes]').length === {}", before + 1));
    }
    let best = text(&mut browser, "article li span");
    assert!(best.starts_with("cat"), "{best}: {}", browser.eval("document.body.innerText"));
    // Nothing but this server was asked.
    let script =
        "performance.getEntriesByType('resource').map((entry) => new URL(entry.name)).map((url) => url.protocol + url.host)";
    let hosts = browser.eval(script);
    for host in hosts.as_array().unwrap() {
        let host = host.as_str().unwrap();
        assert!(
            host == format!("http:{}", serving.address()) || host.starts_with("blob:") || host.starts_with("data:"),
            "{hosts}"
        );
    }
    for scheme in ["light", "dark"] {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        browser.call("Emulation.setEmulatedMedia", features);
        keep(&format!("serve-{scheme}.png"), &browser.screenshot());
    }
}
