//! Which connection does a routed packet belong to? All packets of the batch are hashed first and
//! ask for their part of the index, then all ask for their entries: the cache misses of the batch
//! overlap. Each is looked up when it is translated, because the packet before may have begun its
//! connection.

use std::net::Ipv4Addr;

use crate::conntrack::{Key, Tuple, Tuple6, Zone};
use crate::core::Cx;
use crate::packet::headers::Net;
use crate::pipeline::{From, Lane};

pub(crate) fn stage(cx: &mut Cx<'_>, lanes: &mut [Lane]) {
    let mut looks = 0;
    for lane in lanes.iter_mut().filter(|lane| lane.is_open()) {
        // Who has looked for a shortcut has done so already.
        if !lane.is_tracked {
            hash(cx, lane);
            looks += usize::from(lane.is_tracked);
        }
    }
    // A single connection's entry is asked for by its lookup as soon.
    if looks > 1 {
        for lane in lanes.iter().filter(|lane| lane.is_open() && lane.is_tracked) {
            match lane.headers.net {
                Net::Ipv6(_) => cx.tables.connections6.prefetch_entry(lane.hash),
                _ => cx.tables.connections.prefetch_entry(lane.hash),
            };
        }
    }
    if let Some(outside) = *cx.outside {
        for lane in lanes.iter().filter(|lane| lane.is_open() && lane.is_tracked) {
            prefetch_reply(cx, lane, outside);
        }
    }
}

/// Asks for the place in the index of the answers to a packet that may begin a connection, as it will be
/// if it goes out like the one before it and keeps its port.
fn prefetch_reply(cx: &Cx<'_>, lane: &Lane, outside: Ipv4Addr) {
    let connections = &cx.tables.connections;
    let is_ipv4 = matches!(lane.headers.net, Net::Ipv4(_));
    if is_ipv4 && lane.from.network().is_some() && !connections.may_be_taken(lane.hash) {
        let spoken = lane.tuple.with_src(outside, lane.tuple.src_port());
        connections.prefetch_both(connections.hash(spoken.reversed(Zone::OUTSIDE)));
    }
}

/// Finds out the tuple of a packet, if it has one, and asks for its place in the index.
#[inline]
pub(crate) fn hash(cx: &Cx<'_>, lane: &mut Lane) {
    let Net::Ipv4(ip) = &lane.headers.net else { return hash6(cx, lane) };
    let Some(tuple) = Tuple::of(ip, zone(lane.from)) else { return };
    lane.tuple = tuple;
    lane.hash = cx.tables.connections.hash(tuple);
    lane.is_tracked = true;
    cx.tables.connections.prefetch_index(lane.hash);
}

#[inline(never)]
fn hash6(cx: &Cx<'_>, lane: &mut Lane) {
    let Net::Ipv6(ip) = &lane.headers.net else { return };
    let Some(tuple) = Tuple6::of(ip, zone(lane.from)) else { return };
    lane.tuple6 = tuple;
    lane.hash = cx.tables.connections6.hash(tuple);
    lane.is_tracked = true;
    cx.tables.connections6.prefetch_index(lane.hash);
}

/// The zone in which packets from there enter.
pub(crate) fn zone(from: From) -> Zone {
    match from.network() {
        Some(network) => Zone::network(network),
        None => Zone::OUTSIDE,
    }
}
