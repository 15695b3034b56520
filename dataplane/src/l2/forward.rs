//! Switching: to which port of the network does this frame go, or does it go to the gateway?

use crate::config::{FROM_GATEWAY, Network, PortRole};
use crate::core::Cx;
use crate::express::links::{LinkHead, To};
use crate::frame::Frame;
use crate::l2::{refusal, snoop, vlan};
use crate::l3::{arp, hop, nd};
use crate::nat::inside;
use crate::nat::lookup::zone;
use crate::packet::headers::Net;
use crate::packet::types::{PortId, ethertype};
use crate::pipeline::{From, Lane};
use crate::verdict::{DropReason, Verdict};

#[inline(always)]
pub(crate) fn frame(cx: &mut Cx<'_>, frame: &mut Frame, lane: &mut Lane) {
    lane.verdict = match lane.from {
        From::Endpoint(id) | From::Host(id) => match cx.config.network(id) {
            Some(network) => in_network(cx, network, frame, lane),
            None => Some(Verdict::Drop(DropReason::PortUnconfigured)),
        },
        From::Uplink(uplink) => arp::on_uplink(cx, uplink, frame, lane),
        From::Nowhere => Some(Verdict::Drop(DropReason::PortUnconfigured)),
    };
    if let None | Some(Verdict::Forward(_)) = lane.verdict {
        remember(cx, frame, lane);
    }
}

/// Remembers where frames with this link header go: to another port, once they come in trains, or to the
/// router.
#[inline]
fn remember(cx: &mut Cx<'_>, frame: &Frame, lane: &Lane) {
    // A tag that was taken out would be missing from what is remembered.
    let Some(head) = LinkHead::of(frame).filter(|_| !lane.headers.tagged) else { return };
    let epoch = cx.express.epoch;
    match lane.verdict {
        Some(Verdict::Forward(port)) if lane.comes_again => {
            let Some(egress) = cx.config.port(port) else { return };
            // What is said to whom is looked at each time.
            let network = egress.network.and_then(|id| cx.config.network(id));
            if network.is_some_and(|network| network.policy.looks_inside()) {
                return;
            }
            cx.express.links.learn_port(head, epoch, frame, port, egress.config.mtu);
        }
        None if lane.headers.ethertype == ethertype::IPV4 => {
            cx.express.links.learn(head, epoch, To::Router { zone: zone(lane.from) });
        }
        _ => {}
    }
}

/// `None`: the frame is for the gateway and goes on to be routed.
fn in_network(
    cx: &mut Cx<'_>,
    network: &Network,
    frame: &mut Frame,
    lane: &mut Lane,
) -> Option<Verdict> {
    let headers = &lane.headers;
    if matches!(headers.net, Net::Arp) && !headers.tagged {
        let verdict = arp::in_network(cx, network, frame, lane);
        if verdict.is_some() {
            return verdict;
        }
    }
    if headers.ethertype == ethertype::IPV6
        && network.link_local.is_some()
        && !headers.tagged
        && nd::may_be(frame.bytes())
    {
        let verdict = nd::in_network(cx, network, frame, lane);
        if verdict.is_some() {
            return verdict;
        }
    }
    if headers.dst.is_multicast() {
        if let Err(reason) = judge(cx, network, frame, lane) {
            return Some(Verdict::Drop(reason));
        }
        return Some(if network.config.snooping {
            snoop::frame(cx, network, frame, lane)
        } else {
            Verdict::Flood(network.config.id)
        });
    }
    let headers = &lane.headers;
    if headers.dst == network.config.gateway_mac {
        // The gateway speaks untagged only.
        return headers.tagged.then_some(Verdict::Drop(DropReason::NoGateway));
    }
    let id = network.config.id;
    let ageing = cx.config.ageing_of(id);
    let fdb = &cx.tables.fdb;
    let found = if is_from_gateway(lane) && network.is_divided() {
        hop::port_of(cx, id, headers.dst)
    } else {
        fdb.lookup_hashed(lane.dst_hash, id, headers.vlan, headers.dst, cx.secs, ageing)
    };
    match found {
        Some(port) => Some(bridge(cx, network, frame, lane, port)),
        None => Some(flood(cx, network, frame, lane)),
    }
}

/// Asks the network's policy, where it is about what is switched. What comes from the host is not.
#[inline]
fn judge(cx: &Cx<'_>, network: &Network, frame: &Frame, lane: &mut Lane) -> Result<(), DropReason> {
    if network.policy.looks_inside() && matches!(lane.from, From::Endpoint(_)) {
        return inside::admit(cx, network, frame, lane);
    }
    Ok(())
}

fn flood(cx: &Cx<'_>, network: &Network, frame: &Frame, lane: &mut Lane) -> Verdict {
    match judge(cx, network, frame, lane) {
        Ok(()) => Verdict::Flood(network.config.id),
        Err(reason) => Verdict::Drop(reason),
    }
}

/// Whether it is an untagged frame of the host's leg, which is in the VLAN of every port's untagged
/// frames.
#[inline]
fn is_from_gateway(lane: &Lane) -> bool {
    matches!(lane.from, From::Host(_)) && !lane.headers.tagged
}

/// The VLAN that decides where a frame may leave.
#[inline]
pub(crate) fn vlan_of(lane: &Lane) -> u16 {
    if is_from_gateway(lane) { FROM_GATEWAY } else { lane.headers.vlan }
}

fn bridge(
    cx: &Cx<'_>,
    network: &Network,
    frame: &mut Frame,
    lane: &mut Lane,
    port: PortId,
) -> Verdict {
    if port == frame.ingress {
        return Verdict::Drop(DropReason::SamePort);
    }
    let Some(egress) = cx.config.port(port).filter(|p| p.network == Some(network.config.id)) else {
        // Learned from a port that has gone since.
        return flood(cx, network, frame, lane);
    };
    let both_endpoints = matches!(lane.from, From::Endpoint(_))
        && matches!(egress.config.role, PortRole::Endpoint { .. });
    if both_endpoints && !network.config.icc {
        return Verdict::Drop(DropReason::IccDisabled);
    }
    if !fits(frame, lane.headers.l3, egress.config.mtu) {
        return Verdict::Drop(DropReason::Oversize);
    }
    let (vlan, tagged) = (vlan_of(lane), lane.headers.tagged);
    let Some(as_it_leaves) = egress.leaves_tagged(vlan, tagged) else {
        return Verdict::Drop(DropReason::VlanDenied);
    };
    // After all that forbids it by its place: what is dropped begins no connection. The host's leg was asked
    // for by its own MAC, which is the gateway's.
    if both_endpoints && let Err(reason) = judge(cx, network, frame, lane) {
        return Verdict::Drop(reason);
    }
    if matches!(lane.from, From::Host(_))
        && refusal::is_one(frame.bytes(), usize::from(lane.headers.l3), lane.headers.ethertype)
    {
        cx.ports.count_refused(port);
    }
    let leaves = as_it_leaves == tagged || vlan::retag(frame, vlan, as_it_leaves);
    if leaves { Verdict::Forward(port) } else { Verdict::Drop(DropReason::VlanDenied) }
}

/// To the host's leg, which has the gateway's MAC: the frame is addressed to it already. `None`: there is no
/// leg.
pub(crate) fn to_host(cx: &Cx<'_>, network: &Network, frame: &Frame, l3: u16) -> Option<Verdict> {
    let leg = cx.config.port(network.host_port?)?;
    Some(if fits(frame, l3, leg.config.mtu) {
        Verdict::Forward(leg.config.id)
    } else {
        Verdict::Drop(DropReason::Oversize)
    })
}

/// Whether what follows the link header at `l3`, or each segment of it, is no longer than `mtu`.
/// The virtio-net header has been admitted.
pub(crate) fn fits(frame: &Frame, l3: u16, mtu: u16) -> bool {
    let len = if frame.vnet.is_gso() {
        usize::from(frame.vnet.hdr_len) + usize::from(frame.vnet.gso_size)
    } else {
        frame.len()
    };
    len <= usize::from(l3) + usize::from(mtu)
}
