//! The JSON Schema of pipeline files, for editors: made from the types that read them, so that it says what is accepted.

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::Settings;

/// JSON Schema (draft 7, which TOML editors know) of a pipeline file, as text.
pub fn schema() -> String {
    let generator = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true).into_generator();
    let mut schema = Value::from(generator.into_root_schema_for::<Settings>());
    for_toml(&mut schema);
    format!("{schema:#}\n")
}

/// What TOML has no word for goes: a key that is left out is not null, and numbers have no formats.
fn for_toml(schema: &mut Value) {
    let object = match schema {
        Value::Object(object) => object,
        Value::Array(list) => return list.iter_mut().for_each(for_toml),
        _ => return,
    };
    object.remove("format");
    // Those of a section are those of its keys.
    if object.get("default").is_some_and(|value| value.is_null() || value.is_object()) {
        object.remove("default");
    }
    if let Some(Value::Array(types)) = object.get_mut("type") {
        types.retain(|one| one != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            object.insert("type".into(), only);
        }
    }
    if let Some(Value::Array(choices)) = object.get_mut("anyOf") {
        choices.retain(|choice| choice.get("type").is_none_or(|kind| kind != "null"));
        if choices.len() == 1
            && let Some(Value::Object(only)) = choices.pop()
        {
            object.remove("anyOf");
            // What is said of the key is more than what is said of its type.
            only.into_iter().for_each(|(key, value)| {
                object.entry(key).or_insert(value);
            });
        }
    }
    if let Some(Value::String(text)) = object.get_mut("description") {
        let paragraphs: Vec<String> = text.split("\n\n").map(|paragraph| paragraph.replace('\n', " ")).collect();
        *text = paragraphs.join("\n\n");
    }
    object.values_mut().for_each(for_toml);
}
