//! Our TAP against a TAP that is not ours: the `tun-tap` crate's, with neither virtio-net header
//! nor offloads, and a kernel bridge between the two.
//!
//! ```text
//! smoltcp - tun-tap - foreign0 = bridge = ours0 - our TAP - engine - memory port - smoltcp
//!             plain frames        kernel        virtio-net header
//! ```
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use dataplane::clock::Timestamp;
use dataplane::config::Snapshot;
use dataplane::io::Offloads;
use dataplane::io::memory::{MemoryPeer, MemoryPort};
use dataplane::io::tap::{Tap, TapOptions};
use dataplane::io::vnet_hdr::VnetHdr;
use dataplane::packet::types::PortId;
use dataplane::packet::types::tcp_flags::{ACK, PSH};
use dataplane::{Engine, EngineOptions};
use nix::sched::{CloneFlags, unshare};
use tests::lab::{A, B, GATEWAY1, small, topology};
use tests::packet::{Wire, tcp, udp};
use tests::rig::assert_balances;
use tests::sim::{Machine, Rng, Talk};
use tests::sums;
use tun_tap::{Iface, Mode};

const DEADLINE: Duration = Duration::from_secs(30);

/// Runs `test` on a thread of its own in a network namespace of its own, which has no name and goes
/// with the thread and what it opened.
fn in_namespace(test: impl FnOnce() + Send) {
    let enter = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root");
        // The kernel's own chatter (neighbor discovery, MLD) would be dropped by the guard.
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
        test();
    };
    thread::scope(|scope| {
        if let Err(panic) = scope.spawn(enter).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn ip(arguments: &str) {
    let words = arguments.split_whitespace();
    let output = Command::new("ip").args(words).output().expect("`ip`, of package iproute2");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The foreign device, read by a thread: the crate only reads blocking.
struct Foreign {
    device: Arc<Iface>,
    frames: Receiver<Vec<u8>>,
    reader: Option<JoinHandle<()>>,
}

impl Foreign {
    fn new() -> Self {
        let device = Arc::new(Iface::without_packet_info("foreign0", Mode::Tap).unwrap());
        let (sender, frames) = channel();
        let reading = Arc::clone(&device);
        let reader = thread::spawn(move || {
            let mut buffer = [0; 65_600];
            while let Ok(length) = reading.recv(&mut buffer) {
                if sender.send(buffer[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { device, frames, reader: Some(reader) }
    }

    fn send(&self, bytes: &[u8]) {
        assert_eq!(self.device.send(bytes).unwrap(), bytes.len());
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        // Deleting the device ends the read. This may be the end of a test that failed already.
        let deleted = Command::new("ip").args(["link", "delete", "foreign0"]).status();
        if deleted.is_ok_and(|status| status.success())
            && let Some(reader) = self.reader.take()
        {
            let _ = reader.join();
        }
    }
}

/// The engine with A behind our TAP and B behind a memory port.
struct Bench {
    engine: Engine,
    foreign: Foreign,
    peer: MemoryPeer,
    tap: PortId,
}

impl Bench {
    fn new() -> Self {
        let tap = Tap::create(&TapOptions { name: "ours0".to_owned(), persistent: false }).unwrap();
        let foreign = Foreign::new();
        ip("link add bridge0 type bridge");
        for name in ["foreign0", "ours0"] {
            ip(&format!("link set {name} master bridge0"));
        }
        for name in ["foreign0", "ours0", "bridge0"] {
            ip(&format!("link set {name} up"));
        }
        let engine = Engine::start(&EngineOptions { workers: 2, ..small() }).unwrap();
        let (port, peer) = MemoryPort::pair_with(256, Offloads::NONE).unwrap();
        let tap_port = engine.attach(Box::new(tap)).unwrap();
        let memory_port = engine.attach(Box::new(port)).unwrap();
        let mut spec = topology();
        spec.ports.retain(|port| port.id == A.port || port.id == B.port);
        (spec.ports[0].id, spec.ports[1].id) = (tap_port, memory_port);
        spec.uplinks.clear();
        engine.publish(Snapshot::build(spec).unwrap());
        Self { engine, foreign, peer, tap: tap_port }
    }

    fn finish(self) {
        assert_balances(&self.engine);
    }

    /// The next frame to A that the foreign device reads: the kernel says things of its own there.
    fn to_foreign(&self, timeout: Duration) -> Option<Wire> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let frame = self.foreign.frames.recv_timeout(left).ok()?;
            if frame[..6] == A.mac.0 {
                return Some(frame.into());
            }
        }
    }
}

#[test]
#[ignore = "needs root"]
fn tcp_between_a_foreign_tap_and_ours() {
    in_namespace(|| {
        let bench = Bench::new();
        let mut rng = Rng(11);
        let mut behind_tap = Machine::new(&A, GATEWAY1.ip, Timestamp::now());
        let mut behind_memory = Machine::new(&B, GATEWAY1.ip, Timestamp::now());
        let listening = behind_memory.listen(80);
        let connecting = behind_tap.connect(40_000, B.ip, 80);
        let mut talks = [
            Talk::new(0, connecting, rng.bytes(500_000)),
            Talk::new(1, listening, rng.bytes(500_000)),
        ];
        let deadline = Instant::now() + DEADLINE;
        let mut reader = 0;
        while !(talks[0].is_over(&behind_tap) && talks[1].is_over(&behind_memory)) {
            assert!(Instant::now() < deadline, "{:?}", bench.engine.worker_stats());
            // Another worker reads the TAP now and then.
            reader = (reader + 1) % 64;
            bench.engine.receive_by(bench.tap, reader / 32).unwrap();
            behind_tap.nic.rx.extend(bench.foreign.frames.try_iter());
            behind_tap.poll(Timestamp::now());
            for frame in behind_tap.nic.tx.drain(..) {
                bench.foreign.send(&frame);
            }
            while let Some((bytes, vnet)) = bench.peer.recv() {
                assert_eq!(vnet, VnetHdr::default(), "this port takes plain frames only");
                behind_memory.nic.rx.push_back(bytes);
            }
            behind_memory.poll(Timestamp::now());
            for frame in behind_memory.nic.tx.drain(..) {
                bench.peer.send(&frame, VnetHdr::default());
            }
            talks[0].pump(&mut behind_tap);
            talks[1].pump(&mut behind_memory);
        }
        assert!(talks[0].received == talks[1].sent_bytes());
        assert!(talks[1].received == talks[0].sent_bytes());
        bench.finish();
    });
}

/// What our TAP hands the kernel with a virtio-net header, the kernel must understand as we mean
/// it: on a device without offloads it comes out complete, cut where we would have cut it.
#[test]
#[ignore = "needs root"]
fn the_kernel_cuts_and_completes_what_our_tap_hands_it() {
    in_namespace(|| {
        let bench = Bench::new();
        let short = udp(&B, 1000, &A, 2000).long(900);
        let large = tcp(&B, 80, &A, 40_000, ACK | PSH).long(20_000);
        // Until the bridge forwards, what is sent is lost.
        let deadline = Instant::now() + DEADLINE;
        let mut first = None;
        while first.is_none() {
            assert!(Instant::now() < deadline, "the bridge forwards nothing");
            let wire = short.partial();
            assert!(bench.peer.send(&wire.bytes, wire.vnet));
            first = bench.to_foreign(Duration::from_millis(200));
        }
        assert_eq!(first.unwrap(), Wire::from(&short));
        let wire = large.gso(1448);
        assert!(bench.peer.send(&wire.bytes, wire.vnet));
        let mut came = Vec::new();
        while came.len() < 14 {
            let frame = bench.to_foreign(DEADLINE).expect("a segment in time");
            // The first datagram may have been sent more than once.
            if frame != (&short).into() {
                assert!(sums::check(&frame).are_right(), "{frame:?}");
                came.push(frame);
            }
        }
        let expected: Vec<Wire> = large.segments(1448).into_iter().map(Wire::from).collect();
        assert_eq!(came, expected);
        bench.finish();
    });
}
