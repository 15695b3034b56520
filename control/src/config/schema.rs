//! The JSON Schema (draft 2020-12) of the configuration file, made from the types that read it: for
//! editors, for programs that write configurations, and for the manual page.
//!
//! The schema says which keys there are and which values each takes alone. What takes more than one
//! value to judge is for `--check-config`.

use serde_json::{Map, Value};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{AdditionalProperties, ObjectBuilder, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::file::{File, OptionValue};
use crate::api::types::Driver;
use crate::options;

/// Where references to other schemas lead in what the types give.
const COMPONENTS: &str = "#/components/schemas/";

/// The whole schema, without references.
#[must_use]
pub fn document() -> Value {
    let mut parts = Vec::new();
    File::schemas(&mut parts);
    let parts: Map<String, Value> =
        parts.into_iter().map(|(name, schema)| (name, value(&schema))).collect();
    let mut schema = Map::from_iter([
        ("$schema".to_owned(), Value::from("https://json-schema.org/draft/2020-12/schema")),
        ("title".to_owned(), Value::from("vswitchd.toml")),
    ]);
    if let Value::Object(file) = plain(&value(&File::schema()), &parts) {
        schema.extend(file);
    }
    Value::Object(schema)
}

fn value(schema: &RefOr<Schema>) -> Value {
    // Types of schemas always are JSON; were one not, the test of the document would miss it.
    serde_json::to_value(schema).unwrap_or_default()
}

/// Options of a network of the config file: the names of those that a bridge takes.
pub(super) fn network_options() -> Schema {
    let names = options::names_of(Driver::Bridge);
    let described =
        ObjectBuilder::new().description(Some("Options by their own or Docker's names."));
    let none_else = described.additional_properties(Some(AdditionalProperties::FreeForm(false)));
    names.fold(none_else, |all, name| all.property(name, OptionValue::schema())).into()
}

/// The schema with what it refers to in place, for a language that has no null, and whose readers
/// refuse unknown keys.
fn plain(schema: &Value, parts: &Map<String, Value>) -> Value {
    let fields = match schema {
        Value::Object(fields) => fields,
        Value::Array(items) => return items.iter().map(|item| plain(item, parts)).collect(),
        other => return other.clone(),
    };
    let target = fields.get("$ref").and_then(Value::as_str);
    if let Some(part) = target.and_then(|target| parts.get(target.strip_prefix(COMPONENTS)?)) {
        return described(plain(part, parts), fields);
    }
    // An optional value: itself, or null.
    if let Some(Value::Array(choices)) = fields.get("oneOf") {
        let mut choices = choices.iter().filter(|choice| choice["type"] != "null");
        if let (Some(only), None) = (choices.next(), choices.next()) {
            return described(plain(only, parts), fields);
        }
    }
    let mut schema: Map<String, Value> = fields
        .iter()
        .map(|(key, value)| match (key.as_str(), value) {
            ("type", Value::Array(types)) => (key.clone(), without_null(types)),
            // Of comments, whose lines end where they are full.
            ("description", Value::String(text)) => (key.clone(), text.replace('\n', " ").into()),
            // What is below are names, not words of JSON Schema.
            ("properties", Value::Object(properties)) => {
                let properties = properties.iter();
                (key.clone(), properties.map(|(k, v)| (k.clone(), plain(v, parts))).collect())
            }
            _ => (key.clone(), plain(value, parts)),
        })
        .collect();
    if schema.contains_key("properties") {
        schema.entry("additionalProperties").or_insert(Value::Bool(false));
    }
    Value::Object(schema)
}

/// A schema with the description of the place where it stands, if that has one.
fn described(mut schema: Value, place: &Map<String, Value>) -> Value {
    let own = place.get("description").and_then(Value::as_str);
    if let (Some(own), Value::Object(fields)) = (own, &mut schema) {
        fields.insert("description".to_owned(), own.replace('\n', " ").into());
    }
    schema
}

fn without_null(types: &[Value]) -> Value {
    let mut types: Vec<Value> = types.iter().filter(|name| *name != "null").cloned().collect();
    if types.len() == 1 { types.remove(0) } else { Value::Array(types) }
}

#[cfg(test)]
mod tests;
