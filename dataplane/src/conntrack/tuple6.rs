//! What identifies one direction of a connection in IPv6.

use std::net::Ipv6Addr;
use std::sync::atomic::Ordering;

use super::key::stored::Stored;
use super::key::{Hot, Key};
use super::tuple::Zone;
use super::words::SPARE;
use crate::hash::TableHash;
use crate::packet::headers::{Ipv6, L4};
use crate::packet::icmp6;
use crate::sync::atomic::AtomicU64;

/// The addresses of one direction in IPv6: the five words that the table hashes and compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple6 {
    src: [u64; 2],
    dst: [u64; 2],
    rest: u64,
}

impl Key for Tuple6 {
    type Addr = Ipv6Addr;

    #[inline]
    fn of_parts(src: Ipv6Addr, dst: Ipv6Addr, rest: u64) -> Self {
        Self { src: halves(src), dst: halves(dst), rest }
    }

    #[inline]
    fn rest(self) -> u64 {
        self.rest
    }

    #[inline]
    fn src(self) -> Ipv6Addr {
        whole(self.src)
    }

    #[inline]
    fn dst(self) -> Ipv6Addr {
        whole(self.dst)
    }
}

impl Stored for Tuple6 {
    type Cells = [AtomicU64; 5];

    /// Two of them are spare.
    const HOT_WORDS: usize = 16;
    const FORMAT: u64 = u64::from_be_bytes(*b"vswct6\0\x02");
    const IN_STEPS: bool = true;

    #[inline(always)]
    fn split(words: &[AtomicU64]) -> Option<Hot<'_, Self::Cells>> {
        let (original, rest) = words.first_chunk::<16>()?.split_first_chunk()?;
        let (reply, [meta, deadline, original_way, reply_way, ..]) = rest.split_first_chunk()?
        else {
            return None;
        };
        Some(Hot { original, reply, meta, deadline, ways: [original_way, reply_way] })
    }

    #[inline(always)]
    fn load(cells: &Self::Cells, order: Ordering) -> Self {
        let [a, b, c, d, rest] = cells.each_ref().map(|cell| cell.load(order));
        Self { src: [a, b], dst: [c, d], rest: rest & !SPARE }
    }

    #[inline(always)]
    fn store(self, cells: &Self::Cells) {
        for (cell, word) in cells.iter().zip(self.words()) {
            cell.store(word, Ordering::Relaxed);
        }
    }

    #[inline(always)]
    fn last(cells: &Self::Cells) -> &AtomicU64 {
        let [.., rest] = cells;
        rest
    }

    #[inline(always)]
    fn hash_with(self, hash: &TableHash) -> u64 {
        hash.hash_long(self.words())
    }
}

impl Tuple6 {
    /// Of no packet.
    pub(crate) const NONE: Self = Self { src: [0; 2], dst: [0; 2], rest: 0 };

    /// As [`super::Tuple::of`]: of ICMPv6, echo alone has an identity.
    #[must_use]
    pub fn of(ip: &Ipv6, zone: Zone) -> Option<Self> {
        let (src_port, dst_port) = match ip.l4 {
            L4::Tcp { src_port, dst_port, .. }
            | L4::Udp { src_port, dst_port }
            | L4::Sctp { src_port, dst_port } => (src_port, dst_port),
            L4::Icmp { kind, id, .. } if icmp6::is_query(kind) => (id, id),
            L4::Other => (0, 0),
            L4::Icmp { .. } | L4::LaterFragment | L4::Truncated => return None,
        };
        Some(Self::new(ip.src, ip.dst, src_port, dst_port, zone, ip.proto))
    }

    #[inline]
    const fn words(self) -> [u64; 5] {
        let ([a, b], [c, d]) = (self.src, self.dst);
        [a, b, c, d, self.rest]
    }
}

#[inline]
#[allow(clippy::cast_possible_truncation, reason = "the low half is wanted")]
const fn halves(address: Ipv6Addr) -> [u64; 2] {
    let bits = address.to_bits();
    [(bits >> 64) as u64, bits as u64]
}

#[inline]
fn whole([high, low]: [u64; 2]) -> Ipv6Addr {
    Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tuple_gives_back_what_it_was_made_of() {
        let [src, dst, other] = ["2001:db8:1:2:3:4:5:6", "fd00::ffff", "fe80::1"]
            .map(|text| text.parse::<Ipv6Addr>().unwrap());
        let tuple = Tuple6::new(src, dst, 0x1234, 443, Zone(7), 6);
        assert_eq!((tuple.src(), tuple.dst()), (src, dst));
        assert_eq!((tuple.src_port(), tuple.dst_port()), (0x1234, 443));
        assert_eq!((tuple.zone(), tuple.proto()), (Zone(7), 6));
        let back = tuple.reversed(Zone::OUTSIDE);
        assert_eq!(back, Tuple6::new(dst, src, 443, 0x1234, Zone::OUTSIDE, 6));
        assert_eq!(back.reversed(Zone(7)), tuple);
        assert_eq!(tuple.with_src(other, 1), Tuple6::new(other, dst, 1, 443, Zone(7), 6));
        assert_eq!(tuple.with_dst(other, 2), Tuple6::new(src, other, 0x1234, 2, Zone(7), 6));
        assert_eq!(tuple.flow().src, src);
    }

    #[test]
    fn only_echo_and_what_is_whole_has_an_identity() {
        let (src, dst) = (Ipv6Addr::LOCALHOST, Ipv6Addr::UNSPECIFIED);
        let of = |proto, l4| {
            let ip = Ipv6 {
                src,
                dst,
                proto,
                hop_limit: 64,
                total_len: 60,
                header_len: 40,
                fragment_at: 0,
                frag_offset: 0,
                more_fragments: false,
                frag_id: 0,
                extensions: 0,
                chain: crate::packet::headers::Chain::Whole,
                l4,
                l4_offset: 54,
            };
            Tuple6::of(&ip, Zone(3))
        };
        let icmp = |kind| L4::Icmp { kind, code: 0, id: 9 };
        let tuple =
            |src_port, dst_port, proto| Tuple6::new(src, dst, src_port, dst_port, Zone(3), proto);
        assert_eq!(of(17, L4::Udp { src_port: 1, dst_port: 2 }), Some(tuple(1, 2, 17)));
        for kind in [icmp6::ECHO_REQUEST, icmp6::ECHO_REPLY] {
            assert_eq!(of(58, icmp(kind)), Some(tuple(9, 9, 58)));
        }
        assert_eq!(of(47, L4::Other), Some(tuple(0, 0, 47)));
        for l4 in [icmp(icmp6::UNREACHABLE), icmp(135), L4::LaterFragment, L4::Truncated] {
            assert_eq!(of(58, l4), None);
        }
    }
}
