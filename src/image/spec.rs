//! What is done to an image before the network sees it, as values that can be stored and compared.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ImageError, Views};

/// An enum whose variants have one lower-case name each, for TOML, JSON, flags and messages.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident, $what:literal, $allowed:literal, { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "lowercase")]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)+
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $text,)+ })
            }
        }

        impl FromStr for $name {
            type Err = ImageError;

            fn from_str(text: &str) -> Result<Self, ImageError> {
                match text.to_ascii_lowercase().as_str() {
                    $($text => Ok(Self::$variant),)+
                    _ => Err(ImageError::UnknownName { what: $what, found: text.to_owned(), allowed: $allowed }),
                }
            }
        }
    };
}

named!(
    /// How an image that is not square becomes one.
    Resize, "way to resize", "squash, crop, pad", {
        /// Both sides to the target, the aspect ratio is lost (Keras, the TensorFlow guide).
        Squash = "squash",
        /// The short side to the target, then the middle (torchvision's `Resize` and `CenterCrop`).
        Crop = "crop",
        /// The long side to the target, black around the rest (Pillow's `ImageOps.pad`).
        Pad = "pad",
    }
);

named!(
    /// Order of a batch's axes.
    Layout, "layout", "nchw, nhwc", {
        /// Channels first: `[N, 3, side, side]`.
        Nchw = "nchw",
        /// Channels last: `[N, side, side, 3]`.
        Nhwc = "nhwc",
    }
);

named!(
    /// Order of the colour channels.
    ChannelOrder, "channel order", "rgb, bgr", {
        /// Red first.
        Rgb = "rgb",
        /// Blue first.
        Bgr = "bgr",
    }
);

/// From a byte to the network's number: `(byte / divisor - mean[c]) / std[c]`, where `c` counts the channels in `order`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PixelFormat {
    /// Axes of the batch.
    pub layout: Layout,
    /// Channels of the batch.
    pub order: ChannelOrder,
    /// What a byte is divided by first.
    pub divisor: f32,
    /// Subtracted after the division, one a channel.
    pub mean: [f32; 3],
    /// Divided by last, one a channel.
    pub std: [f32; 3],
}

impl PixelFormat {
    /// Keras and TensorFlow MobileNets: channels last, `byte / 127.5 - 1`.
    pub const TENSORFLOW: Self =
        Self { layout: Layout::Nhwc, order: ChannelOrder::Rgb, divisor: 127.5, mean: [1.0; 3], std: [1.0; 3] };
    /// torchvision and the ONNX model zoo: channels first, ImageNet's mean and standard deviation.
    pub const IMAGENET: Self = Self {
        layout: Layout::Nchw,
        order: ChannelOrder::Rgb,
        divisor: 255.0,
        mean: [0.485, 0.456, 0.406],
        std: [0.229, 0.224, 0.225],
    };
}

impl fmt::Display for PixelFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { layout, order, divisor, mean, std } = self;
        write!(f, "{order} {layout} (x / {divisor} - {mean:?}) / {std:?}")
    }
}

/// Everything that decides the numbers of an image's tensor; part of the feature store's key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageSpec {
    /// Width and height of the tensor, pixels.
    pub side: u32,
    /// How an image that is not square becomes one.
    pub resize: Resize,
    /// Layout and arithmetic.
    pub pixels: PixelFormat,
    /// What of each image is seen.
    pub views: Views,
}

impl ImageSpec {
    /// Numbers in the tensor of one view.
    pub fn values(&self) -> usize {
        let side = self.side as usize;
        side * side * 3
    }

    /// Numbers of all views of an image, one view after the other.
    pub fn values_of_views(&self) -> usize {
        self.values() * self.views.len()
    }

    /// Shape of a batch of `images`, each of one view.
    pub fn shape(&self, images: usize) -> [usize; 4] {
        let side = self.side as usize;
        match self.pixels.layout {
            Layout::Nchw => [images, 3, side, side],
            Layout::Nhwc => [images, side, side, 3],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_same_in_text_and_in_json() {
        for resize in [Resize::Squash, Resize::Crop, Resize::Pad] {
            assert_eq!(resize.to_string().parse::<Resize>().unwrap(), resize);
            assert_eq!(serde_json::to_value(resize).unwrap(), resize.to_string());
        }
        assert_eq!("NHWC".parse::<Layout>().unwrap(), Layout::Nhwc);
        let error = "stretch".parse::<Resize>().unwrap_err().to_string();
        assert!(error.contains("stretch") && error.contains("squash, crop, pad"), "{error}");
    }

    #[test]
    fn shape_follows_the_layout() {
        let spec = ImageSpec { side: 8, resize: Resize::Crop, pixels: PixelFormat::IMAGENET, views: Views::default() };
        assert_eq!(spec.shape(5), [5, 3, 8, 8]);
        assert_eq!(spec.values(), 192);
        let json = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<ImageSpec>(&json).unwrap(), spec);
    }
}
