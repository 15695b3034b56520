//! `docs/conformance.md` and the pages beneath it, held against the tests that they name.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// The cells of a table's row.
fn cells(line: &str) -> Option<Vec<&str>> {
    let inner = line.strip_prefix('|')?.strip_suffix('|')?;
    Some(inner.split('|').map(str::trim).collect())
}

/// The `path::name` in backquotes, and the words that are left.
fn tests_and_words(text: &str) -> (Vec<(&str, &str)>, String) {
    let mut tests = Vec::new();
    let mut words = String::new();
    for (at, part) in text.split('`').enumerate() {
        match part.split_once("::").filter(|_| at % 2 == 1) {
            Some(test) => tests.push(test),
            None => words.push_str(part),
        }
    }
    (tests, words.trim_matches([' ', ',', ';']).to_owned())
}

/// Whether the source has a function of this name that is marked as a test.
fn has_test(source: &str, name: &str) -> bool {
    // Run once more in IPv6.
    if let Some(name) = name.strip_prefix("ipv6::") {
        let mut lines = source.lines().skip_while(|line| *line != "tests::in_ipv6! {");
        return lines.by_ref().take_while(|line| *line != "}").any(|line| line.trim() == name)
            && has_test(source, name);
    }
    let head = format!("fn {name}(");
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let begins = |line: &str| line.strip_prefix("async ").unwrap_or(line).starts_with(&head);
    let marked = |at: usize| {
        let mut above = lines[..at].iter().rev().take_while(|line| line.starts_with(['#', '/']));
        above.any(|line| *line == "#[test]" || line.starts_with("#[tokio::test"))
    };
    // Listed among those that a macro makes of a function for each IP version.
    let listed = || {
        let mut from = lines.iter().skip_while(|line| **line != "for_both_families! {");
        from.by_ref().take_while(|line| **line != "}").any(|line| *line == name)
            && lines.iter().any(|line| line.starts_with(&format!("fn {name}<")))
    };
    lines.iter().enumerate().any(|(at, line)| begins(line) && marked(at)) || listed()
}

/// What is wrong with a row: its state, tests and reason, given how to read a source file.
fn fault(row: &[&str], read: &mut impl FnMut(&str) -> Option<String>) -> Option<String> {
    let [id, asked, state, why] = row else { return Some(format!("{} cells", row.len())) };
    if id.is_empty() || asked.is_empty() {
        return Some("nothing is asked".to_owned());
    }
    let (tests, words) = tests_and_words(why);
    for (path, name) in &tests {
        let Some(source) = read(path) else { return Some(format!("no file {path}")) };
        if !has_test(&source, name) {
            return Some(format!("no test {path}::{name}"));
        }
    }
    let reason = words.chars().any(char::is_alphabetic);
    let missing = words.split_once("missing: ").is_some_and(|(_, what)| !what.is_empty());
    match *state {
        "met" | "partly" if tests.is_empty() => Some("no test".to_owned()),
        "partly" if !missing => Some("what is missing?".to_owned()),
        "not met" | "no counterpart" if !reason => Some("no reason".to_owned()),
        "met" | "partly" | "not met" | "no counterpart" => None,
        other => Some(format!("{other:?} is no state")),
    }
}

/// The rows of the tables whose third column is the state.
fn rows(text: &str) -> Vec<Vec<&str>> {
    let mut stated = None;
    let mut rows = Vec::new();
    for line in text.lines() {
        match (cells(line), stated) {
            (None, _) => stated = None,
            (Some(head), None) => stated = Some(head.get(2) == Some(&"state")),
            (Some(row), Some(true)) if !row.iter().all(|cell| *cell == "---") => rows.push(row),
            _ => {}
        }
    }
    rows
}

#[test]
fn every_row_has_a_state_and_tests_that_exist_or_a_reason() {
    let mut pages = vec![root().join("docs/conformance.md")];
    pages.extend(
        fs::read_dir(root().join("docs/conformance")).unwrap().map(|page| page.unwrap().path()),
    );
    let mut sources: HashMap<String, Option<String>> = HashMap::new();
    let mut read = |path: &str| {
        let source = || fs::read_to_string(root().join(path)).ok();
        sources.entry(path.to_owned()).or_insert_with(source).clone()
    };
    let mut faults = Vec::new();
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        let rows = rows(&text);
        assert!(rows.len() > 30, "{}: {} rows", page.display(), rows.len());
        for row in rows {
            if let Some(fault) = fault(&row, &mut read) {
                faults.push(format!("{}: {}: {fault}", page.display(), row[0]));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_row_that_is_wrong_is_told() {
    let source = "#[test]\n#[ignore]\nfn there() {}\n/// Not one.\nfn helper() {}\n\
                  for_both_families! {\nboth\n}\nfn both<K>() {}\nfn other<K>() {}\n\
                  tests::in_ipv6! {\n    twice\n}\n#[test]\nfn twice() {}\n";
    let mut read = |path: &str| (path == "a.rs").then(|| source.to_owned());
    let mut judge = |state: &str, why: &str| fault(&["id", "asked", state, why], &mut read);
    assert_eq!(judge("met", "`a.rs::there`"), None);
    assert_eq!(judge("met", "`a.rs::both`"), None);
    assert_eq!(judge("met", "`a.rs::ipv6::twice`"), None);
    assert_eq!(judge("partly", "`a.rs::there`; missing: the rest"), None);
    assert_eq!(judge("not met", "`limits.x` has no effect"), None);
    for (state, why) in [
        ("met", "`a.rs::renamed`"),
        ("met", "`a.rs::helper`"),
        ("met", "`a.rs::other`"),
        ("met", "`a.rs::ipv6::there`"),
        ("met", "`b.rs::there`"),
        ("met", "by construction"),
        ("partly", "`a.rs::there`"),
        ("partly", "missing: the rest"),
        ("not met", ""),
        ("no counterpart", "`a.rs::there`"),
        ("nearly", "`a.rs::there`"),
    ] {
        assert!(judge(state, why).is_some(), "{state}: {why}");
    }
    assert!(fault(&["id", "asked", "met"], &mut read).is_some());
    let table = "| id | rule | state | tests |\n|---|---|---|---|\n| a | b | met |\n\n| x | y |\n";
    assert_eq!(rows(table), [["a", "b", "met"]]);
}
