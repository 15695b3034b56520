//! Frames of every shape, and agreement with etherparse on random and mutated ones.

use etherparse::{Ipv6ExtensionSlice, NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::super::field::read_u16;
use super::super::fixtures::{
    self, CLIENT, CLIENT6, SERVER, SERVER6, chained, echo_request, ethernet, ipv4, tagged, tcp, udp,
};
use super::super::types;
use super::*;

fn net(bytes: &[u8]) -> Net {
    parse(bytes).unwrap().net
}

/// The TCP header and payload of the usual frame.
fn segment() -> Vec<u8> {
    tcp(b"hello")[34..].to_vec()
}

#[test]
fn tcp_over_ipv4() {
    let headers = parse(&tcp(b"hello")).unwrap();
    assert_eq!((headers.src, headers.dst), (Mac(fixtures::CLIENT_MAC), Mac(fixtures::GATEWAY_MAC)));
    assert_eq!((headers.vlan, headers.tagged, headers.l3), (0, false, 14));
    let ip = ipv4(&headers);
    assert_eq!((ip.src.octets(), ip.dst.octets()), (CLIENT, SERVER));
    assert_eq!((ip.proto, ip.ttl, ip.header_len, ip.total_len), (6, 64, 20, 45));
    assert_eq!((ip.l4_offset, ip.l3_offset(), ip.end()), (34, 14, 59));
    let flags = types::tcp_flags::ACK | types::tcp_flags::PSH;
    assert_eq!(ip.l4, L4::Tcp { src_port: 40_000, dst_port: 80, flags, header_len: 20 });
}

#[test]
fn padding_is_not_payload() {
    let mut bytes = tcp(b"");
    bytes.resize(60, 0xaa);
    let ip = ipv4(&parse(&bytes).unwrap());
    assert_eq!((ip.total_len, ip.end()), (40, 54));
    // A UDP length that reaches into the padding is beyond the packet.
    let mut bytes = udp(b"");
    bytes.resize(60, 0);
    bytes[39] = 9;
    assert_eq!(ipv4(&parse(&bytes).unwrap()).l4, L4::Truncated);
}

#[test]
fn tags_are_walked() {
    let plain = udp(b"x");
    let one = parse(&tagged(&plain, &[(0x8100, 0x6064)])).unwrap();
    assert_eq!((one.vlan, one.tagged, one.ethertype, one.l3), (0x64, true, 0x0800, 18));
    assert_eq!(ipv4(&one).l4, L4::Udp { src_port: 40_000, dst_port: 53 });
    let two = parse(&tagged(&plain, &[(0x88a8, 7), (0x8100, 8)])).unwrap();
    assert_eq!((two.vlan, two.l3, ipv4(&two).l4_offset), (7, 22, 42));
    let priority = parse(&tagged(&plain, &[(0x8100, 0xe000)])).unwrap();
    assert_eq!((priority.vlan, priority.tagged), (0, true));
    let eight = parse(&tagged(&plain, &[(0x8100, 1); 8])).unwrap();
    assert!(matches!(eight.net, Net::Ipv4(_)));
    let nine = parse(&tagged(&plain, &[(0x8100, 1); 9])).unwrap();
    assert_eq!((nine.net, nine.ethertype), (Net::Other, 0x8100));
}

#[test]
fn only_a_cut_link_header_is_an_error() {
    let bytes = tagged(&udp(b"x"), &[(0x88a8, 7), (0x8100, 8)]);
    for len in 0..bytes.len() {
        let result = parse(&bytes[..len]);
        assert_eq!(result.is_err(), len < 22, "length {len}");
        if let Err(error) = result {
            assert_eq!(error, ParseError::Runt);
        }
    }
}

#[test]
fn broken_ipv4_headers_are_named() {
    let good = tcp(b"hello");
    let broken = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        net(&bytes)
    };
    assert_eq!(net(&good[..33]), Net::Malformed(ParseError::IpCutShort));
    assert_eq!(broken(14, 0x65), Net::Malformed(ParseError::IpVersion));
    assert_eq!(broken(14, 0x44), Net::Malformed(ParseError::IpHeaderLength));
    assert_eq!(net(&tcp(b"")[..40]), Net::Malformed(ParseError::IpTotalLength));
    let mut short = good[..50].to_vec();
    short[14] = 0x4f;
    assert_eq!(net(&short), Net::Malformed(ParseError::IpHeaderLength));
    assert_eq!(broken(17, 19), Net::Malformed(ParseError::IpTotalLength));
    assert_eq!(broken(17, 46), Net::Malformed(ParseError::IpTotalLength));
    assert_eq!(broken(16, 0xff), Net::Malformed(ParseError::IpTotalLength));
}

#[test]
fn a_total_length_of_zero_is_what_the_frame_has() {
    let mut bytes = tcp(b"");
    bytes.resize(14 + 65_580, 7);
    bytes[16..18].copy_from_slice(&[0, 0]);
    let ip = ipv4(&parse(&bytes).unwrap());
    assert_eq!(ip.total_len, 65_580);
    assert!(matches!(ip.l4, L4::Tcp { .. }));
}

/// Rows: Open vSwitch `conntrack: IPv4 incomplete reassembled packet, fragments specified, reassembly with L3
/// and L4 information`; VPP `test_44924`; VPP `test_missing_upper, test_truncated_fragment,
/// test_truncated_ext_header_chain`.
#[test]
fn transport_headers_that_lie_are_truncated() {
    let l4 = |mut bytes: Vec<u8>, at: usize, value: u8| {
        bytes[at] = value;
        ipv4(&parse(&bytes).unwrap()).l4
    };
    assert_eq!(l4(tcp(b"hello"), 46, 0x40), L4::Truncated, "data offset 16");
    assert_eq!(l4(tcp(b"hello"), 46, 0xf0), L4::Truncated, "data offset beyond the packet");
    assert_eq!(l4(tcp(b""), 17, 39), L4::Truncated, "packet ends within the header");
    assert_eq!(l4(udp(b"hello"), 39, 7), L4::Truncated, "length below the header's");
    assert_eq!(l4(udp(b"hello"), 39, 14), L4::Truncated, "length beyond the packet");
    assert_eq!(
        l4(udp(b"hello"), 39, 12),
        L4::Udp { src_port: 40_000, dst_port: 53 },
        "a packet may be longer than its datagram"
    );
    assert_eq!(l4(echo_request(b""), 17, 27), L4::Truncated);
}

#[test]
fn fragments() {
    let mut first = udp(&[0; 64]);
    first[38..40].copy_from_slice(&2000u16.to_be_bytes());
    first[20] = 0x20;
    let ip = ipv4(&parse(&first).unwrap());
    assert!(ip.more_fragments && ip.is_fragment() && ip.frag_offset == 0);
    assert_eq!(ip.l4, L4::Udp { src_port: 40_000, dst_port: 53 }, "length counts all fragments");
    first[20..22].copy_from_slice(&[0x20, 0xb9]);
    let ip = ipv4(&parse(&first).unwrap());
    assert_eq!((ip.frag_offset, ip.l4), (0xb9 * 8, L4::LaterFragment));
    first[20..22].copy_from_slice(&[0x40, 0]);
    assert!(ipv4(&parse(&first).unwrap()).dont_fragment);
}

#[test]
fn icmp_and_unknown_protocols() {
    let headers = parse(&echo_request(b"abc")).unwrap();
    assert_eq!(ipv4(&headers).l4, L4::Icmp { kind: 8, code: 0, id: 0x4242 });
    let mut other = tcp(b"");
    other[23] = 47;
    assert_eq!(ipv4(&parse(&other).unwrap()).l4, L4::Other);
    // ICMPv6 within IPv4 is nothing we know.
    other[23] = ip_proto::ICMPV6;
    assert_eq!(ipv4(&parse(&other).unwrap()).l4, L4::Other);
}

#[test]
fn sctp_has_ports() {
    let mut sctp = udp(b"data");
    sctp[23] = ip_proto::SCTP;
    let ports = L4::Sctp { src_port: 40_000, dst_port: 53 };
    assert_eq!(ipv4(&parse(&sctp).unwrap()).l4, ports, "a common header and no chunk");
    sctp[17] -= 1;
    assert_eq!(ipv4(&parse(&sctp).unwrap()).l4, L4::Truncated);
    let header = [156, 64, 0, 53, 0, 0, 0, 1, 0, 0, 0, 0];
    assert_eq!(ipv6(&chained(&[], ip_proto::SCTP, &header)).l4, ports);
    assert_eq!(ipv6(&chained(&[], ip_proto::SCTP, &header[1..])).l4, L4::Truncated);
}

#[test]
fn arp_llc_and_others() {
    let mut bytes = vec![0; 60];
    bytes[12..14].copy_from_slice(&[8, 6]);
    assert_eq!(net(&bytes), Net::Arp);
    bytes[12..14].copy_from_slice(&[0, 38]);
    assert_eq!(net(&bytes), Net::Other);
    assert_eq!(parse(&bytes).unwrap().ethertype, 38);
}

fn ipv6(bytes: &[u8]) -> Ipv6 {
    fixtures::ipv6(&parse(bytes).unwrap())
}

#[test]
fn ipv6_with_and_without_extension_headers() {
    let plain = ipv6(&chained(&[], 6, &segment()));
    assert_eq!((plain.src, plain.dst), (CLIENT6, SERVER6));
    assert_eq!((plain.header_len, plain.fragment_at, plain.chain), (40, 0, Chain::Whole));
    assert_eq!((plain.l3_offset(), plain.end()), (14, 14 + 65));
    assert_eq!((plain.proto, plain.hop_limit, plain.l4_offset), (6, 63, 54));
    assert_eq!(plain.total_len, 40 + 25);
    assert!(matches!(plain.l4, L4::Tcp { src_port: 40_000, dst_port: 80, .. }));

    // Hop-by-hop, routing of 16 bytes, atomic fragment, authentication of 12 bytes.
    let mut chain = vec![43, 0, 1, 4, 0, 0, 0, 0];
    chain.extend_from_slice(&[44, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    chain.extend_from_slice(&[51, 0, 0, 0, 0, 0, 0, 9]);
    chain.extend_from_slice(&[6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let walked = ipv6(&chained(&chain, 0, &segment()));
    assert_eq!((walked.proto, walked.l4_offset, walked.is_fragment()), (6, 54 + 44, false));
    assert_eq!((walked.header_len, walked.fragment_at), (40 + 44, 40 + 24));
    assert!(matches!(walked.l4, L4::Tcp { .. }));

    let first = ipv6(&chained(&[6, 0, 0, 1, 0, 0, 0, 9], 44, &segment()));
    assert!(first.is_fragment() && matches!(first.l4, L4::Tcp { .. }));
    let later = ipv6(&chained(&[6, 0, 0, 8, 0, 0, 0, 9], 44, &segment()));
    assert_eq!((later.is_fragment(), later.proto, later.l4), (true, 6, L4::LaterFragment));
}

#[test]
fn an_ipv6_chain_that_does_not_end_is_left() {
    let options = [60, 0, 1, 4, 0, 0, 0, 0].repeat(8);
    let mut eight = options.clone();
    eight[56] = 6;
    assert!(matches!(ipv6(&chained(&eight, 60, &segment())).l4, L4::Tcp { .. }));
    let endless = ipv6(&chained(&options.repeat(4), 60, &segment()));
    assert_eq!((endless.proto, endless.l4, endless.chain), (60, L4::Other, Chain::TooLong));
    let cut = ipv6(&chained(&[60, 9, 0, 0, 0, 0, 0, 0], 60, &[]));
    assert_eq!((cut.l4, cut.chain), (L4::Truncated, Chain::Cut));
}

#[test]
fn broken_ipv6_headers_are_named() {
    let good = chained(&[], 6, &segment());
    assert_eq!(net(&good[..53]), Net::Malformed(ParseError::IpCutShort));
    assert_eq!(net(&good[..78]), Net::Malformed(ParseError::IpTotalLength));
    let mut bytes = good.clone();
    bytes[14] = 0x45;
    assert_eq!(net(&bytes), Net::Malformed(ParseError::IpVersion));
    // No payload and padding behind it.
    let mut bytes = good;
    bytes[18..20].copy_from_slice(&[0, 0]);
    assert_eq!((ipv6(&bytes).total_len, ipv6(&bytes).l4), (40, L4::Truncated));
    // BIG TCP.
    let mut big = chained(&[], 6, &segment());
    big.resize(14 + 40 + 65_536, 0);
    big[18..20].copy_from_slice(&[0, 0]);
    assert_eq!(ipv6(&big).total_len, 40 + 65_536);
}

/// Frames of all shapes the engine looks into, then damaged: bytes changed, cut, padded.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let shapes = prop_oneof![
        Just(tcp(b"some payload")),
        Just(udp(b"some payload")),
        Just(echo_request(b"some payload")),
        Just(tagged(&udp(b"x"), &[(0x8100, 5)])),
        Just(tagged(&tcp(b"x"), &[(0x88a8, 5), (0x8100, 6)])),
        Just(chained(&[], 6, &segment())),
        Just(chained(&[43, 0, 1, 4, 0, 0, 0, 0, 6, 0, 0, 1, 0, 0, 0, 9], 0, &segment())),
        Just(chained(&[6, 0, 0, 0, 0, 0, 0, 9], 44, &segment())),
        Just(chained(&[6, 0, 5, 0, 0, 0, 0, 0], 135, &segment())),
        Just({
            let mut bytes = Vec::new();
            ethernet()
                .ipv6([1; 16], [2; 16], 9)
                .icmpv6_echo_request(7, 8)
                .write(&mut bytes, b"ping")
                .unwrap();
            bytes
        }),
    ];
    (
        shapes,
        proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..4),
        proptest::option::of(any::<proptest::sample::Index>()),
        0usize..32,
    )
        .prop_map(|(mut bytes, changes, cut, padding)| {
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            bytes.resize(bytes.len() + padding, 0);
            bytes
        })
}

/// Where etherparse accepts a frame down to the transport header, we read the same from it.
fn agrees_with_etherparse(bytes: &[u8]) -> Result<(), TestCaseError> {
    let ours = parse(bytes);
    if bytes.len() < ETH_LEN {
        prop_assert_eq!(ours, Err(ParseError::Runt));
        return Ok(());
    }
    let Ok(theirs) = SlicedPacket::from_ethernet(bytes) else { return Ok(()) };
    let headers = ours.map_err(|error| TestCaseError::fail(error.to_string()))?;
    let (l4, l4_offset, payload_end) = match (&theirs.net, headers.net) {
        (Some(NetSlice::Ipv4(slice)), Net::Ipv4(ip)) => {
            let header = slice.header();
            prop_assert_eq!(ip.src, header.source_addr());
            prop_assert_eq!(ip.dst, header.destination_addr());
            prop_assert_eq!(ip.ttl, header.ttl());
            prop_assert_eq!(ip.id, header.identification());
            prop_assert_eq!(ip.more_fragments, header.more_fragments());
            prop_assert_eq!(ip.dont_fragment, header.dont_fragment());
            prop_assert_eq!(ip.frag_offset / 8, header.fragments_offset().value());
            prop_assert_eq!(usize::from(ip.header_len), header.slice().len());
            prop_assert_eq!(ip.proto, header.protocol().0);
            if header.total_len() != 0 {
                prop_assert_eq!(ip.total_len, u32::from(header.total_len()));
            }
            (ip.l4, ip.l4_offset, ip.end())
        }
        (Some(NetSlice::Ipv6(slice)), Net::Ipv6(ip)) => {
            let header = slice.header();
            prop_assert_eq!(ip.src, header.source_addr());
            prop_assert_eq!(ip.dst, header.destination_addr());
            // etherparse takes a payload length of zero for "whatever the frame has"; Linux cuts
            // the packet there (ip6_rcv_core) unless a jumbogram option follows.
            if header.payload_length() == 0 {
                prop_assert_eq!(ip.total_len, 40);
                return Ok(());
            }
            prop_assert_eq!(ip.hop_limit, header.hop_limit());
            // What etherparse walks and RFC 8200 §4.1 does not have, or nobody sends.
            if matches!(ip.chain, Chain::Misplaced | Chain::TooLong) {
                return Ok(());
            }
            // etherparse ends at mobility, HIP and Shim6 headers; we look behind them.
            if ip.extensions & types::ip6_extensions::OTHER != 0 {
                prop_assert!(usize::from(ip.header_len) > 40 + slice.extensions().slice().len());
                return Ok(());
            }
            prop_assert_eq!(ip.is_fragment(), slice.is_payload_fragmented());
            // etherparse goes on behind a later fragment's header, where the middle of the datagram
            // begins.
            if ip.frag_offset != 0 {
                prop_assert_eq!(ip.header_len, ip.fragment_at + 8);
                return Ok(());
            }
            prop_assert_eq!(usize::from(ip.header_len), 40 + slice.extensions().slice().len());
            prop_assert_eq!(ip.proto, slice.payload().ip_number.0);
            let fragments = slice.extensions().clone().into_iter().filter_map(|it| match it {
                Ipv6ExtensionSlice::Fragment(it) => Some(it),
                _ => None,
            });
            let fragment: Vec<_> = fragments.collect();
            prop_assert_eq!(fragment.len(), usize::from(ip.has_fragment_header()));
            if let [fragment] = &fragment[..] {
                prop_assert_eq!(ip.frag_id, fragment.identification());
                prop_assert_eq!(ip.frag_offset / 8, fragment.fragment_offset().value());
                prop_assert_eq!(ip.more_fragments, fragment.more_fragments());
                let at = ip.l3_offset() + usize::from(ip.fragment_at);
                prop_assert_eq!(&bytes[at..at + 8], fragment.slice());
            }
            (ip.l4, ip.l4_offset, ip.end())
        }
        // etherparse also steps over the tag that came before 802.1ad and over MACsec; Linux
        // bridges take neither for a tag.
        (Some(_), Net::Other) if matches!(headers.ethertype, 0x9100 | 0x88e5) => return Ok(()),
        (Some(NetSlice::Ipv4(_) | NetSlice::Ipv6(_)), other) => {
            return Err(TestCaseError::fail(format!("etherparse reads IP, we {other:?}")));
        }
        _ => return Ok(()),
    };
    prop_assert!(payload_end <= bytes.len());
    let at = usize::from(l4_offset);
    let is_ipv6 = matches!(headers.net, Net::Ipv6(_));
    match (&theirs.transport, l4) {
        (Some(TransportSlice::Tcp(slice)), L4::Tcp { src_port, dst_port, header_len, .. }) => {
            prop_assert_eq!(src_port, slice.source_port());
            prop_assert_eq!(dst_port, slice.destination_port());
            prop_assert_eq!(usize::from(header_len), slice.header_slice().len());
            prop_assert_eq!(slice.slice(), &bytes[at..payload_end]);
        }
        (Some(TransportSlice::Udp(slice)), L4::Udp { src_port, dst_port }) => {
            prop_assert_eq!(src_port, slice.source_port());
            prop_assert_eq!(dst_port, slice.destination_port());
        }
        (Some(TransportSlice::Icmpv4(slice)), L4::Icmp { kind, code, .. }) => {
            prop_assert_eq!((kind, code), (slice.type_u8(), slice.code_u8()));
        }
        (Some(TransportSlice::Icmpv6(slice)), L4::Icmp { kind, code, .. }) => {
            prop_assert_eq!((kind, code), (slice.type_u8(), slice.code_u8()));
        }
        // etherparse takes a UDP length below 8 for "whatever the packet has"; Linux drops it.
        (Some(TransportSlice::Udp(_)), L4::Truncated) => {
            let length = usize::from(read_u16(bytes, at + 4).unwrap_or(0));
            prop_assert!(length < UDP_LEN);
        }
        // One version's ICMP within the other version means nothing to a host.
        (Some(TransportSlice::Icmpv4(_)), L4::Other) => prop_assert!(is_ipv6),
        (Some(TransportSlice::Icmpv6(_)), L4::Other) => prop_assert!(!is_ipv6),
        // We do not look into IGMP.
        (Some(TransportSlice::Igmp(_)), L4::Other) => {}
        (Some(theirs), ours) => {
            return Err(TestCaseError::fail(format!("etherparse {theirs:?}, we {ours:?}")));
        }
        (None, _) => {}
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn random_bytes_agree(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        agrees_with_etherparse(&bytes)?;
    }

    #[test]
    fn mutated_frames_agree(bytes in mutated()) {
        agrees_with_etherparse(&bytes)?;
    }

    #[test]
    fn offsets_lie_within_the_frame(bytes in mutated()) {
        if let Ok(headers) = parse(&bytes) {
            prop_assert!(usize::from(headers.l3) <= bytes.len());
            match headers.net {
                Net::Ipv4(ip) => {
                    prop_assert!(ip.end() <= bytes.len());
                    prop_assert!(usize::from(ip.l4_offset) <= ip.end());
                }
                Net::Ipv6(ip) => {
                    prop_assert!(ip.end() <= bytes.len());
                    prop_assert_eq!(ip.l3_offset(), usize::from(headers.l3));
                    prop_assert!(ip.fragment_start() <= usize::from(ip.l4_offset));
                    prop_assert!(usize::from(ip.l4_offset) <= ip.end());
                }
                _ => {}
            }
        }
    }
}
