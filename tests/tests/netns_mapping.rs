//! What a network may ask of its translation, in both families: one outside port for each inside one, and timers of
//! its own.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use tests::host::family::ANY;
use tests::host::namespace::Namespace;
use tests::host::traffic::{UdpServer, uninterrupted};
use tests::host::{BOTH, Family, Host, Uplink, rows};

const PORT: u16 = 40_123;

fn speaker(ns: &Namespace, family: Family) -> UdpSocket {
    let socket = ns.enter(|| UdpSocket::bind((family.any(), PORT))).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    socket
}

/// As whom a server outside sees a socket.
fn seen(socket: &UdpSocket, family: Family, port: u16) -> SocketAddr {
    let mut buffer = [0; 256];
    // The first may be lost while a neighbor is asked for.
    let answer = (0..3).find_map(|_| {
        socket.send_to(b"who", (family.outside(), port)).unwrap();
        let (length, from) = uninterrupted(|| socket.recv_from(&mut buffer)).ok()?;
        assert_eq!(from, (family.outside(), port).into());
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    });
    answer.unwrap().split(' ').next().unwrap().parse().unwrap()
}

#[test]
#[ignore = "needs root"]
fn a_network_has_mapping_and_timers_of_its_own() {
    let host = Host::start_dual(Uplink::Shared);
    host.network(
        "own",
        "--subnet 10.91.2.0/24 --subnet fd00:91:2::/64 -o endpoint_independent=true -o timeout_udp=33 \
         -o timeout_icmp=7 -o timeout_fdb_ageing=40 -o timeout_fragments=20",
    );
    let [a, b] = ["a", "b"].map(|name| host.sandbox(name, "--network own"));
    let _servers = [7000, 7001, 7002].map(|port| UdpServer::start(&host.outside, (ANY, port)));
    for family in BOTH {
        let (first, second) = (speaker(&a.ns, family), speaker(&b.ns, family));
        let (as_first, as_second) = (seen(&first, family, 7000), seen(&second, family, 7000));
        assert_eq!((as_first.ip(), as_second.ip()), (family.host(), family.host()));
        assert_ne!(as_first, as_second);
        for port in [7001, 7002] {
            assert_eq!(seen(&second, family, port), as_second);
            assert_eq!(seen(&first, family, port), as_first);
        }
        let connections = rows(&host.json(["conntrack", "list", "--proto", "udp"]));
        let own: Vec<_> = connections
            .iter()
            .filter(|c| {
                c["orig"]["sport"] == PORT && c["orig"]["dst"] == family.outside().to_string()
            })
            .collect();
        assert_eq!(own.len(), 6, "{connections:#?}");
        for connection in own {
            let left = connection["timeout_s"].as_u64().unwrap();
            assert!((1..=33).contains(&left), "{connection:#?}");
        }
    }
    host.refused(2, &["timeout_udp", "seconds"], ["network", "create", "n", "-o", "timeout_udp=0"]);
}
