//! Which connection does a routed packet belong to? All packets of the batch are hashed first, then
//! all are looked up, so that the lookups' cache misses overlap.

use crate::conntrack::{Tuple, Zone};
use crate::core::Cx;
use crate::packet::headers::Net;
use crate::pipeline::{From, Lane, Track};

pub(crate) fn stage(cx: &mut Cx<'_>, lanes: &mut [Lane]) {
    for lane in lanes.iter_mut().filter(|lane| lane.is_open()) {
        let Net::Ipv4(ip) = &lane.headers.net else { continue };
        lane.track = Tuple::of(ip, zone(lane.from)).map(|tuple| Track {
            tuple,
            hash: cx.tables.connections.hash(tuple),
            hit: None,
        });
    }
    for lane in lanes.iter_mut().filter(|lane| lane.is_open()) {
        if let Some(track) = &mut lane.track {
            track.hit = cx.tables.connections.lookup_hashed(track.hash, track.tuple, cx.secs);
        }
    }
}

/// The zone in which packets from there enter.
pub(crate) fn zone(from: From) -> Zone {
    match from.network() {
        Some(network) => Zone::network(network),
        None => Zone::OUTSIDE,
    }
}
