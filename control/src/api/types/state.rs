//! What a daemon holds, as one document: to keep, to review, to edit, and to import elsewhere.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{MacAddr, NetnsRef, NetworkCreate, PolicyAdd, RouteAdd, UplinkAdd};
use crate::name::Name;
use crate::publish::PublishSpec;

/// `GET /v1/state`, and the body of `POST /v1/state`. What nobody chose is left out: the uplink of the
/// host's default route, and an unused network `bridge`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// The form of the document: 1.
    pub version: u32,
    /// Networks.
    #[serde(default)]
    pub networks: Vec<NetworkCreate>,
    /// Rules of networks, those of one network in the order in which they are asked, without `position`.
    #[serde(default)]
    pub policy: Vec<PolicyAdd>,
    /// Sandboxes.
    #[serde(default)]
    pub sandboxes: Vec<SandboxState>,
    /// Ways out.
    #[serde(default)]
    pub uplinks: Vec<UplinkAdd>,
    /// Static routes.
    #[serde(default)]
    pub routes: Vec<RouteAdd>,
    /// Static FDB entries.
    #[serde(default)]
    pub fdb: Vec<FdbState>,
}

impl State {
    /// The newest form that is understood.
    pub const VERSION: u32 = 1;
}

/// A sandbox of a [`State`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SandboxState {
    /// Its name.
    pub name: Name,
    /// It is the host's own namespace.
    #[serde(default)]
    pub host: bool,
    /// The file of the namespace that it adopted; `null`: the daemon makes one.
    #[serde(default)]
    pub netns: Option<NetnsRef>,
    /// Its interfaces, in the order in which they were connected: the first with a way out has the
    /// default route.
    #[serde(default)]
    pub endpoints: Vec<EndpointState>,
    /// Its published ports.
    #[serde(default)]
    pub publish: Vec<PublishSpec>,
}

/// A sandbox's interface of a [`State`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EndpointState {
    /// The network.
    pub network: Name,
    /// The interface's name; left out: the next free one.
    #[serde(default)]
    pub ifname: Option<String>,
    /// IPv4 address; left out: the next free one.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = Ipv4)]
    pub ip: Option<Ipv4Addr>,
    /// IPv6 address; left out: the next free one, if the network has IPv6.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = Ipv6)]
    pub ip6: Option<Ipv6Addr>,
    /// MAC; left out: `02:42` and the IPv4 address.
    #[serde(default)]
    pub mac: Option<MacAddr>,
    /// More names by which the network's other sandboxes find it.
    #[serde(default)]
    pub aliases: Vec<Name>,
    /// Its options.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

impl EndpointState {
    /// The addresses that it names.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.ip.map(IpAddr::V4);
        v4.into_iter().chain(self.ip6.map(IpAddr::V6))
    }
}

/// A static FDB entry of a [`State`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FdbState {
    /// The network.
    pub network: Name,
    /// The MAC.
    pub mac: MacAddr,
    /// VLAN id; 0: untagged.
    #[serde(default)]
    #[schema(maximum = 4094)]
    pub vlan: u16,
    /// Behind this sandbox's interface in the network; `null`: behind the host's leg.
    #[serde(default)]
    pub sandbox: Option<Name>,
}

/// Answer of `POST /v1/state`: what was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Imported {
    /// Networks.
    pub networks: Vec<Name>,
    /// Rules, by their networks.
    pub policy: Vec<Name>,
    /// Sandboxes.
    pub sandboxes: Vec<Name>,
    /// Ways out, by interface.
    pub uplinks: Vec<String>,
    /// Static routes, by destination.
    #[schema(value_type = Vec<String>)]
    pub routes: Vec<IpNet>,
    /// Static FDB entries, by MAC.
    pub fdb: Vec<MacAddr>,
    /// Networks, rules, uplinks, routes and FDB entries that were there already, as in the document.
    pub kept: u64,
}
