//! What is built is what was said, as the engine and the sums see it.

use dataplane::frame::Frame;
use dataplane::packet::headers::{Ipv6, L4, Net};
use dataplane::packet::offload;
use dataplane::packet::parse::parse;
use dataplane::packet::types::{Mac, PortId, tcp_flags};

use super::super::sctp::{DATA, sctp};
use super::super::{Wire, describe, echo, echo_reply, icmp_error, raw_ip, tcp, udp};
use super::*;
use crate::sums;

const A: Host =
    Host { port: PortId(1), mac: Mac([2, 0, 0, 0, 0, 1]), ip: Ipv4Addr::new(10, 1, 0, 2) };
const SERVER: Host =
    Host { port: PortId(2), mac: Mac([2, 0, 0, 0, 0, 2]), ip: Ipv4Addr::new(198, 51, 100, 7) };

fn read(packet: &Packet) -> Ipv6 {
    let wire = Wire::from(packet);
    let Net::Ipv6(ip) = parse(&wire.bytes).unwrap().net else { panic!("{wire:?}") };
    ip
}

#[test]
fn addresses_have_twins() {
    assert_eq!(A.ip6(), "fd00::a01:2".parse::<Ipv6Addr>().unwrap());
    assert_eq!(SERVER.ip6(), "2001:db8::c633:6407".parse::<Ipv6Addr>().unwrap());
}

#[test]
fn a_twin_says_the_same() {
    let packets = [
        tcp(&A, 40_000, &SERVER, 80, tcp_flags::SYN),
        udp(&A, 40_000, &SERVER, 80),
        echo(&A, &SERVER, 9),
        echo_reply(&A, &SERVER, 9),
        raw_ip(&A, &SERVER, 47),
        sctp(&A, 40_000, &SERVER, 36_412, 9).chunk(DATA, 3, &[7; 20]),
    ];
    for packet in packets {
        let twin = packet.clone().ttl(7).tos(0xb9).v6();
        let ip = read(&twin);
        assert_eq!((ip.src, ip.dst, ip.hop_limit), (A.ip6(), SERVER.ip6(), 7));
        let bytes = twin.bytes();
        assert_eq!(bytes[14..18], [0x6b, 0x90, 0, 0], "traffic class");
        assert_ne!(sums::check(&Wire::from(&twin)).l4, Some(false));
        let Net::Ipv4(four) = parse(&packet.bytes()).unwrap().net else { panic!("{packet:?}") };
        match (four.l4, ip.l4) {
            (L4::Icmp { kind, code: 0, id: 9 }, L4::Icmp { kind: six, code: 0, id: 9 }) => {
                assert_eq!(six, if kind == 8 { 128 } else { 129 });
                assert_eq!(ip.proto, 58);
            }
            (four, six) => assert_eq!(four, six),
        }
        assert_eq!(bytes[usize::from(ip.l4_offset)..].len(), packet.bytes()[34..].len());
    }
}

#[test]
fn changes_come_before_or_after() {
    let before = udp(&A, 1, &SERVER, 2).src(SERVER.ip).dst(A.ip).sport(5).dport(6).v6();
    let after = udp(&A, 1, &SERVER, 2).v6().src(SERVER.ip).dst(A.ip).sport(5).dport(6);
    assert_eq!(before.bytes(), after.bytes());
    let elsewhere = "fe80::1".parse().unwrap();
    let ip = read(&after.clone().src6(elsewhere).dst6(Ipv6Addr::LOCALHOST));
    assert_eq!((ip.src, ip.dst), (elsewhere, Ipv6Addr::LOCALHOST));
    let routed = after.clone().routed(A.mac, SERVER.mac).vlan(5).flow_label(0x12345);
    assert_eq!(read(&routed).hop_limit, 63);
    assert_eq!(routed.bytes()[18..22], [0x60, 1, 0x23, 0x45]);
    assert_eq!(sums::check(&Wire::from(&routed)).l4, Some(true));
}

#[test]
fn errors_quote_twins() {
    let about = tcp(&A, 40_000, &SERVER, 80, tcp_flags::ACK).long(100);
    for (four, six) in [((3, 1), (1, 3)), ((3, 3), (1, 4)), ((3, 4), (2, 0)), ((11, 0), (3, 0))] {
        let error = icmp_error(&SERVER, &A, four.0, four.1, &about, 64).icmp_low(1400);
        let twin = error.clone().v6();
        let L4::Icmp { kind, code, .. } = read(&twin).l4 else { panic!("{twin:?}") };
        assert_eq!((kind, code), six);
        let bytes = twin.bytes();
        assert_eq!(bytes[58..62], [0, 0, 5, 120], "the MTU is where it was");
        assert_eq!(bytes[62..], about.clone().v6().ip_bytes()[..64]);
        assert_eq!(sums::check(&Wire::from(&twin)).l4, Some(true));
        let made = icmp6_error(&SERVER, &A, six.0, six.1, &about.clone().v6(), 64).icmp_low(1400);
        assert_eq!(made.bytes(), bytes);
    }
    // A quote replaced stays replaced.
    let own = icmp_error(&SERVER, &A, 3, 3, &about, 64).payload(b"rubbish").v6();
    assert_eq!(own.bytes()[62..], *b"rubbish");
}

#[test]
#[should_panic(expected = "nothing in ICMPv6")]
fn what_has_no_twin_is_refused() {
    let _ = super::super::icmp(&A, &SERVER, 13, 0, [0; 4]).v6();
}

#[test]
fn extension_headers() {
    let packet = udp(&A, 40_000, &SERVER, 53)
        .extension(0, &[0, 1, 4, 0, 0, 0, 0])
        .fragment_header(0, true, 0x0102_0304)
        .extension(60, &[0, 1, 4, 0, 0, 0, 0]);
    let ip = read(&packet);
    assert_eq!((ip.header_len, ip.fragment_at, ip.frag_id), (64, 48, 0x0102_0304));
    assert!(ip.more_fragments && ip.proto == 17);
    assert_eq!(ip.l4, L4::Udp { src_port: 40_000, dst_port: 53 });
    assert_eq!(packet.bytes()[78..], udp(&A, 40_000, &SERVER, 53).v6().bytes()[54..]);
    assert!(describe(&packet.bytes()).contains("hop limit 64 extensions"), "{packet:?}");
}

#[test]
fn offloads_are_believed() {
    let segments = tcp(&A, 40_000, &SERVER, 80, tcp_flags::ACK).long(3000).v6();
    let long = udp(&A, 40_000, &SERVER, 80).long(3000).v6();
    let big = tcp(&A, 40_000, &SERVER, 80, tcp_flags::ACK).v6().big(70_000, 1400);
    let extended = segments.clone().extension(60, &[0, 1, 4, 0, 0, 0, 0]).gso(1400);
    for wire in [segments.partial(), segments.gso(1400), long.gso(1400), big, extended] {
        assert_ne!(sums::check(&wire).l4, Some(false), "{wire:?}");
        let mut frame = Frame::new();
        frame.copy_from(&wire.bytes);
        frame.vnet = wire.vnet;
        let headers = parse(frame.bytes()).unwrap();
        offload::admit(&mut frame, &headers).unwrap();
        assert_eq!(frame.vnet, wire.vnet);
    }
}
