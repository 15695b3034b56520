//! Programs run to their end, and what they said.

use std::fmt;
use std::process::Command;

/// How a program ended.
#[derive(Clone, Debug)]
pub struct Ran {
    /// The command line.
    pub line: String,
    /// Exit code; -1 for a signal.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, code, stdout, stderr } = self;
        write!(f, "{line}\nended with {code}\nstdout: {stdout}\nstderr: {stderr}")
    }
}

impl Ran {
    /// Asserts that it was a success.
    ///
    /// # Panics
    /// When it was none.
    #[must_use]
    pub fn succeeded(self) -> Self {
        assert_eq!(self.code, 0, "{self}");
        self
    }

    /// Asserts a refusal as the contract has it: the code, one line by `program`, no output.
    ///
    /// # Panics
    /// When it was something else.
    pub fn is_refusal(&self, program: &str, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{self}");
        assert_eq!(self.stdout, "", "{self}");
        assert_eq!(self.stderr.lines().count(), 1, "one line expected: {self}");
        assert!(self.stderr.starts_with(&format!("{program}: ")), "{self}");
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not named: {self}");
        }
    }
}

/// Runs a command to its end.
///
/// # Panics
/// When it cannot be started.
pub fn ran(command: &mut Command) -> Ran {
    let line = format!("{command:?}");
    let output = command.output().unwrap_or_else(|error| panic!("{line}: {error}"));
    Ran {
        line,
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
