//! Endpoint-independent mappings: which outside port an inside one has, whomever it speaks to (RFC 4787
//! REQ-1), for networks that ask for it.
//!
//! Such an outside port is one inside port's alone, as another's connection to the same server could not
//! be told from it. A mapping lives as long as a connection that goes by it; which those are follows
//! from the entries alone, so that it is there again after a restart.
//!
//! Invariants: a mapping counts the live entries with [`MAPPED`](super::entry::MAPPED) that go by it, and
//! reservations under way; its outside port has no other; an inside address has no more than its share.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

use super::key::Key;
use super::tuple::Zone;

/// An inside port, and the address that it speaks from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Inside {
    zone: Zone,
    proto: u8,
    address: IpAddr,
    port: u16,
    from: IpAddr,
}

impl Inside {
    /// Of a connection that begins so and speaks from this address.
    pub(crate) fn of<K: Key>(original: K, from: K::Addr) -> Self {
        Self {
            zone: original.zone(),
            proto: original.proto(),
            address: original.src().into(),
            port: original.src_port(),
            from: from.into(),
        }
    }

    const fn outside(self, port: u16) -> Outside {
        Outside { proto: self.proto, address: self.from, port }
    }

    const fn owner(self) -> Owner {
        (self.zone, self.proto, self.address, self.from)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Outside {
    proto: u8,
    address: IpAddr,
    port: u16,
}

/// An inside address at an outside one, by protocol: each has ports of its own.
type Owner = (Zone, u8, IpAddr, IpAddr);

#[derive(Debug, Clone, Copy)]
struct Mapping {
    port: u16,
    uses: u32,
}

/// How many of the outside ports that an inside address may have it has.
#[derive(Debug, Default, Clone, Copy)]
struct Share {
    has: u32,
    /// Zero: nobody has asked for one since the start, and it has only those of an earlier run.
    of: u32,
}

impl Share {
    const fn is_fuller_than(self, other: Self) -> bool {
        self.has as u64 * other.of as u64 > other.has as u64 * self.of as u64
            || other.of == 0 && self.of > 0
    }

    const fn packed(self) -> u64 {
        (self.has as u64) << 32 | self.of as u64
    }

    #[allow(clippy::cast_possible_truncation, reason = "taken apart")]
    const fn unpacked(word: u64) -> Self {
        Self { has: (word >> 32) as u32, of: word as u32 }
    }
}

/// The mappings. Shared by the tables of both families. Inside ports are chosen by who sends, so the maps have
/// std's keyed hash.
#[derive(Debug, Default)]
pub(crate) struct Mappings {
    /// Locked before the others.
    inside: DashMap<Inside, Mapping>,
    outside: DashMap<Outside, ()>,
    shares: DashMap<Owner, Share>,
    /// The fullest [`Share`] since the start.
    fullest: AtomicU64,
    /// How many there are: none, mostly.
    count: AtomicU32,
}

impl Mappings {
    /// Whether an outside port is somebody's alone.
    #[inline]
    pub(crate) fn has(&self, proto: u8, address: impl Into<IpAddr>, port: u16) -> bool {
        self.count.load(Ordering::Relaxed) != 0
            && self.outside.contains_key(&Outside { proto, address: address.into(), port })
    }

    /// The outside port of an inside one, until [`Mappings::release`]; for one that has none, the first
    /// of `candidates` that is nobody's. `None`: there is none, or the inside address has `share` already.
    pub(crate) fn reserve(
        &self,
        inside: Inside,
        share: u32,
        mut candidates: impl Iterator<Item = u16>,
    ) -> Option<u16> {
        match self.inside.entry(inside) {
            Entry::Occupied(mut mapping) => {
                mapping.get_mut().uses += 1;
                Some(mapping.get().port)
            }
            Entry::Vacant(place) => {
                if self.shares.get(&inside.owner()).is_some_and(|own| own.has >= share) {
                    return None;
                }
                let port = candidates.find(|port| self.claim(inside, *port, share))?;
                place.insert(Mapping { port, uses: 1 });
                Some(port)
            }
        }
    }

    /// A connection goes by its mapping. False: its outside port is another's, or its inside one has
    /// another, which no run of ours can have written.
    pub(super) fn enter(&self, inside: Inside, port: u16) -> bool {
        match self.inside.entry(inside) {
            Entry::Occupied(mut mapping) => {
                let same = mapping.get().port == port;
                mapping.get_mut().uses += u32::from(same);
                same
            }
            Entry::Vacant(place) => {
                let claimed = self.claim(inside, port, 0);
                if claimed {
                    place.insert(Mapping { port, uses: 1 });
                }
                claimed
            }
        }
    }

    /// `share`: what the inside address may have, if that is known.
    fn claim(&self, inside: Inside, port: u16, share: u32) -> bool {
        let Entry::Vacant(place) = self.outside.entry(inside.outside(port)) else { return false };
        place.insert(());
        let mut own = self.shares.entry(inside.owner()).or_default();
        own.has += 1;
        own.of = if share > 0 { share } else { own.of };
        self.note(*own);
        drop(own);
        self.count.fetch_add(1, Ordering::Relaxed);
        true
    }

    fn note(&self, share: Share) {
        let fuller =
            |known: u64| share.is_fuller_than(Share::unpacked(known)).then(|| share.packed());
        // An error says that it is not fuller.
        let _ = self.fullest.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fuller);
    }

    /// Outside ports of the inside address that has the largest part of those that it may have: how many, at most
    /// since the start, and how many it may have. `None`: nobody has had any.
    pub(crate) fn uses(&self) -> Option<((u32, u32), u32)> {
        let peak = Share::unpacked(self.fullest.load(Ordering::Relaxed));
        let fuller = |a: Share, b: Share| if b.is_fuller_than(a) { b } else { a };
        let now = self.shares.iter().map(|own| *own).fold(Share::default(), fuller);
        let of = if now.of > 0 { now.of } else { peak.of };
        // Ranges differ by uplink: the peak as a part of this one.
        let scaled = u64::from(peak.has) * u64::from(of) / u64::from(peak.of).max(1);
        let peak_has = u32::try_from(scaled).unwrap_or(of);
        (peak.of > 0).then_some(((now.has.min(of), peak_has.min(of)), of))
    }

    /// A connection has ended, or a reservation is over.
    pub(crate) fn release(&self, inside: Inside) {
        self.inside.remove_if_mut(&inside, |_, mapping| {
            mapping.uses = mapping.uses.saturating_sub(1);
            if mapping.uses > 0 {
                return false;
            }
            self.outside.remove(&inside.outside(mapping.port));
            self.shares.remove_if_mut(&inside.owner(), |_, own| {
                own.has = own.has.saturating_sub(1);
                own.has == 0
            });
            self.count.fetch_sub(1, Ordering::Relaxed);
            true
        });
    }

    /// The same mappings, to try things out on.
    pub(super) fn copy(&self) -> Self {
        Self {
            inside: self.inside.clone(),
            outside: self.outside.clone(),
            shares: self.shares.clone(),
            fullest: AtomicU64::new(self.fullest.load(Ordering::Relaxed)),
            count: AtomicU32::new(self.count.load(Ordering::Relaxed)),
        }
    }

    #[cfg(test)]
    pub(super) fn sizes(&self) -> [usize; 4] {
        let count = self.count.load(Ordering::Relaxed) as usize;
        [self.inside.len(), self.outside.len(), self.shares.len(), count]
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::{MAPPED, NewConnection};
    use super::super::samples::{Sample, connection, for_both_families, tuple};
    use super::super::{ConnTable, Insert, Room, Tuple, Tuple6};
    use super::*;
    use crate::hash::HashKey;

    fn inside<K: Sample>(n: u8, port: u16) -> Inside {
        Inside::of::<K>(tuple(n, port), K::outside())
    }

    fn who_has_a_port_keeps_it_while_it_is_used<K: Sample>() {
        let mappings = Mappings::default();
        let first = inside::<K>(1, 1000);
        assert_eq!(mappings.reserve(first, 9, [1000, 1001].into_iter()), Some(1000));
        assert_eq!(mappings.reserve(first, 9, [2000].into_iter()), Some(1000), "the same again");
        // Another's, of the same number, gets the next; and one that finds none gets none.
        let second = inside::<K>(2, 1000);
        assert_eq!(mappings.reserve(second, 9, [1000, 1001].into_iter()), Some(1001));
        assert_eq!(mappings.reserve(inside::<K>(3, 1), 9, [1000, 1001].into_iter()), None);
        assert!(mappings.has(tuple::<K>(1, 1000).proto(), K::outside(), 1001));
        assert!(!mappings.has(1, K::outside(), 1001), "of another protocol");
        mappings.release(first);
        assert_eq!(mappings.reserve(inside::<K>(3, 1), 9, [1000].into_iter()), None);
        mappings.release(first);
        assert_eq!(mappings.reserve(inside::<K>(3, 1), 9, [1000].into_iter()), Some(1000));
        mappings.release(inside::<K>(3, 1));
        mappings.release(second);
        mappings.release(second);
        assert_eq!(mappings.sizes(), [0; 4]);
    }

    fn an_inside_address_has_no_more_than_its_share<K: Sample>() {
        let mappings = Mappings::default();
        for port in 1..=3 {
            assert_eq!(mappings.reserve(inside::<K>(1, port), 3, port..), Some(port));
        }
        assert_eq!(mappings.reserve(inside::<K>(1, 4), 3, 4..), None);
        let of_icmp = Inside { proto: 1, ..inside::<K>(1, 4) };
        assert_eq!(
            mappings.reserve(of_icmp, 3, 4..),
            Some(4),
            "each protocol has ports of its own"
        );
        assert_eq!(mappings.reserve(inside::<K>(1, 3), 3, 4..), Some(3), "what it has it may use");
        assert_eq!(mappings.reserve(inside::<K>(2, 4), 3, 1..), Some(4));
        mappings.release(inside::<K>(1, 1));
        assert_eq!(mappings.reserve(inside::<K>(1, 4), 3, 5..), Some(5));
        // The fullest, and what it may have; of who is gone, the peak alone.
        let mappings = Mappings::default();
        assert_eq!(mappings.uses(), None);
        for port in 1..=3 {
            assert_eq!(mappings.reserve(inside::<K>(1, port), 4, port..), Some(port));
        }
        assert_eq!(mappings.reserve(inside::<K>(2, 9), 100, 9..), Some(9));
        assert_eq!(mappings.uses(), Some(((3, 3), 4)));
        for port in 1..=3 {
            mappings.release(inside::<K>(1, port));
        }
        assert_eq!(mappings.uses(), Some(((1, 75), 100)), "three quarters of it");
        mappings.release(inside::<K>(2, 9));
        assert_eq!(mappings.uses(), Some(((0, 3), 4)));
    }

    fn mappings_live_as_long_as_their_connections<K: Sample>() {
        let room = Room::new(16);
        let table: ConnTable<K> = ConnTable::within(&room, HashKey::new(1, 2)).unwrap();
        let enter = |server: u16, outside: u16, mapped: bool| {
            let new: NewConnection<K> = connection(1, 1000, outside, 100);
            let flags = if mapped { new.flags | MAPPED } else { new.flags };
            let to = |tuple: K| tuple.with_dst(tuple.dst(), server);
            let from = |tuple: K| {
                K::new(
                    tuple.src(),
                    tuple.dst(),
                    server,
                    tuple.dst_port(),
                    tuple.zone(),
                    tuple.proto(),
                )
            };
            let (original, reply) = (to(new.original), from(new.reply));
            let new = NewConnection { original, reply, flags, ..new };
            match table.insert(&new, 1) {
                Insert::Inserted(id) => id,
                other => panic!("{other:?}"),
            }
        };
        let ids = [enter(80, 2000, true), enter(81, 2000, true), enter(82, 2000, false)];
        assert_eq!(room.mappings().sizes(), [1; 4]);
        // One that contradicts is entered, and has no part in it.
        let odd = enter(83, 2001, true);
        assert!(table.remove(odd) && table.remove(ids[0]) && table.remove(ids[2]));
        assert_eq!(room.mappings().sizes(), [1; 4]);
        assert!(table.remove(ids[1]));
        assert_eq!(room.mappings().sizes(), [0; 4]);
    }

    for_both_families! {
        an_inside_address_has_no_more_than_its_share
        mappings_live_as_long_as_their_connections
        who_has_a_port_keeps_it_while_it_is_used
    }
}
