//! Traces: a packet described in words, the frame that it stands for, and what the engine said of it in
//! the names that people know.

mod build;
pub mod packet;

pub use build::Macs;
pub use packet::PacketText;

/// Frames of one request at most.
pub const MAX_FRAMES: usize = 1000;
