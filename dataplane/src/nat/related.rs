//! ICMP errors about a connection: the error goes to whoever sent the packet that it quotes, and
//! the quoted packet is translated back to what that sender sent (RFC 5508 §4, RFC 3022 §4.3).
//!
//! An error neither refreshes nor ends a connection (RFC 4787 REQ-12).

use crate::conntrack::tuple::is_tracked;
use crate::conntrack::{Hit, Key, Tuple, Zone};
use crate::core::Cx;
use crate::frame::Frame;
use crate::nat::local;
use crate::nat::lookup::zone;
use crate::nat::translate::{self, not_ours, translation};
use crate::packet::headers::{Ipv4, Net};
use crate::packet::icmp::{self, InnerL4, InnerPacket};
use crate::packet::rewrite::{self, Rewrite};
use crate::pipeline::{From, Lane};
use crate::verdict::{DropReason, Verdict};

/// Translates an ICMP error.
pub(super) fn translate(
    cx: &mut Cx<'_>,
    frame: &mut Frame,
    lane: &mut Lane,
    ip: &Ipv4,
) -> Result<Verdict, DropReason> {
    let mut inner = match icmp::parse_inner(frame.bytes(), ip) {
        Ok(inner) => inner,
        Err(reason) => return not_ours(cx, lane.from, reason),
    };
    let found = lookup(cx, &inner, zone(lane.from));
    let Some((tuple, hit)) = found else {
        // About a conversation between a container and the host's own stack.
        if let (Some(address), From::Endpoint(_)) = (cx.config.local(ip.dst), lane.from) {
            return local::deliver(cx, frame, lane, ip, address);
        }
        return not_ours(cx, lane.from, DropReason::IcmpUnrelated);
    };
    // `tuple` is how the quoted packet's answers come; the error goes their way.
    let change = translation(tuple, &hit);
    let way = translate::way_out(cx, frame, lane, ip, hit.other.src())?;
    let Net::Ipv4(outer) = &mut lane.headers.net else { return Err(DropReason::Ipv4Malformed) };
    frame.truncate(outer.end());
    rewrite::decrement_ttl(frame, outer)?;
    rewrite::apply_inner(frame, outer, &mut inner, &change.reversed());
    // Where the connection hides its source, no error may show it; where it does not, the router
    // that speaks keeps its name.
    let envelope = Rewrite {
        src: change.src.filter(|(address, _)| *address != tuple.src()),
        dst: Some((hit.other.src(), 0)).filter(|(address, _)| *address != outer.dst),
    };
    rewrite::apply(frame, outer, &envelope);
    Ok(translate::leave(frame, lane, &way, None))
}

/// The connection of the packet that an error quotes, and the tuple of the answers to it.
fn lookup(cx: &Cx<'_>, inner: &InnerPacket, zone: Zone) -> Option<(Tuple, Hit)> {
    let (src_port, dst_port) = match inner.l4 {
        InnerL4::Ports { src_port, dst_port } => (src_port, dst_port),
        InnerL4::Query { kind, id } if is_tracked(kind) => (id, id),
        // A timestamp query with the identifier of somebody's ping is not that ping.
        InnerL4::Query { .. } => return None,
        InnerL4::None => (0, 0),
    };
    let answers = Tuple::new(inner.dst, inner.src, dst_port, src_port, zone, inner.proto);
    let hit = cx.tables.connections.lookup(answers, cx.secs)?;
    Some((answers, hit))
}
