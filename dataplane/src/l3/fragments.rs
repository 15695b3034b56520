//! Fragments: later fragments have no ports, so they follow the first one of their datagram.
//!
//! The first fragment of a routed datagram enters the tuple it was translated by; later ones with
//! the same addresses, protocol and identification use it. A later fragment that overtakes the
//! first is dropped as `fragment_untracked`: nothing is held.
//!
//! A datagram is forgotten when its last fragment has passed, so only unfinished ones take room.
//!
//! Limits: [`MAX_DATAGRAMS`] at once, each for [`LIFETIME`]; when the table is full a new datagram
//! takes the place of another unfinished one, so that whoever leaves datagrams unfinished cannot
//! keep others out: fragments of a sound sender follow each other at once.

use std::time::Duration;

use dashmap::DashMap;

use crate::clock::Timestamp;
use crate::conntrack::{Key, Tuple, Zone};
use crate::nat::ip::{Ip, Tracked};

/// Datagrams followed at a time.
pub const MAX_DATAGRAMS: usize = 4096;

/// RFC 791 §3.2 recommends 15 s for reassembly, Linux `ipfrag_time` is 30 s.
pub const LIFETIME: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Datagram<A> {
    src: A,
    dst: A,
    proto: u8,
    id: u32,
    zone: Zone,
}

impl<A> Datagram<A> {
    fn of<P: Ip>(ip: &P, zone: Zone) -> Self
    where
        P::Tuple: Key<Addr = A>,
    {
        let (proto, id) = ip.fragment_of();
        Self { src: ip.src(), dst: ip.dst(), proto, id, zone }
    }
}

/// The table of one family. Shared by all workers: fragments of a datagram may come in by several
/// uplinks.
#[derive(Debug, Clone)]
pub struct Fragments<K: Key = Tuple> {
    table: DashMap<Datagram<K::Addr>, (K, Timestamp)>,
}

impl<K: Key> Default for Fragments<K> {
    fn default() -> Self {
        Self { table: DashMap::default() }
    }
}

impl<K: Key> Fragments<K> {
    /// Notes the tuple of a first fragment.
    pub(crate) fn follow<P: Ip<Tuple = K>>(&self, ip: &P, tuple: K, now: Timestamp)
    where
        K: Tracked,
    {
        if self.table.len() >= MAX_DATAGRAMS {
            let victim = self.table.iter().next().map(|entry| *entry.key());
            if let Some(victim) = victim {
                self.table.remove(&victim);
            }
        }
        self.table.insert(Datagram::of(ip, tuple.zone()), (tuple, now + LIFETIME));
    }

    /// Forgets the datagram of a last fragment that has passed.
    pub(crate) fn finish<P: Ip<Tuple = K>>(&self, ip: &P, zone: Zone)
    where
        K: Tracked,
    {
        self.table.remove(&Datagram::of(ip, zone));
    }

    /// The tuple of the first fragment of the datagram that this later one belongs to.
    #[must_use]
    pub(crate) fn tuple<P: Ip<Tuple = K>>(&self, ip: &P, zone: Zone, now: Timestamp) -> Option<K>
    where
        K: Tracked,
    {
        let entry = self.table.get(&Datagram::of(ip, zone))?;
        let (tuple, deadline) = *entry;
        (deadline > now).then_some(tuple)
    }

    /// Forgets datagrams whose time is over.
    pub fn expire(&self, now: Timestamp) {
        if !self.table.is_empty() {
            self.table.retain(|_, (_, deadline)| *deadline > now);
        }
    }

    /// Datagrams followed now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::packet::headers::{Ipv4, L4};

    fn fragment(id: u16) -> Ipv4 {
        Ipv4 {
            src: Ipv4Addr::new(10, 0, 0, 1),
            dst: Ipv4Addr::new(192, 0, 2, 1),
            proto: 17,
            ttl: 64,
            header_len: 20,
            total_len: 1500,
            frag_offset: 0,
            more_fragments: true,
            dont_fragment: false,
            id,
            l4: L4::Udp { src_port: 1, dst_port: 2 },
            l4_offset: 34,
        }
    }

    fn tuple() -> Tuple {
        Tuple::of(&fragment(0), Zone(1)).unwrap()
    }

    #[test]
    fn later_fragments_follow_the_first_for_a_while() {
        let table = Fragments::default();
        let start = Timestamp::from_secs(100);
        table.follow(&fragment(7), tuple(), start);
        assert_eq!(table.tuple(&fragment(7), Zone(1), start), Some(tuple()));
        assert_eq!(table.tuple(&fragment(8), Zone(1), start), None);
        assert_eq!(table.tuple(&fragment(7), Zone(2), start), None);
        assert_eq!(table.tuple(&fragment(7), Zone(1), start + LIFETIME), None);
        table.expire(start + LIFETIME);
        assert!(table.is_empty());
    }

    #[test]
    fn a_flood_of_first_fragments_is_bounded() {
        let table = Fragments::default();
        for id in 0..10_000 {
            table.follow(&fragment(id), tuple(), Timestamp::from_secs(1));
        }
        assert!(table.len() <= MAX_DATAGRAMS);
        let newest = table.tuple(&fragment(9_999), Zone(1), Timestamp::from_secs(1));
        assert_eq!(newest, Some(tuple()), "the flood keeps nobody out");
    }

    #[test]
    fn finished_datagrams_take_no_room() {
        let table = Fragments::default();
        for id in 0..10_000 {
            table.follow(&fragment(id), tuple(), Timestamp::from_secs(1));
            table.finish(&fragment(id), Zone(1));
        }
        assert!(table.is_empty());
    }
}
