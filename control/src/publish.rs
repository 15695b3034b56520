//! Docker's way to write a published port: `[HOSTIP:][HOSTPORT[-END]:]PORT[-END][/tcp|udp|sctp]`.
//!
//! A range is one mapping whatever its length. A host port that is left out means any free one, and
//! a range of host ports for one port the first free one of that range.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::{Error, Result};
use crate::text::serde_as_text;

/// A transport protocol that has ports.
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
pub enum Proto {
    /// TCP, protocol number 6.
    #[default]
    Tcp,
    /// UDP, protocol number 17.
    Udp,
    /// SCTP, protocol number 132.
    Sctp,
}

impl Proto {
    /// The IANA protocol number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => dataplane::packet::types::ip_proto::TCP,
            Self::Udp => dataplane::packet::types::ip_proto::UDP,
            Self::Sctp => dataplane::packet::types::ip_proto::SCTP,
        }
    }

    /// The lower-case name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An inclusive range of L4 ports, neither of them 0, the first not above the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

serde_as_text!(PortRange, "a port or an inclusive range of ports, FIRST-LAST", "1024-65535");

impl PortRange {
    /// The range, unless a port is 0 or the order is wrong.
    #[must_use]
    pub const fn new(first: u16, last: u16) -> Option<Self> {
        if first == 0 || last < first { None } else { Some(Self { first, last }) }
    }

    /// The lowest port.
    #[must_use]
    pub const fn first(self) -> u16 {
        self.first
    }

    /// The highest port.
    #[must_use]
    pub const fn last(self) -> u16 {
        self.last
    }

    /// How many ports, 1 to 65535.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a range holds one port at least")]
    pub const fn len(self) -> u16 {
        // No overflow: first is at least 1.
        self.last - self.first + 1
    }

    /// Whether every port of the other is in it.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    /// Whether the two share a port.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

impl FromStr for PortRange {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (first, last) = match text.split_once('-') {
            Some((first, last)) => (port(first)?, port(last)?),
            None => {
                let only = port(text)?;
                (only, only)
            }
        };
        Self::new(first, last).ok_or_else(|| {
            Error::invalid(format!(
                "port range {text:?}: ends before it begins; write {last}-{first}"
            ))
        })
    }
}

/// One port. Only digits: `u16::from_str` would take a sign.
fn port(text: &str) -> Result<u16> {
    let number = if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None };
    match number {
        Some(number) if number > 0 => Ok(number),
        _ if text.is_empty() => Err(Error::invalid("port number missing")),
        _ => Err(Error::invalid(format!("port {text:?}: not a number from 1 to 65535"))),
    }
}

/// Whether a port that is published at `host_ip` is published at this address of the host. `None`
/// is every address, the unspecified one every address of its family.
#[must_use]
pub fn is_at(host_ip: Option<IpAddr>, address: IpAddr) -> bool {
    host_ip
        .is_none_or(|ip| ip == address || ip.is_unspecified() && ip.is_ipv4() == address.is_ipv4())
}

/// Whether two host addresses, as in [`is_at`], have one in common.
#[must_use]
pub fn meet(a: Option<IpAddr>, b: Option<IpAddr>) -> bool {
    match (a, b) {
        (Some(one), Some(other)) => is_at(a, other) || is_at(b, one),
        _ => true,
    }
}

/// An address before a colon.
#[must_use]
pub fn bracketed(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

/// A published port or range of ports as the user wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PublishSpec {
    /// Only at this host address, the unspecified one standing for all of its family; `None`: at
    /// every one.
    pub host_ip: Option<IpAddr>,
    /// Host ports, as many as `ports`; `None`: any free ones; a range for one of `ports`: the first
    /// free one of it.
    pub host_ports: Option<PortRange>,
    /// Ports in the sandbox.
    pub ports: PortRange,
    /// Protocol.
    pub proto: Proto,
}

impl PublishSpec {
    /// Which one of its host ports is left to us.
    #[must_use]
    pub fn chooses(&self) -> bool {
        self.host_ports.is_some_and(|ports| ports.len() != self.ports.len())
    }
}

serde_as_text!(
    PublishSpec,
    "[HOSTIP:][HOSTPORT[-END]:]PORT[-END][/tcp|udp|sctp]; a host port left out is any free one, \
     a range of them for one PORT any free one of these",
    "127.0.0.1:8080:80/tcp"
);

impl fmt::Display for PublishSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.host_ip, self.host_ports) {
            (Some(ip), Some(host)) => write!(f, "{}:{host}:", bracketed(ip))?,
            (Some(ip), None) => write!(f, "{}::", bracketed(ip))?,
            (None, Some(host)) => write!(f, "{host}:")?,
            (None, None) => {}
        }
        write!(f, "{}/{}", self.ports, self.proto)
    }
}

impl FromStr for PublishSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse(text).map_err(|error| error.context(format_args!("publish {text:?}")))
    }
}

fn parse(text: &str) -> Result<PublishSpec> {
    const FORM: &str = "write [HOSTIP:][HOSTPORT[-END]:]PORT[-END][/tcp|udp|sctp]";
    if text.is_empty() {
        return Err(Error::invalid(format!("is empty; {FORM}")));
    }
    let (rest, proto) = match text.rsplit_once('/') {
        None => (text, Proto::Tcp),
        Some((rest, proto)) => match proto.to_ascii_lowercase().as_str() {
            "tcp" => (rest, Proto::Tcp),
            "udp" => (rest, Proto::Udp),
            "sctp" => (rest, Proto::Sctp),
            _ => {
                return Err(Error::invalid(format!(
                    "protocol {proto:?} is unknown; use tcp, udp or sctp"
                )));
            }
        },
    };
    let (host, ports) = match rest.rsplit_once(':') {
        None => (None, rest),
        Some((host, ports)) => (Some(host), ports),
    };
    let ports: PortRange = ports.parse()?;
    let (host_ip, host_ports) = match host {
        None => (None, None),
        Some(host) => match host_ip_and_port(host)? {
            (ip, "") if ip.is_some() => (ip, None),
            (_, "") => return Err(Error::invalid(format!("host port missing; {FORM}"))),
            (ip, host_ports) => (ip, Some(host_ports.parse::<PortRange>()?)),
        },
    };
    if let Some(host_ports) = host_ports
        && host_ports.len() != ports.len()
        && ports.len() != 1
    {
        return Err(Error::invalid(format!(
            "{} host ports cannot map to {} sandbox ports; give ranges of equal length, or one \
             sandbox port",
            host_ports.len(),
            ports.len()
        )));
    }
    Ok(PublishSpec { host_ip, host_ports, ports, proto })
}

/// Splits `[HOSTIP:]HOSTPORT` at the colon that belongs to neither an address nor a port.
fn host_ip_and_port(host: &str) -> Result<(Option<IpAddr>, &str)> {
    let no_port = |ip: &str| {
        Error::invalid(format!(
            "host port missing after {ip}; write {ip}:HOSTPORT:PORT, or {ip}::PORT for any free one"
        ))
    };
    if let Some(bracketed) = host.strip_prefix('[') {
        let Some((ip, port)) = bracketed.split_once(']') else {
            return Err(Error::invalid("']' missing after the IPv6 host address"));
        };
        let fault = |fault: &str| Error::invalid(format!("host address [{ip}]: {fault}"));
        let v6: std::net::Ipv6Addr = ip.parse().map_err(|_| fault("not an IPv6 address"))?;
        if v6.to_ipv4_mapped().is_some() || v6.is_unicast_link_local() || v6.is_multicast() {
            return Err(fault("not one that the host answers everywhere at; give a global one"));
        }
        return match port.strip_prefix(':') {
            Some(port) => Ok((Some(v6.into()), port)),
            None if port.is_empty() => Err(no_port(&format!("[{v6}]"))),
            None => Err(fault("is followed by more than a port")),
        };
    }
    let Some((ip, port)) = host.rsplit_once(':') else {
        // `127.0.0.1:80` means a host port to Docker, and `127.0.0.1` is none.
        return match host.parse::<IpAddr>() {
            Ok(ip) => Err(no_port(&bracketed(ip))),
            Err(_) => Ok((None, host)),
        };
    };
    match ip.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => Ok((Some(ip.into()), port)),
        Ok(IpAddr::V6(ip)) => {
            Err(Error::invalid(format!("host address {ip}: write it in brackets, [{ip}]")))
        }
        Err(_) => Err(Error::invalid(format!("host address {ip:?}: not an IP address"))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(first: u16, last: u16) -> PortRange {
        PortRange::new(first, last).unwrap()
    }

    #[test]
    fn docker_forms() {
        let lo = Some(IpAddr::from([127, 0, 0, 1]));
        let (any4, any6) = (Some(IpAddr::from([0; 4])), Some(IpAddr::from([0; 16])));
        let v6 = Some("fd00::1".parse().unwrap());
        let table = [
            ("80", None, None, range(80, 80), Proto::Tcp),
            ("80/udp", None, None, range(80, 80), Proto::Udp),
            ("80/SCTP", None, None, range(80, 80), Proto::Sctp),
            ("8080:80", None, Some(range(8080, 8080)), range(80, 80), Proto::Tcp),
            ("8000-8010:80-90", None, Some(range(8000, 8010)), range(80, 90), Proto::Tcp),
            ("1-65535:1-65535", None, Some(range(1, 65535)), range(1, 65535), Proto::Tcp),
            ("8080-8082:80", None, Some(range(8080, 8082)), range(80, 80), Proto::Tcp),
            ("127.0.0.1:8080:80/tcp", lo, Some(range(8080, 8080)), range(80, 80), Proto::Tcp),
            ("127.0.0.1::80", lo, None, range(80, 80), Proto::Tcp),
            ("127.0.0.1::80-81/udp", lo, None, range(80, 81), Proto::Udp),
            ("0.0.0.0:53:53/udp", any4, Some(range(53, 53)), range(53, 53), Proto::Udp),
            ("0.0.0.0::53", any4, None, range(53, 53), Proto::Tcp),
            ("[::]:8080:80", any6, Some(range(8080, 8080)), range(80, 80), Proto::Tcp),
            ("[fd00::1]:80-89:80-89/udp", v6, Some(range(80, 89)), range(80, 89), Proto::Udp),
            ("[fd00::1]::80", v6, None, range(80, 80), Proto::Tcp),
        ];
        for (text, host_ip, host_ports, ports, proto) in table {
            let spec: PublishSpec = text.parse().unwrap();
            assert_eq!(spec, PublishSpec { host_ip, host_ports, ports, proto }, "{text}");
        }
    }

    /// Rows: netavark `invalid host IP`.
    #[test]
    fn errors_name_the_fault() {
        let table = [
            ("", "is empty"),
            ("http", "port \"http\": not a number from 1 to 65535"),
            ("0", "port \"0\""),
            ("65536", "port \"65536\""),
            ("+80", "port \"+80\""),
            ("80-", "port number missing"),
            ("90-80", "ends before it begins; write 80-90"),
            ("80/icmp", "protocol \"icmp\" is unknown"),
            ("80/", "protocol \"\" is unknown"),
            (":80", "host port missing"),
            ("8080:", "port number missing"),
            ("8080-8082:80-81", "3 host ports cannot map to 2 sandbox ports"),
            ("8080:80-81", "1 host ports cannot map to 2 sandbox ports"),
            ("127.0.0.1:80", "host port missing after 127.0.0.1"),
            ("1.2.3:80:80", "host address \"1.2.3\": not an IP address"),
            ("300.0.0.1:80:80", "not an IP address"),
            ("[::1]:80", "host port missing after [::1]; write [::1]:HOSTPORT:PORT"),
            ("::1:80:80", "host address ::1: write it in brackets, [::1]"),
            ("[::1]80:80", "is followed by more than a port"),
            ("[fe80::1]:80:80", "give a global one"),
            ("[::ffff:192.0.2.1]:80:80", "give a global one"),
            ("[192.0.2.1]:80:80", "not an IPv6 address"),
            ("[::g]:80:80", "not an IPv6 address"),
            ("[::1:80:80", "']' missing"),
            ("a:b:c:80", "not an IP address"),
        ];
        for (text, fault) in table {
            let error = text.parse::<PublishSpec>().unwrap_err();
            assert!(error.message.contains(fault), "{text:?}: {}", error.message);
            assert!(error.message.starts_with(&format!("publish {text:?}: ")), "{}", error.message);
            assert_eq!(error.exit_code(), 2);
        }
    }

    #[test]
    fn ranges_overlap_when_they_share_a_port() {
        assert!(range(1, 5).overlaps(range(5, 9)));
        assert!(range(5, 9).overlaps(range(1, 5)));
        assert!(!range(1, 4).overlaps(range(5, 9)));
        assert!(range(1, 5).contains(range(1, 5)) && range(1, 5).contains(range(2, 2)));
        assert!(!range(1, 5).contains(range(5, 6)) && !range(2, 5).contains(range(1, 2)));
    }

    #[test]
    fn host_addresses_meet_in_their_family() {
        let ip = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        let table = [
            (None, ip("fd00::1"), true),
            (None, None, true),
            (ip("0.0.0.0"), ip("192.0.2.1"), true),
            (ip("::"), ip("fd00::1"), true),
            (ip("0.0.0.0"), ip("::"), false),
            (ip("::"), ip("192.0.2.1"), false),
            (ip("fd00::1"), ip("fd00::2"), false),
            (ip("fd00::1"), ip("fd00::1"), true),
        ];
        for (a, b, met) in table {
            assert_eq!((meet(a, b), meet(b, a)), (met, met), "{a:?} {b:?}");
        }
        assert!(is_at(ip("::"), "fd00::9".parse().unwrap()));
        assert!(!is_at(ip("fd00::9"), "::".parse().unwrap()), "the one is not all");
    }

    fn any_range() -> impl Strategy<Value = PortRange> {
        (1u16.., 1u16..).prop_map(|(a, b)| range(a.min(b), a.max(b)))
    }

    fn any_spec() -> impl Strategy<Value = PublishSpec> {
        let proto = prop_oneof![Just(Proto::Tcp), Just(Proto::Udp), Just(Proto::Sctp)];
        (any::<Option<IpAddr>>(), any::<Option<u16>>(), any_range(), proto).prop_map(
            |(ip, host, ports, proto)| {
                let host_ports = host.map(|wanted| {
                    let length = ports.len() - 1;
                    let first = wanted.clamp(1, u16::MAX - length);
                    range(first, first + length)
                });
                let odd = |ip: &IpAddr| {
                    matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()
                        || v6.is_unicast_link_local() || v6.is_multicast())
                };
                let host_ip = ip.filter(|ip| !odd(ip));
                PublishSpec { host_ip, host_ports, ports, proto }
            },
        )
    }

    proptest! {
        #[test]
        fn text_and_back(spec in any_spec()) {
            prop_assert_eq!(spec.to_string().parse::<PublishSpec>().unwrap(), spec);
        }

        #[test]
        fn nonsense_is_one_line(text in "[0-9:./\\[\\]a-z-]{0,24}") {
            if let Err(error) = text.parse::<PublishSpec>() {
                prop_assert!(!error.message.contains('\n'));
            }
        }
    }
}
