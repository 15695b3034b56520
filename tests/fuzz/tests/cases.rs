//! What fuzzing found once, and what it begins with: no target panics at it.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

use fuzz::{seeds, targets};

/// Files of `cases/TARGET`.
///
/// Rows: Open vSwitch `tests/oss-fuzz: flow extract, miniflow, odp, json, ofp_print; tests/fuzz-regression`.
#[test]
fn what_was_found_once_is_mended() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
    let (mut count, mut failed) = (0, Vec::new());
    for directory in fs::read_dir(cases).unwrap() {
        let directory = directory.unwrap().path();
        let name = directory.file_name().unwrap().to_str().unwrap();
        let target = targets::find(name).unwrap_or_else(|| panic!("{name} is no target"));
        for case in fs::read_dir(&directory).unwrap() {
            let case = case.unwrap().path();
            let bytes = fs::read(&case).unwrap();
            count += 1;
            if catch_unwind(|| (target.run)(&bytes)).is_err() {
                failed.push(case);
            }
        }
    }
    assert!(count > 0 && failed.is_empty(), "of {count}: {failed:?}");
}

#[test]
fn seeds_are_no_findings() {
    for target in &targets::ALL {
        let seeds = seeds::of(target);
        assert!(!seeds.is_empty(), "{}", target.name);
        for (number, seed) in seeds.iter().enumerate() {
            let outcome = catch_unwind(|| (target.run)(seed));
            assert!(outcome.is_ok(), "{}, seed {number}: {seed:?}", target.name);
        }
    }
}
