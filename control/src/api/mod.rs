//! The API on the unix socket: HTTP/JSON under `/v1`, and nothing else between client and daemon.

pub mod client;
pub mod openapi;
pub mod server;
pub mod types;
