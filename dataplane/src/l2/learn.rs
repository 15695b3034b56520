//! Learning: a MAC is behind the port its frames come from.

use crate::core::Cx;
use crate::frame::Frame;
use crate::l2::fdb;
use crate::packet::types::{Mac, NetworkId};
use crate::pipeline::{From, Lane};

/// Hashes the addresses of all frames and asks for their places in the FDB, so that the lookups of
/// the batch wait for memory together.
pub(crate) fn hash_stage(cx: &Cx<'_>, lanes: &mut [Lane]) {
    let mut src = Hashed::default();
    let mut dst = Hashed::default();
    for lane in lanes.iter_mut().filter(|lane| lane.is_open()) {
        let (From::Endpoint(network) | From::Host(network)) = lane.from else { continue };
        let headers = &lane.headers;
        lane.src_hash = src.hash(cx, network, headers.vlan, headers.src);
        lane.dst_hash = dst.hash(cx, network, headers.vlan, headers.dst);
    }
}

/// The hash of the frame before: frames come in trains, and a train is hashed once.
struct Hashed {
    of: (u64, u16),
    hash: u64,
}

impl Default for Hashed {
    /// Of no frame: a VLAN id has 12 bits.
    fn default() -> Self {
        Self { of: (0, u16::MAX), hash: 0 }
    }
}

impl Hashed {
    #[inline]
    fn hash(&mut self, cx: &Cx<'_>, network: NetworkId, vlan: u16, mac: Mac) -> u64 {
        let of = (fdb::key_word(network, mac), vlan);
        if self.of != of {
            self.of = of;
            self.hash = cx.tables.fdb.hash(network, vlan, mac);
            cx.tables.fdb.prefetch(self.hash);
        }
        self.hash
    }
}

// Learn before lookup: a host that moved must get the answer to this very frame.
pub(crate) fn stage(cx: &Cx<'_>, frames: &[Frame], lanes: &[Lane]) {
    let mut last = None;
    for (frame, lane) in frames.iter().zip(lanes) {
        if !lane.is_open() {
            continue;
        }
        // The host's leg speaks with the gateway's MAC, which is known; a bridge in the host's
        // stack behind it may speak with others.
        if let From::Endpoint(network) | From::Host(network) = lane.from {
            let Lane { headers, src_hash, .. } = lane;
            // A train of frames says the same again and again.
            let says = Some((*src_hash, headers.src, frame.ingress));
            if last == says {
                continue;
            }
            last = says;
            let fdb = &cx.tables.fdb;
            fdb.learn_hashed(*src_hash, network, headers.vlan, headers.src, frame.ingress, cx.secs);
        }
    }
}
