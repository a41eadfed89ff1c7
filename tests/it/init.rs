//! `tlpipe init`: it looks, it chooses, it says why, and what it writes runs.

use std::fs;

use image::imageops::{FilterType, resize};
use serde_json::Value;

use crate::schema::against;
use crate::support::{Scratch, assets, first_rows, parquet, picture, png};

/// The choices that were made, by key.
fn chosen(written: &Value) -> serde_json::Map<String, Value> {
    let choices = written["choices"].as_array().unwrap().iter().filter(|choice| choice["set"] == true);
    choices.map(|choice| (choice["key"].as_str().unwrap().to_owned(), choice["value"].clone())).collect()
}

/// The file that was written, which must fit the schema and name it.
fn file(scratch: &Scratch, name: &str) -> String {
    let text = fs::read_to_string(scratch.path(name)).unwrap();
    assert!(text.starts_with("#:schema ./tlpipe.schema.json\n"), "{text}");
    assert_eq!(against(&text), Vec::<String>::new(), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 120), "{text}");
    text
}

#[test]
fn class_folders_get_a_file_that_runs_as_it_stands() {
    let scratch = Scratch::new();
    scratch.folders("my photos/train", &["cat", "dog"], 30);
    scratch.folders("my photos/test", &["cat", "dog"], 5);
    fs::write(scratch.path("my photos/train/cat/bad.png"), b"").unwrap();
    let said = scratch.ok(&["init", "my photos", "--model", "quickstart"]);
    for needle in ["71 images in 2 classes", "40 x 30 pixels each", "1, to be set aside: train/cat/bad.png", "Next: tlpipe run"] {
        assert!(said.stdout.contains(needle), "no {needle:?} in: {}", said.stdout);
    }
    let text = file(&scratch, "tlpipe.toml");
    let flowing = text.replace("\n# ", " ");
    for needle in [
        "# Written by `tlpipe init 'my photos'`",
        "source = \"my photos\"",
        "input_size = 64",
        "# All images have about the same shape (40 x 30)",
        "resize = \"squash\"",
        "split = \"stratified\"",
        "# The same share of each class. Class folders are read class by class",
        "The 10 images of test are scored at the end",
        "solver = \"ridge\"",
        "features = \"features/my_photos-64\"",
    ] {
        assert!(text.contains(needle) || flowing.contains(needle), "no {needle:?} in: {text}");
    }
    assert_eq!(fs::read_to_string(scratch.path("tlpipe.schema.json")).unwrap(), tlpipe::pipeline::schema());

    let ran = scratch.json(&["run"]);
    assert_eq!((ran["extract"]["rows"].as_u64(), ran["extract"]["quarantined"].as_u64()), (Some(70), Some(1)));
    assert_eq!(ran["fit_head"]["split"]["kind"], "stratified");
    assert!(ran["fit_head"]["test"]["accuracy"].as_f64().unwrap() > 0.9, "{ran}");
    assert!(scratch.path("runs/my_photos-64/report.html").is_file());

    // A second time it is left alone, unless that is asked for.
    fs::write(scratch.path("tlpipe.toml"), "# mine\n").unwrap();
    let said = scratch.fails(1, &["init", "my photos", "--model", "quickstart"]);
    assert!(said.contains("tlpipe.toml") && said.contains("--force") && said.contains("-o"), "{said}");
    assert_eq!(fs::read_to_string(scratch.path("tlpipe.toml")).unwrap(), "# mine\n");
    scratch.ok(&["init", "my photos", "--model", "quickstart", "--force"]);
    assert_eq!(file(&scratch, "tlpipe.toml"), text);
    let written = scratch.json(&["init", "my photos", "--model", "quickstart", "-o", "other.toml"]);
    assert_eq!((written["path"].as_str(), written["schema"].as_str()), (Some("other.toml"), Some("tlpipe.schema.json")));
    assert_eq!((written["survey"]["looked_at"].as_u64(), written["survey"]["broken"].as_u64()), (Some(71), Some(1)));
    assert!(file(&scratch, "other.toml").contains("#   tlpipe run other.toml\n"));
}

#[test]
fn a_table_is_held_out_at_its_end_unless_it_stands_class_by_class() {
    let scratch = Scratch::new();
    let images: Vec<_> = (0..40).map(|row| Some(png(&picture(row % 2, row)))).collect();
    let labels: Vec<i64> = (0..40).map(|row| row % 2).collect();
    parquet(&scratch.path("mixed/train.parquet"), &images, &labels);
    parquet(&scratch.path("mixed/validation.parquet"), &images[..10], &labels[..10]);
    parquet(&scratch.path("shuffled.parquet"), &images, &labels);
    let sorted: Vec<_> = (0..40).map(|row| Some(png(&picture(row / 20, row)))).collect();
    parquet(&scratch.path("sorted.parquet"), &sorted, &(0..40).map(|row| row / 20).collect::<Vec<i64>>());
    for (source, split, why) in [
        ("shuffled.parquet", "tail", "The last rows, as Keras does it"),
        ("sorted.parquet", "stratified", "these rows stand class by class"),
        ("mixed", "source", "The source brings its own hold-out, 10 images"),
    ] {
        let written = scratch.json(&["init", source, "--model", "quickstart", "--force"]);
        assert_eq!(chosen(&written)["head.split"], split, "{source}");
        let text = file(&scratch, "tlpipe.toml").replace("\n# ", " ");
        assert!(text.contains(why) && text.contains("no split `test`"), "{text}");
        let ran = scratch.json(&["run"]);
        assert_eq!(ran["fit_head"]["split"]["kind"], split, "{source}");
        assert!(ran["fit_head"]["validation"]["accuracy"].as_f64().unwrap() > 0.7, "{source}: {ran}");
    }
}

#[test]
fn shapes_balance_and_number_of_the_images_are_answered() {
    let scratch = Scratch::new();
    // Many, drawn: several depths and least squares.
    scratch.ok(&["data", "synth", "-o", "drawn", "--train", "600", "--test", "100", "--side", "32"]);
    let written = scratch.json(&["init", "drawn", "--model", "quickstart", "-o", "drawn.toml"]);
    let made = chosen(&written);
    assert_eq!((made["backbone.layers"].as_str(), made["head.solver"].as_str()), (Some("multi"), Some("ridge")));
    file(&scratch, "drawn.toml");
    let ran = scratch.json(&["run", "drawn.toml"]);
    let pooled = scratch.json(&["run", "--data", "drawn", "--model", "quickstart", "--input-size", "64"]);
    let accuracy = |ran: &Value| ran["fit_head"]["test"]["accuracy"].as_f64().unwrap();
    assert!(accuracy(&ran) > accuracy(&pooled), "{} by init's choices, {} without", accuracy(&ran), accuracy(&pooled));

    // Out of balance: weights for classes, and a solver that has them.
    scratch.folders("skewed", &["cat"], 60);
    // Names that no comment may hold.
    scratch.folders("skewed", &["dog", "fox\n[head]\u{7}"], 3);
    let said = scratch.ok(&["init", "skewed", "--model", "quickstart", "-o", "skewed.toml"]).stdout;
    assert!(said.contains("fewer than 20 to train on"), "{said}");
    let text = file(&scratch, "skewed.toml");
    assert!(text.contains("class_weights = \"balanced\"") && text.contains("solver = \"lbfgs\""), "{text}");
    assert!(text.replace("\n# ", " ").contains("cat has 60 images to train on, dog 3: 20 times as many"), "{text}");
    scratch.ok(&["run", "skewed.toml"]);

    // Several shapes, then long ones.
    for (name, sides, how) in [("mixed", [(48, 36), (36, 48)], "crop"), ("long", [(120, 30), (30, 120)], "pad")] {
        for (class, class_name) in ["cat", "dog"].iter().enumerate() {
            fs::create_dir_all(scratch.path(name).join(class_name)).unwrap();
            for number in 0..12 {
                let (width, height) = sides[number % 2];
                let image = resize(&picture(class, number), width, height, FilterType::Triangle);
                image.save(scratch.path(name).join(class_name).join(format!("{number}.png"))).unwrap();
            }
        }
        let written = scratch.json(&["init", name, "--model", "quickstart", "-o", "shapes.toml", "--force"]);
        assert_eq!(chosen(&written)["backbone.resize"], how);
        scratch.ok(&["run", "shapes.toml"]);
    }
    let sampled = scratch.json(&["init", "mixed", "--model", "quickstart", "-o", "s.toml", "--sample", "6"]);
    assert_eq!(sampled["survey"]["looked_at"], 6);
}

#[test]
fn a_network_that_is_not_at_hand_is_known_by_its_card() {
    let scratch = Scratch::new();
    let data = scratch.folders("photos", &["cat", "dog"], 6);
    let mut command = scratch.command(&["init", &data, "--offline"]);
    command.env("XDG_CACHE_HOME", scratch.path("cache")).assert().success();
    let text = file(&scratch, "tlpipe.toml");
    assert!(text.contains("model = \"mobilenet_v2\"") && text.contains("The first run fetches it."), "{text}");
    // 30 pixels, enlarged five times.
    assert!(text.contains("input_size = 160"), "{text}");
}

#[test]
fn results_never_go_among_the_images() {
    let scratch = Scratch::new();
    scratch.folders("photos", &["cat", "dog"], 6);
    let inside = |args: &[&str]| {
        let args = [&["-C", "photos"], args].concat();
        scratch.json(&args)
    };
    let written = inside(&["init", ".", "--model", "quickstart"]);
    assert_eq!(chosen(&written)["output.features"], "../features/images-64");
    inside(&["run"]);
    assert!(scratch.path("features/images-64/store.json").is_file() && scratch.path("runs/images-64/report.html").is_file());
    assert_eq!(inside(&["run"])["extract"]["rows"], 12);
}

#[test]
fn other_images_do_not_take_the_place_of_those_of_the_file() {
    let scratch = Scratch::new();
    scratch.folders("photos", &["cat", "dog"], 6);
    let other = scratch.folders("other", &["cat", "dog"], 3);
    scratch.ok(&["init", "photos", "--model", "quickstart"]);
    assert_eq!(scratch.json(&["run"])["extract"]["rows"], 12);
    let said = scratch.fails(2, &["run", "--data", &other]);
    assert!(said.contains("tlpipe.toml is of photos") && said.contains("add --features and --run"), "{said}");
    assert_eq!(scratch.json(&["run", "--data", "photos"])["extract"]["rows"], 12);
    assert!(scratch.fails(2, &["extract", "--data", &other]).contains("add --features, or"));
    assert_eq!(scratch.json(&["extract", "--data", &other, "--features", "f"])["rows"], 6);
}

#[test]
fn what_cannot_be_trained_on_is_said_and_nothing_is_written() {
    let scratch = Scratch::new();
    scratch.folders("one", &["cat"], 3);
    scratch.folders("flat", &[""], 3);
    fs::create_dir_all(scratch.path("broken/cat")).unwrap();
    fs::create_dir_all(scratch.path("broken/dog")).unwrap();
    fs::write(scratch.path("broken/cat/1.jpg"), b"no").unwrap();
    fs::write(scratch.path("broken/dog/1.jpg"), b"no").unwrap();
    fs::create_dir(scratch.path("empty")).unwrap();
    for (source, needle) in [
        ("one", "a classifier needs two"),
        ("flat", "a head needs labels"),
        ("broken", "none of the 2 images looked at can be used; cat/1.jpg: not an image"),
        ("empty", "no images here"),
        ("nowhere", "no such"),
    ] {
        let said = scratch.fails(1, &["init", source, "--model", "quickstart"]);
        assert!(said.contains(source) && said.contains(needle), "{source}: {said}");
    }
    let said = scratch.fails(2, &["init"]);
    assert!(said.contains("SOURCE") || said.contains("source"), "{said}");
    let data = scratch.folders("photos", &["cat", "dog"], 3);
    let said = scratch.fails(1, &["init", &data, "--model", "mobilnet_v2"]);
    assert!(said.contains("did you mean \"mobilenet_v2\""), "{said}");
    let said = scratch.fails(1, &["init", &data, "--model", "quickstart", "-o", "no/such/p.toml"]);
    assert!(said.contains("no/such") && said.contains("-o"), "{said}");
    scratch.fails(2, &["init", &data, "--sample", "0"]);
    assert!(!scratch.path("tlpipe.toml").exists() && !scratch.path("tlpipe.schema.json").exists());
    // A file that only has the schema's name is left alone.
    fs::write(scratch.path("tlpipe.schema.json"), "{\"title\": \"mine\"}").unwrap();
    let ran = scratch.ok(&["init", &data, "--model", "quickstart"]);
    assert!(ran.stderr.contains("tlpipe.schema.json: not a schema of tlpipe's"), "{}", ran.stderr);
    assert_eq!(fs::read_to_string(scratch.path("tlpipe.schema.json")).unwrap(), "{\"title\": \"mine\"}");
    assert!(!fs::read_to_string(scratch.path("tlpipe.toml")).unwrap().contains("#:schema"));
}

#[test]
fn the_real_model_is_looked_into() {
    let Some(assets) = assets() else { return };
    let scratch = Scratch::new();
    for (split, rows) in [("train", 600), ("test", 200)] {
        let file = format!("{split}-00000-of-00001.parquet");
        first_rows(&assets.join("cifar10/plain_text").join(&file), rows, &scratch.path("set").join(&file));
    }
    let model = assets.join("models/mobilenet_v2_1.0_224.onnx").display().to_string();
    let written = scratch.json(&["init", "set", "--model", &model]);
    let made = chosen(&written);
    assert_eq!((made["backbone.input_size"].as_i64(), made["backbone.layers"].as_str()), (Some(160), Some("multi")));
    assert_eq!(made["head.split"], "tail");
    file(&scratch, "tlpipe.toml");
    let ran = scratch.json(&["run", "--offline"]);
    let accuracy = ran["fit_head"]["test"]["accuracy"].as_f64().unwrap();
    println!("init's choices on 600 images of CIFAR-10: test accuracy {accuracy}");
    assert!(accuracy > 0.7, "{accuracy}");
}
