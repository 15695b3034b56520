//! Fixtures of the benches: frames of many flows, and a switch in memory to send them through.
//!
//! - [`frames`]: templates, and loads that turn a template into a frame of a random flow.
//! - [`switch`]: tables, configuration and one core, without threads and devices, and the stopwatch.
//!
//! `docs/performance.md` has the figures and the commands. `cargo bench -p benches -- --test` runs
//! every bench's code once.

pub mod frames;
pub mod random;
pub mod switch;

/// How many flows, MACs or connections a bench is run with.
pub const SIZES: [(u32, &str); 3] = [(1, "1"), (10_000, "10k"), (1_000_000, "1M")];
