//! A switch in memory: tables, configuration, one core and its ports, and the stopwatch around it.
//!
//! What is measured: [`PortRx::rx`] of ports in memory ([`MemoryPort`]), by trains of a batch; [`Core::process`];
//! [`PortTx::tx`] of such ports. What is not: the other ends, which write frames before the stopwatch starts and
//! take what came when it has stopped, and devices. The frames lie in the cache when it starts, as those of a
//! device do that has just been read.

use std::io;
use std::mem::swap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dataplane::clock::Timestamp;
use dataplane::config::{PortRole, Snapshot, SnapshotSpec};
use dataplane::core::{Core, Transmit};
use dataplane::engine::{EngineOptions, FdbKind, Link, WorkerStats};
use dataplane::frame::Frame;
use dataplane::io::memory::{MemoryPeer, MemoryPort};
use dataplane::io::{Offloads, Port, PortRx, PortTx, TxReport};
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
/// Frames between two looks at the clock, so that looking costs nothing: more than one batch when batches are
/// small. No more of them, as these are the buffers that are used by turns.
const ROUND: usize = 64;
/// Frames of the largest batch.
const WIRE: usize = 256;
/// What a frame is said to take at first. Then the engine's clock runs by the stopwatch, so that what is done once a
/// second is done as often as it will be.
const NANOS_A_FRAME: u64 = 25;
/// Nor does it run faster than with so much a frame, when the processor was away.
const MOST_A_FRAME: Duration = Duration::from_micros(1);
/// A round that took so many times as long as the middle one lost its processor.
const INTERRUPTED: u32 = 4;

/// A port, and its other end.
#[derive(Debug)]
struct Wire {
    peer: MemoryPeer,
    rx: Box<dyn PortRx>,
    tx: Box<dyn PortTx>,
}

impl Wire {
    fn new(takes: Offloads) -> io::Result<Self> {
        let (memory, peer) = MemoryPort::polled(WIRE, takes);
        let mut halves = Box::new(memory).split(1)?;
        let tx = halves.tx.pop().ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { peer, rx: halves.rx, tx })
    }
}

/// The ports of a worker, as its devices are, and what they have sent.
#[derive(Debug, Default)]
struct Wires {
    /// By port.
    wires: Vec<Option<Wire>>,
    sent: u64,
}

impl Wires {
    fn of(&mut self, port: PortId) -> Option<&mut Wire> {
        self.wires.get_mut(port.index())?.as_mut()
    }

    /// The other ends take everything.
    fn drain(&self) {
        for wire in self.wires.iter().flatten() {
            while wire.peer.recv_with(|_| ()).is_some() {}
        }
    }
}

impl Transmit for Wires {
    fn tx(&mut self, port: PortId, frames: &mut Vec<Frame>, pool: &mut Pool) -> TxReport {
        let Some(wire) = self.of(port) else { return TxReport::default() };
        let report = wire.tx.tx(frames, pool);
        self.sent += u64::from(report.sent);
        report
    }

    fn tx_copy(&mut self, port: PortId, frame: &mut Frame, pool: &mut Pool) -> TxReport {
        let Some(wire) = self.of(port) else { return TxReport::default() };
        let report = wire.tx.tx_copy(frame, pool);
        self.sent += u64::from(report.sent);
        report
    }
}

/// How many frames of a batch come by which port.
type Turn = (PortId, usize);

/// The switch.
#[derive(Debug)]
pub struct Switch {
    /// Tables and configuration.
    pub plane: Arc<Plane>,
    core: Core,
    takes: Offloads,
    wires: Wires,
    /// The load writes here; the ports have buffers of their own.
    next: Frame,
    /// Of each batch of a round.
    turns: Vec<Vec<Turn>>,
    batch: Vec<Frame>,
    rounds: Vec<Duration>,
    /// What a frame took in the last round.
    took: Duration,
    now: Timestamp,
}

impl Switch {
    /// Two ports with `count` known MACs behind each, no guard, no gateway in between.
    ///
    /// # Errors
    /// When memory cannot be had.
    pub fn bridge(count: u32) -> io::Result<Self> {
        let options = EngineOptions {
            buffers_per_worker: 3 * WIRE,
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
            buffers_per_worker: 3 * WIRE,
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

    /// As [`Switch::nat`], of two containers that begin connections by turns.
    ///
    /// # Errors
    /// When memory cannot be had, or a connection did not begin.
    pub fn nat_of_two(count: u32) -> io::Result<Self> {
        let mut switch = Self::masquerading(0, room_beside(count), false, (1024, 65_535))?;
        let rounded = u64::from(count).next_multiple_of(ROUND as u64);
        switch.run(&mut NatFlows::all_of_two(count), ROUND, rounded);
        match switch.plane.conntrack_stats().entries {
            begun if begun == count => Ok(switch),
            begun => Err(io::Error::other(format!("{begun} of {count} connections began"))),
        }
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
            buffers_per_worker: 3 * WIRE,
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
        let mut wires = Wires::default();
        for port in plane.snapshot().ports() {
            plane.add_port(&mut core, port.config.id, takes);
            let index = port.config.id.index();
            wires.wires.resize_with(wires.wires.len().max(index + 1), || None);
            if let Some(place) = wires.wires.get_mut(index) {
                *place = Some(Wire::new(takes)?);
            }
        }
        Ok(Self {
            plane,
            core,
            takes,
            wires,
            next: Frame::new(),
            turns: Vec::new(),
            batch: Vec::new(),
            rounds: Vec::new(),
            took: Duration::from_nanos(NANOS_A_FRAME),
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
    /// one frame took in the mean round, times `frames`, of those that took no more than four times as long as the
    /// middle one: a round in which the thread lost its processor says nothing about the core.
    ///
    /// # Panics
    /// When a frame does not arrive: figures of frames that were dropped say nothing.
    pub fn run(&mut self, load: &mut impl Load, batch: usize, frames: u64) -> Duration {
        self.run_by_turns(load, batch, frames, || ())
    }

    /// As [`Switch::run`]; before the stopwatch starts each round, `begin` may wait for another worker.
    ///
    /// # Panics
    /// As [`Switch::run`].
    pub fn run_by_turns(
        &mut self,
        load: &mut impl Load,
        batch: usize,
        frames: u64,
        begin: impl Fn(),
    ) -> Duration {
        if frames == 0 {
            return Duration::ZERO;
        }
        self.meet_router();
        let batches = (ROUND / batch).max(1);
        let in_round = (batch * batches) as u64;
        let rounds = frames.div_ceil(in_round);
        self.turns.resize_with(batches, Vec::new);
        let before = self.wires.sent;
        let (generated, merged) = (self.core.stats().generated, self.core.stats().merged);
        self.rounds.clear();
        for _ in 0..rounds {
            self.write(load, batch);
            begin();
            let start = Instant::now();
            for turns in &self.turns {
                self.now = self.now + self.took.mul_f64(batch as f64);
                for (port, count) in turns {
                    receive(&mut self.wires, *port, *count, self.core.pool(), &mut self.batch);
                }
                self.core.process(&mut self.batch, self.now, &mut self.wires);
            }
            let took = start.elapsed();
            self.took = took.div_f64(in_round as f64).min(MOST_A_FRAME);
            self.rounds.push(took);
            self.wires.drain();
        }
        let expected = rounds * in_round;
        // What the core made itself, ICMP errors above all, did not arrive.
        let stats = self.core.stats();
        let arrived =
            self.wires.sent - before - (stats.generated - generated) + (stats.merged - merged);
        assert_eq!(arrived, expected, "frames were lost: {:?}", self.core.stats());
        let middle = self.rounds.len() / 2;
        let (_, median, _) = self.rounds.select_nth_unstable(middle);
        let most = *median * INTERRUPTED;
        let whole = self.rounds.iter().filter(|took| **took <= most);
        let (sum, count) =
            whole.fold((Duration::ZERO, 0u64), |(sum, count), took| (sum + *took, count + 1));
        sum.mul_f64(frames as f64 / (in_round * count.max(1)) as f64)
    }

    /// The other ends write a batch of each turn.
    ///
    /// # Panics
    /// When a frame finds no room.
    fn write(&mut self, load: &mut impl Load, batch: usize) {
        let Self { wires, next, turns, .. } = self;
        for turns in turns {
            turns.clear();
            for _ in 0..batch {
                load.fill(next);
                let port = next.ingress;
                let wire = wires.of(port);
                let sent = wire.is_some_and(|wire| wire.peer.send_with(|place| swap(place, next)));
                assert!(sent, "no room for a frame of {port:?}");
                match turns.iter_mut().find(|(of, _)| *of == port) {
                    Some((_, count)) => *count += 1,
                    None => turns.push((port, 1)),
                }
            }
        }
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
        let before = self.wires.sent;
        self.now = self.now + self.took.mul_f64(batch.len() as f64);
        self.core.process(batch, self.now, &mut self.wires);
        self.wires.drain();
        self.wires.sent - before
    }

    /// Ends the connections to the server of [`crate::frames::NewFlows`] that came from other
    /// clients than the container.
    pub fn end_new(&self) -> usize {
        self.plane.flush_connections(&|connection| connection.original.src != CONTAINER)
    }
}

/// As a worker receives from a device.
fn receive(wires: &mut Wires, port: PortId, count: usize, pool: &mut Pool, batch: &mut Vec<Frame>) {
    let Some(wire) = wires.of(port) else { return };
    let before = batch.len();
    // A port that is never removed.
    let _ = wire.rx.rx(count, pool, batch);
    for frame in batch.iter_mut().skip(before) {
        frame.ingress = port;
    }
}

/// A limit with room beside so many: of a table that is full to the last entry, one connection in some
/// millions finds no place in the index.
fn room_beside(count: u32) -> u32 {
    (count + count / 8).max(262_144)
}
