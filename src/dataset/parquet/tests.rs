//! Tables as people have them, and as they should not.

use std::fs;

use arrow::array::{BinaryArray, BinaryViewArray, DictionaryArray, Int32Array, Int64Array, LargeBinaryArray, LargeStringArray};
use arrow::datatypes::Int8Type;

use super::super::Dataset;
use super::super::fixture::{images, labelled, numbered, open, parquet, records, refused, splits};
use super::*;

const CAT_DOG: &str = r#"{"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}"#;

fn integers(values: impl IntoIterator<Item = Option<i64>>) -> ArrayRef {
    Arc::new(values.into_iter().collect::<Int64Array>())
}

fn names(values: &[&str]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn the_hugging_face_layout() {
    let folder = folder();
    let label = integers((0..250).map(|row| Some(row % 2)));
    parquet(
        &folder.path().join("data/train-00000-of-00001.parquet"),
        vec![("image", numbered(250)), ("label", label)],
        Some(CAT_DOG),
    );
    let columns = vec![("image", numbered(2)), ("label", integers([Some(-1), None]))];
    parquet(&folder.path().join("data/test-00000-of-00001.parquet"), columns, Some(CAT_DOG));
    let dataset = open(folder.path()).unwrap();
    assert_eq!((dataset.name(), dataset.classes()), ("Parquet", &["cat".to_owned(), "dog".to_owned()][..]));
    assert_eq!(splits(&dataset), [("train", 250), ("test", 2)]);
    assert_eq!(dataset.splits()[0].per_class, [125, 125]);
    assert!(!dataset.sorted_by_class());
    let train = records(&dataset, "train");
    for (row, record) in train.iter().enumerate() {
        assert_eq!(record.id, format!("data/train-00000-of-00001.parquet#{row}"));
        assert_eq!((record.label, record.image.read().unwrap().unwrap()), (Some(row as i32 % 2), row.to_string().into()));
    }
    assert_eq!(labelled(&dataset, "test").iter().filter(|(_, label)| label.is_none()).count(), 2);

    let ids = [3, 101, 249, 7].map(|row| format!("data/train-00000-of-00001.parquet#{row}"));
    let asked = ids.iter().cloned().chain(["gone#1".to_owned()]).collect();
    let images = dataset.images("train", &asked).unwrap();
    assert_eq!((images.len(), &images[&ids[1]][..]), (4, &b"101"[..]));
}

#[test]
fn every_binary_type_and_every_label_type() {
    let rows: Vec<&[u8]> = vec![b"a", b"b", b"c"];
    let binary: [ArrayRef; 3] = [
        Arc::new(BinaryArray::from(rows.clone())),
        Arc::new(LargeBinaryArray::from(rows.clone())),
        Arc::new(BinaryViewArray::from_iter_values(rows)),
    ];
    let dictionary: DictionaryArray<Int8Type> = vec!["cat", "owl", "cat"].into_iter().collect();
    let labels: [ArrayRef; 3] =
        [names(&["cat", "owl", "cat"]), Arc::new(LargeStringArray::from(vec!["cat", "owl", "cat"])), Arc::new(dictionary)];
    for (image, label) in binary.into_iter().zip(labels) {
        let folder = folder();
        parquet(&folder.path().join("x.parquet"), vec![("photo", image), ("category", label)], None);
        let dataset = open(folder.path().join("x.parquet")).unwrap();
        assert_eq!(dataset.classes(), ["cat", "owl"]);
        assert_eq!(labelled(&dataset, "train")[1], ("x.parquet#1".to_owned(), Some(1)));
        assert_eq!(records(&dataset, "train")[2].image.read().unwrap().unwrap(), "c");
    }
}

#[test]
fn a_split_column_wins_over_file_names() {
    let folder = folder();
    let split = names(&["train", "test", "val", "Train", "test"]);
    let label: ArrayRef = Arc::new(Int32Array::from(vec![0, 1, 0, 1, 0]));
    parquet(&folder.path().join("test.parquet"), vec![("image", numbered(5)), ("label", label), ("split", split)], None);
    let dataset = open(folder.path().join("test.parquet")).unwrap();
    assert_eq!(splits(&dataset), [("train", 2), ("validation", 1), ("test", 2)]);
    let ids = |split| labelled(&dataset, split).into_iter().map(|(id, _)| id).collect::<Vec<_>>();
    assert_eq!(ids("train"), ["test.parquet#0", "test.parquet#3"]);
    assert_eq!(ids("test"), ["test.parquet#1", "test.parquet#4"]);
    assert_eq!(records(&dataset, "train")[1].image.read().unwrap().unwrap(), "3");
    assert_eq!(dataset.classes(), ["0", "1"], "integers without names");
}

#[test]
fn a_split_column_of_ids_is_refused() {
    let folder = folder();
    let ids: ArrayRef = Arc::new((0..150).map(|row| Some(format!("p{row}"))).collect::<StringArray>());
    parquet(&folder.path().join("x.parquet"), vec![("image", numbered(150)), ("subset", ids)], None);
    let text = refused(folder.path());
    assert!(text.contains("more than 100 different splits in column subset") && text.contains("--split-column"), "{text}");
}

#[test]
fn null_images_are_unusable_and_paths_are_files() {
    let folder = folder();
    fs::write(folder.path().join("b.jpg"), "beside").unwrap();
    let rows = images(&[(Some(b"in"), Some("a.jpg")), (None, Some("b.jpg")), (None, None), (Some(b""), None)]);
    parquet(&folder.path().join("x.parquet"), vec![("image", rows), ("label", integers([Some(0); 4]))], None);
    let images: Vec<_> =
        records(&open(folder.path()).unwrap(), "train").iter().map(|record| record.image.read().unwrap()).collect();
    assert_eq!(images[..2], [Ok("in".into()), Ok("beside".into())]);
    assert!(images[2].as_ref().is_err_and(|reason| reason.contains("null")));
    assert_eq!(images[3], Ok(Bytes::new()), "an empty image is the decoder's to refuse");
}

#[test]
fn a_path_leads_nowhere_but_below_the_table() {
    let folder = folder();
    let secret = folder.path().join("secret.txt");
    fs::write(&secret, "secret").unwrap();
    fs::create_dir_all(folder.path().join("data/more")).unwrap();
    fs::write(folder.path().join("data/more/a.jpg"), "own").unwrap();
    let absolute = secret.display().to_string();
    let paths = ["more/a.jpg", "./more/a.jpg", &absolute, "../secret.txt", "more/../../secret.txt"];
    let rows = images(&paths.map(|path| (None, Some(path))));
    let table = folder.path().join("data/x.parquet");
    parquet(&table, vec![("image", rows), ("label", integers([Some(0); 5]))], None);
    let images: Vec<_> = records(&open(&table).unwrap(), "train").iter().map(|record| record.image.read().unwrap()).collect();
    assert_eq!(images[..2], [Ok("own".into()), Ok("own".into())]);
    for (image, path) in images[2..].iter().zip(&paths[2..]) {
        let reason = image.as_ref().unwrap_err();
        assert!(reason.contains("out of the table's folder") && reason.contains(path), "{reason}");
    }
}

#[test]
fn wrong_columns_are_named_with_the_flag() {
    let folder = folder();
    let path = folder.path().join("x.parquet");
    parquet(&path, vec![("id", integers([Some(1)])), ("caption", names(&["x"]))], None);
    let text = refused(&path);
    assert!(
        text.contains("id (int64), caption (text)") && text.contains("--image-column") && text.contains("x.parquet"),
        "{text}"
    );
    parquet(&path, vec![("image", numbered(1)), ("kind", names(&["x"]))], None);
    let dataset = open(&path).unwrap();
    assert!(dataset.warnings()[0].contains("no label column among image, kind; choose one with --label-column"));
    let options = SourceOptions { label_column: Some("kind".to_owned()), ..SourceOptions::default() };
    assert_eq!(Dataset::open(std::slice::from_ref(&path), &options).unwrap().classes(), ["x"]);
    let options = SourceOptions { label_column: Some("klass".to_owned()), ..SourceOptions::default() };
    assert!(Dataset::open(&[path], &options).unwrap_err().to_string().contains("no column \"klass\""));
}

#[test]
fn a_truncated_file_is_an_error_and_so_is_a_damaged_one() {
    let folder = folder();
    let path = folder.path().join("train.parquet");
    parquet(&path, vec![("image", numbered(300)), ("label", integers((0..300).map(|_| Some(0))))], None);
    let whole = fs::read(&path).unwrap();
    for length in [0, 3, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        let text = refused(&path);
        assert!(text.contains("not a whole Parquet file") && text.contains("train.parquet"), "{length}: {text}");
    }
    // The footer is whole, the pages are not: opening may see it or reading must.
    let mut damaged = whole.clone();
    damaged[4..whole.len() / 3].fill(0xA5);
    fs::write(&path, damaged).unwrap();
    let error = open(&path).and_then(|dataset| dataset.records("train")?.collect::<Result<Vec<_>, _>>()).unwrap_err();
    assert!(matches!(error, DatasetError::Damaged { .. }), "{error}");
}

#[test]
fn a_label_outside_the_class_list_names_file_and_row() {
    let folder = folder();
    parquet(
        &folder.path().join("train.parquet"),
        vec![("image", numbered(3)), ("label", integers([Some(0), Some(1), Some(2)]))],
        Some(CAT_DOG),
    );
    let text = refused(folder.path());
    assert!(text.contains("train.parquet, row 2: label 2 is outside the class list (0 to 1)"), "{text}");
}

#[test]
fn files_that_disagree_about_classes_are_refused() {
    let folder = folder();
    let columns = || vec![("image", numbered(1)), ("label", integers([Some(0)]))];
    parquet(&folder.path().join("train.parquet"), columns(), Some(CAT_DOG));
    parquet(&folder.path().join("test.parquet"), columns(), Some(&CAT_DOG.replace("cat", "cow")));
    assert!(refused(folder.path()).contains("class names differ"));
}

#[test]
fn a_split_without_rows_is_said() {
    let folder = folder();
    parquet(&folder.path().join("train.parquet"), vec![("image", numbered(1)), ("label", integers([Some(0)]))], None);
    parquet(&folder.path().join("test.parquet"), vec![("image", numbered(0)), ("label", integers([]))], None);
    let dataset = open(folder.path()).unwrap();
    assert_eq!(splits(&dataset), [("train", 1)]);
    assert!(dataset.warnings().iter().any(|text| text.contains("test.parquet has no rows")), "{:?}", dataset.warnings());
    assert!(refused(folder.path().join("test.parquet")).contains("without rows"));
}

#[test]
fn cifar10_as_it_is_published() {
    let Some(assets) = std::env::var_os("TLPIPE_ASSETS").map(PathBuf::from) else {
        println!("skipped: TLPIPE_ASSETS is unset, so there is no CIFAR-10 to read");
        return;
    };
    let dataset = open(assets.join("cifar10/plain_text")).unwrap();
    assert_eq!(splits(&dataset), [("train", 50_000), ("test", 10_000)]);
    assert_eq!(dataset.classes()[9], "truck");
    assert_eq!(dataset.splits()[1].per_class, [1000; 10]);
    let mut count = 0;
    for record in dataset.records("test").unwrap() {
        let record = record.unwrap();
        if count % 500 == 0 {
            assert_eq!(crate::image::decode(&record.image.read().unwrap().unwrap()).unwrap().dimensions(), (32, 32));
        }
        count += 1;
    }
    assert_eq!(count, 10_000);
}
