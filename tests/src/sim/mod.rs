//! Machines with smoltcp's stack around one engine, in virtual time: nothing waits, everything is
//! repeatable from a seed.
//!
//! Every machine hangs on a cable that loses, repeats and delays frames as [`Faults`] says; unlike
//! delays reorder them. Machines of the uplink share one wire. Whatever the engine sends must have
//! right checksums, and the stacks check them once more.

mod machine;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::Ipv4Addr;
use std::time::Duration;

use dataplane::clock::Timestamp;
use dataplane::config::{Snapshot, SnapshotSpec};
use dataplane::core::{BATCH, Core};
use dataplane::frame::Frame;
use dataplane::io::{Offloads, TxReport};
use dataplane::packet::types::{PortId, tcp_flags};
use dataplane::plane::Plane;

pub use machine::{Machine, Nic, Received, Rng, Sending, Talk};

use crate::lab::{UP, small};
use crate::outlet::{Outlet, Outside, sent};
use crate::packet::{Host, Wire};
use crate::sums;

/// What a cable does to frames.
#[derive(Debug, Clone, Copy)]
pub struct Faults {
    /// Of 1000 frames, so many are lost.
    pub loss: u64,
    /// Of 1000 frames, so many come twice.
    pub repeat: u64,
    /// The least delay.
    pub delay: Duration,
    /// What comes on top at most; more than the distance of frames reorders them.
    pub jitter: Duration,
}

impl Faults {
    /// A good cable.
    pub const NONE: Self =
        Self { loss: 0, repeat: 0, delay: Duration::from_millis(1), jitter: Duration::ZERO };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Engine(PortId),
    Machine(usize),
}

/// A frame on its way; ordered by when it arrives, then by when it was sent.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Flight {
    due: Timestamp,
    number: u64,
    to: Place,
    bytes: Vec<u8>,
}

/// What happened on the cables.
#[derive(Debug, Default, Clone, Copy)]
pub struct Weather {
    /// Frames lost.
    pub lost: u64,
    /// Frames repeated.
    pub repeated: u64,
    /// Frames that arrived before one sent earlier by the same cable.
    pub overtaken: u64,
    /// Resets that reached the engine: a late duplicate meets a socket that is closed.
    pub resets: u64,
}

#[derive(Debug, Default)]
struct Outbox(Vec<(PortId, Vec<u8>)>);

impl Outlet for Outbox {
    fn take(&mut self, port: PortId, frame: &Frame, report: &mut TxReport) {
        let wire = Wire { bytes: frame.bytes().to_vec(), vnet: frame.vnet };
        assert!(sums::check(&wire).are_right(), "wrong checksum by {port:?}: {wire:?}");
        sent(frame, report);
        self.0.push((port, wire.bytes));
    }
}

/// An engine, machines and cables.
#[derive(Debug)]
pub struct World {
    /// The engine's tables and counters.
    pub plane: Plane,
    /// The machines.
    pub machines: Vec<Machine>,
    /// The time.
    pub now: Timestamp,
    /// What the cables did.
    pub weather: Weather,
    core: Core,
    outbox: Outside<Outbox>,
    faults: Faults,
    rng: Rng,
    flying: BinaryHeap<Reverse<Flight>>,
    sent: u64,
    last_arrived: BTreeMap<Place, u64>,
}

/// The step of time: 1 ms.
const TICK: Duration = Duration::from_millis(1);

impl World {
    /// An engine with this configuration; each machine has the gateway that comes with it.
    #[must_use]
    pub fn new(spec: SnapshotSpec, hosts: &[(Host, Ipv4Addr)], faults: Faults, seed: u64) -> Self {
        let now = Timestamp::from_secs(u64::from(Timestamp::now().as_secs()) + 1);
        let plane = Plane::new(&small()).unwrap();
        let mut core = plane.core(0).unwrap();
        for port in &spec.ports {
            plane.add_port(&mut core, port.id, Offloads::NONE);
        }
        plane.publish(Snapshot::build(spec).unwrap());
        let machines =
            hosts.iter().map(|(host, gateway)| Machine::new(host, *gateway, now)).collect();
        Self {
            plane,
            machines,
            now,
            weather: Weather::default(),
            core,
            outbox: Outside::default(),
            faults,
            rng: Rng(seed),
            flying: BinaryHeap::new(),
            sent: 0,
            last_arrived: Default::default(),
        }
    }

    fn fly(&mut self, to: Place, bytes: &[u8]) {
        if self.rng.happens(self.faults.loss) {
            self.weather.lost += 1;
            return;
        }
        let copies = 1 + u64::from(self.rng.happens(self.faults.repeat));
        self.weather.repeated += copies - 1;
        for _ in 0..copies {
            let jitter = match u64::try_from(self.faults.jitter.as_nanos()).unwrap() {
                0 => 0,
                most => self.rng.number() % most,
            };
            let due = self.now + self.faults.delay + Duration::from_nanos(jitter);
            self.sent += 1;
            let (number, bytes) = (self.sent, bytes.to_vec());
            self.flying.push(Reverse(Flight { due, number, to, bytes }));
        }
    }

    /// A millisecond passes.
    ///
    /// # Panics
    /// When the engine does not balance or loses a buffer.
    pub fn tick(&mut self) {
        self.now = self.now + TICK;
        let mut batch = Vec::new();
        while self.flying.peek().is_some_and(|Reverse(flight)| flight.due <= self.now) {
            let Some(Reverse(Flight { number, to: place, bytes, .. })) = self.flying.pop() else {
                break;
            };
            let last = self.last_arrived.entry(place).or_default();
            self.weather.overtaken += u64::from(number < *last);
            *last = number.max(*last);
            match place {
                Place::Machine(index) => self.machines[index].nic.rx.push_back(bytes),
                Place::Engine(port) => {
                    let is_tcp = bytes.get(12..14) == Some(&[8, 0]) && bytes.get(23) == Some(&6);
                    let flags = bytes.get(47).copied().unwrap_or(0);
                    self.weather.resets += u64::from(is_tcp && flags & tcp_flags::RST != 0);
                    let mut frame = self.core.pool().take().expect("a buffer");
                    frame.copy_from(&bytes);
                    frame.ingress = port;
                    batch.push(frame);
                    if batch.len() == BATCH {
                        self.core.process(&mut batch, self.now, &mut self.outbox);
                    }
                }
            }
        }
        self.core.process(&mut batch, self.now, &mut self.outbox);
        self.core.housekeep(self.now, &mut self.outbox);
        let stats = self.core.stats();
        assert!(stats.is_balanced(), "{stats:?}");
        let waiting = usize::try_from(stats.queued).unwrap();
        let pool = self.core.pool();
        assert_eq!(pool.available() + waiting, pool.size(), "buffers lost");
        for (port, bytes) in std::mem::take(&mut self.outbox.0.0) {
            let to = (0..self.machines.len()).filter(|n| self.machines[*n].host.port == port);
            for index in to.collect::<Vec<_>>() {
                self.fly(Place::Machine(index), &bytes);
            }
        }
        for index in 0..self.machines.len() {
            self.machines[index].poll(self.now);
            let port = self.machines[index].host.port;
            for bytes in std::mem::take(&mut self.machines[index].nic.tx) {
                // The outside is one wire: all hear all.
                if port == UP.port {
                    for other in (0..self.machines.len()).filter(|other| *other != index) {
                        if self.machines[other].host.port == port {
                            self.machines[other].nic.rx.push_back(bytes.clone());
                        }
                    }
                }
                self.fly(Place::Engine(port), &bytes);
            }
        }
    }

    /// Time passes until `done` says so.
    ///
    /// # Panics
    /// When it has not after `limit`.
    pub fn run(&mut self, limit: Duration, mut done: impl FnMut(&mut Self) -> bool) {
        let end = self.now + limit;
        while !done(self) {
            assert!(self.now < end, "not done after {limit:?}: {:?}", self.core.stats());
            self.tick();
        }
    }

    /// Runs TCP conversations to their ends.
    ///
    /// # Panics
    /// When they have not ended after `limit`.
    pub fn talk(&mut self, talks: &mut [Talk], limit: Duration) {
        let end = self.now + limit;
        self.run(limit + TICK, |world| {
            for talk in talks.iter_mut() {
                talk.pump(&mut world.machines[talk.machine]);
            }
            let now = world.now;
            let ways = |talk: &Talk| talk.describe(&world.machines[talk.machine]);
            assert!(now < end, "not over: {:#?}", talks.iter().map(ways).collect::<Vec<_>>());
            talks.iter().all(|talk| talk.is_over(&world.machines[talk.machine]))
        });
    }
}
