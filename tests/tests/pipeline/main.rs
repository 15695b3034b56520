//! Tables: frames in, bytes out on which ports, and every counter that moves. See
//! [`tests::lab`] for the host that the frames meet.
#![allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

mod arp;
mod batches;
mod fragments;
mod fragments6;
mod gateway;
mod grace;
mod gro;
mod guard;
mod guard6;
mod helpers;
mod helpers_hard;
mod icmp;
mod ipv6;
mod judged_anew;
mod l2;
mod lifecycle;
mod limits;
mod limits_told;
mod mappings;
mod mss;
mod nat;
mod nd;
mod offload;
mod policy;
mod quotas;
mod routed;
mod sctp;
mod shortcuts;
mod silent;
mod snoop;
mod storm;
mod tcp;
mod trace;
mod uplink;
mod vlan;
mod windows;
