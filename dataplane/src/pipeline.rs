//! THE ORDER: what happens to a batch of frames, stage by stage. Read this first.
//!
//! A stage looks at every frame whose fate is still open and may decide it; the last stage carries
//! the decisions out in the order in which the frames came, so that no flow is reordered.

use std::net::IpAddr;
use std::slice;

use crate::admit;
use crate::config::{PolicyAction, PortRole};
use crate::conntrack::{ConnId, Direction, Tuple, Tuple6};
use crate::core::{Cx, Transmit};
use crate::egress;
use crate::engine::Link;
use crate::express;
use crate::express::switch::{LastPort, switch};
use crate::frame::Frame;
use crate::l2;
use crate::l3;
use crate::nat;
use crate::packet::headers::Headers;
use crate::packet::parse;
use crate::packet::types::{NetworkId, UplinkId};
use crate::trace::{FlowOf, Notes};
use crate::verdict::{DropReason, Verdict};

/// What is known about one frame of the batch. The first cache line is all that a frame with a shortcut
/// needs.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Lane {
    /// For packets that are routed, with their place in the connection table, if `is_tracked`. Of those
    /// of IPv6 it is [`Lane::tuple6`].
    pub(crate) tuple: Tuple,
    pub(crate) hash: u64,
    /// Of the source MAC in the FDB, for frames from a network; of packets that look for a shortcut, where
    /// their connection will be found.
    pub(crate) src_hash: u64,
    /// Of the destination MAC.
    pub(crate) dst_hash: u64,
    /// For packets with a shortcut: their connection.
    pub(crate) id: ConnId,
    /// `None`: still open.
    pub(crate) verdict: Option<Verdict>,
    pub(crate) from: From,
    /// For packets with a shortcut: which way.
    pub(crate) way: u16,
    /// For packets that look for a shortcut: their length and TCP flags.
    pub(crate) total_len: u16,
    pub(crate) tcp_flags: u8,
    pub(crate) shortcut: Shortcut,
    pub(crate) is_tracked: bool,
    /// Decided by its link header.
    pub(crate) is_by_link: bool,
    /// As the frame before of those that go the whole way.
    pub(crate) comes_again: bool,
    pub(crate) headers: Headers,
    pub(crate) tuple6: Tuple6,
    /// With [`Verdict::ForwardInPieces`]: the link takes IP packets up to this length only.
    pub(crate) mtu: u16,
    /// With [`Verdict::Hold`].
    pub(crate) hold: Option<Hold>,
    /// With [`Verdict::HoldFragment`]: the number of its datagram.
    pub(crate) datagram: u64,
    /// The rule of a policy that decided last, for traces alone.
    pub(crate) policy: Option<(u32, PolicyAction)>,
}

/// What a frame waits for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hold {
    /// Where the neighbor is.
    pub(crate) link: Link,
    /// The neighbor.
    pub(crate) next_hop: IpAddr,
    /// Longer than the link takes: see [`Lane::mtu`].
    pub(crate) fragment: Option<u16>,
    /// The connection that this is a packet of.
    pub(crate) connection: Option<ConnId>,
    /// It is one of the first side's, while nobody has answered: the connection ends with its packets if
    /// the neighbor never does.
    pub(crate) is_unanswered: bool,
}

/// Whether a frame goes by a shortcut: see [`crate::express`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shortcut {
    /// It is routed, and looks for one.
    Candidate,
    /// It goes through all stages.
    None,
    /// It has one, in the original direction of its connection.
    Original,
    /// In the reply direction.
    Reply,
    /// Nothing is known against switching it.
    Switch,
}

impl Shortcut {
    /// The direction, of a packet that has one.
    #[inline]
    pub(crate) const fn direction(self) -> Option<Direction> {
        match self {
            Self::Original => Some(Direction::Original),
            Self::Reply => Some(Direction::Reply),
            Self::Candidate | Self::None | Self::Switch => None,
        }
    }
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
    /// What comes from a port with this role.
    #[inline(always)]
    pub(crate) const fn of(role: &PortRole) -> Self {
        match role {
            PortRole::Endpoint { network, .. } => Self::Endpoint(*network),
            PortRole::Host { network } => Self::Host(*network),
            PortRole::Uplink { uplink } => Self::Uplink(*uplink),
        }
    }

    pub(crate) const fn network(self) -> Option<NetworkId> {
        match self {
            Self::Endpoint(network) | Self::Host(network) => Some(network),
            Self::Nowhere | Self::Uplink(_) => None,
        }
    }
}

impl Lane {
    /// Whether the stages have to decide.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.verdict.is_none() && self.shortcut == Shortcut::None
    }

    pub(crate) const EMPTY: Self = Self {
        tuple: Tuple { addresses: 0, rest: 0 },
        hash: 0,
        src_hash: 0,
        dst_hash: 0,
        id: ConnId::NONE,
        verdict: None,
        from: From::Nowhere,
        way: 0,
        total_len: 0,
        tcp_flags: 0,
        shortcut: Shortcut::None,
        is_tracked: false,
        is_by_link: false,
        comes_again: false,
        headers: Headers::EMPTY,
        tuple6: Tuple6::NONE,
        mtu: 0,
        hold: None,
        datagram: 0,
        policy: None,
    };

    /// Forgets the frame before. Lanes are used again and again: filling one in is cheaper than moving
    /// one. What no stage reads before it has written it stays as it was.
    #[inline]
    pub(crate) fn reset(&mut self) {
        self.verdict = None;
        self.shortcut = Shortcut::None;
        self.is_tracked = false;
        self.is_by_link = false;
        self.comes_again = false;
    }

    /// Reads the link header; what is behind it is read by the stages that need it, as most frames of
    /// a switch are only switched.
    #[inline]
    pub(crate) fn begin(&mut self, frame: &Frame) {
        self.verdict = None;
        self.shortcut = Shortcut::None;
        self.from = From::Nowhere;
        if parse::parse_link(frame.bytes(), &mut self.headers).is_err() {
            self.headers = Headers::EMPTY;
            self.verdict = Some(Verdict::Drop(DropReason::Runt));
        }
    }
}

/// Parses and admits the frames that have no shortcut, and asks for what their lookups will need.
fn open_stage(cx: &mut Cx<'_>, frames: &mut [Frame], lanes: &mut [Lane]) {
    for (frame, lane) in frames.iter_mut().zip(lanes) {
        if lane.is_open() {
            open(cx, frame, lane);
        }
    }
}

#[inline(always)]
fn open(cx: &Cx<'_>, frame: &mut Frame, lane: &mut Lane) {
    lane.begin(frame);
    admit::frame(cx, frame, lane);
    l2::learn::hash(cx, lane);
}

/// Learns and switches, frame by frame: a host that moved must get the answer to this very frame. What
/// a frame changed, by learning or by ARP, ends the shortcuts of those behind it.
fn switch_stage(cx: &mut Cx<'_>, frames: &mut [Frame], lanes: &mut [Lane]) {
    let mut changed = false;
    let mut last = LastPort::default();
    for (frame, lane) in frames.iter_mut().zip(lanes) {
        if lane.shortcut == Shortcut::Switch && switch(cx, frame, lane, &mut last) {
            continue;
        }
        if lane.is_open() {
            learn_and_forward(cx, frame, lane);
        } else if lane.shortcut == Shortcut::Switch
            || changed && (lane.shortcut != Shortcut::None || lane.is_by_link)
        {
            reswitch(cx, frame, lane);
        } else {
            continue;
        }
        if express::is_changed(cx) {
            changed = true;
            express::renew(cx);
        }
    }
}

#[inline(always)]
fn learn_and_forward(cx: &mut Cx<'_>, frame: &mut Frame, lane: &mut Lane) {
    l2::learn::frame(cx, frame, lane);
    if lane.is_open() {
        l2::forward::frame(cx, frame, lane);
    }
}

/// Parses, admits, learns and switches a frame that had a shortcut.
#[cold]
fn reswitch(cx: &mut Cx<'_>, frame: &mut Frame, lane: &mut Lane) {
    open(cx, frame, lane);
    if lane.is_open() {
        learn_and_forward(cx, frame, lane);
    }
}

/// Takes a frame whose shortcut has turned out to end nowhere through the stages before translation.
#[cold]
pub(crate) fn reopen(cx: &mut Cx<'_>, frame: &mut Frame, lane: &mut Lane) {
    reswitch(cx, frame, lane);
    if lane.is_open() {
        l3::input::frame(cx, frame, lane);
    }
    lane.is_tracked = false;
    if lane.is_open() {
        nat::lookup::hash(cx, lane);
    }
}

/// Takes one frame to its end by the stages that every frame goes through that has no shortcut, and tells
/// `notes` after each. What was decided, and whom the frame waits for.
pub(crate) fn walk(
    cx: &mut Cx<'_>,
    mut frame: Frame,
    notes: &mut Notes,
    out: &mut dyn Transmit,
) -> (Verdict, Option<(Link, IpAddr)>) {
    express::renew(cx);
    let mut lane = Lane::EMPTY;
    let came = FlowOf::frame(&frame);
    lane.begin(&frame);
    notes.parsed(&frame, &lane);
    if lane.is_open() {
        admit::frame(cx, &mut frame, &mut lane);
        notes.admitted(cx, &frame, &lane);
        l2::learn::hash(cx, &mut lane);
    }
    if lane.is_open() {
        l2::learn::frame(cx, &frame, &mut lane);
        notes.learned(cx, &frame, &lane);
    }
    if lane.is_open() {
        l2::forward::frame(cx, &mut frame, &mut lane);
        notes.switched(cx, &lane);
    }
    if lane.is_open() {
        l3::input::frame(cx, &frame, &mut lane);
        notes.input(&lane);
    }
    if lane.is_open() {
        nat::lookup::stage(cx, slice::from_mut(&mut lane));
        notes.looked_up(cx, &frame, &lane);
        nat::translate::stage(cx, slice::from_mut(&mut frame), slice::from_mut(&mut lane));
        notes.translated(cx, &came, &frame, &lane);
    }
    notes.ends(&lane);
    let verdict = lane.verdict.unwrap_or(Verdict::Drop(DropReason::NoService));
    let waits_for = match verdict {
        Verdict::Hold => lane.hold.map(|hold| (hold.link, hold.next_hop)),
        _ => None,
    };
    egress::stage(cx, &mut vec![frame], slice::from_mut(&mut lane), out);
    (verdict, waits_for)
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
    let batch = lanes.get_mut(..frames.len()).unwrap_or_default();
    stages(cx, frames, batch, out);
    // Those that waited for a first fragment which came with this batch, or at another worker.
    if cx.tables.fragments.has_news(cx.early.worker()) {
        nat::fragment::release(cx, frames, lanes, out);
    }
}

fn stages(cx: &mut Cx<'_>, frames: &mut Vec<Frame>, lanes: &mut [Lane], out: &mut dyn Transmit) {
    let left = express::stage(cx, frames, lanes);
    let mut whole = false;
    if left.switch {
        open_stage(cx, frames, lanes);
        switch_stage(cx, frames, lanes);
        whole = lanes.iter().any(Lane::is_open);
    }
    if whole {
        l3::input::stage(cx, frames, lanes);
        nat::lookup::stage(cx, lanes);
    }
    if whole || left.translate {
        nat::translate::stage(cx, frames, lanes);
    }
    egress::stage(cx, frames, lanes, out);
}
