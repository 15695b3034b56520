//! Switching within a network.

pub mod fdb;
pub(crate) mod forward;
pub mod groups;
pub(crate) mod guard;
pub(crate) mod guard6;
pub(crate) mod learn;
pub(crate) mod refusal;
pub(crate) mod snoop;
pub(crate) mod storm;
pub(crate) mod vlan;
