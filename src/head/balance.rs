//! How much the rows of each class count.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::HeadError;
use super::part::Listed;

/// What a row counts in the loss, by its class. A step divides by its rows, not by their weights, as Keras does.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ClassWeights {
    /// Every row counts 1.
    #[default]
    None,
    /// scikit-learn's rule: training rows / (classes that have any * training rows of the class), 1 on average over the rows.
    Balanced,
    /// One number for each class, in the order of the class list.
    Each(Vec<f64>),
}

/// Largest weight of a class.
const MOST: f64 = 1e6;
/// What may stand there.
const EXPECTED: &str = "\"none\", \"balanced\" or a list of one number per class, such as [1.0, 2.5]";

impl ClassWeights {
    /// Whether every number can be a weight.
    pub(super) fn is_valid(&self) -> bool {
        match self {
            Self::Each(weights) => {
                weights.iter().all(|weight| (0.0..=MOST).contains(weight)) && weights.iter().any(|&weight| weight > 0.0)
            }
            Self::None | Self::Balanced => true,
        }
    }

    /// The weight of each class.
    pub(super) fn of(&self, listed: &Listed<'_>) -> Result<Vec<f32>, HeadError> {
        let Listed { labels, train, classes, .. } = *listed;
        match self {
            Self::None => Ok(vec![1.0; classes]),
            Self::Balanced => {
                let mut rows = vec![0_usize; classes];
                train.iter().for_each(|&row| rows[labels[row]] += 1);
                let present = rows.iter().filter(|&&rows| rows > 0).count();
                let weight = |rows: usize| train.len() as f64 / (present * rows).max(1) as f64;
                Ok(rows.into_iter().map(|rows| weight(rows) as f32).collect())
            }
            Self::Each(weights) if weights.len() == classes => Ok(weights.iter().map(|&weight| weight as f32).collect()),
            Self::Each(weights) => {
                Err(HeadError::Size { what: "numbers of head.class_weights", found: weights.len(), expected: classes })
            }
        }
    }
}

impl fmt::Display for ClassWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Balanced => f.write_str("balanced"),
            Self::Each(weights) => write!(f, "{weights:?}"),
        }
    }
}

impl Serialize for ClassWeights {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::None | Self::Balanced => serializer.collect_str(self),
            Self::Each(weights) => weights.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for ClassWeights {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = ClassWeights;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(EXPECTED)
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ClassWeights, E> {
                match text {
                    "none" => Ok(ClassWeights::None),
                    "balanced" => Ok(ClassWeights::Balanced),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<ClassWeights, A::Error> {
                let mut weights = Vec::new();
                while let Some(weight) = list.next_element()? {
                    weights.push(weight);
                }
                Ok(ClassWeights::Each(weights))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl JsonSchema for ClassWeights {
    fn schema_name() -> Cow<'static, str> {
        "ClassWeights".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                { "const": "none", "description": "Every row counts 1." },
                { "const": "balanced", "description": "scikit-learn's rule: each class counts the same." },
                {
                    "type": "array",
                    "items": { "type": "number", "minimum": 0, "maximum": MOST },
                    "minItems": 1,
                    "description": "One number for each class, in the order of the class list."
                }
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(weights: &ClassWeights, labels: &[usize], classes: usize) -> Result<Vec<f32>, HeadError> {
        let train: Vec<usize> = (0..labels.len()).collect();
        weights.of(&Listed { labels, train: &train, holdout: &[], refit: &[], classes })
    }

    #[test]
    fn balanced_is_the_rule_of_scikit_learn() {
        // sklearn.utils.class_weight.compute_class_weight("balanced", classes=[0, 1, 3], y=[0, 0, 0, 1, 3, 3, 0, 0])
        let weights = of(&ClassWeights::Balanced, &[0, 0, 0, 1, 3, 3, 0, 0], 4).unwrap();
        assert_eq!([weights[0], weights[1], weights[3]], [0.533_333_36, 2.666_666_7, 1.333_333_4]);
    }

    #[test]
    fn a_list_has_one_number_per_class() {
        assert_eq!(of(&ClassWeights::Each(vec![1.0, 2.5]), &[0, 1], 2).unwrap(), [1.0, 2.5]);
        let error = of(&ClassWeights::Each(vec![1.0]), &[0, 1], 2).unwrap_err().to_string();
        assert!(error.starts_with("numbers of head.class_weights: found 1, expected 2"), "{error}");
    }

    #[test]
    fn both_forms_are_read_and_written_and_others_explained() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Table {
            w: ClassWeights,
        }
        for (text, w) in [
            ("w = \"none\"\n", ClassWeights::None),
            ("w = \"balanced\"\n", ClassWeights::Balanced),
            ("w = [1.0, 2.5]\n", ClassWeights::Each(vec![1.0, 2.5])),
        ] {
            assert_eq!(toml::to_string(&Table { w: w.clone() }).unwrap(), text);
            assert_eq!(toml::from_str::<Table>(text).unwrap(), Table { w });
        }
        assert_eq!(toml::from_str::<Table>("w = [1, 2]").unwrap().w, ClassWeights::Each(vec![1.0, 2.0]));
        for wrong in ["w = \"even\"", "w = 3", "w = true"] {
            let error = toml::from_str::<Table>(wrong).unwrap_err().to_string();
            assert!(error.contains("\"balanced\" or a list of one number per class"), "{error}");
        }
    }
}
