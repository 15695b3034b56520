//! What is fuzzed.

mod api;
mod config;
mod errors;
mod fragments;
mod parse;
mod pcap;
pub(crate) mod pipeline;
mod state;

pub(crate) use fragments::Piece;

/// One of them.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// What it is called.
    pub name: &'static str,
    /// Takes any bytes, and panics when something does not hold.
    pub run: fn(&[u8]),
}

/// All of them.
pub const ALL: [Target; 8] = [
    Target { name: "api", run: api::run },
    Target { name: "config", run: config::run },
    Target { name: "errors", run: errors::run },
    Target { name: "fragments", run: fragments::run },
    Target { name: "parse", run: parse::run },
    Target { name: "pcap", run: pcap::run },
    Target { name: "pipeline", run: pipeline::run },
    Target { name: "state", run: state::run },
];

/// The one of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Target> {
    ALL.iter().find(|target| target.name == name)
}
