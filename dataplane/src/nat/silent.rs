//! Packets that waited for a neighbor in vain: their senders are told (RFC 4861 §7.2.2; RFC 1812 §5.2.7.1). They
//! waited as they would have left; each is turned back to what its sender sent by the connection that it belongs
//! to, as what an ICMP error quotes is.

use crate::conntrack::entry::HELPED;
use crate::conntrack::{Key, Zone};
use crate::core::Cx;
use crate::engine::Link;
use crate::l3::neighbor::Held;
use crate::l3::report::{Trouble, report};
use crate::nat::ip::{Ip, Tracked};
use crate::nat::translate::translation;
use crate::packet::headers::Net;
use crate::packet::parse;
use crate::pipeline::From;

/// Tells the sender of a frame that is about to be dropped. Its link header is still the one that it came with.
#[cold]
pub(crate) fn tell(cx: &mut Cx<'_>, held: &mut Held) {
    let Some(port) = cx.config.port(held.frame.ingress) else { return };
    let from = From::of(&port.config.role);
    let zone = match held.link {
        Link::Network(id) => Zone::network(id),
        Link::Uplink(_) => Zone::OUTSIDE,
    };
    let Ok(headers) = parse::parse(held.frame.bytes()) else { return };
    let is_as_it_came = match headers.net {
        Net::Ipv4(ip) => turn_back(cx, held, ip, zone),
        Net::Ipv6(ip) => turn_back(cx, held, ip, zone),
        _ => false,
    };
    if is_as_it_came && let Ok(headers) = parse::parse(held.frame.bytes()) {
        report(cx, &held.frame, &headers, from, Trouble::NeighborSilent);
    }
}

/// Undoes the translation of a packet that was to leave into `zone`. False: nobody knows any more what it was.
fn turn_back<P: Ip>(cx: &Cx<'_>, held: &mut Held, mut ip: P, zone: Zone) -> bool {
    // Of fragments errors are about the first one, which may have waited elsewhere.
    if ip.is_fragment() {
        return false;
    }
    let Some(tuple) = ip.tuple(zone) else { return false };
    let answers = tuple.reversed(zone);
    let Some(hit) = P::Tuple::table(cx.tables).lookup(answers, cx.secs) else { return false };
    // Its own may have ended since, and another sandbox's looks the same from outside. What a helper has
    // written into it is not what its sender sent.
    if held.connection != Some(hit.id) || hit.flags() & HELPED != 0 {
        return false;
    }
    let change = translation(answers, &hit).reversed();
    if !change.is_none() {
        ip.translate(&mut held.frame, &change);
    }
    true
}
