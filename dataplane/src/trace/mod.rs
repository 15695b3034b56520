//! What would become of a frame: the stages of the pipeline, run on copies of everything that they change.
//!
//! A [`Tracer`] is a [`Core`] of its own, over copies of the tables, with the configuration in force and
//! with what the worker that receives from the port has of its own ([`WorkerState`]). It takes frames
//! through the same functions as that worker would, all the way, without shortcuts: those only save the
//! way to the same end (`express`). So it can have no effect beside what it says, and there is
//! no second set of rules to keep like the first. After each stage it looks at what the stage has done
//! and notes it in words (`notes`).
//!
//! No more than [`EngineOptions::traces`](crate::EngineOptions) are made at a time.
//!
//! Several frames are traced as if they came one after the other: the second one meets what the first
//! one changed.

mod notes;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

pub(crate) use self::notes::{FlowOf, Notes};
use crate::clock::Timestamp;
use crate::core::{Core, Transmit};
use crate::engine::{FlowTuple, Link};
use crate::frame::Frame;
use crate::io::vnet_hdr::VnetHdr;
use crate::io::{Offloads, TxReport};
use crate::l2::storm::Storms;
use crate::l3::neighbor::Waiting;
use crate::limiter::Limiter;
use crate::limits::Peak;
use crate::nat::port_alloc::PortRng;
use crate::packet::types::{Mac, NetworkId, PortId, UplinkId};
use crate::pool::Pool;
use crate::verdict::{DropReason, Verdict};

/// What one worker has of its own, and frames depend on.
#[derive(Debug)]
pub struct WorkerState {
    pub(crate) worker: usize,
    pub(crate) ports: Vec<(PortId, Offloads)>,
    pub(crate) storms: Storms,
    pub(crate) waiting: Waiting,
    pub(crate) errors: Limiter,
    pub(crate) rng: PortRng,
}

/// One thing that a stage found or did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fact {
    /// An address.
    Address(IpAddr),
    /// A drop reason.
    Dropped(DropReason),
    /// Both ends of a packet.
    Flow(FlowTuple),
    /// A MAC.
    Mac(Mac),
    /// A network.
    Network(NetworkId),
    /// A number.
    Number(u64),
    /// The number of a rule of a policy.
    Policy(u32),
    /// A port.
    Port(PortId),
    /// The number of a DNAT rule.
    Rule(u32),
    /// An uplink.
    Uplink(UplinkId),
    /// Something that has a fixed name.
    Word(&'static str),
}

/// A stage that the frame came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its name, as `docs/architecture.md` has it.
    pub stage: &'static str,
    /// What it found and did, each with its name.
    pub facts: Vec<(&'static str, Fact)>,
}

/// A frame that would leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentFrame {
    /// By this port.
    pub port: PortId,
    /// From the Ethernet header on.
    pub bytes: Vec<u8>,
    /// With this virtio-net header.
    pub vnet: VnetHdr,
}

/// What would become of a frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traced {
    /// Stage by stage.
    pub steps: Vec<Step>,
    /// What the stages decided.
    pub verdict: Verdict,
    /// Whom it would wait for, with [`Verdict::Hold`].
    pub waits_for: Option<(Link, IpAddr)>,
    /// Frames dropped in carrying that out, or all of it.
    pub drops: Vec<(DropReason, u64)>,
    /// Everything that would leave for it: the frame itself, its copies or pieces, and what the engine
    /// says to others because of it (ARP, ICMP).
    pub sent: Vec<SentFrame>,
}

/// Tracers at a time, unless the engine is told otherwise: each has copies of all tables.
pub const DEFAULT_TRACES: u32 = 2;

/// Places for tracers.
#[derive(Debug, Default)]
pub(crate) struct Places {
    taken: AtomicU32,
    peak: Peak,
    refused: AtomicU64,
}

/// A place for a tracer.
#[derive(Debug)]
pub(crate) struct Place(Arc<Places>);

impl Places {
    /// Takes one of so many, if there is one left.
    pub(crate) fn take(self: &Arc<Self>, limit: u32) -> Option<Place> {
        let before = self.taken.fetch_add(1, Ordering::Relaxed);
        // Given back by the drop, also if there was none.
        let place = Some(Place(Arc::clone(self))).filter(|_| before < limit);
        match place {
            Some(_) => self.peak.note(before + 1),
            None => {
                self.refused.fetch_add(1, Ordering::Relaxed);
            }
        }
        place
    }

    /// How often there was none.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Taken now, and at most.
    pub(crate) fn uses(&self) -> (u32, u32) {
        let peak = self.peak.value();
        // Those that find none are counted for a moment.
        (self.taken.load(Ordering::Relaxed).min(peak), peak)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

/// See the module.
#[derive(Debug)]
pub struct Tracer {
    core: Core,
    _place: Place,
}

impl Tracer {
    pub(crate) const fn new(core: Core, place: Place) -> Self {
        Self { core, _place: place }
    }

    /// What becomes of a frame that comes in by a port. Cut to [`crate::frame::MAX_FRAME_LEN`].
    pub fn trace(&mut self, port: PortId, bytes: &[u8], vnet: VnetHdr, now: Timestamp) -> Traced {
        let mut frame = Frame::new();
        frame.copy_from(bytes);
        frame.vnet = vnet;
        frame.ingress = port;
        let before = self.core.stats();
        let mut out = Recorded::default();
        let mut notes = Notes::default();
        let (verdict, waits_for) = self.core.walk(frame, now, &mut out, &mut notes);
        let after = self.core.stats();
        let counts = after.drops.iter().zip(&before.drops).map(|(after, before)| after - before);
        let drops = DropReason::ALL.iter().copied().zip(counts).filter(|(_, count)| *count > 0);
        Traced { steps: notes.steps, verdict, waits_for, drops: drops.collect(), sent: out.0 }
    }
}

/// Devices that take everything and send nothing.
#[derive(Debug, Default)]
struct Recorded(Vec<SentFrame>);

impl Recorded {
    fn note(&mut self, port: PortId, frame: &Frame, report: &mut TxReport) {
        self.0.push(SentFrame { port, bytes: frame.bytes().to_vec(), vnet: frame.vnet });
        report.sent += 1;
        report.sent_bytes += frame.len() as u64;
    }
}

impl Transmit for Recorded {
    fn tx(&mut self, port: PortId, frames: &mut Vec<Frame>, pool: &mut Pool) -> TxReport {
        let mut report = TxReport::default();
        for frame in frames.drain(..) {
            self.note(port, &frame, &mut report);
            pool.put(frame);
        }
        report
    }

    fn tx_copy(&mut self, port: PortId, frame: &mut Frame, _: &mut Pool) -> TxReport {
        let mut report = TxReport::default();
        self.note(port, frame, &mut report);
        report
    }
}
