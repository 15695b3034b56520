//! Bodies about the FDB.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::MacAddr;
use crate::name::Name;

/// Who says where a MAC is.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum FdbKind {
    /// A frame from it.
    Learned,
    /// The daemon: an endpoint's or a gateway's own.
    Local,
    /// Another host.
    Remote,
    /// `fdb add`.
    Static,
}

/// An FDB entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FdbEntry {
    /// The network.
    pub network: Name,
    /// The MAC.
    pub mac: MacAddr,
    /// VLAN id; 0: untagged.
    pub vlan: u16,
    /// The switch port: `SANDBOX/IFNAME`, or the host's leg by its device name.
    pub port: String,
    /// The sandbox behind the port.
    pub sandbox: Option<Name>,
    /// Who says so.
    pub kind: FdbKind,
    /// Seconds since the last frame from it.
    pub age_s: u64,
}

/// `GET /v1/fdb`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct FdbQuery {
    /// Only this network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Name>,
}

/// `POST /v1/fdb`. Names the port by `sandbox` or by `port`, not by both. Answers with the
/// [`FdbEntry`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FdbAdd {
    /// The network.
    pub network: Name,
    /// The MAC.
    pub mac: MacAddr,
    /// Behind this sandbox's interface in the network.
    #[serde(default)]
    pub sandbox: Option<Name>,
    /// Behind this port.
    #[serde(default)]
    pub port: Option<String>,
    /// VLAN id; 0: untagged.
    #[serde(default)]
    #[schema(maximum = 4094)]
    pub vlan: u16,
}

/// `POST /v1/fdb/remove`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FdbRemove {
    /// The network.
    pub network: Name,
    /// The MAC.
    pub mac: MacAddr,
    /// VLAN id; 0: untagged.
    #[serde(default)]
    #[schema(maximum = 4094)]
    pub vlan: u16,
}

/// `POST /v1/fdb/flush`: forgets what was learned.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FdbFlush {
    /// Only in this network.
    #[serde(default)]
    pub network: Option<Name>,
}

/// Answer of everything that removes several things at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Removed {
    /// How many.
    pub removed: u64,
}
