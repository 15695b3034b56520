//! Every body of the API. Field names are the outside contract: add, never rename.
//!
//! Requests refuse unknown fields, so that a misspelt one is an error and not ignored. Responses
//! may grow. What can be checked by looking at one value alone (a name, an address, a published
//! port) is checked by its type while reading the JSON.

mod address;
mod conntrack;
mod error;
mod fdb;
mod mdb;
mod monitor;
mod network;
mod policy;
mod port;
mod sandbox;
mod state;
mod status;
mod trace;
mod uplink;

pub use address::*;
pub use conntrack::*;
pub use error::*;
pub use fdb::*;
pub use mdb::*;
pub use monitor::*;
pub use network::*;
pub use policy::*;
pub use port::*;
pub use sandbox::*;
pub use state::*;
pub use status::*;
pub use trace::*;
pub use uplink::*;
