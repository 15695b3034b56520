//! The FDB against a plain map.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const AGEING: Duration = Duration::from_secs(300);
const NET: NetworkId = NetworkId(3);

fn table(limit: u32) -> Fdb {
    Fdb::new(limit, limit, HashKey::new(1, 2)).unwrap()
}

fn mac(n: u64) -> Mac {
    Mac::from_u64(0x0200_0000_0000 | n)
}

#[test]
fn a_learned_mac_is_found_until_it_ages() {
    let fdb = table(16);
    assert_eq!(fdb.learn(NET, 0, mac(1), PortId(7), 100), Learned::New);
    assert_eq!(fdb.lookup(NET, 0, mac(1), 400, AGEING), Some(PortId(7)));
    assert_eq!(fdb.lookup(NET, 0, mac(1), 401, AGEING), None);
    assert_eq!(fdb.learn(NET, 0, mac(1), PortId(7), 399), Learned::Known);
    assert_eq!(fdb.lookup(NET, 0, mac(1), 699, AGEING), Some(PortId(7)));
}

#[test]
fn networks_and_vlans_are_apart() {
    let fdb = table(16);
    fdb.learn(NET, 0, mac(1), PortId(7), 0);
    assert_eq!(fdb.lookup(NetworkId(4), 0, mac(1), 0, AGEING), None);
    assert_eq!(fdb.lookup(NET, 5, mac(1), 0, AGEING), None);
}

#[test]
fn a_mac_moves_but_a_static_one_does_not() {
    let fdb = table(16);
    fdb.learn(NET, 0, mac(1), PortId(1), 0);
    assert_eq!(fdb.learn(NET, 0, mac(1), PortId(2), 0), Learned::Moved);
    assert_eq!(fdb.lookup(NET, 0, mac(1), 0, AGEING), Some(PortId(2)));
    fdb.insert(NET, 0, mac(2), PortId(1), FdbKind::Static, 0);
    assert_eq!(fdb.learn(NET, 0, mac(2), PortId(2), 0), Learned::Kept);
    assert_eq!(fdb.lookup(NET, 0, mac(2), u32::MAX, AGEING), Some(PortId(1)));
}

#[test]
fn who_learns_a_moment_late_does_not_overrule_control() {
    // `learn` looks without a lock: what it did not find may be there when it inserts.
    let fdb = table(16);
    let lookup = |n| fdb.lookup(NET, 0, mac(n), 0, AGEING);
    let insert = |n, port, kind| fdb.insert(NET, 0, mac(n), PortId(port), kind, 0);
    for (n, kind) in [(1, FdbKind::Local), (2, FdbKind::Static)] {
        insert(n, 1, kind);
        assert_eq!(insert(n, 2, FdbKind::Learned), Learned::Kept);
        assert_eq!(insert(n, 1, FdbKind::Learned), Learned::Known);
        let entry = fdb.entries(0, |_| AGEING).into_iter().find(|e| e.mac == mac(n)).unwrap();
        assert_eq!((entry.port, entry.kind), (PortId(1), kind));
    }
    insert(3, 1, FdbKind::Learned);
    assert_eq!(insert(3, 2, FdbKind::Learned), Learned::Moved);
    assert_eq!((lookup(3), fdb.stats().moves), (Some(PortId(2)), 1));
}

#[test]
fn local_over_static_over_learned() {
    let fdb = table(16);
    let lookup = || fdb.lookup(NET, 0, mac(1), 0, AGEING);
    let insert = |port, kind| fdb.insert(NET, 0, mac(1), PortId(port), kind, 0);
    insert(1, FdbKind::Learned);
    insert(2, FdbKind::Static);
    assert_eq!((lookup(), fdb.used()), (Some(PortId(2)), 1));
    insert(3, FdbKind::Static);
    assert_eq!((lookup(), fdb.used()), (Some(PortId(3)), 1));
    insert(4, FdbKind::Local);
    assert_eq!((lookup(), fdb.used()), (Some(PortId(4)), 0));
    assert_eq!(insert(5, FdbKind::Static), Learned::Kept);
    assert_eq!((lookup(), fdb.used()), (Some(PortId(4)), 0));
    insert(6, FdbKind::Local);
    assert_eq!(lookup(), Some(PortId(6)));
}

#[test]
fn a_mac_that_finds_no_room_is_counted() {
    let fdb = table(16);
    for n in 0..16 {
        fdb.insert(NET, 0, mac(n), PortId(1), FdbKind::Static, 0);
    }
    assert_eq!(fdb.learn(NET, 0, mac(99), PortId(1), 0), Learned::Full);
    let stats = fdb.stats();
    assert_eq!((stats.entries, stats.limit, stats.refused, stats.evictions), (16, 16, 1, 0));
}

#[test]
fn at_the_limit_the_oldest_goes_and_local_entries_stay() {
    let fdb = table(64);
    for n in 0..32 {
        fdb.insert(NET, 0, mac(n), PortId(1), FdbKind::Local, 0);
    }
    for n in 100..10_000u32 {
        fdb.learn(NET, 0, mac(u64::from(n)), PortId(2), n);
        assert!(fdb.used() <= 64);
    }
    for n in 0..32 {
        assert_eq!(fdb.lookup(NET, 0, mac(n), 10_000, AGEING), Some(PortId(1)), "{n}");
    }
    assert!(fdb.stats().evictions > 9_000);
}

#[test]
fn who_remembers_places_hears_of_evictions_but_not_of_what_is_new_or_aged() {
    let fdb = table(16);
    for n in 1..=16 {
        assert_eq!(fdb.learn(NET, 0, mac(n), PortId(1), 0), Learned::New);
    }
    let new = fdb.changes();
    assert_eq!(new, fdb.stats().evictions);
    for n in 17..=40 {
        let before = (fdb.changes(), fdb.stats().evictions);
        fdb.learn(NET, 0, mac(n), PortId(1), 0);
        let evicted = fdb.stats().evictions - before.1;
        assert_eq!(fdb.changes() - before.0, evicted);
    }
    assert!(fdb.stats().evictions > 0);
    let before = fdb.changes();
    fdb.age(0, fdb.bucket_count(), 1000, |_| AGEING);
    assert_eq!((fdb.used(), fdb.changes()), (0, before));
}

#[test]
fn almost_none_goes_before_the_limit() {
    let fdb = table(65_536);
    for n in 1..=65_536 {
        assert_eq!(fdb.learn(NET, 0, mac(n), PortId(7), 0), Learned::New);
    }
    let evictions = fdb.stats().evictions;
    assert!(evictions <= 8, "{evictions}");
}

#[test]
fn ageing_frees_the_slots() {
    let fdb = table(1000);
    for n in 0..500 {
        fdb.learn(NET, 0, mac(n), PortId(2), 0);
    }
    let mut cursor = 0;
    for _ in 0..fdb.bucket_count().div_ceil(16) {
        cursor = fdb.age(cursor, 16, 301, |_| AGEING);
    }
    assert_eq!(fdb.used(), 0);
    assert!(fdb.entries(301, |_| AGEING).is_empty());
}

#[path = "limit_tests.rs"]
mod limits;

#[derive(Debug, Clone)]
enum Op {
    Learn(u64, u16, u16),
    Remove(u64, u16),
    Flush(u16),
    Wait(u32),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..40u64, 0..3u16, 0..4u16).prop_map(|(m, n, p)| Op::Learn(m, n, p)),
        1 => (0..40u64, 0..3u16).prop_map(|(m, n)| Op::Remove(m, n)),
        1 => (0..3u16).prop_map(Op::Flush),
        1 => (0..200u32).prop_map(Op::Wait),
    ]
}

proptest! {
    #[test]
    fn behaves_like_a_map(ops in proptest::collection::vec(op(), 1..200)) {
        let fdb = table(4096);
        let mut model: HashMap<(u64, u16), (u16, u32)> = HashMap::new();
        let mut now = 1000;
        for op in ops {
            match op {
                Op::Learn(m, n, p) => {
                    fdb.learn(NetworkId(n), 0, mac(m), PortId(p), now);
                    model.insert((m, n), (p, now));
                }
                Op::Remove(m, n) => {
                    let removed = fdb.remove(NetworkId(n), 0, mac(m)).is_some();
                    prop_assert_eq!(removed, model.remove(&(m, n)).is_some());
                }
                Op::Flush(n) => {
                    fdb.retain_not(|e| e.network == NetworkId(n), now);
                    model.retain(|key, _| key.1 != n);
                }
                Op::Wait(s) => now += s,
            }
            for m in 0..40 {
                for n in 0..3 {
                    let want = model
                        .get(&(m, n))
                        .filter(|(_, seen)| now - seen <= 300)
                        .map(|(p, _)| PortId(*p));
                    prop_assert_eq!(fdb.lookup(NetworkId(n), 0, mac(m), now, AGEING), want);
                }
            }
        }
    }
}
