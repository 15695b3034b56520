//! What a network may ask of its translation: one outside port for each inside one, and timers of its own.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use tests::host::namespace::Namespace;
use tests::host::traffic::{UdpServer, uninterrupted};
use tests::host::{GATEWAY, HOST_IP, Host, Uplink, rows};

const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const PORT: u16 = 40_123;

fn speaker(ns: &Namespace) -> UdpSocket {
    let socket = ns.enter(|| UdpSocket::bind((ANY, PORT))).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    socket
}

/// As whom a server outside sees a socket.
fn seen(socket: &UdpSocket, port: u16) -> SocketAddr {
    let mut buffer = [0; 256];
    // The first may be lost while a neighbor is asked for.
    let answer = (0..3).find_map(|_| {
        socket.send_to(b"who", (GATEWAY, port)).unwrap();
        let (length, from) = uninterrupted(|| socket.recv_from(&mut buffer)).ok()?;
        assert_eq!(from, (GATEWAY, port).into());
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    });
    answer.unwrap().split(' ').next().unwrap().parse().unwrap()
}

#[test]
#[ignore = "needs root"]
fn a_network_has_mapping_and_timers_of_its_own() {
    let host = Host::start(Uplink::Shared);
    host.network(
        "app",
        "--subnet 10.91.1.0/24 -o endpoint_independent=true -o timeout_udp=33 -o timeout_icmp=7 \
         -o timeout_fdb_ageing=40 -o timeout_fragments=20",
    );
    let [a, b] = ["a", "b"].map(|name| host.sandbox(name, "--network app"));
    let _servers = [7000, 7001, 7002].map(|port| UdpServer::start(&host.outside, (ANY, port)));
    let (first, second) = (speaker(&a.ns), speaker(&b.ns));
    let (as_first, as_second) = (seen(&first, 7000), seen(&second, 7000));
    assert!(as_first.ip() == HOST_IP && as_first != as_second, "{as_first}, {as_second}");
    for port in [7001, 7002] {
        assert_eq!(seen(&second, port), as_second);
        assert_eq!(seen(&first, port), as_first);
    }
    let connections = rows(&host.json(["conntrack", "list", "--proto", "udp"]));
    let of = |sport: u64| {
        connections.iter().filter(|c| c["orig"]["sport"].as_u64() == Some(sport)).count()
    };
    assert_eq!(of(PORT.into()), 6, "{connections:#?}");
    for connection in &connections {
        let left = connection["timeout_s"].as_u64().unwrap();
        assert!((1..=33).contains(&left), "{connection:#?}");
    }
    host.refused(2, &["timeout_udp", "seconds"], ["network", "create", "n", "-o", "timeout_udp=0"]);
}
