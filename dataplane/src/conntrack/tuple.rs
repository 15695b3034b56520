//! What identifies one direction of a connection.

use std::net::Ipv4Addr;

use crate::engine::FlowTuple;
use crate::packet::headers::{Ipv4, L4};
use crate::packet::icmp;
use crate::packet::quick::Quick;
use crate::packet::types::NetworkId;

/// Where packets of a direction enter: a network, or the outside. Part of the tuple, so that two
/// networks can never reach each other's connections by guessing tuples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Zone(pub u16);

impl Zone {
    /// Any uplink.
    pub const OUTSIDE: Self = Self(u16::MAX);

    /// The zone of a network.
    #[must_use]
    pub const fn network(id: NetworkId) -> Self {
        Self(id.0)
    }
}

/// Original: as the first packet went. Reply: the other way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Direction {
    /// From the side that began.
    Original,
    /// Back to the side that began.
    Reply,
}

impl Direction {
    /// The other one.
    #[must_use]
    pub const fn reversed(self) -> Self {
        match self {
            Self::Original => Self::Reply,
            Self::Reply => Self::Original,
        }
    }

    /// Zero or one.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// The addresses of one direction, packed into the two words that the table hashes and compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// `src:32 | dst:32`.
    pub(crate) addresses: u64,
    /// `src_port:16 | dst_port:16 | zone:16 | proto:8 | 0:8`.
    pub(crate) rest: u64,
}

impl Tuple {
    /// A tuple of its parts. For ICMP queries both ports are the identifier.
    #[must_use]
    #[inline]
    pub fn new(
        src: Ipv4Addr,
        dst: Ipv4Addr,
        src_port: u16,
        dst_port: u16,
        zone: Zone,
        proto: u8,
    ) -> Self {
        Self {
            addresses: u64::from(u32::from(src)) << 32 | u64::from(u32::from(dst)),
            rest: u64::from(src_port) << 48
                | u64::from(dst_port) << 32
                | u64::from(zone.0) << 16
                | u64::from(proto) << 8,
        }
    }

    /// The tuple of a packet that is not a later fragment. `None` for protocols and ICMP messages
    /// that have no query identity, and for truncated headers.
    #[must_use]
    #[inline]
    pub fn of(ip: &Ipv4, zone: Zone) -> Option<Self> {
        let (src_port, dst_port) = match ip.l4 {
            L4::Tcp { src_port, dst_port, .. } | L4::Udp { src_port, dst_port } => {
                (src_port, dst_port)
            }
            L4::Icmp { kind, id, .. } if is_tracked(kind) => (id, id),
            L4::Other => (0, 0),
            L4::Icmp { .. } | L4::LaterFragment | L4::Truncated => return None,
        };
        Some(Self::new(ip.src, ip.dst, src_port, dst_port, zone, ip.proto))
    }

    /// The tuple of a packet of the commonest kind.
    #[inline]
    pub(crate) fn of_quick(quick: &Quick, zone: Zone) -> Self {
        Self {
            addresses: quick.addresses,
            rest: u64::from(quick.ports) << 32
                | u64::from(zone.0) << 16
                | u64::from(quick.proto) << 8,
        }
    }

    /// Addresses and ports of the packets that go where packets with this tuple come from.
    #[inline]
    pub(crate) const fn back(self) -> (u64, u32) {
        let ports = (self.rest >> 32) as u32;
        (self.addresses.rotate_left(32), ports.rotate_left(16))
    }

    /// Source and destination port.
    #[inline]
    pub(crate) const fn ports(self) -> u32 {
        (self.rest >> 32) as u32
    }

    /// Source address.
    #[must_use]
    #[inline]
    pub fn src(self) -> Ipv4Addr {
        Ipv4Addr::from(high(self.addresses))
    }

    /// Destination address.
    #[must_use]
    #[inline]
    pub fn dst(self) -> Ipv4Addr {
        Ipv4Addr::from(low(self.addresses))
    }

    /// Source port or ICMP identifier.
    #[must_use]
    #[inline]
    pub const fn src_port(self) -> u16 {
        (self.rest >> 48) as u16
    }

    /// Destination port or ICMP identifier.
    #[must_use]
    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "the field is 16 bits wide")]
    pub const fn dst_port(self) -> u16 {
        (self.rest >> 32) as u16
    }

    /// Where packets of this direction enter.
    #[must_use]
    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "the field is 16 bits wide")]
    pub const fn zone(self) -> Zone {
        Zone((self.rest >> 16) as u16)
    }

    /// Protocol number.
    #[must_use]
    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "the field is 8 bits wide")]
    pub const fn proto(self) -> u8 {
        (self.rest >> 8) as u8
    }

    /// Source and destination exchanged, entering at `zone`.
    #[must_use]
    #[inline]
    pub fn reversed(self, zone: Zone) -> Self {
        Self::new(self.dst(), self.src(), self.dst_port(), self.src_port(), zone, self.proto())
    }

    /// The same with another destination.
    #[must_use]
    #[inline]
    pub fn with_dst(self, dst: Ipv4Addr, dst_port: u16) -> Self {
        Self::new(self.src(), dst, self.src_port(), dst_port, self.zone(), self.proto())
    }

    /// The same with another source.
    #[must_use]
    #[inline]
    pub fn with_src(self, src: Ipv4Addr, src_port: u16) -> Self {
        Self::new(src, self.dst(), src_port, self.dst_port(), self.zone(), self.proto())
    }

    /// As listed.
    #[must_use]
    pub fn flow(self) -> FlowTuple {
        FlowTuple {
            src: self.src().into(),
            dst: self.dst().into(),
            src_port: self.src_port(),
            dst_port: self.dst_port(),
        }
    }
}

/// Whether an ICMP message of this type can belong to a connection: echo (RFC 792). Timestamp,
/// information and address mask queries, which [`icmp::is_query`] knows beside, are obsolete (RFC
/// 6918) or answered by nobody, and are not translated.
#[must_use]
#[inline]
pub const fn is_tracked(kind: u8) -> bool {
    matches!(kind, icmp::ECHO_REPLY | icmp::ECHO_REQUEST)
}

#[inline]
const fn high(word: u64) -> u32 {
    (word >> 32) as u32
}

#[inline]
#[allow(clippy::cast_possible_truncation, reason = "the low half is wanted")]
const fn low(word: u64) -> u32 {
    word as u32
}
