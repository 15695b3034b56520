//! The system calls that neither `std` nor `nix` wrap, made safe. Together with the files below,
//! the only place with `unsafe`: everything outside `sys` is safe code.
//!
//! Each file takes borrowed descriptors and plain values, and returns owned values or
//! `io::Error`; nothing here knows what a port or a frame means to the engine.

pub(super) mod bpf;
pub(super) mod map;
pub(super) mod netns;
pub(super) mod packet;
pub(super) mod sched;
pub(super) mod tun;
pub(super) mod uring;
