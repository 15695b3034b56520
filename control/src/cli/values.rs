//! Values on the command line: what syntax alone decides, with a word on what is expected.
//!
//! clap names the value and the flag before these messages.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

use crate::check;
use crate::error::Error;
use crate::name::Name;

type Parsed<T> = std::result::Result<T, String>;

/// A network's name.
pub(crate) fn network(text: &str) -> Parsed<Name> {
    Name::parse("network", text).map_err(|error| error.message)
}

/// A sandbox's name.
pub(crate) fn sandbox(text: &str) -> Parsed<Name> {
    Name::parse("sandbox", text).map_err(|error| error.message)
}

/// An interface's name.
pub(crate) fn interface(text: &str) -> Parsed<String> {
    check::interface(text).map(|()| text.to_owned()).map_err(|error| error.message)
}

/// An address of either family.
pub(crate) fn ip(text: &str) -> Parsed<IpAddr> {
    text.parse().map_err(|_| "not an IP address like 10.20.1.5".to_owned())
}

/// An IPv4 address.
pub(crate) fn ipv4(text: &str) -> Parsed<Ipv4Addr> {
    text.parse().map_err(|_| match text.parse::<Ipv6Addr>() {
        Ok(_) => "is IPv6; an IPv4 address is expected here".to_owned(),
        Err(_) => "not an IPv4 address like 10.20.1.5".to_owned(),
    })
}

/// An IPv6 address.
pub(crate) fn ipv6(text: &str) -> Parsed<Ipv6Addr> {
    text.parse().map_err(|_| "not an IPv6 address like fd00::5".to_owned())
}

/// A prefix of either family.
pub(crate) fn cidr(text: &str) -> Parsed<IpNet> {
    text.parse().map_err(|_| "not a prefix like 10.20.1.0/24".to_owned())
}

/// A prefix of either family, or `default`, which is that of IPv4 unless the next hop says
/// otherwise.
pub(crate) fn destination(text: &str) -> Parsed<IpNet> {
    if text == "default" {
        return Ok(Ipv4Net::default().into());
    }
    text.parse().map_err(|_| "neither a prefix like 10.20.0.0/16 nor default".to_owned())
}

/// An address of either family with prefix length.
pub(crate) fn own_cidr(text: &str) -> Parsed<IpNet> {
    text.parse().map_err(|_| "not an address with prefix length like 192.0.2.2/24".to_owned())
}

/// A port, or the id of ICMP, which stands in its place.
pub(crate) fn port(text: &str) -> Parsed<u16> {
    text.parse().map_err(|_| "not a number from 0 to 65535".to_owned())
}

/// How many frames.
pub(crate) fn count(text: &str) -> Parsed<u64> {
    let count = text.parse().ok().filter(|count| *count > 0);
    count.ok_or_else(|| "not a whole number from 1".to_owned())
}

/// A VLAN id.
pub(crate) fn vlan(text: &str) -> Parsed<u16> {
    text.parse()
        .ok()
        .filter(|id| *id <= check::MAX_VLAN)
        .ok_or_else(|| format!("not a VLAN id from 0 to {}", check::MAX_VLAN))
}

/// `KEY=VALUE`.
pub(crate) fn key_value(text: &str) -> Parsed<(String, String)> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("not KEY=VALUE".to_owned()),
    }
}

/// `KEY` or `KEY=VALUE`.
pub(crate) fn label(text: &str) -> Parsed<(String, String)> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.is_empty() {
        return Err("not KEY=VALUE".to_owned());
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// `NAME=IP`.
pub(crate) fn aux_address(text: &str) -> Parsed<(String, IpAddr)> {
    let fault = || "not NAME=IP like printer=10.20.1.9".to_owned();
    let (name, address) = text.split_once('=').ok_or_else(fault)?;
    if name.is_empty() {
        return Err(fault());
    }
    Ok((name.to_owned(), address.parse().map_err(|_| fault())?))
}

/// Collects pairs; a key that comes twice is an error naming it.
pub(crate) fn unique<V>(
    flag: &str,
    pairs: Vec<(String, V)>,
) -> crate::error::Result<std::collections::BTreeMap<String, V>> {
    let mut map = std::collections::BTreeMap::new();
    for (key, value) in pairs {
        if map.contains_key(&key) {
            return Err(Error::invalid(format!("{flag} {key} is given twice")));
        }
        map.insert(key, value);
    }
    Ok(map)
}
