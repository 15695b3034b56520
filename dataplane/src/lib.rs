//! The vswitchd engine.
#![deny(unsafe_code)]

pub mod clock;
pub mod config;
pub mod engine;
pub mod frame;
pub mod io;
pub mod l3;
pub mod nat;
pub mod packet;
pub mod pool;
pub mod verdict;

pub use engine::{Engine, EngineError, EngineOptions};
