//! Switching within a network.

pub mod fdb;
pub(crate) mod forward;
pub(crate) mod learn;
