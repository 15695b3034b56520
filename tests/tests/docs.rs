//! What the documents promise, held against the code.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::fs;
use std::path::{Path, PathBuf};

use dataplane::verdict::DropReason;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

#[test]
fn operations_lists_every_drop_reason_with_what_to_do() {
    let text = fs::read_to_string(root().join("docs/operations.md")).unwrap();
    for reason in DropReason::ALL {
        let start = format!("| `{}` | ", reason.name());
        let row = text.lines().find(|line| line.starts_with(&start));
        let row = row.unwrap_or_else(|| panic!("no row for {}", reason.name()));
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        assert_eq!(cells.len(), 3, "{row}");
        assert!(cells.iter().all(|cell| cell.len() > 3), "{row}");
    }
    let rows = text.lines().filter(|line| line.starts_with("| `")).count();
    assert!(rows >= DropReason::COUNT);
}

#[test]
fn operations_lists_every_limit_that_status_shows() {
    let text = fs::read_to_string(root().join("docs/operations.md")).unwrap();
    let section = text.split("\n## Limits\n").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let lab = tests::lab::Lab::default();
    let services = control::places::Services::new(&control::config::ServiceLimits::default());
    let engine = lab.plane.limits().into_iter().map(|limit| limit.name.to_owned());
    let services = services.counted().into_iter().chain(services.noted());
    for name in engine.chain(services.map(|limit| limit.view().name)) {
        let name = format!("(`{name}`)");
        let rows = section.lines().filter(|line| line.starts_with("| ") && line.contains(&name));
        assert_eq!(rows.count(), 1, "{name}");
    }
}

#[test]
fn names_of_drop_reasons_are_stable_words() {
    for reason in DropReason::ALL {
        let name = reason.name();
        assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'));
        assert!(reason.describe().trim().ends_with('.'), "{name}: {}", reason.describe());
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut files = vec![root().join("README.md"), root().join("CONTRIBUTING.md")];
    for folder in ["docs", "docs/conformance"] {
        files.extend(fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path()));
    }
    for file in files.iter().filter(|file| file.extension().is_some_and(|e| e == "md")) {
        let text = fs::read_to_string(file).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.starts_with("http") || target.starts_with('#') {
                continue;
            }
            let path = file.parent().unwrap().join(target.split('#').next().unwrap());
            assert!(path.exists(), "{}: {target}", file.display());
        }
    }
}
