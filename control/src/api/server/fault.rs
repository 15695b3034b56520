//! What is wrong with a body or a query, in the words of the API: the field by its path, what is
//! expected there, what came. serde's own messages name Rust types, which no client knows.

use serde::Deserialize;
use serde_path_to_error::{Path, Segment};

use crate::api::types::State;
use crate::error::{Error, Result};

/// Reads a JSON body.
///
/// # Errors
/// When it is not JSON, not an object, or not what `T` is.
pub fn read_body<'de, T: Deserialize<'de>>(text: &'de [u8]) -> Result<T> {
    // Read twice: the first time as any JSON, so that what fails the second time is a field.
    object(BODY, text)?;
    fields(BODY, text)
}

/// Reads a [`State`]; `part` is what the message begins with.
///
/// # Errors
/// When it is not JSON, not an object, newer than this program, or not a state.
pub fn read_state(part: &str, text: &[u8]) -> Result<State> {
    // What is newer may have fields that are unknown here: the version is what to tell then.
    let value = object(part, text)?;
    let version = value.get("version").and_then(serde_json::Value::as_u64);
    let known = u64::from(State::VERSION);
    match version {
        Some(version) if version > known => Err(Error::invalid(format!(
            "{part}: has version {version}, the newest known here is {known}; upgrade vswitchd, or \
             export from one that is not newer"
        ))),
        Some(0) => Err(Error::invalid(format!("{part}: field \"version\": must be {known}"))),
        _ => fields(part, text),
    }
}

/// What a message about a body begins with.
const BODY: &str = "body";

/// The text as any JSON object.
fn object(part: &str, text: &[u8]) -> Result<serde_json::Value> {
    let value: serde_json::Value = serde_json::from_slice(text).map_err(|error| {
        let torn = if error.is_eof() { "; it ends too early" } else { "" };
        Error::invalid(format!("{part}: is not JSON: {error}{torn}"))
    })?;
    if value.is_object() {
        return Ok(value);
    }
    Err(Error::invalid(format!("{part}: is not a JSON object like {{\"name\": \"web\"}}")))
}

fn fields<'de, T: Deserialize<'de>>(part: &str, text: &'de [u8]) -> Result<T> {
    let mut json = serde_json::Deserializer::from_slice(text);
    serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let place = format!(" at line {} column {}", error.inner().line(), error.inner().column());
        let message = error.inner().to_string();
        fault(part, error.path(), message.strip_suffix(&place).unwrap_or(&message))
    })
}

/// Reads a query.
///
/// # Errors
/// When it is not what `T` is.
pub fn read_query<'de, T: Deserialize<'de>>(text: &'de str) -> Result<T> {
    let pairs = form_urlencoded::parse(text.as_bytes());
    serde_path_to_error::deserialize(serde_urlencoded::Deserializer::new(pairs))
        .map_err(|error| fault("query", error.path(), &error.inner().to_string()))
}

/// One line about the field at `path`, out of serde's message.
fn fault(part: &str, path: &Path, message: &str) -> Error {
    let field = field(path);
    let inner =
        |name: &str| if field.is_empty() { name.to_owned() } else { format!("{field}.{name}") };
    let quoted = |prefix| message.strip_prefix(prefix)?.strip_suffix('`');
    let (field, fault) = if let Some(name) = quoted("missing field `") {
        (inner(name), "is missing".to_owned())
    } else if let Some(name) = quoted("duplicate field `") {
        (inner(name), "is given twice".to_owned())
    } else if let Some((_, known)) = unknown(message, "unknown field `") {
        (field, format!("is unknown; {known}"))
    } else if let Some((value, known)) = unknown(message, "unknown variant `") {
        (field, format!("{value:?} is unknown; {known}"))
    } else {
        (field, value_fault(message))
    };
    Error::invalid(if field.is_empty() {
        format!("{part}: {fault}")
    } else {
        format!("{part}: field {field:?}: {fault}")
    })
}

/// The field's place, as in `subnets[0].gateway`.
fn field(path: &Path) -> String {
    let mut field = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => field.push_str(&format!("[{index}]")),
            Segment::Map { key } => {
                if !field.is_empty() {
                    field.push('.');
                }
                field.push_str(key);
            }
            Segment::Enum { .. } | Segment::Unknown => {}
        }
    }
    field
}

/// The unknown word and what is known, out of `` PREFIX`WORD`, expected one of `a`, `b` ``.
fn unknown<'a>(message: &'a str, prefix: &str) -> Option<(&'a str, String)> {
    let rest = message.strip_prefix(prefix)?;
    // From the right: the word is the client's, the known ones are ours.
    let (word, known) = rest
        .rsplit_once("`, expected ")
        .or_else(|| rest.strip_suffix("`, there are no fields").map(|word| (word, "")))?;
    let known: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
    let known = match known.as_slice() {
        [] => "nothing is expected here".to_owned(),
        known => format!("known are {}", known.join(", ")),
    };
    Some((word, known))
}

/// What is wrong with a value.
fn value_fault(message: &str) -> String {
    let mismatch = ["invalid type: ", "invalid value: ", "invalid length "]
        .into_iter()
        .find_map(|prefix| message.strip_prefix(prefix)?.rsplit_once(", expected "));
    if let Some((got, expected)) = mismatch {
        return format!("expected {}, not {}", wanted(expected), came(got));
    }
    match message {
        // What serde_json says of something that must be one of some words and is none.
        "expected value" => "expected a string".to_owned(),
        // What the standard library says of a number in a query.
        "cannot parse integer from empty string" | "invalid digit found in string" => {
            "expected a whole number from 0".to_owned()
        }
        "number too large to fit in target type" => "the number is too large".to_owned(),
        other => other.to_owned(),
    }
}

/// serde's word for what should be there.
fn wanted(expected: &str) -> &str {
    match expected {
        "a boolean" => "true or false",
        "a map" => "an object",
        "a sequence" => "a list",
        "string or map" | "variant identifier" => "a string",
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "u64" | "usize" => "a whole number from 0",
        "IP address" => "an IP address as a string",
        "IPv4 address" => "an IPv4 address as a string",
        "IPv6 address" => "an IPv6 address as a string",
        "IPv4 network address" => "an IPv4 prefix as a string",
        "IPv4 or IPv6 network address" => "a prefix as a string",
        _ if expected.starts_with("struct ") => "an object",
        _ => expected,
    }
}

/// serde's word for what is there.
fn came(got: &str) -> String {
    let number = ["integer `", "floating point `"];
    if let Some(number) = number.iter().find_map(|prefix| got.strip_prefix(prefix)) {
        return format!("the number {}", number.trim_end_matches('`'));
    }
    match got {
        "boolean `true`" => "true".to_owned(),
        "boolean `false`" => "false".to_owned(),
        "map" => "an object".to_owned(),
        "sequence" => "a list".to_owned(),
        // The length of a list that stands where an object should.
        _ if got.parse::<usize>().is_ok() => "a list".to_owned(),
        _ => got.strip_prefix("string ").unwrap_or(got).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::{
        CaptureQuery, ConntrackFilter, FdbAdd, FdbFlush, NetworkCreate, SandboxCreate, UplinkAdd,
    };

    /// What is refused, without what all share.
    fn refused<T: std::fmt::Debug>(outcome: Result<T>, part: &str) -> String {
        let message = outcome.unwrap_err().message;
        for internal in ["struct", "enum ", "u16", "line ", "variant", "deserialize", "target"] {
            assert!(!message.contains(internal), "{message}");
        }
        message.strip_prefix(part).unwrap_or_else(|| panic!("{message}")).to_owned()
    }

    #[test]
    fn bodies_are_refused_by_field() {
        for (body, expected) in [
            ("[]", "is not a JSON object like {\"name\": \"web\"}"),
            ("null", "is not a JSON object like {\"name\": \"web\"}"),
            ("{}", "field \"name\": is missing"),
            (r#"{"name":5}"#, "field \"name\": expected a string, not the number 5"),
            (r#"{"name":null}"#, "field \"name\": expected a string, not null"),
            (r#"{"name":"a","name":"b"}"#, "field \"name\": is given twice"),
            (
                r#"{"name":"a","colour":1}"#,
                "field \"colour\": is unknown; known are name, driver, subnets, internal, ipv6, \
                 options, labels",
            ),
            (r#"{"name":"a","a`, expected `b":1}"#, "field \"a`, expected `b\": is unknown; "),
            (r#"{"name":"a","driver":5}"#, "field \"driver\": expected a string"),
            (
                r#"{"name":"a","driver":"x"}"#,
                "field \"driver\": \"x\" is unknown; known are bridge, ",
            ),
            (r#"{"name":"a","subnets":"x"}"#, "field \"subnets\": expected a list, not \"x\""),
            (
                r#"{"name":"a","subnets":[5]}"#,
                "field \"subnets[0]\": expected an object, not the number 5",
            ),
            (
                r#"{"name":"a","subnets":[[]]}"#,
                "field \"subnets[0]\": expected an object, not a list",
            ),
            (r#"{"name":"a","subnets":[{}]}"#, "field \"subnets[0].subnet\": is missing"),
            (
                r#"{"name":"a","subnets":[{"subnet":"x"}]}"#,
                "field \"subnets[0].subnet\": invalid IP address",
            ),
            (
                r#"{"name":"a","subnets":[{"x":1}]}"#,
                "field \"subnets[0].x\": is unknown; known are subnet, ",
            ),
            (
                r#"{"name":"a","internal":"yes"}"#,
                "field \"internal\": expected true or false, not \"yes\"",
            ),
            (r#"{"name":"a","options":[]}"#, "field \"options\": expected an object, not a list"),
            (
                r#"{"name":"a","options":{"mtu":1500}}"#,
                "field \"options.mtu\": expected a string, not the number 1500",
            ),
            (r#"{"name":"a/b"}"#, "field \"name\": name \"a/b\": contains '/'"),
        ] {
            let message = refused(read_body::<NetworkCreate>(body.as_bytes()), "body: ");
            assert!(message.starts_with(expected), "{body}: {message}");
        }
        let sandbox = |body: &str| refused(read_body::<SandboxCreate>(body.as_bytes()), "body: ");
        assert!(
            sandbox(r#"{"name":"a","ip":5}"#)
                .contains("\"ip\": expected an IPv4 address as a string")
        );
        assert!(sandbox(r#"{"name":"a","ip":"x"}"#).contains("\"ip\": invalid IPv4 address"));
        assert!(
            sandbox(r#"{"name":"a","publish":["x"]}"#).contains("\"publish[0]\": publish \"x\"")
        );
        let entry = r#"{"network":"n","mac":"02:00:00:00:00:01","vlan":VLAN}"#;
        for (vlan, expected) in [
            ("70000", "expected a whole number from 0 to 65535, not the number 70000"),
            ("-1", "expected a whole number from 0 to 65535, not the number -1"),
            ("1.5", "expected a whole number from 0 to 65535, not the number 1.5"),
            ("\"5\"", "expected a whole number from 0 to 65535, not \"5\""),
            ("true", "expected a whole number from 0 to 65535, not true"),
        ] {
            let body = entry.replace("VLAN", vlan);
            let message = refused(read_body::<FdbAdd>(body.as_bytes()), "body: field \"vlan\": ");
            assert_eq!(message, expected);
        }
        let uplink = read_body::<UplinkAdd>(br#"{"interface":"e","mode":"x"}"#);
        assert_eq!(
            refused(uplink, "body: field \"mode\": "),
            "\"x\" is unknown; known are dedicated, shared"
        );
        let flush = read_body::<FdbFlush>(br#"{"x":1}"#);
        assert_eq!(refused(flush, "body: field \"x\": "), "is unknown; known are network");
    }

    #[test]
    fn what_is_not_json_says_where() {
        for body in ["{", "hello", "{\"name\":\"a\"} x", "{\"name\":\"\\ud800\"}", "{'name':1}"] {
            let message = read_body::<NetworkCreate>(body.as_bytes()).unwrap_err().message;
            assert!(message.starts_with("body: is not JSON: "), "{body}: {message}");
            assert!(message.contains("line 1 column "), "{body}: {message}");
        }
        let latin1 = b"{\"name\":\"\xff\"}";
        let message = read_body::<NetworkCreate>(latin1).unwrap_err().message;
        assert!(message.starts_with("body: is not JSON: "), "{message}");
    }

    #[test]
    fn queries_are_refused_by_field() {
        for (query, expected) in [
            ("proto=carp", "field \"proto\": protocol \"carp\": neither tcp, "),
            ("proto=", "field \"proto\": protocol \"\": neither tcp, "),
            ("state=foo", "field \"state\": state \"foo\" is unknown; known are SYN_SENT, "),
            ("src=x", "field \"src\": address \"x\": neither an IP address nor "),
            ("dst=10.0.0.0/33", "field \"dst\": address \"10.0.0.0/33\": neither "),
            ("sport=x", "field \"sport\": expected a whole number"),
            ("sport=-1", "field \"sport\": expected a whole number"),
            ("dport=", "field \"dport\": expected a whole number"),
            ("dport=70000", "field \"dport\": the number is too large"),
            ("network=a%2Fb", "field \"network\": name \"a/b\": contains '/'"),
            ("colour=red", "field \"colour\": is unknown; known are proto, src, dst, "),
            ("proto=tcp&proto=udp", "field \"proto\": is given twice"),
        ] {
            let message = refused(read_query::<ConntrackFilter>(query), "query: ");
            assert!(message.starts_with(expected), "{query}: {message}");
        }
        let filter: ConntrackFilter = read_query("proto=6&state=close&dport=80").unwrap();
        assert_eq!(filter.proto.unwrap().to_string(), "tcp");
        assert_eq!(read_query::<CaptureQuery>("").unwrap(), CaptureQuery::default());
    }
}
