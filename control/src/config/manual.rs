//! The manual page of the configuration file, vswitchd.toml(5), made from its schema.

use serde_json::Value;

use super::schema;

/// The page as roff with the macros of man(7).
#[must_use]
pub fn page() -> String {
    let mut page = format!(
        ".TH VSWITCHD.TOML 5 \"\" \"vswitchd {}\" \"vswitchd\"\n\
         .SH NAME\nvswitchd.toml \\- configuration of vswitchd\n\
         .SH SYNOPSIS\n.I /etc/vswitchd/vswitchd.toml\n\
         .SH DESCRIPTION\n",
        env!("CARGO_PKG_VERSION")
    );
    page.push_str(&text(
        "A file in TOML. Every section and every key may be left out; a key that is unknown is an \
         error. `vswitchd --check-config` tells what is wrong, with the line.",
    ));
    page.push_str(".PP\n");
    page.push_str(&text(
        "On SIGHUP the networks are brought in line with the file, whoever is connected; every other \
         section takes effect at the next start.",
    ));
    let document = schema::document();
    for (name, section) in properties(&document) {
        let (title, fields) = match section.get("items") {
            Some(items) => (format!("[[{name}]]"), items),
            None => (format!("[{name}]"), section),
        };
        page.push_str(&format!(".SH {}\n", escaped(&title)));
        page.push_str(&text(description(section)));
        let required = fields["required"].as_array().cloned().unwrap_or_default();
        for (key, value) in properties(fields) {
            page.push_str(&format!(".TP\n.B {}\n", escaped(key)));
            page.push_str(&text(&format!("{}.", kind(value))));
            let must =
                if required.contains(&Value::from(key.as_str())) { " Required." } else { "" };
            page.push_str(&text(&format!("{}{must}", description(value))));
        }
    }
    page.push_str(".SH SEE ALSO\n.BR vswitchd (8),\n.BR vswitchctl (1)\n");
    page
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema["properties"].as_object().into_iter().flatten()
}

fn description(schema: &Value) -> &str {
    schema["description"].as_str().unwrap_or_default()
}

/// What a value is, in words.
fn kind(schema: &Value) -> String {
    if let Some(choices) = schema["oneOf"].as_array() {
        return choices.iter().map(kind).collect::<Vec<_>>().join(", or ");
    }
    if let Some(names) = schema["enum"].as_array() {
        return names.iter().map(Value::to_string).collect::<Vec<_>>().join(" or ");
    }
    match schema["type"].as_str().unwrap_or_default() {
        "array" => format!("array of: {}", kind(&schema["items"])),
        "integer" => match (schema["minimum"].as_f64(), schema["maximum"].as_f64()) {
            (Some(least), Some(most)) => format!("integer from {least} to {most}"),
            _ => "integer".to_owned(),
        },
        "object" => {
            let known: Vec<String> = properties(schema).map(|(key, _)| key.clone()).collect();
            match known.as_slice() {
                [] => "table of any keys".to_owned(),
                known => format!("table of {}", known.join(", ")),
            }
        }
        other => other.to_owned(),
    }
}

/// Lines of text, none of which is a request.
fn text(words: &str) -> String {
    let mut lines = String::new();
    for line in words.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let control = if line.starts_with(['.', '\'']) { "\\&" } else { "" };
        lines.push_str(&format!("{control}{}\n", escaped(line)));
    }
    lines
}

/// Text in which nothing is an escape, and a hyphen is the one that can be typed.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_its_entry() {
        let page = page();
        for section in
            ["[daemon]", "[defaults]", "[timeouts]", "[limits]", "[[uplink]]", "[[network]]"]
        {
            assert!(page.contains(&format!(".SH {section}\n")), "{section}");
        }
        for entry in [
            ".B workers\ninteger from 1 to 64.\nWorker threads",
            ".B link\n\"tap\" or \"veth\".\n",
            ".B pools\narray of: table of base, size.\n",
            ".B subnet\nstring, or array of: string.\n",
            ".B interface\nstring.\n",
            "Required.\n",
        ] {
            assert!(page.contains(entry), "{entry}\n{page}");
        }
        // One entry for each key of each section.
        let keys = properties(&schema::document())
            .map(|(_, section)| properties(section.get("items").unwrap_or(section)).count())
            .sum::<usize>();
        assert_eq!(page.matches("\n.TP\n").count(), keys);
    }

    #[test]
    fn no_text_is_a_request() {
        assert_eq!(text(".so x\n'br\na-b \\n"), "\\&.so x\n\\&'br\na\\-b \\en\n");
    }
}
