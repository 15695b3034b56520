//! Admission: is this frame allowed to come from there?
//!
//! Everything an endpoint may lie about is checked here, before anything is learned from it: the
//! virtio-net header, the source MAC, the IPv4 source and the ARP sender.

use crate::config::{PortEntry, PortRole, Snapshot};
use crate::core::Cx;
use crate::frame::Frame;
use crate::packet::arp::ArpPacket;
use crate::packet::headers::{Headers, Net};
use crate::packet::offload;
use crate::pipeline::{From, Lane};
use crate::verdict::{DropReason, Verdict};

pub(crate) fn stage(cx: &mut Cx<'_>, frames: &mut [Frame], lanes: &mut [Lane]) {
    for (frame, lane) in frames.iter_mut().zip(lanes) {
        cx.ports.count_rx(frame.ingress, frame.len());
        let Some(port) = cx.config.port(frame.ingress) else {
            lane.verdict = Some(Verdict::Drop(DropReason::PortUnconfigured));
            continue;
        };
        lane.from = match &port.config.role {
            PortRole::Endpoint { network, .. } => From::Endpoint(*network),
            PortRole::Host { network } => From::Host(*network),
            PortRole::Uplink { uplink } => From::Uplink(*uplink),
        };
        if lane.is_open()
            && let Err(reason) = admit(cx.config, port, frame, &lane.headers)
        {
            lane.verdict = Some(Verdict::Drop(reason));
        }
    }
    cx.counters.rx_frames.add(frames.len() as u64);
}

fn admit(
    config: &Snapshot,
    port: &PortEntry,
    frame: &mut Frame,
    headers: &Headers,
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
    let PortRole::Endpoint { mac, ipv4, guard, .. } = &port.config.role else {
        return Ok(());
    };
    let gateway_mac = config.network(*network).map(|network| network.config.gateway_mac);
    if gateway_mac == Some(headers.src) {
        return Err(DropReason::OwnMac);
    }
    if !guard {
        return Ok(());
    }
    if headers.src != *mac {
        return Err(DropReason::SpoofedMac);
    }
    match &headers.net {
        Net::Ipv4(ip) if !ip.src.is_unspecified() && !ipv4.contains(&ip.src) => {
            Err(DropReason::SpoofedIpv4)
        }
        Net::Arp => {
            let arp = ArpPacket::parse(frame.bytes(), headers).ok_or(DropReason::ArpMalformed)?;
            let sender_ok = arp.sender_ip.is_unspecified() || ipv4.contains(&arp.sender_ip);
            if arp.sender_mac == *mac && sender_ok { Ok(()) } else { Err(DropReason::SpoofedArp) }
        }
        _ => Ok(()),
    }
}
