//! Fixtures of the benches: frames of many flows, and a switch in memory to send them through.
//!
//! - [`frames`]: templates, and loads that turn a template into a frame of a random flow.
//! - [`segments`]: TCP, and datagrams in bursts.
//! - [`mod@specs`] has the configurations.
//! - [`switch`]: tables, configuration and one core, without threads and devices, and the stopwatch.
//!
//! `docs/performance.md` has the figures and the commands. `cargo bench -p benches -- --test` runs
//! every bench's code once.

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

pub mod frames;
pub mod random;
pub mod segments;
pub mod specs;
pub mod switch;

/// How many flows, MACs or connections a bench is run with.
pub const SIZES: [(u32, &str); 3] = [(1, "1"), (10_000, "10k"), (1_000_000, "1M")];

/// Keeps this thread, and those that it begins from now on, on one processor, if there is one of that number.
pub fn stay_on(processor: usize) {
    let mut only = CpuSet::new();
    // Without, figures are worse, and the code runs all the same.
    let _ = only.set(processor).and_then(|()| sched_setaffinity(Pid::from_raw(0), &only));
}
