//! Routing at the gateway.
pub mod route;
