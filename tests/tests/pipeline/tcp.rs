//! The TCP state machine through the pipeline, and how long connections live.

use std::time::Duration;

use dataplane::packet::types::tcp_flags::{ACK, FIN, RST, SYN};
use tests::lab::{A, GATEWAY1, Lab, ROUTER, SERVER, UP};
use tests::packet::{Packet, echo, tcp, udp};

tests::in_ipv6! {
    a_reset_closes_in_every_state
    a_segment_is_judged_by_what_came_before_it_in_its_batch
    an_expired_connection_is_gone_before_it_is_swept
    an_idle_connection_expires_and_its_segments_are_invalid
    a_reset_keeps_no_connection_alive
    after_a_reset_and_its_time_only_a_syn_opens
    an_idle_session_survives_a_blind_reset
    an_open_of_one_batch
    both_sides_close_in_one_batch
    from_syn_to_time_wait
    replies_keep_udp_alive_and_show_in_its_state
    segments_that_contradict_the_connection
    segments_that_fit_no_connection
    simultaneous_open
    timeouts_follow_the_state
    udp_and_echo_live_as_long_as_the_rfcs_ask
    who_answers_a_syn_in_time_wait_opens_anew
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}
use Side::{Client, Server};

fn segment(from: Side, flags: u8) -> Packet {
    match from {
        Client => tcp(&A, 40_000, &SERVER, 80, flags).via(GATEWAY1.mac),
        Server => tcp(&SERVER, 80, &UP, 40_000, flags),
    }
}

fn pass(lab: &mut Lab, from: Side, flags: u8) {
    let packet = segment(from, flags);
    let new = lab.connections().is_empty();
    let step = match from {
        Client => {
            let out = packet.clone().src(UP.ip).routed(UP.mac, ROUTER.mac);
            lab.rx(A.port, &packet).tx(UP.port, out)
        }
        Server => {
            let out = packet.clone().dst(A.ip).routed(GATEWAY1.mac, A.mac);
            lab.rx(UP.port, &packet).tx(A.port, out)
        }
    };
    if new {
        drop(step.masqueraded(&packet));
    }
}

fn refuse(lab: &mut Lab, from: Side, flags: u8) {
    match from {
        Client => lab.rx(A.port, segment(from, flags)).dropped("a", "conntrack_invalid"),
        Server => lab.rx(UP.port, segment(from, flags)).dropped("up", "conntrack_invalid"),
    };
}

/// Segments and the state each leaves.
fn play(lab: &mut Lab, script: &[(Side, u8, &str)]) {
    for (number, (from, flags, state)) in script.iter().enumerate() {
        pass(lab, *from, *flags);
        let connection = lab.connection();
        assert_eq!(connection.state, *state, "after segment {number}");
    }
}

const OPEN: [(Side, u8, &str); 3] =
    [(Client, SYN, "SYN_SENT"), (Server, SYN | ACK, "SYN_RECV"), (Client, ACK, "ESTABLISHED")];

/// Rows: VPP `test_tcp_session_close_in, test_tcp_session_close_out, test_tcp_close`; VPP
/// `test_tcp_session_reopen`.
#[test]
fn from_syn_to_time_wait() {
    let mut lab = Lab::default();
    play(&mut lab, &OPEN);
    play(
        &mut lab,
        &[
            (Server, ACK, "ESTABLISHED"),
            (Client, FIN | ACK, "FIN_WAIT"),
            (Server, ACK, "CLOSE_WAIT"),
            (Server, ACK, "CLOSE_WAIT"),
            (Server, FIN | ACK, "LAST_ACK"),
            (Client, ACK, "TIME_WAIT"),
            // A retransmission of the last FIN.
            (Server, FIN | ACK, "TIME_WAIT"),
            // An old duplicate passes, for its receiver to judge, and changes nothing.
            (Client, SYN, "TIME_WAIT"),
        ],
    );
    drop(lab.after(Duration::from_secs(20)));
    pass(&mut lab, Client, SYN);
    assert_eq!(lab.connection().timeout, Duration::from_secs(100));
    // A new connection by the same ports.
    again(&mut lab);
    assert_eq!(lab.connection().state, "SYN_SENT");
}

/// A SYN of the client beyond all numbers that it has used.
fn again(lab: &mut Lab) {
    let syn = segment(Client, SYN).seq(1 << 20);
    lab.rx(A.port, &syn).tx(UP.port, syn.clone().src(UP.ip).routed(UP.mac, ROUTER.mac));
}

/// RFC 6191: a server may take an older number too, by its time stamp.
#[test]
fn who_answers_a_syn_in_time_wait_opens_anew() {
    let mut lab = Lab::default();
    play(&mut lab, &OPEN);
    play(
        &mut lab,
        &[
            (Client, FIN | ACK, "FIN_WAIT"),
            (Server, FIN | ACK, "LAST_ACK"),
            (Client, ACK, "TIME_WAIT"),
            (Client, SYN, "TIME_WAIT"),
        ],
    );
    let answer = segment(Server, SYN | ACK).seq(1 << 20);
    lab.rx(UP.port, &answer).tx(A.port, answer.clone().dst(A.ip).routed(GATEWAY1.mac, A.mac));
    assert_eq!(lab.connection().state, "SYN_RECV");
}

/// Rows: RFC 5382 REQ-5, RFC 7857 §2.1; VPP `test_session_rst_timeout`.
#[test]
fn timeouts_follow_the_state() {
    let mut lab = Lab::default();
    let mut after = |from, flags, secs| {
        pass(&mut lab, from, flags);
        assert_eq!(lab.connection().timeout, Duration::from_secs(secs));
    };
    after(Client, SYN, 240);
    after(Server, SYN | ACK, 240);
    after(Client, ACK, 432_000);
    after(Client, FIN | ACK, 240);
    after(Server, FIN | ACK, 240);
    after(Client, ACK, 120);
    again(&mut lab);
    assert_eq!(lab.connection().timeout, Duration::from_secs(240));
    drop(lab.after(Duration::from_secs(10)));
    // What a RST leaves lives no longer for it than what it ends.
    let refusal = segment(Server, RST | ACK).acks((1 << 20) + 1);
    lab.rx(UP.port, &refusal).tx(A.port, refusal.clone().dst(A.ip).routed(GATEWAY1.mac, A.mac));
    assert_eq!(lab.connection().timeout, Duration::from_secs(230));
}

/// Rows: RFC 7857 §7.1.
#[test]
fn a_reset_keeps_no_connection_alive() {
    let mut lab = Lab::default();
    let after = |lab: &mut Lab, secs, from, flags, left| {
        lab.after(Duration::from_secs(secs)).only_balanced();
        pass(lab, from, flags);
        assert_eq!(lab.connection().timeout, Duration::from_secs(left));
    };
    play(&mut lab, &OPEN);
    after(&mut lab, 0, Server, RST | ACK, 240);
    // The client answers whatever still comes, and the server may say it again.
    after(&mut lab, 100, Client, RST | ACK, 140);
    after(&mut lab, 100, Server, RST | ACK, 40);
    assert_eq!(lab.connection().state, "CLOSE");
    lab.after(Duration::from_secs(40)).only_balanced();
    assert!(lab.connections().is_empty());
    // It does not make a connection that nobody has answered live longer either.
    after(&mut lab, 0, Client, SYN, 240);
    after(&mut lab, 200, Server, RST | ACK, 40);
}

#[test]
fn an_idle_connection_expires_and_its_segments_are_invalid() {
    let mut lab = Lab::default();
    pass(&mut lab, Client, SYN);
    lab.after(Duration::from_secs(239));
    assert_eq!(lab.connections().len(), 1);
    lab.after(Duration::from_secs(1)).moved("conn.entries", -1).moved("conn.expired", 1);
    lab.rx(UP.port, segment(Server, SYN | ACK)).dropped("up", "unsolicited");
}

#[test]
fn an_expired_connection_is_gone_before_it_is_swept() {
    let mut lab = Lab::default();
    pass(&mut lab, Client, SYN);
    lab.now = lab.now + Duration::from_secs(240);
    lab.resolve(&ROUTER);
    lab.rx(UP.port, segment(Server, SYN | ACK)).dropped("up", "unsolicited");
    // A new one takes its place.
    let packet = segment(Client, SYN);
    lab.rx(A.port, &packet)
        .tx(UP.port, packet.clone().src(UP.ip).routed(UP.mac, ROUTER.mac))
        .moved("conn.inserted", 1)
        .moved("conn.expired", 1)
        .moved("masquerade.1.packets", 1)
        .moved("masquerade.1.bytes", packet.ip_len() as i64);
}

/// Rows: RFC 4787 REQ-5; RFC 4787 REQ-6; RFC 7857 §11; RFC 5508 REQ-2.
#[test]
fn udp_and_echo_live_as_long_as_the_rfcs_ask() {
    for (packet, secs, state) in [
        (udp(&A, 40_000, &SERVER, 4242), 300, "UNREPLIED"),
        (udp(&A, 40_000, &SERVER, 53), 30, "UNREPLIED"),
        (echo(&A, &SERVER, 40_000), 60, "UNREPLIED"),
    ] {
        let mut lab = Lab::default();
        let packet = packet.via(GATEWAY1.mac);
        lab.rx(A.port, &packet).masqueraded(&packet).take_one(UP.port);
        let connection = lab.connection();
        assert_eq!((connection.timeout, connection.state), (Duration::from_secs(secs), state));
        lab.after(Duration::from_secs(secs - 1));
        // Used again in time: it lives on.
        lab.rx(A.port, &packet).take_one(UP.port);
        lab.after(Duration::from_secs(secs - 1));
        assert_eq!(lab.connections().len(), 1);
        lab.after(Duration::from_secs(1)).moved("conn.entries", -1).moved("conn.expired", 1);
    }
}

#[test]
fn replies_keep_udp_alive_and_show_in_its_state() {
    let mut lab = Lab::default();
    let (there, back) = (udp(&A, 40_000, &SERVER, 4242), udp(&SERVER, 4242, &UP, 40_000));
    let there = there.via(GATEWAY1.mac);
    lab.rx(A.port, &there).masqueraded(&there).take_one(UP.port);
    lab.after(Duration::from_secs(200));
    lab.rx(UP.port, &back).take_one(A.port);
    assert_eq!(lab.connection().state, "REPLIED");
    lab.after(Duration::from_secs(299));
    lab.rx(A.port, &there).take_one(UP.port);
    let connection = lab.connection();
    let bytes = there.ip_len() as u64;
    assert_eq!((connection.state, connection.timeout), ("ASSURED", Duration::from_secs(300)));
    assert_eq!((connection.packets, connection.bytes), ([2, 1], [2 * bytes, bytes]));
}

#[test]
fn a_reset_closes_in_every_state() {
    for upto in 1..=OPEN.len() {
        for from in [Client, Server] {
            let mut lab = Lab::default();
            play(&mut lab, &OPEN[..upto]);
            pass(&mut lab, from, RST | ACK);
            assert_eq!(lab.connection().state, "CLOSE");
        }
    }
}

#[test]
fn after_a_reset_and_its_time_only_a_syn_opens() {
    let mut lab = Lab::default();
    play(&mut lab, &OPEN);
    play(&mut lab, &[(Server, RST | ACK, "CLOSE")]);
    lab.after(Duration::from_secs(240)).moved("conn.entries", -1).moved("conn.expired", 1);
    refuse(&mut lab, Client, ACK);
    refuse(&mut lab, Client, FIN | ACK);
    lab.rx(UP.port, segment(Server, ACK)).dropped("up", "unsolicited");
    play(&mut lab, &OPEN);
}

/// Rows: RFC 7857 §2.2; VPP `test_session_rst_established_timeout`.
#[test]
fn an_idle_session_survives_a_blind_reset() {
    for first in [Client, Server] {
        let mut lab = Lab::default();
        play(&mut lab, &OPEN);
        pass(&mut lab, Server, RST);
        assert_eq!(lab.connection().timeout.as_secs(), 240);
        lab.after(Duration::from_secs(200));
        let second = if first == Client { Server } else { Client };
        play(&mut lab, &[(first, ACK, "CLOSE"), (first, ACK, "CLOSE")]);
        assert_eq!(lab.connection().timeout.as_secs(), 240);
        play(&mut lab, &[(second, ACK, "ESTABLISHED")]);
        assert_eq!(lab.connection().timeout.as_secs(), 432_000);
    }
}

/// Rows: Open vSwitch `conntrack: invalid`.
#[test]
fn segments_that_fit_no_connection() {
    let mut lab = Lab::default();
    for flags in [ACK, SYN | ACK, FIN | ACK, RST, SYN | FIN, 0] {
        refuse(&mut lab, Client, flags);
        lab.rx(UP.port, segment(Server, flags)).dropped("up", "unsolicited");
    }
    assert!(lab.connections().is_empty());
}

#[test]
fn segments_that_contradict_the_connection() {
    let mut lab = Lab::default();
    play(&mut lab, &OPEN[..1]);
    refuse(&mut lab, Client, SYN | ACK);
    refuse(&mut lab, Server, FIN | ACK);
    play(&mut lab, &OPEN[1..]);
    for from in [Client, Server] {
        for flags in [0, SYN | FIN, SYN | RST, FIN, SYN | FIN | ACK] {
            refuse(&mut lab, from, flags);
        }
    }
    let connection = lab.connection();
    assert_eq!((connection.state, connection.packets), ("ESTABLISHED", [2, 1]));
}

/// Rows: RFC 5382 REQ-2.
#[test]
fn simultaneous_open() {
    let mut lab = Lab::default();
    play(
        &mut lab,
        &[
            (Client, SYN, "SYN_SENT"),
            (Server, SYN, "SYN_SENT2"),
            (Client, SYN | ACK, "SYN_RECV"),
            (Server, SYN | ACK, "SYN_RECV"),
            (Client, ACK, "ESTABLISHED"),
        ],
    );
}

/// Rows: VPP `test_tcp_session_close_simultaneous`.
#[test]
fn both_sides_close_in_one_batch() {
    for order in [[Client, Server], [Server, Client]] {
        let mut lab = Lab::default();
        play(&mut lab, &OPEN);
        let wires = order.map(|from| {
            let port = if from == Client { A.port } else { UP.port };
            (port, segment(from, FIN | ACK).into())
        });
        lab.batch(wires.to_vec())
            .tx(UP.port, segment(Client, FIN | ACK).src(UP.ip).routed(UP.mac, ROUTER.mac))
            .tx(A.port, segment(Server, FIN | ACK).dst(A.ip).routed(GATEWAY1.mac, A.mac));
        assert_eq!(lab.connection().state, "LAST_ACK");
        assert_eq!(lab.connection().timeout, Duration::from_secs(240));
    }
}

#[test]
fn a_segment_is_judged_by_what_came_before_it_in_its_batch() {
    let mut lab = Lab::default();
    pass(&mut lab, Client, SYN);
    let answer = (UP.port, segment(Server, SYN | ACK).into());
    let ack = (A.port, segment(Client, ACK).into());
    lab.batch(vec![answer, ack])
        .tx(A.port, segment(Server, SYN | ACK).dst(A.ip).routed(GATEWAY1.mac, A.mac))
        .tx(UP.port, segment(Client, ACK).src(UP.ip).routed(UP.mac, ROUTER.mac));
    assert_eq!(lab.connection().state, "ESTABLISHED");
}

#[test]
fn an_open_of_one_batch() {
    let mut lab = Lab::default();
    let wires = [(Client, SYN), (Server, SYN | ACK), (Client, ACK)]
        .map(|(from, flags)| {
            let port = if from == Client { A.port } else { UP.port };
            (port, segment(from, flags).into())
        })
        .to_vec();
    lab.batch(wires)
        .tx(UP.port, segment(Client, SYN).src(UP.ip).routed(UP.mac, ROUTER.mac))
        .tx(UP.port, segment(Client, ACK).src(UP.ip).routed(UP.mac, ROUTER.mac))
        .tx(A.port, segment(Server, SYN | ACK).dst(A.ip).routed(GATEWAY1.mac, A.mac))
        .masqueraded(&segment(Client, SYN));
    assert_eq!(lab.connection().state, "ESTABLISHED");
}
