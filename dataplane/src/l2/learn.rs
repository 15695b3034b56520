//! Learning: a MAC is behind the port its frames come from.

use crate::core::Cx;
use crate::frame::Frame;
use crate::pipeline::{From, Lane};

/// Hashes the addresses of a frame and asks for their places in the FDB, so that the lookups of the
/// batch wait for memory together.
#[inline(always)]
pub(crate) fn hash(cx: &Cx<'_>, lane: &mut Lane) {
    if !lane.is_open() {
        return;
    }
    let (From::Endpoint(network) | From::Host(network)) = lane.from else { return };
    let (fdb, headers) = (&cx.tables.fdb, &lane.headers);
    lane.src_hash = fdb.hash(network, headers.vlan, headers.src);
    lane.dst_hash = fdb.hash(network, headers.vlan, headers.dst);
    fdb.prefetch(lane.src_hash);
    fdb.prefetch(lane.dst_hash);
}

/// Learns where a frame came from. The host's leg speaks with the gateway's MAC, which is known; a bridge
/// in the host's stack behind it may speak with others.
#[inline(always)]
pub(crate) fn frame(cx: &Cx<'_>, frame: &Frame, lane: &Lane) {
    let (From::Endpoint(network) | From::Host(network)) = lane.from else { return };
    let Lane { headers, src_hash, .. } = lane;
    let fdb = &cx.tables.fdb;
    fdb.learn_hashed(*src_hash, network, headers.vlan, headers.src, frame.ingress, cx.secs);
}
