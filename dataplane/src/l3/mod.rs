//! Routing at the gateway of a network and at uplinks.

pub(crate) mod announce;
pub(crate) mod arp;
pub mod fragments;
pub(crate) mod hop;
pub(crate) mod input;
pub(crate) mod nd;
pub mod neighbor;
pub(crate) mod querier;
pub(crate) mod ra;
pub(crate) mod report;
pub mod route;
pub(crate) mod waiting;
