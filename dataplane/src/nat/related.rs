//! ICMP errors about a connection: the error goes to whoever sent the packet that it quotes, and
//! the quoted packet is translated back to what that sender sent (RFC 5508 §4, RFC 3022 §4.3).
//!
//! An error neither refreshes nor ends a connection (RFC 4787 REQ-12).

use crate::config::PortRole;
use crate::conntrack::entry::{DNAT, SNAT};
use crate::conntrack::{Hit, Key, Zone};
use crate::core::Cx;
use crate::frame::Frame;
use crate::l3::fragments::Carries;
use crate::nat::ip::{Ip, Tracked};
use crate::nat::local;
use crate::nat::lookup::zone;
use crate::nat::translate::{self, not_ours, translation};
use crate::packet::headers::L4;
use crate::packet::rewrite::Rewrite;
use crate::packet::types::PortId;
use crate::pipeline::{From, Lane};
use crate::verdict::{DropReason, Verdict};

/// Translates an ICMP error.
pub(super) fn translate<P: Ip>(
    cx: &mut Cx<'_>,
    frame: &mut Frame,
    lane: &mut Lane,
    ip: &P,
) -> Result<Verdict, DropReason> {
    let mut inner = match ip.quoted(frame.bytes()) {
        Ok(inner) => inner,
        Err(reason) => return not_ours(cx, lane.from, reason),
    };
    let Some(About { tuple, hit, id }) = lookup::<P>(cx, &inner, zone(lane.from)) else {
        // About a conversation between a container and the host's own stack.
        if let (Some(address), From::Endpoint(_)) = (P::local(cx, lane.from, ip.dst()), lane.from) {
            return local::deliver(cx, frame, lane, ip, address);
        }
        return not_ours(cx, lane.from, DropReason::IcmpUnrelated);
    };
    // Who is behind a guarded port routes for nobody: of what others were sent it has nothing to tell.
    if tuple.src() != ip.src() && is_guarded(cx, frame.ingress) {
        return not_ours(cx, lane.from, DropReason::IcmpUnrelated);
    }
    // The better router is one for the translated packet, not for what its sender sent.
    if let L4::Icmp { kind, .. } = ip.l4()
        && P::is_redirect(kind)
        && hit.flags() & (SNAT | DNAT) != 0
    {
        return not_ours(cx, lane.from, DropReason::IcmpUnrelated);
    }
    // `tuple` is how the quoted packet's answers come; the error goes their way.
    let change = translation(tuple, &hit);
    let way = translate::way_out(cx, frame, lane, ip, hit.other.src())?;
    let Some(outer) = P::of(&mut lane.headers) else { return Err(DropReason::NoService) };
    frame.truncate(outer.end());
    outer.decrement(frame)?;
    if let Some(id) = id {
        outer.identify_quoted(frame, &inner, id);
    }
    outer.translate_quoted(frame, &mut inner, &change.reversed());
    // Where the connection hides its source, no error may show it; where it does not, the router
    // that speaks keeps its name.
    let envelope = Rewrite {
        src: change.src.filter(|(address, _)| *address != tuple.src()),
        dst: Some((hit.other.src(), 0)).filter(|(address, _)| *address != outer.dst()),
    };
    outer.translate(frame, &envelope);
    Ok(translate::leave::<P::Tuple>(frame, lane, &way, None))
}

fn is_guarded(cx: &Cx<'_>, port: PortId) -> bool {
    let port = cx.config.port(port);
    port.is_some_and(|it| matches!(it.config.role, PortRole::Endpoint { guard: true, .. }))
}

/// What an error is about.
struct About<K> {
    /// As the answers to the packet that it quotes come.
    tuple: K,
    hit: Hit<K>,
    /// The identification that the sender gave the quoted fragment.
    id: Option<u32>,
}

/// The connection of the packet that an error quotes. A later fragment says nothing of ports; as what its
/// datagram has left does, and which identification its sender gave it.
fn lookup<P: Ip>(cx: &Cx<'_>, inner: &P::Quoted, zone: Zone) -> Option<About<P::Tuple>> {
    let (mut tuple, mut own) = (P::answers(inner, zone)?, None);
    if let Some((label, has_ports)) = P::quoted_fragment(inner)
        && let Some((carries, id)) = cx.tables.fragments.departed(&label, cx.now)
    {
        let Carries { src_port, dst_port, proto, .. } = carries;
        let left = P::Tuple::new(tuple.src(), tuple.dst(), dst_port, src_port, zone, proto);
        if !has_ports {
            tuple = left;
        }
        // One that says its ports may be of another datagram than the one that is remembered.
        own = Some(id).filter(|id| *id != label.id && tuple == left);
    }
    let hit = P::Tuple::table(cx.tables).lookup(tuple, cx.secs)?;
    Some(About { tuple, hit, id: own })
}
