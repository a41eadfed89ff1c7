//! `MODEL_CARD.md` and `labels.txt` beside a classifier (Mitchell et al., Model Cards for Model Reporting, 2019).

use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, UndefinedBehavior, context};

use super::{DeployError, Metadata};
use crate::evaluate::ClassScore;
use crate::markdown;
use crate::run::{Metrics, SplitScore};

/// Name of the card.
pub const CARD: &str = "MODEL_CARD.md";
/// Name of the list of class names.
pub const LABELS: &str = "labels.txt";

/// The card's first line: a card without it is somebody's own.
const MARK: &str = "<!-- model card by tlpipe export -->";

/// Classes that the card has a row for, at most.
const MOST_CLASSES: usize = 200;

/// What a card tells.
pub struct Card<'a> {
    /// Name of the classifier: its file's.
    pub file: &'a str,
    /// Name of the list of class names.
    pub labels: &'a str,
    /// Length of the file.
    pub bytes: u64,
    /// SHA-256 of the file, hexadecimal.
    pub sha256: &'a str,
    /// Version of the standard operators.
    pub opset: i64,
    /// What the file says of itself.
    pub metadata: &'a Metadata,
    /// What the head scored.
    pub metrics: &'a Metrics,
}

impl Card<'_> {
    /// The card in Markdown.
    ///
    /// # Errors
    /// When the template fails.
    pub fn markdown(&self) -> Result<String, DeployError> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment
            .set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).keep_trailing_newline(true).build()?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.add_filter("share", |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.4}")));
        environment.add_filter("small", |value: f64| format!("{value:.1e}"));
        environment.add_filter("text", |text: String| markdown::text(&text));
        environment.add_filter("code", |text: String| markdown::code(&text));
        // As Python reads it, too.
        environment.add_filter("quoted", |text: String| serde_json::Value::from(text).to_string());
        environment.add_template(CARD, include_str!("card.md"))?;
        let metrics = self.metrics;
        let splits: Vec<(&str, &SplitScore)> = [("hold-out", &metrics.validation), ("test", &metrics.test)]
            .into_iter()
            .filter_map(|(name, score)| Some((name, score.as_ref()?)))
            .collect();
        let mut classes: Vec<&ClassScore> = splits.last().map(|(_, score)| score.per_class.iter().collect()).unwrap_or_default();
        let left_out = classes.len().saturating_sub(MOST_CLASSES);
        if left_out > 0 {
            classes.sort_by(|a, b| a.f1.unwrap_or(2.0).total_cmp(&b.f1.unwrap_or(2.0)));
            classes.truncate(MOST_CLASSES);
        }
        let Metadata { preprocessing, parity, .. } = self.metadata;
        Ok(environment.get_template(CARD)?.render(context! {
            mark => MARK,
            file => self.file,
            labels => self.labels,
            megabytes => format!("{:.2}", self.bytes as f64 / 1e6),
            sha256 => self.sha256,
            opset => self.opset,
            classes => Serde(&self.metadata.classes),
            pixels => preprocessing.pixels.to_string(),
            views => preprocessing.views.names().join(", "),
            preprocessing => Serde(preprocessing),
            input => Serde(&self.metadata.input),
            provenance => Serde(&self.metadata.provenance),
            store => Serde(&self.metadata.store_key),
            scores => Serde(&self.metadata.metrics),
            parity => Serde(parity),
            splits => Serde(&splits),
            examined => splits.last().map(|(name, _)| *name),
            per_class => Serde(&classes),
            left_out => left_out,
            training => Serde(&metrics.split),
            kind => &metrics.split.kind,
            l2 => metrics.l2,
        })?)
    }
}

/// Where the card and the list of classes of a model go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beside {
    /// `MODEL_CARD.md`.
    pub card: PathBuf,
    /// `labels.txt`.
    pub labels: PathBuf,
}

/// Whose card a file is.
#[derive(Debug, PartialEq, Eq)]
enum Owner {
    Nobody,
    /// A person.
    Other,
    /// The model of this first heading.
    Model(String),
}

impl Owner {
    fn of(card: &Path) -> Self {
        if !card.exists() {
            return Self::Nobody;
        }
        let text = std::fs::read_to_string(card).unwrap_or_default();
        let heading = text.strip_prefix(MARK).and_then(|rest| rest.trim_start().lines().next());
        heading.map_or(Self::Other, |heading| Self::Model(heading.trim_start_matches("# ").to_owned()))
    }
}

impl Beside {
    /// Files in the model's folder: of the plain names, or, where a card of another model lies there, of names that begin with that of
    /// the model's file.
    ///
    /// # Errors
    /// When a file of that name is somebody's own.
    pub fn of(model: &Path) -> Result<Self, DeployError> {
        let name = |name: Option<&std::ffi::OsStr>| name.unwrap_or_default().to_string_lossy().into_owned();
        let file = name(model.file_name());
        // `a.onnx` and `a.ort` are two models.
        let stem = file.strip_suffix(".onnx").unwrap_or(&file);
        let plain = Self { card: model.with_file_name(CARD), labels: model.with_file_name(LABELS) };
        match Owner::of(&plain.card) {
            Owner::Model(owner) if owner != file && owner != markdown::text(&file) => Self {
                card: model.with_file_name(format!("{stem}.{CARD}")),
                labels: model.with_file_name(format!("{stem}.{LABELS}")),
            }
            .checked(),
            _ => plain.checked(),
        }
    }

    fn checked(self) -> Result<Self, DeployError> {
        match Owner::of(&self.card) {
            Owner::Other => Err(DeployError::InTheWay(self.card)),
            Owner::Nobody if self.labels.exists() => Err(DeployError::InTheWay(self.labels)),
            _ => Ok(self),
        }
    }
}

/// `labels.txt`: a class a line in the order of their indices; a line break within a name is written `\n`.
pub fn label_lines(classes: &[String]) -> String {
    let line = |class: &String| class.replace('\\', "\\\\").replace('\r', "\\r").replace('\n', "\\n");
    let plain = |class: &String| !class.contains(['\n', '\r']);
    classes.iter().map(|class| if plain(class) { class.clone() } else { line(class) } + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::super::metadata::tests::metadata;
    use super::*;

    fn metrics() -> Metrics {
        let class = |name: &str| ClassScore {
            class: name.into(),
            rows: 5,
            predicted: 5,
            precision: Some(0.8),
            recall: None,
            f1: Some(0.5),
        };
        let score = SplitScore {
            rows: 10,
            accuracy: 0.9,
            accuracy_interval: [0.6, 0.98],
            per_class: vec![class("a|b"), class("c\nd")],
            ..SplitScore::default()
        };
        let value = serde_json::json!({
            "schema": 2, "store_key": "k", "fit_key": "f", "solver": "ridge", "epochs": 1, "fit_seconds": 0.1, "load_seconds": 0.1,
            "features": 3, "classes": ["a|b", "c\nd"], "split": {"kind": "tail", "fraction": 0.2, "train": 8, "holdout": 2},
            "train": null, "validation": null, "test": score, "temperature": 1.5, "l2": 0.01, "head": {}
        });
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_card_tells_scores_classes_and_limits() {
        let (metadata, metrics) = (metadata(), metrics());
        let card = Card {
            file: "c.onnx",
            labels: LABELS,
            bytes: 8_900_000,
            sha256: "ab",
            opset: 13,
            metadata: &metadata,
            metrics: &metrics,
        };
        let text = card.markdown().unwrap();
        assert!(text.starts_with(MARK));
        for needle in [
            "# c.onnx",
            "8.90 MB",
            "| test | 10 | 0.9000 (0.6000 to 0.9800)",
            "| a\\|b | 5 | 0.8000 | – | 0.5000 |",
            "| c d |",
            "Apache-2.0",
            "## Limits",
            "not compared",
            "temperature",
            "1.25",
        ] {
            assert!(text.contains(needle), "no `{needle}` in\n{text}");
        }
        assert!(!text.contains("\n\n\n"), "{text}");
    }

    #[test]
    fn labels_stay_one_a_line() {
        let classes = ["a, \"b\"", "c\nd", "back\\slash"].map(str::to_owned);
        assert_eq!(label_lines(&classes), "a, \"b\"\nc\\nd\nback\\slash\n");
    }

    #[test]
    fn names_are_no_markup() {
        let (mut metadata, mut metrics) = (metadata(), metrics());
        metadata.provenance.backbone = "a*b".into();
        metadata.provenance.source = Some("x`<b>`".into());
        metrics.test.as_mut().unwrap().per_class[0].class = "<img src=x onerror=alert(1)>".into();
        let card = Card {
            file: "a_\"b\".onnx",
            labels: LABELS,
            bytes: 1,
            sha256: "",
            opset: 13,
            metadata: &metadata,
            metrics: &metrics,
        };
        let text = card.markdown().unwrap();
        for needle in [
            "| &lt;img src=x onerror=alert(1)&gt; | 5 |",
            "*a\\*b*",
            "`` x`<b>` ``",
            "# a\\_\"b\".onnx",
            r#"InferenceSession("a_\"b\".onnx")"#,
        ] {
            assert!(text.contains(needle), "no `{needle}` in\n{text}");
        }
    }

    #[test]
    fn a_card_of_somebody_else_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let beside = |model: &str| Beside::of(&path(model));
        let refused = |model: &str| beside(model).unwrap_err().to_string();
        let plain = Beside { card: path(CARD), labels: path(LABELS) };
        assert_eq!(beside("a.onnx").unwrap(), plain);
        std::fs::write(path(CARD), "# My model").unwrap();
        assert!(refused("a.onnx").contains(CARD));
        std::fs::write(path(CARD), format!("{MARK}\n# a\\_b.onnx\n\nText")).unwrap();
        std::fs::write(path(LABELS), "x").unwrap();
        assert_eq!(beside("a_b.onnx").unwrap(), plain);
        // That of another model stands.
        let own = Beside { card: path("b.MODEL_CARD.md"), labels: path("b.labels.txt") };
        assert_eq!(beside("b.onnx").unwrap(), own);
        std::fs::write(&own.labels, "mine").unwrap();
        assert!(refused("b.onnx").contains("b.labels.txt"));
        std::fs::remove_file(path(CARD)).unwrap();
        assert!(refused("a_b.onnx").contains(LABELS));
    }
}
