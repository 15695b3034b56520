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
use crate::packet::headers::Headers;
use crate::packet::parse;
use crate::packet::types::{NetworkId, UplinkId};
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

    const EMPTY: Self = Self {
        headers: Headers::EMPTY,
        from: From::Nowhere,
        src_hash: 0,
        dst_hash: 0,
        verdict: None,
        track: None,
        fragment: None,
    };

    /// Forgets the frame before and takes the first look at this one.
    #[inline]
    fn begin(&mut self, frame: &Frame) {
        self.from = From::Nowhere;
        self.track = None;
        self.fragment = None;
        self.verdict = None;
        if parse::parse_link(frame.bytes(), &mut self.headers).is_err() {
            self.headers = Headers::EMPTY;
            self.verdict = Some(Verdict::Drop(DropReason::Runt));
        }
    }
}

/// Frames whose first bytes are asked for ahead of the one that is parsed.
const AHEAD: usize = 4;

/// Reads the link headers of all frames, each into its lane; what is behind them is read by the
/// stages that need it, as most frames of a switch are only switched. Lanes are used again and again: filling one in is cheaper
/// than moving one.
fn parse_stage(frames: &[Frame], lanes: &mut [Lane]) {
    let ahead = frames.iter().skip(AHEAD).map(Some).chain(std::iter::repeat(None));
    for ((frame, lane), next) in frames.iter().zip(lanes).zip(ahead) {
        if let Some(next) = next {
            next.prefetch();
        }
        lane.begin(frame);
    }
}

/// Takes every frame of the batch to its end.
pub(crate) fn process(
    cx: &mut Cx<'_>,
    frames: &mut Vec<Frame>,
    lanes: &mut Vec<Lane>,
    out: &mut dyn Transmit,
) {
    // Frames that waited for a neighbor go first: they came first.
    l3::waiting::release(cx);
    if lanes.len() < frames.len() {
        lanes.resize_with(frames.len(), || Lane::EMPTY);
    }
    let lanes = lanes.get_mut(..frames.len()).unwrap_or_default();
    parse_stage(frames, lanes);
    admit::stage(cx, frames, lanes);
    l2::learn::hash_stage(cx, lanes);
    l2::learn::stage(cx, frames, lanes);
    l2::forward::stage(cx, frames, lanes);
    l3::input::stage(cx, frames, lanes);
    nat::lookup::stage(cx, lanes);
    nat::translate::stage(cx, frames, lanes);
    egress::stage(cx, frames, lanes, out);
}
