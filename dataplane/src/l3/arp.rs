//! ARP both ways: answering for the gateway and for dedicated uplinks, asking for neighbors, and
//! believing answers.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::config::{Network, UplinkMode};
use crate::core::Cx;
use crate::engine::Link;
use crate::frame::Frame;
use crate::l2::forward;
use crate::l3::nd;
use crate::packet::arp::{ArpOp, ArpPacket};
use crate::packet::headers::Net;
use crate::packet::parse::parse_net;
use crate::packet::types::{Mac, UplinkId};
use crate::pipeline::{From, Lane};
use crate::verdict::{DropReason, Verdict};

/// ARP in a network. `None`: it is between others and is switched like any frame.
pub(crate) fn in_network(
    cx: &mut Cx<'_>,
    network: &Network,
    frame: &mut Frame,
    lane: &Lane,
) -> Option<Verdict> {
    let arp = ArpPacket::parse(frame.bytes(), &lane.headers)?;
    let link = Link::Network(network.config.id);
    let gateway_mac = network.config.gateway_mac;
    let for_gateway = network.is_gateway(arp.target_ip);
    match arp.op {
        // The host's own stack asks about its own address only to find duplicates: nobody answers.
        ArpOp::Request if for_gateway && !matches!(lane.from, From::Host(_)) => {
            cx.tables.neighbors.confirm(link, arp.sender_ip, arp.sender_mac, false, cx.now);
            arp.reply(gateway_mac).write(frame, arp.sender_mac, gateway_mac);
            Some(Verdict::Answer)
        }
        ArpOp::Reply if lane.headers.dst == gateway_mac => {
            cx.tables.neighbors.confirm(link, arp.sender_ip, arp.sender_mac, false, cx.now);
            // The host's stack may have asked, with the same MAC.
            let to_host = forward::to_host(cx, network, frame, lane.headers.l3);
            Some(to_host.unwrap_or(Verdict::Consume))
        }
        _ => {
            if arp.is_gratuitous() && !network.is_gateway(arp.sender_ip) {
                cx.tables.neighbors.confirm(link, arp.sender_ip, arp.sender_mac, false, cx.now);
            }
            None
        }
    }
}

/// Every frame from a wire: ARP and neighbor discovery are dealt with, what is not for us ends here.
/// `None`: an IP packet to our MAC, to be routed.
pub(crate) fn on_uplink(
    cx: &mut Cx<'_>,
    id: UplinkId,
    frame: &mut Frame,
    lane: &mut Lane,
) -> Option<Verdict> {
    parse_net(frame.bytes(), &mut lane.headers);
    let Some(uplink) = cx.config.uplink(id) else {
        return Some(Verdict::Drop(DropReason::PortUnconfigured));
    };
    let headers = &lane.headers;
    // The MAC of a shared uplink is the host's, who may well hear itself.
    if headers.src == uplink.mac && uplink.mode == UplinkMode::Dedicated {
        return Some(Verdict::Drop(DropReason::OwnMac));
    }
    if headers.tagged {
        return Some(Verdict::Consume);
    }
    if matches!(headers.net, Net::Arp) {
        let Some(arp) = ArpPacket::parse(frame.bytes(), headers) else {
            return Some(Verdict::Consume);
        };
        let ours = uplink.has(arp.target_ip);
        let link = Link::Uplink(id);
        if arp.sender_mac != uplink.mac {
            // Who asks for us will hear from us (RFC 826): a neighbor on our prefix is entered, any
            // other one only updated.
            let on_link = uplink.is_on_link(arp.sender_ip);
            let entered = ours && on_link && arp.op == ArpOp::Request;
            cx.tables.neighbors.confirm(link, arp.sender_ip, arp.sender_mac, entered, cx.now);
        }
        // For endpoints that are routed too, where the wire takes them for its own (RFC 1027).
        let answered =
            ours || uplink.is_on_link(arp.target_ip) && cx.config.is_routed_endpoint(arp.target_ip);
        if answered && arp.op == ArpOp::Request && uplink.mode == UplinkMode::Dedicated {
            arp.reply(uplink.mac).write(frame, arp.sender_mac, uplink.mac);
            return Some(Verdict::Answer);
        }
        return Some(Verdict::Consume);
    }
    if let Some(verdict) = nd::on_uplink(cx, uplink, frame, headers) {
        return Some(verdict);
    }
    let is_routed = match headers.net {
        Net::Ipv4(_) => true,
        Net::Ipv6(_) => uplink.first_address(Ipv6Addr::UNSPECIFIED).is_some(),
        _ => false,
    };
    if headers.dst == uplink.mac && is_routed { None } else { Some(Verdict::Consume) }
}

/// Asks for a neighbor: on all ports of a network, or on the wire.
pub(crate) fn ask(cx: &mut Cx<'_>, link: Link, address: Ipv4Addr) {
    match link {
        Link::Network(id) => {
            let Some(network) = cx.config.network(id) else { return };
            let Some(sender) = network.gateway_for(address) else { return };
            let question = ArpPacket::request(network.config.gateway_mac, sender, address);
            // The host's leg is skipped: it has the very MAC we ask with.
            for port in &network.untagged {
                let Some(mut frame) = cx.pool.take() else { return };
                question.write(&mut frame, Mac::BROADCAST, network.config.gateway_mac);
                cx.ports.push_generated(cx.counters, *port, frame);
            }
        }
        Link::Uplink(id) => {
            let Some(uplink) = cx.config.uplink(id) else { return };
            let Some(sender) = uplink.address_for(address) else { return };
            let Some(mut frame) = cx.pool.take() else { return };
            let question = ArpPacket::request(uplink.mac, sender, address);
            question.write(&mut frame, Mac::BROADCAST, uplink.mac);
            cx.ports.push_generated(cx.counters, uplink.port, frame);
        }
    }
}
