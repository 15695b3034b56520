//! The storm limit: how many frames a second of one port are sent to all others.
//!
//! Each worker counts for the ports that it receives from. A port that moves to another worker has a full
//! bucket there, which is as much as it would have had after a second of silence.

use crate::config::PortRole;
use crate::core::Cx;
use crate::frame::Frame;
use crate::limiter::Bucket;
use crate::packet::types::{NetworkId, PortId};

/// One worker's buckets, by port.
#[derive(Debug, Default, Clone)]
pub(crate) struct Storms(Vec<Bucket>);

impl Storms {
    /// A port with a full bucket.
    pub(crate) fn add(&mut self, port: PortId) {
        if self.0.len() <= port.index() {
            self.0.resize_with(port.index() + 1, Bucket::default);
        }
        if let Some(bucket) = self.0.get_mut(port.index()) {
            *bucket = Bucket::default();
        }
    }
}

/// Whether a frame may go to all ports of a network. A frame that stands for many counts as many.
pub(crate) fn allows(cx: &mut Cx<'_>, network: NetworkId, frame: &Frame) -> bool {
    allows_many(cx, network, frame.ingress, segments(frame))
}

/// Whether a port may send as many frames as these to all ports of a network.
pub(crate) fn allows_many(
    cx: &mut Cx<'_>,
    network: NetworkId,
    ingress: PortId,
    frames: u64,
) -> bool {
    let per_second = cx.config.network(network).map_or(0, |network| network.config.storm_limit);
    // What an uplink brings is flooded only where it was routed, to a neighbor that the FDB has forgotten:
    // that neighbor's answer ends it, and one network's is not to be another's.
    let role = cx.config.port(ingress).map(|port| &port.config.role);
    let routed = matches!(role, Some(PortRole::Uplink { .. }));
    if per_second == 0 || routed {
        return true;
    }
    let Some(bucket) = cx.storms.0.get_mut(ingress.index()) else { return true };
    let allowed = bucket.take(cx.now, frames, u64::from(per_second));
    cx.counters.storms.note(bucket, u64::from(per_second), cx.now);
    allowed
}

fn segments(frame: &Frame) -> u64 {
    let payload = frame.len().saturating_sub(usize::from(frame.vnet.hdr_len));
    match usize::from(frame.vnet.gso_size) {
        size @ 1.. if frame.vnet.is_gso() => payload.div_ceil(size).max(1) as u64,
        _ => 1,
    }
}
