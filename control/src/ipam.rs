//! Address management for both families: which subnet a network gets and which address an endpoint
//! gets.
//!
//! Pure: what is taken is an argument, nothing is read from the host or stored here. Invariants:
//! an allocated address lies in its subnet, is given out once, and is never the subnet's network,
//! broadcast, gateway or auxiliary address. A released address is not given out again before the
//! cursor has gone round once (next-fit, as Docker), so that peers with an old neighbor entry do
//! not talk to the wrong container.
//!
//! IPv6 addresses are given out one after the other too, not made from MACs: they are static, and
//! short enough to be typed.

mod prefix;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane::packet::types::Mac;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

pub use prefix::Prefix;

use crate::config::Pool;
use crate::state::number_for;

#[cfg(test)]
mod tests;

/// Why there is no address or subnet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IpamError {
    /// Host bits are set.
    #[error("subnet {given} has host bits set; the subnet is {meant}")]
    HostBits {
        /// As given.
        given: IpNet,
        /// With the host bits cleared.
        meant: IpNet,
    },
    /// Too small.
    #[error("subnet {subnet} has no room for a gateway and an endpoint; use /{longest} or shorter")]
    TooSmall {
        /// As given.
        subnet: IpNet,
        /// The longest prefix that has.
        longest: u8,
    },
    /// Not addresses that a container may have.
    #[error("subnet {net} overlaps {block}, which is {purpose}; choose another, such as {example}")]
    NotForContainers {
        /// As given.
        net: IpNet,
        /// The block of addresses for something else.
        block: IpNet,
        /// What the block is for.
        purpose: &'static str,
        /// One that would do.
        example: &'static str,
    },
    /// A gateway, range or auxiliary address elsewhere.
    #[error("{what} {value} is not in subnet {subnet}")]
    Outside {
        /// What it was given as.
        what: &'static str,
        /// As given.
        value: String,
        /// The subnet.
        subnet: IpNet,
    },
    /// An address that no host may have.
    #[error("{what} {address} is {edge} of subnet {subnet}")]
    NotAHost {
        /// What it was given as.
        what: &'static str,
        /// As given.
        address: IpAddr,
        /// What it is instead.
        edge: &'static str,
        /// The subnet.
        subnet: IpNet,
    },
    /// Someone has it.
    #[error("address {0} is in use")]
    InUse(IpAddr),
    /// The gateway or an auxiliary address.
    #[error("address {0} is reserved as {1}")]
    Reserved(IpAddr, String),
    /// No address left.
    #[error("no free address in {0}")]
    Exhausted(IpNet),
    /// No subnet left.
    #[error("no free subnet in the default pools ({0}); give --subnet or add a pool to the config")]
    PoolsExhausted(String),
}

impl IpamError {
    /// Whether the request itself was fine and only clashes with what is there.
    #[must_use]
    pub const fn is_conflict(&self) -> bool {
        matches!(self, Self::InUse(_) | Self::Exhausted(_) | Self::PoolsExhausted(_))
    }
}

/// Whether the two share an address.
#[must_use]
pub fn overlaps<N: Prefix>(a: N, b: N) -> bool {
    a.first() <= b.last() && b.first() <= a.last()
}

/// The first subnet of the pools that overlaps nothing in `taken`.
///
/// # Errors
/// When there is none.
pub fn next_subnet<N: Prefix>(pools: &[Pool<N>], taken: &[N]) -> Result<N, IpamError> {
    for pool in pools {
        let last = pool.base.last();
        let size = pool.size.clamp(pool.base.length(), N::LONGEST);
        let mut at = pool.base.first();
        while let Some(candidate) = N::new(N::address(at), size) {
            // Steps over the longest obstacle at once: a pool of /31s in a /8 has millions.
            let obstacle =
                taken.iter().filter(|t| overlaps(**t, candidate)).map(|t| t.last()).max();
            let Some(obstacle) = obstacle else {
                return Ok(candidate);
            };
            let end = obstacle.max(candidate.last());
            // Obstacles end on their own boundary, which may lie within a candidate.
            let mask = candidate.last() ^ candidate.first();
            match (end | mask).checked_add(1) {
                Some(next) if next <= last => at = next,
                _ => break,
            }
        }
    }
    let names: Vec<String> = pools.iter().map(|p| format!("{} in /{}s", p.base, p.size)).collect();
    Err(IpamError::PoolsExhausted(names.join(", ")))
}

/// Where the IPv6 subnets of an installation come from unless the config says: a /48 of its own
/// (RFC 4193 section 3), so that two hosts that are joined later do not clash.
#[must_use]
pub fn local_pool(installation: &str) -> Pool<Ipv6Net> {
    /// Prefix and L bit, then 40 bits of Global ID, then the subnet (RFC 4193 section 3.1).
    const GLOBAL_ID: u64 = 0xff_ffff_ffff;
    let id = 0xfd << 40 | number_for(installation, "RFC 4193") & GLOBAL_ID;
    let base = Ipv6Addr::from_bits(u128::from(id) << 80);
    Pool { base: Ipv6Net::new_assert(base, 48), size: 64 }
}

/// One subnet of a network as agreed with the user: checked, with the gateway filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound(
    serialize = "N: Serialize, N::Address: Serialize",
    deserialize = "N: Deserialize<'de>, N::Address: Deserialize<'de>"
))]
pub struct SubnetPlan<N: Prefix = Ipv4Net> {
    /// The prefix.
    pub subnet: N,
    /// The router's address.
    pub gateway: N::Address,
    /// Where addresses that nobody asked for come from; `None`: all of the subnet.
    pub ip_range: Option<N>,
    /// Addresses that belong to something else on the network, by name.
    pub aux_addresses: BTreeMap<String, N::Address>,
}

/// Blocks that no container can have an address in, with what they are for (RFC 6890: "this host",
/// loopback; RFC 3927 §2.7: link-local addresses are never forwarded; RFC 5771 and RFC 1112 §4:
/// multicast and reserved).
const NO_CONTAINERS: [(Ipv4Net, &str); 5] = [
    (Ipv4Net::new_assert(Ipv4Addr::new(0, 0, 0, 0), 8), "for \"this host\""),
    (Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8), "loopback"),
    (Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16), "link-local and never routed"),
    (Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4), "multicast"),
    (Ipv4Net::new_assert(Ipv4Addr::new(240, 0, 0, 0), 4), "reserved"),
];

/// The same of IPv6 (RFC 4291 sections 2.4 and 2.5: unspecified, loopback and what stands for IPv4
/// addresses lie in the first block).
const NO_CONTAINERS_6: [(Ipv6Net, &str); 3] = [
    (Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 8), "reserved"),
    (
        Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
        "link-local and never routed",
    ),
    (Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8), "multicast"),
];

/// Whether hosts behind a gateway may have the addresses of `net`.
///
/// # Errors
/// [`IpamError::NotForContainers`] when any of them is for something else.
pub fn for_containers(net: impl Into<IpNet>) -> Result<(), IpamError> {
    let net = net.into();
    let (hit, example) = match net {
        IpNet::V4(v4) => (blocked(&NO_CONTAINERS, v4), "10.20.1.0/24"),
        IpNet::V6(v6) => (blocked(&NO_CONTAINERS_6, v6), "fd00:20:1::/64"),
    };
    match hit {
        Some((block, purpose)) => Err(IpamError::NotForContainers { net, block, purpose, example }),
        None => Ok(()),
    }
}

fn blocked<N: Prefix>(blocks: &[(N, &'static str)], net: N) -> Option<(IpNet, &'static str)> {
    let hit = blocks.iter().find(|(block, _)| overlaps(*block, net))?;
    Some((hit.0.into(), hit.1))
}

impl<N: Prefix> SubnetPlan<N> {
    /// Checks a subnet; without a gateway the first address becomes it.
    ///
    /// # Errors
    /// When an address does not fit.
    pub fn new(
        subnet: N,
        gateway: Option<N::Address>,
        ip_range: Option<N>,
        aux_addresses: BTreeMap<String, N::Address>,
    ) -> Result<Self, IpamError> {
        if subnet.trunc() != subnet {
            return Err(IpamError::HostBits { given: subnet.into(), meant: subnet.trunc().into() });
        }
        if subnet.length() > N::LONGEST {
            return Err(IpamError::TooSmall { subnet: subnet.into(), longest: N::LONGEST });
        }
        for_containers(subnet)?;
        if let Some(range) = ip_range
            && !(subnet.first() <= range.first() && range.last() <= subnet.last())
        {
            let value = range.to_string();
            return Err(IpamError::Outside { what: "ip-range", value, subnet: subnet.into() });
        }
        let gateway = gateway.unwrap_or(N::address(subnet.hosts().0));
        check_host("gateway", gateway, subnet)?;
        for address in aux_addresses.values() {
            check_host("aux-address", *address, subnet)?;
            if *address == gateway {
                return Err(IpamError::Reserved(gateway.into(), "the gateway".into()));
            }
        }
        let ip_range = ip_range.map(Prefix::trunc);
        Ok(Self { subnet, gateway, ip_range, aux_addresses })
    }

    /// What the address is set aside for, if it is.
    fn reserved_as(&self, address: N::Address) -> Option<String> {
        if address == self.gateway {
            return Some("the gateway".into());
        }
        self.aux_addresses
            .iter()
            .find(|(_, aux)| **aux == address)
            .map(|(name, _)| format!("aux-address {name:?}"))
    }
}

fn check_host<N: Prefix>(
    what: &'static str,
    address: N::Address,
    subnet: N,
) -> Result<(), IpamError> {
    let (bits, (first, last)) = (N::bits(address), subnet.hosts());
    if !subnet.has(address) {
        let value = address.to_string();
        return Err(IpamError::Outside { what, value, subnet: subnet.into() });
    }
    if (first..=last).contains(&bits) {
        Ok(())
    } else {
        let (address, subnet) = (address.into(), subnet.into());
        Err(IpamError::NotAHost { what, address, edge: N::EDGE, subnet })
    }
}

/// The addresses of one subnet.
#[derive(Debug, Clone)]
pub struct AddressPool<N: Prefix = Ipv4Net> {
    plan: SubnetPlan<N>,
    used: BTreeSet<u128>,
    first: u128,
    last: u128,
    cursor: u128,
}

impl<N: Prefix> AddressPool<N> {
    /// A pool with every address free, continuing at `cursor` (any value; one that lies outside
    /// starts at the beginning).
    #[must_use]
    pub fn new(plan: SubnetPlan<N>, cursor: u128) -> Self {
        let (mut first, mut last) = plan.subnet.hosts();
        if let Some(range) = plan.ip_range {
            first = first.max(range.first());
            last = last.min(range.last());
        }
        let cursor = if (first..=last).contains(&cursor) { cursor } else { first };
        Self { plan, used: BTreeSet::new(), first, last, cursor }
    }

    /// The subnet.
    #[must_use]
    pub const fn plan(&self) -> &SubnetPlan<N> {
        &self.plan
    }

    /// Where the next search starts, an address as a number: worth storing, so that a restart does
    /// not reuse addresses.
    #[must_use]
    pub const fn cursor(&self) -> u128 {
        self.cursor
    }

    /// Takes the next free address.
    ///
    /// # Errors
    /// [`IpamError::Exhausted`].
    pub fn allocate(&mut self) -> Result<N::Address, IpamError> {
        let found = self
            .first_free(self.cursor, self.last)
            .or_else(|| self.first_free(self.first, self.cursor.min(self.last)))
            .ok_or(IpamError::Exhausted(self.plan.ip_range.unwrap_or(self.plan.subnet).into()))?;
        self.used.insert(found);
        self.cursor = if found >= self.last { self.first } else { found + 1 };
        Ok(N::address(found))
    }

    fn first_free(&self, from: u128, to: u128) -> Option<u128> {
        if from > to {
            return None;
        }
        let mut used = self.used.range(from..=to).copied().peekable();
        (from..=to).find(|candidate| {
            used.next_if_eq(candidate).is_none()
                && self.plan.reserved_as(N::address(*candidate)).is_none()
        })
    }

    /// Takes this address, which may lie outside the ip-range.
    ///
    /// # Errors
    /// When it is not free or not a host's address in the subnet.
    pub fn allocate_this(&mut self, address: N::Address) -> Result<(), IpamError> {
        check_host("address", address, self.plan.subnet)?;
        if let Some(purpose) = self.plan.reserved_as(address) {
            return Err(IpamError::Reserved(address.into(), purpose));
        }
        if self.used.insert(N::bits(address)) {
            Ok(())
        } else {
            Err(IpamError::InUse(address.into()))
        }
    }

    /// Takes the last allocation back as if it had never been: nobody has seen the address.
    pub fn retract(&mut self, address: N::Address) {
        let address = N::bits(address);
        let next = if address >= self.last { self.first } else { address + 1 };
        if self.used.remove(&address) && self.cursor == next {
            self.cursor = address.clamp(self.first, self.last.max(self.first));
        }
    }

    /// Gives an address back. False: it was not taken.
    pub fn release(&mut self, address: N::Address) -> bool {
        self.used.remove(&N::bits(address))
    }
}

/// The MAC that Docker gives an endpoint: `02:42` and the address.
#[must_use]
pub fn mac_for(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    Mac([0x02, 0x42, a, b, c, d])
}
