//! IPv4 address management: which subnet a network gets and which address an endpoint gets.
//!
//! Pure: what is taken is an argument, nothing is read from the host or stored here. Invariants:
//! an allocated address lies in its subnet, is given out once, and is never the subnet's network,
//! broadcast, gateway or auxiliary address. A released address is not given out again before the
//! cursor has gone round once (next-fit, as Docker), so that peers with an old neighbor entry do
//! not talk to the wrong container.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use dataplane::packet::types::Mac;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::config::Pool;

#[cfg(test)]
mod tests;

/// Why there is no address or subnet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IpamError {
    /// Host bits are set.
    #[error("subnet {given} has host bits set; the subnet is {meant}")]
    HostBits {
        /// As given.
        given: Ipv4Net,
        /// With the host bits cleared.
        meant: Ipv4Net,
    },
    /// Too small.
    #[error("subnet {0} has no room for a gateway and an endpoint; use /31 or shorter")]
    TooSmall(Ipv4Net),
    /// Not addresses that a container may have.
    #[error(
        "subnet {net} overlaps {block}, which is {purpose}; choose another, such as 10.20.1.0/24"
    )]
    NotForContainers {
        /// As given.
        net: Ipv4Net,
        /// The block of addresses for something else.
        block: Ipv4Net,
        /// What the block is for.
        purpose: &'static str,
    },
    /// A gateway, range or auxiliary address elsewhere.
    #[error("{what} {value} is not in subnet {subnet}")]
    Outside {
        /// What it was given as.
        what: &'static str,
        /// As given.
        value: String,
        /// The subnet.
        subnet: Ipv4Net,
    },
    /// The network or broadcast address.
    #[error("{what} {address} is the network or broadcast address of subnet {subnet}")]
    NotAHost {
        /// What it was given as.
        what: &'static str,
        /// As given.
        address: Ipv4Addr,
        /// The subnet.
        subnet: Ipv4Net,
    },
    /// Someone has it.
    #[error("address {0} is in use")]
    InUse(Ipv4Addr),
    /// The gateway or an auxiliary address.
    #[error("address {0} is reserved as {1}")]
    Reserved(Ipv4Addr, String),
    /// No address left.
    #[error("no free address in {0}")]
    Exhausted(Ipv4Net),
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
pub fn overlaps(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// The first subnet of the pools that overlaps nothing in `taken`.
///
/// # Errors
/// When there is none.
pub fn next_subnet(pools: &[Pool], taken: &[Ipv4Net]) -> Result<Ipv4Net, IpamError> {
    for pool in pools {
        let last = u32::from(pool.base.broadcast());
        let size = pool.size.clamp(pool.base.prefix_len(), 31);
        let mut at = u32::from(pool.base.network());
        while let Ok(candidate) = Ipv4Net::new(Ipv4Addr::from(at), size) {
            // Steps over the longest obstacle at once: a pool of /31s in a /8 has millions.
            let obstacle =
                taken.iter().filter(|t| overlaps(**t, candidate)).map(Ipv4Net::broadcast).max();
            let Some(obstacle) = obstacle else {
                return Ok(candidate);
            };
            let end = u32::from(obstacle.max(candidate.broadcast()));
            // Obstacles end on their own boundary, which may lie within a candidate.
            let mask = u32::from(candidate.hostmask());
            match (end | mask).checked_add(1) {
                Some(next) if next <= last => at = next,
                _ => break,
            }
        }
    }
    let names: Vec<String> = pools.iter().map(|p| format!("{} in /{}s", p.base, p.size)).collect();
    Err(IpamError::PoolsExhausted(names.join(", ")))
}

/// One subnet of a network as agreed with the user: checked, with the gateway filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubnetPlan {
    /// The prefix.
    pub subnet: Ipv4Net,
    /// The router's address.
    pub gateway: Ipv4Addr,
    /// Where addresses that nobody asked for come from; `None`: all of the subnet.
    pub ip_range: Option<Ipv4Net>,
    /// Addresses that belong to something else on the network, by name.
    pub aux_addresses: BTreeMap<String, Ipv4Addr>,
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

/// Whether hosts behind a gateway may have the addresses of `net`.
///
/// # Errors
/// [`IpamError::NotForContainers`] when any of them is for something else.
pub fn for_containers(net: Ipv4Net) -> Result<(), IpamError> {
    match NO_CONTAINERS.into_iter().find(|(block, _)| overlaps(*block, net)) {
        Some((block, purpose)) => Err(IpamError::NotForContainers { net, block, purpose }),
        None => Ok(()),
    }
}

impl SubnetPlan {
    /// Checks a subnet; without a gateway the first address becomes it.
    ///
    /// # Errors
    /// When an address does not fit.
    pub fn new(
        subnet: Ipv4Net,
        gateway: Option<Ipv4Addr>,
        ip_range: Option<Ipv4Net>,
        aux_addresses: BTreeMap<String, Ipv4Addr>,
    ) -> Result<Self, IpamError> {
        if subnet.trunc() != subnet {
            return Err(IpamError::HostBits { given: subnet, meant: subnet.trunc() });
        }
        if subnet.prefix_len() > 31 {
            return Err(IpamError::TooSmall(subnet));
        }
        for_containers(subnet)?;
        if let Some(range) = ip_range
            && !(subnet.contains(&range.network()) && subnet.contains(&range.broadcast()))
        {
            return Err(IpamError::Outside { what: "ip-range", value: range.to_string(), subnet });
        }
        let (first, _) = host_bounds(subnet);
        let gateway = gateway.unwrap_or(Ipv4Addr::from(first));
        check_host("gateway", gateway, subnet)?;
        for address in aux_addresses.values() {
            check_host("aux-address", *address, subnet)?;
            if *address == gateway {
                return Err(IpamError::Reserved(gateway, "the gateway".into()));
            }
        }
        let ip_range = ip_range.map(|range| range.trunc());
        Ok(Self { subnet, gateway, ip_range, aux_addresses })
    }

    /// What the address is set aside for, if it is.
    fn reserved_as(&self, address: Ipv4Addr) -> Option<String> {
        if address == self.gateway {
            return Some("the gateway".into());
        }
        self.aux_addresses
            .iter()
            .find(|(_, aux)| **aux == address)
            .map(|(name, _)| format!("aux-address {name:?}"))
    }
}

/// The lowest and highest address that a host may have. A /31 has no network and no broadcast
/// address (RFC 3021).
fn host_bounds(subnet: Ipv4Net) -> (u32, u32) {
    let (network, broadcast) = (u32::from(subnet.network()), u32::from(subnet.broadcast()));
    if subnet.prefix_len() >= 31 { (network, broadcast) } else { (network + 1, broadcast - 1) }
}

fn check_host(what: &'static str, address: Ipv4Addr, subnet: Ipv4Net) -> Result<(), IpamError> {
    if !subnet.contains(&address) {
        return Err(IpamError::Outside { what, value: address.to_string(), subnet });
    }
    let (first, last) = host_bounds(subnet);
    if (first..=last).contains(&u32::from(address)) {
        Ok(())
    } else {
        Err(IpamError::NotAHost { what, address, subnet })
    }
}

/// The addresses of one subnet.
#[derive(Debug, Clone)]
pub struct AddressPool {
    plan: SubnetPlan,
    used: BTreeSet<u32>,
    first: u32,
    last: u32,
    cursor: u32,
}

impl AddressPool {
    /// A pool with every address free, continuing at `cursor` (any value; one that lies outside
    /// starts at the beginning).
    #[must_use]
    pub fn new(plan: SubnetPlan, cursor: u32) -> Self {
        let (mut first, mut last) = host_bounds(plan.subnet);
        if let Some(range) = plan.ip_range {
            first = first.max(u32::from(range.network()));
            last = last.min(u32::from(range.broadcast()));
        }
        let cursor = if (first..=last).contains(&cursor) { cursor } else { first };
        Self { plan, used: BTreeSet::new(), first, last, cursor }
    }

    /// The subnet.
    #[must_use]
    pub const fn plan(&self) -> &SubnetPlan {
        &self.plan
    }

    /// Where the next search starts: worth storing, so that a restart does not reuse addresses.
    #[must_use]
    pub const fn cursor(&self) -> u32 {
        self.cursor
    }

    /// Takes the next free address.
    ///
    /// # Errors
    /// [`IpamError::Exhausted`].
    pub fn allocate(&mut self) -> Result<Ipv4Addr, IpamError> {
        let found = self
            .first_free(self.cursor, self.last)
            .or_else(|| self.first_free(self.first, self.cursor.min(self.last)))
            .ok_or(IpamError::Exhausted(self.plan.ip_range.unwrap_or(self.plan.subnet)))?;
        self.used.insert(found);
        self.cursor = if found >= self.last { self.first } else { found + 1 };
        Ok(Ipv4Addr::from(found))
    }

    fn first_free(&self, from: u32, to: u32) -> Option<u32> {
        if from > to {
            return None;
        }
        let mut used = self.used.range(from..=to).copied().peekable();
        (from..=to).find(|candidate| {
            used.next_if_eq(candidate).is_none()
                && self.plan.reserved_as(Ipv4Addr::from(*candidate)).is_none()
        })
    }

    /// Takes this address, which may lie outside the ip-range.
    ///
    /// # Errors
    /// When it is not free or not a host's address in the subnet.
    pub fn allocate_this(&mut self, address: Ipv4Addr) -> Result<(), IpamError> {
        check_host("address", address, self.plan.subnet)?;
        if let Some(purpose) = self.plan.reserved_as(address) {
            return Err(IpamError::Reserved(address, purpose));
        }
        if self.used.insert(u32::from(address)) { Ok(()) } else { Err(IpamError::InUse(address)) }
    }

    /// Takes the last allocation back as if it had never been: nobody has seen the address.
    pub fn retract(&mut self, address: Ipv4Addr) {
        let address = u32::from(address);
        let next = if address >= self.last { self.first } else { address + 1 };
        if self.used.remove(&address) && self.cursor == next {
            self.cursor = address.clamp(self.first, self.last.max(self.first));
        }
    }

    /// Gives an address back. False: it was not taken.
    pub fn release(&mut self, address: Ipv4Addr) -> bool {
        self.used.remove(&u32::from(address))
    }
}

/// The MAC that Docker gives an endpoint: `02:42` and the address.
#[must_use]
pub fn mac_for(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    Mac([0x02, 0x42, a, b, c, d])
}
