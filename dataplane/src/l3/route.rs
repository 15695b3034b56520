//! Longest-prefix match.

use std::fmt;
use std::net::Ipv4Addr;

use rustc_hash::FxHashMap;

use crate::packet::types::{NetworkId, UplinkId};

/// An IPv4 prefix with its host bits zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    base: u32,
    len: u8,
}

impl Prefix {
    /// `0.0.0.0/0`.
    pub const DEFAULT: Self = Self { base: 0, len: 0 };

    /// The prefix of `len` bits (at most 32) that contains `address`.
    #[must_use]
    pub fn new(address: Ipv4Addr, len: u8) -> Self {
        let len = len.min(32);
        Self { base: u32::from(address) & mask(len), len }
    }

    /// Whether `address` lies in it.
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(self.len) == self.base
    }

    /// The lowest address.
    #[must_use]
    pub fn network(self) -> Ipv4Addr {
        Ipv4Addr::from(self.base)
    }

    /// The highest address: the directed broadcast of prefixes up to /30.
    #[must_use]
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from(self.base | !mask(self.len))
    }

    /// Number of leading bits.
    #[must_use]
    pub const fn prefix_len(self) -> u8 {
        self.len
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network(), self.len)
    }
}

#[inline]
fn mask(len: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0)
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
        via: Option<Ipv4Addr>,
    },
}

/// Routes by prefix length, longest first: one hash lookup for each length in use.
#[derive(Debug, Default, Clone)]
pub struct RouteTable {
    by_len: Vec<(u8, FxHashMap<u32, RouteTarget>)>,
}

impl RouteTable {
    /// Adds or replaces a route.
    pub fn insert(&mut self, prefix: Prefix, target: RouteTarget) {
        self.level(prefix.len).insert(prefix.base, target);
    }

    /// Adds a route unless there is one for exactly this prefix.
    pub fn insert_if_absent(&mut self, prefix: Prefix, target: RouteTarget) {
        self.level(prefix.len).entry(prefix.base).or_insert(target);
    }

    fn level(&mut self, len: u8) -> &mut FxHashMap<u32, RouteTarget> {
        let at = self.by_len.partition_point(|(have, _)| *have > len);
        if self.by_len.get(at).is_none_or(|(have, _)| *have != len) {
            self.by_len.insert(at, (len, FxHashMap::default()));
        }
        &mut self.by_len[at].1
    }

    /// The target of the longest prefix that contains `address`.
    #[must_use]
    #[inline]
    pub fn lookup(&self, address: Ipv4Addr) -> Option<RouteTarget> {
        let address = u32::from(address);
        self.by_len.iter().find_map(|(len, routes)| routes.get(&(address & mask(*len))).copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longest_prefix_wins() {
        let mut table = RouteTable::default();
        let net = |id| RouteTarget::Network(NetworkId(id));
        table.insert(Prefix::DEFAULT, net(0));
        table.insert(Prefix::new(Ipv4Addr::new(10, 0, 0, 0), 8), net(8));
        table.insert(Prefix::new(Ipv4Addr::new(10, 1, 2, 3), 24), net(24));
        table.insert(Prefix::new(Ipv4Addr::new(10, 1, 2, 3), 32), net(32));
        assert_eq!(table.lookup(Ipv4Addr::new(10, 1, 2, 3)), Some(net(32)));
        assert_eq!(table.lookup(Ipv4Addr::new(10, 1, 2, 4)), Some(net(24)));
        assert_eq!(table.lookup(Ipv4Addr::new(10, 2, 2, 4)), Some(net(8)));
        assert_eq!(table.lookup(Ipv4Addr::new(192, 0, 2, 1)), Some(net(0)));
    }

    #[test]
    fn a_table_without_default_may_find_nothing() {
        let mut table = RouteTable::default();
        table
            .insert(Prefix::new(Ipv4Addr::new(10, 0, 0, 0), 8), RouteTarget::Network(NetworkId(1)));
        assert_eq!(table.lookup(Ipv4Addr::new(11, 0, 0, 1)), None);
    }
}
