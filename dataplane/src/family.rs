//! IPv4 and IPv6 beside each other.
//!
//! What control configures and people read has [`IpAddr`]; what is asked for every frame is kept once
//! for each family, so that a frame of the one pays nothing for the other.

use std::fmt::Debug;
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustc_hash::FxHashMap;

mod sealed {
    pub trait Sealed {}
    impl Sealed for std::net::Ipv4Addr {}
    impl Sealed for std::net::Ipv6Addr {}
    impl Sealed for std::net::IpAddr {}
}

/// An address of one family, or of either.
pub trait Address: sealed::Sealed + Copy + Debug + Eq + Hash + Into<IpAddr> {
    /// An address that is one of these; `None`: it is of the other family.
    fn of(address: IpAddr) -> Option<Self>;
}

impl Address for Ipv4Addr {
    #[inline]
    fn of(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        }
    }
}

impl Address for Ipv6Addr {
    #[inline]
    fn of(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(address),
        }
    }
}

impl Address for IpAddr {
    #[inline]
    fn of(address: IpAddr) -> Option<Self> {
        Some(address)
    }
}

/// What is known of addresses: a map for each family. Its keys come from control alone and need no
/// keyed hash.
#[derive(Debug, Clone)]
pub struct AddressMap<V> {
    v4: FxHashMap<Ipv4Addr, V>,
    v6: FxHashMap<Ipv6Addr, V>,
}

impl<V> Default for AddressMap<V> {
    fn default() -> Self {
        Self { v4: FxHashMap::default(), v6: FxHashMap::default() }
    }
}

impl<V> AddressMap<V> {
    /// Enters an address, or changes what is known of it.
    pub fn insert(&mut self, address: impl Into<IpAddr>, value: V) {
        match address.into() {
            IpAddr::V4(address) => self.v4.insert(address, value),
            IpAddr::V6(address) => self.v6.insert(address, value),
        };
    }

    /// What is known of an address. Which map is asked follows from the argument's type where that
    /// is of one family.
    #[must_use]
    #[inline(always)]
    pub fn get(&self, address: impl Into<IpAddr>) -> Option<&V> {
        match address.into() {
            IpAddr::V4(address) => self.v4.get(&address),
            IpAddr::V6(address) => self.v6.get(&address),
        }
    }

    /// Whether the address was entered.
    #[must_use]
    #[inline]
    pub fn contains(&self, address: impl Into<IpAddr>) -> bool {
        self.get(address).is_some()
    }

    /// All addresses, in no order.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.entries().map(|(address, _)| address)
    }

    /// All addresses with what is known of them, in no order.
    pub fn entries(&self) -> impl Iterator<Item = (IpAddr, &V)> {
        let v4 = self.v4.iter().map(|(address, value)| (IpAddr::V4(*address), value));
        v4.chain(self.v6.iter().map(|(address, value)| (IpAddr::V6(*address), value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_do_not_mix() {
        let mut map = AddressMap::default();
        let (v4, v6) = (Ipv4Addr::new(192, 0, 2, 1), Ipv6Addr::LOCALHOST);
        map.insert(v4, 4);
        map.insert(v6, 6);
        assert_eq!((map.get(v4), map.get(IpAddr::V4(v4))), (Some(&4), Some(&4)));
        assert_eq!((map.get(v6), map.get(IpAddr::V6(v6))), (Some(&6), Some(&6)));
        assert!(!map.contains(v4.to_ipv6_mapped()), "another address, whatever it looks like");
        assert_eq!(map.addresses().collect::<Vec<_>>(), [IpAddr::V4(v4), IpAddr::V6(v6)]);
        assert_eq!((Ipv4Addr::of(v4.into()), Ipv4Addr::of(v6.into())), (Some(v4), None));
        assert_eq!((Ipv6Addr::of(v6.into()), Ipv6Addr::of(v4.into())), (Some(v6), None));
    }
}
