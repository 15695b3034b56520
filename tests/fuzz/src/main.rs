//! The fuzz targets as libFuzzer runs them: one program, so that what is under test is built once. Which
//! of them it is says `VSWITCHD_FUZZ`.
#![no_main]
#![allow(
    clippy::panic,
    reason = "test code: what it is called with comes from tests/fuzz/run, and a failure is shown there"
)]

use std::env;
use std::sync::OnceLock;

use fuzz::seeds;
use fuzz::targets::{self, Target};
use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<Target> = OnceLock::new();

/// Which one; and its seeds are written before libFuzzer looks for them.
fn choose() {
    let name = env::var("VSWITCHD_FUZZ").unwrap_or_default();
    let known: Vec<_> = targets::ALL.iter().map(|target| target.name).collect();
    let Some(target) = targets::find(&name) else {
        panic!("VSWITCHD_FUZZ is {name:?}, none of {known:?}");
    };
    if let Some(directory) = env::var_os("VSWITCHD_FUZZ_SEEDS") {
        seeds::write(target, directory.as_ref());
    }
    assert!(TARGET.set(*target).is_ok(), "chosen once");
}

fuzz_target!(init: choose(), |data: &[u8]| {
    if let Some(target) = TARGET.get() {
        (target.run)(data);
    }
});
