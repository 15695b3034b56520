//! Lowers the maximum segment size that a SYN offers to what the way takes, for hosts that are not told when
//! a packet is too long: many a firewall drops ICMP (RFC 2923 §2.1). Both SYNs of a connection cross us, so
//! both directions are bounded.
//!
//! It is never raised, and never set below what every host takes anyway: there the path MTU has to be
//! discovered or the packets fragmented.

use crate::core::Cx;
use crate::frame::Frame;
use crate::packet::headers::{Headers, L4, Net};
use crate::packet::parse::{IPV4_LEN, IPV6_LEN, TCP_LEN};
use crate::packet::tcp;
use crate::packet::types::{NetworkId, tcp_flags};
use crate::pipeline::From;

/// RFC 9293 §3.7.1: what is assumed where nothing is offered. For IPv4, RFC 791's 576 less both headers.
const LEAST_V4: u16 = 536;
/// The same for IPv6: RFC 8200's 1280 less both headers.
const LEAST_V6: u16 = 1220;

/// Clamps the offer of a SYN that came in there and leaves by a link of this MTU. `network` has the say.
#[inline(always)]
pub(super) fn clamp(
    cx: &Cx<'_>,
    frame: &mut Frame,
    headers: &Headers,
    from: From,
    network: NetworkId,
    egress_mtu: u16,
) {
    let l4 = match &headers.net {
        Net::Ipv4(ip) => ip.l4,
        Net::Ipv6(ip) => ip.l4,
        _ => return,
    };
    if let L4::Tcp { flags, header_len, .. } = l4
        && flags & tcp_flags::SYN != 0
    {
        clamp_syn(cx, frame, headers, header_len, from, network, egress_mtu);
    }
}

#[inline(never)]
fn clamp_syn(
    cx: &Cx<'_>,
    frame: &mut Frame,
    headers: &Headers,
    header_len: u8,
    from: From,
    network: NetworkId,
    egress_mtu: u16,
) {
    if !cx.config.network(network).is_some_and(|network| network.config.mss_clamp) {
        return;
    }
    let mtu = ingress_mtu(cx, from).map_or(egress_mtu, |mtu| mtu.min(egress_mtu));
    let (start, limit) = match &headers.net {
        Net::Ipv4(ip) => (ip.l4_offset, room(mtu, IPV4_LEN).max(LEAST_V4)),
        Net::Ipv6(ip) => (ip.l4_offset, room(mtu, IPV6_LEN).max(LEAST_V6)),
        _ => return,
    };
    let partial = frame.vnet.needs_csum();
    tcp::clamp_mss(frame.bytes_mut(), usize::from(start), header_len, partial, limit);
}

/// The payload of a segment without options in a packet of this length.
fn room(mtu: u16, header_len: usize) -> u16 {
    let headers = u16::try_from(header_len + TCP_LEN).unwrap_or(u16::MAX);
    mtu.saturating_sub(headers)
}

/// The longest IP packet of the link by which it came, which is the way back.
fn ingress_mtu(cx: &Cx<'_>, from: From) -> Option<u16> {
    match from {
        From::Endpoint(id) | From::Host(id) => cx.config.network(id).map(|n| n.config.mtu),
        From::Uplink(id) => cx.config.uplink(id).map(|uplink| uplink.mtu),
        From::Nowhere => None,
    }
}
