//! A copy of a table to try things out on, taken while workers go on.

use std::io;
use std::sync::atomic::Ordering;

use super::change::set_rule;
use super::entry::SNAT;
use super::key::Key;
use super::room::Room;
use super::table::ConnTable;
use super::tuple::Direction;
use super::view::Raw;
use super::words::{Meta, deadline_word, way_word};
use crate::io::region::Region;

impl<K: Key> ConnTable<K> {
    /// A copy in anonymous memory, in a room that is not shared with this one. Each connection in it is one
    /// that was here as a whole at some moment of the copying; a place in the index that leads to none
    /// is as good as an empty one.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub(crate) fn copy(&self, room: &Room) -> io::Result<Self> {
        let entries = Region::anonymous(Self::entry_words(self.limit))?;
        let copy = self.like(entries, room)?;
        let high = self.high_water();
        for index in 0..high {
            copy.put(index, self.raw(index).filter(|_| room.take()).as_ref());
        }
        copy.high_water.store(high, Ordering::Relaxed);
        copy.free.lock().reserved = self.limit;
        self.copy_index(&copy);
        Ok(copy)
    }

    /// Makes entry `index`, which is zero, what was read, or a free one.
    fn put(&self, index: u32, raw: Option<&Raw<K>>) {
        let Some(hot) = self.hot(index) else { return };
        let mut free = self.free.lock();
        let Some(Raw { version, new, counters, sides }) = raw else {
            self.enlist(&mut free, index, 0);
            return;
        };
        free.used += 1;
        new.original.store(hot.original);
        new.reply.store(hot.reply);
        hot.deadline.store(deadline_word(*version, new.deadline), Ordering::Relaxed);
        set_rule::<K>(&hot, new.rule);
        if new.flags & SNAT != 0 {
            self.ports_towards(new.reply).enter(new.reply.dst_port());
        }
        for (direction, side) in [Direction::Original, Direction::Reply].into_iter().zip(sides) {
            let (end, ack, rest) = side.to_words();
            hot.way(direction).store(way_word(0, rest), Ordering::Relaxed);
            if let Some(cold) = self.cold(index, direction) {
                cold.set_counters(counters.get(direction.index()).copied().unwrap_or_default());
                cold.set_numbers(end, ack);
            }
        }
        let meta = Meta::new(*version, new.state, new.flags, new.network);
        hot.meta.store(meta.0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{Sample, answered, for_both_families, tuple};
    use super::*;
    use crate::conntrack::{Insert, Tuple, Tuple6};
    use crate::hash::HashKey;

    fn a_copy_has_the_same_connections_and_a_life_of_its_own<K: Sample>() {
        let table: ConnTable<K> = ConnTable::new(16, HashKey::new(1, 2)).unwrap();
        let new = |n: u8| answered::<K>(n, 1000, 2000 + u16::from(n), 100);
        let enter = |table: &ConnTable<K>, n: u8| table.insert(&new(n), 1);
        let mut ids = Vec::new();
        for n in 0..10 {
            let Insert::Inserted(id) = enter(&table, n) else { panic!("{n}") };
            ids.push(id);
        }
        for n in [2, 5] {
            assert!(table.remove(ids[n]));
        }
        let list = |table: &ConnTable<K>| {
            table.entries(1).map(|entry| entry.connection).collect::<Vec<_>>()
        };
        let before = list(&table);
        let copy = table.copy(&Room::new(16)).unwrap();
        assert_eq!((list(&copy), copy.len()), (before.clone(), 8));
        assert!(copy.counts_its_ports() && copy.ports_towards(new(0).reply).has(2000));
        for n in [0, 9] {
            let hit = copy.lookup(tuple(n, 1000), 1).unwrap();
            assert_eq!(Some(hit), table.lookup(tuple(n, 1000), 1));
        }
        assert_eq!(copy.lookup(tuple(2, 1000), 1), None);
        // What happens to the copy is nothing to the table: it fills up, and loses one.
        for n in 20..28 {
            assert!(matches!(enter(&copy, n), Insert::Inserted(_)), "{n}");
        }
        assert_eq!(enter(&copy, 40), Insert::Full);
        assert!(copy.remove(ids[0]));
        assert_eq!((list(&table), table.len()), (before, 8));
        assert_eq!((table.stats().full, copy.stats().full), (0, 1));
    }

    for_both_families! { a_copy_has_the_same_connections_and_a_life_of_its_own }
}
