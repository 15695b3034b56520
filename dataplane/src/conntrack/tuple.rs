//! What identifies one direction of a connection.

use std::net::Ipv4Addr;
use std::sync::atomic::Ordering;

use super::key::stored::Stored;
use super::key::{Hot, Key};
use super::words::SPARE;
use crate::hash::TableHash;
use crate::packet::headers::{Ipv4, L4};
use crate::packet::icmp;
use crate::packet::quick::Quick;
use crate::packet::types::NetworkId;
use crate::sync::atomic::AtomicU64;

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

    /// The network of a zone that is one.
    #[must_use]
    pub fn inside(self) -> Option<NetworkId> {
        (self != Self::OUTSIDE).then_some(NetworkId(self.0))
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

/// The addresses of one direction in IPv4, packed into the two words that the table hashes and compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// `src:32 | dst:32`.
    pub(crate) addresses: u64,
    /// See [`Key::rest`].
    pub(crate) rest: u64,
}

impl Tuple {
    /// The tuple of a packet that is not a later fragment. `None` for protocols and ICMP messages
    /// that have no query identity, and for truncated headers.
    #[must_use]
    #[inline]
    pub fn of(ip: &Ipv4, zone: Zone) -> Option<Self> {
        let (src_port, dst_port) = match ip.l4 {
            L4::Tcp { src_port, dst_port, .. }
            | L4::Udp { src_port, dst_port }
            | L4::Sctp { src_port, dst_port } => (src_port, dst_port),
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
}

impl Key for Tuple {
    type Addr = Ipv4Addr;

    #[inline]
    fn of_parts(src: Ipv4Addr, dst: Ipv4Addr, rest: u64) -> Self {
        Self { addresses: u64::from(src.to_bits()) << 32 | u64::from(dst.to_bits()), rest }
    }

    #[inline]
    fn rest(self) -> u64 {
        self.rest
    }

    #[inline]
    fn src(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(high(self.addresses))
    }

    #[inline]
    fn dst(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(low(self.addresses))
    }
}

impl Stored for Tuple {
    type Cells = [AtomicU64; 2];

    const HOT_WORDS: usize = 8;
    const FORMAT: u64 = u64::from_be_bytes(*b"vswct\0\0\x04");
    const IN_STEPS: bool = false;

    #[inline(always)]
    fn split(words: &[AtomicU64]) -> Option<Hot<'_, Self::Cells>> {
        let (original, rest) = words.first_chunk::<8>()?.split_first_chunk()?;
        let (reply, [meta, deadline, original_way, reply_way]) = rest.split_first_chunk()? else {
            return None;
        };
        Some(Hot { original, reply, meta, deadline, ways: [original_way, reply_way] })
    }

    #[inline(always)]
    fn load([addresses, rest]: &Self::Cells, order: Ordering) -> Self {
        Self { addresses: addresses.load(order), rest: rest.load(order) & !SPARE }
    }

    #[inline(always)]
    fn store(self, [addresses, rest]: &Self::Cells) {
        addresses.store(self.addresses, Ordering::Relaxed);
        rest.store(self.rest, Ordering::Relaxed);
    }

    #[inline(always)]
    fn last(cells: &Self::Cells) -> &AtomicU64 {
        let [.., rest] = cells;
        rest
    }

    #[inline(always)]
    fn hash_with(self, hash: &TableHash) -> u64 {
        hash.hash(self.addresses, self.rest)
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
