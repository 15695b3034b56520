//! The next hop: from a destination address to a port and a MAC.

use std::net::IpAddr;

use crate::config::Snapshot;
use crate::core::Cx;
use crate::engine::Link;
use crate::l3::neighbor::{Asker, Resolution};
use crate::l3::route::RouteTarget;
use crate::l3::{arp, nd};
use crate::nat::dnat::any_like;
use crate::packet::types::{Mac, NetworkId, PortId};
use crate::verdict::DropReason;

/// Where a routed packet leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hop {
    pub(crate) link: Link,
    pub(crate) next_hop: IpAddr,
    /// The longest IP packet of the link.
    pub(crate) mtu: u16,
}

/// What is known of the neighbor at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Behind this port.
    Port { port: PortId, dst: Mac, src: Mac },
    /// Somewhere in the network.
    Flood { network: NetworkId, dst: Mac, src: Mac },
    /// Not known yet; it was asked for.
    Wait,
}

/// The route to `dst`.
#[inline(always)]
pub(crate) fn route(cx: &Cx<'_>, dst: impl Into<IpAddr> + Copy) -> Result<Hop, DropReason> {
    match cx.config.routes.lookup(dst) {
        Some(RouteTarget::Network(id)) => {
            let network = cx.config.network(id).ok_or(DropReason::NoRoute)?;
            Ok(Hop { link: Link::Network(id), next_hop: dst.into(), mtu: network.config.mtu })
        }
        Some(RouteTarget::Uplink { uplink, via }) => {
            let config = cx.config.uplink(uplink).ok_or(DropReason::NoRoute)?;
            let next_hop = via.unwrap_or_else(|| dst.into());
            Ok(Hop { link: Link::Uplink(uplink), next_hop, mtu: config.mtu })
        }
        None if cx.config.uplinks().next().is_none() => Err(DropReason::UplinkMissing),
        None => Err(DropReason::NoRoute),
    }
}

/// The default route of the family of an address, by which its host is known to most.
pub(crate) fn way_of_all(cx: &Cx<'_>, like: impl Into<IpAddr>) -> Option<Hop> {
    route(cx, any_like(like.into())).ok()
}

/// The way to the neighbor of a hop, for a frame that came in by `ingress`; asks for it when needed.
#[inline(always)]
pub(crate) fn reach(cx: &mut Cx<'_>, hop: &Hop, ingress: PortId) -> Result<Reach, DropReason> {
    // Most packets of a batch that leave by an uplink go to its gateway.
    if let Some((link, next_hop, reach)) = cx.last_reach
        && next_hop == hop.next_hop
        && link == hop.link
    {
        return Ok(reach);
    }
    let reach = find(cx, hop, ingress)?;
    if matches!(reach, Reach::Port { .. }) {
        cx.last_reach = Some((hop.link, hop.next_hop, reach));
    }
    Ok(reach)
}

#[inline]
fn find(cx: &mut Cx<'_>, hop: &Hop, ingress: PortId) -> Result<Reach, DropReason> {
    if let Link::Network(id) = hop.link
        && let Some(network) = cx.config.network(id)
    {
        let src = network.config.gateway_mac;
        if let Some((dst, port)) = network.endpoints.get(hop.next_hop) {
            return Ok(Reach::Port { port: *port, dst: *dst, src });
        }
    }
    if is_edge(cx, hop) {
        return Err(DropReason::NotUnicast);
    }
    let (neighbors, config) = (&cx.tables.neighbors, cx.config);
    let who = || asker(config, hop.link, hop.next_hop, ingress);
    let dst = match cx.remembered.resolve(neighbors, hop.link, hop.next_hop, who, cx.now) {
        Resolution::Known(mac) => mac,
        Resolution::KnownAsk(mac) => {
            ask_for(cx, hop.link, hop.next_hop);
            mac
        }
        Resolution::Unknown { ask } => {
            if ask {
                ask_for(cx, hop.link, hop.next_hop);
            }
            return if cx.waiting.has_room(hop.link, hop.next_hop, ingress) {
                Ok(Reach::Wait)
            } else {
                Err(DropReason::NeighborQueueFull)
            };
        }
        Resolution::Failed => {
            // The next one asks anew, but not for those that have waited.
            cx.waiting.end(hop.link, hop.next_hop);
            return Err(DropReason::NeighborUnresolved);
        }
        Resolution::Full => return Err(DropReason::NeighborTableFull),
    };
    if cx.waiting.holds(hop.link, hop.next_hop) {
        // It was confirmed in this very batch: what came before leaves before.
        let room = cx.waiting.has_room(hop.link, hop.next_hop, ingress);
        return if room { Ok(Reach::Wait) } else { Err(DropReason::NeighborQueueFull) };
    }
    match hop.link {
        Link::Network(network) => {
            let config = cx.config.network(network).ok_or(DropReason::NoRoute)?;
            let src = config.config.gateway_mac;
            Ok(match port_of(cx, network, dst) {
                Some(port) => Reach::Port { port, dst, src },
                None => Reach::Flood { network, dst, src },
            })
        }
        Link::Uplink(uplink) => {
            let config = cx.config.uplink(uplink).ok_or(DropReason::NoRoute)?;
            Ok(Reach::Port { port: config.port, dst, src: config.mac })
        }
    }
}

/// For whom a neighbor is asked for when a frame that came in by `ingress` needs it.
pub(crate) fn asker(config: &Snapshot, link: Link, address: IpAddr, ingress: PortId) -> Asker {
    match link {
        Link::Uplink(id) if config.is_next_hop(id, address) => Asker::Engine,
        _ => Asker::Port(ingress),
    }
}

/// Asks for a neighbor.
pub(crate) fn ask_for(cx: &mut Cx<'_>, link: Link, address: IpAddr) {
    match address {
        IpAddr::V4(address) => arp::ask(cx, link, address),
        IpAddr::V6(address) => nd::ask(cx, link, address),
    }
}

/// Whether the next hop is nobody's address on its link.
fn is_edge(cx: &Cx<'_>, hop: &Hop) -> bool {
    match hop.link {
        Link::Network(id) => cx.config.network(id).is_some_and(|network| {
            network.config.subnets.iter().any(|s| s.prefix.is_edge(hop.next_hop))
        }),
        Link::Uplink(id) => cx.config.uplink(id).is_some_and(|uplink| {
            uplink.addresses.iter().any(|(_, prefix)| prefix.is_edge(hop.next_hop))
        }),
    }
}

/// Behind which port of a network a MAC is, in any VLAN that the gateway is in: at a port whose untagged
/// frames are in that VLAN, since the gateway speaks untagged. Where an endpoint is nobody in another VLAN can
/// say; where a stranger is, nobody who has that VLAN tagged.
pub(crate) fn port_of(cx: &Cx<'_>, id: NetworkId, mac: Mac) -> Option<PortId> {
    let network = cx.config.network(id)?;
    let known = if network.is_divided() { network.macs.get(&mac).copied() } else { None };
    let learned = |vlan: &u16| {
        let port = cx.tables.fdb.lookup(id, *vlan, mac, cx.secs, cx.config.ageing_of(id))?;
        cx.config.port(port).is_some_and(|at| at.untagged() == Some(*vlan)).then_some(port)
    };
    known.or_else(|| network.pvids.iter().find_map(learned))
}
