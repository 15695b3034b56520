//! Published ports: which inside address and port a new connection to one of our addresses gets.

use std::net::Ipv4Addr;

use rustc_hash::FxHashMap;

use crate::config::{ConfigError, DnatRule};
use crate::packet::types::NetworkId;

/// Where a published port leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DnatTarget {
    /// Inside address.
    pub address: Ipv4Addr,
    /// Inside port.
    pub port: u16,
    /// Network of the inside address.
    pub network: NetworkId,
    /// The rule that said so.
    pub rule: u32,
}

/// Rules grouped by protocol and host address; ranges sorted, found by binary search, so that a
/// mapping of 65,535 ports costs as much as one of a single port.
#[derive(Debug, Default, Clone)]
pub struct DnatTable {
    groups: FxHashMap<(u8, Option<Ipv4Addr>), Vec<DnatRule>>,
}

impl DnatTable {
    /// Builds the index.
    ///
    /// # Errors
    /// When a range is empty or its inside range would run past 65535.
    pub fn build(rules: &[DnatRule]) -> Result<Self, ConfigError> {
        let mut groups: FxHashMap<_, Vec<DnatRule>> = FxHashMap::default();
        for rule in rules {
            let (first, last) = rule.host_ports;
            let length = last.checked_sub(first).ok_or(ConfigError::PortRange)?;
            rule.to_port.checked_add(length).ok_or(ConfigError::PortRange)?;
            groups.entry((rule.proto, rule.host_ip)).or_default().push(*rule);
        }
        for group in groups.values_mut() {
            group.sort_by_key(|rule| rule.host_ports);
        }
        Ok(Self { groups })
    }

    /// The target for a packet to `address`:`port`. A rule for the very address wins over one for
    /// any address. The caller has made sure that the address is local.
    #[must_use]
    pub fn lookup(&self, proto: u8, address: Ipv4Addr, port: u16) -> Option<DnatTarget> {
        self.lookup_group((proto, Some(address)), port)
            .or_else(|| self.lookup_group((proto, None), port))
    }

    fn lookup_group(&self, key: (u8, Option<Ipv4Addr>), port: u16) -> Option<DnatTarget> {
        let group = self.groups.get(&key)?;
        let at = group.partition_point(|rule| rule.host_ports.0 <= port);
        let rule = group.get(at.checked_sub(1)?)?;
        let (first, last) = rule.host_ports;
        if port > last {
            return None;
        }
        Some(DnatTarget {
            address: rule.to,
            port: rule.to_port.checked_add(port - first)?,
            network: rule.network,
            rule: rule.id,
        })
    }

    /// All rules, in no order.
    pub fn rules(&self) -> impl Iterator<Item = &DnatRule> {
        self.groups.values().flatten()
    }

    /// Published ports at an address, ascending and not overlapping: those at this very address and
    /// those at any.
    #[must_use]
    pub fn ranges_at(&self, proto: u8, address: Ipv4Addr) -> Vec<(u16, u16)> {
        let groups = [Some(address), None].map(|at| self.groups.get(&(proto, at)));
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

    /// Whether any rule exists.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }
}
