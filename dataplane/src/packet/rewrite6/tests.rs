//! Every rewriting leaves sound checksums, touches nothing else, and can be undone.

use proptest::prelude::*;

use super::super::fixtures::{
    self, CLIENT6, EXTERNAL6, ROUTER6, SERVER6, assert_checksums, chained, echo_request6, frame,
    ipv6, make_partial, parsed, slow_l4_sum, tcp6, udp6,
};
use super::super::headers::{Headers, Net};
use super::super::icmp6::{Icmp6Error, parse_inner, write_error};
use super::super::parse::parse;
use super::*;

type Rewrite6 = Rewrite<Ipv6Addr>;

fn rewritten(bytes: &[u8], rewrite: &Rewrite6) -> Frame {
    let (mut frame, headers) = parsed(bytes);
    let mut ip = ipv6(&headers);
    apply(&mut frame, &mut ip, rewrite);
    assert_eq!(ip, ipv6(&parse(frame.bytes()).unwrap()), "what was parsed stays true");
    frame
}

/// The offsets of the bytes in which two frames of the same length differ.
fn changed(before: &[u8], after: &[u8]) -> Vec<usize> {
    assert_eq!(before.len(), after.len());
    (0..before.len()).filter(|&at| before[at] != after[at]).collect()
}

/// Puts a sound checksum into an unfragmented TCP, UDP or ICMPv6 packet.
fn seal(bytes: &mut [u8]) {
    let ip = ipv6(&parse(bytes).unwrap());
    let l4 = usize::from(ip.l4_offset);
    let field = l4 + fixtures::l4_checksum_offset(ip.proto);
    bytes[field..field + 2].fill(0);
    let sum = slow_l4_sum(&ip.src.octets(), &ip.dst.octets(), ip.proto, &bytes[l4..ip.end()]);
    bytes[field..field + 2].copy_from_slice(&(!sum).to_be_bytes());
}

/// The same packet behind hop-by-hop options, destination options and an atomic fragment header.
fn extended(bytes: &[u8]) -> Vec<u8> {
    let chain = [60, 0, 1, 4, 0, 0, 0, 0, 44, 0, 1, 4, 0, 0, 0, 0, bytes[20], 0, 0, 0, 0, 0, 0, 9];
    chained(&chain, 0, &bytes[54..])
}

#[test]
fn snat_of_tcp_changes_source_and_checksum_only() {
    let before = tcp6(b"hello");
    let after = rewritten(&before, &Rewrite6::snat(EXTERNAL6, 50_000));
    assert_checksums(after.bytes());
    let ip = ipv6(&parse(after.bytes()).unwrap());
    assert_eq!((ip.src, ip.dst), (EXTERNAL6, SERVER6));
    assert!(matches!(ip.l4, L4::Tcp { src_port: 50_000, dst_port: 80, .. }));
    let may_change = [22..38, 54..56, 70..72];
    for at in changed(&before, after.bytes()) {
        assert!(may_change.iter().any(|range| range.contains(&at)), "byte {at} changed");
    }
}

#[test]
fn dnat_of_udp_behind_a_tag() {
    let before = fixtures::tagged(&udp6(b"hello"), &[(0x8100, 5)]);
    let after = rewritten(&before, &Rewrite6::dnat(EXTERNAL6, 5353));
    assert_checksums(after.bytes());
    let ip = ipv6(&parse(after.bytes()).unwrap());
    assert_eq!((ip.src, ip.dst), (CLIENT6, EXTERNAL6));
    assert_eq!(ip.l4, L4::Udp { src_port: 40_000, dst_port: 5353 });
}

#[test]
fn behind_extension_headers() {
    for bytes in [tcp6(b"hello"), udp6(b"hello"), echo_request6(b"hello")] {
        let before = extended(&bytes);
        let both = Rewrite6 { src: Some((EXTERNAL6, 7)), dst: Some((ROUTER6, 8)) };
        let after = rewritten(&before, &both);
        assert_checksums(after.bytes());
        assert_eq!(after.bytes()[54..78], before[54..78], "the extension headers stay");
        assert_eq!(after.bytes()[78..], rewritten(&bytes, &both).bytes()[54..]);
    }
}

#[test]
fn a_udp_checksum_of_zero_stays() {
    let mut before = udp6(b"hello");
    before[60..62].copy_from_slice(&[0, 0]);
    let after = rewritten(&before, &Rewrite6::snat(EXTERNAL6, 1));
    assert_eq!(after.bytes()[60..62], [0, 0]);
}

#[test]
fn a_udp_checksum_never_becomes_zero() {
    let before = udp6(b"hello");
    let mut seen = 0;
    // One of all ports makes the sum zero, which is sent as 0xffff.
    for port in 0..=u16::MAX {
        let (mut frame, headers) = parsed(&before);
        apply(&mut frame, &mut ipv6(&headers), &Rewrite6::snat(EXTERNAL6, port));
        let sum = &frame.bytes()[60..62];
        assert_ne!(sum, [0, 0], "port {port}");
        if sum == [0xff, 0xff] {
            assert_checksums(frame.bytes());
            seen += 1;
        }
    }
    assert!(seen > 0);
}

#[test]
fn an_echo_request_gets_the_identifier_and_addresses() {
    let after = rewritten(&echo_request6(b"hello"), &Rewrite6::snat(EXTERNAL6, 0x1111));
    assert_checksums(after.bytes());
    let ip = ipv6(&parse(after.bytes()).unwrap());
    assert_eq!(ip.l4, L4::Icmp { kind: 128, code: 0, id: 0x1111 });
    assert_eq!(ip.src, EXTERNAL6);
}

#[test]
fn the_mtu_in_an_error_is_no_identifier() {
    let (original, headers) = parsed(&udp6(b"hello"));
    let mut error = Frame::new();
    let too_big = Icmp6Error::PacketTooBig { mtu: 1400 };
    assert!(write_error(&mut error, &original, &headers, ROUTER6, too_big));
    let after = rewritten(error.bytes(), &Rewrite6::dnat(EXTERNAL6, 9));
    assert_checksums(after.bytes());
    assert_eq!(after.bytes()[58..62], [0, 0, 5, 120]);
}

#[test]
fn a_partial_checksum_gets_the_addresses_only() {
    for bytes in [tcp6(b"hello"), udp6(b"hello"), extended(&tcp6(b"hello"))] {
        let mut partial = frame(&bytes);
        make_partial(&mut partial);
        let mut ip = ipv6(&parse(partial.bytes()).unwrap());
        let both = Rewrite6 { src: Some((EXTERNAL6, 7)), dst: Some((ROUTER6, 8)) };
        apply(&mut partial, &mut ip, &both);
        // The same frame, made partial after the rewriting.
        let mut expected = rewritten(&bytes, &both);
        make_partial(&mut expected);
        assert_eq!(partial.bytes(), expected.bytes());
    }
}

#[test]
fn fragments_and_unknown_protocols_get_addresses_only() {
    let mut other = tcp6(b"hello");
    other[20] = 47;
    let later = chained(&[17, 0, 0, 8, 0, 0, 0, 9], 44, b"the rest");
    // What another port does to its CRC is not known.
    let first = chained(&[ip_proto::SCTP, 0, 0, 1, 0, 0, 0, 9], 44, &tcp6(b"")[54..]);
    for before in [later, other, first] {
        let after = rewritten(&before, &Rewrite6::snat(EXTERNAL6, 50_000));
        assert_eq!(after.bytes()[54..], before[54..]);
        assert_eq!(ipv6(&parse(after.bytes()).unwrap()).src, EXTERNAL6);
    }
}

#[test]
fn fragments_together_have_a_right_checksum() {
    let datagram = udp6(&[3; 100]);
    let (first, rest) = datagram[54..].split_at(48);
    let snat = Rewrite6::snat(EXTERNAL6, 50_000);
    let first = rewritten(&chained(&[17, 0, 0, 1, 0, 0, 0, 9], 44, first), &snat);
    let rest = rewritten(&chained(&[17, 0, 0, 48, 0, 0, 0, 9], 44, rest), &snat);
    let whole = [&first.bytes()[62..], &rest.bytes()[62..]].concat();
    assert_eq!(slow_l4_sum(&EXTERNAL6.octets(), &SERVER6.octets(), 17, &whole), 0xffff);
    assert_eq!(whole[..2], 50_000u16.to_be_bytes());
}

#[test]
fn a_wrong_checksum_stays_wrong() {
    for (mut before, proto) in [(tcp6(b"hello"), 6), (echo_request6(b"hello"), 58)] {
        let last = before.len() - 1;
        before[last] ^= 1;
        let after = rewritten(&before, &Rewrite6::snat(EXTERNAL6, 50_000));
        let segment = &after.bytes()[54..];
        assert_ne!(slow_l4_sum(&EXTERNAL6.octets(), &SERVER6.octets(), proto, segment), 0xffff);
    }
}

#[test]
fn the_hop_limit_counts_down_to_one() {
    let before = fixtures::tagged(&tcp6(b"hello"), &[(0x8100, 5)]);
    let (mut frame, headers) = parsed(&before);
    let mut ip = ipv6(&headers);
    for expected in (1..64).rev() {
        assert_eq!(decrement_hop_limit(&mut frame, &mut ip), Ok(()));
        assert_eq!((ip.hop_limit, frame.bytes()[25]), (expected, expected));
        assert_checksums(frame.bytes());
    }
    assert_eq!(changed(&before, frame.bytes()), [25]);
    let last = frame.bytes().to_vec();
    assert_eq!(decrement_hop_limit(&mut frame, &mut ip), Err(DropReason::TtlExceeded));
    assert_eq!(frame.bytes(), last);
    (ip.hop_limit, frame.bytes_mut()[25]) = (0, 0);
    assert_eq!(decrement_hop_limit(&mut frame, &mut ip), Err(DropReason::TtlExceeded));
}

/// An error from `ROUTER6` about `bytes`, as the outside sees it.
fn error_about(bytes: &[u8]) -> (Frame, Headers) {
    let (original, headers) = parsed(bytes);
    let mut error = Frame::new();
    assert!(write_error(&mut error, &original, &headers, ROUTER6, Icmp6Error::HopLimitExceeded));
    let headers = parse(error.bytes()).unwrap();
    (error, headers)
}

/// What SNAT did to a packet is undone in the error about it.
fn error_comes_back(inside: &[u8], port: u16, inside_port: u16) {
    let outside = rewritten(inside, &Rewrite6::snat(EXTERNAL6, port));
    let (mut error, headers) = error_about(outside.bytes());
    let mut outer = ipv6(&headers);
    let mut inner = parse_inner(error.bytes(), &outer).unwrap();
    assert_eq!(inner.src, EXTERNAL6);
    let back = Rewrite6::dnat(CLIENT6, inside_port);
    apply_inner(&mut error, &outer, &mut inner, &back.reversed());
    apply(&mut error, &mut outer, &back);
    assert_checksums(error.bytes());
    let quoted = inside.len().min(14 + 1232);
    assert_eq!(error.bytes()[62..], inside[14..quoted], "the quote is what the client sent");
    assert_eq!(parse_inner(error.bytes(), &outer), Ok(inner));
    assert_eq!(outer.dst, CLIENT6);
}

#[test]
fn errors_about_translated_packets() {
    error_comes_back(&tcp6(b"hello"), 50_000, 40_000);
    error_comes_back(&tcp6(&[9; 1400]), 50_000, 40_000);
    error_comes_back(&udp6(b"hello"), 50_000, 40_000);
    error_comes_back(&echo_request6(b"hello"), 0x1111, 0x4242);
    error_comes_back(&extended(&tcp6(b"hello")), 50_000, 40_000);
    error_comes_back(&extended(&echo_request6(b"hello")), 0x1111, 0x4242);
    // A later fragment: addresses only.
    error_comes_back(&chained(&[17, 0, 0, 8, 0, 0, 0, 9], 44, b"the rest"), 50_000, 40_000);
}

#[test]
fn a_quoted_fragment_gets_its_identification_back() {
    // The last has options behind the fragment header, and in front of it.
    let fragment = [17, 0, 0, 1, 1, 2, 3, 4];
    let padding = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
    let amid = [padding(44), [60, 0, 0, 1, 1, 2, 3, 4], padding(17)].concat();
    for (packet, at) in [
        (chained(&fragment, 44, &udp6(b"hello")[54..]), 54),
        (chained(&[17, 0, 0, 8, 1, 2, 3, 4], 44, b"the rest"), 54),
        (chained(&amid, 60, &udp6(b"hello")[54..]), 62),
    ] {
        let (mut error, _) = error_about(&packet);
        let outer = ipv6(&parse(error.bytes()).unwrap());
        let inner = parse_inner(error.bytes(), &outer).unwrap();
        identify_inner(&mut error, &outer, &inner, 0xfeed_0001);
        assert_checksums(error.bytes());
        let mut expected = packet;
        expected[at + 4..at + 8].copy_from_slice(&[0xfe, 0xed, 0, 1]);
        assert_eq!(error.bytes()[62..], expected[14..]);
    }
}

/// An ICMPv6 error with a quote cut to `keep` bytes behind the quoted headers.
fn cut_quote(error: &Frame, headers: usize, keep: usize) -> Frame {
    let mut bytes = error.bytes()[..62 + headers + keep].to_vec();
    let length = u16::try_from(bytes.len() - 54).unwrap();
    bytes[18..20].copy_from_slice(&length.to_be_bytes());
    seal(&mut bytes);
    frame(&bytes)
}

#[test]
fn a_quote_of_eight_bytes_or_less() {
    for (inside, headers) in [
        (tcp6(b"hello"), 40),
        (udp6(b"hello"), 40),
        (echo_request6(b"hello"), 40),
        (extended(&udp6(b"hello")), 64),
    ] {
        let proto = ipv6(&parse(&inside).unwrap()).proto;
        let port = if proto == 58 { 0x4242 } else { 40_000 };
        let outside = rewritten(&inside, &Rewrite6::snat(EXTERNAL6, 1000));
        let (error, _) = error_about(outside.bytes());
        let l4 = 62 + headers;
        for keep in 0..=24 {
            let mut error = cut_quote(&error, headers, keep.min(error.len() - l4));
            let outer = ipv6(&parse(error.bytes()).unwrap());
            let mut inner = parse_inner(error.bytes(), &outer).unwrap();
            assert_eq!(inner.l4 == InnerL4::None, keep < 8, "{keep} bytes quoted");
            let back = Rewrite6 { src: Some((CLIENT6, port)), dst: None };
            apply_inner(&mut error, &outer, &mut inner, &back);
            assert_checksums(error.bytes());
            assert_eq!(error.bytes()[62..l4], inside[14..14 + headers]);
            // The checksum of TCP lies beyond eight bytes.
            if keep >= 18 || (keep >= 8 && proto != 6) {
                let inside = &inside[14 + headers..];
                assert_eq!(error.bytes()[l4..], inside[..error.len() - l4]);
            }
        }
    }
}

/// Sources of change for one side of a packet.
fn side() -> impl Strategy<Value = Option<(Ipv6Addr, u16)>> {
    let corner = prop_oneof![Just(0u16), Just(0xffff), any::<u16>()];
    let word = prop_oneof![Just(0u128), Just(u128::MAX), any::<u128>()];
    proptest::option::of((word.prop_map(Ipv6Addr::from_bits), corner))
}

fn any_packet() -> impl Strategy<Value = Vec<u8>> {
    let payload = proptest::collection::vec(any::<u8>(), 0..80);
    (0..6, payload).prop_map(|(shape, payload)| match shape {
        0 => tcp6(&payload),
        1 => udp6(&payload),
        2 => echo_request6(&payload),
        3 => extended(&tcp6(&payload)),
        4 => extended(&udp6(&payload)),
        _ => fixtures::tagged(&extended(&echo_request6(&payload)), &[(0x8100, 5)]),
    })
}

/// What undoes `rewrite` on a packet that looked like `before`.
fn inverse(before: &Ipv6, rewrite: &Rewrite6) -> Rewrite6 {
    let (src_port, dst_port) = match before.l4 {
        L4::Tcp { src_port, dst_port, .. } | L4::Udp { src_port, dst_port } => (src_port, dst_port),
        L4::Icmp { id, .. } => (id, id),
        _ => (0, 0),
    };
    Rewrite6 {
        src: rewrite.src.map(|_| (before.src, src_port)),
        dst: rewrite.dst.map(|_| (before.dst, dst_port)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn checksums_stay_right(bytes in any_packet(), src in side(), dst in side()) {
        assert_checksums(rewritten(&bytes, &Rewrite6 { src, dst }).bytes());
    }

    /// To the bit what a full computation gives; zero, which has two forms, aside.
    #[test]
    fn incremental_is_full(bytes in any_packet(), src in side(), dst in side()) {
        let after = rewritten(&bytes, &Rewrite6 { src, dst });
        let mut full = after.bytes().to_vec();
        seal(&mut full);
        let ip = ipv6(&parse(&full).unwrap());
        let field = usize::from(ip.l4_offset) + fixtures::l4_checksum_offset(ip.proto);
        if full[field..field + 2] != [0, 0] {
            prop_assert_eq!(after.bytes(), &full);
        }
    }

    #[test]
    fn there_and_back_is_identity(bytes in any_packet(), src in side(), dst in side()) {
        let rewrite = Rewrite6 { src, dst };
        let there = rewritten(&bytes, &rewrite);
        let back = inverse(&ipv6(&parse(&bytes).unwrap()), &rewrite);
        let again = rewritten(there.bytes(), &back);
        prop_assert_eq!(again.bytes(), &bytes);
    }

    #[test]
    fn there_and_back_is_identity_with_partial_checksums(
        payload in proptest::collection::vec(any::<u8>(), 0..80), tcp in any::<bool>(),
        src in side(), dst in side(),
    ) {
        let rewrite = Rewrite6 { src, dst };
        let mut there = frame(&if tcp { tcp6(&payload) } else { udp6(&payload) });
        make_partial(&mut there);
        let before = there.bytes().to_vec();
        let mut ip = ipv6(&parse(&before).unwrap());
        let back = inverse(&ip, &rewrite);
        apply(&mut there, &mut ip, &rewrite);
        apply(&mut there, &mut ip, &back);
        prop_assert_eq!(there.bytes(), &before);
    }

    #[test]
    fn dnat_then_snat_is_both_at_once(bytes in any_packet(), src in side(), dst in side()) {
        let one = rewritten(&bytes, &Rewrite6 { src: None, dst });
        let two = rewritten(one.bytes(), &Rewrite6 { src, dst: None });
        let both = rewritten(&bytes, &Rewrite6 { src, dst });
        prop_assert_eq!(two.bytes(), both.bytes());
    }

    #[test]
    fn cached_deltas_serve_every_packet_of_the_connection(
        shape in 0..3, src in side(), dst in side(),
        payload in proptest::collection::vec(any::<u8>(), 0..80),
    ) {
        let rewrite = Rewrite6 { src, dst };
        let make = [tcp6, udp6, echo_request6][usize::try_from(shape).unwrap()];
        let deltas = rewrite.deltas(&ipv6(&parse(&make(b"first")).unwrap()));
        for next in [make(&payload), extended(&make(&payload))] {
            let (mut frame, headers) = parsed(&next);
            apply_with(&mut frame, &mut ipv6(&headers), &rewrite, deltas);
            assert_checksums(frame.bytes());
            let expected = rewritten(&next, &rewrite);
            prop_assert_eq!(frame.bytes(), expected.bytes());
        }
    }

    #[test]
    fn inner_rewriting_keeps_all_checksums_right(
        bytes in any_packet(), src in side(), dst in side(),
    ) {
        let (mut error, headers) = error_about(&bytes);
        let outer = ipv6(&headers);
        let mut inner = parse_inner(error.bytes(), &outer).unwrap();
        let rewrite = Rewrite6 { src, dst };
        apply_inner(&mut error, &outer, &mut inner, &rewrite);
        assert_checksums(error.bytes());
        prop_assert_eq!(parse_inner(error.bytes(), &outer), Ok(inner));
        let quoted = rewritten(&bytes, &rewrite);
        let at = usize::from(headers.l3);
        prop_assert_eq!(&error.bytes()[at + 48..], &quoted.bytes()[at..]);
    }

    #[test]
    fn damaged_frames_do_not_panic(
        bytes in any_packet(), src in side(), dst in side(), cut in 14usize..140,
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
            let Net::Ipv6(mut ip) = headers.net else { continue };
            if let Ok(mut inner) = parse_inner(error.bytes(), &ip) {
                apply_inner(&mut error, &ip.clone(), &mut inner, &Rewrite6 { src, dst });
            }
            apply(&mut error, &mut ip, &Rewrite6 { src, dst });
            let _ = decrement_hop_limit(&mut error, &mut ip);
        }
    }
}
