//! Bodies about connections and NAT.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use dataplane::conntrack::STATES;
use dataplane::packet::types::ip_proto;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::AddressMatch;
use crate::error::{Error, Result};
use crate::name::Name;
use crate::text::serde_as_text;

/// Protocols that go by a name.
const PROTOCOLS: [(&str, u8); 5] = [
    ("icmp", ip_proto::ICMP),
    ("icmpv6", ip_proto::ICMPV6),
    ("sctp", ip_proto::SCTP),
    ("tcp", ip_proto::TCP),
    ("udp", ip_proto::UDP),
];

/// A protocol of a connection: a name in any case, or the IANA number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IpProtocol(pub u8);

serde_as_text!(IpProtocol, "tcp, udp, icmp, icmpv6, sctp or a protocol number", "tcp");

impl IpProtocol {
    /// TCP.
    pub const TCP: Self = Self(ip_proto::TCP);
}

impl fmt::Display for IpProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match PROTOCOLS.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => f.write_str(name),
            None => fmt::Display::fmt(&self.0, f),
        }
    }
}

impl FromStr for IpProtocol {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let named = PROTOCOLS.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
        // A sign is no part of a number here, though parse() takes it.
        let number = || text.starts_with(|c: char| c.is_ascii_digit()).then(|| text.parse().ok());
        named.map(|(_, number)| *number).or_else(|| number().flatten()).map(Self).ok_or_else(|| {
            Error::invalid(format!(
                "protocol {text:?}: neither tcp, udp, icmp, icmpv6, sctp nor a protocol number"
            ))
        })
    }
}

/// A state of a connection, as the list shows it; read in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionState(&'static str);

serde_as_text!(ConnectionState, "a state as `conntrack -L` names it", "ESTABLISHED");

impl fmt::Display for ConnectionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl FromStr for ConnectionState {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let known = STATES.into_iter().find(|state| state.eq_ignore_ascii_case(text));
        known.map(Self).ok_or_else(|| {
            Error::invalid(format!("state {text:?} is unknown; known are {}", STATES.join(", ")))
        })
    }
}

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
    /// `tcp`, `udp`, `icmp`, `icmpv6`, `sctp`, or the protocol number.
    pub proto: IpProtocol,
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

/// One line of `GET /v1/conntrack/events`; or, where the reader was too slow for some, a line with
/// `time_ms`, the `event` `missed` and in `detail` how many.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConnectionEvent {
    /// Milliseconds since the epoch.
    pub time_ms: u64,
    /// `new`, `update` or `destroy`.
    pub event: String,
    /// With `destroy`: `closed`, `endpoint_gone`, `evicted`, `flushed`, `no_neighbor`, `policy`, `published`, `rerouted`, `timeout` or `unpublished`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The connection as it is then; one that has ended, as it was last.
    #[serde(flatten)]
    pub connection: Connection,
}

/// `GET /v1/conntrack` and `POST /v1/conntrack/flush`: all that is given must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ConntrackFilter {
    /// `tcp`, `udp`, `icmp`, `sctp`, or a protocol number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proto: Option<IpProtocol>,
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
    pub state: Option<ConnectionState>,
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
        self.proto.is_none_or(|wanted| wanted == connection.proto)
            && self.src.is_none_or(|wanted| wanted.matches(connection.orig.src))
            && self.dst.is_none_or(|wanted| wanted.matches(connection.orig.dst))
            && self.sport.is_none_or(|wanted| wanted == connection.orig.sport)
            && self.dport.is_none_or(|wanted| wanted == connection.orig.dport)
            && self.state.is_none_or(|wanted| wanted.0 == connection.state)
            && (self.network.is_none() || self.network == connection.network)
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
    /// Connections that began with a segment from their middle, in the time of grace after a start without a
    /// table.
    #[serde(default)]
    pub picked_up: u64,
    /// Connections that nobody had answered, ended to make room for others.
    pub evicted: u64,
    /// What connections have announced to helpers.
    pub helpers: HelperStats,
}

/// What connections have announced to helpers, and became of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HelperStats {
    /// Connections that were expected.
    pub expected: u64,
    /// Those that came.
    pub used: u64,
    /// Announcements of another address than the sender's own.
    pub foreign: u64,
    /// Announcements, and control connections, beyond the limits.
    pub full: u64,
    /// Announcements for which no outside port was free.
    pub no_port: u64,
    /// Announcements of a port below 1024.
    pub privileged: u64,
    /// Announcements that would not have fitted into their segment in other words, or after too many others.
    pub too_long: u64,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_protocol_is_a_name_or_a_number() {
        for (text, number, shown) in [
            ("tcp", 6, "tcp"),
            ("TCP", 6, "tcp"),
            ("17", 17, "udp"),
            ("58", 58, "icmpv6"),
            ("47", 47, "47"),
        ] {
            let proto: IpProtocol = text.parse().unwrap();
            assert_eq!((proto.0, proto.to_string().as_str()), (number, shown), "{text}");
        }
        for text in ["", "carp", "256", "-1", "+6", " tcp"] {
            let error = text.parse::<IpProtocol>().unwrap_err();
            assert!(error.message.contains("neither tcp, udp, icmp, icmpv6, sctp"), "{error}");
        }
    }

    #[test]
    fn a_state_is_one_that_can_be() {
        assert_eq!("time_wait".parse::<ConnectionState>().unwrap().to_string(), "TIME_WAIT");
        for text in ["", "FOO", "established "] {
            let error = text.parse::<ConnectionState>().unwrap_err();
            assert!(error.message.contains("known are SYN_SENT, "), "{error}");
        }
    }

    #[test]
    fn a_filter_matches_what_it_names() {
        let tuple = Tuple {
            src: IpAddr::from([10, 0, 0, 1]),
            dst: IpAddr::from([10, 0, 0, 2]),
            sport: 1,
            dport: 2,
        };
        let connection = Connection {
            proto: IpProtocol(6),
            state: "ESTABLISHED".to_owned(),
            orig: tuple,
            reply: tuple,
            nat: NatKind::None,
            timeout_s: 1,
            packets: [0; 2],
            bytes: [0; 2],
            network: None,
        };
        let matches = |filter: serde_json::Value| {
            serde_json::from_value::<ConntrackFilter>(filter).unwrap().matches(&connection)
        };
        for (filter, expected) in [
            (serde_json::json!({}), true),
            (serde_json::json!({"proto": "6"}), true),
            (serde_json::json!({"proto": "udp"}), false),
            (serde_json::json!({"state": "established"}), true),
            (serde_json::json!({"state": "ASSURED"}), false),
            (serde_json::json!({"src": "10.0.0.0/31", "dport": 2}), true),
            (serde_json::json!({"network": "app"}), false),
        ] {
            assert_eq!(matches(filter.clone()), expected, "{filter}");
        }
    }
}
