//! Bodies about policies: who may begin a connection with whom.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::IpProtocol;
use crate::error::{Error, Result};
use crate::name::Name;
use crate::publish::PortRange;
use crate::text::serde_as_text;

/// What a rule does with connections that it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PolicyAction {
    /// No later rule is asked. What is neither published nor routed stays closed.
    Allow,
    /// Their packets are dropped.
    Deny,
}

impl fmt::Display for PolicyAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        })
    }
}

/// Which connections a rule is about, seen from its network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PolicyDirection {
    /// All.
    #[default]
    Any,
    /// From elsewhere to its sandboxes.
    In,
    /// From its sandboxes to elsewhere.
    Out,
    /// Between its sandboxes.
    Inside,
}

impl fmt::Display for PolicyDirection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Any => "any",
            Self::In => "in",
            Self::Out => "out",
            Self::Inside => "inside",
        })
    }
}

/// One end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyPeer {
    /// An address of this prefix.
    Net(IpNet),
    /// An address of this network, whatever its prefixes are then.
    Network(Name),
    /// An address of this sandbox, whatever they are then; nobody while there is none of the name.
    Sandbox(Name),
}

serde_as_text!(PolicyPeer, "a prefix, an address, network:NAME or sandbox:NAME", "203.0.113.0/24");

impl fmt::Display for PolicyPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(net) => net.fmt(f),
            Self::Network(name) => write!(f, "network:{name}"),
            Self::Sandbox(name) => write!(f, "sandbox:{name}"),
        }
    }
}

impl FromStr for PolicyPeer {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(name) = text.strip_prefix("network:") {
            return Name::parse("network", name).map(Self::Network);
        }
        if let Some(name) = text.strip_prefix("sandbox:") {
            return Name::parse("sandbox", name).map(Self::Sandbox);
        }
        let net = text
            .parse::<IpNet>()
            .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
            .map_err(|_| {
                Error::invalid(format!(
                    "{text:?} is neither a prefix like 203.0.113.0/24, an address, network:NAME nor \
                     sandbox:NAME"
                ))
            })?;
        if net.trunc() == net {
            Ok(Self::Net(net))
        } else {
            Err(Error::invalid(format!("{net} has host bits set; write {}", net.trunc())))
        }
    }
}

/// `POST /v1/policy`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyAdd {
    /// The network.
    pub network: Name,
    /// What the rule does.
    pub action: PolicyAction,
    /// Which connections it is about.
    #[serde(default)]
    pub direction: PolicyDirection,
    /// Who begins them: the real client also where a published port leads in; left out: anybody.
    #[serde(default)]
    pub src: Option<PolicyPeer>,
    /// Whom they are for: the sandbox also where a published port leads in; left out: anybody.
    #[serde(default)]
    pub dst: Option<PolicyPeer>,
    /// Protocol; `icmp` stands for ICMPv6 too. Left out: any.
    #[serde(default)]
    pub proto: Option<IpProtocol>,
    /// The port of whom they are for: the sandbox's own.
    #[serde(default)]
    pub port: Option<PortRange>,
    /// The published port that led them in.
    #[serde(default)]
    pub host_port: Option<PortRange>,
    /// Where it stands among the network's rules, from 1; left out: last.
    #[serde(default)]
    pub position: Option<u32>,
}

/// `POST /v1/policy/remove`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyRemove {
    /// The network.
    pub network: Name,
    /// The rule's number.
    pub id: u32,
}

/// `GET /v1/policy`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PolicyQuery {
    /// Only this network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Name>,
}

/// A rule of a network with what it did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyRule {
    /// The network.
    pub network: Name,
    /// Where it stands among the network's rules, from 1: the first that matches decides.
    pub position: u32,
    /// Its number, which no other rule gets.
    pub id: u32,
    /// What it does.
    pub action: PolicyAction,
    /// Which connections it is about.
    pub direction: PolicyDirection,
    /// Who begins them; `null`: anybody.
    pub src: Option<PolicyPeer>,
    /// Whom they are for; `null`: anybody.
    pub dst: Option<PolicyPeer>,
    /// Protocol; `null`: any.
    pub proto: Option<IpProtocol>,
    /// The port of whom they are for; `null`: any.
    pub port: Option<PortRange>,
    /// The published port that led them in; `null`: any, or none.
    pub host_port: Option<PortRange>,
    /// Packets it decided about: first ones of connections that it let in, all that it dropped.
    pub packets: u64,
    /// Bytes of them.
    pub bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_reads_as_it_is_shown() {
        for (text, shown) in [
            ("203.0.113.0/24", "203.0.113.0/24"),
            ("203.0.113.7", "203.0.113.7/32"),
            ("fd00::/8", "fd00::/8"),
            ("::1", "::1/128"),
            ("network:app", "network:app"),
            ("sandbox:web-1", "sandbox:web-1"),
        ] {
            assert_eq!(text.parse::<PolicyPeer>().unwrap().to_string(), shown);
        }
        for (text, fault) in [
            ("203.0.113.7/24", "write 203.0.113.0/24"),
            ("app", "network:NAME"),
            ("network:", "is empty"),
            ("sandbox:a/b", "contains '/'"),
        ] {
            let error = text.parse::<PolicyPeer>().unwrap_err();
            assert!(error.message.contains(fault), "{text}: {error}");
        }
    }
}
