//! One worker's share of the engine, without threads and devices: frames in, frames out.
//!
//! Workers, tests, replay and benches call exactly this. Time is an argument; devices are a
//! [`Transmit`].

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use crate::capture::{self, Sinks};
use crate::clock::Timestamp;
use crate::config::Snapshot;
use crate::conntrack::expiry::Sweep;
use crate::egress::PortTable;
use crate::engine::{Link, WorkerStats};
use crate::express::Express;
use crate::frame::Frame;
use crate::hash::HashKey;
use crate::io::{Offloads, TxReport};
use crate::l2::storm::Storms;
use crate::l3::announce::Announcements;
use crate::l3::fragments::early::Early;
use crate::l3::hop::Reach;
use crate::l3::neighbor::{Remembered, Waiting};
use crate::l3::{querier, ra};
use crate::limiter::{ErrorRate, Limiter};
use crate::nat::helpers::Helped;
use crate::nat::port_alloc::PortRng;
use crate::packet::types::PortId;
use crate::pipeline::{self, Lane};
use crate::pool::Pool;
use crate::publish::Subscriber;
use crate::shared::Tables;
use crate::stats::{PortCounters, WorkerCounters};
use crate::trace::{Notes, WorkerState};
use crate::verdict::{DropReason, Verdict};

/// Frames processed at a time at most.
pub const BATCH: usize = 64;

/// Where frames go out: the sending halves of the ports.
pub trait Transmit {
    /// See [`crate::io::PortTx::tx`].
    fn tx(&mut self, port: PortId, frames: &mut Vec<Frame>, pool: &mut Pool) -> TxReport;
    /// See [`crate::io::PortTx::tx_copy`].
    fn tx_copy(&mut self, port: PortId, frame: &mut Frame, pool: &mut Pool) -> TxReport;
    /// Ends a batch: everything is sent, and what [`Transmit::tx`] did not report is reported.
    fn finish(&mut self, _pool: &mut Pool, _report: &mut dyn FnMut(PortId, TxReport)) {}
}

/// What a stage may use.
pub(crate) struct Cx<'a> {
    pub(crate) config: &'a Snapshot,
    pub(crate) tables: &'a Tables,
    pub(crate) counters: &'a WorkerCounters,
    pub(crate) pool: &'a mut Pool,
    pub(crate) ports: &'a mut PortTable,
    pub(crate) storms: &'a mut Storms,
    pub(crate) waiting: &'a mut Waiting,
    pub(crate) early: &'a mut Early,
    pub(crate) express: &'a mut Express,
    /// The number of `config`.
    pub(crate) generation: u64,
    pub(crate) remembered: &'a mut Remembered,
    /// The neighbor that a packet of this batch was last sent to, and how.
    pub(crate) last_reach: Option<(Link, IpAddr, Reach)>,
    /// The address from which the last new connection speaks: the next one's probably too.
    pub(crate) outside: &'a mut Option<Ipv4Addr>,
    pub(crate) errors: &'a mut Limiter,
    pub(crate) rng: &'a mut PortRng,
    pub(crate) now: Timestamp,
    /// `now` in whole seconds, as the tables store it.
    pub(crate) secs: u32,
}

/// What one worker begins with of its own.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) worker: usize,
    pub(crate) pool: Pool,
    pub(crate) waiting_frames: usize,
    pub(crate) waiting_frames_per_neighbor: usize,
    pub(crate) fragment_bytes: usize,
    pub(crate) icmp_errors: ErrorRate,
    pub(crate) announce: bool,
    /// For numbers that nobody can guess.
    pub(crate) key: HashKey,
}

/// The engine without threads.
#[derive(Debug)]
pub struct Core {
    worker: usize,
    tables: Arc<Tables>,
    config: Subscriber<Snapshot>,
    captures: Subscriber<Sinks>,
    counters: Arc<WorkerCounters>,
    pool: Pool,
    ports: PortTable,
    storms: Storms,
    waiting: Waiting,
    early: Early,
    express: Express,
    remembered: Remembered,
    outside: Option<Ipv4Addr>,
    errors: Limiter,
    rng: PortRng,
    lanes: Vec<Lane>,
    /// Another worker may have news of fragments that wait here.
    expectant: bool,
    sweep: Sweep,
    sweep6: Sweep,
    advertised: ra::Schedule,
    /// `None`: nothing is announced.
    announced: Option<Announcements>,
    questions: querier::Schedule,
    fdb_cursor: u64,
    swept: Timestamp,
    forgot: Timestamp,
    cleared: Timestamp,
    gauged: Timestamp,
}

/// How often the first worker looks for what has expired.
const HOUSEKEEPING: std::time::Duration = std::time::Duration::from_millis(100);
/// How often datagrams that wait for fragments no longer are forgotten, who has no connections, and members of
/// groups that were not heard of.
const CLEAR: std::time::Duration = std::time::Duration::from_secs(1);
/// How often unused and silent neighbors are forgotten.
const FORGET_NEIGHBORS: std::time::Duration = std::time::Duration::from_secs(5);
/// FDB buckets looked at in one round of housekeeping: a table of 2^16 buckets in 26 s.
const FDB_BUCKETS: u64 = 256;

impl Core {
    pub(crate) fn new(
        start: Start,
        tables: Arc<Tables>,
        config: Subscriber<Snapshot>,
        captures: Subscriber<Sinks>,
        counters: Arc<WorkerCounters>,
    ) -> Self {
        let Start {
            worker,
            pool,
            waiting_frames,
            waiting_frames_per_neighbor,
            fragment_bytes,
            icmp_errors,
            announce,
            key,
        } = start;
        let waiting = Waiting::beside(pool.size(), waiting_frames, waiting_frames_per_neighbor);
        Self {
            worker,
            tables,
            config,
            captures,
            counters,
            pool,
            ports: PortTable::default(),
            storms: Storms::default(),
            waiting,
            early: Early::new(worker, fragment_bytes),
            express: Express::new(worker),
            remembered: Remembered::default(),
            outside: None,
            errors: Limiter::new(icmp_errors),
            rng: PortRng::new(key),
            lanes: Vec::with_capacity(2 * BATCH),
            expectant: false,
            sweep: Sweep::default(),
            sweep6: Sweep::default(),
            advertised: ra::Schedule::default(),
            announced: announce.then(Announcements::default),
            questions: querier::Schedule::default(),
            fdb_cursor: 0,
            swept: Timestamp::ZERO,
            forgot: Timestamp::ZERO,
            cleared: Timestamp::ZERO,
            gauged: Timestamp::ZERO,
        }
    }

    /// Whether TCP segments that wait for the same device are merged.
    pub(crate) fn set_gro(&mut self, on: bool) {
        self.ports.set_gro(on);
    }

    /// Makes a port known; its frames go out through `Transmit` from now on.
    pub(crate) fn add_port(&mut self, port: PortId, offloads: Offloads, counters: PortCounters) {
        self.ports.add(port, offloads, counters, self.worker);
        self.storms.add(port);
        self.errors.add(port);
    }

    /// Forgets a port. Nothing is queued for it between batches; of fragments that came by it and wait,
    /// nothing comes any more.
    pub(crate) fn remove_port(&mut self, port: PortId) {
        while let Some(group) = self.early.take_from(port) {
            for held in &group.held {
                self.ports.drop_rx(&self.counters, held.ingress, DropReason::FragmentUntracked);
            }
        }
        self.count_waiting();
        self.ports.remove(port);
    }

    /// The buffers frames must come from.
    pub fn pool(&mut self) -> &mut Pool {
        &mut self.pool
    }

    /// Counters of this worker.
    #[must_use]
    pub fn stats(&self) -> WorkerStats {
        self.counters.view()
    }

    /// Takes every frame of `batch` to its end. `frame.ingress` says where each came from.
    pub fn process(&mut self, batch: &mut Vec<Frame>, now: Timestamp, out: &mut dyn Transmit) {
        self.run(batch, now, out, false);
    }

    /// As [`Core::process`], and gateways and addresses whose turn it is are advertised, and
    /// gateways ask for members of groups, first.
    #[inline]
    fn run(
        &mut self,
        batch: &mut Vec<Frame>,
        now: Timestamp,
        out: &mut dyn Transmit,
        advertise: bool,
    ) {
        self.config.refresh();
        self.captures.refresh();
        self.counters.buffers.set(self.pool.most_used());
        let sinks = self.captures.current();
        if !sinks.is_empty() {
            for frame in batch.iter() {
                capture::copy(sinks, frame.ingress, false, frame);
            }
        }
        let mut lanes = std::mem::take(&mut self.lanes);
        self.ports.set_captures(sinks);
        if advertise {
            let advertised = std::mem::take(&mut self.advertised);
            advertised.send(&mut self.cx(now));
            self.advertised = advertised;
            if let Some(mut announced) = self.announced.take() {
                announced.send(&mut self.cx(now));
                self.announced = Some(announced);
            }
            let questions = std::mem::take(&mut self.questions);
            questions.send(&mut self.cx(now), out);
            self.questions = questions;
        }
        pipeline::process(&mut self.cx(now), batch, &mut lanes, out);
        self.lanes = lanes;
        self.expectant = self.early.is_expectant(now);
        self.count_waiting();
        self.counters.waiting.set(self.waiting.len());
    }

    #[inline(always)]
    fn cx(&mut self, now: Timestamp) -> Cx<'_> {
        Cx {
            config: self.config.current(),
            tables: &self.tables,
            counters: &self.counters,
            pool: &mut self.pool,
            ports: &mut self.ports,
            storms: &mut self.storms,
            waiting: &mut self.waiting,
            early: &mut self.early,
            express: &mut self.express,
            generation: self.config.generation(),
            remembered: &mut self.remembered,
            last_reach: None,
            outside: &mut self.outside,
            errors: &mut self.errors,
            rng: &mut self.rng,
            now,
            secs: now.as_secs(),
        }
    }

    /// What this worker has of its own, for a [`crate::trace::Tracer`].
    #[must_use]
    pub fn state(&self) -> WorkerState {
        WorkerState {
            worker: self.worker,
            ports: self.ports.offloads(),
            storms: self.storms.clone(),
            waiting: self.waiting.shape(),
            errors: self.errors.clone(),
            rng: self.rng.clone(),
        }
    }

    /// Goes on from the state of another.
    pub(crate) fn resume(&mut self, state: WorkerState) {
        let WorkerState { worker, ports, storms, waiting, errors, rng } = state;
        self.worker = worker;
        self.early = Early::new(worker, self.early.limit());
        for (port, offloads) in ports {
            self.ports.add(port, offloads, PortCounters::new(0), worker);
        }
        (self.storms, self.waiting, self.errors, self.rng) = (storms, waiting, errors, rng);
    }

    /// Takes one frame to its end, and notes how.
    pub(crate) fn walk(
        &mut self,
        frame: Frame,
        now: Timestamp,
        out: &mut dyn Transmit,
        notes: &mut Notes,
    ) -> (Verdict, Option<(Link, IpAddr)>) {
        let walked = pipeline::walk(&mut self.cx(now), frame, notes, out);
        self.count_waiting();
        walked
    }

    /// Notes what waits: frames for neighbors, and fragments.
    fn count_waiting(&mut self) {
        self.counters.queued.set((self.waiting.len() + self.early.len()) as u64);
        if let Some([all, one]) = self.early.take_uses() {
            for (gauge, (now, most)) in
                [(&self.counters.early, all), (&self.counters.early_of_one, one)]
            {
                gauge.set(now);
                gauge.note_peak(most);
            }
        }
    }

    /// Notes how full is what this worker has of its own.
    fn gauge(&mut self, now: Timestamp) {
        if now.since(self.gauged) >= HOUSEKEEPING {
            self.gauged = now;
            self.counters.buffers.set(self.pool.most_used());
            self.counters.waiting_for_one.set(self.waiting.longest());
        }
    }

    /// Work that is not about a frame: frames that wait and, on the first worker, expiry. Call it
    /// now and then, also when there are no frames.
    pub fn housekeep(&mut self, now: Timestamp, out: &mut dyn Transmit) {
        if self.worker == 0 && now.since(self.swept) >= HOUSEKEEPING {
            self.sweep(now, out);
        }
        if self.waiting.len() > 0 || self.tables.fragments.has_news(self.worker) {
            self.process(&mut Vec::new(), now, out);
        }
        self.gauge(now);
        self.expectant = self.early.is_expectant(now);
    }

    /// Forgets what has expired, advertises gateways, and has them ask for members of groups.
    fn sweep(&mut self, now: Timestamp, out: &mut dyn Transmit) {
        self.swept = now;
        let fragments = u32::try_from(self.tables.fragments.len()).unwrap_or(u32::MAX);
        self.tables.fragments_peak.note(fragments);
        self.tables.fragments.count_departed(now);
        self.config.refresh();
        self.sweep.step(&self.tables.connections, now);
        self.sweep6.step(&self.tables.connections6, now);
        if now.since(self.cleared) >= CLEAR {
            self.cleared = now;
            self.tables.fragments.expire(now);
            Helped::expire(&self.tables, now.as_secs());
            self.tables.groups.expire(now.as_secs());
            self.tables.connections.accounts().forget_idle(now.as_secs());
        }
        let (config, generation) = (self.config.current(), self.config.generation());
        let advertises = self.advertised.is_due(config, now, &mut self.rng);
        let announces =
            self.announced.as_mut().is_some_and(|it| it.is_due(config, generation, now));
        let asks = self.questions.is_due(config, generation, now);
        if advertises || announces || asks {
            self.run(&mut Vec::new(), now, out, true);
        }
        let config = self.config.current();
        let ageing = |network| config.ageing_of(network);
        let secs = now.as_secs();
        self.fdb_cursor = self.tables.fdb.age(self.fdb_cursor, FDB_BUCKETS, secs, ageing);
        if now.since(self.forgot) >= FORGET_NEIGHBORS {
            self.forgot = now;
            self.tables.neighbors.forget_unused(now);
        }
    }

    /// Whether a frame that came by this port waits for a neighbor.
    #[must_use]
    pub(crate) fn holds_from(&self, port: PortId) -> bool {
        self.waiting.holds_from(port)
    }

    /// Whether frames wait for what another worker may receive, so that [`Core::housekeep`] is needed soon.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.waiting.len() > 0 || self.expectant
    }

    /// Fragments that wait for the first of their datagram, for which they need no buffer.
    #[must_use]
    pub fn waiting_fragments(&self) -> usize {
        self.early.len()
    }
}
