//! Token buckets: how many ICMP errors a worker may send, how many frames of a port are flooded.

use crate::clock::Timestamp;

const SECOND: u64 = 1_000_000_000;

/// A bucket that starts full, and holds as many tokens as come in a second.
#[derive(Debug, Default)]
pub(crate) struct Bucket {
    /// When it would be full again.
    full_at: u64,
}

impl Bucket {
    /// Takes tokens if there are as many. A full bucket always gives: one that asks for more than it
    /// holds leaves it with a debt.
    pub(crate) fn take(&mut self, now: Timestamp, tokens: u64, per_second: u64) -> bool {
        self.take_of(now, tokens, SECOND / per_second.max(1), per_second)
    }

    fn take_of(&mut self, now: Timestamp, tokens: u64, nanos_per_token: u64, holds: u64) -> bool {
        let now = now.as_nanos();
        let next = self.full_at.max(now) + tokens * nanos_per_token;
        if self.full_at > now && next - now > holds * nanos_per_token {
            return false;
        }
        self.full_at = next;
        true
    }
}

/// For ICMP errors.
#[derive(Debug, Default)]
pub(crate) struct Limiter(Bucket);

impl Limiter {
    /// Linux `icmp_msgs_per_sec`.
    const PER_SECOND: u64 = 1000;
    /// Linux `icmp_msgs_burst`.
    const BURST: u64 = 50;

    /// Takes a token if there is one.
    pub(crate) fn allow(&mut self, now: Timestamp) -> bool {
        self.0.take_of(now, 1, SECOND / Self::PER_SECOND, Self::BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_nanos(SECOND + millis * 1_000_000)
    }

    #[test]
    fn burst_then_rate() {
        let mut limiter = Limiter::default();
        let allowed =
            |limiter: &mut Limiter, millis| (0..1000).filter(|_| limiter.allow(at(millis))).count();
        assert_eq!(allowed(&mut limiter, 0), 50);
        assert_eq!(allowed(&mut limiter, 10), 10);
        assert_eq!(allowed(&mut limiter, 10_000), 50);
    }

    #[test]
    fn a_second_s_worth_then_the_rate() {
        let mut bucket = Bucket::default();
        let mut allowed = |millis| (0..1000).filter(|_| bucket.take(at(millis), 1, 100)).count();
        assert_eq!(allowed(0), 100);
        assert_eq!(allowed(0), 0);
        assert_eq!(allowed(50), 5);
        assert_eq!(allowed(5000), 100);
    }

    #[test]
    fn who_asks_for_more_than_it_holds_waits_for_it() {
        let mut bucket = Bucket::default();
        assert!(bucket.take(at(0), 30, 10));
        assert!(!bucket.take(at(1000), 1, 10));
        assert!(!bucket.take(at(2000), 1, 10));
        assert!(bucket.take(at(2100), 1, 10));
        assert!(!bucket.take(at(2100), 1, 10));
    }
}
