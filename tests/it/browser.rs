//! The report as a reader meets it: in a browser, by mouse and by keyboard, narrow, wide and printed.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::chromium::Browser;
use crate::support::{Scratch, picture, quick};

/// Names that a page may not take for markup, and that run from right to left.
const CLASSES: [&str; 3] = ["<b>cat & co", "קלמנטינה", "🦉 owl"];

/// A run on images of three colours, some of them in the wrong folder; the folder of the run.
fn wrong_here_and_there(scratch: &Scratch) -> String {
    let data = scratch.folders("photos", &CLASSES, 30);
    for (class, name) in CLASSES.iter().enumerate() {
        for number in (0..30).step_by(5) {
            picture((class + 1) % 3, number + 40)
                .save(scratch.path("photos").join(name).join(format!("{number:03}.png")))
                .unwrap();
        }
    }
    scratch.ok(&[&["run"][..], &quick(&data, &["--features", "f", "--run", "r", "--epochs", "5"])].concat());
    data
}

/// Keeps a screenshot where `TLPIPE_SCREENSHOTS` names a folder.
pub fn keep(name: &str, png: &[u8]) {
    if let Some(folder) = std::env::var_os("TLPIPE_SCREENSHOTS") {
        fs::create_dir_all(&folder).unwrap();
        fs::write(Path::new(&folder).join(name), png).unwrap();
    }
}

#[test]
fn the_report_works_in_a_browser() {
    let Some(mut browser) = Browser::start() else { return };
    let scratch = Scratch::new();
    wrong_here_and_there(&scratch);
    browser.resize(1280);
    browser.open(&scratch.path("r/report.html"));
    assert_eq!(browser.eval("document.querySelector('b b, h1 b, th b')"), json!(null), "a name became markup");

    // A cell of the matrix opens its images, by mouse and by keyboard.
    browser.click(".matrix td.w button");
    assert_eq!(browser.eval("document.querySelector('#images').open"), true);
    let shown = browser.eval(
        "[...document.querySelectorAll('#images img')].filter((image) => image.complete && image.naturalWidth === 40).length",
    );
    let counted = browser.eval("Number(document.querySelector('.matrix td.w .count').textContent)");
    assert!(counted.as_u64().is_some_and(|counted| counted > 0) && shown == counted, "{shown} of {counted}");
    assert!(browser.eval("document.querySelector('#images h2').textContent").as_str().unwrap().contains(" taken for "));
    keep("dialog.png", &browser.screenshot());
    browser.press("Escape");
    assert_eq!(browser.eval("document.querySelector('#images').open"), false);
    browser.eval("document.querySelector('.matrix button[tabindex=\"0\"]').focus()");
    browser.press("ArrowDown");
    browser.press("ArrowRight");
    let cell = browser.eval("document.activeElement.closest('td').dataset.c");
    browser.press("Enter");
    assert_eq!(browser.eval("document.querySelector('#images').open"), true, "{cell}");
    browser.press("Enter");
    assert_eq!(browser.eval("document.querySelector('#images').open"), false, "the button that closes it has the focus");

    // Counts or shares.
    browser.click("label[for=cells-share]");
    assert_eq!(browser.eval("getComputedStyle(document.querySelector('.matrix .count')).display"), "none");
    assert_ne!(browser.eval("getComputedStyle(document.querySelector('.matrix .share')).display"), "none");

    // The table of classes sorts, and the other way round.
    let order = "[...document.querySelectorAll('#classes tbody tr')].map((row) => Number(row.cells[3].dataset.v))";
    browser.click("#classes th:nth-child(4) button");
    let down: Vec<f64> = serde_json::from_value(browser.eval(order)).unwrap();
    assert!(down.len() == 3 && down.is_sorted_by(|a, b| a >= b), "{down:?}");
    assert_eq!(browser.eval("document.querySelector('#classes th:nth-child(4)').ariaSort"), "descending");
    browser.press("Enter");
    let up: Vec<f64> = serde_json::from_value(browser.eval(order)).unwrap();
    assert!(up.is_sorted(), "{up:?}");
    browser.click("#classes th:nth-child(1) button");
    assert_eq!(browser.eval("document.querySelector('#classes th:nth-child(1)').ariaSort"), "ascending", "names from a to z");

    // The map: a point shows its image, arrows lead to others, planes and classes can be chosen.
    browser.point(".map circle");
    assert_eq!(browser.eval("document.querySelector('.tip').hidden"), false);
    assert_eq!(browser.eval("document.querySelector('.tip img').naturalWidth"), 40);
    let first = browser.eval("document.querySelector('.tip').textContent");
    browser.eval("document.querySelector('.map svg').focus()");
    for key in ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"] {
        browser.press(key);
    }
    assert_ne!(browser.eval("document.querySelector('.tip').textContent"), first);
    let before = browser.eval("document.querySelector('.map circle').getAttribute('cx')");
    browser.click("label[for=plane-pca]");
    assert_ne!(browser.eval("document.querySelector('.map circle').getAttribute('cx')"), before);
    browser.click("[data-class=wrong]");
    let bright = browser.eval("document.querySelectorAll('.map circle:not(.dim)').length");
    let rings = browser.eval("2 * document.querySelectorAll('.map circle[fill=none]').length");
    assert!(bright == rings && rings.as_u64().is_some_and(|rings| rings > 0), "{bright} of {rings}");

    // The theme follows the choice, and the system where none was made.
    let paper = "getComputedStyle(document.body).backgroundColor";
    let light = browser.eval(paper);
    browser.click("label[for=theme-dark]");
    let dark = browser.eval(paper);
    assert_ne!(dark, light);
    keep("dark.png", &browser.screenshot());
    browser.click("label[for=theme-auto]");
    browser.call("Emulation.setEmulatedMedia", json!({ "features": [{ "name": "prefers-color-scheme", "value": "dark" }] }));
    assert_eq!(browser.eval(paper), dark);
    browser.call("Emulation.setEmulatedMedia", json!({ "features": [] }));

    // Narrow, wide, printed: nothing juts out.
    for (name, width, media) in [("390.png", 390, ""), ("1280.png", 1280, ""), ("print.png", 794, "print")] {
        browser.resize(width);
        browser.call("Emulation.setEmulatedMedia", json!({ "media": media }));
        let juts = browser.eval("document.documentElement.scrollWidth");
        assert!(juts.as_u64().is_some_and(|found| found <= u64::from(width)), "{juts} at {width}");
        let png = browser.screenshot();
        assert_eq!(image::load_from_memory(&png).unwrap().width(), width);
        keep(name, &png);
    }
    assert_eq!(browser.problems(), [""; 0]);
}

#[test]
fn without_script_the_report_can_be_read() {
    let Some(mut browser) = Browser::start() else { return };
    let scratch = Scratch::new();
    wrong_here_and_there(&scratch);
    browser.call("Emulation.setScriptExecutionDisabled", json!({ "value": true }));
    browser.resize(390);
    browser.call("Page.navigate", json!({ "url": format!("file://{}", scratch.path("r/report.html").display()) }));
    std::thread::sleep(std::time::Duration::from_secs(1));
    // The protocol may look where the page may not.
    let tree = browser.call("DOM.getDocument", json!({ "depth": 0 }));
    let text = browser.call("DOM.getOuterHTML", json!({ "nodeId": tree["root"]["nodeId"] }));
    let text = text["outerHTML"].as_str().unwrap();
    assert!(text.contains("<table class=\"matrix\">") && !text.contains("<td class=\"w\"><button"));
    keep("no-script.png", &browser.screenshot());
}

#[test]
fn runs_are_compared_on_a_page() {
    let scratch = Scratch::new();
    let data = wrong_here_and_there(&scratch);
    scratch.ok(&["fit-head", "r", "--run", "s", "--solver", "ridge"]);
    let written = scratch.json(&["report", "--compare", "r", "s"]);
    assert_eq!((&written["html"], &written["json"]), (&json!("compare.html"), &json!("compare.json")));
    let facts: serde_json::Value = serde_json::from_slice(&fs::read(scratch.path("compare.json")).unwrap()).unwrap();
    assert_eq!((&facts["schema"], facts["runs"].as_array().map(Vec::len)), (&json!(1), Some(2)));
    let (pair, changes) = (&facts["pairs"][0], &facts["changes"][0]);
    assert_eq!(changes["won"].as_array().map(Vec::len), pair["only_second"].as_u64().map(|rows| rows.min(24) as usize));
    assert_eq!(changes["lost"].as_array().map(Vec::len), pair["only_first"].as_u64().map(|rows| rows.min(24) as usize));

    let csv = scratch.ok(&["report", "--compare", "r", "s", "--format", "csv", "--output", "b.html"]).stdout;
    assert_eq!(csv.lines().map(|line| line.split(',').next().unwrap()).collect::<Vec<_>>(), ["run", "r", "s"]);
    assert!(scratch.path("b.html").is_file() && scratch.path("b.json").is_file());
    scratch.fails(2, &["report", "--compare", "r"]);
    scratch.fails(2, &["report", "r", "--output", "c.html"]);
    // A file of someone else's is not replaced, be it the page's or that of the data beside it.
    for (name, page) in [("mine.json", "mine.html"), ("photo.jpg", "photo.jpg")] {
        fs::write(scratch.path(name), "{\"schema\": 1}").unwrap();
        let said = scratch.fails(1, &["report", "--compare", "r", "s", "--output", page]);
        assert!(said.contains(name) && said.contains("--output"), "{said}");
        assert_eq!(fs::read_to_string(scratch.path(name)).unwrap(), "{\"schema\": 1}");
    }
    scratch.ok(&["report", "--compare", "r", "s"]);
    scratch.fails(2, &["report", "--compare", "r", "s", "--data", &data]);
    let Some(mut browser) = Browser::start() else { return };
    browser.resize(390);
    browser.open(&scratch.path("compare.html"));
    assert!(browser.eval("document.documentElement.scrollWidth").as_u64().is_some_and(|found| found <= 390));
    browser.click("#runs th:nth-child(5) button");
    assert_eq!(browser.eval("document.querySelector('#runs th:nth-child(5)').ariaSort"), "descending");
    keep("compare.png", &browser.screenshot());
    assert_eq!(browser.problems(), [""; 0]);
}

#[test]
fn the_summary_has_formats_and_images_that_moved_are_noted() {
    let scratch = Scratch::new();
    let data = wrong_here_and_there(&scratch);
    let text = scratch.ok(&["report", "r", "--no-map"]).stdout;
    assert!(text.contains("hold-out") && text.contains('█') && text.contains("report.html"), "{text}");
    let facts: serde_json::Value = serde_json::from_str(&scratch.ok(&["report", "r", "--format", "json"]).stdout).unwrap();
    let written: serde_json::Value = serde_json::from_slice(&fs::read(scratch.path("r/report.json")).unwrap()).unwrap();
    assert_eq!((&facts["schema"], &facts["metrics"]), (&written["schema"], &written["metrics"]));
    assert!(facts["map"]["points"].as_array().is_some_and(|points| !points.is_empty()));
    let csv = scratch.ok(&["report", "r", "--no-map", "--format", "csv"]).stdout;
    assert_eq!(csv.lines().next(), Some("split,rows,accuracy,low,high,loss,macro_f1,ece"));
    let markdown = scratch.ok(&["report", "r", "--no-map", "--format", "markdown"]).stdout;
    assert!(markdown.contains("| split | rows |") && markdown.contains("&lt;b&gt;cat &amp; co"), "{markdown}");

    let page = || fs::read_to_string(scratch.path("r/report.html")).unwrap();
    scratch.ok(&["report", "r", "--no-map", "--thumbnails-mib", "0"]);
    assert!(!page().contains("src=\"data:image/"));
    fs::rename(&data, scratch.path("elsewhere")).unwrap();
    scratch.ok(&["report", "r", "--no-map"]);
    assert!(page().contains("There are no pictures") && page().contains("no picture</div>"));
    scratch.ok(&["report", "r", "--no-map", "--data", &scratch.path("elsewhere").display().to_string()]);
    assert!(page().contains("src=\"data:image/"));
    // A run on features alone knows no source.
    scratch.ok(&["fit-head", "--features", "f", "--run", "bare"]);
    scratch.ok(&["report", "--features", "f", "--run", "bare", "--no-map"]);
    let page = fs::read_to_string(scratch.path("bare/report.html")).unwrap();
    assert!(page.contains("does not know where its images are") && page.contains("--data SOURCE"));
    fs::write(scratch.path("r/metrics.json"), "{").unwrap();
    let said = scratch.fails(1, &["report", "r"]);
    assert!(said.contains("metrics.json") && said.contains("fit-head"), "{said}");
}
