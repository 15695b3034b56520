//! THE ORDER: what happens to a batch of frames, stage by stage. Read this first.
//!
//! A stage looks at every frame whose fate is still open and may decide it; the last stage carries
//! the decisions out in the order in which the frames came, so that no flow is reordered.

use crate::admit;
use crate::conntrack::{Hit, Tuple};
use crate::core::{Cx, Transmit};
use crate::egress;
use crate::frame::Frame;
use crate::l2;
use crate::l3;
use crate::nat;
use crate::packet::headers::{Headers, Net};
use crate::packet::parse;
use crate::packet::types::{Mac, NetworkId, UplinkId};
use crate::verdict::{DropReason, Verdict};

/// What is known about one frame of the batch.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) headers: Headers,
    pub(crate) from: From,
    /// Of the source MAC in the FDB, for frames from a network.
    pub(crate) src_hash: u64,
    /// Of the destination MAC.
    pub(crate) dst_hash: u64,
    /// `None`: still open.
    pub(crate) verdict: Option<Verdict>,
    /// For frames that are routed.
    pub(crate) track: Option<Track>,
    /// The link takes IP packets up to this length only, and the packet may be cut.
    pub(crate) fragment: Option<u16>,
}

/// Which connection a routed packet belongs to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Track {
    pub(crate) tuple: Tuple,
    pub(crate) hash: u64,
    pub(crate) hit: Option<Hit>,
}

/// Where a frame came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    /// A container.
    Endpoint(NetworkId),
    /// The host's leg in a network.
    Host(NetworkId),
    /// Not known yet.
    Nowhere,
    /// The wire.
    Uplink(UplinkId),
}

impl From {
    pub(crate) const fn network(self) -> Option<NetworkId> {
        match self {
            Self::Endpoint(network) | Self::Host(network) => Some(network),
            Self::Nowhere | Self::Uplink(_) => None,
        }
    }
}

impl Lane {
    pub(crate) fn is_open(&self) -> bool {
        self.verdict.is_none()
    }

    fn new(frame: &Frame) -> Self {
        let (headers, verdict) = match parse::parse(frame.bytes()) {
            Ok(headers) => (headers, None),
            Err(_) => (NO_HEADERS, Some(Verdict::Drop(DropReason::Runt))),
        };
        Self {
            headers,
            from: From::Nowhere,
            src_hash: 0,
            dst_hash: 0,
            verdict,
            track: None,
            fragment: None,
        }
    }
}

const NO_HEADERS: Headers = Headers {
    dst: Mac::ZERO,
    src: Mac::ZERO,
    vlan: 0,
    tagged: false,
    ethertype: 0,
    l3: 0,
    net: Net::Other,
};

/// Takes every frame of the batch to its end.
pub(crate) fn process(
    cx: &mut Cx<'_>,
    frames: &mut Vec<Frame>,
    lanes: &mut Vec<Lane>,
    out: &mut dyn Transmit,
) {
    // Frames that waited for a neighbor go first: they came first.
    l3::waiting::release(cx);
    lanes.clear();
    lanes.extend(frames.iter().map(Lane::new));
    admit::stage(cx, frames, lanes);
    l2::learn::hash_stage(cx, lanes);
    l2::learn::stage(cx, frames, lanes);
    l2::forward::stage(cx, frames, lanes);
    l3::input::stage(cx, frames, lanes);
    nat::lookup::stage(cx, lanes);
    nat::translate::stage(cx, frames, lanes);
    egress::stage(cx, frames, lanes, out);
}
