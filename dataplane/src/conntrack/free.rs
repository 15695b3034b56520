//! Which entries are free, in lists by the inside address that they were for: what is written for every packet of
//! neighboring entries lies in one cache line, and two workers are not to write to the same.
//!
//! All that an endpoint sends is received by one worker, and what comes for it by another at most. So connections
//! of an inside address take entries out of blocks whose counters are whole cache lines. Addresses share a list by
//! chance, and where many entries are free, or all have been used, each takes what the others have left: that costs
//! time, and the other way would cost memory, as what was never used is in none.

use std::net::IpAddr;
use std::sync::atomic::Ordering;

use super::entry::DNAT;
use super::key::Key;
use super::table::{ConnTable, HEADER, STEP};
use super::words::deadline_of;

/// Entries of a block: 20 bytes of counters each, five cache lines for a direction.
const BLOCK: u32 = 16;
/// Two addresses have one list once in so many.
const LISTS: u32 = 16;

/// Of so many entries that are in use, one may be free before a list takes what others have left instead of a new
/// block.
const SPARE: u32 = 8;

/// The free entries.
#[derive(Debug, Default)]
pub(super) struct FreeList {
    lists: [List; LISTS as usize],
    /// Entries that are not free.
    pub(super) used: u32,
    /// Entries from the first on that there is memory for.
    pub(super) reserved: u32,
}

#[derive(Debug, Default, Clone, Copy)]
struct List {
    /// Number of the first free entry, plus one.
    head: u32,
    /// What is left of its last block: the next entry that was never used, and where the block ends.
    next: u32,
    end: u32,
}

impl FreeList {
    /// Of a table that has memory for so many entries.
    pub(super) fn new(reserved: u32) -> Self {
        Self { reserved, ..Self::default() }
    }
}

/// Which list the entry of a connection is of.
pub(super) fn list_of<K: Key>(original: K, reply: K, flags: u8) -> usize {
    let inside = if flags & DNAT == 0 { original.src() } else { reply.src() };
    let bits = match inside.into() {
        IpAddr::V4(address) => u64::from(address.to_bits()),
        IpAddr::V6(address) => {
            let [.., a, b, c, d, e, f, g, h] = address.octets();
            u64::from_be_bytes([a, b, c, d, e, f, g, h])
        }
    };
    // The golden ratio spreads what follows each other (Knuth, volume 3, 6.4).
    let [first, ..] = bits.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
    usize::from(first) % LISTS as usize
}

impl<K: Key> ConnTable<K> {
    /// Takes a free entry, of this list if there is one or a new block may be begun.
    pub(super) fn take_free(&self, list: usize) -> Option<u32> {
        let mut free = self.free.lock();
        let index = self.take_from(&mut free, list).or_else(|| {
            let idle = self.high_water.load(Ordering::Relaxed).saturating_sub(free.used);
            // What is left of each list's last block is nobody's to take before.
            let is_frugal = idle < free.used / SPARE + LISTS * BLOCK;
            if is_frugal && self.begin_block(&mut free, list) {
                return self.take_from(&mut free, list);
            }
            let left = (0..LISTS as usize).find_map(|other| self.take_from(&mut free, other));
            left.or_else(|| {
                self.begin_block(&mut free, list).then(|| self.take_from(&mut free, list))?
            })
        })?;
        free.used += 1;
        Some(index)
    }

    /// Takes entry `index`, which is free, into a list.
    pub(super) fn give_free(&self, index: u32, list: usize) {
        let mut free = self.free.lock();
        free.used -= 1;
        self.enlist(&mut free, index, list);
    }

    /// The same of one that was not used.
    pub(super) fn enlist(&self, free: &mut FreeList, index: u32, list: usize) {
        let (Some(list), Some(hot)) = (free.lists.get_mut(list), self.hot(index)) else { return };
        // No version: nobody who is late with a deadline for it writes here any more.
        hot.deadline.store(u64::from(list.head), Ordering::Relaxed);
        list.head = index + 1;
    }

    fn take_from(&self, free: &mut FreeList, list: usize) -> Option<u32> {
        let list = free.lists.get_mut(list)?;
        if let Some(index) = list.head.checked_sub(1) {
            let next = self.hot(index)?.deadline.load(Ordering::Relaxed);
            list.head = deadline_of(next);
            return Some(index);
        }
        let index = list.next;
        list.next = (index + 1).min(list.end);
        (index < list.end).then_some(index)
    }

    /// Gives a list the next entries that were never used. False: there are none, or no memory for them.
    fn begin_block(&self, free: &mut FreeList, list: usize) -> bool {
        let next = self.high_water.load(Ordering::Relaxed);
        if next >= self.limit || !self.has_memory(free, next) {
            return false;
        }
        let Some(list) = free.lists.get_mut(list) else { return false };
        // Steps of memory are whole blocks.
        (list.next, list.end) = (next, self.limit.min(next + BLOCK));
        self.high_water.store(list.end, Ordering::Relaxed);
        true
    }

    /// Whether there is memory for entry `fresh`, the first that was never used: of a table that gets
    /// it in steps, the next one is reserved.
    fn has_memory(&self, free: &mut FreeList, fresh: u32) -> bool {
        if fresh < free.reserved {
            return true;
        }
        let steps = fresh / STEP + 1;
        let words = HEADER + steps as usize * Self::words_of(STEP);
        let has = self.entries.reserve(words).is_ok();
        if has {
            free.reserved = steps * STEP;
        }
        has
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::SEEN_REPLY;
    use super::super::samples::{Sample, for_both_families};
    use super::*;
    use crate::conntrack::{Insert, NewConnection, Tuple, Tuple6, Zone};
    use crate::hash::HashKey;

    for_both_families! {
        addresses_take_entries_of_blocks_of_their_own
        addresses_by_turns_use_each_others_entries
        the_last_entries_are_for_everybody
    }

    const _: () = assert!(STEP.is_multiple_of(BLOCK));

    fn of<K: Sample>(inside: u8, port: u16) -> NewConnection<K> {
        let original = K::new(K::inside(inside), K::server(1), port, 80, Zone(1), 17);
        NewConnection {
            original,
            reply: original.reversed(Zone::OUTSIDE),
            // Never ended for another.
            flags: SEEN_REPLY,
            ..super::super::samples::connection::<K>(1, port, port, 100)
        }
    }

    fn enter<K: Sample>(table: &ConnTable<K>, new: &NewConnection<K>) -> Option<u32> {
        match table.insert(new, 0) {
            Insert::Inserted(id) => Some(id.index),
            Insert::Full => None,
            other => panic!("{other:?}"),
        }
    }

    fn addresses_take_entries_of_blocks_of_their_own<K: Sample>() {
        let list = |inside| list_of(of::<K>(inside, 1).original, of::<K>(inside, 1).reply, 0);
        let other = (2..).find(|other| list(*other) != list(1)).unwrap();
        let table: ConnTable<K> = ConnTable::new(1024, HashKey::new(1, 2)).unwrap();
        for round in 0..3 {
            let mut blocks = [Vec::new(), Vec::new()];
            for port in 1..=40 {
                for (inside, blocks) in [1, other].into_iter().zip(&mut blocks) {
                    blocks.push(enter(&table, &of(inside, port)).unwrap() / BLOCK);
                }
            }
            let [mine, others] = &blocks;
            assert!(mine.iter().all(|block| !others.contains(block)), "{round}: {blocks:?}");
            // What ends is used again, by its own.
            assert_eq!(table.high_water(), 6 * BLOCK);
            for port in 1..=40 {
                for inside in [1, other] {
                    let hit = table.lookup(of::<K>(inside, port).original, 0).unwrap();
                    assert!(table.remove(hit.id));
                }
            }
        }
    }

    /// No more memory is used than for the most connections that there were at once, and some.
    fn addresses_by_turns_use_each_others_entries<K: Sample>() {
        const EACH: u16 = 1000;
        let table: ConnTable<K> = ConnTable::new(65_536, HashKey::new(1, 2)).unwrap();
        for inside in 1..=50 {
            for port in 1..=EACH {
                assert!(enter(&table, &of(inside, port)).is_some());
            }
            for port in 1..=EACH {
                let hit = table.lookup(of::<K>(inside, port).original, 0).unwrap();
                assert!(table.remove(hit.id));
            }
        }
        let most = u32::from(EACH) + u32::from(EACH) / SPARE + 2 * LISTS * BLOCK;
        assert!(table.high_water() <= most, "{} of {most}", table.high_water());
    }

    fn the_last_entries_are_for_everybody<K: Sample>() {
        const LIMIT: u8 = 40;
        let table: ConnTable<K> = ConnTable::new(LIMIT.into(), HashKey::new(1, 2)).unwrap();
        let all = |table: &ConnTable<K>| -> Vec<u32> {
            (1..=LIMIT).map(|n| enter(table, &of(n, 1)).unwrap()).collect()
        };
        for _ in 0..3 {
            let mut indexes = all(&table);
            assert_eq!(enter(&table, &of(200, 2)), None);
            assert_eq!((table.len(), table.high_water()), (LIMIT.into(), LIMIT.into()));
            indexes.sort_unstable();
            assert_eq!(indexes, (0..LIMIT.into()).collect::<Vec<_>>());
            for n in 1..=LIMIT {
                assert!(table.remove(table.lookup(of::<K>(n, 1).original, 0).unwrap().id));
            }
        }
    }
}
