//! ICMP errors to the sender of a packet that cannot go on.

use std::net::Ipv4Addr;

use crate::core::Cx;
use crate::frame::Frame;
use crate::packet::headers::{Headers, Net};
use crate::packet::icmp::{self, IcmpError};
use crate::pipeline::From;

/// Sends an error back to where the frame came from, unless the rules (RFC 1122 §3.2.2) or the
/// rate limit forbid it. The frame must be as it was received: its own bytes are quoted.
pub(crate) fn report(
    cx: &mut Cx<'_>,
    frame: &Frame,
    headers: &Headers,
    from: From,
    error: IcmpError,
) {
    let Net::Ipv4(ip) = &headers.net else { return };
    let Some(source) = speaker(cx, from, ip.src) else { return };
    if !icmp::may_report(headers) || !cx.errors.allow(cx.now) {
        return;
    }
    let Some(mut reply) = cx.pool.take() else { return };
    if icmp::write_error(&mut reply, frame, headers, source, error) {
        cx.ports.push_generated(cx.counters, frame.ingress, reply);
    } else {
        cx.pool.put(reply);
    }
}

/// The address we speak from to `to`.
fn speaker(cx: &Cx<'_>, from: From, to: Ipv4Addr) -> Option<Ipv4Addr> {
    match from {
        From::Endpoint(id) | From::Host(id) => cx.config.network(id)?.gateway_for(to),
        From::Uplink(id) => cx.config.uplink(id)?.first_address(to),
        From::Nowhere => None,
    }
}
