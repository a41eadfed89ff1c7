//! `audit.json`: what was found, counted, with what to do about it. `docs/audit.md` describes every key.

use serde::{Deserialize, Serialize};

use super::classes::{Balance, ClassRows};
use super::curve::Curve;
use super::features::FeatureUse;
use super::finding::{Finding, Kind};
use super::images::Images;
use super::labels::{ClassPair, LabelErrors};

/// Version of `audit.json`.
pub const AUDIT_SCHEMA: u32 = 1;

/// Images and labels of a split.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitRows {
    /// Its name.
    pub split: String,
    /// Images.
    pub images: usize,
    /// Those with a label.
    pub labelled: usize,
}

/// The strongest finding of a kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Strongest {
    /// Id of the image, or the name of the class or the number of the feature.
    pub id: String,
    /// Split of the image; none of a class or feature.
    pub split: Option<String>,
    /// The other image of a pair.
    pub other_id: Option<String>,
    /// Its split.
    pub other_split: Option<String>,
    /// As in `audit.parquet`; of a class its images to train on, of classes out of balance the ratio; none of features.
    pub score: Option<f64>,
    /// What is the matter.
    pub suggestion: String,
}

/// What was found of one kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KindSummary {
    /// As in `audit.parquet`, or `few_images`, `missing_class`, `imbalance`, `dead_feature`, `constant_feature`, `rare_feature`.
    pub kind: String,
    /// What is counted: `image`, `class` or `feature`.
    pub of: String,
    /// How many.
    pub count: usize,
    /// None where nothing was found.
    pub strongest: Option<Strongest>,
    /// What to do about them; none where nothing was found.
    pub suggestion: Option<String>,
    /// Why it was not looked for; none where it was.
    pub skipped: Option<String>,
}

/// Where the lines were drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Thresholds {
    /// Near duplicates: share of the local scale, the geometric mean of the distances of both images to their neighbour below.
    pub near: f64,
    /// The neighbour whose distance is the scale, and the measure of outliers.
    pub scale_neighbour: usize,
    /// Outliers: cosine distance to that neighbour; none where nothing was looked for.
    pub outlier: Option<f64>,
    /// Small images: shorter side as a share of the network's input.
    pub small: f64,
    /// Classes with few images: images to train on.
    pub few: usize,
    /// Classes out of balance: largest over smallest.
    pub imbalance: f64,
}

/// What confident learning says of the labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabelSummary {
    /// Labelled images.
    pub labelled: usize,
    /// Share of them whose label a classifier gives that has not seen them.
    pub agreement: f64,
    /// Estimated number of wrong labels; those of a weak classifier are too many.
    pub estimated: f64,
    /// Probability of its own label, mean over each class's images, in the order of the classes; none of a class without any.
    pub thresholds: Vec<Option<f64>>,
    /// The pairs of label and better fitting class, most images first; at most 20.
    pub pairs: Vec<ClassPair>,
    /// L2 of the least squares.
    pub l2: f64,
    /// Neighbours that vote.
    pub voters: usize,
}

/// Wall time, seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Seconds {
    /// Reading the features.
    pub load: f64,
    /// The nearest neighbours.
    pub neighbours: f64,
    /// Label errors.
    pub labels: f64,
    /// Everything else but the data curve.
    pub rest: f64,
    /// The data curve.
    pub data_curve: f64,
    /// All of it.
    pub all: f64,
}

/// `audit.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// [`AUDIT_SCHEMA`].
    pub schema: u32,
    /// Key of the feature store.
    pub store_key: String,
    /// Hash of its content: another one means that the images or features have changed since.
    pub store_digest: String,
    /// Version of tlpipe.
    pub tlpipe: String,
    /// Images in all.
    pub images: usize,
    /// Side of the network's input, pixels.
    pub input_size: u32,
    /// The splits, the one that trains first.
    pub splits: Vec<SplitRows>,
    /// One entry a kind, in the order in which they are to be looked at.
    pub findings: Vec<KindSummary>,
    /// Of the leaks, those that are equal in every byte.
    pub exact_leaks: usize,
    /// The labels; none where they were not checked.
    pub labels: Option<LabelSummary>,
    /// One entry a class.
    pub classes: Vec<ClassRows>,
    /// None where no image to train on has a label.
    pub balance: Option<Balance>,
    /// The features.
    pub features: FeatureUse,
    /// Error against the number of training images; none where it was not asked for.
    pub data_curve: Option<Curve>,
    /// Where the lines were drawn.
    pub thresholds: Thresholds,
    /// What it took.
    pub seconds: Seconds,
}

/// What the finders found.
pub struct Found<'a> {
    /// The images.
    pub images: &'a Images<'a>,
    /// Findings by kind, the strongest first.
    pub findings: &'a [Finding],
    /// Of the leaks, those that are equal in every byte.
    pub exact_leaks: usize,
    /// The labels, or why they were not checked.
    pub labels: Result<LabelErrors, String>,
    /// Classes and their balance.
    pub classes: (Vec<ClassRows>, Option<Balance>),
    /// The features.
    pub features: FeatureUse,
    /// Where the lines were drawn.
    pub thresholds: Thresholds,
    /// Side of the network's input, pixels.
    pub input_size: u32,
}

impl Found<'_> {
    /// Counts what was found and says what to do about it. Key and digest of the store, the curve and the times are the caller's to
    /// add.
    pub fn summarize(self) -> Summary {
        let splits = self.images.splits.iter().enumerate().map(|(number, split)| {
            let of_split = || self.images.rows.iter().filter(move |image| image.split == number);
            let labelled = of_split().filter(|image| image.label.is_some()).count();
            SplitRows { split: split.clone(), images: of_split().count(), labelled }
        });
        let splits: Vec<SplitRows> = splits.collect();
        let of_images = Kind::ALL.map(|kind| self.kind(kind));
        let findings = of_images.into_iter().chain(self.of_classes()).chain(self.of_features()).collect();
        let labels = self.labels.ok().map(|labels| LabelSummary {
            labelled: labels.labelled,
            agreement: labels.agreeing as f64 / labels.labelled.max(1) as f64,
            estimated: labels.estimated,
            thresholds: labels.thresholds,
            pairs: labels.pairs,
            l2: labels.l2,
            voters: super::VOTERS,
        });
        let (classes, balance) = self.classes;
        Summary {
            schema: AUDIT_SCHEMA,
            store_key: String::new(),
            store_digest: String::new(),
            tlpipe: env!("CARGO_PKG_VERSION").to_owned(),
            images: self.images.rows.len(),
            input_size: self.input_size,
            splits,
            findings,
            exact_leaks: self.exact_leaks,
            labels,
            classes,
            balance,
            features: self.features,
            data_curve: None,
            thresholds: self.thresholds,
            seconds: Seconds::default(),
        }
    }

    fn kind(&self, kind: Kind) -> KindSummary {
        let images = self.images;
        let count = self.findings.iter().filter(|finding| finding.kind == kind).count();
        let first = self.findings.iter().find(|finding| finding.kind == kind);
        let strongest = first.map(|finding| Strongest {
            id: images.rows[finding.row].id.clone(),
            split: Some(images.split(finding.row).to_owned()),
            other_id: finding.other.map(|row| images.rows[row].id.clone()),
            other_split: finding.other.map(|row| images.split(row).to_owned()),
            score: Some(finding.score),
            suggestion: finding.suggestion.clone(),
        });
        let skipped = match kind {
            Kind::LabelError => self.labels.as_ref().err().cloned(),
            Kind::LabelConflict if images.rows.iter().all(|image| image.label.is_none()) => Some("no image has a label".into()),
            Kind::Leak if images.splits.len() < 2 => Some("there is one split".into()),
            Kind::Outlier if self.thresholds.outlier.is_none() => Some("too few images".into()),
            _ => None,
        };
        let suggestion = (count > 0).then(|| self.advice(kind, count));
        KindSummary { kind: kind.name().to_owned(), of: "image".into(), count, strongest, suggestion, skipped }
    }

    fn advice(&self, kind: Kind, count: usize) -> String {
        match kind {
            Kind::Leak => format!("take them out of one split: scores count {count} images that another split holds too"),
            Kind::Duplicate => "keep one of each: copies count twice in training and in scores".into(),
            Kind::NearDuplicate => "keep one of each, or keep each group on one side of the hold-out (--split grouped)".into(),
            Kind::LabelConflict => "correct one label of each pair".into(),
            Kind::LabelError => "look at them from the first on, correct what is wrong, stop where most are right".into(),
            Kind::Outlier => "look whether they belong here: other subjects, broken or blank images".into(),
            Kind::SmallImage if count == self.images.rows.len() => {
                let side = self.images.rows.iter().map(|image| image.width.min(image.height)).max().unwrap_or(0);
                format!("every image is enlarged (to {} from {side} pixels or fewer): look for larger originals", self.input_size)
            }
            Kind::SmallImage => "look for larger originals, or extract with a smaller --input-size".into(),
            Kind::NotFinite => "make the features anew (tlpipe extract --rebuild); they were left out of all other checks".into(),
        }
    }

    fn of_classes(&self) -> [KindSummary; 3] {
        let (classes, balance) = &self.classes;
        let class = |class: &ClassRows, score: usize, suggestion: String| Strongest {
            score: Some(score as f64),
            suggestion,
            ..named(class.class.clone())
        };
        let trains = |class: &ClassRows| class.images.first().copied().unwrap_or(0);
        let few: Vec<&ClassRows> = classes.iter().filter(|class| class.few).collect();
        let least = few.iter().min_by_key(|class| trains(class));
        let missing: Vec<&ClassRows> = classes.iter().filter(|class| !class.missing_in.is_empty()).collect();
        let uneven = balance.as_ref().filter(|balance| balance.imbalanced);
        let unlabelled = balance.is_none().then(|| "no image to train on has a label".to_owned());
        let summary = |kind: &str, count, strongest, advice: &str| KindSummary {
            kind: kind.to_owned(),
            of: "class".into(),
            count,
            strongest,
            suggestion: (count > 0).then(|| advice.to_owned()),
            skipped: unlabelled.clone(),
        };
        [
            summary(
                "few_images",
                few.len(),
                least.map(|least| class(least, trains(least), format!("{} images to train on", trains(least)))),
                "add images, or join classes",
            ),
            summary(
                "missing_class",
                missing.len(),
                missing.first().map(|first| class(first, trains(first), format!("none in {}", first.missing_in.join(" and ")))),
                "add images of these classes to the splits that lack them, or leave the classes out",
            ),
            summary(
                "imbalance",
                usize::from(uneven.is_some()),
                uneven.map(|balance| Strongest {
                    score: Some(balance.ratio),
                    suggestion: format!("{} images of the largest class, {} of the smallest", balance.largest, balance.smallest),
                    ..named("all".into())
                }),
                "weigh the classes (--class-weights balanced), or add images of the small ones",
            ),
        ]
    }

    fn of_features(&self) -> [KindSummary; 3] {
        let FeatureUse { width, dead, constant, rare } = &self.features;
        let summary = |kind: &str, list: &[usize], what: &str, advice: &str| KindSummary {
            kind: kind.to_owned(),
            of: "feature".into(),
            count: list.len(),
            strongest: list.first().map(|first| Strongest { suggestion: what.to_owned(), ..named(first.to_string()) }),
            suggestion: (!list.is_empty()).then(|| advice.to_owned()),
            skipped: None,
        };
        let many = dead.len() * 2 > *width;
        let of_dead =
            if many { "the input is too small for this backbone: raise --input-size" } else { "they cost room and harm nothing" };
        [
            summary("dead_feature", dead, "0 in every image", of_dead),
            summary("constant_feature", constant, "the same in every image", "they cost room and harm nothing"),
            summary(
                "rare_feature",
                rare,
                "0 in all but fewer than one image of a thousand",
                "heads may learn single images by them: more L2 helps",
            ),
        ]
    }
}

fn named(id: String) -> Strongest {
    Strongest { id, split: None, other_id: None, other_split: None, score: None, suggestion: String::new() }
}
