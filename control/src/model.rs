//! What should exist: the records that the state store keeps and that everything else is made
//! from. Nothing here knows file descriptors, port numbers of the engine or what the host looks
//! like now; a record means the same after a restart.

mod edits;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use dataplane::packet::types::{Mac, NetworkId, UplinkId};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::api::types::{MacAddr, UplinkMode};
use crate::ipam::{Prefix, SubnetPlan};
use crate::name::Name;
use crate::netns::NETNS_DIR;
use crate::options::{EndpointOptions, LinkKind};
use crate::publish::{PortRange, Proto, bracketed, meet};

/// The name of the network that exists from the first start on.
pub const BRIDGE_NETWORK: &str = "bridge";
/// The network that stands for the host's own namespace.
pub const HOST_NETWORK: &str = "host";
/// The network that stands for no network.
pub const NONE_NETWORK: &str = "none";

/// Whether this is one of the two networks that are nothing but a name: they have no record, no
/// addresses and no ports.
#[must_use]
pub fn is_unswitched(network: &Name) -> bool {
    [HOST_NETWORK, NONE_NETWORK].contains(&network.as_str())
}

/// Digits of [`Network::uid`] in the name of the host's TAP: with `vsw-` before, they stay below
/// IFNAMSIZ (16 with the final NUL, linux/if.h).
const HOST_DEVICE_DIGITS: usize = 8;

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
    /// Last intent.
    pub intent: u64,
}

/// A bridge network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Stable number, for the engine.
    pub id: u16,
    /// 64 random hexadecimal digits, for the world.
    pub uid: String,
    /// Name.
    pub name: Name,
    /// IPv4 subnets; one at least.
    pub subnets: Vec<SubnetPlan>,
    /// Where the address search of each of them continues.
    pub cursors: Vec<u32>,
    /// IPv6 subnets; none: the network has no IPv6.
    #[serde(default)]
    pub subnets6: Vec<SubnetPlan<Ipv6Net>>,
    /// Where the address search of each of them continues.
    #[serde(default)]
    pub cursors6: Vec<Ipv6Addr>,
    /// No way out and no way in.
    pub internal: bool,
    /// Options under their short names, checked.
    pub options: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// MTU of the endpoints: the option, or the default when the network was made.
    pub mtu: u16,
    /// Seconds since the epoch.
    pub created: u64,
    /// Who wanted it. Records of before this was kept do not say.
    #[serde(default)]
    pub origin: Origin,
}

impl Network {
    /// The number as the engine takes it.
    #[must_use]
    pub const fn network_id(&self) -> NetworkId {
        NetworkId(self.id)
    }

    /// Name of the host's TAP: unique among all daemons of the host, unlike the number.
    #[must_use]
    pub fn host_device(&self) -> String {
        format!("vsw-{}", self.uid.get(..HOST_DEVICE_DIGITS).unwrap_or(&self.uid))
    }

    /// MAC of the router port and of the host's TAP: that of the first gateway address.
    #[must_use]
    pub fn gateway_mac(&self) -> Mac {
        self.subnets.first().map_or(Mac::ZERO, |subnet| crate::ipam::mac_for(subnet.gateway))
    }

    /// The subnet that contains `address`.
    #[must_use]
    pub fn subnet_of(&self, address: Ipv4Addr) -> Option<&SubnetPlan> {
        self.subnets.iter().find(|subnet| subnet.subnet.contains(&address))
    }

    /// The IPv6 subnet that contains `address`.
    #[must_use]
    pub fn subnet6_of(&self, address: Ipv6Addr) -> Option<&SubnetPlan<Ipv6Net>> {
        self.subnets6.iter().find(|subnet| subnet.subnet.contains(&address))
    }

    /// Prefix and gateway of each subnet, those of IPv4 first.
    pub fn gateways(&self) -> impl Iterator<Item = (IpNet, IpAddr)> {
        let v4 = self.subnets.iter().map(|plan| (plan.subnet.into(), plan.gateway.into()));
        v4.chain(self.subnets6.iter().map(|plan| (plan.subnet.into(), plan.gateway.into())))
    }

    /// The prefix of each subnet, those of IPv4 first.
    pub fn prefixes(&self) -> impl Iterator<Item = IpNet> {
        self.gateways().map(|(subnet, _)| subnet)
    }

    /// Whether its endpoints have IPv6.
    #[must_use]
    pub const fn has_ipv6(&self) -> bool {
        !self.subnets6.is_empty()
    }
}

/// A namespace with endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// Name.
    pub name: Name,
    /// Where it is.
    pub namespace: Namespace,
    /// Its interfaces, in the order they were connected.
    pub endpoints: Vec<Endpoint>,
    /// Its published ports.
    pub publishes: Vec<Publish>,
    /// Seconds since the epoch.
    pub created: u64,
}

/// Whose namespace it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Namespace {
    /// Made by us, with a file that `ip netns` shows.
    Made {
        /// Inode of the namespace: tells whether the file is still ours.
        inode: u64,
    },
    /// Made by someone else; we only add interfaces.
    Adopted {
        /// File that leads to it.
        path: PathBuf,
        /// Inode of the namespace: tells whether the file still leads to it.
        inode: u64,
    },
    /// The host's own.
    Host,
}

/// A sandbox's interface in a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The network.
    pub network: Name,
    /// Interface name in the sandbox.
    pub ifname: String,
    /// MAC.
    pub mac: MacAddr,
    /// Address.
    pub ipv4: Ipv4Addr,
    /// Length of the subnet's prefix.
    pub prefix_len: u8,
    /// IPv6 address with the length of the subnet's prefix. None: its network has no IPv6, or its
    /// namespace had none when it was connected.
    #[serde(default)]
    pub ipv6: Option<Ipv6Net>,
    /// Further names.
    pub aliases: Vec<Name>,
    /// What connects it to the engine. Records of before there was a choice do not say.
    #[serde(default)]
    pub wire: Wire,
    /// Options, checked. Records of before there were any do not say.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

/// What connects an endpoint to the engine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wire {
    /// Its interface is a TAP.
    #[default]
    Tap,
    /// Its interface is one end of a veth pair.
    Veth {
        /// The other end, in the host's namespace. Never changes, whatever happens inside.
        host_end: String,
    },
}

impl Wire {
    /// As users call it.
    #[must_use]
    pub const fn kind(&self) -> LinkKind {
        match self {
            Self::Tap => LinkKind::Tap,
            Self::Veth { .. } => LinkKind::Veth,
        }
    }

    /// Our end of its pair, if it has one.
    #[must_use]
    pub fn host_end(&self) -> Option<&str> {
        match self {
            Self::Tap => None,
            Self::Veth { host_end } => Some(host_end),
        }
    }

    /// What the kernel calls the kind of its interface.
    #[must_use]
    pub const fn link_kind(&self) -> &'static str {
        match self {
            Self::Tap => "tun",
            Self::Veth { .. } => "veth",
        }
    }
}

impl Endpoint {
    /// Its addresses with their on-link prefixes.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpNet> {
        let v4 = Ipv4Net::new(self.ipv4, self.prefix_len).ok().map(IpNet::V4);
        v4.into_iter().chain(self.ipv6.map(IpNet::V6)).collect()
    }

    /// Whether it has untagged frames: those of the gateway have no tag.
    #[must_use]
    pub fn hears_the_gateway(&self) -> bool {
        EndpointOptions::parse(&self.options).is_ok_and(|own| own.vlans.untagged().is_some())
    }
}

/// A published port or range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// Stable number.
    pub id: u32,
    /// Protocol.
    pub proto: Proto,
    /// Only at this address of the host, the unspecified one standing for all of its family;
    /// `None`: at all of them.
    pub host_ip: Option<IpAddr>,
    /// Ports outside.
    pub host_ports: PortRange,
    /// Ports inside, as many.
    pub ports: PortRange,
}

impl Sandbox {
    /// The file to enter its namespace by; `None`: it is the host's.
    #[must_use]
    pub fn namespace_path(&self) -> Option<PathBuf> {
        self.namespace.path(&self.name)
    }

    /// Our ends of its veth pairs.
    #[must_use]
    pub fn host_ends(&self) -> Vec<String> {
        self.endpoints.iter().filter_map(|e| e.wire.host_end()).map(str::to_owned).collect()
    }
}

impl Namespace {
    /// The file to enter it by; `None`: it is the host's.
    #[must_use]
    pub fn path(&self, name: &Name) -> Option<PathBuf> {
        match self {
            Self::Made { .. } => Some(Path::new(NETNS_DIR).join(name.as_str())),
            Self::Adopted { path, .. } => Some(path.clone()),
            Self::Host => None,
        }
    }

    /// Its inode; `None`: it is the host's.
    #[must_use]
    pub const fn inode(&self) -> Option<u64> {
        match self {
            Self::Made { inode } | Self::Adopted { inode, .. } => Some(*inode),
            Self::Host => None,
        }
    }
}

/// Marks the number of the rule that leads to the sandbox's IPv6 address: it has one of its own
/// beside that of IPv4, of the same mapping.
const IPV6_RULE: u32 = 1 << 31;

impl Publish {
    /// The number after `last`: never 0, and never one with the mark of IPv6.
    #[must_use]
    pub const fn next_id(last: u32) -> u32 {
        (last & !IPV6_RULE) % (IPV6_RULE - 1) + 1
    }

    /// The numbers of its rules, that of IPv4 first.
    #[must_use]
    pub const fn rules(id: u32) -> [u32; 2] {
        [id & !IPV6_RULE, id | IPV6_RULE]
    }

    /// The half of it that leads to `address` of the sandbox: the rule's number, and at which of the
    /// host's addresses of that family, the unspecified one standing for all. `None`: it is of the
    /// other family.
    #[must_use]
    pub fn half(&self, address: IpAddr) -> Option<(u32, IpAddr)> {
        let [v4, v6] = Self::rules(self.id);
        let (id, any) = match address {
            IpAddr::V4(_) => (v4, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            IpAddr::V6(_) => (v6, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        };
        let host_ip = self.host_ip.unwrap_or(any);
        (host_ip.is_ipv4() == any.is_ipv4()).then_some((id, host_ip))
    }

    /// `[HOSTIP:]PORTS/PROTO`, for messages.
    #[must_use]
    pub fn host_side(&self) -> String {
        let Self { proto, host_ip, host_ports, .. } = self;
        match host_ip {
            Some(ip) => format!("{}:{host_ports}/{proto}", bracketed(*ip)),
            None => format!("{host_ports}/{proto}"),
        }
    }

    /// Whether the two cannot be published at the same time.
    #[must_use]
    pub fn clashes(&self, other: &Self) -> bool {
        self.proto == other.proto
            && self.host_ports.overlaps(other.host_ports)
            && meet(self.host_ip, other.host_ip)
    }
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

/// A way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uplink {
    /// Stable number.
    pub id: u16,
    /// The host's interface.
    pub interface: String,
    /// Who owns the addresses.
    pub mode: UplinkMode,
    /// Who wanted it.
    pub origin: Origin,
    /// Our addresses on the wire (dedicated). A shared uplink has those the host has now.
    pub addresses: Vec<IpNet>,
    /// Next hop (dedicated). A shared uplink has the one the host has now.
    pub gateway: Option<Ipv4Addr>,
    /// Next hop of IPv6, likewise.
    #[serde(default)]
    pub gateway6: Option<Ipv6Addr>,
    /// Ports that SNAT may use, as configured; empty: the mode's default.
    pub nat_ports: Vec<PortRange>,
    /// The interface had no qdisc for steering before: it goes with the uplink.
    pub made_qdisc: bool,
}

impl Uplink {
    /// The number as the engine takes it.
    #[must_use]
    pub const fn uplink_id(&self) -> UplinkId {
        UplinkId(self.id)
    }

    /// Its addresses of one family.
    pub fn addresses_of<N: Prefix>(&self) -> impl Iterator<Item = N> {
        self.addresses.iter().filter_map(|net| N::of(*net))
    }
}

/// A static route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Destination.
    pub destination: IpNet,
    /// Next hop, of the same family.
    pub via: IpAddr,
    /// The uplink's interface; `None`: the one whose prefix contains `via`.
    pub uplink: Option<String>,
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
    /// a network that is not internal, unless it has no untagged frames, as the gateway's are.
    #[must_use]
    pub fn gateway_endpoint<'a>(&'a self, sandbox: &'a Sandbox) -> Option<&'a Endpoint> {
        sandbox.endpoints.iter().find(|endpoint| self.has_way_out(endpoint))
    }

    fn has_way_out(&self, endpoint: &Endpoint) -> bool {
        let network = self.networks.get(&endpoint.network);
        network.is_some_and(|network| !network.internal) && endpoint.hears_the_gateway()
    }

    /// As [`Self::gateway_endpoint`], for IPv6: the first that has it.
    #[must_use]
    pub fn gateway_endpoint6<'a>(
        &'a self,
        sandbox: &'a Sandbox,
    ) -> Option<(&'a Endpoint, Ipv6Net)> {
        sandbox.endpoints.iter().find_map(|endpoint| {
            Some((endpoint, endpoint.ipv6.filter(|_| self.has_way_out(endpoint))?))
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
