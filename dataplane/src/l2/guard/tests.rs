//! Every way of hiding what only a trusted port may send, and what must pass all the same.

use super::*;
use crate::packet::parse::parse_link;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// Link headers: `kinds` are the bytes from the first EtherType on.
pub(in crate::l2) fn frame(kinds: &[u8], packet: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, 1];
    bytes.extend_from_slice(kinds);
    bytes.extend_from_slice(packet);
    bytes
}

fn v4(packet: &[u8]) -> Vec<u8> {
    frame(&[0x08, 0x00], packet)
}

pub(in crate::l2) fn v6(packet: &[u8]) -> Vec<u8> {
    frame(&[0x86, 0xdd], packet)
}

/// `options`: in units of four bytes; `fragment`: flags and offset.
fn ipv4_udp(options: u8, fragment: u16, src: u16, dst: u16) -> Vec<u8> {
    let mut packet = vec![0u8; 20 + usize::from(options) * 4];
    packet[0] = 0x45 + options;
    packet[6..8].copy_from_slice(&fragment.to_be_bytes());
    packet[9] = ip_proto::UDP;
    packet.extend(udp(src, dst));
    packet
}

pub(in crate::l2) fn udp(src: u16, dst: u16) -> Vec<u8> {
    let mut bytes = [src.to_be_bytes(), dst.to_be_bytes()].concat();
    bytes.extend([0, 8, 0, 0]);
    bytes
}

fn icmp(kind: u8) -> Vec<u8> {
    let mut message = vec![0u8; 24];
    message[0] = kind;
    message
}

/// An IPv6 packet with extension headers of eight bytes each; what comes last is `proto`.
pub(in crate::l2) fn ipv6(chain: &[u8], proto: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0u8; 40];
    packet[0] = 0x60;
    let next = |at: usize| chain.get(at).copied().unwrap_or(proto);
    packet[6] = next(0);
    for at in 0..chain.len() {
        packet.extend([next(at + 1), 0, 0, 0, 0, 0, 0, 0]);
    }
    packet.extend_from_slice(payload);
    let length = u16::try_from(packet.len() - 40).unwrap();
    packet[4..6].copy_from_slice(&length.to_be_bytes());
    packet
}

fn judge(frame: &[u8]) -> Result<(), DropReason> {
    let mut headers = Headers::EMPTY;
    parse_link(frame, &mut headers).unwrap();
    let verdict = admit(frame, &headers);
    if verdict.is_err() {
        assert!(
            headers.tagged || !is_ordinary(frame, headers.ethertype),
            "the shortcuts would have passed what is refused"
        );
    }
    verdict
}

fn ra(packet: &[u8]) -> Result<(), DropReason> {
    judge(&v6(packet))
}

const RA: Result<(), DropReason> = Err(DropReason::RaUntrusted);
const DHCP_ANSWER: Result<(), DropReason> = Err(DropReason::DhcpUntrusted);

#[test]
fn what_a_dhcp_server_says() {
    // Either port makes an answer: many clients look at their own alone.
    for (src, dst) in [(67, 68), (67, 67), (1067, 68)] {
        assert_eq!(judge(&v4(&ipv4_udp(0, 0, src, dst))), DHCP_ANSWER, "{src} {dst}");
    }
    for (src, dst) in [(547, 546), (547, 547), (1547, 546)] {
        let packet = ipv6(&[], ip_proto::UDP, &udp(src, dst));
        assert_eq!(judge(&v6(&packet)), DHCP_ANSWER, "{src} {dst}");
    }
}

#[test]
fn what_a_dhcp_client_says_passes() {
    assert_eq!(judge(&v4(&ipv4_udp(0, 0, 68, 67))), Ok(()));
    assert_eq!(judge(&v6(&ipv6(&[], ip_proto::UDP, &udp(546, 547)))), Ok(()));
    let mut tcp = ipv4_udp(0, 0, 67, 68);
    tcp[9] = ip_proto::TCP;
    assert_eq!(judge(&v4(&tcp)), Ok(()));
}

#[test]
fn an_answer_behind_options_tags_and_in_a_first_fragment() {
    for options in 1..=10 {
        assert_eq!(judge(&v4(&ipv4_udp(options, 0, 67, 68))), DHCP_ANSWER, "{options}");
    }
    const MORE: u16 = 0x2000;
    assert_eq!(judge(&v4(&ipv4_udp(0, MORE, 67, 68))), DHCP_ANSWER);
    // Only looks like one.
    assert_eq!(judge(&v4(&ipv4_udp(0, 3, 67, 68))), Ok(()));
    let packet = ipv4_udp(0, 0, 67, 68);
    assert_eq!(judge(&frame(&[0x81, 0, 0, 0, 0x08, 0x00], &packet)), DHCP_ANSWER);
    let packet = ipv6(&[HOP_BY_HOP, DESTINATION_OPTIONS], ip_proto::UDP, &udp(547, 546));
    assert_eq!(judge(&v6(&packet)), DHCP_ANSWER);
}

#[test]
fn router_advertisements_and_redirects_and_nothing_else_of_icmpv6() {
    for kind in 0..=u8::MAX {
        let expected = if matches!(kind, 134 | 137) { RA } else { Ok(()) };
        assert_eq!(ra(&ipv6(&[], ip_proto::ICMPV6, &icmp(kind))), expected, "{kind}");
    }
}

#[test]
fn no_extension_header_hides_an_advertisement() {
    let message = icmp(134);
    for chain in [
        &[HOP_BY_HOP][..],
        &[DESTINATION_OPTIONS],
        &[ROUTING],
        &[AUTHENTICATION],
        &[FRAGMENT],
        &[HOP_BY_HOP, DESTINATION_OPTIONS, ROUTING, DESTINATION_OPTIONS],
        &[DESTINATION_OPTIONS; 8],
        // More than there can be: nobody looks any further.
        &[DESTINATION_OPTIONS; 9],
        &[DESTINATION_OPTIONS; 100],
    ] {
        assert_eq!(ra(&ipv6(chain, ip_proto::ICMPV6, &message)), RA, "{chain:?}");
    }
}

#[test]
fn a_chain_that_is_cut_short_is_refused() {
    let whole = ipv6(&[HOP_BY_HOP, DESTINATION_OPTIONS], ip_proto::ICMPV6, &icmp(134));
    for len in 40..whole.len() {
        assert_eq!(ra(&whole[..len]), RA, "{len}");
    }
    // A header longer than the frame.
    let mut long = ipv6(&[DESTINATION_OPTIONS], ip_proto::ICMPV6, &icmp(128));
    long[41] = 200;
    assert_eq!(ra(&long), RA);
}

#[test]
fn a_chain_out_of_order_is_refused_whatever_it_leads_to() {
    for chain in [&[DESTINATION_OPTIONS, HOP_BY_HOP][..], &[FRAGMENT, FRAGMENT]] {
        for (proto, payload) in [(ip_proto::ICMPV6, icmp(128)), (ip_proto::UDP, udp(1, 2))] {
            assert_eq!(ra(&ipv6(chain, proto, &payload)), RA, "{chain:?}");
        }
    }
    // In order they hide nothing.
    assert_eq!(ra(&ipv6(&[HOP_BY_HOP, FRAGMENT], ip_proto::UDP, &udp(1, 2))), Ok(()));
}

#[test]
fn what_a_packet_claims_of_its_length_is_not_believed() {
    let mut packet = ipv6(&[], ip_proto::ICMPV6, &icmp(134));
    packet[4..6].copy_from_slice(&0u16.to_be_bytes());
    assert_eq!(ra(&packet), RA);
}

#[test]
fn neighbor_discovery_in_fragments_is_refused_and_a_large_echo_is_not() {
    let fragment = |word: u16, message: &[u8]| {
        let mut packet = ipv6(&[FRAGMENT], ip_proto::ICMPV6, message);
        packet[42..44].copy_from_slice(&word.to_be_bytes());
        packet
    };
    // First ones, and whole packets with a fragment header.
    for word in [0, 1] {
        for kind in 133..=137 {
            assert_eq!(ra(&fragment(word, &icmp(kind))), RA, "{word} {kind}");
        }
        assert_eq!(ra(&fragment(word, &icmp(128))), Ok(()));
        // The message is in the next one.
        assert_eq!(ra(&fragment(word, &[])), RA);
    }
    assert_eq!(ra(&fragment(1448 | 1, &icmp(134))), Ok(()));
    let mut hidden =
        ipv6(&[FRAGMENT], DESTINATION_OPTIONS, &[ip_proto::ICMPV6, 1, 0, 0, 0, 0, 0, 0]);
    hidden[43] = 1;
    assert_eq!(ra(&hidden), RA, "the rest of the chain is in the next one");
}

#[test]
fn no_link_header_hides_an_advertisement() {
    const SNAP: [u8; 10] = [0, 60, 0xaa, 0xaa, 3, 0, 0, 0, 0x86, 0xdd];
    let packet = ipv6(&[], ip_proto::ICMPV6, &icmp(134));
    let tags = |count: usize, tag: [u8; 4]| {
        let mut kinds = tag.repeat(count);
        kinds.extend([0x86, 0xdd]);
        frame(&kinds, &packet)
    };
    for count in [1, 2, 8, 9, 16, 17, 40] {
        for tag in [[0x81, 0, 0, 5], [0x81, 0, 0, 0], [0x88, 0xa8, 0, 5]] {
            assert_eq!(judge(&tags(count, tag)), RA, "{count}");
        }
    }
    assert_eq!(judge(&frame(&SNAP, &packet)), RA);
    assert_eq!(judge(&frame(&[&[0x81, 0, 0, 5][..], &SNAP].concat(), &packet)), RA);
    let tagged_snap = [&SNAP[..8], &[0x81, 0, 0, 5, 0x86, 0xdd]].concat();
    assert_eq!(judge(&frame(&tagged_snap, &packet)), RA);
    // LLC without SNAP is a bridge's own, or of another world.
    assert_eq!(judge(&frame(&[0, 60, 0x42, 0x42, 3], &packet)), Ok(()));
    assert_eq!(judge(&frame(&[0x81, 0, 0, 5, 0x88, 0xb5], &packet)), Ok(()));
}

#[test]
fn most_frames_are_ordinary() {
    assert!(is_ordinary(&v4(&ipv4_udp(0, 0, 1000, 2000)), ethertype::IPV4));
    let mut segment = vec![0; 20];
    segment[1] = 67;
    for proto in [ip_proto::TCP, ip_proto::UDP] {
        assert!(is_ordinary(&v6(&ipv6(&[], proto, &segment)), ethertype::IPV6));
    }
    assert!(is_ordinary(&frame(&[0x08, 0x06], &[]), ethertype::ARP));
    // Nothing is said of what is too short to tell.
    assert!(!is_ordinary(&v4(&ipv4_udp(0, 0, 1000, 2000)[..22]), ethertype::IPV4));
}
