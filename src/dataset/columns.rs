//! Which column of a Parquet file or a table is what.

use std::collections::HashMap;
use std::path::Path;

use arrow::array::{Array, ArrayRef, Int64Array, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Schema};
use serde::Deserialize;

use super::DatasetError;
use super::label::Label;

const IMAGE_FLAG: &str = "--image-column";
const LABEL_FLAG: &str = "--label-column";
pub(super) const SPLIT_FLAG: &str = "--split-column";

/// Usual names of a column of image bytes.
pub(super) const IMAGE_NAMES: &[&str] =
    &["image", "img", "images", "picture", "photo", "jpg", "jpeg", "png", "webp", "bytes", "content"];
/// Usual names of a column of image paths.
pub(super) const PATH_NAMES: &[&str] = &[
    "path",
    "file",
    "filename",
    "file_name",
    "filepath",
    "file_path",
    "image",
    "image_path",
    "img",
    "img_path",
    "image_file",
    "image_name",
    "images",
    "photo",
];
/// Usual names of a label column.
pub(super) const LABEL_NAMES: &[&str] = &[
    "label",
    "labels",
    "class",
    "fine_label",
    "category",
    "target",
    "class_name",
    "label_name",
    "class_label",
    "classes",
    "y",
    "breed",
    "species",
];
/// Usual names of a split column.
pub(super) const SPLIT_NAMES: &[&str] = &["split", "subset", "partition"];

/// Columns of one file, for choosing among them and for saying what there is.
pub(super) struct Columns<'a> {
    pub(super) path: &'a Path,
    /// Name and type as a message shows it.
    pub(super) found: Vec<(String, String)>,
}

impl<'a> Columns<'a> {
    pub(super) fn of_schema(path: &'a Path, schema: &Schema) -> Self {
        let found = schema.fields().iter().map(|field| (field.name().clone(), type_name(field.data_type()))).collect();
        Self { path, found }
    }

    pub(super) fn error(&self, reason: String, flag: &'static str) -> DatasetError {
        let shown = self.found.iter().map(|(name, kind)| if kind.is_empty() { name.clone() } else { format!("{name} ({kind})") });
        let found = if self.found.is_empty() { "none".to_owned() } else { shown.collect::<Vec<_>>().join(", ") };
        DatasetError::Columns { path: self.path.to_owned(), reason, found, flag }
    }

    fn has(&self, name: &str) -> bool {
        self.found.iter().any(|(column, _)| column == name)
    }

    fn asked(&self, name: Option<&str>, flag: &'static str) -> Result<Option<String>, DatasetError> {
        match name {
            Some(name) if !self.has(name) => Err(self.error(format!("there is no column {name:?}"), flag)),
            other => Ok(other.map(str::to_owned)),
        }
    }

    /// The first column of the usual names; capitals do not count.
    fn usual(&self, names: &[&str]) -> Option<String> {
        names
            .iter()
            .find_map(|name| self.found.iter().map(|(column, _)| column).find(|column| column.eq_ignore_ascii_case(name)))
            .cloned()
    }

    /// The image column: as asked, as declared, by its usual names, or the only one there is.
    pub(super) fn image(
        &self,
        asked: Option<&str>,
        candidates: &[String],
        names: &[&str],
        what: &str,
    ) -> Result<String, DatasetError> {
        if let Some(name) = self.asked(asked, IMAGE_FLAG)? {
            return if candidates.contains(&name) {
                Ok(name)
            } else {
                Err(self.error(format!("column {name:?} holds no {what}"), IMAGE_FLAG))
            };
        }
        let usual = names.iter().find_map(|name| candidates.iter().find(|column| column.eq_ignore_ascii_case(name)));
        match (usual, candidates) {
            (Some(name), _) | (None, [name]) => Ok(name.clone()),
            (None, []) => Err(self.error(format!("no column of {what}"), IMAGE_FLAG)),
            (None, several) => {
                Err(self.error(format!("{} columns of {what}: {}", several.len(), several.join(", ")), IMAGE_FLAG))
            }
        }
    }

    /// The label column; none where no name is a usual one.
    pub(super) fn label(&self, asked: Option<&str>, declared: Option<&str>) -> Result<Option<String>, DatasetError> {
        let asked = self.asked(asked, LABEL_FLAG)?;
        Ok(asked.or_else(|| self.usual(LABEL_NAMES)).or_else(|| declared.map(str::to_owned).filter(|name| self.has(name))))
    }

    /// The split column; none where no name is a usual one.
    pub(super) fn split(&self, asked: Option<&str>) -> Result<Option<String>, DatasetError> {
        Ok(self.asked(asked, SPLIT_FLAG)?.or_else(|| self.usual(SPLIT_NAMES)))
    }
}

fn type_name(kind: &DataType) -> String {
    match kind {
        DataType::Struct(fields) => {
            let fields: Vec<String> = fields.iter().map(|field| field.name().clone()).collect();
            format!("struct of {}", fields.join(", "))
        }
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "text".to_owned(),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => "binary".to_owned(),
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            format!("list of {}", type_name(item.data_type()))
        }
        DataType::Dictionary(_, value) => format!("dictionary of {}", type_name(value)),
        other => other.to_string().to_lowercase(),
    }
}

/// What Hugging Face says about the columns in the schema's metadata.
#[derive(Debug, Default)]
pub(super) struct Features {
    /// Columns of type `Image`.
    pub(super) images: Vec<String>,
    /// Columns of type `ClassLabel` and their class names.
    pub(super) class_labels: HashMap<String, Vec<String>>,
    /// The first column of type `ClassLabel`.
    pub(super) first_label: Option<String>,
}

impl Features {
    /// Reads the metadata; what is not understood is as good as absent.
    pub(super) fn of_schema(schema: &Schema) -> Self {
        #[derive(Deserialize)]
        struct Metadata {
            info: Info,
        }
        #[derive(Deserialize)]
        struct Info {
            features: HashMap<String, serde_json::Value>,
        }
        #[derive(Deserialize)]
        struct Feature {
            #[serde(rename = "_type")]
            kind: String,
            #[serde(default)]
            names: Vec<String>,
        }
        let metadata = schema.metadata().get("huggingface").and_then(|text| serde_json::from_str::<Metadata>(text).ok());
        let Some(metadata) = metadata else { return Self::default() };
        let mut features = Self::default();
        for field in schema.fields() {
            let name = field.name();
            let feature = metadata.info.features.get(name).and_then(|value| Feature::deserialize(value).ok());
            match feature {
                Some(feature) if feature.kind == "Image" => features.images.push(name.clone()),
                Some(feature) if feature.kind == "ClassLabel" && !feature.names.is_empty() => {
                    features.first_label.get_or_insert_with(|| name.clone());
                    features.class_labels.insert(name.clone(), feature.names);
                }
                _ => {}
            }
        }
        features
    }
}

/// A label column of a batch, whatever its type in the file.
pub(super) enum Labels {
    Indices(Int64Array),
    Names(StringArray),
}

impl Labels {
    /// # Errors
    /// When the column's type holds no labels; the reason.
    pub(super) fn of(array: &ArrayRef) -> Result<Self, String> {
        let kind = array.data_type();
        match kind {
            DataType::Dictionary(_, value) => {
                return Self::of(&cast(array, value).map_err(|error| error.to_string())?);
            }
            DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..) => {
                return Err(format!(
                    "a label column of {}: an image has one class here, several are not supported",
                    type_name(kind)
                ));
            }
            kind if kind.is_integer() => {}
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Boolean => return text(array).map(Self::Names),
            // pandas writes integers with gaps as floating point.
            DataType::Float32 | DataType::Float64 => {
                let whole =
                    cast(array, &DataType::Int64).and_then(|whole| cast(&whole, kind)).map_err(|error| error.to_string())?;
                let not_a_number = |row: usize| {
                    cast(array, &DataType::Float64).ok().and_then(|array| number(&array, row)).is_some_and(f64::is_nan)
                };
                if let Some(row) = (0..array.len()).find(|&row| array.slice(row, 1) != whole.slice(row, 1) && !not_a_number(row))
                {
                    return Err(format!("labels are fractions (row {row} of a batch), not classes"));
                }
            }
            other => return Err(format!("a label column of type {}; labels are integers or text", type_name(other))),
        }
        let indices = cast(array, &DataType::Int64).map_err(|error| error.to_string())?;
        indices
            .as_any()
            .downcast_ref::<Int64Array>()
            .cloned()
            .map(Self::Indices)
            .ok_or_else(|| "labels are no integers".to_owned())
    }

    pub(super) fn get(&self, row: usize) -> Label<'_> {
        match self {
            Self::Indices(array) if array.is_valid(row) => Label::Index(array.value(row)),
            Self::Names(array) if array.is_valid(row) && !array.value(row).is_empty() => Label::Name(array.value(row)),
            _ => Label::None,
        }
    }
}

fn number(array: &ArrayRef, row: usize) -> Option<f64> {
    array.as_any().downcast_ref::<arrow::array::Float64Array>().map(|array| array.value(row))
}

/// A column of text, whatever its type in the file.
///
/// # Errors
/// When it cannot be read as text; the reason.
pub(super) fn text(array: &ArrayRef) -> Result<StringArray, String> {
    let array = cast(array, &DataType::Utf8).map_err(|error| error.to_string())?;
    array.as_any().downcast_ref::<StringArray>().cloned().ok_or_else(|| "not text".to_owned())
}

/// The type holds text, plain or as a dictionary.
pub(super) fn is_text(kind: &DataType) -> bool {
    match kind {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, value) => is_text(value),
        _ => false,
    }
}

/// The type holds bytes.
pub(super) fn is_binary(kind: &DataType) -> bool {
    matches!(kind, DataType::Binary | DataType::LargeBinary | DataType::BinaryView)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{BooleanArray, DictionaryArray, Float64Array, Int32Array, ListArray, UInt8Array};
    use arrow::datatypes::{Field, Int8Type, Int32Type};

    use super::*;

    fn columns(names: &[(&str, &str)]) -> Columns<'static> {
        Columns {
            path: Path::new("t.csv"),
            found: names.iter().map(|(name, kind)| ((*name).to_owned(), (*kind).to_owned())).collect(),
        }
    }

    #[test]
    fn columns_are_guessed_and_chosen() {
        let columns =
            columns(&[("Image", "binary"), ("thumb", "binary"), ("Label", "int64"), ("breed", "text"), ("split", "text")]);
        let binary = ["Image".to_owned(), "thumb".to_owned()];
        let image = |asked| columns.image(asked, &binary, IMAGE_NAMES, "image bytes");
        assert_eq!(image(None).unwrap(), "Image");
        assert_eq!(image(Some("thumb")).unwrap(), "thumb");
        assert_eq!(columns.label(None, None).unwrap().as_deref(), Some("Label"));
        assert_eq!(columns.label(Some("breed"), None).unwrap().as_deref(), Some("breed"));
        assert_eq!(columns.split(None).unwrap().as_deref(), Some("split"));

        let text = image(Some("picture")).unwrap_err().to_string();
        assert!(
            text.contains("no column \"picture\"") && text.contains("breed (text)") && text.contains("--image-column"),
            "{text}"
        );
        let text = image(Some("breed")).unwrap_err().to_string();
        assert!(text.contains("\"breed\" holds no image bytes"), "{text}");
        assert!(columns.label(Some("kind"), None).unwrap_err().to_string().contains("--label-column"));
        assert!(columns.split(Some("fold"),).unwrap_err().to_string().contains("--split-column"));
    }

    #[test]
    fn two_unusual_columns_are_not_guessed_between() {
        let columns = columns(&[("left", "binary"), ("right", "binary")]);
        let text =
            columns.image(None, &["left".to_owned(), "right".to_owned()], IMAGE_NAMES, "image bytes").unwrap_err().to_string();
        assert!(text.contains("2 columns of image bytes: left, right"), "{text}");
    }

    #[test]
    fn labels_of_every_type() {
        let get = |array: ArrayRef| Labels::of(&array);
        let indices = get(Arc::new(Int32Array::from(vec![Some(3), None]))).unwrap();
        assert_eq!([indices.get(0), indices.get(1)], [Label::Index(3), Label::None]);
        assert_eq!(get(Arc::new(UInt8Array::from(vec![200]))).unwrap().get(0), Label::Index(200));
        assert_eq!(get(Arc::new(Float64Array::from(vec![Some(2.0), None]))).unwrap().get(0), Label::Index(2));
        assert_eq!(get(Arc::new(BooleanArray::from(vec![true]))).unwrap().get(0), Label::Name("true"));
        let names: DictionaryArray<Int8Type> = vec!["cat", "dog", "cat"].into_iter().collect();
        let names = get(Arc::new(names)).unwrap();
        assert_eq!([names.get(1), names.get(2)], [Label::Name("dog"), Label::Name("cat")]);
        assert!(get(Arc::new(Float64Array::from(vec![0.5]))).err().unwrap().contains("fractions"));
        let list = ListArray::from_iter_primitive::<Int32Type, _, _>(vec![Some(vec![Some(1), Some(2)])]);
        assert!(get(Arc::new(list)).err().unwrap().contains("one class"));
    }

    #[test]
    fn features_of_the_metadata() {
        let fields = vec![Field::new("img", DataType::Binary, true), Field::new("fine", DataType::Int64, true)];
        let json = r#"{"info": {"features": {"img": {"_type": "Image"}, "fine": {"names": ["a", "b"], "_type": "ClassLabel"}, "x": [3]}}}"#;
        let schema = Schema::new(fields.clone()).with_metadata(HashMap::from([("huggingface".to_owned(), json.to_owned())]));
        let features = Features::of_schema(&schema);
        assert_eq!(features.images, ["img"]);
        assert_eq!(features.class_labels["fine"], ["a", "b"]);
        let broken = Schema::new(fields).with_metadata(HashMap::from([("huggingface".to_owned(), "{".to_owned())]));
        assert!(Features::of_schema(&broken).images.is_empty());
    }
}
