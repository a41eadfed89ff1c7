//! The JSON Schema of pipeline files: it is the committed one, accepts what tlpipe accepts, and refuses what tlpipe refuses.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tlpipe::pipeline::{Override, Pipeline, Settings, schema};

use crate::support::{Scratch, committed};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn parsed() -> Value {
    serde_json::from_str(&schema()).unwrap()
}

/// What a value has against it, by the words of JSON Schema that ours uses; another word is an error here.
fn problems(schema: &Value, value: &Value, at: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut complain = |ok: bool, what: &str| {
        if !ok {
            found.push(format!("{at}: {value} against {what}"));
        }
    };
    let number = value.as_f64().unwrap_or(f64::NAN);
    let list = value.as_array();
    let mut inner = Vec::new();
    for (word, rule) in schema.as_object().unwrap() {
        let bound = || rule.as_f64().unwrap();
        let of = |rule: &Value| problems(rule, value, at).is_empty();
        let what = format!("{word} {rule}");
        match word.as_str() {
            "$schema" | "title" | "description" | "default" => {}
            // Checked where the schema meets the types, below.
            "pattern" => {}
            "type" => complain(
                match rule.as_str().unwrap() {
                    "object" => value.is_object(),
                    "array" => value.is_array(),
                    "string" => value.is_string(),
                    "boolean" => value.is_boolean(),
                    "integer" => value.is_i64() || value.is_u64(),
                    "number" => value.is_number(),
                    other => panic!("type {other}"),
                },
                &what,
            ),
            "const" => complain(value == rule, &what),
            "enum" => complain(rule.as_array().unwrap().contains(value), &what),
            "anyOf" => complain(rule.as_array().unwrap().iter().any(of), &what),
            "oneOf" => complain(rule.as_array().unwrap().iter().filter(|rule| of(rule)).count() == 1, &what),
            "minimum" => complain(number.is_nan() || number >= bound(), &what),
            "maximum" => complain(number.is_nan() || number <= bound(), &what),
            "exclusiveMinimum" => complain(number.is_nan() || number > bound(), &what),
            "exclusiveMaximum" => complain(number.is_nan() || number < bound(), &what),
            "minLength" => complain(value.as_str().is_none_or(|text| text.chars().count() >= bound() as usize), &what),
            "minItems" => complain(list.is_none_or(|list| list.len() >= bound() as usize), &what),
            "uniqueItems" => {
                complain(list.is_none_or(|list| list.iter().enumerate().all(|(at, one)| !list[..at].contains(one))), &what);
            }
            "contains" => complain(list.is_none_or(|list| list.iter().any(|one| problems(rule, one, at).is_empty())), &what),
            "items" => inner.extend(list.into_iter().flatten().flat_map(|one| problems(rule, one, at))),
            "properties" => {
                for (key, one) in value.as_object().into_iter().flatten() {
                    if let Some(rule) = rule.get(key) {
                        inner.extend(problems(rule, one, &format!("{at}.{key}")));
                    }
                }
            }
            "additionalProperties" => {
                assert_eq!(rule, false);
                let known = schema["properties"].as_object().unwrap();
                let unknown: Vec<&String> =
                    value.as_object().into_iter().flatten().map(|(key, _)| key).filter(|key| !known.contains_key(*key)).collect();
                complain(unknown.is_empty(), &format!("unknown {unknown:?}"));
            }
            other => panic!("{at}: the schema has a new word, {other}: teach it to this test"),
        }
    }
    found.extend(inner);
    found
}

/// What the schema has against a pipeline file.
pub fn against(toml: &str) -> Vec<String> {
    let value: toml::Table = toml.parse().unwrap_or_else(|error| panic!("{error}\n{toml}"));
    problems(&parsed(), &serde_json::to_value(value).unwrap(), "")
}

#[test]
fn the_committed_schema_is_that_of_the_types() {
    committed(&root().join("pipelines/tlpipe.schema.json"), &schema());
    let printed = Scratch::new().ok(&["init", "--schema"]).stdout;
    assert_eq!(printed, schema());
}

#[test]
fn every_section_and_key_is_explained() {
    let schema = parsed();
    let sections = schema["properties"].as_object().unwrap();
    assert_eq!(sections.keys().collect::<Vec<_>>(), ["backbone", "data", "head", "output", "runtime"]);
    let all = toml::Table::try_from(Settings::default()).unwrap();
    for (name, section) in sections {
        assert!(section["description"].is_string(), "{name}");
        for (key, property) in section["properties"].as_object().unwrap() {
            let text = property["description"].as_str().unwrap_or_default();
            assert!(text.len() > 8 && !text.contains("[`"), "{name}.{key}: {text:?}");
        }
        for key in all[name].as_table().unwrap().keys() {
            assert!(section["properties"].get(key).is_some(), "{name}.{key} is not in the schema");
        }
    }
}

#[test]
fn the_pipelines_and_the_readme_fit_it_and_slips_do_not() {
    let mut files = 0;
    for entry in fs::read_dir(root().join("pipelines")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.starts_with("#:schema ./tlpipe.schema.json\n"), "{}", path.display());
            assert_eq!(against(&text), Vec::<String>::new(), "{}", path.display());
            files += 1;
        }
    }
    assert!(files >= 4);
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let shown: Vec<&str> = readme.split("```toml\n").skip(1).filter_map(|block| block.split("```").next()).collect();
    assert!(!shown.is_empty());
    for text in shown {
        assert_eq!(against(text), Vec::<String>::new(), "{text}");
    }
    for slip in [
        "[head]\nepoch = 3\n",
        "[heads]\n",
        "[head]\nepochs = 'ten'\n",
        "[head]\nsolver = 'sgd'\n",
        "[head]\nclass_weights = 'even'\n",
        "[backbone]\nviews = ['hflip']\n",
        "[backbone]\nviews = ['identity', 'identity']\n",
        "[backbone]\nlayers = []\n",
        "[backbone]\nresize = 'stretch'\n",
        "[output]\ndtype = 'float64'\n",
        "[runtime]\nprecision = 'int8'\n",
    ] {
        assert!(!against(slip).is_empty(), "{slip}");
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), slip).unwrap();
        let taken = Settings::load(Some(file.path()), &[]).and_then(|settings| settings.runtime.compute().map(|_| ()));
        assert!(taken.is_err(), "tlpipe takes what the schema refuses: {slip}");
    }
}

/// Every bound of the schema is that of the checks: what lies on it is taken, what lies beyond it is refused.
#[test]
fn bounds_are_those_of_the_checks() {
    let taken = |key: &str, value: &Value| {
        let needs: &[(&str, Value)] = match key.trim_start_matches("head.") {
            "step_epochs" | "step_factor" => &[("head.schedule", json!("step"))],
            "min_delta" => &[("head.patience", json!(3))],
            "max_iterations" | "tolerance" => &[("head.solver", json!("lbfgs"))],
            "budget" => &[("head.solver", json!("ridge"))],
            "group" => &[("head.split", json!("grouped"))],
            _ => &[],
        };
        let all = [("data.source", json!("x"))].into_iter().chain(needs.iter().cloned()).chain([(key, value.clone())]);
        let set = |(key, value): (&str, Value)| Override { key: key.into(), value: toml::Value::try_from(value).unwrap() };
        let all: Vec<Override> = all.map(set).collect();
        Settings::load(None, &all).and_then(|settings| Pipeline::new(settings, None)).is_ok()
    };
    let mut checked = 0;
    for (section, rules) in parsed()["properties"].as_object().unwrap() {
        for (name, rule) in rules["properties"].as_object().unwrap() {
            let key = format!("{section}.{name}");
            let whole = rule["type"] == "integer";
            let value = |number: f64| if whole { json!(number as i64) } else { json!(number) };
            let bound = |word: &str| rule.get(word).and_then(Value::as_f64);
            let step = if whole { 1.0 } else { 1e-6 };
            let beyond = [
                bound("minimum").map(|bound| (bound, bound - step)),
                bound("maximum").map(|bound| (bound, bound + step.max(bound * 1e-6))),
                bound("exclusiveMinimum").map(|bound| (bound + step, bound)),
                bound("exclusiveMaximum").map(|bound| (bound - step, bound)),
            ];
            for (inside, outside) in beyond.into_iter().flatten() {
                assert!(taken(&key, &value(inside)), "{key} = {inside} is refused");
                assert!(!taken(&key, &value(outside)), "{key} = {outside} is taken");
                checked += 1;
            }
            if rule.get("minLength").is_some() {
                assert!(taken(&key, &json!("_")) && !taken(&key, &json!("")), "{key}");
            }
        }
    }
    assert!(checked > 30, "{checked}");
    for (device, good) in
        [("cpu", true), ("auto", true), ("cuda", true), ("cuda:1", true), ("tpu", false), ("cuda:", false), ("CPU", false)]
    {
        assert_eq!(taken("runtime.device", &json!(device)), good, "{device}");
    }
    assert_eq!(parsed()["properties"]["runtime"]["properties"]["device"]["pattern"], "^(cpu|auto|cuda(:[0-9]+)?)$");
}
