//! Neighbor discovery for IPv6 (RFC 4861): reading and checking its five messages, and making them.
//!
//! Invariants: what [`parse`] gives has passed every check that RFC 4861 §6.1, §7.1 and §8.1 ask of a
//! receiver and RFC 6980 adds; its options have been walked, so that reading them cannot fail. Frames
//! made here are untagged and pass those checks if the message given is one that may be sent.
//!
//! Limits: options that nobody here needs are skipped, as they must be (RFC 4861 §4.6).

use std::net::Ipv6Addr;

use super::field::{chunk, write};
use super::headers::{Headers, Ipv6, L4, Net};
use super::icmp6;
use super::parse::{ETH_LEN, ICMP_LEN, IPV6_LEN};
use super::types::{Mac, ethertype};
use crate::frame::Frame;

mod options;

pub use options::{NdpOption, Options, PrefixInfo};
pub(crate) use options::{SOURCE_LINK, TARGET_LINK};

/// Router solicitation.
pub const ROUTER_SOLICITATION: u8 = 133;
/// Router advertisement.
pub const ROUTER_ADVERTISEMENT: u8 = 134;
/// Neighbor solicitation.
pub const NEIGHBOR_SOLICITATION: u8 = 135;
/// Neighbor advertisement.
pub const NEIGHBOR_ADVERTISEMENT: u8 = 136;
/// Redirect.
pub const REDIRECT: u8 = 137;

/// The hop limit of every message: no router can have forwarded one that arrives with it.
const HOP_LIMIT: u8 = 255;
/// All nodes of the link, `ff02::1`.
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// All routers of the link, `ff02::2`.
pub const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
/// The first 104 bits of a solicited-node group (RFC 4291 §2.7.1).
const SOLICITED_NODE: [u8; 13] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff];

/// Bits of a neighbor advertisement (RFC 4861 §4.4).
const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
/// Bits of a router advertisement (RFC 4861 §4.2).
const MANAGED: u8 = 0x80;
const OTHER: u8 = 0x40;

/// The group in which the owner of `address` listens for solicitations.
#[must_use]
pub const fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., x, y, z] = address.octets();
    let [a, b, c, d, e, f, g, h, i, j, k, l, m] = SOLICITED_NODE;
    Ipv6Addr::from_octets([a, b, c, d, e, f, g, h, i, j, k, l, m, x, y, z])
}

/// The Ethernet group of an IPv6 group (RFC 2464 §7).
#[must_use]
pub const fn multicast_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    Mac([0x33, 0x33, a, b, c, d])
}

/// The address that an interface makes itself of a prefix of 64 bits and its MAC (RFC 4291
/// appendix A). What `prefix` holds beyond 64 bits is ignored.
#[must_use]
pub const fn eui64(prefix: Ipv6Addr, mac: Mac) -> Ipv6Addr {
    let [p0, p1, p2, p3, p4, p5, p6, p7, ..] = prefix.octets();
    let [a, b, c, d, e, f] = mac.0;
    Ipv6Addr::from_octets([p0, p1, p2, p3, p4, p5, p6, p7, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// The link-local address that an interface makes itself of its MAC.
#[must_use]
pub const fn link_local(mac: Mac) -> Ipv6Addr {
    eui64(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), mac)
}

/// Why a packet is no neighbor discovery to act upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NdpError {
    /// The checksum is wrong.
    #[error("bad checksum")]
    Checksum,
    /// The code is not zero.
    #[error("bad code")]
    Code,
    /// The destination address does not go with the message.
    #[error("bad destination address")]
    Destination,
    /// There is a fragment header (RFC 6980 §5).
    #[error("fragmented")]
    Fragment,
    /// The hop limit is not 255: it may come from anywhere.
    #[error("bad hop limit")]
    HopLimit,
    /// Cut short.
    #[error("too short")]
    Length,
    /// An option has no length, ends behind the packet, or may not be there.
    #[error("bad option")]
    Option,
    /// Another protocol or another type.
    #[error("no neighbor discovery")]
    Other,
    /// The source address does not go with the message.
    #[error("bad source address")]
    Source,
    /// The target is a group, or no router a redirect can name.
    #[error("bad target address")]
    Target,
}

/// What a message says, but for its options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// I have this address.
    NeighborAdvertisement {
        /// The address.
        target: Ipv6Addr,
        /// The sender is a router.
        router: bool,
        /// It was asked.
        solicited: bool,
        /// To be believed rather than what was known before.
        overrides: bool,
    },
    /// Who has this address?
    NeighborSolicitation {
        /// The address.
        target: Ipv6Addr,
    },
    /// There is a better first hop.
    Redirect {
        /// It; the destination itself where that is on the link.
        target: Ipv6Addr,
        /// For packets to this address.
        destination: Ipv6Addr,
    },
    /// I am a router.
    RouterAdvertisement(RouterAdvertisement),
    /// Are there routers?
    RouterSolicitation,
}

/// What a router says of itself and of the link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouterAdvertisement {
    /// The hop limit that hosts should use; zero: unspecified.
    pub hop_limit: u8,
    /// Addresses are to be had from DHCPv6.
    pub managed: bool,
    /// Other configuration is to be had from DHCPv6.
    pub other: bool,
    /// Seconds for which it is a default router; zero: it is none.
    pub lifetime: u16,
    /// Milliseconds for which a neighbor is reachable after it said so; zero: unspecified.
    pub reachable_ms: u32,
    /// Milliseconds between solicitations; zero: unspecified.
    pub retransmit_ms: u32,
}

/// A message without its options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Source address of the packet; unspecified where an address is only tried (RFC 4862 §5.4).
    pub src: Ipv6Addr,
    /// Destination address of the packet.
    pub dst: Ipv6Addr,
    /// What it says.
    pub body: Body,
}

/// Whether a packet is neighbor discovery by its type, sound or not. A later fragment does not tell.
#[must_use]
pub const fn is_ndp(ip: &Ipv6) -> bool {
    matches!(ip.l4, L4::Icmp { kind: ROUTER_SOLICITATION..=REDIRECT, .. })
}

/// Reads the neighbor discovery message of a frame, with its options.
///
/// # Errors
/// What RFC 4861 §6.1, §7.1 or §8.1 has a receiver discard silently.
pub fn parse<'a>(bytes: &'a [u8], headers: &Headers) -> Result<(Message, Options<'a>), NdpError> {
    let Net::Ipv6(ip) = &headers.net else { return Err(NdpError::Other) };
    let L4::Icmp { kind, code, .. } = ip.l4 else { return Err(NdpError::Other) };
    if !is_ndp(ip) {
        return Err(NdpError::Other);
    }
    if ip.has_fragment_header() {
        return Err(NdpError::Fragment);
    }
    if ip.hop_limit != HOP_LIMIT {
        return Err(NdpError::HopLimit);
    }
    if code != 0 {
        return Err(NdpError::Code);
    }
    let message = icmp6::sound_message(bytes, ip).ok_or(NdpError::Checksum)?;
    let (body, options) = read_body(kind, message).ok_or(NdpError::Length)?;
    let options = Options::parse(options).ok_or(NdpError::Option)?;
    let message = Message { src: ip.src, dst: ip.dst, body };
    message.check(&options)?;
    Ok((message, options))
}

/// The fixed part of a message and what follows it.
fn read_body(kind: u8, message: &[u8]) -> Option<(Body, &[u8])> {
    let (icmp, rest) = message.split_first_chunk::<ICMP_LEN>()?;
    let &[_, _, _, _, first, flags, l0, l1] = icmp;
    let address = |at| chunk::<16>(rest, at).map(|octets| Ipv6Addr::from_octets(*octets));
    let (body, length) = match kind {
        ROUTER_SOLICITATION => (Body::RouterSolicitation, 0),
        ROUTER_ADVERTISEMENT => {
            let advertisement = RouterAdvertisement {
                hop_limit: first,
                managed: flags & MANAGED != 0,
                other: flags & OTHER != 0,
                lifetime: u16::from_be_bytes([l0, l1]),
                reachable_ms: u32::from_be_bytes(*chunk(rest, 0)?),
                retransmit_ms: u32::from_be_bytes(*chunk(rest, 4)?),
            };
            (Body::RouterAdvertisement(advertisement), 8)
        }
        NEIGHBOR_SOLICITATION => (Body::NeighborSolicitation { target: address(0)? }, 16),
        NEIGHBOR_ADVERTISEMENT => {
            let body = Body::NeighborAdvertisement {
                target: address(0)?,
                router: first & ROUTER != 0,
                solicited: first & SOLICITED != 0,
                overrides: first & OVERRIDE != 0,
            };
            (body, 16)
        }
        REDIRECT => (Body::Redirect { target: address(0)?, destination: address(16)? }, 32),
        _ => return None,
    };
    Some((body, rest.get(length..)?))
}

impl Message {
    /// The checks that go by addresses.
    fn check(&self, options: &Options<'_>) -> Result<(), NdpError> {
        // A source that is only tried must not be entered anywhere.
        let tried = self.src.is_unspecified();
        match self.body {
            Body::NeighborSolicitation { target } | Body::NeighborAdvertisement { target, .. }
                if target.is_multicast() =>
            {
                Err(NdpError::Target)
            }
            Body::NeighborSolicitation { .. } if tried && !is_solicited_node(self.dst) => {
                Err(NdpError::Destination)
            }
            Body::NeighborSolicitation { .. } | Body::RouterSolicitation
                if tried && options.source_link().is_some() =>
            {
                Err(NdpError::Option)
            }
            Body::NeighborAdvertisement { solicited: true, .. } if self.dst.is_multicast() => {
                Err(NdpError::Destination)
            }
            Body::RouterAdvertisement(_) | Body::Redirect { .. }
                if !self.src.is_unicast_link_local() =>
            {
                Err(NdpError::Source)
            }
            Body::Redirect { destination, .. } if destination.is_multicast() => {
                Err(NdpError::Destination)
            }
            Body::Redirect { target, destination }
                if target != destination && !target.is_unicast_link_local() =>
            {
                Err(NdpError::Target)
            }
            _ => Ok(()),
        }
    }

    /// Asks everybody who has `target`. With an unspecified source it asks whether the address is
    /// free (RFC 4862 §5.4.2), and is written without options.
    #[must_use]
    pub const fn solicitation(src: Ipv6Addr, target: Ipv6Addr) -> Self {
        Self { src, dst: solicited_node(target), body: Body::NeighborSolicitation { target } }
    }

    /// Says, unasked, that the sender has `target` (RFC 4861 §7.2.6).
    #[must_use]
    pub const fn announcement(target: Ipv6Addr, router: bool) -> Self {
        let body =
            Body::NeighborAdvertisement { target, router, solicited: false, overrides: true };
        Self { src: target, dst: ALL_NODES, body }
    }

    /// Answers this solicitation: the sender has the target (RFC 4861 §7.2.4). Who asks without a
    /// source is told with all nodes. `None`: this is no solicitation.
    #[must_use]
    pub const fn answer(&self, router: bool) -> Option<Self> {
        let Body::NeighborSolicitation { target } = self.body else { return None };
        let solicited = !self.src.is_unspecified();
        let body = Body::NeighborAdvertisement { target, router, solicited, overrides: true };
        Some(Self { src: target, dst: if solicited { self.src } else { ALL_NODES }, body })
    }

    /// Whether this asks if an address is free without claiming it: nothing is to be learned.
    #[must_use]
    pub const fn is_probe(&self) -> bool {
        matches!(self.body, Body::NeighborSolicitation { .. }) && self.src.is_unspecified()
    }

    /// Replaces `frame` by this message with these options in an untagged Ethernet frame from `src`
    /// to `dst`.
    pub fn write(&self, frame: &mut Frame, dst: Mac, src: Mac, options: &[NdpOption<'_>]) {
        let l4 = ETH_LEN + IPV6_LEN;
        let (kind, length) = self.body.shape();
        frame.reset();
        frame.resize(l4 + length + options.iter().map(NdpOption::wire_len).sum::<usize>());
        let bytes = frame.bytes_mut();
        write(bytes, 0, dst.0);
        write(bytes, 6, src.0);
        write(bytes, 12, ethertype::IPV6.to_be_bytes());
        write(bytes, l4, [kind, 0]);
        self.body.write(bytes.get_mut(l4..).unwrap_or_default());
        let mut at = l4 + length;
        for option in options {
            option.write(bytes.get_mut(at..).unwrap_or_default());
            at += option.wire_len();
        }
        icmp6::seal(bytes, ETH_LEN, 0, HOP_LIMIT, self.src, self.dst);
    }

    /// The same to the Ethernet group of the destination address, which is a group.
    pub fn write_multicast(&self, frame: &mut Frame, src: Mac, options: &[NdpOption<'_>]) {
        self.write(frame, multicast_mac(self.dst), src, options);
    }
}

impl Body {
    /// Type, and bytes before the options.
    const fn shape(&self) -> (u8, usize) {
        match self {
            Self::NeighborAdvertisement { .. } => (NEIGHBOR_ADVERTISEMENT, 24),
            Self::NeighborSolicitation { .. } => (NEIGHBOR_SOLICITATION, 24),
            Self::Redirect { .. } => (REDIRECT, 40),
            Self::RouterAdvertisement(_) => (ROUTER_ADVERTISEMENT, 16),
            Self::RouterSolicitation => (ROUTER_SOLICITATION, ICMP_LEN),
        }
    }

    /// Writes what follows the checksum into a message of zeros.
    fn write(&self, message: &mut [u8]) {
        match *self {
            Self::NeighborAdvertisement { target, router, solicited, overrides } => {
                let flags = flag(router, ROUTER) | flag(solicited, SOLICITED);
                write(message, 4, [flags | flag(overrides, OVERRIDE)]);
                write(message, 8, target.octets());
            }
            Self::NeighborSolicitation { target } => {
                write(message, 8, target.octets());
            }
            Self::Redirect { target, destination } => {
                write(message, 8, target.octets());
                write(message, 24, destination.octets());
            }
            Self::RouterAdvertisement(router) => {
                let flags = flag(router.managed, MANAGED) | flag(router.other, OTHER);
                write(message, 4, [router.hop_limit, flags]);
                write(message, 6, router.lifetime.to_be_bytes());
                write(message, 8, router.reachable_ms.to_be_bytes());
                write(message, 12, router.retransmit_ms.to_be_bytes());
            }
            Self::RouterSolicitation => {}
        }
    }
}

const fn flag(set: bool, bit: u8) -> u8 {
    if set { bit } else { 0 }
}

fn is_solicited_node(address: Ipv6Addr) -> bool {
    address.octets().starts_with(&SOLICITED_NODE)
}

#[cfg(test)]
mod tests;
