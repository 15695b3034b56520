//! Longest-prefix match, for each family by itself.

use std::fmt;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustc_hash::FxHashMap;

use crate::packet::types::{NetworkId, UplinkId};

/// A prefix with its host bits zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    base: IpAddr,
    len: u8,
}

impl Prefix {
    /// The prefix of `len` bits (at most all) that contains `address`.
    #[must_use]
    pub fn new(address: impl Into<IpAddr>, len: u8) -> Self {
        match address.into() {
            IpAddr::V4(address) => {
                let len = len.min(32);
                let base = Ipv4Addr::from_bits(address.to_bits() & u32::mask(len));
                Self { base: base.into(), len }
            }
            IpAddr::V6(address) => {
                let len = len.min(128);
                let base = Ipv6Addr::from_bits(address.to_bits() & u128::mask(len));
                Self { base: base.into(), len }
            }
        }
    }

    /// Link-local addresses of IPv6 (RFC 4291 §2.5.6), which hosts have beside those of their subnets.
    #[must_use]
    pub fn link_local() -> Self {
        Self::new(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10)
    }

    /// Whether `address` lies in it.
    #[must_use]
    pub fn contains(self, address: impl Into<IpAddr>) -> bool {
        match (self.base, address.into()) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                address.to_bits() & u32::mask(self.len) == base.to_bits()
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => {
                address.to_bits() & u128::mask(self.len) == base.to_bits()
            }
            _ => false,
        }
    }

    /// Whether it could contain such an address.
    #[must_use]
    pub fn is_of_family(self, address: impl Into<IpAddr>) -> bool {
        self.base.is_ipv4() == address.into().is_ipv4()
    }

    /// The lowest address.
    #[must_use]
    pub const fn network(self) -> IpAddr {
        self.base
    }

    /// Whether `address` is that of the prefix itself or, in IPv4, its directed broadcast (RFC 2644):
    /// no host has it. Of point-to-point links both are hosts' (RFC 3021, RFC 6164).
    #[must_use]
    pub fn is_edge(self, address: impl Into<IpAddr>) -> bool {
        match (self.base, address.into()) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                let last = base.to_bits() | !u32::mask(self.len);
                self.len < 31 && (address == base || address.to_bits() == last)
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => self.len < 127 && address == base,
            _ => false,
        }
    }

    /// Number of leading bits.
    #[must_use]
    pub const fn prefix_len(self) -> u8 {
        self.len
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.len)
    }
}

/// An address as a number.
trait Bits: Copy + Eq + Hash + std::ops::BitAnd<Output = Self> {
    /// That many leading ones.
    fn mask(len: u8) -> Self;
}

impl Bits for u32 {
    #[inline]
    fn mask(len: u8) -> Self {
        Self::MAX.checked_shl(Self::BITS - u32::from(len)).unwrap_or(0)
    }
}

impl Bits for u128 {
    #[inline]
    fn mask(len: u8) -> Self {
        Self::MAX.checked_shl(Self::BITS - u32::from(len)).unwrap_or(0)
    }
}

/// Where a packet goes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteTarget {
    /// On-link in a network.
    Network(NetworkId),
    /// Out by an uplink, to `via` or on-link.
    Uplink {
        /// The way out.
        uplink: UplinkId,
        /// Next hop; `None`: the destination itself.
        via: Option<IpAddr>,
    },
}

/// The routes of both families.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct RouteTable {
    v4: Routes<u32>,
    v6: Routes<u128>,
}

impl RouteTable {
    /// Adds or replaces a route.
    pub fn insert(&mut self, prefix: Prefix, target: RouteTarget) {
        match prefix.base {
            IpAddr::V4(base) => self.v4.put(prefix.len, base.to_bits(), target, true),
            IpAddr::V6(base) => self.v6.put(prefix.len, base.to_bits(), target, true),
        };
    }

    /// Adds a route unless there is one for exactly this prefix.
    pub fn insert_if_absent(&mut self, prefix: Prefix, target: RouteTarget) {
        match prefix.base {
            IpAddr::V4(base) => self.v4.put(prefix.len, base.to_bits(), target, false),
            IpAddr::V6(base) => self.v6.put(prefix.len, base.to_bits(), target, false),
        };
    }

    /// The target of the longest prefix that contains `address`. Which table is asked follows from
    /// the argument's type where that is of one family.
    #[must_use]
    #[inline(always)]
    pub fn lookup(&self, address: impl Into<IpAddr>) -> Option<RouteTarget> {
        match address.into() {
            IpAddr::V4(address) => self.v4.lookup(address.to_bits()),
            IpAddr::V6(address) => self.v6.lookup(address.to_bits()),
        }
    }
}

/// Routes by prefix length, longest first: one hash lookup for each length in use.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Routes<B: Eq + Hash> {
    by_len: Vec<(u8, FxHashMap<B, RouteTarget>)>,
}

impl<B: Eq + Hash> Default for Routes<B> {
    fn default() -> Self {
        Self { by_len: Vec::new() }
    }
}

impl<B: Bits> Routes<B> {
    /// Enters a route; `replaces` says which stays where there is one already.
    fn put(&mut self, len: u8, base: B, target: RouteTarget, replaces: bool) {
        if let Some((_, routes)) = self.by_len.iter_mut().find(|(have, _)| *have == len) {
            let known = routes.entry(base).or_insert(target);
            if replaces {
                *known = target;
            }
        } else {
            let at = self.by_len.partition_point(|(have, _)| *have > len);
            self.by_len.insert(at, (len, std::iter::once((base, target)).collect()));
        }
    }

    #[inline]
    fn lookup(&self, address: B) -> Option<RouteTarget> {
        self.by_len.iter().find_map(|(len, routes)| routes.get(&(address & B::mask(*len))).copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn net(id: u16) -> RouteTarget {
        RouteTarget::Network(NetworkId(id))
    }

    #[test]
    fn longest_prefix_wins() {
        let mut table = RouteTable::default();
        table.insert(Prefix::new(Ipv4Addr::UNSPECIFIED, 0), net(0));
        table.insert(Prefix::new(Ipv4Addr::new(10, 0, 0, 0), 8), net(8));
        table.insert(Prefix::new(Ipv4Addr::new(10, 1, 2, 3), 24), net(24));
        table.insert(Prefix::new(Ipv4Addr::new(10, 1, 2, 3), 32), net(32));
        assert_eq!(table.lookup(Ipv4Addr::new(10, 1, 2, 3)), Some(net(32)));
        assert_eq!(table.lookup(Ipv4Addr::new(10, 1, 2, 4)), Some(net(24)));
        assert_eq!(table.lookup(Ipv4Addr::new(10, 2, 2, 4)), Some(net(8)));
        assert_eq!(table.lookup(Ipv4Addr::new(192, 0, 2, 1)), Some(net(0)));
        assert_eq!(
            table.lookup(Ipv6Addr::LOCALHOST),
            None,
            "the default route of the other family"
        );
    }

    #[test]
    fn longest_prefix_of_ipv6_wins() {
        let address = |text: &str| text.parse::<Ipv6Addr>().unwrap();
        let mut table = RouteTable::default();
        table.insert(Prefix::new(Ipv6Addr::UNSPECIFIED, 0), net(0));
        table.insert(Prefix::new(address("2001:db8::"), 32), net(32));
        table.insert(Prefix::new(address("2001:db8:0:1::5"), 64), net(64));
        table.insert(Prefix::new(address("2001:db8:0:1::5"), 128), net(128));
        table.insert_if_absent(Prefix::new(address("2001:db8:0:1::6"), 64), net(1));
        assert_eq!(table.lookup(address("2001:db8:0:1::5")), Some(net(128)));
        assert_eq!(table.lookup(address("2001:db8:0:1::6")), Some(net(64)));
        assert_eq!(table.lookup(address("2001:db8:0:2::6")), Some(net(32)));
        assert_eq!(table.lookup(address("2001:db9::")), Some(net(0)));
        assert_eq!(table.lookup(Ipv4Addr::new(10, 0, 0, 1)), None);
    }

    #[test]
    fn a_table_without_default_may_find_nothing() {
        let mut table = RouteTable::default();
        table.insert(Prefix::new(Ipv4Addr::new(10, 0, 0, 0), 8), net(1));
        assert_eq!(table.lookup(Ipv4Addr::new(11, 0, 0, 1)), None);
    }

    #[test]
    fn edges_are_nobodys_address() {
        let v4 = |last, len| (Prefix::new([192, 0, 2, 0], len), IpAddr::from([192, 0, 2, last]));
        for (last, len, edge) in
            [(0, 24, true), (255, 24, true), (1, 24, false), (0, 31, false), (1, 31, false)]
        {
            let (prefix, address) = v4(last, len);
            assert_eq!(prefix.is_edge(address), edge, "{address} of {prefix}");
        }
        let prefix = |len| Prefix::new("2001:db8::".parse::<Ipv6Addr>().unwrap(), len);
        let last: Ipv6Addr = "2001:db8::ffff:ffff:ffff:ffff".parse().unwrap();
        assert!(prefix(64).is_edge(prefix(64).network()), "subnet-router anycast, RFC 4291 2.6.1");
        assert!(!prefix(64).is_edge(last), "there is no broadcast");
        assert!(!prefix(127).is_edge(prefix(127).network()));
    }

    #[test]
    fn a_prefix_contains_its_family_only() {
        let all = Prefix::new(Ipv6Addr::UNSPECIFIED, 0);
        assert!(all.contains(Ipv6Addr::LOCALHOST) && !all.contains(Ipv4Addr::LOCALHOST));
        let host = Prefix::new(Ipv4Addr::LOCALHOST, 40);
        assert_eq!(host.to_string(), "127.0.0.1/32");
        assert!(host.contains(Ipv4Addr::LOCALHOST) && !host.contains(Ipv6Addr::LOCALHOST));
        assert!(host.is_of_family(Ipv4Addr::BROADCAST) && !host.is_of_family(Ipv6Addr::LOCALHOST));
    }
}
