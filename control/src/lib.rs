//! The control side of vswitchd: configuration, API, client and the programs.
//!
//! Files, JSON, netlink and names live here; frames and tables live in `dataplane`, which this
//! crate drives and which never depends on it.
#![forbid(unsafe_code)]

pub mod api;
pub mod capture;
pub mod check;
pub mod cli;
pub mod compile;
pub mod config;
pub mod daemon;
pub mod demo;
pub mod error;
pub mod host;
pub mod ipam;
pub mod lab;
pub mod model;
pub mod name;
pub mod nat_log;
pub mod netlink;
pub mod netns;
pub mod options;
pub mod place;
pub mod places;
pub mod proxy;
pub mod publish;
pub mod state;
pub mod switch;
mod text;
pub mod trace;
pub mod usage;
