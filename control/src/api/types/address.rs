//! Addresses as text in bodies.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use dataplane::packet::types::Mac;
use ipnet::IpNet;

use crate::error::{Error, Result};
use crate::text::serde_as_text;

/// A MAC address as text: six pairs of hex digits with colons.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub Mac);

serde_as_text!(MacAddr, "six pairs of hex digits with colons", "02:42:ac:1e:00:02");

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for MacAddr {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        text.parse().map(Self).map_err(|_| {
            Error::invalid(format!(
                "MAC address {text:?}: not six pairs of hex digits like 02:42:ac:1e:00:02"
            ))
        })
    }
}

impl From<Mac> for MacAddr {
    fn from(mac: Mac) -> Self {
        Self(mac)
    }
}

/// An address or a prefix to compare addresses with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AddressMatch(pub IpNet);

serde_as_text!(AddressMatch, "an IP address or a prefix in CIDR form", "10.20.0.0/16");

impl AddressMatch {
    /// Whether `address` is the address or lies in the prefix.
    #[must_use]
    pub fn matches(&self, address: IpAddr) -> bool {
        self.0.contains(&address)
    }
}

impl fmt::Display for AddressMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.prefix_len() == self.0.max_prefix_len() {
            fmt::Display::fmt(&self.0.addr(), f)
        } else {
            fmt::Display::fmt(&self.0, f)
        }
    }
}

impl FromStr for AddressMatch {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let net = match text.parse::<IpAddr>() {
            Ok(address) => Some(IpNet::from(address)),
            Err(_) => text.parse::<IpNet>().ok(),
        };
        net.map(Self).ok_or_else(|| {
            Error::invalid(format!("address {text:?}: neither an IP address nor ADDRESS/LENGTH"))
        })
    }
}
