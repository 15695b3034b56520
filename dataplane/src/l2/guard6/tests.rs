//! Every way of using an address that is another's, and what must pass all the same.

use super::super::guard::tests::{frame, ipv6, udp, v6};
use super::*;
use crate::packet::parse::parse_link;
use crate::packet::types::ip_proto;

const OWN_MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const OTHER_MAC: Mac = Mac([2, 0, 0, 0, 0, 2]);
const NONE: Ipv6Addr = Ipv6Addr::UNSPECIFIED;
const OWN: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);
const OWN4: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
const OWN_LINK: Ipv6Addr = ndp::link_local(OWN_MAC);
const OTHER: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 3);
const OTHER_LINK: Ipv6Addr = ndp::link_local(OTHER_MAC);

const DESTINATION_OPTIONS: u8 = 60;
const FRAGMENT: u8 = 44;
const SPOOFED: Result<(), DropReason> = Err(DropReason::SpoofedIpv6);
const SPOOFED_ND: Result<(), DropReason> = Err(DropReason::SpoofedNd);

fn judge_as(own: &[Ipv6Addr], frame: &[u8]) -> Result<(), DropReason> {
    let mut headers = Headers::EMPTY;
    parse_link(frame, &mut headers).unwrap();
    admit(frame, &headers, &Owner { mac: OWN_MAC, ipv4: &[OWN4], ipv6: own, network: None })
}

fn judge(frame: &[u8]) -> Result<(), DropReason> {
    judge_as(&[OWN_LINK, OWN], frame)
}

fn from(source: Ipv6Addr, mut packet: Vec<u8>) -> Vec<u8> {
    packet[8..24].copy_from_slice(&source.octets());
    packet
}

/// A message of ICMPv6: what follows its first eight bytes.
fn message(kind: u8, rest: &[u8]) -> Vec<u8> {
    [&[kind, 0, 0, 0, 0, 0, 0, 0], rest].concat()
}

fn icmp(source: Ipv6Addr, chain: &[u8], kind: u8, rest: &[u8]) -> Vec<u8> {
    from(source, ipv6(chain, ip_proto::ICMPV6, &message(kind, rest)))
}

fn option(number: u8, mac: Mac) -> Vec<u8> {
    [&[number, 1], &mac.0[..]].concat()
}

#[test]
fn a_packet_is_from_an_address_of_the_endpoint() {
    for (source, verdict) in [
        (OWN, Ok(())),
        (OWN_LINK, Ok(())),
        (OTHER, SPOOFED),
        (OTHER_LINK, SPOOFED),
        (NONE, SPOOFED),
        (Ipv6Addr::LOCALHOST, SPOOFED),
        (ndp::ALL_NODES, SPOOFED),
    ] {
        let mut segment = vec![0; 20];
        segment[12] = 0x50;
        for (chain, proto, payload) in [
            (&[][..], ip_proto::TCP, segment),
            (&[], ip_proto::UDP, udp(1, 2)),
            (&[], ip_proto::ICMPV6, message(128, &[])),
            (&[DESTINATION_OPTIONS], ip_proto::UDP, udp(1, 2)),
            (&[FRAGMENT], ip_proto::UDP, udp(1, 2)),
            (&[], 99, vec![]),
        ] {
            let packet = from(source, ipv6(chain, proto, &payload));
            assert_eq!(judge(&v6(&packet)), verdict, "{source} {chain:?} {proto}");
            let mut later = packet.clone();
            if chain == [FRAGMENT] {
                later[42] = 5;
                assert_eq!(judge(&v6(&later)), verdict, "{source} in a later fragment");
            }
            for kinds in [
                &[0x81, 0, 0, 5, 0x86, 0xdd][..],
                &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 7, 0x86, 0xdd],
                &[0, 60, 0xaa, 0xaa, 3, 0, 0, 0, 0x86, 0xdd],
            ] {
                assert_eq!(judge(&frame(kinds, &packet)), verdict, "{source} behind {kinds:02x?}");
            }
        }
    }
}

/// As in a network without an IPv6 subnet.
#[test]
fn without_a_subnet_the_link_local_address_is_left() {
    let judge = |frame: &[u8]| judge_as(&[OWN_LINK], frame);
    let says = |source| v6(&from(source, ipv6(&[], ip_proto::UDP, &udp(1, 2))));
    assert_eq!(judge(&says(OWN_LINK)), Ok(()));
    for source in [OWN, OTHER, OTHER_LINK, NONE] {
        assert_eq!(judge(&says(source)), SPOOFED, "{source}");
    }
    for (target, verdict) in [(OWN_LINK, Ok(())), (OWN, SPOOFED_ND), (OTHER_LINK, SPOOFED_ND)] {
        assert_eq!(judge(&v6(&icmp(OWN_LINK, &[], 136, &target.octets()))), verdict, "{target}");
        assert_eq!(judge(&v6(&icmp(NONE, &[], 135, &target.octets()))), verdict, "{target}");
        assert_eq!(judge(&v6(&icmp(OWN_LINK, &[], 135, &target.octets()))), Ok(()), "{target}");
    }
    assert_eq!(judge(&v6(&icmp(NONE, &[], 133, &[]))), Ok(()));
}

#[test]
fn without_an_address_one_may_prepare_to_have_one_and_nothing_else() {
    for kind in 0..=u8::MAX {
        let target = if kind == 135 { OWN } else { OTHER };
        let expected = match kind {
            131 | 132 | 133 | 135 | 143 => Ok(()),
            _ => SPOOFED,
        };
        assert_eq!(judge(&v6(&icmp(NONE, &[], kind, &target.octets()))), expected, "{kind}");
    }
    // As multicast listeners report: the hop-by-hop header has the router alert.
    assert_eq!(judge(&v6(&icmp(NONE, &[0], 143, &[]))), Ok(()));
    // That somebody else's address is taken is what nobody may say by asking for it.
    assert_eq!(judge(&v6(&icmp(NONE, &[], 135, &OTHER.octets()))), SPOOFED_ND);
    assert_eq!(judge(&v6(&icmp(NONE, &[], 135, &OTHER_LINK.octets()))), SPOOFED_ND);
    assert_eq!(judge(&v6(&icmp(NONE, &[], 135, &OWN_LINK.octets()))), Ok(()));
    let named = [&OWN.octets()[..], &option(SOURCE_LINK, OWN_MAC)].concat();
    assert_eq!(judge(&v6(&icmp(NONE, &[], 135, &named))), SPOOFED_ND);
    assert_eq!(judge(&v6(&icmp(NONE, &[], 133, &option(SOURCE_LINK, OWN_MAC)))), SPOOFED_ND);
}

#[test]
fn one_advertises_its_own_addresses_and_asks_for_any() {
    for (target, verdict) in [(OWN, Ok(())), (OWN_LINK, Ok(())), (OTHER, SPOOFED_ND)] {
        for chain in [&[][..], &[DESTINATION_OPTIONS], &[0, DESTINATION_OPTIONS]] {
            let advertisement = icmp(OWN, chain, 136, &target.octets());
            assert_eq!(judge(&v6(&advertisement)), verdict, "{target} {chain:?}");
            let tagged = frame(&[0x81, 0, 0, 5, 0x86, 0xdd], &advertisement);
            assert_eq!(judge(&tagged), verdict, "{target} {chain:?}");
            assert_eq!(judge(&v6(&icmp(OWN, chain, 135, &target.octets()))), Ok(()));
        }
    }
    // Cut short, so that nobody knows what it says.
    assert_eq!(judge(&v6(&icmp(OWN, &[], 136, &OWN.octets()[..15]))), SPOOFED_ND);
}

#[test]
fn who_solicits_and_advertises_names_its_own_mac() {
    for own in [&[OWN_LINK][..], &[OWN_LINK, OWN]] {
        let (source, said) = (own[own.len() - 1], own[own.len() - 1].octets());
        for (kind, target, number) in [
            (133, &[][..], SOURCE_LINK),
            (135, &OTHER.octets(), SOURCE_LINK),
            (136, &said, TARGET_LINK),
        ] {
            // A nonce before it (RFC 3971 §5.3.2).
            let with = |number, mac| {
                let nonce = [14, 1, 1, 2, 3, 4, 5, 6];
                let rest = [target, &nonce, &option(number, mac)].concat();
                v6(&icmp(source, &[], kind, &rest))
            };
            assert_eq!(judge_as(own, &with(number, OWN_MAC)), Ok(()), "{kind}");
            assert_eq!(judge_as(own, &with(number, OTHER_MAC)), SPOOFED_ND, "{kind}");
            // Not what this message carries.
            assert_eq!(judge_as(own, &with(3 - number, OTHER_MAC)), Ok(()), "{kind}");
            let twice = [target, &option(number, OWN_MAC), &option(number, OTHER_MAC)].concat();
            assert_eq!(judge_as(own, &v6(&icmp(source, &[], kind, &twice))), SPOOFED_ND, "{kind}");
            let mut broken = with(number, OTHER_MAC);
            broken[14 + 40 + 8 + target.len() + 1] = 0;
            assert_eq!(judge_as(own, &broken), Ok(()), "nobody takes it");
        }
    }
}

#[test]
fn what_hides_neighbor_discovery_is_refused_from_who_is_trusted_too() {
    for kind in 133..=137 {
        let rest = [&OWN.octets()[..], &OWN.octets()].concat();
        assert_eq!(judge(&v6(&icmp(OWN, &[FRAGMENT], kind, &rest))), SPOOFED_ND, "{kind}");
        let tags = [0x81, 0, 0, 0].repeat(40);
        let tagged = frame(&[&tags[..], &[0x86, 0xdd]].concat(), &icmp(OWN, &[], kind, &rest));
        assert_eq!(judge(&tagged), SPOOFED_ND, "{kind}");
        let long = icmp(OWN, &[DESTINATION_OPTIONS; 20], kind, &rest);
        assert_eq!(judge(&v6(&long)), SPOOFED_ND, "{kind}");
    }
    assert_eq!(judge(&v6(&icmp(OWN, &[FRAGMENT], 128, &[]))), Ok(()));
}
