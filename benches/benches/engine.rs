//! A running engine of one worker, its thread, its waiting and its counters included, between two ports in memory
//! whose other ends this thread writes and reads: what the pipeline's figures leave out, but for real devices.
//!
//! Names: `engine/<load>/<frame bytes>`. `l2`: each frame leaves by itself; `l2_train`: datagrams of one flow leave
//! as one frame; `l2_tcp`: segments of one stream do, if they are long. Needs two processors that do nothing else:
//! the slower of the two threads is what is measured, which here writes, counts and copies every frame.
#![allow(missing_docs, reason = "criterion_group! makes a public function")]
#![allow(clippy::expect_used, reason = "a bench that cannot be set up must stop")]

use std::cell::LazyCell;
use std::time::{Duration, Instant};

use benches::frames::{Load, MacPairs, Way};
use benches::segments::TcpPairs;
use benches::specs::two_ports;
use benches::stay_on;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use dataplane::config::Snapshot;
use dataplane::frame::Frame;
use dataplane::io::Offloads;
use dataplane::io::memory::{MemoryPeer, MemoryPort};
use dataplane::{Engine, EngineOptions};

/// Frames on a wire each way.
const WIRE: usize = 256;
/// How long a frame may be on its way.
const PATIENCE: Duration = Duration::from_secs(5);
/// Ports that take no trains of datagrams.
const SINGLE: Offloads = Offloads { uso: false, ..Offloads::ALL };

struct Between {
    engine: Engine,
    from: MemoryPeer,
    to: MemoryPeer,
}

impl Between {
    fn new(takes: Offloads) -> Self {
        let options =
            EngineOptions { workers: 1, buffers_per_worker: 3 * WIRE, ..EngineOptions::default() };
        // Threads stay where they are begun. On one processor each would wait for the other's time to be over.
        stay_on(1);
        let engine = Engine::start(&options).expect("an engine");
        stay_on(0);
        let wire = || MemoryPort::pair_with(WIRE, takes).expect("a port");
        let [(one, from), (other, to)] = [wire(), wire()];
        let ids = [one, other].map(|port| engine.attach(Box::new(port)).expect("a port's place"));
        engine.publish(Snapshot::build(two_ports(ids)).expect("a configuration"));
        let between = Self { engine, from, to };
        // The host on the other side is known from here on.
        assert!(between.to.send_with(|frame| MacPairs::back(64, 1).fill(frame)), "no room");
        between.wait_for(&between.from, 1);
        between
    }

    /// Sends so many frames as fast as they come out again.
    fn pass(&self, load: &mut impl Load, frames: u64) -> Duration {
        let start = Instant::now();
        let (mut sent, mut came) = (0, 0);
        while came < frames {
            // No more than the wire behind it holds.
            while sent < frames && sent - came < WIRE as u64 {
                assert!(self.from.send_with(|frame| load.fill(frame)), "no room");
                sent += 1;
            }
            came += self.wait_for(&self.to, 1);
        }
        start.elapsed()
    }

    /// What has come, at least so many.
    fn wait_for(&self, peer: &MemoryPeer, at_least: u64) -> u64 {
        let start = Instant::now();
        let mut came = 0;
        loop {
            while let Some(count) = peer.recv_with(segments) {
                came += count;
            }
            if came >= at_least {
                return came;
            }
            assert!(start.elapsed() < PATIENCE, "{:?}", self.engine.worker_stats());
            std::hint::spin_loop();
        }
    }
}

/// How many frames this one was.
fn segments(frame: &Frame) -> u64 {
    let payload = frame.len() as u64 - u64::from(frame.vnet.hdr_len);
    match frame.vnet.gso_size {
        0 => 1,
        size => payload.div_ceil(size.into()),
    }
}

fn engine(c: &mut Criterion) {
    let mut group = c.benchmark_group("engine");
    group.throughput(Throughput::Elements(1));
    type Make = fn() -> Box<dyn Load>;
    let loads: [(&str, Offloads, Make); 4] = [
        ("l2/64", SINGLE, || Box::new(MacPairs::new(64, 1))),
        ("l2/1500", SINGLE, || Box::new(MacPairs::new(1500, 1))),
        ("l2_train/64", Offloads::ALL, || Box::new(MacPairs::new(64, 1))),
        ("l2_tcp/1500", SINGLE, || Box::new(TcpPairs::new(1500, 1, Way::Out))),
    ];
    for (name, takes, load) in loads {
        // Made when the bench runs: a filter then costs nothing.
        let between = LazyCell::new(|| Between::new(takes));
        let mut load = load();
        group.bench_function(name, |b| {
            let between = LazyCell::force(&between);
            b.iter_custom(|iters| between.pass(&mut load, iters));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = engine
}
criterion_main!(benches);
