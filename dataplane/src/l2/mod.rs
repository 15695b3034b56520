//! Switching within a network.

pub mod fdb;
pub(crate) mod forward;
pub(crate) mod guard;
pub(crate) mod guard6;
pub(crate) mod learn;
pub(crate) mod storm;
pub(crate) mod vlan;
