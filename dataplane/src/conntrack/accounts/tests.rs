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
    what_is_booked_goes_where_the_address_goes
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
    let of = || of(&table, &new);
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
    assert_eq!((of(), table.accounts().len()), ((0, 0), (0, 1)), "forgotten");
    table.accounts().forget_idle(1);
    assert_eq!(table.accounts().len(), (0, 0), "in the next second");
    assert_eq!((table.accounts().peak(), table.accounts().heaviest()), (2, 0));
}

/// Connections of whoever pays for this one, and how many of them nobody has answered.
fn of<K: Key>(table: &ConnTable<K>, new: &NewConnection<K>) -> (u32, u32) {
    let standing = table.accounts().standing(&payer(new));
    (standing.connections, standing.open)
}

fn mac(n: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, n])
}

fn owner<K: Sample>(address: u8, endpoint: u8) -> ((Zone, IpAddr), Mac) {
    ((Zone(1), K::inside(address).into()), mac(endpoint))
}

fn an_endpoint_has_no_more_than_its_limit<K: Sample>() {
    let table = table::<K>(32);
    table.accounts().limit(8, u32::MAX);
    let insert = |new: &NewConnection<K>| table.insert(new, 0);
    for port in 1..=6 {
        assert!(matches!(insert(&published(1, port)), Insert::Inserted(_)));
    }
    assert_eq!(insert(&published(1, 7)), Insert::Overdrawn(Overdrawn::Limit), "of a crowd outside");
    for port in [1, 2] {
        assert!(matches!(insert(&connection(1, port, port, 9)), Insert::Inserted(_)));
    }
    assert_eq!(insert(&connection(1, 3, 3, 9)), Insert::Overdrawn(Overdrawn::Limit), "of both");
    assert!(matches!(insert(&connection(2, 3, 3, 9)), Insert::Inserted(_)), "another's");
    assert_eq!((table.len(), table.accounts().heaviest()), (9, 8));
    let own = table.lookup(tuple(1, 1), 0).unwrap();
    assert!(table.expire(own.id.index, 9));
    assert!(matches!(insert(&connection(1, 4, 4, 9)), Insert::Inserted(_)), "one has ended");
}

#[test]
fn the_addresses_of_an_endpoint_share_its_limit() {
    let room = Room::new(32);
    let v4 = ConnTable::<Tuple>::within(&room, HashKey::new(1, 2)).unwrap();
    let v6 = ConnTable::<Tuple6>::within(&room, HashKey::new(3, 4)).unwrap();
    let all = [owner::<Tuple>(1, 1), owner::<Tuple>(2, 1), owner::<Tuple6>(1, 1)];
    room.accounts().regroup(all.into_iter().collect());
    room.accounts().limit(4, u32::MAX);
    assert!(matches!(v4.insert(&connection(1, 1, 1, 9), 0), Insert::Inserted(_)));
    assert!(matches!(v4.insert(&connection(2, 2, 2, 9), 0), Insert::Inserted(_)));
    assert!(matches!(v6.insert(&connection(1, 3, 3, 9), 0), Insert::Inserted(_)));
    assert!(matches!(v6.insert(&published(1, 4), 0), Insert::Inserted(_)));
    let refused = Insert::Overdrawn(Overdrawn::Limit);
    assert_eq!(v4.insert(&connection(1, 5, 5, 9), 0), refused);
    assert_eq!(v4.insert(&published(2, 5), 0), Insert::Overdrawn(Overdrawn::Limit));
    assert_eq!(
        v6.insert(&connection(1, 5, 5, 9), 0),
        Insert::<Tuple6>::Overdrawn(Overdrawn::Limit)
    );
    // The same address in another network is somebody else's.
    let elsewhere = Tuple::new(Tuple::inside(1), Tuple::server(1), 5, 80, Zone(2), 17);
    let other = NewConnection { original: elsewhere, ..connection(1, 5, 5, 9) };
    assert!(matches!(v4.insert(&other, 0), Insert::Inserted(_)));
    assert_eq!((room.accounts().heaviest(), room.accounts().peak()), (4, 4));
}

/// Also those of an earlier run, which are entered before anything is configured.
fn what_is_booked_goes_where_the_address_goes<K: Sample>() {
    let table = table::<K>(32);
    let regroup = |all: &[((Zone, IpAddr), Mac)]| {
        table.accounts().regroup(all.iter().copied().collect());
    };
    let one = connection::<K>(1, 1, 1, 9);
    for new in [one, connection(1, 2, 2, 9), connection(2, 3, 3, 9), published(2, 4)] {
        assert!(matches!(table.insert(&new, 0), Insert::Inserted(_)));
    }
    let both = connection::<K>(2, 9, 9, 9);
    let stand = || [of(&table, &one), of(&table, &both), of(&table, &published(2, 9))];
    assert_eq!(stand(), [(2, 2), (1, 1), (1, 1)]);
    regroup(&[owner::<K>(1, 7), owner::<K>(2, 7)]);
    assert_eq!(stand(), [(3, 3), (3, 3), (1, 1)]);
    assert_eq!(table.accounts().heaviest(), 4);
    let reply = table.lookup(one.reply, 0).unwrap();
    assert!(table.touch(&reply, 10, 0, SEEN_REPLY, 9));
    assert_eq!(stand(), [(3, 2), (3, 2), (1, 1)]);
    // To another endpoint, then to none.
    regroup(&[owner::<K>(1, 7), owner::<K>(2, 8)]);
    assert_eq!(stand(), [(2, 1), (1, 1), (1, 1)]);
    regroup(&[]);
    assert_eq!(stand(), [(2, 1), (1, 1), (1, 1)]);
    regroup(&[owner::<K>(1, 8)]);
    let ended = (0..table.high_water()).filter(|index| table.expire(*index, 1000)).count();
    assert_eq!(ended, 4);
    assert_eq!(stand(), [(0, 0); 3]);
    table.accounts().forget_idle(1);
    assert_eq!(table.accounts().len(), (0, 0));
}

#[test]
fn an_endpoint_begins_no_more_in_a_second_than_it_may() {
    let table = table::<Tuple>(16);
    // Of an earlier run, before there is a limit.
    assert!(matches!(table.insert(&connection(1, 20, 20, 99), 5), Insert::Inserted(_)));
    table.accounts().limit(u32::MAX, 2);
    let begin = |port, now| table.insert(&connection(1, port, port, 99), now);
    for (port, now, ok) in [
        (1, 5, true),
        (2, 5, true),
        (3, 5, false),
        (3, 6, true),
        // The clock of another worker is a little behind.
        (4, 5, true),
        (5, 5, false),
        (5, 6, false),
        (5, 7, true),
    ] {
        let inserted = begin(port, now);
        assert_eq!(matches!(inserted, Insert::Inserted(_)), ok, "{port} at {now}");
        assert!(ok || inserted == Insert::Overdrawn(Overdrawn::Rate));
    }
    // Nor one that ends all of them at once.
    for index in 0..16 {
        table.expire(index, 99);
    }
    assert!(table.is_empty());
    table.accounts().forget_idle(7);
    assert!(matches!(begin(6, 7), Insert::Inserted(_)));
    assert!(table.expire(table.lookup(tuple(1, 6), 7).unwrap().id.index, 99));
    table.accounts().forget_idle(7);
    assert_eq!(begin(7, 7), Insert::Overdrawn(Overdrawn::Rate));
    assert_eq!(table.accounts().len(), (0, 1), "nothing is kept of one that is refused");
}

#[test]
fn a_handshake_is_open_until_its_end() {
    let open = |proto, flags| is_open(proto, Meta::new(1, 0, flags, NetworkId(1)));
    let tcp = [0, SEEN_REPLY, SEEN_REPLY | ASSURED].map(|flags| open(ip_proto::TCP, flags));
    assert_eq!(tcp, [true, true, false]);
    assert_eq!([0, SEEN_REPLY].map(|flags| open(ip_proto::UDP, flags)), [true, false]);
}

/// What is inserted, ended and regrouped in any order leaves nothing booked wrongly.
#[test]
fn books_balance() {
    use proptest::prelude::*;
    proptest!(|(ops in proptest::collection::vec((0u8..5, 1u8..4, 1u16..12), 0..200))| {
        let table = table::<Tuple>(8);
        table.accounts().limit(5, u32::MAX);
        let mut endpoints = [0u8; 4];
        for (op, src, port) in ops {
            let new = connection::<Tuple>(src, port, u16::from(src) * 100 + port, 50);
            match op {
                0 | 1 => { table.insert(&new, 0); }
                2 => if let Some(hit) = table.lookup(tuple(src, port), 0) { table.remove(hit.id); },
                3 => if let Some(hit) = table.lookup(new.reply, 0) {
                    table.touch(&hit, 1, 0, SEEN_REPLY, 50);
                },
                _ => {
                    endpoints[usize::from(src)] = [0, 7, 8][usize::from(port % 3)];
                    let has = (1u8..4).filter(|src| endpoints[usize::from(*src)] != 0);
                    let owners = has.map(|src| owner::<Tuple>(src, endpoints[usize::from(src)]));
                    table.accounts().regroup(owners.collect());
                }
            }
            let listed: Vec<_> = table.entries(0).map(|entry| entry.connection).collect();
            for src in 1u8..4 {
                let of_endpoint = endpoints[usize::from(src)];
                let same = |n: &u8| *n == src || (of_endpoint != 0 && endpoints[usize::from(*n)] == of_endpoint);
                let own: Vec<_> = (1u8..4).filter(same)
                    .map(|src| IpAddr::from(tuple::<Tuple>(src, 1).src())).collect();
                let theirs = |c: &&crate::engine::Connection| own.contains(&c.original.src);
                let all = listed.iter().filter(theirs).count();
                let open = listed.iter().filter(theirs).filter(|c| c.state == "UNREPLIED").count();
                let booked = of(&table, &connection::<Tuple>(src, 1, 1, 1));
                prop_assert_eq!((booked.0 as usize, booked.1 as usize), (all, open));
            }
        }
    });
}
