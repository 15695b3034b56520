//! Frame formats: reading, checking, rewriting and making frames, without state and without panics.

pub mod arp;
pub mod checksum;
pub mod crc32c;
pub(crate) mod extensions;
pub(crate) mod field;
#[cfg(test)]
mod fixtures;
pub(crate) mod gro;
pub mod headers;
pub mod icmp;
pub mod icmp6;
pub(crate) mod membership;
pub mod ndp;
pub mod offload;
pub mod parse;
pub(crate) mod quick;
pub mod rewrite;
pub mod rewrite6;
pub mod sctp;
pub mod segment;
pub(crate) mod splice;
pub mod tcp;
mod transport;
pub mod types;
