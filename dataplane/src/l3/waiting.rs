//! Frames that waited for a neighbor: sent when it is known, dropped when it does not answer, which their
//! senders are told.

use crate::core::Cx;
use crate::egress;
use crate::engine::Link;
use crate::l3::hop;
use crate::l3::neighbor::{Held, Resolution};
use crate::nat::silent;
use crate::packet::parse::ETH_LEN;
use crate::packet::rewrite;
use crate::packet::types::{Mac, PortId};
use crate::verdict::DropReason;

/// Looks at the waiting frames if anything can have changed.
pub(crate) fn release(cx: &mut Cx<'_>) {
    if !cx.waiting.is_due(&cx.tables.neighbors, cx.now) {
        return;
    }
    let (mut all, mut silent) = cx.waiting.take();
    for held in all.drain(..) {
        let neighbor = (held.link, held.next_hop);
        // Asking for it would begin the next round of questions, which is not this frame's.
        if held.until <= cx.now || silent.contains(&neighbor) {
            match cx.tables.neighbors.peek(held.link, held.next_hop) {
                Some(mac) => send(cx, held, mac),
                None => is_silent(cx, held),
            }
            continue;
        }
        let asker = hop::asker(cx.config, held.link, held.next_hop, held.frame.ingress);
        match cx.tables.neighbors.resolve(held.link, held.next_hop, asker, cx.now) {
            Resolution::Known(mac) | Resolution::KnownAsk(mac) => send(cx, held, mac),
            Resolution::Unknown { ask } => {
                if ask {
                    hop::ask_for(cx, held.link, held.next_hop);
                }
                cx.waiting.push(held);
            }
            Resolution::Failed => {
                silent.push(neighbor);
                is_silent(cx, held);
            }
            // Others have taken its place: nobody asks for it any more.
            Resolution::Full => is_silent(cx, held),
        }
    }
    cx.waiting.recycle(all, silent);
}

/// The neighbor of a frame has not answered.
#[cold]
fn is_silent(cx: &mut Cx<'_>, mut held: Held) {
    // Before its connection goes, which knows what its sender sent.
    silent::tell(cx, &mut held);
    give_up(cx, held, DropReason::NeighborUnresolved);
}

/// Drops a frame that is not to wait any longer; the connection that it began goes with it.
#[cold]
pub(crate) fn give_up(cx: &mut Cx<'_>, held: Held, reason: DropReason) {
    if let Some(id) = held.connection.filter(|_| held.is_unanswered) {
        // What waits has no VLAN tag, and its padding is gone: see `nat::translate::finish`.
        let packet = held.frame.len().saturating_sub(ETH_LEN);
        cx.tables.take_back(held.next_hop, id, packet as u64);
    }
    cx.ports.drop_rx(cx.counters, held.frame.ingress, reason);
    cx.pool.put(held.frame);
}

fn send(cx: &mut Cx<'_>, mut held: Held, mac: Mac) {
    let Some((port, src)) = way(cx, held.link, mac) else {
        return give_up(cx, held, DropReason::NeighborUnresolved);
    };
    rewrite::set_ethernet(&mut held.frame, mac, src);
    egress::send_held(cx, port, held);
}

fn way(cx: &Cx<'_>, link: Link, mac: Mac) -> Option<(PortId, Mac)> {
    match link {
        Link::Network(id) => {
            let network = cx.config.network(id)?;
            Some((hop::port_of(cx, id, mac)?, network.config.gateway_mac))
        }
        Link::Uplink(id) => {
            let uplink = cx.config.uplink(id)?;
            Some((uplink.port, uplink.mac))
        }
    }
}
