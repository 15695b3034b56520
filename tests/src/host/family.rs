//! The addresses of everybody in each IP version: what holds in both is shown by one test, over one network with
//! both.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{GATEWAY, GATEWAY6, HOST_IP, HOST_IP6, Sandbox};

/// Flags of a network with both families, whose gateways are those of [`Family::gateway`].
pub const APP: &str =
    "--subnet 10.91.1.0/24 --gateway 10.91.1.1 --subnet fd00:91::/64 --gateway fd00:91::1";

/// A listener at this address, of any port, takes both families.
pub const ANY: Ipv6Addr = Ipv6Addr::UNSPECIFIED;

/// One after the other.
pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    fn choose(self, v4: impl Into<IpAddr>, v6: impl Into<IpAddr>) -> IpAddr {
        match self {
            Self::V4 => v4.into(),
            Self::V6 => v6.into(),
        }
    }

    /// No address of this family.
    #[must_use]
    pub fn any(self) -> IpAddr {
        self.choose(Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED)
    }

    /// Of whoever asks.
    #[must_use]
    pub fn localhost(self) -> IpAddr {
        self.choose(Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST)
    }

    /// The machine at the other end of the uplink.
    #[must_use]
    pub fn outside(self) -> IpAddr {
        self.choose(GATEWAY, GATEWAY6)
    }

    /// What the host, or its daemon, answers for on the uplink.
    #[must_use]
    pub fn host(self) -> IpAddr {
        self.choose(HOST_IP, HOST_IP6)
    }

    /// Of the network `app` ([`APP`]).
    #[must_use]
    pub fn gateway(self) -> IpAddr {
        self.choose(Ipv4Addr::new(10, 91, 1, 1), Ipv6Addr::new(0xfd00, 0x91, 0, 0, 0, 0, 0, 1))
    }

    /// A sandbox in its first network.
    #[must_use]
    pub fn of(self, sandbox: &Sandbox) -> IpAddr {
        self.choose(sandbox.ip, sandbox.ip6)
    }

    /// Of these, the one that is of this family: `of([v4, v6])`.
    #[must_use]
    pub fn pick<T>(self, [v4, v6]: [T; 2]) -> T {
        match self {
            Self::V4 => v4,
            Self::V6 => v6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.pick(["IPv4", "IPv6"]))
    }
}
