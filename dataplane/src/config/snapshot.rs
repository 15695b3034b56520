//! The configuration with its indexes.
//!
//! They are asked for every frame, and what they hold comes from control alone: nobody outside can aim
//! at a bucket, so they need no keyed hash.

mod build;

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use rustc_hash::{FxHashMap, FxHashSet};

use super::{NetworkConfig, Policy, PortConfig, PortRole, Subnet, Timeouts, UplinkConfig};
use crate::conntrack::{Owners, Zone};
use crate::family::{Address, AddressMap};
use crate::l3::route::{RouteTable, RouteTarget};
use crate::nat::dnat::DnatTable;
use crate::nat::free_ports::FreePorts;
use crate::packet::types::{Mac, NetworkId, PortId, UplinkId};

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
    local: AddressMap<LocalAddress>,
    /// Routers: gateways of uplinks and next hops of routes.
    next_hops: FxHashSet<(UplinkId, IpAddr)>,
    /// See [`super::SnapshotSpec::timeouts`].
    pub timeouts: Timeouts,
    /// By network, of those that have their own. Empty where there are none, so that packets need not look
    /// at their network for it.
    own_timeouts: Vec<Option<Timeouts>>,
    /// See [`super::SnapshotSpec::grace`].
    pub grace: Duration,
    /// See [`super::SnapshotSpec::fdb_ageing`].
    fdb_ageing: Duration,
    /// By network, of those that have their own: as `own_timeouts`.
    own_ageing: Vec<Option<Duration>>,
    /// Some network has a policy: where none has, nothing but this is looked at.
    pub(crate) has_policies: bool,
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
    /// Every IPv6 address that an endpoint has: the link-local one that follows from its MAC, and its own, of which there
    /// are none where the network has no IPv6 subnet.
    pub own6: Vec<Ipv6Addr>,
}

impl PortEntry {
    /// The VLAN of its untagged frames. `None`: it has none of those.
    #[must_use]
    #[inline]
    pub fn untagged(&self) -> Option<u16> {
        match &self.config.role {
            PortRole::Endpoint { vlans, .. } => vlans.untagged(),
            PortRole::Host { .. } | PortRole::Uplink { .. } => Some(0),
        }
    }

    /// Whether a frame of this VLAN, which is `tagged` now, leaves with a tag. `None`: it does not leave.
    /// The host's leg is in all VLANs and gets what there is as it came.
    #[must_use]
    #[inline]
    pub(crate) fn leaves_tagged(&self, vlan: u16, tagged: bool) -> Option<bool> {
        match &self.config.role {
            PortRole::Endpoint { vlans, .. } => vlans.leaves_tagged(vlan),
            PortRole::Host { .. } | PortRole::Uplink { .. } => Some(tagged),
        }
    }
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
    /// Endpoint addresses: neighbors that nobody needs to ask for.
    pub endpoints: AddressMap<(Mac, PortId)>,
    /// Endpoint MACs: FDB entries that need no learning.
    pub macs: FxHashMap<Mac, PortId>,
    /// Ports but the host's leg that take untagged frames: whom the gateway speaks to.
    pub untagged: Vec<PortId>,
    /// The VLANs that untagged frames are in, with zero for the host's leg.
    pub pvids: Vec<u16>,
    /// Whether one of its subnets is of IPv6.
    pub has_ipv6: bool,
    /// Whether it has a gateway of IPv4.
    pub routes_ipv4: bool,
    /// The gateway's link-local address, which follows from its MAC; of a network with a gateway of IPv6.
    pub link_local: Option<Ipv6Addr>,
    /// Who may begin a connection with whom.
    pub policy: Policy,
}

impl Network {
    /// Whether `address` is one of the network's gateway addresses, the link-local one included.
    #[must_use]
    pub fn is_gateway(&self, address: impl Into<IpAddr>) -> bool {
        let address = address.into();
        self.link_local.is_some_and(|own| address == own)
            || self.config.subnets.iter().any(|s| s.gateway == Some(address))
    }

    /// Whether it has a gateway of the family of `address`.
    #[must_use]
    pub fn routes(&self, address: impl Into<IpAddr>) -> bool {
        match address.into() {
            IpAddr::V4(_) => self.routes_ipv4,
            IpAddr::V6(_) => self.link_local.is_some(),
        }
    }

    /// Whether it is the address that all routers of a subnet have (RFC 4291 §2.6.1), of which the gateway
    /// is the only one.
    #[must_use]
    pub fn is_anycast(&self, address: Ipv6Addr) -> bool {
        self.config.subnets.iter().any(|subnet| anycast_of(subnet) == Some(address))
    }

    /// Whether its untagged frames are in more than one VLAN, so that the gateway is between them.
    #[must_use]
    pub fn is_divided(&self) -> bool {
        self.pvids.len() > 1
    }

    /// Whether the gateway tells hosts that it is a router of IPv6.
    #[must_use]
    pub fn is_advertised(&self) -> bool {
        self.config.ra && self.link_local.is_some()
    }

    /// The gateway address to speak from to `address`: that of its subnet, or else the first of its
    /// family.
    #[must_use]
    pub fn gateway_for<A: Address>(&self, address: A) -> Option<A> {
        let subnets = &self.config.subnets;
        let same_family = |s: &&Subnet| s.prefix.is_of_family(address);
        subnets
            .iter()
            .find(|s| s.prefix.contains(address))
            .or_else(|| subnets.iter().find(same_family))
            .and_then(|s| A::of(s.gateway?))
    }
}

/// The subnet-router anycast address of a subnet with a gateway. A prefix of 127 bits has none (RFC 6164
/// §5), nor has a single address.
fn anycast_of(subnet: &Subnet) -> Option<Ipv6Addr> {
    match (subnet.gateway, subnet.prefix.network()) {
        (Some(_), IpAddr::V6(first)) if subnet.prefix.prefix_len() < 127 => Some(first),
        _ => None,
    }
}

impl Snapshot {
    /// Idle timeouts of the connections of a network.
    #[must_use]
    #[inline]
    pub fn timeouts_of(&self, network: NetworkId) -> &Timeouts {
        match self.own_timeouts.get(network.index()) {
            Some(Some(own)) => own,
            _ => &self.timeouts,
        }
    }

    /// How long an FDB entry of a network lives.
    #[must_use]
    #[inline]
    pub fn ageing_of(&self, network: NetworkId) -> Duration {
        match self.own_ageing.get(network.index()) {
            Some(Some(own)) => *own,
            _ => self.fdb_ageing,
        }
    }

    /// Whether this MAC is that of an endpoint which is in this VLAN by its configuration: see
    /// [`Vlans::are_given`](crate::config::Vlans::are_given).
    #[must_use]
    pub fn is_at_home(&self, network: NetworkId, mac: Mac, vlan: u16) -> bool {
        let port = self.network(network).and_then(|network| network.macs.get(&mac));
        port.and_then(|port| self.port(*port)).is_some_and(|port| match &port.config.role {
            PortRole::Endpoint { vlans, .. } => vlans.are_given(vlan),
            PortRole::Host { .. } | PortRole::Uplink { .. } => vlan == 0,
        })
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
    pub fn local(&self, address: impl Into<IpAddr>) -> Option<LocalAddress> {
        self.local.get(address).copied()
    }

    /// Whether this is the address of an endpoint that has it outside too.
    #[must_use]
    pub fn is_routed_endpoint(&self, address: impl Into<IpAddr>) -> bool {
        let address = address.into();
        let Some(RouteTarget::Network(id)) = self.routes.lookup(address) else { return false };
        self.network(id).is_some_and(|network| {
            let config = &network.config;
            config.routed.of(address) && !config.internal && network.endpoints.contains(address)
        })
    }

    /// Whether a neighbor on an uplink's wire is a router that was configured.
    #[must_use]
    pub fn is_next_hop(&self, uplink: UplinkId, address: IpAddr) -> bool {
        self.next_hops.contains(&(uplink, address))
    }

    /// Every network.
    pub fn networks(&self) -> impl Iterator<Item = &Network> {
        self.networks.iter().flatten()
    }

    /// Every uplink.
    pub fn uplinks(&self) -> impl Iterator<Item = &UplinkConfig> {
        self.uplinks.iter().flatten()
    }

    /// Which endpoint has which address, for [`crate::conntrack::Accounts`].
    pub(crate) fn owners(&self) -> Owners {
        let mut owners = Owners::default();
        for network in self.networks() {
            let zone = Zone::network(network.config.id);
            let endpoints = network.endpoints.entries();
            owners.extend(endpoints.map(|(address, (mac, _))| ((zone, address), *mac)));
        }
        owners
    }

    /// How many connections networks may have, of those that have a limit.
    pub(crate) fn connection_limits(&self) -> FxHashMap<Zone, u32> {
        let limit = |network: &Network| {
            Some((Zone::network(network.config.id), network.config.conntrack_limit?))
        };
        self.networks().filter_map(limit).collect()
    }

    /// Every configured port.
    pub fn ports(&self) -> impl Iterator<Item = &PortEntry> {
        self.ports.iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::config::{ConfigError, SnapshotSpec, StaticRoute, UplinkMode, Vlans};
    use crate::l3::route::Prefix;

    const V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    const NEAR6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9);
    const FAR6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb9, 0, 0, 0, 0, 0, 9);
    const NETWORK: NetworkId = NetworkId(1);
    const UPLINK: UplinkId = UplinkId(1);

    fn subnet(gateway: impl Into<IpAddr> + Copy, len: u8) -> Subnet {
        Subnet { prefix: Prefix::new(gateway, len), gateway: Some(gateway.into()) }
    }

    /// One network and one uplink, each with both families.
    fn spec() -> SnapshotSpec {
        let inside6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
        SnapshotSpec {
            ports: vec![PortConfig {
                id: PortId(1),
                role: PortRole::Endpoint {
                    network: NETWORK,
                    mac: Mac([2; 6]),
                    ipv4: vec![Ipv4Addr::new(10, 0, 0, 2)],
                    ipv6: vec![Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2)],
                    guard: true,
                    trusted: false,
                    vlans: Vlans::All,
                },
                mtu: 1500,
            }],
            networks: vec![NetworkConfig {
                ra: true,
                ..NetworkConfig::new(
                    NETWORK,
                    Mac([4; 6]),
                    vec![subnet(Ipv4Addr::new(10, 0, 0, 1), 24), subnet(inside6, 64)],
                )
            }],
            uplinks: vec![UplinkConfig {
                id: UPLINK,
                port: PortId(2),
                mode: UplinkMode::Dedicated,
                mac: Mac([6; 6]),
                addresses: vec![
                    (V4.into(), Prefix::new(V4, 24)),
                    (FAR6.into(), Prefix::new(FAR6, 128)),
                    (V6.into(), Prefix::new(V6, 64)),
                ],
                gateway: Some(Ipv4Addr::new(192, 0, 2, 254)),
                gateway6: Some(NEAR6),
                nat_ports: vec![(1024, 65_535)],
                mtu: 1500,
                carrier_ups: 0,
            }],
            ..SnapshotSpec::default()
        }
    }

    #[test]
    fn each_family_has_its_own_ways_and_addresses() {
        let snapshot = Snapshot::build(spec()).unwrap();
        let via = |via: IpAddr| Some(RouteTarget::Uplink { uplink: UPLINK, via: Some(via) });
        let inside6 = |last| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last);
        assert_eq!(snapshot.routes.lookup(Ipv4Addr::new(8, 8, 8, 8)), via([192, 0, 2, 254].into()));
        assert_eq!(
            snapshot.routes.lookup(Ipv6Addr::new(0x2a00, 0, 0, 0, 0, 0, 0, 1)),
            via(NEAR6.into())
        );
        assert_eq!(snapshot.routes.lookup(inside6(7)), Some(RouteTarget::Network(NETWORK)));
        assert_eq!(snapshot.local(inside6(1)), Some(LocalAddress::Gateway(NETWORK)));
        assert_eq!(snapshot.local(V6), Some(LocalAddress::Uplink(UPLINK)));

        let network = snapshot.network(NETWORK).unwrap();
        assert_eq!(network.endpoints.get(inside6(2)), Some(&(Mac([2; 6]), PortId(1))));
        assert!(network.is_gateway(inside6(1)) && !network.is_gateway(inside6(2)));
        let of_the_gateway = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x0604, 0x04ff, 0xfe04, 0x0404);
        assert!(network.has_ipv6 && network.is_gateway(of_the_gateway));
        let of_the_endpoint = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x0002, 0x02ff, 0xfe02, 0x0202);
        assert_eq!(snapshot.port(PortId(1)).unwrap().own6, [of_the_endpoint, inside6(2)]);
        assert_eq!(network.gateway_for(V6), Some(inside6(1)), "no subnet has it");
        assert_eq!(network.gateway_for(V4), Some(Ipv4Addr::new(10, 0, 0, 1)));

        let uplink = snapshot.uplink(UPLINK).unwrap();
        assert_eq!(uplink.address_for(NEAR6), Some(V6), "on its prefix");
        assert_eq!(uplink.address_for(inside6(2)), Some(FAR6), "the first of its family");
        assert_eq!(uplink.address_for(Ipv4Addr::LOCALHOST), Some(V4));
        assert!(uplink.has(V6) && uplink.has(IpAddr::V4(V4)) && !uplink.has(NEAR6));
    }

    /// Rows: RFC 6888 REQ-3.
    #[test]
    fn several_addresses_share_who_is_inside() {
        let mut spec = spec();
        let uplink = &mut spec.uplinks[0];
        let own = |last| IpAddr::from([192, 0, 2, last]);
        uplink.addresses = (1..=4).map(|last| (own(last), Prefix::new(V4, 24))).collect();
        uplink.addresses.push((own(99), Prefix::new(Ipv4Addr::new(192, 0, 2, 99), 32)));
        let inside = |n: u8| IpAddr::from([10, 0, 0, n]);
        let router = own(254);
        let all = |uplink: &UplinkConfig| -> Vec<IpAddr> {
            (0..=255).map(|n| uplink.source_for(router, inside(n)).unwrap()).collect()
        };
        let four = all(uplink);
        for last in 1..=4 {
            let served = four.iter().filter(|address| **address == own(last)).count();
            assert!((40..90).contains(&served), "{last}: {served}");
        }
        // Who spoke from another address goes on from it.
        uplink.addresses.remove(3);
        let three = all(uplink);
        for (four, three) in four.iter().zip(three) {
            assert!(*four == three || *four == own(4));
        }
        uplink.mode = UplinkMode::Shared;
        assert!(all(uplink).iter().all(|address| *address == own(1)));
    }

    #[test]
    fn what_mixes_families_is_refused() {
        let changes: [fn(&mut SnapshotSpec); 3] = [
            |spec| spec.networks[0].subnets[0].gateway = Some(V6.into()),
            |spec| spec.uplinks[0].addresses[0].1 = Prefix::new(V6, 64),
            |spec| {
                let prefix = Prefix::new(V4, 24);
                spec.routes.push(StaticRoute { prefix, via: V6.into(), uplink: UPLINK });
            },
        ];
        for change in changes {
            let mut spec = spec();
            change(&mut spec);
            assert_eq!(Snapshot::build(spec).err(), Some(ConfigError::MixedFamilies));
        }
    }
}
