//! Learning: a MAC is behind the port its frames come from.

use crate::core::Cx;
use crate::frame::Frame;
use crate::pipeline::{From, Lane};

// Learn before lookup: a host that moved must get the answer to this very frame.
pub(crate) fn stage(cx: &mut Cx<'_>, frames: &[Frame], lanes: &[Lane]) {
    for (frame, lane) in frames.iter().zip(lanes) {
        if !lane.is_open() {
            continue;
        }
        // The host's leg speaks with the gateway's MAC, which is known; a bridge in the host's
        // stack behind it may speak with others.
        if let From::Endpoint(network) | From::Host(network) = lane.from {
            let headers = &lane.headers;
            cx.tables.fdb.learn(network, headers.vlan, headers.src, frame.ingress, cx.secs);
        }
    }
}
