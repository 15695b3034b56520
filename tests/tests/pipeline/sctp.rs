//! SCTP: associations by ports and verification tags, translated with their CRC kept right.

use std::time::Duration;

use dataplane::config::MAX_TIMEOUT;
use dataplane::packet::types::ip_proto;
use tests::fragments::in_two;
use tests::lab::{
    A, B, CLIENT, GATEWAY1, Lab, NET1, ROUTER, SERVER, UP, publish, topology, without_guard,
};
use tests::packet::sctp::{
    ABORT, COOKIE_ACK, COOKIE_ECHO, DATA, ERROR, HEARTBEAT, HEARTBEAT_ACK, INIT, INIT_ACK, SACK,
    SHUTDOWN, SHUTDOWN_ACK, SHUTDOWN_COMPLETE, sctp,
};
use tests::packet::{Host, Packet, Wire, icmp_error};

tests::in_ipv6! {
    a_crc_left_open_is_filled_in
    a_server_that_refuses_is_heard
    a_published_port_leads_in
    another_way_to_a_peer_begins_with_a_heartbeat
    associations_go_out_and_come_back
    chunks_that_lie_are_dropped
    errors_about_an_association_find_its_sender
    nothing_but_an_init_begins_from_either_side
    tags_that_nobody_asked_for_do_not_pass
    timers_follow_the_state
    two_clients_with_one_port_are_told_apart
    what_a_collision_brings_too_late_is_dropped
}

const PORT: u16 = 36_412;
/// What the client and the server ask to be spoken to with.
const CLIENTS: u32 = 0x0c11_e471;
const SERVERS: u32 = 0x5e57_e571;

/// As a packet from inside looks on the uplink.
fn outside(packet: &Packet) -> Packet {
    packet.clone().src(UP.ip).routed(UP.mac, ROUTER.mac)
}

/// As a packet from outside looks inside.
fn inside(packet: &Packet, to: &Host) -> Packet {
    packet.clone().dst(to.ip).routed(GATEWAY1.mac, to.mac)
}

fn there(port: u16, tag: u32) -> Packet {
    sctp(&A, port, &SERVER, PORT, tag).via(GATEWAY1.mac)
}

fn back(port: u16, tag: u32) -> Packet {
    sctp(&SERVER, PORT, &UP, port, tag)
}

/// An association that A has opened to the server from this port.
fn opened(lab: &mut Lab, port: u16) {
    for (packet, comes) in [
        (there(port, 0).asks_for(INIT, CLIENTS), false),
        (back(port, CLIENTS).asks_for(INIT_ACK, SERVERS), true),
        (there(port, SERVERS).chunk(COOKIE_ECHO, 0, b"a cookie"), false),
        (back(port, CLIENTS).chunk(COOKIE_ACK, 0, b""), true),
    ] {
        let from = if comes { UP.port } else { A.port };
        assert_eq!(lab.rx(from, packet).sent().len(), 1);
    }
}

fn state(lab: &Lab) -> &'static str {
    lab.connection().state
}

#[test]
fn associations_go_out_and_come_back() {
    let mut lab = Lab::default();
    let init = there(5000, 0).asks_for(INIT, CLIENTS);
    lab.rx(A.port, &init).masqueraded(&init).tx(UP.port, outside(&init));
    assert_eq!(state(&lab), "CLOSED");
    let comes = |lab: &mut Lab, packet: Packet| {
        lab.rx(UP.port, &packet).tx(A.port, inside(&packet, &A));
    };
    let goes = |lab: &mut Lab, packet: Packet| {
        lab.rx(A.port, &packet).tx(UP.port, outside(&packet));
    };
    comes(&mut lab, back(5000, CLIENTS).asks_for(INIT_ACK, SERVERS));
    assert_eq!(state(&lab), "COOKIE_WAIT");
    let data = b"twelve bytes, and some data of no even length";
    goes(&mut lab, there(5000, SERVERS).chunk(COOKIE_ECHO, 0, b"a cookie").chunk(DATA, 3, data));
    assert_eq!(state(&lab), "COOKIE_ECHOED");
    comes(&mut lab, back(5000, CLIENTS).chunk(COOKIE_ACK, 0, b"").chunk(SACK, 0, &[0; 12]));
    assert_eq!(state(&lab), "ESTABLISHED");
    for _ in 0..3 {
        goes(&mut lab, there(5000, SERVERS).chunk(DATA, 3, data));
        comes(&mut lab, back(5000, CLIENTS).chunk(HEARTBEAT, 0, b"info"));
        goes(&mut lab, there(5000, SERVERS).chunk(HEARTBEAT_ACK, 0, b"info"));
    }
    let connection = lab.connection();
    assert_eq!((connection.proto, connection.snat), (ip_proto::SCTP, true));
    assert_eq!((connection.original.src_port, connection.reply.src_port), (5000, PORT));
    comes(&mut lab, back(5000, CLIENTS).chunk(SACK, 0, &[0; 12]).chunk(SHUTDOWN, 0, &[0; 4]));
    assert_eq!(state(&lab), "SHUTDOWN_RECD");
    goes(&mut lab, there(5000, SERVERS).chunk(SHUTDOWN_ACK, 0, b""));
    assert_eq!(state(&lab), "SHUTDOWN_ACK_SENT");
    comes(&mut lab, back(5000, CLIENTS).chunk(SHUTDOWN_COMPLETE, 0, b""));
    assert_eq!(state(&lab), "CLOSED");
}

/// Rows: Open vSwitch `conntrack: SCTP SNAT with port range`.
#[test]
fn two_clients_with_one_port_are_told_apart() {
    let mut lab = Lab::default();
    opened(&mut lab, 5000);
    let init = sctp(&B, 5000, &SERVER, PORT, 0).via(GATEWAY1.mac).asks_for(INIT, 7);
    let out = lab.rx(B.port, &init).masqueraded(&init).take_one(UP.port);
    let port = out.l4_u16(0);
    assert_ne!(port, 5000);
    // The CRC with it, which every step verifies.
    assert_eq!(out, Wire::from(outside(&init.sport(port))));
    let answer = back(port, 7).asks_for(INIT_ACK, 8);
    lab.rx(UP.port, &answer).tx(B.port, inside(&answer.dport(5000), &B));
    let echo = sctp(&B, 5000, &SERVER, PORT, 8).via(GATEWAY1.mac).chunk(COOKIE_ECHO, 0, &[1; 99]);
    lab.rx(B.port, &echo).tx(UP.port, outside(&echo.sport(port)));
    // One that is wrong stays wrong, by as much.
    let mut wrong = Wire::from(back(port, 7).chunk(COOKIE_ACK, 0, b""));
    let crc = wrong.l4() + 8;
    wrong.bytes[crc] ^= 0x5a;
    let mut expected = Wire::from(inside(&back(5000, 7).chunk(COOKIE_ACK, 0, b""), &B));
    expected.bytes[crc] ^= 0x5a;
    lab.rx(UP.port, &wrong).sums_may_be_wrong().tx(B.port, &expected);
}

/// Rows: netavark `port forwarding, sctp`.
#[test]
fn a_published_port_leads_in() {
    let mut spec = topology();
    spec.dnat.push(publish(7, ip_proto::SCTP, 9000, &B, PORT));
    let mut lab = Lab::new(spec);
    let init = sctp(&CLIENT, 5000, &UP, 9000, 0).macs(ROUTER.mac, UP.mac).asks_for(INIT, CLIENTS);
    lab.rx(UP.port, &init)
        .moved("conn.new", 1)
        .moved("dnat.7.packets", 1)
        .moved("dnat.7.bytes", init.ip_len() as i64)
        .tx(B.port, inside(&init.clone().dport(PORT), &B));
    let answer = |packet: Packet| packet.via(GATEWAY1.mac);
    let ack = answer(sctp(&B, PORT, &CLIENT, 5000, CLIENTS)).asks_for(INIT_ACK, SERVERS);
    lab.rx(B.port, &ack).tx(UP.port, outside(&ack.sport(9000)));
    let echo = sctp(&CLIENT, 5000, &UP, 9000, SERVERS).macs(ROUTER.mac, UP.mac);
    let echo = echo.chunk(COOKIE_ECHO, 0, b"cookie");
    lab.rx(UP.port, &echo).tx(B.port, inside(&echo.dport(PORT), &B));
    let done = answer(sctp(&B, PORT, &CLIENT, 5000, CLIENTS)).chunk(COOKIE_ACK, 0, b"");
    lab.rx(B.port, &done).tx(UP.port, outside(&done.sport(9000)));
    assert_eq!(state(&lab), "ESTABLISHED");
    // The same number of another protocol, and another number.
    let other = sctp(&CLIENT, 5000, &UP, 9001, 0).macs(ROUTER.mac, UP.mac).asks_for(INIT, 1);
    lab.rx(UP.port, other).dropped("up", "unsolicited");
}

#[test]
fn a_server_that_refuses_is_heard() {
    let mut lab = Lab::default();
    let init = there(5000, 0).asks_for(INIT, CLIENTS);
    lab.rx(A.port, &init).masqueraded(&init).tx(UP.port, outside(&init));
    lab.rx(UP.port, back(5000, 1).chunk(ABORT, 0, b"")).dropped("up", "sctp_tag_invalid");
    let abort = back(5000, CLIENTS).chunk(ABORT, 0, b"");
    lab.rx(UP.port, &abort).tx(A.port, inside(&abort, &A));
    assert_eq!(state(&lab), "CLOSED");
}

#[test]
fn nothing_but_an_init_begins_from_either_side() {
    let mut spec = topology();
    spec.dnat.push(publish(7, ip_proto::SCTP, 9000, &B, PORT));
    let mut lab = Lab::new(spec);
    for kind in [DATA, SACK, ABORT, SHUTDOWN, SHUTDOWN_ACK, ERROR, COOKIE_ECHO, COOKIE_ACK] {
        let packet = there(5000, 9).chunk(kind, 0, &[0; 12]);
        lab.rx(A.port, packet).dropped("a", "conntrack_invalid");
        let packet = sctp(&CLIENT, 5000, &UP, 9000, 9).macs(ROUTER.mac, UP.mac);
        lab.rx(UP.port, packet.chunk(kind, 0, &[0; 12])).dropped("up", "unsolicited");
    }
    for packet in [
        there(5000, 9).asks_for(INIT_ACK, 4),
        there(5000, 9).asks_for(INIT, 4),
        there(5000, 9).chunk(SHUTDOWN_COMPLETE, 0, b""),
        there(5000, 0).chunk(HEARTBEAT, 0, b"info"),
        there(5000, 9).chunk(HEARTBEAT, 0, b"info").chunk(DATA, 3, &[0; 16]),
    ] {
        lab.rx(A.port, packet).dropped("a", "conntrack_invalid");
    }
    assert!(lab.connections().is_empty());
}

#[test]
fn chunks_that_lie_are_dropped() {
    let mut lab = Lab::default();
    let bad = |tag| {
        [
            there(5000, tag),
            there(5000, tag).raw_chunk(&[DATA, 3, 0, 0]),
            there(5000, tag).raw_chunk(&[DATA, 3, 0, 3]),
            there(5000, tag).raw_chunk(&[DATA, 3, 0xff, 0xff]),
            there(5000, tag).raw_chunk(&[INIT, 0, 0, 8, 0, 0, 0, 1]),
            there(5000, tag).asks_for(INIT, 0),
            there(5000, tag).asks_for(INIT, 3).chunk(DATA, 3, &[0; 16]),
            there(5000, tag).chunk(SACK, 0, &[0; 12]).asks_for(INIT, 3),
        ]
    };
    for packet in bad(0) {
        lab.rx(A.port, packet).dropped("a", "l4_malformed");
    }
    assert!(lab.connections().is_empty());
    opened(&mut lab, 5000);
    for packet in bad(SERVERS) {
        lab.rx(A.port, packet).dropped("a", "l4_malformed");
    }
    assert_eq!(state(&lab), "ESTABLISHED");
    // Less than a common header.
    let cut =
        tests::packet::raw_ip(&A, &SERVER, ip_proto::SCTP).via(GATEWAY1.mac).payload(&[0; 11]);
    lab.rx(A.port, cut).dropped("a", "l4_malformed");
}

#[test]
fn tags_that_nobody_asked_for_do_not_pass() {
    let mut lab = Lab::default();
    opened(&mut lab, 5000);
    for (tag, kind, flags) in [
        (0, DATA, 3),
        (CLIENTS, DATA, 3),
        (1, DATA, 3),
        (1, ABORT, 0),
        (CLIENTS, ABORT, 0),
        (SERVERS, ABORT, 1),
        (1, SHUTDOWN, 0),
        (1, SHUTDOWN_ACK, 0),
        (1, COOKIE_ECHO, 0),
        (1, ERROR, 0),
    ] {
        let packet = there(5000, tag).chunk(kind, flags, &[0; 12]);
        lab.rx(A.port, packet).dropped("a", "sctp_tag_invalid");
    }
    let forged = back(5000, 1).chunk(ABORT, 0, b"");
    lab.rx(UP.port, forged).dropped("up", "sctp_tag_invalid");
    // An INIT is to have none, and changes nothing for those who are there.
    lab.rx(UP.port, back(5000, 9).asks_for(INIT, 9)).dropped("up", "sctp_tag_invalid");
    let init = back(5000, 0).asks_for(INIT, 9);
    lab.rx(UP.port, &init).tx(A.port, inside(&init, &A));
    let data = there(5000, SERVERS).chunk(DATA, 3, &[0; 20]);
    lab.rx(A.port, &data).tx(UP.port, outside(&data));
    assert_eq!(state(&lab), "ESTABLISHED");
}

/// As Linux' `conntrack_sctp_collision.sh`: both sides begin, and one INIT ACK is delayed until the
/// association exists.
///
/// Rows: Linux `conntrack_sctp_collision.sh`.
#[test]
fn what_a_collision_brings_too_late_is_dropped() {
    let mut lab = Lab::default();
    let init = there(5000, 0).asks_for(INIT, CLIENTS);
    lab.rx(A.port, &init).masqueraded(&init).tx(UP.port, outside(&init));
    for (packet, comes) in [
        (back(5000, 0).asks_for(INIT, SERVERS), true),
        (there(5000, SERVERS).asks_for(INIT_ACK, CLIENTS), false),
        (back(5000, CLIENTS).chunk(COOKIE_ECHO, 0, b"cookie"), true),
        (there(5000, SERVERS).chunk(COOKIE_ACK, 0, b""), false),
    ] {
        if comes {
            lab.rx(UP.port, &packet).tx(A.port, inside(&packet, &A));
        } else {
            lab.rx(A.port, &packet).tx(UP.port, outside(&packet));
        }
    }
    let late = back(5000, CLIENTS).asks_for(INIT_ACK, 0x1a7e);
    lab.rx(UP.port, late).dropped("up", "sctp_tag_invalid");
    for _ in 0..2 {
        let data = there(5000, SERVERS).chunk(DATA, 3, &[0; 20]);
        lab.rx(A.port, &data).tx(UP.port, outside(&data));
        let data = back(5000, CLIENTS).chunk(DATA, 3, &[0; 20]);
        lab.rx(UP.port, &data).tx(A.port, inside(&data, &A));
    }
}

#[test]
fn another_way_to_a_peer_begins_with_a_heartbeat() {
    let mut lab = Lab::default();
    let asks = there(5000, SERVERS).chunk(HEARTBEAT, 0, b"info");
    lab.rx(A.port, &asks).masqueraded(&asks).tx(UP.port, outside(&asks));
    assert_eq!(state(&lab), "HEARTBEAT_SENT");
    let answers = back(5000, CLIENTS).chunk(HEARTBEAT_ACK, 0, b"info");
    lab.rx(UP.port, &answers).tx(A.port, inside(&answers, &A));
    assert_eq!(state(&lab), "ESTABLISHED");
    let data = there(5000, SERVERS).chunk(DATA, 3, &[0; 20]);
    lab.rx(A.port, &data).tx(UP.port, outside(&data));
    lab.rx(UP.port, back(5000, SERVERS).chunk(DATA, 3, &[0; 20])).dropped("up", "sctp_tag_invalid");
}

#[test]
fn timers_follow_the_state() {
    let mut spec = topology();
    spec.timeouts.sctp_established = Duration::from_secs(1000);
    spec.timeouts.sctp_other = Duration::from_secs(20);
    let mut lab = Lab::new(spec);
    let init = there(5000, 0).asks_for(INIT, CLIENTS);
    lab.rx(A.port, &init).masqueraded(&init).tx(UP.port, outside(&init));
    assert_eq!(lab.connection().timeout, Duration::from_secs(20));
    // An INIT that is sent again keeps nothing open.
    lab.after(Duration::from_secs(15));
    lab.rx(A.port, &init).tx(UP.port, outside(&init));
    assert_eq!(lab.connection().timeout, Duration::from_secs(5));
    lab.after(Duration::from_secs(6)).only_balanced();
    assert!(lab.connections().is_empty());
    opened(&mut lab, 5000);
    assert_eq!(lab.connection().timeout, Duration::from_secs(1000));
    assert!(lab.spec.timeouts.sctp_established < MAX_TIMEOUT);
    let shutdown = there(5000, SERVERS).chunk(SHUTDOWN, 0, &[0; 4]);
    lab.rx(A.port, &shutdown).tx(UP.port, outside(&shutdown));
    assert_eq!(lab.connection().timeout, Duration::from_secs(20));
}

#[test]
fn a_network_has_timers_of_its_own() {
    let mut spec = topology();
    let own = dataplane::config::Timeouts { sctp_other: Duration::from_secs(9), ..spec.timeouts };
    spec.networks[0].timeouts = Some(Box::new(own));
    assert_eq!(spec.networks[0].id, NET1);
    let mut lab = Lab::new(spec);
    let init = there(5000, 0).asks_for(INIT, CLIENTS);
    lab.rx(A.port, &init).masqueraded(&init).tx(UP.port, outside(&init));
    assert_eq!(lab.connection().timeout, Duration::from_secs(9));
}

#[test]
fn errors_about_an_association_find_its_sender() {
    let mut lab = Lab::default();
    opened(&mut lab, 5000);
    let init = sctp(&B, 5000, &SERVER, PORT, 0).via(GATEWAY1.mac).asks_for(INIT, 7);
    let port = lab.rx(B.port, &init).masqueraded(&init).take_one(UP.port).l4_u16(0);
    // The whole packet, the eight bytes that are certain, and as many as the CRC needs.
    for limit in [548, 28, 32] {
        let sent = init.clone().src(UP.ip).sport(port).ttl(63);
        let error = icmp_error(&ROUTER, &UP, 3, 1, &sent, limit);
        let told = icmp_error(&ROUTER, &B, 3, 1, &init.clone().ttl(63), limit);
        lab.rx(UP.port, error).tx(B.port, told.routed(GATEWAY1.mac, B.mac));
    }
}

#[test]
fn a_crc_left_open_is_filled_in() {
    let mut lab = Lab::default();
    let init = there(5000, 0).asks_for(INIT, CLIENTS);
    lab.rx(A.port, init.partial()).masqueraded(&init).tx(UP.port, outside(&init));
    // Between containers too, where it is only switched.
    let near = sctp(&A, 1, &B, 2, 0).asks_for(INIT, 1);
    lab.rx(A.port, near.partial()).tx(B.port, &near);
    let mut lies = near.partial();
    lies.vnet.csum_offset = 6;
    lab.rx(A.port, lies).dropped("a", "vnet_invalid");
}

/// IPv4 alone: fragments of IPv6 are made elsewhere.
#[test]
fn fragments_keep_their_ports_or_do_not_pass() {
    let mut lab = Lab::default();
    opened(&mut lab, 5000);
    let long = there(5000, SERVERS).chunk(DATA, 3, &[7; 1000]).may_fragment();
    let pieces = in_two(&long, 512);
    let expected = in_two(&outside(&long), 512);
    for (piece, out) in pieces.into_iter().zip(expected) {
        lab.rx(A.port, piece).tx(UP.port, out);
    }
    // What begins an association is never so long.
    let begins = there(6000, 0).asks_for(INIT, 3).may_fragment();
    lab.rx(A.port, in_two(&begins, 24)[0].clone()).dropped("a", "conntrack_invalid");
    // B has another port outside than inside.
    let init = sctp(&B, 5000, &SERVER, PORT, 0).via(GATEWAY1.mac).asks_for(INIT, 7);
    let port = lab.rx(B.port, &init).masqueraded(&init).take_one(UP.port).l4_u16(0);
    let ack = back(port, 7).asks_for(INIT_ACK, 8);
    lab.rx(UP.port, &ack).tx(B.port, inside(&ack.dport(5000), &B));
    let cookie = sctp(&B, 5000, &SERVER, PORT, 8).via(GATEWAY1.mac).ident(0x77);
    let cookie = cookie.chunk(COOKIE_ECHO, 0, &[7; 1000]).may_fragment();
    let [first, later] = in_two(&cookie, 512);
    lab.rx(B.port, first).dropped("b", "sctp_fragmented");
    lab.rx(B.port, later).dropped("b", "fragment_untracked");
    let whole = cookie.ident(0x78);
    lab.rx(B.port, &whole).tx(UP.port, outside(&whole.sport(port)));
}

#[test]
fn what_is_switched_is_not_looked_into() {
    let mut spec = topology();
    without_guard(&mut spec);
    let mut lab = Lab::new(spec);
    for packet in [
        sctp(&A, 1, &B, 2, 9).chunk(DATA, 3, b"any data"),
        sctp(&A, 1, &B, 2, 9),
        sctp(&A, 1, &B, 2, 9).raw_chunk(&[INIT, 0, 0, 0]),
    ] {
        lab.rx(A.port, &packet).tolerate("fdb").accept(&[B.port]);
    }
    assert!(lab.connections().is_empty());
}
