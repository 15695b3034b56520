//! Admission: is this frame allowed to come from there?
//!
//! Everything an endpoint may lie about is checked here, before anything is learned from it: the
//! virtio-net header, the source MAC, the IPv4 source and the sender in ARP, the IPv6 source and what it
//! says in Neighbor Discovery ([`guard6`]); and that it does not play the network's DHCP server or router
//! ([`guard`]). Here a frame gets the VLAN that it is in ([`vlan`]). The host's leg carries
//! what the host itself says and nothing else: a host that forwards (`ip_forward=1`) is no way into
//! a network.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::config::{PortEntry, PortRole, Snapshot, Vlans};
use crate::core::Cx;
use crate::frame::Frame;
use crate::l2::guard6::Owner;
use crate::l2::{guard, guard6, vlan};
use crate::packet::arp::ArpPacket;
use crate::packet::headers::{Headers, Net};
use crate::packet::types::{NetworkId, ethertype};
use crate::packet::{offload, parse};
use crate::pipeline::{From, Lane};
use crate::verdict::{DropReason, Verdict};

#[inline(always)]
pub(crate) fn frame(cx: &Cx<'_>, frame: &mut Frame, lane: &mut Lane) {
    let Some(port) = cx.config.port(frame.ingress) else {
        lane.verdict = Some(Verdict::Drop(DropReason::PortUnconfigured));
        return;
    };
    if lane.headers.tagged
        && lane.headers.vlan == 0
        && let Err(reason) = vlan::strip_priority(frame, &mut lane.headers)
    {
        lane.verdict = Some(Verdict::Drop(reason));
        return;
    }
    if offload::needs_net(frame) {
        parse::parse_net(frame.bytes(), &mut lane.headers);
    }
    lane.from = From::of(&port.config.role);
    if lane.is_open()
        && let Err(reason) = admit(cx.config, port, frame, &mut lane.headers)
    {
        lane.verdict = Some(Verdict::Drop(reason));
    }
}

#[inline(always)]
fn admit(
    config: &Snapshot,
    port: &PortEntry,
    frame: &mut Frame,
    headers: &mut Headers,
) -> Result<(), DropReason> {
    offload::admit(frame, headers)?;
    let (PortRole::Endpoint { network, .. } | PortRole::Host { network }) = &port.config.role
    else {
        return Ok(());
    };
    if headers.dst.is_link_local_group() {
        return Err(DropReason::LinkLocalGroup);
    }
    if !headers.src.is_valid_source() {
        return Err(DropReason::InvalidSourceMac);
    }
    vlan::check(headers)?;
    let PortRole::Endpoint { mac, ipv4, guard, trusted, vlans, .. } = &port.config.role else {
        return of_the_host(config, *network, frame, headers);
    };
    if headers.src != *mac {
        let network = config.network(*network);
        if network.is_some_and(|network| network.config.gateway_mac == headers.src) {
            return Err(DropReason::OwnMac);
        }
        if *guard {
            let is_anothers = network.is_some_and(|it| it.macs.contains_key(&headers.src));
            let reason = if is_anothers { DropReason::EndpointMac } else { DropReason::SpoofedMac };
            return Err(reason);
        }
    }
    if !matches!(vlans, Vlans::All) {
        vlan::enter(vlans, headers)?;
    }
    // Without guard too: who bridges two endpoints sends back what all others say. Who does so between two
    // VLANs makes no loop.
    if headers.src != *mac && config.is_at_home(*network, headers.src, headers.vlan) {
        return Err(DropReason::EndpointMac);
    }
    if !trusted {
        guard::admit(frame.bytes(), headers)?;
    }
    if !guard {
        return Ok(());
    }
    if matches!(headers.net, Net::Arp) {
        let arp = ArpPacket::parse(frame.bytes(), headers).ok_or(DropReason::ArpMalformed)?;
        return guard::admit_arp(&arp, *mac, ipv4, config.network(*network));
    }
    match parse::ipv4_source(frame.bytes(), headers) {
        Some(source) => {
            let packet = frame.bytes().get(usize::from(headers.l3)..).unwrap_or_default();
            guard::admit_ipv4(packet, source, ipv4)
        }
        None => {
            let network = config.network(*network);
            let owner = Owner { mac: *mac, ipv4, ipv6: &port.own6, network };
            guard6::admit(frame.bytes(), headers, &owner)
        }
    }
}

/// Sockets of the host, a proxy's too, speak from addresses of the host. Any other source is
/// somebody's for whom the host's stack forwards, past published ports and `internal`.
fn of_the_host(
    config: &Snapshot,
    network: NetworkId,
    frame: &Frame,
    headers: &Headers,
) -> Result<(), DropReason> {
    let own = |source: Ipv4Addr| source.is_unspecified() || config.local(source).is_some();
    let is_own = match headers.ethertype {
        ethertype::ARP => {
            let arp = ArpPacket::parse(frame.bytes(), headers).ok_or(DropReason::ArpMalformed)?;
            own(arp.sender_ip)
        }
        ethertype::IPV6 => is_own6(config, network, frame, headers),
        _ => parse::ipv4_source(frame.bytes(), headers).is_none_or(own),
    };
    if is_own { Ok(()) } else { Err(DropReason::HostForwarded) }
}

/// Nobody forwards from a link-local address (RFC 4291 §2.5.6). A network without IPv6 has no way in that
/// could be passed.
fn is_own6(config: &Snapshot, network: NetworkId, frame: &Frame, headers: &Headers) -> bool {
    let own = |source: Ipv6Addr| {
        source.is_unspecified()
            || source.is_unicast_link_local()
            || config.local(source).is_some()
            || !config.network(network).is_some_and(|network| network.has_ipv6)
    };
    parse::ipv6_source_at(frame.bytes(), usize::from(headers.l3)).is_none_or(own)
}
