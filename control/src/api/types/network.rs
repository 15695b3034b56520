//! Bodies about networks.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::MacAddr;
use crate::error::{Error, Result};
use crate::name::Name;

/// What makes a network.
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
pub enum Driver {
    /// A switched network of this host with a gateway.
    #[default]
    Bridge,
    /// The host's own namespace: the one network of this driver is `host`.
    Host,
    /// Endpoints on a parent interface's wire, by address. Not built yet.
    Ipvlan,
    /// Endpoints on a parent interface's wire, by MAC. Not built yet.
    Macvlan,
    /// No interface but loopback: the one network of this driver is `none`.
    None,
    /// A switched network over several hosts. Not built yet.
    Overlay,
}

impl Driver {
    /// The lower-case name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Host => "host",
            Self::Ipvlan => "ipvlan",
            Self::Macvlan => "macvlan",
            Self::None => "none",
            Self::Overlay => "overlay",
        }
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Driver {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        [Self::Bridge, Self::Host, Self::Ipvlan, Self::Macvlan, Self::None, Self::Overlay]
            .into_iter()
            .find(|driver| driver.name() == text)
            .ok_or_else(|| {
                Error::invalid(format!(
                    "driver {text:?} is unknown; use bridge, macvlan, ipvlan or overlay"
                ))
            })
    }
}

/// One address range of a network, as asked for and as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Subnet {
    /// The prefix.
    #[schema(value_type = String, example = "10.20.1.0/24")]
    pub subnet: IpNet,
    /// The gateway's address. Left out in a request: the first address of the prefix.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "10.20.1.1")]
    pub gateway: Option<IpAddr>,
    /// Where addresses are given out from; `null`: the whole prefix.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "10.20.1.128/25")]
    pub ip_range: Option<IpNet>,
    /// Addresses in use by something else, by name; never given out.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, String>)]
    pub aux_addresses: BTreeMap<String, IpAddr>,
}

/// `POST /v1/networks`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkCreate {
    /// Its name.
    pub name: Name,
    /// What makes it.
    #[serde(default)]
    pub driver: Driver,
    /// Its address ranges. Without one of IPv4, the next free one of the pools.
    #[serde(default)]
    pub subnets: Vec<Subnet>,
    /// No way out and no way in.
    #[serde(default)]
    pub internal: bool,
    /// Give it an IPv6 range too: without one among `subnets`, the next free one of the pools.
    #[serde(default)]
    pub ipv6: bool,
    /// Options, under their own or Docker's names.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// The user's labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

impl NetworkCreate {
    /// Whether it is to have IPv6: asked for, or by a subnet of it.
    #[must_use]
    pub fn wants_ipv6(&self) -> bool {
        self.ipv6 || self.subnets.iter().any(|subnet| subnet.subnet.addr().is_ipv6())
    }
}

/// A network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Network {
    /// Its name.
    pub name: Name,
    /// 64 hex digits, never reused. The host's leg is `vsw-` and the first digits.
    pub id: String,
    /// What makes it.
    pub driver: Driver,
    /// No way out and no way in.
    pub internal: bool,
    /// It has an IPv6 range.
    pub ipv6: bool,
    /// Its address ranges.
    pub subnets: Vec<Subnet>,
    /// Options, under their short names.
    pub options: BTreeMap<String, String>,
    /// The user's labels.
    pub labels: BTreeMap<String, String>,
    /// Who is connected, sorted by sandbox.
    pub endpoints: Vec<NetworkEndpoint>,
}

/// A sandbox's interface, seen from its network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkEndpoint {
    /// The sandbox.
    pub sandbox: Name,
    /// The interface's name in the sandbox.
    pub ifname: String,
    /// Its MAC.
    pub mac: MacAddr,
    /// Its IPv4 address, without prefix length.
    #[schema(value_type = Option<String>, format = Ipv4)]
    pub ipv4: Option<Ipv4Addr>,
    /// Its IPv6 address, without prefix length.
    #[schema(value_type = Option<String>, format = Ipv6)]
    pub ipv6: Option<Ipv6Addr>,
    /// Its options.
    pub options: BTreeMap<String, String>,
    /// The switch port: `SANDBOX/IFNAME`, as `fdb` and `stats` show it.
    pub port: String,
}

/// `POST /v1/networks/{name}/connect`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConnectRequest {
    /// The sandbox.
    pub sandbox: Name,
    /// IPv4 address; left out: the next free one.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = Ipv4)]
    pub ip: Option<Ipv4Addr>,
    /// IPv6 address; left out: the next free one.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = Ipv6)]
    pub ip6: Option<Ipv6Addr>,
    /// MAC; left out: `02:42` and the IPv4 address.
    #[serde(default)]
    pub mac: Option<MacAddr>,
    /// More names by which the network's other sandboxes find it.
    #[serde(default)]
    pub aliases: Vec<Name>,
    /// Options of the endpoint.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

/// `POST /v1/networks/{name}/disconnect`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DisconnectRequest {
    /// The sandbox.
    pub sandbox: Name,
}

/// Answer of `POST /v1/networks/prune`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pruned {
    /// The networks that nobody used and that are gone now.
    pub networks: Vec<Name>,
}
