//! Views of an image: itself, mirrored, parts of it. The network sees each by itself.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::{ImageError, RgbImage};

/// Which part of the square that the network would see a view shows; all but the whole are squares of 7/8 of its side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Window {
    /// All of it.
    #[default]
    Whole,
    /// The middle.
    Center,
    /// Up and to the left.
    TopLeft,
    /// Up and to the right.
    TopRight,
    /// Down and to the left.
    BottomLeft,
    /// Down and to the right.
    BottomRight,
}

impl Window {
    const ALL: [Self; 6] = [Self::Whole, Self::Center, Self::TopLeft, Self::TopRight, Self::BottomLeft, Self::BottomRight];

    /// Left edge, upper edge and side, as shares of the side of the whole.
    pub(crate) fn shares(self) -> [f64; 3] {
        const SIDE: f64 = 0.875;
        const REST: f64 = 1.0 - SIDE;
        match self {
            Self::Whole => [0.0, 0.0, 1.0],
            Self::Center => [REST / 2.0, REST / 2.0, SIDE],
            Self::TopLeft => [0.0, 0.0, SIDE],
            Self::TopRight => [REST, 0.0, SIDE],
            Self::BottomLeft => [0.0, REST, SIDE],
            Self::BottomRight => [REST, REST, SIDE],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Whole => "identity",
            Self::Center => "center",
            Self::TopLeft => "top-left",
            Self::TopRight => "top-right",
            Self::BottomLeft => "bottom-left",
            Self::BottomRight => "bottom-right",
        }
    }
}

/// One view: `identity`, `hflip`, `center`, …, `center-hflip`, ….
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct View {
    /// What it shows.
    pub window: Window,
    /// Whether left and right are exchanged: in the pixels that the network would see, once they are resized.
    pub mirrored: bool,
}

impl View {
    /// The image as it is.
    pub const IDENTITY: Self = Self { window: Window::Whole, mirrored: false };
    /// The image mirrored.
    pub const HFLIP: Self = Self { window: Window::Whole, mirrored: true };

    fn all() -> impl Iterator<Item = Self> {
        Window::ALL.into_iter().flat_map(|window| [false, true].map(|mirrored| Self { window, mirrored }))
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self { window, mirrored: false } => f.write_str(window.name()),
            Self { window: Window::Whole, .. } => f.write_str("hflip"),
            Self { window, .. } => write!(f, "{}-hflip", window.name()),
        }
    }
}

impl FromStr for View {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        Self::all().find(|view| view.to_string() == text).ok_or_else(|| ImageError::UnknownName {
            what: "view",
            found: text.to_owned(),
            allowed: "identity, hflip, center, top-left, top-right, bottom-left, bottom-right; each part mirrored too, as center-hflip",
        })
    }
}

impl TryFrom<String> for View {
    type Error = ImageError;

    fn try_from(text: String) -> Result<Self, ImageError> {
        text.parse()
    }
}

impl From<View> for String {
    fn from(view: View) -> Self {
        view.to_string()
    }
}

/// The views of every image: `identity` first, each once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<View>", into = "Vec<View>")]
pub struct Views(Vec<View>);

impl Views {
    /// Checks a list.
    ///
    /// # Errors
    /// When `identity` is not its first entry, or one stands there twice.
    pub fn new(views: Vec<View>) -> Result<Self, ImageError> {
        if views.first() != Some(&View::IDENTITY) {
            return Err(ImageError::Views("identity comes first, as in identity, hflip".into()));
        }
        match views.iter().enumerate().find(|(at, view)| views[..*at].contains(view)) {
            Some((_, twice)) => Err(ImageError::Views(format!("{twice} stands there twice; name each once"))),
            None => Ok(Self(views)),
        }
    }

    /// Their names.
    pub fn names(&self) -> Vec<String> {
        self.iter().map(View::to_string).collect()
    }

    /// The parts that are shown beside the whole, each once.
    pub fn parts(&self) -> Vec<Window> {
        let is_shown = |window: &Window| self.iter().any(|view| view.window == *window);
        Window::ALL.into_iter().skip(1).filter(is_shown).collect()
    }
}

impl Default for Views {
    fn default() -> Self {
        Self(vec![View::IDENTITY])
    }
}

impl Deref for Views {
    type Target = [View];

    fn deref(&self) -> &[View] {
        &self.0
    }
}

impl TryFrom<Vec<View>> for Views {
    type Error = ImageError;

    fn try_from(views: Vec<View>) -> Result<Self, ImageError> {
        Self::new(views)
    }
}

impl From<Views> for Vec<View> {
    fn from(views: Views) -> Self {
        views.0
    }
}

impl JsonSchema for Views {
    fn schema_name() -> Cow<'static, str> {
        "Views".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let names: Vec<String> = View::all().map(|view| view.to_string()).collect();
        json_schema!({
            "type": "array",
            "items": { "enum": names },
            "contains": { "const": View::IDENTITY.to_string() },
            "uniqueItems": true
        })
    }
}

/// Exchanges left and right.
pub fn mirror(image: &mut RgbImage) {
    let width = image.width() as usize;
    image.as_chunks_mut::<3>().0.chunks_exact_mut(width.max(1)).for_each(<[_]>::reverse);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_there_and_back() {
        let names = "identity hflip center center-hflip top-left top-left-hflip top-right top-right-hflip bottom-left bottom-left-hflip \
            bottom-right bottom-right-hflip";
        let views: Vec<View> = names.split_whitespace().map(|name| name.parse().unwrap()).collect();
        assert_eq!(Views::new(views).unwrap().names(), names.split_whitespace().collect::<Vec<_>>());
        let error = "vflip".parse::<View>().unwrap_err().to_string();
        assert!(error.contains("\"vflip\" is no view") && error.contains("hflip, center"), "{error}");
        assert!("identity-hflip".parse::<View>().is_err());
    }

    #[test]
    fn a_list_begins_with_identity_and_names_each_once() {
        let views = |text: &str| serde_json::from_str::<Views>(text).map_err(|error| error.to_string());
        assert_eq!(*views(r#"["identity", "hflip"]"#).unwrap(), [View::IDENTITY, View::HFLIP]);
        for text in ["[]", r#"["hflip"]"#, r#"["hflip", "identity"]"#] {
            let error = views(text).unwrap_err();
            assert!(error.contains("identity comes first"), "{error}");
        }
        let error = views(r#"["identity", "hflip", "hflip"]"#).unwrap_err();
        assert!(error.contains("hflip stands there twice"), "{error}");
    }

    #[test]
    fn mirroring_turns_each_row() {
        let mut image = RgbImage::from_fn(3, 2, |x, y| [x as u8, y as u8, 9].into());
        let expected = RgbImage::from_fn(3, 2, |x, y| [2 - x as u8, y as u8, 9].into());
        mirror(&mut image);
        assert_eq!(image, expected);
    }
}
