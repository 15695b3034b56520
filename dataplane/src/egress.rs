//! Egress: carries the verdicts out.
//!
//! Every port has a queue of the worker's own; queues are sent when the batch is through, or when a
//! flood must not overtake what is queued. What a port cannot take whole is completed, segmented or
//! fragmented here; TCP segments that could be one frame to it are merged. Every frame is counted where it ends.

use std::vec::Drain;

use crate::capture::{self, Sinks};
use crate::config::PortRole;
use crate::core::{BATCH, Cx, Transmit};
use crate::frame::Frame;
use crate::io::vnet_hdr::{GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4};
use crate::io::{Offloads, TxReport};
use crate::l2::forward::{fits, vlan_of};
use crate::l2::snoop::{self, Audience};
use crate::l2::{storm, vlan};
use crate::l3::neighbor::{Held, Place};
use crate::l3::waiting;
use crate::nat::fragment;
use crate::packet::gro::Gro;
use crate::packet::types::{NetworkId, PortId};
use crate::packet::{offload, parse, segment};
use crate::pipeline::{From, Lane};
use crate::pool::Pool;
use crate::stats::{PortCounters, WorkerCounters};
use crate::verdict::{DropReason, Verdict};

/// Bytes of a VLAN tag.
const TAG: u16 = 4;

#[derive(Debug)]
struct Slot {
    offloads: Offloads,
    counters: PortCounters,
    queue: Vec<Frame>,
}

/// The ports as one worker sees them.
#[derive(Debug, Default)]
pub(crate) struct PortTable {
    slots: Vec<Option<Slot>>,
    /// Ports with something queued.
    dirty: Vec<PortId>,
    pieces: Vec<Frame>,
    /// `None`: segments are not merged.
    gro: Option<Gro>,
    sinks: Sinks,
    worker: usize,
    /// The ports that a frame for a group is for, while it is sent.
    audience: Vec<PortId>,
}

impl PortTable {
    pub(crate) fn add(
        &mut self,
        port: PortId,
        offloads: Offloads,
        counters: PortCounters,
        worker: usize,
    ) {
        self.worker = worker;
        if self.slots.len() <= port.index() {
            self.slots.resize_with(port.index() + 1, || None);
            // Attaching may allocate; a batch may not.
            self.dirty.reserve(self.slots.len());
        }
        if let Some(slot) = self.slots.get_mut(port.index()) {
            *slot = Some(Slot { offloads, counters, queue: Vec::with_capacity(BATCH) });
        }
    }

    pub(crate) fn set_gro(&mut self, on: bool) {
        self.gro = on.then(Gro::default);
    }

    pub(crate) fn remove(&mut self, port: PortId) {
        if let Some(slot) = self.slots.get_mut(port.index()) {
            *slot = None;
        }
    }

    pub(crate) fn set_captures(&mut self, sinks: &Sinks) {
        if self.sinks.len() != sinks.len()
            || self.sinks.iter().zip(sinks).any(|(a, b)| !std::sync::Arc::ptr_eq(a, b))
        {
            self.sinks.clone_from(sinks);
        }
    }

    /// The ports and what each takes whole.
    pub(crate) fn offloads(&self) -> Vec<(PortId, Offloads)> {
        let slots = (0..).map(PortId).zip(&self.slots);
        slots.filter_map(|(port, slot)| Some((port, slot.as_ref()?.offloads))).collect()
    }

    fn slot(&self, port: PortId) -> Option<&Slot> {
        self.slots.get(port.index())?.as_ref()
    }

    /// Counts what the host refuses somebody behind a port.
    pub(crate) fn count_refused(&self, port: PortId) {
        if let Some(cell) = self.slot(port).and_then(|slot| slot.counters.cell(self.worker)) {
            cell.refused.add(1);
        }
    }

    pub(crate) fn count_rx(&self, port: PortId, frames: u64, bytes: u64) {
        if let Some(cell) = self.slot(port).and_then(|slot| slot.counters.cell(self.worker)) {
            cell.rx_frames.add(frames);
            cell.rx_bytes.add(bytes);
        }
    }

    /// Counts a frame that came in on `port` and ends here.
    pub(crate) fn drop_rx(&self, counters: &WorkerCounters, port: PortId, reason: DropReason) {
        counters.drop(reason, 1);
        if let Some(cell) = self.slot(port).and_then(|slot| slot.counters.cell(self.worker)) {
            cell.rx_drops.add(reason, 1);
        }
    }

    fn drop_tx(&self, counters: &WorkerCounters, port: PortId, reason: DropReason, n: u64) {
        if n == 0 {
            return;
        }
        counters.drop(reason, n);
        if let Some(cell) = self.slot(port).and_then(|slot| slot.counters.cell(self.worker)) {
            cell.tx_drops.add(reason, n);
        }
    }

    /// Queues a frame that the engine made itself.
    pub(crate) fn push_generated(&mut self, counters: &WorkerCounters, port: PortId, frame: Frame) {
        counters.generated.add(1);
        self.enqueue(port, frame);
    }

    /// Queues the first frames, which all go to this port, as far as it takes them as they are: nearly all,
    /// as long as nobody captures. Returns how many.
    #[inline]
    fn push_train(&mut self, port: PortId, frames: &mut Drain<'_, Frame>, lanes: &[Lane]) -> usize {
        let Some(Some(slot)) = self.slots.get_mut(port.index()) else { return 0 };
        if !self.sinks.is_empty() {
            return 0;
        }
        let offloads = slot.offloads;
        let train = frames.as_slice().iter().zip(lanes).take_while(|(frame, lane)| {
            lane.verdict == Some(Verdict::Forward(port))
                && matches!(help_needed(frame, offloads), Help::None)
        });
        let count = train.count();
        if count > 0 && slot.queue.is_empty() {
            self.dirty.push(port);
        }
        // Moved together: one by one, each is taken apart and put together again.
        slot.queue.extend(frames.take(count));
        count
    }

    /// Queues a frame, in pieces if the port cannot take it whole.
    #[inline]
    pub(crate) fn push(
        &mut self,
        counters: &WorkerCounters,
        pool: &mut Pool,
        port: PortId,
        frame: Frame,
    ) {
        // Nearly all frames: nobody captures, and the port takes them as they are.
        if self.sinks.is_empty()
            && let Some(Some(slot)) = self.slots.get_mut(port.index())
            && matches!(help_needed(&frame, slot.offloads), Help::None)
        {
            if slot.queue.is_empty() {
                self.dirty.push(port);
            }
            slot.queue.push(frame);
        } else {
            self.push_with_help(counters, pool, port, frame);
        }
    }

    fn push_with_help(
        &mut self,
        counters: &WorkerCounters,
        pool: &mut Pool,
        port: PortId,
        mut frame: Frame,
    ) {
        let offloads = self.slot(port).map_or(Offloads::ALL, |slot| slot.offloads);
        match help_needed(&frame, offloads) {
            Help::None => self.enqueue(port, frame),
            Help::Checksum => {
                if let Ok(headers) = parse::parse(frame.bytes()) {
                    segment::complete_checksum(&mut frame, &headers);
                }
                self.enqueue(port, frame);
            }
            Help::Segments => self.push_pieces(counters, pool, port, frame, |frame, pool, out| {
                let headers = parse::parse(frame.bytes()).map_err(|_| DropReason::Runt)?;
                segment::segment(frame, &headers, pool, out)
            }),
            Help::Split => self.push_pieces(counters, pool, port, frame, |frame, pool, out| {
                let headers = parse::parse(frame.bytes()).map_err(|_| DropReason::Runt)?;
                segment::split(frame, &headers, pool, out)
            }),
        }
    }

    /// Queues a frame as fragments that fit `mtu`.
    fn push_fragments(
        &mut self,
        counters: &WorkerCounters,
        pool: &mut Pool,
        port: PortId,
        frame: Frame,
        mtu: u16,
    ) {
        self.push_pieces(counters, pool, port, frame, |frame, pool, out| {
            let headers = parse::parse(frame.bytes()).map_err(|_| DropReason::Runt)?;
            segment::fragment(frame, &headers, mtu, pool, out)
        });
    }

    fn push_pieces(
        &mut self,
        counters: &WorkerCounters,
        pool: &mut Pool,
        port: PortId,
        frame: Frame,
        cut: impl FnOnce(&Frame, &mut Pool, &mut Vec<Frame>) -> Result<usize, DropReason>,
    ) {
        let mut pieces = std::mem::take(&mut self.pieces);
        match cut(&frame, pool, &mut pieces) {
            Ok(_) => {
                counters.replicated.add((pieces.len() as u64).saturating_sub(1));
                for piece in pieces.drain(..) {
                    self.enqueue(port, piece);
                }
            }
            Err(reason) => {
                for piece in pieces.drain(..) {
                    pool.put(piece);
                }
                self.drop_rx(counters, frame.ingress, reason);
            }
        }
        self.pieces = pieces;
        pool.put(frame);
    }

    fn enqueue(&mut self, port: PortId, frame: Frame) {
        let sinks = std::mem::take(&mut self.sinks);
        if !sinks.is_empty() {
            capture::copy(&sinks, port, true, &frame);
        }
        self.sinks = sinks;
        let index = port.index();
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
        }
        let Some(entry) = self.slots.get_mut(index) else { return };
        // A port that was configured but never attached: the frame ends in its queue's place and
        // is counted when the queue is sent.
        let slot = entry.get_or_insert_with(|| Slot {
            offloads: Offloads::ALL,
            counters: PortCounters::new(0),
            queue: Vec::new(),
        });
        if slot.queue.is_empty() {
            self.dirty.push(port);
        }
        slot.queue.push(frame);
    }

    /// Sends what is queued for one port.
    fn flush_port(
        &mut self,
        counters: &WorkerCounters,
        pool: &mut Pool,
        port: PortId,
        out: &mut dyn Transmit,
    ) {
        let Some(slot) = self.slots.get_mut(port.index()).and_then(Option::as_mut) else { return };
        if slot.queue.is_empty() {
            return;
        }
        let mut queue = std::mem::take(&mut slot.queue);
        if let Some(gro) = &mut self.gro {
            counters.merged.add(gro.merge(&mut queue, slot.offloads, pool));
        }
        let report = out.tx(port, &mut queue, pool);
        if let Some(slot) = self.slots.get_mut(port.index()).and_then(Option::as_mut) {
            slot.queue = queue;
        }
        self.account(counters, port, report);
    }

    fn flush(&mut self, counters: &WorkerCounters, pool: &mut Pool, out: &mut dyn Transmit) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for port in dirty.drain(..) {
            self.flush_port(counters, pool, port, out);
        }
        self.dirty = dirty;
        out.finish(pool, &mut |port, report| self.account(counters, port, report));
    }

    fn account(&self, counters: &WorkerCounters, port: PortId, report: TxReport) {
        counters.tx_frames.add(u64::from(report.sent));
        if let Some(cell) = self.slot(port).and_then(|slot| slot.counters.cell(self.worker)) {
            cell.tx_frames.add(u64::from(report.sent));
            cell.tx_bytes.add(report.sent_bytes);
        }
        self.drop_tx(counters, port, DropReason::TxQueueFull, u64::from(report.full));
        self.drop_tx(counters, port, DropReason::TxPortDown, u64::from(report.down));
        self.drop_tx(counters, port, DropReason::TxRefused, u64::from(report.refused));
    }
}

enum Help {
    Checksum,
    None,
    Segments,
    /// GSO frames that are shorter.
    Split,
}

#[inline]
fn help_needed(frame: &Frame, offloads: Offloads) -> Help {
    let vnet = &frame.vnet;
    let kind = vnet.gso_type & !GSO_ECN;
    let whole = match kind {
        _ if !vnet.is_gso() => true,
        GSO_TCPV4 => offloads.tso4,
        GSO_TCPV6 => offloads.tso6,
        GSO_UDP_L4 => offloads.uso,
        _ => false,
    };
    match (whole, vnet.needs_csum() && !offloads.csum) {
        (false, _) => Help::Segments,
        (true, true) => Help::Checksum,
        (true, false) if frame.len() > segment::PLAIN_GSO_LEN => match kind {
            GSO_TCPV4 if !offloads.big_tcp => Help::Split,
            // A kernel that makes jumbo payload options takes them out of what a packet socket
            // sends, and then drops it for want of a length.
            GSO_TCPV6 if !offloads.big_tcp || offload::has_jumbo_option(frame) => Help::Split,
            _ => Help::None,
        },
        (true, false) => Help::None,
    }
}

pub(crate) fn stage(
    cx: &mut Cx<'_>,
    frames: &mut Vec<Frame>,
    lanes: &mut [Lane],
    out: &mut dyn Transmit,
) {
    let mut frames = frames.drain(..);
    let mut at = 0;
    while let Some(Lane { verdict, .. }) = lanes.get(at) {
        let verdict = *verdict;
        // Frames leave in trains too: a port's queue is found once a train.
        if let Some(Verdict::Forward(port)) = verdict {
            let left = lanes.get(at..).unwrap_or_default();
            let count = cx.ports.push_train(port, &mut frames, left);
            at += count;
            if count > 0 {
                continue;
            }
        }
        let (Some(frame), Some(lane)) = (frames.next(), lanes.get_mut(at)) else { break };
        at += 1;
        match verdict {
            Some(Verdict::Forward(port)) => cx.ports.push(cx.counters, cx.pool, port, frame),
            Some(Verdict::ForwardInPieces(port)) => {
                cx.ports.push_fragments(cx.counters, cx.pool, port, frame, lane.mtu);
            }
            Some(
                Verdict::Flood(network)
                | Verdict::FloodCounted(network)
                | Verdict::Multicast(network)
                | Verdict::Routers(network),
            ) => flood(cx, frame, lane, network, out),
            Some(Verdict::Answer) => {
                cx.counters.consumed.add(1);
                cx.ports.push_generated(cx.counters, frame.ingress, frame);
            }
            Some(Verdict::Consume) => {
                cx.counters.consumed.add(1);
                cx.pool.put(frame);
            }
            Some(Verdict::Hold) => hold(cx, frame, lane),
            Some(Verdict::HoldFragment) => fragment::hold(cx, frame, lane),
            Some(Verdict::Drop(reason)) => {
                cx.ports.drop_rx(cx.counters, frame.ingress, reason);
                cx.pool.put(frame);
            }
            // No stage left it open; if one ever does, the frame is still accounted for.
            None => {
                cx.ports.drop_rx(cx.counters, frame.ingress, DropReason::NoService);
                cx.pool.put(frame);
            }
        }
    }
    drop(frames);
    cx.ports.flush(cx.counters, cx.pool, out);
}

/// Lets a frame wait for its neighbor, if there is room.
fn hold(cx: &mut Cx<'_>, frame: Frame, lane: &mut Lane) {
    let Some(hold) = lane.hold.take() else {
        cx.ports.drop_rx(cx.counters, frame.ingress, DropReason::NoService);
        return cx.pool.put(frame);
    };
    let (link, next_hop) = (hold.link, hold.next_hop);
    let place = cx.waiting.place(link, next_hop, frame.ingress);
    let held = Held::new(frame, hold, cx.now);
    let room = match place {
        Place::Free => None,
        Place::InsteadOf(index) => cx.waiting.remove(index),
        Place::None => return waiting::give_up(cx, held, DropReason::NeighborQueueFull),
    };
    if let Some(room) = room {
        waiting::give_up(cx, room, DropReason::NeighborQueueFull);
    }
    cx.waiting.push(held);
    let for_one = cx.waiting.count(link, next_hop);
    cx.counters.waiting_for_one.note_peak(for_one);
}

/// Sends a frame that waited, whole or in pieces.
pub(crate) fn send_held(cx: &mut Cx<'_>, port: PortId, held: Held) {
    match held.fragment {
        Some(mtu) => cx.ports.push_fragments(cx.counters, cx.pool, port, held.frame, mtu),
        None => cx.ports.push(cx.counters, cx.pool, port, held.frame),
    }
}

/// To all ports of the network and the frame's VLAN but the one it came from, or to those of them that it
/// is for, if that one has not sent too many of these; between endpoints only where they may talk to each other.
fn flood(
    cx: &mut Cx<'_>,
    mut frame: Frame,
    lane: &Lane,
    network: NetworkId,
    out: &mut dyn Transmit,
) {
    let Some(network) = cx.config.network(network) else {
        cx.ports.drop_rx(cx.counters, frame.ingress, DropReason::PortUnconfigured);
        return cx.pool.put(frame);
    };
    // What is said of groups has been counted where it was read.
    let (audience, counted) = match lane.verdict {
        Some(Verdict::Multicast(_)) => (Audience::Members, false),
        Some(Verdict::Routers(_)) => (Audience::Routers, true),
        Some(Verdict::FloodCounted(_)) => (Audience::All, true),
        _ => (Audience::All, false),
    };
    if !counted && !storm::allows(cx, network.config.id, &frame) {
        cx.ports.drop_rx(cx.counters, frame.ingress, DropReason::StormLimited);
        return cx.pool.put(frame);
    }
    let all = audience == Audience::All;
    let mut meant = std::mem::take(&mut cx.ports.audience);
    if !all {
        snoop::audience(cx, network, &frame, lane, audience, &mut meant);
    }
    let wanted = |port: &PortId| all || meant.contains(port);
    let isolated = !network.config.icc && matches!(lane.from, From::Endpoint(_));
    let (vlan, tagged, mut l3) = (vlan_of(lane), lane.headers.tagged, lane.headers.l3);
    let mut copies = 0u64;
    let ingress = frame.ingress;
    // First those who get it as it came, then those for whom the tag is put in or taken out.
    for as_tagged in [tagged, !tagged] {
        let mut others = false;
        for port in network.ports.iter().filter(|port| **port != ingress && wanted(port)) {
            let Some(egress) = cx.config.port(*port) else { continue };
            if isolated && matches!(egress.config.role, PortRole::Endpoint { .. }) {
                continue;
            }
            match egress.leaves_tagged(vlan, tagged) {
                Some(leaves) if leaves == as_tagged => {}
                Some(_) => {
                    others = true;
                    continue;
                }
                None => continue,
            }
            copies += 1;
            if fits(&frame, l3, egress.config.mtu) {
                send_copy(cx, *port, &mut frame, out);
            } else {
                cx.ports.drop_tx(cx.counters, *port, DropReason::Oversize, 1);
            }
        }
        if as_tagged != tagged || !others || !vlan::retag(&mut frame, vlan, !tagged) {
            break;
        }
        l3 = if tagged { l3.saturating_sub(TAG) } else { l3.saturating_add(TAG) };
    }
    cx.ports.audience = meant;
    match copies {
        0 if audience == Audience::Routers => cx.counters.consumed.add(1),
        0 => cx.ports.drop_rx(cx.counters, frame.ingress, DropReason::NoEgress),
        n => cx.counters.replicated.add(n - 1),
    }
    cx.pool.put(frame);
}

/// Sends a frame that the engine made itself by a port at once, and keeps it.
pub(crate) fn send_generated(
    cx: &mut Cx<'_>,
    port: PortId,
    frame: &mut Frame,
    out: &mut dyn Transmit,
) {
    cx.counters.generated.add(1);
    send_copy(cx, port, frame, out);
}

/// Sends a frame by a port at once, and keeps it.
fn send_copy(cx: &mut Cx<'_>, port: PortId, frame: &mut Frame, out: &mut dyn Transmit) {
    // Frames queued before this one leave before it.
    cx.ports.flush_port(cx.counters, cx.pool, port, out);
    let offloads = cx.ports.slot(port).map_or(Offloads::ALL, |slot| slot.offloads);
    if matches!(help_needed(frame, offloads), Help::None) {
        let sinks = std::mem::take(&mut cx.ports.sinks);
        if !sinks.is_empty() {
            capture::copy(&sinks, port, true, frame);
        }
        cx.ports.sinks = sinks;
        let report = out.tx_copy(port, frame, cx.pool);
        cx.ports.account(cx.counters, port, report);
    } else if let Some(mut copy) = cx.pool.take() {
        copy.clone_from_frame(frame);
        cx.ports.push(cx.counters, cx.pool, port, copy);
    } else {
        cx.ports.drop_rx(cx.counters, frame.ingress, DropReason::NoBuffer);
    }
}
