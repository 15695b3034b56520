//! Slow consumers stall nobody, and a flood starves nobody: a running engine with ports in memory,
//! whose queues are as full as the test makes them.
#![allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded};
use dataplane::config::{PortConfig, Snapshot};
use dataplane::frame::Frame;
use dataplane::io::memory::{MemoryPeer, MemoryPort};
use dataplane::io::vnet_hdr::VnetHdr;
use dataplane::io::{Gone, IoChoice, Offloads, Port, PortHalves, PortRx, PortTx, TxReport};
use dataplane::packet::types::PortId;
use dataplane::pool::Pool;
use dataplane::verdict::DropReason;
use dataplane::{Engine, EngineOptions};
use tests::lab::{A, B, C, D, NET1, SINGLE, endpoint, small, topology};
use tests::packet::{Host, udp};
use tests::rig::assert_balances;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A, B and C on one network, each behind a wire that holds `capacity` frames each way.
struct Network {
    engine: Engine,
    ports: Vec<(Host, PortId, MemoryPeer)>,
}

impl Network {
    fn new(workers: usize, capacity: usize) -> Self {
        Self::with(workers, capacity, None)
    }

    /// Besides, D behind a gate.
    fn with(workers: usize, capacity: usize, gate: Option<Gate>) -> Self {
        let engine = Engine::start(&EngineOptions { workers, ..small() }).unwrap();
        let mut spec = topology();
        spec.uplinks.clear();
        let known = std::mem::take(&mut spec.ports);
        let mut ports = Vec::new();
        for host in [A, B, C] {
            let (port, peer) = MemoryPort::pair_with(capacity, SINGLE).unwrap();
            let id = engine.attach(Box::new(port)).unwrap();
            let port = known.iter().find(|port| port.id == host.port).unwrap();
            spec.ports.push(PortConfig { id, ..port.clone() });
            ports.push((host, id, peer));
        }
        if let Some(gate) = gate {
            let id = engine.attach(Box::new(gate)).unwrap();
            spec.ports.push(PortConfig { id, ..endpoint(&D, NET1) });
        }
        engine.publish(Snapshot::build(spec).unwrap());
        Self { engine, ports }
    }

    fn peer(&self, host: &Host) -> &MemoryPeer {
        &self.ports.iter().find(|(other, ..)| other.port == host.port).unwrap().2
    }

    /// Frames that the device of a host took, did not take because it was full, and did not take in
    /// all.
    fn tx(&self, host: &Host) -> (u64, u64, u64) {
        let id = self.ports.iter().find(|(other, ..)| other.port == host.port).unwrap().1;
        let stats = self.engine.port_stats(id).unwrap();
        let full = stats.tx_drops[DropReason::TxQueueFull.index()];
        (stats.tx_frames, full, stats.tx_drops.iter().sum())
    }
}

/// A datagram with a number in it.
fn numbered(from: &Host, to: &Host, number: u32) -> Vec<u8> {
    udp(from, 1, to, 2).via(to.mac).payload(&number.to_be_bytes()).bytes()
}

/// The number in a datagram.
fn number_in(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[42..46].try_into().unwrap())
}

#[test]
fn a_receiver_that_takes_nothing_loses_its_own_frames_and_nobody_else_s() {
    const CAPACITY: u32 = 64;
    const FRAMES: u32 = 10_000;
    let network = Network::new(2, CAPACITY as usize);
    let deadline = Instant::now() + PATIENCE;
    // Every frame to B stands behind one to C, which never reads.
    let (mut sent, mut came) = (0, 0);
    while came < FRAMES {
        assert!(Instant::now() < deadline, "{came} of {FRAMES}: {:?}", network.tx(&C));
        // No more under way than B's wire holds.
        if sent < FRAMES && sent - came < CAPACITY / 2 {
            for to in [&C, &B] {
                while !network.peer(&A).send(&numbered(&A, to, sent), VnetHdr::default()) {
                    assert!(Instant::now() < deadline, "the engine reads no more");
                    thread::yield_now();
                }
            }
            sent += 1;
        }
        while let Some((bytes, _)) = network.peer(&B).recv() {
            assert_eq!(number_in(&bytes), came);
            came += 1;
        }
    }
    assert_balances(&network.engine);
    let (frames, capacity) = (u64::from(FRAMES), u64::from(CAPACITY));
    assert_eq!(network.tx(&B), (frames, 0, 0));
    assert_eq!(network.tx(&C), (capacity, frames - capacity, frames - capacity));
    // Nothing of C's is kept elsewhere: more buffers than the engine has have gone through.
    assert!(frames > 10 * small().buffers_per_worker as u64);
    // When it reads again it gets what its wire held, the oldest first, and then what comes.
    for number in 0..CAPACITY {
        assert_eq!(number_in(&network.peer(&C).recv().unwrap().0), number);
    }
    assert!(network.peer(&A).send(&numbered(&A, &C, FRAMES), VnetHdr::default()));
    let (bytes, _) = network.peer(&C).recv_timeout(PATIENCE).unwrap();
    assert_eq!(number_in(&bytes), FRAMES);
}

/// A device that holds the worker that sends to it until it is told to let it go.
#[derive(Debug)]
struct Gate {
    port: MemoryPort,
    entered: Sender<()>,
    open: Receiver<()>,
}

#[derive(Debug)]
struct GateTx {
    tx: Box<dyn PortTx>,
    entered: Sender<()>,
    open: Receiver<()>,
}

impl Port for Gate {
    fn offloads(&self) -> Offloads {
        self.port.offloads()
    }

    fn split(self: Box<Self>, workers: usize) -> std::io::Result<PortHalves> {
        let PortHalves { rx, tx } = Box::new(self.port).split(workers)?;
        let (entered, open) = (self.entered, self.open);
        let gate = |tx| -> Box<dyn PortTx> {
            Box::new(GateTx { tx, entered: entered.clone(), open: open.clone() })
        };
        Ok(PortHalves { rx, tx: tx.into_iter().map(gate).collect() })
    }
}

impl PortTx for GateTx {
    fn tx(&mut self, frames: &mut Vec<Frame>, pool: &mut Pool) -> TxReport {
        self.entered.send(()).unwrap();
        self.open.recv().unwrap();
        self.tx.tx(frames, pool)
    }

    fn tx_copy(&mut self, frame: &mut Frame, pool: &mut Pool) -> TxReport {
        self.tx.tx_copy(frame, pool)
    }
}

/// A device that counts how often it is asked for frames.
#[derive(Debug)]
struct Asked {
    port: MemoryPort,
    times: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct AskedRx {
    rx: Box<dyn PortRx>,
    times: Arc<AtomicUsize>,
}

impl Port for Asked {
    fn offloads(&self) -> Offloads {
        self.port.offloads()
    }

    fn split(self: Box<Self>, workers: usize) -> std::io::Result<PortHalves> {
        let PortHalves { rx, tx } = Box::new(self.port).split(workers)?;
        Ok(PortHalves { rx: Box::new(AskedRx { rx, times: self.times }), tx })
    }
}

impl PortRx for AskedRx {
    fn rx(
        &mut self,
        budget: usize,
        pool: &mut Pool,
        batch: &mut Vec<Frame>,
    ) -> Result<usize, Gone> {
        self.times.fetch_add(1, Ordering::Relaxed);
        self.rx.rx(budget, pool, batch)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.rx.fd()
    }
}

/// Without a ring, a port is asked when its descriptor says that it has something, and not again until
/// it says so again, however long the worker looks for work before it sleeps.
#[test]
fn a_port_that_has_nothing_is_not_asked() {
    const FRAMES: u32 = 40;
    let options = EngineOptions { workers: 1, io: IoChoice::Epoll, ..small() };
    let engine = Engine::start(&options).unwrap();
    let times = Arc::new(AtomicUsize::new(0));
    let (port, peer) = MemoryPort::pair_with(8, SINGLE).unwrap();
    let id = engine.attach(Box::new(Asked { port, times: Arc::clone(&times) })).unwrap();
    let mut spec = topology();
    spec.uplinks.clear();
    spec.ports = vec![PortConfig { id, ..endpoint(&A, NET1) }];
    engine.publish(Snapshot::build(spec).unwrap());
    for number in 0..FRAMES {
        assert!(peer.send(&numbered(&A, &B, number), VnetHdr::default()));
        let until = Instant::now() + PATIENCE;
        while engine.port_stats(id).unwrap().rx_frames <= number.into() {
            assert!(Instant::now() < until, "frame {number} was not taken");
            thread::sleep(Duration::from_millis(1));
        }
    }
    let times = times.load(Ordering::Relaxed);
    assert!(times <= FRAMES as usize, "asked {times} times for {FRAMES} frames");
}

/// While the only worker is held up, A's wire is filled to the brim, and C sends one frame. However
/// much A has sent, C's frame has its turn.
#[test]
fn a_flood_delays_others_by_one_turn_at_most() {
    const CAPACITY: usize = 1024;
    /// What is taken of one port at a time.
    const TURN: usize = 32;
    let (entered, is_entered) = bounded(1);
    let (open, is_open) = bounded(1);
    let (port, _peer) = MemoryPort::pair_with(CAPACITY, SINGLE).unwrap();
    let gate = Gate { port, entered, open: is_open };
    let network = Network::with(1, CAPACITY, Some(gate));
    for round in 0..20 {
        let send = |from: &Host, to: &Host, number| {
            assert!(network.peer(from).send(&numbered(from, to, number), VnetHdr::default()));
        };
        send(&A, &D, 0);
        is_entered.recv_timeout(PATIENCE).unwrap();
        for number in 0..700 {
            send(&A, &B, number);
        }
        send(&C, &B, 0);
        open.send(()).unwrap();
        let mut order = Vec::new();
        while order.len() < 701 {
            let (bytes, _) = network.peer(&B).recv_timeout(PATIENCE).expect("all of them");
            order.push(bytes[6..12] == C.mac.0);
        }
        let before = order.iter().position(|of_c| *of_c).unwrap();
        assert!(before <= TURN, "round {round}: {before} frames of A before C's");
    }
    assert_balances(&network.engine);
    assert_eq!(network.tx(&B), (20 * 701, 0, 0));
}
