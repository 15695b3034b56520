//! SNAT out, un-NAT of the replies, published ports, hairpins.

use std::net::Ipv4Addr;
use std::time::Duration;

use dataplane::config::DnatRule;
use dataplane::packet::types::tcp_flags::{ACK, SYN};
use dataplane::packet::types::{PortId, ip_proto};
use tests::lab::{
    A, B, C, CLIENT, D, GATEWAY1, GATEWAY2, HOST_ADDRESS, Lab, NET1, ROUTER, SERVER, Step, UP,
    publish, publish_tcp, topology,
};
use tests::packet::sctp::{INIT, sctp};
use tests::packet::{Host, Packet, Wire, echo, echo_reply, ip, reported, tcp, udp};

tests::in_ipv6! {
    a_changed_port_keeps_its_parity
    a_flow_of_one_batch_is_one_connection
    a_hairpin_does_not_go_round
    a_hairpin_needs_no_icc
    a_long_published_range_leaves_the_rest_and_other_protocols
    a_port_that_is_taken_is_replaced_and_each_reply_finds_its_way
    a_published_port_is_no_outside_port
    a_published_port_leads_in_and_the_client_keeps_its_address
    a_range_maps_port_by_port_and_the_narrower_rule_wins
    a_zero_udp_checksum_stays_zero
    one_other_port_serves_many_destinations_too
    an_identifier_that_is_taken_is_replaced
    a_hop_limit_that_runs_out_on_the_way_in_is_told_outside
    a_mapping_is_one_protocol_s
    a_port_of_a_full_range_is_used_again
    an_internal_network_reaches_no_published_port_of_another
    containers_reach_a_published_port_by_any_address_of_the_host
    hairpins_by_other_addresses_keep_the_port_or_its_class_and_parity
    nobody_outside_can_pretend_to_be_inside
    nothing_leads_into_an_internal_network
    one_client_port_by_two_published_ports_to_one_server
    one_port_serves_many_destinations
    only_what_is_published_leads_in
    ports_come_from_the_uplink_s_range_and_class
    tcp_udp_and_echo_go_out_under_the_outside_address_and_come_back
    two_networks_with_the_same_inside_ports_do_not_meet
    when_all_ports_are_taken_the_sender_is_told
    without_masquerade_the_source_stays
}

const RULE: u32 = 7;

/// A lab in which port 8080 is B's port 80.
fn published() -> Lab {
    let mut spec = topology();
    spec.dnat.push(publish_tcp(RULE, 8080, &B, 80));
    Lab::new(spec)
}

/// As a packet from inside looks on the uplink.
fn outside(packet: &Packet) -> Packet {
    packet.clone().src(UP.ip).routed(UP.mac, ROUTER.mac)
}

/// As a packet from outside looks inside.
fn inside(packet: &Packet, to: &Host) -> Packet {
    packet.clone().dst(to.ip).routed(GATEWAY1.mac, to.mac)
}

trait Counts {
    fn dnat(self, packet: &Packet) -> Self;
}

impl Counts for Step<'_> {
    /// A new connection by the rule.
    fn dnat(self, packet: &Packet) -> Self {
        self.moved("conn.new", 1)
            .moved("dnat.7.packets", 1)
            .moved("dnat.7.bytes", packet.ip_len() as i64)
    }
}

fn ports(wire: &Wire) -> (u16, u16) {
    (wire.l4_u16(0), wire.l4_u16(2))
}

/// Rows: RFC 6888 REQ-1; Open vSwitch `conntrack: IPv4 ping, new connections`; Open vSwitch `conntrack: IPv6
/// ping`; VPP `test_dynamic`.
#[test]
fn tcp_udp_and_echo_go_out_under_the_outside_address_and_come_back() {
    let mut lab = Lab::default();
    let cases = [
        (tcp(&A, 40_000, &SERVER, 80, SYN), tcp(&SERVER, 80, &UP, 40_000, SYN | ACK)),
        (udp(&A, 40_000, &SERVER, 53), udp(&SERVER, 53, &UP, 40_000)),
        (echo(&A, &SERVER, 40_000), echo_reply(&SERVER, &UP, 40_000)),
    ];
    for (there, back) in cases {
        let there = there.via(GATEWAY1.mac);
        lab.rx(A.port, &there).tx(UP.port, outside(&there)).masqueraded(&there);
        lab.rx(UP.port, &back).tx(A.port, inside(&back, &A));
    }
    for connection in lab.connections() {
        assert!(connection.snat && !connection.dnat, "{connection:?}");
        assert_eq!((connection.original.src, connection.reply.dst), (ip(A.ip), ip(UP.ip)));
        assert_eq!((connection.packets, connection.network), ([1, 1], NET1));
    }
}

#[test]
fn a_zero_udp_checksum_stays_zero() {
    let mut lab = Lab::default();
    let without = |packet: &Packet| {
        let mut wire = Wire::from(packet);
        let at = wire.l4() + 6;
        wire.bytes[at..at + 2].fill(0);
        wire
    };
    let there = udp(&A, 40_000, &SERVER, 53).via(GATEWAY1.mac);
    lab.rx(A.port, without(&there)).tx(UP.port, without(&outside(&there))).masqueraded(&there);
    let back = udp(&SERVER, 53, &UP, 40_000);
    lab.rx(UP.port, without(&back)).tx(A.port, without(&inside(&back, &A)));
}

#[test]
fn ip_options_and_tags_of_service_survive() {
    let mut lab = Lab::default();
    let there = udp(&A, 40_000, &SERVER, 53).via(GATEWAY1.mac).tos(0xb8).ip_options(&[1, 1, 1, 0]);
    lab.rx(A.port, &there).tx(UP.port, outside(&there)).masqueraded(&there);
}

/// Rows: RFC 4787 REQ-11; RFC 5382 REQ-7.
#[test]
fn a_port_that_is_taken_is_replaced_and_each_reply_finds_its_way() {
    for (first, second, answer) in [
        (udp(&A, 40_000, &SERVER, 53), udp(&B, 40_000, &SERVER, 53), udp(&SERVER, 53, &UP, 0)),
        (
            tcp(&A, 40_000, &SERVER, 80, SYN),
            tcp(&B, 40_000, &SERVER, 80, SYN),
            tcp(&SERVER, 80, &UP, 0, SYN | ACK),
        ),
    ] {
        let mut lab = Lab::default();
        let (first, second) = (first.via(GATEWAY1.mac), second.via(GATEWAY1.mac));
        lab.rx(A.port, &first).tx(UP.port, outside(&first)).masqueraded(&first);
        let came = lab.rx(B.port, &second).masqueraded(&second).take_one(UP.port);
        let (other, _) = ports(&came);
        assert!(other != 40_000 && other >= 1024, "{other}");
        assert_eq!(came, outside(&second).sport(other).into());
        lab.rx(B.port, &second).tx(UP.port, outside(&second).sport(other));
        let (to_first, to_second) = (answer.clone().dport(40_000), answer.dport(other));
        lab.rx(UP.port, &to_second).tx(B.port, inside(&to_second, &B).dport(40_000));
        lab.rx(UP.port, &to_first).tx(A.port, inside(&to_first, &A));
    }
}

/// RFC 4787 REQ-4.
#[test]
fn a_changed_port_keeps_its_parity() {
    let mut lab = Lab::default();
    for port in 40_000..40_020 {
        for from in [&A, &B] {
            let packet = udp(from, port, &SERVER, 53).via(GATEWAY1.mac);
            let came = lab.rx(from.port, &packet).masqueraded(&packet).take_one(UP.port);
            assert_eq!(ports(&came).0 % 2, port % 2, "of {port}");
        }
    }
    // Where none of it is left, any will do.
    let mut spec = topology();
    spec.uplinks[0].nat_ports = vec![(50_000, 50_000), (50_001, 50_001)];
    let mut lab = Lab::new(spec);
    let mut left = Vec::new();
    for (from, port) in [(&A, 40_000), (&B, 40_002)] {
        let packet = udp(from, port, &SERVER, 53).via(GATEWAY1.mac);
        let came = lab.rx(from.port, &packet).masqueraded(&packet).take_one(UP.port);
        left.push(ports(&came).0);
    }
    assert_eq!(left, [50_000, 50_001]);
}

/// Rows: RFC 5508 REQ-1; Open vSwitch `conntrack: SNAT with icmp_id, port range using ICMP`.
#[test]
fn an_identifier_that_is_taken_is_replaced() {
    let mut lab = Lab::default();
    let (first, second) = (echo(&A, &SERVER, 2000), echo(&B, &SERVER, 2000));
    let (first, second) = (first.via(GATEWAY1.mac), second.via(GATEWAY1.mac));
    lab.rx(A.port, &first).tx(UP.port, outside(&first)).masqueraded(&first);
    let came = lab.rx(B.port, &second).masqueraded(&second).take_one(UP.port);
    let id = came.l4_u16(4);
    assert_ne!(id, 2000);
    assert_eq!(came, outside(&second).sport(id).into());
    let back = echo_reply(&SERVER, &UP, id);
    lab.rx(UP.port, &back).tx(B.port, inside(&back, &B).sport(2000));
}

/// Rows: RFC 7857 §3.
#[test]
fn one_port_serves_many_destinations() {
    let mut lab = Lab::default();
    for n in 0..50 {
        let server = Host { ip: Ipv4Addr::new(198, 51, 100, n), ..SERVER };
        for (from, port) in [(&A, A.port), (&B, B.port)] {
            let there = udp(from, 40_000, &server, 53).via(GATEWAY1.mac);
            let came = lab.rx(port, &there).masqueraded(&there).take_one(UP.port);
            // A comes first and keeps its port with every server.
            assert_eq!(ports(&came).0 == 40_000, port == A.port);
        }
    }
}

/// As on a shared uplink, whose range has none of the ports that clients draw.
#[test]
fn one_other_port_serves_many_destinations_too() {
    let datagram = |from: &Host, port, to: &Host| udp(from, port, to, 53);
    let syn = |from: &Host, port, to: &Host| tcp(from, port, to, 80, SYN);
    for first in [datagram as fn(&Host, u16, &Host) -> Packet, syn] {
        let mut spec = topology();
        spec.uplinks[0].nat_ports = vec![(50_000, 50_999)];
        let mut lab = Lab::new(spec);
        let mut had: [Option<u16>; 3] = [None; 3];
        for n in 0..50 {
            let server = Host { ip: Ipv4Addr::new(198, 51, 100, n), ..SERVER };
            for (at, (from, inside)) in
                [(&A, 40_000), (&B, 40_000), (&A, 40_002)].into_iter().enumerate()
            {
                let there = first(from, inside, &server).via(GATEWAY1.mac);
                let came = lab.rx(from.port, &there).masqueraded(&there).take_one(UP.port);
                let port = ports(&came).0;
                assert_eq!(*had[at].get_or_insert(port), port, "{at} at server {n}");
            }
        }
        assert!(had[0] != had[1] && had[0] != had[2] && had[1] != had[2], "{had:?}");
    }
}

/// Rows: RFC 4787 REQ-3a; VPP `test_port_range`.
#[test]
fn ports_come_from_the_uplink_s_range_and_class() {
    let mut spec = topology();
    spec.uplinks[0].nat_ports = vec![(600, 699), (50_000, 50_099)];
    let mut lab = Lab::new(spec);
    for n in 0..50u16 {
        for (inside, low, high) in [(40_000 + n, 50_000, 50_099), (n + 1, 600, 699)] {
            let there = udp(&A, inside, &SERVER, 53).via(GATEWAY1.mac);
            let came = lab.rx(A.port, &there).masqueraded(&there).take_one(UP.port);
            let (port, _) = ports(&came);
            assert!((low..=high).contains(&port), "{inside} became {port}");
        }
    }
    let kept = udp(&B, 650, &CLIENT, 53).via(GATEWAY1.mac);
    lab.rx(B.port, &kept).tx(UP.port, outside(&kept)).masqueraded(&kept);
}

/// Rows: RFC 7857 §5, §6; Linux `nft_nat.sh: port shadow`.
#[test]
fn a_published_port_is_no_outside_port() {
    let mut spec = topology();
    spec.dnat.push(publish(RULE, ip_proto::UDP, 40_000, &B, 53));
    let mut lab = Lab::new(spec);
    let there = udp(&A, 40_000, &SERVER, 53).via(GATEWAY1.mac);
    let came = lab.rx(A.port, &there).masqueraded(&there).take_one(UP.port);
    assert_ne!(ports(&came).0, 40_000);
    // The same number of another protocol is free.
    let there = tcp(&A, 40_000, &SERVER, 53, SYN).via(GATEWAY1.mac);
    lab.rx(A.port, &there).tx(UP.port, outside(&there)).masqueraded(&there);
}

#[test]
fn a_long_published_range_leaves_the_rest_and_other_protocols() {
    let mut spec = topology();
    let mut rule = publish(RULE, ip_proto::UDP, 1024, &B, 1024);
    rule.host_ports = (1024, 65_534);
    spec.dnat.push(rule);
    let mut lab = Lab::new(spec);
    let there = udp(&A, 40_000, &SERVER, 53).via(GATEWAY1.mac);
    let came = lab.rx(A.port, &there).masqueraded(&there).take_one(UP.port);
    assert_eq!(ports(&came).0, 65_535);
    let there = tcp(&A, 40_000, &SERVER, 53, SYN).via(GATEWAY1.mac);
    lab.rx(A.port, &there).tx(UP.port, outside(&there)).masqueraded(&there);
}

/// Rows: RFC 6888 REQ-11, RFC 5508 REQ-8; Open vSwitch `conntrack: SNAT with port range, with exhaustion`; VPP
/// `test_dynamic_out_of_ports, test_dynamic_ports_exhausted`.
#[test]
fn when_all_ports_are_taken_the_sender_is_told() {
    let mut spec = topology();
    spec.uplinks[0].nat_ports = vec![(50_000, 50_003)];
    let mut lab = Lab::new(spec);
    for n in 0..4 {
        let there = udp(&A, 40_000 + n, &SERVER, 53).via(GATEWAY1.mac);
        lab.rx(A.port, &there).masqueraded(&there).take_one(UP.port);
    }
    let there = udp(&A, 40_004, &SERVER, 53).via(GATEWAY1.mac);
    let told = reported(&GATEWAY1, &A, 3, 13, &there);
    lab.rx(A.port, &there)
        .tx(A.port, told)
        .moved("generated", 1)
        .moved("conn.ports_exhausted", 1)
        .dropped("a", "snat_ports_exhausted");
    let elsewhere = udp(&A, 40_004, &CLIENT, 53).via(GATEWAY1.mac);
    lab.rx(A.port, &elsewhere).masqueraded(&elsewhere).take_one(UP.port);
}

/// Rows: RFC 6888 REQ-8.
#[test]
fn a_port_of_a_full_range_is_used_again() {
    let mut spec = topology();
    spec.uplinks[0].nat_ports = vec![(50_000, 50_001)];
    let mut lab = Lab::new(spec);
    let there = |n: u16| udp(&A, 40_000 + n, &SERVER, 53).via(GATEWAY1.mac);
    let mut ports = Vec::new();
    for n in 0..2 {
        let packet = there(n);
        ports.push(ports_of(lab.rx(A.port, &packet).masqueraded(&packet), UP.port).0);
    }
    lab.after(Duration::from_secs(20));
    // The first flow goes on where it is while the second one ends.
    let kept = ports_of(lab.rx(A.port, there(0)), UP.port).0;
    assert_eq!(kept, ports[0]);
    let full = there(2);
    lab.rx(A.port, &full)
        .tx(A.port, reported(&GATEWAY1, &A, 3, 13, &full))
        .moved("generated", 1)
        .moved("conn.ports_exhausted", 1)
        .dropped("a", "snat_ports_exhausted");
    lab.after(Duration::from_secs(10)).moved("conn.entries", -1).moved("conn.expired", 1);
    let again = ports_of(lab.rx(A.port, &full).masqueraded(&full), UP.port).0;
    assert_eq!(again, ports[1]);
    assert_eq!(ports_of(lab.rx(A.port, there(0)), UP.port).0, ports[0]);
}

fn ports_of(step: Step<'_>, by: PortId) -> (u16, u16) {
    ports(&step.take_one(by))
}

/// RFC 7857 §5, §6.
#[test]
fn a_mapping_is_one_protocol_s() {
    let mut lab = Lab::default();
    let there = udp(&A, 40_000, &SERVER, 4242).via(GATEWAY1.mac);
    lab.rx(A.port, &there).masqueraded(&there).tx(UP.port, outside(&there));
    for foreign in [
        tcp(&SERVER, 4242, &UP, 40_000, SYN),
        tcp(&SERVER, 4242, &UP, 40_000, ACK),
        sctp(&SERVER, 4242, &UP, 40_000, 0).asks_for(INIT, 1),
        echo_reply(&SERVER, &UP, 40_000),
    ] {
        lab.rx(UP.port, foreign).dropped("up", "unsolicited");
    }
    // Another protocol has the same port to itself.
    let syn = tcp(&A, 40_000, &SERVER, 4242, SYN).via(GATEWAY1.mac);
    lab.rx(A.port, &syn).masqueraded(&syn).tx(UP.port, outside(&syn));
    let back = udp(&SERVER, 4242, &UP, 40_000);
    lab.rx(UP.port, &back).tx(A.port, inside(&back, &A));
}

/// What SIP, FTP and IRC say of addresses and ports is left as it is and opens nothing.
#[test]
fn what_a_payload_says_of_ports_opens_nothing() {
    let mut lab = Lab::default();
    let invite = b"INVITE sip:bob@example.org SIP/2.0\r\nVia: SIP/2.0/UDP 10.1.0.2:5060\r\n\
        Contact: <sip:alice@10.1.0.2:5060>\r\nContent-Type: application/sdp\r\n\r\n\
        c=IN IP4 10.1.0.2\r\nm=audio 41000 RTP/AVP 0\r\n";
    let call = udp(&A, 5060, &SERVER, 5060).via(GATEWAY1.mac).payload(invite);
    lab.rx(A.port, &call).masqueraded(&call).tx(UP.port, outside(&call));
    for (from, to, said) in [
        (40_000, 21, &b"PORT 10,1,0,2,160,40\r\n"[..]),
        (40_001, 21, b"EPRT |1|10.1.0.2|41000|\r\n"),
        (40_002, 6667, b"PRIVMSG bob :\x01DCC CHAT chat 167837698 41000\x01\r\n"),
    ] {
        let syn = tcp(&A, from, &SERVER, to, SYN).via(GATEWAY1.mac);
        lab.rx(A.port, &syn).masqueraded(&syn).tx(UP.port, outside(&syn));
        let answer = tcp(&SERVER, to, &UP, from, SYN | ACK);
        lab.rx(UP.port, &answer).tx(A.port, inside(&answer, &A));
        let command = tcp(&A, from, &SERVER, to, ACK).via(GATEWAY1.mac).payload(said);
        lab.rx(A.port, &command).tx(UP.port, outside(&command));
    }
    for invited in [
        udp(&SERVER, 30_000, &UP, 41_000),
        tcp(&SERVER, 20, &UP, 41_000, SYN),
        tcp(&SERVER, 30_000, &UP, 41_000, SYN),
        udp(&CLIENT, 5060, &UP, 5060),
    ] {
        lab.rx(UP.port, invited).dropped("up", "unsolicited");
    }
    assert_eq!(lab.connections().len(), 4);
}

#[test]
fn a_hop_limit_that_runs_out_on_the_way_in_is_told_outside() {
    let mut lab = published();
    let syn = tcp(&CLIENT, 5000, &UP, 8080, SYN);
    let told = |lab: &mut Lab, packet: &Packet| {
        lab.rx(UP.port, packet)
            .tx(UP.port, reported(&UP, &CLIENT, 11, 0, packet))
            .moved("generated", 1)
            .dropped("up", "ttl_exceeded");
    };
    // What begins a connection begins none; of one that exists nothing changes.
    told(&mut lab, &syn.clone().ttl(1));
    assert!(lab.connections().is_empty());
    lab.rx(UP.port, &syn).tx(B.port, inside(&syn, &B).dport(80)).dnat(&syn);
    told(&mut lab, &syn.clone().ttl(1));
    assert_eq!(lab.connection().packets, [1, 0]);
    // And of an answer.
    let there = udp(&A, 40_000, &CLIENT, 53).via(GATEWAY1.mac);
    lab.rx(A.port, &there).masqueraded(&there).tx(UP.port, outside(&there));
    told(&mut lab, &udp(&CLIENT, 53, &UP, 40_000).ttl(1));
}

/// Rows: RFC 6888 REQ-6; VPP `test_forwarding`; VPP `test_identity_nat`; moby `TestDisableNAT`.
#[test]
fn without_masquerade_the_source_stays() {
    let mut lab = Lab::default();
    lab.reconfigure(|spec| spec.networks[0].masquerade = false);
    let there = udp(&A, 40_000, &SERVER, 53).via(GATEWAY1.mac);
    lab.rx(A.port, &there).tx(UP.port, there.routed(UP.mac, ROUTER.mac)).moved("conn.new", 1);
    let back = udp(&SERVER, 53, &UP, 40_000).dst(A.ip);
    lab.rx(UP.port, &back).tx(A.port, back.routed(GATEWAY1.mac, A.mac));
    assert!(!lab.connection().snat);
}

/// Rows: Open vSwitch `conntrack: simple DNAT, more complex DNAT`; Linux `nft_nat.sh: IPv6 cases`; VPP
/// `test_static_with_port_out2`; VPP `test_static_in, test_static_out, with port`.
#[test]
fn a_published_port_leads_in_and_the_client_keeps_its_address() {
    let mut lab = published();
    let syn = tcp(&CLIENT, 5000, &UP, 8080, SYN);
    lab.rx(UP.port, &syn).tx(B.port, inside(&syn, &B).dport(80)).dnat(&syn);
    let answer = tcp(&B, 80, &CLIENT, 5000, SYN | ACK).via(GATEWAY1.mac);
    lab.rx(B.port, &answer).tx(UP.port, outside(&answer).sport(8080));
    let ack = tcp(&CLIENT, 5000, &UP, 8080, ACK).payload(b"GET /");
    lab.rx(UP.port, &ack).tx(B.port, inside(&ack, &B).dport(80));
    let connection = lab.connection();
    assert!(connection.dnat && !connection.snat);
    assert_eq!((connection.original.dst, connection.original.dst_port), (ip(UP.ip), 8080));
    assert_eq!((connection.reply.src, connection.reply.src_port), (ip(B.ip), 80));
    assert_eq!((connection.state, connection.packets), ("ESTABLISHED", [2, 1]));
}

/// Rows: RFC 4787 REQ-8, RFC 5382 REQ-3, RFC 6888 REQ-7; RFC 4787 REQ-10, RFC 5382 REQ-6.
#[test]
fn only_what_is_published_leads_in() {
    let mut lab = published();
    for packet in [
        tcp(&CLIENT, 5000, &UP, 8081, SYN),
        tcp(&CLIENT, 5000, &UP, 8079, SYN),
        udp(&CLIENT, 5000, &UP, 8080),
        tcp(&CLIENT, 5000, &UP, 8080, ACK),
        tcp(&CLIENT, 5000, &B, 80, SYN).via(UP.mac),
        udp(&CLIENT, 5000, &SERVER, 80).via(UP.mac),
    ] {
        lab.rx(UP.port, &packet).dropped("up", "unsolicited");
    }
}

#[test]
fn nobody_outside_can_pretend_to_be_inside() {
    let mut lab = published();
    for from in [&A, &B, &D] {
        let spoofed = tcp(&CLIENT, 5000, &UP, 8080, SYN).src(from.ip);
        lab.rx(UP.port, &spoofed).dropped("up", "martian");
    }
}

/// Rows: moby `TestMixAnyWithSpecificHostAddrs`.
#[test]
fn a_range_maps_port_by_port_and_the_narrower_rule_wins() {
    let mut spec = topology();
    spec.dnat.push(DnatRule {
        host_ports: (9000, 9999),
        to_port: 2000,
        ..publish(RULE, ip_proto::UDP, 0, &A, 0)
    });
    spec.dnat
        .push(DnatRule { host_ip: Some(ip(UP.ip)), ..publish(8, ip_proto::UDP, 9500, &B, 53) });
    let mut lab = Lab::new(spec);
    for (port, inner) in [(9000, 2000), (9001, 2001), (9999, 2999)] {
        let packet = udp(&CLIENT, 5000, &UP, port);
        lab.rx(UP.port, &packet).tx(A.port, inside(&packet, &A).dport(inner)).dnat(&packet);
    }
    let packet = udp(&CLIENT, 5000, &UP, 9500);
    lab.rx(UP.port, &packet)
        .tx(B.port, inside(&packet, &B).dport(53))
        .moved("conn.new", 1)
        .moved("dnat.8.packets", 1)
        .moved("dnat.8.bytes", packet.ip_len() as i64);
    // By another of our addresses the wide rule holds.
    let packet = udp(&C, 5000, &GATEWAY1, 9500).dst(HOST_ADDRESS);
    let came = lab.rx(C.port, &packet).dnat(&packet).take_one(A.port);
    assert_eq!(ports(&came).1, 2500);
    for port in [8999, 10_000] {
        lab.rx(UP.port, udp(&CLIENT, 5000, &UP, port)).dropped("up", "unsolicited");
    }
}

/// `client` speaks to `address`:8080 and reaches B through the engine; both see `address`.
#[track_caller]
fn hairpin(client: &Host, gateway: &Host, address: Ipv4Addr) {
    let mut lab = published();
    let syn = tcp(client, 40_000, &UP, 8080, SYN).via(gateway.mac).dst(address);
    let to_server = syn.clone().src(address).dst(B.ip).dport(80).routed(GATEWAY1.mac, B.mac);
    let came = lab.rx(client.port, &syn).dnat(&syn).take_one(B.port);
    let (port, _) = ports(&came);
    assert_eq!(came, to_server.sport(port).into());
    let answer = tcp(&B, 80, &UP, port, SYN | ACK).via(GATEWAY1.mac).dst(address);
    let to_client = answer
        .clone()
        .src(address)
        .sport(8080)
        .dst(client.ip)
        .dport(40_000)
        .routed(gateway.mac, client.mac);
    lab.rx(B.port, &answer).tx(client.port, to_client);
    let connection = lab.connection();
    assert!(connection.dnat && connection.snat);
    assert_eq!((connection.state, connection.packets), ("SYN_RECV", [1, 1]));
}

/// Rows: RFC 4787 REQ-9, RFC 5382 REQ-8; Open vSwitch `conntrack: DNAT with additional SNAT`; VPP
/// `test_hairpinning`; VPP `test_self_twice_nat_positive, _negative, _lb_positive, _lb_negative`.
#[test]
fn containers_reach_a_published_port_by_any_address_of_the_host() {
    for address in [UP.ip, GATEWAY1.ip, GATEWAY2.ip, HOST_ADDRESS] {
        hairpin(&A, &GATEWAY1, address);
        // Itself.
        hairpin(&B, &GATEWAY1, address);
        // From another network.
        hairpin(&D, &GATEWAY2, address);
    }
}

/// Ports of addresses that no uplink has are chosen as those of uplinks are.
#[test]
fn hairpins_by_other_addresses_keep_the_port_or_its_class_and_parity() {
    for address in [GATEWAY1.ip, GATEWAY2.ip, HOST_ADDRESS] {
        let mut lab = published();
        lab.reconfigure(|spec| {
            spec.host_ports = Some(vec![(600, 601), (20_000, 20_004)]);
            // Published at this address, and with another protocol.
            spec.dnat
                .push(DnatRule { host_ip: Some(ip(address)), ..publish_tcp(8, 20_000, &A, 1) });
            spec.dnat.push(publish(9, 17, 20_002, &A, 1));
        });
        let mut seen = |from: &Host, port| {
            let syn = tcp(from, port, &UP, 8080, SYN).via(GATEWAY1.mac).dst(address);
            ports(&lab.rx(from.port, &syn).dnat(&syn).take_one(B.port)).0
        };
        assert_eq!(seen(&A, 20_001), 20_001, "it is free");
        assert_eq!(seen(&A, 601), 601);
        assert_eq!(seen(&C, 20_001), 20_003, "the other odd one");
        assert_eq!(seen(&C, 500), 600);
        let mut even = [seen(&A, 20_000), seen(&C, 40_000)];
        even.sort_unstable();
        assert_eq!(even, [20_002, 20_004], "what is published is not spoken from");
        let mut full = |port| {
            let syn = tcp(&A, port, &UP, 8080, SYN).via(GATEWAY1.mac).dst(address);
            lab.rx(A.port, &syn).only_balanced();
        };
        full(40_000);
        full(40_001);
        assert_eq!(lab.connections().len(), 6);
    }
}

/// VPP's `hairpinning_avoid_inf_loop`: what is for the outside address comes back inside once, or not at all.
///
/// Rows: VPP `test_hairpinning_avoid_inf_loop`.
#[test]
fn a_hairpin_does_not_go_round() {
    // The port that answers speaks to itself, from where the answer would go.
    for from in [80, 8080] {
        let mut lab = published();
        let syn = tcp(&B, from, &UP, 8080, SYN).via(GATEWAY1.mac);
        let came = lab.rx(B.port, &syn).dnat(&syn).take_one(B.port);
        assert_eq!(came, inside(&syn, &B).src(UP.ip).sport(came.l4_u16(0)).dport(80).into());
        assert_ne!(came.l4_u16(0), 8080, "it would answer itself");
        // Sent on as it came, it is nobody's: our own address is no source.
        let mut again = came;
        let (to, from) = (GATEWAY1.mac.0, B.mac.0);
        again.bytes[..12].copy_from_slice(&[to, from].concat());
        lab.reconfigure(tests::lab::without_guard);
        lab.rx(B.port, again).dropped("b", "martian");
        assert_eq!(lab.connections().len(), 1);
    }
    // What is not published leads nowhere: who asks is told so once.
    let mut lab = published();
    let syn = tcp(&B, 8081, &UP, 8081, SYN).via(GATEWAY1.mac);
    lab.rx(B.port, &syn)
        .tx(B.port, reported(&GATEWAY1, &B, 3, 3, &syn))
        .moved("generated", 1)
        .dropped("b", "no_service");
    assert!(lab.connections().is_empty());
}

#[test]
fn a_hairpin_needs_no_icc() {
    let mut lab = published();
    lab.reconfigure(|spec| spec.networks[0].icc = false);
    let syn = tcp(&A, 40_000, &UP, 8080, SYN).via(GATEWAY1.mac);
    lab.rx(A.port, &syn).dnat(&syn).take_one(B.port);
}

#[test]
fn nothing_leads_into_an_internal_network() {
    let mut lab = published();
    lab.reconfigure(|spec| spec.networks[0].internal = true);
    lab.rx(UP.port, tcp(&CLIENT, 1, &UP, 8080, SYN)).dropped("up", "internal_network");
    let from_d = tcp(&D, 1, &UP, 8080, SYN).via(GATEWAY2.mac);
    lab.rx(D.port, &from_d).dropped("d", "internal_network");
}

#[test]
fn an_internal_network_reaches_no_published_port_of_another() {
    let mut lab = published();
    lab.reconfigure(|spec| spec.networks[1].internal = true);
    let from_d = tcp(&D, 1, &UP, 8080, SYN).via(GATEWAY2.mac);
    lab.rx(D.port, &from_d).dropped("d", "internal_network");
}

/// Rows: Open vSwitch `conntrack: all-zero IP SNAT`; Linux `nft_nat.sh: dnat clash`; Linux `nf_nat_edemux.sh`.
#[test]
fn one_client_port_by_two_published_ports_to_one_server() {
    let mut spec = topology();
    spec.dnat.push(publish_tcp(RULE, 8080, &B, 80));
    spec.dnat.push(publish_tcp(8, 8081, &B, 80));
    let mut lab = Lab::new(spec);
    let first = tcp(&CLIENT, 5000, &UP, 8080, SYN);
    lab.rx(UP.port, &first).tx(B.port, inside(&first, &B).dport(80)).dnat(&first);
    let second = tcp(&CLIENT, 5000, &UP, 8081, SYN);
    let came = lab
        .rx(UP.port, &second)
        .moved("conn.new", 1)
        .moved("dnat.8.packets", 1)
        .moved("dnat.8.bytes", second.ip_len() as i64)
        .take_one(B.port);
    let (other, _) = ports(&came);
    assert_ne!(other, 5000, "the server could not tell them apart");
    assert_eq!(came, inside(&second, &B).dport(80).sport(other).into());
    // Each answer leaves by the port that its client spoke to.
    let answer = |to: u16| tcp(&B, 80, &CLIENT, to, SYN | ACK).via(GATEWAY1.mac);
    lab.rx(B.port, answer(5000)).tx(UP.port, outside(&answer(5000)).sport(8080));
    lab.rx(B.port, answer(other)).tx(UP.port, outside(&answer(other)).sport(8081).dport(5000));
}

#[test]
fn a_flow_of_one_batch_is_one_connection() {
    let mut lab = Lab::default();
    lab.keep_datagrams_apart(UP.port);
    let packets: Vec<Packet> =
        (0..8u8).map(|n| udp(&A, 40_000, &SERVER, 53).via(GATEWAY1.mac).payload(&[n])).collect();
    let mut step = lab.batch(packets.iter().map(|p| (A.port, p.into())).collect());
    for packet in &packets {
        step = step.tx(UP.port, outside(packet));
    }
    drop(step.masqueraded(&packets[0]));
    assert_eq!(lab.connection().packets, [8, 0]);
}

/// Rows: Linux `nft_nat_zones.sh, nft_zones_many.sh`; VPP `test_multiple_vrf_1 to test_multiple_vrf_5`.
#[test]
fn two_networks_with_the_same_inside_ports_do_not_meet() {
    let mut lab = Lab::default();
    let from_a = udp(&A, 40_000, &SERVER, 53).via(GATEWAY1.mac);
    lab.rx(A.port, &from_a).tx(UP.port, outside(&from_a)).masqueraded(&from_a);
    let from_d = udp(&D, 40_000, &SERVER, 53).via(GATEWAY2.mac);
    let came = lab
        .rx(D.port, &from_d)
        .moved("conn.new", 1)
        .moved("masquerade.2.packets", 1)
        .moved("masquerade.2.bytes", from_d.ip_len() as i64)
        .take_one(UP.port);
    assert_ne!(ports(&came).0, 40_000);
    // A container cannot reach into another's connection by guessing its reply tuple.
    let guess = udp(&C, 53, &UP, 40_000).via(GATEWAY1.mac);
    let refused = reported(&GATEWAY1, &C, 3, 3, &guess);
    lab.rx(C.port, &guess).tx(C.port, refused).moved("generated", 1).dropped("c", "no_service");
}
