//! Bodies about the way out: uplinks, routes, neighbors.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::MacAddr;
use crate::name::Name;
use crate::publish::PortRange;

/// Who owns an uplink's addresses.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum UplinkMode {
    /// The daemon alone; the host's stack is not involved.
    Dedicated,
    /// The host's stack; the daemon takes only what is its own.
    #[default]
    Shared,
}

impl UplinkMode {
    /// The lower-case name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dedicated => "dedicated",
            Self::Shared => "shared",
        }
    }
}

impl fmt::Display for UplinkMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// `POST /v1/uplinks`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UplinkAdd {
    /// The host's interface.
    pub interface: String,
    /// Who owns the addresses.
    #[serde(default)]
    pub mode: UplinkMode,
    /// Addresses with prefix length. `shared`: left out, those of the interface.
    #[serde(default)]
    #[schema(value_type = Vec<String>, example = json!(["192.0.2.2/24"]))]
    pub addresses: Vec<IpNet>,
    /// Default next hop of IPv4. `shared`: left out, that of the host's default route.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = Ipv4)]
    pub gateway: Option<Ipv4Addr>,
    /// Default next hop of IPv6, likewise.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = Ipv6)]
    pub gateway6: Option<Ipv6Addr>,
    /// Ports for SNAT. Left out: `dedicated` 1024-65535; `shared` what the host never uses.
    #[serde(default)]
    pub nat_ports: Option<PortRange>,
}

/// A way out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Uplink {
    /// The host's interface.
    pub interface: String,
    /// Who owns the addresses.
    pub mode: UplinkMode,
    /// Source MAC of what leaves.
    pub mac: MacAddr,
    /// Addresses with prefix length, those of IPv4 first.
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpNet>,
    /// Default next hop of IPv4.
    #[schema(value_type = Option<String>, format = Ipv4)]
    pub gateway: Option<Ipv4Addr>,
    /// Default next hop of IPv6.
    #[schema(value_type = Option<String>, format = Ipv6)]
    pub gateway6: Option<Ipv6Addr>,
    /// Ports that SNAT may use, ascending; a published one only for other protocols than its own, and
    /// at other addresses than its own.
    pub nat_ports: Vec<PortRange>,
    /// The interface is up and has an address.
    pub up: bool,
    /// Added by the daemon itself because none was configured.
    pub automatic: bool,
}

/// `POST /v1/routes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteAdd {
    /// Destination prefix.
    #[schema(value_type = String, example = "10.99.0.0/16")]
    pub destination: IpNet,
    /// Next hop, of the same family.
    #[schema(value_type = String)]
    pub via: IpAddr,
    /// The way out; left out: the one that reaches `via`.
    #[serde(default)]
    pub uplink: Option<String>,
}

/// `POST /v1/routes/remove`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteRemove {
    /// Destination prefix of a static route.
    #[schema(value_type = String, example = "10.99.0.0/16")]
    pub destination: IpNet,
}

/// Where a route comes from.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum RouteKind {
    /// A network's or an uplink's own prefix.
    Connected,
    /// An uplink's gateway.
    Default,
    /// `route add`.
    Static,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Route {
    /// Destination prefix.
    #[schema(value_type = String, example = "10.99.0.0/16")]
    pub destination: IpNet,
    /// Next hop; `null`: on-link.
    #[schema(value_type = Option<String>)]
    pub via: Option<IpAddr>,
    /// Out by this interface.
    pub uplink: Option<String>,
    /// Into this network.
    pub network: Option<Name>,
    /// Where it comes from.
    pub kind: RouteKind,
}

/// A neighbor, by ARP or Neighbor Discovery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Neighbor {
    /// Its address.
    #[schema(value_type = String)]
    pub address: IpAddr,
    /// Its MAC; `null` while asking.
    pub mac: Option<MacAddr>,
    /// The network it is in.
    pub network: Option<Name>,
    /// The uplink it is at.
    pub uplink: Option<String>,
    /// Seconds since it was last confirmed.
    pub age_s: u64,
}
