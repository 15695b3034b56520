//! From what should exist to what the workers read. The only place where a
//! [`SnapshotSpec`] is made.
//!
//! Pure. A record whose device is not attached (a sandbox whose namespace is gone, an uplink whose
//! interface is missing) is left out; the rest of the network goes on without it.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use dataplane::config::{
    DnatRule, NetworkConfig, PortConfig, PortRole, SnapshotSpec, StaticRoute, Subnet, Timeouts,
    UplinkConfig,
};
use dataplane::l3::route::Prefix;
use dataplane::packet::types::{Mac, PortId, UplinkId};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::api::types::UplinkMode;
use crate::error::{Result, ResultExt};
use crate::model::{Desired, Network, Route, Sandbox};
use crate::name::Name;
use crate::options::{EndpointOptions, NetworkOptions};
use crate::publish::PortRange;

mod policy;
#[cfg(test)]
mod tests;

/// Which engine port stands for what. Changes with every start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attached {
    /// Endpoints by sandbox and interface.
    pub endpoints: HashMap<(Name, String), PortId>,
    /// The host's legs by network.
    pub hosts: HashMap<Name, PortId>,
    /// Uplinks by interface.
    pub uplinks: BTreeMap<String, UplinkState>,
    /// Ports that the host itself never uses, for hairpins by addresses that no uplink has; `None`: nobody has
    /// looked yet.
    pub hairpin_ports: Option<Vec<PortRange>>,
}

impl Attached {
    /// Takes a port out, whatever it stands for.
    pub fn forget(&mut self, port: PortId) {
        self.endpoints.retain(|_, attached| *attached != port);
        self.hosts.retain(|_, attached| *attached != port);
        self.uplinks.retain(|_, state| state.port != port);
    }
}

/// An attached uplink with what the host says about its interface now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UplinkState {
    /// Its port.
    pub port: PortId,
    /// Source MAC of frames sent.
    pub mac: Mac,
    /// Addresses with the on-link prefix.
    pub addresses: Vec<Ipv4Net>,
    /// Default next hop.
    pub gateway: Option<Ipv4Addr>,
    /// Its IPv6: addresses that last, and the default next hop.
    pub ipv6: UplinkIpv6,
    /// Ports that SNAT may use; the engine leaves out those that are published.
    pub nat_ports: Vec<PortRange>,
    /// Longest IP packet.
    pub mtu: u16,
    /// The interface is up.
    pub up: bool,
    /// How often its interface has got a carrier, where that is our concern.
    pub carrier_ups: u32,
}

/// IPv6 of an uplink.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UplinkIpv6 {
    /// Addresses with the on-link prefix.
    pub addresses: Vec<Ipv6Net>,
    /// Default next hop.
    pub gateway: Option<Ipv6Addr>,
}

impl UplinkState {
    /// Addresses of both families, those of IPv4 first.
    pub fn nets(&self) -> impl Iterator<Item = IpNet> {
        let v4 = self.addresses.iter().copied().map(IpNet::V4);
        v4.chain(self.ipv6.addresses.iter().copied().map(IpNet::V6))
    }

    /// Default next hops, that of IPv4 first.
    pub fn gateways(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.gateway.map(IpAddr::V4);
        v4.into_iter().chain(self.ipv6.gateway.map(IpAddr::V6))
    }

    /// Whether a neighbor with this address is on its wire. A link-local one may be on any.
    #[must_use]
    pub fn reaches(&self, address: IpAddr) -> bool {
        let local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        local && !self.ipv6.addresses.is_empty() || self.nets().any(|net| net.contains(&address))
    }
}

/// What stays the same from start to end.
#[derive(Debug, Clone, Default)]
pub struct Tuning {
    /// Idle timeouts of connections.
    pub timeouts: Timeouts,
    /// For how long connections are picked up after a start without a table.
    pub grace: Duration,
    /// Lifetime of a learned MAC; `None`: the engine's default.
    pub fdb_ageing: Option<Duration>,
}

/// Makes the snapshot's specification.
///
/// # Errors
/// When a stored option cannot be read, which a store of this version does not have.
pub fn compile(
    desired: &Desired,
    attached: &Attached,
    host_addresses: &[IpAddr],
    tuning: &Tuning,
) -> Result<SnapshotSpec> {
    let mut spec = SnapshotSpec {
        host_addresses: host_addresses.to_vec(),
        host_ports: attached.hairpin_ports.as_deref().map(pairs),
        timeouts: tuning.timeouts,
        grace: tuning.grace,
        fdb_ageing: tuning.fdb_ageing,
        ..SnapshotSpec::default()
    };
    for network in desired.networks.values() {
        compile_network(network, desired, attached, &mut spec)
            .failed(format!("network {:?}", network.name))?;
    }
    for uplink in desired.uplinks.values() {
        if let Some(state) = attached.uplinks.get(&uplink.interface) {
            compile_uplink(uplink.uplink_id(), uplink.mode, state, &mut spec);
        }
    }
    for sandbox in desired.sandboxes.values() {
        compile_publishes(sandbox, desired, attached, &mut spec);
    }
    for route in desired.routes.values() {
        if let Some(uplink) = uplink_of_route(route, desired, attached) {
            let prefix = prefix(route.destination);
            spec.routes.push(StaticRoute { prefix, via: route.via, uplink });
        }
    }
    Ok(spec)
}

/// The engine's form of a prefix.
#[must_use]
pub fn prefix(net: impl Into<IpNet>) -> Prefix {
    let net = net.into();
    Prefix::new(net.addr(), net.prefix_len())
}

fn compile_network(
    network: &Network,
    desired: &Desired,
    attached: &Attached,
    spec: &mut SnapshotSpec,
) -> Result<()> {
    let options = NetworkOptions::parse(crate::api::types::Driver::Bridge, &network.options)?;
    let subnets = network
        .gateways()
        .map(|(subnet, gateway)| Subnet { prefix: prefix(subnet), gateway })
        .collect();
    spec.networks.push(NetworkConfig {
        id: network.network_id(),
        gateway_mac: network.gateway_mac(),
        subnets,
        internal: network.internal || network.has_no_gateway(),
        masquerade: options.masquerade,
        routed: options.routed(),
        icc: options.icc,
        mtu: network.mtu,
        storm_limit: options.storm_limit,
        ra: options.ra,
        mss_clamp: options.mss_clamp,
        endpoint_independent: options.endpoint_independent,
        timeouts: options.timers(&spec.timeouts).map(Box::new),
        conntrack_limit: options.conntrack_limit,
        fdb_limit: options.fdb_limit,
        fdb_ageing: options.fdb_ageing.map(|seconds| Duration::from_secs(seconds.into())),
        snooping: options.snooping,
        querier: options.querier,
        helpers: options.helpers,
        policy: policy::rules(network, desired),
    });
    // The host has no part in a network without a gateway, though its device is there.
    if let Some(port) = attached.hosts.get(&network.name).filter(|_| !network.has_no_gateway()) {
        let role = PortRole::Host { network: network.network_id() };
        spec.ports.push(PortConfig { id: *port, role, mtu: network.mtu });
    }
    for (sandbox, endpoint) in desired.endpoints_of(network.name.as_str()) {
        let key = (sandbox.name.clone(), endpoint.ifname.clone());
        if let Some(port) = attached.endpoints.get(&key) {
            let EndpointOptions { trusted, vlans } = EndpointOptions::parse(&endpoint.options)?;
            let role = PortRole::Endpoint {
                network: network.network_id(),
                mac: endpoint.mac.0,
                ipv4: vec![endpoint.ipv4],
                ipv6: endpoint.ipv6.map(|own| own.addr()).into_iter().collect(),
                guard: options.spoof_check,
                trusted,
                vlans,
            };
            spec.ports.push(PortConfig { id: *port, role, mtu: network.mtu });
        }
    }
    Ok(())
}

fn compile_uplink(id: UplinkId, mode: UplinkMode, state: &UplinkState, spec: &mut SnapshotSpec) {
    spec.uplinks.push(UplinkConfig {
        id,
        port: state.port,
        mode: match mode {
            UplinkMode::Dedicated => dataplane::config::UplinkMode::Dedicated,
            UplinkMode::Shared => dataplane::config::UplinkMode::Shared,
        },
        mac: state.mac,
        addresses: state.nets().map(|net| (net.addr(), prefix(net))).collect(),
        gateway: state.gateway,
        gateway6: state.ipv6.gateway,
        nat_ports: pairs(&state.nat_ports),
        mtu: state.mtu,
        carrier_ups: state.carrier_ups,
    });
    let role = PortRole::Uplink { uplink: id };
    spec.ports.push(PortConfig { id: state.port, role, mtu: state.mtu });
}

/// Published ports lead to the endpoint with the default route, of each family that it has. Without
/// a device there is no rule: the outside then gets no answer instead of one from a neighbor query
/// that nobody serves.
fn compile_publishes(
    sandbox: &Sandbox,
    desired: &Desired,
    attached: &Attached,
    spec: &mut SnapshotSpec,
) {
    for (endpoint, to) in desired.ways_in(sandbox) {
        let key = (sandbox.name.clone(), endpoint.ifname.clone());
        let network = desired.networks.get(&endpoint.network);
        let Some(network) = network.filter(|_| attached.endpoints.contains_key(&key)) else {
            continue;
        };
        for publish in &sandbox.publishes {
            let Some((id, host_ip)) = publish.half(to) else { continue };
            spec.dnat.push(DnatRule {
                id,
                proto: publish.proto.number(),
                host_ip: Some(host_ip).filter(|ip| !ip.is_unspecified()),
                host_ports: (publish.host_ports.first(), publish.host_ports.last()),
                to,
                to_port: publish.ports.first(),
                network: network.network_id(),
            });
        }
    }
}

/// The named uplink, or the one that has the next hop on its wire.
fn uplink_of_route(route: &Route, desired: &Desired, attached: &Attached) -> Option<UplinkId> {
    let interface = match &route.uplink {
        Some(interface) => attached.uplinks.get_key_value(interface).map(|(name, _)| name),
        None => uplink_reaching(attached, route.via),
    }?;
    desired.uplinks.get(interface).map(crate::model::Uplink::uplink_id)
}

/// The interface of the uplink with the longest prefix that contains `address`.
#[must_use]
pub fn uplink_reaching(attached: &Attached, address: IpAddr) -> Option<&String> {
    attached
        .uplinks
        .iter()
        .flat_map(|(name, state)| state.nets().map(move |net| (name, net)))
        .filter(|(_, net)| net.contains(&address))
        .max_by_key(|(_, net)| net.prefix_len())
        .map(|(name, _)| name)
}

/// `from` without the ports in `taken`, ascending, not overlapping.
#[must_use]
pub fn subtract(from: &[PortRange], taken: &[PortRange]) -> Vec<PortRange> {
    let mut left: Vec<PortRange> = merge(from);
    for hole in taken {
        left = left
            .into_iter()
            .flat_map(|range| {
                let below = hole.first().checked_sub(1).map(|end| end.min(range.last()));
                let above = hole.last().checked_add(1).map(|start| start.max(range.first()));
                [
                    below.and_then(|end| PortRange::new(range.first(), end)),
                    above.and_then(|start| PortRange::new(start, range.last())),
                ]
            })
            .flatten()
            .collect();
    }
    left
}

/// The engine's form of ports.
fn pairs(ranges: &[PortRange]) -> Vec<(u16, u16)> {
    merge(ranges).into_iter().map(|range| (range.first(), range.last())).collect()
}

/// Sorted, with overlapping and adjacent ranges joined.
#[must_use]
pub fn merge(ranges: &[PortRange]) -> Vec<PortRange> {
    let mut sorted = ranges.to_vec();
    sorted.sort_unstable();
    let mut merged: Vec<PortRange> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match merged.last_mut() {
            Some(last) if range.first() <= last.last().saturating_add(1) => {
                let end = last.last().max(range.last());
                *last = PortRange::new(last.first(), end).unwrap_or(*last);
            }
            _ => merged.push(range),
        }
    }
    merged
}
