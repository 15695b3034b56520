//! Records of policies.

use serde::{Deserialize, Serialize};

use crate::api::types::{IpProtocol, PolicyAction, PolicyDirection, PolicyPeer};
use crate::publish::PortRange;

/// A rule of a network's policy. They are kept with the network, in the order in which they are asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRule {
    /// Stable number.
    pub id: u32,
    /// What it does.
    pub action: PolicyAction,
    /// Which connections it is about.
    pub direction: PolicyDirection,
    /// Who begins them; `None`: anybody.
    pub src: Option<PolicyPeer>,
    /// Whom they are for; `None`: anybody.
    pub dst: Option<PolicyPeer>,
    /// Protocol; `None`: any.
    pub proto: Option<IpProtocol>,
    /// The port of whom they are for.
    pub port: Option<PortRange>,
    /// The published port that led them in.
    pub host_port: Option<PortRange>,
}
