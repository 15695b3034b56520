//! Token buckets: how many ICMP errors a worker may send, and how many of them about what came in by one port;
//! how many frames of a port are flooded.

use crate::clock::Timestamp;
use crate::packet::types::PortId;
use crate::stats::Counter;

const SECOND: u64 = 1_000_000_000;

/// A bucket that starts full, and holds as many tokens as come in a second.
#[derive(Debug, Default, Clone)]
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

/// How many ICMP errors a worker sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorRate {
    /// In a second, one at least.
    pub per_second: u32,
}

impl ErrorRate {
    /// At once: a twentieth of a second's, as Linux has it (`icmp_msgs_burst`).
    pub(crate) fn burst(self) -> u32 {
        (self.per_second / 20).max(1)
    }

    /// At once about what came in by one port: three quarters, by default enough for all that waited for one
    /// neighbor that turns out to be silent.
    pub(crate) fn burst_of_port(self) -> u32 {
        self.burst().saturating_mul(3).div_ceil(4)
    }
}

/// Of so many parts of a worker's errors, one may be about what came in by one port.
const SHARE: u64 = 4;

impl Default for ErrorRate {
    /// Linux `icmp_msgs_per_sec`.
    fn default() -> Self {
        Self { per_second: 1000 }
    }
}

/// For ICMP errors: a bucket for all, and one for each port, so that who is told of whatever they send leaves the
/// others theirs.
#[derive(Debug, Default, Clone)]
pub(crate) struct Limiter {
    bucket: Bucket,
    ports: Vec<Bucket>,
    rate: ErrorRate,
}

impl Limiter {
    pub(crate) fn new(rate: ErrorRate) -> Self {
        Self { rate, ..Self::default() }
    }

    /// A port with a full bucket.
    pub(crate) fn add(&mut self, port: PortId) {
        if self.ports.len() <= port.index() {
            self.ports.resize_with(port.index() + 1, Bucket::default);
        }
        if let Some(bucket) = self.ports.get_mut(port.index()) {
            *bucket = Bucket::default();
        }
    }

    fn nanos_per_token(&self) -> u64 {
        SECOND / u64::from(self.rate.per_second).max(1)
    }

    /// Takes a token of all, and one of the port that the frame came in by, if there are both.
    pub(crate) fn allow(&mut self, ingress: PortId, now: Timestamp, uses: &ErrorGauges) -> bool {
        let nanos = self.nanos_per_token();
        let port = self.ports.get_mut(ingress.index());
        // A port keeps its token where the others have left none.
        let mut share = port.as_deref().cloned().unwrap_or_default();
        if !share.take_of(now, 1, nanos * SHARE, u64::from(self.rate.burst_of_port())) {
            uses.port.refused.add(1);
            return false;
        }
        if !self.bucket.take_of(now, 1, nanos, u64::from(self.rate.burst())) {
            uses.all.refused.add(1);
            return false;
        }
        uses.all.note(self.bucket.full_at, nanos, now);
        uses.port.note(share.full_at, nanos * SHARE, now);
        if let Some(port) = port {
            *port = share;
        }
        true
    }
}

/// One worker's.
#[derive(Debug, Default)]
pub(crate) struct ErrorGauges {
    pub(crate) all: ErrorGauge,
    /// Of the port with the most of its share.
    pub(crate) port: ErrorGauge,
}

/// How much of the burst is used up: written by one worker, read by anybody.
#[derive(Debug, Default)]
pub(crate) struct ErrorGauge {
    /// See [`Bucket`].
    full_at: Counter,
    nanos_per_token: Counter,
    peak: Counter,
    /// Errors that were not sent.
    refused: Counter,
}

impl ErrorGauge {
    /// Errors that were not sent.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.value()
    }

    /// Of a bucket from which was taken; of several the fullest one is shown.
    fn note(&self, full_at: u64, nanos_per_token: u64, now: Timestamp) {
        self.full_at.set(full_at.max(self.full_at.value()));
        self.nanos_per_token.set(nanos_per_token);
        let (used, _) = self.view(now);
        self.peak.set(self.peak.value().max(used.into()));
    }

    /// Now, and at most since the start.
    pub(crate) fn view(&self, now: Timestamp) -> (u32, u32) {
        let left = self.full_at.value().saturating_sub(now.as_nanos());
        let used = left.div_ceil(self.nanos_per_token.value().max(1));
        let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        (narrow(used), narrow(self.peak.value()))
    }
}

/// How full the fullest bucket of a worker is: written by one worker, read by anybody.
#[derive(Debug, Default)]
pub(crate) struct BucketGauge {
    /// See [`Bucket`].
    full_at: Counter,
    per_second: Counter,
    /// In nanoseconds until it would have been full again.
    peak: Counter,
}

/// What a [`BucketGauge`] says.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BucketUse {
    /// Taken of the fullest bucket, in nanoseconds until it is full again: of a second, whatever it holds.
    pub(crate) nanos: u64,
    /// At most since the start.
    pub(crate) peak: u64,
    /// What that bucket holds, in tokens; zero: there is none.
    pub(crate) holds: u64,
}

impl BucketUse {
    /// The fuller one of two, and the higher peak.
    pub(crate) fn or(self, other: Self) -> Self {
        let (fuller, less) = if other.nanos > self.nanos { (other, self) } else { (self, other) };
        Self { peak: fuller.peak.max(less.peak), ..fuller }
    }

    /// So much time in tokens of a bucket that holds so many: never more than it holds.
    pub(crate) fn tokens(nanos: u64, holds: u64) -> u64 {
        nanos.min(SECOND).saturating_mul(holds).div_ceil(SECOND)
    }
}

impl BucketGauge {
    /// Notes how full a bucket is from which somebody took, or wanted to.
    pub(crate) fn note(&self, bucket: &Bucket, per_second: u64, now: Timestamp) {
        let taken = bucket.full_at.saturating_sub(now.as_nanos());
        if bucket.full_at >= self.full_at.value() {
            self.full_at.set(bucket.full_at);
            self.per_second.set(per_second);
        }
        if taken > self.peak.value() {
            self.peak.set(taken);
        }
    }

    pub(crate) fn view(&self, now: Timestamp) -> BucketUse {
        let nanos = self.full_at.value().saturating_sub(now.as_nanos());
        let holds = if nanos > 0 { self.per_second.value() } else { 0 };
        BucketUse { nanos, peak: self.peak.value(), holds }
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
        let (mut limiter, uses) = (Limiter::default(), ErrorGauges::default());
        // Of a port that has no share.
        let mut allow = |millis| limiter.allow(PortId(1), at(millis), &uses);
        let mut allowed = |millis| (0..1000).filter(|_| allow(millis)).count();
        assert_eq!(allowed(0), 50);
        assert_eq!(uses.all.view(at(0)), (50, 50));
        assert_eq!(uses.all.view(at(20)), (30, 50));
        assert_eq!(allowed(10), 10);
        assert_eq!(allowed(10_000), 50);
        assert_eq!(uses.all.view(at(20_000)), (0, 50));
        assert_eq!((uses.all.refused(), uses.port.refused()), (3000 - 110, 0));
    }

    #[test]
    fn a_port_has_a_share() {
        let (mut limiter, uses) = (Limiter::default(), ErrorGauges::default());
        let ports = [PortId(3), PortId(1)];
        for port in ports {
            limiter.add(port);
        }
        let mut allowed =
            |port, millis| (0..1000).filter(|_| limiter.allow(port, at(millis), &uses)).count();
        assert_eq!(allowed(ports[0], 0), 38);
        assert_eq!(uses.port.view(at(0)), (38, 38));
        assert_eq!((uses.all.refused(), uses.port.refused()), (0, 962));
        // What the other one has not got it keeps.
        assert_eq!(allowed(ports[1], 0), 12);
        assert_eq!(uses.port.view(at(0)), (38, 38), "the fullest one's");
        assert_eq!((uses.all.refused(), uses.port.refused()), (988, 962));
        assert_eq!(allowed(ports[1], 38), 35);
        // In the long run a quarter of all.
        let flood: usize = (1000..2000).map(|millis| allowed(ports[0], millis)).sum();
        assert_eq!(flood, 38 + 249);
    }

    #[test]
    fn another_rate_has_another_burst() {
        let uses = ErrorGauges::default();
        let port = PortId(1);
        let mut limiter = Limiter::new(ErrorRate { per_second: 100 });
        assert_eq!((0..100).filter(|_| limiter.allow(port, at(0), &uses)).count(), 5);
        assert_eq!((0..100).filter(|_| limiter.allow(port, at(20), &uses)).count(), 2);
        let mut rare = Limiter::new(ErrorRate { per_second: 1 });
        rare.add(port);
        assert_eq!((0..100).filter(|_| rare.allow(port, at(0), &uses)).count(), 1);
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
    fn the_fullest_bucket_is_shown_whatever_it_holds() {
        let (gauge, mut small, mut large) =
            (BucketGauge::default(), Bucket::default(), Bucket::default());
        assert_eq!(gauge.view(at(0)), BucketUse::default());
        assert!(large.take(at(0), 250, 1000));
        gauge.note(&large, 1000, at(0));
        assert!(small.take(at(0), 5, 10));
        gauge.note(&small, 10, at(0));
        let shown = gauge.view(at(0));
        assert_eq!((BucketUse::tokens(shown.nanos, shown.holds), shown.holds), (5, 10));
        // The other one, less full, is not noted over it.
        assert!(large.take(at(0), 1, 1000));
        gauge.note(&large, 1000, at(0));
        assert_eq!(gauge.view(at(0)).holds, 10);
        let later = gauge.view(at(600));
        assert_eq!((later.nanos, later.holds, later.peak), (0, 0, SECOND / 2));
        assert_eq!(BucketUse::tokens(later.peak, 1000), 500);
        assert_eq!(BucketUse::tokens(3 * SECOND, 10), 10, "a debt is no more than all");
        let empty = BucketUse { nanos: 1, peak: 1, holds: 7 };
        assert_eq!(later.or(empty), BucketUse { nanos: 1, peak: SECOND / 2, holds: 7 });
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
