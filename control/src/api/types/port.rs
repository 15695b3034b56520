//! Bodies about published ports.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::name::Name;
use crate::publish::{Proto, PublishSpec};

/// `POST /v1/sandboxes/{name}/ports` and `…/ports/unpublish`. The answer is the list of
/// [`PortMapping`]s that were added or removed. In `unpublish`, a host port left out means every
/// mapping of the inside port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PublishRequest {
    /// What to publish or to unpublish; all or nothing.
    pub publish: Vec<PublishSpec>,
}

/// A published port or range of ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortMapping {
    /// Whose it is.
    pub sandbox: Name,
    /// Protocol.
    pub proto: Proto,
    /// Host address; `0.0.0.0`: every one.
    #[schema(value_type = String, example = "0.0.0.0")]
    pub host_ip: IpAddr,
    /// First host port.
    pub host_port: u16,
    /// Last host port.
    pub host_port_end: u16,
    /// First port in the sandbox.
    pub port: u16,
    /// Last port in the sandbox.
    pub port_end: u16,
}
