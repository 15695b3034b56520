//! Records of ways out: uplinks and static routes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dataplane::packet::types::UplinkId;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Origin;
use crate::api::types::UplinkMode;
use crate::ipam::Prefix;
use crate::publish::PortRange;

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
