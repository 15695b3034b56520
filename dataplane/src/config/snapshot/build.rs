//! From what control says to what workers read: the checks, and the indexes.

use std::net::{IpAddr, Ipv6Addr};

use rustc_hash::FxHashMap;

use super::{LocalAddress, Network, PortEntry, Snapshot, anycast_of};
use crate::config::{
    ConfigError, DEFAULT_FDB_AGEING, DEFAULT_HOST_PORTS, NetworkConfig, Policy, PortConfig,
    PortRole, SnapshotSpec, Subnet, UplinkConfig, UplinkMode,
};
use crate::conntrack::Zone;
use crate::family::AddressMap;
use crate::l3::route::{Prefix, RouteTarget};
use crate::nat::dnat::DnatTable;
use crate::nat::free_ports::FreePorts;
use crate::packet::ndp;

fn put<T>(slots: &mut Vec<Option<T>>, id: u16, value: T) -> Result<(), ConfigError> {
    let index = usize::from(id);
    if slots.len() <= index {
        slots.resize_with(index + 1, || None);
    }
    match slots.get_mut(index) {
        Some(slot @ None) => {
            *slot = Some(value);
            Ok(())
        }
        _ => Err(ConfigError::DuplicateId(id)),
    }
}

impl Snapshot {
    /// Checks the specification and builds the indexes.
    ///
    /// # Errors
    /// When ids collide or point nowhere.
    pub fn build(spec: SnapshotSpec) -> Result<Self, ConfigError> {
        let mut snapshot = Self {
            timeouts: spec.timeouts,
            grace: spec.grace,
            fdb_ageing: spec.fdb_ageing.unwrap_or(DEFAULT_FDB_AGEING),
            ..Self::default()
        };
        for address in spec.host_addresses {
            snapshot.local.insert(address, LocalAddress::Host);
        }
        for config in spec.networks {
            snapshot.add_network(config)?;
        }
        for config in spec.uplinks {
            snapshot.add_uplink(config)?;
        }
        for config in spec.ports {
            snapshot.add_port(config)?;
        }
        for route in spec.routes {
            snapshot.uplink(route.uplink).ok_or(ConfigError::UnknownTarget)?;
            if !route.prefix.is_of_family(route.via) {
                return Err(ConfigError::MixedFamilies);
            }
            let target = RouteTarget::Uplink { uplink: route.uplink, via: Some(route.via) };
            snapshot.routes.insert(route.prefix, target);
            snapshot.next_hops.insert((route.uplink, route.via));
        }
        for rule in &spec.dnat {
            snapshot.network(rule.network).ok_or(ConfigError::UnknownTarget)?;
        }
        snapshot.dnat = DnatTable::build(&spec.dnat, |id, address| {
            snapshot.network(id).is_some_and(|network| network.config.routed.of(address))
        })?;
        let of_the_host = spec.host_ports.unwrap_or_else(|| DEFAULT_HOST_PORTS.to_vec());
        if of_the_host.iter().any(|(first, last)| first > last) {
            return Err(ConfigError::PortRange);
        }
        snapshot.free_ports = FreePorts::build(snapshot.uplinks(), &snapshot.dnat)
            .with_host(of_the_host, &snapshot.dnat);
        Ok(snapshot)
    }

    fn add_network(&mut self, mut config: NetworkConfig) -> Result<(), ConfigError> {
        if Zone::network(config.id) == Zone::OUTSIDE {
            return Err(ConfigError::ReservedId(config.id.0));
        }
        for subnet in &config.subnets {
            if subnet.gateway.is_some_and(|gateway| !subnet.prefix.is_of_family(gateway)) {
                return Err(ConfigError::MixedFamilies);
            }
            self.routes.insert(subnet.prefix, RouteTarget::Network(config.id));
            if let Some(gateway) = subnet.gateway {
                self.local.insert(gateway, LocalAddress::Gateway(config.id));
            }
            if let Some(anycast) = anycast_of(subnet) {
                self.local.insert(anycast, LocalAddress::Gateway(config.id));
            }
        }
        let id = config.id.0;
        if let Some(own) = &config.timeouts {
            put(&mut self.own_timeouts, id, **own)?;
        }
        if let Some(own) = config.fdb_ageing {
            put(&mut self.own_ageing, id, own)?;
        }
        let rules = std::mem::take(&mut config.policy);
        self.has_policies |= !rules.is_empty();
        let has_ipv6 = |s: &Subnet| s.prefix.is_of_family(Ipv6Addr::UNSPECIFIED);
        let routes_ipv4 = |s: &Subnet| s.gateway.is_some_and(|gateway| gateway.is_ipv4());
        let routes_ipv6 = |s: &Subnet| s.gateway.is_some_and(|gateway| gateway.is_ipv6());
        let network = Network {
            ports: Vec::new(),
            host_port: None,
            endpoints: AddressMap::default(),
            macs: FxHashMap::default(),
            untagged: Vec::new(),
            pvids: vec![0],
            has_ipv6: config.subnets.iter().any(has_ipv6),
            routes_ipv4: config.subnets.iter().any(routes_ipv4),
            link_local: (config.subnets.iter().any(routes_ipv6))
                .then(|| ndp::link_local(config.gateway_mac)),
            policy: Policy::new(rules, config.subnets.iter().map(|subnet| subnet.prefix)),
            config,
        };
        put(&mut self.networks, id, network)
    }

    fn add_uplink(&mut self, config: UplinkConfig) -> Result<(), ConfigError> {
        if config.nat_ports.iter().any(|(first, last)| first > last) {
            return Err(ConfigError::PortRange);
        }
        for (address, prefix) in &config.addresses {
            if !prefix.is_of_family(*address) {
                return Err(ConfigError::MixedFamilies);
            }
            let target = RouteTarget::Uplink { uplink: config.id, via: None };
            self.routes.insert(*prefix, target);
            let local = match config.mode {
                UplinkMode::Dedicated => LocalAddress::Uplink(config.id),
                UplinkMode::Shared => LocalAddress::Host,
            };
            self.local.insert(*address, local);
        }
        let gateways = [config.gateway.map(IpAddr::V4), config.gateway6.map(IpAddr::V6)];
        for via in gateways.into_iter().flatten() {
            let target = RouteTarget::Uplink { uplink: config.id, via: Some(via) };
            self.routes.insert_if_absent(Prefix::new(via, 0), target);
            self.next_hops.insert((config.id, via));
        }
        let id = config.id.0;
        put(&mut self.uplinks, id, config)
    }

    fn add_port(&mut self, config: PortConfig) -> Result<(), ConfigError> {
        let network_id = match &config.role {
            PortRole::Endpoint { network, .. } | PortRole::Host { network } => Some(*network),
            PortRole::Uplink { .. } => None,
        };
        let mut own6 = Vec::new();
        if let Some(id) = network_id {
            let network = self
                .networks
                .get_mut(id.index())
                .and_then(Option::as_mut)
                .ok_or(ConfigError::UnknownParent(config.id))?;
            network.ports.push(config.id);
            match &config.role {
                PortRole::Endpoint { mac, ipv4, ipv6, guard, vlans, .. } => {
                    if !guard {
                        network.policy.may_meet_any_address();
                    }
                    network.macs.insert(*mac, config.id);
                    // Nobody but the neighbors in its VLANs reaches one without untagged frames.
                    if let Some(vlan) = vlans.untagged() {
                        network.untagged.push(config.id);
                        if !network.pvids.contains(&vlan) {
                            network.pvids.push(vlan);
                        }
                        let v4 = ipv4.iter().copied().map(IpAddr::V4);
                        for address in v4.chain(ipv6.iter().copied().map(IpAddr::V6)) {
                            network.endpoints.insert(address, (*mac, config.id));
                        }
                    }
                    own6.push(ndp::link_local(*mac));
                    own6.extend(ipv6);
                }
                PortRole::Host { .. } => {
                    network.macs.insert(network.config.gateway_mac, config.id);
                    network.host_port = Some(config.id);
                }
                PortRole::Uplink { .. } => {}
            }
        }
        if let PortRole::Uplink { uplink } = &config.role {
            self.uplink(*uplink).ok_or(ConfigError::UnknownParent(config.id))?;
        }
        let id = config.id.0;
        put(&mut self.ports, id, PortEntry { config, network: network_id, own6 })
    }
}
