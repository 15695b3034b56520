//! A switch in memory: tables, configuration and one core, and the stopwatch around it.
//!
//! What is measured: a receiving half that exchanges full buffers for empty ones of the pool in one go;
//! [`Core::process`]; a sending half that gives the buffers back to the pool in one go. What is not: writing
//! the frames, devices, and the queues of the engine's ports in memory, which move frames one by one. The frames lie in the cache when the stopwatch starts,
//! as those of a device do that has just been read.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dataplane::clock::Timestamp;
use dataplane::config::{PortRole, Snapshot, SnapshotSpec};
use dataplane::core::{Core, Transmit};
use dataplane::engine::{EngineOptions, FdbKind, Link, WorkerStats};
use dataplane::frame::Frame;
use dataplane::io::{Offloads, TxReport};
use dataplane::packet::types::{PortId, UplinkId};
use dataplane::plane::Plane;
use dataplane::pool::Pool;

use crate::frames::{CONTAINER, Load, NatFlows, ROUTER, ROUTER_MAC, ROUTER6, Way, mac};
use crate::segments::{Step, Streams, TcpFlows};
use crate::specs::{NETWORK, container_and_uplink, two_ports};

/// Port of the container, and of the first side of a pair.
pub const INSIDE: PortId = PortId(1);
/// Port of the second side of a pair.
pub const OTHER: PortId = PortId(2);
/// Port of the uplink.
pub const UPLINK: PortId = PortId(3);

/// [`Switch::beside`] makes the second one.
const WORKERS: usize = 2;

/// What ports take: trains of datagrams would leave as one frame, and figures are of each by itself.
const SINGLE: Offloads = Offloads { uso: false, ..Offloads::ALL };
/// Frames between two looks at the clock, so that looking costs nothing: more than one batch when
/// batches are small.
const ROUND: usize = 256;
/// What a frame is said to take: the engine's clock runs with the frames, so that what is done
/// once a second is done as often as it will be.
const NANOS_A_FRAME: u64 = 25;

/// Frames that have arrived.
#[derive(Debug, Default)]
struct Source {
    full: Vec<Frame>,
}

impl Source {
    /// Writes the next `count` frames, into the buffers that the core has given for those before.
    fn fill(&mut self, load: &mut impl Load, count: usize, pool: &mut Pool) {
        while self.full.len() < count
            && let Some(frame) = pool.take()
        {
            self.full.push(frame);
        }
        for frame in self.full.iter_mut().take(count) {
            load.fill(frame);
        }
    }

    /// Hands out all of them, each for an empty buffer.
    fn rx(&mut self, pool: &mut Pool, batch: &mut Vec<Frame>) {
        pool.exchange(&mut self.full, batch);
    }
}

/// Gives every frame back to the pool at once and counts it.
#[derive(Debug, Default)]
struct Sink {
    sent: u64,
}

impl Transmit for Sink {
    fn tx(&mut self, _port: PortId, frames: &mut Vec<Frame>, pool: &mut Pool) -> TxReport {
        let mut report = TxReport::default();
        for frame in &*frames {
            report.sent += 1;
            report.sent_bytes += frame.len() as u64;
        }
        pool.put_all(frames);
        self.sent += u64::from(report.sent);
        report
    }

    fn tx_copy(&mut self, _port: PortId, frame: &mut Frame, _pool: &mut Pool) -> TxReport {
        self.sent += 1;
        TxReport { sent: 1, sent_bytes: frame.len() as u64, ..TxReport::default() }
    }
}

/// The switch.
#[derive(Debug)]
pub struct Switch {
    /// Tables and configuration.
    pub plane: Arc<Plane>,
    core: Core,
    takes: Offloads,
    sink: Sink,
    sources: Vec<Source>,
    batch: Vec<Frame>,
    rounds: Vec<Duration>,
    now: Timestamp,
}

impl Switch {
    /// Two ports with `count` known MACs behind each, no guard, no gateway in between.
    ///
    /// # Errors
    /// When memory cannot be had.
    pub fn bridge(count: u32) -> io::Result<Self> {
        let options = EngineOptions {
            buffers_per_worker: 3 * ROUND,
            workers: WORKERS,
            fdb_limit: count.saturating_mul(2).max(65_536),
            fdb_per_port: count,
            fragment_limit: 4096,
            ..EngineOptions::default()
        };
        let switch = Self::new(&options, two_ports([INSIDE, OTHER]))?;
        let secs = switch.now.as_secs();
        for number in 0..count {
            for (side, port) in [(0, INSIDE), (1, OTHER)] {
                let mac = mac(side, number);
                switch.plane.tables().fdb.insert(NETWORK, 0, mac, port, FdbKind::Learned, secs);
            }
        }
        let evictions = switch.plane.tables().fdb.stats().evictions;
        // Frames to an evicted MAC are flooded: too few to count in a figure.
        if evictions > u64::from(count / 1000) {
            return Err(io::Error::other(format!("{evictions} of {count} MACs were evicted")));
        }
        Ok(switch)
    }

    /// Two ports of a network that snoops; the second one's is trusted to ask for members of groups.
    ///
    /// # Errors
    /// When memory cannot be had.
    pub fn snooping() -> io::Result<Self> {
        let options = EngineOptions {
            buffers_per_worker: 3 * ROUND,
            workers: WORKERS,
            ..EngineOptions::default()
        };
        let mut spec = two_ports([INSIDE, OTHER]);
        for network in &mut spec.networks {
            network.snooping = true;
        }
        for port in spec.ports.iter_mut().filter(|port| port.id == OTHER) {
            if let PortRole::Endpoint { trusted, .. } = &mut port.role {
                *trusted = true;
            }
        }
        Self::new(&options, spec)
    }

    /// Time passes.
    pub fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
    }

    /// A container behind masquerading, with `count` connections begun.
    ///
    /// # Errors
    /// When memory cannot be had, or a connection did not begin.
    pub fn nat(count: u32) -> io::Result<Self> {
        Self::masquerading(count, room_beside(count), true, (1024, 65_535))
    }

    /// As [`Switch::nat`], with the connections of `streams`, by TCP: all open.
    ///
    /// # Errors
    /// When memory cannot be had, or a connection did not open.
    pub fn nat_tcp(streams: &Arc<Streams>) -> io::Result<Self> {
        let count = streams.count();
        let mut switch = Self::masquerading(0, room_beside(count), true, (1024, 65_535))?;
        let rounded = u64::from(count).next_multiple_of(ROUND as u64);
        // The windows of SYNs are small: each side offers more with its first data.
        let first = [(Way::Out, Step::First), (Way::In, Step::First)];
        for (way, step) in [(Way::Out, Step::Syn), (Way::In, Step::Syn)].into_iter().chain(first) {
            switch.run(&mut TcpFlows::new(64, streams, way, step), 64, rounded);
        }
        let connections = switch.plane.connections();
        let open = connections.iter().filter(|it| it.state == "ESTABLISHED").count();
        if open == count as usize {
            Ok(switch)
        } else {
            Err(io::Error::other(format!("{open} of {count} connections are open")))
        }
    }

    /// As [`Switch::nat`], for `limit` connections of clients with any address from ports out of
    /// `nat_ports`.
    ///
    /// # Errors
    /// When memory cannot be had, or a connection did not begin.
    pub fn clients(count: u32, limit: u32, nat_ports: (u16, u16)) -> io::Result<Self> {
        Self::masquerading(count, limit, false, nat_ports)
    }

    /// As [`Switch::nat`], with links outside that take packets of `mtu` bytes only.
    ///
    /// # Errors
    /// When memory cannot be had, or a connection did not begin.
    pub fn nat_by_narrow_links(count: u32, mtu: u16) -> io::Result<Self> {
        let mut switch = Self::nat(count)?;
        let mut spec = container_and_uplink(true, (1024, 65_535));
        for uplink in &mut spec.uplinks {
            uplink.mtu = mtu;
        }
        switch.plane.publish(Snapshot::build(spec).map_err(io::Error::other)?);
        switch.meet_router();
        Ok(switch)
    }

    fn masquerading(
        count: u32,
        limit: u32,
        guard: bool,
        nat_ports: (u16, u16),
    ) -> io::Result<Self> {
        let options = EngineOptions {
            buffers_per_worker: 3 * ROUND,
            workers: WORKERS,
            conntrack_limit: limit,
            conntrack_per_endpoint: limit,
            ..EngineOptions::default()
        };
        let mut switch = Self::new(&options, container_and_uplink(guard, nat_ports))?;
        if count > 0 {
            let rounded = u64::from(count).next_multiple_of(ROUND as u64);
            switch.run(&mut NatFlows::all(count), 64, rounded);
        }
        let begun = switch.plane.conntrack_stats().entries;
        if begun == count {
            Ok(switch)
        } else {
            Err(io::Error::other(format!("{begun} of {count} connections began")))
        }
    }

    fn new(options: &EngineOptions, spec: SnapshotSpec) -> io::Result<Self> {
        let plane = Arc::new(Plane::new(options)?);
        plane.publish(Snapshot::build(spec).map_err(io::Error::other)?);
        let mut switch = Self::of(plane, 0, Timestamp::now(), SINGLE)?;
        switch.meet_router();
        Ok(switch)
    }

    fn of(plane: Arc<Plane>, worker: usize, now: Timestamp, takes: Offloads) -> io::Result<Self> {
        let mut core = plane.core(worker)?;
        for port in plane.snapshot().ports() {
            plane.add_port(&mut core, port.config.id, takes);
        }
        Ok(Self {
            plane,
            core,
            takes,
            sink: Sink::default(),
            sources: Vec::new(),
            batch: Vec::new(),
            rounds: Vec::new(),
            now,
        })
    }

    /// The same switch, whose ports take trains of datagrams as one frame.
    #[must_use]
    pub fn merging_datagrams(mut self) -> Self {
        self.takes = Offloads::ALL;
        for port in self.plane.snapshot().ports() {
            self.plane.add_port(&mut self.core, port.config.id, self.takes);
        }
        self
    }

    /// The port takes plain frames only from now on: all else is done in software.
    pub fn take_offloads_from(&mut self, port: PortId) {
        self.plane.add_port(&mut self.core, port, Offloads::NONE);
    }

    /// What the core has counted.
    #[must_use]
    pub fn stats(&self) -> WorkerStats {
        self.core.stats()
    }

    /// Another worker on the same tables.
    ///
    /// # Errors
    /// When there are no more than one.
    pub fn beside(&self) -> io::Result<Self> {
        Self::of(Arc::clone(&self.plane), 1, self.now, self.takes)
    }

    /// Sets the clocks of two workers equal, as those of one machine are.
    pub fn agree(&mut self, other: &mut Self) {
        self.now = self.now.max(other.now);
        other.now = self.now;
    }

    /// The router says who it is, so that nothing waits for it.
    fn meet_router(&mut self) {
        let neighbors = &self.plane.tables().neighbors;
        for router in [IpAddr::from(ROUTER), ROUTER6.into()] {
            neighbors.confirm(Link::Uplink(UplinkId(1)), router, ROUTER_MAC, true, self.now);
        }
    }

    /// Sends at least `frames` frames of `load` through the core in batches of `batch`; returns what
    /// one frame took in the median round, times `frames`. The median, because a round
    /// in which the thread lost its processor says nothing about the core.
    ///
    /// # Panics
    /// When a frame does not arrive: figures of frames that were dropped say nothing.
    pub fn run(&mut self, load: &mut impl Load, batch: usize, frames: u64) -> Duration {
        if frames == 0 {
            return Duration::ZERO;
        }
        self.meet_router();
        let batches = (ROUND / batch).max(1);
        let in_round = (batch * batches) as u64;
        let rounds = frames.div_ceil(in_round);
        // The buffers of the run before go back: its batches may have been of another size.
        for mut frame in self.sources.drain(..).flat_map(|source| source.full) {
            frame.reset();
            self.core.pool().put(frame);
        }
        self.sources.resize_with(batches, Source::default);
        let before = self.sink.sent;
        let (generated, merged) = (self.core.stats().generated, self.core.stats().merged);
        self.rounds.clear();
        for _ in 0..rounds {
            for source in &mut self.sources {
                source.fill(load, batch, self.core.pool());
            }
            let start = Instant::now();
            for source in &mut self.sources {
                self.now = self.now + Duration::from_nanos(NANOS_A_FRAME * batch as u64);
                source.rx(self.core.pool(), &mut self.batch);
                self.core.process(&mut self.batch, self.now, &mut self.sink);
            }
            self.rounds.push(start.elapsed());
        }
        let expected = rounds * in_round;
        // What the core made itself, ICMP errors above all, did not arrive.
        let stats = self.core.stats();
        let arrived =
            self.sink.sent - before - (stats.generated - generated) + (stats.merged - merged);
        assert_eq!(arrived, expected, "frames were lost: {:?}", self.core.stats());
        let middle = self.rounds.len() / 2;
        let (_, median, _) = self.rounds.select_nth_unstable(middle);
        median.mul_f64(frames as f64 / in_round as f64)
    }

    /// Prepares one batch without processing it: for measurements of another kind than time.
    pub fn prepare(&mut self, load: &mut impl Load, batch: usize) -> Vec<Frame> {
        let mut frames = Vec::with_capacity(batch);
        while frames.len() < batch
            && let Some(mut frame) = self.core.pool().take()
        {
            load.fill(&mut frame);
            frames.push(frame);
        }
        frames
    }

    /// Processes a prepared batch; returns how many frames were sent.
    pub fn process(&mut self, batch: &mut Vec<Frame>) -> u64 {
        let before = self.sink.sent;
        self.now = self.now + Duration::from_nanos(NANOS_A_FRAME * batch.len() as u64);
        self.core.process(batch, self.now, &mut self.sink);
        self.sink.sent - before
    }

    /// Ends the connections to the server of [`crate::frames::NewFlows`] that came from other
    /// clients than the container.
    pub fn end_new(&self) -> usize {
        self.plane.flush_connections(&|connection| connection.original.src != CONTAINER)
    }
}

/// A limit with room beside so many: of a table that is full to the last entry, one connection in some
/// millions finds no place in the index.
fn room_beside(count: u32) -> u32 {
    (count + count / 8).max(262_144)
}
