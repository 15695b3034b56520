//! Giving way to those who receive.
//!
//! Where there are fewer processors than senders, workers and receivers, a worker that has frames without
//! end runs for a whole tick of the scheduler, 4 ms with `HZ=250`: more datagrams than a socket holds. What
//! the receiver could not take meanwhile is lost behind us, after all our work. So a worker lets others
//! run after each large batch of short frames, and has its own turns short: then what it gives up is a
//! tenth of a millisecond at most, beside programs that compute without end too. With turns of the usual
//! length it would give up whole ones (Linux 6.18, `yield_task_fair`), and does not.
//!
//! Why and against what: docs/adr/0024-workers-give-way.md. Figures: docs/performance.md, "64-byte frames".

use std::time::Duration;

use super::sys::sched;
use crate::frame::Frame;

/// How long a worker runs at a time when others want to: the least that Linux grants
/// (`__setparam_fair` in kernel/sched/syscalls.c).
const TURN: Duration = Duration::from_micros(100);
/// Frames of a batch after which it pays: sockets hold some hundreds. With 64, which one look seldom
/// brings, nothing was gained; 16 and 32 were alike.
const MANY: usize = 32;
/// Longer on average they are segments of a stream, whose sender waits for the receiver anyway.
const SHORT: usize = 2048;

/// Whether a worker gives way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GiveWay {
    turns_are_short: bool,
}

impl GiveWay {
    /// For the calling thread, whose turns become short. Where the kernel does not do that (before
    /// Linux 6.12, or not for the policy that somebody chose), it gives no way.
    pub(crate) fn new() -> Self {
        Self { turns_are_short: sched::set_slice(TURN).unwrap_or(false) }
    }

    /// Whether others should run after this batch.
    #[inline]
    pub(crate) fn after(self, batch: &[Frame]) -> bool {
        let many = self.turns_are_short && batch.len() >= MANY;
        many && batch.iter().map(Frame::len).sum::<usize>() <= batch.len() * SHORT
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::Pool;

    #[test]
    fn only_many_short_frames_at_a_time_make_way_for_others() {
        let batch = |count: usize, len: usize| -> Vec<Frame> {
            let mut pool = Pool::new(count);
            let mut frames: Vec<_> = std::iter::from_fn(|| pool.take()).take(count).collect();
            frames.iter_mut().for_each(|frame| frame.copy_from(&vec![0; len]));
            frames
        };
        let ours = GiveWay { turns_are_short: true };
        assert!(ours.after(&batch(MANY, 60)));
        assert!(ours.after(&batch(MANY, 1514)));
        assert!(!ours.after(&batch(MANY - 1, 60)));
        assert!(!ours.after(&batch(MANY, 9014)));
        assert!(!GiveWay { turns_are_short: false }.after(&batch(MANY, 60)));
    }

    #[test]
    fn the_thread_keeps_its_policy_and_can_be_told_more_than_once() {
        let first = GiveWay::new();
        assert_eq!(GiveWay::new().turns_are_short, first.turns_are_short);
        let settings = std::fs::read_to_string("/proc/thread-self/sched").unwrap_or_default();
        let slice =
            settings.lines().find_map(|line| line.strip_prefix("se.slice")?.rsplit(' ').next());
        if let Some(slice) = slice.filter(|_| first.turns_are_short) {
            assert_eq!(slice, TURN.as_nanos().to_string());
        }
    }
}
