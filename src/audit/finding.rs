use serde::{Deserialize, Serialize};

/// What is found of images, in the order in which it is to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// An image of one split stands in another one too, or a near duplicate of it.
    Leak,
    /// The same bytes twice in a split.
    Duplicate,
    /// The same picture in other bytes, twice in a split.
    NearDuplicate,
    /// Two copies of a picture with different labels.
    LabelConflict,
    /// A label that the other images speak against.
    LabelError,
    /// Far from every other image.
    Outlier,
    /// Far smaller than the network's input.
    SmallImage,
    /// Features that are no numbers.
    NotFinite,
}

impl Kind {
    /// Every kind, in order.
    pub const ALL: [Self; 8] = [
        Self::Leak,
        Self::Duplicate,
        Self::NearDuplicate,
        Self::LabelConflict,
        Self::LabelError,
        Self::Outlier,
        Self::SmallImage,
        Self::NotFinite,
    ];

    /// As it stands in `audit.parquet` and `audit.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Leak => "leak",
            Self::Duplicate => "duplicate",
            Self::NearDuplicate => "near_duplicate",
            Self::LabelConflict => "label_conflict",
            Self::LabelError => "label_error",
            Self::Outlier => "outlier",
            Self::SmallImage => "small_image",
            Self::NotFinite => "not_finite",
        }
    }
}

/// Something that is wrong with an image, or with a pair.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// What it is.
    pub kind: Kind,
    /// How strong it is among those of its kind; what it counts is said where each kind is found.
    pub score: f64,
    /// Row of the image.
    pub row: usize,
    /// Row of the other image of a pair.
    pub other: Option<usize>,
    /// What to do, in words.
    pub suggestion: String,
}

/// Puts the strongest first, of equals the one of the first image.
pub(super) fn rank(findings: &mut [Finding]) {
    findings.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.row.cmp(&b.row)).then(a.other.cmp(&b.other)));
}
