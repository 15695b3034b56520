//! What the suites above unit level share: a host without threads and devices, packets to send
//! through it, and a second opinion on what comes out.
//!
//! - [`packet`]: packets, built by etherparse with full checksums.
//! - [`sums`]: checksums verified the slow and obvious way.
//! - [`host`]: a host in a network namespace with the built daemon on it; needs root.
//! - [`lab`]: a host with networks, containers and an uplink; every step states all frames that
//!   come out and all counters that move, and nothing else may have happened.
//! - [`outlet`]: where frames go out.
//! - [`rig`]: an engine that frames of any kind run through, with its invariants checked each time.
//! - [`sim`]: machines with smoltcp's stack, on cables that lose, repeat and reorder.
//!
//! Nothing here shares code with what it checks beyond the engine's public types.
#![allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

pub mod fragments;
pub mod host;
pub mod lab;
pub mod ledger;
pub mod outlet;
pub mod packet;
pub mod rig;
pub mod sim;
pub mod sums;

use dataplane::io::IoChoice;

/// How the engines and daemons of the tests read and write devices: as `VSWITCHD_TEST_IO` says
/// (`io_uring` or `epoll`), else the best way there is. `tests/run` runs the suites that use
/// devices both ways. A daemon by epoll spreads its ports over all workers, for the same reason.
///
/// # Panics
/// When it says anything else.
#[must_use]
pub fn io_choice() -> IoChoice {
    match std::env::var("VSWITCHD_TEST_IO").as_deref() {
        Err(_) => IoChoice::Auto,
        Ok("io_uring") => IoChoice::Uring,
        Ok("epoll") => IoChoice::Epoll,
        Ok(other) => panic!("VSWITCHD_TEST_IO is {other:?}, neither io_uring nor epoll"),
    }
}

/// What connects endpoints to the engine: `VSWITCHD_TEST_LINK`, or the default.
///
/// # Panics
/// When it says anything else.
#[must_use]
pub fn link() -> Option<&'static str> {
    match std::env::var("VSWITCHD_TEST_LINK").as_deref() {
        Err(_) => None,
        Ok("tap") => Some("tap"),
        Ok("veth") => Some("veth"),
        Ok(other) => panic!("VSWITCHD_TEST_LINK is {other:?}, neither tap nor veth"),
    }
}
