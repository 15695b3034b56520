//! Looking for work before sleeping.
//!
//! It pays when questions and answers take turns: the next frame comes sooner than a sleeper wakes.
//! It does not when idle, and not in a bulk transfer, where it takes a processor from the programs
//! that send and receive; there the sleep makes the next batch larger.

use std::time::{Duration, Instant};

/// The longest time to look for work before sleeping: about what a sleeping worker's wake-up
/// costs.
pub(crate) const SPIN: Duration = Duration::from_micros(50);

/// Work that comes within this time of its last end would have come while looking for it: it takes a
/// sleeping worker's wake-up longer, and so does the answer of a sleeping program, which is awake while
/// the worker looks.
const SOON: Duration = Duration::from_micros(150);

/// What comes at a time when questions and answers take turns: a few frames without segmentation.
const SMALL: usize = 3000;

/// Below this a spin is given up altogether.
const LEAST: Duration = Duration::from_micros(4);

/// So many looks in a row that found nothing show that nobody answers: frames come at a pace of their own,
/// however soon each is.
const VAIN: u8 = 8;

/// Then so many rounds go by until the next look.
const REST: u8 = 64;

/// How long one worker looks for work before it sleeps.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Spin {
    budget: Duration,
    looked: Duration,
    /// Looks in a row that found nothing.
    vain: u8,
    /// Rounds since then.
    rested: u8,
}

impl Spin {
    /// Asks `found` until it says so or looking longer does not pay. `from` is when work ran out.
    pub(crate) fn look(&mut self, from: Instant, mut found: impl FnMut() -> bool) {
        if self.budget.is_zero() {
            return;
        }
        let mut looked = Duration::ZERO;
        let mut has_found = false;
        while looked < self.budget && !has_found {
            has_found = found();
            std::hint::spin_loop();
            looked = from.elapsed();
        }
        self.vain = if has_found { 0 } else { self.vain.saturating_add(1).min(VAIN) };
        self.looked += looked;
    }

    /// Work of `bytes` bytes came `waited` after it ran out.
    pub(crate) fn learn(&mut self, waited: Duration, bytes: usize) {
        self.budget = if waited > SOON || bytes > SMALL {
            if self.budget > LEAST { self.budget / 2 } else { Duration::ZERO }
        } else if self.vain < VAIN {
            SPIN
        } else if self.rested < REST {
            self.rested += 1;
            Duration::ZERO
        } else {
            self.rested = 0;
            SPIN
        };
    }

    /// Time spent looking, in all.
    pub(crate) const fn looked(&self) -> Duration {
        self.looked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_for_work_pays_only_between_small_frames_that_come_soon() {
        let mut spin = Spin::default();
        // What a worker waited for a frame that came after 40 µs, when it has slept.
        spin.learn(Duration::from_micros(100), 64);
        assert_eq!(spin.budget, SPIN);
        spin.learn(Duration::from_micros(10), 65_000);
        assert!(spin.budget < SPIN);
        spin.learn(Duration::from_micros(10), 64);
        for _ in 0..6 {
            spin.learn(Duration::from_millis(100), 0);
        }
        assert_eq!(spin.budget, Duration::ZERO);
    }

    #[test]
    fn looks_until_there_is_work_or_the_time_is_over_and_not_at_all_when_idle() {
        let mut spin = Spin::default();
        let mut asked = 0;
        spin.look(Instant::now(), || {
            asked += 1;
            false
        });
        assert_eq!((asked, spin.looked()), (0, Duration::ZERO));
        spin.learn(Duration::ZERO, 64);
        spin.look(Instant::now(), || false);
        assert!(spin.looked() >= SPIN);
        spin.look(Instant::now(), || {
            asked += 1;
            asked == 3
        });
        assert_eq!(asked, 3);
    }

    #[test]
    fn frames_that_come_at_a_pace_of_their_own_are_not_looked_for() {
        let mut spin = Spin::default();
        let mut looks = 0;
        for _ in 0..1000 {
            spin.learn(Duration::from_micros(100), 64);
            looks += u32::from(!spin.budget.is_zero());
            spin.look(Instant::now(), || false);
        }
        assert!((8..30).contains(&looks), "{looks} of 1000");
        // Until one is found again.
        let mut again = 0;
        for _ in 0..200 {
            spin.learn(Duration::from_micros(100), 64);
            again += u32::from(!spin.budget.is_zero());
            spin.look(Instant::now(), || true);
        }
        assert!(again > 200 - u32::from(REST) - 2, "{again} of 200");
    }
}
