//! The vswitchd engine: frames in, frames out.
//!
//! The way of a frame, in the order of the files:
//! [`io`] receives it into a [`frame::Frame`]; `worker` makes batches; `pipeline` has THE ORDER of
//! the stages: `admit`, `l2` (learn, forward), `l3` (input), `nat` over [`conntrack`] (lookup,
//! translate), `egress`. Every frame ends as forwarded, queued, consumed or dropped with one
//! [`verdict::DropReason`], and the sums always balance ([`engine::WorkerStats::is_balanced`]).
//!
//! Control gives the engine devices ([`Engine::attach`]) and a [`config::Snapshot`]
//! ([`Engine::publish`]) and looks inside. Tests, replay and benches use a [`plane::Plane`] and a
//! [`core::Core`] without threads.
#![deny(unsafe_code)]
// No frame and no table may end the process: what is not there has a name of its own.
#![deny(clippy::indexing_slicing)]

mod admit;
mod balance;
pub mod capture;
pub mod clock;
pub mod config;
pub mod conntrack;
pub mod core;
mod crew;
mod egress;
pub mod engine;
mod express;
pub mod family;
pub mod frame;
mod gone;
pub mod hash;
pub mod io;
pub mod l2;
pub mod l3;
mod limiter;
pub mod limits;
pub mod nat;
mod orphans;
pub mod packet;
mod pipeline;
pub mod plane;
pub mod pool;
pub mod publish;
mod shared;
mod stats;
mod sync;
pub mod trace;
pub mod verdict;
mod worker;

pub use engine::{Engine, EngineError, EngineOptions};
pub use shared::Tables;
