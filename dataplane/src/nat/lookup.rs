//! Which connection does a routed packet belong to? All packets of the batch are hashed first and
//! ask for their part of the index, then all ask for their entries, then all are looked up: the
//! cache trains of the batch overlap.

use crate::conntrack::{Tuple, Zone};
use crate::core::Cx;
use crate::packet::headers::Net;
use crate::pipeline::{From, Lane, Track};

pub(crate) fn stage(cx: &mut Cx<'_>, lanes: &mut [Lane]) {
    let connections = &cx.tables.connections;
    let mut trains = 0;
    // The tuple before: packets come in trains, and a train is hashed once.
    let mut last: Option<(Tuple, u64)> = None;
    for lane in lanes.iter_mut().filter(|lane| lane.is_open()) {
        let Net::Ipv4(ip) = &lane.headers.net else { continue };
        let Some(tuple) = Tuple::of(ip, zone(lane.from)) else { continue };
        let hash = match last {
            Some((same, hash)) if same == tuple => hash,
            _ => {
                let hash = connections.hash(tuple);
                connections.prefetch_index(hash);
                trains += 1;
                hash
            }
        };
        last = Some((tuple, hash));
        lane.track = Some(Track { tuple, hash, hit: None });
    }
    // A single connection's entry is asked for by its lookup as soon.
    if trains > 1 {
        for track in lanes.iter().filter(|lane| lane.is_open()).filter_map(|lane| lane.track) {
            connections.prefetch_entry(track.hash);
        }
    }
    for lane in lanes.iter_mut().filter(|lane| lane.is_open()) {
        if let Some(track) = &mut lane.track {
            track.hit = connections.lookup_hashed(track.hash, track.tuple, cx.secs);
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
