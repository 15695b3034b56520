//! Shortcuts: what a worker remembers of the way of frames, so that the next ones of the same kind need
//! not ask for it again.
//!
//! - [`links`]: by ingress port and link header, whether a frame is switched, and where to, or routed.
//!   What it stands for: the port's role, the source guard, learning, the FDB. Frames that only trusted
//!   ports may send differ in nothing that it looks at: what could be one goes the whole way, whoever
//!   sends it.
//! - [`ways`]: by ingress port and next hop, how a routed packet leaves. A connection notes the way of
//!   each of its directions. What it stands for: the source guard's look at the address, martians, the
//!   route, the neighbor.
//! - [`switch`]: frames of pairs that are too many to remember, whose hosts are known.
//!
//! A shortcut is taken from what became of a frame that went the whole way, and it holds for frames to
//! which the same would happen: from the same port, with the same link header; of a direction of a
//! connection that this very worker has seen go the whole way from that port. It holds as long as
//! nothing that it was taken from has changed ([`Basis`]): the configuration, any neighbor, any place
//! in the FDB, and the second: once a second a frame goes the whole way again, which refreshes the FDB,
//! asks neighbors anew, and meets what has aged. Two routes to one next hop are told apart by the
//! configuration's number, which is part of a way's identity.
//!
//! Nothing here decides anything: a frame without a shortcut, or one that is unusual
//! ([`crate::packet::quick`]), goes through all stages.

pub(crate) mod links;
pub(crate) mod switch;
pub(crate) mod ways;

use crate::conntrack::{ConnId, Direction, Key, Tuple};
use crate::core::Cx;
use crate::frame::Frame;
use crate::io::vnet_hdr::VnetHdr;
use crate::l2::refusal;
use crate::packet::parse::ETH_LEN;
use crate::packet::quick::{self, Quick};
use crate::packet::types::PortId;
use crate::packet::types::{ip_proto, tcp_flags::SYN};
use crate::pipeline::{Lane, Shortcut};
use crate::verdict::Verdict;
use links::{LinkHead, Links, To};
use switch::Source;
use ways::Ways;

/// What shortcuts are taken from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Basis {
    pub(crate) config: u64,
    neighbors: u64,
    fdb: u64,
    pub(crate) secs: u32,
}

/// One worker's shortcuts.
#[derive(Debug)]
pub(crate) struct Express {
    pub(crate) links: Links,
    pub(crate) ways: Ways,
    pub(crate) basis: Basis,
    /// Rises with every change of the basis: what was taken under another number is not believed.
    pub(crate) epoch: u64,
}

impl Express {
    pub(crate) fn new(worker: usize) -> Self {
        Self { links: Links::default(), ways: Ways::new(worker), basis: Basis::default(), epoch: 1 }
    }
}

/// Forgets everything if the basis has changed since the last look.
pub(crate) fn renew(cx: &mut Cx<'_>) {
    let basis = Basis {
        config: cx.generation,
        neighbors: cx.tables.neighbors.changes(),
        fdb: cx.tables.fdb.changes(),
        secs: cx.secs,
    };
    if basis != cx.express.basis {
        cx.express.basis = basis;
        cx.express.epoch += 1;
    }
}

/// Whether a table has changed since then: within a batch nothing else can.
#[inline]
pub(crate) fn is_changed(cx: &Cx<'_>) -> bool {
    let Basis { neighbors, fdb, .. } = cx.express.basis;
    neighbors != cx.tables.neighbors.changes() || fdb != cx.tables.fdb.changes()
}

/// Frames whose first bytes are asked for ahead of the one that is read.
const AHEAD: usize = 4;

/// Counts all frames in, and sends those on by shortcut that have one. The others stay open.
pub(crate) fn stage(cx: &mut Cx<'_>, frames: &mut [Frame], lanes: &mut [Lane]) -> Left {
    renew(cx);
    cx.counters.rx_frames.add(frames.len() as u64);
    // Frames come in trains of one port: they are counted once a train.
    let mut train = Train::NONE;
    let mut last = Last { head: LinkHead::NONE, to: None, tuple: None, is_only: frames.len() == 1 };
    let (mut routed, mut decided) = (0usize, 0usize);
    for at in 0..frames.len().min(lanes.len()) {
        if let Some(next) = frames.get(at + AHEAD) {
            next.prefetch();
        }
        let (Some(frame), Some(lane)) = (frames.get_mut(at), lanes.get_mut(at)) else { break };
        lane.reset();
        train.count(cx, frame);
        recognise(cx, frame, lane, &train, &mut last);
        routed += usize::from(lane.shortcut == Shortcut::Candidate);
        decided += usize::from(lane.verdict.is_some());
    }
    train.end(cx);
    let found = if routed > 0 { find_ways(cx, frames, lanes) } else { 0 };
    Left { switch: decided + found < frames.len(), translate: found > 0 }
}

/// What is left to do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Left {
    /// There are frames that are not decided and have no way.
    pub(crate) switch: bool,
    /// There are packets that have one.
    pub(crate) translate: bool,
}

/// The frames of one port in a row.
struct Train<'a> {
    ingress: Option<PortId>,
    source: Option<Source<'a>>,
    frames: u64,
    bytes: u64,
}

impl<'a> Train<'a> {
    const NONE: Self = Self { ingress: None, source: None, frames: 0, bytes: 0 };

    #[inline]
    fn count(&mut self, cx: &Cx<'a>, frame: &Frame) {
        if self.ingress != Some(frame.ingress) {
            self.end(cx);
            let source = Source::of(cx, frame.ingress);
            *self = Self { ingress: Some(frame.ingress), source, ..Self::NONE };
        }
        self.frames += 1;
        self.bytes += frame.len() as u64;
    }

    fn end(&self, cx: &Cx<'_>) {
        if let Some(ingress) = self.ingress {
            cx.ports.count_rx(ingress, self.frames, self.bytes);
        }
    }
}

/// What the frame before was found to be.
struct Last {
    head: LinkHead,
    to: Option<To>,
    tuple: Option<(Tuple, u64)>,
    /// There is no other frame.
    is_only: bool,
}

#[inline(always)]
fn recognise(
    cx: &mut Cx<'_>,
    frame: &mut Frame,
    lane: &mut Lane,
    train: &Train<'_>,
    last: &mut Last,
) {
    let Some(head) = LinkHead::of(frame) else { return };
    if head != last.head {
        last.to = cx.express.links.find(&head, cx.express.epoch);
        last.head = head;
    }
    match last.to {
        Some(To::Port { port, mtu, sender }) => {
            let fits = frame.len() <= ETH_LEN + usize::from(mtu);
            let passes = || links::passes(&cx.express.links, frame, head.kind(), sender);
            // What the host refuses is counted on the whole way. It is no such source.
            let refuses =
                || train.source.is_none() && refusal::is_one(frame.bytes(), ETH_LEN, head.kind());
            if !fits || !quick::is_plain(&frame.vnet) || !passes() || refuses() {
                return;
            }
            // What it claims of its checksum nobody has to believe.
            frame.vnet = VnetHdr::default();
            lane.verdict = Some(Verdict::Forward(port));
            lane.is_by_link = true;
        }
        Some(To::Router { zone }) => {
            // What a SYN offers is looked at each time.
            let Some(quick) = Quick::read(frame).filter(|quick| quick.tcp_flags & SYN == 0) else {
                return;
            };
            let tuple = Tuple::of_quick(&quick, zone);
            let connections = &cx.tables.connections;
            let hash = match last.tuple {
                Some((same, hash)) if same == tuple => hash,
                _ => {
                    let hash = connections.hash(tuple);
                    // Others would fill the time of a miss; here nothing does.
                    if last.is_only {
                        connections.prefetch_both(hash);
                    } else {
                        connections.prefetch_index(hash);
                    }
                    hash
                }
            };
            last.tuple = Some((tuple, hash));
            lane.tuple = tuple;
            lane.hash = hash;
            lane.tcp_flags = quick.tcp_flags;
            lane.total_len = quick.total_len;
            lane.is_tracked = true;
            lane.shortcut = Shortcut::Candidate;
        }
        None => {
            lane.comes_again = cx.express.links.comes_again(&head);
            if let Some(source) = &train.source
                && quick::is_plain(&frame.vnet)
            {
                switch::prepare(cx, source, &head, frame, lane);
            }
        }
    }
}

/// Looks the connections of routed packets up and the ways that they have noted. All ask for their
/// entries first: the cache misses of the batch overlap. Returns how many have one.
fn find_ways(cx: &mut Cx<'_>, frames: &[Frame], lanes: &mut [Lane]) -> usize {
    let connections = &cx.tables.connections;
    // A single one does too: its entry lies in two lines or three, and its lookup waits for the first.
    let mut asked = None;
    let mut missed = false;
    for lane in lanes.iter_mut().filter(|lane| lane.shortcut == Shortcut::Candidate) {
        // A train asks once.
        lane.src_hash = 0;
        if asked != Some(lane.hash) {
            asked = Some(lane.hash);
            lane.src_hash = connections.prefetch_entry(lane.hash);
            missed |= lane.src_hash == 0;
        }
    }
    if missed {
        let missing = |lane: &&mut Lane| lane.shortcut == Shortcut::Candidate && lane.src_hash == 0;
        for lane in lanes.iter_mut().filter(missing) {
            lane.src_hash = connections.prefetch_second(lane.hash);
        }
    }
    let mut last: Option<(Tuple, ConnId, Direction, u16)> = None;
    let mut count = 0;
    for (frame, lane) in frames.iter().zip(lanes) {
        if lane.shortcut != Shortcut::Candidate {
            continue;
        }
        lane.shortcut = Shortcut::None;
        let known = last.filter(|(tuple, ..)| *tuple == lane.tuple);
        let found = known.or_else(|| {
            let hit = connections.lookup_at(lane.src_hash, lane.hash, lane.tuple, cx.secs)?;
            let number = connections.way(&hit);
            cx.express.ways.find(number)?;
            if lane.tuple.proto() == ip_proto::TCP {
                connections.prefetch_peer(&hit);
            }
            Some((lane.tuple, hit.id, hit.direction, ways::place_of(number)))
        });
        last = found;
        let Some((_, id, direction, way)) = found else { continue };
        let holds = cx.express.ways.at(way).is_some_and(|way| {
            way.epoch == cx.express.epoch
                && way.ends.ingress == frame.ingress
                && lane.total_len <= way.exit.mtu
        });
        if holds {
            lane.id = id;
            lane.way = way;
            lane.shortcut = match direction {
                Direction::Original => Shortcut::Original,
                Direction::Reply => Shortcut::Reply,
            };
            count += 1;
        }
    }
    count
}
