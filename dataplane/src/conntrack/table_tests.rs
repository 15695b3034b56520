//! The table against a plain map, and its invariants, for both families.

use std::collections::HashMap;

use proptest::prelude::*;

use super::super::entry::{DNAT, Insert, NewConnection, SEEN_REPLY};
use super::super::expiry::Sweep;
use super::super::samples::{Sample, answered, connection, for_both_families, tuple};
use super::super::tuple6::Tuple6;
use super::*;
use crate::clock::Timestamp;

for_both_families! {
    both_directions_are_found
    tuples_are_unique
    an_expired_connection_does_not_stand_in_the_way
    full_is_said_and_room_comes_back
    a_table_full_of_expired_connections_takes_new_ones_at_once
    a_deadline_that_comes_late_is_not_the_next_connection_s
    a_connection_whose_packets_were_all_taken_back_ends
    the_limit_can_be_reached
    touch_counts_and_extends
    the_sweep_sees_everything
    two_threads_inserting_one_flow_make_one_entry
    a_way_belongs_to_one_direction_of_one_connection
    rules_of_neighbors_do_not_mix
    behaves_like_a_map
}

fn table<K: Sample>(limit: u32) -> ConnTable<K> {
    ConnTable::new(limit, HashKey::new(3, 4)).unwrap()
}

fn both_directions_are_found<K: Sample>() {
    let table = table::<K>(10);
    let new = connection::<K>(1, 1000, 2000, 100);
    let Insert::Inserted(id) = table.insert(&new, 0) else { panic!("not inserted") };
    let original = table.lookup(new.original, 99).unwrap();
    let reply = table.lookup(new.reply, 99).unwrap();
    assert_eq!((original.id, original.direction), (id, Direction::Original));
    assert_eq!((reply.id, reply.direction), (id, Direction::Reply));
    assert_eq!(original.other, new.reply);
    assert_eq!(reply.other, new.original);
    assert_eq!(table.lookup(new.original, 100), None);
}

fn tuples_are_unique<K: Sample>() {
    let table = table::<K>(10);
    table.insert(&connection::<K>(1, 1000, 2000, 100), 0);
    assert!(matches!(table.insert(&connection::<K>(1, 1000, 2001, 100), 0), Insert::Exists(_)));
    assert_eq!(table.insert(&connection::<K>(2, 1000, 2000, 100), 0), Insert::ReplyTaken);
    assert_eq!(table.len(), 1);
}

fn an_expired_connection_does_not_stand_in_the_way<K: Sample>() {
    let table = table::<K>(10);
    table.insert(&connection::<K>(1, 1000, 2000, 100), 0);
    assert!(matches!(table.insert(&connection::<K>(2, 1000, 2000, 300), 100), Insert::Inserted(_)));
    assert_eq!(table.len(), 1);
    assert_eq!(table.lookup(tuple::<K>(1, 1000), 100), None);
}

fn full_is_said_and_room_comes_back<K: Sample>() {
    let table = table::<K>(4);
    let ids: Vec<_> = (0..4u16).map(|n| table.insert(&answered::<K>(1, n, n, 100), 0)).collect();
    assert_eq!(table.insert(&answered::<K>(1, 9, 9, 100), 0), Insert::Full);
    assert_eq!(table.lookup(answered::<K>(1, 9, 9, 100).reply, 0), None, "neither tuple");
    let Insert::Inserted(id) = ids[2] else { panic!("not inserted") };
    assert!(table.remove(id));
    assert!(!table.remove(id), "a number kept too long is noticed");
    assert!(matches!(table.insert(&answered::<K>(1, 9, 9, 100), 0), Insert::Inserted(_)));
}

fn a_table_full_of_expired_connections_takes_new_ones_at_once<K: Sample>() {
    const LIMIT: u16 = 5000;
    let table = table::<K>(LIMIT.into());
    for n in 0..LIMIT {
        // The last tenth goes on.
        let deadline = if n < LIMIT / 10 * 9 { 100 } else { 1000 };
        table.insert(&answered::<K>(1, n, n, deadline), 0);
    }
    assert_eq!(table.insert(&answered::<K>(2, 0, 10_000, 500), 99), Insert::Full);
    let mut refused = 0;
    for n in 0..LIMIT / 10 * 9 {
        let inserted = table.insert(&answered::<K>(2, n, 10_000 + n, 500), 100);
        refused += u32::from(!matches!(inserted, Insert::Inserted(_)));
        assert!(table.len() <= LIMIT.into());
    }
    assert!(refused < 50, "{refused} while the round came by those that go on");
    for n in LIMIT / 10 * 9..LIMIT {
        assert!(table.lookup(tuple::<K>(1, n), 100).is_some(), "{n} had not expired");
    }
}

fn a_deadline_that_comes_late_is_not_the_next_connection_s<K: Sample>() {
    let table = table::<K>(1);
    table.insert(&connection::<K>(1, 1, 1, 100), 0);
    let hit = table.lookup(tuple::<K>(1, 1), 0).unwrap();
    let word = table.hot(0).unwrap().deadline.load(Ordering::Relaxed);
    assert!(table.remove(hit.id));
    table.insert(&connection::<K>(1, 2, 2, 200), 0);
    let next = table.hot(0).unwrap().deadline.load(Ordering::Relaxed);
    assert_eq!([word, next].map(deadline_of), [100, 200]);
    assert_ne!(word >> 32, next >> 32, "what `touch` compares");
    table.touch(&hit, 0, 0, 0, 432_000);
    assert_eq!(table.lookup(tuple::<K>(1, 2), 0).unwrap().deadline, 200);
}

fn a_connection_whose_packets_were_all_taken_back_ends<K: Sample>() {
    let table = table::<K>(4);
    let new = connection::<K>(1, 1, 1, 100);
    let noted = |packets: usize| {
        table.insert(&new, 0);
        let hit = table.lookup(new.original, 0).unwrap();
        for _ in 0..packets {
            table.touch(&hit, 100, 0, 0, 100);
        }
        hit.id
    };
    let id = noted(2);
    assert!(!table.take_back(id, 100));
    let entry = table.entries(0).next().unwrap();
    assert_eq!((entry.connection.packets, entry.connection.bytes), ([1, 0], [100, 0]));
    assert!(table.take_back(id, 100));
    assert!(table.is_empty() && table.lookup(new.reply, 0).is_none());
    assert!(!table.take_back(id, 100), "it has ended already");
    // One that was answered stays.
    let id = noted(1);
    let reply = table.lookup(new.reply, 0).unwrap();
    table.touch(&reply, 100, 0, SEEN_REPLY, 100);
    assert!(!table.take_back(id, 100));
    assert_eq!(table.len(), 1);
}

fn the_limit_can_be_reached<K: Sample>() {
    let limit = 65_536;
    let table = table::<K>(limit);
    for n in 0..limit {
        let [_, src, high, low] = n.to_be_bytes();
        let port = u16::from_be_bytes([high, low]);
        // Another server for each source: the outside port is free there.
        let mut new = connection::<K>(src, port, port, 100);
        new.reply = new.reply.with_src(K::server(src), 80);
        assert!(matches!(table.insert(&new, 0), Insert::Inserted(_)), "{n}");
    }
    assert_eq!(table.len(), limit);
}

fn touch_counts_and_extends<K: Sample>() {
    let table = table::<K>(4);
    let new = connection::<K>(1, 1, 1, 100);
    table.insert(&new, 0);
    let hit = table.lookup(new.reply, 0).unwrap();
    table.touch(&hit, 1500, 0, SEEN_REPLY, 200);
    let entry = table.entries(150).next().unwrap();
    assert_eq!(entry.connection.packets, [0, 1]);
    assert_eq!(entry.connection.bytes, [0, 1500]);
    assert_eq!(entry.connection.timeout.as_secs(), 50);
    assert_eq!(entry.connection.state, "REPLIED");
}

fn the_sweep_sees_everything<K: Sample>() {
    let table = table::<K>(10_000);
    for n in 0..10_000u16 {
        table.insert(&connection::<K>(1, n, n, u32::from(n % 2) * 1000 + 10), 0);
    }
    let mut sweep = Sweep::default();
    let mut expired = 0;
    for tenth in 0..40u64 {
        expired += sweep.step(&table, Timestamp::from_nanos(20_000_000_000 + tenth * 100_000_000));
    }
    assert_eq!(expired, 5_000);
    assert_eq!(table.len(), 5_000);
}

fn two_threads_inserting_one_flow_make_one_entry<K: Sample>() {
    let table = table::<K>(100_000);
    std::thread::scope(|scope| {
        for thread in 0..4u16 {
            let table = &table;
            scope.spawn(move || {
                for n in 0..10_000u16 {
                    // Each thread wants another outside port for the same inside flow.
                    let new = connection::<K>(1, n, n.wrapping_add(thread * 10_000), 100);
                    table.insert(&new, 0);
                }
            });
        }
    });
    assert_eq!(table.len(), table.entries(0).count().try_into().unwrap());
    for entry in table.entries(0) {
        let flow = entry.connection.original;
        let hit = table.lookup(tuple::<K>(1, flow.src_port), 0).unwrap();
        assert_eq!(hit.id, entry.id);
        assert_eq!(table.lookup(hit.other, 0).unwrap().id, entry.id);
    }
}

#[derive(Debug, Clone)]
enum Op {
    Insert(u8, u16, u16),
    Remove(u8, u16),
    Wait(u32),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..4u8, 0..6u16, 0..12u16).prop_map(|(s, p, o)| Op::Insert(s, p, o)),
        2 => (0..4u8, 0..6u16).prop_map(|(s, p)| Op::Remove(s, p)),
        1 => (0..60u32).prop_map(Op::Wait),
    ]
}

fn behaves_like_a_map<K: Sample>() {
    proptest!(|(ops in proptest::collection::vec(op(), 1..300))| {
        let table = table::<K>(16);
        let mut now = 0;
        let mut model: HashMap<(u8, u16), (u16, u32)> = HashMap::new();
        for op in ops {
            match op {
                Op::Insert(s, p, o) => {
                    let got = table.insert(&connection::<K>(s, p, o, now + 100), now);
                    model.retain(|_, (_, deadline)| *deadline > now);
                    if model.contains_key(&(s, p)) {
                        prop_assert!(matches!(got, Insert::Exists(_)));
                    } else if model.values().any(|(have, _)| *have == o) {
                        prop_assert_eq!(got, Insert::ReplyTaken);
                    } else if matches!(got, Insert::Inserted(_)) {
                        model.insert((s, p), (o, now + 100));
                    } else {
                        // Expired connections keep their entries until the sweep passes.
                        prop_assert_eq!(got, Insert::Full);
                        prop_assert_eq!(table.len(), 16);
                    }
                }
                Op::Remove(s, p) => {
                    if let Some(hit) = table.lookup(tuple::<K>(s, p), now) {
                        prop_assert!(table.remove(hit.id));
                        prop_assert!(model.remove(&(s, p)).is_some());
                    }
                }
                Op::Wait(secs) => now += secs,
            }
            for s in 0..4 {
                for p in 0..6 {
                    let want = model.get(&(s, p)).filter(|(_, deadline)| *deadline > now);
                    let got = table.lookup(tuple::<K>(s, p), now);
                    prop_assert_eq!(got.map(|hit| hit.other.dst_port()), want.map(|(o, _)| *o));
                }
            }
        }
        prop_assert!(table.counts_its_ports());
    });
}

fn a_way_belongs_to_one_direction_of_one_connection<K: Sample>() {
    let table = table::<K>(1);
    let (first, second) =
        (connection::<K>(1, 1000, 2000, 100), connection::<K>(2, 1000, 2001, 100));
    let Insert::Inserted(id) = table.insert(&first, 0) else { panic!("not inserted") };
    let there = table.lookup(first.original, 0).unwrap();
    let back = table.lookup(first.reply, 0).unwrap();
    table.set_way(&there, 7);
    assert_eq!((table.way(&there), table.way(&back)), (7, 0));
    table.set_way(&back, 8);
    assert_eq!((table.way(&there), table.way(&back)), (7, 8));
    assert_eq!(table.at(id, Direction::Reply), Some(back));
    assert!(table.remove(id));
    assert_eq!(table.at(id, Direction::Reply), None);

    // The only entry is another connection's now: it has no way, and is given none by who is late.
    assert!(matches!(table.insert(&second, 0), Insert::Inserted(_)));
    let next = table.lookup(second.original, 0).unwrap();
    assert_eq!((next.id.index, table.way(&next)), (id.index, 0));
    table.set_way(&there, 9);
    assert_eq!(table.way(&next), 0);
}

fn rules_of_neighbors_do_not_mix<K: Sample>() {
    let table = table::<K>(8);
    let with_rule = |n: u16| NewConnection::<K> {
        flags: DNAT,
        rule: u32::MAX - u32::from(n),
        ..connection::<K>(1, n, n, 100)
    };
    for n in 0..8 {
        assert!(matches!(table.insert(&with_rule(n), 0), Insert::Inserted(_)));
    }
    assert!(table.remove(table.lookup(with_rule(3).original, 0).unwrap().id));
    assert!(matches!(table.insert(&connection::<K>(2, 3, 3, 100), 0), Insert::Inserted(_)));
    for entry in table.entries(0) {
        let port = entry.connection.original.src_port;
        // Moving the deadline, which has a part of the rule beside it, moves nothing else.
        let tuple = if port == 3 { connection::<K>(2, 3, 3, 100) } else { with_rule(port) };
        let hit = table.lookup(tuple.original, 0).unwrap();
        assert!(table.touch(&hit, 1, 0, 0, u32::MAX));
        assert_eq!(table.lookup(tuple.reply, 0).unwrap().deadline, u32::MAX);
    }
    for entry in table.entries(0) {
        let port = entry.connection.original.src_port;
        assert_eq!(entry.rule, if port == 3 { 0 } else { with_rule(port).rule });
    }
}

#[test]
fn a_connection_takes_what_is_documented() {
    let bytes = |words: usize| words * size_of::<u64>();
    let limit = 262_144;
    assert_eq!(bytes(ConnTable::<Tuple>::words_of(limit)), 104 * limit as usize);
    assert_eq!(ConnTable::<Tuple>::entry_words(limit), ConnTable::<Tuple>::words_of(limit) + 1);
    assert_eq!(bytes(ConnTable::<Tuple6>::words_of(limit)), 168 * limit as usize);
    assert_eq!((size_of::<Tuple>(), size_of::<Tuple6>()), (16, 40));
}

#[test]
fn both_families_have_one_limit() {
    let room = Room::new(4);
    let key = HashKey::new(1, 2);
    let v4 = ConnTable::<Tuple>::within(&room, key).unwrap();
    let v6 = ConnTable::<Tuple6>::within(&room, key).unwrap();
    for n in 0..3 {
        assert!(matches!(v6.insert(&answered(1, n, n, 100), 0), Insert::Inserted(_)));
    }
    assert!(matches!(v4.insert(&answered(1, 0, 0, 200), 0), Insert::Inserted(_)));
    assert_eq!(v4.insert(&answered(1, 1, 1, 200), 0), Insert::Full);
    assert_eq!((v4.len(), v6.len(), v4.stats().full, v6.stats().full), (1, 3, 1, 0));
    assert!(v4.is_full() && v6.is_full());
    // What has expired in the one makes room in the other, once it is looked for.
    assert_eq!(v4.insert(&answered(1, 1, 1, 200), 100), Insert::Full);
    assert_eq!((v4.reclaim(100), v6.reclaim(100)), (0, 3));
    assert!(matches!(v4.insert(&answered(1, 1, 1, 200), 100), Insert::Inserted(_)));
    let stats = v4.stats().and(&v6.stats());
    assert_eq!((stats.entries, stats.limit, stats.inserted, stats.expired), (2, 4, 5, 3));
}
