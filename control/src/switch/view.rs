//! What the API shows of records: networks, sandboxes, ports, uplinks, routes.
//!
//! Each function takes a look under the world's lock and lets go before it returns.

mod connections;
mod nat_rules;
mod tables;
mod trace;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use dataplane::packet::types::PortId;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::network::{subnet_views, unknown as unknown_network};
use super::sandbox::unknown as unknown_sandbox;
use super::{Switch, World};
use crate::api::types::{
    self, Driver, NetworkEndpoint, PortMapping, RouteKind, SandboxEndpoint, SandboxMode,
};
use crate::error::{Error, Result};
use crate::model::{
    Desired, Endpoint, HOST_NETWORK, NONE_NETWORK, Namespace, Network, Origin, Publish, Sandbox,
    Uplink,
};
use crate::name::Name;
use crate::publish::bracketed;

/// Public ids of the networks that have no record: never those of another, which are random.
const HOST_UID: &str = "0000000000000000000000000000000000000000000000000000000000000001";
const NONE_UID: &str = "0000000000000000000000000000000000000000000000000000000000000002";

impl Switch {
    /// Every network, sorted by name.
    #[must_use]
    pub fn networks(&self) -> Vec<types::Network> {
        let world = self.world();
        let mut networks: Vec<types::Network> =
            world.desired.networks.values().map(|network| world.network_view(network)).collect();
        networks.extend(predefined(HOST_NETWORK, Driver::Host, HOST_UID));
        networks.extend(predefined(NONE_NETWORK, Driver::None, NONE_UID));
        networks.sort_by(|a, b| a.name.cmp(&b.name));
        networks
    }

    /// One network.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn network(&self, name: &Name) -> Result<types::Network> {
        self.networks()
            .into_iter()
            .find(|network| network.name == *name)
            .ok_or_else(|| unknown_network(name))
    }

    /// Every sandbox, sorted by name.
    #[must_use]
    pub fn sandboxes(&self) -> Vec<types::Sandbox> {
        let world = self.world();
        world.desired.sandboxes.values().map(|sandbox| world.sandbox_view(sandbox)).collect()
    }

    /// One sandbox.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn sandbox(&self, name: &Name) -> Result<types::Sandbox> {
        let world = self.world();
        world
            .desired
            .sandboxes
            .get(name)
            .map(|sandbox| world.sandbox_view(sandbox))
            .ok_or_else(|| unknown_sandbox(name))
    }

    /// Every published port, by sandbox, then by host port.
    #[must_use]
    pub fn ports(&self) -> Vec<PortMapping> {
        let world = self.world();
        world.desired.sandboxes.values().flat_map(|sandbox| world.mappings(sandbox)).collect()
    }

    /// Every uplink, sorted by interface.
    #[must_use]
    pub fn uplinks(&self) -> Vec<types::Uplink> {
        let world = self.world();
        world.desired.uplinks.values().map(|uplink| world.uplink_view(uplink)).collect()
    }

    /// Every route the engine has, sorted by destination, the default route last.
    #[must_use]
    pub fn routes(&self) -> Vec<types::Route> {
        let world = self.world();
        let mut routes: Vec<types::Route> = Vec::new();
        for network in world.desired.networks.values() {
            routes.extend(network.prefixes().map(|destination| types::Route {
                destination,
                via: None,
                uplink: None,
                network: Some(network.name.clone()),
                kind: RouteKind::Connected,
            }));
        }
        for (interface, state) in &world.attached.uplinks {
            routes.extend(state.nets().map(|net| types::Route {
                destination: net.trunc(),
                via: None,
                uplink: Some(interface.clone()),
                network: None,
                kind: RouteKind::Connected,
            }));
            routes.extend(state.gateways().map(|gateway| types::Route {
                destination: default_net(gateway),
                via: Some(gateway),
                uplink: Some(interface.clone()),
                network: None,
                kind: RouteKind::Default,
            }));
        }
        routes.extend(world.desired.routes.values().map(|route| types::Route {
            destination: route.destination,
            via: Some(route.via),
            uplink: route.uplink.clone(),
            network: None,
            kind: RouteKind::Static,
        }));
        routes.sort_by_key(|route| (route.destination.prefix_len() == 0, route.destination));
        routes
    }

    /// The ports whose frames a capture shows, with the names to show them under: exactly one of
    /// sandbox, uplink and network.
    ///
    /// # Errors
    /// When it is unknown, or not exactly one is named.
    pub fn capture_ports(
        &self,
        sandbox: Option<&Name>,
        uplink: Option<&str>,
        network: Option<&Name>,
    ) -> Result<Vec<(PortId, String)>> {
        let world = self.world();
        let mut ports: Vec<(PortId, String)> = match (sandbox, uplink, network) {
            (Some(name), None, None) => {
                let sandbox =
                    world.desired.sandboxes.get(name).ok_or_else(|| unknown_sandbox(name))?;
                sandbox
                    .endpoints
                    .iter()
                    .filter_map(|endpoint| world.endpoint_port(sandbox, endpoint))
                    .collect()
            }
            (None, Some(interface), None) => {
                if !world.desired.uplinks.contains_key(interface) {
                    return Err(super::uplink::unknown(interface));
                }
                let state = world.attached.uplinks.get(interface);
                state.map(|state| (state.port, interface.to_owned())).into_iter().collect()
            }
            (None, None, Some(name)) => {
                world.network_exists(Some(name))?;
                let network = world.desired.networks.get(name);
                let leg = world.attached.hosts.get(name).zip(network);
                let leg = leg.map(|(port, network)| (*port, network.host_device()));
                world
                    .desired
                    .endpoints_of(name.as_str())
                    .filter_map(|(sandbox, endpoint)| world.endpoint_port(sandbox, endpoint))
                    .chain(leg)
                    .collect()
            }
            _ => return Err(Error::invalid("capture: name one of sandbox, uplink and network")),
        };
        if ports.is_empty() {
            let what = match (sandbox, uplink, network) {
                (Some(name), ..) => format!("sandbox {name:?}"),
                (_, Some(interface), _) => format!("uplink {interface:?}"),
                (.., name) => format!("network {:?}", name.map_or("", Name::as_str)),
            };
            return Err(Error::conflict(format!("{what}: has no interface to capture at")));
        }
        ports.sort_by_key(|(port, _)| *port);
        Ok(ports)
    }
}

impl World {
    fn network_view(&self, network: &Network) -> types::Network {
        let mut endpoints: Vec<NetworkEndpoint> = self
            .desired
            .endpoints_of(network.name.as_str())
            .map(|(sandbox, endpoint)| NetworkEndpoint {
                sandbox: sandbox.name.clone(),
                ifname: endpoint.ifname.clone(),
                mac: endpoint.mac,
                ipv4: Some(endpoint.ipv4),
                ipv6: endpoint.ipv6.map(|own| own.addr()),
                options: endpoint.options.clone(),
                port: port_name(sandbox, endpoint),
            })
            .collect();
        endpoints.sort_by(|a, b| a.sandbox.cmp(&b.sandbox));
        types::Network {
            name: network.name.clone(),
            id: network.uid.clone(),
            driver: Driver::Bridge,
            internal: network.internal,
            ipv6: network.has_ipv6(),
            subnets: subnet_views(network)
                .into_iter()
                .map(|view| types::Subnet {
                    gateway: view.gateway.filter(|it| !network.is_isolated(*it)),
                    ..view
                })
                .collect(),
            options: network.options.clone(),
            labels: network.labels.clone(),
            endpoints,
        }
    }

    fn sandbox_view(&self, sandbox: &Sandbox) -> types::Sandbox {
        let endpoints = sandbox
            .endpoints
            .iter()
            .map(|endpoint| SandboxEndpoint {
                network: endpoint.network.clone(),
                ifname: endpoint.ifname.clone(),
                mac: endpoint.mac,
                ipv4: Some(endpoint.ipv4),
                ipv6: endpoint.ipv6.map(|own| own.addr()),
                gateway: self
                    .desired
                    .networks
                    .get(&endpoint.network)
                    .filter(|network| !network.is_isolated(endpoint.ipv4))
                    .and_then(|network| network.subnet_of(endpoint.ipv4))
                    .map(|plan| IpAddr::V4(plan.gateway)),
                gateway6: endpoint.ipv6.and_then(|own| {
                    let network = self.desired.networks.get(&endpoint.network)?;
                    let plan = network.subnet6_of(own.addr())?;
                    Some(plan.gateway).filter(|_| !network.is_isolated(own.addr()))
                }),
                aliases: endpoint.aliases.clone(),
                link: endpoint.wire.kind(),
                options: endpoint.options.clone(),
                port: port_name(sandbox, endpoint),
            })
            .collect();
        types::Sandbox {
            name: sandbox.name.clone(),
            mode: match &sandbox.namespace {
                Namespace::Host => SandboxMode::Host,
                _ if sandbox.endpoints.is_empty() => SandboxMode::None,
                _ => SandboxMode::Network,
            },
            netns: sandbox.namespace_path().unwrap_or_else(own_namespace),
            adopted: matches!(sandbox.namespace, Namespace::Adopted { .. }),
            endpoints,
            ports: self.mappings(sandbox),
        }
    }

    fn mappings(&self, sandbox: &Sandbox) -> Vec<PortMapping> {
        let publishes = sandbox.publishes.iter();
        let mut mappings: Vec<PortMapping> =
            publishes.flat_map(|p| self.desired.mappings_of(&sandbox.name, p)).collect();
        mappings.sort_by_key(|mapping| (mapping.proto, mapping.host_port, mapping.host_ip));
        mappings
    }

    fn uplink_view(&self, uplink: &Uplink) -> types::Uplink {
        let state = self.attached.uplinks.get(&uplink.interface);
        types::Uplink {
            interface: uplink.interface.clone(),
            mode: uplink.mode,
            mac: state.map(|state| state.mac).unwrap_or_default().into(),
            addresses: state.map_or_else(|| uplink.addresses.clone(), |s| s.nets().collect()),
            gateway: state.map_or(uplink.gateway, |state| state.gateway),
            gateway6: state.map_or(uplink.gateway6, |state| state.ipv6.gateway),
            nat_ports: state.map(|state| state.nat_ports.clone()).unwrap_or_default(),
            up: state.is_some_and(|state| state.up && state.nets().next().is_some()),
            automatic: uplink.origin == Origin::Automatic,
        }
    }

    fn endpoint_port(&self, sandbox: &Sandbox, endpoint: &Endpoint) -> Option<(PortId, String)> {
        let key = (sandbox.name.clone(), endpoint.ifname.clone());
        let port = self.attached.endpoints.get(&key)?;
        Some((*port, port_name(sandbox, endpoint)))
    }
}

/// The switch port of an endpoint, as every view shows it.
#[must_use]
pub fn port_name(sandbox: &Sandbox, endpoint: &Endpoint) -> String {
    format!("{}/{}", sandbox.name, endpoint.ifname)
}

/// Everywhere, in the family of `gateway`.
fn default_net(gateway: IpAddr) -> IpNet {
    match gateway {
        IpAddr::V4(_) => Ipv4Net::default().into(),
        IpAddr::V6(_) => Ipv6Net::default().into(),
    }
}

/// The file that leads to the daemon's own namespace.
fn own_namespace() -> PathBuf {
    PathBuf::from(format!("/proc/{}/ns/net", std::process::id()))
}

fn predefined(name: &str, driver: Driver, uid: &str) -> Option<types::Network> {
    Some(types::Network {
        name: name.parse().ok()?,
        id: uid.to_owned(),
        driver,
        internal: false,
        ipv6: false,
        subnets: Vec::new(),
        options: Default::default(),
        labels: Default::default(),
        endpoints: Vec::new(),
    })
}

impl Desired {
    /// A published port as the API shows it: a row for each family that it is published in.
    pub(super) fn mappings_of(&self, name: &Name, publish: &Publish) -> Vec<PortMapping> {
        let sandbox = self.sandboxes.get(name);
        let has_ipv6 = sandbox.is_some_and(|sandbox| self.gateway_endpoint6(sandbox).is_some());
        // Who has no way in is shown with one of IPv4, which it may get again.
        let has_ipv4 = sandbox.is_some_and(|sandbox| self.gateway_endpoint(sandbox).is_some());
        let any = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        let host_ips = match publish.host_ip {
            Some(host_ip) => vec![host_ip],
            None => any
                .into_iter()
                .filter(|ip| if ip.is_ipv6() { has_ipv6 } else { has_ipv4 || !has_ipv6 })
                .collect(),
        };
        let mapping = |host_ip| PortMapping {
            sandbox: name.clone(),
            proto: publish.proto,
            host_ip,
            host_port: publish.host_ports.first(),
            host_port_end: publish.host_ports.last(),
            port: publish.ports.first(),
            port_end: publish.ports.last(),
        };
        host_ips.into_iter().map(mapping).collect()
    }
}

/// `HOSTIP:PORTS -> PORTS/PROTO`, for events.
#[must_use]
pub fn describe_publish(publish: &Publish) -> String {
    // Without an address it is published in each family that its sandbox has.
    let host_ip = publish.host_ip.map_or_else(|| "*".to_owned(), bracketed);
    format!("{host_ip}:{} -> {}/{}", publish.host_ports, publish.ports, publish.proto)
}
