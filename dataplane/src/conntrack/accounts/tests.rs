//! Booking, limits, and whose a connection is.

use super::super::entry::{DNAT, SNAT};
use super::super::samples::{Sample, connection, for_both_families, tuple};
use super::super::{ConnTable, Insert, NewConnection, Room, Tuple, Tuple6};
use super::*;
use crate::hash::HashKey;
use crate::packet::types::NetworkId;

for_both_families! {
    an_answer_and_an_end_are_booked
    an_endpoint_has_no_more_than_its_limit
    whose_a_connection_is
}

fn table<K: Key>(limit: u32) -> ConnTable<K> {
    ConnTable::within(&Room::new(limit), HashKey::new(1, 2)).unwrap()
}

fn payer<K: Key>(new: &NewConnection<K>) -> Payer {
    Payer::of(new.original, new.reply, new.flags)
}

/// From outside by a published port.
fn published<K: Sample>(server: u8, port: u16) -> NewConnection<K> {
    let original = K::new(K::server(1), K::outside(), port, 8080, Zone::OUTSIDE, 6);
    let reply = K::new(K::inside(server), K::server(1), 80, port, Zone(1), 6);
    NewConnection { original, reply, flags: DNAT, ..connection(1, 1, 1, 1000) }
}

fn whose_a_connection_is<K: Sample>() {
    let own = payer(&connection::<K>(1, 1, 1, 9));
    assert_eq!(own, payer(&connection::<K>(1, 2, 2, 9)));
    assert_ne!(own, payer(&connection::<K>(2, 1, 1, 9)));
    let pooled =
        |src| payer(&NewConnection { flags: SNAT | POOLED, ..connection::<K>(src, 1, 1, 9) });
    assert_eq!(pooled(1), pooled(2), "the network's");
    assert_ne!(pooled(1), own);
    let inbound = payer(&published::<K>(1, 5));
    assert_eq!(inbound, payer(&published::<K>(1, 6)), "whoever came");
    assert_ne!(inbound, own, "a crowd outside costs no connection of its own");
    assert_ne!(inbound, payer(&published::<K>(2, 5)));
}

fn an_answer_and_an_end_are_booked<K: Sample>() {
    let table = table::<K>(16);
    let new = connection::<K>(1, 1000, 2000, 100);
    let of = || table.accounts().of(&payer(&new));
    let Insert::Inserted(id) = table.insert(&new, 0) else { panic!() };
    table.insert(&connection::<K>(1, 1001, 2001, 100), 0);
    assert_eq!(of(), (2, 2));
    let reply = table.lookup(new.reply, 0).unwrap();
    for _ in 0..3 {
        let reply = table.refresh(&reply).unwrap();
        assert!(table.touch(&reply, 10, 0, SEEN_REPLY, 100));
        assert_eq!(of(), (2, 1), "once");
    }
    assert!(table.remove(id));
    assert_eq!(of(), (1, 1));
    assert!(table.expire(1, 100));
    assert_eq!((of(), table.accounts().len()), ((0, 0), 0), "forgotten");
    assert_eq!((table.accounts().peak(), table.accounts().heaviest()), (2, 0));
}

fn an_endpoint_has_no_more_than_its_limit<K: Sample>() {
    let table = table::<K>(16);
    table.accounts().limit(2, u32::MAX);
    let insert = |new: &NewConnection<K>| table.insert(new, 0);
    for port in [1, 2] {
        assert!(matches!(insert(&connection(1, port, port, 9)), Insert::Inserted(_)));
        assert!(matches!(insert(&published(1, port)), Insert::Inserted(_)));
    }
    assert_eq!(insert(&connection(1, 3, 3, 9)), Insert::Overdrawn(Overdrawn::Limit));
    assert_eq!(insert(&published(1, 3)), Insert::Overdrawn(Overdrawn::Limit));
    assert!(matches!(insert(&connection(2, 3, 3, 9)), Insert::Inserted(_)), "another's");
    assert_eq!((table.len(), table.accounts().heaviest()), (5, 2));
    assert!(table.expire(0, 9));
    assert!(matches!(insert(&connection(1, 4, 4, 9)), Insert::Inserted(_)), "one has ended");
}

#[test]
fn an_endpoint_begins_no_more_in_a_second_than_it_may() {
    let table = table::<Tuple>(16);
    table.accounts().limit(u32::MAX, 2);
    let begin = |port, now| table.insert(&connection(1, port, port, 99), now);
    for (port, now, ok) in
        [(1, 5, true), (2, 5, true), (3, 5, false), (3, 6, true), (4, 6, true), (5, 6, false)]
    {
        let inserted = begin(port, now);
        assert_eq!(matches!(inserted, Insert::Inserted(_)), ok, "{port} at {now}");
        assert!(ok || inserted == Insert::Overdrawn(Overdrawn::Rate));
    }
}

#[test]
fn a_handshake_is_open_until_its_end() {
    let open = |proto, flags| is_open(proto, Meta::new(1, 0, flags, NetworkId(1)));
    let tcp = [0, SEEN_REPLY, SEEN_REPLY | ASSURED].map(|flags| open(ip_proto::TCP, flags));
    assert_eq!(tcp, [true, true, false]);
    assert_eq!([0, SEEN_REPLY].map(|flags| open(ip_proto::UDP, flags)), [true, false]);
}

/// What is inserted and ended in any order leaves nothing booked.
#[test]
fn books_balance() {
    use proptest::prelude::*;
    proptest!(|(ops in proptest::collection::vec((0u8..4, 1u8..4, 1u16..12), 0..200))| {
        let table = table::<Tuple>(8);
        table.accounts().limit(5, u32::MAX);
        for (op, src, port) in ops {
            let new = connection::<Tuple>(src, port, u16::from(src) * 100 + port, 50);
            match op {
                0 | 1 => { table.insert(&new, 0); }
                2 => if let Some(hit) = table.lookup(tuple(src, port), 0) { table.remove(hit.id); },
                _ => if let Some(hit) = table.lookup(new.reply, 0) {
                    table.touch(&hit, 1, 0, SEEN_REPLY, 50);
                },
            }
            for src in 1..4 {
                let own = IpAddr::from(tuple::<Tuple>(src, 1).src());
                let theirs = |c: &&crate::engine::Connection| c.original.src == own;
                let listed: Vec<_> = table.entries(0).map(|entry| entry.connection).collect();
                let all = listed.iter().filter(theirs).count();
                let open = listed.iter().filter(theirs).filter(|c| c.state == "UNREPLIED").count();
                let booked = table.accounts().of(&payer(&connection::<Tuple>(src, 1, 1, 1)));
                prop_assert_eq!((booked.0 as usize, booked.1 as usize), (all, open));
            }
        }
    });
}
