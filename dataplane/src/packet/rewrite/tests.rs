//! Every rewriting leaves sound checksums, touches nothing else, and can be undone.

use proptest::prelude::*;

use super::super::fixtures::{
    self, CLIENT, EXTERNAL, SERVER, assert_checksums, echo_request, frame, ipv4, make_partial,
    parsed, slow_sum, tcp, udp,
};
use super::super::headers::{Headers, Net};
use super::super::icmp::{IcmpError, parse_inner, write_error};
use super::super::parse::parse;
use super::*;

const CLIENT_IP: Ipv4Addr = Ipv4Addr::new(CLIENT[0], CLIENT[1], CLIENT[2], CLIENT[3]);
const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

fn rewritten(bytes: &[u8], rewrite: &Rewrite) -> Frame {
    let (mut frame, headers) = parsed(bytes);
    let mut ip = ipv4(&headers);
    apply(&mut frame, &mut ip, rewrite);
    assert_eq!(ip, ipv4(&parse(frame.bytes()).unwrap()), "what was parsed stays true");
    frame
}

/// The offsets of the bytes in which two frames of the same length differ.
fn changed(before: &[u8], after: &[u8]) -> Vec<usize> {
    assert_eq!(before.len(), after.len());
    (0..before.len()).filter(|&at| before[at] != after[at]).collect()
}

#[test]
fn snat_of_tcp_changes_source_and_checksums_only() {
    let before = tcp(b"hello");
    let after = rewritten(&before, &Rewrite::snat(EXTERNAL, 50_000));
    assert_checksums(after.bytes());
    let ip = ipv4(&parse(after.bytes()).unwrap());
    assert_eq!((ip.src, ip.dst.octets()), (EXTERNAL, SERVER));
    assert!(matches!(ip.l4, L4::Tcp { src_port: 50_000, dst_port: 80, .. }));
    let may_change = [24..30, 34..36, 50..52];
    for at in changed(&before, after.bytes()) {
        assert!(may_change.iter().any(|range| range.contains(&at)), "byte {at} changed");
    }
}

#[test]
fn dnat_of_udp_behind_a_tag() {
    let mut before = udp(b"hello");
    before.splice(12..12, [0x81, 0x00, 0x00, 0x05]);
    let after = rewritten(&before, &Rewrite::dnat(EXTERNAL, 5353));
    assert_checksums(after.bytes());
    let ip = ipv4(&parse(after.bytes()).unwrap());
    assert_eq!((ip.src.octets(), ip.dst), (CLIENT, EXTERNAL));
    assert_eq!(ip.l4, L4::Udp { src_port: 40_000, dst_port: 5353 });
}

#[test]
fn a_udp_checksum_of_zero_stays() {
    let mut before = udp(b"hello");
    before[40..42].copy_from_slice(&[0, 0]);
    let after = rewritten(&before, &Rewrite::snat(EXTERNAL, 1));
    assert_eq!(after.bytes()[40..42], [0, 0]);
}

#[test]
fn an_echo_request_gets_the_identifier() {
    let after = rewritten(&echo_request(b"hello"), &Rewrite::snat(EXTERNAL, 0x1111));
    assert_checksums(after.bytes());
    let ip = ipv4(&parse(after.bytes()).unwrap());
    assert_eq!(ip.l4, L4::Icmp { kind: 8, code: 0, id: 0x1111 });
}

#[test]
fn the_mtu_in_an_icmp_error_is_no_identifier() {
    let (original, headers) = parsed(&udp(b"hello"));
    let mut error = Frame::new();
    let needed = IcmpError::FragmentationNeeded { mtu: 1400 };
    assert!(write_error(&mut error, &original, &headers, ROUTER, needed));
    let after = rewritten(error.bytes(), &Rewrite::dnat(EXTERNAL, 9));
    assert_checksums(after.bytes());
    assert_eq!(after.bytes()[38..42], [0, 0, 5, 120]);
}

#[test]
fn a_partial_checksum_gets_the_addresses_only() {
    for bytes in [tcp(b"hello"), udp(b"hello")] {
        let mut partial = frame(&bytes);
        make_partial(&mut partial);
        let mut ip = ipv4(&parse(partial.bytes()).unwrap());
        let both = Rewrite { src: Some((EXTERNAL, 7)), dst: Some((ROUTER, 8)) };
        apply(&mut partial, &mut ip, &both);
        // The same frame, made partial after the rewriting.
        let mut expected = rewritten(&bytes, &both);
        make_partial(&mut expected);
        assert_eq!(partial.bytes(), expected.bytes());
    }
}

/// Rows: Open vSwitch `mod_nw_src and set_field on IP fragments`.
#[test]
fn fragments_and_unknown_protocols_get_addresses_only() {
    let mut later = udp(b"hello");
    later[20..22].copy_from_slice(&[0x00, 0x10]);
    let mut other = tcp(b"hello");
    other[23] = 47;
    // What another port does to its CRC is not known.
    let mut first = tcp(b"hello");
    first[23] = ip_proto::SCTP;
    first[20] = 0x20;
    for mut before in [later, other, first] {
        before[24..26].copy_from_slice(&[0, 0]);
        let sum = !slow_sum(&before[14..34]);
        before[24..26].copy_from_slice(&sum.to_be_bytes());
        let after = rewritten(&before, &Rewrite::snat(EXTERNAL, 50_000));
        assert_eq!(slow_sum(&after.bytes()[14..34]), 0xffff);
        assert_eq!(after.bytes()[34..], before[34..]);
        assert_eq!(ipv4(&parse(after.bytes()).unwrap()).src, EXTERNAL);
    }
}

#[test]
fn a_wrong_checksum_stays_wrong() {
    let mut before = tcp(b"hello");
    before[58] ^= 1;
    let after = rewritten(&before, &Rewrite::snat(EXTERNAL, 50_000));
    let segment = &after.bytes()[34..];
    let sum = fixtures::slow_l4_sum(&EXTERNAL.octets(), &SERVER, 6, segment);
    assert_ne!(sum, 0xffff);
}

#[test]
fn ttl_counts_down_to_one() {
    let (mut frame, headers) = parsed(&tcp(b"hello"));
    let mut ip = ipv4(&headers);
    for expected in (1..64).rev() {
        assert_eq!(decrement_ttl(&mut frame, &mut ip), Ok(()));
        assert_eq!((ip.ttl, frame.bytes()[22]), (expected, expected));
        assert_checksums(frame.bytes());
    }
    let last = frame.bytes().to_vec();
    assert_eq!(decrement_ttl(&mut frame, &mut ip), Err(DropReason::TtlExceeded));
    assert_eq!(frame.bytes(), last);
}

#[test]
fn ethernet_addresses() {
    let mut frame = frame(&tcp(b""));
    set_ethernet(&mut frame, Mac([1; 6]), Mac([2; 6]));
    let headers = parse(frame.bytes()).unwrap();
    assert_eq!((headers.dst, headers.src), (Mac([1; 6]), Mac([2; 6])));
    frame.truncate(5);
    set_ethernet(&mut frame, Mac([3; 6]), Mac([4; 6]));
    assert_eq!(frame.bytes(), [1; 5], "nothing is written past the end");
}

/// An error from `ROUTER` about `bytes`, as the outside sees it.
fn error_about(bytes: &[u8]) -> (Frame, Headers) {
    let (original, headers) = parsed(bytes);
    let mut error = Frame::new();
    assert!(write_error(&mut error, &original, &headers, ROUTER, IcmpError::TimeExceeded));
    let headers = parse(error.bytes()).unwrap();
    (error, headers)
}

/// What SNAT did to a packet is undone in the error about it.
fn error_comes_back(inside: &[u8], port: u16, inside_port: u16) {
    let outside = rewritten(inside, &Rewrite::snat(EXTERNAL, port));
    let (mut error, headers) = error_about(outside.bytes());
    let mut outer = ipv4(&headers);
    let mut inner = parse_inner(error.bytes(), &outer).unwrap();
    let back = Rewrite::dnat(CLIENT_IP, inside_port);
    apply_inner(&mut error, &outer, &mut inner, &back.reversed());
    apply(&mut error, &mut outer, &back);
    assert_checksums(error.bytes());
    let quoted = inside.len().min(14 + 548);
    assert_eq!(error.bytes()[42..], inside[14..quoted], "the quote is what the client sent");
    assert_eq!(parse_inner(error.bytes(), &outer), Ok(inner));
    assert_eq!(outer.dst, CLIENT_IP);
}

#[test]
fn errors_about_translated_packets() {
    error_comes_back(&tcp(b"hello"), 50_000, 40_000);
    error_comes_back(&tcp(&[9; 1400]), 50_000, 40_000);
    error_comes_back(&udp(b"hello"), 50_000, 40_000);
    error_comes_back(&echo_request(b"hello"), 0x1111, 0x4242);
    error_comes_back(&sctp(b"hello"), 50_000, 40_000);
    error_comes_back(&sctp(&[9; 1400]), 50_000, 40_000);
}

/// SCTP whose CRC is as wrong as it may be: what comes back is as it was.
fn sctp(payload: &[u8]) -> Vec<u8> {
    let mut bytes = tcp(payload);
    bytes[23] = ip_proto::SCTP;
    bytes[24..26].copy_from_slice(&[0, 0]);
    let sum = !slow_sum(&bytes[14..34]);
    bytes[24..26].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// An ICMP error with a quote cut to `keep` bytes behind the quoted IPv4 header.
fn cut_quote(error: &Frame, keep: usize) -> Frame {
    let mut bytes = error.bytes()[..42 + 20 + keep].to_vec();
    let total = u16::try_from(bytes.len() - 14).unwrap();
    bytes[16..18].copy_from_slice(&total.to_be_bytes());
    for (field, range) in [(24, 14..34), (36, 34..bytes.len())] {
        bytes[field..field + 2].copy_from_slice(&[0, 0]);
        let sum = !slow_sum(&bytes[range]);
        bytes[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    }
    frame(&bytes)
}

#[test]
fn a_quote_of_eight_bytes_or_less() {
    for inside in [tcp(b"hello"), udp(b"hello"), echo_request(b"hello")] {
        let port = if inside[23] == 1 { 0x4242 } else { 40_000 };
        let outside = rewritten(&inside, &Rewrite::snat(EXTERNAL, 1000));
        let (error, _) = error_about(outside.bytes());
        for keep in 0..=24 {
            let mut error = cut_quote(&error, keep.min(error.len() - 62));
            let outer = ipv4(&parse(error.bytes()).unwrap());
            let mut inner = parse_inner(error.bytes(), &outer).unwrap();
            assert_eq!(inner.l4 == InnerL4::None, keep < 8, "{keep} bytes quoted");
            let back = Rewrite { src: Some((CLIENT_IP, port)), dst: None };
            apply_inner(&mut error, &outer, &mut inner, &back);
            assert_checksums(error.bytes());
            assert_eq!(error.bytes()[42..62], inside[14..34]);
            // The checksum of TCP lies beyond eight bytes.
            if keep >= 18 || (keep >= 8 && inside[23] != 6) {
                assert_eq!(error.bytes()[62..], inside[34..34 + error.len() - 62]);
            }
        }
    }
}

/// Sources of change for one side of a packet.
fn side() -> impl Strategy<Value = Option<(Ipv4Addr, u16)>> {
    let corner = prop_oneof![Just(0u16), Just(0xffff), any::<u16>()];
    proptest::option::of((any::<u32>().prop_map(Ipv4Addr::from), corner))
}

fn any_packet() -> impl Strategy<Value = Vec<u8>> {
    let payload = proptest::collection::vec(any::<u8>(), 0..80);
    (0..3, payload).prop_map(|(shape, payload)| match shape {
        0 => tcp(&payload),
        1 => udp(&payload),
        _ => echo_request(&payload),
    })
}

/// What undoes `rewrite` on a packet that looked like `before`.
fn inverse(before: &Ipv4, rewrite: &Rewrite) -> Rewrite {
    let (src_port, dst_port) = match before.l4 {
        L4::Tcp { src_port, dst_port, .. } | L4::Udp { src_port, dst_port } => (src_port, dst_port),
        L4::Icmp { id, .. } => (id, id),
        _ => (0, 0),
    };
    Rewrite {
        src: rewrite.src.map(|_| (before.src, src_port)),
        dst: rewrite.dst.map(|_| (before.dst, dst_port)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn checksums_stay_right(bytes in any_packet(), src in side(), dst in side()) {
        assert_checksums(rewritten(&bytes, &Rewrite { src, dst }).bytes());
    }

    #[test]
    fn there_and_back_is_identity(bytes in any_packet(), src in side(), dst in side()) {
        let rewrite = Rewrite { src, dst };
        let there = rewritten(&bytes, &rewrite);
        let back = inverse(&ipv4(&parse(&bytes).unwrap()), &rewrite);
        let again = rewritten(there.bytes(), &back);
        prop_assert_eq!(again.bytes(), &bytes);
    }

    #[test]
    fn dnat_then_snat_is_both_at_once(bytes in any_packet(), src in side(), dst in side()) {
        // With one identifier for both sides, ICMP takes the last one given.
        let one = rewritten(&bytes, &Rewrite { src: None, dst });
        let two = rewritten(one.bytes(), &Rewrite { src, dst: None });
        let both = rewritten(&bytes, &Rewrite { src, dst });
        prop_assert_eq!(two.bytes(), both.bytes());
    }

    #[test]
    fn cached_deltas_serve_every_packet_of_the_connection(
        first in any_packet(), src in side(), dst in side(),
        payload in proptest::collection::vec(any::<u8>(), 0..80),
    ) {
        let rewrite = Rewrite { src, dst };
        let deltas = rewrite.deltas(&ipv4(&parse(&first).unwrap()));
        let next = match first[23] {
            6 => tcp(&payload),
            17 => udp(&payload),
            _ => echo_request(&payload),
        };
        let (mut frame, headers) = parsed(&next);
        apply_with(&mut frame, &mut ipv4(&headers), &rewrite, deltas);
        assert_checksums(frame.bytes());
        let expected = rewritten(&next, &rewrite);
        prop_assert_eq!(frame.bytes(), expected.bytes());
    }

    #[test]
    fn inner_rewriting_keeps_all_checksums_right(
        bytes in any_packet(), src in side(), dst in side(),
    ) {
        let (mut error, headers) = error_about(&bytes);
        let outer = ipv4(&headers);
        let mut inner = parse_inner(error.bytes(), &outer).unwrap();
        let rewrite = Rewrite { src, dst };
        apply_inner(&mut error, &outer, &mut inner, &rewrite);
        assert_checksums(error.bytes());
        prop_assert_eq!(parse_inner(error.bytes(), &outer), Ok(inner));
        let quoted = rewritten(&bytes, &rewrite);
        prop_assert_eq!(&error.bytes()[42..], &quoted.bytes()[14..]);
    }

    #[test]
    fn damaged_frames_do_not_panic(
        bytes in any_packet(), src in side(), dst in side(), cut in 14usize..80,
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let (mut error, headers) = error_about(&bytes);
        for (at, value) in changes {
            let at = at.index(error.len());
            error.bytes_mut()[at] = value;
        }
        error.truncate(cut);
        // Headers that describe another frame are a caller's bug, but still no reason to panic.
        for headers in [Ok(headers), parse(error.bytes())].into_iter().flatten() {
            let Net::Ipv4(mut ip) = headers.net else { continue };
            if let Ok(mut inner) = parse_inner(error.bytes(), &ip) {
                apply_inner(&mut error, &ip.clone(), &mut inner, &Rewrite { src, dst });
            }
            apply(&mut error, &mut ip, &Rewrite { src, dst });
            let _ = decrement_ttl(&mut error, &mut ip);
        }
    }
}
