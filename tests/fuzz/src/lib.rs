//! Fuzz targets: each takes any bytes and panics when something does not hold.
//!
//! `main.rs` gives them to libFuzzer; `tests/fuzz/run` builds and runs that. [`seeds`] makes what
//! fuzzing begins with. What it found is in `cases`, and `tests/cases.rs` gives each target that again.
#![allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a finding"
)]

mod input;
pub mod seeds;
mod sound;
pub mod targets;
mod under_test;
