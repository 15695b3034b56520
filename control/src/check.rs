//! What is wrong with a request by itself, whatever the state of the host: asked by the client
//! before it sends, by the configuration while it loads, and by the daemon before it acts.
//!
//! Each function says the whole rule; what needs other networks, sandboxes or devices to judge
//! (overlaps, names taken, ports in use) is the daemon's own.

mod policy;
mod state;
mod way_out;

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use dataplane::packet::types::Mac;
use ipnet::IpNet;

use crate::api::types::{
    ConnectRequest, Driver, FdbAdd, FdbRemove, MacAddr, NetworkCreate, NetworkRef, SandboxCreate,
    Subnet,
};
use crate::error::{Error, Result};
use crate::ipam;
use crate::model::{HOST_NETWORK, is_unswitched};
use crate::name::Name;
use crate::options::{self, EndpointOptions, NetworkOptions};
use crate::publish::{PublishSpec, meet};

pub use policy::policy;
pub use state::state;
pub use way_out::{interface, route, route_destination, uplink};

/// Highest VLAN id (IEEE 802.1Q-2018 §9.6: 4095 is reserved).
pub const MAX_VLAN: u16 = 4094;

/// Prefix lengths of IPv4 subnets. The longest has a gateway and one sandbox beside network and
/// broadcast address.
const SUBNET_LENS: (u8, u8) = (1, 30);
/// Prefix lengths of IPv6 subnets: from what an installation has (RFC 4193) to a gateway and one
/// sandbox beside the routers' anycast address.
const SUBNET6_LENS: (u8, u8) = (48, 126);

/// A network with IPv6 has no shorter MTU (RFC 8200 section 5): Linux takes IPv6 off interfaces
/// that do.
pub const MIN_MTU_WITH_IPV6: u16 = 1280;

/// Checks a network to be created and reads its options.
///
/// # Errors
/// [`crate::error::Kind::Invalid`] with `network "NAME": ` before the message.
pub fn network(request: &NetworkCreate) -> Result<NetworkOptions> {
    network_fields(request)
        .map_err(|error| error.context(format_args!("network {:?}", request.name)))
}

fn network_fields(request: &NetworkCreate) -> Result<NetworkOptions> {
    match request.driver {
        Driver::Bridge => {}
        Driver::Host | Driver::None => {
            return Err(Error::invalid(format!(
                "driver {0} has the one network {0}, which exists always",
                request.driver
            )));
        }
        Driver::Ipvlan | Driver::Macvlan | Driver::Overlay => {
            return Err(Error::invalid(format!(
                "driver {} is not built yet; use bridge",
                request.driver
            )));
        }
    }
    for (at, wanted) in request.subnets.iter().enumerate() {
        subnet(wanted)?;
        for other in request.subnets.iter().take(at) {
            if overlap(&wanted.subnet, &other.subnet) {
                return Err(Error::invalid(format!(
                    "subnet {} overlaps subnet {} of the same network",
                    wanted.subnet, other.subnet
                )));
            }
        }
    }
    let options = NetworkOptions::parse(request.driver, &request.options)?;
    let short = options::canonical(request.driver, &request.options)?;
    let gateways = request.subnets.iter().filter_map(|subnet| subnet.gateway);
    if let Some(gateway) = gateways.into_iter().find(|it| options::is_isolated(&short, *it)) {
        return Err(Error::invalid(format!(
            "gateway {gateway}: gateway_mode=isolated means that there is none; leave one of both out"
        )));
    }
    if request.wants_ipv6() && options.mtu.is_some_and(|mtu| mtu < MIN_MTU_WITH_IPV6) {
        return Err(short_for_ipv6());
    }
    Ok(options)
}

/// What is wrong with IPv6 in a network of too short an MTU.
#[must_use]
pub fn short_for_ipv6() -> Error {
    Error::invalid(format!(
        "IPv6 needs an MTU of {MIN_MTU_WITH_IPV6} or more; give -o mtu={MIN_MTU_WITH_IPV6}, or \
         leave IPv6 out"
    ))
}

/// Whether two prefixes share an address.
#[must_use]
pub fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

fn subnet(wanted: &Subnet) -> Result<()> {
    let net = wanted.subnet;
    let fault = |fault: String| Err(Error::invalid(format!("subnet {net}: {fault}")));
    if net.addr() != net.network() {
        return fault(format!("has host bits set; write {}", net.trunc()));
    }
    let (shortest, longest) = match net {
        IpNet::V4(_) => SUBNET_LENS,
        IpNet::V6(_) => SUBNET6_LENS,
    };
    if !(shortest..=longest).contains(&net.prefix_len()) {
        return fault(format!("prefix length must be from {shortest} to {longest}"));
    }
    ipam::for_containers(net).map_err(|error| Error::invalid(error.to_string()))?;
    if let Some(gateway) = wanted.gateway {
        host_address(net, gateway, "gateway")?;
    }
    if let Some(range) = &wanted.ip_range {
        if range.addr() != range.network() {
            return fault(format!("ip-range {range} has host bits set; write {}", range.trunc()));
        }
        if !wanted.subnet.contains(range) {
            return fault(format!("ip-range {range} does not lie in it"));
        }
    }
    let mut seen = HashSet::new();
    for (name, address) in &wanted.aux_addresses {
        let what = format!("aux-address {name}");
        host_address(net, *address, &what)?;
        if wanted.gateway == Some(*address) {
            return fault(format!("{what}={address} is the gateway's address"));
        }
        if !seen.insert(address) {
            return fault(format!("{what}={address} has the address of another aux-address"));
        }
    }
    Ok(())
}

/// `address` can be a host's in `net`.
fn host_address(net: IpNet, address: IpAddr, what: &str) -> Result<()> {
    let fault =
        |fault: &str| Err(Error::invalid(format!("{what} {address} {fault} of subnet {net}")));
    match address {
        IpAddr::V6(_) if net.addr().is_ipv4() => fault("is IPv6, unlike the addresses"),
        IpAddr::V4(_) if net.addr().is_ipv6() => fault("is IPv4, unlike the addresses"),
        _ if !net.contains(&address) => fault("is outside"),
        IpAddr::V4(_) if address == net.network() => fault("is the network address"),
        IpAddr::V4(_) if address == net.broadcast() => fault("is the broadcast address"),
        IpAddr::V6(_) if address == net.network() => fault("is the routers' anycast address"),
        _ => Ok(()),
    }
}

/// Puts the flags of `network create` together: each gateway, range and auxiliary address goes to
/// the subnet that contains it, as with Docker.
///
/// # Errors
/// When one belongs to no subnet, or a subnet gets two gateways or ranges.
pub fn subnets(
    nets: &[IpNet],
    gateways: &[IpAddr],
    ranges: &[IpNet],
    aux: &BTreeMap<String, IpAddr>,
) -> Result<Vec<Subnet>> {
    let mut subnets: Vec<_> = nets
        .iter()
        .map(|net| Subnet {
            subnet: *net,
            gateway: None,
            ip_range: None,
            aux_addresses: BTreeMap::new(),
        })
        .collect();
    let none = |what: &str| {
        if nets.is_empty() {
            Error::invalid(format!("{what} needs a subnet that contains it; add --subnet"))
        } else {
            Error::invalid(format!("{what} lies in none of the subnets"))
        }
    };
    for gateway in gateways {
        let home = subnets.iter_mut().find(|subnet| subnet.subnet.contains(gateway));
        let home = home.ok_or_else(|| none(&format!("gateway {gateway}")))?;
        if let Some(other) = home.gateway.replace(*gateway) {
            return Err(Error::invalid(format!(
                "subnet {} has two gateways, {other} and {gateway}; give one",
                home.subnet
            )));
        }
    }
    for range in ranges {
        let home = subnets.iter_mut().find(|subnet| subnet.subnet.contains(range));
        let home = home.ok_or_else(|| none(&format!("ip-range {range}")))?;
        if let Some(other) = home.ip_range.replace(*range) {
            return Err(Error::invalid(format!(
                "subnet {} has two ip-ranges, {other} and {range}; give one",
                home.subnet
            )));
        }
    }
    for (name, address) in aux {
        let home = subnets.iter_mut().find(|subnet| subnet.subnet.contains(address));
        let home = home.ok_or_else(|| none(&format!("aux-address {name}={address}")))?;
        home.aux_addresses.insert(name.clone(), *address);
    }
    Ok(subnets)
}

/// Checks a sandbox to be created.
///
/// # Errors
/// [`crate::error::Kind::Invalid`] with `sandbox "NAME": ` before the message.
pub fn sandbox(request: &SandboxCreate) -> Result<()> {
    sandbox_fields(request)
        .map_err(|error| error.context(format_args!("sandbox {:?}", request.name)))
}

fn sandbox_fields(request: &SandboxCreate) -> Result<()> {
    let special = request.networks.iter().find(|net| !matches!(net, NetworkRef::Network(_)));
    if let Some(special) = special {
        if request.networks.len() > 1 {
            return Err(Error::invalid(format!(
                "network {special} stands alone; leave the other networks out"
            )));
        }
        let given = [
            ("--ip", request.ip.is_some()),
            ("--ip6", request.ip6.is_some()),
            ("--mac", request.mac.is_some()),
            ("--alias", !request.aliases.is_empty()),
            ("-o", !request.options.is_empty()),
            ("-p", !request.publish.is_empty()),
        ];
        if let Some((flag, _)) = given.iter().find(|(_, given)| *given) {
            return Err(Error::invalid(format!(
                "{flag} needs an interface, which network {special} does not give; leave it out"
            )));
        }
        if request.netns.is_some() && *special != NetworkRef::None {
            return Err(Error::invalid(format!(
                "--netns and network {special} both say which namespace; give one of them"
            )));
        }
        if let NetworkRef::Container(other) = special
            && *other == request.name
        {
            return Err(Error::invalid("cannot share its own namespace; name another sandbox"));
        }
    }
    let mut seen = HashSet::new();
    if let Some(twice) = request.networks.iter().find(|net| !seen.insert(*net)) {
        return Err(Error::invalid(format!("network {twice} is given twice")));
    }
    if let Some(ip) = request.ip {
        unicast(ip)?;
    }
    if let Some(ip6) = request.ip6 {
        unicast(ip6)?;
    }
    if let Some(mac) = request.mac {
        unicast_mac(mac)?;
    }
    EndpointOptions::parse(&request.options)?;
    publish(&request.publish)
}

/// Checks a connection of a sandbox to a network.
///
/// # Errors
/// [`crate::error::Kind::Invalid`] with `network "NAME": ` or `sandbox "NAME": ` before the message.
pub fn connect(network: &Name, request: &ConnectRequest) -> Result<()> {
    if is_unswitched(network) {
        // Which namespace a sandbox is and whether it has interfaces is settled when it is made.
        return Err(Error::invalid(format!(
            "network {network:?}: cannot be connected to a sandbox that exists; \
             create one with --network {network}"
        )));
    }
    let checked = request
        .ip
        .map_or(Ok(()), unicast)
        .and_then(|()| request.ip6.map_or(Ok(()), unicast))
        .and_then(|()| request.mac.map_or(Ok(()), unicast_mac))
        .and_then(|()| EndpointOptions::parse(&request.options).map(drop));
    checked.map_err(|error| error.context(format_args!("sandbox {:?}", request.sandbox)))
}

/// Checks a disconnection of a sandbox from a network.
///
/// # Errors
/// [`crate::error::Kind::Invalid`] with `network "NAME": ` before the message.
pub fn disconnect(network: &Name) -> Result<()> {
    if !is_unswitched(network) {
        return Ok(());
    }
    let mend = if *network == HOST_NETWORK {
        "remove the sandbox and create it with another --network"
    } else {
        "connect the sandbox to another network instead"
    };
    Err(Error::invalid(format!("network {network:?}: cannot be disconnected from; {mend}")))
}

/// A host's address: unicast, not loopback; not in 0/8 or 240/4, nor in ::/8 (RFC 4291 section 2.5).
///
/// # Errors
/// [`crate::error::Kind::Invalid`] naming the address.
pub fn unicast(ip: impl Into<IpAddr>) -> Result<()> {
    let ip = ip.into();
    let fine = match ip {
        IpAddr::V4(v4) => !matches!(v4.octets()[0], 0 | 127 | 224..),
        IpAddr::V6(v6) => !matches!(v6.octets()[0], 0 | 255),
    };
    if !fine {
        return Err(Error::invalid(format!(
            "address {ip} cannot be a host's; give a unicast address"
        )));
    }
    Ok(())
}

/// An address that the interface of a host can have.
///
/// # Errors
/// [`crate::error::Kind::Invalid`] naming the MAC.
pub fn unicast_mac(MacAddr(mac): MacAddr) -> Result<()> {
    if mac == Mac::ZERO || mac.is_multicast() {
        return Err(Error::invalid(format!(
            "MAC {mac} cannot be an interface's; give a unicast address other than zero"
        )));
    }
    Ok(())
}

/// Published ports of one request do not contradict each other.
///
/// # Errors
/// [`crate::error::Kind::Invalid`] naming both.
pub fn publish(specs: &[PublishSpec]) -> Result<()> {
    for (at, spec) in specs.iter().enumerate() {
        let clash = specs.iter().take(at).find(|other| publish_overlap(spec, other));
        if let Some(other) = clash {
            return Err(Error::invalid(format!("publish {spec} overlaps publish {other}")));
        }
    }
    Ok(())
}

/// Whether two mappings would take the same host port. Those that take a free one never do.
#[must_use]
pub fn publish_overlap(a: &PublishSpec, b: &PublishSpec) -> bool {
    let (Some(a_ports), Some(b_ports)) = (a.host_ports, b.host_ports) else {
        return false;
    };
    if a.chooses() || b.chooses() {
        return false;
    }
    a.proto == b.proto && meet(a.host_ip, b.host_ip) && a_ports.overlaps(b_ports)
}

/// Checks an FDB entry to be added.
///
/// # Errors
/// [`crate::error::Kind::Invalid`] with `fdb MAC: ` before the message.
pub fn fdb_add(request: &FdbAdd) -> Result<()> {
    let fault = |fault: String| Err(Error::invalid(format!("fdb {}: {fault}", request.mac)));
    unicast_mac(request.mac).map_err(|error| error.context("fdb"))?;
    vlan(request.vlan).map_err(|error| error.context(format_args!("fdb {}", request.mac)))?;
    match (&request.sandbox, &request.port) {
        (Some(_), Some(_)) => fault("give --sandbox or --port, not both".to_owned()),
        (None, None) => fault("say where it is with --sandbox or --port".to_owned()),
        _ => Ok(()),
    }
}

/// Checks an FDB entry to be removed.
///
/// # Errors
/// [`crate::error::Kind::Invalid`] with `fdb MAC: ` before the message.
pub fn fdb_remove(request: &FdbRemove) -> Result<()> {
    vlan(request.vlan).map_err(|error| error.context(format_args!("fdb {}", request.mac)))
}

fn vlan(id: u16) -> Result<()> {
    if id > MAX_VLAN {
        return Err(Error::invalid(format!("VLAN {id} is above {MAX_VLAN}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
