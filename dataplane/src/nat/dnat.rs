//! Published ports: which inside address and port a new connection to one of our addresses gets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustc_hash::FxHashMap;

use crate::config::{ConfigError, DnatRule};
use crate::family::Address;
use crate::packet::types::NetworkId;

/// Where a published port leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DnatTarget<A> {
    /// Inside address.
    pub address: A,
    /// Inside port.
    pub port: u16,
    /// Network of the inside address.
    pub network: NetworkId,
    /// The rule that said so.
    pub rule: u32,
}

/// Rules grouped by protocol and host address; ranges sorted, found by binary search, so that a
/// mapping of 65,535 ports costs as much as one of a single port. Rules for any address of a family are
/// those for its unspecified one, to which nobody sends.
#[derive(Debug, Default, Clone)]
pub struct DnatTable {
    groups: FxHashMap<(u8, IpAddr), Vec<DnatRule>>,
    /// What the same rules open at the inside address itself, in networks that are routed: by protocol and
    /// inside address, in no order. Who publishes at one address of the host means that one alone: such rules
    /// are not among them. Gone through one after the other, for what outsiders begin.
    opened: FxHashMap<(u8, IpAddr), Vec<DnatRule>>,
    /// The inside ports of all others, likewise: whoever speaks from there answers, and is seen by another port.
    servers: FxHashMap<(u8, IpAddr), Vec<(u16, u16)>>,
}

impl DnatTable {
    /// Builds the index. `is_routed` says whether the addresses of a network are used outside.
    ///
    /// # Errors
    /// When a range is empty or its inside range would run past 65535, and when a rule leads from the
    /// one family to the other.
    pub fn build(
        rules: &[DnatRule],
        is_routed: impl Fn(NetworkId, IpAddr) -> bool,
    ) -> Result<Self, ConfigError> {
        let mut groups: FxHashMap<_, Vec<DnatRule>> = FxHashMap::default();
        let mut opened: FxHashMap<_, Vec<DnatRule>> = FxHashMap::default();
        let mut servers: FxHashMap<_, Vec<(u16, u16)>> = FxHashMap::default();
        for rule in rules {
            let (first, last) = rule.host_ports;
            let length = last.checked_sub(first).ok_or(ConfigError::PortRange)?;
            let end = rule.to_port.checked_add(length).ok_or(ConfigError::PortRange)?;
            let at = rule.host_ip.unwrap_or_else(|| any_like(rule.to));
            if at.is_ipv4() != rule.to.is_ipv4() {
                return Err(ConfigError::MixedFamilies);
            }
            groups.entry((rule.proto, at)).or_default().push(*rule);
            if rule.host_ip.is_none() && is_routed(rule.network, rule.to) {
                opened.entry((rule.proto, rule.to)).or_default().push(*rule);
            } else {
                servers.entry((rule.proto, rule.to)).or_default().push((rule.to_port, end));
            }
        }
        for group in groups.values_mut() {
            group.sort_by_key(|rule| rule.host_ports);
        }
        Ok(Self { groups, opened, servers })
    }

    /// The target for a packet to `address`:`port`. A rule for the very address wins over one for
    /// any address. The caller has made sure that the address is local.
    #[must_use]
    pub fn lookup<A: Address>(&self, proto: u8, address: A, port: u16) -> Option<DnatTarget<A>> {
        let address = address.into();
        self.lookup_group((proto, address), port)
            .or_else(|| self.lookup_group((proto, any_like(address)), port))
    }

    fn lookup_group<A: Address>(&self, key: (u8, IpAddr), port: u16) -> Option<DnatTarget<A>> {
        let group = self.groups.get(&key)?;
        let at = group.partition_point(|rule| rule.host_ports.0 <= port);
        let rule = group.get(at.checked_sub(1)?)?;
        let (first, last) = rule.host_ports;
        if port > last {
            return None;
        }
        Some(DnatTarget {
            address: A::of(rule.to)?,
            port: rule.to_port.checked_add(port - first)?,
            network: rule.network,
            rule: rule.id,
        })
    }

    /// The target for a packet that comes from outside to the inside address itself: where it goes
    /// already, if a rule leads there and the network is routed.
    #[must_use]
    pub fn opened<A: Address>(&self, proto: u8, address: A, port: u16) -> Option<DnatTarget<A>> {
        let group = self.opened.get(&(proto, address.into()))?;
        let leads = |rule: &&DnatRule| {
            let (first, last) = rule.host_ports;
            port.checked_sub(rule.to_port).is_some_and(|at| at <= last - first)
        };
        let DnatRule { id, network, .. } = *group.iter().find(leads)?;
        Some(DnatTarget { address, port, network, rule: id })
    }

    /// Whether an inside address is published with this port of its own, so that what it says from there may
    /// be an answer, which goes out from the published one.
    pub(crate) fn is_server(&self, proto: u8, address: impl Into<IpAddr>, port: u16) -> bool {
        let ranges = self.servers.get(&(proto, address.into()));
        ranges.is_some_and(|all| all.iter().any(|(low, high)| (*low..=*high).contains(&port)))
    }

    /// All rules, in no order.
    pub fn rules(&self) -> impl Iterator<Item = &DnatRule> {
        self.groups.values().flatten()
    }

    /// Published ports at an address, ascending and not overlapping: those at this very address and
    /// those at any.
    #[must_use]
    pub fn ranges_at(&self, proto: u8, address: IpAddr) -> Vec<(u16, u16)> {
        let groups = [address, any_like(address)].map(|at| self.groups.get(&(proto, at)));
        let mut ranges: Vec<(u16, u16)> =
            groups.into_iter().flatten().flatten().map(|rule| rule.host_ports).collect();
        ranges.sort_unstable();
        ranges.dedup_by(|next, kept| {
            let overlaps = next.0 <= kept.1;
            if overlaps {
                kept.1 = kept.1.max(next.1);
            }
            overlaps
        });
        ranges
    }

    /// Protocols and addresses that something is published at; an unspecified address stands for all of its
    /// family.
    pub fn places(&self) -> impl Iterator<Item = (u8, IpAddr)> {
        self.groups.keys().copied()
    }

    /// Whether any rule exists.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }
}

/// What stands for any address of the family of `address`.
pub(crate) const fn any_like(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(id: u32, host_ip: Option<IpAddr>, to: impl Into<IpAddr>) -> DnatRule {
        DnatRule {
            id,
            proto: 6,
            host_ip,
            host_ports: (80, 89),
            to: to.into(),
            to_port: 8080,
            network: NetworkId(1),
        }
    }

    #[test]
    fn a_rule_for_any_address_is_for_its_family() {
        let (v4, v6) = (Ipv4Addr::new(10, 0, 0, 1), "fd00::1".parse::<Ipv6Addr>().unwrap());
        let host: Ipv6Addr = "2001:db8::1".parse().unwrap();
        let rules = [rule(4, None, v4), rule(6, None, v6), rule(7, Some(host.into()), v6)];
        let table = DnatTable::build(&rules, |_, _| false).unwrap();
        let at_v4 = table.lookup(6, Ipv4Addr::new(192, 0, 2, 1), 85).unwrap();
        assert_eq!((at_v4.rule, at_v4.address, at_v4.port), (4, v4, 8085));
        let at_v6 = table.lookup(6, Ipv6Addr::LOCALHOST, 80).unwrap();
        assert_eq!((at_v6.rule, at_v6.address, at_v6.port), (6, v6, 8080));
        assert_eq!(table.lookup(6, host, 80).map(|target| target.rule), Some(7));
        assert_eq!(table.ranges_at(6, host.into()), [(80, 89)]);
        assert_eq!(table.lookup(6, host, 90), None);
    }

    #[test]
    fn a_rule_from_one_family_to_the_other_is_refused() {
        let v6 = rule(1, Some(Ipv4Addr::new(192, 0, 2, 1).into()), Ipv6Addr::LOCALHOST);
        assert_eq!(DnatTable::build(&[v6], |_, _| false).err(), Some(ConfigError::MixedFamilies));
    }
}
