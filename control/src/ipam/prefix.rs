//! Prefixes of either family as numbers.

use std::fmt::{Debug, Display};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// A prefix of one family.
pub trait Prefix: Copy + Eq + Debug + Display + Into<IpNet> {
    /// An address of the family.
    type Address: Copy + Eq + Debug + Display + Into<IpAddr>;

    /// The shortest prefix that a subnet may have.
    const SHORTEST: u8;
    /// The longest prefix with a gateway and an endpoint in it.
    const LONGEST: u8;
    /// What the addresses of a subnet are that no host may have.
    const EDGE: &'static str;

    /// The prefix of `len` bits with this address in it, as given; `None`: it cannot be as long.
    fn new(address: Self::Address, len: u8) -> Option<Self>;
    /// The prefix, if it is of this family.
    fn of(net: IpNet) -> Option<Self>;
    /// The address, if it is of this family.
    fn address_of(address: IpAddr) -> Option<Self::Address>;
    /// The address as a number.
    fn bits(address: Self::Address) -> u128;
    /// The number as an address; one that is too large, as the last of all.
    fn address(bits: u128) -> Self::Address;
    /// Bits of the prefix.
    fn length(self) -> u8;
    /// The lowest address.
    fn first(self) -> u128;
    /// The highest address.
    fn last(self) -> u128;
    /// The lowest and highest address that a host may have.
    fn hosts(self) -> (u128, u128);

    /// Without the bits of a host.
    #[must_use]
    fn trunc(self) -> Self {
        Self::new(Self::address(self.first()), self.length()).unwrap_or(self)
    }

    /// Whether the address lies in it.
    fn has(self, address: Self::Address) -> bool {
        (self.first()..=self.last()).contains(&Self::bits(address))
    }
}

impl Prefix for Ipv4Net {
    type Address = Ipv4Addr;

    const SHORTEST: u8 = 0;
    /// RFC 3021: a /31 has no network and no broadcast address.
    const LONGEST: u8 = 31;
    const EDGE: &'static str = "the network or broadcast address";

    fn new(address: Ipv4Addr, len: u8) -> Option<Self> {
        Self::new(address, len).ok()
    }

    fn of(net: IpNet) -> Option<Self> {
        match net {
            IpNet::V4(net) => Some(net),
            IpNet::V6(_) => None,
        }
    }

    fn address_of(address: IpAddr) -> Option<Ipv4Addr> {
        match address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        }
    }

    fn bits(address: Ipv4Addr) -> u128 {
        address.to_bits().into()
    }

    fn address(bits: u128) -> Ipv4Addr {
        Ipv4Addr::from_bits(u32::try_from(bits).unwrap_or(u32::MAX))
    }

    fn length(self) -> u8 {
        self.prefix_len()
    }

    fn first(self) -> u128 {
        self.network().to_bits().into()
    }

    fn last(self) -> u128 {
        self.broadcast().to_bits().into()
    }

    fn hosts(self) -> (u128, u128) {
        let (first, last) = (self.first(), self.last());
        if self.prefix_len() >= 31 { (first, last) } else { (first + 1, last - 1) }
    }
}

impl Prefix for Ipv6Net {
    type Address = Ipv6Addr;

    /// What one site has (RFC 6177), and the most that a search for a free address goes through.
    const SHORTEST: u8 = 48;
    const LONGEST: u8 = 126;
    /// RFC 4291 section 2.6.1. There is no broadcast address.
    const EDGE: &'static str = "the anycast address of the routers";

    fn new(address: Ipv6Addr, len: u8) -> Option<Self> {
        Self::new(address, len).ok()
    }

    fn of(net: IpNet) -> Option<Self> {
        match net {
            IpNet::V6(net) => Some(net),
            IpNet::V4(_) => None,
        }
    }

    fn address_of(address: IpAddr) -> Option<Ipv6Addr> {
        match address {
            IpAddr::V6(address) => Some(address),
            IpAddr::V4(_) => None,
        }
    }

    fn bits(address: Ipv6Addr) -> u128 {
        address.to_bits()
    }

    fn address(bits: u128) -> Ipv6Addr {
        Ipv6Addr::from_bits(bits)
    }

    fn length(self) -> u8 {
        self.prefix_len()
    }

    fn first(self) -> u128 {
        self.network().to_bits()
    }

    fn last(self) -> u128 {
        self.broadcast().to_bits()
    }

    fn hosts(self) -> (u128, u128) {
        (self.first().saturating_add(1), self.last())
    }
}
