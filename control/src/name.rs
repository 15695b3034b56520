//! Names of networks and sandboxes. A [`Name`] is safe as a file name, in a URL path and on a
//! terminal; nothing else of the program checks again.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::text::serde_as_text;

/// Longest name, in bytes.
pub const MAX_NAME_LEN: usize = 63;

/// `[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}`, as Docker has it, without two dots in a row.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

serde_as_text!(
    Name,
    "1 to 63 letters, digits, '_', '.' and '-', the first a letter or digit, no '..'",
    "web"
);

impl Name {
    /// Reads a name; `what` ("network", "sandbox") opens the message when it is none.
    ///
    /// # Errors
    /// When the text is not a name.
    pub fn parse(what: &str, text: &str) -> Result<Self> {
        match fault(text) {
            None => Ok(Self(text.to_owned())),
            Some(fault) => Err(Error::invalid(format!("{what} name {text:?}: {fault}"))),
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What is wrong with a name, if anything.
fn fault(text: &str) -> Option<String> {
    let allowed = "use letters, digits, '_', '.' and '-', beginning with a letter or digit";
    if text.is_empty() {
        return Some("is empty; give it at least one letter or digit".to_owned());
    }
    if text.len() > MAX_NAME_LEN {
        return Some(format!("is {} bytes long; at most {MAX_NAME_LEN} are allowed", text.len()));
    }
    if let Some(bad) =
        text.chars().find(|&c| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-')))
    {
        return Some(format!("contains {bad:?}; {allowed}"));
    }
    if text.contains("..") {
        return Some("contains \"..\"; write a single dot".to_owned());
    }
    if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Some(format!("begins with {:?}; {allowed}", text.chars().next().unwrap_or(' ')));
    }
    None
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match fault(text) {
            None => Ok(Self(text.to_owned())),
            Some(fault) => Err(Error::invalid(format!("name {text:?}: {fault}"))),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl PartialEq<str> for Name {
    fn eq(&self, other: &str) -> bool {
        self.0 == other
    }
}

impl PartialEq<&str> for Name {
    fn eq(&self, other: &&str) -> bool {
        self.0 == *other
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn good_names() {
        for text in ["a", "0", "web", "Web_1.2-x", "a.", "a-", &"a".repeat(63)] {
            assert_eq!(text.parse::<Name>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn bad_names_say_why() {
        let long = "a".repeat(64);
        let table = [
            ("", "is empty"),
            ("a/b", "contains '/'"),
            ("..", "contains \"..\""),
            ("a..b", "contains \"..\""),
            ("../x", "contains '/'"),
            (".a", "begins with '.'"),
            ("-a", "begins with '-'"),
            ("a\0", "contains '\\0'"),
            ("a b", "contains ' '"),
            ("ä", "contains 'ä'"),
            (&long, "is 64 bytes long"),
        ];
        for (text, why) in table {
            let message = Name::parse("network", text).unwrap_err().message;
            assert!(message.starts_with(&format!("network name {text:?}: ")), "{message}");
            assert!(message.contains(why), "{message}");
            assert!(!message.contains(['\n', '\0']), "{message}");
        }
    }

    #[test]
    fn json_is_a_string() {
        let name: Name = serde_json::from_str("\"web\"").unwrap();
        assert_eq!(serde_json::to_string(&name).unwrap(), "\"web\"");
        let error = serde_json::from_str::<Name>("\"a/b\"").unwrap_err().to_string();
        assert!(error.contains("contains '/'"), "{error}");
    }

    proptest! {
        #[test]
        fn whatever_parses_is_one_path_component(text in ".{0,70}") {
            if let Ok(name) = text.parse::<Name>() {
                let path = std::path::Path::new(name.as_str());
                prop_assert_eq!(path.components().count(), 1);
                prop_assert!(matches!(path.components().next(), Some(std::path::Component::Normal(_))));
                prop_assert_eq!(name.as_str(), text);
            }
        }

        #[test]
        fn the_pattern_parses(text in "[a-zA-Z0-9][a-zA-Z0-9_-]{0,62}") {
            prop_assert!(text.parse::<Name>().is_ok());
        }
    }
}
