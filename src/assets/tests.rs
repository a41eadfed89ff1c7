//! The search as a whole, on folders and servers of the test's own.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Mutex;
use std::time::Duration;

use super::*;
use crate::events::ignore;

struct World {
    folder: tempfile::TempDir,
    search: Search,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let search = Search {
            workdir: path("work"),
            roots: vec![path("absent"), path("assets")],
            cache: path("cache"),
            mirror: None,
            offline: true,
        };
        Self { folder, search }
    }

    fn put(&self, path: &str, content: &str) -> PathBuf {
        let path = self.folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    fn finder(&self, urls: &str) -> Finder {
        let file = |name: &str, content: &str| {
            format!(
                "{{name='{name}',bytes={},sha256='{}',urls=[{urls}]}}",
                content.len(),
                checksum::sha256_of(content.as_bytes())
            )
        };
        let rest = "title='',licence='',classes=2,labels='',\
                    preprocessing={layout='nchw',order='rgb',divisor=255,mean=[0,0,0],std=[1,1,1],side=8}";
        let models = format!(
            "alias=[{{name='net',models=['first','second']}}]\nmodel=[{{name='first',{rest},file={}}},{{name='second',{rest},file={}}}]",
            file("first.onnx", "one"),
            file("second.onnx", "two")
        );
        let data = format!(
            "dataset=[{{name='set',title='',licence='',variant=[{{format='Parquet',file=[{},{}]}},{{format='binary',file=[{}]}}]}}]",
            file("train.parquet", "train"),
            file("test.parquet", "test"),
            file("set.tar.gz", "tar")
        );
        Finder::with_registry(self.search.clone(), Registry::parse(&models, &data).unwrap())
    }
}

/// Serves the same bytes to `count` requests.
fn serve(content: &'static str, count: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for _ in 0..count {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]).unwrap();
            write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{content}", content.len()).unwrap();
        }
    });
    format!("http://{address}")
}

#[test]
fn places_are_searched_in_order() {
    let world = World::new();
    let expect = |path: &Path, how: &str| {
        let located = world.finder("").model("first", &ignore).unwrap();
        assert_eq!((fs::canonicalize(&located.path).unwrap(), located.how.as_str()), (fs::canonicalize(path).unwrap(), how));
        assert_eq!(located.card.as_ref().unwrap().name, "first");
        assert_eq!(&*located.read().unwrap(), b"one");
    };
    expect(&world.put("cache/models/first.onnx", "one"), "in the cache");
    // By content, under another name.
    expect(&world.put("assets/zoo/renamed.bin", "one"), "in TLPIPE_ASSETS");
    expect(&world.put("work/models/first.onnx", "one"), "in models/");
}

#[test]
fn a_path_that_exists_comes_first_and_is_known_by_its_content() {
    let world = World::new();
    world.put("work/first", "two");
    let located = world.finder("").model("first", &ignore).unwrap();
    assert_eq!(located.card.unwrap().name, "second");
    // A namesake of other content is used, but not as what it is not.
    world.put("work/first.onnx", "changed");
    let warnings = Mutex::new(Vec::new());
    let observer = |event: Event<'_>| {
        if let Event::Warned(text) = event {
            warnings.lock().unwrap().push(text);
        }
    };
    assert!(world.finder("").model("first.onnx", &observer).unwrap().card.is_none());
    assert!(warnings.lock().unwrap()[0].contains("named like the registry's first"));
}

#[test]
fn an_alias_is_the_first_that_is_at_hand() {
    let world = World::new();
    world.put("cache/models/second.onnx", "two");
    assert_eq!(world.finder("").model("net", &ignore).unwrap().card.unwrap().name, "second");
    world.put("cache/models/first.onnx", "one");
    assert_eq!(world.finder("").model("net", &ignore).unwrap().card.unwrap().name, "first");
}

#[test]
fn a_wrong_file_is_never_used_and_its_hash_is_told() {
    let world = World::new();
    world.put("assets/deep/first.onnx", "garbage");
    let error = world.finder("").model("first", &ignore).unwrap_err().to_string();
    let (found, expected) = (checksum::sha256_of(b"garbage"), checksum::sha256_of(b"one"));
    for part in
        ["--offline", &found, &expected, "models/", "absent", "no such folder", "assets", "cache", "tlpipe models fetch first"]
    {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}

#[test]
fn unknown_names_get_a_suggestion() {
    let error = World::new().finder("").model("frist", &ignore).unwrap_err().to_string();
    assert!(error.contains("did you mean \"first\"?") && error.contains("net, first, second"), "{error}");
    let error = World::new().finder("").dataset("photos", &ignore).unwrap_err().to_string();
    assert!(error.contains("known names: set") && !error.contains("did you mean"), "{error}");
}

#[test]
fn a_data_set_counts_only_when_a_form_of_it_is_whole() {
    let world = World::new();
    let train = world.put("assets/a/train.parquet", "train");
    world.put("assets/other/test.parquet", "another set's file of the same name");
    let error = world.finder("").dataset("set", &ignore).unwrap_err().to_string();
    assert!(error.starts_with("data set set: test.parquet is not at hand"), "{error}");
    assert!(error.contains("TLPIPE_ASSETS") && error.contains("tlpipe data fetch set"), "{error}");
    let tar = world.put("cache/data/set/set.tar.gz", "tar");
    assert_eq!(world.finder("").dataset("set", &ignore).unwrap().paths, [tar]);
    let test = world.put("work/data/set/test.parquet", "test");
    let located = world.finder("").dataset("set", &ignore).unwrap();
    assert_eq!((located.paths, located.how.as_str()), (vec![train, test], "Parquet, in TLPIPE_ASSETS and in data/"));
}

#[test]
fn a_data_set_by_path_or_pattern_is_taken_as_it_is() {
    let world = World::new();
    let file = world.put("work/mine/a.parquet", "");
    assert_eq!(world.finder("").dataset("mine/a.parquet", &ignore).unwrap().paths, [file]);
    assert_eq!(world.finder("").dataset("mine/*.parquet", &ignore).unwrap().how, "pattern");
}

#[test]
fn what_is_missing_is_downloaded_once() {
    let mut world = World::new();
    world.search.offline = false;
    let url = serve("one", 1);
    let finder = world.finder(&format!("'{url}/first.onnx'"));
    assert_eq!(finder.fetch_model("first", &ignore).unwrap().how, "downloaded");
    assert_eq!(finder.fetch_model("first", &ignore).unwrap().how, "in the cache");
}

#[test]
fn the_mirror_is_asked_first_and_every_answer_is_told() {
    let mut world = World::new();
    world.search.offline = false;
    world.search.mirror = Some(serve("one", 1));
    assert_eq!(world.finder("").model("net", &ignore).unwrap().card.unwrap().name, "first");
    world.search.mirror = Some(serve("bad", 2));
    let error = world.finder("").dataset("set", &ignore).unwrap_err().to_string();
    assert!(
        error.contains("could not be downloaded") && error.contains("train.parquet: wrong size: 3 bytes, expected 5"),
        "{error}"
    );
    assert!(error.contains("set.tar.gz: wrong content: SHA-256 is"), "{error}");
}

#[test]
fn a_network_that_is_published_nowhere_says_so() {
    let mut world = World::new();
    world.search.offline = false;
    let error = world.finder("").model("first", &ignore).unwrap_err().to_string();
    assert!(error.contains("published nowhere") && error.contains("TLPIPE_ASSETS"), "{error}");
}

#[test]
fn no_network_fails_soon() {
    let mut world = World::new();
    world.search.offline = false;
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let start = std::time::Instant::now();
    let error = world.finder(&format!("'http://{closed}/f'")).dataset("set", &ignore).unwrap_err().to_string();
    assert!(error.contains("refused") && error.contains("tlpipe data fetch set"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(1));
    // Neither is a host asked twice that has no address.
    let error = world.finder("'http://nowhere.invalid/f'").dataset("set", &ignore).unwrap_err().to_string();
    assert!(error.contains("nowhere.invalid") && !error.contains("in a row"), "{error}");
}

#[test]
fn the_real_assets_are_found() {
    let Some(root) = env::var_os("TLPIPE_ASSETS") else {
        println!("skipped: TLPIPE_ASSETS is not set");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let search = Search {
        workdir: folder.path().into(),
        roots: env::split_paths(&root).collect(),
        cache: folder.path().join("cache"),
        mirror: None,
        offline: true,
    };
    let finder = Finder::new(search).unwrap();
    assert_eq!(finder.model("mobilenet_v2", &ignore).unwrap().card.unwrap().name, "mobilenet_v2_1.0_224");
    assert_eq!(finder.dataset("cifar10", &ignore).unwrap().paths.len(), 2);
    // Remembered: no file is read again.
    let start = std::time::Instant::now();
    finder.dataset("cifar10", &ignore).unwrap();
    assert!(start.elapsed() < Duration::from_millis(50), "{:?}", start.elapsed());
}
