//! What should exist: the records that the state store keeps and that everything else is made
//! from. Nothing here knows file descriptors, port numbers of the engine or what the host looks
//! like now; a record means the same after a restart.

mod edits;
mod network;
mod policy;
mod publish;
mod sandbox;
mod uplink;

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::name::Name;

pub use network::{BRIDGE_NETWORK, HOST_NETWORK, NONE_NETWORK, Network, is_unswitched};
pub use policy::PolicyRule;
pub use publish::Publish;
pub use sandbox::{Endpoint, Namespace, Sandbox, Wire};
pub use uplink::{Route, Uplink};

/// Everything that should exist.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// Numbers given out so far.
    pub counters: Counters,
    /// Bridge networks by name. `host` and `none` have no record: they always exist.
    pub networks: BTreeMap<Name, Network>,
    /// Sandboxes by name.
    pub sandboxes: BTreeMap<Name, Sandbox>,
    /// Uplinks by interface.
    pub uplinks: BTreeMap<String, Uplink>,
    /// Static routes by destination.
    pub routes: BTreeMap<IpNet, Route>,
    /// Work begun and not ended.
    pub intents: BTreeMap<u64, Intent>,
}

/// Numbers that are never given twice in a row, so that an old connection or capture cannot be
/// taken for one of a new thing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Last [`Network::id`] given.
    pub network: u16,
    /// Last [`Uplink::id`] given.
    pub uplink: u16,
    /// Last [`Publish::id`] given.
    pub publish: u32,
    /// Last [`PolicyRule::id`] given.
    #[serde(default)]
    pub policy: u32,
    /// Last intent.
    pub intent: u64,
}

/// Who wanted a network or an uplink.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Nobody named one: the network `bridge`, the interface of the host's default route.
    Automatic,
    /// The config file.
    Config,
    /// The API.
    #[default]
    User,
}

/// Something about to be made or removed. Written before the first step and taken back after the
/// last: what a crash leaves half-made or half-removed is cleared away by the next start or a purge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Intent {
    /// Devices in a sandbox that stays.
    Endpoints {
        /// The sandbox.
        name: Name,
        /// Where it is.
        namespace: Namespace,
        /// The interfaces.
        ifnames: Vec<String>,
        /// Our ends of veth pairs. Records of before these were kept have none.
        #[serde(default)]
        host_ends: Vec<String>,
    },
    /// A TAP in the host's namespace.
    HostDevice {
        /// Its name.
        ifname: String,
    },
    /// A whole sandbox.
    Sandbox {
        /// The sandbox.
        name: Name,
        /// Where it is. `None`, in records of an older version: in a namespace about to be made,
        /// which did not exist before.
        namespace: Option<Namespace>,
        /// Its interfaces.
        ifnames: Vec<String>,
        /// Our ends of veth pairs. Records of before these were kept have none.
        #[serde(default)]
        host_ends: Vec<String>,
    },
}

/// One change of a record. A list of them is one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    /// Numbers given out.
    Counters(Counters),
    /// Adds or replaces a network.
    PutNetwork(Network),
    /// Removes a network.
    RemoveNetwork(Name),
    /// Adds or replaces a sandbox.
    PutSandbox(Sandbox),
    /// Removes a sandbox.
    RemoveSandbox(Name),
    /// Adds or replaces an uplink.
    PutUplink(Uplink),
    /// Removes an uplink.
    RemoveUplink(String),
    /// Adds or replaces a route.
    PutRoute(Route),
    /// Removes a route.
    RemoveRoute(IpNet),
    /// Announces work.
    PutIntent(u64, Intent),
    /// The work is done or undone.
    RemoveIntent(u64),
}

impl Desired {
    /// Makes the change.
    pub fn apply(&mut self, edit: Edit) {
        match edit {
            Edit::Counters(counters) => self.counters = counters,
            Edit::PutNetwork(network) => {
                self.networks.insert(network.name.clone(), network);
            }
            Edit::RemoveNetwork(name) => {
                self.networks.remove(&name);
            }
            Edit::PutSandbox(sandbox) => {
                self.sandboxes.insert(sandbox.name.clone(), sandbox);
            }
            Edit::RemoveSandbox(name) => {
                self.sandboxes.remove(&name);
            }
            Edit::PutUplink(uplink) => {
                self.uplinks.insert(uplink.interface.clone(), uplink);
            }
            Edit::RemoveUplink(interface) => {
                self.uplinks.remove(&interface);
            }
            Edit::PutRoute(route) => {
                self.routes.insert(route.destination, route);
            }
            Edit::RemoveRoute(destination) => {
                self.routes.remove(&destination);
            }
            Edit::PutIntent(id, intent) => {
                self.intents.insert(id, intent);
            }
            Edit::RemoveIntent(id) => {
                self.intents.remove(&id);
            }
        }
    }

    /// Endpoints of a network with their sandboxes.
    pub fn endpoints_of<'a>(
        &'a self,
        network: &'a str,
    ) -> impl Iterator<Item = (&'a Sandbox, &'a Endpoint)> {
        self.sandboxes.values().flat_map(move |sandbox| {
            sandbox
                .endpoints
                .iter()
                .filter(move |endpoint| endpoint.network == *network)
                .map(move |endpoint| (sandbox, endpoint))
        })
    }

    /// The endpoint that carries the sandbox's default route and its published ports: the first in
    /// a network that is neither internal nor isolated, unless it has no untagged frames, as the gateway's are.
    #[must_use]
    pub fn gateway_endpoint<'a>(&'a self, sandbox: &'a Sandbox) -> Option<&'a Endpoint> {
        sandbox.endpoints.iter().find(|endpoint| self.has_way_out(endpoint, endpoint.ipv4.into()))
    }

    fn has_way_out(&self, endpoint: &Endpoint, own: IpAddr) -> bool {
        let network = self.networks.get(&endpoint.network);
        network.is_some_and(|network| !network.internal && !network.is_isolated(own))
            && endpoint.hears_the_gateway()
    }

    /// As [`Self::gateway_endpoint`], for IPv6: the first that has it.
    #[must_use]
    pub fn gateway_endpoint6<'a>(
        &'a self,
        sandbox: &'a Sandbox,
    ) -> Option<(&'a Endpoint, Ipv6Net)> {
        sandbox.endpoints.iter().find_map(|endpoint| {
            let own = endpoint.ipv6.filter(|own| self.has_way_out(endpoint, own.addr().into()));
            Some((endpoint, own?))
        })
    }

    /// Where the published ports of a sandbox lead, one for each family: to which endpoint, and its
    /// address.
    #[must_use]
    pub fn ways_in<'a>(&'a self, sandbox: &'a Sandbox) -> Vec<(&'a Endpoint, IpAddr)> {
        let v4 = self.gateway_endpoint(sandbox).map(|e| (e, IpAddr::V4(e.ipv4)));
        let v6 = self.gateway_endpoint6(sandbox).map(|(e, own)| (e, IpAddr::V6(own.addr())));
        v4.into_iter().chain(v6).collect()
    }

    /// Whether a published port of a sandbox leads anywhere.
    #[must_use]
    pub fn leads_in(&self, sandbox: &Sandbox, publish: &Publish) -> bool {
        self.ways_in(sandbox).iter().any(|(_, to)| publish.half(*to).is_some())
    }

    /// The ways out of a sandbox, one for each family: by which endpoint and gateway.
    #[must_use]
    pub fn ways_out<'a>(&'a self, sandbox: &'a Sandbox) -> Vec<(&'a Endpoint, IpAddr)> {
        let v4 = self.gateway_endpoint(sandbox).and_then(|endpoint| {
            let plan = self.networks.get(&endpoint.network)?.subnet_of(endpoint.ipv4)?;
            Some((endpoint, IpAddr::V4(plan.gateway)))
        });
        let v6 = self.gateway_endpoint6(sandbox).and_then(|(endpoint, own)| {
            let plan = self.networks.get(&endpoint.network)?.subnet6_of(own.addr())?;
            Some((endpoint, IpAddr::V6(plan.gateway)))
        });
        v4.into_iter().chain(v6).collect()
    }

    /// Every published port with its sandbox, once for each family that it leads to, at the host's
    /// addresses of that family.
    pub fn halves(&self) -> impl Iterator<Item = (&Sandbox, Publish)> {
        self.publishes().flat_map(|(sandbox, publish)| {
            self.ways_in(sandbox).into_iter().filter_map(move |(_, to)| {
                let (_, host_ip) = publish.half(to)?;
                Some((sandbox, Publish { host_ip: Some(host_ip), ..*publish }))
            })
        })
    }

    /// Every published port with its sandbox.
    pub fn publishes(&self) -> impl Iterator<Item = (&Sandbox, &Publish)> {
        self.sandboxes
            .values()
            .flat_map(|sandbox| sandbox.publishes.iter().map(move |publish| (sandbox, publish)))
    }
}
