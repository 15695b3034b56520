//! What there is, as a document that [`super::import`] makes again.

use dataplane::engine::FdbKind;

use super::network::subnet_views;
use super::{Switch, World};
use crate::api::types::{
    Driver, EndpointState, FdbState, NetnsRef, NetworkCreate, PolicyAdd, RouteAdd, SandboxState,
    State, Subnet, UplinkAdd,
};
use crate::model::{
    BRIDGE_NETWORK, Endpoint, Namespace, Network, Origin, Publish, Route, Sandbox, Uplink,
};
use crate::publish::PublishSpec;

impl Switch {
    /// Everything that was asked for. What nobody chose is left out: the automatic uplink, and
    /// the network `bridge` while nobody uses it.
    #[must_use]
    pub fn export(&self) -> State {
        let entries = self.engine.fdb_entries();
        let world = self.world();
        let desired = &world.desired;
        let owners = world.owners();
        let mut fdb: Vec<FdbState> = entries
            .iter()
            .filter(|entry| entry.kind == FdbKind::Static)
            .filter_map(|entry| {
                let owner = owners.get(&entry.port)?;
                Some(FdbState {
                    network: owner.network.clone()?,
                    mac: entry.mac.into(),
                    vlan: entry.vlan,
                    sandbox: owner.sandbox.clone(),
                })
            })
            .collect();
        fdb.sort_by(|a, b| (&a.network, a.mac, a.vlan).cmp(&(&b.network, b.mac, b.vlan)));
        let chosen = |uplink: &&Uplink| uplink.origin != Origin::Automatic;
        State {
            version: State::VERSION,
            networks: desired
                .networks
                .values()
                .filter(|n| world.is_wanted(n))
                .map(ask_for)
                .collect(),
            policy: desired.networks.values().flat_map(rules_of).collect(),
            sandboxes: desired.sandboxes.values().map(Sandbox::state).collect(),
            uplinks: desired.uplinks.values().filter(chosen).map(Uplink::request).collect(),
            routes: desired.routes.values().map(Route::request).collect(),
            fdb,
        }
    }
}

impl World {
    /// Whether somebody asked for a network, or uses it.
    fn is_wanted(&self, network: &Network) -> bool {
        let name = network.name.as_str();
        name != BRIDGE_NETWORK
            || network.origin != Origin::Automatic
            || !network.policy.is_empty()
            || self.desired.endpoints_of(name).next().is_some()
    }
}

/// The request that makes the same network.
fn ask_for(network: &Network) -> NetworkCreate {
    let known = |subnet: Subnet| Subnet {
        // An isolated network has none to be named.
        gateway: subnet.gateway.filter(|gateway| !network.is_isolated(*gateway)),
        ..subnet
    };
    NetworkCreate {
        name: network.name.clone(),
        driver: Driver::Bridge,
        subnets: subnet_views(network).into_iter().map(known).collect(),
        internal: network.internal,
        ipv6: network.has_ipv6(),
        options: network.options.clone(),
        labels: network.labels.clone(),
    }
}

/// The requests that give a network the same rules.
pub(super) fn rules_of(network: &Network) -> impl Iterator<Item = PolicyAdd> {
    network.policy.iter().cloned().map(|rule| PolicyAdd {
        network: network.name.clone(),
        action: rule.action,
        direction: rule.direction,
        src: rule.src,
        dst: rule.dst,
        proto: rule.proto,
        port: rule.port,
        host_port: rule.host_port,
        position: None,
    })
}

impl Sandbox {
    fn state(&self) -> SandboxState {
        SandboxState {
            name: self.name.clone(),
            host: self.namespace == Namespace::Host,
            netns: match &self.namespace {
                Namespace::Adopted { path, .. } => Some(NetnsRef::Path(path.clone())),
                Namespace::Made { .. } | Namespace::Host => None,
            },
            endpoints: self.endpoints.iter().map(Endpoint::state).collect(),
            publish: self.publishes.iter().map(Publish::spec).collect(),
        }
    }
}

impl Endpoint {
    fn state(&self) -> EndpointState {
        EndpointState {
            network: self.network.clone(),
            ifname: Some(self.ifname.clone()),
            ip: Some(self.ipv4),
            ip6: self.ipv6.map(|own| own.addr()),
            mac: Some(self.mac),
            aliases: self.aliases.clone(),
            options: self.options.clone(),
        }
    }
}

impl Publish {
    fn spec(&self) -> PublishSpec {
        PublishSpec {
            host_ip: self.host_ip,
            host_ports: Some(self.host_ports),
            ports: self.ports,
            proto: self.proto,
        }
    }
}

impl Uplink {
    /// The request that makes the same uplink.
    pub(super) fn request(&self) -> UplinkAdd {
        UplinkAdd {
            interface: self.interface.clone(),
            mode: self.mode,
            addresses: self.addresses.clone(),
            gateway: self.gateway,
            gateway6: self.gateway6,
            // A request names one range at most.
            nat_ports: self.nat_ports.first().copied(),
        }
    }
}

impl Route {
    fn request(&self) -> RouteAdd {
        RouteAdd { destination: self.destination, via: self.via, uplink: self.uplink.clone() }
    }

    /// Whether a request asks for this route.
    pub(super) fn is(&self, request: &RouteAdd) -> bool {
        self.destination == request.destination
            && self.via == request.via
            && (request.uplink.is_none() || self.uplink == request.uplink)
    }
}
