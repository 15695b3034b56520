//! Bodies about capture, events and purge.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::name::Name;

/// `GET /v1/capture`: exactly one of `sandbox`, `uplink` and `network`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct CaptureQuery {
    /// Every interface of this sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<Name>,
    /// This uplink.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<String>,
    /// Every port of this network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Name>,
    /// End after so many frames.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Only frames that match this expression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
}

/// One line of `GET /v1/events`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Milliseconds since the epoch.
    pub time_ms: u64,
    /// What happened: `network_create`, `network_change`, `network_remove`,
    /// `network_connect`, `network_disconnect`, `sandbox_create`, `sandbox_remove`, `port_publish`,
    /// `port_unpublish`, `uplink_add`, `uplink_remove`, `purge`; or `missed` when the reader was
    /// too slow for some, so that it lists everything anew.
    pub event: String,
    /// The network it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Name>,
    /// The sandbox it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<Name>,
    /// Anything more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// Answer of `POST /v1/purge`: what is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Purged {
    /// Sandboxes.
    pub sandboxes: Vec<Name>,
    /// Networks.
    pub networks: Vec<Name>,
    /// Uplinks.
    pub uplinks: Vec<String>,
    /// Devices in the host's namespace.
    pub devices: Vec<String>,
}
