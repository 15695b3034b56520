//! Command lines of all programs: read by clap, refused in one line with exit code 2.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::error::{Kind, one_line};

/// Reads the command line.
///
/// # Errors
/// The exit code to end with: help and version were printed, or the line is wrong and was told so
/// on stderr.
pub fn parse<T: Parser>(args: impl IntoIterator<Item = OsString>) -> Result<T, ExitCode> {
    T::try_parse_from(args).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // A closed pipe (`vswitchctl --help | head -1`) is no reason to complain.
            let _ = write!(std::io::stdout(), "{}", error.render());
            ExitCode::SUCCESS
        }
        _ => {
            let command = T::command();
            let line = one_line(joined(&error.render().to_string()));
            let _ = writeln!(std::io::stderr(), "{}: {line}", command.get_name());
            ExitCode::from(Kind::Invalid.exit_code())
        }
    })
}

/// Makes one line of clap's paragraphs: the message, its hints, and where to read more.
fn joined(rendered: &str) -> String {
    let is_end =
        |line: &str| line.starts_with("Usage:") || line.starts_with("For more information");
    let mut message = String::new();
    for line in rendered.lines().map(str::trim).take_while(|line| !is_end(line)) {
        let (separator, text) = match line.strip_prefix("tip: ") {
            Some(tip) => ("; ", tip),
            None => (" ", line),
        };
        if !text.is_empty() {
            if !message.is_empty() {
                message.push_str(separator);
            }
            message.push_str(text);
        }
    }
    let message = message.strip_prefix("error: ").unwrap_or(&message);
    // The usage names the subcommand: words until the first argument. A bad value comes without
    // usage, and its message says what is expected.
    let usage = rendered.lines().find_map(|line| line.trim().strip_prefix("Usage:"));
    match usage {
        None => message.to_owned(),
        Some(usage) => {
            let words = usage.split_whitespace();
            let command: Vec<_> = words.take_while(|w| !w.starts_with(['[', '<', '-'])).collect();
            format!("{message}; see '{} --help'", command.join(" "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paragraphs_become_one_line() {
        let rendered = "error: the following required arguments were not provided:\n  <NAME>\n\n\
                        Usage: vswitchctl network create <NAME>\n\nFor more information, try '--help'.\n";
        assert_eq!(
            joined(rendered),
            "the following required arguments were not provided: <NAME>; \
             see 'vswitchctl network create --help'"
        );
        let rendered = "error: invalid value 'x' for '--format <FORMAT>'\n  [possible values: table, json]\n\n\
                        For more information, try '--help'.\n";
        assert_eq!(
            joined(rendered),
            "invalid value 'x' for '--format <FORMAT>' [possible values: table, json]"
        );
        let rendered = "error: unrecognized subcommand 'statsu'\n\n  tip: a similar subcommand exists: 'stats'\n\n\
                        Usage: vswitchctl [OPTIONS] <COMMAND>\n\nFor more information, try '--help'.\n";
        assert_eq!(
            joined(rendered),
            "unrecognized subcommand 'statsu'; a similar subcommand exists: 'stats'; \
             see 'vswitchctl --help'"
        );
    }
}
