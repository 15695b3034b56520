//! The kernel as the judge of packet code: `captures/` holds what Linux made of real programs'
//! frames on either side of its NAT (see the README there). Ours must come out byte for byte the
//! same: translation, TTL, ICMP errors and what they quote, ARP, checksums, fragments.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "in a test that is how a failure is reported"
)]

use std::net::Ipv4Addr;
use std::path::Path;

use dataplane::frame::Frame;
use dataplane::io::pcap::PcapReader;
use dataplane::io::vnet_hdr::F_NEEDS_CSUM;
use dataplane::packet::arp::{ArpOp, ArpPacket};
use dataplane::packet::headers::{Headers, Ipv4, L4, Net};
use dataplane::packet::icmp::{self, IcmpError};
use dataplane::packet::parse::parse;
use dataplane::packet::rewrite::{self, Rewrite};
use dataplane::packet::segment;
use dataplane::packet::types::Mac;
use dataplane::pool::Pool;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 50, 0, 2);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 50, 0, 1);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const CLIENT_MAC: Mac = Mac([0x02, 0x42, 0x0a, 0x32, 0, 2]);
const GATEWAY_MAC: Mac = Mac([0x02, 0x42, 0x0a, 0x32, 0, 1]);
const OUTSIDE_MAC: Mac = Mac([0x02, 0x42, 0xc0, 0, 2, 1]);
const SERVER_MAC: Mac = Mac([0x02, 0x42, 0xc0, 0, 2, 2]);
/// What the router publishes: its port, and the client's.
const PUBLISHED: (u16, u16) = (8080, 80);

const PAIRS: [&str; 8] = [
    "http",
    "http-published",
    "dns",
    "icmp-echo",
    "icmp-unreachable",
    "icmp-frag-needed",
    "fragments",
    "tcp-retransmits",
];
const INSIDE_ONLY: [&str; 3] = ["icmp-ttl", "arp", "vlan"];

fn load(name: &str) -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("captures").join(format!("{name}.pcap"));
    let mut reader = PcapReader::new(std::fs::read(&path).unwrap()).unwrap();
    let mut frames = Vec::new();
    while let Some(frame) = reader.next_frame().unwrap() {
        assert_eq!(frame.original_len as usize, frame.bytes.len());
        frames.push(frame.bytes.to_vec());
    }
    assert!(!frames.is_empty(), "{name} is empty");
    frames
}

fn every_capture() -> Vec<String> {
    let sides = |name: &&str| [format!("{name}.inside"), format!("{name}.outside")];
    let pairs = PAIRS.iter().flat_map(sides);
    pairs.chain(INSIDE_ONLY.iter().map(|name| format!("{name}.inside"))).collect()
}

fn parsed(bytes: &[u8]) -> (Frame, Headers) {
    let mut frame = Frame::new();
    frame.copy_from(bytes);
    (frame, parse(bytes).unwrap())
}

fn ipv4(headers: &Headers) -> Option<Ipv4> {
    match headers.net {
        Net::Ipv4(ip) => Some(ip),
        _ => None,
    }
}

/// Source and destination port, or the ICMP identifier twice; zero where there is none.
fn ports(ip: &Ipv4) -> (u16, u16) {
    match ip.l4 {
        L4::Tcp { src_port, dst_port, .. } | L4::Udp { src_port, dst_port } => (src_port, dst_port),
        L4::Icmp { id, .. } => (id, id),
        _ => (0, 0),
    }
}

/// What the router makes of a frame from the client; `None`: it does not forward it.
fn outward(bytes: &[u8]) -> Option<Vec<u8>> {
    let (mut frame, headers) = parsed(bytes);
    let mut ip = ipv4(&headers).filter(|ip| ip.src == CLIENT && ip.dst != GATEWAY)?;
    let port = match ports(&ip).0 {
        port if port == PUBLISHED.1 => PUBLISHED.0,
        port => port,
    };
    rewrite::decrement_ttl(&mut frame, &mut ip).ok()?;
    rewrite::apply(&mut frame, &mut ip, &Rewrite::snat(OUTSIDE, port));
    rewrite::set_ethernet(&mut frame, SERVER_MAC, OUTSIDE_MAC);
    Some(frame.bytes().to_vec())
}

/// What the router makes of a frame from the server.
fn inward(bytes: &[u8]) -> Option<Vec<u8>> {
    let (mut frame, headers) = parsed(bytes);
    let mut ip = ipv4(&headers).filter(|ip| ip.dst == OUTSIDE)?;
    rewrite::decrement_ttl(&mut frame, &mut ip).ok()?;
    if matches!(ip.l4, L4::Icmp { kind, .. } if icmp::is_error(kind)) {
        let mut inner = icmp::parse_inner(frame.bytes(), &ip).unwrap();
        let icmp::InnerL4::Ports { src_port, .. } = inner.l4 else { panic!("{inner:?}") };
        let change = Rewrite::dnat(CLIENT, src_port);
        rewrite::apply_inner(&mut frame, &ip, &mut inner, &change.reversed());
    }
    let port = match ports(&ip).1 {
        port if port == PUBLISHED.0 => PUBLISHED.1,
        port => port,
    };
    rewrite::apply(&mut frame, &mut ip, &Rewrite::dnat(CLIENT, port));
    rewrite::set_ethernet(&mut frame, CLIENT_MAC, GATEWAY_MAC);
    Some(frame.bytes().to_vec())
}

/// Compares what we made with what the kernel sent from `mac`. Returns what it did not send.
fn compare(name: &str, mut ours: Vec<Vec<u8>>, kernel: &[Vec<u8>], mac: Mac) -> Vec<Vec<u8>> {
    let mut compared = 0;
    for bytes in kernel {
        let headers = parse(bytes).unwrap();
        let forwarded = ipv4(&headers).is_some_and(|ip| ip.src != GATEWAY);
        if headers.src != mac || !forwarded {
            continue;
        }
        let Some(at) = ours.iter().position(|candidate| candidate == bytes) else {
            panic!("{name}: the kernel sent, and we would not have:\n{headers:?}\n{bytes:02x?}");
        };
        ours.remove(at);
        compared += 1;
    }
    assert!(compared > 0, "{name}: nothing to compare");
    ours
}

#[test]
fn translation_is_the_kernels_byte_for_byte() {
    for name in PAIRS {
        let inside = load(&format!("{name}.inside"));
        let outside = load(&format!("{name}.outside"));
        let out = inside.iter().filter_map(|bytes| outward(bytes)).collect();
        let left = compare(name, out, &outside, OUTSIDE_MAC);
        let into = outside.iter().filter_map(|bytes| inward(bytes)).collect();
        let left_in = compare(name, into, &inside, GATEWAY_MAC);
        match name {
            "tcp-retransmits" => {
                assert!(!left.is_empty() && !left_in.is_empty(), "some were dropped each way");
            }
            "icmp-frag-needed" => {
                assert!(!left.is_empty());
                for bytes in left {
                    assert!(bytes.len() > 14 + 1280, "what fits was forwarded");
                }
                assert!(left_in.is_empty());
            }
            _ => assert!(left.is_empty() && left_in.is_empty(), "{name}: all were forwarded"),
        }
    }
}

#[test]
fn icmp_errors_say_what_the_kernels_say() {
    let mut compared = 0;
    for name in ["icmp-ttl", "icmp-frag-needed"] {
        let frames = load(&format!("{name}.inside"));
        for (at, bytes) in frames.iter().enumerate() {
            let headers = parse(bytes).unwrap();
            let Some(ip) = ipv4(&headers).filter(|ip| ip.src == GATEWAY) else { continue };
            let error = match ip.l4 {
                L4::Icmp { kind: icmp::TIME_EXCEEDED, .. } => IcmpError::TimeExceeded,
                L4::Icmp { kind: icmp::UNREACHABLE, code: 4, .. } => {
                    IcmpError::FragmentationNeeded { mtu: 1280 }
                }
                _ => continue,
            };
            let quote = &bytes[42..];
            let about = frames[..at]
                .iter()
                .find(|frame| frame.len() > 14 && frame[14..].starts_with(quote))
                .expect("the packet that the error is about");
            let (original, original_headers) = parsed(about);
            let mut ours = Frame::new();
            assert!(icmp::write_error(&mut ours, &original, &original_headers, GATEWAY, error));
            assert_eq!(ours.bytes()[34..], bytes[34..], "the ICMP message");
            assert_eq!(ours.bytes()[..18], bytes[..18], "Ethernet, type of service, length");
            assert_eq!(ours.bytes()[22..24], bytes[22..24], "TTL and protocol");
            assert_eq!(ours.bytes()[26..34], bytes[26..34], "addresses");
            compared += 1;
        }
    }
    assert!(compared >= 3, "{compared} errors compared");
}

#[test]
fn arp_and_echo_are_answered_as_by_the_kernel() {
    let frames = load("arp.inside");
    let (mut arps, mut echos) = (0, 0);
    for (at, bytes) in frames.iter().enumerate() {
        let headers = parse(bytes).unwrap();
        if headers.src != GATEWAY_MAC {
            continue;
        }
        let asked = frames[..at].iter().rev().find(|frame| parse(frame).unwrap().src == CLIENT_MAC);
        if let Some(reply) = ArpPacket::parse(bytes, &headers) {
            if reply.op == ArpOp::Reply {
                let asked = asked.expect("a reply follows a request");
                let request = ArpPacket::parse(asked, &parse(asked).unwrap()).unwrap();
                let mut ours = Frame::new();
                request.reply(GATEWAY_MAC).write_unicast(&mut ours);
                assert_eq!(ours.bytes(), bytes);
                arps += 1;
            } else {
                assert!(reply.is_gratuitous(), "what the kernel says when a link comes up");
                let mut ours = Frame::new();
                ArpPacket::announcement(GATEWAY_MAC, GATEWAY).write_broadcast(&mut ours);
                assert_eq!(ours.bytes(), bytes);
                arps += 1;
            }
        } else {
            let (mut ours, request) = parsed(asked.expect("an echo reply follows a request"));
            icmp::echo_reply(&mut ours, &request).unwrap();
            assert_eq!(ours.bytes()[34..], bytes[34..], "the ICMP message");
            assert_eq!(ours.bytes()[..18], bytes[..18]);
            assert_eq!(ours.bytes()[20..24], bytes[20..24], "fragmentation, TTL, protocol");
            assert_eq!(ours.bytes()[26..34], bytes[26..34], "addresses");
            echos += 1;
        }
    }
    assert_eq!((arps, echos), (2, 1));
    let count = |wanted: fn(&ArpPacket) -> bool| {
        frames
            .iter()
            .filter_map(|bytes| ArpPacket::parse(bytes, &parse(bytes).unwrap()))
            .filter(wanted)
            .count()
    };
    assert_eq!(count(ArpPacket::is_probe), 3);
    assert_eq!(count(ArpPacket::is_gratuitous), 3);
}

#[test]
fn checksums_are_completed_as_by_the_kernel() {
    let mut compared = 0;
    for name in every_capture() {
        for bytes in load(&name) {
            let (mut frame, headers) = parsed(&bytes);
            let Some(ip) = ipv4(&headers).filter(|ip| !ip.is_fragment()) else { continue };
            let field = usize::from(ip.l4_offset)
                + match ip.l4 {
                    L4::Tcp { .. } => 16,
                    L4::Udp { .. } => 6,
                    _ => continue,
                };
            frame.bytes_mut()[field..field + 2].copy_from_slice(&[0xab, 0xcd]);
            frame.vnet.flags = F_NEEDS_CSUM;
            segment::complete_checksum(&mut frame, &headers);
            assert_eq!(frame.bytes(), bytes);
            compared += 1;
        }
    }
    assert!(compared > 300, "{compared} packets compared");
}

#[test]
fn fragments_are_cut_as_by_the_kernel() {
    let frames = load("fragments.inside");
    let mut datagrams = 0;
    for mac in [CLIENT_MAC, GATEWAY_MAC] {
        let from: Vec<_> = frames
            .iter()
            .map(|bytes| (bytes, parse(bytes).unwrap()))
            .filter_map(|(bytes, headers)| Some((bytes, headers.src, ipv4(&headers)?)))
            .filter(|(_, src, ip)| *src == mac && ip.is_fragment())
            .collect();
        for pieces in from.chunks(3) {
            // Back to what ping wrote: one packet, 3200 bytes of data.
            let mut whole = pieces[0].0[..34].to_vec();
            for (bytes, _, ip) in pieces {
                whole.extend_from_slice(&bytes[34..ip.end()]);
            }
            whole[16..18].copy_from_slice(&3228u16.to_be_bytes());
            whole[20..22].copy_from_slice(&[0, 0]);
            let (frame, headers) = parsed(&whole);
            let mut out = Vec::new();
            segment::fragment(&frame, &headers, 1500, &mut Pool::new(4), &mut out).unwrap();
            assert_eq!(out.len(), 3);
            for (ours, (kernel, _, _)) in out.iter().zip(pieces) {
                assert_eq!(ours.bytes(), *kernel);
            }
            datagrams += 1;
        }
    }
    assert_eq!(datagrams, 4);
}

#[test]
fn tags_are_seen() {
    let mut seen: Vec<_> = load("vlan.inside")
        .iter()
        .map(|bytes| parse(bytes).unwrap())
        .map(|headers| (headers.tagged, headers.vlan, headers.l3, headers.ethertype))
        .collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(
        seen,
        [
            (false, 0, 14, 0x0800),
            (false, 0, 14, 0x0806),
            (true, 0, 18, 0x0800),
            (true, 0, 18, 0x0806),
            (true, 100, 18, 0x0800),
            (true, 100, 18, 0x0806),
            (true, 200, 22, 0x0800),
            (true, 200, 22, 0x0806),
        ]
    );
}
