//! Chains of extension headers as the RFCs allow and forbid them, read by [`parse`].

use super::super::fixtures::{self, chained, echo_request6, tcp, udp};
use super::super::headers::{Ipv6, L4};
use super::super::parse::parse;
use super::*;

/// One extension header of `8 * units` bytes in front of `next`.
fn header(next: u8, units: u8) -> Vec<u8> {
    let mut bytes = vec![next, units - 1, 1, 4];
    bytes.resize(usize::from(units) * 8, 0);
    bytes
}

fn routing(next: u8, kind: u8, segments_left: u8) -> Vec<u8> {
    let mut bytes = vec![next, 2, kind, segments_left];
    bytes.resize(24, 0);
    bytes
}

/// `word`: offset in bytes, reserved bits, M.
fn fragment(next: u8, word: u16, id: u32) -> Vec<u8> {
    let [w0, w1] = word.to_be_bytes();
    let [i0, i1, i2, i3] = id.to_be_bytes();
    vec![next, 0, w0, w1, i0, i1, i2, i3]
}

fn authentication(next: u8) -> Vec<u8> {
    let mut bytes = vec![next, 4];
    bytes.resize(24, 7);
    bytes
}

fn tcp_segment() -> Vec<u8> {
    tcp(b"hello")[34..].to_vec()
}

fn read(extensions: &[Vec<u8>], first: u8, payload: &[u8]) -> Ipv6 {
    fixtures::ipv6(&parse(&chained(&extensions.concat(), first, payload)).unwrap())
}

fn is_tcp(ip: &Ipv6) -> bool {
    matches!(ip.l4, L4::Tcp { src_port: 40_000, dst_port: 80, .. })
}

#[test]
fn rfc_8200_4_1_the_recommended_order_is_walked() {
    let all = [
        header(DESTINATION_OPTIONS, 1),
        header(ROUTING, 2),
        routing(FRAGMENT, 4, 1),
        fragment(AUTHENTICATION, 0, 77),
        authentication(DESTINATION_OPTIONS),
        header(6, 32),
    ];
    let ip = read(&all, HOP_BY_HOP, &tcp_segment());
    assert!(is_tcp(&ip), "{ip:?}");
    let walked = 8 + 16 + 24 + 8 + 24 + 256;
    assert_eq!((ip.proto, ip.chain, usize::from(ip.header_len)), (6, Chain::Whole, 40 + walked));
    assert_eq!(usize::from(ip.l4_offset), 14 + 40 + walked);
    assert_eq!((ip.l3_offset(), ip.end()), (14, 14 + 40 + walked + 25));
    assert_eq!((ip.fragment_at, ip.frag_id, ip.extensions), (40 + 48, 77, 0x1f));
    assert_eq!(ip.fragment_start(), 14 + 40 + 56);
}

#[test]
fn what_was_walked_is_known() {
    assert_eq!(read(&[], 6, &tcp_segment()).extensions, 0);
    for (number, bit, chain) in [
        (HOP_BY_HOP, 1, header(6, 1)),
        (DESTINATION_OPTIONS, 2, header(6, 1)),
        (ROUTING, 4, routing(6, 3, 0)),
        (FRAGMENT, 8, fragment(6, 8, 1)),
        (AUTHENTICATION, 16, authentication(6)),
        (MOBILITY, 32, header(6, 1)),
        (HIP, 32, header(6, 1)),
        (SHIM6, 32, header(6, 1)),
    ] {
        assert_eq!(read(&[chain], number, &tcp_segment()).extensions, bit, "{number}");
    }
}

#[test]
fn rfc_8200_4_1_any_order_is_walked_but_for_what_comes_once_or_first() {
    for (first, chain) in [
        (
            AUTHENTICATION,
            vec![authentication(DESTINATION_OPTIONS), header(ROUTING, 1), header(6, 1)],
        ),
        (DESTINATION_OPTIONS, vec![header(DESTINATION_OPTIONS, 1), header(6, 1)]),
        (MOBILITY, vec![header(HIP, 1), header(SHIM6, 2), header(6, 1)]),
    ] {
        let ip = read(&chain, first, &tcp_segment());
        assert!(is_tcp(&ip) && ip.chain == Chain::Whole, "{first}: {ip:?}");
    }
    for (what, first, chain) in [
        ("hop-by-hop second", DESTINATION_OPTIONS, vec![header(HOP_BY_HOP, 1), header(6, 1)]),
        ("hop-by-hop twice", HOP_BY_HOP, vec![header(HOP_BY_HOP, 1), header(6, 1)]),
        ("two fragments", FRAGMENT, vec![fragment(FRAGMENT, 1, 1), fragment(6, 1, 2)]),
        ("two atomic ones", FRAGMENT, vec![fragment(FRAGMENT, 0, 1), fragment(6, 0, 2)]),
        ("behind another", FRAGMENT, vec![fragment(60, 0, 1), header(44, 1), fragment(6, 8, 1)]),
    ] {
        let ip = read(&chain, first, &tcp_segment());
        assert_eq!((ip.chain, ip.l4), (Chain::Misplaced, L4::Other), "{what}");
        assert!([HOP_BY_HOP, FRAGMENT].contains(&ip.proto), "{what}: {}", ip.proto);
    }
}

#[test]
fn rfc_8200_4_5_fragments() {
    let first = read(&[fragment(6, 1, 0xdead_beef)], FRAGMENT, &tcp_segment());
    assert!(is_tcp(&first) && first.is_fragment() && first.has_fragment_header());
    assert_eq!((first.frag_offset, first.more_fragments, first.frag_id), (0, true, 0xdead_beef));
    let middle = read(&[fragment(6, 1448 | 1, 9)], FRAGMENT, &tcp_segment());
    assert_eq!((middle.frag_offset, middle.more_fragments), (1448, true));
    assert_eq!((middle.l4, middle.proto, middle.chain), (L4::LaterFragment, 6, Chain::Whole));
    assert_eq!((middle.fragment_start(), middle.l4_offset), (62, 62));
    let last = read(&[fragment(17, 0xfff8, 9)], FRAGMENT, b"x");
    assert_eq!((last.frag_offset, last.more_fragments), (65_528, false));
    assert!(last.is_fragment());
    // Reserved bits say nothing.
    let reserved = read(&[fragment(6, 6, 9)], FRAGMENT, &tcp_segment());
    assert!(is_tcp(&reserved) && !reserved.is_fragment());
    // What a later fragment says comes next came with the first one: it is not there to be walked.
    let options = read(&[fragment(DESTINATION_OPTIONS, 8, 9)], FRAGMENT, &header(6, 1));
    assert_eq!((options.l4, options.proto, options.header_len), (L4::LaterFragment, 60, 48));
}

#[test]
fn a_udp_length_counts_all_fragments() {
    let mut datagram = udp(&[0; 64])[34..].to_vec();
    datagram[4..6].copy_from_slice(&2000u16.to_be_bytes());
    let first = read(&[fragment(17, 1, 9)], FRAGMENT, &datagram);
    assert_eq!(first.l4, L4::Udp { src_port: 40_000, dst_port: 53 });
    let atomic = read(&[fragment(17, 0, 9)], FRAGMENT, &datagram);
    assert_eq!((atomic.l4, atomic.chain), (L4::Truncated, Chain::Whole));
}

#[test]
fn rfc_6946_atomic_fragments_are_whole() {
    let ip = read(&[fragment(58, 0, 5)], FRAGMENT, &echo_request6(b"x")[54..]);
    assert!(!ip.is_fragment() && ip.has_fragment_header());
    assert_eq!(ip.l4, L4::Icmp { kind: 128, code: 0, id: 0x4242 });
    assert_eq!((ip.frag_id, ip.fragment_at, ip.chain), (5, 40, Chain::Whole));
}

#[test]
fn rfc_7112_a_first_fragment_has_the_whole_chain() {
    let whole = tcp_segment();
    for keep in 0..20 {
        let ip = read(&[fragment(6, 1, 9)], FRAGMENT, &whole[..keep]);
        assert_eq!((ip.l4, ip.chain), (L4::Truncated, Chain::Cut), "{keep} bytes of TCP");
    }
    for proto in [17, 58] {
        let ip = read(&[fragment(proto, 1, 9)], FRAGMENT, &[0; 7]);
        assert_eq!(ip.chain, Chain::Cut, "{proto}");
    }
    // The chain goes on in the second fragment.
    let options = header(6, 3);
    for keep in 0..24 {
        let ip = read(&[fragment(60, 1, 9)], FRAGMENT, &options[..keep]);
        assert_eq!((ip.l4, ip.chain, ip.proto), (L4::Truncated, Chain::Cut, 60), "{keep}");
    }
    // A cut transport header of a whole packet is its own trouble.
    let ip = read(&[header(6, 1)], DESTINATION_OPTIONS, &whole[..19]);
    assert_eq!((ip.l4, ip.chain), (L4::Truncated, Chain::Whole));
}

#[test]
fn a_chain_that_ends_with_the_packet_is_cut() {
    for (first, whole) in [
        (HOP_BY_HOP, header(6, 2)),
        (DESTINATION_OPTIONS, header(6, 2)),
        (ROUTING, routing(6, 4, 0)),
        (FRAGMENT, fragment(6, 0, 1)),
        (AUTHENTICATION, authentication(6)),
    ] {
        for keep in 0..whole.len() {
            let ip = read(&[whole[..keep].to_vec()], first, &[]);
            assert_eq!((ip.l4, ip.chain), (L4::Truncated, Chain::Cut), "{first}, {keep} bytes");
            assert_eq!((ip.proto, ip.header_len), (first, 40));
        }
    }
}

#[test]
fn rfc_5095_routing_type_0_is_marked() {
    for segments_left in [0, 1, 23] {
        let ip = read(&[routing(6, 0, segments_left)], ROUTING, &tcp_segment());
        assert_eq!(ip.chain, Chain::Routing0);
        assert!(is_tcp(&ip));
    }
    // Other types are none of its business (RFC 5095 §4.2).
    for kind in 1..=4 {
        assert_eq!(read(&[routing(6, kind, 1)], ROUTING, &tcp_segment()).chain, Chain::Whole);
    }
    let behind = read(&[header(43, 1), routing(60, 0, 1), header(6, 1)], 0, &tcp_segment());
    assert_eq!(behind.chain, Chain::Routing0);
    let later = read(&[routing(44, 0, 1), fragment(6, 8, 1)], ROUTING, &tcp_segment());
    assert_eq!((later.chain, later.l4), (Chain::Routing0, L4::LaterFragment));
}

#[test]
fn the_walk_is_bounded() {
    let options = |count: usize| {
        let mut chain = vec![header(DESTINATION_OPTIONS, 1); count - 1];
        chain.push(header(6, 1));
        read(&chain, DESTINATION_OPTIONS, &tcp_segment())
    };
    for count in 1..=MAX_EXTENSION_HEADERS {
        let ip = options(count);
        assert!(is_tcp(&ip) && ip.chain == Chain::Whole, "{count} headers");
    }
    for count in MAX_EXTENSION_HEADERS + 1..40 {
        let ip = options(count);
        assert_eq!((ip.chain, ip.l4, ip.proto), (Chain::TooLong, L4::Other, 60), "{count} headers");
        assert_eq!(usize::from(ip.header_len), 40 + MAX_EXTENSION_HEADERS * 8);
    }
}

#[test]
fn what_cannot_be_read_ends_the_chain() {
    // Encapsulating security payload, no next header, experiments.
    for proto in [50, 59, 253, 254] {
        let ip = read(&[header(proto, 1)], DESTINATION_OPTIONS, &[0; 30]);
        assert_eq!((ip.l4, ip.proto, ip.chain), (L4::Other, proto, Chain::Whole));
    }
}

#[test]
fn offsets_count_tags() {
    let bytes = chained(&[fragment(60, 1, 3), header(6, 1)].concat(), FRAGMENT, &tcp_segment());
    let bytes = fixtures::tagged(&bytes, &[(0x88a8, 5), (0x8100, 6)]);
    let ip = fixtures::ipv6(&parse(&bytes).unwrap());
    assert_eq!((ip.l3_offset(), ip.l4_offset, ip.fragment_start()), (22, 78, 70));
    assert_eq!(ip.end(), bytes.len());
}
