//! Records of networks.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane::packet::types::{Mac, NetworkId};
use ipnet::{IpNet, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::{Origin, PolicyRule};
use crate::ipam::SubnetPlan;
use crate::name::Name;
use crate::options;

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
    /// Who may begin a connection with whom.
    #[serde(default)]
    pub policy: Vec<PolicyRule>,
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

    /// Prefix and gateway of each subnet, those of IPv4 first. `None`: the network is isolated in that family,
    /// and nobody has the address.
    pub fn gateways(&self) -> impl Iterator<Item = (IpNet, Option<IpAddr>)> {
        let v4 = self.subnets.iter().map(|plan| (plan.subnet.into(), plan.gateway.into()));
        let v6 = self.subnets6.iter().map(|plan| (plan.subnet.into(), plan.gateway.into()));
        v4.chain(v6).map(|(net, gateway)| (net, Some(gateway).filter(|it| !self.is_isolated(*it))))
    }

    /// Whether there is no gateway of the family of `address`.
    #[must_use]
    pub fn is_isolated(&self, address: impl Into<IpAddr>) -> bool {
        options::is_isolated(&self.options, address.into())
    }

    /// Whether it has no gateway at all.
    #[must_use]
    pub fn has_no_gateway(&self) -> bool {
        self.gateways().all(|(_, gateway)| gateway.is_none())
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
