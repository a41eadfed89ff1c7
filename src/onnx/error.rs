//! What can go wrong with a model, and what to do about it.

use std::path::PathBuf;

/// What can go wrong with a model.
#[derive(Debug, thiserror::Error)]
pub enum OnnxError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The bytes are no ONNX model.
    #[error("{origin}: not an ONNX model ({reason}); give an .onnx file, or a name that `tlpipe models list` shows")]
    NotOnnx {
        /// Where the bytes came from.
        origin: String,
        /// What was found instead.
        reason: String,
    },
    /// Weights are kept outside the model's file and cannot be taken in.
    #[error(
        "{origin}: the tensor {tensor:?} is kept in another file ({reason}); put that file beside the model, or save the model \
         in one file: python3 -c \"import onnx; onnx.save(onnx.load('model.onnx'), 'one.onnx')\""
    )]
    ExternalData {
        /// The model.
        origin: String,
        /// A tensor that is missing.
        tensor: String,
        /// What is wrong with its place.
        reason: String,
    },
    /// No input takes colour images.
    #[error(
        "{origin}: no image input; an image input is a float32, float16 or uint8 tensor [N, 3, H, W] or [N, H, W, 3], this model \
         takes {inputs}; export an image classifier with such an input"
    )]
    NoImageInput {
        /// The model.
        origin: String,
        /// The inputs that there are.
        inputs: String,
    },
    /// The features need more than the image.
    #[error("{origin}: the tensor {tensor:?} also depends on the input {input:?}; name one that needs the image alone with --cut TENSOR{}", list(.candidates))]
    OtherInput {
        /// The model.
        origin: String,
        /// The place of the cut.
        tensor: String,
        /// The other input.
        input: String,
        /// Tensors that may serve.
        candidates: Vec<String>,
    },
    /// A cut was named that is not in the model.
    #[error("{origin}: no tensor is named {name:?}{}", did_you_mean(.nearest))]
    UnknownTensor {
        /// The model.
        origin: String,
        /// The name that was given.
        name: String,
        /// The names that are most like it, best first.
        nearest: Vec<String>,
    },
    /// The cut that was named gives no features.
    #[error("{origin}: the tensor {tensor:?} cannot serve as features: {reason}; name another with --cut TENSOR{}", list(.candidates))]
    NotFeatures {
        /// The model.
        origin: String,
        /// The tensor.
        tensor: String,
        /// Why not.
        reason: String,
        /// Tensors that may serve.
        candidates: Vec<String>,
    },
    /// The top was not recognized.
    #[error("{origin}: cannot find where the classifier's top begins: {reason}; name the tensor that holds the features with --cut TENSOR{}", list(.candidates))]
    NoCut {
        /// The model.
        origin: String,
        /// What was found.
        reason: String,
        /// Tensors that may serve, the last of the graph first.
        candidates: Vec<String>,
    },
    /// No feature map was found before the cut.
    #[error(
        "{origin}: no feature map is found before the cut, {cut:?}; use --layers pooled, or name tensors with --layers TENSOR,TENSOR"
    )]
    NoTaps {
        /// The model.
        origin: String,
        /// The tensor that it is cut at.
        cut: String,
    },
    /// A name or pattern of `layers` fits no tensor.
    #[error("{origin}: `layers` names {name:?}, and no tensor fits that{}; `tlpipe models inspect FILE` lists the taps", meant(.nearest))]
    UnknownLayer {
        /// The model.
        origin: String,
        /// The name or pattern that was given.
        name: String,
        /// What is most like it, best first.
        nearest: Vec<String>,
    },
    /// A tensor that `layers` names has no positions to average over, or does not stand before the cut.
    #[error(
        "{origin}: `layers` names the tensor {tensor:?}, which is no feature map before the cut: {reason}; `tlpipe models inspect FILE` lists the taps"
    )]
    NoMap {
        /// The model.
        origin: String,
        /// The tensor.
        tensor: String,
        /// Why not.
        reason: String,
    },
    /// A pattern of `layers` that is none.
    #[error(
        "{origin}: `layers` has the pattern {pattern:?}, which is none ({reason}); * stands for any text, ? for a character, [abc] for one of these"
    )]
    BadPattern {
        /// The model.
        origin: String,
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The layers make a row that no head can take.
    #[error(
        "{origin}: {tensors} tensors make {values} values an image, more than the limit of {most}; name fewer with --layers, or use --layers multi"
    )]
    TooWide {
        /// The model.
        origin: String,
        /// Number of tensors.
        tensors: usize,
        /// Values that they give.
        values: usize,
        /// The limit.
        most: usize,
    },
    /// An operator means something else in another version, and cannot be rewritten.
    #[error(
        "{origin}: its operators are of version {from}, and {operator} cannot be brought to version {to}: {reason}; convert the model \
         with onnx.version_converter first, or take another version with --opset"
    )]
    Version {
        /// The model.
        origin: String,
        /// Version that it has.
        from: i64,
        /// Version that it should have.
        to: i64,
        /// The operator.
        operator: String,
        /// Why not.
        reason: String,
    },
    /// A weight that is no float16.
    #[error("{origin}: the weight {value} of {tensor:?} is too large for float16, which ends at 65,504; use --precision fp32")]
    TooLarge {
        /// The model.
        origin: String,
        /// The tensor.
        tensor: String,
        /// The weight.
        value: f64,
    },
    /// The model's image size is fixed and not a square.
    #[error(
        "{origin}: takes images of {height} x {width} pixels only, and tlpipe makes square ones; export it for a square input or with open height and width"
    )]
    NotSquare {
        /// The model.
        origin: String,
        /// Fixed height, pixels.
        height: i64,
        /// Fixed width, pixels.
        width: i64,
    },
}

fn list(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!(" (candidates: {})", names.join(", ")) }
}

fn meant(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one] => format!("; did you mean {one}?"),
        many => format!("; did you mean one of: {}?", many.join(", ")),
    }
}

fn did_you_mean(names: &[String]) -> String {
    match names {
        [] => "; `tlpipe models inspect FILE` shows the cut that would be made without --cut".to_owned(),
        [one] => format!("; did you mean --cut {one}?"),
        many => format!("; did you mean one of: {}?", many.join(", ")),
    }
}
