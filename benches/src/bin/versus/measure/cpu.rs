//! Processor time, of a process and of the whole machine.
//!
//! The machine's includes what anything else does meanwhile; the process's leaves out what the
//! kernel does for it outside of it, such as interrupts. The kernel counts both in ticks of 10 ms.

use std::fs;

use nix::unistd::{SysconfVar, sysconf};

use super::float;
use crate::error::{VersusError, io};

/// USER_HZ of every architecture that Linux supports today.
const TICKS: i64 = 100;

/// Seconds of processor time up to a moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cpu {
    machine: f64,
    process: Option<f64>,
}

impl Cpu {
    pub(super) fn now(process: Option<u32>) -> Result<Self, VersusError> {
        let read = |path: &str| fs::read_to_string(path).map_err(io(format!("read {path}")));
        let unreadable =
            |path: &str| VersusError::Program(format!("{path} is not as proc(5) says"));
        let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(TICKS);
        let seconds = |count: u64| float(count) / float(ticks.unsigned_abs().max(1));
        let machine = busy(&read("/proc/stat")?).ok_or_else(|| unreadable("/proc/stat"))?;
        let process = match process {
            Some(pid) => {
                let path = format!("/proc/{pid}/stat");
                Some(used(&read(&path)?).ok_or_else(|| unreadable(&path))?)
            }
            None => None,
        };
        Ok(Self { machine: seconds(machine), process: process.map(seconds) })
    }

    /// Of the whole machine.
    pub(super) fn machine_since(&self, before: &Self) -> f64 {
        self.machine - before.machine
    }

    /// Of the process, if there is one.
    pub(super) fn process_since(&self, before: &Self) -> Option<f64> {
        Some(self.process? - before.process?)
    }
}

/// Ticks that all processors were busy: user, nice, system, irq, softirq.
fn busy(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = fields.as_slice() else {
        return None;
    };
    Some(user + nice + system + irq + softirq)
}

/// Ticks of a process: utime and stime, the 14th and 15th field. Its name may contain anything.
fn used(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11).map(|word| word.parse::<u64>().ok());
    Some(fields.next()?? + fields.next()??)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_is_not_busy() {
        assert_eq!(busy("cpu  1 2 3 1000 1000 4 5 1000 0 0\ncpu0 9 9 9 9 9 9 9\n"), Some(15));
        assert_eq!(busy("cpu0 1 2 3 4 5 6 7\n"), None);
    }

    #[test]
    fn a_name_with_brackets_moves_no_field() {
        let stat = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 200 30 0 0 20";
        assert_eq!(used(stat), Some(230));
        assert_eq!(used("7 (a) S 1"), None);
    }

    #[test]
    fn work_takes_time() {
        let own = Some(std::process::id());
        let before = Cpu::now(own).unwrap();
        // Bounded by the test's own patience: a tick comes after 10 ms of work, and the kernel counts
        // the process's and the machine's apart.
        let moved = (0..100_000).any(|_| {
            let now = Cpu::now(own).unwrap();
            now.process_since(&before).unwrap() > 0.0 && now.machine_since(&before) > 0.0
        });
        assert!(moved);
    }
}
