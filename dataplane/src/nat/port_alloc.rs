//! Outside ports for SNAT: the inside port when it is free, else a random one of the same class, of the
//! same parity when it can be: the same one for all that an inside port speaks to, as long as it is free.
//!
//! A port is free for a destination when the tuple in which replies would come has no connection:
//! one outside port serves many destinations at once, so 65,535 ports are no ceiling. What is
//! published is never used (port shadow, CVE-2021-3773).

use crate::hash::HashKey;

/// Candidates tried for one connection at most. Linux tries 128 and halves; a range of this size or
/// less is searched completely.
pub const ATTEMPTS: u32 = 256;

/// Ports below are a class of their own (RFC 4787 REQ-3a).
const CLASS_BOUNDARY: u16 = 1024;

/// The golden ratio's fractional part, times 2^32.
const GOLDEN: u64 = 0x9e37_79b9;

/// A source of unpredictable numbers: a keyed hash of a counter. Ports that can be guessed invite
/// off-path attacks (RFC 6056).
#[derive(Debug, Clone)]
pub struct PortRng {
    key: HashKey,
    counter: u64,
    /// How many even and odd ports were walked last, and the step that goes with each number.
    walked: [(u32, u32); 2],
}

impl PortRng {
    /// A source with a secret key.
    #[must_use]
    pub const fn new(key: HashKey) -> Self {
        Self { key, counter: 0, walked: [(0, 1); 2] }
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.counter = self.counter.wrapping_add(1);
        self.key.hash(self.counter, 0)
    }

    /// See [`golden_step`]; sizes seldom change.
    fn step(&mut self, parity: u16, size: u32) -> u32 {
        let [even, odd] = &mut self.walked;
        let walked = if parity == 0 { even } else { odd };
        if walked.0 != size {
            *walked = (size, golden_step(size));
        }
        walked.1
    }
}

/// A way through the even or the odd ports of a class, from a random one on.
#[derive(Debug, Clone, Copy)]
struct Walk {
    parity: u16,
    size: u32,
    at: u32,
    step: u32,
    left: u32,
}

impl Walk {
    /// `random`: from where.
    fn new(parity: u16, (size, left): (u32, u32), random: u32, rng: &mut PortRng) -> Self {
        // A fraction of the size (Lemire 2019).
        #[allow(clippy::cast_possible_truncation, reason = "less than the size")]
        let at = ((u64::from(random) * u64::from(size)) >> 32) as u32;
        Self { parity, size, at, step: rng.step(parity, size), left }
    }

    /// The next port's number among them.
    #[inline]
    fn next(&mut self) -> Option<u32> {
        self.left = self.left.checked_sub(1)?;
        let at = self.at;
        self.at += self.step;
        // The step is no longer than the size.
        if self.at >= self.size {
            self.at -= self.size;
        }
        Some(at)
    }
}

/// Candidates for the outside port of one connection, best first: the inside port, then those of its parity
/// (RFC 4787 REQ-4), then the others.
#[derive(Debug, Clone)]
pub struct Candidates<'a> {
    ranges: &'a [(u16, u16)],
    keep: Option<u16>,
    low: u16,
    high: u16,
    same: Walk,
    other: Walk,
}

impl<'a> Candidates<'a> {
    /// Candidates from `ranges` (inclusive, ascending, not overlapping) for an inside port.
    #[must_use]
    pub fn new(ranges: &'a [(u16, u16)], inside: u16, rng: &mut PortRng) -> Self {
        let random = rng.next();
        Self::beginning(ranges, inside, random, rng)
    }

    /// The same ones in the same order for the same `begin`, which nobody may be able to guess.
    #[must_use]
    pub fn beginning(ranges: &'a [(u16, u16)], inside: u16, begin: u64, rng: &mut PortRng) -> Self {
        let keep = ranges.iter().any(|(a, b)| (*a..=*b).contains(&inside)).then_some(inside);
        let class = if inside < CLASS_BOUNDARY {
            (0, CLASS_BOUNDARY - 1)
        } else {
            (CLASS_BOUNDARY, u16::MAX)
        };
        let parity = inside & 1;
        let sizes = |(low, high)| {
            (low, high, [parity, parity ^ 1].map(|parity| count(ranges, (low, high), parity)))
        };
        // A class that the ranges leave out falls back to all of them.
        let (low, high, [same, other]) = match sizes(class) {
            (.., [0, 0]) => sizes((0, u16::MAX)),
            sizes => sizes,
        };
        // Among half of the ports seven eighths of the attempts leave no larger gap than all among all; the rest
        // is for the others.
        let first = same.min(ATTEMPTS - other.min(ATTEMPTS / 8));
        let second = other.min(ATTEMPTS - first);
        #[allow(clippy::cast_possible_truncation, reason = "taken apart")]
        let (upper, lower) = ((begin >> 32) as u32, begin as u32);
        let same = Walk::new(parity, (same, first), upper, rng);
        let other = Walk::new(parity ^ 1, (other, second), lower, rng);
        Self { ranges, keep, low, high, same, other }
    }

    /// None but the inside port.
    pub const fn keep_only(&mut self) {
        self.same.left = 0;
        self.other.left = 0;
    }
}

impl Iterator for Candidates<'_> {
    type Item = u16;

    #[inline]
    fn next(&mut self) -> Option<u16> {
        if let Some(port) = self.keep.take() {
            return Some(port);
        }
        let (parity, n) = match self.same.next() {
            Some(n) => (self.same.parity, n),
            None => (self.other.parity, self.other.next()?),
        };
        nth(self.ranges, (self.low, self.high), parity, n)
    }
}

/// How far from one candidate to the next among so many. Steps of the golden ratio leave no large gap
/// (Knuth, TAOCP 3, 6.4): ports are often taken in one block, which steps of an unlucky random length
/// would walk through or come back to. One that shares no factor with the size visits every port once.
fn golden_step(size: u32) -> u32 {
    #[allow(clippy::cast_possible_truncation, reason = "less than the size")]
    let mut step = ((u64::from(size) * GOLDEN) >> 32) as u32 | 1;
    while size > 1 && gcd(step, size) != 1 {
        step += 2;
    }
    step
}

/// The first and the last port of this parity in each of the ranges, as far as they are in the class.
fn clipped(
    ranges: &[(u16, u16)],
    (low, high): (u16, u16),
    parity: u16,
) -> impl Iterator<Item = (u16, u16)> {
    ranges.iter().filter_map(move |(a, b)| {
        let (a, b) = ((*a).max(low), (*b).min(high));
        let first = a.checked_add((a ^ parity) & 1)?;
        (first <= b).then_some((first, b - ((b ^ parity) & 1)))
    })
}

fn count(ranges: &[(u16, u16)], class: (u16, u16), parity: u16) -> u32 {
    clipped(ranges, class, parity).map(|(a, b)| u32::from(b - a) / 2 + 1).sum()
}

fn nth(ranges: &[(u16, u16)], class: (u16, u16), parity: u16, mut n: u32) -> Option<u16> {
    for (a, b) in clipped(ranges, class, parity) {
        let length = u32::from(b - a) / 2 + 1;
        if n < length {
            return u16::try_from(u32::from(a) + 2 * n).ok();
        }
        n -= length;
    }
    None
}

const fn gcd(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;

    fn rng() -> PortRng {
        PortRng::new(HashKey::new(5, 6))
    }

    #[test]
    fn the_inside_port_comes_first() {
        let ranges = [(1024, 65535)];
        assert_eq!(Candidates::new(&ranges, 40_000, &mut rng()).next(), Some(40_000));
        assert_ne!(Candidates::new(&ranges, 500, &mut rng()).next(), Some(500));
        for (inside, all) in [(40_000, vec![40_000]), (500, vec![])] {
            let mut candidates = Candidates::new(&ranges, inside, &mut rng());
            candidates.keep_only();
            assert_eq!(candidates.collect::<Vec<_>>(), all);
        }
    }

    #[test]
    fn a_small_range_is_searched_completely() {
        let ranges = [(2000, 2002), (3000, 3096)];
        let seen: HashSet<u16> = Candidates::new(&ranges, 1, &mut rng()).collect();
        assert_eq!(seen.len(), 100);
        assert!(seen.iter().all(|p| (2000..=2002).contains(p) || (3000..=3096).contains(p)));
    }

    #[test]
    fn the_class_is_kept_when_it_can_be() {
        let ranges = [(600, 700), (2000, 3000)];
        assert!(Candidates::new(&ranges, 5, &mut rng()).all(|p| p < 1024));
        assert!(Candidates::new(&ranges, 5000, &mut rng()).all(|p| p >= 1024));
        assert!(Candidates::new(&[(2000, 3000)], 5, &mut rng()).next().is_some());
    }

    /// RFC 4787 REQ-4: RTP and RTCP of old programs are an even port and the next one.
    ///
    /// Rows: RFC 4787 REQ-4, RFC 7857 §8.
    #[test]
    fn those_of_the_same_parity_come_before_the_others() {
        for inside in [40_000, 40_001, 500, 501] {
            for ranges in
                [&[(600, 700), (2000, 2999)][..], &[(601, 601), (2000, 2040), (3001, 3002)]]
            {
                let all: Vec<u16> = Candidates::new(ranges, inside, &mut rng()).collect();
                let same = |port: &u16| port % 2 == inside % 2;
                let first = all.iter().take_while(|port| same(port)).count();
                assert!(all.iter().skip(first).all(|port| !same(port)), "{all:?}");
            }
        }
        let all: Vec<u16> = Candidates::new(&[(2000, 2099)], 40_001, &mut rng()).collect();
        assert!(all.len() == 100 && all.iter().take(50).all(|port| port % 2 == 1), "{all:?}");
        // One that is free is found whichever it is.
        for (ranges, inside) in [([(2000, 2000)], 5001), ([(2001, 2001)], 5000)] {
            assert_eq!(Candidates::new(&ranges, inside, &mut rng()).count(), 1);
        }
        // Ports of one parity alone are searched as thoroughly as a range of as many.
        let even: Vec<(u16, u16)> = (0..300).map(|n| (2000 + 2 * n, 2000 + 2 * n)).collect();
        for inside in [1, 2] {
            let seen: HashSet<u16> = Candidates::new(&even, inside, &mut rng()).collect();
            assert_eq!(seen.len(), 256, "{inside}");
        }
        assert_eq!(Candidates::new(&[(65_535, 65_535)], 5000, &mut rng()).next(), Some(65_535));
    }

    #[test]
    fn a_block_of_free_ports_is_found() {
        let ranges = [(20_000, 39_999)];
        let mut rng = rng();
        for first in (20_000..39_800).step_by(20) {
            let free = first..first + 200;
            assert!(Candidates::new(&ranges, 1, &mut rng).any(|port| free.contains(&port)));
        }
    }

    /// Rows: VPP `test_dynamic_edge_ports`.
    #[test]
    fn every_size_is_walked_completely() {
        for size in (1..=ATTEMPTS).chain([1000, 4096, 64_511, 64_512, 65_536]) {
            let step = golden_step(size);
            assert!(step <= size && gcd(step, size) == 1, "{size}: {step}");
        }
        for last in 2000..2000 + u16::try_from(ATTEMPTS).unwrap() {
            let ranges = [(2000, last)];
            let seen: HashSet<u16> = Candidates::new(&ranges, 1, &mut rng()).collect();
            assert_eq!(seen.len(), usize::from(last - 1999));
        }
    }

    /// RFC 6888 REQ-15, RFC 6056: who has seen many ports does not know the next one.
    #[test]
    fn a_port_tells_nothing_of_the_next_one() {
        let ranges = [(1024, 65_535)];
        let drawn = |key| -> Vec<i64> {
            let mut rng = PortRng::new(key);
            let first = |_| Candidates::new(&ranges, 1, &mut rng).next().unwrap();
            (0..4000).map(first).map(i64::from).collect()
        };
        let ports = drawn(HashKey::new(5, 6));
        let steps: Vec<i64> = ports.windows(2).map(|two| two[1] - two[0]).collect();
        // Of 4000 guesses among 64512 ports a 16th of one is right by chance: by the port before, by the
        // step before, by the port next to it.
        let right = |hits: usize| assert!(hits < 4, "{hits}");
        right(steps.iter().filter(|step| **step == 0).count());
        right(steps.windows(2).filter(|two| two[0] == two[1]).count());
        right(steps.iter().filter(|step| step.abs() == 1).count());
        let mut usual: HashMap<i64, usize> = HashMap::new();
        for step in &steps {
            *usual.entry(*step).or_default() += 1;
        }
        assert!(usual.values().all(|times| *times < 6), "a step that comes again and again");
        // And by another key, of which a bit differs.
        for key in [HashKey::new(5, 7), HashKey::new(4, 6)] {
            let other = drawn(key);
            right(ports.iter().zip(&other).filter(|(a, b)| a == b).count());
        }
    }

    #[test]
    fn no_ranges_no_ports() {
        assert_eq!(Candidates::new(&[], 5, &mut rng()).next(), None);
    }

    /// Rows: RFC 6888 REQ-15; RFC 7857 §9, RFC 6056, RFC 5452.
    #[test]
    fn ports_are_spread() {
        let ranges = [(1024, 65535)];
        let mut rng = rng();
        let mut buckets = [0u32; 16];
        for _ in 0..16_000 {
            let port = Candidates::new(&ranges, 1, &mut rng).next().unwrap();
            buckets[usize::from(port) >> 12] += 1;
        }
        assert!(buckets.iter().all(|n| (500..1500).contains(n)), "{buckets:?}");
    }
}
