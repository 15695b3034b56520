//! Sequence numbers of TCP through SNAT: what is no part of the connection is dropped, by whichever way
//! packets go. The tables of single cases are beside the rules, in `dataplane/src/conntrack/window`.

use std::time::Duration;

use dataplane::packet::types::tcp_flags::{ACK, FIN, PSH, RST, SYN};
use tests::fragments::in_two;
use tests::lab::{A, GATEWAY1, Lab, ROUTER, SERVER, UP, topology};
use tests::packet::{Packet, tcp};

tests::in_ipv6! {
    a_connection_that_ends_is_reset_by_any_number
    a_refusal_answers_the_syn
    a_server_resets_right_behind_what_it_sent
    old_segments_pass_and_keep_no_connection_alive
    only_the_next_number_resets
    what_nobody_can_have_sent_is_dropped
}

/// First octet of the client's, and of the server's.
const CLIENT: u32 = 5_000;
const SERVERS: u32 = 9_000_000;
/// What both offer; nobody scales.
const WINDOW: u32 = 65_000;

fn from_client(flags: u8, seq: u32, ack: u32) -> Packet {
    tcp(&A, 40_000, &SERVER, 80, flags).via(GATEWAY1.mac).seq(seq).acks(ack)
}

fn from_server(flags: u8, seq: u32, ack: u32) -> Packet {
    tcp(&SERVER, 80, &UP, 40_000, flags).seq(seq).acks(ack)
}

fn client(lab: &mut Lab, packet: &Packet) {
    lab.rx(A.port, packet).tx(UP.port, packet.clone().src(UP.ip).routed(UP.mac, ROUTER.mac));
}

fn server(lab: &mut Lab, packet: &Packet) {
    lab.rx(UP.port, packet).tx(A.port, packet.clone().dst(A.ip).routed(GATEWAY1.mac, A.mac));
}

/// An open connection whose client has sent 100 octets, which are acknowledged, and whose server has sent
/// 200, which are not.
fn open(lab: &mut Lab) {
    let syn = from_client(SYN, CLIENT - 1, 0);
    lab.rx(A.port, &syn)
        .tx(UP.port, syn.clone().src(UP.ip).routed(UP.mac, ROUTER.mac))
        .masqueraded(&syn);
    server(lab, &from_server(SYN | ACK, SERVERS - 1, CLIENT));
    client(lab, &from_client(ACK, CLIENT, SERVERS));
    client(lab, &from_client(ACK | PSH, CLIENT, SERVERS).payload(&[1; 100]));
    server(lab, &from_server(ACK, SERVERS, CLIENT + 100));
    server(lab, &from_server(ACK | PSH, SERVERS, CLIENT + 100).payload(&[2; 200]));
    assert_eq!(lab.connection().state, "ESTABLISHED");
}

/// Rows: RFC 5961 §3, RFC 5927.
#[test]
fn only_the_next_number_resets() {
    let mut lab = Lab::new(topology());
    open(&mut lab);
    let next = CLIENT + 100;
    for seq in [0, next - 1, next + 4 * WINDOW, SERVERS] {
        lab.rx(A.port, from_client(RST, seq, 0)).dropped("a", "tcp_reset_invalid");
    }
    for seq in [0, SERVERS - 1, SERVERS + 4 * WINDOW] {
        lab.rx(UP.port, from_server(RST, seq, 0)).dropped("up", "tcp_reset_invalid");
    }
    // Within the window, but not the next one: the receiver asks whether it is meant.
    client(&mut lab, &from_client(RST, next + 1, 0));
    server(&mut lab, &from_server(RST, SERVERS + 1, 0));
    assert_eq!(lab.connection().state, "ESTABLISHED");
    client(&mut lab, &from_client(ACK, next, SERVERS + 200));
    client(&mut lab, &from_client(RST, next, 0));
    assert_eq!(lab.connection().state, "CLOSE");
}

#[test]
fn a_server_resets_right_behind_what_it_sent() {
    for flags in [RST, RST | ACK] {
        let mut lab = Lab::new(topology());
        open(&mut lab);
        server(&mut lab, &from_server(flags, SERVERS + 200, CLIENT + 100));
        assert_eq!(lab.connection().state, "CLOSE");
    }
}

/// Who has guessed the one number has not guessed the other.
#[test]
fn a_reset_that_acknowledges_what_was_never_sent_ends_nothing() {
    let mut lab = Lab::new(topology());
    open(&mut lab);
    let next = CLIENT + 100;
    let guessed = from_server(RST | ACK, SERVERS + 200, next + 1);
    lab.rx(UP.port, guessed).dropped("up", "tcp_reset_invalid");
    lab.rx(A.port, from_client(RST | ACK, next, SERVERS + 201)).dropped("a", "tcp_reset_invalid");
    assert_eq!(lab.connection().state, "ESTABLISHED");
    client(&mut lab, &from_client(ACK, next, SERVERS + 200));
    server(&mut lab, &from_server(RST | ACK, SERVERS + 200, next));
    assert_eq!(lab.connection().state, "CLOSE");
}

#[test]
fn a_connection_that_ends_is_reset_by_any_number() {
    let mut lab = Lab::new(topology());
    open(&mut lab);
    server(&mut lab, &from_server(FIN | ACK, SERVERS + 200, CLIENT + 100));
    client(&mut lab, &from_client(ACK, CLIENT + 100, SERVERS + 201));
    assert_eq!(lab.connection().state, "CLOSE_WAIT");
    client(&mut lab, &from_client(RST, CLIENT + 777, 0));
    assert_eq!(lab.connection().state, "CLOSE");
}

#[test]
fn a_refusal_answers_the_syn() {
    let mut lab = Lab::new(topology());
    let syn = from_client(SYN, CLIENT - 1, 0);
    lab.rx(A.port, &syn)
        .tx(UP.port, syn.clone().src(UP.ip).routed(UP.mac, ROUTER.mac))
        .masqueraded(&syn);
    lab.rx(UP.port, from_server(RST | ACK, 0, CLIENT + 7)).dropped("up", "tcp_reset_invalid");
    lab.rx(UP.port, from_server(RST, CLIENT, 0)).dropped("up", "tcp_reset_invalid");
    let old = from_server(SYN | ACK, SERVERS - 1, 77);
    lab.rx(UP.port, old).dropped("up", "tcp_out_of_window");
    assert_eq!(lab.connection().state, "SYN_SENT");
    server(&mut lab, &from_server(RST | ACK, 0, CLIENT));
    assert_eq!(lab.connection().state, "CLOSE");
}

/// Rows: RFC 5961 §5.
#[test]
fn what_nobody_can_have_sent_is_dropped() {
    let mut lab = Lab::new(topology());
    open(&mut lab);
    let next = CLIENT + 100;
    // Beyond the room of the receiver, and an acknowledgment of what was never sent.
    let beyond = from_client(ACK | PSH, next + 4 * WINDOW, SERVERS).payload(&[3; 10]);
    lab.rx(A.port, beyond).dropped("a", "tcp_out_of_window");
    lab.rx(A.port, from_client(ACK, next, SERVERS + 201)).dropped("a", "tcp_out_of_window");
    let guessed = from_server(ACK | PSH, SERVERS + (1 << 30), next).payload(&[4; 10]);
    lab.rx(UP.port, guessed).dropped("up", "tcp_out_of_window");
    lab.rx(UP.port, from_server(ACK, SERVERS + 200, next + 1)).dropped("up", "tcp_out_of_window");
    // Sent again, and the acknowledgment that was lost behind us.
    client(&mut lab, &from_client(ACK | PSH, CLIENT, SERVERS).payload(&[1; 100]));
    server(&mut lab, &from_server(ACK, SERVERS + 200, next));
    client(&mut lab, &from_client(ACK, next, SERVERS + 200));
}

#[test]
fn old_segments_pass_and_keep_no_connection_alive() {
    let mut lab = Lab::new(topology());
    open(&mut lab);
    lab.after(Duration::from_secs(5));
    let left = lab.connection().timeout;
    client(&mut lab, &from_client(ACK, CLIENT.wrapping_sub(4 * WINDOW), SERVERS));
    assert_eq!(lab.connection().timeout, left);
    client(&mut lab, &from_client(ACK, CLIENT + 100, SERVERS + 200));
    assert!(lab.connection().timeout > left);
}

#[test]
fn fragments_of_segments_pass_and_are_acknowledged_whole() {
    let mut lab = Lab::new(topology());
    open(&mut lab);
    let next = CLIENT + 100;
    let long = from_client(ACK | PSH, next, SERVERS + 200).payload(&[5; 1200]).may_fragment();
    for piece in in_two(&long, 800) {
        assert_eq!(lab.rx(A.port, piece).take(UP.port).len(), 1);
    }
    // More than the first fragment had, which is all that was counted.
    server(&mut lab, &from_server(ACK, SERVERS + 200, next + 1200));
    client(&mut lab, &from_client(ACK | PSH, next + 1200, SERVERS + 200).payload(&[6; 10]));
}
