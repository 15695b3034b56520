//! From which outside ports a destination is probably spoken to: a small count for each, so that the search
//! for a free port looks into the index of connections for few of its candidates.
//!
//! Towards one destination from one outside address the ports have places side by side, from a place on that a
//! keyed hash of both gives. A range of 20,000 ports is 10 KB of them, where the index has two cache lines for
//! each port.
//!
//! Hints, no more. Several destinations share places by chance, and a count changes a moment before or
//! after the entry: whoever found a port by it asks the table, which knows.
//!
//! Invariant: between changes the counts are those of the live entries with [`SNAT`](super::entry::SNAT), by their
//! reply tuples. A count that overflows into the next comes back from there when it goes down.

use std::io;
use std::sync::atomic::Ordering;

use super::key::Key;
use crate::hash::TableHash;
use crate::io::region::Region;
use crate::packet::types::ip_proto;
use crate::sync::atomic::AtomicU64;

/// Places for each connection there may be: of the ports that are free, four in ten look taken at the limit,
/// and one in nine at a quarter of it.
const PLACES_EACH: usize = 2;
/// Bits of a place. Sixteen connections meet at one once in 10^18.
const BITS: usize = 4;
const PLACES_A_WORD: usize = 64 / BITS;
/// The ports of a destination are never at one place.
const PORTS: usize = 1 << 16;

/// The counts.
#[derive(Debug)]
pub(super) struct Taken {
    words: Region,
    places: usize,
}

impl Taken {
    /// Of no connections yet, for so many at most.
    pub(super) fn new(limit: u32) -> io::Result<Self> {
        let places = (limit as usize * PLACES_EACH).max(PORTS).next_multiple_of(PLACES_A_WORD);
        Ok(Self { words: Region::anonymous(places / PLACES_A_WORD)?, places })
    }

    /// The ports towards the destination of which this is an answer, whatever port it is for.
    #[inline]
    pub(super) fn towards<K: Key>(&self, hash: &TableHash, reply: K) -> Ports<'_> {
        // The two ports of an ICMP query are one.
        let ports = match reply.proto() {
            ip_proto::ICMP | ip_proto::ICMPV6 => u64::from(u32::MAX) << 32,
            _ => u64::from(u16::MAX) << 32,
        };
        let towards = K::of_parts(reply.src(), reply.dst(), reply.rest() & !ports);
        // As a fraction of the places (Lemire 2019).
        #[allow(clippy::cast_possible_truncation, reason = "less than the number of places")]
        let first = (((towards.hash_with(hash) >> 32) * self.places as u64) >> 32) as usize;
        Ports { taken: self, first }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.words.words().iter().all(|word| word.load(Ordering::Relaxed) == 0)
    }
}

/// The outside ports towards one destination.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ports<'a> {
    taken: &'a Taken,
    first: usize,
}

impl<'a> Ports<'a> {
    #[inline]
    fn place(self, port: u16) -> Option<(&'a AtomicU64, usize)> {
        let mut place = self.first + usize::from(port);
        if place >= self.taken.places {
            place -= self.taken.places;
        }
        let word = self.taken.words.words().get(place / PLACES_A_WORD)?;
        Some((word, place % PLACES_A_WORD * BITS))
    }

    /// Whether a port probably has a connection, expired or not. False: it had none a moment ago.
    #[inline]
    pub(crate) fn has(self, port: u16) -> bool {
        self.place(port).is_some_and(|(word, shift)| {
            word.load(Ordering::Relaxed) >> shift & ((1 << BITS) - 1) != 0
        })
    }

    /// A connection begins.
    #[inline]
    pub(super) fn enter(self, port: u16) {
        if let Some((word, shift)) = self.place(port) {
            word.fetch_add(1 << shift, Ordering::Relaxed);
        }
    }

    /// A connection has ended.
    #[inline]
    pub(super) fn leave(self, port: u16) {
        if let Some((word, shift)) = self.place(port) {
            word.fetch_sub(1 << shift, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
impl<K: Key> super::ConnTable<K> {
    /// Whether the counts are those of the entries that live, while nobody changes any.
    pub(super) fn counts_its_ports(&self) -> bool {
        let again = Taken::new(self.limit).unwrap();
        let entries = (0..self.high_water()).filter_map(|index| self.raw(index));
        for raw in entries.filter(|raw| raw.new.flags & super::entry::SNAT != 0) {
            again.towards(&self.hash, raw.new.reply).enter(raw.new.reply.dst_port());
        }
        let counts = |taken: &Taken| -> Vec<u64> {
            taken.words.words().iter().map(|word| word.load(Ordering::Relaxed)).collect()
        };
        counts(&self.taken) == counts(&again)
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{Sample, for_both_families, tuple};
    use super::super::tuple::{Tuple, Zone};
    use super::super::tuple6::Tuple6;
    use super::*;
    use crate::hash::HashKey;

    for_both_families! {
        each_port_towards_a_destination_counts_for_itself
        the_identifier_of_a_query_is_one_port
    }

    fn answer<K: Sample>(server: u8, proto: u8, ports: (u16, u16)) -> K {
        K::new(K::server(server), K::outside(), ports.0, ports.1, Zone::OUTSIDE, proto)
    }

    fn each_port_towards_a_destination_counts_for_itself<K: Sample>() {
        let hash = TableHash::new(HashKey::new(1, 2));
        // Of several, so that the ports of some go round the end.
        for server in 0..20 {
            let taken = Taken::new(100).unwrap();
            let ports = taken.towards(&hash, answer::<K>(server, 17, (53, 4711)));
            let same = taken.towards(&hash, answer::<K>(server, 17, (53, 1)));
            for port in (0..=u16::MAX).step_by(3) {
                ports.enter(port);
            }
            assert!((0..=u16::MAX).all(|port| same.has(port) == (port % 3 == 0)));
            // Two at one place, of which one goes.
            ports.enter(3);
            ports.leave(3);
            ports.leave(6);
            assert!(same.has(3) && !same.has(6) && !same.has(5) && !same.has(7));
            for other in [answer::<K>(server, 17, (54, 0)), answer::<K>(server, 6, (53, 0))] {
                assert_ne!(taken.towards(&hash, other).first, ports.first);
            }
            for port in (0..=u16::MAX).step_by(3).filter(|port| *port != 6) {
                ports.leave(port);
            }
            assert!(taken.is_empty());
        }
    }

    fn the_identifier_of_a_query_is_one_port<K: Sample>() {
        let hash = TableHash::new(HashKey::new(1, 2));
        let taken = Taken::new(100).unwrap();
        for proto in [ip_proto::ICMP, ip_proto::ICMPV6] {
            let [first, other] =
                [7, 8].map(|id| taken.towards(&hash, answer::<K>(1, proto, (id, id))));
            assert_eq!(first.first, other.first);
        }
    }

    #[test]
    fn a_count_too_high_for_its_place_does_no_harm() {
        let hash = TableHash::new(HashKey::new(1, 2));
        let taken = Taken::new(1).unwrap();
        let ports = taken.towards(&hash, tuple::<Tuple>(1, 1));
        for _ in 0..100 {
            ports.enter(0);
            ports.enter(u16::MAX);
        }
        for _ in 0..100 {
            ports.leave(u16::MAX);
            ports.leave(0);
        }
        assert!(taken.is_empty());
    }
}
