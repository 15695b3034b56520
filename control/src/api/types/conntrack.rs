//! Bodies about connections and NAT.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::AddressMatch;
use crate::name::Name;

/// One direction of a connection. For ICMP queries both ports are the identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Tuple {
    /// Source address.
    #[schema(value_type = String)]
    pub src: IpAddr,
    /// Destination address.
    #[schema(value_type = String)]
    pub dst: IpAddr,
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
}

/// What is rewritten in a connection.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum NatKind {
    /// Source and destination.
    Both,
    /// The destination.
    Dnat,
    /// Nothing.
    None,
    /// The source.
    Snat,
}

impl NatKind {
    /// From what is rewritten.
    #[must_use]
    pub const fn new(snat: bool, dnat: bool) -> Self {
        match (snat, dnat) {
            (true, true) => Self::Both,
            (false, true) => Self::Dnat,
            (false, false) => Self::None,
            (true, false) => Self::Snat,
        }
    }
}

/// A tracked connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Connection {
    /// `tcp`, `udp`, `icmp`, or the protocol number.
    pub proto: String,
    /// As `conntrack -L` names it.
    pub state: String,
    /// As the first packet came.
    pub orig: Tuple,
    /// As replies come.
    pub reply: Tuple,
    /// What is rewritten.
    pub nat: NatKind,
    /// Seconds until it expires if idle.
    pub timeout_s: u64,
    /// Packets in original and in reply direction.
    pub packets: [u64; 2],
    /// Bytes in original and in reply direction.
    pub bytes: [u64; 2],
    /// The inside network.
    pub network: Option<Name>,
}

/// `GET /v1/conntrack` and `POST /v1/conntrack/flush`: all that is given must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ConntrackFilter {
    /// `tcp`, `udp`, `icmp`, `sctp`, or a protocol number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proto: Option<String>,
    /// Source in original direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub src: Option<AddressMatch>,
    /// Destination in original direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dst: Option<AddressMatch>,
    /// Source port in original direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sport: Option<u16>,
    /// Destination port in original direction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dport: Option<u16>,
    /// State, in any case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// The inside network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Name>,
}

impl ConntrackFilter {
    /// Whether nothing is asked for, so that everything matches.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the connection is one of those asked for.
    #[must_use]
    pub fn matches(&self, connection: &Connection) -> bool {
        self.proto.as_deref().is_none_or(|wanted| {
            proto_name(wanted).eq_ignore_ascii_case(proto_name(&connection.proto))
        }) && self.src.is_none_or(|wanted| wanted.matches(connection.orig.src))
            && self.dst.is_none_or(|wanted| wanted.matches(connection.orig.dst))
            && self.sport.is_none_or(|wanted| wanted == connection.orig.sport)
            && self.dport.is_none_or(|wanted| wanted == connection.orig.dport)
            && self
                .state
                .as_deref()
                .is_none_or(|wanted| wanted.eq_ignore_ascii_case(&connection.state))
            && (self.network.is_none() || self.network == connection.network)
    }
}

/// The name for a protocol number, so that `6` and `tcp` are the same.
fn proto_name(text: &str) -> &str {
    match text {
        "1" => "icmp",
        "6" => "tcp",
        "17" => "udp",
        "132" => "sctp",
        other => other,
    }
}

/// `GET /v1/conntrack/stats`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConntrackStats {
    /// Entries now.
    pub entries: u64,
    /// Entries at most.
    pub limit: u64,
    /// Connections made.
    pub inserted: u64,
    /// Connections that timed out.
    pub expired: u64,
    /// Connections ended by flush, unpublish or removal.
    pub flushed: u64,
    /// New connections refused because the table was full.
    pub full: u64,
    /// Connections that two workers made at once; one of them won.
    pub clashes: u64,
    /// New connections refused because no outside port was free.
    pub ports_exhausted: u64,
}

/// A NAT rule with what it did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NatRule {
    /// `masquerade` or `dnat`.
    pub kind: String,
    /// The network it belongs to.
    pub network: Option<Name>,
    /// What it applies to.
    pub r#match: String,
    /// What it makes of it.
    pub to: String,
    /// First packets of connections it was applied to.
    pub packets: u64,
    /// Bytes of them.
    pub bytes: u64,
}
