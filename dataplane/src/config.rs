//! The configuration as the workers read it: immutable, complete, published as a whole.
//!
//! Control fills a [`SnapshotSpec`] from names and files; [`Snapshot::build`] checks it and adds
//! the indexes. No name and no string gets in here.
//!
//! The indexes are asked for every frame, and what they hold comes from control alone: nobody
//! outside can aim at a bucket, so they need no keyed hash.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use rustc_hash::FxHashMap;

use crate::conntrack::Zone;
use crate::l3::route::{Prefix, RouteTable, RouteTarget};
use crate::nat::dnat::DnatTable;
use crate::nat::free_ports::FreePorts;
use crate::packet::types::{Mac, NetworkId, PortId, UplinkId};

/// What control says; order does not matter.
#[derive(Debug, Clone, Default)]
pub struct SnapshotSpec {
    /// Every attached port that is to carry frames.
    pub ports: Vec<PortConfig>,
    /// Every network.
    pub networks: Vec<NetworkConfig>,
    /// Every way out.
    pub uplinks: Vec<UplinkConfig>,
    /// Static routes, beside those that follow from networks and uplinks.
    pub routes: Vec<StaticRoute>,
    /// Published ports.
    pub dnat: Vec<DnatRule>,
    /// IPv4 addresses of the host's own stack, loopback excluded. Packets from containers to them
    /// go to the host through the network's host port.
    pub host_addresses: Vec<Ipv4Addr>,
    /// Idle timeouts of connections.
    pub timeouts: Timeouts,
    /// How long an FDB entry lives without a frame from it. IEEE 802.1D default: 300 s.
    pub fdb_ageing: Option<Duration>,
}

/// One port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortConfig {
    /// From [`crate::Engine::attach`].
    pub id: PortId,
    /// What is behind it.
    pub role: PortRole,
    /// The longest IP packet the port takes, in bytes (Ethernet header not counted).
    pub mtu: u16,
}

/// What is behind a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortRole {
    /// A container's interface.
    Endpoint {
        /// The network it is part of.
        network: NetworkId,
        /// Its MAC: known without learning.
        mac: Mac,
        /// Its IPv4 addresses: neighbors known without ARP.
        ipv4: Vec<Ipv4Addr>,
        /// Drop frames whose source MAC, IPv4 or ARP sender address is not one of the above.
        guard: bool,
    },
    /// The host's own leg in a network; it carries the gateway's address in the host's stack.
    Host {
        /// The network it is part of.
        network: NetworkId,
    },
    /// The wire of an uplink.
    Uplink {
        /// The uplink.
        uplink: UplinkId,
    },
}

/// One L2 domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Stable number.
    pub id: NetworkId,
    /// MAC of the router port. The host port has the same MAC.
    pub gateway_mac: Mac,
    /// Address of the gateway and length of the prefix, for each subnet.
    pub subnets: Vec<Subnet>,
    /// No way out and no way in.
    pub internal: bool,
    /// Rewrite the source of what leaves by an uplink.
    pub masquerade: bool,
    /// Endpoints may talk to each other.
    pub icc: bool,
    /// The longest IP packet of the network, in bytes.
    pub mtu: u16,
}

/// One subnet of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    /// The prefix.
    pub prefix: Prefix,
    /// The gateway's address in it; `None`: this subnet is not routed.
    pub gateway: Option<Ipv4Addr>,
}

/// Whether the host's stack shares the uplink's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UplinkMode {
    /// The engine owns MAC and addresses alone: it answers ARP and echo.
    Dedicated,
    /// The host's stack owns them; the engine takes only frames of its own connections and of
    /// published ports, and leaves everything else to the host.
    Shared,
}

/// One way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UplinkConfig {
    /// Stable number.
    pub id: UplinkId,
    /// The port with [`PortRole::Uplink`].
    pub port: PortId,
    /// Who owns the addresses.
    pub mode: UplinkMode,
    /// Source MAC of frames sent.
    pub mac: Mac,
    /// Addresses and their on-link prefixes. The first one of the route's prefix is used for SNAT.
    pub addresses: Vec<(Ipv4Addr, Prefix)>,
    /// Default next hop.
    pub gateway: Option<Ipv4Addr>,
    /// Ports that SNAT may use, inclusive ranges, ascending, not overlapping. Published ones are left
    /// out where they are published.
    pub nat_ports: Vec<(u16, u16)>,
    /// The longest IP packet of the wire, in bytes.
    pub mtu: u16,
}

/// A route that control was told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StaticRoute {
    /// Destination.
    pub prefix: Prefix,
    /// Next hop, on-link at the uplink.
    pub via: Ipv4Addr,
    /// The way out.
    pub uplink: UplinkId,
}

/// A published port or range of ports: one mapping whatever its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DnatRule {
    /// Stable number, for counters and for ending connections when it goes.
    pub id: u32,
    /// IP protocol number (TCP, UDP, SCTP).
    pub proto: u8,
    /// Only packets to this address; `None`: to any address of the host or the engine.
    pub host_ip: Option<Ipv4Addr>,
    /// First and last outside port.
    pub host_ports: (u16, u16),
    /// Inside address.
    pub to: Ipv4Addr,
    /// First inside port; the n-th outside port maps to the n-th inside port.
    pub to_port: u16,
    /// The network of the inside address.
    pub network: NetworkId,
}

/// Idle timeouts of connections. `nat.md` names the source of each default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP established. Linux: 432,000 s; RFC 5382 REQ-5 asks for at least 7,440 s.
    pub tcp_established: Duration,
    /// TCP before established. RFC 7857 §2.1: 240 s.
    pub tcp_opening: Duration,
    /// TCP after the first FIN. RFC 7857 §2.1: 240 s.
    pub tcp_closing: Duration,
    /// TCP after RST. RFC 7857 §2.2: 240 s.
    pub tcp_reset: Duration,
    /// TCP after both FINs were acknowledged. Linux: 120 s.
    pub tcp_time_wait: Duration,
    /// UDP. RFC 4787 REQ-5: 300 s recommended.
    pub udp: Duration,
    /// UDP to port 53. RFC 4787 REQ-5 allows shorter for well-known ports.
    pub udp_dns: Duration,
    /// ICMP queries. RFC 5508 REQ-2: 60 s.
    pub icmp: Duration,
    /// Other protocols. Linux: 600 s.
    pub other: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_established: Duration::from_secs(432_000),
            tcp_opening: Duration::from_secs(240),
            tcp_closing: Duration::from_secs(240),
            tcp_reset: Duration::from_secs(240),
            tcp_time_wait: Duration::from_secs(120),
            udp: Duration::from_secs(300),
            udp_dns: Duration::from_secs(30),
            icmp: Duration::from_secs(60),
            other: Duration::from_secs(600),
        }
    }
}

/// No timeout is longer, whoever sets it: a year. What an earlier run left behind is believed up to
/// this.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(MAX_TIMEOUT_SECS as u64);

/// [`MAX_TIMEOUT`] in seconds.
pub const MAX_TIMEOUT_SECS: u32 = 31_536_000;

/// IEEE 802.1D-2004 table 7-5: recommended ageing time.
pub const DEFAULT_FDB_AGEING: Duration = Duration::from_secs(300);

/// A specification that contradicts itself. Control checks user input before; this is the seam's
/// own guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Two ports, networks or uplinks with one id.
    #[error("id {0} is used twice")]
    DuplicateId(u16),
    /// A port names a network that is not there.
    #[error("port {0:?} names an unknown network or uplink")]
    UnknownParent(PortId),
    /// A rule or route names a network or uplink that is not there.
    #[error("a rule or route names an unknown network or uplink")]
    UnknownTarget,
    /// A network with the number that stands for the outside, [`Zone::OUTSIDE`].
    #[error("network number {0} is reserved")]
    ReservedId(u16),
    /// A range whose end lies before its start, or runs past port 65535.
    #[error("bad port range")]
    PortRange,
}

/// What the workers read.
#[derive(Debug, Default)]
pub struct Snapshot {
    ports: Vec<Option<PortEntry>>,
    networks: Vec<Option<Network>>,
    uplinks: Vec<Option<UplinkConfig>>,
    /// Longest-prefix match over networks, uplinks and static routes.
    pub routes: RouteTable,
    /// Published ports.
    pub dnat: DnatTable,
    /// Ports for SNAT.
    pub free_ports: FreePorts,
    /// Addresses at which published ports answer and which belong to the host or to us.
    local: FxHashMap<Ipv4Addr, LocalAddress>,
    /// See [`SnapshotSpec::timeouts`].
    pub timeouts: Timeouts,
    /// See [`SnapshotSpec::fdb_ageing`].
    pub fdb_ageing: Duration,
}

/// Whose address it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalAddress {
    /// The gateway of a network.
    Gateway(NetworkId),
    /// The host's own stack.
    Host,
    /// The engine's own, on a dedicated uplink.
    Uplink(UplinkId),
}

/// A port with what the workers need beside.
#[derive(Debug)]
pub struct PortEntry {
    /// As configured.
    pub config: PortConfig,
    /// The network, for endpoints and host ports.
    pub network: Option<NetworkId>,
}

/// A network with its indexes.
#[derive(Debug)]
pub struct Network {
    /// As configured.
    pub config: NetworkConfig,
    /// All ports, for floods.
    pub ports: Vec<PortId>,
    /// The host's leg.
    pub host_port: Option<PortId>,
    /// Endpoint addresses: neighbors that need no ARP.
    pub endpoints: FxHashMap<Ipv4Addr, (Mac, PortId)>,
    /// Endpoint MACs: FDB entries that need no learning.
    pub macs: FxHashMap<Mac, PortId>,
}

impl Network {
    /// Whether `address` is one of the network's gateway addresses.
    #[must_use]
    pub fn is_gateway(&self, address: Ipv4Addr) -> bool {
        self.config.subnets.iter().any(|s| s.gateway == Some(address))
    }

    /// The gateway address to speak from to `address`.
    #[must_use]
    pub fn gateway_for(&self, address: Ipv4Addr) -> Option<Ipv4Addr> {
        self.config
            .subnets
            .iter()
            .find(|s| s.prefix.contains(address))
            .or_else(|| self.config.subnets.first())
            .and_then(|s| s.gateway)
    }
}

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
            let target = RouteTarget::Uplink { uplink: route.uplink, via: Some(route.via) };
            snapshot.routes.insert(route.prefix, target);
        }
        for rule in &spec.dnat {
            snapshot.network(rule.network).ok_or(ConfigError::UnknownTarget)?;
        }
        snapshot.dnat = DnatTable::build(&spec.dnat)?;
        snapshot.free_ports = FreePorts::build(snapshot.uplinks(), &snapshot.dnat);
        Ok(snapshot)
    }

    fn add_network(&mut self, config: NetworkConfig) -> Result<(), ConfigError> {
        if Zone::network(config.id) == Zone::OUTSIDE {
            return Err(ConfigError::ReservedId(config.id.0));
        }
        for subnet in &config.subnets {
            self.routes.insert(subnet.prefix, RouteTarget::Network(config.id));
            if let Some(gateway) = subnet.gateway {
                self.local.insert(gateway, LocalAddress::Gateway(config.id));
            }
        }
        let id = config.id.0;
        let network = Network {
            config,
            ports: Vec::new(),
            host_port: None,
            endpoints: FxHashMap::default(),
            macs: FxHashMap::default(),
        };
        put(&mut self.networks, id, network)
    }

    fn add_uplink(&mut self, config: UplinkConfig) -> Result<(), ConfigError> {
        if config.nat_ports.iter().any(|(first, last)| first > last) {
            return Err(ConfigError::PortRange);
        }
        for (address, prefix) in &config.addresses {
            let target = RouteTarget::Uplink { uplink: config.id, via: None };
            self.routes.insert(*prefix, target);
            let local = match config.mode {
                UplinkMode::Dedicated => LocalAddress::Uplink(config.id),
                UplinkMode::Shared => LocalAddress::Host,
            };
            self.local.insert(*address, local);
        }
        if let Some(via) = config.gateway {
            let target = RouteTarget::Uplink { uplink: config.id, via: Some(via) };
            self.routes.insert_if_absent(Prefix::DEFAULT, target);
        }
        let id = config.id.0;
        put(&mut self.uplinks, id, config)
    }

    fn add_port(&mut self, config: PortConfig) -> Result<(), ConfigError> {
        let network_id = match &config.role {
            PortRole::Endpoint { network, .. } | PortRole::Host { network } => Some(*network),
            PortRole::Uplink { .. } => None,
        };
        if let Some(id) = network_id {
            let network = self
                .networks
                .get_mut(id.index())
                .and_then(Option::as_mut)
                .ok_or(ConfigError::UnknownParent(config.id))?;
            network.ports.push(config.id);
            match &config.role {
                PortRole::Endpoint { mac, ipv4, .. } => {
                    network.macs.insert(*mac, config.id);
                    for address in ipv4 {
                        network.endpoints.insert(*address, (*mac, config.id));
                    }
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
        put(&mut self.ports, id, PortEntry { config, network: network_id })
    }

    /// A configured port.
    #[must_use]
    #[inline]
    pub fn port(&self, id: PortId) -> Option<&PortEntry> {
        self.ports.get(id.index()).and_then(Option::as_ref)
    }

    /// A network.
    #[must_use]
    #[inline]
    pub fn network(&self, id: NetworkId) -> Option<&Network> {
        self.networks.get(id.index()).and_then(Option::as_ref)
    }

    /// An uplink.
    #[must_use]
    #[inline]
    pub fn uplink(&self, id: UplinkId) -> Option<&UplinkConfig> {
        self.uplinks.get(id.index()).and_then(Option::as_ref)
    }

    /// Whose address this is, if it is one of the host or of the engine.
    #[must_use]
    #[inline]
    pub fn local(&self, address: Ipv4Addr) -> Option<LocalAddress> {
        self.local.get(&address).copied()
    }

    /// Every network.
    pub fn networks(&self) -> impl Iterator<Item = &Network> {
        self.networks.iter().flatten()
    }

    /// Every uplink.
    pub fn uplinks(&self) -> impl Iterator<Item = &UplinkConfig> {
        self.uplinks.iter().flatten()
    }

    /// Every configured port.
    pub fn ports(&self) -> impl Iterator<Item = &PortEntry> {
        self.ports.iter().flatten()
    }

    /// All local addresses, for checks.
    #[must_use]
    pub fn local_addresses(&self) -> HashSet<Ipv4Addr> {
        self.local.keys().copied().collect()
    }
}
