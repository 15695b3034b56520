//! A token bucket: how many ICMP errors a worker may send.

use crate::clock::Timestamp;

/// Linux `icmp_msgs_per_sec`.
const PER_SECOND: u64 = 1000;
/// Linux `icmp_msgs_burst`.
const BURST: u64 = 50;
const NANOS_PER_TOKEN: u64 = 1_000_000_000 / PER_SECOND;

/// Starts full.
#[derive(Debug, Default)]
pub(crate) struct Limiter {
    /// When the bucket would be full again.
    full_at: u64,
}

impl Limiter {
    /// Takes a token if there is one.
    pub(crate) fn allow(&mut self, now: Timestamp) -> bool {
        let now = now.as_nanos();
        let next = self.full_at.max(now) + NANOS_PER_TOKEN;
        if next - now > BURST * NANOS_PER_TOKEN {
            return false;
        }
        self.full_at = next;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burst_then_rate() {
        let mut limiter = Limiter::default();
        let at = |millis: u64| Timestamp::from_nanos(1_000_000_000 + millis * 1_000_000);
        let allowed =
            |limiter: &mut Limiter, millis| (0..1000).filter(|_| limiter.allow(at(millis))).count();
        assert_eq!(allowed(&mut limiter, 0), 50);
        assert_eq!(allowed(&mut limiter, 10), 10);
        assert_eq!(allowed(&mut limiter, 10_000), 50);
    }
}
