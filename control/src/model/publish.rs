//! Records of published ports.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::publish::{PortRange, Proto, bracketed, meet};

/// A published port or range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// Stable number.
    pub id: u32,
    /// Protocol.
    pub proto: Proto,
    /// Only at this address of the host, the unspecified one standing for all of its family;
    /// `None`: at all of them.
    pub host_ip: Option<IpAddr>,
    /// Ports outside.
    pub host_ports: PortRange,
    /// Ports inside, as many.
    pub ports: PortRange,
}

/// Marks the number of the rule that leads to the sandbox's IPv6 address: it has one of its own
/// beside that of IPv4, of the same mapping.
const IPV6_RULE: u32 = 1 << 31;

impl Publish {
    /// The number after `last`: never 0, and never one with the mark of IPv6.
    #[must_use]
    pub const fn next_id(last: u32) -> u32 {
        (last & !IPV6_RULE) % (IPV6_RULE - 1) + 1
    }

    /// The numbers of its rules, that of IPv4 first.
    #[must_use]
    pub const fn rules(id: u32) -> [u32; 2] {
        [id & !IPV6_RULE, id | IPV6_RULE]
    }

    /// The half of it that leads to `address` of the sandbox: the rule's number, and at which of the
    /// host's addresses of that family, the unspecified one standing for all. `None`: it is of the
    /// other family.
    #[must_use]
    pub fn half(&self, address: IpAddr) -> Option<(u32, IpAddr)> {
        let [v4, v6] = Self::rules(self.id);
        let (id, any) = match address {
            IpAddr::V4(_) => (v4, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            IpAddr::V6(_) => (v6, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        };
        let host_ip = self.host_ip.unwrap_or(any);
        (host_ip.is_ipv4() == any.is_ipv4()).then_some((id, host_ip))
    }

    /// `[HOSTIP:]PORTS/PROTO`, for messages.
    #[must_use]
    pub fn host_side(&self) -> String {
        let Self { proto, host_ip, host_ports, .. } = self;
        match host_ip {
            Some(ip) => format!("{}:{host_ports}/{proto}", bracketed(*ip)),
            None => format!("{host_ports}/{proto}"),
        }
    }

    /// Whether the two cannot be published at the same time.
    #[must_use]
    pub fn clashes(&self, other: &Self) -> bool {
        self.proto == other.proto
            && self.host_ports.overlaps(other.host_ports)
            && meet(self.host_ip, other.host_ip)
    }
}
