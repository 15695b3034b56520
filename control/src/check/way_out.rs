//! Uplinks and routes.

use std::net::IpAddr;

use ipnet::IpNet;

use super::unicast;
use crate::api::types::{RouteAdd, UplinkAdd, UplinkMode};
use crate::error::{Error, Result};

/// Checks an uplink to be added.
///
/// # Errors
/// [`crate::error::Kind::Invalid`] with `uplink "INTERFACE": ` before the message.
pub fn uplink(request: &UplinkAdd) -> Result<()> {
    uplink_fields(request)
        .map_err(|error| error.context(format_args!("uplink {:?}", request.interface)))
}

fn uplink_fields(request: &UplinkAdd) -> Result<()> {
    interface(&request.interface)?;
    if request.mode == UplinkMode::Dedicated && request.addresses.is_empty() {
        return Err(Error::invalid(
            "mode dedicated needs an address of its own; add --address CIDR",
        ));
    }
    for (at, address) in request.addresses.iter().enumerate() {
        unicast(address.addr())?;
        // RFC 3021: a /31 has no network and broadcast address; a /32 is its own.
        let edge = matches!(address, IpNet::V4(v4) if v4.prefix_len() < 31
            && (v4.addr() == v4.network() || v4.addr() == v4.broadcast()));
        if edge {
            return Err(Error::invalid(format!(
                "address {address} is the network or broadcast address of its prefix; give a host's address"
            )));
        }
        if request.addresses.iter().take(at).any(|other| other.addr() == address.addr()) {
            return Err(Error::invalid(format!("address {} is given twice", address.addr())));
        }
    }
    let gateways = [request.gateway.map(IpAddr::V4), request.gateway6.map(IpAddr::V6)];
    for gateway in gateways.into_iter().flatten() {
        unicast(gateway)?;
        if request.addresses.iter().any(|address| address.addr() == gateway) {
            return Err(Error::invalid(format!("gateway {gateway} is the uplink's own address")));
        }
        // Routers advertise their link-local address (RFC 4861 section 6.3.4).
        let on_link = matches!(gateway, IpAddr::V6(v6) if v6.is_unicast_link_local())
            || request.addresses.iter().any(|address| address.contains(&gateway));
        if !request.addresses.is_empty() && !on_link {
            return Err(Error::invalid(format!(
                "gateway {gateway} lies in the prefix of none of the addresses"
            )));
        }
    }
    Ok(())
}

/// A name the kernel would take for an interface (net/core/dev.c, `dev_valid_name`).
///
/// # Errors
/// [`crate::error::Kind::Invalid`]; the message does not repeat the name.
pub fn interface(name: &str) -> Result<()> {
    /// `IFNAMSIZ` of linux/if.h, without the final NUL.
    const LONGEST: usize = 15;
    let bad = |c: char| c == '/' || c == ':' || c == '\0' || c.is_ascii_whitespace();
    if name.is_empty() || name.len() > LONGEST || name == "." || name == ".." || name.contains(bad)
    {
        return Err(Error::invalid(format!(
            "not an interface name; it has 1 to {LONGEST} bytes without '/', ':' and blanks"
        )));
    }
    Ok(())
}

/// Checks a route to be added.
///
/// # Errors
/// [`crate::error::Kind::Invalid`] with `route PREFIX: ` before the message.
pub fn route(request: &RouteAdd) -> Result<()> {
    let context = |error: Error| error.context(format_args!("route {}", request.destination));
    route_destination(&request.destination)?;
    unicast(request.via).map_err(context)?;
    if request.via.is_ipv4() != request.destination.addr().is_ipv4() {
        return Err(context(Error::invalid(format!(
            "next hop {} is not of the same family",
            request.via
        ))));
    }
    match &request.uplink {
        Some(uplink) => interface(uplink)
            .map_err(|error| context(error.context(format_args!("uplink {uplink:?}")))),
        None => Ok(()),
    }
}

/// A destination is a prefix without host bits.
///
/// # Errors
/// [`crate::error::Kind::Invalid`] with `route PREFIX: ` before the message.
pub fn route_destination(destination: &IpNet) -> Result<()> {
    if destination.addr() == destination.network() {
        return Ok(());
    }
    let mend = destination.trunc();
    Err(Error::invalid(format!("route {destination}: has host bits set; write {mend}")))
}
