//! What reaches the gateway's MAC or an uplink's: is it a sound IPv4 packet between addresses that
//! can be routed?

use std::net::Ipv4Addr;

use crate::config::LocalAddress;
use crate::core::Cx;
use crate::frame::Frame;
use crate::packet::checksum;
use crate::packet::headers::{Ipv4, L4, Net};
use crate::packet::parse::parse_net;
use crate::pipeline::{From, Lane};
use crate::verdict::{DropReason, Verdict};

pub(crate) fn stage(cx: &mut Cx<'_>, frames: &[Frame], lanes: &mut [Lane]) {
    for (one, lane) in frames.iter().zip(lanes) {
        if lane.is_open() {
            frame(cx, one, lane);
        }
    }
}

#[inline]
pub(crate) fn frame(cx: &Cx<'_>, frame: &Frame, lane: &mut Lane) {
    parse_net(frame.bytes(), &mut lane.headers);
    if let Err(reason) = check(cx, frame, lane) {
        lane.verdict = Some(match lane.from {
            // The host's stack receives the same frame and counts its own errors.
            From::Uplink(id) if is_shared(cx, id) => Verdict::Consume,
            _ => Verdict::Drop(reason),
        });
    }
}

fn is_shared(cx: &Cx<'_>, id: crate::packet::types::UplinkId) -> bool {
    cx.config.uplink(id).is_some_and(|u| u.mode == crate::config::UplinkMode::Shared)
}

fn check(cx: &Cx<'_>, frame: &Frame, lane: &Lane) -> Result<(), DropReason> {
    let ip = match &lane.headers.net {
        Net::Ipv4(ip) => ip,
        Net::Ipv6(_) => return Err(DropReason::Ipv6NotRouted),
        Net::Malformed(_) => return Err(DropReason::Ipv4Malformed),
        Net::Arp | Net::Other | Net::Unread => return Err(DropReason::NoService),
    };
    if ip.l4 == L4::Truncated {
        return Err(DropReason::L4Malformed);
    }
    if !header_is_sound(frame, lane, ip) {
        return Err(DropReason::Ipv4Checksum);
    }
    if !can_be_source(ip.src) || ip.dst.is_loopback() || ip.dst.is_unspecified() {
        return Err(DropReason::Martian);
    }
    if ip.dst.is_multicast() || ip.dst.is_broadcast() {
        return Err(DropReason::NotUnicast);
    }
    // Our own addresses never come in as a source, except from the host's stack, which has them.
    match (cx.config.local(ip.src), lane.from) {
        (Some(LocalAddress::Gateway(_) | LocalAddress::Uplink(_)), From::Endpoint(_))
        | (Some(_), From::Uplink(_)) => Err(DropReason::Martian),
        _ => Ok(()),
    }
}

fn header_is_sound(frame: &Frame, lane: &Lane, ip: &Ipv4) -> bool {
    let l3 = usize::from(lane.headers.l3);
    let header = frame.bytes().get(l3..l3 + usize::from(ip.header_len));
    header.is_some_and(checksum::ipv4_header_is_valid)
}

/// RFC 1812 §5.3.7 and RFC 6890: "this network", loopback, multicast and class E.
fn can_be_source(address: Ipv4Addr) -> bool {
    let [first, ..] = address.octets();
    first != 0 && first != 127 && first < 224
}
