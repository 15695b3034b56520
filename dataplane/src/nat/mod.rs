//! Address translation.
//!
//! - [`dnat`]: published ports.
//! - [`port_alloc`]: outside ports for SNAT.
//! - `lookup`: which connection does a routed packet belong to?
//! - `translate`: what becomes of it.
//! - `begin`: a new connection, in the order DNAT, route, SNAT, commit.
//! - `outside`: the address and port that it speaks from, and its entry into the table.
//! - `related`: ICMP errors about a connection.
//! - `fragment`: fragments, in whatever order they come.
//! - `policy`: who may begin a connection; `inside`: the same of what is switched.
//! - `helpers`: connections that announce others.
//! - `ip`: what all of them ask of a packet, of either family.
//! - `mss`: SYNs offer no larger segments than the way takes.

mod begin;
pub mod dnat;
mod established;
pub(crate) mod fragment;
pub mod free_ports;
pub(crate) mod helpers;
pub(crate) mod inside;
pub(crate) mod ip;
mod local;
pub(crate) mod lookup;
mod mss;
mod outside;
mod policy;
pub mod port_alloc;
mod related;
pub(crate) mod silent;
pub(crate) mod translate;
