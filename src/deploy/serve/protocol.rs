//! The Open Inference Protocol, version 2 (KServe): tensors in JSON, or behind it by the protocol's binary extension.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::queue::Picture;
use crate::deploy::{CLASS_INDEX, Classifier, PROBABILITIES};
use crate::evaluate::argmax;
use crate::image::RgbImage;

/// What a request says.
#[derive(Debug, Deserialize)]
struct Request {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    parameters: Parameters,
    inputs: Vec<Tensor>,
    #[serde(default)]
    outputs: Vec<Wanted>,
}

#[derive(Debug, Default, Deserialize)]
struct Parameters {
    #[serde(default)]
    binary_data_size: Option<usize>,
    #[serde(default)]
    binary_data: Option<bool>,
    #[serde(default)]
    binary_data_output: bool,
}

#[derive(Debug, Deserialize)]
struct Tensor {
    name: String,
    shape: Vec<usize>,
    datatype: String,
    #[serde(default)]
    parameters: Parameters,
    #[serde(default)]
    data: Option<Data>,
}

#[derive(Debug, Deserialize)]
struct Wanted {
    name: String,
    #[serde(default)]
    parameters: Parameters,
}

/// Numbers or texts, in lists of any depth, row-major.
#[derive(Debug, Default)]
struct Data {
    numbers: Vec<f32>,
    texts: Vec<String>,
}

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut data = Self::default();
        Fill(&mut data).deserialize(deserializer)?;
        Ok(data)
    }
}

/// Takes in what it reads: a number takes four bytes, where a tree of JSON values would take thirty-two.
struct Fill<'d>(&'d mut Data);

impl<'de> DeserializeSeed<'de> for Fill<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Fill<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("numbers or texts in lists")
    }

    #[allow(clippy::cast_possible_truncation, reason = "a network computes in float32")]
    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        self.0.numbers.push(value as f32);
        Ok(())
    }

    #[allow(clippy::cast_precision_loss, reason = "a network computes in float32")]
    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.0.numbers.push(value as f32);
        Ok(())
    }

    #[allow(clippy::cast_precision_loss, reason = "a network computes in float32")]
    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.0.numbers.push(value as f32);
        Ok(())
    }

    fn visit_str<E>(self, value: &str) -> Result<(), E> {
        self.0.texts.push(value.to_owned());
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(Fill(self.0))?.is_some() {}
        Ok(())
    }
}

/// A request that was understood.
pub(super) struct Inference {
    id: Option<String>,
    pub(super) pictures: Vec<Picture>,
    /// Outputs by name, and whether each is wanted in binary; empty for all of them.
    outputs: Vec<(String, bool)>,
    binary: bool,
}

/// Reads a request. `header` is the length of the JSON before binary tensors, where there are any.
///
/// # Errors
/// What is wrong with it, for the client.
pub(super) fn read(body: &Bytes, header: Option<usize>, classifier: &Classifier, max_pixels: u64) -> Result<Inference, String> {
    let header = header.unwrap_or(body.len());
    if header > body.len() {
        return Err(format!("Inference-Header-Content-Length is {header}, and the body has {} bytes", body.len()));
    }
    let request: Request =
        serde_json::from_slice(&body[..header]).map_err(|error| format!("not a request of the protocol: {error}"))?;
    let [input] = request.inputs.as_slice() else {
        return Err(format!("{} inputs; the model has one, {:?}", request.inputs.len(), classifier.input()));
    };
    if input.name != classifier.input() {
        return Err(format!("no input {:?}; the model has {:?}", input.name, classifier.input()));
    }
    let binary = match input.parameters.binary_data_size {
        Some(size) if size == body.len() - header => Some(body.slice(header..)),
        Some(size) => return Err(format!("binary_data_size is {size}, and {} bytes follow the JSON", body.len() - header)),
        None => None,
    };
    let pictures = pictures(input, binary, classifier, max_pixels)?;
    let outputs: Vec<_> = request
        .outputs
        .iter()
        .map(|wanted| (wanted.name.clone(), wanted.parameters.binary_data.unwrap_or(request.parameters.binary_data_output)))
        .collect();
    if let Some((unknown, _)) = outputs.iter().find(|(name, _)| name != PROBABILITIES && name != CLASS_INDEX) {
        return Err(format!("no output {unknown:?}; the model has {PROBABILITIES:?} and {CLASS_INDEX:?}"));
    }
    Ok(Inference { id: request.id, pictures, outputs, binary: request.parameters.binary_data_output })
}

fn pictures(input: &Tensor, binary: Option<Bytes>, classifier: &Classifier, max_pixels: u64) -> Result<Vec<Picture>, String> {
    let Tensor { shape, datatype, data, .. } = input;
    let values = shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size));
    let values = values.filter(|&values| values > 0).ok_or_else(|| format!("the shape {shape:?} holds nothing"))?;
    let lacking = || format!("the input has neither data nor binary_data_size; its shape {shape:?} holds {values} values");
    let numbers = || {
        let numbers = &data.as_ref().ok_or_else(lacking)?.numbers;
        if numbers.len() == values {
            Ok(numbers)
        } else {
            Err(format!("{} numbers, not the {values} of {shape:?}", numbers.len()))
        }
    };
    let held = |bytes: &Bytes, width: usize| {
        if Some(bytes.len()) == values.checked_mul(width) {
            Ok(())
        } else {
            Err(format!("{} bytes, not the {values} values of {shape:?}", bytes.len()))
        }
    };
    match (datatype.as_str(), shape.as_slice()) {
        ("UINT8", &[images, height, width, 3]) => {
            let (height, width) = (size(height)?, size(width)?);
            if u64::from(height) * u64::from(width) > max_pixels {
                return Err(format!("{width} x {height} pixels is above the limit of {max_pixels} pixels"));
            }
            let bytes = match binary {
                Some(bytes) => {
                    held(&bytes, 1)?;
                    bytes
                }
                None => numbers()?.iter().map(|&number| byte(number)).collect::<Result<Vec<u8>, String>>()?.into(),
            };
            let image = |pixels: &[u8]| RgbImage::from_raw(width, height, pixels.to_vec()).map(Picture::Pixels);
            bytes.chunks_exact(values / images).map(|pixels| image(pixels).ok_or_else(|| "too few pixels".to_owned())).collect()
        }
        ("UINT8", _) => Err(format!("UINT8 images have the shape [N, height, width, 3], red first, not {shape:?}")),
        ("FP32", &[images, ..]) if !classifier.takes_bytes() => {
            let wanted = classifier.spec().shape(images);
            if shape.as_slice() != wanted {
                return Err(format!("the model takes FP32 of the shape {wanted:?}, not {shape:?}"));
            }
            let image = classifier.spec().values();
            match binary {
                Some(bytes) => {
                    held(&bytes, 4)?;
                    let number = |four: &[u8]| four.try_into().map_or(0.0, f32::from_le_bytes);
                    Ok(bytes
                        .chunks_exact(4 * image)
                        .map(|one| Picture::Numbers(one.chunks_exact(4).map(number).collect()))
                        .collect())
                }
                None => Ok(numbers()?.chunks_exact(image).map(|one| Picture::Numbers(one.to_vec())).collect()),
            }
        }
        ("BYTES", _) => {
            let files = match binary {
                Some(bytes) => prefixed(&bytes)?,
                None => {
                    let texts = &data.as_ref().ok_or_else(lacking)?.texts;
                    let decoded = texts.iter().map(|text| STANDARD.decode(text).map(Bytes::from));
                    decoded.collect::<Result<_, _>>().map_err(|error| format!("BYTES are files of images in Base64: {error}"))?
                }
            };
            if files.len() != values {
                return Err(format!("{} files, not the {values} of {shape:?}", files.len()));
            }
            Ok(files.into_iter().map(Picture::Encoded).collect())
        }
        (other, _) => {
            let own = if classifier.takes_bytes() { "" } else { ", FP32" };
            Err(format!("the datatype {other:?} is not taken; use UINT8 (pixels){own} or BYTES (files of images)"))
        }
    }
}

fn size(pixels: usize) -> Result<u32, String> {
    u32::try_from(pixels).map_err(|_| format!("{pixels} pixels is above the limit"))
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is checked")]
fn byte(number: f32) -> Result<u8, String> {
    let is_byte = (0.0..=255.0).contains(&number) && number.fract() == 0.0;
    if is_byte { Ok(number as u8) } else { Err(format!("{number} is no UINT8")) }
}

/// Texts of the binary extension: each behind its length, four bytes, the lowest first.
fn prefixed(bytes: &Bytes) -> Result<Vec<Bytes>, String> {
    let mut files = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let length = bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map(u32::from_le_bytes);
        let end = length.and_then(|length| (at + 4).checked_add(usize::try_from(length).ok()?)).filter(|&end| end <= bytes.len());
        let end = end.ok_or("BYTES are cut short")?;
        files.push(bytes.slice(at + 4..end));
        at = end;
    }
    Ok(files)
}

/// An answer: its body, and the length of the JSON where binary tensors follow it.
pub(super) struct Answer {
    pub(super) body: Vec<u8>,
    pub(super) header: Option<usize>,
}

impl Inference {
    /// Puts rows of probabilities into the outputs that are wanted.
    ///
    /// # Errors
    /// When they cannot be written as JSON.
    pub(super) fn answer(&self, rows: &[Vec<f32>], classifier: &Classifier) -> Result<Answer, serde_json::Error> {
        let all = [PROBABILITIES, CLASS_INDEX].map(|name| (name.to_owned(), self.binary));
        let wanted = if self.outputs.is_empty() { &all[..] } else { &self.outputs };
        let probabilities: Vec<f32> = rows.concat();
        let indices: Vec<i64> = rows.iter().map(|row| i64::try_from(argmax(row)).unwrap_or(i64::MAX)).collect();
        let mut tail = Vec::new();
        let output = |(name, binary): &(String, bool)| {
            let (datatype, shape, values) = if name == PROBABILITIES {
                ("FP32", vec![rows.len(), classifier.classes().len()], Values::Floats(&probabilities))
            } else {
                ("INT64", vec![rows.len()], Values::Integers(&indices))
            };
            let before = tail.len();
            if *binary {
                values.write(&mut tail);
            }
            let parameters = binary.then(|| Size { binary_data_size: tail.len() - before });
            Output { name: name.clone(), datatype, shape, parameters, data: (!binary).then_some(values) }
        };
        let outputs = wanted.iter().map(output).collect();
        let id = self.id.as_deref();
        let mut body = serde_json::to_vec(&Inferred { model_name: classifier.name(), model_version: VERSION, id, outputs })?;
        let header = (!tail.is_empty()).then_some(body.len());
        body.append(&mut tail);
        Ok(Answer { body, header })
    }
}

#[derive(Serialize)]
struct Inferred<'a> {
    model_name: &'a str,
    model_version: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    outputs: Vec<Output<'a>>,
}

#[derive(Serialize)]
struct Output<'a> {
    name: String,
    datatype: &'a str,
    shape: Vec<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<Size>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Values<'a>>,
}

#[derive(Serialize)]
struct Size {
    binary_data_size: usize,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Values<'a> {
    Floats(&'a [f32]),
    Integers(&'a [i64]),
}

impl Values<'_> {
    fn write(&self, tail: &mut Vec<u8>) {
        match self {
            Self::Floats(values) => tail.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            Self::Integers(values) => tail.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        }
    }
}

/// The one version that is served.
pub(super) const VERSION: &str = "1";

/// What the server is.
pub(super) fn server() -> Value {
    json!({ "name": "tlpipe", "version": env!("CARGO_PKG_VERSION"), "extensions": ["binary_tensor_data"] })
}

/// What the model is.
pub(super) fn model(classifier: &Classifier) -> impl Serialize {
    let (datatype, shape) = if classifier.takes_bytes() {
        ("UINT8", vec![-1, -1, -1, 3])
    } else {
        let shape = classifier.spec().shape(1);
        ("FP32", std::iter::once(-1).chain(shape[1..].iter().map(|&size| i64::try_from(size).unwrap_or(-1))).collect())
    };
    json!({
        "name": classifier.name(),
        "versions": [VERSION],
        "platform": "onnxruntime_onnx",
        "inputs": [{ "name": classifier.input(), "datatype": datatype, "shape": shape }],
        "outputs": [
            { "name": PROBABILITIES, "datatype": "FP32", "shape": [-1, classifier.classes().len()] },
            { "name": CLASS_INDEX, "datatype": "INT64", "shape": [-1] },
        ],
        "parameters": { "classes": classifier.classes() },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_at_any_depth() {
        let data = |text: &str| serde_json::from_str::<Data>(text);
        assert_eq!(data("[[1, 2], [[3.5]], -4]").unwrap().numbers, [1.0, 2.0, 3.5, -4.0]);
        assert_eq!(data("[\"a\", [\"b\"]]").unwrap().texts, ["a", "b"]);
        assert!(data("[true]").is_err() && data("{}").is_err() && data(&"[".repeat(100_000)).is_err());
    }

    #[test]
    fn bytes_behind_their_lengths() {
        let text = |bytes: &'static [u8]| prefixed(&Bytes::from_static(bytes));
        assert_eq!(text(b"\x02\0\0\0ab\0\0\0\0").unwrap(), [Bytes::from_static(b"ab"), Bytes::new()]);
        for cut in [&b"\x02\0\0\0a"[..], b"\x02\0", b"\xff\xff\xff\xffab"] {
            assert!(text(cut).is_err());
        }
    }

    #[test]
    fn only_bytes_are_bytes() {
        assert_eq!((byte(0.0), byte(255.0)), (Ok(0), Ok(255)));
        for number in [-1.0, 256.0, 0.5, f32::NAN] {
            assert!(byte(number).is_err());
        }
    }
}
