//! What goes to stdout: a table for people, or JSON for programs. Nothing else ever does.

use std::fmt::Write as _;
use std::io::{self, Write};

use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde::Serialize;
use serde_json::Value;

use crate::error::{Error, Result, ResultExt as _};

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs: an array for lists, an object for one thing.
    Json,
}

/// What a verb has to show, in both forms.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    json: Value,
    text: String,
}

/// A column: its heading, and what stands in it.
pub type Column<T> = (&'static str, fn(&T) -> String);

impl Reply {
    /// A list as a table.
    ///
    /// # Errors
    /// When the list cannot be JSON, which does not happen with types of the API.
    pub fn list<T: Serialize>(items: &[T], columns: &[Column<T>]) -> Result<Self> {
        Ok(Self { json: json(&items)?, text: table(items, columns) })
    }

    /// One thing, field by field.
    ///
    /// # Errors
    /// As [`Reply::list`].
    pub fn thing<T: Serialize>(thing: &T) -> Result<Self> {
        let json = json(thing)?;
        let mut text = String::new();
        describe(&json, 0, &mut text);
        Ok(Self { json, text })
    }

    /// Several things, field by field, with an empty line between two; one alone is no list.
    ///
    /// # Errors
    /// As [`Reply::list`].
    pub fn things<T: Serialize>(things: &[T]) -> Result<Self> {
        if let [thing] = things {
            return Self::thing(thing);
        }
        let replies = things.iter().map(Self::thing).collect::<Result<Vec<_>>>()?;
        let text = replies.iter().map(|r| r.text.as_str()).collect::<Vec<_>>().join("\n");
        Ok(Self { json: replies.into_iter().map(|reply| reply.json).collect(), text })
    }

    /// One thing that people only need a word about, or nothing.
    ///
    /// # Errors
    /// As [`Reply::list`].
    pub fn done<T: Serialize>(thing: &T, text: impl Into<String>) -> Result<Self> {
        let mut text = text.into();
        if !text.is_empty() {
            text.push('\n');
        }
        Ok(Self { json: json(thing)?, text })
    }

    /// Names of what was acted on, one a line; in JSON, objects with the field `name`.
    #[must_use]
    pub fn names<T: AsRef<str>>(names: &[T]) -> Self {
        let mut text = String::new();
        for name in names {
            text.push_str(name.as_ref());
            text.push('\n');
        }
        let object = |name: &T| Value::from_iter([("name", name.as_ref())]);
        Self { json: names.iter().map(object).collect(), text }
    }

    /// Appends a second table for people.
    #[must_use]
    pub fn with_table<T>(mut self, items: &[T], columns: &[Column<T>]) -> Self {
        self.text.push('\n');
        self.text.push_str(&table(items, columns));
        self
    }

    /// The text to print.
    #[must_use]
    pub fn render(&self, format: Format) -> String {
        match format {
            Format::Table => self.text.clone(),
            // Values without maps of other keys than strings always print.
            Format::Json => format!("{:#}\n", self.json),
        }
    }
}

fn json<T: Serialize>(value: &T) -> Result<Value> {
    serde_json::to_value(value).failed("output")
}

/// In the plain style of `docker network ls`: no lines, columns as wide as they must be.
fn table<T>(items: &[T], columns: &[Column<T>]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(columns.iter().map(|(heading, _)| *heading));
    for item in items {
        table.add_row(columns.iter().map(|(_, cell)| printable(&cell(item))));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Text without what a terminal would act on: labels and options are the user's own words.
fn printable(text: &str) -> String {
    if text.contains(char::is_control) { text.escape_debug().to_string() } else { text.to_owned() }
}

/// Indented fields, as `docker inspect` reads without its punctuation.
fn describe(value: &Value, depth: usize, text: &mut String) {
    let Value::Object(fields) = value else { return };
    for (key, value) in fields {
        let indent = "  ".repeat(depth);
        let key = printable(key);
        // Writing to a string cannot fail.
        let _ = match value {
            Value::Object(inner) if inner.is_empty() => writeln!(text, "{indent}{key}: -"),
            Value::Object(_) => {
                let line = writeln!(text, "{indent}{key}:");
                describe(value, depth + 1, text);
                line
            }
            Value::Array(items) if items.iter().any(Value::is_object) => {
                let line = writeln!(text, "{indent}{key}:");
                for item in items {
                    let mut inner = String::new();
                    describe(item, depth + 2, &mut inner);
                    // The first field of each item has the dash.
                    let dash = inner.get(indent.len() + 4..).unwrap_or_default();
                    let _ = write!(text, "{indent}  - {dash}");
                }
                line
            }
            _ => writeln!(text, "{indent}{key}: {}", scalar(value)),
        };
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => printable(text),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(scalar).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// A value that may be missing.
pub fn or_dash<T: ToString>(value: Option<&T>) -> String {
    value.map_or_else(|| "-".to_owned(), ToString::to_string)
}

/// A list in one cell.
pub fn joined<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let text = items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ");
    if text.is_empty() { "-".to_owned() } else { text }
}

/// Writes to stdout at once. A reader that went away (`vswitchctl … | head`) is no error: false
/// says that there is nobody to write for any more.
///
/// # Errors
/// When stdout cannot be written for another reason, as a full disk.
pub fn print(bytes: &[u8]) -> Result<bool> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Error::failed(format!("write to stdout: {error}"))),
    }
}

/// Writes an error's line to stderr.
pub fn complain(error: &Error) {
    // Nobody reads stderr: then nobody misses the line.
    // One write, so that the lines of clients side by side do not mix.
    let _ = io::stderr().write_all(format!("vswitchctl: {error}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[derive(Serialize)]
    struct Row {
        name: &'static str,
        count: u32,
        tags: Vec<&'static str>,
    }

    const ROWS: [Row; 2] = [
        Row { name: "a", count: 1, tags: Vec::new() },
        Row { name: "longer\u{1b}[1m", count: 20, tags: Vec::new() },
    ];

    const COLUMNS: &[Column<Row>] = &[
        ("NAME", |row| row.name.to_owned()),
        ("COUNT", |row| row.count.to_string()),
        ("TAGS", |row| joined(&row.tags)),
    ];

    #[test]
    fn tables_are_plain() {
        let reply = Reply::list(&ROWS, COLUMNS).unwrap();
        let expected = "\
NAME              COUNT   TAGS
a                 1       -
longer\\u{1b}[1m   20      -
";
        assert_eq!(reply.render(Format::Table), expected);
        let none = Reply::list(&[], COLUMNS).unwrap();
        assert_eq!(none.render(Format::Table), "NAME   COUNT   TAGS\n");
        assert_eq!(none.render(Format::Json), "[]\n");
    }

    #[test]
    fn json_is_an_array_or_an_object() {
        let parse =
            |reply: &Reply| serde_json::from_str::<Value>(&reply.render(Format::Json)).unwrap();
        assert!(parse(&Reply::list(&ROWS[..1], COLUMNS).unwrap()).is_array());
        assert!(parse(&Reply::thing(&ROWS[0]).unwrap()).is_object());
        assert!(parse(&Reply::things(&ROWS[..1]).unwrap()).is_object());
        assert_eq!(parse(&Reply::things(&ROWS).unwrap()).as_array().unwrap().len(), 2);
        assert_eq!(parse(&Reply::names(&["a", "b"])), json!([{"name": "a"}, {"name": "b"}]));
    }

    #[test]
    fn things_are_indented() {
        let value = json!({
            "name": "n", "none": null, "list": ["a", 1], "empty": {}, "map": {"k": "v\n"},
            "things": [{"a": 1, "b": {"c": 2}}, {"a": 3}],
        });
        let expected = "\
name: n
none: -
list: a, 1
empty: -
map:
  k: v\\n
things:
  - a: 1
    b:
      c: 2
  - a: 3
";
        assert_eq!(Reply::thing(&value).unwrap().render(Format::Table), expected);
        assert_eq!(Reply::done(&value, "").unwrap().render(Format::Table), "");
        assert_eq!(Reply::done(&value, "x").unwrap().render(Format::Table), "x\n");
    }
}
