//! Which outside address and port an inside one gets where a network asks for endpoint-independent mapping, or
//! an uplink has several addresses; and the timers that are a network's own.

use std::net::Ipv4Addr;
use std::time::Duration;

use dataplane::EngineOptions;
use dataplane::config::{DnatRule, SnapshotSpec, Timeouts};
use dataplane::packet::types::tcp_flags::{ACK, SYN};
use tests::lab::{
    A, B, C, CLIENT, D, GATEWAY1, GATEWAY2, HOST_ADDRESS, Lab, ROUTER, SERVER, UP, prefix, publish,
    publish_tcp, small, topology,
};
use tests::packet::{Host, Packet, Wire, echo, ip, reported, tcp, udp};

tests::in_ipv6! {
    a_hairpin_shows_the_address_that_is_paired
    a_hairpin_shows_the_mapping
    a_hairpin_s_mapping_outlives_a_restart
    a_hairpin_without_a_way_out_has_one_port_too
    a_mapped_port_is_nobody_elses
    a_mapping_ends_with_its_last_connection
    a_mapping_outlives_a_restart
    a_mapping_serves_every_destination
    a_networks_timers_are_its_own
    all_flows_of_an_inside_address_speak_from_one_outside_address
    an_identifier_is_mapped_too
    one_container_does_not_take_every_port
    who_has_a_mapping_gets_no_other_port
}

/// Network 1 has endpoint-independent mapping, network 2 has not.
fn mapped() -> SnapshotSpec {
    let mut spec = topology();
    spec.networks[0].endpoint_independent = true;
    spec
}

/// The outside address and port that a packet of A or B leaves from; it begins a connection.
#[track_caller]
fn spoken(lab: &mut Lab, from: &Host, packet: &Packet) -> (Ipv4Addr, u16) {
    let packet = packet.clone().via(GATEWAY1.mac);
    let came = lab.rx(from.port, &packet).masqueraded(&packet).take_one(UP.port);
    (source(&came), came.l4_u16(0))
}

/// In IPv6 the address whose twin it is.
fn source(wire: &Wire) -> Ipv4Addr {
    let end = if wire.bytes[14] >> 4 == 6 { 14 + 24 } else { 14 + 16 };
    let octets: [u8; 4] = wire.bytes[end - 4..end].try_into().unwrap();
    octets.into()
}

/// Rows: RFC 4787 REQ-1; RFC 5382 REQ-1.
#[test]
fn a_mapping_serves_every_destination() {
    let mut lab = Lab::new(mapped());
    assert_eq!(spoken(&mut lab, &A, &udp(&A, 40_000, &SERVER, 53)).1, 40_000);
    let (_, other) = spoken(&mut lab, &B, &udp(&B, 40_000, &SERVER, 53));
    assert_ne!(other, 40_000);
    for port in [54, 55, 56] {
        assert_eq!(spoken(&mut lab, &B, &udp(&B, 40_000, &SERVER, port)).1, other);
        assert_eq!(spoken(&mut lab, &B, &udp(&B, 40_000, &CLIENT, port)).1, other);
        assert_eq!(spoken(&mut lab, &A, &udp(&A, 40_000, &CLIENT, port)).1, 40_000);
    }
    // Of TCP it is another, for every destination too, and both are reached by their answers.
    assert_eq!(spoken(&mut lab, &B, &tcp(&B, 40_000, &SERVER, 80, SYN)).1, 40_000);
    let (_, of_a) = spoken(&mut lab, &A, &tcp(&A, 40_000, &SERVER, 80, SYN));
    assert_ne!(of_a, 40_000);
    for port in [81, 82, 83] {
        for (from, outside) in [(&A, of_a), (&B, 40_000)] {
            for to in [&SERVER, &CLIENT] {
                let syn = tcp(from, 40_000, to, port, SYN);
                assert_eq!(spoken(&mut lab, from, &syn).1, outside, "port {port} of {}", to.ip);
            }
        }
    }
    let back = udp(&CLIENT, 54, &UP, other);
    let seen = back.clone().dst(B.ip).dport(40_000).routed(GATEWAY1.mac, B.mac);
    lab.rx(UP.port, &back).tx(B.port, seen);
    // Filtering is as strict as ever: a stranger may not answer.
    lab.rx(UP.port, udp(&CLIENT, 99, &UP, other)).dropped("up", "unsolicited");
}

/// Ports 8080 to 8089 of the host are B's 80 to 89.
fn with_servers(mut spec: SnapshotSpec) -> SnapshotSpec {
    let servers = DnatRule { host_ports: (8080, 8089), ..publish_tcp(7, 8080, &B, 80) };
    spec.dnat.push(servers);
    spec
}

/// The address and port in which B sees who speaks to it by `address`; it begins a connection.
#[track_caller]
fn seen(lab: &mut Lab, from: &Host, port: u16, address: Ipv4Addr, service: u16) -> (Ipv4Addr, u16) {
    let gateway = if from.port == D.port { GATEWAY2 } else { GATEWAY1 };
    let syn = tcp(from, port, &UP, service, SYN).via(gateway.mac).dst(address);
    let came = lab
        .rx(from.port, &syn)
        .moved("conn.new", 1)
        .moved("dnat.7.packets", 1)
        .moved("dnat.7.bytes", syn.ip_len() as i64)
        .take_one(B.port);
    (source(&came), came.l4_u16(0))
}

/// RFC 4787 REQ-9a with REQ-1: inside it is known by what it is known by outside.
#[test]
fn a_hairpin_shows_the_mapping() {
    let mut lab = Lab::new(with_servers(mapped()));
    assert_eq!(spoken(&mut lab, &C, &tcp(&C, 40_000, &SERVER, 80, SYN)).1, 40_000);
    let (address, port) = spoken(&mut lab, &A, &tcp(&A, 40_000, &SERVER, 80, SYN));
    assert_ne!(port, 40_000);
    for (spoken_to, service) in
        [(UP.ip, 8080), (GATEWAY1.ip, 8081), (GATEWAY2.ip, 8082), (HOST_ADDRESS, 8083)]
    {
        assert_eq!(seen(&mut lab, &A, 40_000, spoken_to, service), (address, port));
        assert_eq!(seen(&mut lab, &C, 40_000, spoken_to, service), (address, 40_000));
        // Whose outside port it would be by itself gets another one.
        assert_ne!(seen(&mut lab, &C, port, spoken_to, service).1, port);
        // Of a network that does not ask for it by the address that was spoken to, which is another.
        assert_ne!(seen(&mut lab, &D, port, spoken_to, service), (address, port));
    }
    // The answer finds its way, and the way round: first a hairpin, then outside.
    let answer = tcp(&B, 80, &UP, port, SYN | ACK).via(GATEWAY1.mac);
    let back = answer.clone().src(UP.ip).sport(8080).dst(A.ip).dport(40_000);
    lab.rx(B.port, &answer).tx(A.port, back.routed(GATEWAY1.mac, A.mac));
    let taken = tcp(&D, 40_002, &SERVER, 80, SYN).via(GATEWAY2.mac);
    lab.rx(D.port, &taken).only_balanced();
    let (_, port) = seen(&mut lab, &A, 40_004, GATEWAY1.ip, 8084);
    assert_eq!(spoken(&mut lab, &A, &tcp(&A, 40_004, &SERVER, 81, SYN)).1, port);
    assert_eq!(spoken(&mut lab, &A, &tcp(&A, 40_004, &CLIENT, 81, SYN)).1, port);
    // One port is one port: what it is for already, by another address, is refused.
    let again = tcp(&A, 40_000, &UP, 8080, SYN).via(GATEWAY1.mac).dst(GATEWAY1.ip);
    lab.rx(B.port, tcp(&B, 80, &UP, 40_000, ACK)).only_balanced();
    lab.rx(A.port, &again)
        .tx(A.port, reported(&GATEWAY1, &A, 3, 13, &again))
        .moved("generated", 1)
        .moved("conn.ports_exhausted", 1)
        .dropped("a", "snat_ports_exhausted");
}

#[test]
fn a_hairpin_s_mapping_outlives_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| Some(directory.path().join(name));
    let options = EngineOptions {
        conntrack_file: file("conntrack"),
        conntrack6_file: file("conntrack6"),
        ..small()
    };
    let mut lab = Lab::with(&options, with_servers(mapped()));
    assert_eq!(seen(&mut lab, &C, 40_000, UP.ip, 8080).1, 40_000);
    let first = [seen(&mut lab, &A, 40_000, UP.ip, 8080), seen(&mut lab, &B, 40_000, UP.ip, 8081)];
    drop(lab);
    let mut lab = Lab::with(&options, with_servers(mapped()));
    assert_eq!(lab.plane.end_orphans(), 0);
    assert_eq!(seen(&mut lab, &B, 40_000, GATEWAY1.ip, 8082), first[1]);
    assert_eq!(seen(&mut lab, &A, 40_000, GATEWAY1.ip, 8082), first[0]);
    assert_eq!(spoken(&mut lab, &A, &tcp(&A, 40_000, &SERVER, 80, SYN)), first[0]);
    assert_ne!(seen(&mut lab, &D, first[0].1, UP.ip, 8083).1, first[0].1);
}

/// By the address that was spoken to then, as there is no other.
#[test]
fn a_hairpin_without_a_way_out_has_one_port_too() {
    let mut spec = with_servers(mapped());
    spec.uplinks.clear();
    spec.ports.retain(|port| port.id != UP.port);
    let mut lab = Lab::new(spec);
    assert_eq!(seen(&mut lab, &C, 20_000, GATEWAY1.ip, 8080), (GATEWAY1.ip, 20_000));
    let (address, port) = seen(&mut lab, &A, 20_000, GATEWAY1.ip, 8080);
    assert!(address == GATEWAY1.ip && port != 20_000);
    for service in 8081..8085 {
        assert_eq!(seen(&mut lab, &A, 20_000, GATEWAY1.ip, service), (address, port));
        assert_ne!(seen(&mut lab, &C, port, GATEWAY1.ip, service).1, port);
    }
}

/// RFC 4787 REQ-2 with REQ-9a, whatever the network asks for.
#[test]
fn a_hairpin_shows_the_address_that_is_paired() {
    let mut spec = with_servers(topology());
    let addresses = [[203, 0, 113, 5], [203, 0, 113, 6], [203, 0, 113, 7], [203, 0, 113, 8]];
    spec.uplinks[0].addresses = addresses.map(|a| (ip(a), prefix(a.into(), 24))).into();
    let mut lab = Lab::new(spec);
    let (outside, _) = spoken(&mut lab, &A, &udp(&A, 40_000, &SERVER, 53));
    for address in addresses {
        assert_eq!(seen(&mut lab, &A, 40_000, address.into(), 8080).0, outside);
    }
    // By an address that nobody outside has, that is who answers, and who is seen.
    assert_eq!(seen(&mut lab, &A, 20_000, GATEWAY1.ip, 8080), (GATEWAY1.ip, 20_000));
    // Where addresses inside are not translated outside, that is seen which answers.
    lab.reconfigure(|spec| spec.networks[0].masquerade = false);
    for address in addresses {
        assert_eq!(seen(&mut lab, &A, 40_001, address.into(), 8080).0, Ipv4Addr::from(address));
    }
}

#[test]
fn an_identifier_is_mapped_too() {
    let mut lab = Lab::new(mapped());
    let mut asks = |from: &Host, to: &Host| {
        let packet = echo(from, to, 40_000).via(GATEWAY1.mac);
        let came = lab.rx(from.port, &packet).masqueraded(&packet).take_one(UP.port);
        came.l4_u16(4)
    };
    assert_eq!(asks(&A, &SERVER), 40_000);
    let other = asks(&B, &SERVER);
    assert!(other != 40_000 && asks(&B, &CLIENT) == other && asks(&A, &CLIENT) == 40_000);
}

/// Those of networks without mapping, too, keep off it.
#[test]
fn a_mapped_port_is_nobody_elses() {
    let mut lab = Lab::new(mapped());
    spoken(&mut lab, &A, &udp(&A, 40_000, &SERVER, 53));
    let packet = udp(&D, 40_000, &CLIENT, 53).via(GATEWAY2.mac);
    let came = lab
        .rx(D.port, &packet)
        .moved("conn.new", 1)
        .moved("masquerade.2.packets", 1)
        .moved("masquerade.2.bytes", packet.ip_len() as i64)
        .take_one(UP.port);
    assert_ne!(came.l4_u16(0), 40_000);
}

#[test]
fn a_mapping_ends_with_its_last_connection() {
    let mut lab = Lab::new(mapped());
    spoken(&mut lab, &A, &udp(&A, 40_000, &SERVER, 53));
    spoken(&mut lab, &A, &udp(&A, 40_000, &CLIENT, 54));
    assert_eq!(lab.plane.flush_connections(&|c| c.original.dst_port == 53), 1);
    assert_ne!(spoken(&mut lab, &B, &udp(&B, 40_000, &SERVER, 53)).1, 40_000);
    assert_eq!(lab.plane.flush_connections(&|_| true), 2);
    assert_eq!(spoken(&mut lab, &B, &udp(&B, 40_000, &SERVER, 53)).1, 40_000);
}

/// Whoever knows it by its port must not meet somebody else there, nor it under another.
#[test]
fn who_has_a_mapping_gets_no_other_port() {
    let mut lab = Lab::new(mapped());
    let packet = udp(&D, 40_000, &SERVER, 53).via(GATEWAY2.mac);
    let moved = [("masquerade.2.packets", 1), ("masquerade.2.bytes", packet.ip_len() as i64)];
    let step = lab.rx(D.port, &packet).moved("conn.new", 1);
    drop(moved.into_iter().fold(step, |step, (name, by)| step.moved(name, by)).take_one(UP.port));
    assert_eq!(spoken(&mut lab, &A, &udp(&A, 40_000, &CLIENT, 53)).1, 40_000);
    let refused = |lab: &mut Lab, packet: &Packet| {
        lab.rx(A.port, packet)
            .tx(A.port, reported(&GATEWAY1, &A, 3, 13, packet))
            .moved("generated", 1)
            .moved("conn.ports_exhausted", 1)
            .dropped("a", "snat_ports_exhausted");
    };
    // D has it towards that server, by a network without mapping, and was answered.
    let answer = udp(&SERVER, 53, &UP, 40_000);
    lab.rx(UP.port, &answer).tx(D.port, answer.clone().dst(D.ip).routed(GATEWAY2.mac, D.mac));
    refused(&mut lab, &udp(&A, 40_000, &SERVER, 53).via(GATEWAY1.mac));
    // Published now, it is for whom it is published.
    let (_, port) = spoken(&mut lab, &A, &tcp(&A, 40_001, &SERVER, 80, SYN));
    lab.reconfigure(|spec| spec.dnat.push(publish(7, 6, port, &B, 80)));
    assert_ne!(spoken(&mut lab, &A, &tcp(&A, 40_001, &SERVER, 80, SYN)).1, port);
}

/// A quarter of them is as many as one address may have for itself.
#[test]
fn one_container_does_not_take_every_port() {
    let mut spec = mapped();
    spec.uplinks[0].nat_ports = vec![(50_000, 50_007)];
    let mut lab = Lab::new(spec);
    for port in [40_000, 40_001] {
        spoken(&mut lab, &A, &udp(&A, port, &SERVER, 53));
    }
    let third = udp(&A, 40_002, &SERVER, 53).via(GATEWAY1.mac);
    lab.rx(A.port, &third)
        .tx(A.port, reported(&GATEWAY1, &A, 3, 13, &third))
        .moved("generated", 1)
        .moved("conn.ports_exhausted", 1)
        .dropped("a", "snat_ports_exhausted");
    spoken(&mut lab, &A, &udp(&A, 40_001, &CLIENT, 53));
    spoken(&mut lab, &B, &udp(&B, 40_002, &SERVER, 53));
}

#[test]
fn a_mapping_outlives_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| Some(directory.path().join(name));
    let options = EngineOptions {
        conntrack_file: file("conntrack"),
        conntrack6_file: file("conntrack6"),
        ..small()
    };
    let mut lab = Lab::with(&options, mapped());
    spoken(&mut lab, &A, &udp(&A, 40_000, &SERVER, 53));
    let (_, other) = spoken(&mut lab, &B, &udp(&B, 40_000, &SERVER, 53));
    drop(lab);
    let mut lab = Lab::with(&options, mapped());
    assert_eq!(lab.plane.end_orphans(), 0);
    assert_eq!(spoken(&mut lab, &B, &udp(&B, 40_000, &CLIENT, 53)).1, other);
    assert_eq!(spoken(&mut lab, &A, &udp(&A, 40_000, &CLIENT, 54)).1, 40_000);
}

/// RFC 4787 REQ-2: who is known by one connection is known by all.
///
/// Rows: RFC 4787 REQ-2, RFC 6888 REQ-2; RFC 7857 §4; VPP `test_outside_address_distribution`.
#[test]
fn all_flows_of_an_inside_address_speak_from_one_outside_address() {
    let mut spec = topology();
    let addresses = [[203, 0, 113, 5], [203, 0, 113, 6], [203, 0, 113, 7], [203, 0, 113, 8]];
    let first = spec.uplinks[0].addresses[0].0;
    spec.uplinks[0].addresses = addresses.map(|a| (ip(a), prefix(a.into(), 24))).into();
    assert_eq!(spec.uplinks[0].addresses[0].0, first);
    let mut lab = Lab::new(spec);
    let mut seen = Vec::new();
    for from in [A, B] {
        let (address, _) = spoken(&mut lab, &from, &udp(&from, 40_000, &SERVER, 53));
        for packet in [
            udp(&from, 40_001, &CLIENT, 53),
            tcp(&from, 40_000, &SERVER, 80, SYN),
            echo(&from, &CLIENT, 40_000),
        ] {
            assert_eq!(spoken(&mut lab, &from, &packet).0, address);
        }
        let back = udp(&SERVER, 53, &UP, 40_000).dst(address);
        let came = back.clone().dst(from.ip).routed(GATEWAY1.mac, from.mac);
        lab.rx(UP.port, &back).tx(from.port, came);
        seen.push(address);
    }
    assert_ne!(seen[0], seen[1], "the addresses of the test were chosen so");
    // An address less: who spoke from another goes on as before.
    let gone = ip(seen[0]);
    lab.reconfigure(|spec| spec.uplinks[0].addresses.retain(|(address, _)| *address != gone));
    assert_eq!(spoken(&mut lab, &B, &udp(&B, 40_009, &SERVER, 53)).0, seen[1]);
    assert_ne!(spoken(&mut lab, &A, &udp(&A, 40_009, &SERVER, 53)).0, seen[0]);
}

/// Rows: Open vSwitch `conntrack: zone-based timeout policy`.
#[test]
fn a_networks_timers_are_its_own() {
    let mut lab = Lab::default();
    let own = Timeouts { udp: Duration::from_secs(20), ..Timeouts::default() };
    lab.reconfigure(|spec| spec.networks[0].timeouts = Some(Box::new(own)));
    spoken(&mut lab, &A, &udp(&A, 40_000, &SERVER, 99));
    spoken(&mut lab, &A, &tcp(&A, 40_000, &SERVER, 80, SYN));
    let packet = udp(&D, 40_001, &SERVER, 99).via(GATEWAY2.mac);
    let left = packet.clone().src(UP.ip).routed(UP.mac, ROUTER.mac);
    lab.rx(D.port, &packet)
        .tx(UP.port, left)
        .moved("conn.new", 1)
        .moved("masquerade.2.packets", 1)
        .moved("masquerade.2.bytes", packet.ip_len() as i64);
    let timeouts: Vec<u64> = lab.connections().iter().map(|c| c.timeout.as_secs()).collect();
    assert_eq!(timeouts, [20, 240, 300]);
    // Packets of what is there are held to what is said now.
    lab.reconfigure(|spec| spec.networks[0].timeouts = None);
    let again = udp(&A, 40_000, &SERVER, 99).via(GATEWAY1.mac);
    lab.rx(A.port, &again).tx(UP.port, again.clone().src(UP.ip).routed(UP.mac, ROUTER.mac));
    assert_eq!(lab.connections()[0].timeout.as_secs(), 300);
}
