//! The built `vswitchctl` against a server that records what it is asked and answers as told:
//! requests, output, exit codes, pipes and signals. The daemon itself is not involved.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod capture;
mod fake;
mod process;
mod state;
mod verbs;
