//! Who goes, and who never does.

use super::super::entry::SEEN_REPLY;
use super::super::samples::{Sample, connection, for_both_families};
use super::super::{ConnTable, Insert, Overdrawn, Room, Tuple, Tuple6};
use super::*;
use crate::hash::HashKey;

for_both_families! {
    a_block_of_conversations_hides_no_flood
    a_conversation_never_goes
    a_flood_at_the_limit_finds_room_in_the_index_too
    a_flood_makes_room_for_others
    a_flood_makes_room_for_itself
    a_port_that_a_flood_holds_is_given_to_another
    nobody_goes_for_one_that_may_have_no_more
    nobody_pays_for_one_that_has_more
}

fn table<K: Key>(limit: u32) -> ConnTable<K> {
    ConnTable::within(&Room::new(limit), HashKey::new(1, 2)).unwrap()
}

/// `count` connections of `src`, answered or not.
fn fill<K: Sample>(table: &ConnTable<K>, src: u8, count: u16, answered: bool) {
    for n in 0..count {
        let port = 1000 * u16::from(src) + n;
        let new = connection::<K>(src, port, port, 100);
        let inserted = table.insert(&new, 0);
        assert!(matches!(inserted, Insert::Inserted(_)), "{src} {n}: {inserted:?}");
        if answered {
            let hit = table.lookup(new.reply, 0).unwrap();
            assert!(table.touch(&hit, 1, 0, SEEN_REPLY, 100));
        }
    }
}

fn count<K: Sample>(table: &ConnTable<K>, src: u8) -> usize {
    let of = K::inside(src).into();
    table.entries(0).filter(|entry| entry.connection.original.src == of).count()
}

fn a_flood_makes_room_for_others<K: Sample>() {
    let table = table::<K>(64);
    fill(&table, 2, 4, true);
    fill(&table, 1, 60, false);
    fill(&table, 3, 10, false);
    assert_eq!((count(&table, 1), count(&table, 2), count(&table, 3)), (50, 4, 10));
    assert_eq!((table.stats().evicted, table.stats().full), (10, 0));
}

fn a_flood_makes_room_for_itself<K: Sample>() {
    let table = table::<K>(16);
    fill(&table, 2, 8, false);
    fill(&table, 1, 8, false);
    assert!(matches!(table.insert(&connection(1, 9, 9, 100), 0), Insert::Inserted(_)));
    assert_eq!((count(&table, 1), count(&table, 2)), (8, 8), "the other has no more of them");
}

fn nobody_pays_for_one_that_has_more<K: Sample>() {
    let table = table::<K>(16);
    fill(&table, 2, 3, false);
    fill(&table, 1, 13, true);
    let more = connection::<K>(1, 9, 9, 100);
    assert_eq!(table.insert(&more, 0), Insert::Full);
    assert_eq!((count(&table, 1), count(&table, 2), table.stats().evicted), (13, 3, 0));
}

fn a_block_of_conversations_hides_no_flood<K: Sample>() {
    let table = table::<K>(1000);
    fill(&table, 2, 500, true);
    fill(&table, 1, 500, false);
    fill(&table, 3, 250, false);
    assert_eq!((count(&table, 1), count(&table, 2), table.stats().full), (250, 500, 0));
}

/// Where what is full is not the table, but the few places that a tuple can be in.
fn a_flood_at_the_limit_finds_room_in_the_index_too<K: Sample>() {
    const LIMIT: u16 = 1000;
    let table = table::<K>(LIMIT.into());
    for port in 0..20 * LIMIT {
        let inserted = table.insert(&connection::<K>(1, port, port, 100), 0);
        assert!(matches!(inserted, Insert::Inserted(_)), "{port}: {inserted:?}");
    }
    // In a thousand or so, one finds its places taken.
    assert_eq!(table.stats().full, 0);
    assert_eq!(table.stats().evicted, u64::from(20 * LIMIT) - u64::from(table.len()));
    assert!(table.len() > u32::from(LIMIT) / 10 * 9, "{}", table.len());
}

/// Neither for itself nor for anybody: it would have been refused all the same.
fn nobody_goes_for_one_that_may_have_no_more<K: Sample>() {
    let table = table::<K>(16);
    table.accounts().limit(6, 4);
    for second in [0, 1] {
        for (src, count) in [(1, 2), (2, 2), (3, 4)] {
            for n in 0..count {
                let port = 1000 * u16::from(src) + 100 * second + n;
                table.insert(&connection(src, port, port, 100), second.into());
            }
        }
    }
    assert_eq!(table.len(), 14, "3 has its six");
    fill(&table, 4, 2, false);
    let more = |src, now| table.insert(&connection::<K>(src, 9, 9, 100), now);
    assert_eq!(more(3, 2), Insert::Overdrawn(Overdrawn::Limit));
    assert_eq!((table.len(), table.stats().evicted), (16, 0));
    table.accounts().limit(16, 4);
    for n in 0..4 {
        assert!(matches!(
            table.insert(&connection(4, 50 + n, 50 + n, 100), 3),
            Insert::Inserted(_)
        ));
    }
    let evicted = table.stats().evicted;
    assert_eq!(more(4, 3), Insert::Overdrawn(Overdrawn::Rate));
    assert_eq!(table.stats().evicted, evicted);
}

fn a_conversation_never_goes<K: Sample>() {
    let table = table::<K>(16);
    fill(&table, 1, 16, true);
    assert_eq!(table.insert(&connection::<K>(2, 9, 9, 100), 0), Insert::Full);
    assert_eq!(count(&table, 1), 16);
}

fn a_port_that_a_flood_holds_is_given_to_another<K: Sample>() {
    let table = table::<K>(64);
    fill(&table, 1, 5, false);
    let held = connection::<K>(1, 1000, 1000, 100);
    let wanted = connection::<K>(2, 1000, 1000, 100);
    assert_eq!(table.insert(&wanted, 0), Insert::ReplyTaken);
    let again = connection::<K>(1, 2000, 1000, 100);
    assert!(!table.evict_from(table.hash(again.reply), again.reply, &again), "its own");
    assert!(table.evict_from(table.hash(wanted.reply), wanted.reply, &wanted));
    assert!(table.lookup(held.original, 0).is_none());
    assert!(matches!(table.insert(&wanted, 0), Insert::Inserted(_)));
    // One that has been answered stays.
    let other = connection::<K>(1, 1001, 1001, 100);
    let hit = table.lookup(other.reply, 0).unwrap();
    assert!(table.touch(&hit, 1, 0, SEEN_REPLY, 100));
    let wanted = connection::<K>(2, 1001, 1001, 100);
    assert!(!table.evict_from(table.hash(wanted.reply), wanted.reply, &wanted));
}

#[test]
fn one_family_makes_room_for_the_other() {
    let room = Room::new(16);
    let v4 = ConnTable::<Tuple>::within(&room, HashKey::new(1, 2)).unwrap();
    let v6 = ConnTable::<Tuple6>::within(&room, HashKey::new(3, 4)).unwrap();
    fill(&v6, 1, 16, false);
    let new = connection::<Tuple>(2, 9, 9, 100);
    assert_eq!(v4.insert(&new, 0), Insert::Full);
    assert!(v6.evict_for(&new));
    assert!(matches!(v4.insert(&new, 0), Insert::Inserted(_)));
    assert_eq!(v4.stats().and(&v6.stats()).evicted, 1);
}
