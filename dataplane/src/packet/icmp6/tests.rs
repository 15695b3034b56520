//! Echo replies and errors as the RFCs have them; quoted packets of every shape.

use etherparse::icmpv6::Icmpv6PayloadSlice;
use etherparse::{Icmpv6Type, SlicedPacket, TransportSlice};

use super::super::fixtures::{
    CLIENT_MAC, CLIENT6, GATEWAY_MAC, ROUTER6, SERVER6, assert_checksums, chained, echo_request6,
    frame, ipv6, parsed, slow_l4_sum, tagged, tcp, tcp6, udp6,
};
use super::super::parse::parse;
use super::super::types::Mac;
use super::*;

/// Sets the checksum of an ICMPv6 message that begins at `l4` anew.
fn seal_at(bytes: &mut [u8], l4: usize) {
    bytes[l4 + 2..l4 + 4].fill(0);
    let l3 = l4 - 40;
    let sum = slow_l4_sum(&bytes[l3 + 8..l3 + 24], &bytes[l3 + 24..l3 + 40], 58, &bytes[l4..]);
    bytes[l4 + 2..l4 + 4].copy_from_slice(&(!sum).to_be_bytes());
}

#[test]
fn an_echo_request_is_answered() {
    let bytes = echo_request6(b"payload");
    let (mut frame, headers) = parsed(&bytes);
    echo_reply(&mut frame, &headers).unwrap();
    assert_checksums(frame.bytes());
    let reply = parse(frame.bytes()).unwrap();
    assert_eq!((reply.dst, reply.src), (Mac(CLIENT_MAC), Mac(GATEWAY_MAC)));
    let ip = ipv6(&reply);
    assert_eq!((ip.src, ip.dst, ip.hop_limit), (SERVER6, CLIENT6, 64));
    assert_eq!(ip.l4, L4::Icmp { kind: ECHO_REPLY, code: 0, id: 0x4242 });
    assert_eq!(frame.bytes()[58..], bytes[58..], "identifier, sequence number, data");
}

#[test]
fn padding_extension_headers_and_labels_are_not_answered() {
    let message = &echo_request6(b"abc")[54..];
    let mut bytes = chained(&[44, 0, 1, 4, 0, 0, 0, 0, 58, 0, 0, 0, 0, 0, 0, 1], 60, message);
    bytes[14..18].copy_from_slice(&[0x6b, 0x81, 0x23, 0x45]);
    bytes.resize(100, 0xee);
    let (mut frame, headers) = parsed(&bytes);
    assert_eq!(ipv6(&headers).header_len, 56);
    echo_reply(&mut frame, &headers).unwrap();
    assert_checksums(frame.bytes());
    assert_eq!(frame.len(), 14 + 40 + 8 + 3);
    let ip = ipv6(&parse(frame.bytes()).unwrap());
    assert_eq!((ip.header_len, ip.total_len, ip.hop_limit), (40, 51, 64));
    assert_eq!(frame.bytes()[14..18], [0x6b, 0x80, 0, 0], "traffic class is kept, label is not");
    assert_eq!(frame.bytes()[62..], *b"abc");
}

#[test]
fn a_tagged_request_gets_a_tagged_reply() {
    let (mut frame, headers) = parsed(&tagged(&echo_request6(b"x"), &[(0x8100, 5)]));
    echo_reply(&mut frame, &headers).unwrap();
    assert_checksums(frame.bytes());
    assert_eq!(parse(frame.bytes()).unwrap().vlan, 5);
}

#[test]
fn what_is_no_sound_request_is_left_alone() {
    let mut wrong_sum = echo_request6(b"x");
    wrong_sum[62] ^= 1;
    let mut reply = echo_request6(b"x");
    reply[54] = ECHO_REPLY;
    seal_at(&mut reply, 54);
    let mut to_group = echo_request6(b"x");
    to_group[38] = 0xff;
    seal_at(&mut to_group, 54);
    let fragment = chained(&[58, 0, 0, 1, 0, 0, 0, 9], 44, &echo_request6(b"x")[54..]);
    for bytes in [wrong_sum, reply, to_group, fragment, udp6(b"x"), tcp(b"x")] {
        let (mut frame, headers) = parsed(&bytes);
        assert_eq!(echo_reply(&mut frame, &headers), Err(DropReason::L4Malformed));
        assert_eq!(frame.bytes(), bytes);
    }
}

fn error_for(bytes: &[u8], error: Icmp6Error) -> Option<Frame> {
    let (original, headers) = parsed(bytes);
    let mut out = frame(b"as it was");
    let written = write_error(&mut out, &original, &headers, ROUTER6, error);
    assert!(written || out.bytes() == b"as it was");
    written.then_some(out)
}

/// RFC 4443 §2.4 (c).
///
/// Rows: RFC 4443 §2.4 (c).
#[test]
fn an_error_quotes_what_fits_into_the_least_mtu() {
    for size in [0, 5, 1183, 1184, 1185, 1400, 9000] {
        let mut bytes = udp6(&vec![3; size]);
        let packet = bytes.len() - 14;
        bytes.resize(bytes.len().max(80), 0xee);
        let out = error_for(&bytes, Icmp6Error::PortUnreachable).unwrap();
        assert_checksums(out.bytes());
        assert_eq!(out.len(), 14 + (48 + packet).min(1280), "payload of {size}");
        assert_eq!(out.bytes()[62..], bytes[14..14 + packet.min(1232)]);
        let headers = parse(out.bytes()).unwrap();
        assert_eq!((headers.dst, headers.src), (Mac(CLIENT_MAC), Mac(GATEWAY_MAC)));
        let ip = ipv6(&headers);
        assert_eq!((ip.src, ip.dst, ip.hop_limit), (ROUTER6, CLIENT6, 64));
        assert_eq!(ip.l4, L4::Icmp { kind: 1, code: 4, id: 0 });
        assert_eq!(out.bytes()[14..18], [0x60, 0, 0, 0]);
    }
}

#[test]
fn types_codes_and_the_last_field() {
    let cases = [
        (Icmp6Error::NoRoute, [1, 0], 0),
        (Icmp6Error::AdminProhibited, [1, 1], 0),
        (Icmp6Error::BeyondScope, [1, 2], 0),
        (Icmp6Error::AddressUnreachable, [1, 3], 0),
        (Icmp6Error::PortUnreachable, [1, 4], 0),
        (Icmp6Error::SourcePolicy, [1, 5], 0),
        (Icmp6Error::PacketTooBig { mtu: 0x0001_2345 }, [2, 0], 0x0001_2345),
        (Icmp6Error::HopLimitExceeded, [3, 0], 0),
        (Icmp6Error::HeaderField { pointer: 42 }, [4, 0], 42),
        (Icmp6Error::UnknownNextHeader { pointer: 6 }, [4, 1], 6),
    ];
    for (error, kind_code, last) in cases {
        let out = error_for(&tcp6(b"hello"), error).unwrap();
        assert_eq!(out.bytes()[54..56], kind_code, "{error:?}");
        assert_eq!(out.bytes()[58..62], u32::to_be_bytes(last), "{error:?}");
        assert_checksums(out.bytes());
        // And another reader.
        let sliced = SlicedPacket::from_ethernet(out.bytes()).unwrap();
        let Some(TransportSlice::Icmpv6(slice)) = sliced.transport else { panic!("not ICMPv6") };
        assert!(!matches!(slice.icmp_type(), Icmpv6Type::Unknown { .. }), "{error:?}");
        assert!(slice.is_checksum_valid(ROUTER6.octets(), CLIENT6.octets()));
        let quoted = match slice.payload_slice().unwrap() {
            Icmpv6PayloadSlice::DestinationUnreachable(it) => it.invoking_packet(),
            Icmpv6PayloadSlice::PacketTooBig(it) => it.invoking_packet(),
            Icmpv6PayloadSlice::TimeExceeded(it) => it.invoking_packet(),
            Icmpv6PayloadSlice::ParameterProblem(it) => it.invoking_packet(),
            other => panic!("{other:?}"),
        };
        assert_eq!(quoted, &tcp6(b"hello")[14..]);
    }
}

#[test]
fn a_tagged_packet_gets_a_tagged_error() {
    let bytes = tagged(&udp6(b"x"), &[(0x88a8, 5), (0x8100, 6)]);
    let out = error_for(&bytes, Icmp6Error::HopLimitExceeded).unwrap();
    assert_checksums(out.bytes());
    assert_eq!(out.bytes()[12..20], bytes[12..20]);
}

fn changed(mut bytes: Vec<u8>, at: usize, values: &[u8]) -> Vec<u8> {
    bytes[at..at + values.len()].copy_from_slice(values);
    bytes
}

const MAPPED: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1];
const LOOPBACK: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// RFC 4443 §2.4 (e).
///
/// Rows: RFC 4443 §2.4 (e).
#[test]
fn what_must_not_be_answered_is_not() {
    let icmp = |kind: u8| changed(echo_request6(b"x"), 54, &[kind]);
    let behind = |chain: &[u8], first, l4: &[u8]| chained(chain, first, l4);
    let error = icmp(1)[54..].to_vec();
    let silent = [
        ("e.1 an error", icmp(1)),
        ("e.1 an error of a type to come", icmp(127)),
        ("e.1 an error behind options", behind(&[58, 0, 1, 4, 0, 0, 0, 0], 60, &error)),
        ("e.1 an error in a fragment", behind(&[58, 0, 0, 1, 0, 0, 0, 9], 44, &error)),
        ("e.1 ICMPv6 cut short", changed(echo_request6(b""), 19, &[7])),
        ("e.1 a later fragment of ICMPv6", behind(&[58, 0, 0, 8, 0, 0, 0, 9], 44, &error)),
        ("e.1 a chain without end", behind(&[60, 0, 1, 4, 0, 0, 0, 0].repeat(9), 60, &error)),
        ("e.1 a chain out of order", behind(&[0, 0, 1, 4, 0, 0, 0, 0], 60, &error)),
        ("e.1 a chain cut short", behind(&[58, 1, 1, 4, 0, 0, 0, 0], 60, &[])),
        ("e.2 a redirect", icmp(137)),
        ("e.6 no source", changed(udp6(b"x"), 22, &[0; 16])),
        ("e.6 a multicast source", changed(udp6(b"x"), 22, &[0xff, 2])),
        ("e.6 a loopback source", changed(udp6(b"x"), 22, &LOOPBACK)),
        ("e.6 an IPv4 source", changed(udp6(b"x"), 22, &MAPPED)),
        ("a source MAC of zero", changed(udp6(b"x"), 6, &[0; 6])),
        ("IPv4", tcp(b"x")),
    ];
    for (what, bytes) in silent {
        assert!(error_for(&bytes, Icmp6Error::HopLimitExceeded).is_none(), "{what}");
        assert!(error_for(&bytes, Icmp6Error::PacketTooBig { mtu: 1280 }).is_none(), "{what}");
    }
    let of_groups = [
        ("e.3 an IPv6 multicast", changed(udp6(b"x"), 38, &[0xff, 0x0e])),
        ("e.4 an Ethernet multicast", changed(udp6(b"x"), 0, &[0x33, 0x33])),
        ("e.5 an Ethernet broadcast", changed(udp6(b"x"), 0, &[0xff; 6])),
    ];
    for (what, bytes) in of_groups {
        assert!(error_for(&bytes, Icmp6Error::HopLimitExceeded).is_none(), "{what}");
        assert!(error_for(&bytes, Icmp6Error::PacketTooBig { mtu: 1280 }).is_some(), "{what}");
    }
    let answered = [
        ("an echo request", echo_request6(b"x")),
        ("an echo reply", icmp(129)),
        ("a neighbor solicitation", icmp(135)),
        ("a first fragment", behind(&[17, 0, 0, 1, 0, 0, 0, 9], 44, &udp6(b"x")[54..])),
        ("a later fragment", behind(&[17, 0, 0, 8, 0, 0, 0, 9], 44, b"rest")),
        ("another protocol", changed(udp6(b"x"), 20, &[132])),
        ("a link-local source", changed(udp6(b"x"), 22, &[0xfe, 0x80])),
    ];
    for (what, bytes) in answered {
        assert!(error_for(&bytes, Icmp6Error::HopLimitExceeded).is_some(), "{what}");
    }
}

fn inner_of(error: &Frame) -> Result<InnerPacket, DropReason> {
    parse_inner(error.bytes(), &ipv6(&parse(error.bytes()).unwrap()))
}

fn exceeded(bytes: &[u8]) -> Frame {
    error_for(bytes, Icmp6Error::HopLimitExceeded).unwrap()
}

#[test]
fn the_quote_is_read() {
    let inner = inner_of(&exceeded(&tcp6(b"hello"))).unwrap();
    assert_eq!((inner.offset, inner.header_len, inner.quoted_len), (62, 40, 25));
    assert_eq!((inner.src, inner.dst, inner.proto), (CLIENT6, SERVER6, 6));
    assert_eq!((inner.frag_offset, inner.frag_id, inner.chain), (0, 0, Chain::Whole));
    assert_eq!(inner.l4, InnerL4::Ports { src_port: 40_000, dst_port: 80 });
    let inner = inner_of(&exceeded(&udp6(b""))).unwrap();
    assert_eq!(inner.l4, InnerL4::Ports { src_port: 40_000, dst_port: 53 });
    let inner = inner_of(&exceeded(&echo_request6(b""))).unwrap();
    assert_eq!(inner.l4, InnerL4::Query { kind: 128, id: 0x4242 });
}

#[test]
fn the_quoted_chain_is_walked() {
    let segment = &tcp6(b"hello")[54..];
    let options = [60, 0, 1, 4, 0, 0, 0, 0, 6, 1, 1, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let inner = inner_of(&exceeded(&chained(&options, 0, segment))).unwrap();
    assert_eq!((inner.header_len, inner.proto, inner.quoted_len), (64, 6, 25));
    assert_eq!(inner.l4, InnerL4::Ports { src_port: 40_000, dst_port: 80 });

    let first = inner_of(&exceeded(&chained(&[6, 0, 0, 1, 1, 2, 3, 4], 44, segment))).unwrap();
    assert_eq!((first.frag_id, first.header_len), (0x0102_0304, 48));
    assert_eq!((first.fragment_at, first.more_fragments), (40, true));
    assert_eq!(first.l4, InnerL4::Ports { src_port: 40_000, dst_port: 80 });
    let later = inner_of(&exceeded(&chained(&[6, 0, 0, 0x59, 1, 2, 3, 4], 44, segment))).unwrap();
    assert_eq!((later.frag_offset, later.frag_id, later.proto), (0x58, 0x0102_0304, 6));
    assert_eq!(later.l4, InnerL4::None);
    let routed = chained(&[6, 0, 0, 0, 0, 0, 0, 0], 43, segment);
    let inner = inner_of(&exceeded(&routed)).unwrap();
    assert_eq!((inner.chain, inner.header_len), (Chain::Routing0, 48));
    assert_ne!(inner.l4, InnerL4::None);
}

/// Cuts an error to `keep` bytes of the quote, as sound as before.
fn cut(error: &Frame, keep: usize) -> Frame {
    let mut bytes = error.bytes()[..62 + keep].to_vec();
    bytes[18..20].copy_from_slice(&u16::try_from(8 + keep).unwrap().to_be_bytes());
    seal_at(&mut bytes, 54);
    frame(&bytes)
}

#[test]
fn a_quote_may_end_anywhere_behind_the_header() {
    let options = [60, 0, 1, 4, 0, 0, 0, 0, 6, 0, 1, 4, 0, 0, 0, 0];
    let error = exceeded(&chained(&options, 0, &tcp6(b"hello")[54..]));
    for keep in 0..error.len() - 62 {
        let inner = inner_of(&cut(&error, keep));
        let Ok(inner) = inner else {
            assert!(keep < 40, "{keep} bytes");
            continue;
        };
        assert_eq!(inner.chain, if keep < 56 { Chain::Cut } else { Chain::Whole }, "{keep}");
        assert_eq!(inner.l4 == InnerL4::None, keep < 64, "{keep} bytes");
        assert!(usize::from(inner.header_len + inner.quoted_len) <= keep);
    }
}

/// RFC 4884 §4.4, §4.5: the length is in units of eight bytes, and in other types means other things.
#[test]
fn extensions_are_not_part_of_the_quote() {
    for (kind, units, quoted) in
        [(1, 16, 128), (3, 17, 136), (2, 16, 160), (4, 16, 160), (1, 15, 160), (1, 255, 160)]
    {
        let mut bytes = exceeded(&tcp6(&[1; 200])).bytes()[..62 + 160].to_vec();
        bytes[18..20].copy_from_slice(&168u16.to_be_bytes());
        bytes[54] = kind;
        bytes[58] = units;
        seal_at(&mut bytes, 54);
        let inner = inner_of(&frame(&bytes)).unwrap();
        assert_eq!(usize::from(inner.quoted_len) + 40, quoted, "type {kind}, {units} units");
        assert_eq!(inner.l4, InnerL4::Ports { src_port: 40_000, dst_port: 80 });
    }
}

#[test]
fn what_follows_the_quoted_packet_is_not_quoted() {
    let mut bytes = exceeded(&udp6(b"abc")).bytes().to_vec();
    bytes.extend_from_slice(&[0; 20]);
    bytes[18..20].copy_from_slice(&(8 + 51 + 20u16).to_be_bytes());
    seal_at(&mut bytes, 54);
    assert_eq!(inner_of(&frame(&bytes)).unwrap().quoted_len, 11);
}

#[test]
fn wrong_checksums_are_refused() {
    let good = exceeded(&tcp6(b"hello"));
    let mut outer = frame(good.bytes());
    outer.bytes_mut()[90] ^= 1;
    assert_eq!(inner_of(&outer), Err(DropReason::L4Malformed));
    // It counts the addresses, too.
    let mut other = frame(good.bytes());
    other.bytes_mut()[30] ^= 1;
    assert_eq!(inner_of(&other), Err(DropReason::L4Malformed));
    // The quoted transport checksum is nobody's business.
    let mut transport = good.bytes().to_vec();
    transport[62 + 56] ^= 1;
    seal_at(&mut transport, 54);
    assert!(inner_of(&frame(&transport)).is_ok());
}

#[test]
fn what_quotes_no_ipv6_packet_is_refused() {
    let good = exceeded(&tcp6(b"hello"));
    let mut version = good.bytes().to_vec();
    version[62] = 0x45;
    seal_at(&mut version, 54);
    assert_eq!(inner_of(&frame(&version)), Err(DropReason::L4Malformed));
    for kind in [0, 5, 100, 127, 128, 129, 135, 137] {
        let mut other = good.bytes().to_vec();
        other[54] = kind;
        seal_at(&mut other, 54);
        assert_eq!(inner_of(&frame(&other)), Err(DropReason::L4Malformed), "type {kind}");
    }
    // An error in a fragment cannot be verified.
    let fragment = chained(&[58, 0, 0, 1, 0, 0, 0, 9], 44, &good.bytes()[54..]);
    assert_eq!(inner_of(&frame(&fragment)), Err(DropReason::L4Malformed));
    assert_eq!(inner_of(&frame(&tcp6(b"x"))), Err(DropReason::L4Malformed));
}
