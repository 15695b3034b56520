//! Whose IPv6 addresses a frame uses: what the guard of an endpoint asks of IPv6 as it asks of IPv4 and
//! ARP.
//!
//! An endpoint has the addresses of its configuration, in a network without an IPv6 subnet none, and the link-local
//! one that follows from its MAC (EUI-64), and no other: addresses of its own invention are anybody's. It speaks from
//! these, and in Neighbor Discovery for these alone. Without an address it may only do what must be done
//! before there is one: ask whether one of its own is free (RFC 4862 §5.4.2), ask for routers (RFC 4861
//! §4.1), and join groups (RFC 3590). The gateway's addresses it may ask for as well: the gateway defends
//! them, and nobody else hears it.
//!
//! What is in front of a packet is stepped over as in [`guard`](super::guard), which has refused what
//! hides Neighbor Discovery from whoever is not trusted; here it is refused from all. Where that is more than
//! tags, IPv4 and ARP are held against their owner here as well.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::guard::{Payload, Upper, admit_arp, admit_ipv4, is_ordinary, payload, upper};
use crate::config::Network;
use crate::packet::arp::ArpPacket;
use crate::packet::field::chunk;
use crate::packet::headers::Headers;
use crate::packet::ndp::{self, SOURCE_LINK, TARGET_LINK};
use crate::packet::parse::{ipv4_source_at, ipv6_source_at};
use crate::packet::types::{Mac, ethertype};
use crate::verdict::DropReason;

// Reports of multicast listeners (RFC 2710 §3, RFC 3810 §5.2).
const MLD_REPORT: u8 = 131;
const MLD_DONE: u8 = 132;
const MLD2_REPORT: u8 = 143;

/// Who is behind a guarded port.
#[derive(Clone, Copy)]
pub(crate) struct Owner<'a> {
    pub(crate) mac: Mac,
    pub(crate) ipv4: &'a [Ipv4Addr],
    /// See [`crate::config::PortEntry::own6`].
    pub(crate) ipv6: &'a [Ipv6Addr],
    pub(crate) network: Option<&'a Network>,
}

/// Whether the IPv6 packet at `l3` is from one of these addresses. True where there is no whole header, which nobody
/// takes.
#[inline(always)]
pub(crate) fn is_own_source(bytes: &[u8], l3: usize, own: &[Ipv6Addr]) -> bool {
    ipv6_source_at(bytes, l3).is_none_or(|source| own.contains(&source))
}

/// Refuses what is not said by the owner, or not for itself.
#[inline(always)]
pub(crate) fn admit(bytes: &[u8], headers: &Headers, owner: &Owner<'_>) -> Result<(), DropReason> {
    if headers.tagged || !is_ordinary(bytes, headers.ethertype) {
        return look_closely(bytes, headers, owner);
    }
    let foreign = headers.ethertype == ethertype::IPV6
        && !is_own_source(bytes, usize::from(headers.l3), owner.ipv6);
    if foreign { Err(DropReason::SpoofedIpv6) } else { Ok(()) }
}

#[inline(never)]
fn look_closely(bytes: &[u8], headers: &Headers, owner: &Owner<'_>) -> Result<(), DropReason> {
    let packet = match payload(bytes, headers) {
        Payload::Ipv6(packet) => packet,
        Payload::Ipv4(packet) => {
            let source = ipv4_source_at(packet, 0);
            return source.map_or(Ok(()), |source| admit_ipv4(packet, source, owner.ipv4));
        }
        Payload::Arp(packet) => {
            let arp = ArpPacket::read(packet).ok_or(DropReason::ArpMalformed)?;
            return admit_arp(&arp, owner.mac, owner.ipv4, owner.network);
        }
        Payload::Hidden => return Err(DropReason::SpoofedNd),
        _ => return Ok(()),
    };
    let Some(source) = ipv6_source_at(packet, 0) else { return Ok(()) };
    let upper = upper(packet);
    owner.admit_source(source, &upper)?;
    match upper {
        Upper::Icmp { kind: ndp::ROUTER_SOLICITATION..=ndp::REDIRECT, fragment: true, .. }
        | Upper::Hidden => Err(DropReason::SpoofedNd),
        Upper::Icmp { kind, message, .. } => {
            let sound = owner.is_named(kind, message) && owner.may_speak_for(source, kind, message);
            if sound { Ok(()) } else { Err(DropReason::SpoofedNd) }
        }
        _ => Ok(()),
    }
}

impl Owner<'_> {
    fn admit_source(&self, source: Ipv6Addr, upper: &Upper<'_>) -> Result<(), DropReason> {
        let own = if source.is_unspecified() {
            let kind = match upper {
                Upper::Icmp { kind, .. } => *kind,
                _ => 0,
            };
            matches!(
                kind,
                ndp::NEIGHBOR_SOLICITATION
                    | ndp::ROUTER_SOLICITATION
                    | MLD_REPORT
                    | MLD_DONE
                    | MLD2_REPORT
            )
        } else {
            self.ipv6.contains(&source)
        };
        if own { Ok(()) } else { Err(DropReason::SpoofedIpv6) }
    }

    /// Whether the target of a message of Neighbor Discovery is one that it may name. One that asks from
    /// an address of its own may ask for anybody; one that has none yet names no MAC either (RFC 4861 §4.3).
    fn may_speak_for(&self, source: Ipv6Addr, kind: u8, message: &[u8]) -> bool {
        let target = || chunk::<16>(message, 8).map(|octets| Ipv6Addr::from_octets(*octets));
        let is_own = |target: &Ipv6Addr| self.ipv6.contains(target);
        let has_none = source.is_unspecified();
        match kind {
            ndp::NEIGHBOR_ADVERTISEMENT => target().is_some_and(|target| is_own(&target)),
            ndp::NEIGHBOR_SOLICITATION if has_none => {
                let of_the_gateway =
                    |target| self.network.is_some_and(|network| network.is_gateway(target));
                target().is_some_and(|target| is_own(&target) || of_the_gateway(target))
                    && senders(kind, message).next().is_none()
            }
            ndp::ROUTER_SOLICITATION if has_none => senders(kind, message).next().is_none(),
            _ => true,
        }
    }

    /// Whether the MAC that a message names as its sender's is the owner's.
    fn is_named(&self, kind: u8, message: &[u8]) -> bool {
        senders(kind, message).all(|mac| mac == self.mac)
    }
}

/// The MACs that a message names as its sender's. The targets of redirects are others.
fn senders(kind: u8, message: &[u8]) -> impl Iterator<Item = Mac> {
    let (options, named) = match kind {
        ndp::ROUTER_SOLICITATION => (8, SOURCE_LINK),
        ndp::ROUTER_ADVERTISEMENT => (16, SOURCE_LINK),
        ndp::NEIGHBOR_SOLICITATION => (24, SOURCE_LINK),
        ndp::NEIGHBOR_ADVERTISEMENT => (24, TARGET_LINK),
        _ => (message.len(), SOURCE_LINK),
    };
    let mut options = message.get(options..).unwrap_or_default();
    std::iter::from_fn(move || {
        // In units of eight bytes; with a length of zero nobody takes the message (RFC 4861 §4.6).
        while let [option, units @ 1..=u8::MAX, rest @ ..] = options {
            options = options.get(usize::from(*units) * 8..).unwrap_or_default();
            if *option == named
                && let Some(mac) = rest.first_chunk()
            {
                return Some(Mac(*mac));
            }
        }
        None
    })
}

#[cfg(test)]
mod tests;
