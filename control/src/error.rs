//! The one error of the control side: what kind it is and one line that says what and how to mend.
//!
//! The kind decides the HTTP status of the API and the exit code of `vswitchctl`, so that both are
//! settled where the error is made. The message is one line, names the thing and needs no prefix.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Longest message, in bytes. No thing of ours has a name that comes near.
const LONGEST_LINE: usize = 1024;

/// Stands for what was left out.
const ELLIPSIS: &str = " … ";

/// What went wrong, as far as a program has to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Others do as much of it as may be done at a time.
    Busy,
    /// It exists already, is in use, overlaps or is exhausted.
    Conflict,
    /// The request was sound, carrying it out failed.
    Failed,
    /// The request makes no sense.
    Invalid,
    /// No such thing.
    NotFound,
    /// The daemon does not answer. Never sent by the daemon.
    Unreachable,
}

impl Kind {
    /// The status the API answers with.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::Failed => 500,
            Self::Busy | Self::Unreachable => 503,
        }
    }

    /// The exit code of `vswitchctl`.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Invalid => 2,
            Self::NotFound => 3,
            Self::Busy | Self::Conflict => 4,
            Self::Unreachable => 5,
        }
    }
}

/// An error for a person, with its kind for a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// What went wrong, as far as a program has to tell.
    pub kind: Kind,
    /// One line that names the thing and the mend.
    pub message: String,
}

/// What everything of the control side returns.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of any kind, with the message made [`one_line`].
    #[must_use]
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: one_line(message.into()) }
    }

    /// The request makes no sense.
    #[must_use]
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, message)
    }

    /// No such thing.
    #[must_use]
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    /// Others do as much of it as may be done at a time.
    #[must_use]
    pub fn busy(message: impl Into<String>) -> Self {
        Self::new(Kind::Busy, message)
    }

    /// It exists already, is in use, overlaps or is exhausted.
    #[must_use]
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(Kind::Conflict, message)
    }

    /// Carrying it out failed.
    #[must_use]
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }

    /// The daemon does not answer.
    #[must_use]
    pub fn unreachable(message: impl Into<String>) -> Self {
        Self::new(Kind::Unreachable, message)
    }

    /// The same error with `context: ` before its message.
    #[must_use]
    pub fn context(self, context: impl fmt::Display) -> Self {
        Self::new(self.kind, format!("{context}: {}", self.message))
    }

    /// The status the API answers with.
    #[must_use]
    pub const fn http_status(&self) -> u16 {
        self.kind.http_status()
    }

    /// The exit code of `vswitchctl`.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        self.kind.exit_code()
    }
}

/// A line that a person can read whatever was quoted in it: line breaks become spaces, other
/// control characters are escaped, and of a very long one the middle is left out, since messages
/// begin with the thing and end with the mend.
#[must_use]
pub fn one_line(text: String) -> String {
    let mut line = if text.contains(['\n', '\r']) {
        let parts = text.split(['\n', '\r']).map(str::trim).filter(|part| !part.is_empty());
        parts.collect::<Vec<_>>().join(" ")
    } else {
        text
    };
    if line.contains(char::is_control) {
        let escaped = |c: char| {
            if c.is_control() { c.escape_default().to_string() } else { c.to_string() }
        };
        line = line.chars().map(escaped).collect();
    }
    if line.len() > LONGEST_LINE {
        let head = line.floor_char_boundary(LONGEST_LINE / 2);
        let tail = line.ceil_char_boundary(line.len() - LONGEST_LINE / 2 + ELLIPSIS.len());
        line.replace_range(head..tail, ELLIPSIS);
    }
    line
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// Turns any error into [`Error::failed`] with a context, as in `open(..).failed("open /dev/net/tun")`.
pub trait ResultExt<T> {
    /// Maps the error to [`Error::failed`] with the message `context: error`.
    ///
    /// # Errors
    /// When `self` is an error.
    fn failed(self, context: impl fmt::Display) -> Result<T>;
}

impl<T, E: fmt::Display> ResultExt<T> for std::result::Result<T, E> {
    fn failed(self, context: impl fmt::Display) -> Result<T> {
        self.map_err(|error| Error::failed(format!("{context}: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_map_to_the_contract() {
        let table = [
            (Kind::Failed, 500, 1),
            (Kind::Invalid, 400, 2),
            (Kind::NotFound, 404, 3),
            (Kind::Conflict, 409, 4),
            (Kind::Busy, 503, 4),
            (Kind::Unreachable, 503, 5),
        ];
        for (kind, status, exit) in table {
            assert_eq!((kind.http_status(), kind.exit_code()), (status, exit), "{kind:?}");
        }
    }

    #[test]
    fn a_message_is_one_line() {
        let error = Error::failed("first\n  second\r\n\nthird");
        assert_eq!(error.to_string(), "first second third");
        assert_eq!(error.context("network \"a\"").message, "network \"a\": first second third");
        assert_eq!(Error::failed("a\u{1b}[31m\tb").message, "a\\u{1b}[31m\\tb");
        assert_eq!(Error::failed("ünï").message, "ünï");
    }

    #[test]
    fn a_message_has_an_end() {
        // Characters of two bytes, so that a cut at any byte would hit one.
        for text in ["x".repeat(100_000), "ü".repeat(50_000), "a".to_owned() + &"ü".repeat(50_000)]
        {
            let error = Error::invalid(format!("network {text}: is too long"));
            let Error { message, .. } = &error;
            assert!(message.len() <= LONGEST_LINE, "{}", message.len());
            assert!(message.starts_with("network ") && message.ends_with(": is too long"));
            assert!(message.contains(ELLIPSIS));
            assert_eq!(Error::invalid(message.clone()), error, "once is enough");
        }
        let fits = "x".repeat(LONGEST_LINE);
        assert_eq!(Error::invalid(fits.clone()).message, fits);
    }
}
