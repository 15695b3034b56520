//! The FDB against a plain map.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const AGEING: Duration = Duration::from_secs(300);
const NET: NetworkId = NetworkId(3);

fn table(limit: u32) -> Fdb {
    Fdb::new(limit, HashKey::new(1, 2)).unwrap()
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
    assert!(fdb.moves_and_evictions().1 > 9_000);
}

#[test]
fn almost_none_goes_before_the_limit() {
    let fdb = table(65_536);
    for n in 1..=65_536 {
        assert_eq!(fdb.learn(NET, 0, mac(n), PortId(7), 0), Learned::New);
    }
    let (_, evictions) = fdb.moves_and_evictions();
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
        cursor = fdb.age(cursor, 16, 301, AGEING);
    }
    assert_eq!(fdb.used(), 0);
    assert!(fdb.entries(301, AGEING).is_empty());
}

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
