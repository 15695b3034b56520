//! Helpers: what others can do to them, and what they must not do to others.

use std::time::Duration;

use dataplane::config::Routed;
use dataplane::packet::types::PortId;
use dataplane::packet::types::tcp_flags::{ACK, SYN};
use tests::lab::{A, B, CLIENT, GATEWAY1, HOST_ADDRESS, Lab, ROUTER, SERVER, UP, publish_tcp};
use tests::packet::{Packet, Wire, speaks_ipv6, tcp, udp};

use crate::helpers::{EXPECTED, Talk, active, call, helped, limit, passive, request};

tests::in_ipv6! {
    a_mapped_port_is_not_called
    a_port_published_later_is_for_whom_it_is_published
    a_request_with_a_wrong_checksum_announces_nothing
    a_server_is_believed_what_it_was_asked
    an_address_without_a_range_is_not_called
    control_connections_are_shared_out
    what_was_announced_in_a_routed_network_ends_with_its_rule
}

/// A handshake of which only the packets that come are known, and how they look where they arrive.
fn shake(
    lab: &mut Lab,
    client: &Packet,
    server: &Packet,
    ports: [PortId; 2],
    seen: impl Fn(&Packet) -> Packet,
    answered: impl Fn(&Packet) -> Packet,
) -> Talk {
    let syn = client.clone().flags(SYN).seq(4_999).acks(0);
    lab.rx(ports[0], &syn)
        .tx(ports[1], seen(&syn))
        .moved("conn.new", 1)
        .moved("dnat.7.packets", 1)
        .moved("dnat.7.bytes", syn.ip_len() as i64);
    let answer = server.clone().flags(SYN | ACK).seq(8_999).acks(5_000);
    lab.rx(ports[1], &answer).tx(ports[0], answered(&answer));
    let last = client.clone().seq(5_000).acks(9_000);
    lab.rx(ports[0], &last).tx(ports[1], seen(&last));
    Talk::of(client.clone(), server.clone(), ports, [seen(client), answered(server)])
}

/// A flood of SYNs takes no place, answered or not, and one endpoint an eighth of them.
#[test]
fn control_connections_are_shared_out() {
    let mut lab = Lab::new(helped());
    for port in 0..100 {
        let syn = tcp(&CLIENT, 7000 + port, &UP, 2121, SYN).seq(4_999);
        lab.rx(UP.port, &syn)
            .moved("conn.new", 1)
            .moved("dnat.7.packets", 1)
            .moved("dnat.7.bytes", syn.ip_len() as i64)
            .accept(&[B.port]);
        let answer = tcp(&B, 21, &CLIENT, 7000 + port, SYN | ACK).via(GATEWAY1.mac);
        lab.rx(B.port, answer.seq(8_999).acks(5_000)).accept(&[UP.port]);
    }
    assert_eq!(limit(&lab, "helped_controls"), (0, 0));
    let control = |lab: &mut Lab, port: u16, refused: bool| {
        let client = tcp(&A, port, &SERVER, 21, ACK).via(GATEWAY1.mac);
        let syn = client.clone().flags(SYN).seq(4_999).acks(0);
        lab.rx(A.port, &syn).masqueraded(&syn).accept(&[UP.port]);
        let answer = tcp(&SERVER, 21, &UP, port, SYN | ACK).seq(8_999).acks(5_000);
        lab.rx(UP.port, answer).accept(&[A.port]);
        let step = lab.rx(A.port, client.seq(5_000).acks(9_000));
        if refused { step.moved("helpers.full", 1) } else { step }.accept(&[UP.port]);
    };
    for port in 0..128 {
        control(&mut lab, 30_000 + port, false);
    }
    control(&mut lab, 31_000, true);
    assert_eq!(limit(&lab, "helped_controls"), (128, 128));
    // Another is helped.
    let mut talk = Talk::into(&mut lab);
    talk.ask(&mut lab);
    talk.reply(&mut lab, &passive(B.ip, 5001), &passive(UP.ip, 5001), EXPECTED);
    assert_eq!(limit(&lab, "helped_controls"), (129, 129));
    // Whose connection has ended has room again.
    lab.plane.flush_connections(&|c| c.original.src_port == 30_000);
    lab.after(Duration::from_secs(2)).only_balanced();
    control(&mut lab, 31_001, false);
    assert_eq!(limit(&lab, "helped_controls"), (129, 129));
}

/// Lines noted within a line lead to no second change in it.
#[test]
fn a_change_goes_into_no_other() {
    let mut lab = Lab::new(helped());
    let mut talk = Talk::out(&mut lab);
    let begin = talk.client.next;
    let line = "PORT 0010,0001,0000,0002,160,40\r\n";
    let mut said = |at: u32, text: &str, moved: &[(&str, i64)]| {
        talk.client.next = begin + at;
        let step = lab.rx(A.port, talk.client.says(text));
        moved.iter().fold(step, |step, (name, by)| step.moved(name, *by)).take_one(UP.port)
    };
    said(3, "x\n", &[]);
    let first = said(0, line, EXPECTED);
    assert!(first.bytes.ends_with(b"PORT 203,0,113,5,160,40\r\n"));
    // It would begin within the last change, which stands in it and is put in alone; length and checksum
    // are judged by the lab.
    let second = said(5, line, &[("helpers.too_long", 1)]);
    let rest = &line["0010,0001,0000,0002,160,40".len()..];
    assert!(second.bytes.ends_with(format!("203,0,113,5,160,40{rest}").as_bytes()));
}

#[test]
fn a_port_published_later_is_for_whom_it_is_published() {
    let mut lab = Lab::new(helped());
    let mut talk = Talk::out(&mut lab);
    talk.command(&mut lab, &active(A.ip, 41_000), &active(UP.ip, 41_000), EXPECTED);
    lab.reconfigure(|spec| spec.dnat.push(publish_tcp(8, 41_000, &B, 80)));
    let (syn, came) = call(&SERVER, 20, 41_000, &B, 80);
    lab.rx(UP.port, &syn)
        .tx(B.port, came)
        .moved("conn.new", 1)
        .moved("dnat.8.packets", 1)
        .moved("dnat.8.bytes", syn.ip_len() as i64);
    // It is gone for good.
    assert_eq!(limit(&lab, "expectations").0, 0);
    lab.reconfigure(|spec| spec.dnat.retain(|rule| rule.id != 8));
    lab.rx(UP.port, call(&SERVER, 21, 41_000, &A, 41_000).0).dropped("up", "unsolicited");
}

#[test]
fn a_mapped_port_is_not_called() {
    let mut spec = helped();
    spec.networks[0].endpoint_independent = true;
    let mut lab = Lab::new(spec);
    let mut talk = Talk::out(&mut lab);
    talk.command(&mut lab, &active(A.ip, 41_000), &active(UP.ip, 41_000), EXPECTED);
    // B speaks from that very port to somebody.
    let syn = tcp(&B, 41_000, &CLIENT, 80, SYN).via(GATEWAY1.mac);
    let left = syn.clone().src(UP.ip).routed(UP.mac, ROUTER.mac);
    lab.rx(B.port, &syn).masqueraded(&syn).tx(UP.port, left);
    lab.rx(UP.port, call(&SERVER, 20, 41_000, &A, 41_000).0).dropped("up", "unsolicited");
    // A request of TFTP is answered by the mapping that it made itself.
    let ask = request(&A, 3000, &SERVER).via(GATEWAY1.mac);
    lab.rx(A.port, &ask).masqueraded(&ask).moved("helpers.expected", 1).accept(&[UP.port]);
    let data = udp(&SERVER, 2000, &UP, 3000);
    let came = data.clone().dst(A.ip).routed(GATEWAY1.mac, A.mac);
    lab.rx(UP.port, &data).tx(A.port, came).moved("conn.new", 1).moved("helpers.used", 1);
}

/// The host has services at such an address: none of them is diverted for one connection.
#[test]
fn an_address_without_a_range_is_not_called() {
    let mut lab = Lab::new(helped());
    for (client_port, address) in [(30_000, HOST_ADDRESS), (30_001, GATEWAY1.ip)] {
        let client = tcp(&A, client_port, &UP, 2121, ACK).dst(address).via(GATEWAY1.mac);
        let server = tcp(&B, 21, &UP, client_port, ACK).dst(address).via(GATEWAY1.mac);
        let seen = |packet: &Packet| {
            packet.clone().src(address).dst(B.ip).dport(21).routed(GATEWAY1.mac, B.mac)
        };
        let answered = |packet: &Packet| {
            packet.clone().src(address).sport(2121).dst(A.ip).routed(GATEWAY1.mac, A.mac)
        };
        let mut talk = shake(&mut lab, &client, &server, [A.port, B.port], seen, answered);
        talk.ask(&mut lab);
        let said = passive(B.ip, 5001);
        talk.reply(&mut lab, &said, &said, &[("helpers.no_port", 1)]);
    }
    assert_eq!(limit(&lab, "expectations"), (0, 0));
}

/// Nothing is translated, and still it goes with the rule that let its control connection in.
#[test]
fn what_was_announced_in_a_routed_network_ends_with_its_rule() {
    let mut spec = helped();
    spec.networks[0].routed = Routed { ipv4: true, ipv6: true };
    let mut lab = Lab::new(spec);
    let client = tcp(&CLIENT, 6000, &B, 21, ACK).via(UP.mac);
    let server = tcp(&B, 21, &CLIENT, 6000, ACK).via(GATEWAY1.mac);
    let seen = |packet: &Packet| packet.clone().routed(GATEWAY1.mac, B.mac);
    let answered = |packet: &Packet| packet.clone().routed(UP.mac, ROUTER.mac);
    let mut talk = shake(&mut lab, &client, &server, [UP.port, B.port], seen, answered);
    talk.ask(&mut lab);
    let said = passive(B.ip, 5001);
    talk.reply(&mut lab, &said, &said, EXPECTED);
    let syn = tcp(&CLIENT, 6001, &B, 5001, SYN).via(UP.mac);
    lab.rx(UP.port, &syn)
        .tx(B.port, seen(&syn))
        .moved("conn.new", 1)
        .moved("helpers.used", 1)
        .moved("dnat.7.packets", 1)
        .moved("dnat.7.bytes", syn.ip_len() as i64);
    assert!(lab.connections().iter().all(|connection| !connection.dnat));
    lab.reconfigure(|spec| spec.dnat.push(publish_tcp(8, 80, &A, 80)));
    assert_eq!(lab.connections().len(), 2);
    lab.reconfigure(|spec| spec.dnat.retain(|rule| rule.id != 7));
    assert_eq!(lab.connections().len(), 0);
}

#[test]
fn a_request_with_a_wrong_checksum_announces_nothing() {
    // One of IPv4 may have none.
    let none = if speaks_ipv6() { None } else { Some((3001, 0u16, true)) };
    let mut lab = Lab::new(helped());
    for (port, sum, is_expected) in [(3000, 0xdead, false)].into_iter().chain(none) {
        let ask = request(&A, port, &SERVER).via(GATEWAY1.mac);
        let mut wire = Wire::from(&ask);
        let at = wire.l4() + 6;
        assert_ne!(wire.l4_u16(6), sum);
        wire.bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        let step = lab.rx(A.port, wire).masqueraded(&ask).sums_may_be_wrong();
        let step = if is_expected { step.moved("helpers.expected", 1) } else { step };
        step.accept(&[UP.port]);
    }
}

/// Of what a server says of itself only the answer to a question counts.
#[test]
fn a_server_is_believed_what_it_was_asked() {
    let mut lab = Lab::new(helped());
    let mut talk = Talk::into(&mut lab);
    let (said, heard) = (passive(B.ip, 5001), passive(UP.ip, 5001));
    talk.reply(&mut lab, &said, &said, &[]);
    talk.ask(&mut lab);
    talk.reply(&mut lab, &said, &heard, EXPECTED);
    // One answer to one question.
    talk.reply(&mut lab, &said, &said, &[]);
    talk.ask(&mut lab);
    talk.reply(&mut lab, "500 what?\r\n", "500 what?\r\n", &[]);
    talk.reply(&mut lab, &said, &said, &[]);
    talk.command(&mut lab, "EPSV ALL\r\n", "EPSV ALL\r\n", &[]);
    talk.reply(&mut lab, "200 ok\r\n", "200 ok\r\n", &[]);
    talk.reply(&mut lab, &said, &said, &[]);
    // A question behind another command of the same segment counts; the same question again does not.
    let asked = talk.client.says("TYPE I\r\nPASV\r\n");
    talk.command(&mut lab, "TYPE I\r\nPASV\r\n", "TYPE I\r\nPASV\r\n", &[]);
    talk.reply(&mut lab, "200 ok\r\n", "200 ok\r\n", &[]);
    talk.reply(&mut lab, &said, &heard, EXPECTED);
    lab.rx(UP.port, &asked).accept(&[B.port]);
    talk.reply(&mut lab, &said, &said, &[]);
}
