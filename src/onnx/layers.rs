//! The setting `layers`: which tensors make a feature row, and the segments of the row that come of it.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::error::OnnxError;
use super::find::{Cut, Finder};
use super::graph::Graph;
use super::input::input;
use super::model::Model;
use super::taps::{Scan, Tap, taps};

/// Values of a feature row above this are a slip: a row of 256 KiB, and statistics of 32 GiB.
const MOST_VALUES: usize = 65_536;

/// Which tensors are read: the one before the classifier, alone or behind feature maps from inside the network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Layers {
    /// The tensor before the classifier.
    #[default]
    Pooled,
    /// Taps of many depths, as many as keep the row at 8,192 values: of the stages between the largest and the smallest maps in
    /// turn, then of the smallest.
    Multi,
    /// Every tap.
    MultiAll,
    /// Tensors by name, or by patterns with `*`, `?` and `[…]`.
    Named(Vec<String>),
}

impl Layers {
    const WORDS: [(&str, Self); 3] = [("pooled", Self::Pooled), ("multi", Self::Multi), ("multi-all", Self::MultiAll)];

    fn named(names: Vec<String>) -> Result<Self, &'static str> {
        if names.is_empty() || names.iter().any(String::is_empty) {
            return Err("no tensor is named; give pooled, multi, multi-all, or the names of tensors");
        }
        Ok(Self::Named(names))
    }
}

impl FromStr for Layers {
    type Err = &'static str;

    /// One of the words, or names and patterns with commas between them.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match Self::WORDS.iter().find(|(word, _)| *word == text.trim()) {
            Some((_, layers)) => Ok(layers.clone()),
            None => Self::named(text.split(',').map(|name| name.trim().to_owned()).collect()),
        }
    }
}

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self, Self::WORDS.iter().find(|(_, layers)| layers == self)) {
            (Self::Named(names), _) => f.write_str(&names.join(",")),
            (_, word) => f.write_str(word.map_or("", |(word, _)| word)),
        }
    }
}

impl Serialize for Layers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Named(names) => names.serialize(serializer),
            word => serializer.collect_str(word),
        }
    }
}

impl<'de> Deserialize<'de> for Layers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Words;
        impl<'de> Visitor<'de> for Words {
            type Value = Layers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"pooled\", \"multi\", \"multi-all\", or a list of tensor names")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Layers, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<Layers, A::Error> {
                let mut list: Vec<String> = Vec::new();
                while let Some(name) = names.next_element()? {
                    list.push(name);
                }
                Layers::named(list).map_err(de::Error::custom)
            }
        }
        deserializer.deserialize_any(Words)
    }
}

impl JsonSchema for Layers {
    fn schema_name() -> Cow<'static, str> {
        "Layers".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                { "const": "pooled", "description": "The tensor before the classifier." },
                { "const": "multi", "description": "Feature maps of many depths, as many as keep a row at 8,192 values." },
                { "const": "multi-all", "description": "Feature maps of every depth." },
                { "type": "string", "minLength": 1, "description": "Tensors by name or pattern, with commas between them." },
                {
                    "type": "array",
                    "items": { "type": "string", "minLength": 1 },
                    "minItems": 1,
                    "description": "Tensors by name, or by patterns with *, ? and […]."
                }
            ]
        })
    }
}

/// The part of a feature row that one tensor gives: its average over all positions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Segment {
    /// The tensor.
    pub tensor: String,
    /// Where in the row it begins.
    pub offset: usize,
    /// Values: the tensor's channels.
    pub width: usize,
}

/// The segments of a feature row, in ascending depth; the last one is the cut's.
///
/// # Errors
/// When a name or pattern fits no tensor, a tensor cannot be a tap, the network has none, or the row gets too wide.
pub fn segments(model: &Model, cut: &Cut, layers: &Layers) -> Result<Vec<Segment>, OnnxError> {
    let origin = || model.origin().to_owned();
    let Some(width) = cut.features else {
        let (tensor, reason) = (cut.tensor.clone(), "its width depends on the image size".to_owned());
        return Err(OnnxError::NotFeatures { origin: origin(), tensor, reason, candidates: Vec::new() });
    };
    let taps = match layers {
        Layers::Pooled => Vec::new(),
        Layers::Named(names) => named(model, cut, names)?,
        Layers::Multi => taps(model, cut)?.into_iter().filter(|tap| tap.multi).collect(),
        Layers::MultiAll => taps(model, cut)?,
    };
    if taps.is_empty() && matches!(layers, Layers::Multi | Layers::MultiAll) {
        return Err(OnnxError::NoTaps { origin: origin(), cut: cut.tensor.clone() });
    }
    let mut offset = 0;
    let parts = taps.into_iter().map(|tap| (tap.tensor, tap.channels)).chain([(cut.tensor.clone(), width)]);
    let segments: Vec<Segment> = parts
        .map(|(tensor, width)| {
            let segment = Segment { tensor, offset, width };
            offset = offset.saturating_add(width);
            segment
        })
        .collect();
    if offset > MOST_VALUES && segments.len() > 1 {
        return Err(OnnxError::TooWide { origin: origin(), tensors: segments.len(), values: offset, most: MOST_VALUES });
    }
    Ok(segments)
}

/// The taps that names and patterns stand for. A pattern takes the maps among the tensors that it fits, a name must be one.
fn named(model: &Model, cut: &Cut, names: &[String]) -> Result<Vec<Tap>, OnnxError> {
    let (input, graph) = (input(model)?, Graph::new(model.graph()));
    let finder = Finder::new(model, &graph, &input);
    let scan = Scan::new(&finder, cut);
    let maps: Vec<(&str, Tap)> = scan.maps().collect();
    let origin = || model.origin().to_owned();
    let no_map = |tensor: &str| {
        let reason = scan.tap(tensor).err().unwrap_or_default();
        OnnxError::NoMap { origin: origin(), tensor: tensor.to_owned(), reason }
    };
    let unknown = |name: &str| {
        if let Some((word, _)) = Layers::WORDS.iter().find(|(word, _)| word.eq_ignore_ascii_case(name)) {
            let nearest = vec![format!("{word}, alone and in small letters")];
            return OnnxError::UnknownLayer { origin: origin(), name: name.to_owned(), nearest };
        }
        let nearest = nearest(name, finder.nearest(name, maps.iter().map(|(tensor, _)| *tensor)));
        OnnxError::UnknownLayer { origin: origin(), name: name.to_owned(), nearest }
    };
    let mut wanted: HashSet<&str> = HashSet::new();
    for name in names {
        let fits: Vec<&str> = if let Some(tensor) = graph.computed().find(|tensor| tensor == name) {
            vec![tensor]
        } else if name.contains(['*', '?', '[']) {
            let bad = |reason: &str| OnnxError::BadPattern { origin: origin(), pattern: name.clone(), reason: reason.to_owned() };
            let pattern = glob::Pattern::new(name).map_err(|error| bad(error.msg))?;
            graph.computed().filter(|tensor| pattern.matches(tensor)).collect()
        } else {
            Vec::new()
        };
        let usable = |tensor: &&str| scan.is_cut(tensor) || maps.iter().any(|(map, _)| map == tensor);
        let found: Vec<&str> = fits.iter().copied().filter(usable).collect();
        match (fits.first(), found.is_empty()) {
            (None, _) => return Err(unknown(name)),
            (Some(first), true) => return Err(no_map(first)),
            _ => wanted.extend(found),
        }
    }
    Ok(maps.into_iter().filter(|(tensor, _)| wanted.contains(tensor) && !scan.is_cut(tensor)).map(|(_, tap)| tap).collect())
}

/// A word that was meant, before the tensors that may have been.
fn nearest(name: &str, tensors: Vec<String>) -> Vec<String> {
    let words = Layers::WORDS.iter().map(|(word, _)| (*word).to_owned());
    let mut found: Vec<String> = words.filter(|word| strsim::jaro_winkler(name, word) > 0.85).collect();
    found.extend(tensors);
    found
}
