//! Ports that SNAT may use: those of the uplink, and those of the host at its other addresses, without the
//! published ones, which are taken at their address and for their protocol alone.

use std::net::IpAddr;

use rustc_hash::FxHashMap;

use crate::config::UplinkConfig;
use crate::nat::dnat::{DnatTable, any_like};
use crate::packet::types::{UplinkId, ip_proto};

/// First and last port of each range.
pub type PortRanges = Vec<(u16, u16)>;

/// Protocols that can be published.
const PROTOCOLS: [u8; 3] = [ip_proto::TCP, ip_proto::UDP, ip_proto::SCTP];

/// What is left at an address of an uplink or of the host, where that is not all of its ports.
#[derive(Debug, Default)]
pub struct FreePorts {
    left: FxHashMap<(UplinkId, u8, IpAddr), PortRanges>,
    /// At addresses that no uplink has: gateways, and others of the host.
    host: PortRanges,
    /// Where something is published, by the address that the rule names, or for all of a family.
    left_of_host: FxHashMap<(u8, IpAddr), PortRanges>,
}

impl FreePorts {
    /// Takes the published ports out of the uplinks' own.
    #[must_use]
    pub fn build<'a>(uplinks: impl Iterator<Item = &'a UplinkConfig>, dnat: &DnatTable) -> Self {
        let mut free = Self::default();
        for uplink in uplinks {
            for (address, _) in &uplink.addresses {
                for proto in PROTOCOLS {
                    let published = dnat.ranges_at(proto, *address);
                    let left = subtract(&uplink.nat_ports, &published);
                    if left != uplink.nat_ports {
                        free.left.insert((uplink.id, proto, *address), left);
                    }
                }
            }
        }
        free
    }

    /// Adds the host's own, at each address that no uplink has.
    #[must_use]
    pub fn with_host(mut self, ports: PortRanges, dnat: &DnatTable) -> Self {
        for (proto, address) in dnat.places() {
            let left = subtract(&ports, &dnat.ranges_at(proto, address));
            self.left_of_host.insert((proto, address), left);
        }
        self.host = ports;
        self
    }

    /// Ports for connections that speak from an address of the host that no uplink has.
    #[must_use]
    pub fn at_host(&self, proto: u8, address: impl Into<IpAddr>) -> &[(u16, u16)] {
        let address = address.into();
        let left = |at| self.left_of_host.get(&(proto, at));
        left(address).or_else(|| left(any_like(address))).unwrap_or(&self.host)
    }

    /// Ports for connections that speak from `address`.
    #[must_use]
    pub fn at<'a>(
        &'a self,
        uplink: &'a UplinkConfig,
        proto: u8,
        address: impl Into<IpAddr>,
    ) -> &'a [(u16, u16)] {
        self.left.get(&(uplink.id, proto, address.into())).unwrap_or(&uplink.nat_ports)
    }
}

/// `from` without `taken`; both ascend and do not overlap in themselves.
fn subtract(from: &[(u16, u16)], taken: &[(u16, u16)]) -> PortRanges {
    let mut left = PortRanges::with_capacity(from.len());
    for (first, last) in from {
        let mut next = Some(*first);
        let at = taken.partition_point(|(_, end)| end < first);
        for (start, end) in taken.iter().skip(at).take_while(|(start, _)| start <= last) {
            if let Some(first) = next
                && first < *start
            {
                left.push((first, start - 1));
            }
            next = end.checked_add(1);
        }
        if let Some(first) = next
            && first <= *last
        {
            left.push((first, *last));
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DnatRule;
    use crate::packet::types::NetworkId;

    #[test]
    fn the_hosts_own_are_without_what_is_published_there() {
        let v4 = |last| IpAddr::from([10, 1, 0, last]);
        let rule = |host_ip, proto, host_ports| DnatRule {
            id: 1,
            proto,
            host_ip,
            host_ports,
            to: v4(9),
            to_port: 1,
            network: NetworkId(1),
        };
        let rules = [rule(Some(v4(1)), 6, (2000, 2009)), rule(None, 6, (3000, 3000))];
        let dnat = DnatTable::build(&rules, |_, _| false).unwrap();
        let free = FreePorts::default().with_host(vec![(1024, 4000)], &dnat);
        assert_eq!(free.at_host(6, v4(1)), [(1024, 1999), (2010, 2999), (3001, 4000)]);
        assert_eq!(free.at_host(6, v4(2)), [(1024, 2999), (3001, 4000)], "by the rule for all");
        assert_eq!(free.at_host(17, v4(1)), [(1024, 4000)]);
        let v6 = IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(free.at_host(6, v6), [(1024, 4000)], "of the other family");
    }

    #[test]
    fn what_is_taken_is_cut_out() {
        let all = [(1024, 65_535)];
        for (taken, left) in [
            (vec![], vec![(1024, 65_535)]),
            (vec![(80, 80), (1024, 1024)], vec![(1025, 65_535)]),
            (vec![(53, 2000), (2001, 2001), (3000, 65_535)], vec![(2002, 2999)]),
            (vec![(1, 65_535)], vec![]),
            (vec![(65_535, 65_535)], vec![(1024, 65_534)]),
        ] {
            assert_eq!(subtract(&all, &taken), left, "{taken:?}");
        }
        let parts = [(1000, 1999), (3000, 3999), (5000, 5999)];
        let left = subtract(&parts, &[(1500, 3500), (3600, 3600), (5999, 6000)]);
        assert_eq!(left, [(1000, 1499), (3501, 3599), (3601, 3999), (5000, 5998)]);
    }
}
