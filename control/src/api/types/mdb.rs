//! Bodies about multicast groups.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::name::Name;

/// What a port is to multicast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum MdbKind {
    /// It is in a group.
    Member,
    /// A multicast router is behind it: it gets every group.
    Router,
}

/// A port that is in a multicast group, or behind which a multicast router is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MdbEntry {
    /// The network.
    pub network: Name,
    /// VLAN id; 0: untagged.
    pub vlan: u16,
    /// The group; of routers, null.
    #[schema(value_type = Option<String>)]
    pub group: Option<IpAddr>,
    /// The switch port: `SANDBOX/IFNAME`.
    pub port: String,
    /// The sandbox behind the port.
    pub sandbox: Option<Name>,
    /// Which of the two.
    pub kind: MdbKind,
    /// Seconds until it is forgotten, unless it is heard of again.
    pub expires_s: u64,
}

/// `GET /v1/mdb`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct MdbQuery {
    /// Only this network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Name>,
}
