//! The querier: asks the hosts of a network which multicast groups they are in, as its gateway.
//!
//! Networks with `querier` are asked twice half a minute apart, then every 125 s (RFC 3376 §8.2, §8.6, §8.7), and
//! a new port at once: untagged, and in the VLANs of untagged frames with a tag where a port is in one so. The
//! first worker does so in its housekeeping. There is no election: another querier with a lower address does not
//! silence this one; two cost a frame more every two minutes.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use crate::clock::Timestamp;
use crate::config::{Network, PortRole, Snapshot};
use crate::core::{Cx, Transmit};
use crate::egress;
use crate::frame::Frame;
use crate::l2::vlan;
use crate::packet::membership::{QUERY_INTERVAL, Query, RESPONSE, write_query4, write_query6};
use crate::packet::types::{NetworkId, PortId};

const INTERVAL: Duration = Duration::from_secs(QUERY_INTERVAL as u64);
/// RFC 3376 §8.6: a quarter of the interval, and §8.7: so many of them.
const STARTUP_INTERVAL: Duration = Duration::from_secs(QUERY_INTERVAL as u64 / 4);
const STARTUP: u8 = 2;
/// Seconds after which who is behind a port has answered.
const ANSWERED: u32 = RESPONSE as u32 + 1;

/// Who is asked next, and when. Of the first worker.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    /// By network: when, and how often it was asked.
    networks: Vec<Option<(Timestamp, u8)>>,
    due: Vec<NetworkId>,
    /// By port: in which network that asks or snoops it was found.
    known: Vec<Option<NetworkId>>,
    /// Those that were not.
    new: Vec<(NetworkId, PortId)>,
    /// The configuration that they were found in.
    generation: Option<u64>,
}

impl Schedule {
    /// Finds the networks whose turn it is, and sets their next one, and new ports; false: there are none.
    pub(crate) fn is_due(&mut self, config: &Snapshot, generation: u64, now: Timestamp) -> bool {
        self.due.clear();
        self.new.clear();
        if self.generation != Some(generation) {
            self.generation = Some(generation);
            self.find_ports(config);
        }
        for (id, slot) in (0..).map(NetworkId).zip(&mut self.networks) {
            if !config.network(id).is_some_and(|network| network.config.querier) {
                *slot = None;
            }
        }
        for network in config.networks().filter(|network| network.config.querier) {
            let id = network.config.id;
            if self.networks.len() <= id.index() {
                self.networks.resize(id.index() + 1, None);
            }
            let Some(slot) = self.networks.get_mut(id.index()) else { continue };
            let (at, asked) = slot.get_or_insert((now, 0));
            if *at <= now {
                *asked = asked.saturating_add(1);
                *at = now + if *asked < STARTUP { STARTUP_INTERVAL } else { INTERVAL };
                self.due.push(id);
            }
        }
        !(self.due.is_empty() && self.new.is_empty())
    }

    fn find_ports(&mut self, config: &Snapshot) {
        let before = std::mem::take(&mut self.known);
        let concerned = |network: &&Network| network.config.querier || network.config.snooping;
        for network in config.networks().filter(concerned) {
            let id = network.config.id;
            for port in endpoints(network) {
                if before.get(port.index()) != Some(&Some(id)) {
                    self.new.push((id, port));
                }
                if self.known.len() <= port.index() {
                    self.known.resize(port.index() + 1, None);
                }
                if let Some(known) = self.known.get_mut(port.index()) {
                    *known = Some(id);
                }
            }
        }
    }

    /// Asks whom that has found.
    pub(crate) fn send(&self, cx: &mut Cx<'_>, out: &mut dyn Transmit) {
        for (id, port) in &self.new {
            let Some(network) = cx.config.network(*id) else { continue };
            if !self.due.contains(id) {
                let asked = ask_all(cx, network, &[*port], out);
                spare(cx, network, *port, asked);
            }
        }
        for id in &self.due {
            let Some(network) = cx.config.network(*id) else { continue };
            let asked = ask_all(cx, network, &network.ports, out);
            for (is_ipv6, asked) in families(asked) {
                for vlan in network.pvids.iter().filter(|_| asked && network.config.snooping) {
                    let groups = &cx.tables.groups;
                    groups.note_querier((*id, *vlan), is_ipv6, &Query::OWN, cx.secs);
                }
            }
            for (_, port) in self.new.iter().filter(|(of, _)| of == id) {
                spare(cx, network, *port, asked);
            }
        }
    }
}

/// Whether each was asked, with whether it is IPv6.
fn families(asked: [bool; 2]) -> impl Iterator<Item = (bool, bool)> {
    [false, true].into_iter().zip(asked)
}

/// A new port was not asked with the others, and gets every group until who is behind it has answered: our
/// question, or where there was none of a family, that of whoever else asks.
fn spare(cx: &Cx<'_>, network: &Network, port: PortId, asked: [bool; 2]) {
    if !network.config.snooping {
        return;
    }
    let (id, groups) = (network.config.id, &cx.tables.groups);
    let others = families(asked).filter(|(_, asked)| !asked);
    let others = others.map(|(is_ipv6, _)| groups.answered_within(id, is_ipv6, cx.secs));
    let wait = others.max().unwrap_or(0).max(ANSWERED);
    groups.spare(id, port, cx.secs.saturating_add(wait));
}

/// Its ports but the host's leg, whose stack is behind the very gateway.
fn endpoints(network: &Network) -> impl Iterator<Item = PortId> {
    network.ports.iter().copied().filter(|port| network.host_port != Some(*port))
}

fn gateway4(network: &Network) -> Option<Ipv4Addr> {
    network.config.subnets.iter().find_map(|subnet| match subnet.gateway {
        Some(IpAddr::V4(gateway)) => Some(gateway),
        _ => None,
    })
}

/// Whether the gateway asks, and has an address to ask from.
pub(crate) fn can_ask(network: &Network, is_ipv6: bool) -> bool {
    let has_address =
        if is_ipv6 { network.link_local.is_some() } else { gateway4(network).is_some() };
    network.config.querier && has_address
}

/// Asks these ports for all groups, in every VLAN that untagged frames are in: copy by copy, as there may be more
/// ports than buffers. Which families could be asked, IPv4 first.
fn ask_all(
    cx: &mut Cx<'_>,
    network: &Network,
    ports: &[PortId],
    out: &mut dyn Transmit,
) -> [bool; 2] {
    [false, true].map(|is_ipv6| {
        let Some(mut frame) = cx.pool.take() else { return false };
        let asks = can_ask(network, is_ipv6) && write(network, &mut frame, None, is_ipv6);
        for vlan in network.pvids.iter().filter(|_| asks) {
            ask_vlan(cx, ports, (*vlan, false), &mut frame, out);
            if *vlan != 0 && vlan::retag(&mut frame, *vlan, true) {
                ask_vlan(cx, ports, (*vlan, true), &mut frame, out);
                frame.pop_tag();
            }
        }
        cx.pool.put(frame);
        asks
    })
}

/// Sends a question to those endpoints that are in a VLAN with a tag, or without one.
fn ask_vlan(
    cx: &mut Cx<'_>,
    ports: &[PortId],
    (vlan, tagged): (u16, bool),
    frame: &mut Frame,
    out: &mut dyn Transmit,
) {
    for port in ports {
        let Some(entry) = cx.config.port(*port) else { continue };
        let is_endpoint = matches!(entry.config.role, PortRole::Endpoint { .. });
        if is_endpoint && entry.leaves_tagged(vlan, false) == Some(tagged) {
            egress::send_generated(cx, *port, frame, out);
        }
    }
}

/// Asks behind a port, in a VLAN, who else is in a group. False: it could not, for want of a buffer or because
/// of what [`can_ask`] says.
pub(crate) fn ask(
    cx: &mut Cx<'_>,
    network: &Network,
    port: PortId,
    vlan: u16,
    group: IpAddr,
) -> bool {
    let tagged = cx.config.port(port).and_then(|port| port.leaves_tagged(vlan, false));
    let Some(mut frame) = cx.pool.take() else { return false };
    let asks = write(network, &mut frame, Some(group), group.is_ipv6());
    let sent = match tagged {
        Some(true) => asks && vlan::retag(&mut frame, vlan, true),
        Some(false) => asks,
        None => false,
    };
    if sent {
        cx.ports.push_generated(cx.counters, port, frame);
    } else {
        cx.pool.put(frame);
    }
    sent
}

/// False: the gateway has no address of this family.
fn write(network: &Network, frame: &mut Frame, group: Option<IpAddr>, is_ipv6: bool) -> bool {
    let mac = network.config.gateway_mac;
    match (is_ipv6, gateway4(network), network.link_local, group) {
        (false, Some(from), _, None) => write_query4(frame, mac, from, None),
        (false, Some(from), _, Some(IpAddr::V4(group))) => {
            write_query4(frame, mac, from, Some(group));
        }
        (true, _, Some(from), None) => write_query6(frame, mac, from, None),
        (true, _, Some(from), Some(IpAddr::V6(group))) => {
            write_query6(frame, mac, from, Some(group));
        }
        _ => return false,
    }
    true
}
