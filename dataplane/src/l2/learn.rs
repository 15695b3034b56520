//! Learning: a MAC is behind the port its frames come from.

use crate::core::Cx;
use crate::frame::Frame;
use crate::l2::fdb::Learned;
use crate::pipeline::{From, Lane};
use crate::verdict::{DropReason, Verdict};

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
/// in the host's stack behind it may speak with others. A MAC that moves with every frame is held at one
/// port, and what comes from it by another ends here: frames that go round in a loop end so.
#[inline(always)]
pub(crate) fn frame(cx: &Cx<'_>, frame: &Frame, lane: &mut Lane) {
    let (From::Endpoint(network) | From::Host(network)) = lane.from else { return };
    let Lane { headers, src_hash, .. } = lane;
    let fdb = &cx.tables.fdb;
    let learned =
        fdb.learn_hashed(*src_hash, network, headers.vlan, headers.src, frame.ingress, cx.secs);
    if learned == Learned::Flapping {
        lane.verdict = Some(Verdict::Drop(DropReason::MacFlap));
    }
}
