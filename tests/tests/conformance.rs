//! `docs/conformance.md` and the pages beneath it, held against the tests that they name, and those against the
//! rows that they show.
//!
//! A row about a standard or about another system's test stands in the doc comment of one of its tests, behind
//! `Rows:` as `SOURCE ID`, with a semicolon before the next one: `Rows: Linux ip_defrag.sh -4; RFC 4787 REQ-14.`

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::collections::{BTreeSet, HashMap};
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

/// What stands above the function of this name that is marked as a test, if the source has one: attributes and
/// comments.
fn head_of<'a>(source: &'a str, name: &str) -> Option<Vec<&'a str>> {
    // Run once more in IPv6.
    if let Some(name) = name.strip_prefix("ipv6::") {
        let mut lines = source.lines().skip_while(|line| *line != "tests::in_ipv6! {");
        let twice = lines.by_ref().take_while(|line| *line != "}").any(|line| line.trim() == name);
        return if twice { head_of(source, name) } else { None };
    }
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let above = |at: usize| {
        let above = lines[..at].iter().rev().take_while(|line| line.starts_with(['#', '/']));
        let mut above: Vec<&str> = above.copied().collect();
        above.reverse();
        above
    };
    let begins = |line: &str, with: char| {
        let line = line.strip_prefix("async ").unwrap_or(line);
        line.strip_prefix("fn ")
            .and_then(|line| line.strip_prefix(name)?.strip_prefix(with))
            .is_some()
    };
    let marked = |above: &Vec<&str>| {
        above.iter().any(|line| *line == "#[test]" || line.starts_with("#[tokio::test"))
    };
    // Listed among those that a macro makes of a function for each IP version.
    let listed = || {
        let mut from = lines.iter().skip_while(|line| **line != "for_both_families! {");
        from.by_ref().take_while(|line| **line != "}").any(|line| *line == name)
    };
    let mut found = lines.iter().enumerate();
    found
        .by_ref()
        .filter(|(_, line)| begins(line, '('))
        .map(|(at, _)| above(at))
        .find(marked)
        .or_else(|| {
            let at = lines.iter().position(|line| begins(line, '<'))?;
            listed().then(|| above(at))
        })
}

/// The rows that a test says it shows: `; ROW; ROW; `, without backquotes.
fn said(head: &[&str]) -> String {
    let doc: Vec<&str> =
        head.iter().filter_map(|line| Some(line.strip_prefix("///")?.trim())).collect();
    let doc = doc.join(" ").replace('`', "");
    match doc.split_once("Rows: ") {
        Some((_, rows)) => format!("; {}; ", rows.trim_end_matches('.')),
        None => "; ".to_owned(),
    }
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
        if head_of(&source, name).is_none() {
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

/// The rows of the tables whose third column is the state, each with the part of the page that it is in.
fn rows(text: &str) -> Vec<(&str, Vec<&str>)> {
    let (mut stated, mut part) = (None, "");
    let mut rows = Vec::new();
    for line in text.lines() {
        part = line.strip_prefix("## ").unwrap_or(part);
        match (cells(line), stated) {
            (None, _) => stated = None,
            (Some(head), None) => stated = Some(head.get(2) == Some(&"state")),
            (Some(row), Some(true)) if !row.iter().all(|cell| *cell == "---") => {
                rows.push((part, row));
            }
            _ => {}
        }
    }
    rows
}

/// By what name tests say that they show a row, with the system that has the test; none of what this project
/// promises of itself.
fn name_of(page: &str, part: &str, id: &str) -> Option<String> {
    let source = match page {
        "open-vswitch" => "Open vSwitch ",
        "linux" => "Linux ",
        "vpp" => "VPP ",
        "containers" => &format!("{} ", part.split([':', ' ']).next()?),
        "conformance" if part.starts_with("IEEE") => "IEEE ",
        "conformance" if part.starts_with("RFCs") => "",
        _ => return None,
    };
    Some(format!("{source}{}", id.replace('`', "")))
}

/// The pages, by their names.
fn pages() -> Vec<(String, String)> {
    let mut paths = vec![root().join("docs/conformance.md")];
    paths.extend(
        fs::read_dir(root().join("docs/conformance")).unwrap().map(|page| page.unwrap().path()),
    );
    let name = |path: &Path| path.file_stem().unwrap().to_string_lossy().into_owned();
    paths.iter().map(|path| (name(path), fs::read_to_string(path).unwrap())).collect()
}

#[test]
fn every_row_has_a_state_and_tests_that_exist_or_a_reason() {
    let mut sources: HashMap<String, Option<String>> = HashMap::new();
    let mut read = |path: &str| {
        let source = || fs::read_to_string(root().join(path)).ok();
        sources.entry(path.to_owned()).or_insert_with(source).clone()
    };
    let mut faults = Vec::new();
    for (page, text) in pages() {
        let rows = rows(&text);
        let known = ROWS.iter().find(|(known, _)| *known == page).map(|(_, count)| *count);
        assert_eq!(
            known,
            Some(rows.len()),
            "{page}: rows have come or gone; whoever did that says so here"
        );
        for (_, row) in rows {
            if let Some(fault) = fault(&row, &mut read) {
                faults.push(format!("{page}: {}: {fault}", row[0]));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_test_of_every_row_names_it_and_none_names_a_row_that_is_not_there() {
    let mut sources: HashMap<String, String> = HashMap::new();
    let (mut names, mut by_test, mut faults) = (BTreeSet::new(), HashMap::new(), Vec::new());
    for (page, text) in &pages() {
        for (part, row) in rows(text) {
            let [id, _, "met" | "partly", why] = row[..] else { continue };
            let Some(name) = name_of(page, part, id) else { continue };
            let mut is_named = false;
            for (path, test) in tests_and_words(why).0 {
                let source = sources
                    .entry(path.to_owned())
                    .or_insert_with(|| fs::read_to_string(root().join(path)).unwrap());
                let said = head_of(source, test).map_or_else(String::new, |head| said(&head));
                is_named |= said.contains(&format!("; {name}; "));
                by_test.insert(format!("{path}::{test}"), said);
            }
            if !is_named {
                faults.push(format!("no test of it says that it shows: {name}"));
            }
            names.insert(name);
        }
    }
    // Longer ones first: one may end as another does.
    let mut names: Vec<String> = names.into_iter().collect();
    names.sort_by_key(|name| std::cmp::Reverse(name.len()));
    for (test, said) in by_test {
        let left = names.iter().fold(said, |said, name| said.replace(&format!("; {name}; "), "; "));
        if left != "; " {
            faults.push(format!("{test}: shows no such row: {left}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Rows of the pages: none gets lost.
const ROWS: [(&str, usize); 5] =
    [("conformance", 213), ("containers", 45), ("linux", 66), ("open-vswitch", 53), ("vpp", 85)];

/// Standards that have rows, whatever the rows say.
const RFCS: [u16; 29] = [
    2663, 3022, 3376, 3810, 4291, 4443, 4541, 4787, 4861, 4862, 4966, 5095, 5382, 5452, 5508, 5722,
    5927, 5961, 6056, 6296, 6864, 6888, 6946, 6980, 7112, 7113, 7857, 8200, 8201,
];

/// Requirements of those that number them.
const REQUIREMENTS: [(u16, u8); 4] = [(4787, 14), (5382, 10), (5508, 11), (6888, 15)];

/// Rules for switches.
const RULES: u8 = 15;

#[test]
fn no_standard_and_no_requirement_is_missing() {
    let text = fs::read_to_string(root().join("docs/conformance.md")).unwrap();
    let (mut standards, mut requirements, mut rules) =
        (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (part, row) in rows(&text) {
        if part.starts_with("IEEE") {
            rules.insert(row[0].split(' ').next().unwrap().to_owned());
        }
        if !part.starts_with("RFCs") {
            continue;
        }
        let mut standard = 0;
        for word in row[0].split([' ', ',']) {
            standard = word.parse().unwrap_or(standard);
            standards.insert(standard);
            if let Some(number) = word.strip_prefix("REQ-") {
                // Some have a part of their own: REQ-3a.
                let number = number.trim_end_matches(char::is_alphabetic);
                requirements.insert((standard, number.parse::<u8>().unwrap()));
            }
        }
    }
    let lost: Vec<_> = RFCS.into_iter().filter(|rfc| !standards.contains(rfc)).collect();
    assert!(lost.is_empty(), "no row of RFC {lost:?}");
    standards.remove(&0);
    let new: Vec<_> = standards.into_iter().filter(|rfc| !RFCS.contains(rfc)).collect();
    assert!(new.is_empty(), "RFC {new:?}: another standard, to be listed here");
    for (rfc, last) in REQUIREMENTS {
        let lost: Vec<_> = (1..=last).filter(|n| !requirements.contains(&(rfc, *n))).collect();
        assert!(lost.is_empty(), "RFC {rfc}: no row of REQ {lost:?}");
    }
    let lost: Vec<_> = (1..=RULES).filter(|n| !rules.contains(&format!("L{n}"))).collect();
    assert!(lost.is_empty(), "no row of the rules {lost:?}");
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
    assert_eq!(rows(table), [("", vec!["a", "b", "met"])]);
    let source = "/// What it is.\n///\n/// Rows: VPP `one, two`; Linux\n/// `a.sh: x; y`.\n#[test]\nfn it() {}";
    let said = said(&head_of(source, "it").unwrap());
    assert_eq!(said, "; VPP one, two; Linux a.sh: x; y; ");
    assert_eq!(name_of("linux", "net/", "`a*.sh`").unwrap(), "Linux a*.sh");
    assert_eq!(name_of("containers", "moby: x", "Test").unwrap(), "moby Test");
    assert_eq!(name_of("conformance", "Promises", "UDP"), None);
}
