//! The schema, held against the parser: both know the same keys and refuse the same values.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::config::Config;

fn docs(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(file)
}

/// The little of JSON Schema that the document uses; a word beyond it is a fault too.
fn faults(schema: &Value, value: &Value, place: &str, found: &mut Vec<String>) {
    let is = |name: &str| match name {
        "array" => value.is_array(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64(),
        "object" => value.is_object(),
        "string" => value.is_string(),
        other => panic!("type {other}"),
    };
    let bound = |limit: &Value| value.as_f64().zip(limit.as_f64());
    for (word, given) in schema.as_object().unwrap() {
        let sound = match word.as_str() {
            "$schema" | "title" | "description" | "examples" | "example" | "format" => true,
            "type" => is(given.as_str().unwrap()),
            "enum" => given.as_array().unwrap().contains(value),
            "minimum" => bound(given).is_none_or(|(value, limit)| value >= limit),
            "maximum" => bound(given).is_none_or(|(value, limit)| value <= limit),
            "required" => {
                let keys = given.as_array().unwrap().iter();
                keys.map(|key| key.as_str().unwrap()).all(|key| value.get(key).is_some())
            }
            // Keys are strings in TOML as they are in JSON.
            "propertyNames" => given["type"] == "string",
            // With "properties", below.
            "additionalProperties" | "properties" => true,
            "items" => {
                for item in value.as_array().into_iter().flatten() {
                    faults(given, item, &format!("{place}[]"), found);
                }
                continue;
            }
            "oneOf" => {
                let fits = |choice: &&Value| {
                    let mut found = Vec::new();
                    faults(choice, value, place, &mut found);
                    found.is_empty()
                };
                given.as_array().unwrap().iter().filter(fits).count() == 1
            }
            other => panic!("{place}: {other} is not understood here"),
        };
        if !sound {
            found.push(format!("{place}: {word}: {value} is not of {given}"));
        }
    }
    let none = Map::new();
    let known = schema.get("properties").and_then(Value::as_object).unwrap_or(&none);
    for (key, value) in value.as_object().into_iter().flatten() {
        let place = format!("{place}.{key}");
        match (known.get(key), schema.get("additionalProperties")) {
            (Some(schema), _) => faults(schema, value, &place, found),
            (None, Some(Value::Bool(false))) => found.push(format!("{place}: is unknown")),
            (None, Some(Value::Bool(true)) | None) => {}
            (None, Some(schema)) => faults(schema, value, &place, found),
        }
    }
}

fn by_schema(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    faults(&document(), &toml::from_str(text).unwrap(), "", &mut found);
    found
}

#[test]
fn the_document_in_docs_is_the_one_that_is_printed() {
    let path = docs("vswitchd.schema.json");
    let text = format!("{:#}\n", document());
    if std::env::var_os("UPDATE_EXPECTED").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == text, "{}: renew it with UPDATE_EXPECTED=1, and read the diff", path.display());
}

#[test]
fn the_examples_are_sound_by_schema_and_parser() {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(docs("examples")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("deb/vswitchd.toml"));
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    assert!(paths.len() >= 2);
    for path in paths {
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(by_schema(&text), Vec::<String>::new(), "{}", path.display());
        Config::parse(&text, &path).unwrap();
    }
}

#[test]
fn schema_and_parser_refuse_the_same() {
    let network = |rest: &str| format!("[[network]]\nname = \"a\"\n{rest}");
    for text in [
        "no_such = 1".to_owned(),
        "[daemon]\nsokcet = \"/x\"".to_owned(),
        "[daemon]\nworkers = 0".to_owned(),
        "[daemon]\nworkers = 65".to_owned(),
        "[daemon]\nworkers = \"2\"".to_owned(),
        "[daemon]\nplacement = \"both\"".to_owned(),
        "[daemon]\nio = \"uring\"".to_owned(),
        "[defaults]\nmtu = 575".to_owned(),
        "[defaults]\nlink = \"tun\"".to_owned(),
        "[defaults]\npools = [{ base = \"10.0.0.0/8\" }]".to_owned(),
        "[defaults]\npools = [{ base = \"10.0.0.0/8\", size = 16, x = 1 }]".to_owned(),
        "[timeouts]\nudp = 0".to_owned(),
        "[timeouts]\nrestart_grace = -1".to_owned(),
        "[limits]\nconntrack = 1000".to_owned(),
        "[[uplink]]\nmode = \"shared\"".to_owned(),
        "[[uplink]]\ninterface = \"e\"\nmode = \"x\"".to_owned(),
        "[[network]]\ndriver = \"bridge\"".to_owned(),
        "[cluster]\nstore = \"etcd\"".to_owned(),
        network("subnet = 5"),
        network("internal = \"yes\""),
        network("options = { no_such = 1 }"),
        network("options = { mtu = [1] }"),
        network("labels = { a = 1 }"),
    ] {
        assert_ne!(by_schema(&text), Vec::<String>::new(), "the schema takes {text}");
        assert!(Config::parse(&text, Path::new("x")).is_err(), "the parser takes {text}");
    }
    for text in [
        "[daemon]\nio = \"epoll\"\nplacement = \"spread\"\nworkers = 64".to_owned(),
        "[timeouts]\nrestart_grace = 0".to_owned(),
        "[[uplink]]\ninterface = \"e\"".to_owned(),
        network("subnet = \"10.1.0.0/24\""),
        network("subnet = [\"10.1.0.0/24\", \"fd00::/64\"]"),
        network("options = { mtu = 1400, icc = false, link = \"veth\" }"),
        network("options = { \"com.docker.network.driver.mtu\" = \"1400\" }"),
    ] {
        assert_eq!(by_schema(&text), Vec::<String>::new(), "{text}");
        Config::parse(&text, Path::new("x")).unwrap();
    }
}

#[test]
fn every_key_of_the_parser_is_in_the_schema_and_described() {
    let document = document();
    let mut count = 0;
    for section in ["daemon", "defaults", "timeouts", "limits", "uplink", "network"] {
        let schema = &document["properties"][section];
        let many = matches!(section, "uplink" | "network");
        let schema = if many { &schema["items"] } else { schema };
        let header = if many { format!("[[{section}]]") } else { format!("[{section}]") };
        let message = Config::parse(&format!("{header}\nno_such_key = 1"), Path::new("x"));
        let message = message.unwrap_err().message;
        let (_, keys) = message.split_once("known keys are ").unwrap();
        let described = schema["properties"].as_object().unwrap();
        assert_eq!(keys.split(", ").count(), described.len(), "{section}");
        for key in keys.split(", ") {
            let text = described[key]["description"].as_str();
            assert!(text.is_some_and(|text| text.len() > 3), "{section}.{key}: {schema}");
            count += 1;
        }
    }
    assert!(count > 40, "{count}");
}
