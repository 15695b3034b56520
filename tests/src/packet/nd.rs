//! Neighbor discovery for IPv6 (RFC 4861), as hosts speak it.

use std::net::Ipv6Addr;

use dataplane::packet::ndp::{ALL_NODES, ALL_ROUTERS, link_local, multicast_mac, solicited_node};
use dataplane::packet::types::Mac;

use super::{Host, Packet, icmp6};

/// Option numbers.
const SOURCE_LINK: u8 = 1;
const TARGET_LINK: u8 = 2;
/// Bits of an advertisement.
const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

impl Host {
    /// The link-local address that follows from its MAC.
    #[must_use]
    pub const fn link_local(&self) -> Ipv6Addr {
        link_local(self.mac)
    }
}

fn option(number: u8, mac: Mac) -> Vec<u8> {
    [&[number, 1], &mac.0[..]].concat()
}

/// A message to a group, from any address.
fn to_group(from: &Host, src: Ipv6Addr, group: Ipv6Addr, kind: u8, rest: &[u8]) -> Packet {
    let message = icmp6(from, from, kind, 0, [0; 4]).payload(rest);
    message.src6(src).dst6(group).macs(from.mac, multicast_mac(group)).ttl(255)
}

/// Who has `target`? Asked by a host that speaks from `src`.
#[must_use]
pub fn solicitation(from: &Host, src: Ipv6Addr, target: Ipv6Addr) -> Packet {
    let rest = [&target.octets()[..], &option(SOURCE_LINK, from.mac)].concat();
    to_group(from, src, solicited_node(target), 135, &rest)
}

/// Is `target` free (RFC 4862 §5.4.2)?
#[must_use]
pub fn probe(from: &Host, target: Ipv6Addr) -> Packet {
    let unspecified = Ipv6Addr::UNSPECIFIED;
    to_group(from, unspecified, solicited_node(target), 135, &target.octets())
}

/// I have `target`: the answer to `to`, who asked from `dst`.
#[must_use]
pub fn advertisement(from: &Host, target: Ipv6Addr, to: &Host, dst: Ipv6Addr) -> Packet {
    let rest = [&target.octets()[..], &option(TARGET_LINK, from.mac)].concat();
    let message = icmp6(from, to, 136, 0, [SOLICITED | OVERRIDE, 0, 0, 0]);
    message.payload(&rest).src6(target).dst6(dst).ttl(255)
}

/// The same from a router.
#[must_use]
pub fn router_s_advertisement(from: &Host, target: Ipv6Addr, to: &Host, dst: Ipv6Addr) -> Packet {
    advertisement(from, target, to, dst).icmp_rest([ROUTER | SOLICITED | OVERRIDE, 0, 0, 0])
}

/// I have `target`: to everybody, unasked.
#[must_use]
pub fn announcement(from: &Host, target: Ipv6Addr) -> Packet {
    let rest = [&target.octets()[..], &option(TARGET_LINK, from.mac)].concat();
    to_group(from, target, ALL_NODES, 136, &rest).icmp_rest([OVERRIDE, 0, 0, 0])
}

/// The same from a router.
#[must_use]
pub fn router_s_announcement(from: &Host, target: Ipv6Addr) -> Packet {
    announcement(from, target).icmp_rest([ROUTER | OVERRIDE, 0, 0, 0])
}

/// Are there routers?
#[must_use]
pub fn router_solicitation(from: &Host, src: Ipv6Addr) -> Packet {
    let named = option(SOURCE_LINK, from.mac);
    let rest = if src.is_unspecified() { &[][..] } else { &named };
    to_group(from, src, ALL_ROUTERS, 133, rest)
}
