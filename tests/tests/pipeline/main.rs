//! Tables: frames in, bytes out on which ports, and every counter that moves. See
//! [`tests::lab`] for the host that the frames meet.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

mod arp;
mod gateway;
mod l2;
