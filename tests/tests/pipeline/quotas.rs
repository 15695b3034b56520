//! What an endpoint may have of the connection table and of outside ports, and who pays when there is
//! no room.

use dataplane::EngineOptions;
use dataplane::config::{DnatRule, PortRole};
use dataplane::engine::Link;
use dataplane::packet::types::tcp_flags::{ACK, SYN};
use tests::lab::{
    A, B, C, CLIENT, D, GATEWAY1, GATEWAY2, Lab, ROUTER, SERVER, UP, UPLINK, dual, publish_tcp,
    small, topology, without_guard,
};
use tests::packet::{Host, Packet, icmp_error, tcp, udp};

/// A table for so many connections, and so many of each endpoint.
fn limits(all: u32, each: u32) -> EngineOptions {
    EngineOptions { conntrack_limit: all, conntrack_per_endpoint: each, ..small() }
}

fn query(from: &Host, n: u16) -> Packet {
    udp(from, 40_000 + n, &SERVER, 53).via(GATEWAY1.mac)
}

fn begin(lab: &mut Lab, packet: &Packet, from: &Host) {
    lab.rx(from.port, packet).masqueraded(packet).take_one(UP.port);
}

/// Connections that a host began.
fn count(lab: &Lab, of: &Host) -> usize {
    lab.connections().iter().filter(|connection| connection.original.src == of.ip).count()
}

#[test]
fn a_flood_makes_room_for_others_and_keeps_conversations() {
    // More than fit: whoever may have no more makes nobody go.
    let mut lab = Lab::with(&limits(8, 9), topology());
    begin(&mut lab, &query(&A, 0), &A);
    let back = udp(&SERVER, 53, &UP, 40_000);
    lab.rx(UP.port, &back).tx(A.port, back.clone().dst(A.ip).routed(GATEWAY1.mac, A.mac));
    for n in 1..8 {
        begin(&mut lab, &query(&A, n), &A);
    }
    // One of the flood goes for the next of the flood, and for those of another, until that one has as
    // many unanswered ones.
    for (n, from) in [(10, &A), (11, &B), (12, &B), (13, &B)] {
        let packet = query(from, n);
        lab.rx(from.port, &packet)
            .masqueraded(&packet)
            .moved("conn.entries", -1)
            .moved("conn.evicted", 1)
            .take_one(UP.port);
    }
    assert_eq!((count(&lab, &A), count(&lab, &B)), (5, 3));
    let again = query(&A, 0);
    lab.rx(A.port, &again).tx(UP.port, again.src(UP.ip).routed(UP.mac, ROUTER.mac));
}

#[test]
fn a_half_open_handshake_may_go_and_an_open_one_not() {
    let mut lab = Lab::with(&limits(2, 2), topology());
    let syn = |from, port| tcp(from, port, &SERVER, 80, SYN).via(GATEWAY1.mac);
    let answer = |port| tcp(&SERVER, 80, &UP, port, SYN | ACK);
    for port in [10_000, 10_001] {
        begin(&mut lab, &syn(&A, port), &A);
        let back = answer(port);
        lab.rx(UP.port, &back).tx(A.port, back.clone().dst(A.ip).routed(GATEWAY1.mac, A.mac));
    }
    let ack = syn(&A, 10_000).flags(ACK).seq(1001);
    lab.rx(A.port, &ack).tx(UP.port, ack.src(UP.ip).routed(UP.mac, ROUTER.mac));
    let other = syn(&B, 20_000);
    lab.rx(B.port, &other)
        .masqueraded(&other)
        .moved("conn.entries", -1)
        .moved("conn.evicted", 1)
        .take_one(UP.port);
    let left: Vec<_> = lab.connections().iter().map(|c| (c.original.src_port, c.state)).collect();
    assert_eq!(left, [(10_000, "ESTABLISHED"), (20_000, "SYN_SENT")]);
    // B has one that nobody has answered, and A, who asks, has one connection: no more than that.
    let next = syn(&A, 10_002);
    lab.rx(A.port, &next).moved("conn.full", 1).dropped("a", "conntrack_full");
}

/// Rows: RFC 6888 REQ-4, REQ-5.
#[test]
fn an_endpoint_has_no_more_connections_than_it_may() {
    let mut spec = topology();
    spec.dnat = vec![publish_tcp(7, 8080, &A, 80)];
    let mut lab = Lab::with(&limits(16, 4), spec);
    let syn = |port| tcp(&CLIENT, port, &UP, 8080, SYN);
    for port in 1..4 {
        come(&mut lab, &syn(port), 7);
    }
    // A crowd outside has three quarters of it, and the rest is for what A begins itself.
    lab.rx(UP.port, syn(4)).dropped("up", "endpoint_limit");
    begin(&mut lab, &query(&A, 0), &A);
    lab.rx(A.port, query(&A, 1)).dropped("a", "endpoint_limit");
    begin(&mut lab, &query(&B, 1), &B);
    // What there is goes on, and what has ended makes room.
    let again = query(&A, 0);
    lab.rx(A.port, &again).tx(UP.port, again.src(UP.ip).routed(UP.mac, ROUTER.mac));
    lab.after(std::time::Duration::from_secs(31)).only_balanced();
    begin(&mut lab, &query(&A, 3), &A);
}

/// A connection from outside by a published port.
fn come(lab: &mut Lab, packet: &Packet, rule: u32) {
    lab.rx(UP.port, packet)
        .moved("conn.new", 1)
        .moved(&format!("dnat.{rule}.packets"), 1)
        .moved(&format!("dnat.{rule}.bytes"), packet.ip_len() as i64)
        .take_one(A.port);
}

#[test]
fn the_addresses_of_an_endpoint_share_what_it_may_have() {
    let mut spec = dual();
    let rule = publish_tcp(7, 8080, &A, 80);
    spec.dnat = vec![rule, DnatRule { id: 8, to: A.ip6().into(), ..rule }];
    let mut lab = Lab::with(&limits(16, 5), spec);
    let now = lab.now;
    let link = Link::Uplink(UPLINK);
    lab.plane.tables().neighbors.confirm(link, ROUTER.ip6(), ROUTER.mac, true, now);
    begin(&mut lab, &query(&A, 0), &A);
    begin(&mut lab, &query(&A, 1).v6(), &A);
    let syn = |port| tcp(&CLIENT, port, &UP, 8080, SYN);
    come(&mut lab, &syn(1), 7);
    come(&mut lab, &syn(2).v6(), 8);
    begin(&mut lab, &query(&A, 2), &A);
    for more in [query(&A, 3), query(&A, 3).v6()] {
        lab.rx(A.port, &more).dropped("a", "endpoint_limit");
    }
    for more in [syn(3), syn(3).v6()] {
        lab.rx(UP.port, &more).dropped("up", "endpoint_limit");
    }
    begin(&mut lab, &query(&B, 3).v6(), &B);
    let full = lab.plane.limits().into_iter().find(|limit| limit.name == "conntrack_per_endpoint");
    assert_eq!(full.map(|limit| (limit.current, limit.peak, limit.limit)), Some((5, 5, 5)));

    // An address that becomes B's takes what is booked to it along.
    lab.reconfigure(|spec| {
        for port in &mut spec.ports {
            if let PortRole::Endpoint { ipv6, mac, .. } = &mut port.role {
                match *mac {
                    mac if mac == A.mac => ipv6.clear(),
                    mac if mac == B.mac => ipv6.push(A.ip6()),
                    _ => {}
                }
            }
        }
    });
    begin(&mut lab, &query(&A, 4), &A);
    begin(&mut lab, &query(&B, 5), &B);
    begin(&mut lab, &query(&A, 5), &A);
    lab.rx(A.port, query(&A, 6)).dropped("a", "endpoint_limit");
    begin(&mut lab, &query(&B, 6), &B);
    lab.rx(B.port, query(&B, 7)).dropped("b", "endpoint_limit");
}

/// How full the network is that has the least room, by `conntrack_per_network`.
fn network_limit(lab: &Lab) -> Option<(u64, u64, u64)> {
    let limits = lab.plane.limits().into_iter();
    let mut limits = limits.filter(|limit| limit.name == "conntrack_per_network");
    limits.next().map(|limit| (limit.current, limit.peak, limit.limit))
}

/// Rows: Open vSwitch `conntrack: limit by zone`; VPP `test_session_limit_per_vrf`.
#[test]
fn a_network_has_no_more_connections_than_its_limit() {
    let mut spec = dual();
    spec.networks[0].conntrack_limit = Some(8);
    let mut lab = Lab::new(spec);
    let now = lab.now;
    let link = Link::Uplink(UPLINK);
    lab.plane.tables().neighbors.confirm(link, ROUTER.ip6(), ROUTER.mac, true, now);
    // One of it has three quarters at most, in both families together.
    for n in 0..5 {
        begin(&mut lab, &query(&A, n), &A);
    }
    begin(&mut lab, &query(&A, 5).v6(), &A);
    for more in [query(&A, 6), query(&A, 6).v6()] {
        lab.rx(A.port, &more).dropped("a", "endpoint_limit");
    }
    begin(&mut lab, &query(&B, 6), &B);
    begin(&mut lab, &query(&B, 7).v6(), &B);
    for more in [query(&B, 8), query(&B, 8).v6()] {
        lab.rx(B.port, &more).dropped("b", "network_limit");
    }
    lab.rx(C.port, query(&C, 8)).dropped("c", "network_limit");
    assert_eq!(network_limit(&lab), Some((8, 8, 8)));
    // Another network has none, and what there is goes on.
    let other = udp(&D, 40_000, &SERVER, 53).via(GATEWAY2.mac);
    lab.rx(D.port, &other)
        .moved("conn.new", 1)
        .moved("masquerade.2.packets", 1)
        .moved("masquerade.2.bytes", other.ip_len() as i64)
        .take_one(UP.port);
    let again = query(&B, 6);
    lab.rx(B.port, &again).tx(UP.port, again.src(UP.ip).routed(UP.mac, ROUTER.mac));
    // One that ends leaves its place to others.
    assert_eq!(lab.plane.flush_connections(&|c| c.original.src_port == 40_005), 1);
    assert_eq!(network_limit(&lab), Some((7, 8, 8)));
    begin(&mut lab, &query(&C, 8), &C);
    // Without a limit there is none; a lower one ends nothing.
    lab.reconfigure(|spec| spec.networks[0].conntrack_limit = None);
    assert_eq!(network_limit(&lab), None);
    begin(&mut lab, &query(&C, 9), &C);
    lab.reconfigure(|spec| spec.networks[0].conntrack_limit = Some(2));
    assert_eq!((network_limit(&lab), lab.connections().len()), (Some((9, 9, 2)), 10));
    lab.rx(C.port, query(&C, 10)).dropped("c", "network_limit");
    assert_eq!(lab.plane.flush_connections(&|_| true), 10);
    assert_eq!(network_limit(&lab), Some((0, 9, 2)));
    begin(&mut lab, &query(&C, 10), &C);
}

/// A crowd outside leaves something to who is in it.
#[test]
fn who_comes_from_outside_has_three_quarters_of_a_network() {
    let mut spec = topology();
    spec.networks[0].conntrack_limit = Some(8);
    spec.dnat = vec![publish_tcp(7, 8080, &A, 80), publish_tcp(8, 8081, &B, 80)];
    let mut lab = Lab::new(spec);
    let syn = |client, port| tcp(&CLIENT, client, &UP, port, SYN);
    for n in 0..3 {
        come(&mut lab, &syn(n, 8080), 7);
    }
    for n in 0..3 {
        lab.rx(UP.port, syn(n, 8081))
            .moved("conn.new", 1)
            .moved("dnat.8.packets", 1)
            .moved("dnat.8.bytes", syn(n, 8081).ip_len() as i64)
            .take_one(B.port);
    }
    lab.rx(UP.port, syn(9, 8080)).dropped("up", "network_limit");
    begin(&mut lab, &query(&A, 0), &A);
    begin(&mut lab, &query(&B, 0), &B);
    lab.rx(A.port, query(&A, 1)).dropped("a", "network_limit");
}

#[test]
fn an_endpoint_begins_no_more_connections_in_a_second_than_it_may() {
    let options = EngineOptions { new_connections_per_endpoint: 3, ..small() };
    let mut lab = Lab::with(&options, topology());
    for n in 0..3 {
        begin(&mut lab, &query(&A, n), &A);
    }
    lab.rx(A.port, query(&A, 3)).dropped("a", "endpoint_rate");
    begin(&mut lab, &query(&B, 3), &B);
    let again = query(&A, 0);
    lab.rx(A.port, &again).tx(UP.port, again.src(UP.ip).routed(UP.mac, ROUTER.mac));
    // Nor when all that it began has ended meanwhile.
    lab.plane.flush_connections(&|connection| connection.original.src == A.ip);
    lab.rx(A.port, query(&A, 3)).dropped("a", "endpoint_rate");
    lab.after(std::time::Duration::from_secs(1)).only_balanced();
    begin(&mut lab, &query(&A, 3), &A);
}

#[test]
fn whoever_speaks_from_other_addresses_spends_what_the_network_has() {
    let mut spec = topology();
    without_guard(&mut spec);
    let mut lab = Lab::with(&limits(16, 2), spec);
    // A takes B's address, and one of nobody.
    let [as_other, nobody] =
        [B.ip, [10, 1, 0, 77].into()].map(|ip| Host { port: A.port, mac: A.mac, ip });
    for packet in [query(&as_other, 0), query(&nobody, 1)] {
        lab.rx(A.port, &packet).masqueraded(&packet).take_one(UP.port);
    }
    lab.rx(A.port, query(&nobody, 2)).dropped("a", "endpoint_limit");
    for n in 3..5 {
        begin(&mut lab, &query(&A, n), &A);
        begin(&mut lab, &query(&B, n), &B);
    }
}

#[test]
fn a_flood_to_a_server_keeps_no_port_from_others() {
    let mut spec = topology();
    spec.uplinks[0].nat_ports = vec![(50_000, 50_003)];
    let mut lab = Lab::new(spec);
    let syn = |from, port| tcp(from, port, &SERVER, 80, SYN).via(GATEWAY1.mac);
    for port in 40_000..40_004 {
        begin(&mut lab, &syn(&A, port), &A);
    }
    // Whoever holds them all is told.
    let more = syn(&A, 40_004);
    let told = icmp_error(&GATEWAY1, &A, 3, 13, &more, 548).tos(0xc0).ident(0);
    lab.rx(A.port, &more)
        .tx(A.port, told)
        .moved("generated", 1)
        .moved("conn.ports_exhausted", 1)
        .dropped("a", "snat_ports_exhausted");
    // Another gets one, with the server's answer.
    let other = syn(&B, 45_000);
    let out = lab
        .rx(B.port, &other)
        .masqueraded(&other)
        .moved("conn.entries", -1)
        .moved("conn.evicted", 1)
        .take_one(UP.port);
    let port = u16::from_be_bytes([out.bytes[34], out.bytes[35]]);
    assert!((50_000..50_004).contains(&port), "{port}");
    let back = tcp(&SERVER, 80, &UP, port, SYN | ACK);
    let inside = tcp(&SERVER, 80, &B, 45_000, SYN | ACK);
    lab.rx(UP.port, back).tx(B.port, inside.routed(GATEWAY1.mac, B.mac));
    assert_eq!((count(&lab, &A), count(&lab, &B)), (3, 1));
}

/// Ports towards several servers are counted at the same places by chance; that one looks taken is no reason
/// to end a connection while it is free.
#[test]
fn nobody_goes_for_a_port_while_another_is_free() {
    const SERVERS: u16 = 1000;
    let mut spec = topology();
    spec.uplinks[0].nat_ports = vec![(50_000, 50_001)];
    let mut lab = Lab::with(&limits(16_384, 16_384), spec);
    for server in 0..SERVERS {
        let [high, low] = server.to_be_bytes();
        let server = Host { ip: [198, 18, high, low].into(), ..SERVER };
        // Both want the first of the two ports.
        for from in [&A, &B] {
            let syn = tcp(from, 50_000, &server, 80, SYN).via(GATEWAY1.mac);
            begin(&mut lab, &syn, from);
        }
    }
    assert_eq!((count(&lab, &A), count(&lab, &B)), (SERVERS.into(), SERVERS.into()));
}
