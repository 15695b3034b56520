//! Frames that only trusted ports may send: what a DHCP server says, and the Router Advertisements and
//! Redirects of IPv6. Who sends them decides for its neighbors where their packets go.
//!
//! What counts is what a receiver could take a frame for. Everything in front of the message is stepped
//! over: VLAN tags, LLC/SNAP, IPv4 options, IPv6 extension headers; lengths that the packet claims are not
//! believed, the frame's end alone counts. Where that cannot be done to the end, the frame is refused
//! (RFC 7113): the chain is cut short, out of order or longer than any real one, or a Neighbor Discovery message is in a
//! fragment, which nobody may send nor take (RFC 6980).
//!
//! Shortcuts ask [`is_ordinary`], which reads fields at fixed places: it answers yes only where there is
//! nothing to be stepped over. Every other frame takes the whole way and comes to [`admit`].

use std::net::Ipv4Addr;

use crate::config::Network;
use crate::packet::arp::{ArpOp, ArpPacket};
use crate::packet::extensions::walk_extensions;
use crate::packet::field::{chunk, read_u16};
use crate::packet::headers::{Chain, Headers, Net};
use crate::packet::ndp;
use crate::packet::parse::{ETH_LEN, IPV4_LEN, IPV4_OFFSET_MASK, IPV6_LEN, VLAN_TAG_LEN};
use crate::packet::types::{Mac, ethertype, ip_proto};
use crate::verdict::DropReason;

/// EtherTypes begin here (IEEE 802.3 clause 3.2.6); what is less is a length, and LLC is behind it.
const FIRST_ETHERTYPE: u16 = 0x0600;
/// Link headers stepped over at most, behind those that have been parsed.
const MAX_LINK_HEADERS: usize = 8;
/// LLC with a SNAP header and its EtherType (RFC 1042).
const SNAP_LEN: usize = 8;

/// Ports of DHCP (RFC 2131 §4.1). Many clients look at their own alone, so that either makes an answer.
const DHCP: Answers = Answers { server: 67, client: 68 };
/// Ports of DHCPv6 (RFC 8415 §7.2).
const DHCP6: Answers = Answers { server: 547, client: 546 };

struct Answers {
    server: u16,
    client: u16,
}

impl Answers {
    /// `ports`: source and destination.
    #[inline(always)]
    const fn are(&self, ports: [u8; 4]) -> bool {
        let (src, dst) = ports_of(ports);
        src == self.server || dst == self.client
    }
}

/// Source and destination port.
#[inline(always)]
const fn ports_of([s0, s1, d0, d1]: [u8; 4]) -> (u16, u16) {
    (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1]))
}

/// Whether an IPv4 packet is a fragment that begins behind the transport header.
const fn is_later_fragment(header: &[u8; IPV4_LEN]) -> bool {
    u16::from_be_bytes([header[6], header[7]]) & IPV4_OFFSET_MASK != 0
}

/// Link header without a tag, IPv4 header without options, and the ports.
const V4_HEAD: usize = ETH_LEN + IPV4_LEN + 4;
/// The same of IPv6 without extension headers.
const V6_HEAD: usize = ETH_LEN + IPV6_LEN + 4;

/// Whether an untagged frame of this EtherType is certainly none that an endpoint must not send.
#[inline(always)]
pub(crate) fn is_ordinary(bytes: &[u8], kind: u16) -> bool {
    match kind {
        ethertype::IPV4 => bytes.first_chunk().is_some_and(is_ordinary_ipv4),
        ethertype::IPV6 => bytes.first_chunk().is_some_and(is_ordinary_ipv6),
        ethertype::VLAN | ethertype::QINQ => false,
        kind => kind >= FIRST_ETHERTYPE,
    }
}

/// [`is_ordinary`] for IPv4, and from this address.
#[inline(always)]
pub(crate) fn is_ordinary_from(bytes: &[u8], source: u32) -> bool {
    bytes.first_chunk::<V4_HEAD>().is_some_and(|head| {
        let [.., s0, s1, s2, s3, _, _, _, _, _, _, _, _] = *head;
        u32::from_be_bytes([s0, s1, s2, s3]) == source && is_ordinary_ipv4(head)
    })
}

/// [`is_ordinary`] for IPv6, and from this address.
#[inline(always)]
pub(crate) fn is_ordinary_from6(bytes: &[u8], source: &[u8; 16]) -> bool {
    const SOURCE: usize = ETH_LEN + 8;
    bytes
        .first_chunk::<V6_HEAD>()
        .is_some_and(|head| chunk(head, SOURCE) == Some(source) && is_ordinary_ipv6(head))
}

/// TCP and UDP alone: extension headers and ICMPv6 are looked at closely.
#[inline(always)]
fn is_ordinary_ipv6(head: &[u8; V6_HEAD]) -> bool {
    const NEXT_HEADER: usize = ETH_LEN + 6;
    let [.., p0, p1, p2, p3] = *head;
    match head[NEXT_HEADER] {
        ip_proto::TCP => true,
        ip_proto::UDP => !DHCP6.are([p0, p1, p2, p3]),
        _ => false,
    }
}

#[inline(always)]
fn is_ordinary_ipv4(head: &[u8; V4_HEAD]) -> bool {
    const PROTO: usize = ETH_LEN + 9;
    /// Version 4, no options.
    const PLAIN: u8 = 0x45;
    let [.., p0, p1, p2, p3] = *head;
    head[ETH_LEN] == PLAIN && !(head[PROTO] == ip_proto::UDP && DHCP.are([p0, p1, p2, p3]))
}

/// Refuses an IPv4 packet that is from none of the owner's addresses, or from nobody's and not what hosts say that
/// have none yet.
#[inline(always)]
pub(crate) fn admit_ipv4(
    packet: &[u8],
    source: Ipv4Addr,
    own: &[Ipv4Addr],
) -> Result<(), DropReason> {
    if own.contains(&source) || source.is_unspecified() && is_of_the_nameless(packet) {
        Ok(())
    } else {
        Err(DropReason::SpoofedIpv4)
    }
}

/// Whether hosts send this packet before they have an address: they ask for one by DHCP (RFC 2131 §4.1), and say
/// which groups they are in (RFC 3376 §4.2.13).
#[cold]
fn is_of_the_nameless(packet: &[u8]) -> bool {
    let Some(header) = packet.first_chunk::<IPV4_LEN>() else { return false };
    let ports = || chunk(packet, usize::from(header[0] & 0x0f) * 4).map(|ports| ports_of(*ports));
    match header[9] {
        ip_proto::UDP => !is_later_fragment(header) && ports() == Some((DHCP.client, DHCP.server)),
        ip_proto::IGMP => true,
        _ => false,
    }
}

/// Refuses ARP that is not said by the owner, or not for itself. From no address it may only ask, whether one of its
/// own or the gateway's is free (RFC 5227 §1.1): who probes another's keeps it from that.
pub(crate) fn admit_arp(
    arp: &ArpPacket,
    mac: Mac,
    own: &[Ipv4Addr],
    network: Option<&Network>,
) -> Result<(), DropReason> {
    let may_have =
        |target| own.contains(&target) || network.is_some_and(|it| it.is_gateway(target));
    let is_probe =
        arp.op == ArpOp::Request && arp.sender_ip.is_unspecified() && may_have(arp.target_ip);
    let sound = arp.sender_mac == mac && (is_probe || own.contains(&arp.sender_ip));
    if sound { Ok(()) } else { Err(DropReason::SpoofedArp) }
}

/// Refuses what only a trusted port may send.
#[inline(always)]
pub(crate) fn admit(bytes: &[u8], headers: &Headers) -> Result<(), DropReason> {
    if !headers.tagged && is_ordinary(bytes, headers.ethertype) {
        return Ok(());
    }
    look_closely(bytes, headers)
}

#[inline(never)]
fn look_closely(bytes: &[u8], headers: &Headers) -> Result<(), DropReason> {
    match payload(bytes, headers) {
        Payload::Ipv4(packet) if is_dhcp_answer(packet) => Err(DropReason::DhcpUntrusted),
        Payload::Ipv6(packet) => match upper(packet) {
            Upper::Udp(ports) if DHCP6.are(ports) => Err(DropReason::DhcpUntrusted),
            Upper::Icmp { kind, fragment, .. } if is_reserved(kind, fragment) => {
                Err(DropReason::RaUntrusted)
            }
            Upper::Hidden => Err(DropReason::RaUntrusted),
            _ => Ok(()),
        },
        Payload::Hidden => Err(DropReason::RaUntrusted),
        Payload::Arp(_) | Payload::Ipv4(_) | Payload::Other => Ok(()),
    }
}

const fn is_reserved(kind: u8, fragment: bool) -> bool {
    let neighbor_discovery = matches!(kind, ndp::ROUTER_SOLICITATION..=ndp::REDIRECT);
    matches!(kind, ndp::ROUTER_ADVERTISEMENT | ndp::REDIRECT) || fragment && neighbor_discovery
}

/// What is behind all link headers, up to the end of the frame.
pub(super) enum Payload<'a> {
    Arp(&'a [u8]),
    Ipv4(&'a [u8]),
    Ipv6(&'a [u8]),
    /// More link headers than are stepped over.
    Hidden,
    Other,
}

/// Whether more link headers follow those that have been parsed: LLC, or more tags than anybody has.
#[inline(always)]
pub(crate) const fn is_wrapped(kind: u16) -> bool {
    kind < FIRST_ETHERTYPE || matches!(kind, ethertype::VLAN | ethertype::QINQ)
}

/// Moves headers on to behind all link headers, where their network header has not been read. False: there are more
/// of them than are stepped over.
#[cold]
pub(crate) fn unwrap(bytes: &[u8], headers: &mut Headers) -> bool {
    let Some((kind, at)) = innermost(bytes, headers) else { return false };
    let Ok(l3) = u16::try_from(at) else { return false };
    headers.ethertype = kind;
    headers.l3 = l3;
    headers.net = if kind == ethertype::ARP { Net::Arp } else { Net::Unread };
    true
}

/// Steps over link headers from where they have been parsed to.
pub(super) fn payload<'a>(bytes: &'a [u8], headers: &Headers) -> Payload<'a> {
    let Some((kind, at)) = innermost(bytes, headers) else { return Payload::Hidden };
    let packet = bytes.get(at..).unwrap_or_default();
    match kind {
        ethertype::ARP => Payload::Arp(packet),
        ethertype::IPV4 => Payload::Ipv4(packet),
        ethertype::IPV6 => Payload::Ipv6(packet),
        _ => Payload::Other,
    }
}

/// The EtherType behind all link headers, and where its packet begins. `None`: there are more of them than are
/// stepped over.
fn innermost(bytes: &[u8], headers: &Headers) -> Option<(u16, usize)> {
    let mut kind = headers.ethertype;
    let mut at = usize::from(headers.l3);
    for _ in 0..=MAX_LINK_HEADERS {
        let rest = bytes.get(at..).unwrap_or_default();
        let length = match (kind, rest) {
            (ethertype::VLAN | ethertype::QINQ, _) => VLAN_TAG_LEN,
            (..FIRST_ETHERTYPE, [0xaa, 0xaa, 0x03, ..]) => SNAP_LEN,
            _ => return Some((kind, at)),
        };
        // Both end with the EtherType of what follows.
        let Some(header) = rest.get(..length) else { return Some((kind, at)) };
        kind = read_u16(header, length - 2).unwrap_or_default();
        at += length;
    }
    None
}

/// Whether a packet, or the first fragment of one, is what a DHCP server or relay says.
fn is_dhcp_answer(packet: &[u8]) -> bool {
    let Some(header) = packet.first_chunk::<IPV4_LEN>() else { return false };
    let ports = chunk(packet, usize::from(header[0] & 0x0f) * 4);
    header[9] == ip_proto::UDP
        && !is_later_fragment(header)
        && ports.is_some_and(|ports| DHCP.are(*ports))
}

/// What is behind the extension headers of an IPv6 packet.
pub(super) enum Upper<'a> {
    Icmp {
        kind: u8,
        /// With its header, to the end of the frame.
        message: &'a [u8],
        /// There was a fragment header, be it that of a whole packet.
        fragment: bool,
    },
    /// Source and destination port.
    Udp([u8; 4]),
    /// Nobody can tell before it is put together, or at all.
    Hidden,
    /// Something else, or a fragment that is not the first: what that one is decides for all.
    Other,
}

/// Steps over the extension headers of an IPv6 packet that ends where the frame ends.
pub(super) fn upper(packet: &[u8]) -> Upper<'_> {
    const NEXT_HEADER: usize = 6;
    let Some(fixed) = packet.first_chunk::<IPV6_LEN>() else { return Upper::Other };
    let walk = walk_extensions(packet, fixed[NEXT_HEADER]);
    if walk.frag_offset != 0 {
        return Upper::Other;
    }
    if !matches!(walk.chain, Chain::Whole | Chain::Routing0) {
        return Upper::Hidden;
    }
    let rest = packet.get(walk.offset..).unwrap_or_default();
    match (walk.proto, rest) {
        (ip_proto::ICMPV6, [kind, ..]) => {
            Upper::Icmp { kind: *kind, message: rest, fragment: walk.fragment_at != 0 }
        }
        (ip_proto::ICMPV6, []) => Upper::Hidden,
        (ip_proto::UDP, _) => chunk(rest, 0).map_or(Upper::Hidden, |ports| Upper::Udp(*ports)),
        _ => Upper::Other,
    }
}

#[cfg(test)]
pub(super) mod tests;
