//! What a tracked connection costs in memory, all in: entries, index, counts of ports, accounts. Measured as what
//! the process has more of when a table is full than when it was made.
//!
//! `cargo test -p benches --test memory -- --nocapture` prints it.
#![allow(clippy::unwrap_used, reason = "test code: a failure here is a failed test")]

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane::conntrack::entry::{DNAT, SNAT};
use dataplane::conntrack::{ConnTable, Insert, Key, NewConnection, Tuple, Tuple6, Zone};
use dataplane::hash::HashKey;
use dataplane::packet::types::{NetworkId, ip_proto};

/// Many, so that what else the process does is little beside them.
const LIMIT: u32 = 1 << 19;
/// Containers, which begin connections by turns.
const INSIDE: u32 = 500;
const NETWORK: NetworkId = NetworkId(1);

/// Bytes of memory that are this process's, shared ones as its part of them.
fn resident() -> f64 {
    let rollup = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<f64>().unwrap() * 1024.0
}

/// Connection `number` of a container to a server each, masqueraded and led elsewhere.
fn connection<K: Key>(number: u32, address: impl Fn(u32) -> K::Addr) -> NewConnection<K> {
    let [_, _, high, low] = number.to_be_bytes();
    let port = u16::from_be_bytes([high, low]) | 1024;
    let zone = Zone::network(NETWORK);
    let server = address(0x0001_0000 + number);
    let original = K::new(address(number % INSIDE), server, port, 443, zone, ip_proto::UDP);
    NewConnection {
        original,
        reply: original
            .with_src(address(INSIDE), port)
            .with_dst(server, 8443)
            .reversed(Zone::OUTSIDE),
        state: 0,
        flags: SNAT | DNAT,
        network: NETWORK,
        rule: u32::MAX,
        deadline: 2000,
    }
}

fn cost<K: Key>(limit: u32, address: impl Fn(u32) -> K::Addr) -> f64 {
    let before = resident();
    let table = ConnTable::<K>::new(limit, HashKey::new(1, 2)).unwrap();
    for number in 0..limit {
        // Of a full table one tuple in a million finds no place in the index.
        let inserted = table.insert(&connection(number, &address), 1000);
        assert!(matches!(inserted, Insert::Inserted(_) | Insert::Full), "{inserted:?}");
    }
    assert!(table.len() > limit - 8, "{} of {limit}", table.len());
    (resident() - before) / f64::from(table.len())
}

#[test]
fn a_connection_takes_no_more_than_it_may() {
    let v4 = |n| Ipv4Addr::from(0x0a00_0000 + n);
    // What the process has once, whatever the table: its own code, above all.
    cost::<Tuple>(1000, v4);
    let v4 = cost::<Tuple>(LIMIT, v4);
    let v6 = cost::<Tuple6>(LIMIT, |n| Ipv6Addr::from(0xfd00 << 112 | u128::from(n)));
    for (cost, most, family) in
        [(v4, 128.0, IpAddr::from([0; 4])), (v6, 192.0, IpAddr::from([0; 16]))]
    {
        println!("{family}: {cost:.1} bytes a connection, {LIMIT} of them");
        assert!(cost <= most, "{cost:.2} bytes, {family}");
        assert!(cost > most - 8.0, "{cost:.2} bytes: not all of it was measured, {family}");
    }
}
