//! Sources in an object store, through the program.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use assert_cmd::Command;
use serde_json::Value;
use tlpipe::store::Store;

use crate::s3::S3;
use crate::support::{Scratch, finish, parquet, picture, png, quick};

/// `tlpipe ARGS` for a user of this server, with a cache of its own: the indices of shards are remembered there.
fn command(scratch: &Scratch, s3: &S3, args: &[&str]) -> Command {
    let mut command = scratch.command(args);
    s3.environment(&mut command);
    if let Some(library) = scratch.json(&["doctor"])["onnxruntime"]["path"].as_str() {
        command.env("XDG_CACHE_HOME", scratch.path("cache")).env("ORT_DYLIB_PATH", library);
    }
    command
}

fn extract(scratch: &Scratch, s3: &S3, data: &str, features: &str) -> Value {
    let args = [&["extract"][..], &quick(data, &["--features", features, "--json"])].concat();
    let ran = finish(&mut command(scratch, s3, &args));
    assert_eq!(ran.status, Some(0), "{}{}", ran.stdout, ran.stderr);
    serde_json::from_str(&ran.stdout).unwrap()
}

fn images() -> Vec<Vec<u8>> {
    (0..6).map(|number| png(&picture(number % 2, number))).collect()
}

fn shard(path: &Path, images: &[Vec<u8>]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut archive = tar::Builder::new(fs::File::create(path).unwrap());
    let mut add = |name: String, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, name, content).unwrap();
    };
    for (number, image) in images.iter().enumerate() {
        add(format!("{number:04}.cls"), (number % 2).to_string().as_bytes());
        add(format!("{number:04}.png"), image);
    }
    archive.into_inner().unwrap();
}

#[test]
fn folders_parquet_and_shards_are_read_like_local_ones() {
    let (scratch, s3) = (Scratch::new(), S3::start());
    let images = images();
    for (number, image) in images.iter().enumerate() {
        let path = s3.path(&format!("bucket/photos/train/{}/{number}.png", ["cat", "dog"][number % 2]));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, image).unwrap();
    }
    let rows: Vec<_> = images.iter().cloned().map(Some).collect();
    parquet(&s3.path("bucket/table/train-00000-of-00001.parquet"), &rows, &[0, 1, 0, 1, 0, 1]);
    shard(&s3.path("bucket/shards/train-0000.tar"), &images[..4]);
    shard(&s3.path("bucket/shards/test-0000.tar"), &images[4..]);
    for (data, kind) in
        [("photos", "class folders"), ("table", "Parquet"), ("shards", "WebDataset"), ("shards/t*.tar", "WebDataset")]
    {
        let _ = fs::remove_dir_all(scratch.path("far"));
        let _ = fs::remove_dir_all(scratch.path("near"));
        let far = extract(&scratch, &s3, &format!("s3://bucket/{data}"), "far");
        let near = s3.path(&format!("bucket/{data}")).display().to_string();
        let near = extract(&scratch, &s3, &near, "near");
        assert_eq!((&far["rows"], &near["rows"]), (&6.into(), &6.into()), "{data}");
        let [far, near] = ["far", "near"].map(|name| Store::open(&scratch.path(name)).unwrap());
        assert_eq!(far.manifest().source.kind, kind);
        assert_eq!(far.manifest().classes, near.manifest().classes);
        for split in near.manifest().splits() {
            let (far, near) = (far.load(&[&split]).unwrap(), near.load(&[&split]).unwrap());
            assert_eq!((&far.ids, &far.labels), (&near.ids, &near.labels));
        }
        // The fingerprint is that of the listing: nothing is to be done, and no image is fetched to know it.
        s3.asked();
        let again = extract(&scratch, &s3, &format!("s3://bucket/{data}"), "far");
        assert_eq!(again["up_to_date"], true, "{data}: {again}");
        let asked = s3.asked();
        assert!(asked.iter().all(|line| !line.contains(".png")), "{data}: {asked:?}");
        // One look tells that the first shard is one; what is in both is remembered.
        let shards = asked.iter().filter(|line| line.starts_with("GET /bucket/shards/")).count();
        assert!(shards <= 1, "{data}: {asked:?}");
    }
}

#[test]
fn a_changed_object_is_extracted_anew_and_the_others_are_not() {
    let (scratch, s3) = (Scratch::new(), S3::start());
    for (number, image) in images().iter().enumerate() {
        let path = s3.path(&format!("bucket/{}/{number}.png", ["cat", "dog"][number % 2]));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, image).unwrap();
    }
    assert_eq!(extract(&scratch, &s3, "s3://bucket", "f")["new"], 6);
    fs::write(s3.path("bucket/cat/0.png"), png(&picture(1, 9))).unwrap();
    let second = extract(&scratch, &s3, "s3://bucket", "f");
    assert_eq!((&second["new"], &second["reused"]), (&1.into(), &5.into()));
}

#[test]
fn what_is_wrong_is_said_with_its_remedy() {
    let (scratch, s3) = (Scratch::new(), S3::start());
    fs::create_dir_all(s3.path("bucket/empty")).unwrap();
    fs::write(s3.path("bucket/list.csv"), "path,label\na.jpg,x\n").unwrap();
    let inspect = |data: &str, change: &dyn Fn(&mut Command)| {
        let mut command = command(&scratch, &s3, &["data", "inspect", data]);
        command.env("TLPIPE_RETRY_SECONDS", "1");
        change(&mut command);
        let ran = finish(&mut command);
        assert_eq!(ran.status, Some(1), "{data}: {}{}", ran.stdout, ran.stderr);
        ran.stderr
    };
    let same = |_: &mut Command| {};
    let text = inspect("s3://bucket/gone", &same);
    assert!(text.contains("s3://bucket/gone: nothing is there"), "{text}");
    let text = inspect("s3://no-bucket/photos", &same);
    assert!(text.contains("s3://no-bucket/photos") && text.contains("check bucket and name"), "{text}");
    let text = inspect("s3://bucket/list.csv", &same);
    assert!(text.contains("a table of image paths cannot be read from there"), "{text}");
    let text = inspect("ftp://host/x", &same);
    assert!(text.contains("s3://, gs://, az://"), "{text}");
    let text = inspect("s3://bucket/list.csv", &|command| {
        command.env("AWS_SECRET_ACCESS_KEY", "wrong");
    });
    assert!(text.contains("s3://bucket/list.csv") && text.contains("set AWS_ACCESS_KEY_ID"), "{text}");
    let text = inspect("s3://bucket/list.csv", &|command| {
        command.env_remove("AWS_ALLOW_HTTP");
    });
    assert!(text.contains("AWS_ALLOW_HTTP=true"), "{text}");
    let text = inspect("s3://bucket/list.csv", &|command| {
        command.env("TLPIPE_RETRY_SECONDS", "soon");
    });
    assert!(text.contains("TLPIPE_RETRY_SECONDS=soon"), "{text}");
    s3.asked();
    let text = inspect("s3://bucket/list.csv", &|command| {
        command.arg("--offline");
    });
    assert!(text.contains("--offline") && s3.asked().is_empty(), "{text}");
}

#[test]
fn a_web_server_gives_single_files_and_no_folders() {
    let (scratch, web) = (Scratch::new(), S3::open());
    shard(&web.path("data/train-0000.tar"), &images());
    let at = |name: &str| format!("http://{}/data/{name}", web.address());
    assert_eq!(extract(&scratch, &web, &at("train-0000.tar"), "f")["rows"], 6);
    let file = format!("file://{}", web.path("data/train-0000.tar").display());
    scratch.ok(&["data", "inspect", &file, "--offline"]);
    let text = scratch.fails(1, &["data", "inspect", &at("folder")]);
    assert!(text.contains("does not list its folders"), "{text}");
}

#[test]
fn google_storage_is_asked_the_way_its_service_account_says() {
    // Its XML interface is the one that this server speaks.
    let (scratch, store) = (Scratch::new(), S3::open());
    for (number, image) in images().iter().enumerate() {
        let path = store.path(&format!("bucket/photos/{}/{number}.png", ["cat", "dog"][number % 2]));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, image).unwrap();
    }
    let account = serde_json::json!({
        "gcs_base_url": format!("http://{}", store.address()), "disable_oauth": true,
        "client_email": "", "private_key": "", "private_key_id": "",
    });
    fs::write(scratch.path("account.json"), account.to_string()).unwrap();
    let args = [&["extract"][..], &quick("gs://bucket/photos", &["--features", "far", "--json"])].concat();
    let mut far = command(&scratch, &store, &args);
    let ran = finish(far.env("GOOGLE_SERVICE_ACCOUNT", scratch.path("account.json")));
    assert_eq!(ran.status, Some(0), "{}{}", ran.stdout, ran.stderr);
    let asked = store.asked();
    assert!(asked.iter().any(|line| line.starts_with("GET /bucket/photos%2Fcat%2F0")), "{asked:?}");
    extract(&scratch, &store, &store.path("bucket/photos").display().to_string(), "near");
    let [far, near] = ["far", "near"].map(|name| Store::open(&scratch.path(name)).unwrap().load(&["train"]).unwrap());
    assert_eq!((&far.ids, &far.labels, &far.embeddings), (&near.ids, &near.labels, &near.embeddings));
    assert_eq!(far.ids.len(), 6);
}

#[test]
fn lines_that_break_are_asked_again() {
    let (scratch, s3) = (Scratch::new(), S3::start());
    shard(&s3.path("bucket/train-0000.tar"), &images());
    let address = s3.behind_a_bad_line(4, 1500);
    let mut command = command(&scratch, &s3, &[&["extract"][..], &quick("s3://bucket", &["--features", "f", "--json"])].concat());
    s3.environment_at(address, &mut command);
    let ran = finish(&mut command);
    assert_eq!(ran.status, Some(0), "{}", ran.stderr);
    assert_eq!(serde_json::from_str::<Value>(&ran.stdout).unwrap()["rows"], 6);
}

#[test]
fn a_server_that_stops_answering_ends_the_run_in_time_and_what_was_done_is_kept() {
    let (scratch, s3) = (Scratch::new(), S3::start());
    for number in 0..80 {
        let path = s3.path(&format!("bucket/{}/{number:03}.png", ["cat", "dog"][number % 2]));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, png(&picture(number % 2, number))).unwrap();
    }
    let args = [&["extract"][..], &quick("s3://bucket", &["--features", "f", "--batch", "8", "--threads", "1"])].concat();
    s3.answer(50);
    let started = Instant::now();
    let ran = finish(command(&scratch, &s3, &args).env("TLPIPE_RETRY_SECONDS", "2"));
    assert_eq!(ran.status, Some(1), "{}{}", ran.stdout, ran.stderr);
    assert!(
        ran.stderr.contains("s3://bucket/") && ran.stderr.contains("503") && ran.stderr.contains("run the same command again")
    );
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    s3.answer(-1);
    let again = extract(&scratch, &s3, "s3://bucket", "f");
    assert_eq!(again["rows"], 80);
    assert!(again["reused"].as_u64().unwrap() >= 8, "{again}");
}
